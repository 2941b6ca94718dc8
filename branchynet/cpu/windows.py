"""Convolutions as matrix products of weights and windows, for shapes where oneDNN's convolution is slower.

A window holds the numbers that one pixel of the output is computed from. Each group of channels is a convolution by
itself, of matrices: the weights (O, C * KH * KW), the windows (C * KH * KW, B * H' * W'), each of them a column, and
the output's pixels (B * H' * W', O), as they lie in memory with their channels last. With one window in each image, the
convolution is a linear layer.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Optional

from branchynet.cpu import memory
from branchynet.cpu.geometry import Geometry
from branchynet.cpu.layout import like
from branchynet.cpu.linear import linear, linear_gw, linear_gx
from branchynet.cpu.products import Product, Shape
from branchynet.cpu.threads import blocks

import numpy as np

_BLOCK = 256  # rows or columns of a product


def has_one_window(geometry: Geometry) -> bool:
    """Whether there is one window in each image."""
    return geometry.y[2:] == (1, 1)


def convolution(x: np.ndarray, w: np.ndarray, b: Optional[np.ndarray], geometry: Geometry) -> np.ndarray:
    """The output of a convolution.

    Args:
        x: images (B, C, H, W).
        w: weights (O, C / groups, KH, KW), C-contiguous.
        b: bias (O,), or None.
        geometry: its shapes.

    Returns:
        y (B, O, H', W'), channels last.
    """
    x = _padded(x, geometry)
    of_groups = [_output(x[:, inputs], _rows(w[outputs]), geometry) for inputs, outputs in _groups(geometry)]
    pixels = _joined(of_groups, axis=1)
    if b is not None:
        pixels += b
    images, outputs, *sizes = geometry.y
    return pixels.reshape(images, *sizes, outputs).transpose(0, 3, 1, 2)


def gradient_of_x(x: np.ndarray, w: np.ndarray, gy: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The gradient of the images, in their memory order.

    Args:
        x: images (B, C, H, W), C-contiguous or channels last.
        w: weights (O, C / groups, KH, KW), C-contiguous.
        gy: gradient of the output (B, O, H', W').
        geometry: the convolution's shapes.
    """
    (above, left), (height, width) = geometry.pad, geometry.x[2:]
    gx = np.zeros((*geometry.x[:2], height + 2 * above, width + 2 * left), np.float32)
    pixels = _pixels(gy)
    for inputs, outputs in _groups(geometry):
        _add_gradient_of_x(gx[:, inputs], _rows(w[outputs]), np.ascontiguousarray(pixels[:, outputs]), geometry)
    return like(gx[:, :, above : above + height, left : left + width], x)


def gradients_of_w(x: np.ndarray, gy: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """The gradients of w (O, C / groups, KH, KW) and b (O,); arguments as of ``gradient_of_x``."""
    x, pixels = _padded(x, geometry), _pixels(gy)
    of_groups = [
        _gradient_of_w(x[:, inputs], np.ascontiguousarray(pixels[:, outputs]), geometry)
        for inputs, outputs in _groups(geometry)
    ]
    gb = pixels.reshape(len(x), -1, geometry.w[0]).sum(axis=1).sum(axis=0)  # in two steps, which round less
    return _joined(of_groups, axis=0).reshape(geometry.w), gb


# One group: images x (B, C, H, W) with their padding, its weights and its pixels.


def _output(x: np.ndarray, weights: np.ndarray, geometry: Geometry) -> np.ndarray:
    if has_one_window(geometry):
        return linear(_rows(_only_window(x, geometry)), weights, None)
    return _product(_windows(x, geometry).T, weights.T)


def _add_gradient_of_x(gx: np.ndarray, weights: np.ndarray, pixels: np.ndarray, geometry: Geometry) -> None:
    if has_one_window(geometry):
        window = _only_window(gx, geometry)
        window += linear_gx(weights, pixels).reshape(window.shape)
        return
    windows = _product(weights.T, pixels.T)
    for numbers, of_windows in zip(_numbers(gx, geometry), _by_place(windows, geometry)):
        numbers += of_windows


def _gradient_of_w(x: np.ndarray, pixels: np.ndarray, geometry: Geometry) -> np.ndarray:
    if has_one_window(geometry):
        return linear_gw(_rows(_only_window(x, geometry)), pixels)
    windows = _windows(x, geometry)
    if len(pixels) <= max(len(windows), pixels.shape[1]):
        return _product(pixels.T, windows.T)
    return np.ascontiguousarray(_product(windows, pixels).T)  # copies fewer numbers


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The product of matrices (M, K) and (K, N), each C-contiguous or the transpose of one that is."""
    if not (a.flags.c_contiguous or b.flags.c_contiguous):  # sgemm takes longer for these than to copy one
        a, b = (np.ascontiguousarray(a), b) if a.size <= b.size else (a, np.ascontiguousarray(b))
    (m, k), n = a.shape, b.shape[1]
    out = memory.empty((m, n))
    _product_of(Shape(m, n, k, not a.flags.c_contiguous, not b.flags.c_contiguous)).write(a, b, out)
    return out


@functools.lru_cache(maxsize=1024)
def _product_of(shape: Shape) -> Product:
    return Product(shape, blocks(max(shape.m, shape.n), 1, _BLOCK), of_columns=shape.n > shape.m)


def _only_window(x: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The window (B, C, KH, KW) of each image."""
    rows, columns = (slice(0, (k - 1) * d + 1, d) for k, d in zip(geometry.w[2:], geometry.dilate))
    return x[:, :, rows, columns]


def _windows(x: np.ndarray, geometry: Geometry) -> np.ndarray:
    (images, _, *sizes), (_, *window) = geometry.y, geometry.w
    windows = memory.empty((math.prod(window), images * math.prod(sizes)))
    for numbers, of_windows in zip(_numbers(x, geometry), _by_place(windows, geometry)):
        of_windows[...] = numbers
    return windows


def _numbers(x: np.ndarray, geometry: Geometry) -> Iterator[np.ndarray]:
    """For each place of the kernel, the numbers (C, B, H', W') that all windows have there."""
    ranges = (
        [slice(i * d, i * d + (n - 1) * s + 1, s) for i in range(k)]
        for n, k, d, s in zip(geometry.y[2:], geometry.w[2:], geometry.dilate, geometry.stride)
    )
    for rows, columns in itertools.product(*ranges):
        yield x[:, :, rows, columns].swapaxes(0, 1)


def _by_place(windows: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The matrix of windows as an array (KH * KW, C, B, H', W')."""
    (images, _, *sizes), (_, channels, *_) = geometry.y, geometry.w
    return windows.reshape(channels, -1, images, *sizes).swapaxes(0, 1)


# Parts and forms of arrays


def _groups(geometry: Geometry) -> Iterator[tuple[slice, slice]]:
    """The input's and the output's channels of each group."""
    inputs, outputs = (shape[1] // geometry.groups for shape in (geometry.x, geometry.y))
    for i in range(geometry.groups):
        yield slice(i * inputs, (i + 1) * inputs), slice(i * outputs, (i + 1) * outputs)


def _joined(matrices: Sequence[np.ndarray], axis: int) -> np.ndarray:
    return matrices[0] if len(matrices) == 1 else np.concatenate(matrices, axis)


def _padded(x: np.ndarray, geometry: Geometry) -> np.ndarray:
    return np.pad(x, [(0, 0), (0, 0), *((p, p) for p in geometry.pad)]) if any(geometry.pad) else x


def _rows(array: np.ndarray) -> np.ndarray:
    """The array with its first axis and all others as a matrix, C-contiguous."""
    return np.ascontiguousarray(array.reshape(len(array), -1))


def _pixels(images: np.ndarray) -> np.ndarray:
    """Images (B, C, H, W) as a matrix (B * H * W, C), C-contiguous."""
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1)).reshape(-1, images.shape[1])
