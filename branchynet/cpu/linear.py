"""Linear layers, by oneDNN or in machine code: x (B, I), w (O, I), b (O,), gy (B, O), all float32."""

from __future__ import annotations

import functools
from typing import Any, Callable, Optional

from branchynet.cpu import few_samples, memory, onednn
from branchynet.cpu.layout import BYTES_OF_BLOCK, plain, takes
from branchynet.cpu.products import WORK_OF_BLOCK, Product, Shape
from branchynet.cpu.threads import blocks, equal_blocks

import chainer
import numpy as np

_ROWS, _COLUMNS = 64, 256  # of a block of a matrix product: the bits of sums depend on how many there are
_MOST_BLOCKS = 128  # of columns
_FEW_ROWS = 8  # samples, so few that weights take longer to read than to multiply
_FEW_SUMS = 1 << 11  # most numbers of an output for few_samples, where inputs are at least twice as many as outputs
_SHORT = 64  # inputs: the sums of few samples are too short for machine code
_NARROW = 100  # outputs
_LARGE = 1 << 22  # bytes of weights, which sgemm should not rearrange for every _ROWS samples
_MOST_GRADIENTS = 16  # most samples for whose gradients weights of more than 2 * _LARGE bytes are read in place
_BLOCK_OF_LARGE = 1024  # rows or columns: for each block, sgemm rearranges the other factor
# oneDNN sums these many rows, and their multiples, in one order; of others, its code for AVX2 sums the last three or so
# in another one. Blocks of _ROWS have that order too, as long as there are no more than _COLUMNS columns.
_ALIKE = 24
# Inputs and outputs of the published networks' layers and their variants', whose training keeps the bits of sgemm.
_PUBLISHED = {
    *((720, 84), (84, 10), (640, 10)),  # LeNet
    *((1024, 256), (256, 128), (128, 10), (512, 10), (1024, 10), (2048, 10)),  # AlexNet
    *((28800, 10), (14400, 10), (576, 10)),  # ResNet
}
# Multiplications of a vector and a matrix, of few samples' output, and of other products. NumPy does so few sooner than
# a call of machine code takes; OpenBLAS gives them one thread, so that the number of its threads changes no bits.
_LITTLE_OF_VECTOR, _LITTLE_OF_FEW, _LITTLE = 1 << 13, 1 << 15, 1 << 18
_LARGEST_BATCH = 512  # that keeps blocks of fewer than _ROWS: training's bits were made with them
_MOST_NUMBERS = 1 << 16  # of x in such a block: processors with smaller caches sum larger ones in another order


class Linear:
    """LinearFunction's method."""

    def forward(self: Any, inputs: tuple, stock: Callable) -> tuple:
        """The method of this name, for arrays that the kernels take."""
        x, w, b = inputs if len(inputs) == 3 else (*inputs, None)
        if not (takes(x, w, b) and x.shape[1] == w.shape[1]):
            return stock(self, inputs)
        sizes = len(x), x.shape[1], len(w)
        if _is_numpys(*sizes, are_few=_are_few(*sizes)):
            return stock(self, inputs)
        _prepare(self)
        return (linear(*plain(x, w, b)),)


class LinearGradientOfX:
    """LinearGradData's method."""

    def forward(self: Any, inputs: tuple, stock: Callable) -> tuple:
        """The method of this name, for arrays that the kernels take."""
        w, gy = inputs
        if not takes(w, gy) or _is_numpys(len(gy), w.shape[1], len(w)):
            return stock(self, inputs)
        _prepare(self)
        return (linear_gx(*plain(w, gy)),)


class LinearGradientOfW:
    """LinearGradWeight's method."""

    def forward(self: Any, inputs: tuple, stock: Callable) -> tuple:
        """The method of this name, for arrays that the kernels take."""
        x, gy = inputs
        if not (takes(x, gy) and self._w_dtype == np.float32) or _is_numpys(len(x), x.shape[1], gy.shape[1]):
            return stock(self, inputs)
        _prepare(self)
        return (linear_gw(*plain(x, gy)),)


def _prepare(function: Any) -> None:
    """Does what the stock methods do besides the product."""
    function._config_use_ideep = chainer.config.use_ideep
    function.retain_inputs((0, 1))


def _is_numpys(samples: int, inputs: int, outputs: int, are_few: bool = False) -> bool:
    """Whether a layer's product is left to stock Chainer.

    Args:
        samples: how many.
        inputs: of the layer.
        outputs: of the layer.
        are_few: whether few_samples would compute it.
    """
    is_vector = 1 in (samples, inputs, outputs)
    little = _LITTLE_OF_VECTOR if is_vector else _LITTLE_OF_FEW if are_few else _LITTLE
    return samples * inputs * outputs <= little and (inputs, outputs) not in _PUBLISHED


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
    sizes = len(x), w.shape[1], len(w)
    if _are_few(*sizes) and few_samples.is_available():
        few_samples.linear(x, w, y)
    else:
        product, is_copied = _product(*sizes, is_transposed=True)
        product.write(x, np.ascontiguousarray(w.T) if is_copied else w, y)
    if b is not None:
        y += b
    return y


def linear_gx(w: np.ndarray, gy: np.ndarray) -> np.ndarray:
    """Gradient of x, (B, I), from w (O, I) and the gradient of y, (B, O)."""
    gx = memory.empty((len(gy), w.shape[1]))
    is_read_once = len(gy) == 1 or (len(gy) <= _MOST_GRADIENTS and w.nbytes > 2 * _LARGE)
    if len(w) == 1 and few_samples.is_available():
        few_samples.linear_gw(w, gy.reshape(1, -1), gx)  # gx too holds multiples of a single row
    elif is_read_once and few_samples.is_available():
        few_samples.linear_gx(w, gy, gx)
    else:
        product, _ = _product(len(gy), *w.shape)
        product.write(gy, w, gx)
    return gx


def linear_gw(x: np.ndarray, gy: np.ndarray) -> np.ndarray:
    """Gradient of w, (O, I), from x (B, I) and the gradient of y, (B, O)."""
    gw = np.empty((gy.shape[1], x.shape[1]), np.float32)
    if len(x) == 1 and few_samples.is_available():
        few_samples.linear_gw(x, gy, gw)
    elif len(gw) == 1 and few_samples.is_available():
        few_samples.linear_gx(x, gy.reshape(1, -1), gw)  # gw too is a sum of rows times factors
    else:
        _product_of_gw(len(x), *gw.shape).write(gy, x, gw)
    return gw


@functools.lru_cache(maxsize=1024)
def _product(samples: int, inputs: int, outputs: int, is_transposed: bool = False) -> tuple[Product, bool]:
    """The product of samples and weights.

    Its blocks are of columns for weights of more than _LARGE bytes, and for few samples with weights of more than
    BYTES_OF_BLOCK; else of samples.

    Args:
        samples: how many.
        inputs: numbers in each.
        outputs: numbers in a row of the product.
        is_transposed: whether the weights lie as (outputs, inputs) in memory.

    Returns:
        The product, and whether it takes a copy of such weights, which lies as (inputs, outputs).
    """
    size = 4 * inputs * outputs
    shape = Shape(samples, outputs, inputs, is_b_transposed=is_transposed)
    if size > _LARGE and outputs >= 2 * _COLUMNS:
        return Product(shape, _blocks_of_large(outputs), of_columns=True), False
    if size > BYTES_OF_BLOCK and samples <= _FEW_ROWS:
        return Product(shape, _blocks_of_few(inputs, outputs, is_transposed), of_columns=True), False
    parts = _blocks_of_rows(samples, inputs, outputs)
    is_copied = is_transposed and _is_copied(samples, len(parts), outputs)
    return Product(shape._replace(is_b_transposed=is_transposed and not is_copied), parts), is_copied


@functools.lru_cache(maxsize=1024)
def _product_of_gw(samples: int, outputs: int, inputs: int) -> Product:
    shape = Shape(outputs, inputs, samples, is_a_transposed=True)
    if 4 * inputs * outputs > _LARGE:
        return Product(shape, _blocks_of_large(max(shape[:2])), of_columns=inputs >= outputs)
    return Product(shape, _blocks_of_columns(inputs), of_columns=True)


def _are_few(samples: int, inputs: int, outputs: int) -> bool:
    """Whether few_samples computes a layer's output: sgemm would take longer to rearrange the weights."""
    if samples == 1:
        return True
    if inputs < _SHORT or (inputs, outputs) in _PUBLISHED:
        return False
    return samples <= _FEW_ROWS or (samples * outputs <= _FEW_SUMS and outputs <= inputs // 2)


def _is_copied(rows: int, parts: int, outputs: int) -> bool:
    """Whether it takes less time to copy transposed weights than to let sgemm rearrange them for every block of rows.

    It is slow where outputs do not fill its vectors, and with AVX-512 where they do not fill several. From 16 rows on,
    and up to _NARROW outputs, the bits are the same either way.
    """
    return rows >= 16 and (outputs < 16 or (outputs <= _NARROW and (parts > 4 or onednn.has_avx512())))


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


def _blocks_of_columns(count: int) -> tuple[slice, ...]:
    return blocks(count, 1, max(_COLUMNS, count // _MOST_BLOCKS))


def _blocks_of_few(inputs: int, outputs: int, is_transposed: bool) -> tuple[slice, ...]:
    """Blocks of columns of a product of few samples; arguments as of ``_product``."""
    if is_transposed:  # the output of a published layer, or of any without llvmlite
        return _blocks_of_columns(outputs)
    if (outputs, inputs) in _PUBLISHED:
        return _blocks_of_large(outputs)
    return equal_blocks(outputs, max(2, min(outputs // _BLOCK_OF_LARGE, 4 * inputs * outputs // BYTES_OF_BLOCK)))


def _blocks_of_large(count: int) -> tuple[slice, ...]:
    return equal_blocks(count, max(2, -(-count // _BLOCK_OF_LARGE)))
