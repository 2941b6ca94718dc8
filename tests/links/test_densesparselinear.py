import copy
import io

import branchynet  # noqa: F401
from branchynet.links.densesparselinear import DenseSparseLinear

import chainer
import chainer.functions as F
import dill
import numpy as np
import pytest
from chainer import gradient_check, optimizer_hooks, optimizers
from hypothesis import given, settings
from hypothesis import strategies as st


def samples(*shape):
    return np.random.RandomState(0).randn(*shape).astype(np.float32)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.floats(0, 1, exclude_max=True), st.integers(0, 2**32 - 1))
def test_is_a_linear_layer_with_zeros(in_size, out_size, sparseness, seed):
    np.random.seed(seed)
    link = DenseSparseLinear(in_size, out_size, sparseness, initial_bias=0.5)
    kept = np.count_nonzero(link.W.array)
    assert kept >= 1 and abs(kept - (1 - sparseness) * link.W.size) <= 1
    x = samples(3, in_size)
    np.testing.assert_allclose(link(x).array, x.dot(link.W.array.T) + 0.5, rtol=1e-5, atol=1e-5)


def test_parameters():
    params = {name: p.shape for name, p in DenseSparseLinear(40, 25).namedparams()}
    assert params == {'/W': (25, 40), '/b': (25,)}
    assert dict(DenseSparseLinear(40, 25, nobias=True).namedparams()).keys() == {'/W'}


def test_initial_values():
    link = DenseSparseLinear(400, 500, 0.5)
    assert abs(link.W.array[link.W.array != 0].std() * 20 - 1) < 0.02  # LeCunNormal: sqrt(1 / in_size)
    assert (link.b.array == 0).all()
    W = samples(5, 4)
    np.testing.assert_array_equal(DenseSparseLinear(4, 5, 0, initialW=W).W.array, W)


def test_positions_are_drawn_from_numpys_generator():
    def draw(seed):
        np.random.seed(seed)
        return DenseSparseLinear(20, 20, 0.9).W.array

    np.testing.assert_array_equal(draw(1), draw(1))
    assert ((draw(1) != 0) != (draw(2) != 0)).any()


@pytest.mark.parametrize('nobias', [False, True])
def test_gradient_of_the_input(nobias):
    link = DenseSparseLinear(5, 7, 0.6, nobias)
    params = () if nobias else (link.b,)
    gradient_check.check_backward(link, samples(4, 5), samples(4, 7), params, dtype=np.float64)


def test_gradient_of_the_weights_is_the_dense_one_where_kept():
    link, x = DenseSparseLinear(30, 20, 0.8), samples(6, 30)
    W = chainer.Parameter(link.W.array.copy())
    kept = W.array != 0
    link.cleargrads()
    W.cleargrad()
    F.sum(F.square(link(x))).backward()
    F.sum(F.square(F.linear(x, W))).backward()
    np.testing.assert_allclose(link.W.grad[kept], W.grad[kept], rtol=1e-5)
    assert (link.W.grad[~kept] == 0).all()


@pytest.mark.parametrize(
    'make',
    [
        optimizers.SGD,
        optimizers.Adam,
        optimizers.MomentumSGD,
        optimizers.NesterovAG,
        optimizers.RMSprop,
        optimizers.AdaDelta,
        optimizers.AdaGrad,
        optimizers.SMORMS3,
    ],
)
def test_zeros_stay_zero_and_the_others_learn(make):
    link, x, t = DenseSparseLinear(30, 20, 0.8), samples(50, 30), samples(50, 20)
    before = link.W.array.copy()
    optimizer = make().setup(link)
    optimizer.add_hook(optimizer_hooks.WeightDecay(0.01))
    for _ in range(5):
        optimizer.update(lambda: F.mean_squared_error(link(x), t))
    assert ((link.W.array != before) == (before != 0)).all()


def test_flattens_as_linear_does():
    link = DenseSparseLinear(12, 4, 0.5)
    x = samples(3, 2, 2, 3)
    np.testing.assert_array_equal(link(x).array, link(x.reshape(3, 12)).array)


def test_copies_stand_alone():
    link = DenseSparseLinear(12, 4, 0.5)
    expected = link(samples(3, 12)).array
    for twin in (copy.deepcopy(link), dill.loads(dill.dumps(link)), link.copy('copy')):
        np.testing.assert_array_equal(twin(samples(3, 12)).array, expected)
        twin.W.array[...] = 0
        twin.mask[...] = 0
    np.testing.assert_array_equal(link(samples(3, 12)).array, expected)


def test_mask_is_saved_and_loaded_with_the_weights():
    saved, loaded = DenseSparseLinear(30, 20, 0.9), DenseSparseLinear(30, 20, 0.9)
    assert (saved.mask != loaded.mask).any()
    file = io.BytesIO()
    chainer.serializers.save_npz(file, saved)
    file.seek(0)
    chainer.serializers.load_npz(file, loaded)
    np.testing.assert_array_equal(loaded.mask, saved.mask)
    np.testing.assert_array_equal(loaded(samples(3, 30)).array, saved(samples(3, 30)).array)


@pytest.mark.parametrize('sparseness', [-0.1, 1, 1.5, float('nan')])
def test_sparseness_out_of_range(sparseness):
    with pytest.raises(ValueError, match=f'sparseness is {sparseness}: it must be at least 0 and less than 1'):
        DenseSparseLinear(3, 3, sparseness)


@pytest.mark.gpu
def test_gpu():
    link = DenseSparseLinear(30, 20, 0.8)
    link.cleargrads()
    x = samples(6, 30)
    y = link(x)
    F.sum(F.square(y)).backward()
    twin = copy.deepcopy(link)
    twin.cleargrads()
    twin.to_device('@cupy:0')
    z = twin(twin.xp.asarray(x))
    F.sum(F.square(z)).backward()
    assert isinstance(twin.mask, twin.xp.ndarray)
    np.testing.assert_allclose(z.array.get(), y.array, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(twin.W.grad.get(), link.W.grad, rtol=1e-4, atol=1e-5)
