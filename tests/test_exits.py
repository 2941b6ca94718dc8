"""One exit rule: the same entropies and the same exits wherever samples leave."""

import branchynet  # noqa: F401
from branchynet import exits, sweep, utils
from branchynet.functions import entropy
from branchynet.inference import Compiled, classify

import chainer.functions as F
import numpy as np
import pytest
from helpers import exact_data, exact_net
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

ENTROPIES = hnp.arrays(np.float32, st.integers(1, 30), elements=st.floats(0, 2.5, width=32))
SCORES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 40), st.integers(1, 12)),
    elements=st.floats(-100, 100, width=32) | st.just(-np.inf),
)


def test_below_is_strict():
    ent = np.float32([0.1, 0.2, 0.3])
    np.testing.assert_array_equal(exits.below(ent, 0.2), [True, False, False])
    # In float64 the float32 .1 is above .1, in float32 it is equal to it.
    np.testing.assert_array_equal(exits.below(ent, np.float64(0.1)), [False, False, False])
    np.testing.assert_array_equal(exits.below(ent, 1e300), [True, True, True])
    np.testing.assert_array_equal(exits.below(np.float32([np.nan]), np.inf), [False])


@given(ENTROPIES, st.lists(st.floats(0, 2.5), min_size=1))
def test_counting_is_the_same_rule(ent, thresholds):
    thresholds = np.array(thresholds + ent.tolist())
    np.testing.assert_array_equal(
        exits.count_below(ent, thresholds, ent.argsort()), [exits.below(ent, t).sum() for t in thresholds]
    )


@given(ENTROPIES, st.integers(-3, 40))
def test_lowest_takes_that_many_and_none_above_the_rest(ent, count):
    mask = exits.lowest(ent, count)
    assert mask.sum() == min(max(count, 0), len(ent))
    if mask.any() and not mask.all():
        assert ent[mask].max() <= ent[~mask].min()


def test_lowest_takes_the_earlier_of_equals():
    np.testing.assert_array_equal(exits.lowest(np.float32([1, 1, 0, 1]), 2), [True, False, True, False])


@given(SCORES)
def test_an_answer_is_chainers_softmax_and_its_entropy_row_by_row(score):
    score[:, 0] = np.maximum(score[:, 0], -100)  # a row of -inf alone has no softmax
    prob, ent = exits.answer(score)
    np.testing.assert_array_equal(prob, F.softmax(score).array)
    np.testing.assert_array_equal(ent, entropy(prob))
    for i in range(len(score)):
        for one, of_all in zip(exits.answer(score[i : i + 1]), (prob, ent)):
            np.testing.assert_array_equal(one[0], of_all[i])


def test_an_impossible_class_adds_nothing():
    prob, ent = exits.answer(np.float32([[0, -np.inf, 0], [3, -np.inf, -np.inf]]))
    np.testing.assert_array_equal(prob, [[0.5, 0, 0.5], [1, 0, 0]])
    assert ent == pytest.approx([np.log(2), 0])


# The same exits by every path

X, T = exact_data()
NET = exact_net()
RECORDED = sweep.record(NET, X, T, batchsize=300)
COMPILED = pytest.param('compiled', marks=pytest.mark.onednn)


@pytest.fixture(scope='module', params=['net', COMPILED])
def net(request):
    return NET if request.param == 'net' else Compiled(NET)


def test_recorded_entropies_tell_settings_apart():
    assert all(len(np.unique(ent)) > 100 for ent in RECORDED.entropy)


@pytest.mark.parametrize('batchsize', [1, 7, 32, 300])
def test_entropies_have_the_same_bits(net, batchsize):
    np.testing.assert_array_equal(sweep.record(net, X, T, batchsize).entropy, RECORDED.entropy)


def threshold(k):
    """A threshold at an entropy that was recorded at exit k, or just beside it, in float32 or in float64."""
    at = st.sampled_from(RECORDED.entropy[k].tolist())
    beside = st.sampled_from(
        [
            float,
            lambda t: float(np.nextafter(np.float32(t), np.float32(9))),
            lambda t: float(np.nextafter(t, 9)),
            lambda t: float(np.nextafter(np.float32(t), np.float32(-9))),
            lambda t: float(np.nextafter(t, -9)),
        ]
    )
    return st.builds(lambda t, move: move(t), at, beside)


@settings(max_examples=10, deadline=None)
@given(st.tuples(threshold(0), threshold(1)))
def test_exits_are_the_same_by_every_path_at_recorded_entropies(net, thresholds):
    thresholds = list(thresholds)
    expected = exits.leave_at(RECORDED.entropy, thresholds)
    counts = np.bincount(expected, minlength=3)
    swept = sweep.sweep(RECORDED, [thresholds])
    np.testing.assert_array_equal(swept.exits, [counts])
    net.thresholdExits = thresholds
    for batchsize in 1, 300:
        parts = [slice(i, i + batchsize) for i in range(0, 300, batchsize)]
        result = [classify(net, X[part], thresholds) for part in parts]
        np.testing.assert_array_equal(np.concatenate([r.exit for r in result]), expected)
        np.testing.assert_array_equal(
            np.concatenate([r.entropy for r in result]), RECORDED.entropy[expected, range(300)]
        )
        left = [net.test(X[part], T[part])[2] for part in parts]
        np.testing.assert_array_equal(np.sum(left, axis=0), counts)
        if batchsize == 1:
            np.testing.assert_array_equal(np.argmax(left, axis=1), expected)
        accuracy, _, tested, _ = utils.test(net, X, T, batchsize)
        np.testing.assert_array_equal(tested, counts)
        assert accuracy == swept.accuracy[0]


def test_training_drops_by_the_same_rule():
    net = exact_net()
    thresholds = [float(np.median(ent)) for ent in RECORDED.entropy[:2, :299]]  # an entropy of one of the samples
    expected = exits.leave_at(RECORDED.entropy, thresholds)
    reached = []
    net.thresholdExits = thresholds
    exit_of = net.exit
    net.exit = lambda k, h: reached.append(len(h)) or exit_of(k, h)
    net.train(X, T)
    assert reached == [300, (expected > 0).sum(), (expected > 1).sum()]
