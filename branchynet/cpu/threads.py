"""The threads that share blocks of work, and their scratch memory."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import threading
from collections.abc import Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from typing import Callable, Optional, TypeVar

from branchynet.cpu.memory import LINE

import numpy as np

_VARIABLE = 'BRANCHYNET_NUM_THREADS'
_Made = TypeVar('_Made')
_local = threading.local()
_pool: Optional[ThreadPoolExecutor] = None
_count: Optional[int] = None


def num_threads() -> int:
    """How many threads share the work: the number that was set, else BRANCHYNET_NUM_THREADS, else the usable cores."""
    if _count is not None:
        return _count
    given = os.environ.get(_VARIABLE)
    if given:
        return _checked(_VARIABLE, given)
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def set_num_threads(count: Optional[int]) -> None:
    """Sets how many threads share the work.

    Args:
        count: 1 or more; None: BRANCHYNET_NUM_THREADS, else as many as there are usable cores.

    Raises:
        ValueError: fewer than 1.
    """
    global _count
    _count = None if count is None else _checked('number of threads', count)
    _forget_pool()


def _checked(name: str, count: int | str) -> int:
    if not str(count).isdecimal() or int(count) < 1:
        raise ValueError(f'{name} is {count}: expected a whole number, 1 or more')
    return int(count)


def workers(count: int) -> int:
    """How many threads share ``count`` tasks: one where the calling thread is doing a task of ``run``."""
    return 1 if count <= 1 or getattr(_local, 'works', False) else min(num_threads(), count)


def run(
    task: Callable[[int], object],
    count: int,
    around: Callable[[], AbstractContextManager] = contextlib.nullcontext,
) -> None:
    """Calls ``task(i)`` for i in range(count), shared among the threads; returns when all are done.

    Args:
        task: called with every number.
        count: how many numbers.
        around: makes the context in which a thread does its share.

    Raises:
        BaseException: the error of the first task to fail, once no thread works on any task.
    """
    share = workers(count)
    if share <= 1:
        with around():
            for i in range(count):
                task(i)
        return
    remaining = iter(range(count))  # next() is atomic
    futures: list[Future] = []
    pool, is_whole = _get_pool(), True
    try:
        try:
            for _ in range(share - 1):
                futures.append(pool.submit(_work, task, remaining, around))
        except RuntimeError:
            # It was closed meanwhile, by set_num_threads or by Python, which ends; or no thread starts.
            is_whole = False
        _work(task, remaining, around)
        for future in futures:
            future.result()
    except BaseException:
        for _ in remaining:  # nobody starts what is left
            pass
        while not all(future.done() for future in futures):
            with contextlib.suppress(BaseException):  # another Ctrl-C: tasks still use the caller's arrays
                wait(futures)
        raise
    finally:
        if not is_whole:
            if _pool is pool:
                _forget_pool()
            pool.shutdown()  # a thread of it may have taken the task for which no other one started


def _work(
    task: Callable[[int], object], remaining: Iterator[int], around: Callable[[], AbstractContextManager]
) -> None:
    _local.works = True
    try:
        with around():
            for i in remaining:
                task(i)
    finally:
        _local.works = False


def _get_pool() -> ThreadPoolExecutor:
    global _pool
    pool = _pool  # another thread may forget it meanwhile
    if pool is None:
        pool = _pool = ThreadPoolExecutor(num_threads(), 'branchynet')
    return pool


def _forget_pool() -> None:
    global _pool
    pool, _pool = _pool, None
    if pool is not None:
        pool.shutdown(wait=False)  # every ``run`` waits for its own tasks


def _after_fork() -> None:
    # A forked child has none of its parent's threads.
    global _pool, _local
    _pool, _local = None, threading.local()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_after_fork)


class Scratch:
    """Memory for intermediate results, by slot: each request for a slot overwrites what the last one wrote."""

    def __init__(self) -> None:
        self._buffers: dict[Hashable, tuple[np.ndarray, int]] = {}

    def array(self, slot: Hashable, size: int) -> np.ndarray:
        """At least so many bytes, uninitialised, that begin on a cache line."""
        return self._buffer(slot, size)[0]

    def address(self, slot: Hashable, size: int) -> int:
        """The address of ``array``; the memory is there until this Scratch is gone, or the slot asked for more."""
        return self._buffer(slot, size)[1]

    def _buffer(self, slot: Hashable, size: int) -> tuple[np.ndarray, int]:
        buffer = self._buffers.get(slot)
        if buffer is None or len(buffer[0]) < size:
            memory = np.empty(size + LINE, np.uint8)
            aligned = memory[-memory.ctypes.data % LINE :][:size]
            buffer = self._buffers[slot] = aligned, aligned.ctypes.data
        return buffer


def scratch(slot: Hashable, shape: tuple[int, ...]) -> np.ndarray:
    """A float32 array that the calling thread uses again: of its own Scratch."""
    try:
        own: Scratch = _local.scratch
    except AttributeError:
        own = _local.scratch = Scratch()
    size = math.prod(shape) * 4
    return own.array(slot, size)[:size].view(np.float32).reshape(shape)


def taken(spare: list[_Made], make: Callable[[], _Made]) -> _Made:
    """A spare object out of a list, or a new one. The caller appends it to the list after use.

    Both are atomic, so that neither another thread nor a signal's handler can use it meanwhile.
    """
    try:
        return spare.pop()
    except IndexError:
        return make()


SCRATCHES: list[Scratch] = []  # spare ones


def release_scratch() -> None:
    """Gives the spare scratch memory, and that of the calling thread, back to the system."""
    SCRATCHES.clear()
    _local.__dict__.pop('scratch', None)


def blocks(count: int, weight: int, most: int) -> tuple[slice, ...]:
    """Divides items into blocks of about equal size.

    Args:
        count: of all items.
        weight: of an item, in any unit, such as bytes.
        most: the greatest weight of a block; an item that is heavier is a block by itself.

    Returns:
        Slices of ``range(count)``, in order; an even number of them where that divides the items well.
    """
    parts = -(-count * weight // most)
    return equal_blocks(count, parts)


@functools.lru_cache(maxsize=1024)
def equal_blocks(count: int, parts: int) -> tuple[slice, ...]:
    """Divides ``count`` items into about ``parts`` slices; into one more, where ``parts`` is odd and above one."""
    parts += parts % 2 if parts > 1 else 0
    step = max(1, -(-count // max(1, parts)))
    return tuple(slice(i, min(i + step, count)) for i in range(0, count, step))
