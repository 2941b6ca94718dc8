import branchynet  # noqa: F401
from hypothesis import given
from hypothesis.extra import numpy as hnp
from hypothesis import strategies as st
import numpy as np
import pytest

from branchynet import sweep, utils
from conftest import small_data, small_net

X, T = small_data(40)
ENTROPIES = hnp.arrays(np.float32, st.tuples(st.just(3), st.integers(1, 20)), elements=st.floats(0, 2, width=32))


def profile_of(ent, seed=0):
    rng = np.random.RandomState(seed)
    return sweep.Profile(ent, rng.rand(*ent.shape) < .7, rng.rand(*ent.shape), 2 + rng.rand(*ent.shape))


def test_profile_records_what_the_exits_say():
    net = small_net()
    recorded = sweep.profile(net, X, T, batchsize=16)
    for k, prob in enumerate(net.get_SM(X)):
        np.testing.assert_array_equal(recorded.correct[k], prob.argmax(axis=1) == T)
    np.testing.assert_allclose(recorded.entropy[:2], net.find_entropies(X), rtol=1e-5)
    assert (recorded.released > 0).all() and (recorded.whole > recorded.released).all()


def test_sweep_equals_running_each_setting():
    net = small_net()
    for _ in range(10):
        net.train(X, T)
    settings = utils.generate_thresholds([0., .3, .6, .9, 1.05, 5.], 3)
    swept = sweep.sweep(sweep.profile(net, X, T, batchsize=1), settings)
    for i, setting in enumerate(settings):
        net.thresholdExits = setting
        accuracy, _, exits, _ = utils.test(net, X, T, batchsize=1)
        assert swept.accuracy[i] == accuracy
        np.testing.assert_array_equal(swept.exits[i], exits)
    assert len(np.unique(swept.exits, axis=0)) > 5


@given(ENTROPIES, st.floats(0, 2), st.floats(0, 2))
def test_sweep_by_the_definition(ent, first, second):
    recorded = profile_of(ent)
    swept = sweep.sweep(recorded, [[first, second]])
    exits, correct, released = np.zeros(3, int), 0, 0.
    for i in range(ent.shape[1]):
        k = 0 if ent[0, i] < np.float32(first) else 1 if ent[1, i] < np.float32(second) else 2
        exits[k] += 1
        correct += recorded.correct[k, i]
        released += recorded.released[:k + 1, i].sum()
    np.testing.assert_array_equal(swept.exits[0], exits)
    assert swept.accuracy[0] == pytest.approx(correct / ent.shape[1])
    assert swept.released[0] == pytest.approx(released / ent.shape[1])


def test_one_exit_has_one_setting():
    swept = sweep.sweep(profile_of(np.ones((1, 5), np.float32)), np.empty((1, 0)))
    np.testing.assert_array_equal(swept.exits, [[5]])


@pytest.mark.parametrize('thresholds', [[.1, .2], [[.1]], [[.1, float('nan')]]])
def test_bad_thresholds_are_named(thresholds):
    with pytest.raises(ValueError, match=r'^thresholds have shape .* expected \(settings, 2\)'):
        sweep.sweep(profile_of(np.ones((3, 5), np.float32)), thresholds)


def test_knee_is_the_fastest_that_is_good_enough():
    accuracy, seconds = [.97, .99, .98, .985], [1., 4., 2., 3.]
    assert sweep.knee(accuracy, seconds, .98) == 2
    assert sweep.knee(accuracy, seconds, .5) == 0
    assert sweep.knee(accuracy, seconds, .999) == 1  # none: the most accurate
