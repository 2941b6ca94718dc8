import branchynet  # noqa: F401
from branchynet import timing, utils

import numpy as np
import pytest
from helpers import small_data, small_net

X, T = small_data(40)


def test_measure_is_a_timed_test():
    net = small_net(thresholdExits=[0.9, 0.9])
    measured = timing.measure(net, X, T, batchsize=1)
    accuracy, _, exits, _ = utils.test(net, X, T, batchsize=1)
    assert measured.accuracy == accuracy
    np.testing.assert_array_equal(measured.correct, net.run(X).argmax(axis=1) == T)
    np.testing.assert_array_equal(measured.exits, exits)
    assert measured.released.shape == measured.whole.shape == (40,)
    assert (measured.released > 0).all() and (measured.released < measured.whole).all()


def test_measure_of_main():
    net = small_net()
    measured = timing.measure(net, X, T, batchsize=16, main=True)
    assert measured.accuracy == net.test_main(X, T)[0]
    assert not measured.exits.any() and measured.whole.shape == (3,)


def test_summary_by_hand():
    assert timing.summary([0.001, 0.002, 0.006]) == pytest.approx({'mean_ms': 3, 'median_ms': 2, 'p95_ms': 5.6})
