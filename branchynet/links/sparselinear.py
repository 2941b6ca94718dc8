"""A linear layer that stores only few weights: the others are always zero."""

from __future__ import annotations

from typing import Any

import chainer
import chainer.functions as F
import numpy
from chainer.backend import get_array_module
from chainer.initializers import LeCunNormal


class SparseLinear(chainer.Link):
    """Linear layer with a sparse weight matrix (CSR): only the non-zeros are parameters.

    During a call the matrix is dense. At the default sparseness one dense product is faster than gathering single
    weights from about 40 samples on, and needs less memory; on one sample it is slower. This layer saves parameters,
    not time.

    Args:
        in_size: number of input features.
        out_size: number of output features.
        sparseness: share of the weights that are always zero, in [0, 1). At least one weight is kept; the kept ones
            are drawn from numpy.random.
        nobias: whether to leave out ``b``.
        initialW: initial values of the dense matrix (out_size, in_size), as for L.Linear.
        initial_bias: initial values of ``b``, as for L.Linear.

    Attributes:
        W: Parameter (nnz,), row by row; LeCunNormal at first.
        b: Parameter (out_size,), or None; 0 at first.
        indices: int32 (nnz,), column of every weight.
        indptr: int32 (out_size + 1,), row r's weights are ``W[indptr[r]:indptr[r + 1]]``.

    Raises:
        ValueError: the sparseness is outside [0, 1).
    """

    def __init__(
        self,
        in_size: int,
        out_size: int,
        sparseness: float = 0.99,
        nobias: bool = False,
        initialW: Any = None,
        initial_bias: Any = None,
    ) -> None:
        super().__init__()
        self.in_size = in_size
        self.out_size = out_size
        kept = draw_kept(in_size * out_size, sparseness)
        weights = dense_weights(in_size, out_size, initialW).array.ravel()[kept]
        with self.init_scope():
            self.W = chainer.Parameter(weights, weights.shape)
            self.b = None if nobias else bias(out_size, initial_bias)
        rows, columns = numpy.divmod(kept, in_size)
        self.add_persistent('indices', columns.astype(numpy.int32))
        self.add_persistent('indptr', numpy.searchsorted(rows, numpy.arange(out_size + 1)).astype(numpy.int32))

    def forward(self, x: Any) -> chainer.Variable:
        """Variable (B, out_size) for x (B, ...), flattened to (B, in_size)."""
        (W,) = _Scatter(self._positions(), (self.out_size, self.in_size)).apply((self.W,))
        return F.linear(x, W, self.b)

    def _positions(self) -> Any:
        """Integers (nnz,), position of every weight in the flat matrix."""
        # Computed at every call, because the CSR arrays change when weights are loaded. CuPy has no repeat() with
        # a different count for every row, hence searchsorted.
        xp = get_array_module(self.indptr)
        rows = xp.searchsorted(self.indptr[1:], xp.arange(self.indices.size, dtype=numpy.int32), side='right')
        return rows * self.in_size + self.indices


def draw_kept(size: int, sparseness: float) -> numpy.ndarray:
    """Draws from numpy.random the weights that are kept.

    Args:
        size: number of weights.
        sparseness: share of them that is dropped, in [0, 1).

    Returns:
        int64 array, ascending positions of the weights that are kept, at least one.

    Raises:
        ValueError: the sparseness is outside [0, 1).
    """
    if not 0 <= sparseness < 1:
        raise ValueError(f'sparseness is {sparseness}: it must be at least 0 and less than 1')
    count = max(1, round((1 - sparseness) * size))
    return numpy.sort(numpy.random.choice(size, count, replace=False))


def dense_weights(in_size: int, out_size: int, initialW: Any) -> Any:
    """Parameter (out_size, in_size) with the initial weights of L.Linear."""
    return chainer.Parameter(LeCunNormal() if initialW is None else initialW, (out_size, in_size))


def bias(out_size: int, initial_bias: Any) -> chainer.Parameter:
    """Parameter (out_size,) with the initial bias of L.Linear."""
    initial: Any = 0 if initial_bias is None else initial_bias
    return chainer.Parameter(initial, out_size)


class _Scatter(chainer.FunctionNode):
    """Values (n,) at the given positions of a matrix of zeros."""

    def __init__(self, positions: Any, shape: tuple[int, int]) -> None:
        self.positions = positions
        self.shape = shape

    def forward(self, inputs: tuple) -> tuple:
        (values,) = inputs
        matrix = get_array_module(values).zeros(self.shape, values.dtype)
        matrix.reshape(-1)[self.positions] = values
        return (matrix,)

    def backward(self, indexes: tuple[int, ...], grad_outputs: tuple) -> tuple:
        return _Gather(self.positions, self.shape).apply(grad_outputs)


class _Gather(chainer.FunctionNode):
    """Values (n,) at the given positions of a matrix; the gradient of F.get_item would add them one by one."""

    def __init__(self, positions: Any, shape: tuple[int, int]) -> None:
        self.positions = positions
        self.shape = shape

    def forward(self, inputs: tuple) -> tuple:
        return (inputs[0].reshape(-1)[self.positions],)

    def backward(self, indexes: tuple[int, ...], grad_outputs: tuple) -> tuple:
        return _Scatter(self.positions, self.shape).apply(grad_outputs)
