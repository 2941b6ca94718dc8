"""A linear layer most of whose weights stay zero."""
import numpy

from branchynet import _chainer  # noqa: F401
import chainer
import chainer.functions as F

from branchynet.links.sparselinear import bias, dense_weights, draw_kept


class DenseSparseLinear(chainer.Link):
    """SparseLinear with the weights stored dense: those that start as zero stay zero.

    The weights pass through the mask on their way in, so that the gradient of the others is zero and
    no optimiser, momentum or weight decay can wake them.

    Args:
        in_size, out_size: sizes of a sample before and after.
        sparseness: share of the weights that are zero for good, in [0, 1). One weight at least is
            kept; which ones is drawn from numpy.random.
        nobias: without ``b``.
        initialW, initial_bias: as of L.Linear.

    Attributes:
        W: Parameter (out_size, in_size); LeCunNormal at first where it is kept.
        b: Parameter (out_size,), or None; 0 at first.
        mask: of W's shape and dtype, 1 where a weight is kept and 0 elsewhere.

    Raises:
        ValueError: sparseness outside [0, 1).
    """

    def __init__(self, in_size, out_size, sparseness=.99, nobias=False, initialW=None, initial_bias=None):
        super().__init__()
        kept = draw_kept(in_size * out_size, sparseness)
        with self.init_scope():
            self.W = dense_weights(in_size, out_size, initialW)
            self.b = None if nobias else bias(out_size, initial_bias)
        mask = numpy.zeros_like(self.W.array)
        mask.reshape(-1)[kept] = 1
        self.W.array *= mask
        self.add_persistent('mask', mask)

    def forward(self, x):
        """Variable (B, out_size) for x (B, ...), flattened to (B, in_size)."""
        return F.linear(x, self.W * self.mask, self.b)
