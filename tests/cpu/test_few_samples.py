"""Linear layers of few samples, against NumPy in float64."""

from branchynet.cpu import few_samples, linear, threads

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SIZES = [(10, 10), (11, 37), (84, 10), (300, 129), (2000, 70), (70, 2000)]


def numbers(seed, *shape):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def products(x, w, gy):
    """What the layer computes of samples (B, I), weights (O, I) and a gradient of its output (B, O)."""
    return linear.linear(x, w, None), linear.linear_gx(w, gy), linear.linear_gw(x, gy)


def exact(x, w, gy):
    x, w, gy = (array.astype(np.float64) for array in (x, w, gy))
    return x @ w.T, gy @ w, gy.T @ x


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(10, 400), st.integers(10, 200), st.integers(0, 1000))
def test_products_are_exact_to_rounding(samples, inputs, outputs, seed):
    arrays = numbers(seed, samples, inputs), numbers(seed + 1, outputs, inputs), numbers(seed + 2, samples, outputs)
    for found, expected, terms in zip(products(*arrays), exact(*arrays), (inputs, outputs, samples)):
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() < 2e-6 * terms


@pytest.mark.parametrize('inputs,outputs', SIZES)
@pytest.mark.parametrize('samples', [1, 2, 8])
def test_threads_do_not_change_bits(monkeypatch, samples, inputs, outputs):
    monkeypatch.setattr(few_samples, '_BYTES_OF_PART', 1 << 8)  # so that there is a part for every thread
    arrays = numbers(0, samples, inputs), numbers(1, outputs, inputs), numbers(2, samples, outputs)
    found = []
    try:
        for count in 1, 2, 3, 7:
            threads.set_num_threads(count)
            found.append([array.tobytes() for array in products(*arrays)])
    finally:
        threads.set_num_threads(None)
    assert all(other == found[0] for other in found)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_what_is_not_finite_stays_so_where_it_is_used(value):
    """Each number of a product is a sum of its own: one that has no part of it stays as it was."""
    x, w, gy = numbers(0, 3, 40), numbers(1, 10, 40), numbers(2, 3, 10)
    gy[1, 4] = value
    gx, gw = linear.linear_gx(w, gy), linear.linear_gw(x, gy)
    assert np.isfinite(gx[[0, 2]]).all() and not np.isfinite(gx[1]).any()
    assert np.isfinite(np.delete(gw, 4, axis=0)).all() and not np.isfinite(gw[4]).any()


def test_without_machine_code_the_products_are_onednns(monkeypatch):
    arrays = numbers(0, 1, 300), numbers(1, 40, 300), numbers(2, 1, 40)
    monkeypatch.setattr(few_samples, '_machine_code', lambda: None)
    for found, expected in zip(products(*arrays), exact(*arrays)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    'samples,inputs,outputs,expected', [(1, 84, 20, 3), (8, 84, 20, 1), (8, 84, 16, 2), (9, 84, 10, 0)]
)
def test_which_products_it_takes(monkeypatch, samples, inputs, outputs, expected):
    calls = []
    run = few_samples._run
    monkeypatch.setattr(few_samples, '_run', lambda name, frames: calls.append(name) or run(name, frames))
    products(numbers(0, samples, inputs), numbers(1, outputs, inputs), numbers(2, samples, outputs))
    assert len(calls) == expected
