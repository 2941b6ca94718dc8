"""Two-dimensional maximum and average pooling, by oneDNN."""

from __future__ import annotations

import math
from ctypes import Array, c_void_p
from typing import Any, Callable, NamedTuple, Optional

from branchynet.cpu import memory, onednn, threads
from branchynet.cpu.elementwise import are_ordinary
from branchynet.cpu.layout import (
    BYTES_OF_BLOCK,
    cached,
    channels_last,
    dense,
    form_of,
    is_channels_last,
    takes,
    window_arguments,
)
from branchynet.cpu.loops import Loop, Loops, grouped
from branchynet.cpu.onednn import DIFF_DST, DIFF_SRC, DST, SRC, WORKSPACE, create_descriptor, describe, integers

import numpy as np
from chainer.utils.conv import get_conv_outsize

_LARGEST_WINDOW = 255  # of a maximum pooling: its indexes are uint8
_FEWEST_CHANNELS = 5  # oneDNN fills a vector with channels; stock Chainer is faster below (benchmarks/shapes.py)


class Windows(NamedTuple):
    """Where a pooling looks; each (vertical, horizontal), in pixels.

    Attributes:
        kernel: size of a window.
        stride: from window to window.
        pad: on each side.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int]

    def y_shape(self, x_shape: tuple[int, ...], cover_all: bool = False) -> tuple[int, ...]:
        """Shape of the output, (B, C, H', W'); ``cover_all`` as in Chainer."""
        return x_shape[:2] + tuple(
            get_conv_outsize(size, k, s, p, cover_all) for size, k, s, p in zip(x_shape[2:], *self)
        )

    def have_pixels(self, x_shape: tuple[int, ...], y_shape: tuple[int, ...]) -> bool:
        """Whether every window has pixels in it: Chainer's maximum of padding alone is -inf, oneDNN's is not."""
        return min(y_shape) > 0 and all(
            0 <= p < k and (n - 1) * s - p < size for size, n, k, s, p in zip(x_shape[2:], y_shape[2:], *self)
        )

    def arguments(self, x_shape: tuple[int, ...], y_shape: tuple[int, ...]) -> tuple[Array, ...]:
        """Strides, kernel, dilation, padding before and after, as a pooling of oneDNN takes them."""
        strides, *others = window_arguments(x_shape, self.kernel, y_shape, self.stride, self.pad)
        return strides, integers(self.kernel), *others


class MaxPooling:
    """MaxPoolingND's method; its indexes are Chainer's, for Chainer's gradients of gradients and for users."""

    def forward_cpu(self: Any, inputs: tuple, stock: Callable) -> tuple:
        """The method of this name, for arrays that the kernels take."""
        (x,) = inputs
        if not (takes(x) and self.ndim == 2 and np.prod(self.ksize) <= _LARGEST_WINDOW):
            return stock(self, inputs)
        windows = Windows(self.ksize, self.stride, self.pad)
        y_shape = windows.y_shape(x.shape, self.cover_all)
        if not windows.have_pixels(x.shape, y_shape):
            return stock(self, inputs)
        (x,) = dense(x)
        if _is_slow(onednn.POOLING_MAX, x.shape, form_of(x), y_shape, windows):
            return stock(self, inputs)
        self._in_shape, self._in_dtype = x.shape, x.dtype
        y, small_indexes = max_pooling(x, y_shape, windows)
        if small_indexes is None:
            return stock(self, inputs)
        self._small_indexes = small_indexes
        return (y,)


def indexes_on_demand(function: Any, name: str) -> np.ndarray:
    """MaxPoolingND's ``__getattr__``: ``indexes`` in Chainer's dtype, which training does not ask for."""
    if name == 'indexes' and '_small_indexes' in vars(function):
        function.indexes = function._small_indexes.astype(np.intp)
        return function.indexes
    raise AttributeError(f'{type(function).__name__!r} object has no attribute {name!r}')


class MaxPoolingGradient:
    """MaxPoolingNDGrad's method."""

    def forward_cpu(self: Any, inputs: tuple, stock: Callable) -> tuple:
        """The method of this name, for arrays that the kernels take."""
        (gy,) = inputs
        function = self.func
        if not (takes(gy) and hasattr(function, '_small_indexes')):
            return stock(self, inputs)
        (gy,) = dense(gy)
        windows = Windows(function.ksize, function.stride, function.pad)
        return (max_pooling_gx(gy, function._small_indexes, windows, function._in_shape),)


class AveragePooling:
    """AveragePooling2D's method."""

    def forward_cpu(self: Any, inputs: tuple, stock: Callable) -> tuple:
        """The method of this name, for arrays that the kernels take."""
        (x,) = inputs
        if not takes(x):
            return stock(self, inputs)
        windows = windows_of_average(self)
        y_shape = windows.y_shape(x.shape)
        if not windows.have_pixels(x.shape, y_shape):
            return stock(self, inputs)
        (x,) = dense(x)
        if _is_slow(onednn.POOLING_AVERAGE_INCLUDE_PADDING, x.shape, form_of(x), y_shape, windows):
            return stock(self, inputs)
        self._in_shape, self._in_dtype = x.shape, x.dtype
        return (average_pooling(x, y_shape, windows),)


class AveragePoolingGradient:
    """AveragePooling2DGrad's method."""

    def forward_cpu(self: Any, inputs: tuple, stock: Callable) -> tuple:
        """The method of this name, for arrays that the kernels take."""
        (gy,) = inputs
        windows = windows_of_average(self)
        if not (takes(gy) and gy.shape[1] >= _FEWEST_CHANNELS and windows.have_pixels(self._in_shape, gy.shape)):
            return stock(self, inputs)
        (gy,) = dense(gy)
        return (average_pooling_gx(gy, windows, self._in_shape),)


def windows_of_average(function: Any) -> Windows:
    """The windows of an AveragePooling2D."""
    return Windows((function.kh, function.kw), (function.sy, function.sx), (function.ph, function.pw))


def _descriptor_of_y(
    algorithm: int, x_shape: tuple[int, ...], form: int, y_shape: tuple[int, ...], windows: Windows
) -> c_void_p:
    return create_descriptor(
        'pooling_forward',
        onednn.FORWARD_TRAINING,
        algorithm,
        describe(x_shape, form),
        describe(y_shape, form),
        *windows.arguments(x_shape, y_shape),
    )


@cached
def _pooling(
    algorithm: int, x_shape: tuple[int, ...], form: int, y_shape: tuple[int, ...], y_form: int, windows: Windows
) -> tuple[onednn.Primitive, onednn.Primitive]:
    """(forward, backward) primitives; y_form: of y's gradient, all else is in ``form``."""
    x, y = describe(x_shape, form), describe(y_shape, form)
    hint = _descriptor_of_y(algorithm, x_shape, form, y_shape, windows)
    workspace = {WORKSPACE: None} if algorithm == onednn.POOLING_MAX else {}
    forward = onednn.Primitive(hint, {SRC: x, DST: y, **workspace})
    descriptor = create_descriptor('pooling_backward', algorithm, x, y, *windows.arguments(x_shape, y_shape), hint)
    return forward, onednn.Primitive(descriptor, {DIFF_SRC: x, DIFF_DST: describe(y_shape, y_form), **workspace})


@cached
def _loops(
    algorithm: int,
    x_shape: tuple[int, ...],
    form: int,
    y_shape: tuple[int, ...],
    y_form: int,
    windows: Windows,
    of_gradient: bool,
) -> Loops:
    """Loops that run on x, y, and the indexes of maxima, or on the gradients of x and y, and the indexes."""
    x, y = (4 * math.prod(shape[1:]) for shape in (x_shape, y_shape))
    kinds, loops = (DIFF_SRC, DIFF_DST) if of_gradient else (SRC, DST), []
    for blocks in grouped(threads.blocks(x_shape[0], x + y, BYTES_OF_BLOCK)):
        shapes = (blocks.size, *x_shape[1:]), (blocks.size, *y_shape[1:])
        primitive = _pooling(algorithm, shapes[0], form, shapes[1], y_form, windows)[of_gradient]
        places = {kinds[0]: blocks.of(0, x), kinds[1]: blocks.of(1, y)}
        if algorithm == onednn.POOLING_MAX:
            places[WORKSPACE] = blocks.of(2, y // 4)  # a byte for each number
        loops.append(Loop(primitive, places, blocks.number))
    return Loops(loops, arrays=3)


@cached
def _is_slow(algorithm: int, x_shape: tuple[int, ...], form: int, y_shape: tuple[int, ...], windows: Windows) -> bool:
    """Whether stock Chainer is faster: oneDNN would use no vectors, or leave most of them empty."""
    descriptor = _descriptor_of_y(algorithm, x_shape, form, y_shape, windows)
    is_plain = onednn.implementation(descriptor).startswith(('simple', 'ref'))
    return x_shape[1] < _FEWEST_CHANNELS or (is_plain and windows.kernel != (1, 1))


def max_pooling(x: np.ndarray, y_shape: tuple[int, ...], windows: Windows) -> tuple[np.ndarray, Optional[np.ndarray]]:
    """Maximum pooling.

    Args:
        x: images (B, C, H, W), float32, C-contiguous or channels last.
        y_shape: shape of y, (B, C, H', W').
        windows: which all have pixels.

    Returns:
        y, and uint8 of y's shape: where in its window each maximum is, row by row. The latter is None where x has
        NaN, which oneDNN passes over, infinities, or the lowest finite number, which oneDNN takes the padding for.
    """
    y = _pooled(x, y_shape)
    indexes = np.empty_like(y, np.uint8)
    _loops(onednn.POOLING_MAX, x.shape, form_of(x), y_shape, form_of(y), windows, False).run(x, y, indexes)
    return y, indexes if are_ordinary(x) else None


def max_pooling_gx(gy: np.ndarray, indexes: np.ndarray, windows: Windows, x_shape: tuple[int, ...]) -> np.ndarray:
    """Gradient of x, (B, C, H, W), from that of y and max_pooling's indexes, both (B, C, H', W')."""
    return _pooling_gx(onednn.POOLING_MAX, gy, _pooled(indexes, x_shape), windows, indexes)


def average_pooling(x: np.ndarray, y_shape: tuple[int, ...], windows: Windows) -> np.ndarray:
    """Average pooling.

    Args:
        x: images (B, C, H, W), float32, C-contiguous or channels last.
        y_shape: shape of y, (B, C, H', W').
        windows: which all have pixels.

    Returns:
        y: the mean of every window, in which padding counts as zeros.
    """
    y = _pooled(x, y_shape)
    algorithm = onednn.POOLING_AVERAGE_INCLUDE_PADDING
    _loops(algorithm, x.shape, form_of(x), y_shape, form_of(y), windows, False).run(x, y, None)
    return y


def average_pooling_gx(gy: np.ndarray, windows: Windows, x_shape: tuple[int, ...]) -> np.ndarray:
    """Gradient of x, (B, C, H, W), from that of y, (B, C, H', W')."""
    return _pooling_gx(onednn.POOLING_AVERAGE_INCLUDE_PADDING, gy, channels_last(x_shape), windows, None)


def _pooling_gx(
    algorithm: int, gy: np.ndarray, gx: np.ndarray, windows: Windows, indexes: Optional[np.ndarray]
) -> np.ndarray:
    """Fills gx and returns it; the indexes, if any, are in its memory order."""
    _loops(algorithm, gx.shape, form_of(gx), gy.shape, form_of(gy), windows, True).run(gx, gy, indexes)
    return gx


def _pooled(x: np.ndarray, y_shape: tuple[int, ...]) -> np.ndarray:
    """An uninitialised float32 array of y's shape, in the memory order of x."""
    return channels_last(y_shape) if is_channels_last(x) else memory.empty(y_shape)
