"""Linear layers of one sample, and gradients of x of up to 16, float32, in machine code that reads the weights once.

oneDNN's sgemm would first rearrange the weights, which takes longer than the product. Here every number is a sum of its
own, in an order that depends on the shapes alone, so that each thread may have its part of the weights: the same part
each time, which its cache may still hold. Only one sample's gradients have the bits of sgemm, which takes over where
llvmlite is missing.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Callable, Optional

from branchynet.cpu.memory import address
from branchynet.cpu.team import run_frames
from branchynet.cpu.threads import equal_blocks, workers

import numpy as np

if TYPE_CHECKING:
    from branchynet.cpu.emitter import Function

_ROWS = 8  # that are read at once
_BYTES = 4  # of a number
_BYTES_OF_PART = 1 << 18  # of weights, that are worth a thread's call
_COLUMNS = 512  # of a part where there are several samples: _ROWS rows of it stay in the cache


def is_available() -> bool:
    """Whether there is machine code; it needs llvmlite."""
    return _machine_code() is not None


def linear(x: np.ndarray, w: np.ndarray, y: np.ndarray) -> None:
    """Writes the output: x w' of a sample x (1, I) and weights w (O, I) to y (1, O), all C-contiguous."""
    row = _BYTES * x.size
    start, w_start, y_start = map(address, (x, w, y))
    frames = [
        (part.stop - part.start, x.size, start, w_start + part.start * row, y_start + part.start * _BYTES)
        for part in _parts(len(w), row, most=len(w))
    ]
    _run('products_with_rows', frames)


def linear_gx(w: np.ndarray, gy: np.ndarray, gx: np.ndarray) -> None:
    """Writes the gradient of x: gy w of gradients gy (B, O) and weights w (O, I) to gx (B, I), all C-contiguous."""
    (samples, outputs), inputs = gy.shape, w.shape[1]
    start, w_start, gx_start = map(address, (gy, w, gx))
    frames = [
        (
            *(part.stop - part.start, outputs, samples, _BYTES * inputs),
            *(start, w_start + part.start * _BYTES, gx_start + part.start * _BYTES),
        )
        for part in _parts(inputs, _BYTES * outputs, most=inputs if samples == 1 else _COLUMNS)
    ]
    _run('sums_of_rows', frames)


def linear_gw(x: np.ndarray, gy: np.ndarray, gw: np.ndarray) -> None:
    """Writes the gradient of w: gy' x of a gradient gy (1, O) and a sample x (1, I) to gw (O, I), all C-contiguous."""
    row = _BYTES * x.size
    start, x_start, gw_start = map(address, (gy, x, gw))
    frames = [
        (part.stop - part.start, x.size, start + part.start * _BYTES, x_start, gw_start + part.start * row)
        for part in _parts(gy.size, row, most=gy.size)
    ]
    _run('multiples_of_row', frames)


def _parts(count: int, bytes_of_one: int, most: int) -> tuple[slice, ...]:
    """Parts of at most ``most`` rows or columns of the weights; one or more for every thread that is worth a call."""
    return equal_blocks(count, max(workers(count * bytes_of_one // _BYTES_OF_PART), -(-count // most)))


def _run(name: str, frames: Sequence[Sequence[int]]) -> None:
    codes = _machine_code()
    assert codes is not None
    run_frames(codes[name], frames)


@functools.cache
def _machine_code() -> Optional[dict[str, Function]]:
    """The functions in machine code; None without llvmlite.

    Each takes the address of 64-bit numbers. products_with_rows multiplies a vector with rows: how many rows, and how
    many numbers in each; the addresses of the vector, of the rows and of the products. sums_of_rows adds rows times
    factors, which lie side by side for each sum: how many numbers of each row, how many rows and sums, and the bytes
    from row to row, and from sum to sum; the addresses of the factors, of the rows and of the sums. multiples_of_row:
    how many, and how many numbers in each; the addresses of the factors, of the row and of its multiples.
    """
    try:
        from branchynet.cpu.emitter import INT, LANES, REAL, VECTOR, Emitter, constant, integer
    except ImportError:
        return None
    emit = Emitter()

    def in_groups(rows: Any, write: Callable[[Any, int], None]) -> None:
        """Emits ``write(first, number)`` for groups of rows."""
        build = emit.builder
        whole = build.and_(rows, INT(-_ROWS))
        emit.loop_if_any(whole, lambda first: write(first, _ROWS), (), _ROWS)
        number = _ROWS
        while number > 1:
            number //= 2
            with build.if_then(build.icmp_signed('!=', build.and_(rows, INT(number)), INT(0))):
                write(build.and_(rows, INT(-2 * number)), number)

    def starts_of(rows: Any, row: Any, first: Any, number: int) -> list[Any]:
        """The addresses of rows, from the first on."""
        build = emit.builder
        return [build.add(rows, build.mul(build.add(first, integer(k)), row)) for k in range(number)]

    def products_with_rows(frame: Any) -> None:
        build = emit.builder
        count, length, x, rows, out = emit.words(frame, 5)
        row = emit.at(integer(0), length, _BYTES)
        whole = build.and_(length, INT(-LANES))

        def group(first: Any, number: int) -> None:
            starts = starts_of(rows, row, first, number)

            def add(i: Any, kind: Any, sums: Sequence[Any]) -> list[Any]:
                factor = emit.load(emit.at(x, i, _BYTES), kind)
                values = [emit.load(emit.at(start, i, _BYTES), kind) for start in starts]
                return [emit.multiply_add(value, factor, total) for value, total in zip(values, sums)]

            zeros = [constant(0, VECTOR)] * number
            vectors = emit.loop_if_any(whole, lambda i, *sums: add(i, VECTOR, sums), zeros, LANES)
            sums = emit.loop_if_any(
                build.sub(length, whole),
                lambda i, *sums: add(build.add(whole, i), REAL, sums),
                [emit.sum_of_lanes(total) for total in vectors],
                1,
            )
            for k, total in enumerate(sums):
                emit.store(total, emit.at(out, build.add(first, integer(k)), _BYTES))

        in_groups(count, group)

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
        in_groups(added, group)

    def multiples_of_row(frame: Any) -> None:
        count, length, factors, start, out = emit.words(frame, 5)
        row = emit.at(integer(0), length, _BYTES)

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
