"""Linear layers, by oneDNN: x (B, I), w (O, I), b (O,), gy (B, O), all float32."""

from __future__ import annotations

from typing import Any, Callable, Optional

from branchynet import _chainer  # noqa: F401
from branchynet.cpu import onednn
from branchynet.cpu.layout import plain, run_primitives, takes
from branchynet.cpu.threads import blocks

import chainer
import numpy as np

_LEAST_FEATURES = 10  # a product with fewer rows or columns is done sooner by NumPy than by oneDNN
_LARGEST_BATCH = 1 << 14  # whose blocks have _ROWS rows: the bits of sums depend on how many there are
_ROWS, _COLUMNS = 64, 256  # of a block of a matrix product
_WORK_OF_BLOCK = 1 << 21  # multiplications and additions that are worth a thread's call


class Linear:
    """LinearFunction's method."""

    def forward(self, inputs: tuple, stock: Callable) -> tuple:
        """The method of this name, for arrays that the kernels take."""
        x, w, b = inputs if len(inputs) == 3 else (*inputs, None)
        if not (takes(x, w, b) and x.shape[1] == w.shape[1] and not _is_thin(w)):
            return stock(self, inputs)
        _prepare(self)
        return (linear(*plain(x, w, b)),)


class LinearGradientOfX:
    """LinearGradData's method."""

    def forward(self, inputs: tuple, stock: Callable) -> tuple:
        """The method of this name, for arrays that the kernels take."""
        w, gy = inputs
        if not takes(w, gy) or _is_thin(w):
            return stock(self, inputs)
        _prepare(self)
        return (linear_gx(*plain(w, gy)),)


class LinearGradientOfW:
    """LinearGradWeight's method."""

    def forward(self, inputs: tuple, stock: Callable) -> tuple:
        """The method of this name, for arrays that the kernels take."""
        x, gy = inputs
        if not (takes(x, gy) and self._w_dtype == np.float32) or min(x.shape[1], gy.shape[1]) < _LEAST_FEATURES:
            return stock(self, inputs)
        _prepare(self)
        return (linear_gw(*plain(x, gy)),)


def _prepare(function: Any) -> None:
    """Does what the stock methods do besides the product."""
    function._config_use_ideep = chainer.config.use_ideep
    function.retain_inputs((0, 1))


def _is_thin(w: np.ndarray) -> bool:
    """Whether a layer with these weights is left to stock Chainer."""
    return min(w.shape) < _LEAST_FEATURES


def linear(x: np.ndarray, w: np.ndarray, b: Optional[np.ndarray]) -> np.ndarray:
    """The layer's output.

    Args:
        x: input (B, I).
        w: weights (O, I).
        b: bias (O,), or None.

    Returns:
        x w' + b, (B, O).
    """
    y = np.empty((len(x), len(w)), np.float32)
    parts = _blocks_of_batch(len(x), w.size)

    def task(i: int) -> None:
        onednn.matmul(x[parts[i]], w, y[parts[i]], transpose_b=True)

    if x.size * len(w) <= _WORK_OF_BLOCK:  # not worth another thread
        with onednn.single_threaded():
            for i in range(len(parts)):
                task(i)
    else:
        run_primitives(task, len(parts))
    if b is not None:
        y += b
    return y


def linear_gx(w: np.ndarray, gy: np.ndarray) -> np.ndarray:
    """Gradient of x, (B, I), from w (O, I) and the gradient of y, (B, O)."""
    gx = np.empty((len(gy), w.shape[1]), np.float32)
    parts = _blocks_of_batch(len(gy), w.size)
    run_primitives(lambda i: onednn.matmul(gy[parts[i]], w, gx[parts[i]]), len(parts))
    return gx


def linear_gw(x: np.ndarray, gy: np.ndarray) -> np.ndarray:
    """Gradient of w, (O, I), from x (B, I) and the gradient of y, (B, O)."""
    gw = np.empty((gy.shape[1], x.shape[1]), np.float32)
    parts = blocks(x.shape[1], 1, _COLUMNS)
    run_primitives(lambda i: onednn.matmul(gy, x[:, parts[i]], gw[:, parts[i]], transpose_a=True), len(parts))
    return gw


def _blocks_of_batch(count: int, work: int) -> list[slice]:
    """Blocks of rows; ``work`` is the number of multiplications and additions for one of them."""
    return blocks(count, 1, _ROWS if count <= _LARGEST_BATCH else max(_ROWS, _WORK_OF_BLOCK // work))
