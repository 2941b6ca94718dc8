"""The shapes of a convolution, and how oneDNN takes them."""

from __future__ import annotations

import functools
import itertools
from ctypes import Array, c_void_p
from typing import Any, NamedTuple, Optional

from branchynet.cpu.layout import window_arguments
from branchynet.cpu.onednn import GROUPS, NCHW, describe

import numpy as np
from chainer.utils.conv import get_conv_outsize


class Settings(NamedTuple):
    """The settings of a convolution.

    Attributes:
        stride: rows and columns from window to window.
        pad: rows and columns of zeros around the input.
        dilate: rows and columns between neighbouring pixels of a window.
        groups: of channels; each group of the output is computed from that group of the input alone.
    """

    stride: tuple[int, int]
    pad: tuple[int, int]
    dilate: tuple[int, int]
    groups: int


class Geometry(NamedTuple):
    """The shapes of a convolution.

    Attributes:
        x: shape of the input, (B, C, H, W).
        w: of the weights, (O, C / groups, KH, KW).
        y: of the output, (B, O, H', W').
        stride: pixels from window to window, (vertical, horizontal).
        pad: rows of zeros above and below, and columns on both sides.
        dilate: distance between neighbouring pixels of a window, (vertical, horizontal).
        groups: of channels; each group of the output is computed from that group of the input alone.
    """

    x: tuple[int, ...]
    w: tuple[int, ...]
    y: tuple[int, ...]
    stride: tuple[int, int]
    pad: tuple[int, int]
    dilate: tuple[int, int] = (1, 1)
    groups: int = 1

    def of_images(self, count: int) -> Geometry:
        """The same for another number of images."""
        return self._replace(x=(count, *self.x[1:]), y=(count, *self.y[1:]))

    def windows(self) -> tuple[Array, ...]:
        """Strides, gaps and padding as oneDNN takes them."""
        return window_arguments(self.x, self.w[2:], self.y, self.stride, self.pad, self.dilate)

    def weights(self, form: Optional[int] = None) -> c_void_p:
        """The weights as oneDNN describes them, with an axis more if they are in groups.

        Args:
            form: a format of oneDNN's; None: C-contiguous.
        """
        outputs, *sizes = self.w
        if self.groups == 1:
            return describe(self.w, NCHW if form is None else form)
        return describe((self.groups, outputs // self.groups, *sizes), GROUPS if form is None else form)

    def lying(self) -> Geometry:
        """The same with H and W exchanged, if images and kernel are one pixel wide: oneDNN is much faster so."""
        if not self.x[2] > self.x[3] == self.w[3] == self.y[3] == 1 or self.pad[1]:
            return self
        x, w, y = ((*shape[:2], shape[3], shape[2]) for shape in (self.x, self.w, self.y))
        return Geometry(x, w, y, self.stride[::-1], self.pad[::-1], self.dilate[::-1], self.groups)


def pair(value: Any) -> tuple[int, int]:
    """(vertical, horizontal), of two numbers or one for both."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def settings_of_link(link: Any) -> Settings:
    """The settings of a chainer.links.Convolution2D."""
    return Settings(pair(link.stride), pair(link.pad), pair(link.dilate), link.groups)


def settings_of(function: Any) -> Settings:
    """The settings of a Convolution2DFunction."""
    stride, pad, dilate = (function.sy, function.sx), (function.ph, function.pw), (function.dy, function.dx)
    return Settings(stride, pad, dilate, function.groups)


def geometry_of(x: tuple[int, ...], w: tuple[int, ...], settings: Settings) -> Optional[Geometry]:
    """The shapes of a convolution, or None where they do not fit, so that Chainer says so.

    Args:
        x: as of Geometry.
        w: as of Geometry.
        settings: of the convolution.
    """
    *pairs, groups = settings
    if not all(isinstance(number, (int, np.integer)) for number in (*itertools.chain(*pairs), groups)):
        return None  # 2.0, which the cache would take for 2
    return _geometry_of(x, w, settings)


@functools.lru_cache(maxsize=1024)
def _geometry_of(x: tuple[int, ...], w: tuple[int, ...], settings: Settings) -> Optional[Geometry]:
    stride, pad, dilate, groups = settings
    if not len(x) == len(w) == 4 or min(*stride, *dilate, groups) < 1 or min(pad) < 0:
        return None
    if x[1] != w[1] * groups or w[0] % groups:
        return None
    sizes = [get_conv_outsize(size, k, s, p, d=d) for size, k, s, p, d in zip(x[2:], w[2:], stride, pad, dilate)]
    return Geometry(x, w, (x[0], w[0], *sizes), *settings) if min(sizes) > 0 else None
