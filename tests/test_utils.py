import branchynet
from branchynet import inference, utils

import numpy as np
import pytest
from helpers import same, small_data, small_net, weights

X, T = small_data(40)


def test_train_shuffles_and_averages_over_batches():
    net, other = small_net(), small_net()
    np.random.seed(5)
    losses, accuracies, seconds = utils.train(net, X, T, batchsize=16, num_epoch=2)
    np.random.seed(5)
    for epoch in range(2):
        order = np.random.permutation(40)
        results = [other.train(X[order[i : i + 16]], T[order[i : i + 16]]) for i in (0, 16, 32)]
        np.testing.assert_array_equal(losses[epoch], np.mean([r[0] for r in results], axis=0))
        np.testing.assert_array_equal(accuracies[epoch], np.mean([r[1] for r in results], axis=0))
    assert seconds > 0 and same(weights(net), weights(other))


def test_train_main_gives_scalars():
    losses, accuracies, _ = utils.train(small_net(), X, T, batchsize=16, num_epoch=3, main=True)
    assert np.shape(losses) == np.shape(accuracies) == (3,)
    assert losses[2] < losses[0]


def test_test_weights_over_samples():
    net = small_net(thresholdExits=[0.9, 0.9])
    accuracy, seconds, exits, accuracies = utils.test(net, X, T, batchsize=16)
    whole = net.test(X, T)
    assert accuracy == whole[0] and exits.tolist() == whole[2] and seconds > 0
    np.testing.assert_allclose(accuracies, whole[1])
    accuracy, _, exits, accuracies = utils.test(net, X, T, batchsize=16, main=True)
    assert accuracy == net.test_main(X, T)[0]
    assert not exits.any() and not accuracies.any() and len(exits) == 3


@pytest.mark.parametrize('call', [utils.train, utils.test])
def test_samples_and_labels_must_match(call):
    with pytest.raises(ValueError, match='x has 40 samples and y has 39'):
        call(small_net(), X, T[:39])
    with pytest.raises(ValueError, match='batchsize is 0'):
        call(small_net(), X, T, batchsize=0)


@pytest.mark.parametrize('main', [False, True])
@pytest.mark.parametrize(
    'damage, message',
    [
        (lambda x, t: x.__setitem__((33, 0), np.nan), 'x holds NaN or infinity, first in sample 33'),
        (lambda x, t: t.__setitem__(33, 3), 't holds the label 3'),
        (lambda x, t: t.__setitem__(33, -1), 't holds the label -1'),
    ],
)
def test_a_bad_sample_is_found_before_the_first_step(damage, message, main):
    net = small_net()
    before = weights(net)
    x, t = X.copy(), T.copy()
    damage(x, t)
    with pytest.raises(ValueError, match=f'^{message}: expected'):
        utils.train(net, x, t, batchsize=4, num_epoch=1, main=main)
    assert same(before, weights(net))


def test_traintest_is_train_and_test_by_turns():
    net, other = small_net(), small_net()
    np.random.seed(1)
    result = utils.traintest(net, X, T, X[:20], T[:20], batchsize=16, num_epoch=2)
    np.random.seed(1)
    losses, accuracies, train_seconds, test_accs, test_seconds, test_exits, exit_accs = result
    for epoch in range(2):
        loss, accuracy, _ = utils.train(other, X, T, 16, 1)
        tested = utils.test(other, X[:20], T[:20], 16)
        np.testing.assert_array_equal(losses[epoch], loss[0])
        np.testing.assert_array_equal(accuracies[epoch], accuracy[0])
        assert test_accs[epoch] == tested[0]
        np.testing.assert_array_equal(test_exits[epoch], tested[2])
        np.testing.assert_array_equal(exit_accs[epoch], tested[3])
    assert train_seconds > 0 and test_seconds > 0


def test_suites_run_each_setting_and_put_the_nets_own_back():
    net = small_net(thresholdExits=[0.1, 0.2], percentTestExits=0.3)
    ps, accs, seconds = utils.test_suite_A(net, X, T, batchsize=20, ps=[0.2, 1.0])
    assert net.thresholdExits == [0.1, 0.2] and net.percentTestExits == 0.3
    expected = [utils.test(small_net(percentTestExits=p), X, T, 20)[0] for p in ps]
    assert ps == [0.2, 1.0] and accs == expected and len(seconds) == 2
    ps, accs, diffs, exits = utils.test_suite_B(net, X, T, batchsize=20, ps=[[0.0, 0.0], [9.0, 9.0]])
    np.testing.assert_array_equal(exits, [[0, 0, 40], [40, 0, 0]])
    assert accs.shape == diffs.shape == (2,)
    assert net.thresholdExits == [0.1, 0.2] and net.percentTestExits == 0.3
    with pytest.raises(ValueError, match=r'^thresholdExits is \[0.0\]: expected a number, or a sequence of 2'):
        utils.test_suite_B(net, X, T, ps=[[0.0]])
    assert net.thresholdExits == [0.1, 0.2]


@pytest.mark.onednn
def test_suite_b_takes_a_compiled_net():
    net = small_net()
    compiled = inference.Compiled(net)
    expected = utils.test_suite_B(net, X, T, ps=[0.5, 1.0])
    np.testing.assert_array_equal(utils.test_suite_B(compiled, X, T, ps=[0.5, 1.0])[1], expected[1])
    assert compiled.thresholdExits is None


def test_generate_thresholds_combines_all():
    assert utils.generate_thresholds([1, 2], 3) == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert utils.generate_thresholds([1, 2], 2) == [[1], [2]]


def test_screen_branchy_agrees_with_suite_b():
    net = small_net()
    ts, accs, diffs, exits = utils.screen_branchy(net, X, T, [0.3, 0.8, 1.05])
    _, suite_accs, _, suite_exits = utils.test_suite_B(net, X, T, 1, ts)
    assert len(ts) == 9
    np.testing.assert_array_equal(accs, suite_accs)
    np.testing.assert_array_equal(exits, suite_exits)
    assert (diffs > 0).all()
    ts, accs, _, _ = utils.screen_branchy(net, X, T, [[0.3, 0.8]], enumerate_ts=False)
    assert ts == [[0.3, 0.8]] and accs[0] == suite_accs[1]


def test_screen_branchy_names_what_is_wrong():
    net = small_net()
    with pytest.raises(ValueError, match='threshold setting'):
        utils.screen_branchy(net, X, T, [[0.1]], enumerate_ts=False)
    with pytest.raises(ValueError, match='t holds the label 3'):
        utils.screen_branchy(net, X, T + 1, [0.1])


def test_get_inc_points_rise_in_time_and_accuracy():
    accs, times = [0.9, 0.8, 0.8996, 0.95, 0.94], [2.0, 1.0, 3.0, 5.0, 4.0]
    kept = utils.get_inc_points(accs, times, list('abcde'), [1, 2, 3, 4, 5])
    assert kept == (
        [0.8, 0.9, 0.8996, 0.94, 0.95],
        [1.0, 2.0, 3.0, 4.0, 5.0],
        ['bacde'[i] for i in (0, 1, 2, 4, 3)],
        [2, 1, 3, 5, 4],
    )
    assert utils.get_inc_points(accs, times, list('abcde'), accs, inc_amt=0)[0] == [0.8, 0.9, 0.94, 0.95]


def test_table_is_aligned(capsys):
    utils.branchy_table_results('LeNet', 0.992, 3.37, [0.9925], [0.62], [[943, 57]], [[0.025]])
    header, base, row = capsys.readouterr().out.splitlines()
    assert header.split() == ['Network', 'Acc.(%)', 'Time(ms)', 'Gain', 'Thrshld.T', 'Exit(%)']
    assert base == '          LeNet          99.20           3.37              -              -              -'
    assert row.split() == ['B-LeNet', '99.25', '0.62', '5.44', '0.025', '94.30,', '5.70']
    assert len(header) == len(row) == 90


def test_times_by_hand():
    assert utils.compute_network_times([90, 10], [0.001, 0.003]) == pytest.approx(1.2)
    times = utils.compute_branch_times(small_net(), X, T, num_samples=10)
    assert times.shape == (3,) and (np.diff(times) > 0).all() and times[0] > 0


def test_get_sm_in_batches():
    net = small_net()
    for part, whole in zip(utils.get_SM(net, X, 16), net.get_SM(X)):
        np.testing.assert_allclose(part, whole, rtol=1e-5)


def test_compute_network_times_of_several_settings():
    times = utils.compute_network_times([[90, 10], [0, 100]], [0.001, 0.003])
    assert times == pytest.approx([1.2, 3.0]) and isinstance(times, list)


def test_what_cannot_be_computed_is_named():
    with pytest.raises(ValueError, match=r'^exits holds a setting without samples: \[\[1, 2\], \[0, 0\]\]$'):
        utils.compute_network_times([[1, 2], [0, 0]], [0.001, 0.003])
    with pytest.raises(ValueError, match='^percentExit is 2: expected a share between 0 and 1$'):
        utils.get_ent_setdiff([1.0, 2.0], [1.0, 2.0], percentExit=2)
    with pytest.raises(ValueError, match='^x holds no samples: expected at least one$'):
        utils.get_SM(small_net(), X[:0])


def test_get_ent_setdiff_of_several_exits_by_hand():
    old = [np.array([1, 2, 3, 4]), np.array([9, 9, 1, 2])]
    new = [np.array([2, 1, 3, 4]), np.array([9, 9, 2, 1])]
    # Exit 1: samples 0 and 1 leave in both. Exit 2: of samples 2 and 3, one leaves, another in each.
    assert utils.get_ent_setdiff(old, new) == [0, 1]
    assert utils.get_ent_setdiff(old, new, percentExit=0.25)[0] == 1  # sample 0 against sample 1
    assert np.isnan(utils.get_ent_setdiff(old, new, percentExit=0)).all()


def test_get_ent_setdiff_by_hand():
    assert utils.get_ent_setdiff([1, 2, 3, 4], [1, 2, 3, 4]) == 0
    assert utils.get_ent_setdiff([1, 2, 3, 4], [1, 3, 2, 4]) == 0.5
    assert utils.get_ent_setdiff([1, 2, 3, 4], [4, 3, 2, 1], percentExit=0.25) == 0.5


def test_augmented_helpers_train_on_all_views():
    import chainer.functions as F
    import chainer.links as L

    np.random.seed(0)
    net = branchynet.BranchyNet(
        [
            L.Convolution2D(3, 2, 3, 4),
            branchynet.Branch([L.Linear(72, 2)]),
            branchynet.FL(F.relu),
            branchynet.Branch([L.Linear(72, 2)]),
        ]
    )
    x = np.random.rand(6, 3, 32, 32).astype(np.float32)
    y = np.int32([0, 1] * 3)
    result = utils.traintest_augment(net, x, y, x[:2], y[:2], batchsize=4, num_epoch=2)
    assert np.shape(result[0]) == (2, 2) and result[0][1][0] != result[0][0][0]
    assert [exits.sum() for exits in result[5]] == [72, 72]


def test_default_settings_are_the_callers_own():
    net = small_net()
    for suite, highest in (utils.test_suite_A, 1), (utils.test_suite_B, 2):
        ps = suite(net, X, T)[0]
        ps *= 0
        np.testing.assert_allclose(suite(net, X, T)[0], np.linspace(0.1, highest, 10))


def test_screen_branchy_takes_a_number_for_all_exits():
    net = small_net()
    ts, accs, _, exits = utils.screen_branchy(net, X, T, [0.3, [0.8, 0.3]], enumerate_ts=False)
    _, expected_accs, _, expected_exits = utils.screen_branchy(net, X, T, [[0.3, 0.3], [0.8, 0.3]], enumerate_ts=False)
    assert ts == [0.3, [0.8, 0.3]]
    np.testing.assert_array_equal(accs, expected_accs)
    np.testing.assert_array_equal(exits, expected_exits)


def test_a_negative_number_of_epochs_is_named():
    net, x = small_net(), np.zeros((2, 3, 32, 32), np.float32)
    before = weights(net)
    for call in (
        lambda: utils.train(net, X, T, num_epoch=-1),
        lambda: utils.traintest(net, X, T, X, T, num_epoch=-1),
        lambda: utils.train_augment(net, x, T[:2], num_epoch=-1),
    ):
        with pytest.raises(ValueError, match='^num_epoch is -1: expected 0 or more$'):
            call()
    assert same(before, weights(net))
