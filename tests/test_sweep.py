import math

import branchynet  # noqa: F401
from branchynet import calibration, inference, sweep, utils

import numpy as np
import pytest
from helpers import small_data, small_net
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

X, T = small_data(40)
# Ties, values that differ only in float64, a value beyond float32; NaN stands for a training that diverged.
VALUES = [-math.inf, -1.0, 0.0, 0.1, 0.1 + 1e-12, 0.5, 1.0, 1e300, math.inf]


def record_of(ent, seed=0):
    rng = np.random.RandomState(seed)
    return sweep.ExitRecord(ent, rng.rand(*ent.shape) < 0.7, rng.rand(*ent.shape), 2 + rng.rand(*ent.shape))


@st.composite
def cases(draw):
    """An ExitRecord of 1 to 4 exits, and settings (S, E - 1)."""
    exits = draw(st.integers(1, 4))
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    ent = draw(hnp.arrays(float, (exits, draw(st.integers(1, 20))), elements=st.sampled_from([*VALUES, math.nan])))
    settings = draw(hnp.arrays(float, (draw(st.integers(1, 8)), exits - 1), elements=st.sampled_from(VALUES)))
    return record_of(ent.astype(dtype), draw(st.integers(0, 9))), settings


def test_the_record_holds_the_answers_of_all_exits():
    net = small_net()
    recorded = sweep.record(net, X, T, batchsize=16)
    for k, prob in enumerate(net.get_SM(X)):
        np.testing.assert_array_equal(recorded.correct[k], prob.argmax(axis=1) == T)
    np.testing.assert_allclose(recorded.entropy[:2], net.find_entropies(X), rtol=1e-5)
    assert (recorded.released > 0).all() and (recorded.whole > 0).all()
    assert (recorded.whole[1:] > recorded.released[1:]).all()  # the first exit is timed by calls of its own


def test_sweep_equals_running_each_setting():
    net = small_net()
    for _ in range(10):
        net.train(X, T)
    settings = utils.generate_thresholds([0.0, 0.3, 0.6, 0.9, 1.05, 5.0], 3)
    swept = sweep.sweep(sweep.record(net, X, T, batchsize=1), settings)
    for i, setting in enumerate(settings):
        net.thresholdExits = setting
        accuracy, _, exits, _ = utils.test(net, X, T, batchsize=1)
        assert swept.accuracy[i] == accuracy
        np.testing.assert_array_equal(swept.exits[i], exits)
    assert len(np.unique(swept.exits, axis=0)) > 5


@pytest.mark.filterwarnings('ignore:overflow encountered')
@given(cases())
def test_sweep_by_the_definition(case):
    recorded, settings = case
    ent = recorded.entropy
    exits, samples = ent.shape
    swept, (p50, p95) = sweep.sweep(recorded, settings), sweep.percentiles(recorded, settings)
    for s, setting in enumerate(settings.astype(ent.dtype)):
        counts, correct, released, whole = [0] * exits, 0, [], []
        for i in range(samples):
            k = next((k for k, t in enumerate(setting) if ent[k, i] < t), exits - 1)
            counts[k] += 1
            correct += recorded.correct[k, i]
            released.append(recorded.released[: k + 1, i].sum())
            whole.append(recorded.whole[: k + 1, i].sum())
        assert swept.exits[s].tolist() == counts
        assert swept.accuracy[s] == correct / samples
        assert (swept.released[s], swept.whole[s]) == pytest.approx((np.mean(released), np.mean(whole)))
        assert (p50[s], p95[s]) == pytest.approx((np.median(whole), np.percentile(whole, 95)))


def test_a_grid_and_its_settings_one_by_one_are_the_same():
    recorded = record_of(np.random.RandomState(1).rand(3, 500).astype(np.float32))
    settings = utils.generate_thresholds([-1, 0, 0.1, 0.1, 0.5, 0.9, 1, np.inf], 3)
    swept = sweep.sweep(recorded, settings)
    for i in np.random.RandomState(2).permutation(len(settings)):
        for column, alone in zip(swept, sweep.sweep(recorded, [settings[i]])):
            np.testing.assert_array_equal(column[i], alone[0])


def test_one_exit_has_one_setting():
    swept = sweep.sweep(record_of(np.ones((1, 5), np.float32)), np.empty((1, 0)))
    np.testing.assert_array_equal(swept.exits, [[5]])


@pytest.mark.parametrize(
    'thresholds, message',
    [
        ([0.1, 0.2], r'thresholds have shape \(2,\): expected \(settings, 2\), at least one setting'),
        ([[0.1]], r'thresholds have shape \(1, 1\): expected \(settings, 2\), at least one setting'),
        (np.empty((0, 2)), r'thresholds have shape \(0, 2\): expected \(settings, 2\), at least one setting'),
        ([[0.1, math.nan]], 'thresholds hold NaN'),
    ],
)
def test_bad_thresholds_are_named(thresholds, message):
    with pytest.raises(ValueError, match=f'^{message}$'):
        sweep.sweep(record_of(np.ones((3, 5), np.float32)), thresholds)


def test_a_record_without_samples_is_refused():
    for function in sweep.sweep, sweep.percentiles:
        with pytest.raises(ValueError, match='^the exit record is empty: a sweep needs at least one sample$'):
            function(record_of(np.empty((2, 0), np.float32)), [[0.1]])


def test_percentiles_may_be_any():
    recorded = record_of(np.ones((1, 5), np.float32))
    found = sweep.percentiles(recorded, np.empty((1, 0)), q=[0, 50, 100])
    np.testing.assert_array_equal(found[:, 0], np.sort(recorded.whole[0])[[0, 2, 4]])


@pytest.mark.parametrize('count', [39, 0])
def test_samples_and_labels_of_a_record_must_match(count):
    x = X if count else X[:0]
    with pytest.raises(ValueError, match=f'^x has {len(x)} samples and y has {count}: both need the same number'):
        sweep.record(small_net(), x, T[:count])


def test_knee_is_the_fastest_that_is_good_enough():
    accuracy, seconds = [0.97, 0.99, 0.98, 0.985], [1.0, 4.0, 2.0, 3.0]
    assert sweep.knee(accuracy, seconds, 0.98) == 2
    assert sweep.knee(accuracy, seconds, 0.5) == 0
    assert sweep.knee(accuracy, seconds, 0.999) == 1  # none: the most accurate


@pytest.mark.parametrize(
    'accuracy, seconds, baseline, message',
    [
        ([0.9], [1.0], math.nan, '1 settings, baseline nan: expected one setting or more, and a number'),
        ([], [], 0.5, '0 settings, baseline 0.5: expected one setting or more, and a number'),
        ([math.nan], [1.0], 0.5, 'an accuracy or a time is NaN: expected numbers'),
        ([0.9], [math.nan], 0.5, 'an accuracy or a time is NaN: expected numbers'),
    ],
)
def test_no_knee_is_found_without_numbers(accuracy, seconds, baseline, message):
    with pytest.raises(ValueError, match=f'^{message}$'):
        sweep.knee(accuracy, seconds, baseline)


POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12)


@given(POINTS)
def test_pareto_by_the_definition(points):
    front = [points[i] for i in sweep.pareto([a for a, _ in points], [s for _, s in points])]
    assert [s for _, s in front] == sorted({s for _, s in front})
    assert set(front) == {
        (a, s) for a, s in points if not any((b, r) != (a, s) and b >= a and r <= s for b, r in points)
    }


def test_pareto_keeps_the_first_of_equal_settings():
    assert sweep.pareto([0.9, 0.8, 0.9, 0.7], [3.0, 1.0, 3.0, 2.0]).tolist() == [1, 0]


@pytest.mark.parametrize('accuracy, seconds', [([0.9, math.nan], [1.0, 2.0]), ([0.9, 0.8], [math.nan, 2.0])])
def test_pareto_refuses_nan(accuracy, seconds):
    with pytest.raises(ValueError, match='^an accuracy or a time is NaN: expected numbers$'):
        sweep.pareto(accuracy, seconds)


@given(POINTS.filter(len), st.integers(0, 5))
def test_knee_is_on_the_front(points, base):
    accuracy, seconds = zip(*points)
    assert points[sweep.knee(accuracy, seconds, base)] in [points[i] for i in sweep.pareto(accuracy, seconds)]


@pytest.mark.parametrize(
    't, error, message',
    [
        (T + 0.5, TypeError, 't has dtype float64: expected signed integers'),
        (T[:, None], ValueError, r't has shape \(40, 1\): expected \(40,\)'),
        (T - 3, ValueError, 't holds the label -3: expected 0 or more'),
    ],
)
def test_what_cannot_be_labels_is_refused(t, error, message):
    with pytest.raises(error, match=message):
        sweep.record(small_net(), X, t)


@pytest.mark.parametrize('compiled', [False, pytest.param(True, marks=pytest.mark.onednn)])
def test_an_answer_that_is_nan_is_no_record(compiled):
    net, x = small_net(), X.copy()
    net.main[0].W.array[...] = 1
    x[30] = 3e38  # overflows
    with pytest.raises(ValueError, match='^exit 0 answers NaN, first for sample 30: the weights hold NaN'):
        sweep.record(inference.Compiled(net) if compiled else net, x, T)


@pytest.mark.onednn
def test_test_and_record_name_the_same_label_where_probabilities_are_equal():
    net = small_net()
    net.models[0][-1].W.array[...] = 0
    net.models[0][-1].b.array[...] = [0.1, np.nextafter(np.float32(0.1), np.float32(1)), 0]  # one softmax, two logits
    net.thresholdExits = math.inf
    compiled, t = inference.Compiled(net), np.ones(len(X), np.int32)
    for answers in net, compiled:
        assert answers.test(X, t)[0] == answers.test(X[:1], t[:1])[0] == 1
        assert sweep.record(answers, X, t).correct[0].all()
        assert (inference.classify(answers, X, math.inf).label == 1).all()


@pytest.mark.onednn
def test_a_record_changes_no_setting_while_it_runs(monkeypatch):
    net, (x, t) = small_net(), small_data(8)
    for one in net, inference.Compiled(net):
        one.thresholdExits = seen = [0.25] * (net.numexits() - 1)
        test_at, settings = type(one).test_at, []

        def watched(self, *arguments, test_at=test_at, settings=settings):
            settings.append(self.thresholdExits)
            return test_at(self, *arguments)

        monkeypatch.setattr(type(one), 'test_at', watched)
        sweep.record(one, x, t)
        assert settings and all(setting is seen for setting in settings)


def test_settings_that_let_no_sample_leave_are_taken_in_any_form(capsys):
    net, (x, t) = small_net(), small_data(8)
    recorded = sweep.record(net, x, t)
    count = net.numexits() - 1
    expected = sweep.sweep(recorded, [[-math.inf] * count]).exits
    settings = [None] * count
    for thresholds in [settings], (settings,), np.array([settings], object):
        np.testing.assert_array_equal(sweep.sweep(recorded, thresholds).exits, expected)
    ts, accs, times, exits = utils.screen_branchy(net, x, t, [settings], enumerate_ts=False)
    np.testing.assert_array_equal(exits, expected)
    utils.branchy_table_results('net', 0.5, 1.0, accs, times, exits, ts)
    assert 'off' in capsys.readouterr().out


@pytest.mark.parametrize('run', [sweep.sweep, sweep.percentiles, calibration.judge])
def test_what_is_no_record_is_named(run):
    with pytest.raises(TypeError, match='^recorded is a float: expected an ExitRecord, which sweep.record returns$'):
        run(0.5, [[0.5]])


def test_a_single_threshold_is_no_list_of_settings():
    recorded = sweep.ExitRecord(*(np.ones((2, 3)) for _ in range(4)))
    with pytest.raises(TypeError, match='^thresholds is 0.5: expected settings, each a sequence of thresholds$'):
        sweep.sweep(recorded, 0.5)
