"""The bytes of an old file, unpacked within limits, and errors that name it."""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Iterator
from typing import Union

Path = Union[str, 'os.PathLike[str]']

# The most that a compressed file may unpack to, so that a small file cannot fill the memory.
MAX_UNPACKED_BYTES = 256 * 2**20
_MAX_XZ_DICTIONARY = 128 * 2**20  # xz -9 needs 65 MiB


@contextlib.contextmanager
def about(path: Path, kind: str) -> Iterator[None]:
    """Turns an error in the content into a ValueError that names the file."""
    try:
        yield
    except (TypeError, ValueError) as e:
        raise ValueError(f'{os.fspath(path)} cannot be read as {kind}: {e}') from e


def content_of(path: Path) -> bytes:
    """The bytes of a file, unpacked where it is compressed."""
    with open(path, 'rb') as f:
        start = f.read(6)
        f.seek(0)
        if start[:4] == b'PK\3\4':
            raise ValueError(
                'it is a zip archive, such as an .npz: branchynet.legacy.load_snapshot reads weights from one'
            )
        try:
            if start == b'\xfd7zXZ\0':
                return _unpack_xz(f.read())
            if start[:2] == b'\x1f\x8b':
                with gzip.open(f) as unpacked:
                    return _check_unpacked(unpacked.read(MAX_UNPACKED_BYTES + 1))
        except (lzma.LZMAError, zlib.error, EOFError, gzip.BadGzipFile) as e:
            raise ValueError(f'it does not unpack ({e})') from e
        return f.read()


def _unpack_xz(packed: bytes) -> bytes:
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_XZ_DICTIONARY)
    content = io.BytesIO()  # its value is no copy
    content.write(decompressor.decompress(packed, max_length=2**20))
    while not decompressor.eof and content.tell() <= MAX_UNPACKED_BYTES:
        if decompressor.needs_input:
            raise ValueError('it is truncated')
        content.write(decompressor.decompress(b'', max_length=2**20))
    return _check_unpacked(content.getvalue())


def _check_unpacked(content: bytes) -> bytes:
    if len(content) > MAX_UNPACKED_BYTES:
        raise ValueError(
            f'it unpacks to more than {MAX_UNPACKED_BYTES >> 20} MiB: '
            'unpack it with gzip or xz first, if you know where it is from'
        )
    return content
