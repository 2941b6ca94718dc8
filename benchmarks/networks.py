"""The networks that are measured: built, with images, and thresholds at which the published shares leave."""

from __future__ import annotations

import os
from typing import Any

import branchynet  # noqa: F401  (before chainer)
from branchynet import checkpoint, cpu
from branchynet.datasets import folder, mnist
from branchynet.exits import below
from branchynet.experiments import alex_cifar10, lenet_mnist, resnet_cifar10, table1
from branchynet.experiments.run_id import RunId
from branchynet.net import BranchyNet

import chainer
import numpy as np

EXPERIMENTS = {
    'lenet': lenet_mnist.EXPERIMENT,
    'alexnet': alex_cifar10.EXPERIMENT,
    'resnet': resnet_cifar10.EXPERIMENT,
}


def batchsize(network: str) -> int:
    """Images of a step of the published training."""
    return EXPERIMENTS[network].presets['paper'].batchsize


def published_name(network: str) -> str:
    """The paper's name of the network with exits."""
    return f'B-{EXPERIMENTS[network].network}'


def build(network: str, weights: str | None = None) -> BranchyNet:
    """The same net at every call.

    Args:
        network: a name in EXPERIMENTS.
        weights: a folder of results that has the network's weights; None: untrained, with running statistics of one
            batch.
    """
    np.random.seed(0)
    experiment = EXPERIMENTS[network]
    net = experiment.get_network()
    if weights:
        checkpoint.load_npz(RunId(experiment.name, '', 0).weights_path(weights), net)
    else:
        settle(net, images(network, batchsize(network))[0])
    return net


def settle(net: BranchyNet, x: np.ndarray) -> None:
    """Sets the running statistics of batch normalisation to those of x (B, C, H, W), for a net that is not trained.

    Its running variances are 0, so without this activations would grow without bound.
    """
    norms = [link for link in net.links() if isinstance(link, chainer.links.BatchNormalization)]
    decays = [norm.decay for norm in norms]
    for norm in norms:
        norm.decay = 0.0
    with cpu.fast(), chainer.using_config('train', True), chainer.no_backprop_mode():
        h: Any = x
        for k in range(net.numexits()):
            h = net.stage(k, h)
            net.exit(k, h)
    for norm, decay in zip(norms, decays):
        norm.decay = decay


def images(network: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """x (count, C, H, W) and t (count,): test images of MNIST; of CIFAR-10 where its file is there, else noise.

    Raises:
        ValueError: there are not so many.
    """
    rng = np.random.RandomState(0)
    cifar = os.path.join(folder.root(), 'pcifar10', 'data.npz')
    if network == 'lenet':
        _, _, x, t = mnist.get_data()
    elif os.path.exists(cifar):
        with np.load(cifar, allow_pickle=False) as data:
            x, t = data['test_x'], data['test_y']
    else:
        x, t = rng.randn(count, *EXPERIMENTS[network].shape), rng.randint(0, 10, count)
    if len(x) < count:
        raise ValueError(f'{network} has {len(x)} test images: a batch of {count} is too large')
    return np.ascontiguousarray(x[:count], np.float32), t[:count].astype(np.int32)


def published_shares(network: str) -> np.ndarray:
    """Shares of images that leave at every exit, at the knee of the paper's Table I."""
    shares = np.array(table1.published(published_name(network), 'CPU')['exit_percent'].split(), float)
    return shares / shares.sum()


def leaving_thresholds(net: BranchyNet, x: np.ndarray, shares: np.ndarray) -> list[float]:
    """Thresholds (nats) at which these shares of x leave at the exits, whatever the net has learned."""
    thresholds, remaining = [], np.ones(len(x), bool)
    for look, share in zip(net.look(x)[:-1], shares):
        order = np.sort(look.entropy[remaining])
        cut = min(round(share * len(x)), len(order) - 1)
        # Between two images, so that no contender's rounding lets another image leave.
        thresholds.append(float(order[max(cut - 1, 0) : cut + 1].mean()))
        remaining &= ~below(look.entropy, thresholds[-1])
    return thresholds
