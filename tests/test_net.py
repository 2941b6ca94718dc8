"""The joint step, inference and the Chain that BranchyNet is."""

import copy
import math
import pickle

import branchynet
from branchynet import inference
from branchynet.cpu import tape
from branchynet.functions import entropy
from branchynet.links.links import FL, Branch
from branchynet.links.resnet import ResBlock
from branchynet.net import BranchyNet

import chainer
import chainer.functions as F
import chainer.links as L
import dill
import numpy as np
import pytest
from chainer.link_hooks import TimerHook
from helpers import same, small_data, small_net, weights

X, T = small_data()


def own(net, k):
    """Parameters of exit k's own links."""
    model = net.models[k]
    return [p for link in model[model.endi :] for p in link.params()]


def trunk(net):
    last = net.models[-1]
    return [p for link in last[: last.endi] for p in link.params()]


def head(net):
    return [p for link in net.main[net.models[-1].endi :] for p in link.params()]


def moved(net, action):
    """Which of main's head, the trunk and the exits' own links an action moved."""
    groups = {'head': head(net), 'trunk': trunk(net)}
    groups.update((f'exit{k}', own(net, k)) for k in range(net.numexits()))
    before = {name: [p.array.copy() for p in params] for name, params in groups.items()}
    action()
    return {
        name
        for name, params in groups.items()
        if any(not np.array_equal(p.array, old) for p, old in zip(params, before[name]))
    }


def gradients(net, expected_loss):
    """Gradients by path after the net's joint step, and those of expected_loss(net)."""
    chainer.config.train = True
    for optimizer in [net.optimizer, *net.optimizers]:
        optimizer.update = lambda: None
    net.train(X, T)
    found = {path: p.grad for path, p in net.namedparams()}
    net.cleargrads()
    expected_loss(net).backward()
    return found, {path: p.grad for path, p in net.namedparams()}


def exit_loss(net, k, rows=slice(None)):
    return F.softmax_cross_entropy(net.models[k](X[rows]), T[rows])


def check_gradients(net, expected_loss):
    found, expected = gradients(net, expected_loss)
    for path in expected:
        if expected[path] is None:
            assert found[path] is None or not found[path].any(), path
        else:
            np.testing.assert_allclose(found[path], expected[path], rtol=1e-4, atol=1e-6, err_msg=path)


# Structure


def test_models_share_the_trunk_and_main_has_its_own_head():
    net = small_net()
    for model in net.models:
        assert [id(link) for link in model[: model.endi]] == [id(link) for link in net.main[: model.endi]]
    assert [(m.starti, m.endi) for m in net.models] == [(0, 2), (2, 4), (4, 6)]
    final, main_head = net.models[-1][6], net.main[6]
    assert final is not main_head
    np.testing.assert_array_equal(final.W.array, main_head.W.array)


def test_namedparams_hold_every_parameter_once():
    net = small_net()
    params = dict(net.namedparams())
    assert len({id(p) for p in params.values()}) == len(params) == len(list(net.params()))
    assert {'/main/0/W', '/main/6/b', '/models/0/2/W', '/models/1/6/b', '/models/2/6/W'} <= params.keys()
    assert {path for path, _ in net.models[1].namedparams()} == {
        '/0/W',
        '/0/b',
        '/2/W',
        '/2/b',
        '/4/W',
        '/4/b',
        '/6/W',
        '/6/b',
    }
    assert len(list(net.links())) == len(set(map(id, net.links())))


@pytest.mark.parametrize(
    'network, error, words',
    [
        ([L.Linear(4, 3)], ValueError, 'network ends with a Linear: its last element must be a Branch, the final exit'),
        ([], ValueError, 'network is empty: its last element must be a Branch, the final exit'),
        ([F.relu, branchynet.Branch([])], TypeError, r'network\[0\] is <function relu.*FL makes one'),
    ],
)
def test_bad_networks_are_named(network, error, words):
    with pytest.raises(error, match=words):
        branchynet.BranchyNet(network)


def test_unknown_optimiser_is_named():
    with pytest.raises(ValueError, match="opt is 'SGD': expected 'Adam' or 'MomentumSGD'"):
        small_net(opt='SGD')


# Training


def test_each_step_trains_its_own_links():
    net = small_net()
    assert moved(net, lambda: net.train_main(X, T)) == {'head', 'trunk'}
    net = small_net()
    assert moved(net, lambda: net.train_branch(1, X, T)) == {'exit1'}
    # Without moments from a main phase, zero gradients leave main's head where it is.
    assert moved(net, lambda: net.train(X, T)) == {'trunk', 'exit0', 'exit1', 'exit2'}


def test_joint_gradient_is_the_weighted_sum():
    net = small_net()
    net.models[0].weight, net.models[2].weight = 0.3, 2.0
    check_gradients(net, lambda n: 0.3 * exit_loss(n, 0) + exit_loss(n, 1) + 2 * exit_loss(n, 2))


def test_reported_losses_are_unweighted():
    one, other = small_net(), small_net()
    other.models[0].weight = 5.0
    assert one.train(X, T) == other.train(X, T)


def test_without_joint_only_the_last_exit_trains_the_trunk():
    net = small_net(joint=False)
    found, _ = gradients(net, lambda n: exit_loss(n, 2))
    net.cleargrads()
    exit_loss(net, 2).backward()
    for p, (path, _) in zip(trunk(net), net.main.namedparams()):
        np.testing.assert_allclose(found['/main' + path], p.grad, rtol=1e-5, atol=1e-7)
    assert all(found[f'/models/{k}/{link}/W'].any() for k, link in ((0, 2), (1, 4), (2, 6)))


def test_forward_main_takes_the_last_exits_place_in_the_trunk():
    net = small_net()
    net.forwardMain = True

    def expected(n):
        last = F.softmax_cross_entropy(n.exit(2, n.main(X, endi=6).array), T)
        return exit_loss(n, 0) + exit_loss(n, 1) + last + F.softmax_cross_entropy(n.main(X), T)

    check_gradients(net, expected)
    assert len(net.train(X, T)[0]) == 3
    alone = small_net(joint=False)
    alone.forwardMain = True
    found, _ = gradients(alone, lambda n: F.softmax_cross_entropy(n.main(X), T))
    main_gradient = {path: p.grad for path, p in alone.main.namedparams()}
    for path, grad in main_gradient.items():
        np.testing.assert_allclose(found['/main' + path], grad, rtol=1e-5, atol=1e-7)


def test_thresholds_drop_samples_for_later_exits():
    net = small_net()
    ent = entropy(F.softmax(net.models[0](X)))
    threshold = float(np.median(ent))
    stay = np.flatnonzero(ent >= np.float32(threshold))
    net.thresholdExits = [threshold, 0.0]
    check_gradients(net, lambda n: exit_loss(n, 0) + exit_loss(n, 1, stay) + exit_loss(n, 2, stay))
    assert 0 < len(stay) < len(X)


@pytest.mark.parametrize(
    'setting, kept',
    [
        ({'percentTrainKeeps': 0.5}, [32, 16, 8]),
        ({'percentTrainKeeps': [0.75, 0.5]}, [32, 24, 16]),  # a list counts in the whole batch
        ({'percentTrainExits': 0.25}, [32, 24, 18]),
        ({'percentTrainExits': [0.25, 0.5]}, [32, 24, 8]),
        ({'percentTrainExits': 1.0}, [32, 0, 0]),
        ({'thresholdExits': 5.0}, [32, 0, 0]),
    ],
)
def test_number_of_samples_carried_on(setting, kept, monkeypatch):
    net = small_net()
    for name, value in setting.items():
        setattr(net, name, value)
    seen = [0, 0, 0]
    exit_of = branchynet.BranchyNet.exit

    def recording(self, k, h):
        seen[k] = len(h)
        return exit_of(self, k, h)

    monkeypatch.setattr(branchynet.BranchyNet, 'exit', recording)
    net.train(X, T)
    assert seen == kept


def test_exits_that_no_sample_reaches_report_zero_and_still_update():
    net = small_net()
    net.train(X, T)
    net.thresholdExits = 5.0
    losses, accuracies = net.train(X, T)
    assert losses[1:] == [0, 0] and accuracies[1:] == [0, 0] and losses[0] > 0
    assert moved(net, lambda: net.train(X, T)) == {'trunk', 'exit0', 'exit1', 'exit2'}


def test_learned_thresholds_are_the_highest_entropies_dropped():
    net = small_net(percentTrainKeeps=0.5)
    assert all(map(math.isnan, net.getLearnedExitsThresholds()))
    ent = np.sort(entropy(F.softmax(net.models[0](X))))
    net.train(X, T)
    assert net.getLearnedExitsThresholds()[0] == pytest.approx(ent[15], abs=1e-6)
    net.clearLearnedExitsThresholds()
    assert all(map(math.isnan, net.getLearnedExitsThresholds()))


def test_optimisers_are_the_published_ones():
    net = small_net(alpha=0.01)
    assert net.optimizer.alpha == 0.01 and all(o.alpha == 0.001 for o in net.optimizers)
    net = small_net(opt='MomentumSGD', lr=0.2, momentum=0.5, weight_decay=0.01)
    assert (net.optimizer.lr, net.optimizer.momentum) == (0.2, 0.5)
    assert all((o.lr, o.momentum) == (0.2, 0.9) for o in net.optimizers)
    before = weights(net)['/models/0/2/W']
    net.cleargrads()
    exit_loss(net, 0).backward()
    gradient = net.models[0][2].W.grad.copy()
    net.train(X, T)
    np.testing.assert_allclose(weights(net)['/models/0/2/W'], before - 0.2 * (gradient + 0.01 * before), rtol=1e-4)


def test_the_copy_of_main_learns_alone():
    net = small_net()
    net.train_main(X, T)
    net.copy_main()
    before = weights(net)
    loss, accuracy = net.train_main_copy(X, T)
    assert same(before, weights(net))
    assert net.train_main(X, T) == (loss, accuracy)  # with main's moments
    assert net.test_main_copy(X, T)[0] == net.test_main(X, T)[0]


# Freezing


def norm_net(seed=0):
    """Two exits; the trunk and both exits have batch normalisation."""
    np.random.seed(seed)
    return branchynet.BranchyNet(
        [
            L.Linear(4, 8),
            L.BatchNormalization(8),
            branchynet.Branch([L.BatchNormalization(8), L.Linear(8, 3)]),
            L.Linear(8, 8),
            branchynet.Branch([L.BatchNormalization(8), L.Linear(8, 3)]),
        ]
    )


def changed(net, action):
    """Paths of the links whose parameters or running means an action changes."""

    def numbers():
        means = {f'{path}/mean': link.avg_mean.copy() for path, link in net.namedlinks() if hasattr(link, 'avg_mean')}
        return {**weights(net), **means}

    before = numbers()
    action()
    return {path.rsplit('/', 1)[0] for path, array in numbers().items() if not np.array_equal(array, before[path])}


TRUNK = {'/main/0', '/main/1', '/main/2'}
EXITS = {'/models/0/2', '/models/0/3'}, {'/models/1/3', '/models/1/4'}


@pytest.mark.parametrize(
    'parts, expected',
    [
        ([], TRUNK | EXITS[0] | EXITS[1]),
        (['trunk'], EXITS[0] | EXITS[1]),
        (['exits'], TRUNK),
        ([0], TRUNK | EXITS[1]),
        ([1, 'trunk'], EXITS[0]),
    ],
)
@pytest.mark.parametrize('own', [False, True])  # the net's optimisers, or one of the user's
def test_frozen_parts_do_not_change(parts, expected, own):
    net = norm_net()
    net.train_main(X, T)
    net.train(X, T)  # moments, by which zero gradients would move parameters
    net.freeze(*parts)
    if own:
        optimizer = chainer.optimizers.MomentumSGD(0.1).setup(net)
        optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(0.1))

    def step():
        return optimizer.update(net, X, T) if own else net.train(X, T)

    assert changed(net, step) - {'/main/3', '/main/4'} == expected
    net.thaw()
    assert changed(net, step) >= TRUNK | EXITS[0] | EXITS[1]


def test_a_frozen_exit_hands_its_gradient_to_the_trunk():
    net = norm_net()
    net.models[1].weight = 0.0
    net.freeze('exits')
    assert {'/main/0', '/main/1'} <= changed(net, lambda: net.train(X, T))
    losses = [net.train(X, T)[0][0] for _ in range(100)]
    assert losses[-1] < losses[0]


def test_behind_a_frozen_trunk_there_is_no_graph():
    net = small_net(dropout=True)
    net.freeze('trunk')
    assert net.stage(0, X).creator is None
    net.train(X, T)
    assert all(param.grad is None or not param.grad.any() for param in trunk(net))
    net.forwardMain = True
    for call in (net.train_main, net.train):
        with pytest.raises(ValueError, match=r"trunk is frozen and cannot be trained: call net.thaw\('trunk'\) first"):
            call(X, T)


def test_freezing_is_kept_by_copies_and_undone_in_parts():
    net = norm_net()
    net.freeze('trunk', 1)
    for other in (copy.deepcopy(net), net.copy(), net.copy('init'), pickle.loads(pickle.dumps(net))):
        assert other.frozen == {'trunk', 1}
        assert changed(other, lambda n=other: n.train(X, T)) == EXITS[0]
    net.thaw('trunk')
    with pytest.raises(ValueError, match=r'exit 1 is frozen and cannot be trained: call net.thaw\(1\) first'):
        net.train_branch(1, X, T)
    net.thaw(0, 1)
    assert net.frozen == frozenset()
    for part in ('trunks', 2, -1, None):
        for method in (net.freeze, net.thaw):
            with pytest.raises(ValueError, match="expected 'trunk', 'exits' or an exit from 0 to 1"):
                method(part)


class Penalised(BranchyNet):
    """A joint loss of a user's own."""

    def joint_loss(self, x, t, batch):
        losses, accuracies, total = super().joint_loss(x, t, batch)
        return losses, accuracies, total + 10 * sum(F.sum(param**2) for param in self.params())


def of_class(kind):
    np.random.seed(0)
    return kind([L.Linear(4, 6), FL(F.relu), Branch([L.Linear(6, 3)]), FL(F.relu), Branch([L.Linear(6, 3)])])


def test_every_step_takes_the_joint_loss_of_a_subclass():
    net, plain, chainers = of_class(Penalised), of_class(BranchyNet), of_class(Penalised)
    for _ in range(4):
        net.train(X, T), plain.train(X, T)
        with TimerHook():  # whose user sees Chainer's graph
            chainers.train(X, T)
    assert same(weights(net), weights(chainers)) and not same(weights(net), weights(plain))


def test_every_step_calls_a_method_that_was_put_in_place_of_the_nets():
    net, calls = of_class(BranchyNet), []
    net.train(X, T)
    plain = net.exit
    net.exit = lambda k, h: calls.append(k) or plain(k, h)
    net.train(X, T)
    assert calls == [0, 1]


def test_an_answer_that_is_nan_is_right_in_no_training_step():
    net = of_class(BranchyNet)
    net.main[0].W.array[...] = math.nan
    labels = np.zeros_like(T)  # which argmax gives for NaN
    for _ in range(2):  # in Chainer, then without its graph
        assert net.train(X, labels)[1] == [0.0, 0.0]
        assert net.train_main(X, labels)[1] == 0.0


def test_a_net_that_an_earlier_version_pickled_trains():
    net, before = of_class(BranchyNet), of_class(BranchyNet)
    del before._tapes
    net.train(X, T), dill.loads(dill.dumps(before)).train(X, T)


def test_a_network_may_be_a_generator():
    assert BranchyNet(link for link in [L.Linear(4, 6), Branch([L.Linear(6, 3)])]).numexits() == 1


def test_exits_may_return_arrays_in_testing_mode():
    net = BranchyNet([L.Linear(4, 6), Branch([L.Linear(6, 3), FL(chainer.as_array)])])
    np.testing.assert_allclose(net.get_SM(X)[0].sum(axis=1), 1, rtol=1e-5)


def test_parts_to_freeze_may_be_numbers_of_numpy_and_no_booleans():
    net = small_net()
    net.freeze(np.int64(1))
    assert net.frozen == {1}
    with pytest.raises(ValueError, match='the part to freeze or thaw is True'):
        net.freeze(True)


# Inference


def direct(net, thresholds, x=X):
    """Exits and logits by the definition, sample by sample."""
    exits, logits = [], []
    with chainer.using_config('train', False):
        for row in x:
            for k, model in enumerate(net.models):
                y = model(row[None]).array
                if k == 2 or entropy(F.softmax(y))[0] < thresholds[k]:
                    break
            exits.append(k)
            logits.append(y[0])
    return np.array(exits), np.array(logits)


def test_test_and_run_follow_the_definition():
    net = small_net(dropout=True)
    thresholds = [float(np.median(e)) for e in net.find_entropies(X)]  # of 32 samples: between two entropies
    exits, logits = direct(net, thresholds)
    net.thresholdExits = thresholds
    accuracy, accuracies, counts, seconds = net.test(X, T)
    assert counts == np.bincount(exits, minlength=3).tolist() and min(counts) > 0
    right = logits.argmax(axis=1) == T
    assert accuracy == right.mean() and seconds > 0
    np.testing.assert_allclose(accuracies, [right[exits == k].mean() for k in range(3)])
    np.testing.assert_allclose(net.run(X), logits, rtol=1e-4, atol=1e-5)


def test_percentages_count_as_released():
    net = small_net(percentTestExits=0.5)
    assert net.test(X, T)[2] == [16, 8, 8]
    net.percentTestExits = [0.5, 0.25]
    assert net.test(X, T)[2] == [16, 8, 8]
    net.percentTestExits = [0.75, 0.75]
    assert net.test(X, T)[2] == [24, 8, 0]


def test_test_works_without_labels():
    net = small_net()
    accuracy, accuracies, counts, _ = net.test(X)
    assert math.isnan(accuracy) and sum(counts) == len(X)
    assert all(math.isnan(a) for a, n in zip(accuracies, counts) if n)
    assert math.isnan(net.test_main(X)[0])


def test_methods_take_variables():
    net = small_net()
    v = chainer.Variable(X)
    assert net.test(v, chainer.Variable(T))[:3] == net.test(X, T)[:3]
    np.testing.assert_array_equal(net.run_main(v), net.run_main(X))
    net.train(v, chainer.Variable(T))
    net.find_thresholds(v[:8].array)


def test_methods_set_their_own_mode():
    net = small_net(dropout=True)
    net.training()
    np.testing.assert_array_equal(net.run_main(X), net.run_main(X))
    assert not np.array_equal(net.main(X).array, net.main(X).array)
    net.testing()
    np.testing.assert_array_equal(net.main(X).array, net.run_main(X))
    np.random.seed(0)
    first = net.train_main(X, T)
    assert first != net.train_main(X, T)
    assert chainer.config.train is False


def test_get_sm_is_the_softmax_of_every_exit():
    net = small_net()
    probs = net.get_SM(X)
    assert [p.shape for p in probs] == [(32, 3)] * 3
    for model, prob in zip(net.models, probs):
        np.testing.assert_allclose(prob, F.softmax(model(X)).array, rtol=1e-5)


def test_thresholds_are_found_for_as_many_labels_as_samples():
    with pytest.raises(ValueError, match=f'^x has {len(X)} samples and y has {len(X) - 1}: both need the same number'):
        small_net().find_thresholds(X, T[:-1])


def test_find_thresholds_cuts_the_sorted_entropies():
    net = small_net()
    thresholds, entropies = net.find_thresholds_entropies(X, T, 0.25, batchsize=10)
    assert [e.shape for e in entropies] == [(32,), (32,)]
    assert thresholds == [float(np.sort(e)[24]) for e in entropies]
    found = net.find_thresholds(X, percentTrainKeeps=[0.0, 1.0])
    assert found == pytest.approx([entropies[0].max(), entropies[1].min()], rel=1e-5)
    with pytest.raises(ValueError, match='percentTrainKeeps'):
        net.find_thresholds(X, percentTrainKeeps=[0.5])


# Bad input

NAN = X.copy()
NAN[5, 2] = np.nan


@pytest.mark.parametrize(
    'x, t, error, words',
    [
        (X[:, :3], T, ValueError, r'link 0 \(Linear\) cannot take an array of shape \(32, 3\)'),
        (X.astype('d'), T, TypeError, 'x has dtype float64: expected float32'),
        (X.tolist(), T, TypeError, 'x is a list: expected'),
        (X[:0], T[:0], ValueError, r'x has shape \(0, 4\): expected at least one sample'),
        (NAN, T, ValueError, 'x holds NaN or infinity, first in sample 5'),
        (X, T.astype('f'), TypeError, 't has dtype float32: expected signed integers'),
        (X, T[:-1], ValueError, r't has shape \(31,\): expected \(32,\)'),
        (X, T[:, None], ValueError, r't has shape \(32, 1\)'),
        (X, T + 1, ValueError, 't holds the label 3: expected less than 3'),
        (X, T - 1, ValueError, 't holds the label -1: expected 0 or more'),
    ],
)
@pytest.mark.parametrize('method', ['train', 'train_main', 'test', 'test_main', 'train_branch'])
def test_bad_input_is_named_before_any_parameter_changes(method, x, t, error, words):
    net = small_net()
    before = weights(net)
    call = getattr(net, method)
    with pytest.raises(error, match='^' + words) as info:
        call(0, x, t) if method == 'train_branch' else call(x, t)
    assert '\n' not in str(info.value)
    assert same(before, weights(net))


def test_infinity_is_named():
    x = X.copy()
    x[7, 0] = np.inf
    with pytest.raises(ValueError, match='x holds NaN or infinity, first in sample 7'):
        small_net().run(x)


def test_a_setting_that_is_not_a_number_is_named():
    for value in None, np.array(0.5):
        net = small_net()
        net.percentTestExits = value
        with pytest.raises(TypeError, match='percentTestExits is'):
            net.test(X)


def test_an_exit_that_does_not_exist_is_named():
    for i in -1, 3:
        with pytest.raises(ValueError, match=f'exit is {i}: expected 0 to 2'):
            small_net().train_branch(i, X, T)


def test_a_function_in_a_branch_is_named():
    with pytest.raises(TypeError, match=r'links\[0\] is <function relu.*FL makes one'):
        branchynet.Branch([F.relu])


def test_images_that_are_too_small_are_named():
    from branchynet.networks import alex_cifar10

    with pytest.raises(ValueError, match='link .* cannot take an array of shape'):
        alex_cifar10.get_network().run(np.zeros((1, 3, 1, 1), np.float32))


def test_layers_sized_by_their_first_input_work():
    net = branchynet.BranchyNet(
        [L.Linear(None, 4), branchynet.Branch([L.Linear(None, 3)]), branchynet.Branch([L.Linear(4, 3)])]
    )
    assert len(net.train(X, T)[0]) == 2


def test_an_exit_without_links_of_its_own_works():
    net = branchynet.BranchyNet([L.Linear(4, 3), branchynet.Branch([])], thresholdExits=[])
    assert net.test(X, T)[2] == [32]
    assert net.get_SM(X)[0].shape == (32, 3)


# As a Chain


@pytest.mark.parametrize(
    'duplicate',
    [
        copy.deepcopy,
        lambda n: n.copy('copy'),
        lambda n: dill.loads(dill.dumps(n)),
        lambda n: pickle.loads(pickle.dumps(n)),
    ],
    ids=['deepcopy', 'copy', 'dill', 'pickle'],
)
def test_copies_are_complete_and_independent(duplicate):
    net = small_net(thresholdExits=[0.5, 0.5])
    net.train(X, T)
    new = duplicate(net)
    before = weights(net)
    assert same(weights(new), before)
    assert new.main[0] is new.models[2][0] and new.main[0] is not net.main[0]
    results = new.train(X, T)
    assert same(weights(net), before)
    assert net.train(X, T) == results and same(weights(net), weights(new))  # with the optimisers' moments


@pytest.mark.parametrize('mode', ['init', 'share'])
def test_chainers_other_copies_keep_one_trunk(mode):
    net = small_net()
    new = net.copy(mode)
    assert new.main[0] is new.models[2][0] and new.main[0] is not net.main[0]
    assert (new.main[0].W.array is net.main[0].W.array) == (mode == 'share')
    assert moved(new, lambda: new.train(X, T)) == {'trunk', 'exit0', 'exit1', 'exit2'}


def test_copies_of_blocks_keep_their_weights():
    net = branchynet.BranchyNet([ResBlock(3, 4), branchynet.Branch([ResBlock(4, 4), L.Linear(64, 2)])])
    x = np.random.RandomState(0).rand(4, 3, 4, 4).astype(np.float32)
    net.train(x, np.int32([0, 1, 0, 1]))
    new = copy.deepcopy(net)
    np.testing.assert_array_equal(new.run(x), net.run(x))
    np.testing.assert_array_equal(net.main[1].conv1.W.shape, net.models[0][1].conv1.W.shape)


def test_each_weight_is_saved_and_loaded_once(tmp_path):
    net, other = small_net(0), small_net(1)
    path = str(tmp_path / 'net.npz')
    chainer.serializers.save_npz(path, net)
    with np.load(path) as f:
        assert set(f.files) == {path[1:] for path in weights(net)}
    chainer.serializers.load_npz(path, other)
    assert same(weights(net), weights(other))
    np.testing.assert_array_equal(other.run(X), net.run(X))


def test_chainers_trainer_trains_it(tmp_path):
    net = small_net()
    optimizer = chainer.optimizers.SGD(0.1).setup(net)
    iterator = chainer.iterators.SerialIterator(chainer.datasets.TupleDataset(X, T), 32, shuffle=False)
    updater = chainer.training.updaters.StandardUpdater(iterator, optimizer)
    before = weights(net)
    net.cleargrads()
    loss = net(X, T)
    loss.backward()
    expected = {
        path: before[path] - np.float32(0.1) * (0 if p.grad is None else p.grad) for path, p in net.namedparams()
    }
    trainer = chainer.training.Trainer(updater, (1, 'iteration'), out=str(tmp_path))
    trainer.extend(
        chainer.training.extensions.Evaluator(
            chainer.iterators.SerialIterator(iterator.dataset, 8, repeat=False, shuffle=False), net
        )
    )
    trainer.extend(chainer.training.extensions.LogReport(trigger=(1, 'iteration')))
    trainer.run()
    for path, array in weights(net).items():
        np.testing.assert_allclose(array, expected[path], rtol=1e-5, atol=1e-7)  # each parameter moved once
    log = trainer.get_extension('LogReport').log[0]
    assert log['main/loss'] == pytest.approx(float(loss.array))
    assert {'main/exit0/loss', 'main/exit2/accuracy', 'validation/main/exit1/accuracy'} <= log.keys()


def test_addgrads_adds_each_gradient_once():
    net, other = small_net(), small_net()
    for n in (net, other):
        n.cleargrads()
        n(X, T).backward()
    gradient = net.main[0].W.grad.copy()
    net.addgrads(other)
    np.testing.assert_allclose(net.main[0].W.grad, 2 * gradient, rtol=1e-6)


def test_print_models_lists_every_link(capsys):
    small_net(verbose=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'main: Linear FL Linear FL Linear FL Linear'
    assert lines[1] == 'exit 0: Linear FL Linear'
    assert len(lines) == 4


@pytest.mark.gpu
def test_gpu_agrees_with_the_cpu():
    net = small_net(thresholdExits=[0.8, 0.8])
    cpu = net.run(X)
    net.to_gpu()
    assert net.gpu
    np.testing.assert_allclose(chainer.backends.cuda.to_cpu(net.run(X)), cpu, rtol=1e-4, atol=1e-5)
    losses, _ = net.train(X, T)
    net.to_cpu()
    assert not net.gpu
    assert losses == pytest.approx(small_net(thresholdExits=[0.8, 0.8]).train(X, T)[0], rel=1e-4)


@pytest.mark.parametrize(
    'setting, error, words',
    [
        ({'lr': math.nan}, ValueError, 'lr is nan: expected 0 or more, and finite'),
        ({'lr': -1}, ValueError, 'lr is -1: expected 0 or more, and finite'),
        ({'alpha': 'x'}, TypeError, "alpha is 'x': expected a number"),
        ({'alpha': math.inf}, ValueError, 'alpha is inf: expected 0 or more, and finite'),
        ({'momentum': 5}, ValueError, 'momentum is 5: expected 0 or more, and less than 1'),
        ({'weight_decay': None}, TypeError, 'weight_decay is None: expected a number'),
    ],
)
@pytest.mark.parametrize('opt', ['Adam', 'MomentumSGD'])
def test_bad_settings_of_the_optimisers_are_named(opt, setting, error, words):
    with pytest.raises(error, match=f'^{words}$'):
        small_net(opt=opt, **setting)


@pytest.mark.parametrize(
    'weight, error, words',
    [
        (math.nan, ValueError, 'is nan: expected 0 or more, and finite'),
        (-1, ValueError, 'is -1: expected 0 or more, and finite'),
        ('1', TypeError, "is '1': expected a number"),
    ],
)
def test_bad_weights_of_exits_are_named(weight, error, words):
    with pytest.raises(error, match=f'^weight {words}$'):
        branchynet.Branch([L.Linear(4, 3)], weight=weight)
    net = small_net()
    before = weights(net)
    net.models[1].weight = weight
    with pytest.raises(error, match=f'^weight of exit 1 {words}$'):
        net.train(X, T)
    assert same(before, weights(net))


def test_a_branch_of_a_link_in_place_of_a_list_is_named():
    with pytest.raises(TypeError, match='^links is a Linear: expected a list of links$'):
        branchynet.Branch(L.Linear(5, 10))
    with pytest.raises(TypeError, match='^network is a Linear: expected a list of links$'):
        branchynet.BranchyNet(L.Linear(5, 10))


@pytest.mark.parametrize('thresholds', [0.5, [0.5, 0.1], None])
def test_files_keep_thresholds(thresholds, tmp_path):
    path = str(tmp_path / 'net.npz')
    chainer.serializers.save_npz(path, small_net(thresholdExits=thresholds))
    net = small_net(seed=5)
    chainer.serializers.load_npz(path, net)
    assert net.thresholdExits == thresholds
    assert net.test(X, T)[2] == small_net(thresholdExits=thresholds).test(X, T)[2]


def test_files_without_thresholds_leave_the_nets_own(tmp_path):
    path = str(tmp_path / 'net.npz')
    chainer.serializers.save_npz(path, small_net())
    with np.load(path) as file:
        assert 'thresholdExits' not in file  # as in files that were written before
    net = small_net(thresholdExits=0.25)
    chainer.serializers.load_npz(path, net)
    assert net.thresholdExits == 0.25


@pytest.mark.parametrize('mode', ['share', 'init', 'copy'])
def test_a_copy_shares_the_links_that_the_net_shares(mode):
    shared, trunk = L.Linear(4, 4), L.Linear(4, 4)
    net = branchynet.BranchyNet([trunk, trunk, branchynet.Branch([shared]), branchynet.Branch([trunk, shared])])
    new = net.copy(mode)
    assert [path for path, _ in new.namedparams()] == [path for path, _ in net.namedparams()]
    for one, other in zip([new.optimizer, *new.optimizers], [net.optimizer, *net.optimizers]):
        assert len(list(one.target.params())) == len(list(other.target.params()))
    assert not {id(param) for param in new.params()} & {id(param) for param in net.params()}


def test_a_step_moves_a_shared_link_once():
    shared, trunk = L.Linear(4, 3), L.Linear(4, 4)
    net = branchynet.BranchyNet(
        [trunk, branchynet.Branch([shared]), L.Linear(4, 4), branchynet.Branch([trunk, shared])]
    )
    before, (x, t) = weights(net), small_data()
    for _ in range(2):  # by Chainer's graph, then without it
        net.train(x, t)
    assert shared.W.update_rule.t == trunk.W.update_rule.t == 2
    moved = [abs(param.array - before[path]).max() for path, param in net.namedparams()]
    assert 0 < max(moved) < 2.1 * 0.001  # Adam's first steps move every weight by alpha or less


def test_a_link_that_shares_only_some_parameters_is_refused():
    shared = L.Linear(4, 4)
    network = [branchynet.Branch([shared]), branchynet.Branch([chainer.Sequential(shared, L.Linear(4, 3))])]
    with pytest.raises(ValueError, match='^a Sequential of exit 1 shares some of its parameters with another part'):
        branchynet.BranchyNet(network)


def test_a_hook_on_main_or_an_exit_sees_every_step():
    net, x, t = small_net(), *small_data()
    for part, train in (net.main, net.train_main), (net.models[1], net.train):
        hook = TimerHook()
        part.add_hook(hook)
        for _ in range(3):
            train(x, t)
        assert len(hook.call_history) >= 3
        part.delete_hook(hook.name)


def test_the_copy_of_main_is_made_first():
    net, x, t = small_net(), *small_data()
    for call in net.train_main_copy, net.test_main_copy:
        with pytest.raises(ValueError, match=r'^main has no copy: call net.copy_main\(\) first$'):
            call(x, t)


def test_x_that_is_no_numbers_is_refused():
    with pytest.raises(TypeError, match='^x has dtype bool: expected numbers$'):
        small_net().run(np.zeros((2, 4), bool))


def net_of_pooled_exits():
    """Exits that end in global average pooling: logits (B, C, 1, 1)."""
    np.random.seed(0)
    return BranchyNet(
        [
            L.Convolution2D(1, 4, 3),
            Branch([L.Convolution2D(4, 3, 1), FL(F.average_pooling_2d, 6)]),
            L.Convolution2D(4, 4, 3),
            Branch([L.Convolution2D(4, 3, 1), FL(F.average_pooling_2d, 4)]),
        ]
    )


@pytest.mark.parametrize('call', ['train', 'test', 'look', pytest.param('compiled', marks=pytest.mark.onednn)])
def test_logits_with_other_axes_are_named(call):
    net = net_of_pooled_exits()
    x, t = np.random.rand(20, 1, 8, 8).astype(np.float32), np.random.randint(0, 3, 20).astype(np.int32)
    calls = {
        'train': lambda: net.train(x, t),
        'test': lambda: net.test(x, t),
        'look': lambda: net.look(x),
        'compiled': lambda: inference.Compiled(net).classify(x, 1.0),
    }
    with pytest.raises(ValueError, match=r'gives logits of shape \(3, 1, 1\) for a sample: expected \(classes,\)'):
        calls[call]()


def test_a_copy_of_main_trains_where_the_trunk_is_frozen():
    net, (x, t) = small_net(), small_data(20)
    net.freeze('trunk')
    net.copy_main()
    before = [param.array.copy() for param in net.main_copy.params()]
    net.train_main_copy(x, t)
    assert all((param.array != old).any() for param, old in zip(net.main_copy.params(), before))
    with pytest.raises(ValueError, match='trunk is frozen'):
        net.train_main(x, t)


def test_what_two_exits_share_stays_frozen_with_either():
    np.random.seed(0)
    head = L.Linear(8, 3)
    net = BranchyNet(
        [L.Linear(4, 8), Branch([head]), L.Linear(8, 8), Branch([head]), L.Linear(8, 8), Branch([L.Linear(8, 3)])]
    )
    x, t = np.random.rand(20, 4).astype(np.float32), np.random.randint(0, 3, 20).astype(np.int32)
    net.freeze(0, 1)
    net.thaw(0)
    before = head.W.array.copy()
    net.train_branch(0, x, t)
    np.testing.assert_array_equal(head.W.array, before)
    net.thaw(1)
    net.train_branch(0, x, t)
    assert (head.W.array != before).any()


@pytest.mark.parametrize(
    'make', [lambda: FL(lambda a: chainer.as_array(a) * np.float32(2)), lambda: FL(lambda a: (a - 1).astype('f'))]
)
def test_links_that_take_arrays_train_at_every_step(make):
    """As the first link, which gets the samples themselves, at the first step and at later ones."""
    np.random.seed(0)
    net = BranchyNet([make(), L.Linear(4, 8), Branch([L.Linear(8, 3)]), L.Linear(8, 8), Branch([L.Linear(8, 3)])])
    x, t = np.random.rand(20, 4).astype(np.float32), np.random.randint(0, 3, 20).astype(np.int32)
    losses = [net.train_main(x, t)[0] for _ in range(4)]
    assert losses == sorted(losses, reverse=True)
    for _ in range(2):
        net.train_branch(0, x, t)
        net.train(x, t)


@pytest.mark.onednn
def test_thresholds_of_a_single_test_change_no_setting():
    net, (x, t) = small_net(), small_data(20)
    net.thresholdExits = 0.0
    for one in net, inference.Compiled(net):
        assert one.test_at(math.inf, x, t)[2] == [20] + [0] * (net.numexits() - 1)
        assert one.test(x, t)[2] == [0] * (net.numexits() - 1) + [20]
        with pytest.raises(ValueError, match='thresholds'):
            one.test_at([1.0] * 9, x, t)


class Kept(chainer.Link):
    """Keeps its input, for another link to add."""

    def forward(self, x):
        self.h = x
        return x


def tied():
    first = L.Linear(6, 6)
    return [first, FL(F.relu), Branch([L.Linear(6, 3)]), FL(lambda h: F.linear(h, first.W.T)), Branch([L.Linear(6, 3)])]


def adding():
    kept = Kept()
    return [
        *[L.Linear(6, 6), kept, L.Linear(6, 6), FL(F.relu), Branch([L.Linear(6, 3)])],
        *[FL(lambda h: h + kept.h), Branch([L.Linear(6, 3)])],
    ]


def recurrent():
    return [L.Linear(6, 6), L.LSTM(6, 6), Branch([L.Linear(6, 3)]), L.Linear(6, 6), Branch([L.Linear(6, 3)])]


@pytest.mark.parametrize('make', [tied, adding, recurrent])
@pytest.mark.parametrize('method', ['train', 'train_main'])
def test_links_that_reach_beyond_themselves_have_chainers_gradients_at_every_step(monkeypatch, make, method):
    x, t = np.random.RandomState(0).randn(20, 6).astype(np.float32), np.arange(20, dtype=np.int32) % 3
    gradients = []
    for without_tape in False, True:
        with monkeypatch.context() as patch:
            if without_tape:
                patch.setattr(tape.Tapes, 'fit', lambda *_: False)
            np.random.seed(0)
            net = BranchyNet(make())
            for _ in range(3):
                getattr(net, method)(x, t)
            gradients.append({path: param.grad for path, param in net.namedparams() if param.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for path, gradient in gradients[0].items():
        np.testing.assert_array_equal(gradient, gradients[1][path], err_msg=path)
