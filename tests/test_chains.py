"""Exits at named layers of any Chain: BranchyNet.from_chain."""

import copy
import functools
import gc
import os
import pickle
import re
import threading
import time
import traceback

import branchynet
from branchynet import (
    Branch,
    BranchyNet,
    checkpoint,
    cost,
    cpu,
    exits,
    export,
    functions,
    heads,
    inference,
    provenance,
    sweep,
    utils,
)
from branchynet.chains import reading
from branchynet.datasets import cifar10

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from chainer.link_hooks import TimerHook
from helpers import needs_cifar10, same, weights
from hypothesis import given, settings
from hypothesis import strategies as st

CLASSES = 5
X = np.random.RandomState(1).randn(24, 3, 8, 8).astype(np.float32)
T = np.random.RandomState(2).randint(0, CLASSES, 24).astype(np.int32)


class Block(chainer.Chain):
    """relu(x + bn(conv(x)))."""

    def __init__(self, channels):
        super().__init__()
        with self.init_scope():
            self.conv = L.Convolution2D(channels, channels, 3, pad=1, nobias=True)
            self.bn = L.BatchNormalization(channels)

    def forward(self, x):
        return F.relu(x + self.bn(self.conv(x)))


class Residual(chainer.Chain):
    """A residual network of a user's own."""

    def __init__(self, channels=6, classes=CLASSES):
        super().__init__()
        with self.init_scope():
            self.stem = L.Convolution2D(3, channels, 3, pad=1)
            self.block1 = Block(channels)
            self.down = L.Convolution2D(channels, 2 * channels, 3, stride=2, pad=1)
            self.block2 = Block(2 * channels)
            self.block3 = Block(2 * channels)
            self.fc = L.Linear(2 * channels, classes)

    def forward(self, x):
        h = self.block1(F.relu(self.stem(x)))
        h = self.block3(self.block2(F.relu(self.down(h))))
        return self.fc(F.dropout(F.mean(h, axis=(2, 3)), 0.3))


def residual(seed=0, chain=Residual, **settings):
    """A net with exits at two blocks of a Residual whose statistics are not those of the start."""
    np.random.seed(seed)
    net = BranchyNet.from_chain(
        chain(), {'block1': heads.linear(CLASSES), 'block2': Branch(heads.conv(CLASSES, 4), 0.5)}, x=X, **settings
    )
    with chainer.using_config('train', True), chainer.no_backprop_mode():
        net.main(X)
    return net


def function(forward, *links):
    """A Chain of links a, b, ... and a forward."""

    class Chain(chainer.Chain):
        def __init__(self):
            super().__init__()
            with self.init_scope():
                for name, link in zip('abcdef', links):
                    setattr(self, name, link)

        def forward(self, x):
            return forward(self, x)

    return Chain()


def dense(forward, count=3):
    """function() of linear layers of 4 numbers."""
    np.random.seed(0)
    return function(forward, *[L.Linear(4, 4) for _ in range(count)])


ROWS = np.random.RandomState(3).randn(6, 4).astype(np.float32)


class Calls(chainer.LinkHook):
    """Counts the calls of a chain's links, by path."""

    name = 'calls'

    def __init__(self, chain):
        self._paths = {id(link): path for path, link in chain.namedlinks(skipself=True)}
        self.count = {}

    def forward_postprocess(self, args):
        path = self._paths.get(id(args.link))
        if path:
            self.count[path] = self.count.get(path, 0) + 1


def plain(chain, x):
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        return chain(x)


# The networks of chainer.links

NETWORKS = [
    (L.ResNet50Layers, 64, {'res3': heads.conv(1000), 'res4': heads.linear(1000)}),
    pytest.param(L.GoogLeNet, 224, {'inc4a': heads.conv(1000), 'inc4d': heads.linear(1000)}, marks=pytest.mark.slow),
    pytest.param(
        L.VGG16Layers, 224, {'conv3_3': heads.linear(1000), 'conv4_3': heads.linear(1000)}, marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize('network, size, branches', NETWORKS)
def test_networks_of_chainer_exit_early(network, size, branches):
    x = np.random.RandomState(0).randn(1, 3, size, size).astype(np.float32)
    chain = network(pretrained_model=None)
    net = BranchyNet.from_chain(chain, branches, x=x)

    last = net.run_main(x)
    np.testing.assert_array_equal(F.softmax(last).array, plain(chain, x)['prob'].array)
    net.thresholdExits = -1.0
    with Calls(chain) as late:
        np.testing.assert_array_equal(net.run(x), last)
    assert set(late.count.values()) == {1}
    net.thresholdExits = 1000.0
    with Calls(chain) as early:
        net.run(x)
    layers = list(late.count)
    first, second = (layers.index('/' + path) for path in branches)
    assert list(early.count) == layers[: first + 1] and second > first
    net.thresholdExits = [-1.0, 1000.0]
    with Calls(chain) as middle:
        net.run(x)
    assert list(middle.count) == layers[: second + 1] and set(middle.count.values()) == {1}


# One pass


def test_every_exit_answers_as_the_chain_does_up_to_it():
    net = residual()
    chain, (a, b, _) = net.main.chain, net.models
    with chainer.using_config('train', False):
        h = chain.block1(F.relu(chain.stem(X)))
        k = chain.block2(F.relu(chain.down(h)))
        expected = [F.softmax(y).array for y in (a(h), b(k), chain(X))]
    for found, answer in zip(net.get_SM(X), expected):
        np.testing.assert_allclose(found, answer, rtol=1e-5)
    np.testing.assert_array_equal(net.run_main(X), plain(chain, X).array)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.lists(st.booleans(), min_size=24, max_size=24), min_size=2, max_size=2))
def test_samples_that_stay_get_the_answers_that_they_get_alone(leaving):
    net, rule = residual(), Given(leaving)
    everything = net.look(X)
    with functions.inference_mode():
        parts = list(net.leave(X, rule))
    assert sorted(np.concatenate([part.index for part in parts])) == list(range(24))
    for part, look in zip(parts, everything):
        np.testing.assert_allclose(part.prob, look.prob[part.index], rtol=1e-4, atol=1e-6)
    assert len(parts) == 3 or all(a or b for a, b in zip(*leaving))


class Given:
    """An exit rule that lets given samples leave: for each exit, a bool for every sample of the batch."""

    def __init__(self, leaving):
        self._leaving = np.array(leaving)
        self._left = np.arange(self._leaving.shape[1])

    def leaves(self, k, logits, answer, batch):
        leaves = self._leaving[k][self._left]
        self._left = self._left[~leaves]
        return leaves


def test_training_is_that_of_the_same_network_in_a_list():
    np.random.seed(0)
    make = [lambda: L.Linear(4, 8), lambda: L.Linear(8, 8), lambda: L.Linear(8, 3)]
    links, own = [f() for f in make], L.Linear(8, 3)
    relu = branchynet.FL(F.relu)
    listed = BranchyNet(
        copy.deepcopy([links[0], Branch([own], 0.5), relu, links[1], relu, links[2], Branch([])]),
        percentTrainKeeps=0.5,
    )
    chain = function(lambda self, x: self.c(F.relu(self.b(F.relu(self.a(x))))), *links)
    net = BranchyNet.from_chain(chain, {'a': Branch([own], 0.5)}, percentTrainKeeps=0.5)
    x, t = ROWS, np.array([0, 1, 2, 0, 1, 2], np.int32)
    for step in range(5):
        method = [net.train, net.train_main][step == 2], [listed.train, listed.train_main][step == 2]
        assert method[0](x, t) == method[1](x, t)
        assert net.train_branch(0, x, t) == listed.train_branch(0, x, t)
    for path, other in [('/a/W', '/main/0/W'), ('/b/W', '/main/2/W'), ('/c/b', '/main/4/b')]:
        np.testing.assert_array_equal(dict(chain.namedparams())[path].array, weights(listed)[other])
    np.testing.assert_array_equal(own.W.array, weights(listed)['/models/0/1/W'])
    assert net.getLearnedExitsThresholds() == listed.getLearnedExitsThresholds()
    for setting in ({'joint': False}, {'forwardMain': True}, {'percentTrainExits': 1.0}):
        for n in (net, listed):
            vars(n).update(setting)
        assert net.train(x, t) == listed.train(x, t)
    np.testing.assert_array_equal(chain.a.W.array, weights(listed)['/main/0/W'])


class Asking(L.Linear):
    """A linear layer that records Chainer's mode."""

    def __init__(self, size):
        super().__init__(size, size)
        self.seen = []

    def forward(self, x):
        self.seen.append((chainer.config.train, chainer.config.enable_backprop))
        return super().forward(x)


@pytest.mark.parametrize('threshold', [-1.0, 1000.0])  # forward goes on, or is dropped
def test_settings_and_hooks_of_forward_are_its_own(threshold):
    seen = []

    def forward(self, x):
        with chainer.using_config('train', None), chainer.force_backprop_mode(), Calls(self) as own:
            h = self.a(x)
            seen.append((chainer.config.train, chainer.config.enable_backprop, np.geterr()['over']))
            h = self.b(h)
        assert own.count == {'/a': 1, '/b': 1}
        seen.append((chainer.config.train, chainer.config.enable_backprop))
        return self.c(h)

    net = BranchyNet.from_chain(dense(forward), {'a': Asking(4)}, x=ROWS)
    asking = net.models[0][0]
    seen.clear(), asking.seen.clear()
    net.thresholdExits = threshold

    def state():
        return dict(vars(chainer.config._local)), dict(chainer._get_link_hooks())

    with np.errstate(over='raise'), TimerHook() as timer:
        before = state()
        net.find_entropies(ROWS)
        net.run(ROWS)
        net.train(ROWS, T[:6] % 4)
        gc.collect()
        assert state() == before
    modes = [(True, False), (False, False), (True, True)]  # of the three calls
    assert asking.seen == modes
    if threshold < 0:
        assert seen == [(None, True, 'raise'), (False, False), (None, True, 'raise'), (True, True)]
    else:
        assert seen == []
    assert len([link for link, _ in timer.call_history if link == 'Asking']) == 3


def test_errors_of_forward_come_out_with_their_traceback():
    def forward(self, x):
        h = self.a(x)
        if fail:
            raise RuntimeError('in forward')
        return self.b(h)

    fail = False
    net = BranchyNet.from_chain(dense(forward, 2), {'a': L.Linear(4, 4)}, x=ROWS)
    expected, fail = net.get_SM(ROWS), True
    with pytest.raises(RuntimeError, match='in forward') as error:
        net.get_SM(ROWS)
    assert [frame.name for frame in traceback.extract_tb(error.tb)].count('forward') == 2  # of Pass and of the chain
    fail = False
    np.testing.assert_array_equal(net.get_SM(ROWS), expected)


def test_a_dropped_forward_ends_at_once_and_cleans_up():
    events = []

    def forward(self, x):
        try:
            return self.b(self.a(x))
        except Exception:
            events.append('error')
            raise
        finally:
            events.append('end')

    net = BranchyNet.from_chain(dense(forward, 2), {'a': L.Linear(4, 4)}, thresholdExits=1000.0, x=ROWS)
    events.clear()
    leaving = net.leave(ROWS, exits.Thresholds(1000.0))
    next(leaving)
    assert events == []
    assert list(leaving) == [] and events == ['end']
    net.leave(ROWS, exits.Thresholds(-1.0)).close()
    net.run(ROWS)
    assert events == ['end', 'end']


def test_a_pass_may_be_dropped_by_another_thread():
    net = residual()
    leaving = [net.leave(X, exits.Thresholds(-1.0))]
    with functions.inference_mode():
        next(leaving[0])
    seen = []

    def drop():
        before = dict(vars(chainer.config._local)), dict(chainer._get_link_hooks())
        leaving.clear()
        gc.collect()
        seen.append(before == (dict(vars(chainer.config._local)), dict(chainer._get_link_hooks())))

    thread = threading.Thread(target=drop)
    thread.start()
    thread.join()
    assert seen == [True]
    before = dict(vars(chainer.config._local))
    assert len(net.get_SM(X)) == 3 and dict(vars(chainer.config._local)) == before


def test_a_layer_may_run_passes_of_its_own():
    inner = BranchyNet.from_chain(
        dense(lambda self, x: self.b(self.a(x)), 2), {'a': L.Linear(4, 4)}, thresholdExits=1.3
    )
    outer = BranchyNet.from_chain(
        dense(lambda self, x: self.b(F.identity(chainer.as_variable(inner.run(self.a(x))))), 2), {'a': L.Linear(4, 4)}
    )
    _, last = outer.get_SM(ROWS)
    chain = outer.main.chain
    expected = F.softmax(plain(chain.b, inner.run(plain(chain.a, ROWS).array)))
    np.testing.assert_allclose(last, expected.array, rtol=1e-5)


def test_stages_belong_to_a_pass():
    net = residual()
    with pytest.raises(ValueError, match='stage 1 cannot run alone: call stage = net.one_pass'):
        net.stage(1, X)
    with chainer.no_backprop_mode():
        h = net.stage(0, X)
        stage = net.one_pass()
        np.testing.assert_array_equal(stage(0, X).array, h.array)
        with pytest.raises(ValueError, match='stage 0 of a pass is called where stage 1 is due'):
            stage(0, X)
    unread = BranchyNet.from_chain(Residual(), {'block1': heads.linear(CLASSES)})
    for call in (unread.one_pass, lambda: unread.main(X)):
        with pytest.raises(ValueError, match='not read yet: run a batch first'):
            call()


# A net like any other


def test_a_net_is_saved_loaded_copied_and_pickled(tmp_path):
    net = residual(percentTrainKeeps=0.7, thresholdExits=1.5)
    net.train(X, T)
    chainer.serializers.save_npz(tmp_path / 'net.npz', net)
    loaded = BranchyNet.from_chain(Residual(), {'block1': heads.linear(CLASSES), 'block2': heads.conv(CLASSES, 4)})
    chainer.serializers.load_npz(tmp_path / 'net.npz', loaded)
    expected = net.get_SM(X)
    copies = [loaded, copy.deepcopy(net), net.copy('copy'), net.copy(), pickle.loads(pickle.dumps(net))]
    for other in copies:
        assert same(weights(net), weights(other))
        np.testing.assert_array_equal(np.array(other.get_SM(X)), np.array(expected))
        assert other.test(X, T)[:3] == net.test(X, T)[:3]
    started = net.copy('init')
    assert not same(weights(net), weights(started)) and len(started.get_SM(X)) == 3
    for other in copies[1:3]:
        other.train(X, T)
        assert other.main.chain.fc.W.array is not net.main.chain.fc.W.array
    assert not same(weights(net), weights(copies[1]))


@pytest.mark.parametrize('mode', ['share', 'init', 'copy'])
def test_a_copy_keeps_a_link_that_an_exit_calls_twice(mode):
    twice = L.Linear(CLASSES, CLASSES)
    net = BranchyNet.from_chain(Residual(), {'block1': [*heads.linear(CLASSES), twice, F.relu, twice]}, x=X)
    own = net.copy(mode).models[0]
    assert own[-3] is own[-1] is not twice


def test_paths_of_parameters_are_those_of_the_chain(capsys):
    net = residual(verbose=True)
    assert 'main: Residual ChainList' in capsys.readouterr().out
    paths = {path for path, _ in net.namedparams()}
    assert {'/main/chain' + path for path, _ in net.main.chain.namedparams()} | {
        '/models/0/2/W',
        '/models/0/2/b',
        *(f'/models/1/{i}/{name}' for i in (1, 4) for name in 'Wb'),
    } == paths
    assert [model.weight for model in net.models] == [1.0, 0.5, 1.0]


def test_threads_at_once_answer_as_one():
    net = residual(thresholdExits=1.5)
    parts = [X[i : i + 6] for i in range(0, 24, 6)] * 5
    expected = [net.run(part) for part in parts]
    found = [None] * len(parts)

    def run(first):
        for i in range(first, len(parts), 4):
            found[i] = net.run(parts[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(found, expected)


def test_a_chain_is_read_once_its_exits_have_parameters():
    were_read = []

    def look(h):
        were_read.append(net.main.is_read)
        return h

    net = BranchyNet.from_chain(Residual(), {'block1': [look, *heads.linear(CLASSES)]})
    net.get_SM(X)
    assert were_read[0] is False and were_read[-1] is True


def test_threads_that_come_first_read_the_chain_once(monkeypatch):
    net = BranchyNet.from_chain(Residual(), {'block1': heads.linear(CLASSES)})
    found, reads, barrier = [None] * 4, [], threading.Barrier(4)

    def read(*args):
        reads.append(args)
        time.sleep(0.1)  # the other threads come meanwhile
        reading.read(*args)

    monkeypatch.setattr('branchynet.net.read', read)

    def run(i):
        barrier.wait()
        found[i] = net.get_SM(X)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    with chainer.using_config('train', False):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(reads) == 1
    for other in found:
        np.testing.assert_array_equal(np.array(other), np.array(found[0]))


def test_thresholds_sweeps_and_classification():
    net = residual()
    thresholds = net.find_thresholds(X, percentTrainKeeps=0.5)
    result = inference.classify(net, X, thresholds)
    net.thresholdExits = thresholds
    np.testing.assert_array_equal(net.run(X).argmax(axis=1), result.label)
    assert list(utils.test(net, X, T, batchsize=24)[2]) == np.bincount(result.exit, minlength=3).tolist()
    record = sweep.record(net, X, T, batchsize=24)
    swept = sweep.sweep(record, [thresholds])
    assert swept.exits[0].tolist() == np.bincount(result.exit, minlength=3).tolist()
    assert swept.accuracy[0] == (result.label == T).mean()


def test_cost_counts_what_runs():
    net = residual()
    counted = cost.cost(net, X.shape[1:])
    chain = net.main.chain

    def params(*links):
        return sum(param.size for link in links for param in link.params())

    stages = [params(chain.stem, chain.block1), params(chain.down, chain.block2), params(chain.block3, chain.fc)]
    assert [part.stage.params for part in counted.exits] == stages
    assert [part.exit.params for part in counted.exits] == [params(model) for model in net.models]
    assert counted.exits[0].stage.macs == 64 * (3 * 9 * 6 + 6 * 9 * 6)
    assert counted.exits[-1].leaving.params == params(net)
    assert counted.main == cost.Cost(params(chain), sum(part.stage.macs for part in counted.exits))


def test_the_trainer_trains_it():
    np.random.seed(0)
    net = BranchyNet.from_chain(Residual(), {'block1': heads.linear(CLASSES)}, percentTrainKeeps=0.5)
    optimizer = chainer.optimizers.Adam(0.01).setup(net)
    data = chainer.datasets.TupleDataset(X, T)
    updater = chainer.training.StandardUpdater(chainer.iterators.SerialIterator(data, 12), optimizer)
    losses = []
    for _ in range(30):
        updater.update()
        with chainer.using_config('train', False), chainer.no_backprop_mode():
            losses.append(float(net(X, T).array))
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3


def test_a_frozen_trunk_stays_and_its_exits_learn():
    net = residual()
    net.freeze('trunk')
    before = weights(net.main), net.main.chain.block1.bn.avg_mean.copy()
    losses = [net.train(X, T)[0] for _ in range(20)]
    assert losses[-1][0] < losses[0][0] and losses[-1][2] == losses[0][2]
    assert same(before[0], weights(net.main))
    np.testing.assert_array_equal(before[1], net.main.chain.block1.bn.avg_mean)
    with pytest.raises(ValueError, match='trunk is frozen and cannot be trained'):
        net.train_main(X, T)
    net.thaw()
    net.train_main(X, T)
    assert not same(before[0], weights(net.main))


# Sequences, compiled and exported nets


def sequence(*end):
    np.random.seed(0)
    return chainer.Sequential(
        L.Convolution2D(3, 4, 3), F.relu, chainer.Sequential(L.Convolution2D(4, 6, 3), F.relu), *end
    )


def test_a_sequence_becomes_an_ordinary_net():
    chain = sequence(L.Linear(96, CLASSES), F.softmax)
    net = BranchyNet.from_chain(chain, {'0': heads.linear(CLASSES), '2': Branch([L.Linear(96, CLASSES)], 0.3)}, x=X)
    assert type(net) is BranchyNet and [model.weight for model in net.models] == [1.0, 0.3, 1.0]
    np.testing.assert_array_equal(net.get_SM(X)[-1], plain(chain, X).array)


def check_answers(found, net, thresholds):
    """Checks a Classification of X by what a net was made into."""
    expected = inference.classify(net, X, thresholds)
    assert set(expected.exit) == {0, 1, 2}
    np.testing.assert_array_equal(found.exit, expected.exit)
    np.testing.assert_allclose(found.prob, expected.prob, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('kind', ['sequence', 'chain'])
def test_a_net_is_exported(kind, tmp_path):
    if kind == 'chain':
        net = residual()
    else:
        branches = {'0': heads.linear(CLASSES), '2': [L.Linear(96, CLASSES)]}
        net = BranchyNet.from_chain(sequence(L.Linear(96, CLASSES)), branches, x=X)
    net.temperatures = [1.0, 2.0, 0.5]
    thresholds = [float(np.median(look.entropy)) for look in net.look(X)[:-1]]
    for name in ('net.onnx', 'folder'):
        path = str(tmp_path / name)
        export.export(net, path, X.shape[1:], thresholds)
        check_answers(export.OnnxBranchyNet(path).classify(X), net, thresholds)


@pytest.mark.onednn
def test_a_sequence_is_compiled():
    branches = {'0': heads.linear(CLASSES), '2': [L.Linear(96, CLASSES)]}
    net = BranchyNet.from_chain(sequence(L.Linear(96, CLASSES)), branches, x=X)
    thresholds = [float(np.median(look.entropy)) for look in net.look(X)[:-1]]
    check_answers(inference.Compiled(net).classify(X, thresholds), net, thresholds)


def test_paths_of_a_sequence_are_those_of_namedlinks():
    end = [L.Linear(96, 7), F.relu, L.Linear(7, CLASSES)]
    chain = sequence(*end)
    assert dict(chain.namedlinks())['/1'].b.shape == (CLASSES,)  # Chainer numbers a Sequential's links in its own way
    inner, whole = chain[2], dict(chain.namedlinks())
    (name,) = [path for path, link in whole.items() if link is inner]
    net = BranchyNet.from_chain(chain, {name + '/0': heads.linear(CLASSES), name: heads.linear(CLASSES)}, x=X)
    assert [model.endi for model in net.models] == [3, 4, 7]
    cut = BranchyNet.from_chain(sequence(*end), {'0': heads.linear(7)}, name)
    assert cut.models[-1].endi == 4
    more = BranchyNet.from_chain(sequence(), {'0': heads.linear(CLASSES)}, Branch(heads.linear(CLASSES), 0.2), x=X)
    assert more.models[-1].endi == 7 and more.models[-1].weight == 0.2


def test_a_sequence_with_an_exit_within_a_link_is_a_chain():
    chain = chainer.Sequential(Residual(), F.relu)
    net = BranchyNet.from_chain(chain, {'0/block1': heads.linear(CLASSES)}, x=X)
    np.testing.assert_array_equal(net.run_main(X), plain(chain, X).array)


# Where the logits are


def test_final_says_where_the_logits_are():
    def answers(forward, final, count=3):
        chain = dense(forward, count)
        net = BranchyNet.from_chain(chain, {'a': L.Linear(4, 4)}, final, x=ROWS)
        with chainer.using_config('train', False), Calls(chain) as calls:
            found = net.main(ROWS).array
        h = F.relu(chain.b(F.relu(chain.a(ROWS))))
        return found, (chain.b(F.relu(chain.a(ROWS))).array, F.relu(chain.c(h)).array), set(calls.count)

    def named(self, x):
        h = self.b(F.relu(self.a(x)))
        return {'b': h, 'c': F.relu(self.c(F.relu(h)))}

    found, (b, _), calls = answers(named, 'b')
    np.testing.assert_array_equal(found, b)
    assert calls == {'/a', '/b'}
    found, (_, c), _ = answers(lambda self, x: {'c': named(self, x)['c']}, None)
    np.testing.assert_array_equal(found, c)
    found, (b, _), calls = answers(lambda self, x: F.softmax(named(self, x)['b']), None)
    np.testing.assert_array_equal(found, b)
    found, (_, c), _ = answers(lambda self, x: named(self, x)['c'], [F.sigmoid, lambda y: 2 * y])
    np.testing.assert_array_equal(found, 2 * F.sigmoid(c).array)


@pytest.mark.parametrize(
    'end, words',
    [
        (lambda h: {'one': h, 'two': h}, r'a dict of 2 arrays \(one, two\): say by final='),
        (lambda h: F.softmax(2 * h), "softmax of something that is no layer's output.*final="),
        (lambda h: (h, h), 'forward gives a tuple at the end: an exit needs one Variable'),
        (lambda h: F.sum(h, axis=1), r'the last exit gives arrays of shape \(\) for a sample.*final='),
        (lambda h: F.sum(h, axis=0), r'an array of shape \(4,\) at the end for 3 samples: expected the batch first'),
    ],
)
def test_a_chain_without_logits_is_named(end, words):
    chain = dense(lambda self, x: end(F.relu(self.b(self.a(x)))), 2)
    with pytest.raises(ValueError, match=words):
        BranchyNet.from_chain(chain, {'a': L.Linear(4, 4)}, x=ROWS)


# Exits that cannot stand

HEAD = [L.Linear(4, 4)]


@pytest.mark.parametrize(
    'exits_, error, words',
    [
        ({'aa': HEAD}, ValueError, "no layer 'aa': expected a path of chain.namedlinks\\(\\), such as /a"),
        ({'': HEAD}, ValueError, "no layer ''"),
        ({1: HEAD}, ValueError, 'no layer 1'),
        ({'a': HEAD, '/a': HEAD}, ValueError, 'the layer /a has two exits: expected one'),
        ({'a': HEAD, 'b': HEAD}, ValueError, 'the exit at /a and the exit at /b share a Linear'),
        ({'a': 3}, TypeError, 'the exit at /a has 3: expected links and functions'),
        ({'a': [3]}, TypeError, 'the exit at /a has 3: expected links and functions'),
        ({}, TypeError, 'exits are {}: expected a dict'),
        ([HEAD], TypeError, r'exits are \[.*: expected a dict'),
    ],
)
def test_wrong_exits_are_named_when_the_net_is_made(exits_, error, words):
    with pytest.raises(error, match=words):
        BranchyNet.from_chain(dense(lambda self, x: self.a(x)), exits_)


def test_other_wrong_arguments_are_named():
    chain = dense(lambda self, x: self.b(self.a(x)), 2)
    with pytest.raises(TypeError, match='chain is a function: expected a chainer.Chain'):
        BranchyNet.from_chain(F.relu, {'a': HEAD})
    with pytest.raises(ValueError, match='the chain and the exit at /a share a Linear'):
        BranchyNet.from_chain(chain, {'a': [chain.b]})
    with pytest.raises(ValueError, match="no layer 'd'"):
        BranchyNet.from_chain(chain, {'a': HEAD}, final='d')
    with pytest.raises(ValueError, match='thresholdExits is .* sequence of 1'):
        BranchyNet.from_chain(chain, {'a': HEAD}, thresholdExits=[1, 2])
    with pytest.raises(ValueError, match='expected a layer before it'):
        BranchyNet.from_chain(chainer.Sequential(L.Linear(4, 4)), {'0': HEAD})
    with pytest.raises(ValueError, match='stand in the order /0, /1: give the exits in this order'):
        BranchyNet.from_chain(chainer.Sequential(L.Linear(4, 4), L.Linear(4, 4)), {'1': HEAD, '0': [L.Linear(4, 4)]})


def with_array(self, x):
    h = self.a(x)
    return self.b(h) + self.c(h).array.mean(axis=0)


def with_size(self, x):
    return F.reshape(self.c(self.b(self.a(x))), (len(x), -1))


READING = [
    (
        lambda self, x: self.b(self.a(x)),
        'c',
        'forward calls the layer /c never: an exit needs a layer that it calls once',
    ),
    (lambda self, x: self.b(self.a(self.a(x))), 'a', 'forward calls the layer /a 2 times'),
    (lambda self, x: self.c(self.b.forward(self.a(x))), 'b', 'forward calls the layer /b never.*as a link'),
    (
        lambda self, x: self.c(self.b(F.relu(self.a(x))) + x),
        'b',
        'cannot stand at /b: what comes after it also uses the input, past it; choose an earlier layer',
    ),
    (with_array, 'a', 'forward gives something else at the end when samples have left at /a'),
    (with_size, 'a', 'forward cannot go on when samples have left at /a: InvalidType.*no size or numbers of the batch'),
    (lambda self, x: self.b(self.a(x)) + np.random.randn(), 'a', 'something else at the end .*no random numbers'),
]


@pytest.mark.parametrize('forward, layer, words', READING)
def test_exits_that_cannot_stand_are_named_at_the_first_batch(forward, layer, words):
    net = BranchyNet.from_chain(dense(forward), {layer: L.Linear(4, 4)})
    before = weights(net)
    for call in (net.get_SM, net.run, lambda x: net.train(x, T[:6] % 4)):
        with pytest.raises(ValueError, match=words):
            call(ROWS)
    assert same(before, weights(net))


def test_skip_connections_past_an_exit_are_refused_by_name():
    with pytest.raises(
        ValueError,
        match='an exit cannot stand at /block1/conv: what comes after it also uses the output of /stem, past it; the '
        'next layer that can have an exit is /block1$',
    ):
        BranchyNet.from_chain(Residual(), {'block1/conv': heads.linear(CLASSES)}, x=X)


@pytest.mark.parametrize('link, words', [(lambda h: None, 'a NoneType'), (lambda h: h.array, 'a ndarray')])
def test_an_exit_that_gives_no_variable_is_named(link, words):
    with pytest.raises(ValueError, match=f'the exit at /block1 gives {words}: expected a Variable; branchynet.heads'):
        BranchyNet.from_chain(Residual(), {'block1': link}, x=X)


@pytest.mark.onednn
def test_samples_that_forward_cannot_take_are_named_in_one_line():
    net = residual()  # which has read other samples
    for call in (
        lambda x: BranchyNet.from_chain(Residual(), {'block1': heads.linear(CLASSES)}, x=x),
        net.run,
        net.run_main,
        net.get_SM,
        lambda x: inference.classify(inference.Compiled(net), x, 0.5),
    ):
        with pytest.raises(ValueError, match=r'forward cannot take samples of shape \(2, .*got 2 != 3$') as caught:
            call(X[:, :2])
        assert '\n' not in str(caught.value)


def test_an_exit_in_a_sequence_has_the_classes_of_the_others():
    chain, exits = chainer.Sequential(L.Linear(4, 4), L.Linear(4, 3)), {'0': L.Linear(4, 5)}
    words = r'exit 1 gives logits of shape \(3,\) for a sample, exit 0 \(5,\): expected'
    with pytest.raises(ValueError, match=words):
        BranchyNet.from_chain(chain, exits, x=ROWS)
    with pytest.raises(ValueError, match=words):
        BranchyNet.from_chain(chain.copy('copy'), {'0': L.Linear(4, 5)}, thresholdExits=0.0).run(ROWS)


def test_a_link_without_layers_can_have_no_exit():
    with pytest.raises(ValueError, match='the chain is a Linear without layers: no exit can stand in it'):
        BranchyNet.from_chain(L.Linear(4, 4), {'a': HEAD})


def test_exits_stand_in_the_order_of_the_calls():
    words = 'forward calls the layers in the order /block1, /block2: give the exits, and final, in this order'
    for branches, final in [({'block2': heads.linear(5), 'block1': heads.linear(5)}, None), (['block2'], 'block1')]:
        branches = branches if isinstance(branches, dict) else {branches[0]: heads.linear(5)}
        with pytest.raises(ValueError, match=words):
            BranchyNet.from_chain(Residual(), branches, final, x=X)


@pytest.mark.parametrize(
    'links, words',
    [
        ([L.Linear(7, CLASSES)], r'the exit at /block1 cannot take features of shape \(6, 8, 8\): .*384 != 7'),
        (heads.linear(3), r'the exit at /block1 gives arrays of shape \(3,\) for a sample, the last exit \(5,\)'),
        (F.relu, r'the exit at /block1 gives arrays of shape \(6, 8, 8\)'),
        (lambda x: 1 / 0, r'the exit at /block1 cannot take features .*ZeroDivisionError'),
    ],
)
def test_heads_that_do_not_fit_are_named(links, words):
    suggestion = r'[:;] branchynet.heads.suggest\(\(6, 8, 8\), 5\) makes links that fit'
    with pytest.raises(ValueError, match=words + '.*' + suggestion):
        BranchyNet.from_chain(Residual(), {'block1': links}, x=X)


def test_images_that_are_too_small_are_named():
    def from_chain(x):
        chain = function(lambda self, x: self.b(self.a(x)), L.Convolution2D(3, 4, 3), L.Linear(None, CLASSES))
        return BranchyNet.from_chain(chain, {'a': heads.linear(CLASSES)}, x=x)

    words = r'forward cannot take samples of shape \(3, 1, 1\) and dtype float32: .*output should be positive'
    with pytest.raises(ValueError, match=words):
        from_chain(X[:, :, :1, :1])
    net = from_chain(X)
    with pytest.raises(ValueError, match=words):
        net.get_SM(X[:, :, :1, :1])


class Loss(chainer.Chain):
    """Called as in Chainer 1, with labels."""

    def __call__(self, x, t):
        return F.softmax_cross_entropy(x, t)


@pytest.mark.parametrize(
    'chain, words',
    [
        (
            L.Classifier(L.Linear(4, 3)),
            '^chain is a Classifier, which returns a loss: give its network, chain.predictor$',
        ),
        (Loss(), r'^Loss.__call__\(x, t\) does not take one array: expected x \(B, ...\) alone, and logits$'),
        (L.Bilinear(2, 2, 2), r'^Bilinear.forward\(e1, e2\) does not take one array: expected x'),
    ],
    ids=['a Classifier', 'with labels', 'two inputs'],
)
def test_chains_that_do_not_take_one_array_are_named(chain, words):
    with pytest.raises(TypeError, match=words):
        BranchyNet.from_chain(chain, {'a': heads.linear(3)}, x=ROWS)


def test_last_links_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r'link 0 \(Linear\) cannot take an array of shape \(3, 5\) .*5 != 7'):
        BranchyNet.from_chain(Residual(), {'block1': heads.linear(3)}, final=[L.Linear(7, 3)], x=X)


def test_a_pass_has_no_stage_after_its_last():
    stage = residual().one_pass()
    h = X
    for k in range(3):
        h = stage(k, h)
    with pytest.raises(ValueError, match='stage 3 of a pass is called after its last stage, 2'):
        stage(3, h)


class Auxiliary(Residual):
    """Also returns the features, in training mode; one of its layers is never called."""

    def __init__(self):
        super().__init__()
        with self.init_scope():
            self.unused = L.Linear(None, CLASSES)

    def forward(self, x):
        y = super().forward(x)
        return (y, x) if chainer.config.train else y


def test_a_forward_that_returns_more_than_logits_in_training_is_named():
    net = BranchyNet.from_chain(Auxiliary(), {'block1': heads.linear(CLASSES)}, x=X)
    with pytest.raises(ValueError, match='^forward returns a tuple in training mode: expected the logits, an array$'):
        net.train(X, T)


@pytest.mark.onednn
def test_a_layer_that_is_never_called_needs_no_shape(tmp_path):
    net = BranchyNet.from_chain(Auxiliary(), {'block1': heads.linear(CLASSES)}, x=X)
    expected = inference.classify(net, X, 1.0).prob
    np.testing.assert_allclose(inference.Compiled(net).classify(X, 1.0).prob, expected, atol=1e-5)
    path = str(tmp_path / 'net.onnx')
    export.export(net, path, X.shape[1:], 1.0)
    np.testing.assert_allclose(export.OnnxBranchyNet(path).classify(X, 1.0).prob, expected, atol=1e-4)


def test_a_forward_that_differs_in_training_mode_is_noticed():
    def forward(self, x):
        h = self.a(x) if twice else x
        return self.b(h if skip else self.a(h))

    twice = skip = False
    net = BranchyNet.from_chain(dense(forward), {'a': L.Linear(4, 4)}, x=ROWS)
    twice = True
    with pytest.raises(ValueError, match='forward calls the layer /a again: layers with exits must be called once'):
        net.train(ROWS, T[:6] % 4)
    twice, skip = False, True
    with pytest.raises(ValueError, match='forward ends without a call of the layer /a, which has an exit'):
        net.train(ROWS, T[:6] % 4)


def test_features_that_are_no_variable_are_named():
    class Two(L.Linear):
        def forward(self, x):
            return super().forward(x), x

    chain = function(lambda self, x: self.b(self.a(x)[0]), Two(4, 4), L.Linear(4, 4))
    with pytest.raises(ValueError, match='forward gives a tuple at /a: an exit needs one Variable'):
        BranchyNet.from_chain(chain, {'a': L.Linear(4, 4)}, x=ROWS)


def test_the_last_exit_has_no_links_of_its_own():
    with pytest.raises(ValueError, match='exit 2 is the end of the chain and has no links of its own: call train_main'):
        residual().train_branch(2, X, T)


def test_a_single_sample_is_enough_to_read_a_chain():
    net = BranchyNet.from_chain(Residual(), {'block1': heads.linear(CLASSES)}, x=X[:1])
    assert net.main.is_read
    with pytest.raises(ValueError, match='something else'):
        BranchyNet.from_chain(dense(with_array), {'a': L.Linear(4, 4)}, x=ROWS[:1])


# Compiled chains and documentation


@pytest.mark.onednn
def test_a_compiled_chain_answers_as_the_net_did():
    net = residual()
    net.temperatures = [1.0, 2.0, 0.5]
    x = np.concatenate([X] * 3)  # more than are classified together
    thresholds = [float(np.median(look.entropy)) for look in net.look(X)[:-1]]
    expected, looks, last = inference.classify(net, x, thresholds), net.look(x), net.run_main(x)
    compiled = inference.Compiled(net)
    net.train(X, T)
    assert set(expected.exit) == {0, 1, 2}
    for other in (compiled, pickle.loads(pickle.dumps(compiled))):
        found = other.classify(x, thresholds)
        np.testing.assert_array_equal(found.exit, expected.exit)
        np.testing.assert_allclose(found.prob, expected.prob, rtol=1e-4, atol=1e-6)
        for one, look in zip(other.look(x), looks):
            np.testing.assert_allclose(one.prob, look.prob, rtol=1e-4, atol=1e-6)
    compiled.thresholdExits = thresholds
    counts = [compiled.test(x[i : i + 1], np.tile(T, 3)[i : i + 1])[2] for i in range(24)]
    assert np.sum(counts, axis=0).tolist() == np.bincount(expected.exit[:24]).tolist()
    assert compiled.test_main(x, last.argmax(axis=1).astype(np.int32))[0] == 1.0
    assert compiled.test_main(x[:1], last[:1].argmax(axis=1).astype(np.int32))[0] == 1.0
    for label, bad, message in (
        (0, X[:1] * np.nan, 'x holds NaN or infinity'),
        (CLASSES, X[:1], 't holds the label 5: expected less than 5'),
    ):
        with pytest.raises(ValueError, match=f'^{message}'):
            compiled.test(bad, np.array([label], np.int32))


def test_the_page_runs(capsys):
    with open(os.path.join(os.path.dirname(__file__), '..', 'docs', 'chains.md'), encoding='utf-8') as f:
        snippets = re.findall(r'```python\n(.*?)```', f.read(), re.DOTALL)
    assert len(snippets) == 2
    np.random.seed(0)
    exec('\n'.join(snippets), {'__name__': 'page'})
    accuracy, share = map(float, capsys.readouterr().out.split())
    assert accuracy > 0.9 and 0.3 < share < 1


# Real images


@needs_cifar10
@pytest.mark.slow
def test_a_network_of_ones_own_learns_cifar10(tmp_path):
    x_train, y_train, x_test, y_test = (array[:1280] for array in cifar10.get_data(whitening=0))
    np.random.seed(0)

    def make():
        branches = {'block1': heads.conv(10), 'block2': heads.linear(10)}
        return BranchyNet.from_chain(Residual(8, 10), branches, x=x_train[:1], alpha=0.003)

    with cpu.fast():
        net = make()
        losses = [net.train(x_train[i : i + 32], y_train[i : i + 32])[0] for _ in range(2) for i in range(0, 1280, 32)]
        first, last = np.mean(losses[:5], axis=0), np.mean(losses[-5:], axis=0)
        assert (last < first - 0.2).all()

        net.thresholdExits = net.find_thresholds(x_train[:256], percentTrainKeeps=0.5)
        accuracy, _, counts, _ = net.test(x_test, y_test)
        assert accuracy > 0.2 and min(counts) > 0
        chainer.serializers.save_npz(tmp_path / 'net.npz', net)
        resumed = make()
        chainer.serializers.load_npz(tmp_path / 'net.npz', resumed)
        np.testing.assert_array_equal(resumed.run(x_test), net.run(x_test))


@pytest.mark.parametrize('softmax', [functools.partial(F.softmax, axis=1), lambda h: F.softmax(h)])
def test_a_softmax_at_the_end_of_a_sequence_is_seen_whatever_it_is_called(softmax):
    np.random.seed(0)
    x, t = np.random.rand(20, 4).astype(np.float32), np.random.randint(0, 3, 20).astype(np.int32)
    logits = chainer.Sequential(L.Linear(4, 8), F.relu, L.Linear(8, 3))
    expected = logits(x).array
    net = BranchyNet.from_chain(chainer.Sequential(*logits, softmax), {'0': [F.relu, L.Linear(8, 3)]}, x=x)
    np.testing.assert_allclose(net.look(x)[-1].logits, expected, atol=1e-6)
    net.train(x, t)


def test_the_last_exit_of_a_chain_cannot_be_frozen_by_itself():
    class Chain(chainer.Chain):
        def __init__(self):
            super().__init__()
            with self.init_scope():
                self.a, self.b = L.Linear(4, 8), L.Linear(8, 3)

        def forward(self, x):
            return self.b(F.relu(self.a(x)))

    net = BranchyNet.from_chain(Chain(), {'a': [F.relu, L.Linear(8, 3)]})
    with pytest.raises(ValueError, match="exit 1 is the end of the chain and has no links of its own: name 'trunk'"):
        net.freeze(1)
    net.freeze('exits')


@pytest.mark.onednn
def test_a_sequence_that_ends_with_a_function_stays_a_list_of_links():
    """Its weights' paths, copies and Compiled are those of an ordinary net."""
    np.random.seed(0)
    x = np.random.rand(6, 4).astype(np.float32)
    sequence = chainer.Sequential(L.Linear(4, 8), F.relu, L.Linear(8, 3), lambda h: h * 2)
    net = BranchyNet.from_chain(sequence, {'0': [F.relu, L.Linear(8, 3)]}, x=x)
    assert '/main/0/W' in dict(net.namedparams())
    np.testing.assert_allclose(copy.deepcopy(net).look(x)[-1].logits, sequence(x).array, atol=1e-6)
    np.testing.assert_allclose(inference.Compiled(net).look(x)[-1].logits, sequence(x).array, atol=1e-6)


def test_a_layer_that_defines_call_is_told_to_name_it_forward():
    class Old(L.Linear):
        def __call__(self, x):
            return F.relu(self.forward(x))

    class Chain(chainer.Chain):
        def __init__(self):
            super().__init__()
            with self.init_scope():
                self.a, self.b = Old(4, 8), L.Linear(8, 3)

        def forward(self, x):
            return self.b(self.a(x))

    net = BranchyNet.from_chain(Chain(), {'a': [L.Linear(8, 3)]})
    with pytest.raises(
        ValueError, match='the layer /a defines __call__, so that Chainer does not see its calls: name it'
    ):
        net.look(np.zeros((2, 4), np.float32))


# Files


def small_chain(**settings):
    np.random.seed(0)
    exits = settings.pop('exits', {'block1': heads.linear(CLASSES)})
    return BranchyNet.from_chain(Residual(), exits, x=X[:3], **settings)


def test_frozen_exits_are_restored(tmp_path):
    path, net, new = str(tmp_path / 'checkpoint.npz'), small_chain(), small_chain()
    net.freeze('exits')
    assert net.frozen == {0}  # the last exit has no links of its own
    net.train(X, T)
    checkpoint.save(path, net, {})
    for one in net, new:
        checkpoint.load(path, one)  # with the generators that dropout draws from
        assert one.frozen == {0}
        one.train(X, T)
    assert same(weights(net), weights(new))
    for method in new.freeze, new.thaw:
        with pytest.raises(
            ValueError, match="exit 1 is the end of the chain and has no links of its own: name 'trunk'"
        ):
            method(1)


def test_weights_of_exits_at_other_layers_are_refused(tmp_path):
    path, net = str(tmp_path / 'net.npz'), small_chain()
    chainer.serializers.save_npz(path, net)
    other = small_chain(exits={'stem': heads.linear(CLASSES)})  # whose output has the shape of block1's
    before = weights(other)
    message = 'the file is of a net with exits at /?block1, and this one has them at /?stem'
    for load in chainer.serializers.load_npz, checkpoint.load_npz:
        with pytest.raises(OSError, match=message):
            load(path, other)
        assert same(weights(other), before)


@pytest.mark.parametrize('strict', [True, False])
def test_weights_of_a_file_that_names_no_layers_are_loaded(strict, tmp_path):
    path, net, new = str(tmp_path / 'net.npz'), small_chain(), small_chain()
    net.train(X, T)
    chainer.serializers.save_npz(path, net)
    with np.load(path) as arrays:
        np.savez(path, **{name: array for name, array in arrays.items() if name != 'layers'})
    for load in functools.partial(chainer.serializers.load_npz, strict=strict), checkpoint.load_npz:
        new = small_chain()
        load(path, new)
        assert same(weights(new), weights(net))


def test_the_hash_of_a_net_is_that_of_its_weights(monkeypatch):
    net = small_chain()
    named = provenance.sha256_of_net(net)
    monkeypatch.setattr(type(net), 'serialize', BranchyNet.serialize)  # as of earlier versions
    assert provenance.sha256_of_net(net) == named


def test_main_is_copied_once_the_chain_was_read():
    net = BranchyNet.from_chain(Residual(), {'block1': heads.linear(CLASSES)})
    with pytest.raises(ValueError, match='the chain was not read yet: run a batch first'):
        net.copy_main()
    net.get_SM(X)
    net.copy_main()
    net.train_main_copy(X, T)


def test_a_chain_of_two_dtypes_takes_samples_of_its_first_layers():
    np.random.seed(0)
    with chainer.using_config('dtype', chainer.mixed16):
        net = BranchyNet.from_chain(Residual(), {'block1': heads.linear(CLASSES)})
        assert net.get_SM(X.astype(np.float16))[0].shape == (len(X), CLASSES)
        with pytest.raises(TypeError, match='x has dtype float64: expected float16 or float32'):
            net.get_SM(X.astype(float))
