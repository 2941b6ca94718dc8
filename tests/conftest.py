"""Fixtures of all tests: Chainer's mode is restored, skips have reasons, real images."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator

import branchynet
from branchynet import devices
from branchynet.cpu import onednn
from branchynet.datasets import mnist
from branchynet.networks import lenet_mnist

import chainer
import numpy as np
import pytest
from helpers import WEIGHTS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests whose marker needs hardware or a library that is missing here."""
    missing = {}
    if not devices.count_gpus():
        missing['gpu'] = 'needs a GPU'
    try:
        onednn.library()
    except (OSError, ImportError) as e:
        missing['onednn'] = f'oneDNN does not load: {e}'
    for item in items:
        for name, reason in missing.items():
            if item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope='session', autouse=True)
def interrupts() -> None:
    """Lets SIGINT interrupt the tests and their child processes: shells make what they start by & ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope='session', autouse=True)
def frozen_imports() -> None:
    """Keeps modules out of the garbage collection that comes before every measurement: nothing of them is garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def training_mode() -> Iterator[None]:
    """Restores Chainer's default mode around every test, as training() and testing() set it for the thread."""
    chainer.config.train = True
    yield
    chainer.config.train = True


@pytest.fixture(scope='session')
def images() -> tuple[np.ndarray, np.ndarray]:
    """The first test images and labels of MNIST: x (200, 1, 28, 28) float32 in [0, 1], t (200,) int32."""
    _, _, x, t = mnist.get_data()
    return x[:200], t[:200]


@pytest.fixture(scope='module')
def lenet() -> branchynet.BranchyNet:
    """B-LeNet with the weights of its quick training, without thresholds."""
    net = lenet_mnist.get_network()
    chainer.serializers.load_npz(WEIGHTS, net)
    return net
