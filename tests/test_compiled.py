"""Inference compiled for the CPU gives the network's answers."""

import copy
import multiprocessing
import operator
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import branchynet
from branchynet import calibration, cost, cpu, export, inference, sweep, timing, utils
from branchynet.cpu import install, onednn
from branchynet.functions import entropy
from branchynet.inference import Compiled, classify
from branchynet.links.links import FL, SL, Branch, X
from branchynet.links.resnet import BottleNeckA, ResBlock
from branchynet.networks import alex_cifar10, lenet_mnist

import chainer
import chainer.functions as F
import chainer.links as L
import dill
import numpy as np
import pytest
from chainer.link_hooks import SpectralNormalization, TimerHook
from helpers import small_chain_net, small_data, small_net, with_forward

pytestmark = pytest.mark.onednn


def odd_net():
    """Layers of all kinds that Program knows, and some that it does not."""
    np.random.seed(0)
    net = branchynet.BranchyNet(
        [
            L.Convolution2D(3, 4, (3, 5), stride=(1, 2), pad=(1, 2), nobias=True),
            L.BatchNormalization(4),
            FL(F.relu),
            SL(FL(F.dropout, 0.5)),
            ResBlock(4, 4),
            ResBlock(4, 6, 2),
            Branch([FL(F.average_pooling_2d, 2, 1), L.Linear(None, 5)]),
            FL(F.max_pooling_2d, 3, 2, pad=1, cover_all=False),
            FL(F.leaky_relu, slope=0.3),
            X([FL(F.tanh)]),
            FL(F.local_response_normalization),
            BottleNeckA(6, 2, 8, 1),
            L.Convolution2D(8, 8, 3, pad=1, groups=2),
            L.Linear(None, 7),
            FL(F.relu),
            Branch([L.Linear(7, 6, nobias=True), FL(F.relu), L.Linear(6, 5)]),
        ]
    )
    x = np.random.randn(16, 3, 16, 16).astype(np.float32)
    for _ in range(3):
        net.train(x, np.random.randint(0, 5, 16).astype(np.int32))
    return net, x


def check_same(net, x, thresholds):
    fast, slow = classify(Compiled(net), x, thresholds), classify(net, x, thresholds)
    np.testing.assert_array_equal(fast.exit, slow.exit)
    np.testing.assert_array_equal(fast.label, slow.label)
    np.testing.assert_allclose(fast.prob, slow.prob, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(fast.entropy, slow.entropy, rtol=1e-3, atol=1e-5)
    return fast


@pytest.mark.parametrize('count', [1, 2, 7, 33, 200])
def test_lenet_on_real_images(lenet, images, count):
    x, t = images
    result = check_same(lenet, x[:count], 0.0251)
    assert (result.label == t[:count]).mean() > 0.9


def test_layers_of_all_kinds():
    net, x = odd_net()
    with chainer.using_config('train', False):
        median = float(np.median(entropy(F.softmax(net.models[0](x)))))
    result = check_same(net, x, [median])  # of 16 samples: between two entropies
    assert set(result.exit) == {0, 1}


class Recurrent(chainer.Chain):
    """An LSTM over the second axis, from the start in every call."""

    def __init__(self):
        super().__init__()
        with self.init_scope():
            self.lstm, self.hidden, self.logits = L.LSTM(4, 16), L.Linear(16, 16), L.Linear(16, 3)

    def forward(self, x):
        self.lstm.reset_state()
        for i in range(x.shape[1]):
            h = self.lstm(x[:, i])
        return self.logits(F.relu(self.hidden(h)))


class Plain(chainer.Chain):
    def __init__(self):
        super().__init__()
        with self.init_scope():
            self.first, self.logits = L.Linear(48, 48), L.Linear(48, 3)

    def forward(self, x):
        return self.logits(F.relu(self.first(x)))


STATEFUL = {  # where the state is
    'chain': lambda: branchynet.BranchyNet.from_chain(Recurrent(), {'hidden': [F.relu, L.Linear(16, 3)]}),
    'exit of a chain': lambda: branchynet.BranchyNet.from_chain(
        Plain(), {'first': [lambda h: F.reshape(h, (-1, 12, 4)), Recurrent()]}
    ),
    'exit of a list': lambda: branchynet.BranchyNet(
        [FL(F.tanh), Branch([Recurrent()]), L.Linear(48, 8), Branch([L.Linear(8, 3)])]
    ),
}


@pytest.mark.parametrize('where', STATEFUL)
def test_links_that_keep_a_state_run_for_one_thread_at_a_time(where):
    np.random.seed(0)
    x = np.random.randn(300, 12, 4).astype(np.float32)
    net = STATEFUL[where]()
    net.train(x, np.random.randint(0, 3, 300).astype(np.int32))
    threshold = float(np.median(entropy(F.softmax(net.look(x)[0].logits).array)))
    compiled, expected = Compiled(net), classify(net, x, threshold)
    assert 50 < (expected.exit == 0).sum() < 250

    def answers(_):
        return compiled.classify(x, threshold)

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(answers, range(8)):
            np.testing.assert_array_equal(found.exit, expected.exit)
            np.testing.assert_allclose(found.prob, expected.prob, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('block', [lambda: ResBlock(8, 16), lambda: ResBlock(8, 16, 2)])
def test_shortcuts_of_the_same_features_are_those_of_their_blocks(block):
    np.random.seed(0)
    net = branchynet.BranchyNet(
        [
            L.Convolution2D(3, 8, 3, pad=1),
            Branch([block(), L.Linear(None, 3)]),
            ResBlock(8, 12),
            Branch([L.Linear(None, 3)]),
        ]
    )
    x = np.random.randn(20, 3, 8, 8).astype(np.float32)
    for _ in range(3):
        net.train(x, np.random.randint(0, 3, 20).astype(np.int32))
    for one, other in zip(Compiled(net).look(x), net.look(x)):
        np.testing.assert_allclose(one.logits, other.logits, rtol=1e-3, atol=1e-4)


def test_alexnet():
    np.random.seed(0)
    net = alex_cifar10.get_network()
    x = np.random.rand(5, 3, 32, 32).astype(np.float32)
    for compiled, plain in zip(Compiled(net).look(x), net.look(x)):
        np.testing.assert_allclose(compiled[0], plain[0], rtol=1e-4)


def test_classify_is_in_the_order_of_the_input(lenet, images):
    x, _ = images
    whole = classify(Compiled(lenet), x, 0.1)
    order = np.random.RandomState(0).permutation(len(x))
    shuffled = classify(Compiled(lenet), x[order], 0.1)
    np.testing.assert_array_equal(shuffled.exit, whole.exit[order])
    np.testing.assert_allclose(shuffled.prob, whole.prob[order], rtol=1e-3, atol=1e-6)
    assert 0 < (whole.exit == 0).sum() < len(x)


def test_compiled_test_returns_what_branchynet_test_returns(lenet, images):
    net, (x, t) = copy.deepcopy(lenet), images
    net.thresholdExits = [0.0251]
    compiled = Compiled(net)
    fast, slow = compiled.test(x, t), net.test(x, t)
    assert fast[2] == slow[2] and fast[0] == slow[0]
    assert fast[1] == pytest.approx(slow[1])
    assert np.isnan(compiled.test(x)[0])
    assert compiled.test_main(x, t)[0] == net.test_main(x, t)[0]
    measured = timing.measure(compiled, x, t)
    assert measured.exits.tolist() == slow[2] and (measured.released < measured.whole).all()


def test_a_record_of_the_compiled_net_gives_the_same_sweep(lenet, images):
    x, t = images
    settings = [[0.001], [0.0251], [0.3]]
    fast, slow = (
        sweep.sweep(sweep.record(n, x, t, batchsize), settings) for n, batchsize in ((Compiled(lenet), 1), (lenet, 50))
    )
    np.testing.assert_array_equal(fast.exits, slow.exits)
    np.testing.assert_array_equal(fast.accuracy, slow.accuracy)


def test_a_record_timed_only_in_part_has_the_same_answers(lenet, images, monkeypatch):
    compiled, alone = Compiled(lenet), sweep.record(Compiled(lenet), *images)
    monkeypatch.setattr(sweep, 'TIMED', 7)
    shared = sweep.record(compiled, *images)
    np.testing.assert_allclose(shared.entropy, alone.entropy, rtol=1e-5, atol=3e-7)  # 1 - prob's last digit
    np.testing.assert_array_equal(shared.correct, alone.correct)
    np.testing.assert_array_equal(shared.whole[:, 7:14], shared.whole[:, :7])


def test_bits_do_not_depend_on_threads(lenet, images):
    x, _ = images
    results = []
    try:
        for count in 1, 2, 5:
            cpu.set_num_threads(count)
            compiled = Compiled(lenet)
            results.append([*classify(compiled, x, 0.1), *(look.logits for look in compiled.look(x))])
    finally:
        cpu.set_num_threads(None)
    for result in results[1:]:
        for a, b in zip(result, results[0]):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    'change',
    [
        lambda net: net.train(*small_data()),
        lambda net: net.train_main(*small_data()),
        lambda net: [param.array.fill(0) for param in net.params()],
        lambda net: [setattr(param, 'array', np.zeros_like(param.array)) for param in net.params()],
        lambda net: [delattr(net, 'models'), delattr(net, 'main')],
    ],
    ids=['joint', 'main', 'filled', 'assigned', 'deleted'],
)
def test_weights_are_those_at_construction(change):
    net, x = small_net(), small_data()[0]
    expected = classify(net, x, 0.9)
    compiled = Compiled(net)
    change(net)
    for count in 32, 5, 1:  # programs of every size are compiled after the change
        result = classify(compiled, x[:count], 0.9)
        np.testing.assert_array_equal(result.exit, expected.exit[:count])
        np.testing.assert_allclose(result.prob, expected.prob[:count], rtol=1e-5)


def test_statistics_of_batch_normalisation_are_those_at_construction():
    net, x = odd_net()
    expected, compiled = net.get_SM(x), Compiled(net)
    net.train(x + 5, np.zeros(16, np.int32))
    for look, prob in zip(compiled.look(x), expected):
        np.testing.assert_allclose(look.prob, prob, rtol=1e-3, atol=1e-5)


def test_a_snapshot_holds_nothing_of_the_training():
    net = small_net()
    net.train(*small_data())
    net.copy_main()
    compiled = Compiled(net)
    assert all(param.grad is None and param.update_rule is None for param in compiled._net.params())
    assert not any(isinstance(value, chainer.Optimizer) for value in vars(compiled._net).values())


def test_weights_are_packed_once_for_all_threads_and_sizes(lenet, images, monkeypatch):
    monkeypatch.setattr(inference, '_machine_code', lambda *_: None)
    packed = []
    pack = onednn.Primitive.pack
    monkeypatch.setattr(onednn.Primitive, 'pack', lambda self, w: packed.append(w.shape) or pack(self, w))
    cpu.set_num_threads(2)
    try:
        compiled = Compiled(lenet)
        barrier = threading.Barrier(4)

        def work(_):
            barrier.wait()
            for count in 64, 17, 3, 1:
                classify(compiled, images[0][:count], 0.0251)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
    finally:
        cpu.set_num_threads(None)
    layers = sum(isinstance(link, (L.Linear, L.Convolution2D)) for model in lenet.models for link in model) - 1
    # At most one copy in every layout; the sizes of programs share a few layouts.
    assert layers <= len(packed) <= 3 * layers


@pytest.mark.parametrize(
    'copied',
    [lambda c: pickle.loads(pickle.dumps(c)), lambda c: dill.loads(dill.dumps(c)), copy.deepcopy, copy.copy],
    ids=['pickle', 'dill', 'deepcopy', 'copy'],
)
def test_a_copy_gives_the_same_bits(lenet, images, copied):
    x, _ = images
    compiled = Compiled(lenet)
    compiled.thresholdExits = [0.3]
    expected = classify(compiled, x, 0.0251)
    other = copied(compiled)
    assert other.thresholdExits == [0.3]
    for a, b in zip(classify(other, x, 0.0251), expected):
        np.testing.assert_array_equal(a, b)


def test_a_spawned_worker_gives_the_same_bits(lenet, images):
    x, _ = images
    compiled = Compiled(lenet)
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        found = pool.submit(classify, compiled, x, 0.0251).result()
    for a, b in zip(found, classify(compiled, x, 0.0251)):
        np.testing.assert_array_equal(a, b)


class Doubled(L.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Shifted(L.Convolution2D):
    def forward(self, x):
        return super().forward(x) + 1


class OwnBlock(ResBlock):
    def forward(self, x):
        return F.tanh(self.conv1(x))


def hooked(link, hook):
    link.add_hook(hook)
    return link


class Halving(chainer.LinkHook):
    """Halves what a link returns, in place."""

    name = 'Halving'

    def forward_postprocess(self, args):
        args.out.array[...] *= 0.5


@pytest.mark.parametrize(
    'make',
    [
        lambda: Shifted(3, 4, 3),
        lambda: OwnBlock(3, 4),
        lambda: hooked(L.Convolution2D(3, 4, 3), Halving()),
        lambda: hooked(FL(F.relu), Halving()),
        lambda: with_forward(L.Convolution2D(3, 4, 3)),
        lambda: hooked(L.Convolution2D(3, 4, 3), SpectralNormalization()),
    ],
    ids=['subclass', 'block', 'hook', 'hook of a function', 'own forward', 'spectral normalisation'],
)
def test_links_that_are_not_stock_are_called(make):
    np.random.seed(0)
    net = branchynet.BranchyNet([make(), FL(F.relu), Branch([Doubled(None, 5)]), Branch([Doubled(None, 5)])])
    x = np.random.randn(10, 3, 8, 8).astype(np.float32)
    for _ in range(2):
        net.train(x, np.random.randint(0, 5, 10).astype(np.int32))
        net.train_main(x, np.random.randint(0, 5, 10).astype(np.int32))
    result = check_same(net, x, float(np.median(net.look(x)[0].entropy)))  # of 10 samples: between two entropies
    assert set(result.exit) == {0, 1}
    for count in 1, 10:
        for fast, slow in zip(Compiled(net).look(x[:count]), net.look(x[:count])):
            np.testing.assert_allclose(fast.logits, slow.logits, rtol=1e-3, atol=1e-5)


def test_links_that_are_called_have_the_fast_kernels():
    in_place = []

    def noticed(h):
        in_place.append(install.are_in_place())
        return h

    net = branchynet.BranchyNet([FL(noticed), Branch([L.Linear(4, 3)]), Branch([L.Linear(4, 3)])])
    compiled, x = Compiled(net), small_data()[0]
    compiled.classify(x, [1.0])  # compiles
    for call in lambda: compiled.classify(x, [1.0]), lambda: compiled.test_at([1.0], x[:1]), lambda: compiled.look(x):
        in_place.clear()
        call()
        assert in_place and in_place[-1]  # for one sample it is compiled first
    assert not install.are_in_place()


def test_hooks_for_all_links_see_the_links():
    net, (x, t) = small_net(thresholdExits=0.9), small_data()
    compiled = Compiled(net)
    net.train(x, t)
    without = classify(compiled, x, 0.9)
    with TimerHook() as hook:
        result = classify(compiled, x, 0.9)
        compiled.test(x, t)
        compiled.test_main(x, t)
        compiled.look(x)
    assert 'Linear' in hook.summary()
    np.testing.assert_allclose(result.prob, without.prob, rtol=1e-5)
    np.testing.assert_array_equal(result.exit, without.exit)


def test_arrays_of_any_number_of_dimensions():
    np.random.seed(0)
    for x, links in (
        (np.random.randn(5, 3, 9), [L.Convolution1D(3, 4, 3), FL(F.relu)]),
        (np.random.randn(5, 2, 3, 4, 5), [L.Linear(None, 6), FL(F.relu)]),
        (np.random.randn(5, 7), [FL(F.relu), FL(F.dropout)]),
    ):
        net = branchynet.BranchyNet([*links, Branch([L.Linear(None, 3)])])
        net.get_SM(x.astype(np.float32))
        check_same(net, x.astype(np.float32), [])


@pytest.mark.parametrize(
    'damage, words',
    [
        (
            lambda net: [setattr(p, 'array', p.array.astype('d')) for p in net.params()],
            'parameter /main/0/W has dtype float64: expected float32',
        ),
        (
            lambda net: net.models[0].append(L.Linear(None, 3)),
            r'parameter /models/0/3/W has no shape yet: run a batch first, for example net.get_SM\(x\)',
        ),
    ],
    ids=['float64', 'no shape'],
)
def test_the_reason_why_a_net_cannot_be_compiled_is_named(damage, words):
    net = small_net()
    damage(net)
    assert not inference.is_compilable(net)
    with pytest.raises(ValueError, match=f'^net cannot be compiled: {words}$'):
        Compiled(net)


def test_what_is_no_net_is_named():
    compiled, x = Compiled(small_net(thresholdExits=None)), small_data()[0]
    for call in (
        lambda: Compiled(compiled),
        lambda: classify(L.Linear(4, 3), x, 0.5),
        lambda: cost.cost(compiled, (4,)),
        lambda: export.export(compiled, 'a.onnx', (4,), 0.5),
        lambda: utils.train(compiled, *small_data()),
        lambda: utils.train_augment(compiled, *small_data()),
        lambda: utils.test(L.Linear(4, 3), *small_data()),
        lambda: sweep.record(L.Linear(4, 3), *small_data()),
        lambda: timing.measure(L.Linear(4, 3), *small_data()),
        lambda: calibration.logits_of(L.Linear(4, 3), x),
    ):
        with pytest.raises(TypeError, match='^net is a (Compiled|Linear): expected a BranchyNet, which has exits$'):
            call()
    for call in (lambda: cost.cost(small_net(), 4)), (lambda: export.export(small_net(), 'a.onnx', 4, 0.5)):
        with pytest.raises(TypeError, match='^shape is 4: expected that of a sample, such as'):
            call()
    with pytest.raises(TypeError, match='^thresholdExits is None: set it, as a Compiled has no percentTestExits$'):
        compiled.test(x)


@pytest.mark.parametrize('count', [1, 20])
@pytest.mark.parametrize(
    'call',
    [
        lambda compiled, x, t: compiled.classify(x, 0.5),
        lambda compiled, x, t: classify(compiled, x, 0.5),
        lambda compiled, x, t: compiled.test(x, t),
        lambda compiled, x, t: compiled.test_main(x, t),
        lambda compiled, x, t: compiled.look(x),
        lambda compiled, x, t: sweep.record(compiled, x, t),
    ],
    ids=['classify', 'the function classify', 'test', 'test_main', 'look', 'record'],
)
def test_a_missing_llvmlite_is_named_with_the_line_that_called(monkeypatch, lenet, images, call, count):
    monkeypatch.setattr(inference, 'Cascade', None)
    compiled = Compiled(lenet)
    compiled.thresholdExits = 0.5
    with pytest.warns(UserWarning, match='^llvmlite does not load: .*pip install llvmlite$') as warned:
        call(compiled, images[0][:count], images[1][:count])
    assert [one.filename for one in warned] == [__file__]


def test_a_missing_onednn_is_named(monkeypatch):
    def missing():
        raise OSError('no such library')

    monkeypatch.setattr(onednn, 'library', missing)
    assert not inference.is_compilable(small_net())
    message = r'^net cannot be compiled: oneDNN does not load \(no such library\): pip install'
    with pytest.raises(ValueError, match=message):
        Compiled(small_net())


@pytest.mark.parametrize(
    'link, rest',
    [
        (FL(F.separate, axis=1), FL(F.stack, axis=1)),
        (FL(F.max_pooling_2d, 1, return_indices=True), FL(operator.itemgetter(0))),
        (FL(F.dropout, 0.5, return_mask=True), FL(operator.itemgetter(0))),
    ],
    ids=lambda link: getattr(link.fn, '__name__', ''),
)
def test_links_that_pass_on_no_array_are_named(link, rest):
    net = branchynet.BranchyNet([link, rest, Branch([L.Linear(48, 3)])])
    x = np.random.RandomState(0).rand(2, 3, 4, 4).astype(np.float32)
    message = f'^{link.fn.__name__} returns a tuple: expected an array, or the net cannot be compiled$'
    with pytest.raises(ValueError, match=message):
        classify(Compiled(net), x, [])


def test_joint_training_alone_is_enough_for_layers_sized_by_their_first_input():
    np.random.seed(0)
    net = branchynet.BranchyNet([L.Linear(None, 4), Branch([L.Linear(None, 3)]), Branch([L.Linear(None, 3)])])
    x, t = small_data()
    net.train(x, t)
    compiled = Compiled(net)
    np.testing.assert_allclose(classify(compiled, x, 0.5).prob, classify(net, x, 0.5).prob, rtol=1e-4)
    with pytest.raises(ValueError, match="^main's head has no weights: call net.train_main"):
        compiled.test_main(x, t)


def test_float64_nets_are_classified_in_chainer():
    net = small_net()
    for param in net.params():
        param.array = param.array.astype(np.float64)
    assert classify(net, small_data()[0].astype(np.float64), [0.5, 0.5]).prob.shape == (32, 3)


def test_impossible_classes_count_alike_one_by_one_and_in_batches():
    np.random.seed(0)
    net = branchynet.BranchyNet([Branch([L.Linear(4, 3)]), Branch([L.Linear(4, 3)])])
    net.models[0][0].b.array[1] = -np.inf
    x = small_data()[0]
    compiled = Compiled(net)
    batch = classify(compiled, x, 0.5)
    assert np.isfinite(batch.entropy).all() and (batch.prob[batch.exit == 0, 1] == 0).all()
    for i in range(len(x)):
        one = classify(compiled, x[i : i + 1], 0.5)
        np.testing.assert_allclose(one.entropy[0], batch.entropy[i], rtol=1e-5)
        assert one.exit[0] == batch.exit[i]


@pytest.mark.parametrize('k', [0, 1])
def test_impossible_classes_in_machine_code(lenet, k):
    net = copy.deepcopy(lenet)
    x = np.random.RandomState(0).rand(9, 1, 28, 28).astype(np.float32)
    net.models[k][-1].b.array[5] = -np.inf
    compiled = Compiled(net)
    for threshold in 0.0, 10.0:
        for part in x, x[:1]:
            found, expected = classify(compiled, part, [threshold]), classify(net, part, [threshold])
            assert found.label.tolist() == expected.label.tolist() and found.exit.tolist() == expected.exit.tolist()
            np.testing.assert_allclose(found.entropy, expected.entropy, rtol=1e-4)
            t = expected.label.astype(np.int32)
            assert compiled.test_at([threshold], part, t)[0] == 1


@pytest.mark.parametrize('get_network', [lenet_mnist.get_network, alex_cifar10.get_network])
@pytest.mark.parametrize('count', [1, 9])
def test_numbers_that_overflow_in_machine_code_are_noticed(get_network, count):
    np.random.seed(0)
    net = get_network()
    shape = (1, 28, 28) if get_network is lenet_mnist.get_network else (3, 32, 32)
    x = 10 * np.random.rand(count, *shape).astype(np.float32)
    net.get_SM(x)
    net.main[0].W.array *= np.float32(1e38)
    for model in net, Compiled(net):
        with pytest.raises(ValueError, match='^exit . answers NaN, first for sample 0: .* numbers overflow'):
            classify(model, x, [0.0] * (net.numexits() - 1))


@pytest.mark.parametrize('count', [1, 32])
def test_nan_weights_are_named(count):
    net, x = small_net(), small_data()[0]
    net.models[2][-1].b.array[:] = np.nan
    for model in net, Compiled(net):
        with pytest.raises(ValueError, match='^exit 2 answers NaN, first for sample 0: the weights hold NaN'):
            classify(model, x[:count], 0.0)


@pytest.mark.parametrize('spoiled', [np.nan, np.inf])
@pytest.mark.parametrize('make', [lenet_mnist.get_network, lambda: small_net(seed=1), small_chain_net])
def test_weights_whose_nan_a_kernel_would_hide_are_refused(make, spoiled):
    net = make()
    first = next(link for link in net.links() if link._params)  # after it, ReLU
    first.W.array.flat[0] = spoiled
    with pytest.raises(ValueError, match=r'^net cannot be compiled: /main\S+ holds NaN or infinity: expected finite'):
        Compiled(net)


@pytest.mark.parametrize('count', [1, 2])
@pytest.mark.parametrize('method', ['test', 'test_main'])
def test_labels_beyond_the_classes_are_named(method, count):
    net, (x, _) = small_net(thresholdExits=0.5), small_data()
    compiled = Compiled(net)
    for model in net, compiled, compiled:
        with pytest.raises(ValueError, match='^t holds the label 7: expected less than 3, the number of classes$'):
            getattr(model, method)(x[:count], np.full(count, 7, np.int32))


IMAGES = np.random.RandomState(0).rand(2, 3, 32, 32).astype(np.float32)


@pytest.mark.parametrize(
    'x',
    [
        IMAGES[0],
        IMAGES[:, :1],
        IMAGES.transpose(0, 2, 3, 1),
        IMAGES.reshape(2, -1),
        IMAGES[:, :, :2, :2],
        IMAGES[:, :, :20],
        (IMAGES * 255).astype(np.uint8),
        IMAGES.astype('d'),
        IMAGES[:0],
        IMAGES * np.nan,
    ],
    ids=['no batch', 'grey', 'channels last', '2-d', 'small', 'half', 'uint8', 'float64', 'empty', 'nan'],
)
def test_bad_images_are_named_as_by_the_net(x):
    net = alex_cifar10.get_network()
    compiled = Compiled(net)
    errors = []
    for model in net, compiled, compiled:  # a second time, when shapes that fit would be known
        with pytest.raises((TypeError, ValueError)) as error:
            classify(model, x, 0.5)
        errors.append((error.type, str(error.value)))
    assert errors[0] == errors[1] == errors[2] and '\n' not in errors[0][1]


@pytest.mark.parametrize(
    'x, error, words',
    [
        (np.zeros((2, 5), np.float32), ValueError, r'link 0 \(Linear\) cannot take an array of shape \(2, 5\)'),
        (np.zeros((0, 4), np.float32), ValueError, 'x has shape'),
        (np.full((2, 4), np.nan, np.float32), ValueError, 'x holds NaN'),
        (np.zeros((2, 4)), TypeError, 'x has dtype'),
    ],
)
def test_bad_input_is_named(x, error, words):
    for net in small_net(), Compiled(small_net()):
        with pytest.raises(error, match=words):
            classify(net, x, 0.5)
    with pytest.raises(ValueError, match='thresholds is'):
        classify(small_net(), small_data()[0], [0.5])


AT_ONCE = """
import sys, threading
import branchynet
from branchynet.cpu import onednn

sys.setswitchinterval(1e-6)
barrier, found = threading.Barrier(8), []

def call():
    barrier.wait()
    found.append(onednn.library())

threads = [threading.Thread(target=call) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(found), len(set(map(id, found))))
"""


def test_threads_that_start_onednn_at_once_share_it():
    found = subprocess.run([sys.executable, '-c', AT_ONCE], check=True, capture_output=True, text=True).stdout
    assert found.split() == ['8', '1']


def test_temperatures_that_do_not_fit_are_named():
    net = small_net()
    for temperatures in [2.0], [np.nan, 1, 1]:
        net.temperatures = temperatures
        with pytest.raises(ValueError, match='^temperatures is .*: expected 3 finite numbers above 0'):
            Compiled(net)


@pytest.mark.parametrize('spoiled', [np.nan, np.inf])
def test_an_answer_that_is_nan_is_wrong(lenet, spoiled):
    images = np.random.RandomState(0).rand(20, 1, 28, 28).astype(np.float32)
    for net, x in (copy.deepcopy(lenet), images), odd_net():
        for model in net.main, *net.models:
            model[-1].b.array[...] = spoiled
        net.thresholdExits, t = np.inf, np.zeros(len(x), np.int32)
        for one in net, Compiled(net):
            for count in 1, len(x):
                assert one.test(x[:count], t[:count])[0] == one.test_main(x[:count], t[:count])[0] == 0
            with pytest.raises(ValueError, match='answers NaN, first for sample 0'):
                classify(one, x, np.inf)


def test_a_number_is_no_batch():
    compiled = Compiled(small_net(thresholdExits=0.5))
    with pytest.raises(ValueError, match=r'^x has shape \(\): expected a batch$'):
        compiled.test(np.ones((), np.float32))
