"""What Chainer 7 does otherwise than 1.17, in silence."""

import branchynet
from branchynet.links.links import FL, SL, Branch
from branchynet.links.resnet import ResBlock
from branchynet.networks import alex_cifar10, lenet_mnist, resnet_cifar10

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from helpers import small_data, small_net

X, T = small_data()


@pytest.fixture(scope='module')
def resnet():
    np.random.seed(0)
    return resnet_cifar10.get_network()


def convolutions(net):
    return [link for link in net.links() if isinstance(link, L.Convolution2D)]


@pytest.mark.parametrize('builder', [lenet_mnist, alex_cifar10], ids=lambda m: m.__name__)
def test_convolutions_have_biases_and_lecun_weights(builder):
    np.random.seed(0)
    for conv in convolutions(builder.get_network()):
        check_convolution(conv, 1.0)


def test_residual_convolutions_are_scaled(resnet):
    branch1 = {id(link) for link in resnet.models[0][resnet.models[0].endi :]}
    for conv in convolutions(resnet):
        check_convolution(conv, 1.0 if id(conv) in branch1 else 2**0.25)


def check_convolution(conv, scale):
    """A sixth positional argument would have taken the biases and left the scale at 1."""
    assert conv.b is not None and not conv.b.array.any()
    w = conv.W.array
    expected = scale / np.sqrt(w[0].size)
    assert w.std() == pytest.approx(expected, rel=4 / np.sqrt(2 * w.size))


def test_running_variance_starts_at_0(resnet):
    norms = [link for link in resnet.links() if isinstance(link, L.BatchNormalization)]
    assert len(norms) == 1 + 2 * 55
    assert all((norm.avg_var == 0).all() and (norm.avg_mean == 0).all() for norm in norms)


def test_statistics_are_not_overwritten_by_stale_ones():
    np.random.seed(0)
    net = branchynet.BranchyNet([ResBlock(1, 2), Branch([L.Linear(32, 2)]), ResBlock(2, 2), Branch([L.Linear(32, 2)])])
    x = np.random.rand(8, 1, 4, 4).astype(np.float32)
    t = np.int32([0, 1] * 4)
    norm = net.main[0].bn1
    decay = norm.decay
    with chainer.no_backprop_mode():
        mean = net.main[0].conv1(x).array.mean(axis=(0, 2, 3))
    net.train_main(x, t)
    np.testing.assert_allclose(norm.avg_mean, (1 - decay) * mean, rtol=1e-4, atol=1e-6)
    kept = norm.avg_mean.copy()
    net.test(x, t)
    np.testing.assert_array_equal(norm.avg_mean, kept)
    with chainer.no_backprop_mode():
        mean = net.main[0].conv1(x).array.mean(axis=(0, 2, 3))
    net.train(x, t)  # one forward up the trunk for both exits: one update
    np.testing.assert_allclose(norm.avg_mean, decay * kept + (1 - decay) * mean, rtol=1e-4, atol=1e-6)
    assert net.models[1][0].bn1 is norm


def test_dropout_is_off_in_testing_and_on_in_training():
    net = alex_cifar10.get_network()
    x = np.random.RandomState(0).rand(4, 3, 32, 32).astype(np.float32)
    for mode in net.training, net.testing:
        mode()
        np.testing.assert_array_equal(net.run_main(x), net.run_main(x))
        np.random.seed(0)
        for shape in (4, 256), (4, 128):
            np.random.rand(*shape)
        after_both_masks = np.random.rand()
        np.random.seed(0)
        net.train_main(x, np.int32([0, 1, 2, 3]))
        assert np.random.rand() == after_both_masks


def test_links_are_called_with_their_own_arguments():
    net = branchynet.BranchyNet([SL(FL(F.dropout, 0.5)), Branch([L.Linear(4, 3)])])
    assert net.main(X, test=True, starti=0, endi=None).shape == (32, 3)
    assert net.main(X, True, 0, 1).shape == (32, 4)


def test_mains_head_goes_on_by_its_moments_in_joint_training():
    net = small_net()
    net.train_main(X, T)
    before = net.main[-1].W.array.copy()
    net.train(X, T)
    first = net.main[-1].W.array - before
    assert np.abs(first).max() > 0
    # Zero gradients: Adam's moments decay, m by 0.9 and v by 0.999, from those of one step.
    m, v = net.main[-1].W.update_rule.state['m'], net.main[-1].W.update_rule.state['v']
    t = net.optimizer.t
    step = net.alpha * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-8)
    np.testing.assert_allclose(first, -step, rtol=1e-3, atol=1e-8)


def test_functions_are_functions():
    assert not hasattr(F, 'ReLU')
    for builder, shape in ((lenet_mnist, (1, 28, 28)), (alex_cifar10, (3, 32, 32))):
        assert np.isfinite(builder.get_network().run_main(np.ones((1, *shape), np.float32))).all()
