"""Criteria other than entropy, exits that are off, and temperatures: the same by every path."""

import copy
import math
import pickle

import branchynet
from branchynet import calibration, checkpoint, exits, sweep
from branchynet.export import export
from branchynet.inference import Compiled, classify
from branchynet.links.links import FL, Branch

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from helpers import exact_data, exact_net, small_data, small_net
from hypothesis import given, settings
from hypothesis import strategies as st

X, T = exact_data()
NET = exact_net()
HIGHEST = exits.by_scores(lambda logits: logits.max(axis=1), name='highest logit')
CRITERIA = [*exits.CRITERIA.values(), HIGHEST, exits.by_scores(lambda logits: -logits.max(axis=1), 'below')]
RECORDS = [sweep.record(NET, X, T, 300, criterion) for criterion in CRITERIA]
COMPILED = pytest.param('compiled', marks=pytest.mark.onednn)


@pytest.fixture(scope='module', params=['net', COMPILED])
def net(request):
    return NET if request.param == 'net' else Compiled(NET)


def by_definition(criterion, looks, thresholds):
    """The exit where each sample leaves, in plain Python."""
    found = []
    for i in range(len(looks[0].prob)):
        agreed, before = 0, None
        for k, look in enumerate(looks):
            prob = np.sort(look.prob[i])
            label = look.prob[i].argmax()
            agreed, before = (agreed + 1 if label == before else 1), label
            score = {
                'entropy': look.entropy[i],
                'top_prob': prob[-1],
                'margin': prob[-1] - prob[-2],
                'patience': np.float32(agreed),
                'highest logit': look.logits[i].max(),
                '<lambda>': -look.logits[i].max(),
            }[criterion.name]
            if k == len(looks) - 1 or (
                thresholds[k] is not None
                and {
                    'below': score < np.float32(thresholds[k]),
                    'above': score > np.float32(thresholds[k]),
                    'at least': score >= np.float32(thresholds[k]),
                }[criterion.side]
            ):
                found.append(k)
                break
    return found


@pytest.mark.parametrize('again', [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_record_can_be_kept(again):
    for recorded in RECORDS[: len(exits.CRITERIA)]:
        kept = again(recorded)
        assert kept.criterion is recorded.criterion
        np.testing.assert_array_equal(kept.score, recorded.score)


def test_scores_may_be_a_variable(net):
    array, variable = (
        exits.by_scores(lambda logits, f=f: f(F.max(F.softmax(logits), axis=1)))
        for f in (chainer.as_array, lambda v: v)
    )
    for threshold in 0.3, 0.5:
        expected, found = (classify(net, X, threshold, criterion) for criterion in (array, variable))
        np.testing.assert_array_equal(found.exit, expected.exit)


def test_scores_are_not_asked_for_where_no_samples_are_left(net):
    by_row = exits.by_scores(lambda logits: np.stack([row.max() for row in logits]))
    assert (classify(net, X, [-math.inf, 0.1], by_row).exit == 0).all()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_every_criterion_by_its_definition_at_recorded_scores(net, data):
    which = data.draw(st.integers(0, len(CRITERIA) - 1))
    criterion, recorded = CRITERIA[which], RECORDS[which]
    thresholds = [
        data.draw(st.none() | st.sampled_from(recorded.score[k].tolist()).map(lambda t: t + data.draw(_nudges)))
        for k in range(2)
    ]
    expected = by_definition(criterion, NET.look(X), thresholds)
    swept = sweep.sweep(recorded, [thresholds])
    np.testing.assert_array_equal(swept.exits[0], np.bincount(expected, minlength=3))
    result = classify(net, X, thresholds, criterion)
    np.testing.assert_array_equal(result.exit, expected)
    assert swept.accuracy[0] == (result.label == T).mean()
    np.testing.assert_array_equal(
        result.entropy, np.stack([look.entropy for look in NET.look(X)])[expected, range(len(X))]
    )


_nudges = st.sampled_from([0, 0, 1e-12, -1e-12, 0.01, -0.01])


def test_patience_lets_leave_where_that_many_exits_agree():
    labels = np.stack([look.prob.argmax(axis=1) for look in NET.look(X)])
    assert (classify(NET, X, 1, exits.PATIENCE).exit == 0).all()
    agreed = (labels[0] == labels[1]).sum()
    assert 0 < agreed < len(X)
    np.testing.assert_array_equal(classify(NET, X, 2, exits.PATIENCE).exit == 1, labels[0] == labels[1])
    assert (classify(NET, X, 3, exits.PATIENCE).exit == 2).all()


@pytest.mark.parametrize('criterion', CRITERIA, ids=lambda criterion: criterion.name)
def test_an_exit_that_is_off_lets_nobody_leave(net, criterion):
    everybody = {'below': math.inf, 'above': -math.inf, 'at least': -math.inf}[criterion.side]
    assert (classify(net, X, [None, everybody], criterion).exit == 1).all()
    assert (classify(net, X, [None, None], criterion).exit == 2).all()


def test_an_exit_that_is_off_lets_no_infinite_score_leave(net):
    infinite = exits.by_scores(lambda z: np.where(z[:, 0] > z[:, 1], np.float32(math.inf), z[:, 0]), 'at least')
    recorded = sweep.record(net, X, T, 300, infinite)
    assert np.isinf(recorded.score).any()
    for thresholds, leaves in (([None, None], False), ([math.inf, None], True)):
        exit = classify(net, X, thresholds, infinite).exit
        counts = np.bincount(exit, minlength=3)
        assert (counts[0] > 0) == leaves and counts[1] == 0
        np.testing.assert_array_equal(sweep.sweep(recorded, [thresholds]).exits, [counts])
        np.testing.assert_allclose(calibration.judge(recorded, thresholds).exit_percent, 100 * counts / len(X))


def test_an_exit_of_the_net_that_is_off(tmp_path):
    net = small_net(thresholdExits=[None, 5.0])
    x, t = small_data()
    assert net.test(x, t)[2] == [0, len(x), 0]
    path = str(tmp_path / 'net.npz')
    chainer.serializers.save_npz(path, net)
    loaded = small_net()
    checkpoint.load_npz(path, loaded)
    assert loaded.test(x, t)[2] == [0, len(x), 0]


@pytest.mark.parametrize('criterion', CRITERIA, ids=lambda criterion: criterion.name)
@given(st.data())
def test_a_threshold_at_a_rank_lets_that_many_leave(criterion, data):
    score = np.array(data.draw(st.lists(st.integers(-4, 4), min_size=1, max_size=12)), np.float32)
    key = np.sort(criterion.key(score))
    ranks = [0, len(key), *(1 + np.flatnonzero(np.diff(key)))]
    rank = data.draw(st.sampled_from(ranks))
    threshold = criterion.threshold(key, rank)
    assert (threshold is None) == (rank == 0)
    assert (criterion.key(score) < criterion.cut(threshold, score.dtype)).sum() == rank
    if 0 < rank < len(key) and criterion is not exits.PATIENCE:  # whose scores are whole numbers
        rounded = score + np.float32(1e-6) * np.float32(data.draw(st.sampled_from([-1, 1])))
        assert (criterion.key(rounded) < criterion.cut(threshold, score.dtype)).sum() == rank


def test_nan_never_leaves():
    score = np.float32([math.nan])
    for criterion in CRITERIA:
        for threshold in -math.inf, 0, math.inf:
            assert not (criterion.key(score) < criterion.cut(threshold, score.dtype)).any()


@pytest.mark.parametrize(
    'function, what',
    [
        (lambda logits: logits, r'an array of shape \(300, 5\) and dtype float32'),
        (lambda logits: logits.argmax(axis=1), r'an array of shape \(300,\) and dtype int64'),
        (lambda logits: 0.5, 'float'),
        (lambda logits: None, 'NoneType'),
    ],
)
def test_scores_of_the_wrong_shape_are_named(net, function, what):
    criterion = exits.by_scores(function, name='mine')
    message = rf'^criterion mine returns {what}: expected floats of shape \(300,\)$'
    for run in (lambda: classify(net, X, 0.5, criterion), lambda: sweep.record(NET, X, T, 300, criterion)):
        with pytest.raises(ValueError, match=message):
            run()


@pytest.mark.parametrize('criterion', ['margin', None, lambda logits: logits[:, 0]])
def test_what_is_no_criterion_is_named(net, criterion):
    for run in (lambda: classify(net, X, 0.5, criterion), lambda: sweep.record(NET, X, T, 300, criterion)):
        with pytest.raises(TypeError, match=r'^criterion is .*: expected one of exits.py, such as exits.MARGIN, or'):
            run()


def test_a_criterion_of_your_own_has_a_function_and_a_side():
    with pytest.raises(TypeError, match='expected a callable, got 0.5'):
        exits.by_scores(0.5)
    with pytest.raises(ValueError, match="^side is 'over': expected one of below, above, at least$"):
        exits.by_scores(np.sum, 'over')


def test_only_a_record_of_entropies_has_them():
    assert RECORDS[0].entropy is RECORDS[0].score
    with pytest.raises(ValueError, match='^the record holds scores of the criterion margin: expected entropy$'):
        _ = RECORDS[2].entropy


# Temperatures


def warm_net():
    net = exact_net()
    net.temperatures = [0.5, 3.0, 1.7]
    return net


def test_every_path_divides_the_logits_by_the_temperature():
    net, plain = warm_net(), NET.look(X)
    for k, (look, before) in enumerate(zip(net.look(X), plain)):
        np.testing.assert_array_equal(look.logits, before.logits / np.float32(net.temperatures[k]))
        np.testing.assert_array_equal(look.prob, exits.answer(look.logits).prob)
    entropies = np.stack([look.entropy for look in net.look(X)])
    thresholds = [float(np.quantile(entropy, 0.4)) for entropy in entropies[:2]]
    expected = exits.leave_at(entropies, thresholds)
    assert len(set(expected)) == 3
    counts = np.bincount(expected, minlength=3).tolist()
    net.thresholdExits = thresholds
    np.testing.assert_array_equal(classify(net, X, thresholds).exit, expected)
    assert net.test(X, T)[2] == counts
    logits = np.stack([look.logits for look in net.look(X)])[expected, range(len(X))]
    np.testing.assert_array_equal(net.run(X), logits)
    np.testing.assert_array_equal(sweep.sweep(sweep.record(net, X, T, 300), [thresholds]).exits[0], counts)
    np.testing.assert_array_equal(net.find_entropies(X)[0], net.look(X)[0].entropy)


@pytest.mark.onednn
def test_a_compiled_net_has_the_temperatures_and_the_labels():
    net = warm_net()
    compiled = Compiled(net)
    assert net.temperatures == [0.5, 3.0, 1.7]
    for ours, theirs, plain in zip(compiled.look(X), net.look(X), NET.look(X)):
        np.testing.assert_allclose(ours.prob, theirs.prob, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(ours.entropy, theirs.entropy, rtol=1e-4, atol=1e-5)
        top = np.sort(plain.logits, axis=1)
        apart = top[:, -1] - top[:, -2] > 1e-4  # this net's logits are often equal
        assert apart.sum() > 200
        np.testing.assert_array_equal(ours.prob.argmax(axis=1)[apart], plain.prob.argmax(axis=1)[apart])
    net.temperatures = [2.0, 4.0, 0.5]  # powers of two: the same bits
    for ours, theirs in zip(Compiled(net).look(X), net.look(X)):
        np.testing.assert_array_equal(ours.logits, theirs.logits)


@pytest.mark.onednn
def test_exits_that_share_a_layer_or_do_not_end_with_one(images):
    np.random.seed(0)
    shared = L.Linear(196, 10)
    pool, scale = FL(F.max_pooling_2d, 2), FL(F.leaky_relu)
    net = branchynet.BranchyNet(
        [pool, Branch([shared]), FL(F.relu), Branch([shared]), Branch([L.Linear(196, 10), scale]), Branch([shared])]
    )
    net.temperatures = [2.0, 4.0, 8.0, 0.5]
    x = images[0][:20]
    for ours, theirs in zip(Compiled(net).look(x), net.look(x)):
        np.testing.assert_allclose(ours.logits, theirs.logits, rtol=1e-4, atol=1e-5)


def test_temperatures_are_kept_in_a_file_and_files_without_them_load(tmp_path):
    net, other = warm_net(), exact_net()
    new, old = str(tmp_path / 'new.npz'), str(tmp_path / 'old.npz')
    chainer.serializers.save_npz(new, net)
    chainer.serializers.save_npz(old, other)
    assert 'temperatures' not in np.load(old)
    checkpoint.load_npz(new, other)
    assert other.temperatures == net.temperatures
    third = exact_net()
    chainer.serializers.load_npz(old, third)
    assert third.temperatures is None
    chainer.serializers.load_npz(new, third)
    assert third.temperatures == net.temperatures


@pytest.mark.parametrize(
    'value, error',
    [
        ([1, 1], ValueError),
        ([1, 1, 0], ValueError),
        ([1, 1, math.nan], ValueError),
        ([1, 1, math.inf], ValueError),
        (2.0, TypeError),
        ([1, 1, None], TypeError),
        ('abc', TypeError),
    ],
)
def test_bad_temperatures_are_named(value, error):
    net = small_net()
    net.temperatures = value
    with pytest.raises(error, match='^temperatures is .*expected .*3 .*numbers.*$') as info:
        net.test(small_data()[0])
    assert '\n' not in str(info.value)


def test_an_exported_net_has_the_temperatures(tmp_path):
    from branchynet.export import OnnxBranchyNet

    net = warm_net()
    for name in 'net.onnx', 'folder':
        path = str(tmp_path / name)
        export(net, path, (1, 8, 8), [1.2, 1.2])
        ours, theirs = OnnxBranchyNet(path).classify(X), classify(net, X, 1.2)
        np.testing.assert_array_equal(ours.exit, theirs.exit)
        np.testing.assert_allclose(ours.prob, theirs.prob, rtol=1e-4, atol=1e-6)


def test_an_export_whose_exit_ends_with_a_function_has_the_temperature_too(tmp_path):
    from branchynet.export import OnnxBranchyNet

    net = branchynet.BranchyNet([FL(F.relu), Branch([L.Linear(4, 3), FL(F.relu)])], thresholdExits=[])
    x, _ = small_data()
    net.test_main(x)
    net.temperatures = [2.0]
    export(net, str(tmp_path / 'net.onnx'), (4,))
    found = OnnxBranchyNet(str(tmp_path / 'net.onnx')).classify(x)
    np.testing.assert_allclose(found.prob, classify(net, x, []).prob, rtol=1e-4, atol=1e-6)
