"""Chainer's functions as ONNX nodes.

A link is called once on a batch of random numbers while Chainer records the graph. Every function of that graph
becomes ONNX nodes; arrays that do not depend on the input (weights, and functions of weights alone) become
constants. So a user's own links, lambdas and partial functions are followed too, if they call functions of _NODES.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Callable

from branchynet.links.links import FL
from branchynet.onnx_graph import Graph, Value
from branchynet.recording import record

import chainer
import numpy as np
from chainer.functions.activation.clipped_relu import ClippedReLU
from chainer.functions.activation.crelu import CReLU
from chainer.functions.activation.elu import ELU
from chainer.functions.activation.hard_sigmoid import HardSigmoid
from chainer.functions.activation.leaky_relu import LeakyReLU
from chainer.functions.activation.log_softmax import LogSoftmax
from chainer.functions.activation.prelu import PReLUFunction
from chainer.functions.activation.relu import ReLU
from chainer.functions.activation.sigmoid import Sigmoid
from chainer.functions.activation.softmax import Softmax
from chainer.functions.activation.softplus import Softplus
from chainer.functions.activation.swish import Swish
from chainer.functions.activation.tanh import Tanh
from chainer.functions.array.broadcast import BroadcastTo
from chainer.functions.array.concat import Concat
from chainer.functions.array.expand_dims import ExpandDims
from chainer.functions.array.get_item import GetItem
from chainer.functions.array.moveaxis import Moveaxis
from chainer.functions.array.pad import Pad
from chainer.functions.array.reshape import Reshape
from chainer.functions.array.rollaxis import Rollaxis
from chainer.functions.array.separate import Separate
from chainer.functions.array.split_axis import SplitAxis
from chainer.functions.array.squeeze import Squeeze
from chainer.functions.array.stack import Stack
from chainer.functions.array.swapaxes import Swapaxes
from chainer.functions.array.transpose import Transpose
from chainer.functions.connection.convolution_2d import Convolution2DFunction
from chainer.functions.connection.convolution_nd import ConvolutionND
from chainer.functions.connection.deconvolution_2d import Deconvolution2DFunction
from chainer.functions.connection.linear import LinearFunction
from chainer.functions.math import basic_math, exponential
from chainer.functions.math.average import Mean
from chainer.functions.math.clip import Clip
from chainer.functions.math.erf import Erf
from chainer.functions.math.matmul import MatMul
from chainer.functions.math.maximum import Maximum
from chainer.functions.math.minimum import Minimum
from chainer.functions.math.minmax import Max, Min
from chainer.functions.math.sqrt import Sqrt
from chainer.functions.math.square import Square
from chainer.functions.math.sum import Sum
from chainer.functions.normalization.batch_normalization import FixedBatchNormalization
from chainer.functions.normalization.group_normalization import GroupNormalization
from chainer.functions.normalization.l2_normalization import NormalizeL2
from chainer.functions.normalization.layer_normalization import LayerNormalization
from chainer.functions.normalization.local_response_normalization import LocalResponseNormalization
from chainer.functions.pooling.average_pooling_2d import AveragePooling2D
from chainer.functions.pooling.average_pooling_nd import AveragePoolingND
from chainer.functions.pooling.max_pooling_nd import MaxPoolingND


def add_link(graph: Graph, link: Callable, x: Value, place: str) -> Value:
    """Adds the nodes of a link in testing mode, and returns its output.

    Args:
        graph: the graph to add to.
        link: the link, or any callable that takes a Variable.
        x: its input.
        place: where the link stands, for errors.

    Raises:
        ValueError: the link calls a function that is not covered, or computes outside Chainer's functions.
    """
    recording = record(link, x.array)
    y, names = recording.y, {id(recording.start.node): x.name}
    try:
        for function, arrays in recording.calls:
            inputs = [Value(names.get(id(node)), array) for node, array in zip(function.inputs, arrays)]
            if any(value.name for value in inputs):
                for i, output in enumerate(function.outputs):
                    if output() is not None:  # else nobody uses it
                        names[id(output())] = _add_output(graph, function, i, inputs, output().shape)
    except _NotCovered as e:
        raise ValueError(f'{place}: {e}') from None
    if isinstance(y, (tuple, list)):
        raise ValueError(f'{place} returns a {type(y).__name__}: expected one array')
    if not isinstance(y, chainer.Variable) or id(y.node) not in names:
        raise ValueError(f"{place} computes outside Chainer's functions, where an export cannot follow")
    array: Any = y.array
    return Value(names[id(y.node)], array)


def describe(link: Any) -> str:
    """A link's type, and for an FL its function, for errors."""
    if not isinstance(link, FL):
        return type(link).__name__
    function = link.fn.func if isinstance(link.fn, functools.partial) else link.fn
    return f'FL of {getattr(function, "__name__", type(function).__name__)}'


class _NotCovered(Exception):
    """ONNX nodes for a function are missing here; add_link says where it is called."""


def _add_output(graph: Graph, function: Any, i: int, inputs: list[Value], shape: tuple[int, ...]) -> str:
    """Adds the nodes of a function's output i, of a shape; returns its name."""
    kind = type(function)
    if kind not in _NODES and kind not in _PARTS:
        raise _NotCovered(
            f'the function {kind.__name__} has no ONNX nodes here (covered: '
            f'{", ".join(sorted(known.__name__ for known in (*_NODES, *_PARTS)))})'
        )
    batch = next(len(value.array) for value in inputs if value.name)
    if shape[:1] != (batch,):
        raise _NotCovered(f'the function {kind.__name__} mixes the samples of a batch')
    if kind in _PARTS:
        if function.axis % inputs[0].array.ndim == 0:
            raise _NotCovered(f'the function {kind.__name__} splits a batch')
        indices = _PARTS[kind](function, inputs[0].array.shape[function.axis])[i]
        return _part(graph, inputs[0], function.axis, indices, shape)
    values = [value if graph.is_weight(value) else _for_any_batch(value, batch, len(shape)) for value in inputs]
    return _NODES[kind](graph, function, values, shape)


def _for_any_batch(value: Value, batch: int, ndim: int) -> Value:
    """A constant that repeats a row for every sample of the recorded batch: the row alone, which broadcasts."""
    array = value.array
    if value.name or array.ndim != ndim or len(array) != batch or (array != array[:1]).any():
        return value
    return Value(None, array[:1])


# A writer adds the nodes of one function: (graph, function, its inputs, its output's shape) -> its output's name.
_Writer = Callable[[Graph, Any, 'list[Value]', 'tuple[int, ...]'], str]


def _simple(op: str, **attributes: Callable[[Any], Any]) -> _Writer:
    """The writer of one node that takes a function's inputs as they are.

    Args:
        op: the node's operator.
        **attributes: attributes of the node, each read from the function.
    """

    def write(graph: Graph, function: Any, inputs: list[Value], shape: tuple[int, ...]) -> str:
        return graph.node(op, *map(graph.named, inputs), **{name: get(function) for name, get in attributes.items()})

    return write


def _axis_of_sample(function: Any) -> int:
    """The axis of a softmax."""
    if function.axis % len(function.inputs[0].shape) == 0:
        raise _NotCovered(f'the function {type(function).__name__} mixes the samples of a batch')
    return function.axis


def _with_number(op: str, number_first: bool = False) -> _Writer:
    """The writer of one node that takes a function's input and its attribute ``value``."""

    def write(graph: Graph, function: Any, inputs: list[Value], shape: tuple[int, ...]) -> str:
        operands = [graph.named(inputs[0]), graph.constant(function.value)]
        return graph.node(op, *(operands[::-1] if number_first else operands))

    return write


def _reduction(op: str) -> _Writer:
    """The writer of a sum, mean, maximum or minimum over axes."""

    def write(graph: Graph, function: Any, inputs: list[Value], shape: tuple[int, ...]) -> str:
        axes = range(inputs[0].array.ndim) if function.axis is None else function.axis
        return graph.node(op, graph.named(inputs[0]), graph.integers(*axes), keepdims=int(function.keepdims))

    return write


def _sum_of_many(graph: Graph, function: Any, inputs: list[Value], shape: tuple[int, ...]) -> str:
    return functools.reduce(lambda x, y: graph.node('Add', x, y), map(graph.named, inputs))


def _reshape(graph: Graph, function: Any, inputs: list[Value], shape: tuple[int, ...]) -> str:
    return _reshaped(graph, graph.named(inputs[0]), shape)


def _reshaped(graph: Graph, x: str, shape: tuple[int, ...]) -> str:
    if len(shape) == 2:
        return graph.node('Flatten', x, axis=1)
    return graph.node('Reshape', x, graph.integers(-1, *shape[1:]))


def _broadcast_to(graph: Graph, function: Any, inputs: list[Value], shape: tuple[int, ...]) -> str:
    return graph.node('Expand', graph.named(inputs[0]), graph.integers(1, *shape[1:]))


def _moved_axes(move: Callable[[Any, np.ndarray], np.ndarray]) -> _Writer:
    """The writer of a transposition.

    Args:
        move: applies the function to an array.
    """

    def write(graph: Graph, function: Any, inputs: list[Value], shape: tuple[int, ...]) -> str:
        marked = np.empty(range(1, len(shape) + 1))  # axis i has size i + 1
        axes = [size - 1 for size in move(function, marked).shape]
        if axes[0] != 0:
            raise _NotCovered(f'the function {type(function).__name__} moves the axis of the batch')
        return graph.node('Transpose', graph.named(inputs[0]), perm=axes)

    return write


def _get_item(graph: Graph, function: Any, inputs: list[Value], shape: tuple[int, ...]) -> str:
    """Slices and numbers; not lists or arrays, which pick numbers one by one."""
    if not all(item is None or item is ... or isinstance(item, (slice, int, np.integer)) for item in function.slices):
        raise _NotCovered('the function GetItem picks by other than slices and numbers')
    x = inputs[0].array
    given = [item for item in function.slices if item is not None]
    place = given.index(...) if ... in given else len(given)
    rest = [slice(None)] * (x.ndim - len(given) + (... in given))
    items = given[:place] + rest + given[place + 1 :]
    if items[0] != slice(None):
        raise _NotCovered('the function GetItem takes a part of the batch')
    ranges = {
        axis: item.indices(size) if isinstance(item, slice) else (item % size, item % size + 1, 1)
        for axis, (item, size) in enumerate(zip(items, x.shape))
        if item != slice(None)
    }
    return _reshaped(graph, _sliced(graph, inputs[0], ranges), shape)


def _part(graph: Graph, x: Value, axis: int, indices: np.ndarray, shape: tuple[int, ...]) -> str:
    """The part of an array at successive indices of an axis, in a shape."""
    if not len(indices):
        raise _NotCovered('a split gives a part without numbers')
    part = _sliced(graph, x, {axis % x.array.ndim: (indices[0], indices[-1] + 1, 1)})
    return part if len(shape) == x.array.ndim else _reshaped(graph, part, shape)


def _sliced(graph: Graph, x: Value, ranges: Mapping[int, tuple[int, int, int]]) -> str:
    """An array's numbers within {axis: (start, stop, step)}, as ``range`` takes them."""
    if not ranges:
        return graph.named(x)
    starts, stops, steps = zip(*ranges.values())
    before_first = -max(x.array.shape) - 1  # ONNX counts -1 from the end
    stops = tuple(before_first if stop < 0 else stop for stop in stops)
    return graph.node('Slice', graph.named(x), *(graph.integers(*each) for each in (starts, stops, ranges, steps)))


def _stack(graph: Graph, function: Any, inputs: list[Value], shape: tuple[int, ...]) -> str:
    axis = function.axis % len(shape)
    if axis == 0 or not all(value.name for value in inputs):
        raise _NotCovered('the function Stack stacks batches, or numbers that do not depend on the input')
    parts = [graph.node('Unsqueeze', graph.named(value), graph.integers(axis)) for value in inputs]
    return graph.node('Concat', *parts, axis=axis)


def _concat(graph: Graph, function: Any, inputs: list[Value], shape: tuple[int, ...]) -> str:
    """Concat; constant zeros, as of a ResBlock's shortcut, become padding."""
    axis = function.axis % len(shape)
    if axis == 0:
        raise _NotCovered('the function Concat joins batches')
    if len(inputs) == 2 and any(value.name is None and not value.array.any() for value in inputs):
        ahead = inputs[0].name is None
        zeros, x = inputs if ahead else inputs[::-1]
        pads = np.zeros((2, len(shape)), int)
        pads[0 if ahead else 1, axis] = zeros.array.shape[axis]
        return graph.node('Pad', graph.named(x), graph.integers(*pads.ravel()))
    if not all(value.name for value in inputs):
        raise _NotCovered('the function Concat joins numbers that do not depend on the input')
    return graph.node('Concat', *map(graph.named, inputs), axis=axis)


def _pad(graph: Graph, function: Any, inputs: list[Value], shape: tuple[int, ...]) -> str:
    width = np.broadcast_to(function.pad_width, (len(shape), 2))
    if function.mode != 'constant' or width[0].any() or set(function.keywords) - {'constant_values'}:
        raise _NotCovered('the function Pad pads with another mode than "constant", or pads the batch')
    value = np.asarray(function.keywords.get('constant_values', 0))
    if value.size != 1:
        raise _NotCovered('the function Pad pads with several values')
    pads = graph.integers(*width.T.ravel())
    return graph.node('Pad', graph.named(inputs[0]), pads, graph.constant(value.reshape(())))


def _linear(graph: Graph, function: Any, inputs: list[Value], shape: tuple[int, ...]) -> str:
    return graph.node('Gemm', *map(graph.named, inputs), transB=1)


def _matmul(graph: Graph, function: Any, inputs: list[Value], shape: tuple[int, ...]) -> str:
    a, b = inputs
    if a.name is None or function.transa or function.transc or (b.name and function.transb):
        raise _NotCovered('the function MatMul multiplies with the batch in another place than the first axis')
    if function.transb:
        b = Value(None, np.swapaxes(b.array, -1, -2))
    return graph.node('MatMul', graph.named(a), graph.named(b))


def _convolution(graph: Graph, function: Any, inputs: list[Value], shape: tuple[int, ...]) -> str:
    x, w = inputs[0].array, inputs[1].array
    stride, pad, dilate = (
        _geometry(function, 'sy sx', 'stride'),
        _geometry(function, 'ph pw', 'pad'),
        _geometry(function, 'dy dx', 'dilate'),
    )
    ends = _pads_after(x.shape, shape, [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilate)], stride, pad)
    return graph.node(
        'Conv',
        *map(graph.named, inputs),
        kernel_shape=w.shape[2:],
        strides=stride,
        dilations=dilate,
        pads=[*pad, *ends],
        group=function.groups,
    )


def _deconvolution(graph: Graph, function: Any, inputs: list[Value], shape: tuple[int, ...]) -> str:
    x, w = inputs[0].array, inputs[1].array
    stride, pad, dilate = (function.sy, function.sx), (function.ph, function.pw), (function.dy, function.dx)
    whole = [(size - 1) * s + (k - 1) * d + 1 for size, s, k, d in zip(x.shape[2:], stride, w.shape[2:], dilate)]
    missing = [out - (size - 2 * p) for out, size, p in zip(shape[2:], whole, pad)]
    if not all(0 <= m < s for m, s in zip(missing, stride)):
        raise _NotCovered('the function Deconvolution2DFunction has an outsize that ONNX cannot state')
    return graph.node(
        'ConvTranspose',
        *map(graph.named, inputs),
        kernel_shape=w.shape[2:],
        strides=stride,
        dilations=dilate,
        pads=[*pad, *pad],
        output_padding=missing,
        group=function.groups,
    )


def _max_pooling(graph: Graph, function: Any, inputs: list[Value], shape: tuple[int, ...]) -> str:
    return _pooling(graph, 'MaxPool', inputs[0], shape, (function.ksize, function.stride, function.pad))


def _average_pooling(graph: Graph, function: Any, inputs: list[Value], shape: tuple[int, ...]) -> str:
    geometry = (
        _geometry(function, 'kh kw', 'ksize'),
        _geometry(function, 'sy sx', 'stride'),
        _geometry(function, 'ph pw', 'pad'),
    )
    count = getattr(function, 'pad_value', 0) is not None
    return _pooling(graph, 'AveragePool', inputs[0], shape, geometry, count_include_pad=int(count))


def _pooling(graph: Graph, op: str, x: Value, shape: tuple[int, ...], geometry: tuple, **attributes: int) -> str:
    ksize, stride, pad = geometry
    pads = [*pad, *_pads_after(x.array.shape, shape, ksize, stride, pad)]
    if any(p >= k for p, k in zip(pads, [*ksize, *ksize])):
        raise _NotCovered('a pooling has windows of padding alone')
    return graph.node(op, graph.named(x), kernel_shape=ksize, strides=stride, pads=pads, **attributes)


def _geometry(function: Any, pair: str, several: str) -> list[int]:
    """A setting of a convolution or pooling: two attributes, or one tuple where it takes any number of axes."""
    if hasattr(function, several):
        return list(getattr(function, several))
    return [getattr(function, name) for name in pair.split()]


def _pads_after(
    x_shape: Sequence[int], y_shape: Sequence[int], ksize: Sequence[int], stride: Sequence[int], pad: Sequence[int]
) -> list[int]:
    """Padding after each axis that makes exactly the windows of y; Chainer's cover_all may need more than ``pad``."""
    return [
        max((n - 1) * s + k - size - p, 0) for n, s, k, size, p in zip(y_shape[2:], stride, ksize, x_shape[2:], pad)
    ]


def _batch_normalization(graph: Graph, function: Any, inputs: list[Value], shape: tuple[int, ...]) -> str:
    if tuple(function.key_axis) == (1,):
        return graph.node('BatchNormalization', *map(graph.named, inputs), epsilon=function.eps)
    gamma, beta, mean, var = (value.array[function.expander] for value in inputs[1:])
    scale = gamma / np.sqrt(var + function.eps)
    scaled = graph.node('Mul', graph.named(inputs[0]), graph.constant(scale))
    return graph.node('Add', scaled, graph.constant(beta - mean * scale))


def _layer_normalization(graph: Graph, function: Any, inputs: list[Value], shape: tuple[int, ...]) -> str:
    x, gamma, beta = map(graph.named, inputs)
    return graph.node('Add', graph.node('Mul', _standardised(graph, x, 1, function.eps), gamma), beta)


def _group_normalization(graph: Graph, function: Any, inputs: list[Value], shape: tuple[int, ...]) -> str:
    x, *parameters = inputs
    gamma, beta = (_per_channel(graph, value, len(shape)) for value in parameters)
    groups = graph.node('Reshape', graph.named(x), graph.integers(0, function.groups, -1))
    y = graph.node('Reshape', _standardised(graph, groups, 2, function.eps), graph.integers(-1, *shape[1:]))
    return graph.node('Add', graph.node('Mul', y, gamma), beta)


def _standardised(graph: Graph, x: str, axis: int, eps: float) -> str:
    """An array less its mean over an axis, divided by the root of its variance and eps there."""
    axes = graph.integers(axis)
    centred = graph.node('Sub', x, graph.node('ReduceMean', x, axes, keepdims=1))
    var = graph.node('ReduceMean', graph.node('Mul', centred, centred), axes, keepdims=1)
    return graph.node('Div', centred, graph.node('Sqrt', graph.node('Add', var, graph.constant(eps))))


def _normalize(graph: Graph, function: Any, inputs: list[Value], shape: tuple[int, ...]) -> str:
    x = graph.named(inputs[0])
    if any(axis % len(shape) == 0 for axis in function.axis):
        raise _NotCovered('the function NormalizeL2 mixes the samples of a batch')
    squares = graph.node('ReduceSum', graph.node('Mul', x, x), graph.integers(*function.axis), keepdims=1)
    return graph.node('Div', x, graph.node('Add', graph.node('Sqrt', squares), graph.constant(function.eps)))


def _local_response(graph: Graph, function: Any, inputs: list[Value], shape: tuple[int, ...]) -> str:
    """Local response normalisation: x / (k + alpha * the window's sum of squares) ** beta.

    ONNX Runtime's own operator takes images alone, and a power of every number, some 20 times as long as the roots
    that the common beta needs.
    """
    x, channels = graph.named(inputs[0]), np.arange(shape[1])
    window = (abs(channels[:, None] - channels) <= function.n // 2) * function.alpha
    squares, k = graph.node('Mul', x, x), graph.constant(np.full(shape[1], function.k))
    ones = (1,) * (len(shape) - 2)
    if ones:
        scale = graph.node('Conv', squares, graph.constant(window.reshape(*window.shape, *ones)), k, kernel_shape=ones)
    else:
        scale = graph.node('Add', graph.node('MatMul', squares, graph.constant(window)), k)
    if function.beta != 0.75:
        return graph.node('Div', x, graph.node('Pow', scale, graph.constant(function.beta)))
    root = graph.node('Sqrt', scale)
    return graph.node('Div', x, graph.node('Mul', root, graph.node('Sqrt', root)))


def _clipped_relu(graph: Graph, function: Any, inputs: list[Value], shape: tuple[int, ...]) -> str:
    return graph.node('Clip', graph.named(inputs[0]), graph.constant(0), graph.constant(function.cap))


def _clip(graph: Graph, function: Any, inputs: list[Value], shape: tuple[int, ...]) -> str:
    bounds = ('' if bound is None else graph.constant(bound) for bound in (function.x_min, function.x_max))
    return graph.node('Clip', graph.named(inputs[0]), *bounds)


def _crelu(graph: Graph, function: Any, inputs: list[Value], shape: tuple[int, ...]) -> str:
    x = graph.named(inputs[0])
    halves = graph.node('Relu', x), graph.node('Relu', graph.node('Neg', x))
    return graph.node('Concat', *halves, axis=function.axis)


def _softplus(graph: Graph, function: Any, inputs: list[Value], shape: tuple[int, ...]) -> str:
    x = graph.named(inputs[0])
    if function.beta == 1:
        return graph.node('Softplus', x)
    y = graph.node('Softplus', graph.node('Mul', x, graph.constant(function.beta)))
    return graph.node('Mul', y, graph.constant(function.beta_inv))


def _swish(graph: Graph, function: Any, inputs: list[Value], shape: tuple[int, ...]) -> str:
    x, beta = graph.named(inputs[0]), _per_channel(graph, inputs[1], len(shape))
    return graph.node('Mul', x, graph.node('Sigmoid', graph.node('Mul', x, beta)))


def _prelu(graph: Graph, function: Any, inputs: list[Value], shape: tuple[int, ...]) -> str:
    return graph.node('PRelu', graph.named(inputs[0]), _per_channel(graph, inputs[1], len(shape)))


def _per_channel(graph: Graph, value: Value, ndim: int) -> str:
    """A constant whose axes are the first ones of a sample."""
    if value.name:
        raise _NotCovered('a parameter of a function depends on the input')
    return graph.constant(value.array.reshape((1, *value.array.shape) + (1,) * (ndim - 1 - value.array.ndim)))


_NODES: dict[type, _Writer] = {
    basic_math.Absolute: _simple('Abs'),
    basic_math.Add: _simple('Add'),
    basic_math.AddConstant: _with_number('Add'),
    basic_math.Div: _simple('Div'),
    basic_math.DivFromConstant: _with_number('Div', number_first=True),
    basic_math.Mul: _simple('Mul'),
    basic_math.MulConstant: _with_number('Mul'),
    basic_math.MultiAdd: _sum_of_many,
    basic_math.Neg: _simple('Neg'),
    basic_math.PowVarConst: _with_number('Pow'),
    basic_math.Sub: _simple('Sub'),
    basic_math.SubFromConstant: _with_number('Sub', number_first=True),
    exponential.Exp: _simple('Exp'),
    exponential.Log: _simple('Log'),
    AveragePooling2D: _average_pooling,
    AveragePoolingND: _average_pooling,
    BroadcastTo: _broadcast_to,
    ClippedReLU: _clipped_relu,
    Clip: _clip,
    Concat: _concat,
    Convolution2DFunction: _convolution,
    ConvolutionND: _convolution,
    CReLU: _crelu,
    Deconvolution2DFunction: _deconvolution,
    ELU: _simple('Elu', alpha=lambda function: function.alpha),
    Erf: _simple('Erf'),
    ExpandDims: _reshape,
    FixedBatchNormalization: _batch_normalization,
    GetItem: _get_item,
    GroupNormalization: _group_normalization,
    HardSigmoid: _simple('HardSigmoid'),
    LayerNormalization: _layer_normalization,
    LeakyReLU: _simple('LeakyRelu', alpha=lambda function: function.slope),
    LinearFunction: _linear,
    LocalResponseNormalization: _local_response,
    LogSoftmax: _simple('LogSoftmax', axis=_axis_of_sample),
    MatMul: _matmul,
    Max: _reduction('ReduceMax'),
    Maximum: _simple('Max'),
    MaxPoolingND: _max_pooling,
    Mean: _reduction('ReduceMean'),
    Min: _reduction('ReduceMin'),
    Minimum: _simple('Min'),
    Moveaxis: _moved_axes(lambda function, x: np.moveaxis(x, function.source, function.destination)),
    NormalizeL2: _normalize,
    Pad: _pad,
    PReLUFunction: _prelu,
    ReLU: _simple('Relu'),
    Reshape: _reshape,
    Rollaxis: _moved_axes(lambda function, x: np.rollaxis(x, function.axis, function.start)),
    Sigmoid: _simple('Sigmoid'),
    Softmax: _simple('Softmax', axis=_axis_of_sample),
    Softplus: _softplus,
    Sqrt: _simple('Sqrt'),
    Square: lambda graph, function, inputs, shape: graph.node('Mul', *[graph.named(inputs[0])] * 2),
    Squeeze: _reshape,
    Stack: _stack,
    Sum: _reduction('ReduceSum'),
    Swapaxes: _moved_axes(lambda function, x: np.swapaxes(x, function.axis1, function.axis2)),
    Swish: _swish,
    Tanh: _simple('Tanh'),
    Transpose: _moved_axes(lambda function, x: np.transpose(x, function.axes)),
}
# The functions that split an array along their ``axis``: (function, the axis's size) -> for each output, its indices.
_PARTS: dict[type, Callable[[Any, int], Sequence[np.ndarray]]] = {
    Separate: lambda function, size: np.split(np.arange(size), size),
    SplitAxis: lambda function, size: np.split(np.arange(size), function.indices_or_sections),
}
