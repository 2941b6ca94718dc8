"""The native cascade against Chainer, link by link and as a whole."""

import sys
import threading
from unittest import mock

import branchynet  # noqa: F401
from branchynet.cpu import cascade as cascades
from branchynet.cpu import emitter, planar, threads
from branchynet.cpu.cascade import Cascade, NotCovered, NotFinite
from branchynet.cpu.emitter import LANES
from branchynet.cpu.graph import operations_of
from branchynet.functions import entropy
from branchynet.links.links import FL, SL, Branch
from branchynet.links.resnet import ResBlock
from branchynet.net import BranchyNet
from branchynet.networks import alex_cifar10, lenet_mnist

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from chainer.link_hooks import TimerHook
from chainer.utils import get_conv_outsize
from helpers import with_forward
from hypothesis import given, settings
from hypothesis import strategies as st

from cpu.guard import Guard


@pytest.fixture(scope='module', autouse=True)
def guarded():
    """Lets a process end that reads or writes beyond the end of a workspace, or of the weights."""
    if sys.platform == 'win32':  # has no mprotect
        yield
        return
    guard = Guard(at_end=True)

    def aligned(count):
        return guard.empty((count,))

    with mock.patch.object(cascades, 'aligned', aligned), mock.patch.object(emitter, 'aligned', aligned):
        yield


def compiled(net, shape):
    return Cascade(operations_of(net, shape, with_main=True))


def logits_of(net, x):
    """Every exit's logits (E, N, C), by Chainer."""
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        return np.stack([model(x).array for model in net.models])


def net_of(*links, classes=3, shape=(2, 9, 8)):
    """An exit after the links, and another after a convolution more."""
    rng = np.random.RandomState(0)
    with chainer.using_config('dtype', np.float32):
        net = BranchyNet(
            [
                L.Convolution2D(shape[0], 6, 3, pad=1),
                *links,
                Branch([FL(F.relu), L.Linear(None, classes)]),
                FL(F.relu),
                L.Convolution2D(None, 7, 3, pad=1),
                Branch([L.Linear(None, classes)]),
            ]
        )
    x = rng.randn(5, *shape).astype(np.float32)
    logits_of(net, x)  # which gives the links their sizes
    net.main(x)
    for param in net.params():
        param.array[...] = rng.randn(*param.shape) / 3
    return net, x


def check(net, x):
    cascade = compiled(net, x.shape[1:])
    expected = logits_of(net, x)
    logits, released, whole = cascade.record(x)
    for lanes in {LANES, 2 * LANES} - {planar._MOST_LANES}:
        with mock.patch.object(planar, '_MOST_LANES', lanes):
            other = compiled(net, x.shape[1:])
        np.testing.assert_array_equal(other.record(x)[0], logits)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    # What an exit shares with the next stage is that stage's on the clock of the trunk.
    assert (released > 0).all() and (released.cumsum(axis=0) <= whole.cumsum(axis=0) + 1e-12).all()
    with chainer.using_config('train', False):
        main = net.main(x).array
    np.testing.assert_allclose(cascade.main(x)[0], main, rtol=1e-4, atol=1e-5 * np.abs(main).max())
    return cascade, logits


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_convolutions(data):
    draw = data.draw
    kernel = draw(st.tuples(st.integers(1, 5), st.sampled_from([1, 2, 3, 5, 9, 11])))
    stride = draw(st.tuples(st.integers(1, 3), st.sampled_from([1, 2, 3, 8, 16])))
    pad = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    size = [draw(st.integers(max(1, k - 2 * p), 26)) for k, p in zip(kernel, pad)]
    channels, outs = draw(st.integers(1, 9)), draw(st.integers(1, 27))
    check(
        *net_of(
            FL(F.relu),
            L.Convolution2D(6, outs, kernel, stride, pad, nobias=draw(st.booleans())),
            shape=(channels, *size),
        )
    )


def has_window_in_padding(size, kernel, stride, pad, cover_all):
    starts = [i * stride - pad for i in range(get_conv_outsize(size, kernel, stride, pad, cover_all))]
    return any(start + kernel <= 0 or start >= size for start in starts)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_poolings(data):
    draw = data.draw
    kernel = draw(st.integers(1, 4))
    stride, pad = draw(st.sampled_from([None, 1, 2, 3])), draw(st.integers(0, kernel - 1))
    links = [FL(F.relu)] if draw(st.booleans()) else []
    # Chainer covers all of the image by windows that may lie in the padding alone: these are not covered.
    cover_all = draw(st.booleans())
    if cover_all or draw(st.booleans()):
        pooling = FL(F.max_pooling_2d, kernel, stride, pad, cover_all=cover_all)
    else:
        pooling = FL(F.average_pooling_2d, kernel, stride, pad)
    size = draw(st.tuples(st.integers(4, 21), st.integers(4, 21)))
    net, x = net_of(*links, pooling, shape=(2, *size))
    if any(has_window_in_padding(length, kernel, stride or kernel, pad, cover_all) for length in size):
        with pytest.raises(NotCovered, match='windows lie in the padding'):
            compiled(net, x.shape[1:])
    else:
        check(net, x)


@pytest.mark.parametrize('side', [4, 8, 16])
@pytest.mark.parametrize('pool', [F.average_pooling_2d, F.max_pooling_2d])
def test_poolings_of_a_whole_image(pool, side):
    links = [FL(F.relu), FL(pool, side), L.Linear(7, 3)]
    net = BranchyNet(
        [
            L.Convolution2D(2, 7, 3, pad=1),
            Branch([L.Convolution2D(7, 7, 3, pad=1), FL(pool, 2 * side), L.Linear(7, 3)]),
            FL(F.max_pooling_2d, 2),
            Branch(links),
        ]
    )
    x = np.random.RandomState(0).randn(5, 2, 2 * side, 2 * side).astype(np.float32)
    logits_of(net, x), net.main(x)
    check(net, x)


@pytest.mark.parametrize(
    'links',
    [
        [L.BatchNormalization(6)],
        [FL(F.relu), L.BatchNormalization(6), FL(F.relu)],
        [FL(F.local_response_normalization, n=3, alpha=5e-5, beta=0.75, k=2)],
        [FL(F.relu), FL(F.local_response_normalization, n=5, alpha=0.1, beta=0.6, k=1.5)],
        [ResBlock(6, 6)],
        [ResBlock(6, 11, 2), ResBlock(11, 11)],
        [ResBlock(6, 8)],
        [SL(FL(F.dropout)), SL(FL(F.dropout), FL(F.relu)), FL(F.dropout, 0.3)],
        [FL(F.max_pooling_2d, 2, 2), FL(F.relu), FL(F.max_pooling_2d, 3, 2)],
        [L.Linear(None, 30), FL(F.relu), FL(F.dropout), L.Linear(30, 200)],
    ],
    ids=lambda links: ' '.join(getattr(link, 'fn', link).__class__.__name__ for link in links),
)
def test_other_links(links):
    if any(isinstance(link, L.Linear) for link in links):
        net = BranchyNet([L.Convolution2D(2, 6, 3), Branch([L.Linear(None, 3)]), *links, Branch([L.Linear(200, 3)])])
        x = np.random.RandomState(0).randn(5, 2, 9, 8).astype(np.float32)
        logits_of(net, x), net.main(x)
    else:
        net, x = net_of(*links)
    for link in net.links():
        if isinstance(link, L.BatchNormalization):
            link.avg_mean[...] = np.random.RandomState(1).randn(link.avg_mean.size)
            link.avg_var[...] = np.random.RandomState(2).rand(link.avg_var.size) + 0.5
    check(net, x)


@pytest.mark.parametrize('width', range(1, 34))
def test_every_width_of_rows(width):
    check(
        *net_of(
            FL(F.max_pooling_2d, 2, 1, cover_all=False) if width > 1 else FL(F.relu), shape=(2, 6 - width % 2, width)
        )
    )


def published():
    np.random.seed(3)
    lenet, alexnet = lenet_mnist.get_network(), alex_cifar10.get_network()
    return [
        (lenet, np.random.rand(40, 1, 28, 28).astype(np.float32)),
        (alexnet, np.random.randn(20, 3, 32, 32).astype(np.float32)),
    ]


@pytest.mark.parametrize('number', range(2))
def test_early_exit_is_the_nets_also_at_recorded_entropies(number):
    net, x = published()[number]
    cascade, logits = check(net, x)
    entropies = entropy(F.softmax(logits.reshape(-1, logits.shape[-1])).array).reshape(logits.shape[:2])
    near = np.sort(entropies[:-1], axis=1)
    for place in 0, len(x) // 2, len(x) - 1:
        for step in -1, 0, 1:
            at = near[:, place]
            thresholds = np.nextafter(at, np.float32(step * np.inf)) if step else at
            expected = np.append(entropies[:-1] < thresholds[:, None], np.ones((1, len(x)), bool), axis=0).argmax(
                axis=0
            )
            result = cascade.leave(x, thresholds)
            assert result.exit.tolist() == expected.tolist()
            assert (result.logits == logits[expected, range(len(x))]).all()
            assert (result.label == result.logits.argmax(axis=1)).all()
            for i in range(0, len(x), 7):
                label, k, seconds = cascade.leave_one(x[i : i + 1], thresholds)
                assert (label, k) == (result.label[i], expected[i]) and seconds > 0
                assert cascade.main_one(x[i : i + 1]) == cascade.main(x)[0][i].argmax()


def test_a_sample_is_the_same_bits_in_every_batch_and_thread():
    net, x = published()[0]
    cascade = compiled(net, x.shape[1:])
    thresholds = [2.2]
    whole = cascade.leave(x, thresholds)
    wrong = []

    def work(i):
        for _ in range(20):
            part = slice(i, i + 1 + i % 5)
            result = cascade.leave(x[part], thresholds)
            if not ((result.logits == whole.logits[part]).all() and (result.exit == whole.exit[part]).all()):
                wrong.append(i)

    callers = [threading.Thread(target=work, args=(i,)) for i in range(32)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@pytest.mark.parametrize('count', [1, 2, 5])
@pytest.mark.parametrize('samples', [1, 7, 8, 9, 61])
def test_threads_that_share_a_batch_give_the_answers_of_single_samples(count, samples):
    """Thresholds lie on entropies, where the machine code stops and asks the rule."""
    net, x = published()[0]
    cascade, x = compiled(net, x.shape[1:]), np.concatenate([x] * 8)[:samples]
    logits = cascade.record(x)[0]
    cuts = [float(np.sort(entropy(F.softmax(one).array))[samples // 2]) for one in logits[:-1]]
    singles = [cascade.leave_one(x[i : i + 1], cuts)[:2] for i in range(samples)]
    threads.set_num_threads(count)
    try:
        result, (logits, seconds) = cascade.leave(x, cuts), cascade.main(x)
    finally:
        threads.set_num_threads(None)
    assert list(zip(result.label, result.exit)) == singles
    assert result.seconds > 0 and seconds > 0
    assert all((logits[i] == cascade.main(x[i : i + 1])[0]).all() for i in range(samples))


def test_later_stages_do_not_run():
    net, x = published()[1]
    cascade = compiled(net, x.shape[1:])

    def leave(samples, threshold):
        return cascade.leave(samples, [threshold] * 2).exit

    leave(x[:1], 0.0)
    (workspace,) = cascade._workspaces
    memory = workspace._memory.view(np.uint8)

    def bytes_written(threshold, exit):
        assert leave(x[:1], 0.0) == 2  # the first sample's features are everywhere
        before = memory.copy()
        assert leave(x[1:2], threshold) == exit
        return np.count_nonzero(memory != before)

    assert 0 < bytes_written(np.inf, exit=0) < bytes_written(0.0, exit=2)


def test_no_samples_are_no_work():
    net, x = published()[0]
    cascade = compiled(net, x.shape[1:])
    cascade.record(x[1:2])
    (workspace,) = cascade._workspaces
    before = workspace._memory.tobytes()
    logits, released, whole = cascade.record(x[:0])
    assert logits.shape[1] == released.shape[1] == whole.shape[1] == 0
    assert len(cascade.leave(x[:0], [0.5]).label) == len(cascade.main(x[:0])[0]) == 0
    assert workspace._memory.tobytes() == before


def test_the_time_of_a_sample_that_the_rule_decides_counts_once(monkeypatch):
    net, x = published()[0]
    cascade, expected = compiled(net, x.shape[1:]), logits_of(net, x[:1])
    (threshold,) = entropy(F.softmax(expected[0]).array)  # of which rounding decides
    monkeypatch.setattr(Cascade, '_ruled', lambda *_: (0, 0, expected[0, 0], 5.0))
    assert cascade.leave(x[:1], [float(threshold)]).seconds == 5.0


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_a_sample_that_is_not_finite(value):
    net, x = published()[0]
    cascade = compiled(net, x.shape[1:])
    x[3, 0, 27, 27] = value
    for call in (lambda x: cascade.leave(x, [0.5]), cascade.record, cascade.main):
        with pytest.raises(NotFinite, match='NaN or an infinity'):
            call(x)
        call(x[:3])
    for call in cascade.main_one, lambda x: cascade.leave_one(x, [0.5]):
        with pytest.raises(NotFinite, match='NaN or an infinity'):
            call(x[3:4])


def test_weights_are_those_at_the_beginning():
    net, x = published()[0]
    cascade = compiled(net, x.shape[1:])
    before = cascade.record(x)[0]
    for param in net.params():
        param.array[...] = 0
    assert (cascade.record(x)[0] == before).all()


@pytest.mark.parametrize(
    'convolution',
    [
        dict(groups=6, pad=1),
        dict(groups=2, stride=2),
        dict(groups=3, out_channels=33, stride=(1, 3), pad=(2, 0)),
        dict(dilate=2, pad=2),
        dict(dilate=(3, 1), stride=(1, 2), pad=(1, 3)),
        dict(dilate=(1, 2), groups=2, out_channels=40, pad=2, nobias=True),
        dict(dilate=4, groups=6, out_channels=12, ksize=(3, 10), pad=(4, 18)),
    ],
    ids=str,
)
def test_convolutions_in_groups_and_dilated_ones(convolution):
    np.random.seed(0)
    given = {'in_channels': 6, 'out_channels': 6, 'ksize': 3, **convolution}
    net = BranchyNet(
        [
            L.Convolution2D(2, 6, 3),
            L.Convolution2D(**given),
            L.BatchNormalization(given['out_channels']),
            FL(F.relu),
            Branch([L.Linear(None, 3)]),
            L.Convolution2D(given['out_channels'], 7, 1),
            Branch([L.Linear(None, 3)]),
        ]
    )
    x = np.random.rand(5, 2, 13, 12).astype(np.float32)
    logits_of(net, x), net.main(x)  # which moves the statistics of the normalisation
    np.testing.assert_allclose(compiled(net, x.shape[1:]).record(x)[0], logits_of(net, x), rtol=1e-4, atol=1e-5)


def test_one_weight_in_groups_and_without():
    np.random.seed(0)
    narrow, wide = L.Convolution2D(4, 10, 3), L.Convolution2D(10, 8, 1)
    grouped = L.Convolution2D(8, 10, 3, groups=2)
    grouped.W.array = narrow.W.array
    net = BranchyNet([L.Convolution2D(2, 4, 1), narrow, wide, grouped, Branch([L.Linear(None, 3)])])
    x = np.random.rand(3, 2, 9, 9).astype(np.float32)
    logits_of(net, x), net.main(x)
    np.testing.assert_allclose(compiled(net, x.shape[1:]).record(x)[0], logits_of(net, x), rtol=1e-4, atol=1e-5)


def hooked(link):
    link.add_hook(TimerHook())
    return link


class Own(L.Convolution2D):
    pass


@pytest.mark.parametrize(
    'link, name',
    [
        (FL(F.sigmoid), 'sigmoid'),
        (Own(6, 6, 1), 'Own'),
        (hooked(L.Convolution2D(6, 6, 1)), 'Convolution2D with a hook'),
        (hooked(L.BatchNormalization(6)), 'BatchNormalization with a hook'),
        (hooked(SL(FL(F.dropout))), 'SL with a hook'),
        (with_forward(L.Convolution2D(6, 6, 1)), 'Convolution2D with a hook or a forward of its own'),
        (L.DilatedConvolution2D(6, 6, 3, pad=1, dilate=2), 'DilatedConvolution2D'),
        (FL(F.max_pooling_2d, 3, 3, 2), 'windows lie in the padding'),
    ],
)
def test_links_without_a_kernel_are_named(link, name):
    net = BranchyNet(
        [
            L.Convolution2D(2, 6, 3),
            link,
            Branch([L.Linear(None, 3)]),
            L.Convolution2D(6, 7, 1),
            Branch([L.Linear(None, 3)]),
        ]
    )
    x = np.zeros((1, 2, 9, 9), np.float32)
    logits_of(net, x), net.main(x)
    with pytest.raises(NotCovered, match=name):
        compiled(net, x.shape[1:])


def test_the_code_of_a_net_is_the_same_every_time(monkeypatch):
    written, compiled = [], emitter.Emitter.compiled

    def noted(self, *names):
        written.append(str(self._module))
        return compiled(self, *names)

    monkeypatch.setattr(emitter.Emitter, 'compiled', noted)
    net = alex_cifar10.get_network()
    for _ in range(4):
        Cascade(operations_of(net, (3, 32, 32), with_main=True))
    assert len(set(written)) == 1


def test_nets_of_one_structure_share_code_and_not_weights():
    x = np.random.RandomState(0).rand(3, 1, 28, 28).astype(np.float32)
    nets = [lenet_mnist.get_network() for _ in range(2)]
    cascades_of_nets = [compiled(net, x.shape[1:]) for net in nets]
    assert len({cascade._calls['record'].code for cascade in cascades_of_nets}) == 1
    found = [np.stack(cascade.record(x)[0]) for cascade in cascades_of_nets]
    assert abs(found[0] - found[1]).max() > 0.01
    for logits, net in zip(found, nets):
        np.testing.assert_allclose(logits, logits_of(net, x), rtol=1e-4, atol=1e-5)
