import branchynet  # noqa: F401
from branchynet.functions import entropy, rows

import chainer
import chainer.functions as F
import numpy as np
import pytest
from chainer import gradient_check
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp


def test_entropy_by_hand():
    prob = np.float32([[1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0, 0]])
    np.testing.assert_allclose(entropy(prob), [0, np.log(4), np.log(2)], rtol=1e-6)


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 8), st.integers(2, 6)), elements=st.floats(-100, 100, width=32)))
def test_entropy_lies_between_0_and_log_c(score):
    ent = entropy(F.softmax(score))
    assert ent.shape == (len(score),)
    assert (ent >= 0).all() and (ent <= np.log(score.shape[1]) * (1 + 1e-5)).all()


def test_entropy_takes_variables():
    prob = np.float32([[0.2, 0.8]])
    assert entropy(chainer.Variable(prob)) == entropy(prob)


def test_rows_and_their_gradient():
    x = np.random.RandomState(0).randn(5, 3, 2)
    index = np.array([0, 3, 4])
    np.testing.assert_array_equal(rows(chainer.Variable(x), index).array, x[index])
    gradient_check.check_backward(lambda v: rows(v, index), x, np.random.RandomState(1).randn(3, 3, 2), dtype='d')


@pytest.mark.gpu
def test_entropy_on_a_gpu():
    import cupy

    prob = np.random.RandomState(0).dirichlet(np.ones(10), 100).astype(np.float32)
    np.testing.assert_allclose(cupy.asnumpy(entropy(cupy.asarray(prob))), entropy(prob), rtol=1e-5)
