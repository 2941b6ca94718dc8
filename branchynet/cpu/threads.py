"""The threads that share blocks of work, and their scratch memory."""

import contextlib
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_ALIGNMENT = 64  # bytes, a cache line
_local = threading.local()
_pool = None
_count = None


def num_threads():
    """How many threads share the work: what was set, else BRANCHYNET_NUM_THREADS, else the usable cores."""
    if _count is not None:
        return _count
    given = os.environ.get('BRANCHYNET_NUM_THREADS')
    if given:
        return _checked(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def set_num_threads(count):
    """Sets how many threads share the work; None: as many as there are usable cores.

    Raises:
        ValueError: fewer than 1.
    """
    global _count
    _count = None if count is None else _checked(count)
    _forget_pool()


def _checked(count):
    if not str(count).isdecimal() or int(count) < 1:
        raise ValueError(f'number of threads is {count}: expected 1 or more')
    return int(count)


def run(task, count, around=contextlib.nullcontext):
    """Calls ``task(i)`` for i in range(count), shared among the threads; returns when all are done.

    Args:
        task: Called with every number.
        count: How many numbers.
        around: Makes the context in which a thread does its share.

    Raises:
        What a task raised (the first of them), once no thread works on them any more.
    """
    workers = min(num_threads(), count) if count > 1 else 1
    if workers <= 1 or getattr(_local, 'works', False):
        with around():
            for i in range(count):
                task(i)
        return
    remaining = iter(range(count))  # next() is atomic
    futures = []
    try:
        try:
            for _ in range(workers - 1):
                futures.append(_get_pool().submit(_work, task, remaining, around))
        except RuntimeError:  # the pool was closed meanwhile, by set_num_threads or by Python, which ends
            pass
        _work(task, remaining, around)
        for future in futures:
            future.result()
    except BaseException:
        for _ in remaining:  # nobody starts what is left
            pass
        for future in futures:
            future.exception()
        raise


def _work(task, remaining, around):
    _local.works = True
    try:
        with around():
            for i in remaining:
                task(i)
    finally:
        _local.works = False


def _get_pool():
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(num_threads(), 'branchynet')
    return _pool


def _forget_pool():
    global _pool
    if _pool is not None:
        _pool.shutdown()
    _pool = None


def _after_fork():
    # A forked child has none of its parent's threads.
    global _pool, _local
    _pool, _local = None, threading.local()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_after_fork)


def scratch(slot, shape):
    """An uninitialised float32 array that this thread reuses: whoever asks for the slot next overwrites it."""
    size = math.prod(shape) * 4
    return _buffer(slot, size)[0][:size].view(np.float32).reshape(shape)


def scratch_address(slot, size):
    """The same as an address of so many bytes."""
    return _buffer(slot, size)[1]


def _buffer(slot, size):
    """(bytes, their address), at least as many as asked for."""
    try:
        buffers = _local.buffers
    except AttributeError:
        buffers = _local.buffers = {}
    if slot not in buffers or len(buffers[slot][0]) < size:
        memory = np.empty(size + _ALIGNMENT, np.uint8)
        aligned = memory[-memory.ctypes.data % _ALIGNMENT :][:size]
        buffers[slot] = aligned, aligned.ctypes.data
    return buffers[slot]


def blocks(count, size_of_one, most=1 << 20):
    """Slices of ``count`` items in equal parts of ``most`` bytes or less, at least one item each."""
    parts = -(-count * size_of_one // most)
    return equal_blocks(count, parts)


def equal_blocks(count, parts):
    """Slices of ``count`` items in about as many parts, an even number where there is more than one."""
    parts += parts % 2 if parts > 1 else 0
    step = max(1, -(-count // max(1, parts)))
    return [slice(i, min(i + step, count)) for i in range(0, count, step)]
