"""Kernels on float32 C-contiguous NumPy arrays, in blocks whose sizes depend on the shapes alone.

Shapes: x (B, C, H, W), y and gy (B, O, H', W'), w (O, C, KH, KW), b (O,).
"""
import functools

import numpy as np

from branchynet.cpu import onednn
from branchynet.cpu.onednn import (ANY, BIAS, DIFF_BIAS, DIFF_DST, DIFF_SRC, DIFF_WEIGHTS, DST, NCHW, SRC, VECTOR,
                                   WEIGHTS, WORKSPACE, create_descriptor, describe, integers)
from branchynet.cpu.threads import blocks, run, scratch

# A sum over the batch is the sum of at most this many parts, in order, whoever computed them; fewer where an
# array is small, so that a part is worth a call.
_PARTS, _BYTES_OF_PART = 8, 1 << 18
_ELEMENTS = 1 << 15  # of a block of an elementwise kernel


def _image_blocks(*arrays):
    """Blocks of images whose part of all arrays fits the cache."""
    return blocks(len(arrays[0]), sum(array[:1].nbytes for array in arrays))


def _parts(array):
    """The slices of images that a sum over the batch is made of."""
    step = -(-len(array) // max(2, min(_PARTS, array.nbytes // _BYTES_OF_PART)))
    return [slice(i, min(i + step, len(array))) for i in range(0, len(array), step)]


def _run_primitives(task, count):
    """run(task, count), each call of oneDNN by one thread."""
    def single(i):
        with onednn.single_threaded():
            task(i)
    run(single, count)


def _cached(create):
    """Keeps primitives by their arguments; oneDNN makes them for as many threads as will run them: one."""
    @functools.lru_cache(maxsize=1024)
    def cached(*arguments):
        with onednn.single_threaded():
            return create(*arguments)
    return cached


# Convolution

def _sizes(part, whole):
    """Shape of a block of an array."""
    return (part.stop - part.start,) + whole.shape[1:]


def _geometry(x_shape, kernel, y_shape, stride, pad):
    """Strides, dilation, padding before and behind, as oneDNN takes them."""
    behind = [(n - 1) * s + k - size - p
              for n, s, k, size, p in zip(y_shape[2:], stride, kernel, x_shape[2:], pad)]
    return integers(stride), integers((0, 0)), integers(pad), integers(behind)


def _convolution_hint(x_shape, w_shape, y_shape, stride, pad):
    return create_descriptor(
        'convolution_forward', onednn.FORWARD_TRAINING, onednn.CONVOLUTION_DIRECT, describe(x_shape, ANY),
        describe(w_shape, ANY), describe(w_shape[:1], VECTOR), describe(y_shape, ANY),
        *_geometry(x_shape, w_shape[2:], y_shape, stride, pad))


@_cached
def _convolution(x_shape, w_shape, y_shape, stride, pad):
    return onednn.Primitive(_convolution_hint(x_shape, w_shape, y_shape, stride, pad), {
        SRC: describe(x_shape, NCHW), WEIGHTS: describe(w_shape, NCHW), BIAS: describe(w_shape[:1], VECTOR),
        DST: describe(y_shape, NCHW)})


@_cached
def _convolution_gx(x_shape, w_shape, y_shape, stride, pad):
    descriptor = create_descriptor(
        'convolution_backward_data', onednn.CONVOLUTION_DIRECT, describe(x_shape, ANY), describe(w_shape, ANY),
        describe(y_shape, ANY), *_geometry(x_shape, w_shape[2:], y_shape, stride, pad),
        _convolution_hint(x_shape, w_shape, y_shape, stride, pad))
    return onednn.Primitive(descriptor, {
        DIFF_SRC: describe(x_shape, NCHW), WEIGHTS: describe(w_shape, NCHW), DIFF_DST: describe(y_shape, NCHW)})


@_cached
def _convolution_gw(x_shape, w_shape, y_shape, stride, pad):
    descriptor = create_descriptor(
        'convolution_backward_weights', onednn.CONVOLUTION_DIRECT, describe(x_shape, ANY), describe(w_shape, ANY),
        describe(w_shape[:1], VECTOR), describe(y_shape, ANY),
        *_geometry(x_shape, w_shape[2:], y_shape, stride, pad),
        _convolution_hint(x_shape, w_shape, y_shape, stride, pad))
    return onednn.Primitive(descriptor, {
        SRC: describe(x_shape, NCHW), DIFF_WEIGHTS: describe(w_shape, NCHW),
        DIFF_BIAS: describe(w_shape[:1], VECTOR), DIFF_DST: describe(y_shape, NCHW)})


def convolution(x, w, b, y_shape, stride, pad):
    """y of the convolution; b may be None."""
    y = np.empty(y_shape, np.float32)
    b = np.zeros(len(w), np.float32) if b is None else b
    parts = _image_blocks(x, y)
    primitives = [_convolution(_sizes(part, x), w.shape, _sizes(part, y), stride, pad) for part in parts]
    packed = _pack(w, primitives)

    def task(i):
        primitives[i]({SRC: x[parts[i]], WEIGHTS: packed[primitives[i]], BIAS: b, DST: y[parts[i]]})

    _run_primitives(task, len(parts))
    return y


def _pack(w, primitives):
    """The weights as each primitive wants them."""
    with onednn.single_threaded():
        return {primitive: primitive.pack(w) for primitive in set(primitives)}


def convolution_gradients(x, w, gy, stride, pad, of_x, of_w):
    """Gradients of x, w and b; None for x unless ``of_x``, for w and b unless ``of_w``."""
    x_tasks, gx = _gradient_of_x(x, w, gy, stride, pad) if of_x else ([], None)
    w_tasks, gw, gb = _gradient_of_w(x, w, gy, stride, pad) if of_w else ([], None, None)
    tasks = w_tasks + x_tasks  # the larger ones first, or a thread would wait for the last of them
    _run_primitives(lambda i: tasks[i](), len(tasks))
    return (gx, *(None if parts is None else parts.sum(axis=0) for parts in (gw, gb)))


def _gradient_of_x(x, w, gy, stride, pad):
    """(tasks, the array that they fill)."""
    gx = np.empty_like(x)
    parts = _image_blocks(gx, gy)
    primitives = [_convolution_gx(_sizes(part, gx), w.shape, _sizes(part, gy), stride, pad) for part in parts]
    packed = _pack(w, primitives)
    return [functools.partial(primitive, {DIFF_SRC: gx[part], WEIGHTS: packed[primitive], DIFF_DST: gy[part]})
            for part, primitive in zip(parts, primitives)], gx


def _gradient_of_w(x, w, gy, stride, pad):
    """(tasks, the arrays whose sums over the first axis are the gradients of w and b)."""
    parts = _parts(x)
    gw = np.empty((len(parts),) + w.shape, np.float32)
    gb = np.empty((len(parts), len(w)), np.float32)
    return [functools.partial(
        _convolution_gw(_sizes(part, x), w.shape, _sizes(part, gy), stride, pad),
        {SRC: x[part], DIFF_WEIGHTS: gw[i], DIFF_BIAS: gb[i], DIFF_DST: gy[part]})
        for i, part in enumerate(parts)], gw, gb


# Pooling

@_cached
def _pooling(algorithm, x_shape, y_shape, kernel, stride, pad):
    """(forward, backward) primitives."""
    strides, dilation, before, behind = _geometry(x_shape, kernel, y_shape, stride, pad)
    formats = describe(x_shape, NCHW), describe(y_shape, NCHW)
    geometry = strides, integers(kernel), dilation, before, behind
    hint = create_descriptor('pooling_forward', onednn.FORWARD_TRAINING, algorithm, *formats, *geometry)
    workspace = {WORKSPACE: None} if algorithm == onednn.POOLING_MAX else {}
    forward = onednn.Primitive(hint, {SRC: formats[0], DST: formats[1], **workspace})
    descriptor = create_descriptor('pooling_backward', algorithm, *formats, *geometry, hint)
    return forward, onednn.Primitive(descriptor, {DIFF_SRC: formats[0], DIFF_DST: formats[1], **workspace})


def covers(x_shape, y_shape, kernel, stride, pad):
    """Whether every window has pixels in it: Chainer's maximum of padding alone is -inf, oneDNN's is not."""
    return all(0 <= p < k and (n - 1) * s - p < size for size, n, k, s, p in zip(
        x_shape[2:], y_shape[2:], kernel, stride, pad))


def max_pooling(x, y_shape, kernel, stride, pad):
    """y, and uint8 of y's shape: where in its window each maximum is, row by row.

    The latter is None where x has infinities or NaN, which are not for oneDNN.
    """
    y = np.empty(y_shape, np.float32)
    indexes = np.empty(y_shape, np.uint8)
    parts = _image_blocks(x, y)
    ordinary = [True] * len(parts)

    def task(i):
        part = parts[i]
        # oneDNN passes over NaN, and its maximum of nothing is the lowest number instead of -inf. Any of them
        # makes the sum NaN or infinite (so do numbers near the largest, at no cost but time).
        ordinary[i] = bool(np.isfinite(x[part].sum()))
        forward, _ = _pooling(onednn.POOLING_MAX, _sizes(part, x), _sizes(part, y), kernel, stride, pad)
        forward({SRC: x[part], DST: y[part], WORKSPACE: indexes[part]})

    _run_primitives(task, len(parts))
    return y, indexes if all(ordinary) else None


def max_pooling_gx(gy, indexes, x_shape, kernel, stride, pad):
    """Gradient of x, from max_pooling's indexes."""
    gx = np.empty(x_shape, np.float32)
    parts = _image_blocks(gx, gy)

    def task(i):
        part = parts[i]
        _, backward = _pooling(onednn.POOLING_MAX, _sizes(part, gx), _sizes(part, gy), kernel, stride, pad)
        backward({DIFF_SRC: gx[part], DIFF_DST: gy[part], WORKSPACE: indexes[part]})

    _run_primitives(task, len(parts))
    return gx


# Local response normalisation: y = x s**-beta, s = k + alpha * (sum of x**2 over n channels)

def _window_sum(x, n, out):
    """Sum over n neighbouring channels, the channel itself in the middle."""
    np.copyto(out, x)
    for i in range(1, n // 2 + 1):
        out[:, i:] += x[:, :-i]
        out[:, :-i] += x[:, i:]


def _negative_power(s, beta, out):
    """s ** -beta; that of the paper's networks, 0.75, by square roots."""
    if beta != .75:
        np.power(s, np.float32(-beta), out=out)
        return
    np.sqrt(s, out=out)
    root = scratch('root', s.shape)
    np.sqrt(out, out=root)
    out *= root
    np.reciprocal(out, out=out)


def local_response(x, n, k, alpha, beta):
    """(y, s, s**-beta)."""
    y, s, scale = (np.empty_like(x) for _ in range(3))
    parts = _image_blocks(x, y, s, scale)

    def task(i):
        part = parts[i]
        square = scratch('square', x[part].shape)
        np.multiply(x[part], x[part], out=square)
        _window_sum(square, n, s[part])
        s[part] *= np.float32(alpha)
        s[part] += np.float32(k)
        _negative_power(s[part], beta, scale[part])
        np.multiply(x[part], scale[part], out=y[part])

    run(task, len(parts))
    return y, s, scale


def local_response_gx(x, y, gy, s, scale, n, alpha, beta):
    """Gradient of x: gy s**-beta - 2 alpha beta x (sum over n channels of gy y / s)."""
    gx = np.empty_like(x)
    parts = _image_blocks(x, y, gy, gx)

    def task(i):
        part = parts[i]
        ratio, total = scratch('square', x[part].shape), scratch('root', x[part].shape)
        np.multiply(gy[part], y[part], out=ratio)
        ratio /= s[part]
        _window_sum(ratio, n, total)
        total *= x[part]
        total *= np.float32(-2 * alpha * beta)
        np.multiply(gy[part], scale[part], out=gx[part])
        gx[part] += total

    run(task, len(parts))
    return gx


# Batch normalisation over (B, H, W)

def _sum(values):
    """Sum over (b, H, W) of an array (b, C, H, W)."""
    return values.reshape(values.shape[:2] + (-1,)).sum(axis=2).sum(axis=0)


def _each(vector):
    """(C,) to go with (b, C, H, W)."""
    return vector[:, None, None]


def mean_and_variance(x):
    """Mean and (biased) variance of every channel."""
    parts, pixels = _parts(x), x[0, 0].size
    means, squares = (np.empty((len(parts), x.shape[1])) for _ in range(2))
    counts = np.array([(part.stop - part.start) * pixels for part in parts])[:, None]

    def task(i):
        part = x[parts[i]]
        mean = _sum(part) / np.float32(counts[i])
        d = scratch('difference', part.shape)
        np.subtract(part, _each(mean), out=d)
        rest = _sum(d) / counts[i]  # what rounding left out of the first sum
        means[i] = mean + rest
        d *= d
        squares[i] = _sum(d) - counts[i] * rest ** 2

    run(task, len(parts))
    # Of parts (Chan, Golub, LeVeque 1979): each part's squares are about its own mean.
    mean = (means * counts).sum(axis=0) / counts.sum()
    variance = (squares + counts * (means - mean) ** 2).sum(axis=0) / counts.sum()
    return mean.astype(np.float32), variance.astype(np.float32)


def scale_and_shift(x, scale, shift, mean):
    """(x - mean) * scale + shift, (C,) all; in this order, or far from zero little of x would be left."""
    y = np.empty_like(x)
    parts = _image_blocks(x, y)

    def task(i):
        np.subtract(x[parts[i]], _each(mean), out=y[parts[i]])
        y[parts[i]] *= _each(scale)
        y[parts[i]] += _each(shift)

    run(task, len(parts))
    return y


def batch_normalization_gradients(x, gamma, gy, mean, inv_std):
    """Gradients of x, gamma and beta."""
    parts = _parts(x)
    gbetas, ggammas = (np.empty((len(parts), x.shape[1]), np.float32) for _ in range(2))

    def sums(i):
        part = parts[i]
        d = scratch('difference', x[part].shape)
        np.subtract(x[part], _each(mean), out=d)
        d *= gy[part]
        gbetas[i], ggammas[i] = _sum(gy[part]), _sum(d)

    run(sums, len(parts))
    gbeta, ggamma = gbetas.sum(axis=0), ggammas.sum(axis=0) * inv_std
    count = np.float32(x.size // x.shape[1])
    scale = gamma * inv_std
    slope, shift = -scale * inv_std * ggamma / count, -scale * gbeta / count
    gx = np.empty_like(x)
    parts = _image_blocks(x, gy, gx)

    def task(i):
        part = parts[i]
        d = scratch('difference', x[part].shape)
        np.subtract(x[part], _each(mean), out=d)
        d *= _each(slope)
        np.multiply(gy[part], _each(scale), out=gx[part])
        gx[part] += d
        gx[part] += _each(shift)

    run(task, len(parts))
    return gx, ggamma, gbeta


# Elementwise

def _flat_blocks(array):
    return blocks(array.size, 1, _ELEMENTS)


def relu(x):
    """max(x, 0)."""
    y = np.empty_like(x)
    flat_x, flat_y, parts = x.reshape(-1), y.reshape(-1), _flat_blocks(x)
    run(lambda i: np.maximum(flat_x[parts[i]], 0, out=flat_y[parts[i]]), len(parts))
    return y


def relu_gx(y, gy):
    """gy where y is positive, else 0."""
    gx = np.empty_like(gy)
    flat_y, flat_gy, flat_gx, parts = y.reshape(-1), gy.reshape(-1), gx.reshape(-1), _flat_blocks(y)

    def task(i):
        np.greater(flat_y[parts[i]], 0, out=flat_gx[parts[i]])
        flat_gx[parts[i]] *= flat_gy[parts[i]]

    run(task, len(parts))
    return gx


# Linear layer: x (B, I), w (O, I), gy (B, O)

_ROWS, _COLUMNS = 64, 256  # of a block of a matrix product


def linear(x, w, b):
    """x w' + b; b may be None."""
    y = np.empty((len(x), len(w)), np.float32)
    parts = blocks(len(x), 1, _ROWS)

    def task(i):
        onednn.matmul(x[parts[i]], w, y[parts[i]], transpose_b=True)
        if b is not None:
            y[parts[i]] += b

    _run_primitives(task, len(parts))
    return y


def linear_gx(w, gy):
    """Gradient of x."""
    gx = np.empty((len(gy), w.shape[1]), np.float32)
    parts = blocks(len(gy), 1, _ROWS)
    _run_primitives(lambda i: onednn.matmul(gy[parts[i]], w, gx[parts[i]]), len(parts))
    return gx


def linear_gw(x, gy):
    """Gradient of w."""
    gw = np.empty((gy.shape[1], x.shape[1]), np.float32)
    parts = blocks(x.shape[1], 1, _COLUMNS)
    _run_primitives(lambda i: onednn.matmul(gy, x[:, parts[i]], gw[:, parts[i]], transpose_a=True), len(parts))
    return gw
