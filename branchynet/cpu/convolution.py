"""Two-dimensional convolution and its gradients, by oneDNN; many of 3x3 pixels by Winograd's algorithm.

`_is_winograd` says which. Gradients of many 1x1 weights are matrix products, and so is all that oneDNN is slow at.
"""

from __future__ import annotations

import functools
import math
from ctypes import c_void_p
from typing import Any, Callable, Optional

from branchynet.cpu import memory, onednn, pointwise, windows
from branchynet.cpu.geometry import Geometry, geometry_of, settings_of
from branchynet.cpu.layout import (
    BYTES_OF_BLOCK,
    PARTS,
    cached,
    channels_last,
    dense,
    empty_like,
    form_of,
    is_channels_last,
    like,
    plain,
    takes,
)
from branchynet.cpu.loops import Blocks, Loop, Loops, Place, grouped
from branchynet.cpu.onednn import (
    ANY,
    BIAS,
    DIFF_BIAS,
    DIFF_DST,
    DIFF_SRC,
    DIFF_WEIGHTS,
    DST,
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

try:
    from branchynet.cpu import emitter, winograd

    _HAS_WINOGRAD = emitter.has_multiply_add()
except (ImportError, OSError):  # llvmlite is missing, or does not load
    _HAS_WINOGRAD = False

_WORK_OF_BLOCK = 1 << 23  # multiplications and additions that are worth a thread's call
_MOST_BYTES, _MOST_CHANNELS = 3 << 17, 96  # of weights, in the layers of the published networks
_FEWEST_PIXELS = 512  # of the outputs of a block of images whose gradient of larger weights is computed by itself


class Convolution:
    """Convolution2DFunction's methods."""

    def forward_cpu(self: Any, inputs: tuple, stock: Callable) -> tuple:
        """The method of this name, for arrays that the kernels take."""
        x, w, b = inputs if len(inputs) == 3 else (*inputs, None)
        if not (takes(x, w, b) and (b is None or b.shape == w.shape[:1])):
            return stock(self, inputs)
        geometry = _geometry_of(self, x, w)
        if geometry is None:
            return stock(self, inputs)
        self._check_input_layouts_all_standard()
        self.retain_inputs((0, 1))
        (x,) = dense(x)
        w, b = plain(w, b)
        return (convolution(x, w, b, geometry),)

    def backward(self: Any, indexes: tuple, grad_outputs: tuple, stock: Callable) -> tuple:
        """The method of this name, for arrays that the kernels take."""
        x, w = (v.array for v in self.get_retained_inputs())
        gy = grad_outputs[0].array
        # Chainer's own backward is a graph of functions, which gradients of gradients, hooks and the debug mode see.
        is_seen = chainer.config.enable_backprop or chainer.config.debug or chainer.get_function_hooks()
        geometry = None if is_seen or not takes(x, w, gy) else _geometry_of(self, x, w)
        if geometry is None:
            return stock(self, indexes, grad_outputs)
        (w,), (x, gy) = plain(w), dense(x, gy)
        gradients = convolution_gradients(x, w, gy, geometry, of_x=0 in indexes, of_w=max(indexes) > 0)
        return tuple(chainer.Variable(gradients[i]) for i in indexes)


def _geometry_of(function: Any, x: np.ndarray, w: np.ndarray) -> Optional[Geometry]:
    """The shapes of a call of a Convolution2DFunction; None where the kernels do not take it."""
    if function.cover_all or function.cudnn_fast:
        return None
    return geometry_of(x.shape, w.shape, settings_of(function))


def _blocks_of(geometry: Geometry) -> tuple[slice, ...]:
    """Blocks of images that fit the cache, and more of them where their work is worth a call."""
    size = 4 * (math.prod(geometry.x) + math.prod(geometry.y))
    return equal_blocks(geometry.x[0], max(-(-size // BYTES_OF_BLOCK), _parts_of_work(geometry)))


def _parts_of_work(geometry: Geometry) -> int:
    """How many calls the multiplications and additions of a convolution are worth, up to PARTS."""
    return min(PARTS, 2 * math.prod(geometry.w[1:]) * math.prod(geometry.y) // _WORK_OF_BLOCK)


def _parts_of_gw(geometry: Geometry) -> tuple[slice, ...]:
    """Blocks of images whose gradients of w are added up: fewer where that would take long beside computing them.

    The published networks' layers are below both limits, so that their training keeps its bits.
    """
    most = _parts_of_work(geometry)
    if 4 * math.prod(geometry.w) > _MOST_BYTES or max(geometry.w[:2]) > _MOST_CHANNELS:
        most = min(most, max(2, _pixels(geometry) // _FEWEST_PIXELS))
    return equal_blocks(geometry.x[0], most)


def _descriptor_of_y(geometry: Geometry) -> c_void_p:
    return create_descriptor(
        'convolution_forward',
        onednn.FORWARD_TRAINING,
        onednn.CONVOLUTION_DIRECT,
        describe(geometry.x, NHWC),
        geometry.weights(ANY),
        describe(geometry.w[:1], VECTOR),
        describe(geometry.y, NHWC),
        *geometry.windows(),
    )


def _descriptor_of_gx(geometry: Geometry) -> c_void_p:
    return create_descriptor(
        'convolution_backward_data',
        onednn.CONVOLUTION_DIRECT,
        describe(geometry.x, NHWC),
        geometry.weights(ANY),
        describe(geometry.y, NHWC),
        *geometry.windows(),
        _descriptor_of_y(geometry),
    )


def _descriptor_of_gw(geometry: Geometry) -> c_void_p:
    return create_descriptor(
        'convolution_backward_weights',
        onednn.CONVOLUTION_DIRECT,
        describe(geometry.x, NHWC),
        geometry.weights(ANY),
        describe(geometry.w[:1], VECTOR),
        describe(geometry.y, NHWC),
        *geometry.windows(),
        _descriptor_of_y(geometry),
    )


@cached
def _loops_of_y(geometry: Geometry, x_form: int) -> Loops:
    """Loops that run on x, w, b and y, in this order."""
    x, y = (4 * math.prod(shape[1:]) for shape in (geometry.x, geometry.y))
    return Loops(
        [
            Loop(
                _convolution(geometry.of_images(blocks.size), x_form),
                {SRC: blocks.of(0, x), WEIGHTS: Place(1), BIAS: Place(2), DST: blocks.of(3, y)},
                blocks.number,
            )
            for blocks in grouped(_blocks_of(geometry))
        ],
        arrays=4,
    )


@cached
def _loops_of_gradients(geometry: Geometry, x_form: int, y_form: int, of_x: bool, of_w: bool) -> Loops:
    """Loops that run on x, w, gy, gx, and the parts of the gradients of w and b, in this order."""
    x, w, y = (4 * math.prod(shape[1:]) for shape in (geometry.x, (1, *geometry.w), geometry.y))
    done, loops = 0, []
    for blocks in grouped(_parts_of_gw(geometry)) if of_w else ():
        results = Blocks(done, 1, blocks.number)
        places = {
            **{SRC: blocks.of(0, x), DIFF_DST: blocks.of(2, y)},
            **{DIFF_WEIGHTS: results.of(4, w), DIFF_BIAS: results.of(5, 4 * geometry.w[0])},
        }
        loops.append(Loop(_convolution_gw(geometry.of_images(blocks.size), x_form, y_form), places, blocks.number))
        done += blocks.number
    # The larger blocks come first, or a thread would wait for the last of them.
    for blocks in grouped(_blocks_of(geometry)) if of_x else ():
        places = {DIFF_SRC: blocks.of(3, x), WEIGHTS: Place(1), DIFF_DST: blocks.of(2, y)}
        loops.append(Loop(_convolution_gx(geometry.of_images(blocks.size), x_form, y_form), places, blocks.number))
    return Loops(loops, arrays=6)


@cached
def _convolution(geometry: Geometry, x_form: int) -> onednn.Primitive:
    return onednn.Primitive(
        _descriptor_of_y(geometry),
        {
            SRC: describe(geometry.x, x_form),
            WEIGHTS: geometry.weights(),
            BIAS: describe(geometry.w[:1], VECTOR),
            DST: describe(geometry.y, NHWC),
        },
    )


@cached
def _convolution_gx(geometry: Geometry, x_form: int, y_form: int) -> onednn.Primitive:
    return onednn.Primitive(
        _descriptor_of_gx(geometry),
        {
            DIFF_SRC: describe(geometry.x, x_form),
            WEIGHTS: geometry.weights(),
            DIFF_DST: describe(geometry.y, y_form),
        },
    )


@cached
def _convolution_gw(geometry: Geometry, x_form: int, y_form: int) -> onednn.Primitive:
    return onednn.Primitive(
        _descriptor_of_gw(geometry),
        {
            SRC: describe(geometry.x, x_form),
            DIFF_WEIGHTS: geometry.weights(),
            DIFF_BIAS: describe(geometry.w[:1], VECTOR),
            DIFF_DST: describe(geometry.y, y_form),
        },
    )


# Shapes that oneDNN computes more slowly than products with windows, such as those of wide layers: many outputs for
# each of few inputs. They depend on the shapes, and on the instructions of the processor as far as oneDNN's choice of
# code does; benchmarks/shapes.py measures them.

_FEWEST_CHANNELS = 5  # oneDNN's gradients fill a vector with channels, and leave most of it empty below
# Of kernels with several pixels, and with one: (the fewest weights whose rearrangement matters, the weights for each
# pixel of the outputs with which it takes as long as the arithmetic).
_MANY_WEIGHTS = (3 << 18, 1 << 15), (1 << 18, 1 << 14)
_LARGE_GROUP = 1 << 15  # weights of a group that are worth a product of their own
_FEW_PIXELS = 64  # of the outputs: for more, the arithmetic takes longer, however many weights there are


@cached
def _is_y_slow(geometry: Geometry) -> bool:
    if geometry.groups > 1:  # the products would be many and small
        return _is_chosen(('ref',), _descriptor_of_y(geometry))
    names = ('ref', 'brgconv:avx2') if geometry.w[0] == 1 else ('ref',)  # one output channel: masked on every pixel
    return (
        _has_many_weights(geometry) or windows.has_one_window(geometry) or _is_chosen(names, _descriptor_of_y(geometry))
    )


@cached
def _is_gx_slow(geometry: Geometry) -> bool:
    if geometry.groups > 1:
        return _is_chosen(('ref',), _descriptor_of_gx(geometry))
    outputs, inputs = geometry.w[:2]
    has_gaps = any(k < s for k, s in zip(geometry.w[2:], geometry.stride))  # pixels that no window reads
    is_wide = inputs < 32 and inputs % 16 > 0 and outputs >= 20 * inputs
    return (
        has_gaps
        or inputs < _FEWEST_CHANNELS
        or is_wide
        or _has_many_weights(geometry)
        or windows.has_one_window(geometry)
        or _is_chosen(('ref',), _descriptor_of_gx(geometry))
    )


@cached
def _is_gw_slow(geometry: Geometry) -> bool:
    if geometry.groups > 1:
        is_depthwise = geometry.w[1] == 1
        names = ('ref',) if is_depthwise else ('ref', 'x64:gemm')
        has_large_groups = math.prod(geometry.w) >= _LARGE_GROUP * geometry.groups
        return (has_large_groups and _has_many_gradients(geometry)) or _is_chosen(names, _descriptor_of_gw(geometry))
    (outputs, inputs), window = geometry.w[:2], math.prod(geometry.w[2:])
    is_wide = (inputs < 16 and outputs >= 256) or (inputs <= 32 and outputs >= 512 and window <= 9)
    return (
        max(outputs, inputs) < _FEWEST_CHANNELS
        or (is_wide and window > 1)
        or _has_many_gradients(geometry)
        or windows.has_one_window(geometry)
        or _is_chosen(('ref', 'x64:gemm'), _descriptor_of_gw(geometry))
    )


def _has_many_weights(geometry: Geometry) -> bool:
    """Whether rearranging the weights takes long beside the arithmetic: they are many, and the outputs' pixels few."""
    weights = math.prod(geometry.w)
    least, of_a_pixel = _MANY_WEIGHTS[_is_pointwise(geometry)]
    most = min(weights // of_a_pixel, _FEW_PIXELS) * math.prod(geometry.stride)  # strides make oneDNN slower
    return weights >= least and _pixels(geometry) <= most


def _has_many_gradients(geometry: Geometry) -> bool:
    """Whether adding up and rearranging the gradients of the weights takes long beside the arithmetic."""
    weights, pixels = math.prod(geometry.w), _pixels(geometry)
    if _is_pointwise(geometry) and pixels < pointwise.FEWEST:
        return weights >= 1 << 16
    read = pixels * math.prod(geometry.w[2:])  # pixels in all windows
    return weights >= 1 << 18 and read <= (5120 if weights >= 1 << 20 else 2560)


def _is_pointwise(geometry: Geometry) -> bool:
    return geometry.w[2:] == (1, 1)


def _pixels(geometry: Geometry) -> int:
    """The number of pixels of all outputs."""
    return geometry.x[0] * math.prod(geometry.y[2:])


def _is_gw_product(geometry: Geometry) -> bool:
    """Whether the gradient of w is a matrix product, of enough pixels that sgemm computes it sooner."""
    # With a stride, layers that may be the published networks' keep the bits of their gradients.
    may_be_published = max(geometry.w[:2]) <= _MOST_CHANNELS
    return (
        _is_pointwise(geometry)
        and geometry.groups == 1
        and geometry.pad == (0, 0)
        and (geometry.stride == (1, 1) or not may_be_published)
        and _pixels(geometry) >= pointwise.FEWEST
    )


def _is_chosen(names: tuple[str, ...], descriptor: c_void_p) -> bool:
    """Whether oneDNN would compute with code of one of these names."""
    return onednn.implementation(descriptor).startswith(names)


# Where Winograd's algorithm takes less time than oneDNN's sums.

# With more filters, reading their points takes longer than multiplying by them.
_MOST_FILTERS, _MOST_FILTERS_OF_GW = 1 << 16, 1 << 14
_FEWEST_IMAGES = 4  # fewer count as so many, so that ResNet's images have the same bits in every batch
_LEAST_SIZE = 4  # pixels: of smaller images, many windows reach beyond the image, where oneDNN multiplies nothing
_MOST_TILES = 128  # of a row, whose points stay in the cache
# (inputs, outputs, height) of AlexNet's layers, whose training keeps the bits of the committed results.
_OF_ALEXNET = {(64, 96, 8), (96, 96, 8), (96, 64, 8), (64, 32, 8), (32, 32, 8), (96, 32, 4)}


@functools.lru_cache(maxsize=1024)
def _is_winograd(geometry: Geometry) -> bool:
    """Whether the output and the gradient of x are computed by Winograd's algorithm."""
    (images, inputs, height, width), (outputs, *kernel), _, *settings = geometry
    tiles_of_row = -(-width // 2)
    tiles = -(-height // 2) * tiles_of_row
    return (
        _HAS_WINOGRAD
        and kernel == [inputs, 3, 3]
        and settings == [(1, 1), (1, 1), (1, 1), 1]  # stride, pad, dilate, groups
        and inputs % winograd.CHANNELS == outputs % winograd.CHANNELS == 0
        and inputs * outputs <= _MOST_FILTERS
        and max(images, _FEWEST_IMAGES) * tiles >= max(inputs, outputs)  # fewer take less time than the filters' points
        and min(height, width) >= _LEAST_SIZE
        and tiles_of_row <= _MOST_TILES
        and (inputs, outputs, height) not in _OF_ALEXNET
    )


def _is_gw_winograd(geometry: Geometry) -> bool:
    """Whether the gradients of w and b are computed by Winograd's algorithm."""
    outputs, inputs = geometry.w[:2]
    fills_vectors = outputs % (2 * winograd.CHANNELS) == 0 or not onednn.has_avx512()
    return _is_winograd(geometry) and fills_vectors and inputs * outputs <= _MOST_FILTERS_OF_GW


def _turned(array: np.ndarray) -> np.ndarray:
    """Images or weights with H and W exchanged."""
    return array.swapaxes(2, 3)


def _with_channels_last(images: np.ndarray) -> np.ndarray:
    """The images as they are, or copied, with their channels last in memory."""
    return images if is_channels_last(images) else like(images, channels_last(images.shape))


def convolution(x: np.ndarray, w: np.ndarray, b: Optional[np.ndarray], geometry: Geometry) -> np.ndarray:
    """The output of a convolution.

    Args:
        x: images (B, C, H, W), C-contiguous or channels last.
        w: weights (O, C / groups, KH, KW), C-contiguous.
        b: bias (O,), C-contiguous, or None.
        geometry: its shapes.

    Returns:
        y (B, O, H', W'), channels last.
    """
    lying = geometry.lying()
    if lying is not geometry:
        return _turned(convolution(_turned(x), _turned(w), b, lying))
    if _is_y_slow(geometry):
        return windows.convolution(x, w, b, geometry)
    y = channels_last(geometry.y)
    b = np.zeros(len(w), np.float32) if b is None else b
    if _is_winograd(geometry):
        winograd.convolution(_with_channels_last(x), w, b, y)
        return y
    _loops_of_y(geometry, form_of(x)).run(x, w, b, y)
    return y


def convolution_gradients(
    x: np.ndarray, w: np.ndarray, gy: np.ndarray, geometry: Geometry, of_x: bool, of_w: bool
) -> tuple[Optional[np.ndarray], ...]:
    """Gradients of a convolution.

    Args:
        x: images (B, C, H, W), C-contiguous or channels last.
        w: weights (O, C / groups, KH, KW), C-contiguous.
        gy: gradient of y (B, O, H', W'), C-contiguous or channels last.
        geometry: its shapes.
        of_x: whether that of x is wanted.
        of_w: whether those of w and b are wanted.

    Returns:
        Gradients of x, w and b; None for those that are not wanted.
    """
    lying = geometry.lying()
    if lying is not geometry:
        gx, gw, gb = convolution_gradients(_turned(x), _turned(w), _turned(gy), lying, of_x, of_w)
        return None if gx is None else _turned(gx), None if gw is None else _turned(gw), gb
    gx = gw = gb = None
    if of_x and _is_gx_slow(geometry):
        gx = windows.gradient_of_x(x, w, gy, geometry)
    elif of_x and _is_winograd(geometry):
        gx = channels_last(geometry.x)
        winograd.gradient_of_x(w, _with_channels_last(gy), gx)
        gx = like(gx, x)
    if of_w and _is_gw_slow(geometry):
        gw, gb = windows.gradients_of_w(x, gy, geometry)
    elif of_w and _is_gw_product(geometry):
        read = x[:, :, :: geometry.stride[0], :: geometry.stride[1]]
        gw, gb = pointwise.gradients_of_w(read, gy, _parts_of_work(geometry))
    elif of_w and _is_gw_winograd(geometry):
        most = max(1, _parts_of_work(geometry))
        gw, gb = winograd.gradients_of_w(_with_channels_last(x), _with_channels_last(gy), most)
    others = _gradients_by_onednn(x, w, gy, geometry, of_x and gx is None, of_w and gw is None)
    return tuple(other if own is None else own for own, other in zip((gx, gw, gb), others))


def _gradients_by_onednn(
    x: np.ndarray, w: np.ndarray, gy: np.ndarray, geometry: Geometry, of_x: bool, of_w: bool
) -> tuple[Optional[np.ndarray], ...]:
    """As convolution_gradients, for a geometry as ``lying`` returns it."""
    if not (of_x or of_w):
        return None, None, None
    gx = empty_like(x) if of_x else None
    gw = gb = None
    if of_w:
        parts = len(_parts_of_gw(geometry))
        gw, gb = memory.empty((parts, *geometry.w)), np.empty((parts, geometry.w[0]), np.float32)
    _loops_of_gradients(geometry, form_of(x), form_of(gy), of_x, of_w).run(x, w, gy, gx, gw, gb)
    return (gx, *(None if parts is None else parts.sum(axis=0) for parts in (gw, gb)))
