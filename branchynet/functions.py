"""Functions of arrays on any device, and the mode of Chainer in which inference runs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import chainer
import numpy as np
from chainer.backend import get_array_module


@contextlib.contextmanager
def inference_mode() -> Iterator[None]:
    """A context in which Chainer is in testing mode and builds no graphs."""
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        yield


def entropy(prob: Any) -> Any:
    """Entropy of every row, in nats; the exit criterion of the paper (section III).

    Args:
        prob: NumPy or CuPy array or Variable (B, C), rows that sum to 1.

    Returns:
        Array (B,) of the same dtype on the same device: -sum_c p log p, with 0 log 0 = 0.
    """
    prob = chainer.as_array(prob)
    xp = get_array_module(prob)
    logs = xp.maximum(prob, smallest(prob.dtype))  # the logarithm of 0 would be infinite
    xp.log(logs, out=logs)
    logs *= prob
    return -logs.sum(axis=1)


@functools.cache
def smallest(dtype: np.dtype) -> np.floating:
    """The smallest positive number of a dtype."""
    return np.nextafter(dtype.type(0), dtype.type(1))


def rows(x: chainer.Variable, index: Any) -> chainer.Variable:
    """Rows ``index`` of the Variable x (B, ...), differentiable.

    The gradient is written in place, where F.get_item adds it up element by element, which takes seconds for a
    batch of images.

    Args:
        x: Variable (B, ...).
        index: integer array (N,) on the device of x, in which no row repeats.

    Returns:
        Variable (N, ...).
    """
    return _Rows(index)(x)


class _Rows(chainer.Function):
    def __init__(self, index: Any) -> None:
        self.index = index

    def forward(self, inputs: tuple) -> tuple:
        self.shape = inputs[0].shape
        return (inputs[0][self.index],)

    def backward(self, inputs: tuple, grad_outputs: tuple) -> tuple:
        (gy,) = grad_outputs
        gx = get_array_module(gy).zeros(self.shape, gy.dtype)
        gx[self.index] = gy
        return (gx,)
