"""Shapes that oneDNN computes more slowly than stock Chainer are left to it, and no others."""

import branchynet  # noqa: F401  (before chainer)
from branchynet import cpu
from branchynet.cpu import onednn
from networks import alex_cifar10, lenet_mnist, resnet_cifar10

import chainer
import chainer.functions as F
import numpy as np
import pytest

from tests.cpu.test_functions import array, check

pytestmark = pytest.mark.onednn


@pytest.fixture
def of_stock(monkeypatch):
    """The names of the functions that stock Chainer's convolutions and poolings have called."""
    called = set()
    for module in (chainer.utils.conv, chainer.utils.conv_nd):
        for name in ('im2col_cpu', 'col2im_cpu', 'im2col_nd_cpu', 'col2im_nd_cpu'):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, _recorder(called, name, getattr(module, name)))
    return called


def _recorder(called, name, function):
    def record(*args, **kwargs):
        called.add(name)
        return function(*args, **kwargs)

    return record


def gradients(called, function, *arrays, of=None):
    """Computes y and the gradient of one array, or of all; returns (stock's part forward, stock's part backward)."""
    variables = [chainer.Variable(a, requires_grad=of in (None, i)) for i, a in enumerate(arrays)]
    with cpu.fast():
        y = function(*variables)
        forward = set(called)
        called.clear()
        y.grad = np.ones_like(y.array)
        y.backward()
    return forward, set(called)


LARGE_KERNEL = array(2, 8, 20, 20), array(8, 8, 15, 15, seed=1)
FULLY_CONNECTED = array(2, 8, 7, 7), array(6, 8, 7, 7, seed=1)
FEW_CHANNELS = array(2, 4, 9, 9), array(6, 4, 3, 3, seed=1)
GAPS = array(2, 8, 9, 9), array(6, 8, 1, 1, seed=1)
USUAL = array(2, 5, 9, 9), array(6, 5, 3, 3, seed=1)
LONG = array(2, 8, 1, 100), array(8, 8, 1, 64, seed=1)


@pytest.mark.parametrize(
    'arrays,stride,forward,of_x,of_w',
    [
        (LARGE_KERNEL, 1, set(), set(), {'im2col_cpu'}),
        (LONG, 1, set(), set(), {'im2col_cpu'}),
        (FULLY_CONNECTED, 1, {'im2col_cpu'}, {'col2im_cpu'}, {'im2col_cpu'}),
        (FEW_CHANNELS, 1, set(), {'col2im_cpu'}, set()),
        (GAPS, 2, set(), {'col2im_cpu'}, set()),
        (USUAL, 1, set(), set(), set()),
        (USUAL, 2, set(), set(), set()),
    ],
    ids=['large kernel', 'long', 'fully connected', 'few channels', 'gaps', 'usual', 'usual, stride 2'],
)
def test_slow_convolutions_are_stock(of_stock, arrays, stride, forward, of_x, of_w):
    def convolution(*arrays):
        return F.convolution_2d(*arrays, stride=stride)

    assert gradients(of_stock, convolution, *arrays, of=0) == (forward, of_x)
    of_stock.clear()
    assert gradients(of_stock, convolution, *arrays, of=1) == (forward, of_w)
    of_stock.clear()
    assert gradients(of_stock, convolution, *arrays) == (forward, of_x | of_w)
    check(convolution, *arrays, array(len(arrays[1]), seed=2))


@pytest.mark.parametrize('pooling', [F.max_pooling_2d, F.average_pooling_2d])
def test_pooling_of_few_channels_is_stock(of_stock, pooling):
    forward, backward = gradients(of_stock, lambda x: pooling(x, 2), array(2, 4, 8, 8))
    assert forward and (backward or pooling is F.average_pooling_2d)


@pytest.mark.parametrize('inputs,outputs', [(9, 20), (20, 9), (1, 1)])
def test_thin_products_are_stock(monkeypatch, inputs, outputs):
    def fail(*args, **kwargs):
        raise AssertionError('matmul')

    def layer(x, w, b):
        return F.linear(x, w, b)

    arrays = array(30, inputs), array(outputs, inputs, seed=1), array(outputs, seed=2)
    check(layer, *arrays)
    monkeypatch.setattr(onednn, 'matmul', fail)
    gradients(set(), layer, *arrays)
    with pytest.raises(AssertionError, match='matmul'):
        gradients(set(), layer, array(30, 10), array(10, 10), array(10))


@pytest.mark.parametrize('rows', [1 << 14, (1 << 14) + 1])
def test_large_batches_of_a_linear_layer(rows):
    check(F.linear, array(rows, 10), array(11, 10, seed=1), array(11, seed=2))


@pytest.mark.parametrize(
    'network,shape',
    [(lenet_mnist, (1, 28, 28)), (alex_cifar10, (3, 32, 32)), (resnet_cifar10, (3, 32, 32))],
    ids=['lenet', 'alexnet', 'resnet'],
)
def test_the_published_networks_keep_their_kernels(monkeypatch, of_stock, network, shape):
    def fail(*args, **kwargs):
        raise AssertionError('a linear layer is stock')

    for name in ('LinearFunction', 'LinearGradData', 'LinearGradWeight'):
        stock = getattr(chainer.functions.connection.linear, name)
        monkeypatch.setattr(stock, 'forward', fail)
    np.random.seed(0)
    net = network.get_network()
    x, t = array(4, *shape), np.arange(4, dtype=np.int32)
    with cpu.fast():
        net.train(x, t)
        net.train_main(x, t)
    assert not of_stock
