"""Kernels on float32 NumPy arrays, in blocks whose sizes depend on the shapes alone.

Shapes: x (B, C, H, W), y and gy (B, O, H', W'), w (O, C, KH, KW), b (O,). Images are C-contiguous, or lie in
memory with their channels last, as a convolution leaves them: then its neighbours need no copy, and what is
done per channel runs over long rows. The shape is the same; whoever wants another order copies.
"""
import functools

import numpy as np

from branchynet.cpu import onednn
from branchynet.cpu.onednn import (
    ANY, BIAS, DIFF_BIAS, DIFF_DST, DIFF_SCALE, DIFF_SHIFT, DIFF_SRC, DIFF_WEIGHTS, DST, MEAN, NCHW, NHWC, SCALE,
    SHIFT, SRC, VARIANCE, VECTOR, WEIGHTS, WORKSPACE, create_descriptor, describe, integers)
from branchynet.cpu.threads import blocks, equal_blocks, run, scratch

_PARTS = 8  # at most, of a batch whose parts' sums are added up, in order
_BYTES_OF_BLOCK, _WORK_OF_BLOCK = 1 << 20, 1 << 23  # a block fits the cache and is worth a thread's call
_BYTES_OF_PART = 1 << 22  # of a batch normalisation, which takes less from memory the fewer calls it is made of
_FAR = 2  # standard deviations between zero and a mean, where sums in float32 leave too much out
_ELEMENTS = 1 << 18  # of a block of an elementwise kernel


def is_channels_last(x):
    """Whether the images lie in memory as (B, H, W, C), and not as (B, C, H, W) too."""
    return x.ndim == 4 and not x.flags.c_contiguous and x.transpose(0, 2, 3, 1).flags.c_contiguous


def channels_last(shape):
    """An uninitialised array of a shape (B, C, H, W) that lies in memory as (B, H, W, C)."""
    b, c, h, w = shape
    return np.empty((b, h, w, c), np.float32).transpose(0, 3, 1, 2)


def like(a, model):
    """The array in the memory order of another of its shape, copied if need be."""
    if a.strides == model.strides:
        return a
    copied = np.empty_like(model)
    np.copyto(copied, a)
    return copied


def _form(x):
    """oneDNN's name for the memory order of images."""
    return NHWC if is_channels_last(x) else NCHW


def _scratch_like(slot, x):
    """scratch in the memory order of x."""
    if is_channels_last(x):
        b, c, h, w = x.shape
        return scratch(slot, (b, h, w, c)).transpose(0, 3, 1, 2)
    return scratch(slot, x.shape)


def _image_blocks(*arrays):
    """Blocks of images whose part of all arrays fits the cache."""
    return blocks(len(arrays[0]), sum(array[:1].nbytes for array in arrays))


def _parts(array):
    """Blocks of images, each worth a call."""
    return equal_blocks(len(array), min(_PARTS, array.nbytes // _BYTES_OF_BLOCK))


def _run_primitives(task, count):
    """run(task, count), each call of oneDNN by one thread."""
    run(task, count, around=onednn.single_threaded)


def _addresses(array, parts):
    """Where the parts of an array begin in memory."""
    first, step = array.ctypes.data, array.strides[0]
    return [first + part.start * step for part in parts]


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


def _convolution_blocks(x, w, y):
    """Blocks of images that fit the cache, and more of them where their work is worth a call."""
    parts = max(-(-(x.nbytes + y.nbytes) // _BYTES_OF_BLOCK), _parts_of_work(w, y))
    return equal_blocks(len(x), parts)


def _parts_of_work(w, y):
    """How many calls the multiplications and additions of a convolution are worth, up to _PARTS."""
    return min(_PARTS, 2 * w.size * y.size // len(w) // _WORK_OF_BLOCK)


def _convolution_hint(x_shape, w_shape, y_shape, stride, pad):
    return create_descriptor(
        'convolution_forward', onednn.FORWARD_TRAINING, onednn.CONVOLUTION_DIRECT, describe(x_shape, NHWC),
        describe(w_shape, ANY), describe(w_shape[:1], VECTOR), describe(y_shape, NHWC),
        *_geometry(x_shape, w_shape[2:], y_shape, stride, pad))


@_cached
def _convolution(x_shape, x_form, w_shape, y_shape, stride, pad):
    return onednn.Primitive(_convolution_hint(x_shape, w_shape, y_shape, stride, pad), {
        SRC: describe(x_shape, x_form), WEIGHTS: describe(w_shape, NCHW), BIAS: describe(w_shape[:1], VECTOR),
        DST: describe(y_shape, NHWC)})


@_cached
def _convolution_gx(x_shape, x_form, w_shape, y_shape, y_form, stride, pad):
    descriptor = create_descriptor(
        'convolution_backward_data', onednn.CONVOLUTION_DIRECT, describe(x_shape, NHWC), describe(w_shape, ANY),
        describe(y_shape, NHWC), *_geometry(x_shape, w_shape[2:], y_shape, stride, pad),
        _convolution_hint(x_shape, w_shape, y_shape, stride, pad))
    return onednn.Primitive(descriptor, {
        DIFF_SRC: describe(x_shape, x_form), WEIGHTS: describe(w_shape, NCHW), DIFF_DST: describe(y_shape, y_form)})


@_cached
def _convolution_gw(x_shape, x_form, w_shape, y_shape, y_form, stride, pad):
    descriptor = create_descriptor(
        'convolution_backward_weights', onednn.CONVOLUTION_DIRECT, describe(x_shape, NHWC), describe(w_shape, ANY),
        describe(w_shape[:1], VECTOR), describe(y_shape, NHWC),
        *_geometry(x_shape, w_shape[2:], y_shape, stride, pad),
        _convolution_hint(x_shape, w_shape, y_shape, stride, pad))
    return onednn.Primitive(descriptor, {
        SRC: describe(x_shape, x_form), DIFF_WEIGHTS: describe(w_shape, NCHW),
        DIFF_BIAS: describe(w_shape[:1], VECTOR), DIFF_DST: describe(y_shape, y_form)})


def convolution(x, w, b, y_shape, stride, pad):
    """y of the convolution, channels last; b may be None."""
    y = channels_last(y_shape)
    b = np.zeros(len(w), np.float32) if b is None else b
    parts = _convolution_blocks(x, w, y)
    primitives = [_convolution(_sizes(part, x), _form(x), w.shape, _sizes(part, y), stride, pad) for part in parts]
    packed = _pack(w, primitives)
    xs, ys, bias = _addresses(x, parts), _addresses(y, parts), b.ctypes.data

    def task(i):
        weights = packed[primitives[i]].ctypes.data
        primitives[i]({SRC: xs[i], WEIGHTS: weights, BIAS: bias, DST: ys[i]})

    _run_primitives(task, len(parts))
    return y


def _pack(w, primitives):
    """The weights as each primitive wants them."""
    with onednn.single_threaded():
        return {primitive: primitive.pack(w) for primitive in set(primitives)}


def convolution_gradients(x, w, gy, stride, pad, of_x, of_w):
    """Gradients of x, w and b; None for x unless ``of_x``, for w and b unless ``of_w``."""
    x_tasks, gx, packed = _gradient_of_x(x, w, gy, stride, pad) if of_x else ([], None, None)
    w_tasks, gw, gb = _gradient_of_w(x, w, gy, stride, pad) if of_w else ([], None, None)
    tasks = w_tasks + x_tasks  # the larger ones first, or a thread would wait for the last of them
    _run_primitives(lambda i: tasks[i](), len(tasks))
    del packed  # oneDNN knew its address only
    return (gx, *(None if parts is None else parts.sum(axis=0) for parts in (gw, gb)))


def _gradient_of_x(x, w, gy, stride, pad):
    """(tasks, the array that they fill, the weights that they read)."""
    gx = np.empty_like(x)
    parts = _convolution_blocks(gx, w, gy)
    primitives = [_convolution_gx(_sizes(part, gx), _form(gx), w.shape, _sizes(part, gy), _form(gy), stride, pad)
                  for part in parts]
    packed = _pack(w, primitives)
    return [functools.partial(primitive, {DIFF_SRC: part_of_gx, WEIGHTS: packed[primitive].ctypes.data,
                                          DIFF_DST: part_of_gy})
            for primitive, part_of_gx, part_of_gy in zip(primitives, _addresses(gx, parts), _addresses(gy, parts))
            ], gx, packed


def _gradient_of_w(x, w, gy, stride, pad):
    """(tasks, the arrays whose sums over the first axis are the gradients of w and b)."""
    parts = equal_blocks(len(x), _parts_of_work(w, gy))
    gw = np.empty((len(parts),) + w.shape, np.float32)
    gb = np.empty((len(parts), len(w)), np.float32)
    return [functools.partial(
        _convolution_gw(_sizes(part, x), _form(x), w.shape, _sizes(part, gy), _form(gy), stride, pad),
        dict(zip((SRC, DIFF_DST, DIFF_WEIGHTS, DIFF_BIAS), addresses)))
        for part, *addresses in zip(parts, _addresses(x, parts), _addresses(gy, parts), _rows(gw), _rows(gb))], gw, gb


def _rows(array):
    """Where the elements of the first axis begin in memory."""
    return _addresses(array, [slice(i, i + 1) for i in range(len(array))])


# Pooling

@_cached
def _pooling(algorithm, x_shape, form, y_shape, y_form, kernel, stride, pad):
    """(forward, backward) primitives; y_form: of y's gradient, all else is in ``form``."""
    strides, dilation, before, behind = _geometry(x_shape, kernel, y_shape, stride, pad)
    formats = describe(x_shape, form), describe(y_shape, form)
    geometry = strides, integers(kernel), dilation, before, behind
    hint = create_descriptor('pooling_forward', onednn.FORWARD_TRAINING, algorithm, *formats, *geometry)
    workspace = {WORKSPACE: None} if algorithm == onednn.POOLING_MAX else {}
    forward = onednn.Primitive(hint, {SRC: formats[0], DST: formats[1], **workspace})
    descriptor = create_descriptor('pooling_backward', algorithm, *formats, *geometry, hint)
    return forward, onednn.Primitive(
        descriptor, {DIFF_SRC: formats[0], DIFF_DST: describe(y_shape, y_form), **workspace})


def covers(x_shape, y_shape, kernel, stride, pad):
    """Whether every window has pixels in it: Chainer's maximum of padding alone is -inf, oneDNN's is not."""
    return all(0 <= p < k and (n - 1) * s - p < size for size, n, k, s, p in zip(
        x_shape[2:], y_shape[2:], kernel, stride, pad))


def max_pooling(x, y_shape, kernel, stride, pad):
    """y, and uint8 of y's shape: where in its window each maximum is, row by row.

    The latter is None where x has infinities or NaN, which are not for oneDNN.
    """
    y = _pooled(x, y_shape)
    indexes = np.empty_like(y, np.uint8)
    parts = _image_blocks(x, y)
    ordinary = [True] * len(parts)
    xs, ys, workspaces = (_addresses(array, parts) for array in (x, y, indexes))

    def task(i):
        part = parts[i]
        # oneDNN passes over NaN, and its maximum of nothing is the lowest number instead of -inf. Any of them
        # makes the sum NaN or infinite (so do numbers near the largest, at no cost but time).
        ordinary[i] = bool(np.isfinite(x[part].sum()))
        forward, _ = _pooling_of(onednn.POOLING_MAX, x[part], y[part], kernel, stride, pad)
        forward({SRC: xs[i], DST: ys[i], WORKSPACE: workspaces[i]})

    _run_primitives(task, len(parts))
    return y, indexes if all(ordinary) else None


def max_pooling_gx(gy, indexes, kernel, stride, pad, x_shape):
    """Gradient of x, from max_pooling's indexes."""
    return _pooling_gx(onednn.POOLING_MAX, gy, _pooled(indexes, x_shape), kernel, stride, pad, indexes)


def average_pooling(x, y_shape, kernel, stride, pad):
    """y: the mean of every window, in which padding counts as zeros."""
    y = _pooled(x, y_shape)
    parts = _image_blocks(x, y)
    xs, ys = _addresses(x, parts), _addresses(y, parts)

    def task(i):
        forward, _ = _pooling_of(
            onednn.POOLING_AVERAGE_INCLUDE_PADDING, x[parts[i]], y[parts[i]], kernel, stride, pad)
        forward({SRC: xs[i], DST: ys[i]})

    _run_primitives(task, len(parts))
    return y


def average_pooling_gx(gy, kernel, stride, pad, x_shape):
    """Gradient of x."""
    return _pooling_gx(
        onednn.POOLING_AVERAGE_INCLUDE_PADDING, gy, channels_last(x_shape), kernel, stride, pad, None)


def _pooling_gx(algorithm, gy, gx, kernel, stride, pad, indexes):
    """Fills gx and returns it; the indexes, if any, are in its memory order."""
    parts = _image_blocks(gx, gy)
    arrays = {DIFF_SRC: gx, DIFF_DST: gy, **({} if indexes is None else {WORKSPACE: indexes})}
    addresses = {kind: _addresses(array, parts) for kind, array in arrays.items()}

    def task(i):
        _, backward = _pooling_of(algorithm, gx[parts[i]], gy[parts[i]], kernel, stride, pad)
        backward({kind: starts[i] for kind, starts in addresses.items()})

    _run_primitives(task, len(parts))
    return gx


def _pooling_of(algorithm, x, y, kernel, stride, pad):
    return _pooling(algorithm, x.shape, _form(x), y.shape, _form(y), kernel, stride, pad)


def _pooled(x, y_shape):
    """An uninitialised float32 array of y's shape, in the memory order of x."""
    return channels_last(y_shape) if is_channels_last(x) else np.empty(y_shape, np.float32)


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
    root = _scratch_like('root', s)
    np.sqrt(out, out=root)
    out *= root
    np.reciprocal(out, out=out)


def local_response(x, n, k, alpha, beta):
    """(y, s, s**-beta)."""
    y, s, scale = (np.empty_like(x) for _ in range(3))
    parts = _image_blocks(x, y, s, scale)

    def task(i):
        part = parts[i]
        square = _scratch_like('square', x[part])
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
        ratio, total = _scratch_like('square', x[part]), _scratch_like('root', x[part])
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

@_cached
def _batch_normalization(shape, form, eps):
    """(forward, backward) primitives of a whole batch."""
    x, vector = describe(shape, form), describe(shape[1:2], VECTOR)
    flags = onednn.flags(onednn.SCALED | onednn.SHIFTED)
    return _forward_and_backward(x, vector, flags, onednn.real(eps))


@_cached
def _normalization(shape, form):
    """(forward, backward) primitives of a block, with statistics that are given."""
    x, vector = describe(shape, form), describe(shape[1:2], VECTOR)
    flags = onednn.flags(onednn.GIVEN_STATISTICS | onednn.SCALED | onednn.SHIFTED)
    return _forward_and_backward(x, vector, flags, onednn.real(0))


def _forward_and_backward(x, vector, flags, eps):
    statistics = {MEAN: vector, VARIANCE: vector}
    hint = create_descriptor('batch_normalization_forward', onednn.FORWARD_TRAINING, x, x, eps, flags)
    descriptor = create_descriptor('batch_normalization_backward', onednn.BACKWARD, x, x, x, eps, flags, hint)
    return (onednn.Primitive(hint, {SRC: x, DST: x, SCALE: vector, SHIFT: vector, **statistics}),
            onednn.Primitive(descriptor, {SRC: x, DIFF_DST: x, SCALE: vector, DIFF_SRC: x, DIFF_SCALE: vector,
                                          DIFF_SHIFT: vector, **statistics}))


@_cached
def _statistics(shape, form):
    """The primitive of a block's mean, variance, and x less the one and over the root of the other."""
    x, vector = describe(shape, form), describe(shape[1:2], VECTOR)
    descriptor = create_descriptor('batch_normalization_forward', onednn.FORWARD_TRAINING, x, x, onednn.real(0),
                                   onednn.flags(0))
    return onednn.Primitive(descriptor, {SRC: x, DST: x, MEAN: vector, VARIANCE: vector})


def batch_normalization(x, gamma, beta, eps):
    """y, and the mean and (biased) variance of every channel."""
    if len(_batch_parts(x)) == 1:
        y, mean, variance = _normalized_at_once(x, gamma, beta, eps)
        if (np.abs(mean) <= _FAR * np.sqrt(variance + np.float32(eps))).all():
            return y, mean, variance
    mean, variance = mean_and_variance(x)
    return scale_and_shift(x, gamma / np.sqrt(variance + np.float32(eps)), beta, mean), mean, variance


def _batch_parts(x):
    return equal_blocks(len(x), min(_PARTS, x.nbytes // _BYTES_OF_PART))


def _normalized_at_once(x, gamma, beta, eps):
    """batch_normalization in one call; the mean is the less exact the farther it is from zero."""
    y = np.empty_like(x)
    vectors = np.empty((4, len(gamma)), np.float32)
    vectors[0], vectors[1] = gamma, beta
    forward, _ = _batch_normalization(x.shape, _form(x), eps)
    with onednn.single_threaded():
        forward({SRC: x.ctypes.data, DST: y.ctypes.data,
                 **dict(zip((SCALE, SHIFT, MEAN, VARIANCE), _rows(vectors)))})
    return y, vectors[2], vectors[3]


def mean_and_variance(x):
    """Mean and (biased) variance of every channel, float32."""
    parts, pixels = _batch_parts(x), x[0, 0].size
    means, variances = (np.empty((len(parts), x.shape[1])) for _ in range(2))
    counts = np.array([(part.stop - part.start) * pixels for part in parts])[:, None]
    xs, form = _addresses(x, parts), _form(x)

    def task(i):
        mean, variance = statistics = np.empty((2, x.shape[1]), np.float32)
        y = _scratch_like('difference', x[parts[i]])
        _statistics(y.shape, form)({
            SRC: xs[i], DST: y.ctypes.data, **dict(zip((MEAN, VARIANCE), _rows(statistics)))})
        # A sum of large numbers leaves something out of the mean: what is left as the mean of y.
        deviation = np.sqrt(variance.astype(np.float64))
        rest = np.where(deviation > 0, _sum(y) / counts[i], 0) * deviation
        means[i], variances[i] = mean + rest, np.maximum(variance - rest ** 2, 0)

    _run_primitives(task, len(parts))
    mean = (means * counts).sum(axis=0) / counts.sum()
    variance = ((variances + (means - mean) ** 2) * counts).sum(axis=0) / counts.sum()
    return mean.astype(np.float32), variance.astype(np.float32)


def _sum(x):
    """(C,) float64: sums over all but the channels."""
    if is_channels_last(x):
        # Long rows first: NumPy adds those fast.
        rows = x.transpose(0, 2, 3, 1).reshape(len(x), -1).sum(axis=0).reshape(x.shape[2], -1).sum(axis=0)
        return rows.reshape(-1, x.shape[1]).sum(axis=0, dtype=np.float64)
    return x.reshape(x.shape[:2] + (-1,)).sum(axis=2).sum(axis=0, dtype=np.float64)


def scale_and_shift(x, scale, shift, mean):
    """(x - mean) * scale + shift, (C,) all; in this order, or far from zero little of x would be left."""
    y = np.empty_like(x)
    parts = _parts(x)
    xs, ys, form = _addresses(x, parts), _addresses(y, parts), _form(x)
    vectors = np.array([mean, np.ones_like(mean), scale, shift], np.float32)
    given = dict(zip((MEAN, VARIANCE, SCALE, SHIFT), _rows(vectors)))

    def task(i):
        forward, _ = _normalization(_sizes(parts[i], x), form)
        forward({SRC: xs[i], DST: ys[i], **given})

    _run_primitives(task, len(parts))
    return y


def batch_normalization_gradients(x, gamma, gy, mean, inv_std):
    """Gradients of x, gamma and beta; x and gy in one memory order."""
    parts, form = _batch_parts(x), _form(x)
    gx = np.empty_like(x)
    sums = ggammas, gbetas = np.empty((2, len(parts), x.shape[1]), np.float32)
    vectors = np.array([mean, inv_std ** -2, gamma], np.float32)
    given = dict(zip((MEAN, VARIANCE, SCALE), _rows(vectors)))
    own = [dict(zip((SRC, DIFF_DST, DIFF_SRC, DIFF_SCALE, DIFF_SHIFT), addresses)) for addresses in zip(
        *(_addresses(array, parts) for array in (x, gy, gx)), *(_rows(array) for array in sums))]
    at_once = len(parts) == 1

    def task(i):
        shape = _sizes(parts[i], x)
        _, backward = _batch_normalization(shape, form, 0.) if at_once else _normalization(shape, form)
        backward({**own[i], **given})

    _run_primitives(task, len(parts))
    ggamma, gbeta = ggammas.sum(axis=0), gbetas.sum(axis=0)
    if not at_once:  # what goes through the statistics of the whole batch is left to add
        count = np.float32(x.size // x.shape[1])
        add(gx, scale_and_shift(
            x, -gamma * inv_std ** 2 * ggamma / count, -gamma * inv_std * gbeta / count, mean), out=gx)
    return gx, ggamma, gbeta


# Elementwise

_ZEROS = np.zeros(_ELEMENTS, np.float32)  # NumPy's maximum of two arrays is faster than of an array and a number


def _lines(x):
    """A view of all elements in the order of memory."""
    return (x.transpose(0, 2, 3, 1) if is_channels_last(x) else x).reshape(-1)


def add(x, y, out):
    """x + y, all in one memory order."""
    first, second, target, parts = _lines(x), _lines(y), _lines(out), blocks(x.size, 1, _ELEMENTS)
    run(lambda i: np.add(first[parts[i]], second[parts[i]], out=target[parts[i]]), len(parts))
    return out


def relu(x):
    """max(x, 0)."""
    y = np.empty_like(x)
    source, target, parts = _lines(x), _lines(y), blocks(x.size, 1, _ELEMENTS)
    run(lambda i: np.maximum(source[parts[i]], _ZEROS[:len(source[parts[i]])], out=target[parts[i]]), len(parts))
    return y


def relu_gx(y, gy):
    """gy where y is positive, else 0; y and gy in one memory order."""
    gx = np.empty_like(gy)
    outputs, gradients, target, parts = _lines(y), _lines(gy), _lines(gx), blocks(y.size, 1, _ELEMENTS)

    def task(i):
        np.greater(outputs[parts[i]], 0, out=target[parts[i]])
        target[parts[i]] *= gradients[parts[i]]

    run(task, len(parts))
    return gx


# Adam (Kingma, Ba, 2014)

def adam(w, grad, m, v, alpha_t, hyperparam):
    """Chainer's update of w, m and v, number by number, in its order of operations."""
    w, grad, m, v = (a.reshape(-1) for a in (w, grad, m, v))
    parts = blocks(w.size, 1, _ELEMENTS)

    def task(i):
        part = parts[i]
        d = scratch('difference', grad[part].shape)
        np.subtract(grad[part], m[part], out=d)
        d *= 1 - hyperparam.beta1
        m[part] += d
        np.multiply(grad[part], grad[part], out=d)
        d -= v[part]
        d *= 1 - hyperparam.beta2
        v[part] += d
        np.sqrt(v[part], out=d)
        d += hyperparam.eps
        np.divide(alpha_t, d, out=d)
        d *= m[part]
        d *= -hyperparam.eta
        w[part] += d

    run(task, len(parts))


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
