"""The data folder: where files are found, checked before use, and downloaded."""

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

from branchynet.files import digest
from branchynet.progress import progress

_TIMEOUT = 20  # seconds without an answer
_BLOCK = 1 << 16


def root() -> str:
    """The data folder: BRANCHYNET_DATA, else datasets/data of a checkout, else in the user's cache.

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
    # Up to version 1.0 the folder was Linux's on every system.
    before = os.path.join(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'branchynet')
    return before if os.path.isdir(before) and not os.path.isdir(folder) else folder


def command():
    """The branchynet command as it can be typed here: by its name where it is on the PATH."""
    beside = os.path.join(os.path.dirname(sys.executable), 'branchynet')
    return 'branchynet' if shutil.which('branchynet') or not os.path.exists(beside) else beside


def read_gzip(path, sha256):
    """Content of a gzip file, whose SHA-256 (of the content) must be the one expected.

    Raises:
        OSError: the file is missing or damaged; one line with the file and what was expected.
    """
    try:
        with gzip.open(path) as f:
            content = f.read()
    except FileNotFoundError:
        raise FileNotFoundError(f'{path} is missing: expected content of SHA-256 {sha256}') from None
    except (EOFError, gzip.BadGzipFile, gzip.zlib.error) as e:
        raise OSError(f'{path} is damaged ({e}): expected content of SHA-256 {sha256}') from e
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise OSError(f'{path} has content of SHA-256 {found}: expected {sha256}')
    return content


def read(path, expected):
    """Content of a file, whose digest (MD5 or SHA-256, by its length) must be the one expected.

    Raises:
        OSError: the file is missing or another; one line with the file and what was expected.
    """
    try:
        with open(path, 'rb') as f:
            content = f.read()
    except FileNotFoundError:
        raise OSError(f'{path} is missing: expected one of {_named(expected)}') from None
    _check(path, hashlib.new(_algorithm(expected), content).hexdigest(), expected)
    return content


def read_archive(path, md5, members):
    """Contents of some members of a .tar.gz file whose MD5 must be the one expected.

    Nothing is written: members are taken by name and must be plain files, so that no path or link in the
    archive is followed.

    Returns:
        dict: content by member.

    Raises:
        OSError: the archive is missing or another, or lacks a member.
    """
    check_file(path, md5)
    found = {}
    with tarfile.open(path, 'r:gz') as archive:
        for member in archive:
            if member.name in members and member.isreg():
                found[member.name] = archive.extractfile(member).read()
    for name in members:
        if name not in found:
            raise OSError('{} holds no file {}: expected {}'.format(path, name, ', '.join(members)))
    return found


def check_file(path, expected):
    """Raises OSError unless a file has the digest (MD5 or SHA-256, by its length) expected."""
    _check(path, digest(path, _algorithm(expected)), expected)


def download(url, path, expected):
    """Downloads a file, going on with what an interrupted download left in `path`.part.

    `path` appears only once the file has the digest (MD5 or SHA-256, by its length) expected.

    Raises:
        OSError: the file is not to be had, is another, or was cut off; in the last case the part stays.
    """
    part = path + '.part'
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _fetch_checked(url, part, expected)
    except (OSError, http.client.HTTPException) as e:
        raise OSError(f'{path} cannot be downloaded ({url}: {e}): put one of {_named(expected)} there') from e
    os.replace(part, path)


def _fetch_checked(url, part, expected):
    """Fetches from where `part` ends; what turns out to be another file is removed, and fetched anew once."""
    begun = os.path.getsize(part) if os.path.exists(part) else 0
    for start in [begun, 0] if begun else [0]:
        try:
            _fetch(url, part, start)
        except urllib.error.HTTPError as e:
            if e.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
        try:
            return check_file(part, expected)
        except OSError as e:
            os.remove(part)
            wrong = e
    raise wrong


def _fetch(url, path, start=0):
    """Writes what a URL holds to a file, whose first `start` bytes are kept if the server can go on from there."""
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
            'it ended after %d of %d bytes; what is there is kept, and the next download goes on from it'
            % (size, start + left)
        )


@contextlib.contextmanager
def mended_by_download(name):
    """An OSError inside says how it is mended: by downloading the data set of that name."""
    try:
        yield
    except OSError as e:
        raise OSError(f"{e}; mend it with '{command()} data download {name}'") from e


def _check(path, found, expected):
    if found != expected:
        raise OSError(f'{path} has {_named(found)}: expected {expected}')


def _named(hexdigest):
    return '{} {}'.format({'md5': 'MD5', 'sha256': 'SHA-256'}[_algorithm(hexdigest)], hexdigest)


def _algorithm(hexdigest):
    return {32: 'md5', 64: 'sha256'}[len(hexdigest)]
