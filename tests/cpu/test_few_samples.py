"""Linear layers of one sample or few, against NumPy in float64."""

from branchynet.cpu import few_samples, linear, threads

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SIZES = [(10, 10), (11, 37), (84, 10), (300, 129), (2000, 70), (70, 2000), (1025, 11)]


def numbers(seed, *shape):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def calls(monkeypatch):
    """The names of the functions in machine code that were called."""
    names = []
    run = few_samples._run
    monkeypatch.setattr(few_samples, '_run', lambda name, *rest: names.append(name) or run(name, *rest))
    return names


def products(x, w, gy):
    """What the layer computes of samples (B, I), weights (O, I) and a gradient of its output (B, O)."""
    return linear.linear(x, w, None), linear.linear_gx(w, gy), linear.linear_gw(x, gy)


def exact(x, w, gy):
    x, w, gy = (array.astype(np.float64) for array in (x, w, gy))
    return x @ w.T, gy @ w, gy.T @ x


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(10, 1100), st.integers(10, 200), st.integers(0, 1000))
def test_products_are_exact_to_rounding(samples, inputs, outputs, seed):
    arrays = numbers(seed, samples, inputs), numbers(seed + 1, outputs, inputs), numbers(seed + 2, samples, outputs)
    for found, expected, terms in zip(products(*arrays), exact(*arrays), (inputs, outputs, samples)):
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() < 2e-6 * terms


@pytest.mark.parametrize('samples', [1, 2, 8])
@pytest.mark.parametrize('inputs,outputs', SIZES)
def test_threads_do_not_change_bits(monkeypatch, set_large, samples, inputs, outputs):
    monkeypatch.setattr(few_samples, '_BYTES_OF_PART', 1 << 8)  # so that there is a part for every thread
    set_large(0)
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
    x, w, gy = numbers(0, 1, 40), numbers(1, 10, 40), numbers(2, 1, 10)
    w[4, 7] = gy[0, 3] = value
    y, gx, gw = products(x, w, gy)
    assert np.isfinite(np.delete(y, 4, axis=1)).all() and not np.isfinite(y[0, 4])
    assert not np.isfinite(gx).any()
    assert np.isfinite(np.delete(gw, 3, axis=0)).all() and not np.isfinite(gw[3]).any()


def test_without_machine_code_the_products_are_onednns(monkeypatch):
    arrays = numbers(0, 1, 300), numbers(1, 40, 300), numbers(2, 1, 40)
    monkeypatch.setattr(few_samples, '_machine_code', lambda: None)
    for found, expected in zip(products(*arrays), exact(*arrays)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize('inputs,outputs', SIZES)
def test_gradients_have_the_bits_of_onednns(monkeypatch, inputs, outputs):
    arrays = numbers(0, 1, inputs), numbers(1, outputs, inputs), numbers(2, 1, outputs)
    _, *ours = products(*arrays)
    monkeypatch.setattr(few_samples, '_machine_code', lambda: None)
    _, *others = products(*arrays)
    for found, expected in zip(ours, others):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('inputs,outputs', [(65, 37), (300, 129), (70, 2000), (1024, 13)])
@pytest.mark.parametrize('samples', [2, 7, 8])
def test_each_of_few_samples_has_the_output_that_it_has_alone(samples, inputs, outputs):
    x, w = numbers(0, samples, inputs), numbers(1, outputs, inputs)
    together = linear.linear(x, w, None)
    alone = np.concatenate([linear.linear(x[k : k + 1], w, None) for k in range(samples)])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_allclose(together, x.astype(np.float64) @ w.T, rtol=0, atol=2e-6 * inputs)


@pytest.mark.parametrize('inputs,outputs', SIZES)
@pytest.mark.parametrize('samples', [2, 7, 8])
def test_each_of_few_samples_has_the_gradient_that_it_has_alone(set_large, samples, inputs, outputs):
    set_large(0)
    w, gy = numbers(0, outputs, inputs), numbers(1, samples, outputs)
    together = linear.linear_gx(w, gy)
    alone = np.concatenate([linear.linear_gx(w, gy[k : k + 1]) for k in range(samples)])
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize(
    'samples,outputs,is_large,taken',
    [
        (1, 20, False, ['products_with_rows', 'sums_of_rows', 'multiples_of_row']),
        (2, 20, False, ['products_with_rows']),
        (8, 200, False, ['products_with_rows']),
        (9, 200, False, []),
        (16, 20, True, ['products_with_rows', 'sums_of_rows']),
        (17, 20, True, ['products_with_rows']),
        (48, 42, False, ['products_with_rows']),
        (47, 43, False, []),
        (49, 42, False, []),
        (204, 10, False, ['products_with_rows']),
        (205, 10, False, []),
    ],
)
def test_which_layers_it_takes(calls, set_large, samples, outputs, is_large, taken):
    """Chainer's functions leave the smallest of them to NumPy; the choice is tested here."""
    weights = numbers(1, outputs, 85)
    set_large((weights.nbytes - is_large) // 2)
    products(numbers(0, samples, 85), weights, numbers(2, samples, outputs))
    assert calls == taken


@pytest.mark.parametrize('inputs,outputs', [*sorted(linear._PUBLISHED), (63, 200)])
def test_other_layers_take_one_sample_alone(calls, inputs, outputs):
    for samples, taken in (1, ['products_with_rows']), (2, []):
        calls.clear()
        linear.linear(numbers(0, samples, inputs), numbers(1, outputs, inputs), None)
        assert calls == taken


@pytest.mark.parametrize('samples', [1, 2])
@pytest.mark.parametrize('inputs', [1023, 1024, 1025, 2048, 4100])
def test_sums_of_many_products(samples, inputs):
    x, w = numbers(0, samples, inputs), numbers(1, 13, inputs)
    np.testing.assert_allclose(linear.linear(x, w, None), x.astype(np.float64) @ w.T, rtol=0, atol=2e-6 * inputs)
