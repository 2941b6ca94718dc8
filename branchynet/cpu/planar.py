"""Kernels for one sample of channels in planes: float32, rows of pixels in the lanes of vectors.

A Plane's rows have room for their neighbours' padding, so that no kernel asks where an image ends. Every sum is in one
order, that of the stock kernels (channels, rows, columns), on every processor.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from branchynet.cpu.emitter import INT, LANES, REAL, Emitter, has, integer, vector, vector_type
from branchynet.cpu.geometry import Settings
from branchynet.cpu.graph import Rectifier
from branchynet.cpu.memory import LINE

import numpy as np
from llvmlite import ir

_MOST_LANES = 2 * LANES if has('avx512f') else LANES
_REGISTERS = 24 if has('avx512vl') else 12  # vectors that sums may take of the processor's 32 or 16
_TOGETHER = 4  # vectors of pixels that share a weight
_CHANNELS_BYTES = 10 * 1024  # of the weights that stay in the first cache while an image passes


class Plane(NamedTuple):
    """How an image (C, H, W) lies in memory.

    Attributes:
        above: rows of padding above and below. beside: columns of padding, shared by neighbouring rows.
        fill: value of the padding.
    """

    channels: int
    height: int
    width: int
    above: int
    beside: int
    fill: float

    @property
    def row(self) -> int:
        """Bytes from row to row: room for whole vectors."""
        return 4 * max(self.width + self.beside, -(-self.width // LANES) * LANES)

    @property
    def channel(self) -> int:
        """Bytes from channel to channel: an odd number of cache lines, so that channels do not share places there."""
        lines = -(-(self.row * (self.height + 2 * self.above) + 4 * self.beside) // LINE)
        return LINE * (lines | 1)

    @property
    def start(self) -> int:
        """Offset of the first pixel."""
        return self.row * self.above + 4 * self.beside

    @property
    def size(self) -> int:
        """Bytes, with what vectors read beyond the end."""
        return self.channel * self.channels + 4 * 4 * LANES


def vector_plane(count: int) -> Plane:
    """The plane of numbers (C, 1, 1) that lie side by side, in whole vectors."""
    return Plane(1, 1, count, 0, 0, 0.0)


def _shares(count: int, most: int) -> list[int]:
    """count in parts as equal as can be, of at most ``most``."""
    parts = -(-count // most)
    return [count // parts + (i < count % parts) for i in range(parts)]


class _Bundles(NamedTuple):
    """Bundles of equally many output channels.

    Attributes:
        first: the first channel of the first bundle.
        each: channels of a bundle, which are computed together.
        number: how many bundles.
    """

    first: int
    each: int
    number: int


def _bundles(channels: int, most: int) -> list[_Bundles]:
    bundles, first = [], 0
    for size, equal in itertools.groupby(_shares(channels, most)):
        number = len(list(equal))
        bundles.append(_Bundles(first, size, number))
        first += size * number
    return bundles


def convolution(
    emit: Emitter,
    x: Plane,
    y: Plane,
    w: np.ndarray,
    b: np.ndarray,
    settings: Settings,
    rectifier: Rectifier | None,
    onto: Plane | None,
) -> tuple[ir.Function, list[int]]:
    """A convolution.

    Args:
        emit: where it is written.
        x: the plane of the input.
        y: the plane of the output.
        w: weights (O, C / groups, kh, kw), float32.
        b: biases (O,), float32.
        settings: of the convolution.
        rectifier: what results go through; None: nothing.
        onto: the plane of an image that is added to the result before, or None.

    Returns:
        (a function of the addresses of x, y, weights, biases and, unless it is None, onto; the offsets of weights and
        biases among the constants).
    """
    kernel = _Convolution(emit, x, y, (len(w) // settings.groups, *w.shape[1:]), settings, rectifier, onto)
    return emit.function(kernel[1:], 5 if onto else 4, kernel.write), [
        emit.constants.offset(w, ('convolution', kernel.bundles[0].each, settings.groups), kernel.pack),
        emit.constants.offset(b, 'plain', np.asarray),
    ]


class _Convolution(NamedTuple):
    """Writes a convolution; ``w_shape`` is that of one group's weights.

    A tile of sums stays in the processor's registers: for a bundle of output channels, some vectors of pixels of one or
    more rows; where a row is shorter than the processor's vectors, each holds pixels of two rows. Every weight is read
    once for all pixels of a tile, every pixel once for all its output channels.
    """

    emit: Emitter
    x: Plane
    y: Plane
    w_shape: tuple[int, ...]
    settings: Settings
    rectifier: Rectifier | None
    onto: Plane | None

    @property
    def lanes(self) -> int:
        """Pixels of a row in a vector: as many as it has, where longer vectors take a row in fewer."""
        return _MOST_LANES if -self.y.width % _MOST_LANES < LANES else LANES

    @property
    def depth(self) -> int:
        """Rows of a vector."""
        return 1 if self.y.height % 2 else _MOST_LANES // self.lanes

    @property
    def vectors(self) -> int:
        """Vectors of a row."""
        return -(-self.y.width // self.lanes)

    @property
    def columns(self) -> int:
        """Vectors of a tile's row."""
        return 3 if self.vectors == 3 else min(self.vectors, _TOGETHER)

    @property
    def rows(self) -> int:
        """Rows of a tile."""
        return self.depth * max(1, min(self.y.height // self.depth, _TOGETHER // self.columns))

    @property
    def bundles(self) -> list[_Bundles]:
        return _bundles(self.w_shape[0], _REGISTERS // (self.columns * self.rows // self.depth))

    def parts(self) -> list[int]:
        """Numbers of input channels that are summed up in one pass over the image."""
        size = 4 * self.bundles[0].each * math.prod(self.w_shape[2:])
        return _shares(self.w_shape[1], max(1, _CHANNELS_BYTES // size))

    def pack(self, w: np.ndarray) -> np.ndarray:
        """Weights by group, input channel, row and column, with the output channels computed together side by side."""
        return np.concatenate(
            [
                w[start + first : start + first + g.each].transpose(1, 2, 3, 0).ravel()
                for start in range(0, len(w), self.w_shape[0])
                for g in self.bundles
                for first in range(g.first, g.first + g.each * g.number, g.each)
            ]
        )

    def write(
        self, x: ir.Value, y: ir.Value, weights: ir.Value, biases: ir.Value, added: ir.Value | None = None
    ) -> None:
        """The function."""
        emit, (above, beside) = self.emit, self.settings.pad
        x = emit.add(x, self.x.start - above * self.x.row - 4 * beside)
        y = emit.add(y, self.y.start)
        if self.onto:
            added = emit.add(added, self.onto.start)
        if self.settings.groups == 1:
            self._channels(x, y, weights, biases, added)
            return
        outputs, inputs = self.w_shape[:2]

        def group(i: ir.Value) -> None:
            self._channels(
                emit.at(x, i, inputs * self.x.channel),
                emit.at(y, i, outputs * self.y.channel),
                emit.at(weights, i, 4 * math.prod(self.w_shape)),
                emit.at(biases, i, 4 * outputs),
                emit.at(added, i, outputs * self.onto.channel) if self.onto else None,
            )

        emit.loop(self.settings.groups, group)

    def _channels(self, x: ir.Value, y: ir.Value, weights: ir.Value, biases: ir.Value, added: ir.Value | None) -> None:
        """A group's output channels."""
        for bundles in self.bundles:
            self.emit.loop(bundles.number, functools.partial(self._together, bundles, x, y, weights, biases, added))

    def _together(
        self,
        bundles: _Bundles,
        x: ir.Value,
        y: ir.Value,
        weights: ir.Value,
        biases: ir.Value,
        added: ir.Value | None,
        n: ir.Value,
    ) -> None:
        """The n-th bundle."""
        emit, each = self.emit, bundles.each
        size = 4 * math.prod(self.w_shape[1:])  # of an output channel's weights

        def beginning(address: ir.Value, step: int) -> ir.Value:
            return emit.at(emit.add(address, bundles.first * step), n, each * step)

        y, weights, biases = beginning(y, self.y.channel), beginning(weights, size), beginning(biases, 4)
        if self.onto:
            added = beginning(added, self.onto.channel)
        start = 0
        for count in self.parts():

            def tiles(i: ir.Value, rows: int = self.rows, start: int = start, count: int = count) -> None:
                self._tiles(
                    each,
                    start,
                    count,
                    rows,
                    emit.at(x, i, self.x.row * self.settings.stride[0]),
                    emit.at(y, i, self.y.row),
                    weights,
                    biases,
                    emit.at(added, i, self.onto.row) if self.onto else None,
                )

            whole = self.y.height // self.rows * self.rows
            emit.loop(whole, tiles, step=self.rows)
            if whole < self.y.height:
                tiles(integer(whole), self.y.height - whole)
            start += count

    def _tiles(
        self,
        each: int,
        start: int,
        count: int,
        rows: int,
        x: ir.Value,
        y: ir.Value,
        weights: ir.Value,
        biases: ir.Value,
        added: ir.Value | None,
    ) -> None:
        """The tiles of some rows: sums over ``count`` input channels from ``start``."""
        emit = self.emit
        for first in range(0, self.vectors, self.columns):
            columns = range(first, min(first + self.columns, self.vectors))
            tile = [(r, v) for r in range(0, rows, self.depth) for v in columns]
            places = [(o, r, v) for o in range(each) for r, v in tile]
            if start == 0:
                sums = [value for o in range(each) for value in [self._splat(emit.add(biases, 4 * o))] for _ in tile]
            else:
                sums = [self._load(place[2], self._place(y, self.y, *place), self.y.row) for place in places]
            sums = emit.loop(count, functools.partial(self._channel, each, start, tile, x, weights), sums)
            for place, value in zip(places, sums):
                if start + count == self.w_shape[1]:
                    if self.onto:
                        other = self._load(place[2], self._place(added, self.onto, *place), self.onto.row)
                        value = emit.builder.fadd(value, other)
                    value = _through(emit, self.rectifier, value)
                for i in range(self.depth):
                    row = emit.pick(value, value, range(self.lanes * i, self.lanes * (i + 1)))
                    if start + count == self.w_shape[1]:
                        row = emit.first_lanes(row, self.y.width - self.lanes * place[2], self.y.fill)
                    emit.store(row, emit.add(self._place(y, self.y, *place), i * self.y.row))

    def _place(self, address: ir.Value, plane: Plane, o: int, r: int, v: int) -> ir.Value:
        return self.emit.add(address, o * plane.channel + r * plane.row + 4 * self.lanes * v)

    def _load(self, v: int, address: ir.Value, row: int, stride: int = 1) -> ir.Value:
        """Vector v of an output's row, of every ``stride``-th pixel from an address, and of the rows after it.

        Args:
            v: the vector.
            address: of its first pixel.
            row: bytes from row to row.
            stride: from pixel to pixel.
        """
        count = self.y.width - self.lanes * v
        rows = [
            _strided(self.emit, self.emit.add(address, i * row), stride, count, self.lanes) for i in range(self.depth)
        ]
        return rows[0] if self.depth == 1 else self.emit.pick(rows[0], rows[1], range(2 * self.lanes))

    def _splat(self, address: ir.Value) -> ir.Value:
        """A vector of the number at an address."""
        return self.emit.splat(self.emit.load(address, REAL), self.lanes * self.depth)

    def _channel(
        self,
        each: int,
        start: int,
        tile: list[tuple[int, int]],
        x: ir.Value,
        weights: ir.Value,
        c: ir.Value,
        *sums: ir.Value,
    ) -> list[ir.Value]:
        """Adds an input channel to the sums."""
        emit, (height, width) = self.emit, self.w_shape[2:]
        size = 4 * height * width * each
        pixels = emit.at(emit.add(x, start * self.x.channel), c, self.x.channel)
        taps = emit.at(emit.add(weights, start * size), c, size)

        def row(i: ir.Value, *sums: ir.Value) -> list[ir.Value]:
            source = emit.at(pixels, i, self.x.row * self.settings.dilate[0])
            return self._row(each, tile, source, emit.at(taps, i, 4 * width * each), sums)

        if height * width > 9:
            return emit.loop(height, row, sums)
        for i in range(height):
            sums = tuple(row(integer(i), *sums))
        return list(sums)

    def _row(
        self, each: int, tile: list[tuple[int, int]], pixels: ir.Value, taps: ir.Value, sums: Sequence[ir.Value]
    ) -> list[ir.Value]:
        """Adds a row of weights."""
        emit, width, step = self.emit, self.w_shape[3], 4 * self.settings.dilate[1]
        if width > 8:
            return emit.loop(
                width,
                lambda j, *sums: self._tap(each, tile, emit.at(pixels, j, step), emit.at(taps, j, 4 * each), sums),
                sums,
            )
        for j in range(width):
            sums = self._tap(each, tile, emit.add(pixels, step * j), emit.add(taps, 4 * j * each), sums)
        return list(sums)

    def _tap(
        self, each: int, tile: list[tuple[int, int]], pixels: ir.Value, taps: ir.Value, sums: Sequence[ir.Value]
    ) -> list[ir.Value]:
        """Adds a weight of every output channel times the pixels."""
        emit, sums = self.emit, list(sums)
        down, right = self.settings.stride
        row = down * self.x.row
        inputs = [self._load(v, emit.add(pixels, r * row + 4 * self.lanes * v * right), row, right) for r, v in tile]
        for o in range(each):
            weight = self._splat(emit.add(taps, 4 * o))
            for j, value in enumerate(inputs):
                k = o * len(tile) + j
                sums[k] = emit.multiply_add(value, weight, sums[k])
        return sums


def _strided(emit: Emitter, address: ir.Value, stride: int, count: int, lanes: int = LANES) -> ir.Value:
    """A vector whose first ``count`` lanes are every ``stride``-th number from an address; the others are anything.

    It reads two vectors at most, or no number beyond the last lane's: a plane has no room for more beyond its end.
    """
    kind = vector_type(lanes)
    if stride == 1:
        return emit.load(address, kind)
    if stride == 2:
        following = emit.load(emit.add(address, 4 * lanes), kind)
        return emit.pick(emit.load(address, kind), following, range(0, 2 * lanes, 2))
    value = vector(0.0, lanes)
    for lane in range(min(count, lanes)):
        value = emit.builder.insert_element(
            value, emit.load(emit.add(address, 4 * lane * stride), REAL), ir.Constant(ir.IntType(32), lane)
        )
    return value


def pooling(
    emit: Emitter, x: Plane, y: Plane, maximum: bool, ksize: Sequence[int], stride: Sequence[int], pad: Sequence[int]
) -> ir.Function:
    """Maximum or average pooling, as a function of the addresses of x and y."""

    def window(pixels: ir.Value, count: int) -> ir.Value:
        total = None
        for j in range(ksize[1]):
            column = None
            for i in range(ksize[0]):
                value = _strided(emit, emit.add(pixels, i * x.row + 4 * j), stride[1], count)
                column = value if column is None else joined(column, value)
            total = column if total is None else joined(total, column)
        return total

    def joined(a: ir.Value, b: ir.Value) -> ir.Value:
        return emit.maximum(a, b) if maximum else emit.builder.fadd(a, b)

    def write(x_address: ir.Value, y_address: ir.Value) -> None:
        def channel(c: ir.Value) -> None:
            source = emit.at(emit.add(x_address, x.start - pad[0] * x.row - 4 * pad[1]), c, x.channel)
            place = emit.at(emit.add(y_address, y.start), c, y.channel)

            def row(i: ir.Value) -> None:
                for v in range(-(-y.width // LANES)):
                    count = y.width - LANES * v
                    value = window(emit.add(emit.at(source, i, x.row * stride[0]), 4 * LANES * v * stride[1]), count)
                    if not maximum:
                        value = emit.builder.fmul(value, vector(1 / (ksize[0] * ksize[1])))
                    value = emit.first_lanes(value, count, y.fill)
                    emit.store(value, emit.add(emit.at(place, i, y.row), 4 * LANES * v))

            emit.loop(y.height, row)

        emit.loop(x.channels, channel)

    return emit.function(('pooling', x, y, maximum, tuple(ksize), tuple(stride), tuple(pad)), 2, write)


class _Spot(NamedTuple):
    """The place of a vector of pixels.

    Attributes:
        channel: its number.
        x, y: addresses of the vector in x and in y.
        constants: address of the constants, None for none.
    """

    channel: ir.Value
    x: ir.Value
    y: ir.Value
    constants: ir.Value | None


def _pointwise(
    emit: Emitter,
    key: object,
    x: Plane,
    y: Plane,
    function: Callable[[ir.Value, _Spot], ir.Value],
    parameters: int = 2,
) -> ir.Function:
    """y = function(x, spot) by vectors; a function of the addresses of x, y and, of three parameters, constants."""

    def write(x_address: ir.Value, y_address: ir.Value, constants: ir.Value | None = None) -> None:
        def channel(c: ir.Value) -> None:
            source = emit.at(emit.add(x_address, x.start), c, x.channel)
            place = emit.at(emit.add(y_address, y.start), c, y.channel)

            def row(i: ir.Value) -> None:
                for v in range(-(-y.width // LANES)):
                    pixels, result = emit.at(source, i, x.row), emit.at(place, i, y.row)
                    spot = _Spot(c, emit.add(pixels, 4 * LANES * v), emit.add(result, 4 * LANES * v), constants)
                    value = function(emit.load(spot.x), spot)
                    emit.store(emit.first_lanes(value, y.width - LANES * v, y.fill), spot.y)

            emit.loop(y.height, row)

        emit.loop(y.channels, channel)

    return emit.function((key, x, y), parameters, write)


def rectified(emit: Emitter, x: Plane, y: Plane, rectifier: Rectifier) -> ir.Function:
    """The numbers of x through a rectifier, as a function of the addresses of x and y."""
    return _pointwise(emit, rectifier, x, y, lambda value, _: _through(emit, rectifier, value))


def _through(emit: Emitter, rectifier: Rectifier | None, value: ir.Value) -> ir.Value:
    return value if rectifier is None else emit.rectified(value, *rectifier)


def sum_of(emit: Emitter, xs: Sequence[Plane], y: Plane) -> ir.Function:
    """The sum of two images, as a function of the addresses of the first, y and the second."""

    def added(value: ir.Value, spot: _Spot) -> ir.Value:
        return emit.builder.fadd(emit.load(spot.y), value)

    def write(first: ir.Value, place: ir.Value, second: ir.Value) -> None:
        emit.builder.call(copy(emit, xs[0], y), [first, place])
        emit.builder.call(_pointwise(emit, 'added', xs[1], y, added), [second, place])

    return emit.function(('sum', *xs, y), 3, write)


def concat(emit: Emitter, xs: Sequence[Plane], y: Plane) -> ir.Function:
    """Images one after the other by channel, as a function of the addresses of the first, y and the others."""

    def write(first: ir.Value, place: ir.Value, *others: ir.Value) -> None:
        for x, address in zip(xs, (first, *others)):
            emit.builder.call(copy(emit, x, y._replace(channels=x.channels)), [address, place])
            place = emit.add(place, x.channels * y.channel)

    return emit.function(('concat', *xs, y), 1 + len(xs), write)


def copy_in(emit: Emitter, plane: Plane) -> ir.Function:
    """A function of (x, plane) that copies a contiguous image; it returns 0 if all numbers are finite."""
    byte, flag, bits = ir.IntType(8), ir.IntType(1), ir.IntType(LANES)
    memcpy = emit.external('llvm.memcpy.p0i8.p0i8.i64', ir.VoidType(), [byte.as_pointer()] * 2 + [INT, flag])

    def write(x_address: ir.Value, y_address: ir.Value) -> ir.Value:
        def row(c: ir.Value, i: ir.Value, total: ir.Value) -> list[ir.Value]:
            source = emit.at(emit.at(x_address, c, 4 * plane.height * plane.width), i, 4 * plane.width)
            place = emit.at(emit.at(emit.add(y_address, plane.start), c, plane.channel), i, plane.row)
            emit.builder.call(
                memcpy,
                [
                    emit.builder.inttoptr(place, byte.as_pointer()),
                    emit.builder.inttoptr(source, byte.as_pointer()),
                    integer(4 * plane.width),
                    ir.Constant(flag, 0),
                ],
            )
            for v in range(-(-plane.width // LANES)):
                value = emit.first_lanes(emit.load(emit.add(place, 4 * LANES * v)), plane.width - LANES * v, 0.0)
                total = emit.multiply_add(value, vector(0.0), total)  # NaN, where a value is not finite
            return [total]

        (total,) = emit.loop(
            plane.channels,
            lambda c, total: emit.loop(plane.height, lambda i, total: row(c, i, total), [total]),
            [vector(0.0)],
        )
        is_nan = emit.builder.bitcast(emit.builder.fcmp_unordered('uno', total, total), bits)
        return emit.builder.zext(is_nan, INT)

    return emit.function(('copy_in', plane), 2, write)


def copy(emit: Emitter, x: Plane, y: Plane) -> ir.Function:
    """A copy to a plane of other padding, as a function of the addresses of x and y."""
    return _pointwise(emit, 'copy', x, y, lambda value, _: value)


def scaling(
    emit: Emitter, x: Plane, y: Plane, scale: np.ndarray, shift: np.ndarray, rectifier: Rectifier | None
) -> tuple[ir.Function, list[int]]:
    """y = x * scale + shift by channel, as a function of the addresses of x, y and constants."""

    def scaled(value: ir.Value, spot: _Spot) -> ir.Value:
        address = emit.at(spot.constants, spot.channel, 8)
        value = emit.multiply_add(
            value, emit.splat(emit.load(address, REAL)), emit.splat(emit.load(emit.add(address, 4), REAL))
        )
        return _through(emit, rectifier, value)

    return _pointwise(emit, ('scaling', rectifier), x, y, scaled, 3), [
        emit.constants.offset(scale, 'scaling', lambda scale: np.stack([scale, shift], axis=1))
    ]


def local_response(emit: Emitter, x: Plane, y: Plane, n: int, k: float, alpha: float, beta: float) -> ir.Function:
    """y = x / (k + alpha * sum of squares of n neighbouring channels) ** beta, as a function of their addresses."""

    def normalized(value: ir.Value, spot: _Spot) -> ir.Value:
        half = n // 2
        total = vector(0.0)
        for d in range(-half, half + 1):
            # Where there is no such channel, the sample's own is read and not counted.
            other = emit.builder.add(spot.channel, integer(d))
            inside = emit.builder.icmp_unsigned('<', other, integer(x.channels))
            there = emit.builder.select(inside, emit.add(spot.x, d * x.channel), spot.x)
            neighbour = emit.load(there)
            square = emit.builder.fmul(neighbour, neighbour)
            total = emit.builder.fadd(total, emit.builder.select(inside, square, vector(0.0)))
        scale = emit.builder.fadd(emit.builder.fmul(total, vector(alpha)), vector(k))
        if beta == 0.75:
            root = emit.square_root(scale)
            return emit.builder.fdiv(value, emit.builder.fmul(root, emit.square_root(root)))
        return emit.builder.fmul(value, emit.power(scale, vector(-beta)))

    return _pointwise(emit, ('local_response', n, k, alpha, beta), x, y, normalized)


def shortcut(emit: Emitter, x: Plane, y: Plane) -> ir.Function:
    """Zero channels, then those of x, by every second pixel if y is smaller; a function of their addresses."""
    stride = 1 if (x.height, x.width) == (y.height, y.width) else 2

    def write(x_address: ir.Value, y_address: ir.Value) -> None:
        place = emit.add(y_address, y.start)
        zeros = y.channels - x.channels

        def row(c: ir.Value, i: ir.Value, value_of: Callable[..., ir.Value]) -> None:
            for v in range(-(-y.width // LANES)):
                value = emit.first_lanes(value_of(c, i, v), y.width - LANES * v, y.fill)
                emit.store(value, emit.add(emit.at(emit.at(place, c, y.channel), i, y.row), 4 * LANES * v))

        if zeros:
            emit.loop(zeros, lambda c: emit.loop(y.height, lambda i: row(c, i, lambda *_: vector(0.0))))

        def pixels(c: ir.Value, i: ir.Value, v: int) -> ir.Value:
            source = emit.at(emit.add(x_address, x.start - zeros * x.channel), c, x.channel)
            address = emit.add(emit.at(source, i, stride * x.row), 4 * LANES * v * stride)
            return _strided(emit, address, stride, y.width - LANES * v)

        emit.loop(
            x.channels, lambda c: emit.loop(y.height, lambda i: row(emit.builder.add(c, integer(zeros)), i, pixels))
        )

    return emit.function(('shortcut', x, y), 2, write)


def linear(
    emit: Emitter, x: Plane, y: Plane, w: np.ndarray, b: np.ndarray, rectifier: Rectifier | None
) -> tuple[ir.Function, list[int]]:
    """A linear layer.

    Args:
        emit: where it is written.
        x: the plane of the input.
        y: the vector_plane of the output.
        w: weights (O, C * H * W), float32.
        b: biases (O,), float32.
        rectifier: what results go through; None: nothing.

    Returns:
        (a function of the addresses of x, y, weights and biases; the offsets of the last two among the constants).
    """
    kind = _FewOutputs if len(w) <= 12 and x.width >= LANES else _ManyOutputs
    kernel = kind(emit, x, y, len(w), rectifier)
    return emit.function(kernel[1:], 4, kernel.write), [
        emit.constants.offset(w, ('linear', x), kernel.pack),
        emit.constants.offset(b, 'vectors', _whole_vectors),
    ]


def _whole_vectors(b: np.ndarray) -> np.ndarray:
    return np.concatenate([b, np.zeros(-len(b) % LANES, np.float32)])


class _FewOutputs(NamedTuple):
    """Lanes over the pixels of a row; every output has a vector of sums, added up at the end."""

    emit: Emitter
    x: Plane
    y: Plane
    outs: int
    rectifier: Rectifier | None

    @property
    def vectors(self) -> int:
        """Vectors of a row."""
        return -(-self.x.width // LANES)

    def pack(self, w: np.ndarray) -> np.ndarray:
        """Weights by row and vector, with an output's vector after the other's."""
        rows = np.zeros((self.outs, self.x.channels * self.x.height, self.vectors * LANES), np.float32)
        rows[..., : self.x.width] = w.reshape(self.outs, -1, self.x.width)
        return rows.reshape(self.outs, -1, LANES).transpose(1, 0, 2)

    def write(self, x: ir.Value, y: ir.Value, weights: ir.Value, biases: ir.Value) -> None:
        """The function."""
        emit, size = self.emit, 4 * LANES * self.vectors * self.outs

        def channel(c: ir.Value, *sums: ir.Value) -> list[ir.Value]:
            source = emit.at(emit.add(x, self.x.start), c, self.x.channel)
            taps = emit.at(weights, c, size * self.x.height)
            return emit.loop(
                self.x.height,
                lambda i, *sums: self._row(emit.at(source, i, self.x.row), emit.at(taps, i, size), list(sums)),
                sums,
            )

        for o, total in enumerate(emit.loop(self.x.channels, channel, [vector(0.0)] * self.outs)):
            value = emit.builder.fadd(emit.sum_of_lanes(total), emit.load(emit.add(biases, 4 * o), REAL))
            emit.store(_through(emit, self.rectifier, value), emit.add(y, self.y.start + 4 * o))

    def _row(self, pixels: ir.Value, taps: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        emit = self.emit
        for v in range(self.vectors):
            # What lies beyond the row is not the row's, and may be anything.
            value = emit.first_lanes(emit.load(emit.add(pixels, 4 * LANES * v)), self.x.width - LANES * v, 0.0)
            for o in range(self.outs):
                weight = emit.load(emit.add(taps, 4 * LANES * (v * self.outs + o)))
                sums[o] = emit.multiply_add(value, weight, sums[o])
        return sums


class _ManyOutputs(NamedTuple):
    """Lanes over outputs; pixels are taken one by one, in four sums where outputs take few vectors."""

    emit: Emitter
    x: Plane
    y: Plane
    outs: int
    rectifier: Rectifier | None

    @property
    def inputs(self) -> int:
        return self.x.channels * self.x.height * self.x.width

    def shares(self) -> list[int]:
        """Vectors of outputs that are computed together."""
        return _shares(-(-self.outs // LANES), 12)

    def pack(self, w: np.ndarray) -> np.ndarray:
        """Weights by share and pixel, with a share's outputs side by side."""
        whole = np.zeros((self.inputs, -(-self.outs // LANES) * LANES), np.float32)
        whole[:, : self.outs] = w.T
        ends = np.cumsum(self.shares()) * LANES
        return np.concatenate([part.ravel() for part in np.split(whole, ends[:-1], axis=1)])

    def write(self, x: ir.Value, y: ir.Value, weights: ir.Value, biases: ir.Value) -> None:
        """The function."""
        emit, first = self.emit, 0
        for share in self.shares():
            size = 4 * LANES * first
            self._share(
                share,
                x,
                emit.add(y, self.y.start + size),
                emit.add(weights, self.inputs * size),
                emit.add(biases, size),
            )
            first += share

    def _share(self, share: int, x: ir.Value, y: ir.Value, weights: ir.Value, biases: ir.Value) -> None:
        emit, turns = self.emit, 4 if share <= 3 else 1
        size = 4 * LANES * share  # of a pixel's weights
        sums = [emit.load(emit.add(biases, 4 * LANES * v)) for v in range(share)]
        sums += [vector(0.0)] * (share * (turns - 1))

        def channel(c: ir.Value, *sums: ir.Value) -> list[ir.Value]:
            source = emit.at(emit.add(x, self.x.start), c, self.x.channel)
            taps = emit.at(weights, c, size * self.x.width * self.x.height)
            return emit.loop(
                self.x.height,
                lambda i, *sums: self._row(
                    share, turns, emit.at(source, i, self.x.row), emit.at(taps, i, size * self.x.width), list(sums)
                ),
                sums,
            )

        sums = emit.loop(self.x.channels, channel, sums)
        for v in range(share):
            total = sums[v]
            for turn in range(1, turns):
                total = emit.builder.fadd(total, sums[turn * share + v])
            emit.store(_through(emit, self.rectifier, total), emit.add(y, 4 * LANES * v))

    def _row(self, share: int, turns: int, pixels: ir.Value, taps: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        emit, size = self.emit, 4 * LANES * share
        whole = self.x.width // turns * turns

        def several(j: ir.Value, *sums: ir.Value) -> list[ir.Value]:
            result = list(sums)
            for turn in range(turns):
                result = self._pixel(
                    share,
                    emit.add(emit.at(pixels, j, 4), 4 * turn),
                    emit.add(emit.at(taps, j, size), size * turn),
                    turn,
                    result,
                )
            return result

        if whole:
            sums = emit.loop(whole, several, sums, step=turns)
        for j in range(whole, self.x.width):
            sums = self._pixel(share, emit.add(pixels, 4 * j), emit.add(taps, size * j), j - whole, sums)
        return sums

    def _pixel(self, share: int, pixel: ir.Value, taps: ir.Value, turn: int, sums: list[ir.Value]) -> list[ir.Value]:
        emit = self.emit
        value = emit.splat(emit.load(pixel, REAL))
        for v in range(share):
            k = turn * share + v
            sums[k] = emit.multiply_add(value, emit.load(emit.add(taps, 4 * LANES * v)), sums[k])
        return sums
