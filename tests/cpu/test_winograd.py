"""3x3 convolutions by Winograd's algorithm, against sums over pixels in float64."""

import functools
import subprocess
import sys
import textwrap
from unittest import mock

from branchynet import cpu
from branchynet.cpu import convolution, onednn, threads
from branchynet.cpu.convolution import Geometry
from branchynet.cpu.layout import channels_last
from branchynet.networks import alex_cifar10, resnet_cifar10

import chainer
import chainer.functions as F
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpu.guard import Guard, needs_mprotect
from cpu.test_functions import array, check

pytest.importorskip('llvmlite')
from branchynet.cpu import winograd

# B, C, O, H, W
SIZES = [(64, 16, 32, 30, 30), (3, 48, 16, 15, 7), (40, 32, 64, 3, 1), (1, 16, 16, 2, 150)]
BANDS = [240, 2, 2, 1]
MAKE_CODES = winograd._machine_code.__wrapped__


def last(images):
    """The images, with their channels last in memory."""
    copied = channels_last(images.shape)
    copied[...] = images
    return copied


def arrays_of(batch, channels, outputs, height, width):
    """Images, weights, a bias and a gradient of the output."""
    x, gy = array(batch, channels, height, width), array(batch, outputs, height, width, seed=1)
    return last(x), array(outputs, channels, 3, 3, seed=2), array(outputs, seed=3), last(gy)


def results(x, w, b, gy, most=8):
    """The output, and the gradients of x, w and b."""
    y, gx = channels_last(gy.shape), channels_last(x.shape)
    winograd.convolution(x, w, b, y)
    winograd.gradient_of_x(w, gy, gx)
    return [y, gx, *winograd.gradients_of_w(x, gy, most)]


def sums(x, w, b, gy):
    """The same as sums over pixels, in float64."""
    x, w, b, gy = (given.astype(np.float64) for given in (x, w, b, gy))
    height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    y, padded_gx, gw = b[:, None, None] + np.zeros_like(gy), np.zeros_like(padded), np.zeros_like(w)
    for i, j in np.ndindex(3, 3):
        window = (..., slice(i, i + height), slice(j, j + width))
        y += np.einsum('bchw,oc->bohw', padded[window], w[..., i, j])
        padded_gx[window] += np.einsum('bohw,oc->bchw', gy, w[..., i, j])
        gw[..., i, j] = np.einsum('bchw,bohw->oc', padded[window], gy)
    return [y, padded_gx[..., 1:-1, 1:-1], gw, gy.sum(axis=(0, 2, 3))]


def check_close(found, x, w, b, gy):
    terms = 9 * w.shape[1], 9 * w.shape[0], gy[:, 0].size, gy[:, 0].size
    for own, exact, count in zip(found, sums(x, w, b, gy), terms):
        assert own.dtype == np.float32 and own.shape == exact.shape
        np.testing.assert_allclose(own, exact, rtol=0, atol=8e-6 * np.sqrt(count))


@functools.cache
def _codes(has_avx512):
    with mock.patch.object(onednn, 'has_avx512', lambda: has_avx512):
        return MAKE_CODES()


def codes_of(has_avx512):
    """What ``winograd._machine_code`` is on a processor with AVX-512, or without."""
    return functools.partial(_codes, has_avx512)


def check_same_bits(found):
    for other in found[1:]:
        for own, first in zip(other, found[0]):
            np.testing.assert_array_equal(own, first)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9),
    st.sampled_from([16, 32, 48]),
    st.sampled_from([16, 32, 48]),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 8),
)
def test_results_are_exact_to_rounding(batch, channels, outputs, size, most):
    arrays = arrays_of(batch, channels, outputs, *size)
    check_close(results(*arrays, most), *arrays)


@pytest.mark.parametrize('sizes', SIZES)
def test_images_of_several_bands_too(sizes):
    arrays = arrays_of(*sizes)
    check_close(results(*arrays), *arrays)


@pytest.mark.parametrize('sizes,bands', list(zip(SIZES, BANDS)))
def test_threads_change_no_bits(monkeypatch, sizes, bands):
    arrays, found, frames = arrays_of(*sizes), [], []
    run_frames = winograd.run_frames
    monkeypatch.setattr(winograd, 'run_frames', lambda code, each: frames.append(len(each)) or run_frames(code, each))
    try:
        for count in 1, 2, 5:
            threads.set_num_threads(count)
            found.append(results(*arrays))
            assert frames[-3:-1] == [min(count, bands)] * 2
    finally:
        threads.set_num_threads(None)
    check_same_bits(found)


@pytest.mark.parametrize('sizes', SIZES)
def test_the_width_of_vectors_changes_no_bits(monkeypatch, sizes):
    arrays, found = arrays_of(*sizes), []
    for has_avx512 in False, True:
        monkeypatch.setattr(winograd, '_machine_code', codes_of(has_avx512))
        found.append(results(*arrays))
    check_same_bits(found)


def test_every_image_is_computed_by_itself():
    x, w, b, gy = arrays_of(5, 16, 16, 7, 7)
    expected = results(x, w, b, gy)[:2]
    x[2], gy[2] = np.nan, np.inf
    with np.errstate(invalid='ignore'):
        found = results(x, w, b, gy)[:2]
    for own, before in zip(found, expected):
        assert not np.isfinite(own[2]).any()
        for i in 0, 1, 3, 4:
            np.testing.assert_array_equal(own[i], before[i])


@pytest.mark.parametrize('size', [(4, 4), (5, 5), (1, 1)])
def test_nothing_is_written_beyond_the_output(size):
    x, w, b, _ = arrays_of(3, 16, 16, *size)
    memory = np.full((5, *size, 16), 7, np.float32)
    winograd.convolution(x, w, b, memory[1:4].transpose(0, 3, 1, 2))
    assert (memory[[0, 4]] == 7).all() and not (memory[1:4] == 7).any()


@needs_mprotect
@pytest.mark.parametrize('at_end', [False, True])
@pytest.mark.parametrize('has_avx512', [False, True])
@pytest.mark.parametrize('size', [(1, 1), (1, 6), (3, 1), (4, 4), (5, 2), (7, 9), (2, 131)])
def test_no_memory_beside_the_arrays_is_touched(monkeypatch, size, has_avx512, at_end):
    guard = Guard(at_end)
    monkeypatch.setattr(winograd, '_machine_code', codes_of(has_avx512))
    monkeypatch.setattr(winograd, 'taken', lambda spare, make: guard)
    monkeypatch.setattr(winograd, 'SCRATCHES', [])
    monkeypatch.setattr(winograd, '_zeros', lambda count: guard.copy(np.zeros(count, np.float32)))
    monkeypatch.setattr(winograd.memory, 'empty', guard.empty)  # which channels_last calls too
    arrays = arrays_of(3, 16, 48, *size)
    check_close(results(*map(guard.copy, arrays)), *arrays)


def geometry_of(batch, inputs, outputs, height, width=None, kernel=3, stride=1, pad=1):
    size = height, width or height
    out = ((pixels + 2 * pad - kernel) // stride + 1 for pixels in size)
    shapes = (batch, inputs, *size), (outputs, inputs, kernel, kernel), (batch, outputs, *out)
    return Geometry(*shapes, (stride,) * 2, (pad,) * 2)


@pytest.mark.onednn
@pytest.mark.parametrize(
    'sizes,has_avx512,of_outputs,of_weights',
    [
        ((16, 64, 16, 4), False, True, True),
        ((15, 64, 16, 4), False, False, False),
        ((16, 16, 64, 4), False, True, True),
        ((15, 16, 64, 4), False, False, False),
        ((1, 64, 64, 8), False, True, True),  # one image counts as four
        ((4, 80, 64, 8), False, False, False),
        ((64, 16, 16, 3, 4), False, False, False),
        ((64, 16, 16, 4, 3), False, False, False),
        ((4, 16, 16, 4, 256), False, True, True),
        ((4, 16, 16, 4, 257), False, False, False),
        ((8, 128, 128, 8), False, True, True),
        ((9, 128, 144, 8), False, True, False),
        ((16, 256, 256, 8), False, True, False),
        ((17, 256, 272, 8), False, False, False),
        ((64, 24, 16, 8), False, False, False),
        ((64, 16, 24, 8), False, False, False),
        ((64, 16, 16, 8), True, True, False),
        ((64, 16, 32, 8), True, True, True),
        ((64, 32, 32, 8, 8, 5, 1, 2), False, False, False),
        ((64, 32, 32, 8, 8, 3, 2, 1), False, False, False),
        ((64, 32, 32, 8, 8, 3, 1, 0), False, False, False),
        ((64, 32, 32, 9), False, True, True),
        ((64, 32, 32, 8), False, False, False),  # AlexNet's
    ],
)
def test_limits(monkeypatch, sizes, has_avx512, of_outputs, of_weights):
    monkeypatch.setattr(onednn, 'has_avx512', lambda: has_avx512)
    geometry = geometry_of(*sizes)
    assert convolution._is_winograd(geometry) == of_outputs
    assert convolution._is_gw_winograd(geometry) == of_weights


class Calls(chainer.FunctionHook):
    """The geometries of convolutions that are called."""

    def __init__(self):
        self.geometries = set()

    def forward_preprocess(self, function, inputs):
        if function.label == 'Convolution2DFunction':
            x, w = inputs[0], inputs[1]
            y = (len(x), len(w), *function._get_out_size(x.shape, w.shape))
            self.geometries.add(Geometry(x.shape, w.shape, y, (function.sy, function.sx), (function.ph, function.pw)))


def convolutions_of(network, batch):
    """The geometries of a network's convolutions, in the training of both parts."""
    net = network.get_network()
    x, t = array(2, 3, 32, 32), np.arange(2, dtype=np.int32)
    with Calls() as calls:
        net.train(x, t)
        net.train_main(x, t)
    return [each._replace(x=(batch, *each.x[1:]), y=(batch, *each.y[1:])) for each in calls.geometries]


@pytest.mark.onednn
def test_alexnet_keeps_the_bits_of_its_committed_results():
    geometries = convolutions_of(alex_cifar10, 512)
    assert sum(each.w[2:] == (3, 3) for each in geometries) >= 5
    assert not any(convolution._is_winograd(each) for each in geometries)


@pytest.mark.onednn
def test_winograd_computes_resnets_blocks():
    taken = {each.w for each in convolutions_of(resnet_cifar10, 64) if convolution._is_winograd(each)}
    assert {(16, 16, 3, 3), (32, 32, 3, 3), (64, 64, 3, 3)} <= taken


@pytest.fixture
def called(monkeypatch):
    """The names of the functions in machine code that are called."""
    names = []
    compute = winograd._compute
    monkeypatch.setattr(winograd, '_compute', lambda name, *rest: names.append(name) or compute(name, *rest))
    return names


@pytest.mark.onednn
@pytest.mark.parametrize('has_bias', [False, True])
@pytest.mark.parametrize(
    'sizes,functions',
    [((8, 16, 32, 9, 6), ['outputs', 'outputs', 'gradients']), ((6, 128, 144, 9, 9), ['outputs', 'outputs'])],
)
def test_chainers_convolution_has_the_same_results(called, sizes, functions, has_bias):
    x, w, b, _ = arrays_of(*sizes)
    w = w / np.float32(np.sqrt(w[0].size))  # so that outputs are of the order of 1
    check(lambda *given: F.convolution_2d(*given, pad=1), np.ascontiguousarray(x), w, *[b][:has_bias])
    assert called == functions * 2  # check calls it twice


@pytest.mark.onednn
@pytest.mark.parametrize('of_x', [False, True])
@pytest.mark.parametrize('of_w', [False, True])
@pytest.mark.parametrize('sizes', [(8, 16, 32, 6, 6), (9, 128, 144, 8, 8)])  # oneDNN computes gw of the second
def test_only_the_gradients_that_are_wanted_are_computed(called, sizes, of_x, of_w):
    x, w, b, gy = arrays_of(*sizes)
    geometry = geometry_of(*sizes)
    found = convolution.convolution_gradients(x, w, gy, geometry, of_x, of_w)
    assert called == ['outputs'] * of_x + ['gradients'] * (of_w and convolution._is_gw_winograd(geometry))
    assert [gradient is not None for gradient in found] == [of_x, of_w, of_w]
    for own, exact in zip(found, sums(x, w, b, gy)[1:]):
        if own is not None:
            np.testing.assert_allclose(own, exact, rtol=0, atol=1e-5 * np.abs(exact).max())


@pytest.mark.parametrize('batch,most,parts', [(64, 8, 8), (64, 3, 3), (2, 8, 1)])
def test_parts_are_at_most_so_many_and_worth_it(monkeypatch, batch, most, parts):
    found = []
    compute = winograd._compute
    monkeypatch.setattr(winograd, '_compute', lambda *args: found.append(len(args[4])) or compute(*args))
    x, _, _, gy = arrays_of(batch, 16, 16, 30, 30)
    winograd.gradients_of_w(x, gy, most)
    assert found == [parts]


@pytest.mark.onednn
def test_the_gradient_lies_in_memory_as_the_images_do():
    x, w, b, gy = arrays_of(8, 16, 32, 6, 6)
    geometry = geometry_of(8, 16, 32, 6)
    assert convolution._is_winograd(geometry)
    found = []
    for images in x, np.ascontiguousarray(x):
        found.append([convolution.convolution(images, w, b, geometry)])
        found[-1] += convolution.convolution_gradients(images, w, gy, geometry, True, True)
        assert found[-1][1].strides == images.strides
    check_same_bits(found)


@pytest.mark.onednn
def test_without_winograd_onednn_gives_the_same(monkeypatch):
    x, w, b, gy = arrays_of(8, 16, 32, 6, 6)
    geometry = geometry_of(8, 16, 32, 6)
    monkeypatch.setattr(convolution, '_is_winograd', lambda geometry: False)
    with cpu.fast():
        y = convolution.convolution(x, w, b, geometry)
        check_close([y, *convolution.convolution_gradients(x, w, gy, geometry, True, True)], x, w, b, gy)


@pytest.mark.onednn
def test_without_llvmlite_onednn_computes():
    code = """
        import sys
        sys.modules['llvmlite'] = None
        from branchynet import cpu
        from branchynet.cpu import convolution
        import chainer.functions as F
        import numpy as np

        x, w = np.ones((8, 16, 4, 4), np.float32), np.ones((16, 16, 3, 3), np.float32)
        with cpu.fast():
            y = F.convolution_2d(x, w, pad=1).array
        assert (y[..., 1:-1, 1:-1] == 144).all() and (y[..., 0, 0] == 64).all()
        assert not convolution._HAS_WINOGRAD
    """
    subprocess.run([sys.executable, '-c', textwrap.dedent(code)], check=True)
