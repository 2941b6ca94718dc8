"""A linear layer most of whose weights do not exist."""
import numpy

from branchynet import _chainer  # noqa: F401
import chainer
import chainer.functions as F
from chainer.backend import get_array_module
from chainer.initializers import LeCunNormal


class SparseLinear(chainer.Link):
    """Linear layer with a sparse weight matrix (CSR): only the non-zeros are parameters.

    The matrix is laid out dense for the length of a call. At the default sparseness one dense product
    beats the gathering of single weights from some 40 samples on and needs less memory; on one sample
    it is slower. What this layer saves is parameters, not time.

    Args:
        in_size, out_size: sizes of a sample before and after.
        sparseness: share of the weights that are zero for good, in [0, 1). One weight at least is
            kept; which ones is drawn from numpy.random.
        nobias: without ``b``.
        initialW, initial_bias: as of L.Linear; initialW is for the dense matrix (out_size, in_size).

    Attributes:
        W: Parameter (nnz,), row by row; LeCunNormal at first.
        b: Parameter (out_size,), or None; 0 at first.
        indices: int32 (nnz,), the column of every weight.
        indptr: int32 (out_size + 1,), row r's weights are ``W[indptr[r]:indptr[r + 1]]``.

    Raises:
        ValueError: sparseness outside [0, 1).
    """

    def __init__(self, in_size, out_size, sparseness=.99, nobias=False, initialW=None, initial_bias=None):
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

    def forward(self, x):
        """Variable (B, out_size) for x (B, ...), flattened to (B, in_size)."""
        W, = _Scatter(self._positions(), (self.out_size, self.in_size)).apply((self.W,))
        return F.linear(x, W, self.b)

    def _positions(self):
        # Taken from the CSR arrays at every call: they change when weights are loaded. (repeat() of a
        # different number of times per row is what CuPy lacks.)
        xp = get_array_module(self.indptr)
        rows = xp.searchsorted(self.indptr[1:], xp.arange(self.indices.size, dtype=numpy.int32), side='right')
        return rows * self.in_size + self.indices


def draw_kept(size, sparseness):
    """Ascending positions (int64) of the weights out of ``size`` that are kept, drawn from numpy.random.

    Raises:
        ValueError: sparseness outside [0, 1).
    """
    if not 0 <= sparseness < 1:
        raise ValueError('sparseness must lie in [0, 1), not %s' % sparseness)
    count = max(1, round((1 - sparseness) * size))
    return numpy.sort(numpy.random.choice(size, count, replace=False))


def dense_weights(in_size, out_size, initialW):
    """Parameter (out_size, in_size) with the initial weights of L.Linear."""
    return chainer.Parameter(LeCunNormal() if initialW is None else initialW, (out_size, in_size))


def bias(out_size, initial_bias):
    """Parameter (out_size,) with the initial bias of L.Linear."""
    return chainer.Parameter(0 if initial_bias is None else initial_bias, out_size)


class _Scatter(chainer.FunctionNode):
    """Values (n,) at the given positions of a matrix of zeros."""

    def __init__(self, positions, shape):
        self.positions = positions
        self.shape = shape

    def forward(self, inputs):
        values, = inputs
        matrix = get_array_module(values).zeros(self.shape, values.dtype)
        matrix.reshape(-1)[self.positions] = values
        return matrix,

    def backward(self, indexes, grad_outputs):
        return _Gather(self.positions, self.shape).apply(grad_outputs)


class _Gather(chainer.FunctionNode):
    """Values (n,) at the given positions of a matrix. F.get_item's gradient adds up element by element."""

    def __init__(self, positions, shape):
        self.positions = positions
        self.shape = shape

    def forward(self, inputs):
        return inputs[0].reshape(-1)[self.positions],

    def backward(self, indexes, grad_outputs):
        return _Scatter(self.positions, self.shape).apply(grad_outputs)
