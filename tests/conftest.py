"""What every test needs: Chainer's mode put back, skips with their reasons, real images."""
import branchynet  # noqa: F401
from branchynet import devices
from branchynet.cpu import onednn
from branchynet.datasets import mnist

import chainer
import pytest


def pytest_collection_modifyitems(items):
    missing = {}
    if not devices.count_gpus():
        missing['gpu'] = 'needs a GPU'
    try:
        onednn.library()
    except (OSError, ImportError) as e:
        missing['onednn'] = 'oneDNN does not load: %s' % e
    for item in items:
        for name, reason in missing.items():
            if item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def training_mode():
    """training() and testing() set Chainer's mode for the thread; every test starts in Chainer's default."""
    chainer.config.train = True
    yield
    chainer.config.train = True


@pytest.fixture(scope='session')
def images():
    """The first of the real test images and labels of MNIST: x (200, 1, 28, 28), t (200,)."""
    _, _, x, t = mnist.get_data()
    return x[:200], t[:200]
