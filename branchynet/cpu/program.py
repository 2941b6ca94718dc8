"""Links compiled for inference: no graph, batch normalisation folded, ReLU fused, all buffers preallocated."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from ctypes import c_float
from typing import Any, Callable, Optional

from branchynet.cpu import onednn
from branchynet.cpu.geometry import geometry_of, settings_of_link
from branchynet.cpu.graph import folded, in_testing_mode, is_by_channel, windows_of
from branchynet.cpu.onednn import ANY, BIAS, DST, MATRIX, NCHW, SRC, VECTOR, WEIGHTS, describe
from branchynet.cpu.pooling import Windows
from branchynet.links.links import FL, arguments_of, calls_one_of, is_unchanged, shortcut
from branchynet.links.resnet import ResBlock

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np


class Packed:
    """Weights in the layouts that oneDNN wants, packed once and shared by the programs of all threads and sizes."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal's handler may come while it is held
        self._entries: dict[Any, list[tuple[onednn.Primitive, np.ndarray]]] = {}

    def get(self, key: Any, primitive: onednn.Primitive, weights: Callable[[], np.ndarray]) -> np.ndarray:
        """The weights of ``key`` in the primitive's layout.

        Args:
            key: which weights; the same key always stands for the same numbers.
            primitive: the primitive that will read them.
            weights: returns them as an array (O, ...); called unless an equal layout was packed before.
        """
        wanted = primitive.format(WEIGHTS)
        with self._lock:
            entries = self._entries.setdefault(key, [])
            for other, packed in entries:
                if onednn.equal(other.format(WEIGHTS), wanted):
                    return packed
            packed = primitive.pack(weights())
            entries.append((primitive, packed))  # the layout belongs to the primitive
            return packed


class Workspace:
    """The memory for intermediate results that the programs of one thread share: only one of them runs at a time."""

    def __init__(self) -> None:
        self._slots: list[np.ndarray] = []

    def take(self, slot: int, size: int) -> np.ndarray:
        """The float32 array (size,) in a slot, in which other programs put their results too."""
        if slot == len(self._slots):
            self._slots.append(np.zeros(0, np.float32))
        if len(self._slots[slot]) < size:
            self._slots[slot] = np.zeros(size, np.float32)  # earlier programs keep the smaller one
        return self._slots[slot][:size]


class Program:
    """Links in testing mode, compiled for arrays of one shape.

    A link is compiled if its type is known exactly and nothing hooks into it. All others, and subclasses with a
    ``forward`` of their own, are called as they are, with Chainer. The links must not change afterwards. A program
    is run by one thread at a time, within onednn.single_threaded().

    Args:
        links: the links, to be called one after the other.
        x: the array (B, ...) that holds the input whenever ``run`` is called.
        packed: the links' packed weights.
        workspace: the calling thread's workspace.

    Attributes:
        x, y: the arrays of the input and of the output.
        calls_links: whether a link is called as it is.
    """

    def __init__(self, links: Iterable[chainer.Link], x: np.ndarray, packed: Packed, workspace: Workspace) -> None:
        self.x = x
        self.calls_links = False
        self._steps: list[Callable[[], Any]] = []
        self._arrays: list[np.ndarray] = []  # oneDNN knows their addresses only
        self._packed = packed
        self._workspace = workspace
        self._slot = 0
        self._value = _Value(x.shape, x)
        self._links = [link for outer in links for link in in_testing_mode(outer)]
        with onednn.single_threaded():
            while self._links:
                self._compile_next()
            self.y = self._plain()

    def run(self) -> None:
        """Computes ``y`` from ``x``."""
        for step in self._steps:
            if step():  # a primitive's status
                raise RuntimeError('oneDNN: primitive_execute failed')

    def _compile_next(self) -> None:
        """Compiles the first of the links that are left, and those after it that are fused with it."""
        link, *others = self._links
        value, steps = self._value, len(self._steps)
        self._links = list(others)
        try:
            self._compile(link)
            return
        except RuntimeError:  # _LeftToChainer, or oneDNN has no kernel for these shapes
            self._links, self._value = others, value
            del self._steps[steps:]
        self._apply(link)

    def _compile(self, link: chainer.Link) -> None:
        dimensions = len(self._value.shape) if self._value.is_float32 else 0
        if dimensions == 4 and _is_exactly(link, L.Convolution2D):
            norm = self._links.pop(0) if self._links and _is_plain_norm(self._links[0], link) else None
            self._convolution(link, norm, relu=self._pop_relu())
        elif dimensions and _is_exactly(link, L.Linear):
            self._linear(link, relu=self._pop_relu())
        elif dimensions == 4 and _is_plain_block(link):
            self._residual(link)
        elif calls_one_of(link, _DIMENSIONS) and _is_exactly(link, FL) and dimensions in _DIMENSIONS[link.fn]:
            _FUNCTIONS[link.fn](self, *arguments_of(link.fn, link.args, link.kwargs))
        else:
            self._apply(link)

    def _pop_relu(self) -> bool:
        """Takes a ReLU off the front of the links that are left, if one is there."""
        if self._links and _is_exactly(self._links[0], FL) and self._links[0].fn is F.relu:
            del self._links[0]
            return True
        return False

    # Steps

    def _convolution(
        self, link: L.Convolution2D, norm: Optional[L.BatchNormalization], relu: bool, onto: Optional[_Value] = None
    ) -> None:
        """A convolution and the normalisation after it, if any, added to the value ``onto``, if any."""
        value = self._value
        w, b = map(np.ascontiguousarray, folded(link, norm))
        geometry = geometry_of(value.shape, w.shape, settings_of_link(link))
        if geometry is None:
            raise _LeftToChainer
        descriptor = onednn.create_descriptor(
            'convolution_forward',
            onednn.FORWARD_INFERENCE,
            onednn.CONVOLUTION_DIRECT,
            describe(value.shape, ANY),
            geometry.weights(ANY),
            describe(b.shape, VECTOR),
            describe(geometry.y, ANY),
            *geometry.windows(),
            attribute=onednn.attribute(add=onto is not None, relu=relu),
        )
        primitive = onednn.Primitive(
            descriptor, {SRC: None, WEIGHTS: geometry.weights(), BIAS: describe(b.shape, VECTOR), DST: None}
        )
        y = self._new(geometry.y, primitive.format(DST))
        if onto is not None:
            self._copy(onto, y)
        source = self._in_format(primitive.format(SRC))
        packed = self._packed.get((id(link), id(norm)), primitive, lambda: w)
        self._execute(primitive, {SRC: source.array, WEIGHTS: packed, BIAS: b, DST: y.array})
        self._value = y

    def _linear(self, link: L.Linear, relu: bool) -> None:
        if len(self._value.shape) not in (2, 4):
            x = self._plain()
            self._value = _Value((len(x), x[0].size), x.reshape(len(x), -1))
        value = self._value
        w, b = map(np.ascontiguousarray, folded(link, None))
        w = w.reshape((len(w), *value.shape[1:]))
        y_shape = (value.shape[0], len(w))
        descriptor = onednn.create_descriptor(
            'inner_product_forward',
            onednn.FORWARD_INFERENCE,
            value.format,
            describe(w.shape, ANY),
            describe(b.shape, VECTOR),
            describe(y_shape, MATRIX),
            attribute=onednn.attribute(relu=relu),
        )
        primitive = onednn.Primitive(
            descriptor,
            {SRC: None, WEIGHTS: describe(w.shape, _plain_tag(w.shape)), BIAS: describe(b.shape, VECTOR), DST: None},
        )
        y = self._new(y_shape, primitive.format(DST))
        packed = self._packed.get((id(link), w.shape), primitive, lambda: w)
        self._execute(primitive, {SRC: value.array, WEIGHTS: packed, BIAS: b, DST: y.array})
        self._value = y

    def _residual(self, block: ResBlock) -> None:
        """A ResBlock: its second convolution is added onto the shortcut."""
        before = self._value
        self._convolution(block.conv1, block.bn1, relu=True)
        inner = self._value
        if inner.shape != before.shape:
            self._value = before
            self._apply(lambda x: shortcut(x, inner.shape))
            before, self._value = self._value, inner
        self._convolution(block.conv2, block.bn2, relu=True, onto=before)

    def _relu(self) -> None:
        value = self._value
        descriptor = onednn.create_descriptor(
            'eltwise_forward',
            onednn.FORWARD_INFERENCE,
            onednn.RELU,
            value.format,
            value.format,
            c_float(0),
            c_float(0),
        )
        y = self._new(value.shape, value.format)
        self._execute(onednn.Primitive(descriptor, {SRC: None, DST: None}), {SRC: value.array, DST: y.array})
        self._value = y

    def _max_pooling(self, ksize: Any, stride: Any, pad: Any, cover_all: bool, return_indices: bool) -> None:
        if return_indices:
            raise _LeftToChainer
        self._pooling(onednn.POOLING_MAX, windows_of(ksize, stride, pad), cover_all)

    def _average_pooling(self, ksize: Any, stride: Any, pad: Any) -> None:
        self._pooling(onednn.POOLING_AVERAGE_INCLUDE_PADDING, windows_of(ksize, stride, pad), False)

    def _pooling(self, algorithm: int, windows: Windows, cover_all: bool) -> None:
        value = self._value
        y_shape = windows.y_shape(value.shape, cover_all)
        if not windows.have_pixels(value.shape, y_shape):
            raise _LeftToChainer
        descriptor = onednn.create_descriptor(
            'pooling_forward',
            onednn.FORWARD_INFERENCE,
            algorithm,
            value.format,
            describe(y_shape, ANY),
            *windows.arguments(value.shape, y_shape),
        )
        primitive = onednn.Primitive(descriptor, {SRC: None, DST: None})
        y = self._new(y_shape, primitive.format(DST))
        self._execute(primitive, {SRC: value.array, DST: y.array})
        self._value = y

    def _apply(self, function: Callable[[np.ndarray], Any]) -> None:
        """A step in Chainer, on a plain array."""
        x = self._plain()

        def call() -> np.ndarray:
            with chainer.using_config('train', False), chainer.no_backprop_mode():
                return chainer.as_array(function(x))

        y = call()
        if not isinstance(y, np.ndarray):
            raise ValueError(
                f'{_name(function)} returns a {type(y).__name__}: expected an array, or the net cannot be compiled'
            )
        self.calls_links |= isinstance(function, chainer.Link)
        y = np.array(y, order='C')  # not a view of this program's memory, which other programs share
        self._value = _Value(y.shape, y)
        self._steps.append(lambda: np.copyto(y, call()))

    # Values and layouts

    def _new(self, shape: tuple, form: Any) -> _Value:
        """A new value; that of the last link in memory of its own, as it outlives this program's run."""
        size = onednn.size(form) // 4
        if not self._links:
            return _Value(shape, np.zeros(size, np.float32), form)
        array = self._workspace.take(self._slot, size)
        self._slot += 1
        return _Value(shape, array, form)

    def _in_format(self, form: Any) -> _Value:
        """The current value in a layout."""
        if onednn.equal(self._value.format, form):
            return self._value
        y = self._new(self._value.shape, form)
        self._copy(self._value, y)
        return y

    def _copy(self, source: _Value, target: _Value) -> None:
        self._execute(onednn.Reorder(source.format, target.format), {SRC: source.array, DST: target.array})

    def _plain(self) -> np.ndarray:
        """The current value as an array of its shape."""
        if self._value.own_format is not None:
            self._value = self._in_format(_plain_format(self._value.shape))
        return self._value.array.reshape(self._value.shape)

    def _execute(self, primitive: onednn.Primitive, arrays: dict[int, np.ndarray]) -> None:
        self._arrays += arrays.values()
        self._steps.append(primitive.bound(arrays))


class _LeftToChainer(RuntimeError):
    """A link is called as it is."""


class _Value:
    """An array of a shape, plain or in one of oneDNN's layouts."""

    def __init__(self, shape: tuple, array: np.ndarray, form: Any = None) -> None:
        self.shape = shape
        self.array = array
        self.own_format = form  # None: plain

    @property
    def format(self) -> Any:
        return self.own_format or _plain_format(self.shape)

    @property
    def is_float32(self) -> bool:
        return self.array.dtype == np.float32


_FUNCTIONS: dict[Any, Callable[..., None]] = {
    F.relu: Program._relu,
    F.max_pooling_2d: Program._max_pooling,
    F.average_pooling_2d: Program._average_pooling,
}
# The numbers of dimensions of the arrays that they are compiled for.
_DIMENSIONS = {F.relu: (2, 4), F.max_pooling_2d: (4,), F.average_pooling_2d: (4,)}


def _is_exactly(link: Any, kind: type[chainer.Link]) -> bool:
    """Whether a link is of this very class, and does what the class does."""
    return type(link) is kind and is_unchanged(link)


def _name(function: Any) -> str:
    return getattr(getattr(function, 'fn', None), '__name__', type(function).__name__)


def _is_plain_norm(link: Any, convolution: L.Convolution2D) -> bool:
    """Whether a link is a batch normalisation per channel of the convolution before it."""
    return _is_exactly(link, L.BatchNormalization) and is_by_channel(link, convolution.W.shape[0])


def _is_plain_block(link: Any) -> bool:
    return _is_exactly(link, ResBlock) and all(
        _is_exactly(conv, L.Convolution2D) and _is_plain_norm(norm, conv)
        for conv, norm in ((link.conv1, link.bn1), (link.conv2, link.bn2))
    )


def _plain_tag(shape: tuple) -> int:
    return {2: MATRIX, 4: NCHW}[len(shape)]


def _plain_format(shape: tuple) -> Any:
    return describe(shape, _plain_tag(shape))
