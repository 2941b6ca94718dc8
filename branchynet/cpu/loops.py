"""Calls of oneDNN primitives for block after block of images: one call of machine code makes them all.

Blocks are of one size, so that the next block of every array begins a fixed number of bytes after the one before.
Threads that share a loop take its blocks from one counter. Without llvmlite the loop is Python's.
"""

from __future__ import annotations

import array as packed
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from ctypes import c_void_p, cast
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

from branchynet.cpu import onednn
from branchynet.cpu.memory import address
from branchynet.cpu.onednn import WEIGHTS
from branchynet.cpu.signals import emit_undisturbed
from branchynet.cpu.team import run_frames
from branchynet.cpu.threads import SCRATCHES, Scratch, run, taken, workers

if TYPE_CHECKING:
    from branchynet.cpu.emitter import Function


class Place(NamedTuple):
    """Where an argument's blocks lie.

    Attributes:
        array: number of the array, in the order in which ``Loops.run`` takes them.
        first: bytes from its beginning to the first block.
        step: bytes from each block to the next; 0: all use the same.
    """

    array: int
    first: int = 0
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

    def of(self, array: int, bytes_of_index: int) -> Place:
        """Where they lie in an array of ``Loops.run``.

        Args:
            array: its number.
            bytes_of_index: from each index of its first axis to the next.
        """
        return Place(array, self.start * bytes_of_index, self.size * bytes_of_index)


def grouped(parts: Sequence[slice]) -> list[Blocks]:
    """The parts, which follow each other, as runs of blocks of one size."""
    runs = (list(run) for _, run in itertools.groupby(parts, key=lambda part: part.stop - part.start))
    return [Blocks(run[0].start, run[0].stop - run[0].start, len(run)) for run in runs]


class Loop(NamedTuple):
    """The calls of a primitive for blocks.

    Attributes:
        primitive: of the blocks' shape.
        places: of the blocks of every argument; that of weights, as the caller has them.
        number: how many blocks.
    """

    primitive: onednn.Primitive
    places: Mapping[int, Place]
    number: int


class _Program(NamedTuple):
    """A program for the machine code, in one thread at a time.

    Attributes:
        address: of its numbers, which _machine_code describes.
        scratch: the bytes of the scratch memory that it uses, by slot.
        used: the objects at the addresses that it has.
    """

    address: int
    scratch: dict[int, int]
    used: object


class Loops:
    """Loops that threads share; any thread may run them.

    Args:
        loops: one after the other, each with no need of another's results.
        arrays: how many arrays they use.
    """

    def __init__(self, loops: Sequence[Loop], arrays: int) -> None:
        self._loops: list[Loop] = []
        self._weights: list[tuple[onednn.Primitive, int]] = []  # and the number of the array that has them
        for loop in loops:
            if WEIGHTS in loop.places:
                self._weights.append((loop.primitive, loop.places[WEIGHTS].array))
                loop = loop._replace(places={**loop.places, WEIGHTS: Place(arrays + len(self._weights) - 1)})
            self._loops.append(loop)
        self._arrays = arrays + len(self._weights)
        self._count = sum(loop.number for loop in loops)
        self._function = 'undisturbed' if any(loop.primitive.is_product for loop in loops) else 'loops'
        self._programs: list[_Program] = []  # that no thread uses

    def run(self, *arrays: Any) -> None:
        """Runs all loops on arrays without gaps; None for those that no loop uses."""
        with onednn.single_threaded():
            packed_weights = [primitive.pack(arrays[k]) for primitive, k in self._weights]
            addresses = [0 if array is None else address(array) for array in (*arrays, *packed_weights)]
            codes, threads = _machine_code(), workers(self._count)
            if codes is None:
                remaining = [iter(range(loop.number)) for loop in self._loops]  # next() is atomic
                run(lambda i: self._run_in_python(addresses, remaining), threads, around=onednn.single_threaded)
            elif self._count:
                self._run_in_code(codes[self._function], threads, addresses)

    def _run_in_code(self, code: Function, threads: int, addresses: Sequence[int]) -> None:
        counters = packed.array('q', bytes(8 * len(self._loops)))
        programs = [taken(self._programs, self._make_program) for _ in range(threads)]
        scratches = [taken(SCRATCHES, Scratch) for _ in range(threads)]
        frames = [
            [
                *(program.address, counters.buffer_info()[0], *addresses),
                *(scratch.address(slot, size) for slot, size in program.scratch.items()),
            ]
            for program, scratch in zip(programs, scratches)
        ]
        failed = run_frames(code, frames)
        self._programs += programs[::-1]
        SCRATCHES.extend(scratches[::-1])  # the next call's first thread gets the first one's
        if failed:
            raise RuntimeError('oneDNN: primitive_execute failed')

    def _run_in_python(self, addresses: Sequence[int], remaining: Sequence[Iterator[int]]) -> None:
        for (primitive, places, _), left in zip(self._loops, remaining):
            for i in left:
                primitive({kind: addresses[k] + first + i * step for kind, (k, first, step) in places.items()})

    def _make_program(self) -> _Program:
        calls = [loop.primitive.calls() for loop in self._loops]
        scratch: dict[int, int] = {}
        for slot, size in itertools.chain.from_iterable(of_loop.scratch for of_loop in calls):
            scratch[slot] = max(scratch.get(slot, 0), size)
        places_of_scratch = {slot: Place(i) for i, slot in enumerate(scratch, self._arrays)}
        numbers = packed.array('q', (len(self._loops), *_functions()))
        for of_loop, (_, places, number) in zip(calls, self._loops):
            own = [*(places[kind] for kind in of_loop.kinds), *(places_of_scratch[slot] for slot, _ in of_loop.scratch)]
            numbers.extend((number, of_loop.address, len(own), *itertools.chain(*own)))
        return _Program(numbers.buffer_info()[0], scratch, (numbers, calls))


@functools.cache
def _functions() -> tuple[int, int]:
    """The addresses of the functions of oneDNN that the machine code calls."""
    library = onednn.library()
    set_address, execute = (cast(function, c_void_p).value for function in (library.set_address, library.execute))
    assert set_address is not None and execute is not None
    return set_address, execute


@functools.cache
def _machine_code() -> Optional[dict[str, Function]]:
    """The loops in machine code, as they are and 'undisturbed' by signals; None without llvmlite.

    It takes the address of 64-bit numbers: the addresses of the program and of a counter for each loop, then those of
    the arrays and of the scratch memory. A program is the number of loops, the addresses of two functions, and for each
    loop its number of blocks, the address of the primitive's calls, and the number and the places of its arguments. It
    returns 0, or a number that is not.
    """
    try:
        from branchynet.cpu.emitter import INDEX, INT, Emitter, integer, ir
    except ImportError:
        return None
    emit = Emitter()

    def write(numbers: Any) -> Any:
        build = emit.builder
        program, counters = emit.words(numbers, 2)
        arrays = emit.add(numbers, 16)
        loops, set_address, execute = emit.words(program, 3)
        set_address = build.inttoptr(set_address, ir.FunctionType(INDEX, [INT, INT]).as_pointer())
        execute = build.inttoptr(execute, ir.FunctionType(INDEX, [INT, INT, INDEX, INT]).as_pointer())

        def compute(block: Any, calls: Any, places: Any) -> Any:
            """The primitive's calls for a block."""

            def place(_: Any, entry: Any) -> list[Any]:
                memory, i = emit.words(entry, 2)
                array, first, step = emit.words(emit.at(places, i, 24), 3)
                address = build.add(emit.load(emit.at(arrays, array, 8), INT), first)
                build.call(set_address, [memory, build.add(address, build.mul(block, step))])
                return [emit.add(entry, 16)]

            def call(_: Any, entry: Any, failed: Any) -> list[Any]:
                primitive, stream, size, arguments, placed = emit.words(entry, 5)
                (following,) = emit.loop(placed, place, [emit.add(entry, 40)])
                result = build.call(execute, [primitive, stream, build.trunc(size, INDEX), arguments])
                return [following, build.or_(failed, build.zext(result, INT))]

            (number,) = emit.words(calls, 1)
            return emit.loop(number, call, [emit.add(calls, 8), integer(0)])[1]

        def loop(i: Any, entry: Any, failed: Any) -> list[Any]:
            count, calls, arguments = emit.words(entry, 3)
            places, counter = emit.add(entry, 24), emit.at(counters, i, 8)
            (failed,) = emit.shared_loop(
                counter, count, lambda block, status: [build.or_(status, compute(block, calls, places))], [failed]
            )
            return [emit.at(places, arguments, 24), failed]

        return emit.loop(loops, loop, [emit.add(program, 24), integer(0)])[1]

    def undisturbed(numbers: Any) -> Any:
        return emit_undisturbed(emit, lambda: emit.builder.call(run, [numbers]))

    run = emit.function('loops', 1, write)
    emit.function('undisturbed', 1, undisturbed)
    return emit.compiled('loops', 'undisturbed')
