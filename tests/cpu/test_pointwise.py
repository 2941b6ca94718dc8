"""Gradients of the weights of 1x1 convolutions, against NumPy in float64."""

from unittest import mock

from branchynet.cpu import pointwise, products, threads

import chainer.functions as F
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpu.test_functions import array, check

pytestmark = pytest.mark.onednn


def images(seed, batch, channels, height, width, is_last):
    numbers = np.random.RandomState(seed).standard_normal((batch, height, width, channels)).astype(np.float32)
    turned = numbers.transpose(0, 3, 1, 2)
    return turned if is_last else np.ascontiguousarray(turned)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 12),
    st.integers(1, 300),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.booleans(), st.booleans()),
    st.integers(0, 8),
)
def test_gradients_are_exact_to_rounding(batch, channels, outputs, size, are_last, most):
    x, gy = images(0, batch, channels, *size, are_last[0]), images(1, batch, outputs, *size, are_last[1])
    with mock.patch.object(pointwise, '_FEWEST_PIXELS', 20):  # so that there are several parts
        gw, gb = pointwise.gradients_of_w(x, gy, most)
    x, gy = x.astype(np.float64), gy.astype(np.float64)
    terms = batch * size[0] * size[1]
    assert gw.flags.c_contiguous and gw.dtype == gb.dtype == np.float32
    np.testing.assert_allclose(gw[..., 0, 0], np.einsum('bohw,bchw->oc', gy, x), rtol=0, atol=3e-6 * terms)
    np.testing.assert_allclose(gb, gy.sum(axis=(0, 2, 3)), rtol=0, atol=3e-6 * terms)


@pytest.mark.parametrize('batch,channels,outputs,size', [(16, 20, 30, 40), (3, 10, 600, 5)])
def test_neither_threads_nor_llvmlite_change_bits(monkeypatch, batch, channels, outputs, size):
    x, gy = images(0, batch, channels, size, size, True), images(1, batch, outputs, size, size, True)
    found = []
    try:
        for count in 1, 2, 5:
            threads.set_num_threads(count)
            found.append(pointwise.gradients_of_w(x, gy, 8))
        monkeypatch.setattr(products, '_machine_code', lambda: None)
        found.append(pointwise.gradients_of_w(x, gy, 8))
    finally:
        threads.set_num_threads(None)
    for other in found[1:]:
        for array_of_other, first in zip(other, found[0]):
            np.testing.assert_array_equal(array_of_other, first)


@pytest.mark.parametrize('stride,pad', [(1, 0), (2, 0), (1, 1)])
@pytest.mark.parametrize('has_bias', [False, True])
def test_chainers_convolution_has_the_same_gradients(monkeypatch, has_bias, stride, pad):
    called = []
    gradients = pointwise.gradients_of_w
    monkeypatch.setattr(pointwise, 'gradients_of_w', lambda *args: called.append(args) or gradients(*args))
    arrays = array(9, 6, 9, 7), array(40, 6, 1, 1, seed=1), array(40, seed=2)
    check(lambda *given: F.convolution_2d(*given, stride=stride, pad=pad), *arrays[: 2 + has_bias])
    assert bool(called) == (stride == 1 and pad == 0)
    called.clear()
    if not pad:
        wide = array(7, 6, 9, 8), array(97, 6, 1, 1, seed=1)
        check(lambda *given: F.convolution_2d(*given, stride=(stride, 1)), *wide)
        assert called
    called.clear()
    check(F.convolution_2d, array(1, 6, 9, 7), array(40, 6, 1, 1, seed=1))
    assert not called  # 63 pixels
