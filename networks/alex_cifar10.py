"""B-AlexNet for CIFAR-10: three exits (figure 2 of the paper), layers as released."""
from branchynet.links.links import FL, Branch
from branchynet.net import BranchyNet
import chainer.functions as F
import chainer.links as L


def get_network(percentTrainKeeps=1, **kwargs):
    """BranchyNet for images (B, 3, 32, 32); ``kwargs`` are BranchyNet's."""
    branch1 = _relu_pool_norm() + [
        L.Convolution2D(64, 32, 3, pad=1), FL(F.relu),
        L.Convolution2D(32, 32, 3, pad=1), FL(F.relu),
        FL(F.max_pooling_2d, 3, 2),
        L.Linear(512, 10),
    ]
    branch2 = _relu_pool_norm() + [
        L.Convolution2D(96, 32, 3, pad=1), FL(F.relu),
        FL(F.max_pooling_2d, 3, 2),
        L.Linear(128, 10),
    ]
    network = [
        L.Convolution2D(3, 32, 5, pad=2), *_relu_pool_norm(),
        L.Convolution2D(32, 64, 5, pad=2),
        Branch(branch1),
        *_relu_pool_norm(),
        L.Convolution2D(64, 96, 3, pad=1),
        Branch(branch2),
        FL(F.relu),
        L.Convolution2D(96, 96, 3, pad=1), FL(F.relu),
        L.Convolution2D(96, 64, 3, pad=1), FL(F.relu),
        FL(F.max_pooling_2d, 3, 2),
        L.Linear(1024, 256), FL(F.relu), FL(F.dropout, .5),
        L.Linear(256, 128), FL(F.relu), FL(F.dropout, .5),
        Branch([L.Linear(128, 10)]),
    ]
    return BranchyNet(network, percentTrainKeeps=percentTrainKeeps, **kwargs)


def _relu_pool_norm():
    return [
        FL(F.relu),
        FL(F.max_pooling_2d, 3, 2),
        FL(F.local_response_normalization, n=3, alpha=5e-5, beta=.75, k=2),
    ]
