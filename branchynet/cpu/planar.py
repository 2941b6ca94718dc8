"""Kernels for one sample of channels in planes: float32, rows of pixels in the lanes of vectors.

A Plane's rows have room for their neighbours' padding, so that no kernel asks where an image ends. Every sum is in one
order, that of the stock kernels (channels, rows, columns), on every processor.
"""
from __future__ import annotations

from typing import NamedTuple, Optional, Sequence

from llvmlite import ir
import numpy as np

from branchynet.cpu.emitter import INT, LANES, REAL, Emitter, has, integer, vector

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
        lines = -(-(self.row * (self.height + 2 * self.above) + 4 * self.beside) // 64)
        return 64 * (lines | 1)

    @property
    def start(self) -> int:
        """Offset of the first pixel."""
        return self.row * self.above + 4 * self.beside

    @property
    def size(self) -> int:
        """Bytes, with what vectors read beyond the end."""
        return self.channel * self.channels + 4 * 4 * LANES

    @property
    def is_vector(self) -> bool:
        return self.height == self.width == 1


def vector_plane(count: int) -> Plane:
    """The plane of numbers (C, 1, 1) that lie side by side, in whole vectors."""
    return Plane(1, 1, count, 0, 0, 0.)


def _shares(count: int, most: int) -> list[int]:
    """count in parts as equal as can be, of at most ``most``."""
    parts = -(-count // most)
    return [count // parts + (i < count % parts) for i in range(parts)]


class _Groups(NamedTuple):
    """Output channels that are computed together."""
    first: int
    each: int
    count: int


def _groups(channels: int, most: int) -> list[_Groups]:
    groups: list[_Groups] = []
    for size in sorted(set(_shares(channels, most)), reverse=True):
        first = sum(g.each * g.count for g in groups)
        groups.append(_Groups(first, size, _shares(channels, most).count(size)))
    return groups


def convolution(emit: Emitter, x: Plane, y: Plane, w: np.ndarray, b: np.ndarray, stride: Sequence[int],
                pad: Sequence[int], relu: bool, onto: Optional[Plane]) -> tuple[ir.Function, list[int]]:
    """A function of (x, y, weights, biases, onto) and the offsets of its constants.

    Args:
        w: (O, C, kh, kw). onto: of an image that is added to the result, or None.
    """
    outs, channels, height, width = w.shape
    vectors = -(-y.width // LANES)
    together = 3 if vectors == 3 else min(vectors, _TOGETHER)
    rows = max(1, min(y.height, _TOGETHER // together))
    groups = _groups(outs, _REGISTERS // (together * rows))
    most = groups[0].each
    part = max(1, _CHANNELS_BYTES // (height * width * most * 4))  # channels that are summed up in one pass
    parts = _shares(channels, part)

    def packed(w: np.ndarray) -> np.ndarray:
        # Of every group in turn: channels, rows, columns, and the group's output channels side by side.
        return np.concatenate([
            w[first:first + g.each].transpose(1, 2, 3, 0).ravel()
            for g in groups for first in range(g.first, g.first + g.each * g.count, g.each)])

    def rows_of_sums(g: _Groups, start: int, count: int, rows: int, source, place, weights, biases, added) -> None:
        """The sums of ``count`` channels from ``start``, for some rows and a group of output channels."""
        is_first, is_last = start == 0, start + count == channels
        for v in range(0, vectors, together):
            here = [(r, i) for r in range(rows) for i in range(v, min(v + together, vectors))]
            if is_first:
                sums = [value for o in range(g.each)
                        for value in [emit.splat(emit.load(emit.add(biases, 4 * o), REAL))] for _ in here]
            else:
                sums = [emit.load(emit.add(place, o * y.channel + r * y.row + 4 * LANES * i))
                        for o in range(g.each) for r, i in here]

            def tap(pixels, taps, sums):
                inputs = [_strided(emit, emit.add(
                    pixels, r * stride[0] * x.row + 4 * LANES * i * stride[1]), stride[1]) for r, i in here]
                for o in range(g.each):
                    weight = emit.splat(emit.load(emit.add(taps, 4 * o), REAL))
                    for j in range(len(here)):
                        k = o * len(here) + j
                        sums[k] = emit.multiply_add(inputs[j], weight, sums[k])
                return sums

            def row(i, pixels, taps, sums):
                pixels, taps = emit.at(pixels, i, x.row), emit.at(taps, i, 4 * width * g.each)
                if width > 8:
                    return emit.loop(width, lambda j, *sums: tap(
                        emit.at(pixels, j, 4), emit.at(taps, j, 4 * g.each), list(sums)), sums)
                for j in range(width):
                    sums = tap(emit.add(pixels, 4 * j), emit.add(taps, 4 * j * g.each), list(sums))
                return sums

            def channel(c, *sums):
                pixels = emit.at(emit.add(source, start * x.channel), c, x.channel)
                size = 4 * height * width * g.each
                taps = emit.at(emit.add(weights, start * size), c, size)
                if height * width > 9:
                    return emit.loop(height, lambda i, *sums: row(i, pixels, taps, list(sums)), sums)
                for i in range(height):
                    sums = row(integer(i), pixels, taps, list(sums))
                return sums

            sums = emit.loop(count, channel, sums)
            for k, value in enumerate(sums):
                o, (r, i) = k // len(here), here[k % len(here)]
                if is_last:
                    if onto:
                        value = emit.builder.fadd(value, emit.load(
                            emit.add(added, o * onto.channel + r * onto.row + 4 * LANES * i)))
                    if relu:
                        value = emit.maximum(value, vector(0.))
                    value = emit.first_lanes(value, y.width - LANES * i, y.fill)
                emit.store(value, emit.add(place, o * y.channel + r * y.row + 4 * LANES * i))

    def write(x_address, y_address, weights, biases, added=None):
        source = emit.add(x_address, x.start - pad[0] * x.row - 4 * pad[1])
        place = emit.add(y_address, y.start)
        added = emit.add(added, onto.start) if onto else None
        for g in groups:
            size = 4 * channels * height * width * g.each

            def group(n, g=g, size=size):
                outputs = emit.at(emit.add(place, g.first * y.channel), n, g.each * y.channel)
                group_weights = emit.at(
                    emit.add(weights, 4 * channels * height * width * g.first), n, size)
                group_biases = emit.at(emit.add(biases, 4 * g.first), n, 4 * g.each)
                adds = emit.at(emit.add(added, g.first * onto.channel), n, g.each * onto.channel) if onto else None
                start = 0
                for count in parts:
                    def several(i, rows, start=start, count=count):
                        rows_of_sums(
                            g, start, count, rows, emit.at(source, i, x.row * stride[0]), emit.at(outputs, i, y.row),
                            group_weights, group_biases, emit.at(adds, i, onto.row) if onto else None)

                    whole = y.height // rows * rows
                    emit.loop(whole, lambda i: several(i, rows), step=rows)
                    if whole < y.height:
                        several(integer(whole), y.height - whole)
                    start += count

            emit.loop(g.count, group)

    key = 'convolution', x, y, w.shape, tuple(stride), tuple(pad), relu, onto
    return emit.function(key, 5 if onto else 4, write), [
        emit.constants.offset(w, ('convolution', most), packed), emit.constants.offset(b, 'plain', np.asarray)]


def _strided(emit: Emitter, address: ir.Value, stride: int) -> ir.Value:
    """Every ``stride``-th number from an address."""
    if stride == 1:
        return emit.load(address)
    if stride == 2:
        return emit.pick(emit.load(address), emit.load(emit.add(address, 4 * LANES)), range(0, 2 * LANES, 2))
    value = vector(0.)
    for lane in range(LANES):
        value = emit.builder.insert_element(
            value, emit.load(emit.add(address, 4 * lane * stride), REAL), ir.Constant(ir.IntType(32), lane))
    return value


def pooling(emit: Emitter, x: Plane, y: Plane, maximum: bool, ksize: Sequence[int], stride: Sequence[int],
            pad: Sequence[int]) -> ir.Function:
    """A function of (x, y)."""

    def window(pixels: ir.Value) -> ir.Value:
        total = None
        for j in range(ksize[1]):
            column = None
            for i in range(ksize[0]):
                value = _strided(emit, emit.add(pixels, i * x.row + 4 * j), stride[1])
                column = value if column is None else joined(column, value)
            total = column if total is None else joined(total, column)
        return total

    def joined(a, b):
        return emit.maximum(a, b) if maximum else emit.builder.fadd(a, b)

    def write(x_address, y_address):
        def channel(c):
            source = emit.at(emit.add(x_address, x.start - pad[0] * x.row - 4 * pad[1]), c, x.channel)
            place = emit.at(emit.add(y_address, y.start), c, y.channel)

            def row(i):
                for v in range(-(-y.width // LANES)):
                    value = window(emit.add(emit.at(source, i, x.row * stride[0]), 4 * LANES * v * stride[1]))
                    if not maximum:
                        value = emit.builder.fmul(value, vector(1 / (ksize[0] * ksize[1])))
                    value = emit.first_lanes(value, y.width - LANES * v, y.fill)
                    emit.store(value, emit.add(emit.at(place, i, y.row), 4 * LANES * v))

            emit.loop(y.height, row)

        emit.loop(x.channels, channel)

    return emit.function(('pooling', x, y, maximum, tuple(ksize), tuple(stride), tuple(pad)), 2, write)


def _pointwise(emit: Emitter, key: object, x: Plane, y: Plane, function, parameters: int = 2) -> ir.Function:
    """A function of (x, y), perhaps constants: y = function(x, channel, address of x, constants) by vectors."""

    def write(x_address, y_address, constants=None):
        def channel(c):
            source = emit.at(emit.add(x_address, x.start), c, x.channel)
            place = emit.at(emit.add(y_address, y.start), c, y.channel)

            def row(i):
                for v in range(-(-y.width // LANES)):
                    address = emit.add(emit.at(source, i, x.row), 4 * LANES * v)
                    value = function(emit.load(address), c, address, constants)
                    value = emit.first_lanes(value, y.width - LANES * v, y.fill)
                    emit.store(value, emit.add(emit.at(place, i, y.row), 4 * LANES * v))

            emit.loop(y.height, row)

        emit.loop(y.channels, channel)

    return emit.function((key, x, y), parameters, write)


def relu(emit: Emitter, x: Plane, y: Plane) -> ir.Function:
    """A function of (x, y)."""
    return _pointwise(emit, 'relu', x, y, lambda value, *_: emit.maximum(value, vector(0.)))


def copy_in(emit: Emitter, plane: Plane) -> ir.Function:
    """A function of (x, plane) that copies a contiguous image; it returns 0 if all numbers are finite."""
    byte, flag, bits = ir.IntType(8), ir.IntType(1), ir.IntType(LANES)
    memcpy = emit.external('llvm.memcpy.p0i8.p0i8.i64', ir.VoidType(), [byte.as_pointer()] * 2 + [INT, flag])

    def write(x_address, y_address):
        def row(c, i, total):
            source = emit.at(emit.at(x_address, c, 4 * plane.height * plane.width), i, 4 * plane.width)
            place = emit.at(emit.at(emit.add(y_address, plane.start), c, plane.channel), i, plane.row)
            emit.builder.call(memcpy, [
                emit.builder.inttoptr(place, byte.as_pointer()), emit.builder.inttoptr(source, byte.as_pointer()),
                integer(4 * plane.width), ir.Constant(flag, 0)])
            for v in range(-(-plane.width // LANES)):
                value = emit.first_lanes(emit.load(emit.add(place, 4 * LANES * v)), plane.width - LANES * v, 0.)
                total = emit.multiply_add(value, vector(0.), total)  # NaN, where a value is not finite
            return [total]

        total, = emit.loop(plane.channels, lambda c, total: emit.loop(
            plane.height, lambda i, total: row(c, i, total), [total]), [vector(0.)])
        is_nan = emit.builder.bitcast(emit.builder.fcmp_unordered('uno', total, total), bits)
        return emit.builder.zext(is_nan, INT)

    return emit.function(('copy_in', plane), 2, write)


def copy(emit: Emitter, x: Plane, y: Plane) -> ir.Function:
    """A function of (x, y), to a plane of other padding."""
    return _pointwise(emit, 'copy', x, y, lambda value, *_: value)


def scaling(emit: Emitter, x: Plane, y: Plane, scale: np.ndarray, shift: np.ndarray,
            relu: bool) -> tuple[ir.Function, list[int]]:
    """A function of (x, y, constants): y = x * scale + shift by channel."""

    def scaled(value, c, _, constants):
        address = emit.at(constants, c, 8)
        value = emit.multiply_add(
            value, emit.splat(emit.load(address, REAL)), emit.splat(emit.load(emit.add(address, 4), REAL)))
        return emit.maximum(value, vector(0.)) if relu else value

    return _pointwise(emit, ('scaling', relu), x, y, scaled, 3), [
        emit.constants.offset(scale, 'scaling', lambda scale: np.stack([scale, shift], axis=1))]


def normalization(emit: Emitter, x: Plane, y: Plane, n: int, k: float, alpha: float, beta: float) -> ir.Function:
    """A function of (x, y): y = x / (k + alpha * sum of squares of n neighbouring channels) ** beta."""

    def normalized(value, c, address, _):
        half = n // 2
        total = vector(0.)
        for d in range(-half, half + 1):
            # Where there is no such channel, the sample's own is read and not counted.
            other = emit.builder.add(c, integer(d))
            inside = emit.builder.icmp_unsigned('<', other, integer(x.channels))
            there = emit.builder.select(inside, emit.add(address, d * x.channel), address)
            neighbour = emit.load(there)
            square = emit.builder.fmul(neighbour, neighbour)
            total = emit.builder.fadd(total, emit.builder.select(inside, square, vector(0.)))
        scale = emit.builder.fadd(emit.builder.fmul(total, vector(alpha)), vector(k))
        if beta == .75:
            root = emit.square_root(scale)
            return emit.builder.fdiv(value, emit.builder.fmul(root, emit.square_root(root)))
        return emit.builder.fmul(value, emit.power(scale, vector(-beta)))

    return _pointwise(emit, ('normalization', n, k, alpha, beta), x, y, normalized)


def shortcut(emit: Emitter, x: Plane, y: Plane) -> ir.Function:
    """A function of (x, y): zero channels in front, then every second pixel where y is smaller."""
    stride = 1 if (x.height, x.width) == (y.height, y.width) else 2

    def write(x_address, y_address):
        place = emit.add(y_address, y.start)
        zeros = y.channels - x.channels

        def row(c, i, value_of):
            for v in range(-(-y.width // LANES)):
                value = emit.first_lanes(value_of(c, i, v), y.width - LANES * v, y.fill)
                emit.store(value, emit.add(emit.at(emit.at(place, c, y.channel), i, y.row), 4 * LANES * v))

        if zeros:
            emit.loop(zeros, lambda c: emit.loop(y.height, lambda i: row(c, i, lambda *_: vector(0.))))

        def pixels(c, i, v):
            source = emit.at(emit.add(x_address, x.start - zeros * x.channel), c, x.channel)
            return _strided(emit, emit.add(emit.at(source, i, stride * x.row), 4 * LANES * v * stride), stride)

        emit.loop(x.channels, lambda c: emit.loop(y.height, lambda i: row(
            emit.builder.add(c, integer(zeros)), i, pixels)))

    return emit.function(('shortcut', x, y), 2, write)


def linear(emit: Emitter, x: Plane, y: Plane, w: np.ndarray, b: np.ndarray,
           relu: bool) -> tuple[ir.Function, list[int]]:
    """A function of (x, y, weights, biases); y is a vector_plane.

    Args:
        w: (O, C * H * W). b: (O,).
    """
    by_rows = len(w) <= 12 and x.width >= LANES
    write, packed = (_few_outputs if by_rows else _many_outputs)(emit, x, y, w.shape[0], relu)
    key = 'linear', x, y, w.shape, relu
    return emit.function(key, 4, write), [
        emit.constants.offset(w, ('linear', x), packed), emit.constants.offset(b, 'vectors', _whole_vectors)]


def _whole_vectors(b: np.ndarray) -> np.ndarray:
    return np.concatenate([b, np.zeros(-len(b) % LANES, np.float32)])


def _few_outputs(emit: Emitter, x: Plane, y: Plane, outs: int, relu: bool):
    """Lanes over pixels of a row; every output has a vector of sums, added up at the end."""
    vectors = -(-x.width // LANES)

    def packed(w: np.ndarray) -> np.ndarray:
        rows = np.zeros((outs, x.channels * x.height, vectors * LANES), np.float32)
        rows[..., :x.width] = w.reshape(outs, -1, x.width)
        return rows.reshape(outs, -1, LANES).transpose(1, 0, 2)

    def write(x_address, y_address, weights, biases):
        def channel(c, *sums):
            source = emit.at(emit.add(x_address, x.start), c, x.channel)
            taps = emit.at(weights, c, 4 * LANES * vectors * outs * x.height)

            def row(i, *sums):
                pixels, here = emit.at(source, i, x.row), emit.at(taps, i, 4 * LANES * vectors * outs)
                sums = list(sums)
                for v in range(vectors):
                    # What lies beyond the row is not the row's, and may be anything.
                    value = emit.first_lanes(
                        emit.load(emit.add(pixels, 4 * LANES * v)), x.width - LANES * v, 0.)
                    for o in range(outs):
                        sums[o] = emit.multiply_add(
                            value, emit.load(emit.add(here, 4 * LANES * (v * outs + o))), sums[o])
                return sums

            return emit.loop(x.height, row, sums)

        sums = emit.loop(x.channels, channel, [vector(0.)] * outs)
        for o, total in enumerate(sums):
            for distance in 4, 2, 1:
                total = emit.builder.fadd(total, emit.pick(total, total, [
                    (lane + distance) % LANES for lane in range(LANES)]))
            value = emit.builder.extract_element(total, ir.Constant(ir.IntType(32), 0))
            value = emit.builder.fadd(value, emit.load(emit.add(biases, 4 * o), REAL))
            if relu:
                zero = ir.Constant(REAL, 0.)
                value = emit.builder.select(emit.builder.fcmp_ordered('>', value, zero), value, zero)
            emit.store(value, emit.add(y_address, y.start + 4 * o))

    return write, packed


def _many_outputs(emit: Emitter, x: Plane, y: Plane, outs: int, relu: bool):
    """Lanes over outputs; pixels are taken one by one, in four sums where there are few vectors."""
    shares = _shares(-(-outs // LANES), 12)
    inputs = x.channels * x.height * x.width

    def packed(w: np.ndarray) -> np.ndarray:
        whole = np.zeros((inputs, -(-outs // LANES) * LANES), np.float32)
        whole[:, :outs] = w.T
        ends = np.cumsum(shares) * LANES
        return np.concatenate([part.ravel() for part in np.split(whole, ends[:-1], axis=1)])

    def write(x_address, y_address, weights, biases):
        first = 0
        for share in shares:
            start = emit.add(weights, 4 * inputs * LANES * first)
            sums = [emit.load(emit.add(biases, 4 * LANES * (first + v))) for v in range(share)]
            more = 4 if share <= 3 else 1
            sums += [vector(0.)] * (share * (more - 1))

            def pixel(source, taps, turn, sums):
                value = emit.splat(emit.load(source, REAL))
                for v in range(share):
                    k = turn * share + v
                    sums[k] = emit.multiply_add(value, emit.load(emit.add(taps, 4 * LANES * v)), sums[k])
                return sums

            def row(source, taps, sums):
                size = 4 * LANES * share
                sums, whole = list(sums), x.width // more * more
                if whole:
                    def several(j, *sums):
                        sums = list(sums)
                        for turn in range(more):
                            sums = pixel(emit.add(emit.at(source, j, 4), 4 * turn),
                                         emit.add(emit.at(taps, j, size), size * turn), turn, sums)
                        return sums
                    sums = emit.loop(whole, several, sums, step=more)
                for j in range(whole, x.width):
                    sums = pixel(emit.add(source, 4 * j), emit.add(taps, size * j), j - whole, sums)
                return sums

            def channel(c, *sums):
                source = emit.at(emit.add(x_address, x.start), c, x.channel)
                size = 4 * LANES * share * x.width
                taps = emit.at(start, c, size * x.height)
                return emit.loop(x.height, lambda i, *sums: row(
                    emit.at(source, i, x.row), emit.at(taps, i, size), sums), sums)

            sums = emit.loop(x.channels, channel, sums)
            for v in range(share):
                total = sums[v]
                for turn in range(1, more):
                    total = emit.builder.fadd(total, sums[turn * share + v])
                if relu:
                    total = emit.maximum(total, vector(0.))
                emit.store(total, emit.add(y_address, y.start + 4 * LANES * (first + v)))
            first += share

    return write, packed

