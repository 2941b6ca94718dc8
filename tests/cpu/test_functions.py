"""Chainer's functions on the fast kernels, against stock Chainer in float32 and in float64."""

import contextlib
import gc
import itertools
import types
import warnings

from branchynet import cpu
from branchynet.cpu import adam, convolution, layout, onednn
from branchynet.cpu.geometry import Geometry

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from chainer import gradient_check
from hypothesis import given, settings
from hypothesis import strategies as st

TOLERANCE, TOLERANCE_OF_FLOAT64 = 1e-4, 1e-5
lrn = F.local_response_normalization


def array(*shape, seed=0, dtype=np.float32):
    return np.asarray(np.random.RandomState(seed + sum(shape)).randn(*shape)).astype(dtype)


def arrays_of_convolution(b=2, c=6, h=7, w=7, o=4, kernel=(3, 3), bias=True):
    arrays = [array(b, c, h, w), array(o, c, *kernel, seed=1)]
    return arrays + [array(o, seed=2)] * bias


def run(f, arrays):
    """The output of f and the gradients of all its arrays, for some gradient of the output."""
    variables = [chainer.Variable(a) for a in arrays]
    y = f(*variables)
    y.grad = array(*y.shape, seed=3, dtype=y.dtype)
    y.backward()
    return [y.array] + [v.grad for v in variables]


def run_twice(f, arrays):
    """The gradients of all arrays, and the gradients of a function of these."""
    variables = [chainer.Variable(a) for a in arrays]
    y = f(*variables)
    loss = F.sum(y * y * array(*y.shape, seed=3, dtype=y.dtype))
    gradients = chainer.grad([loss], variables, enable_double_backprop=True)
    for v in variables:
        v.cleargrad()
    sum(F.sum(g * g) for g in gradients).backward()
    return [g.array for g in gradients] + [v.grad for v in variables]


def outcome(f, arrays, how=run):
    """What comes out: arrays, or the type of the error."""
    with warnings.catch_warnings(), np.errstate(all='ignore'):
        warnings.simplefilter('ignore')
        try:
            return how(f, arrays)
        except Exception as e:
            return type(e)


def fast_outcome(f, arrays, how=run):
    with cpu.fast():
        return outcome(f, arrays, how)


def check_close(found, expected, tolerance):
    assert isinstance(found, list) == isinstance(expected, list), (found, expected)
    if not isinstance(expected, list):
        assert found is expected
        return
    assert len(found) == len(expected)
    for i, (a, b) in enumerate(zip(found, expected)):
        assert (a is None) == (b is None)
        if b is None:
            continue
        assert a.shape == b.shape
        finite = np.abs(b[np.isfinite(b)])
        # All data is of the order of 1: what is below 1e-6 is what sums of such numbers leave when they cancel.
        np.testing.assert_allclose(
            a, b, rtol=tolerance, atol=max(tolerance * finite.max(initial=0), 1e-6), err_msg='array %d' % i
        )


def check_dtypes(found, expected):
    if isinstance(expected, list):
        assert [a is None or a.dtype for a in found] == [a is None or a.dtype for a in expected]


def check_same_as_stock(f, *arrays, how=run):
    """The same arrays, dtypes and error as stock Chainer's."""
    found, expected = fast_outcome(f, arrays, how), outcome(f, arrays, how)
    check_close(found, expected, TOLERANCE)
    check_dtypes(found, expected)
    return expected


def check(f, *arrays):
    """Like stock Chainer's in float32, and like the truth."""
    assert isinstance(check_same_as_stock(f, *arrays), list)
    expected = outcome(f, [a.astype(np.float64) for a in arrays])
    check_close(fast_outcome(f, arrays), expected, TOLERANCE_OF_FLOAT64)


def check_error(f, *arrays):
    assert isinstance(check_same_as_stock(f, *arrays), type)


# Convolution


@pytest.mark.parametrize('kernel', [(1, 1), (3, 3), (5, 5), (1, 4), (4, 1), (3, 2)])
@pytest.mark.parametrize('stride', [1, 2, (3, 1), (1, 4)])
@pytest.mark.parametrize('pad', [0, 1, (3, 0), (1, 4)])
def test_convolution(kernel, stride, pad):
    check(lambda x, w, b: F.convolution_2d(x, w, b, stride, pad), *arrays_of_convolution(h=9, w=8, kernel=kernel))


@pytest.mark.parametrize('stride,kernel', [((4, 4), (1, 1)), ((5, 3), (2, 3)), ((9, 9), (3, 3))])
def test_convolution_that_skips_pixels(stride, kernel):
    check(
        lambda x, w: F.convolution_2d(x, w, stride=stride), *arrays_of_convolution(h=9, w=11, kernel=kernel, bias=False)
    )


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('c,o', [(1, 1), (1, 5), (3, 32), (16, 8), (17, 33)])
def test_convolution_of_any_channels(c, o, bias):
    check(lambda x, w, b=None: F.convolution_2d(x, w, b, pad=1), *arrays_of_convolution(c=c, o=o, bias=bias))


@pytest.mark.parametrize('b', [1, 7, 8, 9, 65])
@pytest.mark.parametrize('size', [6, 20])
def test_convolution_of_any_batch(b, size):
    check(lambda x, w, b: F.convolution_2d(x, w, b, pad=2), *arrays_of_convolution(b, 5, size, size, 10, (5, 5)))


def test_convolution_of_as_many_pixels_as_weights():
    check(F.convolution_2d, *arrays_of_convolution(h=5, w=6, kernel=(5, 6)))


@pytest.mark.parametrize('h,w', [(2, 5), (5, 2), (2, 2)])
@pytest.mark.parametrize('pad', [0, (0, 1)])
def test_convolution_with_kernel_larger_than_the_image(h, w, pad):
    check_same_as_stock(
        lambda x, w, b: F.convolution_2d(x, w, b, pad=pad), *arrays_of_convolution(h=h, w=w, kernel=(3, 3))
    )
    check_error(lambda x, w, b: F.convolution_2d(x, w, b), *arrays_of_convolution(h=h, w=w, kernel=(3, 3)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_convolution_of_any_shape(data):
    b, c, h, w, o = (data.draw(st.integers(1, most)) for most in (9, 18, 10, 10, 18))
    kernel, stride, pad = (tuple(data.draw(st.integers(least, 4)) for _ in 'yx') for least in (1, 1, 0))
    dilate = tuple(data.draw(st.sampled_from([1, 1, 2, 3])) for _ in 'yx')
    groups = data.draw(st.sampled_from([n for n in range(1, 19) if c % n == o % n == 0]))
    x, weights, *b = arrays_of_convolution(b, c, h, w, o, kernel, data.draw(st.booleans()))
    check_same_as_stock(
        lambda *arrays: F.convolution_2d(*arrays, stride=stride, pad=pad, dilate=dilate, groups=groups),
        *(x, np.ascontiguousarray(weights[:, : c // groups]), *b),
    )


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(dilate=2),
        dict(dilate=(3, 1), stride=(1, 2)),
        dict(cover_all=True, stride=2),
        dict(groups=2),
        dict(groups=4, pad=1),
        dict(groups=2, dilate=(1, 2), pad=2),
    ],
    ids=str,
)
def test_convolutions_in_groups_and_with_gaps(kwargs):
    x, w, b = arrays_of_convolution(c=4, h=8, w=8)
    check(lambda *arrays: F.convolution_2d(*arrays, **kwargs), x, w[:, : 4 // kwargs.get('groups', 1)], b)


def test_groups_that_do_not_divide_the_channels_are_refused():
    x, w, b = arrays_of_convolution(c=4, o=6, h=8, w=8)
    for groups, channels in ((3, 1), (4, 1), (2, 4)):
        check_error(lambda *arrays, groups=groups: F.convolution_2d(*arrays, groups=groups), x, w[:, :channels], b)


@pytest.mark.parametrize(
    'kwargs', [dict(stride=0), dict(pad=-1), dict(stride=-1), dict(stride=1.5), dict(stride=2.0)], ids=str
)
def test_convolution_refuses_what_chainer_refuses(kwargs):
    check_error(lambda *arrays: F.convolution_2d(*arrays, **kwargs), *arrays_of_convolution())


@pytest.mark.parametrize(
    'change',
    [
        lambda x, w, b: (x[:, :2], w, b),
        lambda x, w, b: (x, w[:, :, 0], b),
        lambda x, w, b: (x, w, b[:2]),
        lambda x, w, b: (x, w, b[:1]),
    ],
    ids=['channels', 'dimensions', 'bias', 'one bias'],
)
@pytest.mark.parametrize('type_check', [True, False])
def test_convolution_of_shapes_that_do_not_fit(change, type_check):
    with chainer.using_config('type_check', type_check):
        check_error(F.convolution_2d, *change(*arrays_of_convolution()))


@pytest.mark.parametrize('size', [1, 2, 5])
def test_vectors_of_a_wrong_length_are_read_as_chainer_reads_them(size):
    v, image = array(size), array(2, 4, 3, 3)
    # Without its check of types Chainer broadcasts one number, and NumPy refuses the others.
    with chainer.using_config('type_check', False), chainer.no_backprop_mode(), cpu.fast():
        for f in (
            lambda: F.convolution_2d(image, array(4, 4, 3, 3), v),
            lambda: F.batch_normalization(image, v, v),
            lambda: F.batch_normalization(image, array(4), v),
            lambda: F.fixed_batch_normalization(image, v, v, array(4), array(4) ** 2),
        ):
            if size == 1:
                assert f().shape[:2] == (2, 4)
            else:
                with pytest.raises(ValueError, match='broadcast'):
                    f()


def test_convolution_for_cudnn_only_is_refused():
    with chainer.using_config('compute_mode', 'cudnn_fast'):
        check_error(L.Convolution2D(6, 4, 3), arrays_of_convolution()[0])


@pytest.mark.parametrize('wanted', [w for n in (1, 2, 3) for w in itertools.combinations(range(3), n)], ids=str)
def test_convolution_gives_only_the_gradients_asked_for(wanted):
    def gradients():
        variables = [chainer.Variable(a, requires_grad=i in wanted) for i, a in enumerate(arrays_of_convolution())]
        y = F.convolution_2d(*variables)
        y.grad = array(*y.shape)
        y.backward()
        return [v.grad for v in variables]

    expected = gradients()
    with cpu.fast():
        check_close(gradients(), expected, TOLERANCE)


def test_gradients_accumulate():
    def gradients():
        link = L.Convolution2D(6, 6, 3, pad=1, initialW=array(6, 6, 3, 3))
        x = chainer.Variable(arrays_of_convolution()[0])
        y = link(link(x) + x)
        for _ in range(2):
            y.grad = array(*y.shape)
            y.backward()
        return [x.grad, link.W.grad, link.b.grad]

    expected = gradients()
    with cpu.fast():
        check_close(gradients(), expected, TOLERANCE)


@pytest.mark.onednn
def test_no_column_matrix_is_made(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError('im2col')

    monkeypatch.setattr(chainer.utils.conv, 'im2col_cpu', fail)
    monkeypatch.setattr(chainer.utils.conv_nd, 'im2col_nd_cpu', fail)
    monkeypatch.setattr(chainer.utils.conv, 'col2im_cpu', fail)
    monkeypatch.setattr(chainer.utils.conv_nd, 'col2im_nd_cpu', fail)
    with cpu.fast():
        run(lambda x, w, b: F.max_pooling_2d(F.convolution_2d(x, w, b), 2), arrays_of_convolution(o=5))
    with pytest.raises(AssertionError, match='im2col'):
        run(F.convolution_2d, arrays_of_convolution())


# Pooling


@pytest.mark.parametrize('cover_all', [True, False])
@pytest.mark.parametrize('pad', [0, 1, (1, 0)])
@pytest.mark.parametrize('kernel,stride', [(2, 2), (3, 2), (3, 1), ((2, 3), (3, 2)), (2, None), ((3, 4), (1, 5))])
def test_max_pooling(kernel, stride, pad, cover_all):
    check(lambda x: F.max_pooling_2d(x, kernel, stride, pad, cover_all=cover_all), array(3, 5, 8, 9))


@pytest.mark.parametrize(
    'kernel,stride,pad',
    [(2, 2, 0), (3, 2, 1), ((2, 3), (3, 1), (0, 1)), (2, None, 1), (1, 3, 0), ((8, 9), 1, 0), (2, 1, 3)],
)
def test_average_pooling(kernel, stride, pad):
    check(lambda x: F.average_pooling_2d(x, kernel, stride, pad), array(3, 5, 8, 9))


@pytest.mark.parametrize(
    'kernel,stride,pad',
    [(2, 2, 2), (2, 1, 3), ((3, 1), 2, (0, 1)), (9, 1, 1), (9, 1, 0), (10, 1, 1), ((8, 12), 2, (0, 2)), (20, 3, 8)],
    ids=str,
)
def test_average_pooling_over_padding_alone_and_beyond_the_image(kernel, stride, pad):
    check_same_as_stock(lambda x: F.average_pooling_2d(x, kernel, stride, pad), array(2, 3, 8, 8))


@pytest.mark.parametrize('value', [np.nan, -np.inf, np.inf, np.finfo(np.float32).max / 4])
@pytest.mark.parametrize('share', [0.1, 1])
def test_average_pooling_of_values_beyond_the_ordinary(value, share):
    x = array(3, 9, 9, 9)
    x[np.random.RandomState(0).rand(*x.shape) < share] = value
    check_same_as_stock(lambda x: F.average_pooling_2d(x, 3, 2, 1), x)


@pytest.mark.parametrize('b,c', [(1, 1), (1, 16), (2, 17), (9, 8), (65, 20)])
@pytest.mark.parametrize('pooling', [F.max_pooling_2d, F.average_pooling_2d])
def test_pooling_of_any_batch_and_channels(pooling, b, c):
    check(lambda x: pooling(x, 3, 2, 1), array(b, c, 28, 27))


@pytest.mark.parametrize('kernel', [(15, 17), (16, 16), (17, 17), (1, 40), (31, 31)], ids=str)
def test_pooling_over_large_windows(kernel):
    for pooling in (F.max_pooling_2d, F.average_pooling_2d):
        check(lambda x: pooling(x, kernel, 1, 0), array(1, 9, 40, 40))


@pytest.mark.parametrize('cover_all', [True, False])
@pytest.mark.parametrize('c', [1, 3, 8, 17])
@pytest.mark.parametrize('values', ['equal', 'few', 'zeros of both signs'])
def test_ties_go_where_chainers_go(values, c, cover_all):
    x = np.random.RandomState(0).randint(0, 3, (3, c, 9, 9)).astype(np.float32)
    x = {'equal': x * 0 + 2, 'few': x, 'zeros of both signs': np.where(x > 1, np.float32(0), np.float32(-0.0))}[values]

    def f(x):
        return F.max_pooling_2d(x, 3, 2, 1, cover_all=cover_all)

    found, expected = fast_outcome(f, [x]), outcome(f, [x])
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1] != 0, expected[1] != 0)
    check_close(found, expected, 1e-6)


@pytest.mark.parametrize('cover_all', [True, False])
@pytest.mark.parametrize('value', [np.nan, -np.inf, np.inf, np.finfo(np.float32).min])
@pytest.mark.parametrize('share', [0.1, 0.8, 1])
def test_max_pooling_of_values_beyond_the_ordinary(value, share, cover_all):
    x = array(3, 9, 9, 9)
    x[np.random.RandomState(0).rand(*x.shape) < share] = value
    check_same_as_stock(lambda x: F.max_pooling_2d(x, 3, 2, 1, cover_all=cover_all), x)


@pytest.mark.parametrize(
    'kernel,stride,pad,cover_all',
    [(2, 2, 2, True), (2, 1, 3, False), ((3, 1), 2, (0, 1), True), (1, 3, 0, True), ((2, 3), (3, 4), 1, True)],
)
def test_max_pooling_with_windows_of_padding_alone(kernel, stride, pad, cover_all):
    check_same_as_stock(lambda x: F.max_pooling_2d(x, kernel, stride, pad, cover_all=cover_all), array(2, 3, 8, 8))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_pooling_of_any_shape(data):
    shape = tuple(data.draw(st.integers(1, most)) for most in (9, 18, 12, 12))
    kernel, stride, pad = (
        tuple(data.draw(st.integers(least, most)) for _ in 'yx') for least, most in ((1, 5), (1, 4), (0, 4))
    )
    cover_all = data.draw(st.booleans())
    check_same_as_stock(lambda x: F.max_pooling_2d(x, kernel, stride, pad, cover_all=cover_all), array(*shape))
    check_same_as_stock(lambda x: F.average_pooling_2d(x, kernel, stride, pad), array(*shape))


def test_pooling_with_indices_is_chainers():
    x = array(2, 3, 7, 7)
    y, indices = F.max_pooling_2d(x, 3, 2, return_indices=True)
    with cpu.fast():
        fast_y, fast_indices = F.max_pooling_2d(x, 3, 2, return_indices=True)
    np.testing.assert_array_equal(fast_y.array, y.array)
    np.testing.assert_array_equal(fast_indices, indices)
    unpooled = F.upsampling_2d(y, indices, 3, 2, outsize=(7, 7))
    with cpu.fast():
        np.testing.assert_array_equal(F.upsampling_2d(fast_y, fast_indices, 3, 2, outsize=(7, 7)).array, unpooled.array)


@pytest.mark.parametrize(
    'f,shape',
    [
        (lambda x: F.max_pooling_3d(x, 2), (2, 3, 4, 5, 6)),
        (lambda x: F.max_pooling_1d(x, 3, 2), (2, 3, 9)),
        (lambda x: F.average_pooling_3d(x, 2), (2, 3, 4, 5, 6)),
        (lambda x: F.average_pooling_1d(x, 2), (2, 3, 9)),
    ],
)
def test_pooling_in_other_dimensions_is_chainers(f, shape):
    assert isinstance(check_same_as_stock(f, array(*shape)), list)


@pytest.mark.parametrize('pooling', [F.max_pooling_2d, F.average_pooling_2d])
@pytest.mark.parametrize('arguments', [(9, 1), (2, 0), (2, 2, -1), (2, -1), (2.5, 2)], ids=str)
def test_pooling_refuses_what_chainer_refuses(pooling, arguments):
    check_error(lambda x: pooling(x, *arguments), array(2, 3, 5, 5))


# Local response normalisation


@pytest.mark.parametrize('n', [1, 2, 3, 5, 7])
@pytest.mark.parametrize('c', [1, 2, 3, 4, 33])
def test_local_response_normalization(n, c):
    check(lambda x: lrn(x, n, alpha=0.3), array(3, c, 6, 5))


@pytest.mark.parametrize('k', [1, 2, 0.5])
@pytest.mark.parametrize('alpha', [1e-4, 5e-5, 0.7])
@pytest.mark.parametrize('beta', [0.75, 0.5, 0.3, 1, 2, 0, -0.75])
def test_local_response_normalization_with(k, alpha, beta):
    check(lambda x: lrn(x, 3, k, alpha, beta), array(2, 9, 5, 4))


def test_local_response_normalization_of_large_batches_and_zeros():
    check(lrn, array(37, 32, 9, 9))
    check(lrn, np.zeros((2, 5, 3, 3), np.float32))
    check_same_as_stock(lambda x: lrn(x, k=0), np.zeros((2, 5, 3, 3), np.float32))


@pytest.mark.parametrize('shape', [(4, 9), (4, 9, 5), (2, 9, 2, 3, 2)], ids=str)
def test_local_response_normalization_of_other_dimensions(shape):
    check(lrn, array(*shape))


# Batch normalisation


def arrays_of_normalization(*shape):
    return [array(*shape), array(shape[1], seed=1), array(shape[1], seed=2)]


@pytest.mark.parametrize(
    'shape', [(2, 3, 4, 5), (1, 3, 4, 5), (7, 16, 3, 3), (65, 17, 8, 8), (9, 1, 1, 1), (8, 5)], ids=str
)
def test_batch_normalization(shape):
    check(F.batch_normalization, *arrays_of_normalization(*shape))
    check(lambda *arrays: F.batch_normalization(*arrays, eps=0.1), *arrays_of_normalization(*shape))


@pytest.mark.parametrize('shape', [(2, 3, 4, 5), (1, 3, 4, 5), (65, 17, 8, 8), (8, 5)], ids=str)
def test_fixed_batch_normalization(shape):
    mean, var = array(shape[1], seed=3), array(shape[1], seed=4) ** 2 + np.float32(0.1)
    check(F.fixed_batch_normalization, *arrays_of_normalization(*shape), mean, var)


@pytest.mark.parametrize('mean,deviation', [(10, 1), (100, 1), (1, 0.01), (1000, 1), (-3, 1e-3), (0, 1e3)])
def test_batch_normalization_far_from_zero(mean, deviation):
    """Float32 leaves little of such data, in stock Chainer as well: nearer to the truth than that is near enough."""
    x, gamma, beta = arrays_of_normalization(8, 5, 6, 6)
    arrays = [x * np.float32(deviation) + np.float32(mean), gamma, beta]
    truth = outcome(F.batch_normalization, [a.astype(np.float64) for a in arrays])
    fast, stock = fast_outcome(F.batch_normalization, arrays), outcome(F.batch_normalization, arrays)
    for found, expected, true in zip(fast, stock, truth):
        assert np.abs(found - true).max() <= 1.5 * np.abs(expected - true).max() + 1e-6 * np.abs(true).max()


@pytest.mark.parametrize('shape', [(1, 3, 20, 20), (9, 5, 6, 6), (20, 16, 90, 90)], ids=['image', 'call', 'parts'])
@pytest.mark.parametrize('mean', [0, 1, 10, 1000])
def test_batch_normalization_on_every_path(shape, mean):
    x, gamma, beta = arrays_of_normalization(*shape)
    arrays = [x + np.float32(mean), gamma, beta]
    assert isinstance(outcome(F.batch_normalization, arrays), list)
    truth = outcome(F.batch_normalization, [a.astype(np.float64) for a in arrays])
    fast, stock = fast_outcome(F.batch_normalization, arrays), outcome(F.batch_normalization, arrays)
    for found, expected, true in zip(fast, stock, truth):
        assert np.abs(found - true).max() <= 1.5 * np.abs(expected - true).max() + 3e-5 * np.abs(true).max()


@pytest.mark.parametrize('shape', [(5, 3, 20, 16), (20, 16, 90, 90)], ids=['call', 'parts'])
@pytest.mark.parametrize('value', [0, 1, -300, 2e5])
def test_constant_channels_have_no_variance(shape, value):
    x, gamma, beta = arrays_of_normalization(*shape)
    x[:, 1:] = value
    for order in (np.copy, lambda x: layout.like(x, layout.channels_last(shape))):
        mean, variance = np.zeros(shape[1], np.float32), np.zeros(shape[1], np.float32)
        with cpu.fast():
            y = F.batch_normalization(order(x), gamma, beta, running_mean=mean, running_var=variance, decay=0).array
        np.testing.assert_allclose(mean[1:], value, rtol=1e-6)
        assert (variance[1:] >= 0).all() and (variance[1:] <= 1e-9 * value**2).all()
        np.testing.assert_allclose(y[:, 1:], np.broadcast_to(beta[1:, None, None], y[:, 1:].shape), atol=1e-5)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_batch_normalization_of_a_channel_beyond_the_ordinary(value):
    x, gamma, beta = arrays_of_normalization(6, 4, 5, 5)
    x[3, 2, 1, 1] = value
    check_same_as_stock(F.batch_normalization, x, gamma, beta)
    check_same_as_stock(F.fixed_batch_normalization, x, gamma, beta, array(4), array(4, seed=4) ** 2)


@pytest.mark.parametrize(
    'kwargs', [dict(use_gamma=False), dict(use_beta=False), dict(use_gamma=False, use_beta=False)], ids=str
)
def test_batch_normalization_without_parameters(kwargs):
    for train in (True, False):
        with chainer.using_config('train', train):
            check_same_as_stock(lambda x: L.BatchNormalization(5, **kwargs)(x), array(6, 5, 4, 3))


@pytest.mark.parametrize('x', [array(1, 5, 1, 1), np.full((4, 5, 3, 3), 3, np.float32)], ids=['one', 'constant'])
def test_batch_normalization_without_variance_gives_beta(x):
    gamma, beta = array(5, seed=1), array(5, seed=2)
    y = fast_outcome(F.batch_normalization, [x, gamma, beta])[0]
    np.testing.assert_allclose(y, np.broadcast_to(beta[:, None, None], x.shape), atol=1e-6)
    check_same_as_stock(F.batch_normalization, x, gamma, beta)


def test_batch_of_one_pixel_is_warned_of():
    with cpu.fast(), pytest.warns(UserWarning, match='no more than one sample'):
        F.batch_normalization(*arrays_of_normalization(1, 5, 1, 1))


@pytest.mark.parametrize('b', [1, 5, 33])
def test_running_statistics(b):
    def train():
        link = L.BatchNormalization(7)
        for seed in range(3):
            link(array(b, 7, 4, 4, seed=seed) + np.float32(2))
        with chainer.using_config('train', False):
            tested = link(array(b, 7, 4, 4, seed=4)).array
        return [link.avg_mean, link.avg_var, tested], link.N

    expected, n = train()
    with cpu.fast():
        found, fast_n = train()
    check_close(found, expected, TOLERANCE)
    check_dtypes(found, expected)
    assert fast_n == n


def test_given_running_statistics_are_updated_in_place():
    mean, var = np.zeros(3, np.float32), np.ones(3, np.float32)
    with cpu.fast():
        F.batch_normalization(*arrays_of_normalization(4, 3, 5, 5), running_mean=mean, running_var=var, decay=0.5)
    x = array(4, 3, 5, 5)
    np.testing.assert_allclose(mean, x.mean((0, 2, 3)) / 2, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(var, 0.5 + x.var((0, 2, 3), ddof=1) / 2, rtol=1e-4)


@pytest.mark.parametrize('axis,c', [((0, 1, 2), 5), ((0, 2, 3), 3), ((0, 3), (3, 4))], ids=str)
def test_batch_normalization_over_other_axes(axis, c):
    check_same_as_stock(
        lambda x, gamma, beta: F.batch_normalization(x, gamma, beta, axis=axis),
        array(2, 3, 4, 5),
        array(*np.atleast_1d(c)),
        array(*np.atleast_1d(c), seed=1),
    )


# ReLU, linear and the rest


@pytest.mark.parametrize('shape', [(1,), (3, 5), (2, 3, 4, 5), (70000,), (3, 2, 1, 4, 5)], ids=str)
def test_relu(shape):
    check(F.relu, array(*shape))


def test_numbers_have_no_dimensions():
    x, y = chainer.Variable(np.array(2, np.float32)), chainer.Variable(np.array(3, np.float32))
    with cpu.fast():
        for z in (x + y, F.relu(x) + F.sum(y), sum([x, y, y])):
            assert z.shape == () and z.dtype == np.float32
            z.backward()
    assert x.grad.shape == ()
    check(F.relu, array())


def test_additions():
    check(lambda x, y: x + y, array(3, 4, 5, 6), array(3, 4, 5, 6, seed=1))
    check(lambda x, y: x + y, array(700, 800), array(700, 800, seed=1))
    check(lambda x: x + x, array(7))
    check(lambda x, y: x + y, array(3, 4), array(4))
    check(lambda x, y: x + y, array(3, 1, 4), array(2, 1))
    check_error(lambda x, y: x + y, array(3, 4), array(3))
    check_error(lambda x, y: x + y, array(3), array(3, dtype=np.float16))


def test_relu_of_values_beyond_the_ordinary():
    check_same_as_stock(F.relu, np.float32([np.nan, np.inf, -np.inf, 0, -0.0, 1e-45, -1e-45, 1]))


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize(
    'b,i,o', [(1, 1, 1), (1, 5, 3), (1, 700, 1), (5, 1, 3), (64, 700, 10), (65, 257, 130), (300, 20, 7), (7, 512, 256)]
)
def test_linear(b, i, o, bias):
    check(F.linear, *[array(b, i), array(o, i, seed=1), array(o, seed=2)][: 2 + bias])


def test_linear_of_images():
    check(F.linear, array(3, 2, 4, 5), array(7, 40), array(7))
    check(lambda *arrays: F.linear(*arrays, n_batch_axes=2), array(3, 2, 4), array(7, 4), array(7))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 140), st.integers(1, 300), st.integers(1, 40), st.booleans())
def test_linear_of_any_shape(b, i, o, bias):
    check_same_as_stock(F.linear, *[array(b, i), array(o, i, seed=1), array(o, seed=2)][: 2 + bias])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 7))
def test_normalizations_of_any_shape(b, c, h, w, n):
    check_same_as_stock(F.batch_normalization, *arrays_of_normalization(b, c, h, w))
    check_same_as_stock(lambda x: lrn(x, n, alpha=0.1), array(b, c, h, w))
    check_same_as_stock(F.relu, array(b, c, h, w))


@pytest.mark.parametrize(
    'change', [lambda x, w, b: (x[:, :3], w, b), lambda x, w, b: (x, w, b[:2])], ids=['columns', 'bias']
)
@pytest.mark.parametrize('type_check', [True, False])
def test_linear_of_shapes_that_do_not_fit(change, type_check):
    with chainer.using_config('type_check', type_check):
        check_error(F.linear, *change(array(3, 5), array(4, 5), array(4)))


def test_softmax_cross_entropy_and_accuracy():
    t = np.random.RandomState(0).randint(-1, 10, 37).astype(np.int32)
    for kwargs in (dict(), dict(normalize=False), dict(reduce='no'), dict(class_weight=array(10) ** 2)):
        check_same_as_stock(lambda x: F.softmax_cross_entropy(x, t, **kwargs), array(37, 10))
    check(F.softmax, array(37, 10))
    check_same_as_stock(lambda x: F.softmax_cross_entropy(x, t), array(37, 10) * np.float32(1e4))
    with cpu.fast():
        fast = F.accuracy(array(37, 10), t, ignore_label=-1).array
    assert fast == F.accuracy(array(37, 10), t, ignore_label=-1).array


@pytest.mark.parametrize('ratio', [0.0, 0.5, 0.9])
def test_dropout_is_what_chainers_seed_gives(ratio):
    def seeded(x):
        np.random.seed(0)
        return F.dropout(x, ratio)

    check_same_as_stock(seeded, array(5, 6, 7))
    mask = np.random.RandomState(0).rand(5, 6, 7) < 0.5
    check_same_as_stock(lambda x: F.dropout(x, 0.5, mask=mask.astype(np.float32) * 2), array(5, 6, 7))
    with chainer.using_config('train', False):
        check_same_as_stock(seeded, array(5, 6, 7))


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(),
        dict(amsgrad=True),
        dict(weight_decay_rate=0.01),
        dict(eta=0.5),
        dict(adabound=True),
        dict(eps=1e-2, beta1=0.5),
    ],
    ids=str,
)
def test_adams_updates(kwargs):
    def train():
        link = L.Linear(7, 5, initialW=array(5, 7))
        optimizer = chainer.optimizers.Adam(**kwargs).setup(link)
        for seed in range(4):
            link.cleargrads()
            F.sum(link(array(6, 7, seed=seed)) ** 2).backward()
            optimizer.update()
        return [link.W.array, link.b.array, link.W.update_rule.state['m'], link.W.update_rule.state['v']]

    expected = train()
    with cpu.fast():
        found = train()
    check_close(found, expected, TOLERANCE)
    check_dtypes(found, expected)


@pytest.mark.parametrize(
    'order', [np.copy, np.asfortranarray, lambda a: np.repeat(a, 2, axis=1)[:, ::2]], ids=['C', 'Fortran', 'gaps']
)
@pytest.mark.parametrize('dtype', ['float32', 'float16', 'float64'])
@pytest.mark.parametrize(
    'kwargs',
    [dict(), dict(weight_decay_rate=0.01), dict(amsgrad=True), dict(adabound=True), dict(eta=0.5, alpha=0.1)],
    ids=str,
)
def test_adams_updates_are_chainers_to_the_bit(kwargs, dtype, order):
    shape = (600, 500) if dtype == 'float32' and not kwargs else (20, 30)  # several blocks where there are any

    def train(order_of_w):
        link = chainer.Link()
        with link.init_scope():
            link.w = chainer.Parameter(order_of_w(array(*shape, dtype=dtype)))
        optimizer = chainer.optimizers.Adam(eps=1e-4, **kwargs).setup(link)
        for seed in range(3):
            link.w.grad = order(array(*shape, seed=seed, dtype=dtype))
            optimizer.update()
            link.w.array = np.ascontiguousarray(link.w.array)  # the moments stay in the order that they began in
        return [link.w.array] + [state for _, state in sorted(link.w.update_rule.state.items())]

    for order_of_w in (np.copy, np.asfortranarray):
        expected = train(order_of_w)
        with cpu.fast():
            found = train(order_of_w)
        check_dtypes(found, expected)
        for a, b in zip(found, expected):
            np.testing.assert_array_equal(a, b)


@given(st.integers(1, 70), st.floats(1e-30, 1e30), st.integers(0, 1000))
def test_machine_code_of_adam_has_numpys_bits(size, scale, seed):
    random, numbers = np.random.RandomState(seed), types.SimpleNamespace(beta1=0.9, beta2=0.999, eps=1e-8, eta=1.0)
    found = [(random.randn(size) * scale).astype('f') for _ in range(3)]
    found.append((random.rand(size) * scale).astype('f'))
    expected = [array.copy() for array in found]
    with np.errstate(all='ignore'):
        adam.adam(*found, 0.0123, numbers)
        adam._update(expected, (0.0123, 1 - numbers.beta1, 1 - numbers.beta2, numbers.eps, -numbers.eta))
    for a, b in zip(found, expected):
        assert a.tobytes() == b.tobytes()


def parameters(link, **shapes):
    with link.init_scope():
        for name, shape in shapes.items():
            setattr(link, name, chainer.Parameter(array(*shape)))


def with_unused(link, optimizer):
    parameters(link, unused=(3,))
    optimizer.setup(link)


def with_rule_of_its_own(link, optimizer):
    link.b.update_rule = chainer.optimizers.adam.AdamRule(optimizer.hyperparam, alpha=0.1)


def twice(link, optimizer):
    with link.init_scope():
        link.again = link.W


def with_one_array(link, optimizer):
    link.more = chainer.Parameter()
    parameters(link, more=(4, 3))
    link.more.array = link.W.array
    optimizer.setup(link)


def with_one_rule(link, optimizer):
    parameters(link, more=(4, 3))
    link.more.update_rule = link.W.update_rule


WEIGHT_DECAY = chainer.optimizer_hooks.WeightDecay(0.1)
CHANGES = {
    'none': lambda link, optimizer: None,
    'a parameter without gradient': with_unused,
    'a parameter twice': twice,
    'two parameters of one array': with_one_array,
    'two parameters of one rule': with_one_rule,
    'a rule that is off': lambda link, optimizer: setattr(link.b.update_rule, 'enabled', False),
    'a rule of its own': with_rule_of_its_own,
    'a rule at another step': lambda link, optimizer: setattr(link.b.update_rule, 't', 5),
    'a hook': lambda link, optimizer: optimizer.add_hook(WEIGHT_DECAY),
    'a hook of a rule': lambda link, optimizer: link.b.update_rule.add_hook(WEIGHT_DECAY),
    'a loss scale': lambda link, optimizer: optimizer.set_loss_scale(4.0),
}


@pytest.mark.parametrize('change', CHANGES.values(), ids=CHANGES)
def test_an_optimizers_step_is_chainers_to_the_bit(change):
    def train():
        link, steps = chainer.Link(), []
        parameters(link, W=(4, 3), b=(4,))
        optimizer = chainer.optimizers.Adam(eps=1e-4).setup(link)
        change(link, optimizer)
        for seed in range(4):
            link.cleargrads()
            loss = F.sum(F.linear(array(5, 3, seed=seed), link.W, link.b) ** 2)
            if seed == 2:
                optimizer.update(lambda: loss)
            else:
                loss.backward()
                optimizer.update()
            steps.append((optimizer.t, [param.update_rule.t for param in link.params()]))
        states = [param.update_rule.state or {} for param in link.params()]
        return steps, [param.array for param in link.params()] + [array for state in states for array in state.values()]

    steps, expected = train()
    with cpu.fast():
        found_steps, found = train()
    assert found_steps == steps
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('name', ['m', 'v', 'grad', 'array'])
@pytest.mark.parametrize('kernels', [contextlib.nullcontext, cpu.fast])
def test_arrays_of_other_shapes_are_refused_as_by_chainer(kernels, name):
    link = chainer.Link()
    parameters(link, W=(40, 30), b=(4,))
    optimizer = chainer.optimizers.Adam().setup(link)
    with kernels():
        for _ in range(2):
            for param in link.params():
                param.grad = np.ones_like(param.array)
            optimizer.update()
        if name in ('m', 'v'):
            link.W.update_rule.state[name] = np.zeros((5, 3), np.float32)
        else:
            setattr(link.W, '_grad' if name == 'grad' else name, np.zeros((5, 3), np.float32))
        with pytest.raises(ValueError, match='operands could not be broadcast together'):
            optimizer.update()


def test_a_read_only_parameter_is_refused_as_by_chainer():
    link = chainer.Link()
    parameters(link, W=(4, 3))
    optimizer = chainer.optimizers.Adam().setup(link)
    link.W.array.flags.writeable = False
    with cpu.fast():
        for _ in range(2):
            link.W.grad = array(4, 3)
            with pytest.raises(ValueError, match='read-only'):
                optimizer.update()


def test_a_loss_function_may_have_any_keyword():
    link = chainer.Link()
    parameters(link, W=(4, 3))
    optimizer = chainer.optimizers.Adam().setup(link)
    with cpu.fast():
        optimizer.update(lambda stock: F.sum(link.W * stock), stock=2)
    np.testing.assert_array_equal(link.W.grad, np.full((4, 3), 2, np.float32))


def test_methods_that_adam_inherits_are_inherited_again():
    with cpu.fast():
        assert 'update' in vars(chainer.optimizers.Adam)
    assert 'update' not in vars(chainer.optimizers.Adam)


def test_adam_passes_over_parameters_without_gradient():
    def train():
        link = L.Linear(7, 5, initialW=array(5, 7))
        optimizer = chainer.optimizers.Adam().setup(link)
        link.cleargrads()
        link.W.grad = array(5, 7, seed=1)
        optimizer.update()
        return [link.W.array, link.b.array]

    expected = train()
    with cpu.fast():
        check_close(train(), expected, TOLERANCE)


# Gradients of gradients

DIFFERENTIABLE = {
    'convolution': (lambda x, w, b: F.convolution_2d(x, w, b, 2, 1), arrays_of_convolution()),
    'convolution without bias': (lambda x, w: F.convolution_2d(x, w, pad=1), arrays_of_convolution(bias=False)),
    'max pooling': (lambda x: F.max_pooling_2d(x, 3, 2, 1), [array(2, 3, 8, 8)]),
    'max pooling, not all covered': (lambda x: F.max_pooling_2d(x, 3, 2, 1, False), [array(2, 17, 8, 8)]),
    'average pooling': (lambda x: F.average_pooling_2d(x, 3, 2, 1), [array(2, 3, 8, 8)]),
    'batch normalization': (F.batch_normalization, arrays_of_normalization(3, 4, 5, 5)),
    'fixed batch normalization': (
        F.fixed_batch_normalization,
        [*arrays_of_normalization(3, 4, 5, 5), array(4), array(4, seed=5) ** 2 + 1],
    ),
    'local response normalization': (lrn, [array(2, 6, 3, 3)]),  # Chainer has none and says so
    'relu': (F.relu, [array(5, 6)]),
    'linear': (F.linear, [array(5, 6), array(4, 6), array(4)]),
    'dropout': (lambda x: F.dropout(x, 0.5, mask=np.float32(array(5, 6) > 0) * 2), [array(5, 6)]),
    'softmax': (F.softmax, [array(5, 6)]),
    'a net': (lambda *arrays: small_net(*arrays), arrays_of_convolution(o=3, c=3, h=8, w=8)),
}


def small_net(x, w, b):
    h = F.max_pooling_2d(F.relu(F.convolution_2d(x, w, b, pad=1)), 2)
    h = F.batch_normalization(h, np.ones(3, np.float32), b)
    return F.linear(F.average_pooling_2d(h, 2), array(4, 12))


@pytest.mark.parametrize('name', DIFFERENTIABLE)
def test_gradients_of_gradients(name):
    f, arrays = DIFFERENTIABLE[name]
    expected = check_same_as_stock(f, *arrays, how=run_twice)
    assert isinstance(expected, list) or name == 'local response normalization'


def test_gradients_by_finite_differences():
    # In float64, which the kernels leave to Chainer.
    with cpu.fast():
        for f, arrays in FUNCTIONS.values():
            gradient_check.check_backward(
                f,
                tuple(a.astype(np.float64) for a in arrays),
                array(*f(*arrays).shape, dtype=np.float64),
                atol=1e-3,
                rtol=1e-3,
            )


@pytest.mark.parametrize(
    'name',
    [
        'convolution',
        'average pooling',
        'linear',
        'local response normalization',
        'batch normalization',
        'softmax cross entropy',
    ],
)
def test_gradients_by_finite_differences_in_float32(name):
    f, arrays = FUNCTIONS[name]
    directions = [array(*a.shape, seed=7) for a in arrays]
    step = np.float32(2e-3)

    def loss(sign):
        y = f(*(a + sign * step * d for a, d in zip(arrays, directions))).array.astype(np.float64)
        return (y * array(*y.shape, seed=3)).sum()

    with cpu.fast():
        gradients = run(f, arrays)[1:]
        numerical = (loss(1) - loss(-1)) / (2 * float(step))
    analytical = sum((g.astype(np.float64) * d).sum() for g, d in zip(gradients, directions))
    np.testing.assert_allclose(analytical, numerical, rtol=2e-3, atol=2e-3)


# What the kernels leave to Chainer

FUNCTIONS = {
    'convolution': (lambda x, w, b: F.convolution_2d(x, w, b, pad=1), arrays_of_convolution(h=6, w=6)),
    'max pooling': (lambda x: F.max_pooling_2d(x, 2), [array(2, 3, 6, 6)]),
    'average pooling': (lambda x: F.average_pooling_2d(x, 2), [array(2, 3, 6, 6)]),
    'batch normalization': (F.batch_normalization, arrays_of_normalization(3, 4, 6, 6)),
    'fixed batch normalization': (
        F.fixed_batch_normalization,
        [*arrays_of_normalization(3, 4, 6, 6), array(4), array(4, seed=5) ** 2 + 1],
    ),
    'local response normalization': (lrn, [array(2, 6, 4, 4)]),
    'relu': (F.relu, [array(4, 6)]),
    'linear': (F.linear, [array(4, 6), array(8, 6), array(8)]),
    'dropout': (lambda x: F.dropout(x, 0.5, mask=np.ones(x.shape, x.dtype)), [array(4, 6)]),
    'softmax cross entropy': (lambda x: F.softmax_cross_entropy(x, np.arange(len(x)) % 6), [array(4, 6)]),
}


@pytest.mark.parametrize('dtype', ['float16', 'float64', '>f4', 'int32'])
@pytest.mark.parametrize('name', FUNCTIONS)
def test_other_dtypes(name, dtype):
    f, arrays = FUNCTIONS[name]
    found, expected = (how(f, [a.astype(dtype) for a in arrays]) for how in (fast_outcome, outcome))
    check_close(found, expected, 1e-6)
    check_dtypes(found, expected)


@pytest.mark.parametrize('dtype', ['float16', 'float64'])
@pytest.mark.parametrize('name', [name for name in FUNCTIONS if len(FUNCTIONS[name][1]) > 1])
def test_mixed_dtypes(name, dtype):
    f, arrays = FUNCTIONS[name]
    for i in range(len(arrays)):
        changed = [a.astype(dtype) if i == j else a for j, a in enumerate(arrays)]
        check_same_as_stock(f, *changed)
        check_same_as_stock(f, *(a if i == j else a.astype(dtype) for j, a in enumerate(arrays)))


LAYOUTS = {
    'every second': lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    'backwards': lambda a: np.ascontiguousarray(a[::-1])[::-1],
    'columns first': np.asfortranarray,
    'transposed': lambda a: np.ascontiguousarray(a.swapaxes(0, -1)).swapaxes(0, -1),
    'channels last': lambda a: layout.like(a, layout.channels_last(a.shape)) if a.ndim == 4 else a,
    'read only': lambda a: _read_only(a),
    'unaligned': lambda a: _unaligned(a),
    'one row of many': lambda a: np.concatenate([a, a])[len(a) :],
    'one for all': lambda a: np.broadcast_to(a[:1], a.shape),
}


def _read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def _unaligned(a):
    new = np.empty(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    new[...] = a
    return new


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('name', FUNCTIONS)
def test_any_memory_layout(name, layout):
    f, arrays = FUNCTIONS[name]
    check(f, *(LAYOUTS[layout](a) for a in arrays))


@pytest.mark.parametrize('name', FUNCTIONS)
def test_one_image_of_any_memory_layout(name):
    # An array of one row counts as contiguous whatever its stride.
    f, arrays = FUNCTIONS[name]
    x, rest = arrays[0], arrays[1:]
    for one in (x[:1], x[::-1][:1], x[1::2][:1], np.broadcast_to(x[0], (1, *x.shape[1:]))):
        check(f, one, *rest)


@pytest.mark.parametrize('b', [1, 3])
def test_gradients_without_strides(b):
    # F.sum's gradient is one number, broadcast.
    for name, (f, arrays) in FUNCTIONS.items():
        if name != 'batch normalization':  # its sum does not depend on x
            check(lambda *a: F.sum(f(*a)), arrays[0][:b], *arrays[1:])
    check(lambda *a: F.sum(F.linear(*a)), array(b, 5), array(1, 5), array(1))


@pytest.mark.parametrize('name', FUNCTIONS)
@pytest.mark.parametrize('axis', [0, 1, -1])
def test_nothing_to_work_on(name, axis):
    f, arrays = FUNCTIONS[name]
    x = np.take(arrays[0], [], axis=axis)
    check_same_as_stock(f, x, *arrays[1:])
    if axis == 1:
        check_same_as_stock(f, x, *(np.take(a, [], axis=min(1, a.ndim - 1)) for a in arrays[1:2]), *arrays[2:])


def test_no_outputs():
    x, w, b = arrays_of_convolution()
    check_same_as_stock(F.convolution_2d, x, w[:0], b[:0])
    check_same_as_stock(F.convolution_2d, x, w[:, :, :0], b)
    check_same_as_stock(F.linear, array(4, 6), array(8, 6)[:0], array(0))


def test_subclasses_of_arrays_are_chainers():
    class Array(np.ndarray):
        pass

    for f, arrays in FUNCTIONS.values():
        check_same_as_stock(f, *(a.view(Array) for a in arrays))


def test_inputs_stay_as_they_were():
    for f, arrays in FUNCTIONS.values():
        if f is F.fixed_batch_normalization:
            continue
        before = [a.copy() for a in arrays]
        fast_outcome(f, arrays)
        for a, b in zip(arrays, before):
            np.testing.assert_array_equal(a, b)


def test_outputs_are_not_shared_between_calls():
    with cpu.fast():
        for f, arrays in FUNCTIONS.values():
            first = run(f, arrays)
            kept = [a.copy() for a in first]
            run(f, [a * np.float32(0.5) for a in arrays])
            for a, b in zip(first, kept):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('name', FUNCTIONS)
def test_forward_and_backward_on_either_side_of_the_switch(name):
    # A graph made with the kernels works without them, and the other way round.
    f, arrays = FUNCTIONS[name]
    expected = run(f, arrays)

    def switched(forward_fast, double):
        variables = [chainer.Variable(a) for a in arrays]
        if forward_fast:
            with cpu.fast():
                y = f(*variables)
        else:
            y = f(*variables)
        y.grad = array(*y.shape, seed=3, dtype=y.dtype)
        if forward_fast:
            y.backward(enable_double_backprop=double)
        else:
            with cpu.fast():
                y.backward(enable_double_backprop=double)
        return [y.array] + [v.grad for v in variables]

    for forward_fast in (True, False):
        for double in (True, False):
            check_close(switched(forward_fast, double), expected, TOLERANCE)


def test_no_graph_where_none_is_asked_for():
    with cpu.fast():
        for f, arrays in FUNCTIONS.values():
            expected = f(*arrays).array
            with chainer.no_backprop_mode():
                y = f(*(chainer.Variable(a) for a in arrays))
            assert y.creator is None
            np.testing.assert_array_equal(y.array, expected)


@pytest.mark.onednn
def test_primitives_are_given_back(monkeypatch):
    given_back = []
    with cpu.fast():
        primitive = convolution._convolution.__wrapped__(
            Geometry((1, 2, 5, 5), (3, 2, 2, 2), (1, 3, 4, 4), (1, 1), (0, 0)), onednn.NCHW
        )
    handle = primitive._handle
    destroy = handle.destroy
    monkeypatch.setattr(type(handle), 'destroy', staticmethod(lambda h: (given_back.append(h.value), destroy(h))))
    address = handle.value
    del handle, primitive
    gc.collect()
    assert address in given_back


@pytest.mark.onednn
def test_primitives_of_many_shapes_are_not_all_kept():
    """Each takes up to a megabyte, and a program may run on images of any size."""

    def count():
        gc.collect()
        return sum(type(thing) is onednn.Primitive for thing in gc.get_objects())

    before = count()
    with cpu.fast(), chainer.no_backprop_mode():
        for width in range(4, 304):
            F.convolution_2d(array(1, 1, 3, width), array(1, 1, 3, 3))
    assert count() - before <= 128
