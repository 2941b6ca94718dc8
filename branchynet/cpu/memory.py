"""Memory of large arrays, kept for the next ones.

The system zeroes every page that it hands out, which takes longer than many kernels.
"""

from __future__ import annotations

import math
import os
import threading
from ctypes import addressof, c_char
from typing import Any

import numpy as np

_SMALLEST = 1 << 19  # bytes; malloc keeps smaller ones by itself
_PAGE = 1 << 21  # a huge page, in which arrays that nearly fill one begin
LINE = 64  # bytes of a cache line
_TYPE = np.dtype(np.float32).str


def empty(shape: tuple[int, ...]) -> np.ndarray:
    """An uninitialised C-contiguous float32 array."""
    size = 4 * math.prod(shape)
    if size < _SMALLEST:
        return np.empty(shape, np.float32)
    return np.asarray(_kept.take(size)).reshape(shape)


def address(array: Any) -> int:
    """Where an array without gaps begins in memory: ``array.ctypes.data``, which takes twice as long."""
    try:
        if not array.flags.c_contiguous:  # a buffer is: a matrix may be transposed, images have channels last
            array = array.T if array.ndim == 2 else array.transpose(0, 2, 3, 1)
        return addressof(c_char.from_buffer(array))
    except (TypeError, ValueError):  # read-only, or in yet another order
        return array.ctypes.data


def unshared(count: int) -> np.ndarray:
    """An uninitialised float32 array (count,) that gives its memory back to the system when it is gone."""
    return np.asarray(_Lease(_Memory(4 * count), []))


def release() -> None:
    """Gives the memory that no array uses back to the system."""
    _kept.release()


class _Memory:
    """New memory that begins where a huge page does, if it nearly fills one.

    Args:
        size: bytes.

    Attributes:
        interface: NumPy's ``__array_interface__`` of it.
    """

    def __init__(self, size: int) -> None:
        step = _PAGE if size >= _PAGE * 3 // 4 else LINE
        self._array = np.empty(max(size + step, 2 * step), np.uint8)  # NumPy asks for huge pages from two of them on
        address = self._array.ctypes.data + -self._array.ctypes.data % step
        data = address, False
        self.interface: dict[str, Any] = {'version': 3, 'typestr': _TYPE, 'shape': (size // 4,), 'data': data}


class _Lease:
    """The owner of an array's memory, which the array keeps alive as long as anything looks at it.

    Args:
        memory: the memory.
        home: the list that takes it when the array is gone, in whatever thread that is.
    """

    __slots__ = ('__array_interface__', '_home', '_memory')

    def __init__(self, memory: _Memory, home: list[_Memory]) -> None:
        self._memory, self._home = memory, home
        self.__array_interface__ = memory.interface

    def __del__(self) -> None:
        self._home.append(self._memory)


class Kept:
    """Free memory, by size. With the memory in use it is never more than was in use at once since the last release.

    Lists are changed by their atomic methods, so that only new memory needs the lock.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal's handler may come while it is held
        self._free: dict[int, list[_Memory]] = {}
        self.held = self._most = 0  # bytes

    @property
    def used(self) -> int:
        """Bytes that arrays use."""
        return self.held - sum(size * len(free) for size, free in list(self._free.items()))

    def take(self, size: int) -> _Lease:
        """Memory for an array of ``size`` bytes."""
        free = self._free.get(size)
        if free is None:
            free = self._free.setdefault(size, [])
        try:
            memory = free.pop()
        except IndexError:
            memory = self._new(size)
        return _Lease(memory, free)

    def _new(self, size: int) -> _Memory:
        with self._lock:
            most = max(self._most, self.used + size)
            self._drop(most - size)
            memory = _Memory(size)
            self.held += size
            self._most = most
        return memory

    def release(self) -> None:
        """Drops all that is free."""
        with self._lock:
            self._drop(0)
            self._most = self.held

    def _drop(self, most: int) -> None:
        """Drops free memory, the largest first, until no more than ``most`` bytes are held, or none is free."""
        for size in sorted(self._free, reverse=True):
            free = self._free[size]
            while free and self.held > most:
                try:
                    free.pop()
                except IndexError:  # another thread was faster
                    break
                self.held -= size


_kept = Kept()


def _after_fork() -> None:
    # Another thread may have held the lock; a forked child begins with nothing kept.
    global _kept
    _kept = Kept()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_after_fork)
