"""3x3 convolutions and their gradients by Winograd's algorithm, float32, in machine code.

A tile is 2x2 pixels of an output; they depend on a window of 4x4 pixels of the input. Windows, tiles and filters are
each transformed to 16 numbers, their points. The products of points take 16 multiplications for every pair of channels,
where sums over 3x3 pixels take 36: F(2x2, 3x3) of Lavin and Gray, Fast Algorithms for Convolutional Neural Networks,
2016, section 4.1. Gradients are those of that computation. The results differ from sums over pixels by rounding alone.

Images (B, C, H, W) lie in memory with their channels last, whose number is a multiple of CHANNELS. Zeros surround them:
a row above and below, a column on both sides. Every number is a sum in an order that depends on the shapes alone.
"""

from __future__ import annotations

import array as packed
import functools
from collections.abc import Sequence
from typing import Callable, NamedTuple

from branchynet.cpu import memory, onednn
from branchynet.cpu.emitter import LANES, REAL, Emitter, Function, integer, vector, vector_type
from branchynet.cpu.memory import LINE, address
from branchynet.cpu.team import run_frames
from branchynet.cpu.threads import SCRATCHES, Scratch, taken, workers

import numpy as np
from llvmlite import ir

CHANNELS = 16
_TILES = 64  # of a band, unless a row has more: their points, and the filters of a point, stay in the cache
_POINTS = 16
_VECTORS = 2  # of a row of a product, that are computed together
_ROWS = {LANES: 6, 2 * LANES: 12}  # with them, by their lanes: the sums stay in the registers of AVX2, of AVX-512
_BYTES = 4  # of a number

_Matrix = Sequence[Sequence[ir.Value]]


def convolution(x: np.ndarray, w: np.ndarray, b: np.ndarray, y: np.ndarray) -> None:
    """Writes the output of a convolution.

    Args:
        x: images (B, C, H, W).
        w: weights (O, C, 3, 3).
        b: bias (O,), C-contiguous.
        y: where the output (B, O, H, W) goes.
    """
    _run('outputs', 1, x, y, _points_of(w.transpose(2, 3, 1, 0)), b)


def gradient_of_x(w: np.ndarray, gy: np.ndarray, gx: np.ndarray) -> None:
    """Writes the gradient of x: a convolution of that of y, with filters turned by half a turn.

    Args:
        w: weights (O, C, 3, 3).
        gy: gradient of y (B, O, H, W).
        gx: where the gradient (B, C, H, W) goes.
    """
    _run('outputs', 1, gy, gx, _points_of(w[:, :, ::-1, ::-1].transpose(2, 3, 0, 1)), _zeros(w.shape[1]))


def gradients_of_w(x: np.ndarray, gy: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The gradients of the weights and the bias.

    Args:
        x: images (B, C, H, W).
        gy: gradient of y (B, O, H, W).
        most: parts of the images, at most, that threads share; their gradients are added up in order.

    Returns:
        Gradients of w (O, C, 3, 3) and b (O,).
    """
    channels, outputs = x.shape[1], gy.shape[1]
    bands_of_run = -(-_plan(x.shape, outputs, 1).runs // most)
    runs = _plan(x.shape, outputs, bands_of_run).runs
    gw, gb = memory.empty((runs, 3, 3, channels, outputs)), np.empty((runs, outputs), np.float32)
    _run('gradients', bands_of_run, x, gy, gw, gb)
    return np.ascontiguousarray(gw.sum(axis=0).transpose(3, 2, 0, 1)), gb.sum(axis=0)


def _points_of(filters: np.ndarray) -> np.ndarray:
    """The points (4, 4, C, O) of filters (3, 3, C, O)."""
    filters = np.ascontiguousarray(filters)
    points = memory.empty((4, 4, *filters.shape[2:]))
    numbers = packed.array('q', (filters[0, 0].size, address(filters), address(points)))
    _machine_code()['filters'](numbers.buffer_info()[0])
    return points


@functools.lru_cache(maxsize=128)
def _zeros(count: int) -> np.ndarray:
    return np.zeros(count, np.float32)


class _Plan(NamedTuple):
    """How a convolution's rows of tiles, those of one image after those of another, are computed.

    Attributes:
        runs: runs of bands, which threads share.
        bands_of_run: bands, one after the other; the last run may have fewer.
        rows_of_band: rows of tiles that are computed together; the last band may have fewer.
        rows: of tiles, of all images.
        height: of an image, pixels.
        width: of an image, pixels.
        x_channels: their number.
        y_channels: their number.
        x_step: bytes from point to point of a band's windows.
        y_step: bytes from point to point of a band's tiles.
    """

    runs: int
    bands_of_run: int
    rows_of_band: int
    rows: int
    height: int
    width: int
    x_channels: int
    y_channels: int
    x_step: int
    y_step: int

    def scratch(self) -> list[int]:
        """Bytes of a thread's scratch memory up to each of its parts, which _Frame names, and of all of it."""
        sums, spare = _POINTS * self.x_channels * self.y_channels, self.width * self.y_channels
        sizes = _POINTS * self.x_step, _POINTS * self.y_step, _BYTES * sums, _BYTES * spare
        return np.cumsum([0, *sizes]).tolist()


class _Frame(NamedTuple):
    """Addresses that a thread works with, each a number.

    Attributes:
        counter: of a number that the threads share: of the runs that they have begun.
        x: of the images.
        y: of the outputs, or of their gradients.
        w: of the points of the filters, or of the runs' gradients of the filters.
        b: of the bias, or of the runs' gradients of it.
        zeros: of a row of pixels.
        x_points: of scratch memory for the points of a band's windows.
        y_points: of scratch memory for the points of a band's tiles.
        sums: of scratch memory for sums of products of points.
        spare: of scratch memory for a row of pixels that nobody reads.
    """

    counter: ir.Value
    x: ir.Value
    y: ir.Value
    w: ir.Value
    b: ir.Value
    zeros: ir.Value
    x_points: ir.Value
    y_points: ir.Value
    sums: ir.Value
    spare: ir.Value


@functools.lru_cache(maxsize=1024)
def _plan(x_shape: tuple[int, ...], outputs: int, bands_of_run: int) -> _Plan:
    images, channels, height, width = x_shape
    tiles, rows = -(-width // 2), images * -(-height // 2)
    rows_of_band = max(1, _TILES // tiles)
    # An odd number of cache lines: points a power of two apart would lie in the same few places of the cache.
    steps = (LINE * (-(-_BYTES * rows_of_band * tiles * count // LINE) | 1) for count in (channels, outputs))
    runs = -(-rows // (rows_of_band * bands_of_run))
    return _Plan(runs, bands_of_run, rows_of_band, rows, height, width, channels, outputs, *steps)


def _run(name: str, bands_of_run: int, x: np.ndarray, y: np.ndarray, w: np.ndarray, b: np.ndarray) -> None:
    """Calls a function; for the arrays see _Frame."""
    plan = _plan(x.shape, y.shape[1], bands_of_run)
    counter = packed.array('q', [0])
    arrays = [address(array) for array in (x, y, w, b, _zeros(plan.width * max(plan.x_channels, plan.y_channels)))]
    scratches = [taken(SCRATCHES, Scratch) for _ in range(workers(plan.runs))]
    *offsets, size = plan.scratch()
    starts = [scratch.address('winograd', size) for scratch in scratches]
    frames = [(*plan, counter.buffer_info()[0], *arrays, *(start + offset for offset in offsets)) for start in starts]
    run_frames(_machine_code()[name], frames)
    SCRATCHES.extend(scratches[::-1])  # the next call's first thread gets the first one's


# The transforms, each of a column or a row.


def _of_window(build: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value, d: ir.Value) -> list[ir.Value]:
    return [build.fsub(a, c), build.fadd(b, c), build.fsub(c, b), build.fsub(b, d)]


def _of_products(build: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value, d: ir.Value) -> list[ir.Value]:
    """The outputs."""
    return [build.fadd(build.fadd(a, b), c), build.fsub(build.fsub(b, c), d)]


def _of_gradients(build: ir.IRBuilder, a: ir.Value, b: ir.Value) -> list[ir.Value]:
    """The points of the outputs' gradients."""
    return [a, build.fadd(a, b), build.fsub(a, b), build.fneg(b)]


def _of_filter(build: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> list[ir.Value]:
    outer, inner = _halved(build, build.fadd(a, c)), _halved(build, b)
    return [a, build.fadd(outer, inner), build.fsub(outer, inner), c]


def _of_sums(build: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value, d: ir.Value) -> list[ir.Value]:
    """The gradients of a filter."""
    outer, inner = _halved(build, build.fadd(b, c)), _halved(build, build.fsub(b, c))
    return [build.fadd(a, outer), inner, build.fadd(outer, d)]


def _halved(build: ir.IRBuilder, a: ir.Value) -> ir.Value:
    return build.fmul(a, vector(0.5))


def _transformed(build: ir.IRBuilder, transform: Callable[..., list[ir.Value]], rows: _Matrix) -> _Matrix:
    columns = [transform(build, *column) for column in zip(*rows)]
    return [transform(build, *row) for row in zip(*columns)]


class _Images(NamedTuple):
    """Images in memory.

    Attributes:
        emit: writes the code.
        start: address of the first.
        channels: their number.
        height: pixels.
        width: pixels.
    """

    emit: Emitter
    start: ir.Value
    channels: ir.Value
    height: ir.Value
    width: ir.Value

    @property
    def pixel(self) -> ir.Value:
        """Bytes from pixel to pixel."""
        return self.emit.at(integer(0), self.channels, _BYTES)

    @property
    def tiles(self) -> ir.Value:
        """Those of a row."""
        return _half(self.emit, self.width)

    @property
    def is_odd(self) -> ir.Value:
        """Whether the last tile of a row has one column of pixels."""
        return self.emit.builder.trunc(self.width, ir.IntType(1))

    def rows(self, row: ir.Value, first: int, number: int, beyond: ir.Value) -> list[ir.Value]:
        """Addresses of rows of pixels.

        Args:
            row: of tiles, counted through all images.
            first: 0 for the first row of pixels of the tiles, -1 for the one above.
            number: of rows of pixels.
            beyond: the address in place of a row that is not in the image.
        """
        build, of_image = self.emit.builder, _half(self.emit, self.height)
        rows_before = build.mul(build.sdiv(row, of_image), self.height)
        places = []
        for k in range(first, first + number):
            i = build.add(build.mul(build.srem(row, of_image), integer(2)), integer(k))
            pixels = build.mul(build.add(rows_before, i), self.width)
            place = build.add(self.start, build.mul(pixels, self.pixel))
            places.append(build.select(build.icmp_unsigned('<', i, self.height), place, beyond))
        return places

    def offset(self, tile: ir.Value, channel: ir.Value) -> ir.Value:
        """Bytes from the start of a row of pixels to the first one of a tile, from a channel on."""
        first = self.emit.builder.mul(self.emit.builder.shl(tile, integer(1)), self.pixel)
        return self.emit.at(first, channel, _BYTES)

    def each_tile(self, write: Callable[[ir.Value, int], None]) -> None:
        """Emits ``write(tile, columns)`` for the tiles of a row: two columns of pixels, or one in the last of them."""
        build = self.emit.builder
        whole = build.lshr(self.width, integer(1))
        self.emit.loop_if_any(whole, lambda tile: write(tile, 2), (), 1)
        with build.if_then(self.is_odd):
            write(whole, 1)


class _Points(NamedTuple):
    """The points of the tiles of a band, or of their windows.

    Attributes:
        emit: writes the code.
        start: address of the first point of all (tiles, channels).
        step: bytes from there to the second point of all, and so on.
        channels: their number.
    """

    emit: Emitter
    start: ir.Value
    step: ir.Value
    channels: ir.Value

    def places(self, tile: ir.Value, channel: ir.Value) -> _Matrix:
        """The addresses of a tile's points, from a channel on."""
        build = self.emit.builder
        first = self.emit.at(self.start, build.add(build.mul(tile, self.channels), channel), _BYTES)
        return [[build.add(first, build.mul(self.step, integer(4 * i + j))) for j in range(4)] for i in range(4)]

    def store(self, values: _Matrix, tile: ir.Value, channel: ir.Value) -> None:
        """Emits the points of a tile, for a vector of channels."""
        for row, places in zip(values, self.places(tile, channel)):
            for value, place in zip(row, places):
                self.emit.store(value, place)


def _half(emit: Emitter, size: ir.Value) -> ir.Value:
    return emit.builder.lshr(emit.builder.add(size, integer(1)), integer(1))


class _Kernel:
    """Writes a function that threads call.

    Args:
        emit: where it is written.
        numbers: the address of those of a _Plan, then a _Frame.
    """

    def __init__(self, emit: Emitter, numbers: ir.Value) -> None:
        words = emit.words(numbers, len(_Plan._fields) + len(_Frame._fields))
        self._emit = emit
        self._plan = plan = _Plan(*words[: len(_Plan._fields)])
        self._frame = frame = _Frame(*words[len(_Plan._fields) :])
        self._x = _Images(emit, frame.x, plan.x_channels, plan.height, plan.width)
        self._y = _Images(emit, frame.y, plan.y_channels, plan.height, plan.width)
        self._x_points = _Points(emit, frame.x_points, plan.x_step, plan.x_channels)
        self._y_points = _Points(emit, frame.y_points, plan.y_step, plan.y_channels)

    def outputs(self) -> None:
        """Emits the outputs of a convolution."""

        def band(first: ir.Value, rows: ir.Value) -> None:
            self._window_points(first, rows)
            self._products_of_band(rows)
            self._pixels(first, rows)

        self._emit.shared_loop(self._frame.counter, self._plan.runs, lambda run: self._bands(run, band))

    def gradients(self) -> None:
        """Emits the gradients of the weights and the bias."""
        emit, build, plan, frame = self._emit, self._emit.builder, self._plan, self._frame
        count = build.mul(plan.x_channels, plan.y_channels)  # of filters

        def run(i: ir.Value) -> None:
            gb = emit.at(frame.b, build.mul(i, plan.y_channels), _BYTES)
            gw = emit.at(frame.w, build.mul(i, count), 9 * _BYTES)
            for start, size in (frame.sums, build.mul(count, integer(_POINTS))), (gb, plan.y_channels):
                emit.loop(size, lambda k, start=start: emit.store(vector(0), emit.at(start, k, _BYTES)), (), LANES)

            def band(first: ir.Value, rows: ir.Value) -> None:
                self._window_points(first, rows)
                self._gradient_points(first, rows, gb)
                self._add_products_of_band(rows, count)

            self._bands(i, band)
            _write_transformed(emit, _of_sums, count, frame.sums, gw)

        emit.shared_loop(frame.counter, plan.runs, run)

    def _bands(self, run: ir.Value, write: Callable[[ir.Value, ir.Value], None]) -> None:
        """Emits ``write(first row of tiles, number of rows)`` for the bands of a run."""
        build, plan = self._emit.builder, self._plan
        rows_of_run = build.mul(plan.bands_of_run, plan.rows_of_band)
        start = build.mul(run, rows_of_run)
        count = self._least(rows_of_run, build.sub(plan.rows, start))

        def band(i: ir.Value) -> None:
            first = build.mul(i, plan.rows_of_band)
            write(build.add(start, first), self._least(plan.rows_of_band, build.sub(count, first)))

        self._emit.loop(build.sdiv(build.add(count, build.sub(plan.rows_of_band, integer(1))), plan.rows_of_band), band)

    def _least(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self._emit.builder.select(self._emit.builder.icmp_signed('<', a, b), a, b)

    def _window_points(self, first: ir.Value, rows: ir.Value) -> None:
        """Emits the points of the windows of a band."""
        emit, build, x, zeros = self._emit, self._emit.builder, self._x, self._frame.zeros
        last = build.sub(x.tiles, integer(1))
        outside = [vector(0)] * 4  # a column beside the image

        def row(i: ir.Value) -> None:
            starts = x.rows(build.add(first, i), -1, 4, zeros)

            def channel(c: ir.Value) -> None:
                def column(offset: ir.Value) -> list[ir.Value]:
                    return transformed([build.add(start, offset) for start in starts])

                def column_if_even(offset: ir.Value) -> list[ir.Value]:
                    """A column that is beside images with an odd number of columns."""
                    return transformed([build.select(x.is_odd, zeros, build.add(start, offset)) for start in starts])

                def transformed(places: Sequence[ir.Value]) -> list[ir.Value]:
                    return _of_window(build, *map(emit.load, places))

                def window(t: ir.Value, columns: _Matrix) -> None:
                    points = [_of_window(build, *numbers) for numbers in zip(*columns)]
                    self._x_points.store(points, build.add(build.mul(i, x.tiles), t), c)

                def window_before_the_last(t: ir.Value, *left: ir.Value) -> list[ir.Value]:
                    offset = build.add(x.offset(t, c), x.pixel)
                    right = column(offset), column(build.add(offset, x.pixel))
                    window(t, [left[:4], left[4:], *right])
                    return [*right[0], *right[1]]  # the left columns of the next window

                left = [*outside, *column(x.offset(integer(0), c))]
                left = list(emit.loop_if_any(last, window_before_the_last, left, 1))
                right = column_if_even(build.add(x.offset(last, c), x.pixel))
                window(last, [left[:4], left[4:], right, outside])

            emit.loop(x.channels, channel, (), LANES)

        emit.loop(rows, row)

    def _gradient_points(self, first: ir.Value, rows: ir.Value, gb: ir.Value) -> None:
        """Emits the points of the gradients of a band's outputs, and adds these to the gradient of the bias."""
        emit, build, y = self._emit, self._emit.builder, self._y

        def row(i: ir.Value) -> None:
            starts = y.rows(build.add(first, i), 0, 2, self._frame.zeros)

            def channel(c: ir.Value) -> None:
                def tile(t: ir.Value, columns: int) -> None:
                    first = [build.add(start, y.offset(t, c)) for start in starts]
                    places = [(place, build.add(place, y.pixel)) for place in first]
                    outside = [vector(0)] * (2 - columns)
                    pixels = [[*map(emit.load, row[:columns]), *outside] for row in places]
                    points = _transformed(build, _of_gradients, pixels)
                    self._y_points.store(points, build.add(build.mul(i, y.tiles), t), c)
                    total = emit.at(gb, c, _BYTES)
                    emit.store(build.fadd(emit.load(total), points[1][1]), total)  # the sum of the pixels

                y.each_tile(tile)

            emit.loop(y.channels, channel, (), LANES)

        emit.loop(rows, row)

    def _pixels(self, first: ir.Value, rows: ir.Value) -> None:
        """Emits the outputs of a band."""
        emit, build, y = self._emit, self._emit.builder, self._y

        def row(i: ir.Value) -> None:
            starts = y.rows(build.add(first, i), 0, 2, self._frame.spare)

            def tile(t: ir.Value, columns: int) -> None:
                own_tile = build.add(build.mul(i, y.tiles), t)

                def channel(c: ir.Value) -> None:
                    points = [list(map(emit.load, row)) for row in self._y_points.places(own_tile, c)]
                    bias = emit.load(emit.at(self._frame.b, c, _BYTES))
                    for start, pixels in zip(starts, _transformed(build, _of_products, points)):
                        place = build.add(start, y.offset(t, c))
                        for pixel in pixels[:columns]:
                            emit.store(build.fadd(pixel, bias), place)
                            place = build.add(place, y.pixel)

                emit.loop(y.channels, channel, (), LANES)

            y.each_tile(tile)

        emit.loop(rows, row)

    def _products_of_band(self, rows: ir.Value) -> None:
        """Emits the products of the windows' points with those of the filters."""
        emit, build, x, y = self._emit, self._emit.builder, self._x, self._y
        shape = build.mul(rows, x.tiles), x.channels, y.channels

        def point(p: ir.Value) -> None:
            a = _Factor(self._of(self._x_points, p), x.pixel, integer(_BYTES))
            filters = emit.at(self._frame.w, build.mul(p, build.mul(x.channels, y.channels)), _BYTES)
            _write_product(emit, a, filters, self._of(self._y_points, p), shape, adds=False)

        emit.loop(_POINTS, point)

    def _add_products_of_band(self, rows: ir.Value, filters: ir.Value) -> None:
        """Emits the products of the windows' points with those of the gradients, summed over the tiles."""
        emit, build, x, y = self._emit, self._emit.builder, self._x, self._y
        shape = x.channels, build.mul(rows, x.tiles), y.channels

        def point(p: ir.Value) -> None:
            a = _Factor(self._of(self._x_points, p), integer(_BYTES), x.pixel)
            sums = emit.at(self._frame.sums, build.mul(p, filters), _BYTES)
            _write_product(emit, a, self._of(self._y_points, p), sums, shape, adds=True)

        emit.loop(_POINTS, point)

    def _of(self, points: _Points, point: ir.Value) -> ir.Value:
        return self._emit.builder.add(points.start, self._emit.builder.mul(points.step, point))


class _Factor(NamedTuple):
    """A matrix in memory.

    Attributes:
        start: its address.
        row: bytes from row to row.
        column: bytes from column to column.
    """

    start: ir.Value
    row: ir.Value
    column: ir.Value


def _write_product(
    emit: Emitter, a: _Factor, b: ir.Value, out: ir.Value, shape: Sequence[ir.Value], adds: bool
) -> None:
    """Emits the product of two matrices.

    Args:
        emit: writes the code.
        a: (rows, inner).
        b: the address of (inner, columns), C-contiguous.
        out: the address of the product (rows, columns), C-contiguous.
        shape: rows, inner and columns; the columns are a multiple of CHANNELS.
        adds: whether the product is added to the numbers that are there.
    """
    build, (_, _, columns) = emit.builder, shape
    if not onednn.has_avx512():
        _write_blocks(emit, a, b, out, shape, adds, LANES)
        return
    fills_vectors = build.icmp_signed('==', build.srem(columns, integer(2 * CHANNELS)), integer(0))
    with build.if_else(fills_vectors) as (wide, narrow):
        with wide:
            _write_blocks(emit, a, b, out, shape, adds, 2 * LANES)
        with narrow:
            _write_blocks(emit, a, b, out, shape, adds, LANES)


def _write_blocks(
    emit: Emitter, a: _Factor, b: ir.Value, out: ir.Value, shape: Sequence[ir.Value], adds: bool, lanes: int
) -> None:
    """As _write_product, with vectors of so many lanes, _VECTORS of which fill the columns of a block."""
    build = emit.builder
    rows, inner, columns = shape
    row_of_b = emit.at(integer(0), columns, _BYTES)
    vectors, kind, most = [_BYTES * lanes * j for j in range(_VECTORS)], vector_type(lanes), _ROWS[lanes]

    def block(first_column: ir.Value) -> None:
        own_b, own_out = (emit.at(start, first_column, _BYTES) for start in (b, out))

        def group(first: ir.Value, number: int) -> None:
            indexes = [build.add(first, integer(i)) for i in range(number)]
            factors = [build.add(a.start, build.mul(i, a.row)) for i in indexes]
            starts = [build.add(own_out, build.mul(i, row_of_b)) for i in indexes]
            places = [emit.add(start, offset) for start in starts for offset in vectors]

            def add(k: ir.Value, *sums: ir.Value) -> list[ir.Value]:
                row, column = build.add(own_b, build.mul(k, row_of_b)), build.mul(k, a.column)
                values = [emit.load(emit.add(row, offset), kind) for offset in vectors]
                own = [emit.splat(emit.load(build.add(factor, column), REAL), lanes) for factor in factors]
                pairs = [(factor, value) for factor in own for value in values]
                return [emit.multiply_add(*pair, total) for pair, total in zip(pairs, sums)]

            before = [emit.load(place, kind) if adds else vector(0, lanes) for place in places]
            for total, place in zip(emit.loop(inner, add, before), places):
                emit.store(total, place)

        whole = build.mul(build.sdiv(rows, integer(most)), integer(most))
        emit.loop_if_any(whole, lambda first: group(first, most), (), most)
        emit.groups(build.sub(rows, whole), 8, lambda first, number: group(build.add(whole, first), number))

    emit.loop(columns, block, (), _VECTORS * lanes)


def _write_transformed(
    emit: Emitter, transform: Callable[..., list[ir.Value]], count: ir.Value, start: ir.Value, out: ir.Value
) -> None:
    """Emits transformed filters, or filters of transformed points.

    Args:
        emit: writes the code.
        transform: _of_filter or _of_sums.
        count: how many there are, a multiple of LANES.
        start: the address of what is transformed, (3, 3, count) or (4, 4, count).
        out: the address of the results, (4, 4, count) or (3, 3, count).
    """
    build = emit.builder
    size, new = (3, 4) if transform is _of_filter else (4, 3)

    def vector_of_filters(i: ir.Value) -> None:
        def place(array: ir.Value, k: int) -> ir.Value:
            return emit.at(array, build.add(i, build.mul(count, integer(k))), _BYTES)

        rows = [[emit.load(place(start, size * k + j)) for j in range(size)] for k in range(size)]
        for k, row in enumerate(_transformed(build, transform, rows)):
            for j, value in enumerate(row):
                emit.store(value, place(out, new * k + j))

    emit.loop(count, vector_of_filters, (), LANES)


@functools.cache
def _machine_code() -> dict[str, Function]:
    """The functions, each of an address.

    'outputs' and 'gradients' take that of the numbers of a _Plan and a _Frame; 'filters' of these numbers: how many
    filters there are, and the addresses of their weights (3, 3, filters) and points (4, 4, filters).
    """
    emit = Emitter()
    emit.function('filters', 1, lambda numbers: _write_transformed(emit, _of_filter, *emit.words(numbers, 3)))
    emit.function('outputs', 1, lambda numbers: _Kernel(emit, numbers).outputs())
    emit.function('gradients', 1, lambda numbers: _Kernel(emit, numbers).gradients())
    return emit.compiled('filters', 'outputs', 'gradients')
