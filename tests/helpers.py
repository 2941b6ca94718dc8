"""Small nets, their data, and comparisons that several test files use."""

from __future__ import annotations

import os
from typing import Any

import branchynet
from branchynet import checkpoint
from branchynet.datasets import cifar, cifar10
from branchynet.experiments import runs

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest

# Committed results; of LeNet's quick training, the folder and the weights.
RESULTS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'results')
QUICK = os.path.join(RESULTS, 'lenet_mnist_quick')
WEIGHTS = os.path.join(QUICK, 'weights_lenet_mnist_seed0.npz')

# The amount of a training that takes a second.
TINY = runs.Preset(main_epochs=2, joint_epochs=2, batchsize=64, train_samples=256, test_samples=40)

needs_cifar10 = pytest.mark.skipif(
    cifar.find('cifar10', cifar10.VERSIONS) is None, reason='needs CIFAR-10 in the data folder'
)


def stop_at(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Interrupts a training at its checkpoint of this number; checkpoints then come after every step."""
    monkeypatch.setattr(runs.ResumableTraining, 'INTERVAL', 0)
    monkeypatch.setattr(runs.ResumableTraining, 'SHARE', np.inf)
    save, saved = checkpoint.save, []

    def interrupt(*args: Any) -> None:
        save(*args)
        saved.append(args)
        if len(saved) == count:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, 'save', interrupt)


def small_net(seed: int = 0, dropout: bool = False, **kwargs: Any) -> branchynet.BranchyNet:
    """Three exits over dense layers, for x (B, 4): exit 0 after one layer, exit 1 and the last after two more."""
    np.random.seed(seed)
    relu = branchynet.FL(F.relu)
    network = (
        [
            L.Linear(4, 8),
            relu,
            branchynet.Branch([L.Linear(8, 3)]),
            L.Linear(8, 8),
            relu,
            branchynet.Branch([L.Linear(8, 5), relu, L.Linear(5, 3)]),
            L.Linear(8, 6),
            relu,
        ]
        + [branchynet.FL(F.dropout, 0.5)] * dropout
        + [branchynet.Branch([L.Linear(6, 3)])]
    )
    return branchynet.BranchyNet(network, **kwargs)


def small_chain_net() -> branchynet.BranchyNet:
    """A net of from_chain for x (B, 4): exit 0 after one layer, the last after two."""

    class Network(chainer.Chain):
        def __init__(self) -> None:
            super().__init__()
            with self.init_scope():
                self.first, self.last = L.Linear(4, 8), L.Linear(8, 3)

        def forward(self, x: Any) -> Any:
            return self.last(F.relu(self.first(x)))

    x, _ = small_data()
    return branchynet.BranchyNet.from_chain(Network(), {'first': [F.relu, L.Linear(8, 3)]}, x=x)


def small_data(count: int = 32, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """x (count, 4) float32 and t (count,) int32, of three classes that a net can learn."""
    rng = np.random.RandomState(seed)
    t = rng.randint(0, 3, count).astype(np.int32)
    x = rng.randn(count, 4) + 2 * np.eye(3, 4)[t]
    return x.astype(np.float32), t


def weights(net: chainer.Link) -> dict[str, np.ndarray]:
    """Copies of all parameters, by their paths."""
    return {path: param.array.copy() for path, param in net.namedparams()}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """Whether two dicts of arrays are bitwise equal."""
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def with_forward(link: chainer.Link) -> chainer.Link:
    """The link with a forward of its own, which adds 1."""
    link.forward = lambda x, forward=link.forward: forward(x) + 1
    return link


def exact_net(seed: int = 0) -> branchynet.BranchyNet:
    """Three exits over images (B, 1, 8, 8); all sums are exact in float32, in any order.

    The weights are small integers; those of the exits are divided by a power of two. So the logits have the same bits
    in batches and one by one, and samples have equal entropies only if their logits are equal.
    """
    rng = np.random.RandomState(seed)
    relu, pool = branchynet.FL(F.relu), branchynet.FL(F.max_pooling_2d, 2)
    net = branchynet.BranchyNet(
        [
            L.Convolution2D(1, 4, 3, pad=1),
            relu,
            pool,
            branchynet.Branch([L.Linear(64, 5)]),
            L.Convolution2D(4, 6, 3),
            relu,
            branchynet.Branch([L.Linear(24, 5)]),
            L.Linear(24, 8),
            relu,
            branchynet.Branch([L.Linear(8, 5)]),
        ]
    )
    for _, param in net.namedparams():
        param.array[...] = rng.randint(-2, 3, param.shape)
    for model, scale in zip([*net.models, net.main], (32, 256, 2048, 2048)):
        model[-1].W.array /= scale
        model[-1].b.array /= scale
    return net


def exact_data(count: int = 300, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """x (count, 1, 8, 8), small integers as float32, and t (count,) int32, for exact_net."""
    rng = np.random.RandomState(seed)
    return rng.randint(0, 3, (count, 1, 8, 8)).astype(np.float32), rng.randint(0, 5, count).astype(np.int32)
