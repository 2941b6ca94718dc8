"""Thresholds decide how many samples leave at each exit; settings that cannot be are named."""

import branchynet  # noqa: F401

import numpy as np
import pytest
from helpers import small_data, small_net
from hypothesis import given, settings
from hypothesis import strategies as st

THRESHOLDS = st.floats(0, 1.2)
NET = small_net(seed=3)
X, T = small_data(24)


def exits_of(thresholds, x=X):
    NET.thresholdExits = thresholds
    return NET.test(x, T[: len(x)])[2]


@settings(deadline=None)
@given(st.tuples(THRESHOLDS, THRESHOLDS))
def test_all_leave(thresholds):
    assert sum(exits_of(list(thresholds))) == len(X)


@settings(deadline=None)
@given(THRESHOLDS, THRESHOLDS, THRESHOLDS)
def test_a_higher_threshold_never_lets_fewer_leave(a, b, other):
    low, high = sorted((a, b))
    assert exits_of([low, other])[0] <= exits_of([high, other])[0]
    first_low, first_high = exits_of([other, low]), exits_of([other, high])
    assert first_low[0] == first_high[0] and first_low[1] <= first_high[1]


def test_ends_of_the_range():
    assert exits_of(0.0) == [0, 0, len(X)]
    assert exits_of([0.0, 10.0]) == [0, len(X), 0]
    assert exits_of(10.0) == [len(X), 0, 0]


@pytest.mark.parametrize(
    'value, error',
    [
        ({0: 0.1, 1: 0.2}, TypeError),
        ({0.1, 0.2}, TypeError),
        (iter([0.1, 0.2]), TypeError),
        (np.array(0.1), TypeError),
        ([0.1], ValueError),
        ([0.1, 0.2, 0.3], ValueError),
        (float('nan'), ValueError),
        ([0.1, float('nan')], ValueError),
        (['a', 'b'], TypeError),
    ],
)
def test_bad_thresholds_are_named(value, error):
    net = small_net()
    net.thresholdExits = value
    with pytest.raises(error, match='^thresholdExits is .*expected') as info:
        net.train(X, T)
    assert '\n' not in str(info.value)


@pytest.mark.parametrize('share', [-0.1, np.nextafter(1, 2), float('nan')])
def test_shares_beyond_0_and_1_are_refused(share):
    with pytest.raises(ValueError, match=f'^percentTestExits is {share}: expected shares'):
        small_net(percentTestExits=float(share))


@pytest.mark.parametrize('share, counts', [(0.0, [0, 0, 24]), (1.0, [24, 0, 0])])
def test_shares_of_0_and_1_let_none_and_all_leave(share, counts):
    assert small_net(percentTestExits=share).test(X, T)[2] == counts
