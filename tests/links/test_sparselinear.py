import copy
import io

import branchynet  # noqa: F401
from branchynet.links.sparselinear import SparseLinear

import chainer
import chainer.functions as F
import chainer.links as L
import dill
import numpy as np
import pytest
from chainer import gradient_check
from hypothesis import given, settings
from hypothesis import strategies as st


def dense(link):
    """The link's matrix (out, in), read from its CSR arrays one by one."""
    W = np.zeros((link.out_size, link.in_size), link.W.dtype)
    for row in range(link.out_size):
        for k in range(link.indptr[row], link.indptr[row + 1]):
            W[row, link.indices[k]] = link.W.array[k]
    return W


def samples(*shape):
    return np.random.RandomState(0).randn(*shape).astype(np.float32)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.floats(0, 1, exclude_max=True), st.integers(0, 2**32 - 1))
def test_equals_a_dense_layer_with_zeros(in_size, out_size, sparseness, seed):
    np.random.seed(seed)
    link = SparseLinear(in_size, out_size, sparseness, initial_bias=0.5)
    x = samples(3, in_size)
    np.testing.assert_allclose(link(x).array, x.dot(dense(link).T) + 0.5, rtol=1e-5, atol=1e-5)


@given(st.integers(1, 30), st.integers(1, 30), st.floats(0, 1, exclude_max=True))
@settings(max_examples=50, deadline=None)
def test_share_of_weights_that_exist(in_size, out_size, sparseness):
    link = SparseLinear(in_size, out_size, sparseness)
    size = in_size * out_size
    assert link.W.shape == link.indices.shape
    assert 1 <= link.W.size <= size
    assert abs(link.W.size - (1 - sparseness) * size) <= 1
    assert link.indptr[0] == 0 and link.indptr[-1] == link.W.size


def test_only_the_nonzeros_are_parameters():
    link = SparseLinear(40, 25)
    assert {name: p.shape for name, p in link.namedparams()} == {'/W': (10,), '/b': (25,)}
    assert dict(SparseLinear(40, 25, nobias=True).namedparams()).keys() == {'/W'}


def test_initial_values():
    link = SparseLinear(400, 500, 0.5)
    assert abs(link.W.array.std() * 20 - 1) < 0.02  # LeCunNormal: sqrt(1 / in_size)
    assert (link.b.array == 0).all()
    W = samples(5, 4)
    np.testing.assert_array_equal(dense(SparseLinear(4, 5, 0, initialW=W, initial_bias=samples(5))), W)


def test_positions_are_drawn_from_numpys_generator():
    def draw(seed):
        np.random.seed(seed)
        return dense(SparseLinear(20, 20, 0.9))

    np.testing.assert_array_equal(draw(1), draw(1))
    assert ((draw(1) != 0) != (draw(2) != 0)).any()


@pytest.mark.parametrize('nobias', [False, True])
@pytest.mark.parametrize('sparseness', [0, 0.6, 0.95])  # .95: rows without any weight
def test_gradients(sparseness, nobias):
    with chainer.using_config('dtype', np.float64):
        link = SparseLinear(5, 7, sparseness, nobias)
    params = tuple(link.params())
    x, gy, ggx = (samples(*shape).astype(np.float64) for shape in ((4, 5), (4, 7), (4, 5)))
    gradient_check.check_backward(link, x, gy, params)
    gradient_check.check_double_backward(
        lambda *args: F.square(link(args[0])),
        x,
        gy,
        ggx,
        params,
        tuple(samples(*p.shape).astype(np.float64) for p in params),
        rtol=1e-3,
        atol=1e-3,
    )


def test_gradients_equal_those_of_linear():
    link = SparseLinear(30, 20, 0.8)
    linear = L.Linear(30, 20, initialW=dense(link))
    link.cleargrads()
    linear.cleargrads()
    x, x2 = chainer.Variable(samples(6, 30)), chainer.Variable(samples(6, 30))
    F.sum(F.square(link(x))).backward()
    F.sum(F.square(linear(x2))).backward()
    rows = np.repeat(np.arange(20), np.diff(link.indptr))
    np.testing.assert_allclose(link.W.grad, linear.W.grad[rows, link.indices], rtol=1e-5)
    np.testing.assert_allclose(link.b.grad, linear.b.grad, rtol=1e-5)
    np.testing.assert_allclose(x.grad, x2.grad, rtol=1e-4, atol=1e-5)


def test_flattens_as_linear_does():
    link = SparseLinear(12, 4, 0.5)
    x = samples(3, 2, 2, 3)
    np.testing.assert_array_equal(link(x).array, link(x.reshape(3, 12)).array)


def test_copies_stand_alone():
    link = SparseLinear(12, 4, 0.5)
    expected = link(samples(3, 12)).array
    for twin in (copy.deepcopy(link), dill.loads(dill.dumps(link)), link.copy('copy')):
        np.testing.assert_array_equal(twin(samples(3, 12)).array, expected)
        twin.W.array[...] = 0
        twin.indices[...] = 0
    np.testing.assert_array_equal(link(samples(3, 12)).array, expected)


def test_positions_are_saved_and_loaded_with_the_weights():
    saved, loaded = SparseLinear(30, 20, 0.9), SparseLinear(30, 20, 0.9)
    assert (dense(saved) != dense(loaded)).any()
    file = io.BytesIO()
    chainer.serializers.save_npz(file, saved)
    file.seek(0)
    chainer.serializers.load_npz(file, loaded)
    np.testing.assert_array_equal(dense(loaded), dense(saved))
    np.testing.assert_array_equal(loaded(samples(3, 30)).array, saved(samples(3, 30)).array)


def test_learns():
    np.random.seed(0)
    link, x = SparseLinear(20, 5, 0.5), samples(100, 20)
    t = x.dot(dense(SparseLinear(20, 5, 0.5)).T)
    optimizer = chainer.optimizers.Adam(0.05).setup(link)
    before = float(F.mean_squared_error(link(x), t).array)
    for _ in range(100):
        optimizer.update(lambda: F.mean_squared_error(link(x), t))
    assert float(F.mean_squared_error(link(x), t).array) < before / 1.5


@pytest.mark.parametrize('sparseness', [-0.1, 1, 1.5, float('nan')])
def test_sparseness_out_of_range(sparseness):
    with pytest.raises(ValueError, match=f'sparseness is {sparseness}: it must be at least 0 and less than 1'):
        SparseLinear(3, 3, sparseness)


@pytest.mark.gpu
def test_gpu():
    link = SparseLinear(30, 20, 0.8)
    link.cleargrads()
    x = samples(6, 30)
    y = link(x)
    F.sum(F.square(y)).backward()
    twin = copy.deepcopy(link)
    twin.cleargrads()
    twin.to_device('@cupy:0')
    z = twin(twin.xp.asarray(x))
    F.sum(F.square(z)).backward()
    assert isinstance(twin.indices, twin.xp.ndarray)
    np.testing.assert_allclose(z.array.get(), y.array, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(twin.W.grad.get(), link.W.grad, rtol=1e-4, atol=1e-5)
    twin.to_device('@numpy')
    np.testing.assert_array_equal(twin.indices, link.indices)
