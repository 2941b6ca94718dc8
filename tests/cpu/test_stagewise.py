"""The engine that goes stage by stage: its methods agree with each other and with the net."""

from branchynet import inference
from branchynet.cpu import onednn
from branchynet.cpu.engine import NotFinite
from branchynet.cpu.program import Packed, Program, Workspace
from branchynet.cpu.stagewise import Stagewise
from branchynet.exits import answer, leave_at
from branchynet.links.links import FL, Branch
from branchynet.net import BranchyNet

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest

pytestmark = pytest.mark.onednn


@pytest.fixture(scope='module')
def net():
    np.random.seed(0)
    net = BranchyNet(
        [
            L.Convolution2D(3, 8, 3),
            FL(F.leaky_relu),
            Branch([L.Linear(None, 5)]),
            L.Convolution2D(8, 8, 3),
            FL(F.relu),
            Branch([L.Linear(None, 5)]),
            FL(F.sigmoid),
            Branch([L.Linear(None, 5)]),
        ]
    )
    net.get_SM(images()), net.run_main(images())
    return net


def images(count=37):
    return np.random.RandomState(1).randn(count, 3, 9, 9).astype(np.float32)


def engine_of(net):
    return Stagewise(net.models, net.main, (3, 9, 9), np.dtype(np.float32))


def test_one_sample_leaves_where_its_record_says_also_at_recorded_entropies(net):
    engine = engine_of(net)
    for i, x in enumerate(images()):
        recorded, released, whole = engine.record(x[None])
        prob, entropy = answer(np.concatenate(recorded))
        thresholds = [entropy[0], np.nextafter(entropy[1], np.float32(9))][:: 1 if i % 2 else -1]
        (expected,) = leave_at(entropy[:, None], thresholds)
        label, exit, logits, seconds = engine.leave(x[None], thresholds)
        assert exit == [expected] and label == [prob[expected].argmax()]
        np.testing.assert_array_equal(logits[0], recorded[expected][0])
        assert engine.leave_one(x[None], thresholds)[:2] == (label[0], expected)
        assert seconds > 0 and (released > 0).all() and (whole > released).all()


@pytest.mark.parametrize('share', [0.0, 0.3, 0.6, 1.0])
def test_batches_are_in_order(net, share):
    engine, x = engine_of(net), images()
    entropies = [answer(logits).entropy for logits in engine.record(x)[0]]
    thresholds = [float(np.quantile(entropy, share)) + 1e-4 * (2 * share - 1) for entropy in entropies[:2]]
    label, exit, logits, _ = engine.leave(x, thresholds)
    expected = inference.classify(net, x, thresholds)
    np.testing.assert_array_equal(exit, expected.exit)
    np.testing.assert_array_equal(label, expected.label)
    np.testing.assert_allclose(answer(logits).prob, expected.prob, atol=1e-5)
    np.testing.assert_allclose(engine.main(x)[0], net.run_main(x), atol=1e-4)
    assert [engine.main_one(one[None]) for one in x] == net.run_main(x).argmax(axis=1).tolist()


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_a_sample_that_is_not_finite(net, value):
    engine, x = engine_of(net), images(3)
    x[1, 2, 3, 4] = value
    for call in (lambda x: engine.leave(x, [0.1, 0.1]), engine.record, engine.main):
        with pytest.raises(NotFinite):
            call(x)
        call(x[2:])
    for call in (lambda x: engine.leave_one(x, [0.1, 0.1]), engine.main_one):
        with pytest.raises(NotFinite):
            call(x[1:2])
        call(x[2:])


def test_large_numbers_are_finite(net):
    assert np.isfinite(engine_of(net).main(images(1) * np.float32(1e25))[0]).all()


@pytest.mark.parametrize(
    'settings',
    [
        dict(groups=8),
        dict(groups=2, stride=2),
        dict(dilate=2),
        dict(dilate=(1, 3), stride=(2, 1), groups=4),
    ],
    ids=str,
)
def test_convolutions_in_groups_and_dilated_ones_are_compiled(settings):
    np.random.seed(0)
    links = [L.Convolution2D(8, 8, 3, pad=2, **settings), L.BatchNormalization(8), FL(F.relu), L.Linear(None, 5)]
    x = np.random.rand(3, 8, 9, 9).astype(np.float32)
    links[1].avg_mean[...], links[1].avg_var[...] = np.random.rand(2, 8)
    expected = x
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        for link in links:
            expected = link(expected)
    program = Program(links, x, Packed(), Workspace())
    assert not program.calls_links
    with onednn.single_threaded():
        program.run()
    np.testing.assert_allclose(program.y, expected.array, rtol=1e-4, atol=1e-5)
