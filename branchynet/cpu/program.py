"""Links compiled for inference: no graph, batch normalisation folded, ReLU fused, every buffer made beforehand."""
import inspect

import chainer
import chainer.functions as F
import chainer.links as L
from chainer.utils.conv import get_conv_outsize
import numpy as np

from branchynet.cpu import onednn
from branchynet.cpu.onednn import ANY, BIAS, DST, MATRIX, NCHW, SRC, VECTOR, WEIGHTS, describe, integers
from branchynet.cpu.pooling import covers
from branchynet.links.links import FL, SL, shortcut
from branchynet.links.resnet import ResBlock


class Program:
    """Links in testing mode, on float32 arrays of one shape, with the weights that they have now.

    A program is run by one thread at a time. Links that it does not know are called as they are.

    Args:
        links: to be called one after the other.
        x: the array (B, ...) that holds the input whenever ``run`` is called.

    Attributes:
        x, y: the arrays of the input and of the output.
    """

    def __init__(self, links, x):
        self.x = x
        self._steps = []
        self._arrays = []  # oneDNN knows their addresses only
        self._value = _Value(x.shape, _plain_format(x.shape), x)
        with onednn.single_threaded():
            self._compile([link for outer in links for link in _unwrapped(outer)])
            self.y = self._plain()

    def run(self):
        """Computes ``y`` from ``x``."""
        with onednn.single_threaded():
            for step in self._steps:
                if step():  # a primitive's status
                    raise RuntimeError('oneDNN: primitive_execute failed')

    def _compile(self, links):
        while links:
            link = links.pop(0)
            if isinstance(link, L.Convolution2D) and _is_simple(link):
                norm = links.pop(0) if links and isinstance(links[0], L.BatchNormalization) else None
                self._convolution(*_folded(link, norm), link, relu=_pop_relu(links))
            elif isinstance(link, L.Linear) and link.W.array is not None:
                self._linear(link, relu=_pop_relu(links))
            elif isinstance(link, ResBlock):
                self._residual(link)
            elif isinstance(link, FL) and link.fn in _FUNCTIONS:
                arguments = inspect.signature(link.fn).bind(None, *link.args, **link.kwargs)
                arguments.apply_defaults()
                _FUNCTIONS[link.fn](self, *list(arguments.arguments.values())[1:])
            else:
                self._call(link)

    # Steps

    def _convolution(self, w, b, link, relu, onto=None):
        """A convolution, added to the value ``onto`` where there is one."""
        value = self._value
        y_shape = _output_shape(value.shape, w.shape, link.stride, link.pad)
        behind = [(n - 1) * s + k - size - p for n, s, k, size, p in zip(
            y_shape[2:], link.stride, w.shape[2:], value.shape[2:], link.pad)]
        descriptor = onednn.create_descriptor(
            'convolution_forward', onednn.FORWARD_INFERENCE, onednn.CONVOLUTION_DIRECT,
            describe(value.shape, ANY), describe(w.shape, ANY), describe(b.shape, VECTOR), describe(y_shape, ANY),
            integers(link.stride), integers((0, 0)), integers(link.pad), integers(behind),
            attribute=onednn.attribute(add=onto is not None, relu=relu))
        primitive = onednn.Primitive(descriptor, {
            SRC: None, WEIGHTS: describe(w.shape, NCHW), BIAS: describe(b.shape, VECTOR), DST: None})
        y = self._new(y_shape, primitive.format(DST))
        if onto is not None:
            self._copy(onto, y)
        source = self._in_format(primitive.format(SRC))
        self._execute(primitive, {SRC: source.array, WEIGHTS: primitive.pack(w), BIAS: b, DST: y.array})
        self._value = y

    def _linear(self, link, relu):
        value = self._value
        w = np.ascontiguousarray(link.W.array)
        b = np.zeros(len(w), np.float32) if link.b is None else link.b.array.copy()
        w = w.reshape((len(w),) + value.shape[1:])
        y_shape = (value.shape[0], len(w))
        descriptor = onednn.create_descriptor(
            'inner_product_forward', onednn.FORWARD_INFERENCE, value.format, describe(w.shape, ANY),
            describe(b.shape, VECTOR), describe(y_shape, MATRIX), attribute=onednn.attribute(relu=relu))
        primitive = onednn.Primitive(descriptor, {
            SRC: None, WEIGHTS: describe(w.shape, _plain_tag(w.shape)), BIAS: describe(b.shape, VECTOR), DST: None})
        y = self._new(y_shape, primitive.format(DST))
        self._execute(primitive, {SRC: value.array, WEIGHTS: primitive.pack(w), BIAS: b, DST: y.array})
        self._value = y

    def _residual(self, block):
        """ResBlock: its second convolution is added onto the shortcut."""
        before = self._value
        self._convolution(*_folded(block.conv1, block.bn1), block.conv1, relu=True)
        inner = self._value
        if inner.shape != before.shape:
            self._value = before
            self._apply(lambda x: shortcut(x, inner.shape))
            before, self._value = self._value, inner
        self._convolution(*_folded(block.conv2, block.bn2), block.conv2, relu=True, onto=before)

    def _relu(self):
        value = self._value
        descriptor = onednn.create_descriptor(
            'eltwise_forward', onednn.FORWARD_INFERENCE, onednn.RELU, value.format, value.format,
            onednn.real(0), onednn.real(0))
        y = self._new(value.shape, value.format)
        self._execute(onednn.Primitive(descriptor, {SRC: None, DST: None}), {SRC: value.array, DST: y.array})
        self._value = y

    def _max_pooling(self, ksize, stride, pad, cover_all, return_indices):
        self._pooling(onednn.POOLING_MAX, ksize, stride, pad, cover_all,
                      lambda x: F.max_pooling_2d(x, ksize, stride, pad, cover_all))

    def _average_pooling(self, ksize, stride, pad):
        self._pooling(onednn.POOLING_AVERAGE_INCLUDE_PADDING, ksize, stride, pad, False,
                      lambda x: F.average_pooling_2d(x, ksize, stride, pad))

    def _pooling(self, algorithm, ksize, stride, pad, cover_all, otherwise):
        """A pooling; where windows lie in the padding, ``otherwise``, Chainer's own."""
        value = self._value
        ksize, pad = _pair(ksize), _pair(pad)
        stride = ksize if stride is None else _pair(stride)
        y_shape = value.shape[:2] + tuple(
            get_conv_outsize(size, k, s, p, cover_all)
            for size, k, s, p in zip(value.shape[2:], ksize, stride, pad))
        if not covers(value.shape, y_shape, ksize, stride, pad):
            self._apply(otherwise)
            return
        behind = [(n - 1) * s + k - size - p for n, s, k, size, p in zip(
            y_shape[2:], stride, ksize, value.shape[2:], pad)]
        descriptor = onednn.create_descriptor(
            'pooling_forward', onednn.FORWARD_INFERENCE, algorithm, value.format, describe(y_shape, ANY),
            integers(stride), integers(ksize), integers((0, 0)), integers(pad), integers(behind))
        primitive = onednn.Primitive(descriptor, {SRC: None, DST: None})
        y = self._new(y_shape, primitive.format(DST))
        self._execute(primitive, {SRC: value.array, DST: y.array})
        self._value = y

    def _skip(self, *arguments):
        """Dropout, in testing mode."""

    def _call(self, link):
        self._apply(link)

    def _apply(self, function):
        """A step in Chainer, on a plain array."""
        x = self._plain()

        def call():
            with chainer.using_config('train', False), chainer.no_backprop_mode():
                return chainer.as_array(function(x))

        y = np.ascontiguousarray(call())
        self._value = _Value(y.shape, _plain_format(y.shape), y)
        self._steps.append(lambda: np.copyto(y, call()))

    # Values and layouts

    def _new(self, shape, form):
        array = np.zeros(onednn.size(form) // 4, np.float32)
        self._arrays.append(array)
        return _Value(shape, form, array)

    def _in_format(self, form):
        """The current value in a layout."""
        if onednn.equal(self._value.format, form):
            return self._value
        y = self._new(self._value.shape, form)
        self._copy(self._value, y)
        return y

    def _copy(self, source, target):
        self._execute(onednn.Reorder(source.format, target.format), {SRC: source.array, DST: target.array})

    def _plain(self):
        """The current value as an array of its shape."""
        value = self._in_format(_plain_format(self._value.shape))
        self._value = value
        return value.array.reshape(value.shape)

    def _execute(self, primitive, arrays):
        self._arrays += arrays.values()
        self._steps.append(primitive.bound(arrays))


class _Value:
    """An array of a shape, in oneDNN's layout."""

    def __init__(self, shape, form, array):
        self.shape = shape
        self.format = form
        self.array = array


_FUNCTIONS = {
    F.relu: Program._relu,
    F.max_pooling_2d: Program._max_pooling,
    F.average_pooling_2d: Program._average_pooling,
    F.dropout: Program._skip,
}


def _unwrapped(link):
    """The links that run in testing mode."""
    if isinstance(link, SL):
        return [] if link.fnTest is None else _unwrapped(link.fnTest)
    return [link]


def _is_simple(link):
    return link.W.array is not None and link.groups == 1 and _pair(link.dilate) == (1, 1)


def _pop_relu(links):
    if links and isinstance(links[0], FL) and links[0].fn is F.relu:
        links.pop(0)
        return True
    return False


def _folded(convolution, norm):
    """(w, b) of a convolution and the batch normalisation behind it."""
    w = np.ascontiguousarray(convolution.W.array)
    b = np.zeros(len(w), np.float32) if convolution.b is None else convolution.b.array
    if norm is None:
        return w, b.copy()
    gamma = 1 if norm.gamma is None else norm.gamma.array
    beta = 0 if norm.beta is None else norm.beta.array
    scale = (gamma / np.sqrt(norm.avg_var + norm.eps)).astype(np.float32)
    return w * scale[:, None, None, None], ((b - norm.avg_mean) * scale + beta).astype(np.float32)


def _output_shape(x_shape, w_shape, stride, pad):
    return (x_shape[0], w_shape[0]) + tuple(
        get_conv_outsize(size, k, s, p) for size, k, s, p in zip(x_shape[2:], w_shape[2:], stride, pad))


def _pair(value):
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def _plain_tag(shape):
    return {2: MATRIX, 4: NCHW}[len(shape)]


def _plain_format(shape):
    return describe(shape, _plain_tag(shape))
