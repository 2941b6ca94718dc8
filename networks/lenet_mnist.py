"""B-LeNet for MNIST: two exits (figure 2 of the paper), layers as released."""

from __future__ import annotations

from typing import Any

from branchynet.links.links import FL, Branch
from branchynet.net import BranchyNet
from branchynet.networks import variants

import chainer.functions as F
import chainer.links as L


def get_network(percentTrainKeeps: Any = 1, variant: str = 'code', **kwargs: Any) -> BranchyNet:
    """Makes the network for images (B, 1, 28, 28) and 10 classes.

    Args:
        percentTrainKeeps: as of BranchyNet.
        variant: 'code' builds the released network; 'paper' the same with the paper's beta1 of Adam.
        **kwargs: further arguments of BranchyNet.

    Returns:
        An untrained BranchyNet.

    Raises:
        ValueError: the variant has another name.
    """
    variants.check(variant)
    branch1 = [
        FL(F.max_pooling_2d, 2, 2),
        FL(F.relu),
        L.Convolution2D(5, 10, 3, pad=1),
        FL(F.max_pooling_2d, 2, 2),
        FL(F.relu),
        L.Linear(640, 10),
    ]
    network = [
        L.Convolution2D(1, 5, 5, pad=3),
        Branch(branch1),
        FL(F.max_pooling_2d, 2, 2),
        FL(F.relu),
        L.Convolution2D(5, 10, 5, pad=3),
        FL(F.max_pooling_2d, 2, 2),
        FL(F.relu),
        L.Convolution2D(10, 20, 5, pad=3),
        FL(F.max_pooling_2d, 2, 2),
        FL(F.relu),
        L.Linear(720, 84),
        Branch([L.Linear(84, 10)]),
    ]
    return variants.as_described(BranchyNet(network, percentTrainKeeps=percentTrainKeeps, **kwargs), variant)
