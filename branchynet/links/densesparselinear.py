"""A linear layer in which most weights stay zero."""

from __future__ import annotations

from typing import Any

from branchynet.links.sparselinear import bias, dense_weights, draw_kept

import chainer
import chainer.functions as F
import numpy


class DenseSparseLinear(chainer.Link):
    """SparseLinear with the weights stored dense: those that start as zero stay zero.

    The weights are multiplied by a mask. So the gradient of the others is zero, and no optimiser, momentum or weight
    decay changes them.

    Args:
        in_size: number of input features.
        out_size: number of output features.
        sparseness: share of the weights that are always zero, in [0, 1). At least one weight is kept; the kept ones
            are drawn from numpy.random.
        nobias: whether to leave out ``b``.
        initialW: initial values of ``W``, as for L.Linear.
        initial_bias: initial values of ``b``, as for L.Linear.

    Attributes:
        W: Parameter (out_size, in_size); LeCunNormal at first where it is kept.
        b: Parameter (out_size,), or None; 0 at first.
        mask: array of W's shape and dtype, 1 where a weight is kept and 0 elsewhere.

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
        kept = draw_kept(in_size * out_size, sparseness)
        with self.init_scope():
            self.W = dense_weights(in_size, out_size, initialW)
            self.b = None if nobias else bias(out_size, initial_bias)
        mask = numpy.zeros_like(self.W.array)
        mask.reshape(-1)[kept] = 1
        self.W.array *= mask
        self.add_persistent('mask', mask)

    def forward(self, x: Any) -> chainer.Variable:
        """Variable (B, out_size) for x (B, ...), flattened to (B, in_size)."""
        return F.linear(x, self.W * self.mask, self.b)
