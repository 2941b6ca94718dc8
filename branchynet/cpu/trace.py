"""A net's operations on one sample as its own forward calls them: for chains, and links that graph.py does not know."""

from __future__ import annotations

import collections
import functools
import math
from typing import Any, Callable, Optional

from branchynet.cpu.geometry import settings_of
from branchynet.cpu.graph import Graph, Node, NotCovered, Operations, scale_and_shift, scaled_weights
from branchynet.cpu.pooling import Windows, windows_of_average
from branchynet.recording import Recording, record

import chainer
import numpy as np
from chainer.functions.activation.clipped_relu import ClippedReLU
from chainer.functions.activation.leaky_relu import LeakyReLU
from chainer.functions.activation.relu import ReLU
from chainer.functions.array.concat import Concat
from chainer.functions.array.reshape import Reshape
from chainer.functions.array.squeeze import Squeeze
from chainer.functions.connection.convolution_2d import Convolution2DFunction
from chainer.functions.connection.linear import LinearFunction
from chainer.functions.math.average import Mean
from chainer.functions.math.basic_math import Add, MulConstant
from chainer.functions.normalization.batch_normalization import FixedBatchNormalization
from chainer.functions.normalization.local_response_normalization import LocalResponseNormalization
from chainer.functions.pooling.average_pooling_2d import AveragePooling2D
from chainer.functions.pooling.max_pooling_nd import MaxPoolingND


def operations_of(net: Any, shape: tuple[int, int, int], with_main: bool) -> Operations:
    """As ``graph.operations_of``, by calls of the net's forward with two samples.

    Raises:
        NotCovered: the net calls a function that there is no kernel for, or computes outside Chainer's functions.
    """
    if any(link.local_link_hooks for link in net.links()):
        raise NotCovered('a link with a hook')
    trace = _Trace()
    x = node = trace.input(shape)
    samples = h = np.random.RandomState(0).rand(2, *shape).astype(np.float32)
    trunk, heads, stage = [], [], net.one_pass()
    for k in range(net.numexits()):
        node, h = trace.through(functools.partial(stage, k), node, h)
        trunk.append(node)
        heads.append(trace.logits(functools.partial(net.exit, k), node, h))
    return Operations(x, trunk, heads, trace.logits(net.main, x, samples) if with_main else None)


class _Trace(Graph):
    def __init__(self) -> None:
        super().__init__()
        self._recordings: list[Recording] = []  # whose arrays must live as long as their ids are keys of nodes
        self._read_once: set[Node] = set()  # nodes that one function alone reads

    def through(self, link: Callable, node: Node, x: np.ndarray) -> tuple[Node, np.ndarray]:
        """The node after a link, and the link's output.

        Args:
            link: any callable that takes a Variable.
            node: the one in front of it.
            x: numbers of that node, (B, ...).
        """
        recording = record(link, x)
        self._recordings.append(recording)
        nodes = {id(recording.start.node): node}
        readers = collections.Counter(id(node) for call in recording.calls for node in call.function.inputs)
        for function, inputs in recording.calls:
            values = [nodes.get(id(variable), array) for variable, array in zip(function.inputs, inputs)]
            if any(isinstance(value, Node) for value in values):
                output = id(function.outputs[0]())
                nodes[output] = self._called(function, values, len(x))
                if readers[output] == 1:
                    self._read_once.add(nodes[output])
        y = recording.y
        if not isinstance(y, chainer.Variable) or id(y.node) not in nodes:
            raise NotCovered("numbers from outside Chainer's functions")
        array: Any = y.array
        return nodes[id(y.node)], array

    def logits(self, link: Callable, node: Node, x: np.ndarray) -> Node:
        """As ``through``, for a link that gives logits (B, C); those that lie as an image become a vector."""
        y, array = self.through(link, node, x)
        if y.is_vector or array.ndim != 2:
            return y
        count = array.shape[1]
        w = np.eye(count, dtype=np.float32), np.zeros(count, np.float32)
        return self._node('linear', [y], (count, 1, 1), key=('vector', id(y)), w=w)

    def _called(self, function: Any, values: list, batch: int) -> Node:
        """The node of a function.

        Args:
            function: the function.
            values: its inputs: nodes, and arrays that do not depend on the sample.
            batch: how many samples went through it.
        """
        kind, (first, *others) = type(function), values
        if kind not in _FUNCTIONS or not isinstance(first, Node):
            raise NotCovered(kind.__name__)
        if any(isinstance(other, Node) != (kind in (Add, Concat)) for other in others):
            raise NotCovered(f'{kind.__name__} of such values')
        shape = function.outputs[0]().shape
        if shape[:1] != (batch,):
            raise NotCovered(f'{kind.__name__} over several samples')
        node = _FUNCTIONS[kind](self, function, *values)
        if math.prod(shape[1:]) != math.prod(node.shape):
            raise NotCovered(f'{kind.__name__} of arrays that do not fit')
        return node

    def _convolved(self, function: Any, x: Node, w: np.ndarray, b: Optional[np.ndarray] = None) -> Node:
        if function.cover_all:
            raise NotCovered('a convolution that covers all')
        settings = settings_of(function)
        return self._node(
            'convolution',
            [x],
            function.outputs[0]().shape[1:],
            key=(id(w), id(b), settings),
            w=(w, np.zeros(len(w), np.float32) if b is None else b),
            settings=settings,
        )

    def _multiplied(self, function: Any, x: Node, w: np.ndarray, b: Optional[np.ndarray] = None) -> Node:
        shape = len(w), 1, 1
        return self._node(
            'linear', [x], shape, key=(id(w), id(b)), w=(w, np.zeros(len(w), np.float32) if b is None else b)
        )

    def _normalized(self, function: Any, x: Node, *arrays: Any) -> Node:  # gamma, beta, mean, var
        if tuple(function.key_axis) != (1,) or len(arrays[0]) != x.shape[0]:
            raise NotCovered('a batch normalisation over other axes')
        gamma, beta, mean, var = arrays
        numbers = functools.partial(scale_and_shift, gamma, beta, mean, var, function.eps)
        return self._scaled(x, numbers, (*map(id, arrays), function.eps))

    def _times(self, function: Any, x: Node) -> Node:
        if np.ndim(function.value):
            raise NotCovered('a product with an array')
        scale = np.full(x.shape[0], function.value, np.float32)
        return self._scaled(x, lambda b: (scale, scale * b), ('times', function.value))

    def _scaled(self, x: Node, numbers: Callable[[Any], tuple[np.ndarray, np.ndarray]], key: tuple) -> Node:
        """A node's channels times scale plus shift, as a part of it where that can be.

        Args:
            x: the node.
            numbers: (scale, shift), both (C,), of the b (C,) that is added to the node before.
            key: tells different numbers apart.
        """
        key = 'scaled', id(x), *key
        if x.kind != 'linear' and not (x.kind == 'convolution' and len(x.inputs) == 1 and x in self._read_once):
            return self._node('scaling', [x], x.shape, key=key, w=numbers(np.zeros(x.shape[0], np.float32)))
        w, b = x.arguments['w']
        scale, shift = numbers(b)
        return self._node(x.kind, x.inputs, x.shape, key=key, **{**x.arguments, 'w': (scaled_weights(w, scale), shift)})

    def _added(self, function: Any, a: Node, b: Node) -> Node:
        """A sum; a convolution that nothing else reads adds the other image to its own sums."""
        if a.shape != b.shape:
            raise NotCovered('a sum of different shapes')
        for x, other in (b, a), (a, b):
            if x.kind == 'convolution' and len(x.inputs) == 1 and x in self._read_once:
                return self._node(x.kind, [*x.inputs, other], x.shape, key=('added', id(x), id(other)), **x.arguments)
        return self._node('sum', [a, b], a.shape)

    def _joined(self, function: Any, *nodes: Node) -> Node:
        images = [variable.shape[1:] == node.shape for variable, node in zip(function.inputs, nodes)]
        if function.axis % 4 != 1 or not all(images):
            raise NotCovered('Concat of other than channels')
        return self._node('concat', nodes, function.outputs[0]().shape[1:])

    def _rectified(self, function: Any, x: Node) -> Node:
        return self._relu(x)

    def _clipped(self, function: Any, x: Node) -> Node:
        return self._clipped_relu(x, function.cap)

    def _leaky(self, function: Any, x: Node) -> Node:
        return self._leaky_relu(x, function.slope)

    def _largest(self, function: Any, x: Node) -> Node:
        windows = Windows(function.ksize, function.stride, function.pad)
        return self._pooling(self._of_image(function, x), True, windows, function.cover_all)

    def _averaged(self, function: Any, x: Node) -> Node:
        return self._pooling(self._of_image(function, x), False, windows_of_average(function), False)

    def _mean(self, function: Any, x: Node) -> Node:
        if {axis % 4 for axis in function.axis or ()} != {2, 3}:
            raise NotCovered('a mean over other axes')
        size = x.shape[1], x.shape[2]
        return self._pooling(self._of_image(function, x), False, Windows(size, size, (0, 0)), False)

    def _responded(self, function: Any, x: Node) -> Node:
        numbers = function.n, function.k, function.alpha, function.beta
        return self._local_response(self._of_image(function, x), *numbers)

    def _reshaped(self, function: Any, x: Node) -> Node:
        """Flattening an image changes no number's place, so that the node stays the same."""
        if len(function.outputs[0]().shape) != 2 and function.outputs[0]().shape[1:] != x.shape:
            raise NotCovered('a change of shape')
        return x

    def _of_image(self, function: Any, x: Node) -> Node:
        """The node, if the function takes it as an image."""
        if function.inputs[0].shape[1:] != x.shape:
            raise NotCovered(f'{type(function).__name__} of a vector')
        return x


_FUNCTIONS: dict[type, Callable[..., Node]] = {
    Add: _Trace._added,
    AveragePooling2D: _Trace._averaged,
    ClippedReLU: _Trace._clipped,
    Concat: _Trace._joined,
    Convolution2DFunction: _Trace._convolved,
    FixedBatchNormalization: _Trace._normalized,
    LeakyReLU: _Trace._leaky,
    LinearFunction: _Trace._multiplied,
    LocalResponseNormalization: _Trace._responded,
    MaxPoolingND: _Trace._largest,
    Mean: _Trace._mean,
    MulConstant: _Trace._times,
    ReLU: _Trace._rectified,
    Reshape: _Trace._reshaped,
    Squeeze: _Trace._reshaped,
}
