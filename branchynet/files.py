"""Files that appear whole or not at all, their hashes, and the lock of a folder."""
from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
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
_LOCK = '.lock'  # in the folder that it locks


@contextlib.contextmanager
def written_whole(path: str, keep: str | None = None) -> Iterator[BinaryIO]:
    """A binary file to write to, which appears at ``path`` only once it is whole.

    It is written under a name of its own beside ``path``, so that several processes may write to one path: the last
    one wins. What processes that were killed left of their attempts at this path is removed.

    Args:
        path: Where the file appears, in place of the file that is there.
        keep: Where the file that was at ``path`` is moved to, if it is to be kept.

    Yields:
        The file, open for writing.

    Raises:
        OSError: It cannot be written; one line with the path and the reason.
    """
    part = None
    try:
        remove_parts(path)
        with _open_part(path) as f:
            part = f.name
            yield f
            f.flush()
            os.fsync(f.fileno())
            if fcntl:  # before the file is closed, and with it unlocked: another process would remove it
                _put(part, path, keep)
        if not fcntl:  # Windows does not rename open files
            _put(part, path, keep)
    except BaseException as e:
        if part is not None:
            with contextlib.suppress(OSError):
                os.remove(part)
        if isinstance(e, OSError) and e.errno:
            raise OSError(f'{path} cannot be written ({e.strerror})') from e
        raise


def write_atomically(path: str, content: bytes, keep: str | None = None) -> None:
    """Writes a file by `written_whole`."""
    with written_whole(path, keep) as f:
        f.write(content)


def remove_parts(path: str) -> None:
    """Removes what processes that were killed left of their attempts to write ``path``.

    A part whose writer lives is locked, and stays. Where the system cannot lock files (Windows, some network file
    systems), all parts stay.
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
        f = open(f'{path}.{secrets.token_hex(4)}.part', 'xb')
        if fcntl:
            with contextlib.suppress(OSError):  # no locks in this file system
                fcntl.flock(f, fcntl.LOCK_EX)
        if os.fstat(f.fileno()).st_nlink or not fcntl:
            return f
        f.close()  # another process took it for a stale one, between its making and its locking


def _put(part: str, path: str, keep: str | None) -> None:
    if keep is not None:
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, keep)
    os.replace(part, path)


def digest(path: str, algorithm: str = 'sha256') -> str:
    """Hexadecimal digest of a file, which is read block by block.

    Args:
        path: The file.
        algorithm: A name that `hashlib.new` knows.
    """
    found = hashlib.new(algorithm)
    with open(path, 'rb') as f:
        for block in iter(lambda: f.read(_BLOCK), b''):
            found.update(block)
    return found.hexdigest()


@contextlib.contextmanager
def lock(folder: str) -> Iterator[None]:
    """Keeps other processes that call this out of a folder. It is made if need be, and does not stay if it stays empty.

    The system releases the lock when its holder ends, however it ends. Where the system cannot lock files (Windows,
    some network file systems), a line on standard error says that the folder is not locked.

    Raises:
        OSError: Another process holds the lock; one line says which, on which host and since when.
    """
    made = not os.path.isdir(folder)
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, _LOCK)
    f = _open_lock(path, folder)
    try:
        f.truncate(0)
        f.write(json.dumps({'host': socket.gethostname(), 'process': os.getpid(),
                            'since': time.strftime('%Y-%m-%d %H:%M:%S')}).encode())
        f.flush()
        yield
    finally:
        with contextlib.suppress(OSError):
            os.remove(path)  # before it is unlocked: nobody else's is removed
        f.close()
        if made:
            with contextlib.suppress(OSError):
                os.rmdir(folder)


def _open_lock(path: str, folder: str) -> BinaryIO:
    """The file of a lock, locked."""
    while True:
        f = open(path, 'a+b')
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
        f.close()  # its holder removed it, between its opening and its locking


def _is_at(f: BinaryIO, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(f.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(content: bytes) -> str:
    try:
        holder = json.loads(content)
        return f"process {holder['process']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        return 'a process that has just begun'
