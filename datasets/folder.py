"""The data folder: its place, and functions that download files and check them before use."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import os
import shutil
import sys
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Collection, Iterator

from branchynet.files import digest, waiting_for
from branchynet.progress import progress

_TIMEOUT = 20  # seconds without an answer
_BLOCK = 1 << 16  # bytes


def root() -> str:
    """Returns the data folder.

    It is the folder that the environment variable BRANCHYNET_DATA names, else datasets/data of a checkout, else a
    folder in the user's cache.

    Raises:
        ValueError: BRANCHYNET_DATA names a file.
    """
    named = os.environ.get('BRANCHYNET_DATA')
    if named:
        if os.path.exists(named) and not os.path.isdir(named):
            raise ValueError(f'BRANCHYNET_DATA names {named}, which is a file: let it name a folder')
        return named
    package = os.path.dirname(os.path.abspath(__file__))
    if os.path.exists(os.path.join(os.path.dirname(package), 'setup.py')):
        return os.path.join(package, 'data')
    return _cache()


def _cache() -> str:
    import platformdirs

    folder = platformdirs.user_cache_dir('branchynet', appauthor=False)
    # Up to version 1.0 every system had the folder of Linux.
    before = os.path.join(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'branchynet')
    return before if os.path.isdir(before) and not os.path.isdir(folder) else folder


def command() -> str:
    """Returns the branchynet command as the user can type it: its name if it is on the PATH, else its path."""
    beside = os.path.join(os.path.dirname(sys.executable), 'branchynet')
    return 'branchynet' if shutil.which('branchynet') or not os.path.exists(beside) else beside


def read_gzip(path: str, sha256: str) -> bytes:
    """Reads a gzip file and checks its content.

    Args:
        path: path of the file.
        sha256: SHA-256 of the unpacked content, in hexadecimal digits.

    Returns:
        The unpacked content.

    Raises:
        OSError: the file is missing or damaged; one line with its path and the expected digest.
    """
    try:
        with gzip.open(path) as f:
            content = f.read()
    except FileNotFoundError:
        raise FileNotFoundError(f'{path} is missing: expected content of SHA-256 {sha256}') from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
        raise OSError(f'{path} is damaged ({e}): expected content of SHA-256 {sha256}') from e
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise OSError(f'{path} has content of SHA-256 {found}: expected {sha256}')
    return content


def read(path: str, expected: str) -> bytes:
    """Reads a file and checks its content.

    Args:
        path: path of the file.
        expected: its MD5 or SHA-256, in hexadecimal digits.

    Returns:
        The content.

    Raises:
        OSError: the file is missing, or has another digest; one line with its path and the expected digest.
    """
    try:
        with open(path, 'rb') as f:
            content = f.read()
    except FileNotFoundError:
        raise OSError(f'{path} is missing: expected a file with {_named(expected)}') from None
    _check(path, hashlib.new(_algorithm(expected), content).hexdigest(), expected)
    return content


def read_archive(path: str, md5: str, members: Collection[str]) -> dict[str, bytes]:
    """Checks a .tar.gz file and reads some of its members.

    Nothing is written to disk: members are taken by name and must be plain files, so that no path or link in the
    archive is followed.

    Args:
        path: path of the archive.
        md5: MD5 of the archive, in hexadecimal digits.
        members: names of the members.

    Returns:
        The contents by member.

    Raises:
        OSError: the archive is missing, has another digest, or lacks a member.
    """
    check_file(path, md5)
    found = {}
    with tarfile.open(path, 'r:gz') as archive:
        for member in archive:
            if member.name in members and member.isreg():
                file = archive.extractfile(member)
                assert file is not None  # of a plain file it never is
                found[member.name] = file.read()
    for name in members:
        if name not in found:
            raise OSError(f'{path} holds no file {name}: expected {", ".join(members)}')
    return found


def check_file(path: str, expected: str) -> None:
    """Checks the digest of a file.

    Args:
        path: path of the file.
        expected: its MD5 or SHA-256, in hexadecimal digits.

    Raises:
        OSError: the file is missing, or has another digest.
    """
    _check(path, digest(path, _algorithm(expected)), expected)


# Downloads do not use pooch: its stream_download always writes to a new temporary file and deletes it on any failure,
# and its HTTPDownloader sends no Range header (pooch 1.9.0, core.py and downloaders.py). So an interrupted download of
# an archive of 170 MB would start again from the first byte; here it resumes.
def download(url: str, path: str, expected: str) -> None:
    """Downloads a file, and resumes a download that was interrupted.

    The bytes go to ``path``.part first. ``path`` appears only when the file is complete and its digest is right. If
    several processes download it at the same time, one does, and the others wait for it.

    Args:
        url: address of the file.
        path: path of the file on disk.
        expected: its MD5 or SHA-256, in hexadecimal digits.

    Raises:
        OSError: the file cannot be downloaded, has another digest, or is incomplete; if it is incomplete, the part
            stays, and the next call resumes.
    """
    part = path + '.part'
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with waiting_for(path):
            if not _is_whole(path, expected):
                _fetch_checked(url, part, expected)
                os.replace(part, path)
    except (OSError, http.client.HTTPException) as e:
        raise OSError(f'{path} cannot be downloaded ({url}: {e}): put a file with {_named(expected)} there') from e


def _is_whole(path: str, expected: str) -> bool:
    try:
        check_file(path, expected)
    except OSError:
        return False
    return True


def _fetch_checked(url: str, part: str, expected: str) -> None:
    """Resumes the download of ``part``. If the digest is wrong then, it downloads the whole file once more."""
    begun = os.path.getsize(part) if os.path.exists(part) else 0
    for start in [begun, 0] if begun else [0]:
        try:
            _fetch(url, part, start)
        except urllib.error.HTTPError as e:
            if e.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
        try:
            check_file(part, expected)
            return
        except OSError as e:
            os.remove(part)
            wrong = e
    raise wrong


def _fetch(url: str, path: str, start: int = 0) -> None:
    """Downloads to a file. Its first ``start`` bytes are kept if the server can resume from there."""
    request = urllib.request.Request(url, headers={'Range': f'bytes={start}-'} if start else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        if not response.headers.get('Content-Range', '').startswith(f'bytes {start}-'):
            start = 0
        left = int(response.headers.get('Content-Length') or 0)
        with (
            open(path, 'ab' if start else 'wb') as f,
            progress(
                label=os.path.basename(path),
                total=start + left or None,
                initial=start,
                unit='B',
                unit_scale=True,
            ) as bar,
        ):
            for block in iter(lambda: response.read(_BLOCK), b''):
                bar.update(f.write(block))
            size = f.tell()
    if size < start + left:
        raise OSError(
            f'the connection closed after {size} of {start + left} bytes; the partial file is kept, and the next '
            'download resumes from it'
        )


@contextlib.contextmanager
def mended_by_download(name: str) -> Iterator[None]:
    """Adds the command that downloads a data set to the message of an OSError of the with block.

    Args:
        name: name of the data set.
    """
    try:
        yield
    except OSError as e:
        raise OSError(f"{e}; repair it with '{command()} data download {name}'") from e


def _check(path: str, found: str, expected: str) -> None:
    if found != expected:
        raise OSError(f'{path} has {_named(found)}: expected {expected}')


def _named(hexdigest: str) -> str:
    return f'{dict(md5="MD5", sha256="SHA-256")[_algorithm(hexdigest)]} {hexdigest}'


def _algorithm(hexdigest: str) -> str:
    return {32: 'md5', 64: 'sha256'}[len(hexdigest)]
