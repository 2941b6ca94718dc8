"""Memory beside which nobody may read or write."""

import ctypes
import mmap
import sys

import numpy as np
import pytest

needs_mprotect = pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no mprotect')

PAGE = mmap.PAGESIZE


class Guard:
    """Makes arrays whose first byte, or last, has a page beside it that nobody may read or write."""

    def __init__(self, at_end):
        self._at_end = at_end
        self._kept = []

    def empty(self, shape, dtype=np.float32):
        dtype = np.dtype(dtype)
        size = dtype.itemsize * int(np.prod(shape))
        pages = -(-size // PAGE)
        block = mmap.mmap(-1, (pages + 2) * PAGE)
        self._kept.append(block)
        start = ctypes.addressof(ctypes.c_char.from_buffer(block))
        for page in start, start + (pages + 1) * PAGE:
            assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), 0) == 0
        offset = PAGE + (pages * PAGE - size) * self._at_end
        return np.frombuffer(block, dtype, size // dtype.itemsize, offset).reshape(shape)

    def copy(self, array):
        """A copy in the memory order of the array."""
        is_of_images = array.ndim == 4 and not array.flags.c_contiguous
        array = array.transpose(0, 2, 3, 1) if is_of_images else array
        copied = self.empty(array.shape)
        copied[...] = array
        return copied.transpose(0, 3, 1, 2) if is_of_images else copied

    def address(self, slot, size):
        """As of Scratch."""
        scratch = self.empty((-(-size // 4),))
        scratch[:] = np.nan  # nothing counts on what is there
        return scratch.ctypes.data
