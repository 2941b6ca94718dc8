"""Chainer's functions after a convolution, whose images lie in memory with their channels last, as after Chainer's."""

import copy

from branchynet import cpu
from branchynet.cpu import layout

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest

from cpu.test_functions import TOLERANCE, array, check_close, check_same_as_stock, lrn, run, run_twice

X, W, V = array(2, 4, 8, 8), array(4, 4, 3, 3, seed=9), array(4)
LABELS = np.random.RandomState(0).randint(-1, 4, (2, 8, 8)).astype(np.int32)
REGIONS, IMAGES = np.float32([[0, 0, 5, 5], [1, 2, 7, 7]]), np.int32([0, 1])


def c_ordered(h):
    return np.ascontiguousarray(h.array)


def seeded(f):
    def g(*args):
        np.random.seed(0)
        return f(*args)

    return g


AFTER = {
    'concat': lambda h: F.concat([h, h * 2]),
    'concat of both orders': lambda h: F.concat([h, c_ordered(h)]),
    'stack': lambda h: F.stack([h, h]),
    'hstack': lambda h: F.hstack([h, h]),
    'split_axis': lambda h: F.concat(F.split_axis(h, 2, 1)[::-1], 0),
    'separate': lambda h: F.separate(h, 1)[2],
    'reshape': lambda h: F.reshape(h, (2, -1)),
    'reshape to groups': lambda h: F.transpose(F.reshape(h, (2, 2, 2, 8, 8)), (0, 2, 1, 3, 4)),
    'flatten': F.flatten,
    'transpose': lambda h: F.transpose(h, (1, 0, 3, 2)),
    'moveaxis': lambda h: F.moveaxis(h, 1, -1),
    'getitem': lambda h: h[:, 1:3, ::2],
    'flip': lambda h: F.flip(h, 2),
    'tile': lambda h: F.tile(h, (1, 2, 1, 1)),
    'repeat': lambda h: F.repeat(h, 2, 1),
    'pad': lambda h: F.pad(h, ((0, 0), (1, 0), (2, 1), (0, 3)), 'constant'),
    'select_item': lambda h: F.select_item(F.reshape(h, (2, -1)), np.int32([3, 77])),
    'cast': lambda h: F.cast(F.cast(h, np.float64), np.float32),
    'unpooling_2d': lambda h: F.unpooling_2d(h, 2, 2),
    'upsampling_2d': lambda h: F.upsampling_2d(*F.max_pooling_2d(h, 2, return_indices=True), 2, 2, outsize=(8, 8)),
    'resize_images': lambda h: F.resize_images(h, (9, 11)),
    'space2depth': lambda h: F.space2depth(h, 2),
    'depth2space': lambda h: F.depth2space(h, 2),
    'im2col': lambda h: F.im2col(h, 3, 1, 1),
    'convolution_2d': lambda h: F.convolution_2d(h, W, V, 2, 1),
    'convolution_2d in groups': lambda h: F.convolution_2d(h, W[:, :2], groups=2),
    'convolution_2d, dilated': lambda h: F.convolution_2d(h, W, dilate=2),
    'convolution_nd': lambda h: F.convolution_nd(h, W),
    'deconvolution_2d': lambda h: F.deconvolution_2d(h, W, stride=2, pad=1),
    'depthwise_convolution_2d': lambda h: F.depthwise_convolution_2d(h, W[:2], pad=1),
    'dilated_convolution_2d': lambda h: F.dilated_convolution_2d(h, W, dilate=2),
    'linear': lambda h: F.linear(h, array(5, 256)),
    'max_pooling_2d': lambda h: F.max_pooling_2d(h, 3, 2, 1),
    'max_pooling_nd': lambda h: F.max_pooling_nd(h, 3, 2),
    'average_pooling_2d': lambda h: F.average_pooling_2d(h, 3, 2, 1),
    'average_pooling_2d of all': lambda h: F.average_pooling_2d(h, h.shape[2:]),
    'average_pooling_nd': lambda h: F.average_pooling_nd(h, 3, 2),
    'spatial_pyramid_pooling_2d': lambda h: F.spatial_pyramid_pooling_2d(h, 3, pooling='max'),
    'roi_max_pooling_2d': lambda h: F.roi_max_pooling_2d(h, REGIONS, IMAGES, 3, 1.0),
    'roi_average_align_2d': lambda h: F.roi_average_align_2d(h, REGIONS, IMAGES, 3, 1.0, 2),
    'batch_normalization': lambda h: F.batch_normalization(h, V, V),
    'fixed_batch_normalization': lambda h: F.fixed_batch_normalization(h, V, V, V, V**2 + 1),
    'group_normalization': lambda h: F.group_normalization(h, 2, V, V),
    'layer_normalization': lambda h: F.layer_normalization(F.reshape(h, (2, -1)), array(256), array(256)),
    'local_response_normalization': lrn,
    'normalize': F.normalize,
    'prelu': lambda h: F.prelu(h, V),
    'relu': F.relu,
    'leaky_relu': F.leaky_relu,
    'elu': F.elu,
    'sigmoid': F.sigmoid,
    'crelu': F.crelu,
    'maxout': lambda h: F.maxout(h, 2),
    'softmax': F.softmax,
    'scale': lambda h: F.scale(h, V),
    'where': lambda h: F.where(h.array > 0, h, h * 2),
    'dropout': seeded(F.dropout),
    'zoneout': seeded(lambda h: F.zoneout(h * 2, h)),
    'gaussian': seeded(lambda h: F.gaussian(h, h * 0.1)),
    'add': lambda h: h + c_ordered(h),
    'add three': lambda h: F.add(h, h, c_ordered(h)),
    'multiply': lambda h: h * c_ordered(h),
    'broadcast_to': lambda h: h + F.broadcast_to(F.sum(h, (2, 3), keepdims=True), h.shape),
    'sum': lambda h: F.sum(h, 1),
    'mean': lambda h: F.mean(h, (0, 2)),
    'max': lambda h: F.max(h, (1, 3)),
    'logsumexp': lambda h: F.logsumexp(h, 1),
    'cumsum': F.cumsum,
    'matmul': lambda h: F.matmul(h, h, transb=True),
    'einsum': lambda h: F.einsum('bchw,bdhw->bcd', h, h),
    'mean_squared_error': lambda h: F.mean_squared_error(h, h * 2 + 1),
    'softmax_cross_entropy': lambda h: F.softmax_cross_entropy(h, LABELS),
}


@pytest.mark.parametrize('name', AFTER)
def test_a_function_after_a_convolution(name):
    for how in (run, run_twice):
        check_same_as_stock(lambda x: AFTER[name](F.convolution_2d(x, W, pad=1)), X, how=how)


@pytest.mark.onednn
def test_the_images_of_a_convolution_have_their_channels_last():
    with cpu.fast():
        y = F.convolution_2d(X, W).array
    assert y.shape == (2, 4, 6, 6) and y.transpose(0, 2, 3, 1).flags.c_contiguous


FOUR_DIMENSIONS = {
    'add': lambda x: x + array(*x.shape, seed=5),
    'average pooling': lambda x: F.average_pooling_2d(x, 3, 2, 1),
    'batch normalization': lambda x: F.batch_normalization(x, array(x.shape[1]), array(x.shape[1])),
    'convolution': lambda x: F.convolution_2d(x, array(3, x.shape[1], 1, 1)),
    'local response normalization': lrn,
    'max pooling': lambda x: F.max_pooling_2d(x, 3, 2, 1),
    'relu': F.relu,
}


def channels_last(a):
    return layout.like(a, layout.channels_last(a.shape))


@pytest.mark.parametrize(
    'shape', [(3, 5, 6, 7), (1, 5, 6, 7), (3, 1, 6, 7), (3, 5, 1, 1), (1, 1, 4, 4), (2, 5, 1, 3)], ids=str
)
@pytest.mark.parametrize('name', FOUR_DIMENSIONS)
@pytest.mark.filterwarnings('ignore:A batch with no more than one sample')
def test_inputs_and_gradients_of_either_order(name, shape):
    def outputs(order_of_x, order_of_gy):
        x = chainer.Variable(order_of_x(array(*shape)))
        y = FOUR_DIMENSIONS[name](x)
        y.grad = order_of_gy(array(*y.shape, seed=3))
        y.backward()
        return [y.array, x.grad]

    expected = outputs(np.copy, np.copy)
    with cpu.fast():
        for order_of_x in (np.copy, channels_last):
            for order_of_gy in (np.copy, channels_last):
                check_close(outputs(order_of_x, order_of_gy), expected, TOLERANCE)


def test_a_sum_of_both_orders():
    a, b = array(3, 5, 6, 7), array(3, 5, 6, 7, seed=1)
    with cpu.fast():
        for x, y in ((a, channels_last(b)), (channels_last(a), b), (channels_last(a), channels_last(b))):
            np.testing.assert_array_equal((chainer.Variable(x) + chainer.Variable(y)).array, a + b)


def test_gradients_of_chainer_grad_and_accumulated_ones():
    def gradients():
        links = [L.Convolution2D(4, 4, 3, pad=1, initialW=W), L.BatchNormalization(4)]
        x = chainer.Variable(X)
        h = links[0](x)
        y = F.sum(links[1](F.relu(h) + h) ** 3 + h)
        taken = chainer.grad([y], [x, h, links[0].W])
        y.backward(retain_grad=True)
        y.backward(retain_grad=True)
        return [v.array for v in taken] + [x.grad, h.grad, links[0].W.grad, links[1].gamma.grad]

    expected = gradients()
    with cpu.fast():
        check_close(gradients(), expected, TOLERANCE)


def test_a_saved_activation_is_the_one_loaded(tmp_path):
    with cpu.fast():
        h = F.convolution_2d(X, W)
    link, other = chainer.Link(), chainer.Link()
    for one, value in ((link, h.array), (other, np.zeros(h.shape, np.float32))):
        with one.init_scope():
            one.h = chainer.Parameter(value)
    chainer.serializers.save_npz(str(tmp_path / 'h.npz'), link)
    chainer.serializers.load_npz(str(tmp_path / 'h.npz'), other)
    for found in (other.h.array, copy.deepcopy(h).array):
        np.testing.assert_array_equal(found, h.array)
