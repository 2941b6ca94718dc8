"""Calls of a oneDNN primitive for block after block of images: one call of machine code makes them all.

Blocks are of one size, so that the next block of every array begins a fixed number of bytes behind the one before.
Threads that share a loop take its blocks from one counter. Without llvmlite the loop is Python's.
"""

from __future__ import annotations

import array as packed
import functools
import itertools
from collections.abc import Mapping, Sequence
from ctypes import c_void_p, cast
from typing import Any, Callable, NamedTuple, Optional

from branchynet.cpu import onednn
from branchynet.cpu.threads import num_threads, run, scratch_address

import numpy as np


class Place(NamedTuple):
    """Where an argument's blocks lie.

    Attributes:
        first: address of the first.
        step: bytes from each to the next; 0: all use the same.
    """

    first: int
    step: int = 0


class Blocks(NamedTuple):
    """Blocks of one size of the first axis of arrays.

    Attributes:
        start: the index at which the first begins.
        size: indexes of a block.
        number: how many blocks.
    """

    start: int
    size: int
    number: int

    def of(self, array: np.ndarray) -> Place:
        """Where they lie in an array."""
        step = array.strides[0]
        return Place(array.ctypes.data + self.start * step, self.size * step)


def grouped(parts: Sequence[slice]) -> list[Blocks]:
    """The parts, which follow each other, as runs of blocks of one size."""
    runs = (list(run) for _, run in itertools.groupby(parts, key=lambda part: part.stop - part.start))
    return [Blocks(run[0].start, run[0].stop - run[0].start, len(run)) for run in runs]


class Loop:
    """The calls of a primitive for blocks. Each block is computed once, by one of the threads that call ``run``.

    Args:
        primitive: of the blocks' shape.
        places: where the blocks of every argument lie; the caller keeps the arrays.
        count: how many blocks.
    """

    def __init__(self, primitive: onednn.Primitive, places: Mapping[int, Place], count: int) -> None:
        self._primitive, self._places, self.count = primitive, places, count
        self._next = packed.array('q', [0])  # the counter of blocks, in machine code
        self._remaining = iter(range(count))  # the same in Python, where next() is atomic

    def run(self) -> None:
        """Computes blocks until none is left that no other thread has begun."""
        code = _machine_code()
        if code is None:
            for i in self._remaining:
                self._primitive({kind: first + i * step for kind, (first, step) in self._places.items()})
            return
        frame = self._primitive.frame()
        places = [self._places[kind] for kind in frame.kinds]
        places += [Place(scratch_address(slot, size)) for slot, size in frame.scratch]
        head = self._next.buffer_info()[0], self.count, *_functions(), frame.address
        numbers = packed.array('q', itertools.chain(head, *places))
        if code(numbers.buffer_info()[0]):
            raise RuntimeError('oneDNN: primitive_execute failed')


def run_loops(loops: Sequence[Loop]) -> None:
    """Runs all loops, one after the other, shared among the threads."""

    def share(i: int) -> None:
        for loop in loops:
            loop.run()

    run(share, min(num_threads(), sum(loop.count for loop in loops)), around=onednn.single_threaded)


@functools.cache
def _functions() -> tuple[int, int]:
    """The addresses of the functions of oneDNN that the machine code calls."""
    library = onednn.library()
    set_address, execute = (cast(function, c_void_p).value for function in (library.set_address, library.execute))
    assert set_address is not None and execute is not None
    return set_address, execute


@functools.cache
def _machine_code() -> Optional[Callable[[int], int]]:
    """The loop in machine code; None without llvmlite.

    It takes the address of 64-bit numbers: the address of the counter, the number of blocks, the addresses of two
    functions and of the primitive's frame, and the places of the frame's arguments. It returns 0, or a number that is
    not.
    """
    try:
        from branchynet.cpu.emitter import INDEX, INT, Code, Emitter, integer, ir
    except ImportError:
        return None
    emit = Emitter()

    def write(numbers: Any) -> Any:
        build = emit.builder
        counter, count, set_address, execute, frame = emit.words(numbers, 5)
        places = emit.add(numbers, 40)
        (calls,) = emit.words(frame, 1)
        set_address = build.inttoptr(set_address, ir.FunctionType(INDEX, [INT, INT]).as_pointer())
        execute = build.inttoptr(execute, ir.FunctionType(INDEX, [INT, INT, INDEX, INT]).as_pointer())
        begin, head, body, end = build.block, *(build.append_basic_block() for _ in range(3))
        build.branch(head)
        build.position_at_end(head)
        status = build.phi(INT)
        status.add_incoming(integer(0), begin)
        block = build.atomic_rmw('add', build.inttoptr(counter, INT.as_pointer()), integer(1), 'monotonic')
        build.cbranch(build.icmp_signed('<', block, count), body, end)
        build.position_at_end(body)

        def place(_: Any, entry: Any) -> list[Any]:
            memory, i = emit.words(entry, 2)
            first, step = emit.words(emit.at(places, i, 16), 2)
            build.call(set_address, [memory, build.add(first, build.mul(block, step))])
            return [emit.add(entry, 16)]

        def call(_: Any, entry: Any, failed: Any) -> list[Any]:
            primitive, stream, size, arguments, placed = emit.words(entry, 5)
            (following,) = emit.loop(placed, place, [emit.add(entry, 40)])
            result = build.call(execute, [primitive, stream, build.trunc(size, INDEX), arguments])
            return [following, build.or_(failed, build.zext(result, INT))]

        _, failed = emit.loop(calls, call, [emit.add(frame, 8), status])
        status.add_incoming(failed, build.block)
        build.branch(head)
        build.position_at_end(end)
        return status

    emit.function('loop', 1, write, name='loop')
    return Code(emit.module()).call('loop')
