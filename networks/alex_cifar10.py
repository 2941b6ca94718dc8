"""B-AlexNet for CIFAR-10: three exits (figure 2 of the paper), layers as released."""

from branchynet.links.links import FL, Branch
from branchynet.net import BranchyNet
from branchynet.networks import variants

import chainer.functions as F
import chainer.links as L


def get_network(percentTrainKeeps=1, variant='code', **kwargs):
    """BranchyNet for images (B, 3, 32, 32); ``kwargs`` are BranchyNet's.

    Args:
        variant: 'code', as released: branches after the second and third convolution; 'paper': after the
            first and second, and the paper's Adam.
    """
    variants.check(variant)
    if variant == 'code':
        branches = {2: Branch(_branch(64, 2, 512)), 3: Branch(_branch(96, 1, 128))}
    else:
        branches = {1: Branch(_branch(32, 2, 2048)), 2: Branch(_branch(64, 1, 512))}
    net = BranchyNet(_with_branches(branches), percentTrainKeeps=percentTrainKeeps, **kwargs)
    return variants.as_described(net, variant)


def get_one_branch_network(conv_layers=2, weights=(1.0, 1.0), variant='code', **kwargs):
    """B-AlexNet without its second branch.

    Args:
        conv_layers: 3x3 convolutions in the branch.
        weights: of the two exits in the joint loss.
        variant: as of get_network.
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


def _with_branches(branches):
    """The trunk and the final exit, with branches by the number of the convolution they follow."""

    def after(number):
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


def _branch(in_size, conv_layers, out_size):
    """Links of a branch: 3x3 convolutions to 32 channels, and the linear layer from ``out_size`` numbers."""
    links = _relu_pool_norm()
    for k in range(conv_layers):
        links += [L.Convolution2D(32 if k else in_size, 32, 3, pad=1), FL(F.relu)]
    return links + [FL(F.max_pooling_2d, 3, 2), L.Linear(out_size, 10)]


def _relu_pool_norm():
    return [
        FL(F.relu),
        FL(F.max_pooling_2d, 3, 2),
        FL(F.local_response_normalization, n=3, alpha=5e-5, beta=0.75, k=2),
    ]
