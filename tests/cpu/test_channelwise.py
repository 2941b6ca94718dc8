"""Batch normalisation in machine code, against its formulas in float64."""

import subprocess
import sys
import textwrap

from branchynet import cpu
from branchynet.cpu import normalization, threads
from branchynet.networks import resnet_cifar10

import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpu.guard import Guard, needs_mprotect
from cpu.test_functions import array, check_same_as_stock
from cpu.test_winograd import check_same_bits, last

pytest.importorskip('llvmlite')
from branchynet.cpu import channelwise

EPS = 2e-5
PIXELS_OF_PART = 4096  # of 8 channels


def arrays_of(shape, mean=0.0, deviation=1.0):
    """Images, factors, shifts and a gradient of the output."""
    x = array(*shape) * np.float32(deviation) + np.float32(mean)
    return last(x), array(shape[1], seed=1), array(shape[1], seed=2), last(array(*shape, seed=3))


@pytest.fixture
def calls(monkeypatch):
    """The names of the functions in machine code that are called from now on."""
    names, compute = [], channelwise._compute
    monkeypatch.setattr(channelwise, '_compute', lambda name, *a, **k: names.append(name) or compute(name, *a, **k))
    return names


def results(x, gamma, beta, gy, with_relu):
    """The output, the mean, the variance, and the gradients of x, gamma and beta."""
    assert normalization.can_fuse_relu(x) or not with_relu
    masks = normalization.empty_masks(x) if with_relu else None
    y, moments = normalization.batch_normalization(x, gamma, beta, EPS, masks)
    gradients = normalization.batch_normalization_gradients(x, gamma, gy, moments.mean, moments.inv_std, masks)
    return [y, moments.mean, moments.variance, *gradients]


def truth(x, gamma, beta, gy, passed):
    """The same by the formulas of Ioffe and Szegedy, 2015, figure 1 and section 3, in float64.

    Args:
        passed: where the ReLU lets numbers pass; None without one.
    """
    x, gamma, beta, gy = (given.astype(np.float64) for given in (x, gamma, beta, gy))
    pixels, axes = x.size // x.shape[1], (0, 2, 3)
    mean, variance = x.mean(axes), x.var(axes)
    inv_std = (variance + EPS) ** -0.5
    whitened = (x - mean[:, None, None]) * inv_std[:, None, None]
    y = whitened * gamma[:, None, None] + beta[:, None, None]
    if passed is not None:
        y, gy = y * passed, gy * passed
    ggamma, gbeta = (gy * whitened).sum(axes), gy.sum(axes)
    through_moments = (whitened * ggamma[:, None, None] + gbeta[:, None, None]) / pixels
    gx = (gamma * inv_std)[:, None, None] * (gy - through_moments)
    return [y, mean, variance, gx, ggamma, gbeta]


def check_close(arrays, with_relu):
    x, gamma, _, gy = arrays
    found = results(*arrays, with_relu)
    expected = truth(*arrays, found[0] > 0 if with_relu else None)
    # A float32 has 24 bits: so much of x, in standard deviations, is its rounding.
    inv_std = (expected[2] + EPS) ** -0.5
    rounding = np.abs(x).max() * inv_std.max() * 2**-24
    for own, exact, name in zip(found, expected, ('y', 'mean', 'variance', 'gx', 'ggamma', 'gbeta')):
        assert own.dtype == np.float32 and own.shape == exact.shape
        # The terms of gx may cancel.
        size = np.abs(gamma * inv_std).max() * np.abs(gy).max() if name == 'gx' else np.abs(exact).max()
        np.testing.assert_allclose(own, exact, rtol=0, atol=(2e-6 + 4 * rounding) * max(1, size), err_msg=name)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 10).map(lambda vectors: 8 * vectors),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.sampled_from([(0, 1), (3, 1), (-1000, 1), (1, 1e-2), (0, 1e4)]),
    st.booleans(),
)
def test_results_are_exact_to_rounding(batch, channels, size, moments, with_relu):
    arrays = arrays_of((batch, channels, *size), *moments)
    if channelwise.fits(arrays[0]):  # of one pixel, they are C-contiguous too
        check_close(arrays, with_relu)


@pytest.mark.parametrize('with_relu', [False, True])
@pytest.mark.parametrize('of_part', [0, PIXELS_OF_PART])
@pytest.mark.parametrize('pixels', [63, 64, 65])
def test_limits_of_chunks_and_parts(of_part, pixels, with_relu):
    shape = 1, 8, 1, of_part + pixels
    assert channelwise._plan(shape)[0] == 1 + (of_part > 0)
    check_close(arrays_of(shape, 2), with_relu)


def test_first_pixels_may_be_far_from_the_others():
    x, gamma, beta, gy = arrays_of((4, 16, 20, 20))
    x[0, :, 0, :3] = 3e3
    check_close((x, gamma, beta, gy), False)


@pytest.mark.parametrize('mean,deviation', [(0, 1), (1e5, 1), (1e5, 0.1), (1e4, 0.01), (1e6, 1)])
@pytest.mark.parametrize('outlier', [0, 1e3])
def test_variances_are_exact_far_from_zero(mean, deviation, outlier):
    x = arrays_of((8, 16, 20, 20), mean, deviation)[0]
    x[0, :, 0, 0] += outlier * deviation
    np.testing.assert_allclose(channelwise.mean_and_variance(x)[1], x.astype(np.float64).var((0, 2, 3)), rtol=2e-6)


@pytest.mark.parametrize('value', [0, 1, -0.3, 1e7])
def test_a_constant_channel_has_no_variance(value):
    x = arrays_of((64, 8, 11, 11))[0]
    x[:, 3] = value
    variance = channelwise.mean_and_variance(x)[1]
    assert variance[3] == 0 and (np.delete(variance, 3) > 0.9).all()


def test_a_result_of_zero_does_not_pass_the_relu():
    x, gamma, beta, gy = arrays_of((4, 8, 5, 5))
    x[:, 3], beta[3] = 2, 0
    y, *_, gx, ggamma, gbeta = results(x, gamma, beta, gy, True)
    assert not y[:, 3].any() and not gx[:, 3].any() and not ggamma[3] and not gbeta[3]


@pytest.mark.parametrize('eps', [0, 0.5])
def test_epsilon_is_added_to_the_variance(eps):
    x, gamma, beta, _ = arrays_of((4, 8, 5, 5))
    y, moments = normalization.batch_normalization(x, gamma, beta, eps)
    np.testing.assert_allclose(moments.inv_std, (x.astype(np.float64).var((0, 2, 3)) + eps) ** -0.5, rtol=1e-6)
    np.testing.assert_allclose(y.std((0, 2, 3)), np.abs(gamma) * x.std((0, 2, 3)) * moments.inv_std, rtol=1e-5)


@pytest.mark.parametrize('name', ['moments', 'gradient_sums'])
def test_every_part_has_sums_of_its_own(name):
    x, _, _, gy = arrays_of((1, 8, 1, 2 * PIXELS_OF_PART + 65))
    rows = array(8)
    found = channelwise._sums_of_parts(name, x, gy=gy, rows=rows)
    for i, own in enumerate(found):
        part = slice(PIXELS_OF_PART * i, PIXELS_OF_PART * (i + 1))
        alone = channelwise._sums_of_parts(name, last(x[..., part]), gy=last(gy[..., part]), rows=rows)
        np.testing.assert_array_equal(own, alone[0])


@pytest.mark.parametrize('shape', [(64, 16, 30, 30), (9, 24, 40, 40)])
@pytest.mark.parametrize('with_relu', [False, True])
def test_threads_change_no_bits(monkeypatch, shape, with_relu):
    arrays, found, frames = arrays_of(shape), [], []
    run_frames = channelwise.run_frames
    monkeypatch.setattr(channelwise, 'run_frames', lambda code, own: frames.append(len(own)) or run_frames(code, own))
    try:
        for count in 1, 2, 5:
            threads.set_num_threads(count)
            found.append(results(*arrays, with_relu))
            assert frames[-4:] == [count] * 4
    finally:
        threads.set_num_threads(None)
    check_same_bits(found)


@needs_mprotect
@pytest.mark.parametrize('at_end', [False, True])
@pytest.mark.parametrize('with_relu', [False, True])
@pytest.mark.parametrize('shape', [(1, 8, 1, 2), (3, 24, 5, 13), (1, 40, 3, 3), (2, 72, 8, 8)])
def test_no_memory_beside_the_arrays_is_touched(monkeypatch, shape, with_relu, at_end):
    guard, arrays = Guard(at_end), arrays_of(shape)
    expected = results(*arrays, with_relu)
    monkeypatch.setattr(channelwise, 'empty_like', lambda x: guard.copy(np.zeros_like(x)))
    monkeypatch.setattr(normalization, 'empty_masks', lambda x: guard.empty((x.size // 8,), np.uint8))
    monkeypatch.setattr(channelwise, '_compute', guarded(guard, channelwise._compute))
    check_same_bits([results(*map(guard.copy, arrays), with_relu), expected])


def guarded(guard, compute):
    """The function ``_compute``, with rows and sums between pages that nobody may touch."""

    def call(name, x, **arrays):
        own = {}
        for kind in {'rows', 'sums'} & arrays.keys():
            own[kind] = guard.empty(arrays[kind].shape, arrays[kind].dtype)
            own[kind][...] = arrays[kind]
        compute(name, x, **{**arrays, **own})
        if 'sums' in own:
            arrays['sums'][...] = own['sums']

    return call


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_channels_beyond_the_ordinary(value):
    x, gamma, beta, _ = arrays_of((6, 16, 5, 5))
    x[3, 2, 1, 1] = value
    check_same_as_stock(F.batch_normalization, x, gamma, beta)
    check_same_as_stock(F.fixed_batch_normalization, x, gamma, beta, array(16), array(16, seed=4) ** 2)
    masks = normalization.empty_masks(x)
    y, _ = normalization.batch_normalization(x, gamma, beta, EPS, masks)
    assert (y[:, 2] == 0).all()
    bits = np.unpackbits(masks, bitorder='little').reshape(6, 5, 5, 16)
    np.testing.assert_array_equal(bits.transpose(0, 3, 1, 2), y > 0)


@pytest.mark.parametrize('order', ['C', 'K'])
@pytest.mark.parametrize('channels', [16, 12])
@pytest.mark.onednn
def test_onednn_takes_other_images(calls, order, channels):
    x, gamma, beta, gy = arrays_of((4, channels, 6, 6))
    x, gy = (np.asarray(given, order=order) for given in (x, gy))
    check_close((x, gamma, beta, gy), False)
    is_ours = order == 'K' and channels == 16
    assert calls == ['moments', 'scaled', 'gradient_sums', 'gx'] * is_ours


@pytest.mark.onednn
def test_fixed_normalization_has_onednns_bits(monkeypatch):
    arrays = [arrays_of((4, 16, 6, 6), 5)[0], *array(3, 16), array(16, seed=4) ** 2]
    found = []
    for has in True, False:
        monkeypatch.setattr(normalization, '_HAS_CHANNELWISE', has)
        with cpu.fast():
            found.append(F.fixed_batch_normalization(*arrays).array)
    np.testing.assert_array_equal(*found)


@pytest.mark.onednn
def test_all_of_resnets_training_is_computed_here(calls):
    net = resnet_cifar10.get_network()
    with cpu.fast():
        net.train(array(4, 3, 32, 32), np.arange(4, dtype=np.int32))
    links = {link for model in net.models for link in model.links() if isinstance(link, L.BatchNormalization)}
    assert len(calls) == 4 * len(links) > 0


@pytest.mark.onednn
def test_without_llvmlite_onednn_computes():
    code = """
        import sys
        sys.modules['llvmlite'] = None
        from branchynet import cpu
        from branchynet.cpu import layout, normalization
        import chainer.functions as F
        import numpy as np

        x = layout.channels_last((2, 16, 2, 2))
        x[0], x[1] = 1, 3
        with cpu.fast():
            y = F.batch_normalization(x, np.ones(16, np.float32), np.zeros(16, np.float32)).array
        np.testing.assert_allclose(y[0], -1, rtol=1e-4)
        assert not normalization._HAS_CHANNELWISE
    """
    subprocess.run([sys.executable, '-c', textwrap.dedent(code)], check=True)
