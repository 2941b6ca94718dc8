"""Addition and ReLU, by NumPy in blocks that threads share."""

from __future__ import annotations

from typing import Any, Callable

from branchynet.cpu.layout import dense, is_channels_last, like, takes
from branchynet.cpu.threads import blocks, run

import numpy as np

_ELEMENTS = 1 << 18  # of a block


class Add:
    """Add's method."""

    def forward(self: Any, inputs: tuple, stock: Callable) -> tuple:
        """The method of this name, for arrays that the kernels take."""
        x, y = inputs
        if not (takes(x, y) and x.shape == y.shape):
            return stock(self, inputs)
        (x,) = dense(x)
        return (add(x, like(y, x), out=np.empty_like(x)),)


class ReLU:
    """ReLU's method."""

    def forward_cpu(self: Any, inputs: tuple, stock: Callable) -> tuple:
        """The method of this name, for arrays that the kernels take."""
        (x,) = inputs
        if not takes(x):
            return stock(self, inputs)
        self.retain_outputs((0,))
        (x,) = dense(x)
        return (relu(x),)


class ReLUGradient:
    """ReLUGrad2's method."""

    def forward_cpu(self: Any, inputs: tuple, stock: Callable) -> tuple:
        """The method of this name, for arrays that the kernels take."""
        (gy,) = inputs
        if not takes(gy, self.b):
            return stock(self, inputs)
        (y,) = dense(self.b)
        gy = like(gy, y)
        return (relu_gx(y, gy),)


_ZEROS = np.zeros(_ELEMENTS, np.float32)  # NumPy's maximum of two arrays is faster than of an array and a number


def _lines(x: np.ndarray) -> np.ndarray:
    """A view of all elements in the order of memory."""
    return (x.transpose(0, 2, 3, 1) if is_channels_last(x) else x).reshape(-1)


def add(x: np.ndarray, y: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Writes x + y into ``out``, all float32 of one shape and memory order, and returns it."""
    first, second, target, parts = _lines(x), _lines(y), _lines(out), blocks(x.size, 1, _ELEMENTS)
    run(lambda i: np.add(first[parts[i]], second[parts[i]], out=target[parts[i]]), len(parts))
    return out


def relu(x: np.ndarray) -> np.ndarray:
    """max(x, 0), in the memory order of x, float32."""
    y = np.empty_like(x)
    source, target, parts = _lines(x), _lines(y), blocks(x.size, 1, _ELEMENTS)
    run(lambda i: np.maximum(source[parts[i]], _ZEROS[: len(source[parts[i]])], out=target[parts[i]]), len(parts))
    return y


def relu_gx(y: np.ndarray, gy: np.ndarray) -> np.ndarray:
    """gy where y is positive, else 0; both float32, of one shape and memory order."""
    gx = np.empty_like(gy)
    outputs, gradients, target, parts = _lines(y), _lines(gy), _lines(gx), blocks(y.size, 1, _ELEMENTS)

    def task(i: int) -> None:
        np.greater(outputs[parts[i]], 0, out=target[parts[i]])
        target[parts[i]] *= gradients[parts[i]]

    run(task, len(parts))
    return gx
