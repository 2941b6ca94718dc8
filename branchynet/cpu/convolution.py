"""Two-dimensional convolution and its gradients, by oneDNN."""

import functools

from branchynet import _chainer  # noqa: F401
from branchynet.cpu import onednn
from branchynet.cpu.layout import (
    BYTES_OF_BLOCK,
    PARTS,
    addresses_of,
    cached,
    channels_last,
    dense,
    form_of,
    geometry_of,
    plain,
    rows_of,
    run_primitives,
    sizes_of,
    takes,
)
from branchynet.cpu.onednn import (
    ANY,
    BIAS,
    DIFF_BIAS,
    DIFF_DST,
    DIFF_SRC,
    DIFF_WEIGHTS,
    DST,
    NCHW,
    NHWC,
    SRC,
    VECTOR,
    WEIGHTS,
    create_descriptor,
    describe,
)
from branchynet.cpu.threads import equal_blocks

import chainer
import numpy as np
from chainer.utils.conv import get_conv_outsize

_WORK_OF_BLOCK = 1 << 23  # multiplications and additions that are worth a thread's call


class Convolution:
    """Convolution2DFunction's methods."""

    def forward_cpu(self, inputs, stock):
        """The method of this name, for arrays that the kernels take."""
        x, w, b = inputs if len(inputs) == 3 else (*inputs, None)
        if not (takes(x, w, b) and _is_simple_convolution(self) and _fits(self, x, w, b)):
            return stock(self, inputs)
        y_shape = (len(x), len(w), *self._get_out_size(x.shape, w.shape))
        geometry = (self.sy, self.sx), (self.ph, self.pw)
        if _is_y_slow(x.shape, w.shape, y_shape, *geometry):
            return stock(self, inputs)
        self._check_input_layouts_all_standard()
        self.retain_inputs((0, 1))
        (x,) = dense(x)
        w, b = plain(w, b)
        return (convolution(x, w, b, y_shape, *geometry),)

    def backward(self, indexes, grad_outputs, stock):
        """The method of this name, for arrays that the kernels take."""
        x, w = (v.array for v in self.get_retained_inputs())
        gy = grad_outputs[0].array
        # Chainer's own backward is a graph of functions, which gradients of gradients, hooks and the debug mode see.
        is_seen = chainer.config.enable_backprop or chainer.config.debug or chainer.get_function_hooks()
        if is_seen or not (takes(x, w, gy) and _is_simple_convolution(self)):
            return stock(self, indexes, grad_outputs)
        geometry = (self.sy, self.sx), (self.ph, self.pw)
        shapes = x.shape, w.shape, gy.shape, *geometry
        slow = {i for i in indexes if (_is_gw_slow if i else _is_gx_slow)(*shapes)}
        gradients = dict(zip(sorted(slow), stock(self, tuple(sorted(slow)), grad_outputs))) if slow else {}
        if len(slow) < len(indexes):
            x, gy = dense(x, gy)
            (w,) = plain(w)
            ours = convolution_gradients(
                x,
                w,
                gy,
                *geometry,
                of_x=0 in indexes and 0 not in slow,
                of_w=any(i in indexes and i not in slow for i in (1, 2)),
            )
            gradients.update((i, chainer.Variable(ours[i])) for i in indexes if i not in slow)
        return tuple(gradients[i] for i in indexes)


def _is_simple_convolution(function):
    return (
        (function.groups, function.dy, function.dx, function.cover_all, function.cudnn_fast) == (1, 1, 1, False, False)
        and min(function.sy, function.sx) > 0
        and min(function.ph, function.pw) >= 0
    )


def _fits(function, x, w, b):
    """Whether the shapes are those of a convolution; where not, Chainer says so."""
    return (
        x.shape[1] == w.shape[1]
        and (b is None or b.shape == w.shape[:1])
        and all(
            get_conv_outsize(size, k, s, p) > 0
            for size, k, s, p in zip(x.shape[2:], w.shape[2:], (function.sy, function.sx), (function.ph, function.pw))
        )
    )


def _convolution_blocks(x, w, y):
    """Blocks of images that fit the cache, and more of them where their work is worth a call."""
    parts = max(-(-(x.nbytes + y.nbytes) // BYTES_OF_BLOCK), _parts_of_work(w, y))
    return equal_blocks(len(x), parts)


def _parts_of_work(w, y):
    """How many calls the multiplications and additions of a convolution are worth, up to PARTS."""
    return min(PARTS, 2 * w.size * y.size // len(w) // _WORK_OF_BLOCK)


def _descriptor_of_y(x_shape, w_shape, y_shape, stride, pad):
    return create_descriptor(
        'convolution_forward',
        onednn.FORWARD_TRAINING,
        onednn.CONVOLUTION_DIRECT,
        describe(x_shape, NHWC),
        describe(w_shape, ANY),
        describe(w_shape[:1], VECTOR),
        describe(y_shape, NHWC),
        *geometry_of(x_shape, w_shape[2:], y_shape, stride, pad),
    )


def _descriptor_of_gx(x_shape, w_shape, y_shape, stride, pad):
    return create_descriptor(
        'convolution_backward_data',
        onednn.CONVOLUTION_DIRECT,
        describe(x_shape, NHWC),
        describe(w_shape, ANY),
        describe(y_shape, NHWC),
        *geometry_of(x_shape, w_shape[2:], y_shape, stride, pad),
        _descriptor_of_y(x_shape, w_shape, y_shape, stride, pad),
    )


def _descriptor_of_gw(x_shape, w_shape, y_shape, stride, pad):
    return create_descriptor(
        'convolution_backward_weights',
        onednn.CONVOLUTION_DIRECT,
        describe(x_shape, NHWC),
        describe(w_shape, ANY),
        describe(w_shape[:1], VECTOR),
        describe(y_shape, NHWC),
        *geometry_of(x_shape, w_shape[2:], y_shape, stride, pad),
        _descriptor_of_y(x_shape, w_shape, y_shape, stride, pad),
    )


@cached
def _convolution(x_shape, x_form, w_shape, y_shape, stride, pad):
    return onednn.Primitive(
        _descriptor_of_y(x_shape, w_shape, y_shape, stride, pad),
        {
            SRC: describe(x_shape, x_form),
            WEIGHTS: describe(w_shape, NCHW),
            BIAS: describe(w_shape[:1], VECTOR),
            DST: describe(y_shape, NHWC),
        },
    )


@cached
def _convolution_gx(x_shape, x_form, w_shape, y_shape, y_form, stride, pad):
    return onednn.Primitive(
        _descriptor_of_gx(x_shape, w_shape, y_shape, stride, pad),
        {DIFF_SRC: describe(x_shape, x_form), WEIGHTS: describe(w_shape, NCHW), DIFF_DST: describe(y_shape, y_form)},
    )


@cached
def _convolution_gw(x_shape, x_form, w_shape, y_shape, y_form, stride, pad):
    return onednn.Primitive(
        _descriptor_of_gw(x_shape, w_shape, y_shape, stride, pad),
        {
            SRC: describe(x_shape, x_form),
            DIFF_WEIGHTS: describe(w_shape, NCHW),
            DIFF_BIAS: describe(w_shape[:1], VECTOR),
            DIFF_DST: describe(y_shape, y_form),
        },
    )


# Shapes that oneDNN computes more slowly than stock Chainer. They depend on the shapes, and on the instructions of the
# processor as far as oneDNN's choice of code does; benchmarks/shapes.py measures them.

_FEWEST_CHANNELS = 5  # oneDNN's gradient of x fills a vector with channels, and leaves most of it empty below


@cached
def _is_y_slow(x_shape, w_shape, y_shape, stride, pad):
    return _is_fully_connected(w_shape, y_shape) or _is_chosen(
        ('ref',), _descriptor_of_y, x_shape, w_shape, y_shape, stride, pad
    )


@cached
def _is_gx_slow(x_shape, w_shape, y_shape, stride, pad):
    has_gaps = any(k < s for k, s in zip(w_shape[2:], stride))  # pixels that no window reads
    return (
        has_gaps
        or x_shape[1] < _FEWEST_CHANNELS
        or _is_fully_connected(w_shape, y_shape)
        or _is_chosen(('ref',), _descriptor_of_gx, x_shape, w_shape, y_shape, stride, pad)
    )


@cached
def _is_gw_slow(x_shape, w_shape, y_shape, stride, pad):
    return _is_fully_connected(w_shape, y_shape) or _is_chosen(
        ('ref', 'x64:gemm'), _descriptor_of_gw, x_shape, w_shape, y_shape, stride, pad
    )


def _is_fully_connected(w_shape, y_shape):
    """Whether a kernel larger than a pixel is at one place only: a matrix product, which BLAS does as well."""
    return y_shape[2:] == (1, 1) and w_shape[2:] != (1, 1)


def _is_chosen(names, descriptor, *shapes):
    """Whether oneDNN would compute with code of one of these names."""
    return onednn.implementation(descriptor(*shapes)).startswith(names)


def convolution(x, w, b, y_shape, stride, pad):
    """y of the convolution, channels last; b may be None."""
    y = channels_last(y_shape)
    b = np.zeros(len(w), np.float32) if b is None else b
    parts = _convolution_blocks(x, w, y)
    primitives = [
        _convolution(sizes_of(part, x), form_of(x), w.shape, sizes_of(part, y), stride, pad) for part in parts
    ]
    packed = _pack(w, primitives)
    xs, ys, bias = addresses_of(x, parts), addresses_of(y, parts), b.ctypes.data

    def task(i):
        weights = packed[primitives[i]].ctypes.data
        primitives[i]({SRC: xs[i], WEIGHTS: weights, BIAS: bias, DST: ys[i]})

    run_primitives(task, len(parts))
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
    run_primitives(lambda i: tasks[i](), len(tasks))
    del packed  # oneDNN knew its address only
    return (gx, *(None if parts is None else parts.sum(axis=0) for parts in (gw, gb)))


def _gradient_of_x(x, w, gy, stride, pad):
    """(tasks, the array that they fill, the weights that they read)."""
    gx = np.empty_like(x)
    parts = _convolution_blocks(gx, w, gy)
    primitives = [
        _convolution_gx(sizes_of(part, gx), form_of(gx), w.shape, sizes_of(part, gy), form_of(gy), stride, pad)
        for part in parts
    ]
    packed = _pack(w, primitives)
    return (
        [
            functools.partial(
                primitive, {DIFF_SRC: part_of_gx, WEIGHTS: packed[primitive].ctypes.data, DIFF_DST: part_of_gy}
            )
            for primitive, part_of_gx, part_of_gy in zip(primitives, addresses_of(gx, parts), addresses_of(gy, parts))
        ],
        gx,
        packed,
    )


def _gradient_of_w(x, w, gy, stride, pad):
    """(tasks, the arrays whose sums over the first axis are the gradients of w and b)."""
    parts = equal_blocks(len(x), _parts_of_work(w, gy))
    gw = np.empty((len(parts), *w.shape), np.float32)
    gb = np.empty((len(parts), len(w)), np.float32)
    tasks = [
        functools.partial(
            _convolution_gw(sizes_of(part, x), form_of(x), w.shape, sizes_of(part, gy), form_of(gy), stride, pad),
            dict(zip((SRC, DIFF_DST, DIFF_WEIGHTS, DIFF_BIAS), addresses)),
        )
        for part, *addresses in zip(parts, addresses_of(x, parts), addresses_of(gy, parts), rows_of(gw), rows_of(gb))
    ]
    return tasks, gw, gb
