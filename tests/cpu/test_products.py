"""Matrix products in blocks, against NumPy in float64."""

from unittest import mock

from branchynet.cpu import linear, onednn, products, threads
from branchynet.cpu.products import Product, Shape, write_products
from branchynet.cpu.threads import equal_blocks

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.onednn

SHAPES = st.builds(Shape, *[st.integers(1, 70)] * 3, st.booleans(), st.booleans())


def numbers(seed, *shape):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def factors(shape):
    """a and b of a product, as they lie in memory, and the product in float64."""
    m, n, k, is_a_transposed, is_b_transposed = shape
    a, b = numbers(0, *((k, m) if is_a_transposed else (m, k))), numbers(1, *((n, k) if is_b_transposed else (k, n)))
    exact = (a.T if is_a_transposed else a).astype(np.float64) @ (b.T if is_b_transposed else b)
    return a, b, exact


def written(product, a, b, shape):
    out = np.full((shape.m, shape.n), np.nan, np.float32)
    product.write(a, b, out)
    return out


@settings(max_examples=100, deadline=None)
@given(SHAPES, st.integers(1, 5), st.booleans(), st.sampled_from([0, products.WORK_OF_BLOCK]))
def test_products_are_exact_to_rounding(shape, parts, of_columns, work):
    a, b, exact = factors(shape)
    with mock.patch.object(products, 'WORK_OF_BLOCK', work):
        product = Product(shape, equal_blocks(shape.n if of_columns else shape.m, parts), of_columns)
    np.testing.assert_allclose(written(product, a, b, shape), exact, rtol=0, atol=2e-6 * shape.k)


@pytest.mark.parametrize('of_columns', [False, True])
@pytest.mark.parametrize('is_b_transposed', [False, True])
@pytest.mark.parametrize('is_a_transposed', [False, True])
def test_neither_threads_nor_llvmlite_change_bits(monkeypatch, is_a_transposed, is_b_transposed, of_columns):
    monkeypatch.setattr(products, 'WORK_OF_BLOCK', 0)  # so that the blocks are shared
    shape = Shape(96, 80, 300, is_a_transposed, is_b_transposed)
    a, b, _ = factors(shape)
    size = shape.n if of_columns else shape.m
    parts = [slice(0, 48), slice(48, size - 8), slice(size - 24, size)]  # rows of the last two are the same
    product, found = Product(shape, parts, of_columns), []
    try:
        for count in 1, 2, 5:
            threads.set_num_threads(count)
            found.append(written(product, a, b, shape))
        monkeypatch.setattr(products, '_machine_code', lambda: None)
        found.append(written(product, a, b, shape))
    finally:
        threads.set_num_threads(None)
    assert all(np.array_equal(other, found[0]) for other in found[1:])


def test_several_products_at_once():
    shapes = [Shape(5, 300, 40, is_a_transposed=True), Shape(1, 300, 40), Shape(64, 7, 3, is_b_transposed=True)]
    kept, tasks = [], []
    for shape in shapes:
        a, b, exact = factors(shape)
        out = np.full(exact.shape, np.nan, np.float32)
        kept.append((a, b, out, exact))
        product = Product(shape, equal_blocks(shape.n, 3), of_columns=True)
        tasks.append((product, *(array.ctypes.data for array in (a, b, out))))
    write_products(tasks)
    for _, _, out, exact in kept:
        np.testing.assert_allclose(out, exact, rtol=0, atol=1e-4)


def test_the_caller_keeps_its_threads_of_openmp():
    library = onednn.library().gomp
    before = library.omp_get_max_threads()
    try:
        for count in 1, 3:
            library.omp_set_num_threads(count)
            linear.linear(numbers(0, 20, 30), numbers(1, 12, 30), None)
            assert library.omp_get_max_threads() == count
    finally:
        library.omp_set_num_threads(before)


@pytest.mark.parametrize('samples', [2, 17, 70])
@pytest.mark.parametrize('inputs,outputs', [(600, 530), (1500, 20), (20, 1500)])
def test_large_weights(set_large, samples, inputs, outputs):
    """In blocks of columns, or of rows where there are more of them: exact, whatever the number of threads."""
    set_large(0)
    x, w, gy = numbers(0, samples, inputs), numbers(1, outputs, inputs), numbers(2, samples, outputs)
    found = []
    try:
        for count in 1, 3:
            threads.set_num_threads(count)
            found.append((linear.linear(x, w, None), linear.linear_gx(w, gy), linear.linear_gw(x, gy)))
    finally:
        threads.set_num_threads(None)
    x, w, gy = (array.astype(np.float64) for array in (x, w, gy))
    for one, several, exact in zip(*found, (x @ w.T, gy @ w, gy.T @ x)):
        np.testing.assert_array_equal(one, several)
        np.testing.assert_allclose(one, exact, rtol=0, atol=1e-3)
