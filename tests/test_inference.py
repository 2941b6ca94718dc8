import branchynet  # noqa: F401
from hypothesis import assume, given, settings
from hypothesis.extra import numpy as hnp
from hypothesis import strategies as st
import numpy as np
import pytest

from branchynet import inference
from helpers import small_data, small_net

ENTROPIES = hnp.arrays(np.float32, st.integers(1, 30), elements=st.floats(0, 2.5, width=32))
THRESHOLDS = st.floats(0, 1.2)
NET = small_net(seed=3)
X, T = small_data(24)


def test_below_is_strict():
    ent = np.float32([.1, .2, .3])
    np.testing.assert_array_equal(inference.below(ent, .2), [True, False, False])
    # In float64 the float32 .1 is above .1, in float32 it is equal to it.
    np.testing.assert_array_equal(inference.below(ent, np.float64(.1)), [False, False, False])


@given(ENTROPIES, st.integers(-3, 40))
def test_lowest_takes_that_many_and_none_above_the_rest(ent, count):
    mask = inference.lowest(ent, count)
    assert mask.sum() == min(max(count, 0), len(ent))
    if mask.any() and not mask.all():
        assert ent[mask].max() <= ent[~mask].min()


def test_lowest_takes_the_earlier_of_equals():
    np.testing.assert_array_equal(inference.lowest(np.float32([1, 1, 0, 1]), 2), [True, False, True, False])


def exits_of(thresholds, x=X):
    NET.thresholdExits = thresholds
    return NET.test(x, T[:len(x)])[2]


@settings(deadline=None)
@given(st.tuples(THRESHOLDS, THRESHOLDS))
def test_all_leave_and_a_batch_is_its_samples(thresholds):
    # Thresholds too near an entropy would test float noise between batch sizes.
    entropies = np.concatenate(NET.find_entropies(X))
    assume(np.abs(entropies[:, None] - thresholds).min() > 1e-5)
    exits = exits_of(list(thresholds))
    assert sum(exits) == len(X)
    singly = np.sum([exits_of(list(thresholds), X[i:i + 1]) for i in range(len(X))], axis=0)
    np.testing.assert_array_equal(exits, singly)


@settings(deadline=None)
@given(THRESHOLDS, THRESHOLDS, THRESHOLDS)
def test_a_higher_threshold_never_lets_fewer_leave(a, b, other):
    low, high = sorted((a, b))
    assert exits_of([low, other])[0] <= exits_of([high, other])[0]
    first_low, first_high = exits_of([other, low]), exits_of([other, high])
    assert first_low[0] == first_high[0] and first_low[1] <= first_high[1]


def test_ends_of_the_range():
    assert exits_of(0.) == [0, 0, len(X)]
    assert exits_of([0., 10.]) == [0, len(X), 0]
    assert exits_of(10.) == [len(X), 0, 0]


@pytest.mark.parametrize('value, error', [
    ([.1], ValueError), ([.1, .2, .3], ValueError), (float('nan'), ValueError), ([.1, float('nan')], ValueError),
    (['a', 'b'], TypeError)])
def test_bad_thresholds_are_named(value, error):
    net = small_net()
    net.thresholdExits = value
    with pytest.raises(error, match='^thresholdExits is .*expected') as info:
        net.train(X, T)
    assert '\n' not in str(info.value)


def test_shares_lie_between_0_and_1():
    with pytest.raises(ValueError, match='percentTestExits is 1.5: expected shares'):
        small_net(percentTestExits=1.5)
