"""B-ResNet-110 for CIFAR-10: three exits (figure 2 of the paper), layers as released."""

from __future__ import annotations

from typing import Any

from branchynet.links.links import FL, Branch
from branchynet.links.resnet import ResBlock, batch_norm, conv
from branchynet.net import BranchyNet
from branchynet.networks import variants

import chainer.functions as F
import chainer.links as L


def get_network(percentTrainKeeps: Any = 1, variant: str = 'code', **kwargs: Any) -> BranchyNet:
    """Makes the network for images (B, 3, 32, 32) and 10 classes.

    Args:
        percentTrainKeeps: as of BranchyNet.
        variant: 'code' builds the released network, with the first branch after the first convolution; 'paper' has it
            after the first block (the paper says after the second convolution, which is that block's first), and has
            the paper's beta1 of Adam.
        **kwargs: further arguments of BranchyNet.

    Returns:
        An untrained BranchyNet.

    Raises:
        ValueError: the variant has another name.
    """
    variants.check(variant)
    branch1 = [
        L.Convolution2D(16, 64, 5, pad=2),
        FL(F.relu),
        FL(F.local_response_normalization, n=3, alpha=5e-5, beta=0.75, k=2),
        L.Convolution2D(64, 32, 3, pad=1),
        FL(F.relu),
        L.Convolution2D(32, 32, 3, pad=1),
        FL(F.relu),
        L.Linear(28800, 10),
    ]
    branch2 = [ResBlock(16, 16), L.Linear(14400, 10)]
    stem = [conv(3, 16, 3), batch_norm(16), FL(F.relu)]
    blocks = _blocks(18, 16, 16, 1)
    before = 0 if variant == 'code' else 1  # number of blocks before the first branch
    network = [
        *stem,
        *blocks[:before],
        Branch(branch1),
        *blocks[before:],
        Branch(branch2),
        *_blocks(18, 16, 32, 2),
        *_blocks(18, 32, 64, 2),
        FL(F.average_pooling_2d, 6, 1),
        Branch([L.Linear(576, 10)]),
    ]
    return variants.as_described(BranchyNet(network, percentTrainKeeps=percentTrainKeeps, **kwargs), variant)


def _blocks(count: int, in_size: int, out_size: int, stride: int) -> list[ResBlock]:
    return [ResBlock(in_size, out_size, stride)] + [ResBlock(out_size, out_size) for _ in range(count - 1)]
