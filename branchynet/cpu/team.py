"""Calls of machine code that threads share, without Python between them.

A task that one Python thread gives another begins a tenth of a millisecond later, which is as long as many kernels
take. The threads of a team stay in machine code instead. A member without work polls for about a millisecond, then
sleeps on a semaphore. The thread that gives the work does a share of it, and waits only for members that have begun:
one whose core another program uses delays nobody.
"""

from __future__ import annotations

import array as packed
import contextlib
import ctypes
import functools
import itertools
import os
import platform
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from branchynet.cpu import onednn
from branchynet.cpu.memory import LINE
from branchynet.cpu.signals import libc
from branchynet.cpu.threads import run, workers

import numpy as np

if TYPE_CHECKING:
    from branchynet.cpu.emitter import Function

# A member's first number: one of these, or the address of the order that it shall begin.
_IDLE, _BUSY, _ASLEEP = 0, 1, -1
_SEMAPHORE = LINE  # bytes from the first number to the semaphore, which has a cache line of its own
_BYTES_OF_MEMBER = 2 * LINE
_POLLS = 1 << 15  # of its first number before a member sleeps: a millisecond or so, in which Python gives new work
_YIELDS = 1 << 6  # of these polls, after which another thread may have the core, such as the caller's
_WAITS = 1 << 10  # polls of who is still busy, after which another thread may have the core
# Some of the numbers of an order.
_TAKEN, _RESULTS, _FINISHED, _MEMBERS = range(4, 8)


def run_frames(function: Function, frames: Sequence[Sequence[int]]) -> int:
    """Calls a function with the address of every frame, shared among the threads.

    Args:
        function: called once for each frame.
        frames: one or more, of 64-bit numbers, as many in each.

    Returns:
        All results, or-ed.
    """
    threads = workers(len(frames))
    if threads == 1:
        return call_frames(function, frames)
    if not _has_semaphores():
        order = _Order(function, frames)
        run(lambda i: order.share(), threads, around=_one_thread_of_openmp)
        return order.results
    order = _Order(function, frames, _members(threads - 1))
    order.lead()
    return order.results


def call_frames(function: Function, frames: Sequence[Sequence[int]]) -> int:
    """As run_frames, by the calling thread alone: for little work."""
    if len(frames) == 1:
        numbers = packed.array('q', frames[0])
        return function(numbers.buffer_info()[0])
    order = _Order(function, frames)
    order.share()
    return order.results


class _Order:
    """Frames for a function, and the members who may help."""

    def __init__(self, function: Function, frames: Sequence[Sequence[int]], members: Sequence[_Member] = ()) -> None:
        self._frames = packed.array('q', itertools.chain.from_iterable(frames))
        first, step = self._frames.buffer_info()[0], 8 * len(frames[0])
        helpers = [member.address for member in members]
        self._numbers = packed.array('q', (function.address, first, step, len(frames), 0, 0, 0, len(helpers), *helpers))

    def share(self) -> None:
        """Calls the function with every frame that nobody else has taken."""
        _codes()['share'](self._numbers.buffer_info()[0])

    def lead(self) -> None:
        """``share`` together with those members who have nothing to do; returns when all is done."""
        _codes()['lead'](self._numbers.buffer_info()[0])

    @property
    def results(self) -> int:
        """The results of the calls, or-ed."""
        return self._numbers[_RESULTS]


class _Member(threading.Thread):
    """A thread of the team; it ends with the program.

    Attributes:
        address: of its numbers.
    """

    def __init__(self) -> None:
        super().__init__(name='branchynet', daemon=True)
        self._memory = np.zeros(_BYTES_OF_MEMBER + LINE, np.uint8)
        self.address: int = self._memory.ctypes.data + -self._memory.ctypes.data % LINE
        libc().sem_init(ctypes.c_void_p(self.address + _SEMAPHORE), 0, 0)

    def run(self) -> None:
        """Takes orders for ever, in machine code."""
        with _one_thread_of_openmp():
            _codes()['serve'](self.address)


_team: list[_Member] = []
_most = 1 << 30  # members that the system starts
_lock = threading.RLock()  # a signal's handler may come while it is held


def _members(count: int) -> list[_Member]:
    """``count`` members; fewer where the system starts no more threads, or Python is ending."""
    if len(_team) < min(count, _most):
        with _lock:
            _start_members(count)
    return _team[:count]


def _start_members(count: int) -> None:
    global _most
    _codes()  # made here: members that made them would hold locks, which a forked child inherits
    onednn.is_available()
    try:
        while len(_team) < count:
            member = _Member()
            member.start()
            _team.append(member)
    except RuntimeError:
        _most = len(_team)


def _after_fork() -> None:
    # A forked child has none of its parent's threads.
    global _team, _most, _lock
    _team, _most, _lock = [], 1 << 30, threading.RLock()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_after_fork)


def _one_thread_of_openmp() -> contextlib.AbstractContextManager:
    return onednn.single_threaded() if onednn.is_available() else contextlib.nullcontext()


@functools.cache
def _has_semaphores() -> bool:
    """Whether the C library has POSIX's semaphores without names."""
    try:
        return libc().sem_init((ctypes.c_int64 * 16)(), 0, 0) == 0
    except (AttributeError, OSError, TypeError):
        return False


@functools.cache
def _codes() -> dict[str, Function]:
    """The work of the threads, in machine code.

    'share' and 'lead' take the address of an order: the address of the function, that of the first frame, the bytes
    from frame to frame, how many frames there are and how many are taken, the results, how many members have finished,
    how many may help, and their addresses. 'serve' takes the address of a member's numbers, and does not return.
    """
    from branchynet.cpu.emitter import INDEX, INT, Emitter, integer, ir

    emit = Emitter()

    def pointer(address: Any) -> Any:
        return emit.builder.inttoptr(address, INT.as_pointer())

    def look(address: Any) -> Any:
        """The number at an address, which other threads change."""
        return emit.builder.load_atomic(pointer(address), 'acquire', 8)

    def change(address: Any, before: Any, after: Any) -> Any:
        """Whether the number at an address was ``before``; if so, it is ``after`` now."""
        result = emit.builder.cmpxchg(pointer(address), before, after, 'seq_cst', 'seq_cst')
        return emit.builder.extract_value(result, 1)

    def pause() -> None:
        if platform.machine() in ('x86_64', 'AMD64'):
            emit.builder.call(emit.external('llvm.x86.sse2.pause', ir.VoidType(), []), [])

    def share(order: Any) -> None:
        build = emit.builder
        function, first, step, count = emit.words(order, 4)
        function = build.inttoptr(function, ir.FunctionType(INT, [INT]).as_pointer())

        def call(i: Any) -> None:
            result = build.call(function, [build.add(first, build.mul(i, step))])
            build.atomic_rmw('or', pointer(emit.add(order, 8 * _RESULTS)), result, 'monotonic')

        emit.shared_loop(emit.add(order, 8 * _TAKEN), count, call)

    shared = emit.function('share', 1, share)

    def lead(order: Any) -> None:
        build = emit.builder
        count = emit.load(emit.add(order, 8 * _MEMBERS), INT)
        helpers = emit.add(order, 8 * (_MEMBERS + 1))

        def ask(i: Any) -> None:
            """Gives the order to a member; one who is busy is none of the helpers."""
            place = emit.at(helpers, i, 8)
            member = emit.load(place, INT)
            is_idle = change(member, integer(_IDLE), order)
            with build.if_then(build.not_(is_idle)):
                was_asleep = change(member, integer(_ASLEEP), order)
                with build.if_else(was_asleep) as (is_asleep, is_busy):
                    with is_asleep:
                        wake = emit.external('sem_post', INDEX, [INT])
                        build.call(wake, [emit.add(member, _SEMAPHORE)])
                    with is_busy:
                        emit.store(integer(0), place)

        def take_back(i: Any, begun: Any) -> list[Any]:
            """Takes the order from a member who has not begun."""
            member = emit.load(emit.at(helpers, i, 8), INT)
            before = build.block
            with build.if_then(build.icmp_signed('!=', member, integer(0))):
                has_begun = build.not_(change(member, order, integer(_IDLE)))
                more = build.add(begun, build.zext(has_begun, INT))
                inside = build.block
            total = build.phi(INT)
            total.add_incoming(begun, before)
            total.add_incoming(more, inside)
            return [total]

        with build.if_then(build.icmp_signed('>', count, integer(0))):
            emit.loop(count, ask)
            build.call(shared, [order])
            (begun,) = emit.loop(count, take_back, [integer(0)])
            wait(emit.add(order, 8 * _FINISHED), begun)
            build.ret(integer(0))
        build.call(shared, [order])

    def wait(address: Any, number: Any) -> None:
        """Returns when another number at an address is as great."""
        build = emit.builder
        before, head, body, after = build.block, *(build.append_basic_block() for _ in range(3))
        build.branch(head)
        build.position_at_end(head)
        i = build.phi(INT)
        build.cbranch(build.icmp_signed('<', look(address), number), body, after)
        build.position_at_end(body)
        pause()
        with build.if_then(build.icmp_signed('==', build.and_(i, integer(_WAITS - 1)), integer(_WAITS - 1))):
            build.call(emit.external('sched_yield', INDEX, []), [])
        i.add_incoming(integer(0), before)
        i.add_incoming(build.add(i, integer(1)), build.block)
        build.branch(head)
        build.position_at_end(after)

    def serve(member: Any) -> None:
        build = emit.builder
        before, head, ready, begin, idle, sleep = (
            build.block,
            *(build.append_basic_block(name) for name in ('head', 'ready', 'begin', 'idle', 'sleep')),
        )
        build.branch(head)
        build.position_at_end(head)
        looks = build.phi(INT)
        looks.add_incoming(integer(0), before)
        order = look(member)
        build.cbranch(build.icmp_signed('>', order, integer(_BUSY)), ready, idle)

        build.position_at_end(ready)
        looks.add_incoming(integer(0), ready)
        build.cbranch(change(member, order, integer(_BUSY)), begin, head)

        build.position_at_end(begin)
        build.call(shared, [order])
        build.atomic_rmw('add', pointer(emit.add(order, 8 * _FINISHED)), integer(1), 'seq_cst')
        build.store_atomic(integer(_IDLE), pointer(member), 'release', 8)
        looks.add_incoming(integer(0), build.block)
        build.branch(head)

        build.position_at_end(idle)
        pause()
        more = build.add(looks, integer(1))
        with build.if_then(build.icmp_signed('==', build.and_(more, integer(_YIELDS - 1)), integer(0))):
            build.call(emit.external('sched_yield', INDEX, []), [])
        looks.add_incoming(more, build.block)
        build.cbranch(build.icmp_signed('<', looks, integer(_POLLS)), head, sleep)

        build.position_at_end(sleep)
        falls_asleep = change(member, integer(_IDLE), integer(_ASLEEP))
        with build.if_then(falls_asleep):
            sleeps, woken = (build.append_basic_block(name) for name in ('sleeps', 'woken'))
            build.branch(sleeps)
            build.position_at_end(sleeps)
            status = build.call(emit.external('sem_wait', INDEX, [INT]), [emit.add(member, _SEMAPHORE)])
            was_interrupted = build.icmp_signed('!=', status, ir.Constant(INDEX, 0))  # by a signal
            build.cbranch(was_interrupted, sleeps, woken)
            build.position_at_end(woken)
        looks.add_incoming(integer(0), build.block)
        build.branch(head)

    for function in (lead, serve):
        emit.function(function.__name__, 1, function)
    return emit.compiled('share', 'lead', 'serve')
