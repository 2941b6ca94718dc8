"""The benchmark's PyTorch networks compute the same as Chainer's."""

import shutil

import chainer
import chainer.functions as F
import numpy as np
import pytest

pytest.importorskip('torch')
from branchynet.benchmarks import networks, peers
from branchynet.networks import alex_cifar10, lenet_mnist, resnet_cifar10

from torch._dynamo.utils import counters

NETWORKS = pytest.mark.parametrize(
    'builder, shape',
    [
        pytest.param(lenet_mnist, (8, 1, 28, 28), id='lenet'),
        pytest.param(alex_cifar10, (8, 3, 32, 32), id='alexnet'),
        pytest.param(resnet_cifar10, (2, 3, 32, 32), id='resnet', marks=pytest.mark.slow),
    ],
)


def build(builder, shape, dtype):
    """A net without dropout (its masks differ), its peer, and a batch."""
    with chainer.using_config('dtype', dtype):
        net = builder.get_network()
    for link in net.links():
        if getattr(link, 'fn', None) is F.dropout:
            link.args = (0.0,)
    rng = np.random.RandomState(0)
    x, t = rng.rand(*shape).astype(dtype), rng.randint(0, 10, shape[0]).astype(np.int32)
    networks.settle(net, x)
    return net, peers.Peer(net), x, t


def assert_close(theirs, ours, rtol):
    # A bias that batch normalisation takes out again has a gradient of rounding errors alone.
    np.testing.assert_allclose(theirs, ours, rtol, atol=rtol * np.abs(ours).max() + 1e-8)


@NETWORKS
def test_outputs_are_chainers(builder, shape):
    net, peer, x, _ = build(builder, shape, np.float32)
    peers.assert_same_outputs(net, peer, x)


# In float64, so that a difference cannot be rounding.
@NETWORKS
def test_training_is_chainers(builder, shape):
    net, peer, x, t = build(builder, shape, np.float64)
    ours, theirs = net.train(x, t), peer.train_joint(x, t)
    assert_close(theirs, ours, 1e-9)
    for param, other in peer.pairs():
        assert_close(other.grad, param.grad, 1e-6)
        assert_close(other.detach(), param.array, 1e-6)
    assert_close(peer.train_main(x, t), net.train_main(x, t), 1e-6)
    assert_close(peer.train_joint(x, t)[0], net.train(x, t)[0], 1e-6)


@NETWORKS
def test_early_exit_is_chainers(builder, shape):
    net, peer, x, t = build(builder, shape, np.float32)
    net.thresholdExits = peer.thresholdExits = [2.2] * (net.numexits() - 1)
    labels, exits = peer.classify(x)
    assert list(labels) == list(net.run(x).argmax(axis=1))
    assert list(np.bincount(exits, minlength=net.numexits())) == net.test(x, t)[2]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('g++'), reason='torch.compile needs a C++ compiler')
def test_compiled_modules_compute_the_same():
    net, peer, x, t = build(lenet_mnist, (8, 1, 28, 28), np.float32)
    peer.compile_modules()
    counters.clear()
    peers.assert_same_outputs(net, peer, x)
    assert counters['frames']['ok'] == 2 * net.numexits()  # each stage and each exit was compiled
    assert_close(peer.train_joint(x, t), net.train(x, t), 1e-5)
    net.thresholdExits = peer.thresholdExits = [2.2] * (net.numexits() - 1)
    labels, _ = peer.classify(x)
    assert list(labels) == list(net.run(x).argmax(axis=1))


def test_a_layer_without_a_peer_is_named():
    with pytest.raises(TypeError, match='tanh has no peer'):
        peers.convert(lenet_mnist.FL(F.tanh))
