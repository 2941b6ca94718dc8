"""A net's links in testing mode as a graph of operations on one sample, simplified where results do not change."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Callable, NamedTuple, Optional, Union

from branchynet.cpu.geometry import geometry_of, pair, settings_of_link
from branchynet.cpu.pooling import Windows
from branchynet.links.links import FL, SL, arguments_of, calls_one_of, is_unchanged
from branchynet.links.resnet import ResBlock

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np

_LARGEST_WINDOW = 1 << 10  # pixels of a pooling: machine code has an instruction for each


class NotCovered(Exception):
    """A link that the native code does not know; the message names it."""


class Rectifier(NamedTuple):
    """ReLU, leaky or clipped.

    Attributes:
        slope: the factor of negative numbers.
        most: the largest result.
    """

    slope: float = 0.0
    most: float = math.inf


class Node:
    """The result of an operation.

    Attributes:
        kind: 'input', 'convolution', 'linear', 'pooling', 'rectified', 'local_response', 'scaling', 'sum', 'concat',
            'copy' or 'shortcut'.
        inputs: nodes. shape: (C, H, W); (C, 1, 1) of vectors.
        rectifier: what numbers go through at the end; None: nothing.
        arguments: further numbers that the kind needs.
    """

    def __init__(self, kind: str, inputs: Sequence[Node], shape: tuple[int, int, int], **arguments: Any) -> None:
        self.kind = kind
        self.inputs = list(inputs)
        self.shape = shape
        self.rectifier: Optional[Rectifier] = None
        self.arguments = arguments

    def padding(self) -> tuple[int, int]:
        """Rows and columns beyond the edge that a convolution or pooling reads."""
        given = self.arguments
        if self.kind == 'convolution':
            stride, pad, dilate, _ = given['settings']
            ksize = [(k - 1) * d + 1 for k, d in zip(given['w'][0].shape[2:], dilate)]
        else:
            ksize, stride, pad = given['windows']
        rows, columns = (
            max(p, (n - 1) * s + k - size - p, 0)
            for n, size, k, s, p in zip(self.shape[1:], self.inputs[0].shape[1:], ksize, stride, pad)
        )
        return rows, columns

    @property
    def is_vector(self) -> bool:
        """Whether the numbers lie side by side, not one in each channel of an image."""
        return self.kind == 'linear' or (self.kind == 'rectified' and self.inputs[0].is_vector)

    @property
    def is_nonnegative(self) -> bool:
        """Whether no value can be negative."""
        if self.kind == 'rectified':
            return self.arguments['rectifier'].slope <= 0
        return self.kind in ('pooling', 'local_response', 'shortcut', 'sum', 'concat') and all(
            inner.is_nonnegative for inner in self.inputs
        )


class Operations(NamedTuple):
    """A net's operations on one sample.

    Attributes:
        x: the sample.
        trunk: the features at each exit.
        heads: the logits of each exit.
        main: the logits of main; None where it is not wanted.
    """

    x: Node
    trunk: list[Node]
    heads: list[Node]
    main: Optional[Node]


class Graph:
    """Operations, each made once: those that an exit shares with the stage after it are computed once."""

    def __init__(self) -> None:
        self._nodes: dict[Any, Node] = {}

    def input(self, shape: tuple[int, int, int]) -> Node:
        """The node of a sample."""
        return self._node('input', [], shape)

    def follow(self, node: Node, links: Iterable[chainer.Link]) -> Node:
        """The node after links, called one after the other.

        Raises:
            NotCovered: a link or function that there is no kernel for.
        """
        links = list(links)
        for link in links:
            _check_plain(link)
        links = [link for outer in links for link in in_testing_mode(outer)]
        while links:
            link = links.pop(0)
            if type(link) is L.Convolution2D:
                norm = links.pop(0) if links and type(links[0]) is L.BatchNormalization else None
                node = self._convolution(node, link, norm)
            elif type(link) is L.Linear:
                norm = links.pop(0) if links and type(links[0]) is L.BatchNormalization else None
                node = self._linear(node, link, norm)
            elif type(link) is L.BatchNormalization:
                _check_norm(link, node.shape[0], (0, 2, 3))
                node = self._node('scaling', [node], node.shape, key=(id(link),), w=_scaled(link, 0))
            elif type(link) is ResBlock:
                node = self._block(node, link)
            elif calls_one_of(link, _FUNCTIONS):
                node = _FUNCTIONS[link.fn](self, node, *arguments_of(link.fn, link.args, link.kwargs))
            else:
                raise NotCovered(getattr(getattr(link, 'fn', None), '__name__', type(link).__name__))
            if node.shape[1] < 1 or node.shape[2] < 1:
                raise NotCovered(f'{type(link).__name__} on an image that is too small')
        return node

    def _node(
        self, kind: str, inputs: Sequence[Node], shape: tuple[int, int, int], key: Any = (), **arguments: Any
    ) -> Node:
        if kind not in ('linear', 'rectified') and any(inner.is_vector for inner in inputs):
            raise NotCovered(f'{kind} of a vector')
        key = (
            kind,
            tuple(map(id, inputs)),
            shape,
            key or tuple(id(value) if isinstance(value, np.ndarray) else value for value in arguments.values()),
        )
        if key not in self._nodes:
            self._nodes[key] = Node(kind, inputs, shape, **arguments)
        return self._nodes[key]

    def _convolution(
        self, node: Node, link: L.Convolution2D, norm: Optional[L.BatchNormalization], onto: Sequence[Node] = ()
    ) -> Node:
        w: Any = link.W.array
        settings = settings_of_link(link)
        geometry = None if w is None else geometry_of((1, *node.shape), w.shape, settings)
        if geometry is None:
            raise NotCovered(f'Convolution2D of {"no weights" if w is None else w.shape} on {node.shape}')
        height, width = geometry.y[2:]
        if norm is not None:
            _check_norm(norm, len(w), (0, 2, 3))
        return self._node(
            'convolution',
            [node, *onto],
            (len(w), height, width),
            key=(id(link), id(norm)),
            w=folded(link, norm),
            settings=settings,
        )

    def _linear(self, node: Node, link: L.Linear, norm: Optional[L.BatchNormalization]) -> Node:
        if link.W.array is None or link.W.shape[1] != np.prod(node.shape):
            raise NotCovered(f'Linear of {link.W.shape} on {node.shape}')
        if norm is not None:
            _check_norm(norm, len(link.W.array), (0,))
        return self._node(
            'linear',
            [node],
            (len(link.W.array), 1, 1),
            key=(id(link), id(norm)),
            w=folded(link, norm),
        )

    def _block(self, node: Node, block: ResBlock) -> Node:
        links = [block.conv1, block.bn1, block.conv2, block.bn2]
        if [type(link) for link in links] != [L.Convolution2D, L.BatchNormalization] * 2:
            raise NotCovered('ResBlock of other links')
        inner = self._relu(self._convolution(node, block.conv1, block.bn1))
        if inner.shape != node.shape:
            node = self._node('shortcut', [node], inner.shape)
        return self._relu(self._convolution(inner, block.conv2, block.bn2, onto=[node]))

    def _rectifier(self, node: Node, rectifier: Rectifier) -> Node:
        if node.kind == 'pooling' and node.arguments['maximum'] and rectifier.slope >= 0:  # they commute
            (source,) = node.inputs
            source = source.inputs[0] if source.kind == 'copy' else source
            return self._pooling(self._rectifier(source, rectifier), **node.arguments)
        if node.is_nonnegative and rectifier.most == math.inf:
            return node
        return self._node('rectified', [node], node.shape, rectifier=rectifier)

    def _relu(self, node: Node) -> Node:
        return self._rectifier(node, Rectifier())

    def _clipped_relu(self, node: Node, z: float) -> Node:
        return self._rectifier(node, Rectifier(most=z))

    def _relu6(self, node: Node) -> Node:
        return self._clipped_relu(node, 6.0)

    def _leaky_relu(self, node: Node, slope: float) -> Node:
        return self._rectifier(node, Rectifier(slope))

    def _max_pooling(
        self, node: Node, ksize: Any, stride: Any, pad: Any, cover_all: bool, return_indices: bool
    ) -> Node:
        if return_indices:
            raise NotCovered('max_pooling_2d with indices')
        return self._pooling(node, True, windows_of(ksize, stride, pad), cover_all)

    def _average_pooling(self, node: Node, ksize: Any, stride: Any, pad: Any) -> Node:
        return self._pooling(node, False, windows_of(ksize, stride, pad), False)

    def _pooling(self, node: Node, maximum: bool, windows: Windows, cover_all: bool) -> Node:
        if math.prod(windows.kernel) > _LARGEST_WINDOW:
            raise NotCovered('a pooling of large windows')
        x_shape = 1, *node.shape
        y_shape = windows.y_shape(x_shape, cover_all)
        if not windows.have_pixels(x_shape, y_shape):
            raise NotCovered('a pooling whose windows lie in the padding')
        _, channels, height, width = y_shape
        shape = channels, height, width
        arguments = {'maximum': maximum, 'windows': windows, 'cover_all': cover_all}
        if maximum and not node.is_nonnegative and Node('pooling', [node], shape, **arguments).padding() != (0, 0):
            node = self._node('copy', [node], node.shape)  # whose padding is lower than any number
        return self._node('pooling', [node], shape, **arguments)

    def _local_response(self, node: Node, n: int, k: float, alpha: float, beta: float) -> Node:
        return self._node('local_response', [node], node.shape, n=n, k=k, alpha=alpha, beta=beta)


_FUNCTIONS: dict[Callable[..., Any], Callable[..., Node]] = {
    F.relu: Graph._relu,
    F.clipped_relu: Graph._clipped_relu,
    F.relu6: Graph._relu6,
    F.leaky_relu: Graph._leaky_relu,
    F.max_pooling_2d: Graph._max_pooling,
    F.average_pooling_2d: Graph._average_pooling,
    F.local_response_normalization: Graph._local_response,
}


def operations_of(net: Any, shape: tuple[int, int, int], with_main: bool) -> Operations:
    """The operations of a BranchyNet, by its links.

    Args:
        net: the net.
        shape: of a sample, (C, H, W).
        with_main: whether main is wanted.

    Raises:
        NotCovered: there is no kernel for a link or function.
    """
    graph = Graph()
    x = node = graph.input(shape)
    trunk, heads = [], []
    for model in net.models:
        node = graph.follow(node, model[model.starti : model.endi])
        trunk.append(node)
        heads.append(graph.follow(node, model[model.endi :]))
    return Operations(x, trunk, heads, graph.follow(x, net.main) if with_main else None)


def ancestors(nodes: Iterable[Node]) -> list[Node]:
    """The nodes and all that they are computed from, inputs first."""
    found: dict[Node, None] = {}
    for root in nodes:
        stack = [(root, False)]  # no recursion, which a deep network would exhaust
        while stack:
            node, done = stack.pop()
            if done:
                found[node] = None
            elif node not in found:
                stack.append((node, True))
                stack += [(inner, False) for inner in reversed(node.inputs) if inner not in found]
    return list(found)


def fuse_rectifiers(outputs: Sequence[Node]) -> None:
    """Lets an operation do the rectifier after it, where nothing else reads its result.

    Args:
        outputs: the nodes whose results are wanted.
    """
    nodes = ancestors(outputs)
    readers: dict[Node, list[Node]] = {}
    for node in nodes:
        for inner in node.inputs:
            readers.setdefault(inner, []).append(node)
    fused = {}
    for node in nodes:
        inner = node.inputs[0] if node.inputs else node
        if (
            node.kind == 'rectified'
            and inner.kind in ('convolution', 'linear', 'scaling')
            and readers[inner] == [node]
            and not {node, inner}.intersection(outputs)
        ):
            inner.rectifier = node.arguments['rectifier']
            fused[node] = inner
    for node in nodes:
        node.inputs = [fused.get(inner, inner) for inner in node.inputs]


def folded(
    link: Union[L.Convolution2D, L.Linear], norm: Optional[L.BatchNormalization]
) -> tuple[np.ndarray, np.ndarray]:
    """(w, b) of a convolution or a linear layer, and the batch normalisation after it."""
    w: Any = link.W.array
    b: Any = np.zeros(len(w), np.float32) if link.b is None else link.b.array
    if norm is None:
        return w, b
    scale, shift = _scaled(norm, b)
    return scaled_weights(w, scale), shift


def scaled_weights(w: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Weights (O, ...), each output's times its scale (O,)."""
    return w * scale.reshape(len(w), *[1] * (w.ndim - 1))


def _check_norm(norm: L.BatchNormalization, channels: int, axis: tuple[int, ...]) -> None:
    """Raises NotCovered where a batch normalisation is not one by channel, over the other axes."""
    if not is_by_channel(norm, channels, axis):
        raise NotCovered('BatchNormalization over other axes')


def is_by_channel(norm: L.BatchNormalization, channels: int, axis: tuple[int, ...] = (0, 2, 3)) -> bool:
    """Whether a batch normalisation has statistics of so many channels, over the other axes."""
    return norm.axis in (None, axis) and norm.avg_mean is not None and norm.avg_mean.shape == (channels,)


def _scaled(norm: L.BatchNormalization, b: Any) -> tuple[np.ndarray, np.ndarray]:
    """(scale, shift) with norm(x + b) = x * scale + shift."""
    gamma = 1 if norm.gamma is None else norm.gamma.array
    beta = 0 if norm.beta is None else norm.beta.array
    return scale_and_shift(gamma, beta, norm.avg_mean, norm.avg_var, norm.eps, b)


def scale_and_shift(gamma: Any, beta: Any, mean: Any, var: Any, eps: float, b: Any) -> tuple[np.ndarray, np.ndarray]:
    """(scale, shift) with which the batch normalisation of x + b is x * scale + shift."""
    scale = (gamma / np.sqrt(var + eps)).astype(np.float32)
    return scale, ((b - mean) * scale + beta).astype(np.float32)


def _check_plain(link: chainer.Link) -> None:
    """Raises NotCovered where a link, or one inside it, computes something else than its class does."""
    for inner in link.links():
        if not is_unchanged(inner):
            raise NotCovered(f'{type(inner).__name__} with a hook or a forward of its own')


def in_testing_mode(link: Any) -> list[Any]:
    """The links that run in testing mode in place of a link: none for dropout, that of an SL, or the link itself."""
    if not is_unchanged(link):
        return [link]
    if type(link) is SL:
        return [] if link.fnTest is None else in_testing_mode(link.fnTest)
    is_dropout = type(link) is FL and link.fn is F.dropout and not link.kwargs.get('return_mask')
    return [] if is_dropout else [link]


def windows_of(ksize: Any, stride: Any, pad: Any) -> Windows:
    """The windows of a pooling, from arguments as of Chainer's functions."""
    return Windows(pair(ksize), pair(ksize if stride is None else stride), pair(pad))
