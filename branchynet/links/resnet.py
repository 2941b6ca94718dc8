"""Residual blocks (He et al., 2016) as the original builds them."""

from __future__ import annotations

import copy
from typing import Any

from branchynet.links.links import shortcut

import chainer
import chainer.functions as F
import chainer.links as L
from chainer.initializers import LeCunNormal

# Chainer 1's wscale=sqrt(2) multiplied the standard deviation by its square root.
_SCALE = 2**0.25


def conv(
    in_size: int, out_size: int, ksize: int, stride: int = 1, pad: int = 0, nobias: bool = False
) -> L.Convolution2D:
    """Convolution2D with the original's initial weights for residual networks; for the arguments see there."""
    return L.Convolution2D(in_size, out_size, ksize, stride, pad, nobias=nobias, initialW=LeCunNormal(_SCALE))


def batch_norm(size: int) -> L.BatchNormalization:
    """BatchNormalization whose running variance starts at 0, as in Chainer 1: evaluate it only after training."""
    return L.BatchNormalization(size, initial_avg_var=0)


class ResBlock(chainer.Chain):
    """A residual block: conv 3x3, BN, ReLU, conv 3x3, BN, plus a shortcut without parameters, ReLU.

    ``copy.deepcopy(block)`` makes a freshly initialised block, as in the original, where networks
    repeat a block in this way; within a copied net it is copied with its weights.

    Args:
        in_size: channels of the input.
        out_size: channels of the output.
        stride: stride of the first convolution.
    """

    def __init__(self, in_size: int, out_size: int, stride: int = 1) -> None:
        super().__init__()
        self.in_size = in_size
        self.out_size = out_size
        self.stride = stride
        with self.init_scope():
            self.conv1 = conv(in_size, out_size, 3, stride, 1)
            self.bn1 = batch_norm(out_size)
            self.conv2 = conv(out_size, out_size, 3, 1, 1)
            self.bn2 = batch_norm(out_size)

    def forward(self, x: Any) -> Any:
        """The output, a Variable (B, out channels, H', W'), for x (B, C, H, W)."""
        h = F.relu(self.bn1(self.conv1(x)))
        h = self.bn2(self.conv2(h))
        return F.relu(h + shortcut(x, h.shape))

    def copy(self, mode: str = 'share') -> ResBlock:
        """A copy with the block's weights in mode 'copy' too; for the modes see chainer.Link.copy."""
        return _exact_copy(self, {}) if mode == 'copy' else super().copy(mode)

    def __deepcopy__(self, memo: dict) -> ResBlock:
        # The memo is empty if the block is copied by itself, not as a part of a net.
        return _exact_copy(self, memo) if memo else type(self)(self.in_size, self.out_size, self.stride)


def _exact_copy(block: ResBlock, memo: dict) -> ResBlock:
    """A deep copy with the weights."""
    new = type(block).__new__(type(block))
    memo[id(block)] = new
    new.__dict__.update(copy.deepcopy(block.__dict__, memo))
    return new


class BottleNeckA(chainer.Chain):
    """A bottleneck block: 1x1 (strided), 3x3 and 1x1 convolutions with BN, plus a 1x1 convolution of the input.

    Args:
        in_size: channels of the input.
        ch: channels between the convolutions.
        out_size: channels of the output.
        stride: stride of the first convolution and of that of the input.
    """

    def __init__(self, in_size: int, ch: int, out_size: int, stride: int = 2) -> None:
        super().__init__()
        with self.init_scope():
            self.conv1 = conv(in_size, ch, 1, stride, nobias=True)
            self.bn1 = batch_norm(ch)
            self.conv2 = conv(ch, ch, 3, 1, 1, nobias=True)
            self.bn2 = batch_norm(ch)
            self.conv3 = conv(ch, out_size, 1, nobias=True)
            self.bn3 = batch_norm(out_size)
            self.conv4 = conv(in_size, out_size, 1, stride, nobias=True)
            self.bn4 = batch_norm(out_size)

    def forward(self, x: Any) -> Any:
        """The output, a Variable (B, out channels, H', W'), for x (B, C, H, W)."""
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.relu(self.bn2(self.conv2(h)))
        h = self.bn3(self.conv3(h))
        return F.relu(h + self.bn4(self.conv4(x)))


class BottleNeckB(chainer.Chain):
    """A bottleneck block: 1x1, 3x3 and 1x1 convolutions with BN, plus the input.

    Args:
        in_size: channels of the input and the output.
        ch: channels between the convolutions.
    """

    def __init__(self, in_size: int, ch: int) -> None:
        super().__init__()
        with self.init_scope():
            self.conv1 = conv(in_size, ch, 1, nobias=True)
            self.bn1 = batch_norm(ch)
            self.conv2 = conv(ch, ch, 3, 1, 1, nobias=True)
            self.bn2 = batch_norm(ch)
            self.conv3 = conv(ch, in_size, 1, nobias=True)
            self.bn3 = batch_norm(in_size)

    def forward(self, x: Any) -> Any:
        """The output, a Variable (B, out channels, H', W'), for x (B, C, H, W)."""
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.relu(self.bn2(self.conv2(h)))
        h = self.bn3(self.conv3(h))
        return F.relu(h + x)


class Block(chainer.ChainList):
    """A BottleNeckA followed by ``layer - 1`` BottleNeckB.

    Args:
        layer: number of bottlenecks.
        in_size: channels of the input.
        ch: channels between the convolutions.
        out_size: channels of the output.
        stride: stride of the first bottleneck.
    """

    def __init__(self, layer: int, in_size: int, ch: int, out_size: int, stride: int = 2) -> None:
        super().__init__(BottleNeckA(in_size, ch, out_size, stride))
        for _ in range(layer - 1):
            self.append(BottleNeckB(out_size, ch))

    def forward(self, x: Any) -> Any:
        """The output, a Variable (B, out channels, H', W'), for x (B, C, H, W)."""
        for link in self:
            x = link(x)
        return x
