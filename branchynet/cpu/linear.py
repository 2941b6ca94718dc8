"""Linear layers, by oneDNN: x (B, I), w (O, I), b (O,), gy (B, O), all float32."""

from __future__ import annotations

import functools
from typing import Any, Callable, Optional

from branchynet import _chainer  # noqa: F401
from branchynet.cpu import memory, one_sample
from branchynet.cpu.layout import BYTES_OF_BLOCK, plain, takes
from branchynet.cpu.products import WORK_OF_BLOCK, product_of_columns, product_of_rows
from branchynet.cpu.threads import blocks

import chainer
import numpy as np

_LEAST_FEATURES = 10  # a product with fewer rows or columns is done sooner by NumPy than by oneDNN
_ROWS, _COLUMNS = 64, 256  # of a block of a matrix product: the bits of sums depend on how many there are
_MOST_BLOCKS = 128  # of columns
_FEW_ROWS = 8  # so few that a large matrix of weights takes longer to read than to multiply
# oneDNN sums these many rows, and their multiples, in one order; of others, its code for AVX2 sums the last three or so
# in another one. Blocks of _ROWS have that order too, as long as there are no more than _COLUMNS columns.
_ALIKE = 24
_LARGEST_BATCH = 512  # that keeps blocks of fewer than _ROWS: training's bits were made with them
_MOST_NUMBERS = 1 << 16  # of x in such a block: processors with smaller caches sum larger ones in another order


class Linear:
    """LinearFunction's method."""

    def forward(self: Any, inputs: tuple, stock: Callable) -> tuple:
        """The method of this name, for arrays that the kernels take."""
        x, w, b = inputs if len(inputs) == 3 else (*inputs, None)
        if not (takes(x, w, b) and x.shape[1] == w.shape[1] and not _is_thin(*w.shape)):
            return stock(self, inputs)
        _prepare(self)
        return (linear(*plain(x, w, b)),)


class LinearGradientOfX:
    """LinearGradData's method."""

    def forward(self: Any, inputs: tuple, stock: Callable) -> tuple:
        """The method of this name, for arrays that the kernels take."""
        w, gy = inputs
        if not takes(w, gy) or _is_thin(*w.shape):
            return stock(self, inputs)
        _prepare(self)
        return (linear_gx(*plain(w, gy)),)


class LinearGradientOfW:
    """LinearGradWeight's method."""

    def forward(self: Any, inputs: tuple, stock: Callable) -> tuple:
        """The method of this name, for arrays that the kernels take."""
        x, gy = inputs
        if not (takes(x, gy) and self._w_dtype == np.float32) or _is_thin(x.shape[1], gy.shape[1]):
            return stock(self, inputs)
        _prepare(self)
        return (linear_gw(*plain(x, gy)),)


def _prepare(function: Any) -> None:
    """Does what the stock methods do besides the product."""
    function._config_use_ideep = chainer.config.use_ideep
    function.retain_inputs((0, 1))


def _is_thin(inputs: int, outputs: int) -> bool:
    """Whether a layer is left to stock Chainer."""
    return min(inputs, outputs) < _LEAST_FEATURES


def linear(x: np.ndarray, w: np.ndarray, b: Optional[np.ndarray]) -> np.ndarray:
    """The layer's output.

    Args:
        x: input (B, I).
        w: weights (O, I).
        b: bias (O,), or None.

    Returns:
        x w' + b, (B, O).
    """
    y = memory.empty((len(x), len(w)))
    if len(x) == 1 and one_sample.is_available():
        one_sample.linear(x, w, y)
    else:
        _multiply(x, w.T, y)
    if b is not None:
        y += b
    return y


def linear_gx(w: np.ndarray, gy: np.ndarray) -> np.ndarray:
    """Gradient of x, (B, I), from w (O, I) and the gradient of y, (B, O)."""
    gx = memory.empty((len(gy), w.shape[1]))
    if len(gy) == 1 and one_sample.is_available():
        one_sample.linear_gx(w, gy, gx)
    else:
        _multiply(gy, w, gx)
    return gx


def linear_gw(x: np.ndarray, gy: np.ndarray) -> np.ndarray:
    """Gradient of w, (O, I), from x (B, I) and the gradient of y, (B, O)."""
    gw = np.empty((gy.shape[1], x.shape[1]), np.float32)
    if len(x) == 1 and one_sample.is_available():
        one_sample.linear_gw(x, gy, gw)
    else:
        product_of_columns(gy.T, x, gw, _blocks_of_columns(x.shape[1]))
    return gw


def _multiply(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """Writes a b of a few samples a in blocks of columns if b, the weights, is large, else in blocks of samples."""
    if len(a) <= _FEW_ROWS and b.nbytes > BYTES_OF_BLOCK:
        product_of_columns(a, b, out, _blocks_of_columns(b.shape[1]))
        return
    parts = _blocks_of_rows(len(a), *b.shape)
    if _is_copied(len(a), len(parts), b.shape[1]):
        b = np.ascontiguousarray(b)
    product_of_rows(a, b, out, parts)


def _is_copied(rows: int, parts: int, outputs: int) -> bool:
    """Whether it takes less time to copy transposed weights than to let sgemm rearrange them for every block of rows.

    It is slow where outputs do not fill its vectors. From 16 rows on, the bits are the same either way.
    """
    return rows >= 16 and (outputs < 16 or (parts > 4 and outputs < 128))


@functools.lru_cache(maxsize=1024)
def _blocks_of_rows(count: int, inputs: int, outputs: int) -> tuple[slice, ...]:
    """Blocks of rows of a product; the last may overlap the one before, and compute the same.

    Args:
        count: of all rows.
        inputs: numbers in a row of the first factor.
        outputs: numbers in a row of the product.
    """
    parts = blocks(count, 1, _ROWS)
    most = min(_MOST_NUMBERS // inputs, WORK_OF_BLOCK // (inputs * outputs))
    if (
        outputs > _COLUMNS
        or most < 2 * _ROWS
        or len(parts) <= 2
        or (count <= _LARGEST_BATCH and parts[0].stop != _ROWS)
    ):
        return parts
    step = most // _ALIKE * _ALIKE
    whole = count - count % _ALIKE
    parts = tuple(slice(i, min(i + step, whole)) for i in range(0, whole, step))
    return parts if whole == count else (*parts, slice(count - _ALIKE, count))


@functools.lru_cache(maxsize=1024)
def _blocks_of_columns(count: int) -> tuple[slice, ...]:
    return blocks(count, 1, max(_COLUMNS, count // _MOST_BLOCKS))
