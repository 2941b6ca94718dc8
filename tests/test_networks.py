"""The three networks: sizes worked out by hand from the layers that original.md lists."""

import branchynet  # noqa: F401
from branchynet.networks import alex_cifar10, lenet_mnist, resnet_cifar10

import numpy as np
import pytest


def conv(i, o, k):
    return i * o * k * k + o


def linear(i, o):
    return i * o + o


def block(i, o):
    return conv(i, o, 3) + conv(o, o, 3) + 4 * o


LENET = [
    conv(1, 5, 5) + conv(5, 10, 5) + conv(10, 20, 5) + linear(720, 84),
    conv(5, 10, 3) + linear(640, 10),
    linear(84, 10),
]
ALEXNET = [
    conv(3, 32, 5)
    + conv(32, 64, 5)
    + conv(64, 96, 3)
    + conv(96, 96, 3)
    + conv(96, 64, 3)
    + linear(1024, 256)
    + linear(256, 128),
    conv(64, 32, 3) + conv(32, 32, 3) + linear(512, 10),
    conv(96, 32, 3) + linear(128, 10),
    linear(128, 10),
]
RESNET = [
    conv(3, 16, 3)
    + 2 * 16
    + 18 * block(16, 16)
    + block(16, 32)
    + 17 * block(32, 32)
    + block(32, 64)
    + 17 * block(64, 64),
    conv(16, 64, 5) + conv(64, 32, 3) + conv(32, 32, 3) + linear(28800, 10),
    block(16, 16) + linear(14400, 10),
    linear(576, 10),
]


@pytest.mark.parametrize(
    'builder, shape, sizes, ends',
    [
        (lenet_mnist, (1, 28, 28), LENET, [1, 10]),
        (alex_cifar10, (3, 32, 32), ALEXNET, [5, 9, 21]),
        (resnet_cifar10, (3, 32, 32), RESNET, [3, 21, 58]),
    ],
    ids=['lenet', 'alexnet', 'resnet'],
)
def test_sizes_and_places_of_the_exits(builder, shape, sizes, ends):
    net = builder.get_network()
    trunk, *exits = sizes
    assert [model.endi for model in net.models] == ends
    assert sum(p.size for p in net.main.params()) == trunk + exits[-1]
    assert [sum(p.size for link in m[m.endi :] for p in link.params()) for m in net.models] == exits
    x = np.random.RandomState(0).rand(2, *shape).astype(np.float32)
    net.train_main(x, np.int32([0, 1]))  # ResNet's running variances start at 0
    assert [p.shape for p in net.get_SM(x)] == [(2, 10)] * len(exits)


def test_get_network_passes_arguments_on():
    net = lenet_mnist.get_network(0.5, opt='MomentumSGD', lr=0.05, thresholdExits=0.1)
    assert (net.percentTrainKeeps, net.opt, net.lr, net.thresholdExits) == (0.5, 'MomentumSGD', 0.05, 0.1)


@pytest.mark.parametrize('module', [lenet_mnist, alex_cifar10, resnet_cifar10])
def test_variants(module):
    code, paper = module.get_network(), module.get_network(variant='paper')
    assert {o.beta1 for o in [code.optimizer, *code.optimizers]} == {0.9}
    assert {o.beta1 for o in [paper.optimizer, *paper.optimizers]} == {0.99}
    with pytest.raises(ValueError, match="variant is 'book': expected 'code' or 'paper'"):
        module.get_network(variant='book')


@pytest.mark.parametrize('module, convolutions', [(alex_cifar10, [1, 2]), (resnet_cifar10, [3, 37])])
def test_branches_of_the_paper(module, convolutions):
    """Convolutions ahead of each branch; ResNet's second lies within a block, which ends with its third."""
    net = module.get_network(variant='paper')
    assert [count_convolutions(model[: model.endi]) for model in net.models[:-1]] == convolutions
    x = np.random.RandomState(0).randn(2, 3, 32, 32).astype(np.float32)
    losses, _ = net.train(x, np.array([3, 4], np.int32))
    assert np.isfinite(losses).all()


def count_convolutions(links):
    return sum(link.__class__.__name__ == 'Convolution2D' for part in links for link in part.links())


def test_one_branch_network_weighs_its_exits():
    net = alex_cifar10.get_one_branch_network(conv_layers=0, weights=(1.0, 0.3), variant='paper')
    assert [model.weight for model in net.models] == [1.0, 0.3]
    x = np.random.RandomState(0).randn(2, 3, 32, 32).astype(np.float32)
    assert len(net.train(x, np.array([3, 4], np.int32))[0]) == 2
