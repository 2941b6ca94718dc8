"""How images lie in memory, the blocks that threads share, and which arrays the kernels take.

Shapes: x (B, C, H, W), y and gy (B, O, H', W'), w (O, C, KH, KW), b (O,). Images are C-contiguous, or lie in memory
with their channels last, as a convolution leaves them: then the next kernel needs no copy, and per-channel work runs
over long rows. The shape is (B, C, H, W) either way.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from ctypes import Array
from typing import Any, Callable, Optional, TypeVar

from branchynet.cpu import memory, onednn
from branchynet.cpu.onednn import NCHW, NHWC, integers
from branchynet.cpu.threads import blocks, scratch

import numpy as np

PARTS = 8  # at most, of a batch whose parts' sums are added up, in order
BYTES_OF_BLOCK = 1 << 20  # a block fits the cache and is worth a thread's call

_FLOAT32 = np.dtype(np.float32)
_Made = TypeVar('_Made')


def is_channels_last(x: np.ndarray) -> bool:
    """Whether the images lie in memory as (B, H, W, C), and not as (B, C, H, W) too."""
    return x.ndim == 4 and not x.flags.c_contiguous and x.transpose(0, 2, 3, 1).flags.c_contiguous


def channels_last(shape: tuple[int, ...]) -> np.ndarray:
    """An uninitialised array of a shape (B, C, H, W) that lies in memory as (B, H, W, C)."""
    b, c, h, w = shape
    return memory.empty((b, h, w, c)).transpose(0, 3, 1, 2)


def empty_like(x: np.ndarray) -> np.ndarray:
    """An uninitialised float32 array in the shape and memory order of x, which is C-contiguous or channels last."""
    return channels_last(x.shape) if is_channels_last(x) else memory.empty(x.shape)


def like(a: np.ndarray, model: np.ndarray) -> np.ndarray:
    """The array in the memory order of another of its shape, copied if need be."""
    if a.strides == model.strides:
        return a
    copied = empty_like(model)
    np.copyto(copied, a)
    return copied


def form_of(x: np.ndarray) -> int:
    """oneDNN's name for the memory order of images."""
    return NHWC if is_channels_last(x) else NCHW


def scratch_like(slot: Hashable, x: np.ndarray) -> np.ndarray:
    """``threads.scratch`` of the shape of images x, and in their memory order."""
    if is_channels_last(x):
        b, c, h, w = x.shape
        return scratch(slot, (b, h, w, c)).transpose(0, 3, 1, 2)
    return scratch(slot, x.shape)


def image_blocks(*arrays: np.ndarray) -> tuple[slice, ...]:
    """Blocks of images whose part of all arrays fits the cache."""
    return blocks(len(arrays[0]), sum(array[:1].nbytes for array in arrays), BYTES_OF_BLOCK)


def addresses_of(array: np.ndarray, parts: Sequence[slice]) -> list[int]:
    """Where the parts of an array begin in memory."""
    first, step = memory.address(array), array.strides[0]
    return [first + part.start * step for part in parts]


def cached(create: Callable[..., _Made]) -> Callable[..., _Made]:
    """Keeps primitives, and loops of them, by their arguments.

    oneDNN makes a primitive for as many threads as will run it: one.
    """

    @functools.lru_cache(maxsize=128)  # each takes up to a megabyte of code and scratch
    def cached(*arguments: Hashable) -> _Made:
        with onednn.single_threaded():
            return create(*arguments)

    return cached


def window_arguments(
    x_shape: Sequence[int],
    kernel: Sequence[int],
    y_shape: Sequence[int],
    stride: Sequence[int],
    pad: Sequence[int],
    dilate: Sequence[int] = (1, 1),
) -> tuple[Array, Array, Array, Array]:
    """Strides, pixels left out between those of a window, padding before and after, as oneDNN takes them.

    Args:
        x_shape: (B, C, H, W).
        kernel: (KH, KW).
        y_shape: (B, O, H', W').
        stride: (vertical, horizontal).
        pad: rows above, columns on the left.
        dilate: distance between neighbouring pixels of a window, (vertical, horizontal).
    """
    after = [
        (n - 1) * s + (k - 1) * d + 1 - size - p
        for n, s, k, d, size, p in zip(y_shape[2:], stride, kernel, dilate, x_shape[2:], pad)
    ]
    return integers(stride), integers([d - 1 for d in dilate]), integers(pad), integers(after)


def rows_of(array: np.ndarray) -> list[int]:
    """Where the elements of the first axis begin in memory."""
    first, step = memory.address(array), array.strides[0]
    return [first + i * step for i in range(len(array))]


def takes(*arrays: Optional[np.ndarray]) -> bool:
    """Whether the kernels take these arrays: float32, on the CPU, with something in them."""
    for a in arrays:  # noqa: SIM110 - all() takes twice as long
        if a is not None and not (type(a) is np.ndarray and a.dtype == _FLOAT32 and a.size):
            return False
    return True


def dense(*arrays: np.ndarray) -> list[np.ndarray]:
    """The arrays without gaps: as they are where their channels lie last, else C-contiguous."""
    return [a if is_channels_last(a) else np.asarray(a, order='C') for a in arrays]


def plain(*arrays: Any) -> list:
    """The arrays, C-contiguous; None stays None."""
    # np.ascontiguousarray gives a 0-dimensional array an axis
    return [a if a is None or a.flags.c_contiguous else np.asarray(a, order='C') for a in arrays]
