"""Memory of large arrays, kept for the next ones: the system clears every page that it gives, which takes as long as
many a kernel."""

from __future__ import annotations

import collections
import math
import os
import threading
from typing import NamedTuple

import numpy as np

_SMALLEST = 1 << 19  # bytes; malloc keeps smaller ones by itself
_PAGE = 1 << 21  # a huge page, in which arrays that nearly fill one begin
_LINE = 64


def empty(shape: tuple[int, ...]) -> np.ndarray:
    """An uninitialised C-contiguous float32 array."""
    size = 4 * math.prod(shape)
    if size < _SMALLEST:
        return np.empty(shape, np.float32)
    return np.asarray(_kept.take(size)).reshape(shape)


def release() -> None:
    """Gives the memory that no array uses back to the system."""
    _kept.release()


_TYPE = np.dtype(np.float32).str


class _Memory(NamedTuple):
    """Bytes, their address, and how many."""

    array: np.ndarray
    address: int
    size: int


class _Lease:
    """What an array of NumPy's keeps alive as long as anything looks at its memory.

    Args:
        memory: the memory.
        returned: takes it when the array is gone.
    """

    def __init__(self, memory: _Memory, returned: collections.deque) -> None:
        self._memory, self._returned = memory, returned
        data = memory.address, False
        self.__array_interface__ = {'version': 3, 'typestr': _TYPE, 'shape': (memory.size // 4,), 'data': data}

    def __del__(self) -> None:
        self._returned.append(self._memory)


class Kept:
    """Memory by its size. It never holds more than was in use at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._returned: collections.deque[_Memory] = collections.deque()  # by arrays that are gone, in any thread
        self._free: dict[int, list[_Memory]] = collections.defaultdict(list)
        self.used = self.held = self._most = 0  # bytes

    def take(self, size: int) -> _Lease:
        """Memory for an array of ``size`` bytes."""
        with self._lock:
            self._sort()
            self.used += size
            self._most = max(self._most, self.used)
            if not self._free[size]:
                self._drop(self._most - size)
                self._free[size].append(_aligned(size))
                self.held += size
            return _Lease(self._free[size].pop(), self._returned)

    def release(self) -> None:
        """Drops all that is free."""
        with self._lock:
            self._sort()
            self._drop(self.used)
            self._most = self.used

    def _sort(self) -> None:
        """Takes back what arrays that are gone have used."""
        while self._returned:
            memory = self._returned.popleft()
            self._free[memory.size].append(memory)
            self.used -= memory.size

    def _drop(self, most: int) -> None:
        """Drops free memory, the largest first, until no more than ``most`` bytes are held, or none is free."""
        for size in sorted(self._free, reverse=True):
            while self._free[size] and self.held > most:
                self._free[size].pop()
                self.held -= size


def _aligned(size: int) -> _Memory:
    """New memory that begins where a huge page does, if it nearly fills one."""
    step = _PAGE if size >= _PAGE * 3 // 4 else _LINE
    array = np.empty(max(size + step, 2 * step), np.uint8)  # NumPy asks for huge pages from two of them on
    return _Memory(array, array.ctypes.data + -array.ctypes.data % step, size)


_kept = Kept()


def _after_fork() -> None:
    # Another thread may have held the lock; a forked child begins with nothing kept.
    global _kept
    _kept = Kept()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_after_fork)
