"""Linear layers of few samples, or with one output, in float32: machine code multiplies weights as they lie in memory.

oneDNN's sgemm would first rearrange the weights, which takes longer than the product. Here every number is a sum of its
own, in an order that depends on the shapes alone, so that each thread may have its part of the weights: the same part
each time, which its cache may still hold. The gradients of one sample have sgemm's bits; no other result has. Where
llvmlite is missing, sgemm computes all of them.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

from branchynet.cpu.memory import address
from branchynet.cpu.team import run_frames
from branchynet.cpu.threads import equal_blocks, workers

import numpy as np

if TYPE_CHECKING:
    from branchynet.cpu.emitter import Function

_ROWS = 8  # that are read at once
_SAMPLES = 4  # that are multiplied at once, with fewer rows
# Products that are one sum where there are several samples, so that the numbers stay in the cache; longer rows are sums
# of such sums.
_ADDED_AT_ONCE = 1 << 10
_BYTES = 4  # of a number
_BYTES_OF_PART = 1 << 18  # of weights, that are worth a thread's call
_COLUMNS = 1024  # of a part where there are several samples: _ROWS rows of it stay in the cache


class _Block(NamedTuple):
    """A block of a result, as the frame of a function in machine code describes it.

    Attributes:
        numbers: the first ones of the frame.
        offsets: bytes to where the block's part of each array begins; the addresses follow the numbers.
    """

    numbers: tuple[int, ...]
    offsets: tuple[int, ...]


def is_available() -> bool:
    """Whether there is machine code; it needs llvmlite."""
    return _machine_code() is not None


def linear(x: np.ndarray, w: np.ndarray, y: np.ndarray) -> None:
    """Writes the output: x w' of samples x (B, I) and weights w (O, I) to y (B, O), all C-contiguous."""
    samples, inputs = x.shape
    _run('products_with_rows', _blocks_of_y(samples, inputs, len(w), _threads(w, -(-samples // _SAMPLES))), x, w, y)


def linear_gx(w: np.ndarray, gy: np.ndarray, gx: np.ndarray) -> None:
    """Writes the gradient of x: gy w of gradients gy (B, O) and weights w (O, I) to gx (B, I), all C-contiguous."""
    outputs, inputs = w.shape
    _run('sums_of_rows', _blocks_of_gx(len(gy), inputs, outputs, _threads(w)), gy, w, gx)


def linear_gw(x: np.ndarray, gy: np.ndarray, gw: np.ndarray) -> None:
    """Writes the gradient of w: gy' x of a gradient gy (1, O) and a sample x (1, I) to gw (O, I), all C-contiguous."""
    outputs, inputs = gw.shape
    _run('multiples_of_row', _blocks_of_gw(inputs, outputs, _threads(gw)), gy, x, gw)


def _threads(w: np.ndarray, times: int = 1) -> int:
    """How many threads share weights that are read ``times`` times."""
    return workers(times * w.nbytes // _BYTES_OF_PART)


@functools.lru_cache(maxsize=1024)
def _blocks_of_y(samples: int, inputs: int, outputs: int, threads: int) -> tuple[_Block, ...]:
    row, out_row = _BYTES * inputs, _BYTES * outputs
    at_once = inputs if samples == 1 else _ADDED_AT_ONCE
    if samples > outputs:
        return tuple(
            _Block(
                numbers=(outputs, part.stop - part.start, inputs, at_once, out_row),
                offsets=(part.start * row, 0, part.start * out_row),
            )
            for part in equal_blocks(samples, threads)
        )
    return tuple(
        _Block(
            numbers=(part.stop - part.start, samples, inputs, at_once, out_row),
            offsets=(0, part.start * row, part.start * _BYTES),
        )
        for part in equal_blocks(outputs, threads)
    )


@functools.lru_cache(maxsize=1024)
def _blocks_of_gx(samples: int, inputs: int, outputs: int, threads: int) -> tuple[_Block, ...]:
    least = 1 if samples == 1 else -(-inputs // _COLUMNS)
    return tuple(
        _Block(
            numbers=(part.stop - part.start, outputs, samples, _BYTES * inputs),
            offsets=(0, part.start * _BYTES, part.start * _BYTES),
        )
        for part in equal_blocks(inputs, max(threads, least))
    )


@functools.lru_cache(maxsize=1024)
def _blocks_of_gw(inputs: int, outputs: int, threads: int) -> tuple[_Block, ...]:
    return tuple(
        _Block(
            numbers=(part.stop - part.start, inputs),
            offsets=(part.start * _BYTES, 0, part.start * inputs * _BYTES),
        )
        for part in equal_blocks(outputs, threads)
    )


def _run(name: str, blocks: Sequence[_Block], *arrays: np.ndarray) -> None:
    codes = _machine_code()
    assert codes is not None
    starts = [address(array) for array in arrays]
    run_frames(codes[name], [(*block.numbers, *map(operator.add, starts, block.offsets)) for block in blocks])


@functools.cache
def _machine_code() -> Optional[dict[str, Function]]:
    """The functions in machine code; None without llvmlite.

    Each takes the address of 64-bit numbers. products_with_rows multiplies vectors with rows: how many rows, how many
    vectors, and how many numbers in each; how many of these make one sum; the bytes from the products of a vector to
    those of the next; the addresses of the vectors, of the rows and of the products. sums_of_rows adds rows times
    factors, which lie side by side for each sum: how many numbers of each row, how many rows and sums, and the bytes
    from row to row, and from sum to sum; the addresses of the factors, of the rows and of the sums. multiples_of_row:
    how many, and how many numbers in each; the addresses of the factors, of the row and of its multiples.
    """
    try:
        from branchynet.cpu.emitter import INT, LANES, REAL, VECTOR, Emitter, constant, integer
    except ImportError:
        return None
    emit = Emitter()

    def starts_of(rows: Any, row: Any, first: Any, number: int) -> list[Any]:
        """The addresses of rows, from the first on."""
        build = emit.builder
        return [build.add(rows, build.mul(build.add(first, integer(k)), row)) for k in range(number)]

    def sums_of_products(vectors: Sequence[Any], rows: Sequence[Any], size: Any) -> Sequence[Any]:
        """Emits the sums of the products of each vector with each row; these are addresses of ``size`` numbers."""
        build = emit.builder

        def add(i: Any, kind: Any, *sums: Any) -> list[Any]:
            factors, values = (
                [emit.load(emit.at(place, i, _BYTES), kind) for place in places] for places in (vectors, rows)
            )
            pairs = itertools.product(factors, values)
            return [emit.multiply_add(value, factor, total) for (factor, value), total in zip(pairs, sums)]

        whole = build.and_(size, INT(-LANES))
        zeros = [constant(0, VECTOR)] * (len(vectors) * len(rows))
        sums = emit.loop_if_any(whole, lambda i, *sums: add(i, VECTOR, *sums), zeros, LANES)
        return emit.loop_if_any(
            build.sub(size, whole),
            lambda i, *sums: add(build.add(whole, i), REAL, *sums),
            [emit.sum_of_lanes(total) for total in sums],
            1,
        )

    def products_with_rows(frame: Any) -> None:
        build = emit.builder
        count, samples, length, at_once, out_row, x, rows, out = emit.words(frame, 8)
        row = build.mul(length, integer(_BYTES))
        parts = build.sdiv(build.sub(build.add(length, at_once), integer(1)), at_once)

        def part(number_of_part: Any) -> None:
            """Emits the products of some numbers of every row, and adds them to those of the numbers before."""
            start = build.mul(number_of_part, at_once)
            size = emit.least(build.sub(length, start), at_once)
            is_first = build.icmp_signed('==', start, integer(0))
            own_x, own_rows = emit.at(x, start, _BYTES), emit.at(rows, start, _BYTES)

            def of_samples(first_sample: Any, several: int) -> None:
                vectors = starts_of(own_x, row, first_sample, several)
                outs = starts_of(out, out_row, first_sample, several)

                def of_rows(first: Any, number: int) -> None:
                    totals = sums_of_products(vectors, starts_of(own_rows, row, first, number), size)
                    for total, (own_out, k) in zip(totals, itertools.product(outs, range(number))):
                        place = emit.at(own_out, build.add(first, integer(k)), _BYTES)
                        before = build.select(is_first, constant(0, REAL), emit.load(place, REAL))
                        emit.store(build.fadd(before, total), place)

                emit.groups(count, _ROWS // several, of_rows)

            emit.groups(samples, _SAMPLES, of_samples)

        emit.loop(parts, part)

    def sums_of_rows(frame: Any) -> None:
        build = emit.builder
        length, added, count, row, factors, rows, out = emit.words(frame, 7)

        def clear(k: Any) -> None:
            own_out = build.add(out, build.mul(k, row))
            emit.elements(length, lambda i, kind: emit.store(constant(0, kind), emit.at(own_out, i, _BYTES)))

        def group(first: Any, number: int) -> None:
            starts = starts_of(rows, row, first, number)

            def sample(k: Any) -> None:
                own_out = build.add(out, build.mul(k, row))
                own_factors = emit.at(factors, build.mul(k, added), _BYTES)
                reals = [emit.load(place, REAL) for place in starts_of(own_factors, integer(_BYTES), first, number)]
                times = {REAL: reals, VECTOR: [emit.splat(real) for real in reals]}

                def add(i: Any, kind: Any) -> None:
                    place = emit.at(own_out, i, _BYTES)
                    total = emit.load(place, kind)
                    for start, factor in zip(starts, times[kind]):
                        total = emit.multiply_add(emit.load(emit.at(start, i, _BYTES), kind), factor, total)
                    emit.store(total, place)

                emit.elements(length, add)

            emit.loop(count, sample)

        emit.loop(count, clear)
        emit.groups(added, _ROWS, group)

    def multiples_of_row(frame: Any) -> None:
        count, length, factors, start, out = emit.words(frame, 5)
        row = emit.builder.mul(length, integer(_BYTES))

        def multiple(m: Any) -> None:
            real = emit.load(emit.at(factors, m, _BYTES), REAL)
            times = {REAL: real, VECTOR: emit.splat(real)}
            own_out = emit.builder.add(out, emit.builder.mul(m, row))

            def write(i: Any, kind: Any) -> None:
                value = emit.load(emit.at(start, i, _BYTES), kind)
                product = emit.multiply_add(value, times[kind], constant(0, kind))  # -0 becomes 0, as in a sum
                emit.store(product, emit.at(own_out, i, _BYTES))

            emit.elements(length, write)

        emit.loop(count, multiple)

    for function in (products_with_rows, sums_of_rows, multiples_of_row):
        emit.function(function.__name__, 1, function)
    return emit.compiled('products_with_rows', 'sums_of_rows', 'multiples_of_row')
