"""Trains small nets and B-LeNet, each for some steps, and prints what came of it as JSON.

    [mpiexec -n N] python tests/train_on_ranks.py NAME,... [local|synchronised]

Without the last word one process trains alone. Prints, of every case, losses and learned thresholds of every step. The
nets must be the same on all ranks.
"""

import json
import sys
from functools import partial

import branchynet
from branchynet import cpu, parallel, provenance
from branchynet.datasets import mnist
from branchynet.links.resnet import ResBlock
from branchynet.networks import lenet_mnist

import chainer.functions as F
import chainer.links as L
import numpy as np
from helpers import small_data, small_net


def net_with_batch_normalisation():
    """Two exits, each with batch normalisation of its own, in the list and in a chain."""
    relu = branchynet.FL(F.relu)
    return branchynet.BranchyNet(
        [
            L.Convolution2D(1, 4, 5),
            L.BatchNormalization(4),
            relu,
            branchynet.Branch([L.BatchNormalization(4), L.Linear(2304, 10)], weight=0.5),
            branchynet.FL(F.max_pooling_2d, 2, 2),
            ResBlock(4, 4),
            branchynet.Branch([L.Linear(576, 10)]),
        ]
    )


def images(count):
    """The first training images and labels of MNIST."""
    x, t, _, _ = mnist.get_data()
    return x[:count], t[:count]


# name: (net, data, batch, epochs of main and joint training)
CASES = {
    'lenet': (lenet_mnist.get_network, partial(images, 10240), 512, (0, 1)),
    'equal': (small_net, small_data, 8, (1, 2)),
    'last batch smaller': (small_net, partial(small_data, 27), 12, (1, 2)),
    'shares': (partial(small_net, percentTrainKeeps=0.5), partial(small_data, 28), 12, (0, 3)),
    'shares of the batch': (partial(small_net, percentTrainKeeps=[0.7, 0.1]), small_data, 8, (0, 3)),
    'thresholds': (partial(small_net, thresholdExits=[1.0, 0.8]), small_data, 8, (0, 3)),
    'all leave': (partial(small_net, thresholdExits=[9.0, 9.0]), small_data, 8, (0, 2)),
    'last exit only': (partial(small_net, joint=False, opt='MomentumSGD'), small_data, 8, (0, 2)),
    'dropout': (partial(small_net, dropout=True), small_data, 8, (1, 2)),
    'normalised': (net_with_batch_normalisation, partial(images, 96), 16, (1, 2)),
}


def train(name, ranks):
    """The net of a case, after its training, and its losses and learned thresholds."""
    build, get_data, batch, epochs = CASES[name]
    np.random.seed(1)
    net, (x, t) = build(), get_data()
    np.random.seed(2)
    ranks.check_data(net, x, t, batch)
    trained, found = ranks.parallel(net), []
    with cpu.fast():
        for main, count in zip((True, False), epochs):
            for _ in range(count):
                order = np.random.permutation(len(x))
                for i in range(0, len(x), batch):
                    part = order[i : i + batch]
                    losses, _ = (trained.train_main if main else trained.train)(x[part], t[part])
                    found.append([losses, net.getLearnedExitsThresholds()])
    return net, found


def main():
    names, *batch_normalization = sys.argv[1:]
    found = {}
    if not batch_normalization:
        found = {name: train(name, parallel.ALONE)[1] for name in names.split(',')}
        print(json.dumps(found))
        return
    with parallel.job('naive', *batch_normalization) as ranks:
        for name in names.split(','):
            net, found[name] = train(name, ranks)
            ranks.check_same({'weights': provenance.sha256_of_net(net), 'generator': np.random.randint(1 << 30)})
        if ranks.rank == 0:
            print(json.dumps(found))


if __name__ == '__main__':
    main()
