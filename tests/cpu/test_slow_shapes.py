"""Shapes that oneDNN computes slowly are products with windows, or stock Chainer's, and no others."""

import os
import subprocess
import sys

import branchynet  # noqa: F401  (before chainer)
from branchynet import cpu
from branchynet.cpu import convolution, linear, threads, windows
from branchynet.cpu.geometry import Settings, geometry_of
from branchynet.networks import alex_cifar10, lenet_mnist, resnet_cifar10

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpu.test_functions import array, check

pytestmark = pytest.mark.onednn


@pytest.fixture
def of_stock(monkeypatch):
    """The names of the functions that stock Chainer's convolutions and poolings have called."""
    called = set()
    for module in (chainer.utils.conv, chainer.utils.conv_nd):
        for name in ('im2col_cpu', 'col2im_cpu', 'im2col_nd_cpu', 'col2im_nd_cpu'):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, _recorder(called, name, getattr(module, name)))
    return called


@pytest.fixture
def of_windows(monkeypatch):
    """The names of the functions of branchynet.cpu.windows that convolutions have called."""
    called = set()
    for name in ('convolution', 'gradient_of_x', 'gradients_of_w'):
        monkeypatch.setattr(windows, name, _recorder(called, name, getattr(windows, name)))
    return called


def _recorder(called, name, function):
    def record(*args, **kwargs):
        called.add(name)
        return function(*args, **kwargs)

    return record


def gradients(called, function, *arrays, of=None):
    """Computes y and the gradient of one array, or of all; returns what was called forward, and backward."""
    variables = [chainer.Variable(a, requires_grad=of in (None, i)) for i, a in enumerate(arrays)]
    with cpu.fast():
        y = function(*variables)
        forward = set(called)
        called.clear()
        y.grad = np.ones_like(y.array)
        y.backward()
    return forward, set(called)


Y, X, W = {'convolution'}, {'gradient_of_x'}, {'gradients_of_w'}  # by products with windows
LARGE_KERNEL = array(2, 8, 20, 20), array(8, 8, 15, 15, seed=1)
PATCHES = array(2, 3, 64, 64), array(8, 3, 16, 16, seed=1)
FULLY_CONNECTED = array(2, 8, 7, 7), array(6, 8, 7, 7, seed=1)
FEW_CHANNELS = array(2, 4, 9, 9), array(6, 4, 3, 3, seed=1)
GAPS = array(2, 8, 9, 9), array(6, 8, 1, 1, seed=1)
FEW_ON_BOTH_SIDES = array(2, 2, 9, 9), array(3, 2, 3, 3, seed=1)
ONE_WINDOW = array(2, 8, 1, 1), array(6, 8, 1, 1, seed=1)
USUAL = array(2, 5, 9, 9), array(6, 5, 3, 3, seed=1)
WIDE = array(2, 8, 4, 4), array(256, 8, 3, 3, seed=1)
LONG = array(2, 8, 1, 100), array(8, 8, 1, 64, seed=1)
DEPTHWISE = array(2, 8, 9, 9), array(8, 1, 3, 3, seed=1)
LARGE_IN_GROUPS = array(2, 8, 20, 20), array(8, 4, 15, 15, seed=1)
ONE_WINDOW_IN_GROUPS = array(2, 8, 3, 3), array(6, 4, 3, 3, seed=1)


@pytest.mark.parametrize(
    'arrays,settings,forward,of_x,of_w',
    [
        (LARGE_KERNEL, {}, set(), set(), W),
        (LONG, {}, set(), set(), W),
        (FULLY_CONNECTED, {}, Y, X, W),
        (PATCHES, dict(stride=16), set(), X, W),
        (FEW_CHANNELS, {}, set(), X, set()),
        (FEW_ON_BOTH_SIDES, {}, set(), X, W),
        (ONE_WINDOW, {}, Y, X, W),
        (ONE_WINDOW, dict(stride=2), Y, X, W),
        (LARGE_KERNEL, dict(stride=6), Y, X, W),
        (FULLY_CONNECTED, dict(stride=3, pad=1), Y, X, W),
        (GAPS, dict(stride=2), set(), X, set()),
        (GAPS, dict(stride=2, pad=1), set(), X, W),
        (WIDE, {}, set(), X, W),
        (USUAL, {}, set(), set(), set()),
        (USUAL, dict(stride=2), set(), set(), set()),
        (USUAL, dict(dilate=2), set(), set(), W),
        (USUAL, dict(dilate=4), Y, X, W),
        (DEPTHWISE, dict(groups=8), set(), set(), set()),
        (DEPTHWISE, dict(groups=8, dilate=2), set(), set(), set()),
        (LARGE_IN_GROUPS, dict(groups=2), set(), set(), W),
        (ONE_WINDOW_IN_GROUPS, dict(groups=2), set(), set(), set()),
    ],
)
def test_slow_convolutions_are_products_with_windows(of_stock, of_windows, arrays, settings, forward, of_x, of_w):
    def convolution(*arrays):
        return F.convolution_2d(*arrays, **settings)

    assert gradients(of_windows, convolution, *arrays, of=0) == (forward, of_x)
    of_windows.clear()
    assert gradients(of_windows, convolution, *arrays, of=1) == (forward, of_w)
    of_windows.clear()
    assert gradients(of_windows, convolution, *arrays) == (forward, of_x | of_w)
    assert not of_stock
    check(convolution, *arrays, array(len(arrays[1]), seed=2))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_products_with_windows_are_the_convolution(data):
    """Also where oneDNN would be chosen."""
    images, groups, inputs, outputs = (data.draw(st.integers(1, most)) for most in (4, 3, 4, 4))
    kernel, stride, dilate = (tuple(data.draw(st.integers(1, 3)) for _ in 'yx') for _ in range(3))
    pad, more = (tuple(data.draw(st.integers(0, 3)) for _ in 'yx') for _ in range(2))
    sizes = [max(1, (k - 1) * d + 1 + m - 2 * p) for k, d, m, p in zip(kernel, dilate, more, pad)]
    x, w, b = array(images, groups * inputs, *sizes), array(groups * outputs, inputs, *kernel), array(groups * outputs)
    geometry = geometry_of(x.shape, w.shape, Settings(stride, pad, dilate, groups))
    x, w, b = (chainer.Variable(a) for a in (x, w, b))
    y = F.convolution_2d(x, w, b, stride, pad, dilate=dilate, groups=groups)
    y.grad = gy = array(*y.shape, seed=3)
    y.backward()
    found = [
        windows.convolution(x.array, w.array, b.array, geometry),
        windows.gradient_of_x(x.array, w.array, gy, geometry),
        *windows.gradients_of_w(x.array, gy, geometry),
    ]
    for ours, chainers in zip(found, (y.array, x.grad, w.grad, b.grad)):
        np.testing.assert_allclose(ours, chainers, rtol=1e-4, atol=1e-4)


def test_an_upright_sequence_lies_down(monkeypatch):
    """Images and kernels of one column are computed as rows."""
    geometries = []
    describe = convolution._descriptor_of_y
    monkeypatch.setattr(
        convolution, '_descriptor_of_y', lambda geometry: geometries.append(geometry) or describe(geometry)
    )
    x, w, b = array(2, 6, 40, 1), array(7, 6, 5, 1, seed=1), array(7, seed=2)
    for stride, pad in ((1, 0), ((3, 1), (2, 0)), (2, 1)):
        geometries.clear()
        check(lambda *arrays: F.convolution_2d(*arrays, stride=stride, pad=pad), x, w, b)
        assert geometries and {geometry.x[2:] for geometry in geometries} == {(40, 1) if pad == 1 else (1, 40)}


@pytest.mark.parametrize(
    'images,channels,outputs,kernel,size,parts',
    [
        (8, 96, 96, 3, 8, 8),  # AlexNet's: its training keeps its bits
        (8, 96, 97, 3, 8, 2),
        (8, 128, 100, 3, 8, 2),
        (32, 128, 100, 3, 8, 4),
        (64, 128, 100, 3, 8, 8),
        (1, 128, 100, 3, 8, 1),
    ],
)
def test_gradients_of_large_weights_have_few_parts(images, channels, outputs, kernel, size, parts):
    geometry = padded(images, channels, size, outputs, kernel)
    found = convolution._parts_of_gw(geometry)
    assert len(found) == parts
    assert found[0].start == 0 and found[-1].stop == images
    check(lambda *arrays: F.convolution_2d(*arrays, pad=kernel // 2), array(*geometry.x), array(*geometry.w, seed=1))


@pytest.mark.parametrize('pooling', [F.max_pooling_2d, F.average_pooling_2d])
def test_pooling_of_few_channels_is_stock(of_stock, pooling):
    forward, backward = gradients(of_stock, lambda x: pooling(x, 2), array(2, 4, 8, 8))
    assert forward and (backward or pooling is F.average_pooling_2d)


@pytest.mark.parametrize(
    'samples,inputs,outputs',
    [
        (30, 9, 20),  # thin
        (30, 20, 9),
        (30, 1, 1),
        (1, 64, 128),  # little work
        (64, 64, 64),
        (2, 256, 64),
        (1285, 17, 12),
    ],
)
def test_thin_and_little_products_are_stock(monkeypatch, samples, inputs, outputs):
    def fail(*args, **kwargs):
        raise AssertionError('multiplied')

    for name in 'linear', 'linear_gx', 'linear_gw':
        monkeypatch.setattr(linear, name, fail)
    gradients(set(), F.linear, array(samples, inputs), array(outputs, inputs), array(outputs))
    check(F.linear, array(samples, inputs), array(outputs, inputs, seed=1), array(outputs, seed=2))


@pytest.mark.parametrize(
    'samples,inputs,outputs',
    [(1, 64, 129), (64, 64, 65), (2, 1000, 132), (1286, 17, 12), (2, 84, 10), (1, 84, 10)],
)
def test_no_other_products_are_stock(monkeypatch, samples, inputs, outputs):
    def fail(*args):
        raise AssertionError('stock')

    for name in ('LinearFunction', 'LinearGradData', 'LinearGradWeight'):
        monkeypatch.setattr(getattr(chainer.functions.connection.linear, name), 'forward', fail)
    gradients(set(), F.linear, array(samples, inputs), array(outputs, inputs), array(outputs))


@pytest.mark.parametrize('rows', [513, 600, 1024, 20000])
def test_large_batches_of_a_linear_layer(rows):
    check(F.linear, array(rows, 10), array(11, 10, seed=1), array(11, seed=2))


@given(st.integers(1, 30000), st.integers(10, 2000), st.integers(10, 600))
def test_blocks_of_rows_cover_the_batch(count, inputs, outputs):
    parts = linear._blocks_of_rows(count, inputs, outputs)
    assert parts[0].start == 0 and parts[-1].stop == count
    for part, following in zip(parts, parts[1:]):
        assert part.start < following.start <= part.stop < following.stop
        if following.start < part.stop:  # the rows that both write must have the same bits
            assert following is parts[-1]
            assert (part.stop - part.start) % linear._ALIKE == 0 == (following.stop - following.start) % linear._ALIKE


@pytest.mark.parametrize('rows,inputs', [(1280, 512), (5000, 512), (3001, 500)])
def test_threads_do_not_write_the_same_rows_at_once(rows, inputs):
    x, w = array(rows, inputs), array(10, inputs, seed=1)
    parts = linear._blocks_of_rows(rows, inputs, 10)
    assert parts[-1].start < parts[-2].stop
    threads.set_num_threads(1)
    expected = linear.linear(x, w, None)
    try:
        threads.set_num_threads(4)
        for _ in range(200):
            assert np.array_equal(linear.linear(x, w, None), expected)
    finally:
        threads.set_num_threads(None)


@pytest.mark.parametrize('isa', ['', 'AVX2'])
def test_large_blocks_of_rows_have_the_bits_of_small_ones(isa):
    """The published networks' layers, in batches of their trainings: their bits are those of blocks of 64 rows."""
    program = """if True:
        import branchynet, numpy as np
        from branchynet.cpu import linear
        from branchynet.cpu.products import Product, Shape
        from branchynet.cpu.threads import blocks

        large = 0
        for rows in 2, 4, 8, 16, 24, 96, 128, 336, 512:
            others = ((1000, 100), (4096, 100), (4096, 101)) if rows > 24 else ()
            for inputs, outputs in *linear._PUBLISHED, *others:
                x, w, gy = (
                    np.random.rand(*shape).astype('f')
                    for shape in ((rows, inputs), (outputs, inputs), (rows, outputs))
                )
                shapes = Shape(rows, outputs, inputs, is_b_transposed=True), Shape(rows, inputs, outputs)
                for y, a, shape in zip((linear.linear(x, w, None), linear.linear_gx(w, gy)), (x, gy), shapes):
                    small = np.empty_like(y)
                    Product(shape, blocks(rows, 1, 64)).write(a, w, small)
                    assert np.array_equal(y, small), (rows, inputs, outputs)
                large += linear._blocks_of_rows(rows, inputs, outputs) != blocks(rows, 1, 64)
        assert large
    """
    environment = {**os.environ, 'ONEDNN_MAX_CPU_ISA': isa} if isa else None
    done = subprocess.run([sys.executable, '-c', program], env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr


def test_the_layers_of_the_published_networks_are_listed():
    modules, variants = (lenet_mnist, alex_cifar10, resnet_cifar10), ('code', 'paper')
    nets = [module.get_network(variant=variant) for module in modules for variant in variants]
    nets += [alex_cifar10.get_one_branch_network(k, variant=variant) for k in range(5) for variant in variants]
    sizes = {link.W.shape[::-1] for net in nets for link in net.links() if isinstance(link, L.Linear)}
    assert sizes == linear._PUBLISHED


def padded(images, channels, size, outputs, kernel, stride=1):
    """The geometry of a convolution of square images, whose size it keeps with a stride of 1."""
    x, w, pad = (images, channels, size, size), (outputs, channels, kernel, kernel), kernel // 2
    return geometry_of(x, w, Settings((stride, stride), (pad, pad), (1, 1), 1))


@pytest.mark.parametrize(
    'sizes,slow',
    [
        ((1, 19, 8, 380, 3), {'x'}),  # wide
        ((1, 19, 8, 379, 3), set()),
        ((1, 32, 8, 640, 3), {'w'}),
        ((1, 15, 16, 256, 3), {'w'}),
        ((1, 15, 16, 255, 3), set()),
        ((1, 16, 16, 256, 3), set()),
        ((1, 32, 16, 512, 3), {'w'}),
        ((1, 32, 16, 511, 3), set()),
        ((1, 33, 32, 512, 3), set()),
        ((1, 32, 16, 512, 5), set()),
        ((1, 16, 12, 256, 1), set()),
        ((2, 297, 4, 296, 3), {'w'}),  # many weights, but more than a pixel for each 2^15
        ((1, 296, 4, 296, 3), {'y', 'x', 'w'}),
        ((1, 256, 4, 341, 3), {'w'}),  # fewer than 3 * 2^18
        ((4, 512, 4, 512, 3), {'y', 'x', 'w'}),  # 64 pixels
        ((5, 512, 4, 512, 3), {'w'}),
        ((16, 512, 8, 512, 3, 2), {'y', 'x', 'w'}),  # four times as many with a stride of 2
        ((17, 512, 8, 512, 3, 2), {'w'}),
        ((1, 512, 4, 512, 1), {'y', 'x', 'w'}),  # 1x1 kernels
        ((17, 512, 1, 512, 1), {'y', 'x', 'w'}),  # one pixel each: fully connected
        ((2, 512, 3, 512, 1), {'w'}),
        ((1, 511, 4, 512, 1), {'w'}),
        ((7, 256, 4, 256, 1), {'w'}),
        ((8, 256, 4, 256, 1), set()),
        ((7, 255, 4, 256, 1), set()),
        ((10, 512, 16, 512, 1), {'w'}),
        ((11, 512, 16, 512, 1), set()),
        ((10, 511, 16, 512, 1), set()),
        ((4, 128, 8, 228, 3), {'w'}),  # many gradients: 2^18 or more
        ((4, 128, 8, 227, 3), set()),
        ((5, 240, 8, 240, 3), set()),
        ((8, 341, 8, 342, 3), {'w'}),  # 2^20 or more
        ((9, 341, 8, 342, 3), set()),
        ((8, 341, 8, 341, 3), set()),
    ],
)
def test_limits_of_slow_convolutions(sizes, slow):
    geometry = padded(*sizes)
    rules = {'y': convolution._is_y_slow, 'x': convolution._is_gx_slow, 'w': convolution._is_gw_slow}
    assert {name for name, is_slow in rules.items() if is_slow(geometry)} == slow


@pytest.mark.parametrize(
    'network,shape',
    [(lenet_mnist, (1, 28, 28)), (alex_cifar10, (3, 32, 32)), (resnet_cifar10, (3, 32, 32))],
    ids=['lenet', 'alexnet', 'resnet'],
)
def test_the_published_networks_keep_their_kernels(monkeypatch, of_stock, of_windows, network, shape):
    def fail(*args, **kwargs):
        raise AssertionError('a linear layer is stock')

    for name in ('LinearFunction', 'LinearGradData', 'LinearGradWeight'):
        stock = getattr(chainer.functions.connection.linear, name)
        monkeypatch.setattr(stock, 'forward', fail)
    np.random.seed(0)
    net = network.get_network()
    x, t = array(4, *shape), np.arange(4, dtype=np.int32)
    with cpu.fast():
        net.train(x, t)
        net.train_main(x, t)
    assert not of_stock and not of_windows
