"""Training without Chainer's graph gives the bits of training with it."""

import copy
import math
import pickle

from branchynet import cpu, inference
from branchynet.cpu import install, tape
from branchynet.cpu.tape import Tapes
from branchynet.links.links import FL, Branch, X, shortcut
from branchynet.links.resnet import ResBlock, batch_norm, conv
from branchynet.net import BranchyNet
from branchynet.networks import alex_cifar10, lenet_mnist

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


class Counting(chainer.FunctionHook):
    """Counts the functions of Chainer's that run."""

    name = 'counting'

    def __init__(self):
        self.count = 0

    def forward_preprocess(self, function, in_data):
        self.count += 1


def states(net):
    """All parameters and running statistics."""
    found = {path: param.array for path, param in net.namedparams()}
    for path, link in net.namedlinks():
        found.update({f'{path}/{name}': getattr(link, name) for name in ('avg_mean', 'avg_var') if hasattr(link, name)})
    return {path: array.copy() for path, array in found.items() if array is not None}


def trained(make, x, t, graph, main=False):
    """(results, states, random numbers left) of a net that is trained by a step for each batch."""
    np.random.seed(0)
    net = make()
    if graph:
        net._tapes.fit = lambda links, x: False
    step = net.train_main if main else net.train
    results = [step(*batch) for batch in zip(x, t)]
    return results, states(net), np.random.rand()


def check(make, shape, main=False, batch=6, steps=3):
    random = np.random.RandomState(1)
    x = random.rand(steps, batch, *shape).astype(np.float32)
    t = random.randint(0, 10, (steps, batch)).astype(np.int32)
    (results, ours, left), (expected, theirs, also_left) = (trained(make, x, t, graph, main) for graph in (False, True))
    np.testing.assert_equal(results, expected)
    assert ours.keys() == theirs.keys()
    for path in ours:
        np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)
    assert left == also_left


def residual_net():
    return BranchyNet(
        [
            conv(3, 8, 3),
            batch_norm(8),
            FL(F.relu),
            Branch([L.Convolution2D(8, 6, 3), FL(F.relu), L.Linear(None, 10)], 0.3),
            ResBlock(8, 8),
            ResBlock(8, 8),
            Branch([ResBlock(8, 8), L.Linear(None, 10)]),  # four gradients meet before this exit
            ResBlock(8, 16, 2),
            Branch([FL(F.average_pooling_2d, 3), L.Linear(None, 10)]),
            ResBlock(16, 16),
            Branch([L.Linear(None, 10)]),
        ],
        opt='MomentumSGD',
    )


@pytest.mark.parametrize('kernels', [False, pytest.param(True, marks=pytest.mark.onednn)])
@pytest.mark.parametrize('main', [False, True])
@pytest.mark.parametrize(
    ('make', 'shape'),
    [
        (lenet_mnist.get_network, (1, 28, 28)),
        (alex_cifar10.get_network, (3, 32, 32)),
        (residual_net, (3, 12, 12)),
        (lambda: alex_cifar10.get_network(opt='MomentumSGD', joint=False), (3, 32, 32)),
    ],
    ids=['lenet', 'alexnet', 'residual', 'not_joint'],
)
def test_bits_are_those_of_chainers_graph(make, shape, main, kernels):
    if not kernels:
        check(make, shape, main)
        return
    with cpu.fast():
        check(make, shape, main)


LINKS = {
    'convolution': lambda: L.Convolution2D(6, 6, 3, pad=1),
    'without bias': lambda: L.Convolution2D(6, 6, 3, pad=1, nobias=True),
    'dilated': lambda: L.Convolution2D(6, 6, 3, pad=2, dilate=2),
    'normalization': lambda: L.BatchNormalization(6),
    'without gamma': lambda: L.BatchNormalization(6, use_gamma=False),
    'relu': lambda: FL(F.relu),
    'sigmoid': lambda: FL(F.sigmoid),  # is called in Chainer
    'dropout': lambda: FL(F.dropout, 0.4),
    'maximum': lambda: FL(F.max_pooling_2d, 3, stride=1, pad=1),
    'average': lambda: FL(F.average_pooling_2d, 3, 1, 1),
    'local response': lambda: FL(F.local_response_normalization, n=3),
    'block': lambda: ResBlock(6, 6),
    'residual': lambda: X([L.Convolution2D(6, 6, 3, pad=1)]),
}


@pytest.mark.onednn
@settings(max_examples=15, deadline=None)
@given(
    parts=st.lists(st.tuples(st.lists(st.sampled_from(sorted(LINKS)), max_size=3), st.booleans()), max_size=3),
    joint=st.booleans(),
)
def test_any_links_in_any_order(parts, joint):
    def make():
        network = [L.Convolution2D(3, 6, 3, pad=1)]
        for names, is_exit in parts:
            network += [LINKS[name]() for name in names]
            if is_exit:
                network.append(Branch([*(LINKS[name]() for name in names[::-1]), L.Linear(None, 10)], 0.7))
        return BranchyNet([*network, Branch([L.Linear(None, 10)])], joint=joint)

    with cpu.fast():
        check(make, (3, 6, 6), batch=3)


def lenet_after_a_step():
    np.random.seed(0)
    net = lenet_mnist.get_network()
    x = np.random.rand(4, 1, 28, 28).astype(np.float32)
    t = np.arange(4, dtype=np.int32)
    net.train(x, t)
    return net, x, t


@pytest.mark.onednn
def test_the_second_step_needs_no_graph():
    net, x, t = lenet_after_a_step()
    calls = []
    apply = chainer.FunctionNode.apply
    chainer.FunctionNode.apply = lambda self, inputs: calls.append(self) or apply(self, inputs)
    try:
        with cpu.fast():
            net.train(x, t)
    finally:
        chainer.FunctionNode.apply = apply
    assert calls == []


def test_who_looks_at_functions_or_links_sees_them():
    net, x, t = lenet_after_a_step()
    with Counting() as hook:
        net.train(x, t)
    assert hook.count > 20
    seen = []

    class Hook(chainer.LinkHook):
        name = 'seeing'

        def forward_preprocess(self, args):
            seen.append(args.link)

    with Hook():
        net.train(x, t)
    assert net.main[0] in seen
    seen.clear()
    net.main[0].add_hook(Hook())
    net.train(x, t)
    assert seen == [net.main[0]]


def test_another_shape_is_checked_by_chainer():
    net, _, t = lenet_after_a_step()
    with pytest.raises(ValueError, match='cannot take an array of shape'):
        net.train(np.zeros((4, 2, 28, 28), np.float32), t)


def test_a_label_beyond_the_classes_changes_nothing():
    net, x, t = lenet_after_a_step()
    before = states(net)
    with pytest.raises(ValueError, match='t holds the label 10: expected less than 10'):
        net.train(x, t + 7)
    np.testing.assert_equal(states(net), before)


def test_a_link_that_occurs_twice_is_left_to_chainer():
    shared = L.Convolution2D(4, 4, 3, pad=1)

    links = [L.Convolution2D(1, 4, 3, pad=1), shared, FL(F.relu), shared]
    x, tapes = np.zeros((2, 1, 6, 6), np.float32), Tapes()
    with chainer.using_config('train', True):
        tapes.add(links, x)
        assert not tapes.fit(links, x)
        tapes.add(links[:3], x)
        assert tapes.fit(links[:3], x)


class Scaled:
    """A function of a user's own, which has no hash."""

    __hash__ = None

    def __call__(self, x):
        return x * 2


@pytest.mark.parametrize('place', ['trunk', 'head'])
def test_a_function_without_a_hash_is_called_as_it_is(place):
    np.random.seed(0)
    own = FL(Scaled())
    head = [own, L.Linear(20, 10)] if place == 'head' else [L.Linear(20, 10)]
    trunk = [own] if place == 'trunk' else []
    net = BranchyNet([L.Linear(20, 20), *trunk, Branch(head), FL(F.relu), Branch([L.Linear(20, 10)])])
    x, t = np.ones((4, 20), np.float32), np.zeros(4, np.int32)
    net.training()
    for _ in range(3):
        net.train(x, t)
    net.testing()
    result = inference.classify(net, x, [math.inf])
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        first = net.models[0](x).array
    assert not result.exit.any()
    np.testing.assert_array_equal(result.prob, F.softmax(first).array)


def test_samples_that_training_drops_are_left_to_chainer():
    random = np.random.RandomState(0)
    x, t = random.rand(3, 8, 1, 28, 28).astype(np.float32), random.randint(0, 10, (3, 8)).astype(np.int32)
    ours, theirs = (
        trained(lambda: lenet_mnist.get_network(percentTrainKeeps=0.5), x, t, graph)[1] for graph in (False, True)
    )
    np.testing.assert_equal(ours, theirs)


def test_strides_may_be_lists():
    link = L.Convolution2D(6, 6, 3, stride=[1, 1], pad=[1, 1])
    x = np.random.RandomState(0).rand(4, 6, 8, 8).astype(np.float32)
    with cpu.fast():
        np.testing.assert_array_equal(tape.forward([link], tape.Value(x)).array, link(x).array)


@pytest.mark.onednn
def test_a_bias_of_another_size_is_named_by_chainer():
    link = L.Convolution2D(6, 8, 3)
    link.b.array = np.zeros(3, np.float32)
    with cpu.fast(), pytest.raises(chainer.utils.type_check.InvalidType):
        tape.forward([link], tape.Value(np.zeros((2, 6, 8, 8), np.float32)))


def test_without_onednn_the_graph_is_not_needed_either(monkeypatch):
    def fail():
        raise OSError('not installed')

    monkeypatch.setattr(install, '_kernels', {})
    monkeypatch.setattr(install.onednn, 'library', fail)
    with pytest.warns(UserWarning, match='oneDNN does not load'), cpu.fast():
        check(residual_net, (3, 12, 12))


def test_copies_go_on_to_the_same_bits():
    net, x, t = lenet_after_a_step()
    copies = copy.deepcopy(net), pickle.loads(pickle.dumps(net))
    net.train(x, t)
    for other in copies:
        other.train(x, t)
        np.testing.assert_equal(states(other), states(net))


@pytest.mark.onednn
@pytest.mark.parametrize('channels', [3, 6])  # with channels of zeros in front, and without
@pytest.mark.parametrize('size', [4, 5])
def test_a_shortcut_has_the_bits_and_the_rank_of_chainers(channels, size):
    random, special = np.random.RandomState(0), np.float32([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-42, 3e38, -1])
    given = random.choice(special, (2, channels, size, size))
    gy = random.choice(special, (2, 6, (size + 1) // 2, (size + 1) // 2))

    def outcome(step):
        x = tape.Value(given, [], lambda gx: [])
        y = value = step(x)
        gradient = gy
        while value is not x:
            (gradient,), (value,) = value.back(gradient), value.inputs
        return y.rank, y.array.tobytes(), gradient.tobytes()

    link = FL(shortcut, gy.shape)
    with cpu.fast():
        assert outcome(lambda x: tape._shortcut(x, gy.shape)) == outcome(lambda x: tape._call_in_chainer(link, x))
