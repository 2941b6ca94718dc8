"""Atomic writing of files, their hashes, and the lock of a folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_BLOCK = 1 << 16  # bytes
_LOCK = '.lock'  # name of the lock's file, in the folder that it locks


@contextlib.contextmanager
def written_whole(path: str, keep: str | None = None) -> Iterator[BinaryIO]:
    """Opens a binary file for writing, which appears at ``path`` only when it is complete.

    The file is written under a unique name beside ``path``. So several processes may write to one path at the same
    time; the last one wins. Parts that killed processes have left there are removed.

    Args:
        path: path of the file; an existing file is replaced.
        keep: where to move the existing file; None to drop it.

    Yields:
        The file, open for writing.

    Raises:
        OSError: the file cannot be written; one line with the path and the reason.
    """
    part = None
    try:
        remove_parts(path)
        with _open_part(path) as f:
            part = f.name
            yield f
            f.flush()
            os.fsync(f.fileno())
            if fcntl:  # while the file is open and so locked: later, another process could remove it as a stale part
                _put(part, path, keep)
        if not fcntl:  # Windows cannot rename open files
            _put(part, path, keep)
    except BaseException as e:
        if part is not None:
            with contextlib.suppress(OSError):
                os.remove(part)
        if isinstance(e, OSError) and e.errno:
            raise OSError(f'{path} cannot be written ({e.strerror})') from e
        raise


def write_atomically(path: str, content: bytes, keep: str | None = None) -> None:
    """Writes a file so that readers see all of it or none of it.

    Args:
        path: path of the file; an existing file is replaced.
        content: all that the file holds.
        keep: where to move the existing file; None to drop it.

    Raises:
        OSError: the file cannot be written; one line with the path and the reason.
    """
    with written_whole(path, keep) as f:
        f.write(content)


def copy(path: str, to: str) -> None:
    """Copies a file so that readers of the copy see all of it or none of it.

    Args:
        path: of the file.
        to: path of the copy; an existing file is replaced.

    Raises:
        OSError: the file cannot be read, or the copy cannot be written.
    """
    with open(path, 'rb') as f, written_whole(to) as copied:
        shutil.copyfileobj(f, copied)


def remove_parts(path: str) -> None:
    """Removes the parts that killed processes have left when they wrote ``path``.

    The part of a process that is still writing is locked, and stays. If the system cannot lock files (Windows, some
    network file systems), all parts stay.

    Args:
        path: path of the complete file.
    """
    folder, name = os.path.split(path)
    is_part = re.compile(re.escape(name) + r'\.[0-9a-f]{8}\.part').fullmatch
    for part in filter(is_part, os.listdir(folder or '.')) if fcntl else ():
        part = os.path.join(folder, part)
        with contextlib.suppress(OSError), open(part, 'rb') as f:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.remove(part)


def _open_part(path: str) -> BinaryIO:
    """A new file beside ``path``, locked as long as it is open."""
    while True:
        f = open(f'{path}.{secrets.token_hex(4)}.part', 'xb')  # noqa: SIM115  (the caller closes it)
        if fcntl:
            with contextlib.suppress(OSError):  # no locks in this file system
                fcntl.flock(f, fcntl.LOCK_EX)
        if os.fstat(f.fileno()).st_nlink or not fcntl:
            return f
        f.close()  # another process removed it as stale, before it was locked


def _put(part: str, path: str, keep: str | None) -> None:
    if keep is not None:
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, keep)
    os.replace(part, path)


def digest(path: str, algorithm: str = 'sha256') -> str:
    """Returns the digest of a file, which is read block by block.

    Args:
        path: path of the file.
        algorithm: name of the algorithm, as `hashlib.new` takes it.

    Returns:
        The digest in hexadecimal digits.

    Raises:
        OSError: the file is missing or cannot be read.
    """
    found = hashlib.new(algorithm)
    with open(path, 'rb') as f:
        for block in iter(lambda: f.read(_BLOCK), b''):
            found.update(block)
    return found.hexdigest()


@contextlib.contextmanager
def lock(folder: str) -> Iterator[None]:
    """Locks a folder against other processes that call this function.

    The folder is made if it does not exist; then it is removed afterwards if it is still empty. The system releases
    the lock when its holder ends, in whatever way. If the system cannot lock files (Windows, some network file
    systems), a line on standard error says that the folder is not locked.

    Args:
        folder: path of the folder.

    Raises:
        OSError: another process holds the lock; one line with the process, its host and the time.
    """
    made = not os.path.isdir(folder)
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, _LOCK)
    f = _open_lock(path, folder)
    try:
        f.truncate(0)
        f.write(
            json.dumps(
                {'host': socket.gethostname(), 'process': os.getpid(), 'since': time.strftime('%Y-%m-%d %H:%M:%S')}
            ).encode()
        )
        f.flush()
        yield
    finally:
        with contextlib.suppress(OSError):
            os.remove(path)  # while it is locked: so no other process's lock is removed
        f.close()
        if made:
            with contextlib.suppress(OSError):
                os.rmdir(folder)


@contextlib.contextmanager
def waiting_for(path: str) -> Iterator[None]:
    """Lets one process at a time do the with block for a file; the others wait. Not where the system cannot lock files.

    Args:
        path: path of the file, which the block makes; the lock is a file beside it.
    """
    if not fcntl:
        yield
        return
    lock_path = f'{path}.lock'
    while True:
        with open(lock_path, 'a+b') as f:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(f, fcntl.LOCK_EX)
            if not _is_at(f, lock_path):
                continue  # its holder removed it, before it was locked here
            try:
                yield
                return
            finally:
                with contextlib.suppress(OSError):
                    os.remove(lock_path)  # while it is locked: so no other process's lock is removed


def _open_lock(path: str, folder: str) -> BinaryIO:
    """The file of a lock, locked."""
    while True:
        f = open(path, 'a+b')  # noqa: SIM115  (the caller closes it)
        try:
            if not fcntl:
                raise OSError('this system has no flock')
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            f.seek(0)
            holder = _holder(f.read())
            f.close()
            raise OSError(f'{folder} is in use by {holder}; wait for it to end, or name another folder') from None
        except OSError as e:
            print(f'{folder} cannot be locked ({e.strerror or e}): let no other process write to it', file=sys.stderr)
            return f
        if _is_at(f, path):
            return f
        f.close()  # its holder removed it, before it was locked here


def _is_at(f: BinaryIO, path: str) -> bool:
    """Whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(f.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(content: bytes) -> str:
    """The holder of a lock, in words, from the content of the lock's file."""
    try:
        holder = json.loads(content)
        return f'process {holder["process"]} on {holder["host"]} since {holder["since"]}'
    except (ValueError, KeyError, TypeError):
        return 'a process that has just begun'
