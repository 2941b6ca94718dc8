"""Functions of arrays on any device."""
from branchynet import _chainer  # noqa: F401
import chainer
from chainer.backend import get_array_module


def entropy(prob):
    """Entropy of every row, in nats; the exit criterion of the paper (section III).

    Args:
        prob: NumPy or CuPy array or Variable (B, C), rows that sum to 1.

    Returns:
        Array (B,) on the same device: -sum_c p log p, with 0 log 0 = 0.
    """
    prob = chainer.as_array(prob)
    xp = get_array_module(prob)
    return -(prob * xp.log(xp.where(prob > 0, prob, 1))).sum(axis=1)


def rows(x, index):
    """Rows ``index`` of the Variable x (B, ...), differentiable.

    ``index`` (integers) must not repeat a row: the gradient is then written in place, where
    F.get_item adds it up element by element, which takes seconds for a batch of images.
    """
    return _Rows(index)(x)


class _Rows(chainer.Function):

    def __init__(self, index):
        self.index = index

    def forward(self, inputs):
        self.shape = inputs[0].shape
        return inputs[0][self.index],

    def backward(self, inputs, grad_outputs):
        gy, = grad_outputs
        gx = get_array_module(gy).zeros(self.shape, gy.dtype)
        gx[self.index] = gy
        return gx,
