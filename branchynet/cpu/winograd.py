"""3x3 convolutions and their gradients by Winograd's algorithm, float32, in machine code.

A tile is 2x2 pixels of an output; they depend on a window of 4x4 pixels of the input. Windows, tiles and filters are
each transformed to 16 numbers, their points. The products of points take 16 multiplications for every pair of channels,
where sums over 3x3 pixels take 36: F(2x2, 3x3) of Lavin and Gray, Fast Algorithms for Convolutional Neural Networks,
2016, section 4.1. The gradients are the derivatives of the same formulas. The results differ from sums
over pixels by rounding alone, of numbers far from overflow. An infinite number can make outputs of its windows NaN, and
numbers near the largest float32 can overflow where a sum over pixels would not.

Images (B, C, H, W) lie in memory with their channels last; the number of channels is a multiple of CHANNELS. Zeros
surround an image: a row above and below, a column on both sides. Every number is a sum in an order that depends on the
shapes alone.
"""

from __future__ import annotations

import array as packed
import functools
import itertools
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

from branchynet.cpu import memory, onednn
from branchynet.cpu.emitter import LANES, REAL, Emitter, Function, integer, vector, vector_type
from branchynet.cpu.memory import LINE, address
from branchynet.cpu.team import run_frames
from branchynet.cpu.threads import SCRATCHES, Scratch, taken, workers

import numpy as np
from llvmlite import ir

CHANNELS = 16
_POINTS = 16
_TILES = 64  # in a band, unless a row has more: their points, and the filters of a point, stay in the cache
_TILES_OF_PART = 256  # at least: preparing and adding up the sums of a part takes time too
_VECTORS = 2  # of a row of a product, that are computed together
_ROWS = {LANES: 6, 2 * LANES: 12}  # of a product that are computed together, by the lanes of a vector: in registers
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
    _compute('outputs', 1, x, y, _points_of_filters(w.transpose(2, 3, 1, 0)), b)


def gradient_of_x(w: np.ndarray, gy: np.ndarray, gx: np.ndarray) -> None:
    """Writes the gradient of x: a convolution of the gradient of y, with filters rotated by 180 degrees.

    Args:
        w: weights (O, C, 3, 3).
        gy: gradient of y (B, O, H, W).
        gx: where the gradient (B, C, H, W) goes.
    """
    _compute('outputs', 1, gy, gx, _points_of_filters(w[:, :, ::-1, ::-1].transpose(2, 3, 0, 1)), _zeros(w.shape[1]))


def gradients_of_w(x: np.ndarray, gy: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The gradients of the weights and the bias.

    Args:
        x: images (B, C, H, W).
        gy: gradient of y (B, O, H, W).
        most: the most parts that threads share, whose gradients are added up in order.

    Returns:
        Gradients of w (O, C, 3, 3) and b (O,).
    """
    channels, outputs = x.shape[1], gy.shape[1]
    whole = _plan(x.shape, outputs, 1)
    most = min(most, max(1, whole.rows * _tiles(whole.width) // _TILES_OF_PART))
    bands_of_part = -(-whole.parts // most)
    parts = _plan(x.shape, outputs, bands_of_part).parts
    gw, gb = memory.empty((parts, 3, 3, channels, outputs)), np.empty((parts, outputs), np.float32)
    _compute('gradients', bands_of_part, x, gy, gw, gb)
    return np.ascontiguousarray(gw.sum(axis=0).transpose(3, 2, 0, 1)), gb.sum(axis=0)


def _points_of_filters(filters: np.ndarray) -> np.ndarray:
    """The points (4, 4, C, O) of filters (3, 3, C, O)."""
    filters = np.ascontiguousarray(filters)
    points = memory.empty((4, 4, *filters.shape[2:]))
    numbers = packed.array('q', (filters[0, 0].size, address(filters), address(points)))
    _machine_code()['filters'](numbers.buffer_info()[0])
    return points


@functools.lru_cache(maxsize=128)
def _zeros(count: int) -> np.ndarray:
    return np.zeros(count, np.float32)


def _tiles(pixels: int) -> int:
    return -(-pixels // 2)


class _Plan(NamedTuple):
    """How a convolution is computed. In machine code, each attribute is a number that the code reads.

    The rows of tiles of all images lie one after the other. A band is a few of these rows, which are computed together;
    a part is a few bands, which one thread computes.

    Attributes:
        parts: that threads share.
        bands_of_part: bands of a part; the last part may have fewer.
        rows_of_band: rows of tiles of a band; the last band may have fewer.
        rows: rows of tiles of all images.
        height: of an image, pixels.
        width: of an image, pixels.
        x_channels: their number.
        y_channels: their number.
        x_step: bytes from point to point of a band's windows.
        y_step: bytes from point to point of a band's tiles.
    """

    parts: Any
    bands_of_part: Any
    rows_of_band: Any
    rows: Any
    height: Any
    width: Any
    x_channels: Any
    y_channels: Any
    x_step: Any
    y_step: Any


class _Frame(NamedTuple):
    """The addresses that a thread works with. In machine code, each attribute is a number that the code reads.

    Attributes:
        counter: of a number that the threads share: how many parts they have begun.
        x: of the images that are convolved: x, or the gradient of y where that of x is computed.
        y: of the images that result, or of the gradient of y.
        filters: of the filters' points, or of the parts' gradients of the filters.
        bias: of the bias, or of the parts' gradients of it.
        zeros: of a row of pixels.
        x_points: of scratch memory for the points of a band's windows.
        y_points: of scratch memory for the points of a band's tiles.
        sums: of scratch memory for sums of products of points.
        spare: of scratch memory for a row of pixels that nobody reads.
    """

    counter: Any
    x: Any
    y: Any
    filters: Any
    bias: Any
    zeros: Any
    x_points: Any
    y_points: Any
    sums: Any
    spare: Any


@functools.lru_cache(maxsize=1024)
def _plan(x_shape: tuple[int, ...], outputs: int, bands_of_part: int) -> _Plan:
    images, channels, height, width = x_shape
    tiles, rows = _tiles(width), images * _tiles(height)
    rows_of_band = max(1, _TILES // tiles)
    # An odd number of cache lines: points a power of two apart would lie in the same few places of the cache.
    steps = (LINE * (-(-_BYTES * rows_of_band * tiles * count // LINE) | 1) for count in (channels, outputs))
    parts = -(-rows // (rows_of_band * bands_of_part))
    return _Plan(parts, bands_of_part, rows_of_band, rows, height, width, channels, outputs, *steps)


@functools.lru_cache(maxsize=1024)
def _ends_of_scratch(plan: _Plan) -> tuple[int, ...]:
    """Bytes of a thread's scratch memory up to the end of each of its parts, which are the last ones of a _Frame."""
    sums, spare = _POINTS * plan.x_channels * plan.y_channels, plan.width * plan.y_channels
    sizes = _POINTS * plan.x_step, _POINTS * plan.y_step, _BYTES * sums, _BYTES * spare
    return tuple(itertools.accumulate(sizes))


def _compute(
    name: str, bands_of_part: int, x: np.ndarray, y: np.ndarray, filters: np.ndarray, bias: np.ndarray
) -> None:
    """Calls a function in machine code, in several threads; for the arrays see _Frame."""
    plan = _plan(x.shape, y.shape[1], bands_of_part)
    counter, zeros = packed.array('q', [0]), _zeros(plan.width * max(plan.x_channels, plan.y_channels))
    arrays = [address(array) for array in (x, y, filters, bias, zeros)]
    scratches = [taken(SCRATCHES, Scratch) for _ in range(workers(plan.parts))]
    *ends, size = _ends_of_scratch(plan)
    starts = [scratch.address('winograd', size) for scratch in scratches]
    frames = [(*plan, counter.buffer_info()[0], *arrays, start, *(start + end for end in ends)) for start in starts]
    run_frames(_machine_code()[name], frames)
    SCRATCHES.extend(scratches[::-1])  # the next call's first thread gets the first one's


# The transforms, each of a column or a row.


def _points_of_window(build: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value, d: ir.Value) -> list[ir.Value]:
    return [build.fsub(a, c), build.fadd(b, c), build.fsub(c, b), build.fsub(b, d)]


def _pixels_of_products(build: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value, d: ir.Value) -> list[ir.Value]:
    return [build.fadd(build.fadd(a, b), c), build.fsub(build.fsub(b, c), d)]


def _points_of_gradients(build: ir.IRBuilder, a: ir.Value, b: ir.Value) -> list[ir.Value]:
    return [a, build.fadd(a, b), build.fsub(a, b), build.fneg(b)]


def _points_of_filter(build: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> list[ir.Value]:
    outer, inner = _halved(build, build.fadd(a, c)), _halved(build, b)
    return [a, build.fadd(outer, inner), build.fsub(outer, inner), c]


def _filter_of_sums(build: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value, d: ir.Value) -> list[ir.Value]:
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
        """The number of those of a row."""
        return _emit_tiles(self.emit, self.width)

    @property
    def has_odd_width(self) -> ir.Value:
        """Whether the last tile of a row has one column of pixels."""
        return self.emit.builder.trunc(self.width, ir.IntType(1))

    def rows(self, row: ir.Value, first: int, number: int, outside: ir.Value) -> list[ir.Value]:
        """Addresses of rows of pixels.

        Args:
            row: of tiles, counted through all images.
            first: 0 for the first row of pixels of the tiles, -1 for the one above.
            number: of rows of pixels.
            outside: the address in place of a row that is not in the image.
        """
        build, of_image = self.emit.builder, _emit_tiles(self.emit, self.height)
        rows_before = build.mul(build.sdiv(row, of_image), self.height)
        places = []
        for k in range(first, first + number):
            i = build.add(build.mul(build.srem(row, of_image), integer(2)), integer(k))
            pixels = build.mul(build.add(rows_before, i), self.width)
            place = build.add(self.start, build.mul(pixels, self.pixel))
            places.append(build.select(build.icmp_unsigned('<', i, self.height), place, outside))
        return places

    def offset(self, tile: ir.Value, channel: ir.Value) -> ir.Value:
        """Bytes from the start of a row of pixels to the first pixel of a tile, from a channel on."""
        first = self.emit.builder.mul(self.emit.builder.shl(tile, integer(1)), self.pixel)
        return self.emit.at(first, channel, _BYTES)

    def each_tile(self, write: Callable[[ir.Value, int], None]) -> None:
        """Emits ``write(tile, columns)`` for the tiles of a row: two columns of pixels, or one in the last of them."""
        build = self.emit.builder
        whole = build.lshr(self.width, integer(1))
        self.emit.loop_if_any(whole, lambda tile: write(tile, 2), (), 1)
        with build.if_then(self.has_odd_width):
            write(whole, 1)


class _Points(NamedTuple):
    """The points of the tiles of a band, or of their windows.

    Attributes:
        emit: writes the code.
        start: address of the first point of all, (tiles, channels).
        step: bytes from there to the second point of all, and so on.
        channels: their number.
    """

    emit: Emitter
    start: ir.Value
    step: ir.Value
    channels: ir.Value

    def start_of(self, point: ir.Value) -> ir.Value:
        """The address of one of the 16 points of all tiles."""
        return self.emit.builder.add(self.start, self.emit.builder.mul(self.step, point))

    def places(self, tile: ir.Value, channel: ir.Value) -> _Matrix:
        """The addresses of a tile's points, from a channel on."""
        first = self.emit.builder.add(self.emit.builder.mul(tile, self.channels), channel)
        return [[self.emit.at(self.start_of(integer(4 * i + j)), first, _BYTES) for j in range(4)] for i in range(4)]

    def store(self, values: _Matrix, tile: ir.Value, channel: ir.Value) -> None:
        """Emits the points of a tile, for a vector of channels."""
        for row, places in zip(values, self.places(tile, channel)):
            for value, place in zip(row, places):
                self.emit.store(value, place)


def _emit_tiles(emit: Emitter, pixels: ir.Value) -> ir.Value:
    return emit.builder.lshr(emit.builder.add(pixels, integer(1)), integer(1))


class _Kernel:
    """Writes a function that threads call.

    Args:
        emit: where it is written.
        numbers: the address of a _Plan's numbers, followed by a _Frame's.
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
        self._filters = emit.builder.mul(plan.x_channels, plan.y_channels)  # their number

    def outputs(self) -> None:
        """Emits the outputs of a convolution."""

        def band(first: ir.Value, rows: ir.Value) -> None:
            self._each_row(self._x, first, rows, self._window_points)
            self._each_point(self._multiply_with_filters, rows)
            self._each_row(self._y, first, rows, self._pixels)

        self._emit.shared_loop(self._frame.counter, self._plan.parts, lambda part: self._bands(part, band))

    def gradients(self) -> None:
        """Emits the gradients of the weights and the bias."""
        emit, build, plan, frame = self._emit, self._emit.builder, self._plan, self._frame

        def part(i: ir.Value) -> None:
            gb = emit.at(frame.bias, build.mul(i, plan.y_channels), _BYTES)
            gw = emit.at(frame.filters, build.mul(i, self._filters), 9 * _BYTES)
            for start, size in (frame.sums, build.mul(self._filters, integer(_POINTS))), (gb, plan.y_channels):
                emit.loop(size, lambda k, start=start: emit.store(vector(0), emit.at(start, k, _BYTES)), (), LANES)

            def band(first: ir.Value, rows: ir.Value) -> None:
                self._each_row(self._x, first, rows, self._window_points)
                self._each_row(self._y, first, rows, functools.partial(self._gradient_points, gb))
                self._each_point(self._add_products_with_gradients, rows)

            self._bands(i, band)
            _write_transformed(emit, _filter_of_sums, (4, 3), self._filters, frame.sums, gw)

        emit.shared_loop(frame.counter, plan.parts, part)

    def _bands(self, part: ir.Value, write: Callable[[ir.Value, ir.Value], None]) -> None:
        """Emits ``write(first row of tiles, number of rows)`` for the bands of a part."""
        emit, build, plan = self._emit, self._emit.builder, self._plan
        rows_of_part = build.mul(plan.bands_of_part, plan.rows_of_band)
        start = build.mul(part, rows_of_part)
        rows = emit.least(rows_of_part, build.sub(plan.rows, start))
        bands = build.sdiv(build.add(rows, build.sub(plan.rows_of_band, integer(1))), plan.rows_of_band)

        def band(i: ir.Value) -> None:
            first = build.mul(i, plan.rows_of_band)
            write(build.add(start, first), emit.least(plan.rows_of_band, build.sub(rows, first)))

        emit.loop(bands, band)

    def _each_row(
        self,
        images: _Images,
        first: ir.Value,
        rows: ir.Value,
        write: Callable[[ir.Value, ir.Value], None],
    ) -> None:
        """Emits ``write(row of tiles, the number of its first tile within the band)`` for the rows of a band."""
        build = self._emit.builder
        self._emit.loop(rows, lambda i: write(build.add(first, i), build.mul(i, images.tiles)))

    def _window_points(self, row: ir.Value, first_tile: ir.Value) -> None:
        """Emits the points of the windows of a row."""
        starts = self._x.rows(row, -1, 4, self._frame.zeros)

        def channel(c: ir.Value) -> None:
            self._window_points_of_channels(starts, first_tile, c)

        self._emit.loop(self._x.channels, channel, (), LANES)

    def _window_points_of_channels(self, starts: Sequence[ir.Value], first_tile: ir.Value, c: ir.Value) -> None:
        """Emits the points of the windows of a row, for a vector of channels."""
        emit, build, x, zeros = self._emit, self._emit.builder, self._x, self._frame.zeros
        last = build.sub(x.tiles, integer(1))
        outside = [vector(0)] * 4  # a column beside the image

        def column(offset: ir.Value) -> list[ir.Value]:
            return _points_of_window(build, *(emit.load(build.add(start, offset)) for start in starts))

        def column_if_even(offset: ir.Value) -> list[ir.Value]:
            """A column of zeros where the width is odd: it lies outside."""
            places = [build.select(x.has_odd_width, zeros, build.add(start, offset)) for start in starts]
            return _points_of_window(build, *map(emit.load, places))

        def window(t: ir.Value, columns: _Matrix) -> None:
            points = [_points_of_window(build, *numbers) for numbers in zip(*columns)]
            self._x_points.store(points, build.add(first_tile, t), c)

        def window_before_the_last(t: ir.Value, *left: ir.Value) -> list[ir.Value]:
            offset = build.add(x.offset(t, c), x.pixel)
            right = column(offset), column(build.add(offset, x.pixel))
            window(t, [left[:4], left[4:], *right])
            return [*right[0], *right[1]]  # the left columns of the next window

        left = [*outside, *column(x.offset(integer(0), c))]
        left = list(emit.loop_if_any(last, window_before_the_last, left, 1))
        right = column_if_even(build.add(x.offset(last, c), x.pixel))
        window(last, [left[:4], left[4:], right, outside])

    def _gradient_points(self, gb: ir.Value, row: ir.Value, first_tile: ir.Value) -> None:
        """Emits the points of the outputs' gradients of a row, which are added to the gradient of the bias too."""
        emit, build, y = self._emit, self._emit.builder, self._y
        starts = y.rows(row, 0, 2, self._frame.zeros)

        def channel(c: ir.Value) -> None:
            total = emit.at(gb, c, _BYTES)

            def tile(t: ir.Value, columns: int) -> None:
                left = [build.add(start, y.offset(t, c)) for start in starts]
                places = [(place, build.add(place, y.pixel)) for place in left]
                outside = [vector(0)] * (2 - columns)
                pixels = [[*map(emit.load, pair[:columns]), *outside] for pair in places]
                points = _transformed(build, _points_of_gradients, pixels)
                self._y_points.store(points, build.add(first_tile, t), c)
                emit.store(build.fadd(emit.load(total), points[1][1]), total)  # this point is the sum of the pixels

            y.each_tile(tile)

        emit.loop(y.channels, channel, (), LANES)

    def _pixels(self, row: ir.Value, first_tile: ir.Value) -> None:
        """Emits the outputs of a row."""
        emit, build, y = self._emit, self._emit.builder, self._y
        starts = y.rows(row, 0, 2, self._frame.spare)

        def tile(t: ir.Value, columns: int) -> None:
            def channel(c: ir.Value) -> None:
                products = [list(map(emit.load, four)) for four in self._y_points.places(build.add(first_tile, t), c)]
                bias = emit.load(emit.at(self._frame.bias, c, _BYTES))
                for start, pixels in zip(starts, _transformed(build, _pixels_of_products, products)):
                    place = build.add(start, y.offset(t, c))
                    for pixel in pixels[:columns]:
                        emit.store(build.fadd(pixel, bias), place)
                        place = build.add(place, y.pixel)

            emit.loop(y.channels, channel, (), LANES)

        y.each_tile(tile)

    def _each_point(self, write: Callable[[ir.Value, ir.Value], None], rows: ir.Value) -> None:
        """Emits ``write(point, tiles of the band)`` for the 16 points."""
        tiles = self._emit.builder.mul(rows, self._x.tiles)
        self._emit.loop(_POINTS, lambda point: write(point, tiles))

    def _multiply_with_filters(self, point: ir.Value, tiles: ir.Value) -> None:
        """Emits the products of the windows' points with those of the filters, summed over the inputs."""
        emit, x, y = self._emit, self._x, self._y
        windows = _Factor(self._x_points.start_of(point), x.pixel, integer(_BYTES))
        filters = emit.at(self._frame.filters, emit.builder.mul(point, self._filters), _BYTES)
        shape = tiles, x.channels, y.channels
        _write_product(emit, windows, filters, self._y_points.start_of(point), shape, adds=False)

    def _add_products_with_gradients(self, point: ir.Value, tiles: ir.Value) -> None:
        """Emits the products of the windows' points with those of the outputs' gradients, summed over the tiles."""
        emit, x, y = self._emit, self._x, self._y
        windows = _Factor(self._x_points.start_of(point), integer(_BYTES), x.pixel)
        sums = emit.at(self._frame.sums, emit.builder.mul(point, self._filters), _BYTES)
        shape = x.channels, tiles, y.channels
        _write_product(emit, windows, self._y_points.start_of(point), sums, shape, adds=True)


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
    """As _write_product, with vectors of so many lanes; _VECTORS of them fill the columns of a block."""
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
    emit: Emitter,
    transform: Callable[..., list[ir.Value]],
    sizes: tuple[int, int],
    count: ir.Value,
    start: ir.Value,
    out: ir.Value,
) -> None:
    """Emits the transforms of square matrices.

    Args:
        emit: writes the code.
        transform: of a row or a column.
        sizes: rows of a matrix, and of its transform.
        count: how many matrices there are, a multiple of LANES.
        start: the address of their numbers (rows, rows, count).
        out: the address of those of the transforms (rows, rows, count).
    """
    build = emit.builder

    def matrices(i: ir.Value) -> None:
        def places(array: ir.Value, size: int) -> _Matrix:
            numbers = [build.add(i, build.mul(count, integer(k))) for k in range(size * size)]
            return [[emit.at(array, k, _BYTES) for k in numbers[size * j :][:size]] for j in range(size)]

        values = [list(map(emit.load, row)) for row in places(start, sizes[0])]
        for row, own in zip(_transformed(build, transform, values), places(out, sizes[1])):
            for value, place in zip(row, own):
                emit.store(value, place)

    emit.loop(count, matrices, (), LANES)


@functools.cache
def _machine_code() -> dict[str, Function]:
    """The functions in machine code; each takes one address.

    'outputs' and 'gradients' take that of the numbers of a _Plan and a _Frame; 'filters' that of three numbers: how
    many filters there are, the address of their weights (3, 3, filters), and that of their points (4, 4, filters).
    """
    emit = Emitter()

    def filters(numbers: ir.Value) -> None:
        _write_transformed(emit, _points_of_filter, (3, 4), *emit.words(numbers, 3))

    emit.function('filters', 1, filters)
    emit.function('outputs', 1, lambda numbers: _Kernel(emit, numbers).outputs())
    emit.function('gradients', 1, lambda numbers: _Kernel(emit, numbers).gradients())
    return emit.compiled('filters', 'outputs', 'gradients')
