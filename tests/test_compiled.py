"""Inference compiled for the CPU says what the network says."""
import os

import branchynet
import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest

from branchynet import cpu, inference, sweep, timing
from branchynet.functions import entropy
from branchynet.inference import Compiled, classify
from branchynet.links.links import FL, SL, Branch, X
from branchynet.links.resnet import BottleNeckA, ResBlock
from branchynet.networks import alex_cifar10, lenet_mnist
from helpers import small_data, small_net

pytestmark = pytest.mark.onednn
WEIGHTS = os.path.join(os.path.dirname(__file__), '..', 'results', 'lenet_mnist_quick',
                       'weights_lenet_mnist_seed0.npz')


@pytest.fixture(scope='module')
def lenet():
    net = lenet_mnist.get_network()
    chainer.serializers.load_npz(WEIGHTS, net)
    return net


def odd_net():
    """Layers of all kinds that Program knows, and some that it does not."""
    np.random.seed(0)
    net = branchynet.BranchyNet([
        L.Convolution2D(3, 4, (3, 5), stride=(1, 2), pad=(1, 2), nobias=True), L.BatchNormalization(4), FL(F.relu),
        SL(FL(F.dropout, .5)), ResBlock(4, 4), ResBlock(4, 6, 2),
        Branch([FL(F.average_pooling_2d, 2, 1), L.Linear(None, 5)]),
        FL(F.max_pooling_2d, 3, 2, pad=1, cover_all=False), FL(F.leaky_relu, slope=.3), X([FL(F.tanh)]),
        FL(F.local_response_normalization), BottleNeckA(6, 2, 8, 1), L.Convolution2D(8, 8, 3, pad=1, groups=2),
        L.Linear(None, 7), FL(F.relu),
        Branch([L.Linear(7, 6, nobias=True), FL(F.relu), L.Linear(6, 5)])])
    x = np.random.randn(16, 3, 16, 16).astype(np.float32)
    for _ in range(3):
        net.train(x, np.random.randint(0, 5, 16).astype(np.int32))
    return net, x


def check_same(net, x, thresholds):
    fast, slow = classify(Compiled(net), x, thresholds), classify(net, x, thresholds)
    np.testing.assert_array_equal(fast.exit, slow.exit)
    np.testing.assert_array_equal(fast.label, slow.label)
    np.testing.assert_allclose(fast.prob, slow.prob, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(fast.entropy, slow.entropy, rtol=1e-3, atol=1e-5)
    return fast


@pytest.mark.parametrize('count', [1, 2, 7, 33, 200])
def test_lenet_on_real_images(lenet, images, count):
    x, t = images
    result = check_same(lenet, x[:count], .0251)
    assert (result.label == t[:count]).mean() > .9


def test_layers_of_all_kinds():
    net, x = odd_net()
    with chainer.using_config('train', False):
        median = float(np.median(entropy(F.softmax(net.models[0](x)))))
    result = check_same(net, x, [median])  # of 16 samples: between two entropies
    assert set(result.exit) == {0, 1}


def test_alexnet():
    np.random.seed(0)
    net = alex_cifar10.get_network()
    x = np.random.rand(5, 3, 32, 32).astype(np.float32)
    for compiled, plain in zip(Compiled(net).look(x), net.look(x)):
        np.testing.assert_allclose(compiled[0], plain[0], rtol=1e-4)


def test_classify_is_in_the_order_of_the_input(lenet, images):
    x, _ = images
    whole = classify(Compiled(lenet), x, .1)
    order = np.random.RandomState(0).permutation(len(x))
    shuffled = classify(Compiled(lenet), x[order], .1)
    np.testing.assert_array_equal(shuffled.exit, whole.exit[order])
    np.testing.assert_allclose(shuffled.prob, whole.prob[order], rtol=1e-3, atol=1e-6)
    assert 0 < (whole.exit == 0).sum() < len(x)


def test_test_is_branchynets(lenet, images):
    x, t = images
    lenet.thresholdExits = [.0251]
    compiled = Compiled(lenet)
    fast, slow = compiled.test(x, t), lenet.test(x, t)
    assert fast[2] == slow[2] and fast[0] == slow[0]
    assert fast[1] == pytest.approx(slow[1])
    assert np.isnan(compiled.test(x)[0])
    assert compiled.test_main(x, t)[0] == lenet.test_main(x, t)[0]
    measured = timing.measure(compiled, x, t)
    assert measured.exits.tolist() == slow[2] and (measured.released < measured.whole).all()
    lenet.thresholdExits = None


def test_a_profile_by_the_compiled_net_gives_the_same_sweep(lenet, images):
    x, t = images
    settings = [[.001], [.0251], [.3]]
    fast, slow = (sweep.sweep(sweep.profile(n, x, t, batchsize), settings)
                  for n, batchsize in ((Compiled(lenet), 1), (lenet, 50)))
    np.testing.assert_array_equal(fast.exits, slow.exits)
    np.testing.assert_array_equal(fast.accuracy, slow.accuracy)


def test_a_profile_that_is_timed_in_part_says_the_same(lenet, images, monkeypatch):
    compiled, alone = Compiled(lenet), sweep.profile(Compiled(lenet), *images)
    monkeypatch.setattr(sweep, '_TIMED', 7)
    shared = sweep.profile(compiled, *images)
    np.testing.assert_allclose(shared.entropy, alone.entropy, rtol=1e-5, atol=3e-7)  # 1 - prob's last digit
    np.testing.assert_array_equal(shared.correct, alone.correct)
    np.testing.assert_array_equal(shared.whole[:, 7:14], shared.whole[:, :7])


def test_bits_do_not_depend_on_threads(lenet, images):
    x, _ = images
    results = []
    for count in 1, 2, 5:
        cpu.set_num_threads(count)
        results.append(classify(Compiled(lenet), x, .1))
    cpu.set_num_threads(None)
    for result in results[1:]:
        for a, b in zip(result, results[0]):
            np.testing.assert_array_equal(a, b)


def test_weights_are_those_at_compilation():
    net, x = small_net(), small_data()[0]
    compiled = Compiled(net)
    before = classify(compiled, x, .9)
    net.models[0][0].W.array[...] = 0
    np.testing.assert_array_equal(classify(compiled, x, .9).prob, before.prob)
    assert not np.array_equal(classify(Compiled(net), x, .9).prob, before.prob)


def test_what_cannot_be_compiled_is_named():
    net = small_net()
    for param in net.params():
        param.array = param.array.astype(np.float64)
    assert not inference.is_compilable(net)
    with pytest.raises(ValueError, match='net cannot be compiled'):
        Compiled(net)
    result = classify(net, small_data()[0].astype(np.float64), [.5, .5])
    assert result.prob.shape == (32, 3)


@pytest.mark.parametrize('x, error, words', [
    (np.zeros((2, 5), np.float32), ValueError, 'link 0|shape'),
    (np.zeros((0, 4), np.float32), ValueError, 'x has shape'),
    (np.full((2, 4), np.nan, np.float32), ValueError, 'x holds NaN'), (np.zeros((2, 4)), TypeError, 'x has dtype')])
def test_bad_input_is_named(x, error, words):
    for net in small_net(), Compiled(small_net()):
        with pytest.raises(error, match=words):
            classify(net, x, .5)
    with pytest.raises(ValueError, match='thresholds is'):
        classify(small_net(), small_data()[0], [.5])
