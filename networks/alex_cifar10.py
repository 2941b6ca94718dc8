"""B-AlexNet for CIFAR-10: three exits (figure 2 of the paper), layers as released."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from branchynet.links.links import FL, Branch
from branchynet.net import BranchyNet
from branchynet.networks import variants

import chainer.functions as F
import chainer.links as L


def get_network(percentTrainKeeps: Any = 1, variant: str = 'code', **kwargs: Any) -> BranchyNet:
    """Makes the network for images (B, 3, 32, 32) and 10 classes.

    Args:
        percentTrainKeeps: as of BranchyNet.
        variant: 'code' builds the released network, with branches after the second and third convolution; 'paper' the
            network of the paper, with branches after the first and second, and with the paper's beta1 of Adam.
        **kwargs: further arguments of BranchyNet.

    Returns:
        An untrained BranchyNet.

    Raises:
        ValueError: the variant has another name.
    """
    variants.check(variant)
    if variant == 'code':
        branches = {2: Branch(_branch(64, 2, 512)), 3: Branch(_branch(96, 1, 128))}
    else:
        branches = {1: Branch(_branch(32, 2, 2048)), 2: Branch(_branch(64, 1, 512))}
    net = BranchyNet(_with_branches(branches), percentTrainKeeps=percentTrainKeeps, **kwargs)
    return variants.as_described(net, variant)


def get_one_branch_network(
    conv_layers: int = 2, weights: Sequence[float] = (1.0, 1.0), variant: str = 'code', **kwargs: Any
) -> BranchyNet:
    """Makes B-AlexNet without its second branch, as in figure 5 of the paper.

    Args:
        conv_layers: number of 3x3 convolutions in the branch.
        weights: weights of the two exits in the joint loss.
        variant: as of `get_network`.
        **kwargs: further arguments of BranchyNet.

    Returns:
        An untrained BranchyNet.

    Raises:
        ValueError: the variant has another name.
    """
    variants.check(variant)
    channels = 32 if conv_layers else 64
    if variant == 'code':
        branches = {2: Branch(_branch(64, conv_layers, 16 * channels), weights[0])}
    else:
        branches = {1: Branch(_branch(32, conv_layers, 2048), weights[0])}
    net = BranchyNet(_with_branches(branches), **kwargs)
    net.models[1].weight = weights[1]
    return variants.as_described(net, variant)


def _with_branches(branches: dict[int, Branch]) -> list[Any]:
    """The trunk and the final exit; a branch's key is the number of the convolution that it follows."""

    def after(number: int) -> list[Branch]:
        return [branches[number]] if number in branches else []

    return [
        L.Convolution2D(3, 32, 5, pad=2),
        *after(1),
        *_relu_pool_norm(),
        L.Convolution2D(32, 64, 5, pad=2),
        *after(2),
        *_relu_pool_norm(),
        L.Convolution2D(64, 96, 3, pad=1),
        *after(3),
        FL(F.relu),
        L.Convolution2D(96, 96, 3, pad=1),
        FL(F.relu),
        L.Convolution2D(96, 64, 3, pad=1),
        FL(F.relu),
        FL(F.max_pooling_2d, 3, 2),
        L.Linear(1024, 256),
        FL(F.relu),
        FL(F.dropout, 0.5),
        L.Linear(256, 128),
        FL(F.relu),
        FL(F.dropout, 0.5),
        Branch([L.Linear(128, 10)]),
    ]


def _branch(in_size: int, conv_layers: int, out_size: int) -> list[Any]:
    """The links of a branch: 3x3 convolutions to 32 channels, and a linear layer with ``out_size`` inputs."""
    links = _relu_pool_norm()
    for k in range(conv_layers):
        links += [L.Convolution2D(32 if k else in_size, 32, 3, pad=1), FL(F.relu)]
    return [*links, FL(F.max_pooling_2d, 3, 2), L.Linear(out_size, 10)]


def _relu_pool_norm() -> list[Any]:
    return [
        FL(F.relu),
        FL(F.max_pooling_2d, 3, 2),
        FL(F.local_response_normalization, n=3, alpha=5e-5, beta=0.75, k=2),
    ]
