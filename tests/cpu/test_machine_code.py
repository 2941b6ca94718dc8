"""Kernels in machine code against the same by NumPy, to the bit, and the loops that share blocks among threads."""

import collections
import threading
from ctypes import c_float

from branchynet import cpu
from branchynet.cpu import (
    convolution,
    elementwise,
    local_response,
    loops,
    moments,
    normalization,
    onednn,
    tape,
    team,
    threads,
)
from branchynet.cpu.geometry import Geometry
from branchynet.links.links import FL

import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = [pytest.mark.onednn, pytest.mark.filterwarnings('ignore::RuntimeWarning')]  # NumPy's, in threads

LOWEST = float(np.finfo(np.float32).min)
SPECIAL = [0.0, -0.0, np.nan, np.inf, -np.inf, 1e-42, 3e38]


def numbers(shape, seed):
    """float32 of many sizes, with NaN, infinities, zeros of both signs and numbers next to nothing among them."""
    random = np.random.RandomState(seed)
    made = (random.randn(*shape) * 10.0 ** random.randint(-3, 4, shape)).astype(np.float32)
    chosen = random.rand(*shape) < 0.2
    made[chosen] = random.choice(SPECIAL, chosen.sum())
    return made


def last(x):
    """Images (B, C, H, W) from an array (B, H, W, C)."""
    return x.transpose(0, 3, 1, 2)


def check_bits(found, expected):
    for a, b in zip(found, expected):
        assert np.array_equal(np.isnan(a), np.isnan(b))
        known = ~np.isnan(a)
        assert a[known].tobytes() == b[known].tobytes()


def by_both(module, call):
    """What a call gives in machine code and by NumPy."""
    with pytest.MonkeyPatch.context() as patch, np.errstate(all='ignore'):
        found = call()
        patch.setattr(module, '_machine_code', lambda *_: None)
        return found, call()


@given(st.integers(1, 70) | st.sampled_from([(1 << 18) + 3, (1 << 19) - 8]), st.integers(0, 1000))
@settings(deadline=None)
def test_elementwise_functions_have_numpys_bits(size, seed):
    x, y = numbers((2, size), seed)
    whole = size // 8 * 8

    def call():
        bits = np.empty(whole // 8, np.uint8)
        results = [
            elementwise.add(x, y, np.empty_like(x)),
            elementwise.relu(x),
            elementwise.relu_of_sum(x, y, np.empty_like(x)),
            elementwise.relu_gx(x, y),
            elementwise.add_passed(x, y, y[::-1].copy()),
        ]
        if whole:
            results.append(elementwise.relu_of_sum(x[:whole], y[:whole], np.empty(whole, np.float32), bits))
        return [*results, bits]

    found, expected = by_both(elementwise, call)
    check_bits(found, expected)
    assert np.array_equal(found[-1], np.packbits(found[2][:whole] > 0, bitorder='little'))


@given(st.integers(1, 70) | st.just((1 << 18) + 3), st.sampled_from([*SPECIAL, LOWEST, -LOWEST]), st.data())
@settings(deadline=None)
def test_numbers_that_are_not_ordinary_are_found_anywhere(size, number, data):
    x = np.ones(size, np.float32)
    x[data.draw(st.integers(0, size - 1))] = number
    is_ordinary = bool(np.isfinite(number) and number != LOWEST)
    assert by_both(elementwise, lambda: elementwise.are_ordinary(x)) == (is_ordinary, is_ordinary)


@given(
    st.sampled_from([8, 16, 24, 64, 12]), st.sampled_from([1, 2, 3, 5, 8, 15]), st.sampled_from([0.75, 0.5]), st.data()
)
@settings(deadline=None, max_examples=40)
def test_local_response_has_numpys_bits(channels, n, beta, data):
    seed = data.draw(st.integers(0, 1000))
    x, gy = (last(numbers((3, 2, 5, channels), seed + i)) for i in range(2))

    def call():
        y, s, scale = local_response.local_response(x, n, 2, 5e-5, beta)
        return [y, s, scale, local_response.local_response_gx(x, y, gy, s, scale, n, 5e-5, beta)]

    check_bits(*by_both(local_response, call))


def test_local_response_of_the_papers_networks_is_machine_code():
    pytest.importorskip('llvmlite')
    assert local_response._machine_code(last(numbers((2, 4, 4, 64), 0)), 3, 0.75) is not None


# Loops


def arrays_and_geometry(images, channels=8):
    random = np.random.RandomState(images)
    x, gy = (last(random.randn(images, 9, 9, channels).astype(np.float32)) for _ in range(2))
    w, b = random.randn(channels, channels, 3, 3).astype(np.float32), random.randn(channels).astype(np.float32)
    return x, w, b, gy, Geometry(x.shape, w.shape, gy.shape, (1, 1), (1, 1))


def outputs(x, w, b, gy, geometry):
    y = convolution.convolution(x, w, b, geometry)
    return [y, *convolution.convolution_gradients(x, w, gy, geometry, True, True)]


@pytest.mark.parametrize('images', [1, 7, 64, 129])  # blocks of one size, and a smaller one after them
@pytest.mark.parametrize('number', [1, 2, 5])
def test_loops_have_the_bits_of_pythons(images, number, monkeypatch):
    given = arrays_and_geometry(images)
    cpu.set_num_threads(1)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(loops, '_machine_code', lambda: None)
            expected = outputs(*given)
        cpu.set_num_threads(number)
        for _ in range(5):
            for a, b in zip(outputs(*given), expected):
                assert np.array_equal(a, b)
    finally:
        cpu.set_num_threads(None)


@pytest.mark.parametrize('count', [0, 1, 8, 100])
@pytest.mark.parametrize('has_code', [True, False])
def test_threads_compute_every_block_once(count, has_code, monkeypatch):
    if not has_code:
        monkeypatch.setattr(loops, '_machine_code', lambda: None)
    x = np.arange(count * 6, dtype=np.float32).reshape(count, 1, 2, 3)
    y = np.zeros((count, 1, 2, 3), np.float32)
    form = onednn.describe((1, 1, 2, 3), onednn.NCHW)
    descriptor = onednn.create_descriptor(
        'eltwise_forward', onednn.FORWARD_INFERENCE, onednn.RELU, form, form, c_float(0), c_float(0)
    )
    primitive = onednn.Primitive(descriptor, {onednn.SRC: None, onednn.DST: None})
    blocks = loops.Blocks(0, 1, count)
    loop = loops.Loop(primitive, {onednn.SRC: blocks.of(0, 24), onednn.DST: blocks.of(1, 24)}, count)
    made, computed = loops.Loops([loop], arrays=2), np.empty_like(y)
    monkeypatch.setattr(threads, '_count', 4)
    for _ in range(20):
        y[:] = -1
        made.run(x, y)
        assert np.array_equal(x, y)
    barrier = threading.Barrier(4)

    def work():
        barrier.wait()
        made.run(x, computed)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert np.array_equal(x, computed)


class Watched(threads.Scratch):
    """Scratch memory that notes what is asked for."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def address(self, slot, size):
        self.asked.append((slot, size))
        return super().address(slot, size)


def test_loops_that_share_scratch_memory_ask_once_for_the_largest(monkeypatch):
    pytest.importorskip('llvmlite')
    watched = Watched()
    monkeypatch.setattr(loops, 'SCRATCHES', [watched])
    monkeypatch.setattr(threads, '_count', 1)
    places, made = {onednn.SRC: loops.Place(0), onednn.WEIGHTS: loops.Place(1), onednn.BIAS: loops.Place(2)}, []
    for images in (1, 30, 2):  # reordered on the way in: a small batch, a large one, a small one
        geometry = Geometry((images, 8, 9, 9), (8, 8, 3, 3), (images, 8, 9, 9), (1, 1), (1, 1))
        primitive = convolution._convolution(geometry, onednn.NCHW)
        made.append(loops.Loop(primitive, {**places, onednn.DST: loops.Place(3)}, 1))
    x, w = np.ones((30, 8, 9, 9), np.float32), np.ones((8, 8, 3, 3), np.float32)
    loops.Loops(made, arrays=4).run(x, w, np.ones(8, np.float32), np.empty((30, 9, 9, 8), np.float32))
    sizes = dict(watched.asked)
    assert len(watched.asked) == len(sizes)
    assert sizes[onednn.SRC] == x.nbytes


@given(st.integers(1, 300), st.integers(1, 40))
def test_runs_of_blocks_are_the_parts(count, parts):
    slices = threads.equal_blocks(count, parts)
    runs = loops.grouped(slices)
    found = [(run.start + i * run.size, run.start + (i + 1) * run.size) for run in runs for i in range(run.number)]
    assert found == [(part.start, part.stop) for part in slices]
    assert all(amount == 1 for amount in collections.Counter(run.size for run in runs).values())


# A signal's handler runs a kernel while the same thread is about to run another one.


@pytest.mark.parametrize('number', [1, 2])
def test_a_convolution_while_another_one_waits_changes_nothing_of_it(number, monkeypatch):
    pytest.importorskip('llvmlite')
    x, w, b, _, geometry = arrays_and_geometry(7)
    more, *_, of_more = arrays_and_geometry(64)
    x, more = np.ascontiguousarray(x), np.ascontiguousarray(more)  # reordered, in scratch memory
    monkeypatch.setattr(threads, '_count', number)
    expected = convolution.convolution(x, w, b, geometry)
    taken = []

    def run_frames(*arguments):
        monkeypatch.setattr(loops, 'run_frames', team.run_frames)
        convolution.convolution(x, np.zeros_like(w), b, geometry)
        convolution.convolution(more, w, b, of_more)  # needs more scratch memory
        taken.extend(np.zeros(size, np.uint8) for size in range(1 << 12, 1 << 18, 1 << 12))  # what was freed, if any
        return team.run_frames(*arguments)

    monkeypatch.setattr(loops, 'run_frames', run_frames)
    assert np.array_equal(convolution.convolution(x, w, b, geometry), expected)
    assert not any(array.any() for array in taken)


def test_a_primitive_while_the_same_one_waits_keeps_its_addresses(monkeypatch):
    _, w, _, _, geometry = arrays_and_geometry(7)
    reorder = convolution._convolution(geometry, onednn.NHWC)._pack
    assert reorder is not None
    library, sizes = onednn.library(), [w.nbytes, reorder.sizes[onednn.DST]]
    w, expected, found, zeros, other = (np.zeros(max(sizes) // 4, np.float32) for _ in range(5))
    w[:] = np.arange(len(w))
    reorder.run({onednn.SRC: w.ctypes.data, onednn.DST: expected.ctypes.data})

    class Interrupted:
        """The library; before it executes, the same primitive is run with other arrays."""

        def __getattr__(self, name):
            return getattr(library, name)

        def execute(self, *arguments):
            reorder._library = library
            reorder.run({onednn.SRC: zeros.ctypes.data, onednn.DST: other.ctypes.data})
            return library.execute(*arguments)

    monkeypatch.setattr(reorder, '_library', Interrupted())
    reorder.run({onednn.SRC: w.ctypes.data, onednn.DST: found.ctypes.data})
    assert np.array_equal(found, expected) and not other.any()


@pytest.mark.parametrize(
    'has_fma,machine,expected',
    [(True, 'x86_64', True), (False, 'x86_64', False), (False, 'AMD64', False), (False, 'aarch64', True)],
)
def test_which_processors_have_an_instruction_for_multiply_add(monkeypatch, has_fma, machine, expected):
    emitter = pytest.importorskip('branchynet.cpu.emitter')
    monkeypatch.setattr(emitter, 'has', lambda feature: has_fma and feature == 'fma')
    monkeypatch.setattr(emitter.platform, 'machine', lambda: machine)
    assert emitter.has_multiply_add() == expected


def test_loads_and_stores_promise_no_more_alignment_than_there_is():
    emitter = pytest.importorskip('branchynet.cpu.emitter')
    kinds = {emitter.BYTE: 1, emitter.REAL: 4, emitter.VECTOR: 4, emitter.DOUBLE: 8, emitter.INT: 8}
    for kind, alignment in kinds.items():
        emit = emitter.Emitter()
        emit.function('copy', 2, lambda a, b, kind=kind, emit=emit: emit.store(emit.load(a, kind), b))
        assert str(emit._module).count(f', align {alignment}\n') == 2


# Batch normalisation and the ReLU after it


@pytest.mark.parametrize('shape', [(6, 7, 7, 8), (5, 4, 6, 24), (64, 32, 33, 32)])  # the last is in two parts
@pytest.mark.parametrize('mean', [0, 30])  # far from zero, oneDNN computes the statistics another way
@pytest.mark.parametrize('is_channelwise', [True, False])
def test_relu_behind_a_normalization_has_the_bits_of_both(monkeypatch, shape, mean, is_channelwise):
    monkeypatch.setattr(normalization, '_HAS_CHANNELWISE', is_channelwise and normalization._HAS_CHANNELWISE)
    random = np.random.RandomState(0)
    b, h, w, c = shape
    x, gy = ((random.randn(b, h, w, c) + shift).astype(np.float32).transpose(0, 3, 1, 2) for shift in (mean, 0))
    gamma, beta = random.randn(2, c).astype(np.float32)
    assert normalization.can_fuse_relu(x)
    assert len(normalization._batch_parts(x.shape)) == 1 + (b == 64)
    masks = normalization.empty_masks(x)
    y, found = normalization.batch_normalization(x, gamma, beta, 1e-5, masks)
    plain, expected = normalization.batch_normalization(x, gamma, beta, 1e-5)
    passed = elementwise.relu(plain)
    assert np.array_equal(y, passed)
    assert np.array_equal(found.rows, expected.rows)
    statistics = found.mean, found.inv_std
    gradients = normalization.batch_normalization_gradients(x, gamma, gy, *statistics, masks)
    gradient = elementwise.relu_gx(passed, gy)
    for a, b in zip(gradients, normalization.batch_normalization_gradients(x, gamma, gradient, *statistics)):
        assert np.array_equal(a, b)


@given(st.integers(1, 40), st.integers(0, 1000), st.sampled_from([0.9, 0.0, 0.99999, np.float64(0.9)]))
@settings(deadline=None)
def test_moments_have_numpys_bits(channels, seed, decay):
    gamma, beta, mean, running_mean, running_var = numbers((5, channels), seed)
    variance = np.abs(numbers((channels,), seed + 1))

    def call():
        made, running = moments.Moments(gamma, beta), [running_mean.copy(), running_var.copy()]
        made.mean[:], made.variance[:] = mean, variance
        is_near = made.derive(2e-5)
        made.move(*running, 100, decay)
        return [made.rows, *running, np.array([is_near, made.is_finite])]

    check_bits(*by_both(moments, call))


def test_running_statistics_that_cannot_be_written_are_refused():
    made, kept = moments.Moments(*np.ones((2, 3), np.float32)), np.ones(3, np.float32)
    kept.flags.writeable = False
    with pytest.raises(ValueError, match='read-only'):
        made.move(kept, np.ones(3, np.float32), 10, 0.9)
    assert (kept == 1).all()


@pytest.mark.parametrize('variance', [1, 0.25])
@pytest.mark.parametrize('side', [1, -1])
def test_a_mean_is_near_up_to_two_deviations(variance, side):
    def are_near(mean):
        made = moments.Moments(*np.ones((2, 3), np.float32))
        made.mean[:], made.variance[:] = [0, side * mean, 0], [1, variance, 1]
        return made.derive(0.0)

    bound = np.float32(2 * variance**0.5)
    assert by_both(moments, lambda: are_near(bound)) == (True, True)
    assert by_both(moments, lambda: are_near(np.nextafter(bound, np.float32(9)))) == (False, False)


@pytest.mark.parametrize('number', [np.nan, np.inf])
@pytest.mark.parametrize('where', ['x', 'gamma', 'beta'])
def test_what_is_no_number_is_not_lost_in_relu(number, where):
    x, link = last(numbers_near_one(3, 4, 4, 8)), L.BatchNormalization(8)
    with cpu.fast():
        tape.forward([link, FL(F.relu)], tape.Value(x.copy()))
        if where == 'x':
            x[1, 2, 3, 3] = number
        else:
            getattr(link, where).array[2] = number
        with np.errstate(all='ignore'):
            found = tape.forward([link, FL(F.relu)], tape.Value(x)).array
            expected = F.relu(link(x)).array
    assert not np.isfinite(expected).all()
    np.testing.assert_array_equal(found, expected)


def numbers_near_one(*shape):
    return np.random.RandomState(0).rand(*shape).astype(np.float32)
