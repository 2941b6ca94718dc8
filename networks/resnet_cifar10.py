"""B-ResNet-110 for CIFAR-10: three exits (figure 2 of the paper), layers as released."""
from branchynet.links.links import FL, Branch
from branchynet.links.resnet import ResBlock, batch_norm, conv
from branchynet.net import BranchyNet
import chainer.functions as F
import chainer.links as L


def get_network(percentTrainKeeps=1, **kwargs):
    """BranchyNet for images (B, 3, 32, 32); ``kwargs`` are BranchyNet's."""
    branch1 = [
        L.Convolution2D(16, 64, 5, pad=2), FL(F.relu),
        FL(F.local_response_normalization, n=3, alpha=5e-5, beta=.75, k=2),
        L.Convolution2D(64, 32, 3, pad=1), FL(F.relu),
        L.Convolution2D(32, 32, 3, pad=1), FL(F.relu),
        L.Linear(28800, 10),
    ]
    branch2 = [ResBlock(16, 16), L.Linear(14400, 10)]
    network = [
        conv(3, 16, 3), batch_norm(16), FL(F.relu),
        Branch(branch1),
        *_blocks(18, 16, 16, 1),
        Branch(branch2),
        *_blocks(18, 16, 32, 2),
        *_blocks(18, 32, 64, 2),
        FL(F.average_pooling_2d, 6, 1),
        Branch([L.Linear(576, 10)]),
    ]
    return BranchyNet(network, percentTrainKeeps=percentTrainKeeps, **kwargs)


def _blocks(count, in_size, out_size, stride):
    return [ResBlock(in_size, out_size, stride)] + [ResBlock(out_size, out_size) for _ in range(count - 1)]
