"""Batch normalisation and its gradients in machine code, of images whose channels lie last in memory.

Threads share parts of the pixels of all images. A part is computed in chunks of pixels that stay in the cache, and a
chunk in vectors of channels. Sums over a chunk are float32; those of the chunks are added up as float64. All of this
depends on the shape alone.
"""

from __future__ import annotations

import array as packed
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, Optional

from branchynet.cpu.emitter import BYTE, DOUBLE, LANES, REAL, Emitter, Function, integer, vector
from branchynet.cpu.layout import empty_like, is_channels_last
from branchynet.cpu.memory import address
from branchynet.cpu.team import run_frames
from branchynet.cpu.threads import workers

import numpy as np
from llvmlite import ir

_PIXELS = 64  # of a chunk
_VECTORS = 4  # of channels, that are computed together
_BYTES_OF_PART = 1 << 17  # of images; less would not be worth a thread's start
_DOUBLES = ir.VectorType(DOUBLE, LANES)
_BITS = ir.VectorType(ir.IntType(1), LANES)


def fits(x: np.ndarray) -> bool:
    """Whether images x (B, C, H, W) lie in memory with their channels last, and those fill vectors."""
    return x.shape[1] % LANES == 0 and is_channels_last(x)


def mean_and_variance(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the biased variance of every channel of images x (B, C, H, W), each (C,) float64."""
    # A number of x is at most n**0.5 deviations from the mean of n: sums of differences from it keep their digits.
    sample = x[0, :, 0, 0].copy()
    sample[~np.isfinite(sample)] = 0
    difference, square = _sums('moments', x, rows=sample)
    return sample + difference, square - difference**2


def scale_and_shift(x: np.ndarray, rows: np.ndarray, masks: Optional[np.ndarray]) -> np.ndarray:
    """(x - mean) * scale + shift, perhaps with ReLU after it, which makes 0 of NaN.

    Args:
        x: images (B, C, H, W).
        rows: the mean, scale and shift of every channel, (3, C).
        masks: where given, ReLU follows and fills these, as of normalization.empty_masks.
    """
    y = empty_like(x)
    _compute(_name('scaled', masks is not None), x, y=y, rows=rows, masks=masks)
    return y


def gradients(
    x: np.ndarray, gamma: np.ndarray, gy: np.ndarray, mean: np.ndarray, inv_std: np.ndarray, masks: Optional[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As normalization.batch_normalization_gradients, of images that fit."""
    has_masks, rows = masks is not None, np.empty((4, len(gamma)), np.float32)
    rows[0] = mean
    of_beta, of_gamma = _sums(_name('gradient_sums', has_masks), x, gy=gy, rows=rows, masks=masks)  # per pixel
    of_gamma *= inv_std
    rows[1:] = gamma * inv_std, of_beta, of_gamma * inv_std
    gx = empty_like(x)
    _compute(_name('gx', has_masks), x, y=gx, gy=gy, rows=rows, masks=masks)
    pixels = x.size // len(gamma)
    return gx, (pixels * of_gamma).astype(np.float32), (pixels * of_beta).astype(np.float32)


def _name(function: str, has_masks: bool) -> str:
    return f'{function}_masked' if has_masks else function


class _Frame(NamedTuple):
    """The numbers of a call. In machine code, each attribute is a value that the code reads.

    Attributes:
        parts: that threads share.
        pixels_of_part: their number; the last part may have fewer.
        pixels: of all images.
        channels: their number.
        counter: address of a number that the threads share: how many parts they have begun.
        x: address of the images.
        y: address of the images that result.
        gy: address of the gradient of y.
        rows: address of vectors, each with a number for every channel, float32.
        sums: address of two sums for every channel of each part, (parts, 2, C) float64, 0 at first.
        masks: address of a bit for each number of y or gy.
    """

    parts: Any
    pixels_of_part: Any
    pixels: Any
    channels: Any
    counter: Any = 0
    x: Any = 0
    y: Any = 0
    gy: Any = 0
    rows: Any = 0
    sums: Any = 0
    masks: Any = 0


@functools.lru_cache(maxsize=1024)
def _plan(shape: tuple[int, ...]) -> _Frame:
    """The work on images of a shape (B, C, H, W), without addresses."""
    channels, pixels = shape[1], math.prod(shape) // shape[1]
    pixels_of_part = _PIXELS * max(1, _BYTES_OF_PART // (4 * channels * _PIXELS))
    return _Frame(-(-pixels // pixels_of_part), pixels_of_part, pixels, channels)


def _sums(name: str, x: np.ndarray, **arrays: Any) -> np.ndarray:
    """The sums of every channel that a function computes, divided by the number of pixels, (2, C) float64."""
    return _sums_of_parts(name, x, **arrays).sum(axis=0) / _plan(x.shape).pixels


def _sums_of_parts(name: str, x: np.ndarray, **arrays: Any) -> np.ndarray:
    sums = np.zeros((_plan(x.shape).parts, 2, x.shape[1]))
    _compute(name, x, sums=sums, **arrays)
    return sums


def _compute(name: str, x: np.ndarray, **arrays: Optional[np.ndarray]) -> None:
    """Calls a function in machine code, in several threads; for the arrays see _Frame."""
    counter = packed.array('q', [0])
    addresses = {kind: address(array) for kind, array in arrays.items() if array is not None}
    frame = _plan(x.shape)._replace(counter=counter.buffer_info()[0], x=address(x), **addresses)
    run_frames(_machine_code()[name], [frame] * workers(frame.parts))


class _Vectors(NamedTuple):
    """Neighbouring vectors of channels, of the pixels of a chunk.

    Attributes:
        part: number of the part.
        start: number of the first element, in the order of memory.
        pixels: how many pixels.
        channel: number of the first channel.
        number: how many vectors.
    """

    part: ir.Value
    start: ir.Value
    pixels: ir.Value
    channel: ir.Value
    number: int


class _Kernel:
    """Writes a function that threads call.

    Args:
        emit: where it is written.
        numbers: the address of a _Frame's numbers.
        has_masks: whether it uses masks.
    """

    def __init__(self, emit: Emitter, numbers: ir.Value, has_masks: bool) -> None:
        self._emit, self._has_masks = emit, has_masks
        self._frame = _Frame(*emit.words(numbers, len(_Frame._fields)))

    def moments(self) -> None:
        """Emits the sums of x - sample and of (x - sample)**2, of the row sample.

        With the mean of a chunk's n pixels, and e = x - mean, and d = mean - sample, these are sum(e) + n d and
        sum(e**2) + d (2 sum(e) + n d). The mean is rounded, so that sum(e) is not quite 0.
        """
        emit, build, frame = self._emit, self._emit.builder, self._frame

        def write(vectors: _Vectors) -> None:
            zeros = [vector(0)] * vectors.number
            (samples,) = self._rows(1, vectors)

            def add(i: ir.Value, *totals: ir.Value) -> list[ir.Value]:
                return [build.fadd(total, x) for total, x in zip(totals, self._load(frame.x, vectors, i))]

            count = emit.splat(build.uitofp(vectors.pixels, REAL))
            means = [build.fdiv(total, count) for total in emit.loop(vectors.pixels, add, zeros)]

            def add_rests(i: ir.Value, *sums: ir.Value) -> list[ir.Value]:
                rests = [build.fsub(x, mean) for x, mean in zip(self._load(frame.x, vectors, i), means)]
                return self._added(sums, rests, rests)

            sums = list(map(self._wide, emit.loop(vectors.pixels, add_rests, zeros * 2)))
            for k, (mean, sample) in enumerate(zip(means, samples)):
                rest, square = sums[2 * k : 2 * k + 2]
                distance = build.fsub(self._wide(mean), self._wide(sample))
                total = build.fadd(rest, build.fmul(self._wide(count), distance))
                square = build.fadd(square, build.fmul(distance, build.fadd(rest, total)))
                self._add_to_sums(vectors, k, (total, square))

        self._each_chunk(write)

    def scaled(self) -> None:
        """Emits (x - mean) * scale + shift, of the rows mean, scale and shift, and ReLU where there are masks."""
        emit, build = self._emit, self._emit.builder

        def write(vectors: _Vectors) -> None:
            rows = self._rows(3, vectors)

            def pixel(i: ir.Value) -> None:
                rests = [build.fsub(x, mean) for x, mean in zip(self._load(self._frame.x, vectors, i), rows[0])]
                values = [emit.multiply_add(*numbers) for numbers in zip(rests, *rows[1:])]
                if self._has_masks:
                    are_positive = [build.fcmp_ordered('>', y, vector(0)) for y in values]
                    values = [build.select(bits, y, vector(0)) for bits, y in zip(are_positive, values)]
                    self._store_masks(are_positive, vectors, i)
                for k, y in enumerate(values):
                    emit.store(y, self._place(self._frame.y, vectors, i, k))

            emit.loop(vectors.pixels, pixel)

        self._each_chunk(write)

    def gradient_sums(self) -> None:
        """Emits the sums of gy and of gy * (x - mean), of the row mean."""
        emit, build = self._emit, self._emit.builder

        def write(vectors: _Vectors) -> None:
            (means,) = self._rows(1, vectors)

            def add(i: ir.Value, *sums: ir.Value) -> list[ir.Value]:
                rests = [build.fsub(x, mean) for x, mean in zip(self._load(self._frame.x, vectors, i), means)]
                return self._added(sums, self._load_gy(vectors, i), rests)

            sums = list(map(self._wide, emit.loop(vectors.pixels, add, [vector(0)] * (2 * vectors.number))))
            for k in range(vectors.number):
                self._add_to_sums(vectors, k, sums[2 * k : 2 * k + 2])

        self._each_chunk(write)

    def gx(self) -> None:
        """Emits (gy - shift - (x - mean) * slope) * factor, of the rows mean, factor, shift and slope."""
        emit, build = self._emit, self._emit.builder

        def write(vectors: _Vectors) -> None:
            rows = self._rows(4, vectors)

            def pixel(i: ir.Value) -> None:
                images = self._load(self._frame.x, vectors, i), self._load_gy(vectors, i)
                for k, (x, gy, mean, factor, shift, slope) in enumerate(zip(*images, *rows)):
                    rest = build.fsub(mean, x)  # the other way round: then it is a multiply-add
                    gx = build.fmul(emit.multiply_add(rest, slope, build.fsub(gy, shift)), factor)
                    emit.store(gx, self._place(self._frame.y, vectors, i, k))

            emit.loop(vectors.pixels, pixel)

        self._each_chunk(write)

    def _each_chunk(self, write: Callable[[_Vectors], None]) -> None:
        """Emits the work on all vectors of channels, for the chunks of all parts."""
        emit, build, frame = self._emit, self._emit.builder, self._frame
        number_of_vectors = build.sdiv(frame.channels, integer(LANES))

        def part(i: ir.Value) -> None:
            start = build.mul(i, frame.pixels_of_part)
            pixels = emit.least(frame.pixels_of_part, build.sub(frame.pixels, start))

            def chunk(done: ir.Value) -> None:
                count = emit.least(integer(_PIXELS), build.sub(pixels, done))
                first = build.mul(build.add(start, done), frame.channels)

                def group(v: ir.Value, number: int) -> None:
                    channel = build.mul(v, integer(LANES))
                    write(_Vectors(i, build.add(first, channel), count, channel, number))

                emit.groups(number_of_vectors, _VECTORS, group)

            emit.loop(pixels, chunk, (), _PIXELS)

        emit.shared_loop(frame.counter, frame.parts, part)

    def _place(self, images: ir.Value, vectors: _Vectors, pixel: ir.Value, k: int) -> ir.Value:
        """Where a vector of images lies; k: which of the vectors of a pixel."""
        emit, pixels = self._emit, self._emit.builder.mul(pixel, self._frame.channels)
        return emit.add(emit.at(emit.at(images, vectors.start, 4), pixels, 4), 4 * LANES * k)

    def _mask(self, vectors: _Vectors, pixel: ir.Value, k: int) -> ir.Value:
        """Where the bits of a vector lie."""
        build = self._emit.builder
        first = build.add(self._frame.masks, build.lshr(vectors.start, integer(3)))
        return self._emit.add(build.add(first, build.mul(pixel, build.lshr(self._frame.channels, integer(3)))), k)

    def _store_masks(self, bits: Sequence[ir.Value], vectors: _Vectors, pixel: ir.Value) -> None:
        """Emits the masks of a pixel, in one go: many little ones would delay the results' way to memory."""
        build, kind = self._emit.builder, ir.IntType(LANES * vectors.number)
        total = ir.Constant(kind, 0)
        for k, lanes in enumerate(bits):
            byte = build.zext(build.bitcast(lanes, BYTE), kind)
            total = build.or_(total, build.shl(byte, ir.Constant(kind, LANES * k)))
        build.store(total, build.inttoptr(self._mask(vectors, pixel, 0), kind.as_pointer()), align=1)

    def _load(self, images: ir.Value, vectors: _Vectors, pixel: ir.Value) -> list[ir.Value]:
        return [self._emit.load(self._place(images, vectors, pixel, k)) for k in range(vectors.number)]

    def _load_gy(self, vectors: _Vectors, pixel: ir.Value) -> list[ir.Value]:
        """The gradients that pass the masks."""
        emit, build, values = self._emit, self._emit.builder, self._load(self._frame.gy, vectors, pixel)
        if not self._has_masks:
            return values
        bits = [emit.load(self._mask(vectors, pixel, k), BYTE) for k in range(vectors.number)]
        return [build.select(build.bitcast(b, _BITS), value, vector(0)) for b, value in zip(bits, values)]

    def _rows(self, count: int, vectors: _Vectors) -> list[list[ir.Value]]:
        """The vectors of so many rows."""
        emit, build = self._emit, self._emit.builder
        starts = [build.add(vectors.channel, build.mul(self._frame.channels, integer(j))) for j in range(count)]
        places = [emit.at(self._frame.rows, start, 4) for start in starts]
        return [[emit.load(emit.add(place, 4 * LANES * k)) for k in range(vectors.number)] for place in places]

    def _wide(self, value: ir.Value) -> ir.Value:
        """A vector as float64."""
        return self._emit.builder.fpext(value, _DOUBLES)

    def _added(self, sums: Sequence[ir.Value], a: Sequence[ir.Value], b: Sequence[ir.Value]) -> list[ir.Value]:
        """The two sums of every vector, with a added to the first and a * b to the second."""
        totals = []
        for k, (left, right) in enumerate(zip(a, b)):
            total, product = sums[2 * k : 2 * k + 2]
            totals += [self._emit.builder.fadd(total, left), self._emit.multiply_add(left, right, product)]
        return totals

    def _add_to_sums(self, vectors: _Vectors, k: int, values: Sequence[ir.Value]) -> None:
        """Emits the addition of two vectors to the part's sums."""
        emit, build = self._emit, self._emit.builder
        for j, value in enumerate(values):
            row = build.mul(build.add(build.mul(vectors.part, integer(2)), integer(j)), self._frame.channels)
            place = emit.at(self._frame.sums, build.add(build.add(row, vectors.channel), integer(LANES * k)), 8)
            emit.store(build.fadd(emit.load(place, _DOUBLES), value), place)


@functools.cache
def _machine_code() -> dict[str, Function]:
    """The functions in machine code; each takes the address of a _Frame's numbers."""
    emit = Emitter()
    kernels = [(_Kernel.moments, False)]
    kernels += itertools.product((_Kernel.scaled, _Kernel.gradient_sums, _Kernel.gx), (False, True))
    names = [_name(method.__name__, has_masks) for method, has_masks in kernels]
    for name, (method, has_masks) in zip(names, kernels):
        emit.function(name, 1, functools.partial(_write, emit, method, has_masks))
    return emit.compiled(*names)


def _write(emit: Emitter, method: Callable[[_Kernel], None], has_masks: bool, numbers: ir.Value) -> None:
    method(_Kernel(emit, numbers, has_masks))
