"""Claims never pass by accident: properties of the verdicts, and mistakes in claims.toml."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import branchynet  # noqa: F401
from branchynet import cli
from branchynet.experiments import NAMES, baseline, claims, get_experiment, intervals, results, runs
from branchynet.experiments.claims import FAIL, NOT_RUN, PASS

import attrs
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

numbers = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([98.6, 98.599, 98.601])


def verdict_of(found: results.Results, name: str) -> claims.Verdict:
    return next(v for v in claims.check(found) if v.claim.id == name)


def with_measure(monkeypatch: pytest.MonkeyPatch, measure: Any) -> None:
    monkeypatch.setitem(claims.MEASURES, 'best_accuracy', measure)


@hypothesis.given(st.lists(numbers, min_size=1, max_size=3))
@hypothesis.settings(
    max_examples=60, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_a_claim_passes_exactly_if_the_mean_of_finite_numbers_is_within_its_bounds(example, values):
    found = copy.deepcopy(example)
    (run,) = found.experiments['lenet_mnist']
    found.experiments['lenet_mnist'] = [copy.deepcopy(run) for _ in values]
    for seed, one in enumerate(found.experiments['lenet_mnist']):
        one.seed = seed
    with pytest.MonkeyPatch.context() as patch:
        with_measure(patch, lambda claim, runs: values[runs[0].seed])
        verdict = verdict_of(found, 'quick/lenet_mnist')
    with np.errstate(all='ignore'):
        holds = all(map(math.isfinite, values)) and np.mean(values) >= 98.6
    assert verdict.status == (PASS if holds else FAIL)
    np.testing.assert_array_equal(verdict.measured, values)


def test_where_no_setting_meets_a_claims_condition_it_fails_with_the_cause(example):
    for row in example.experiments['lenet_mnist'][0].measurement.sweep:
        row.exit_percent = [12.0, 88.0]
    verdict = verdict_of(example, 'quick/lenet_mnist')
    assert (verdict.status, verdict.measured) == (FAIL, [])
    assert verdict.reason == 'no setting lets 80 % leave at exit 1 (at most 12 %)'


def test_the_report_of_a_run_that_diverged_is_made(example, tmp_path, capsys):
    for row in example.experiments['lenet_mnist'][0].measurement.sweep:
        row.exit_percent = [0.0, 100.0]
    example.experiments['lenet_mnist'][0].training.joint.loss[-1] = [math.nan, math.nan]
    results.write(str(tmp_path), example)
    assert cli.main(['report', str(tmp_path)]) == 1
    assert 'FAIL: quick/lenet_mnist: ' in capsys.readouterr().out


def test_a_setting_that_the_sweep_lacks_is_a_failure(published):
    verdict = verdict_of(published, 'notebook/B-LeNet/0.005/accuracy')
    assert (verdict.status, verdict.reason) == (FAIL, 'the sweep has no setting T = 0.005')


def test_an_error_in_a_measure_is_raised_and_not_counted_as_not_run(example, monkeypatch):
    def broken(claim, runs):
        raise KeyError('misspelt')

    with_measure(monkeypatch, broken)
    with pytest.raises(KeyError):
        claims.check(example)


@pytest.mark.parametrize(
    'change, words',
    [
        ({'measure': 'best_acuracy'}, 'has measure best_acuracy: expected one of best_accuracy'),
        ({'preset': 'papre'}, 'has preset papre: expected one of smoke, quick, reduced, paper'),
        ({'better': 'more'}, 'has better more: expected one of higher, lower, same'),
        ({'experiment': 'lenet'}, 'has experiment lenet: expected one of lenet_mnist'),
        ({'tolerence': 1}, 'has the unknown key tolerence'),
        ({'measure': None}, 'lacks measure'),
        ({'why': None}, 'lacks why'),
        ({'tolerance': None}, 'has neither tolerance nor relative'),
        ({'cause': [{'experiment': 'lenet_mnist', 'text': 'it'}]}, 'has a cause with experiment, text: expected'),
        (
            {'cause': [{'experiment': 'lenet_mnist', 'explains': [0, 1], 'text': 'it', 'were': {}}]},
            'has a cause with experiment, explains, text, were: expected',
        ),
        ({'rows': ['table1.csv']}, "needs 'expected', or 'rows' with 'value'"),
        ({'expected': None}, "needs 'expected', or 'rows' with 'value'"),
    ],
)
def test_a_mistake_in_claims_toml_is_an_error(monkeypatch, change, words):
    changed = copy.deepcopy(claims._file())
    entry = next(entry for entry in changed['claim'] if entry['id'] == 'quick/lenet_mnist')
    for key, value in change.items():
        if value is None:
            del entry[key]
        else:
            entry[key] = value
    monkeypatch.setattr(claims, '_file', lambda: changed)
    with pytest.raises(ValueError, match='claim quick/lenet_mnist ?' + words):
        claims.claims()


def test_a_cause_is_shown_beside_the_failure_and_widens_nothing(example, monkeypatch):
    changed = copy.deepcopy(claims._file())
    entry = next(entry for entry in changed['claim'] if entry['id'] == 'quick/lenet_mnist')
    text = 'too few epochs: branchynet reproduce --preset paper shows it'
    entry.update(expected=99.9, cause=[{'experiment': 'lenet_mnist', 'explains': [98, 99.9], 'text': text}])
    monkeypatch.setattr(claims, '_file', lambda: changed)
    verdict = verdict_of(example, 'quick/lenet_mnist')
    assert verdict.status == FAIL and verdict.claim.bounds()[0] == 99.9
    from branchynet.experiments.verdicts import lines

    assert text in '\n'.join(lines([verdict]))
    entry['cause'][0]['explains'] = [98, 98.1]
    assert 'cause' not in '\n'.join(lines([verdict]))


RESULTS = Path(__file__).parents[2] / 'results'


@pytest.mark.parametrize(
    'folder',
    [
        'alex_cifar10_paper',
        'alex_cifar10_quick',
        'lenet_mnist_paper',
        'lenet_mnist_quick',
        'resnet_cifar10_quick',
        'resnet_cifar10_reduced',
    ],
)
def test_every_failure_of_the_committed_results_has_a_known_cause(folder):
    verdicts = claims.check(results.read(str(RESULTS / folder)))
    assert any(v.status == PASS for v in verdicts)
    assert not [v.claim.id for v in verdicts if v.status == FAIL and not v.cause]


def _of_notebook(verdicts):
    """Those on accuracies of the authors' notebook."""
    return [v for v in verdicts if v.claim.id.startswith('notebook/') and v.claim.id.endswith('/accuracy')]


def test_the_numbers_in_causes_are_those_of_the_committed_results():
    found = results.read(str(RESULTS / 'alex_cifar10_paper'))
    runs = found.experiments['alex_cifar10']
    failed = [v for v in claims.check(found) if v.status == FAIL]
    accuracies = _of_notebook(failed)
    last = max(claims._setting(v.claim, run).exit_percent[-1] for v in accuracies for run in runs)
    assert f'at most {last:.1f} % ' in accuracies[0].cause
    for seed, run in enumerate(runs):
        one, two, _ = run.measurement.exit_accuracy_percent
        assert f'{one:.2f} and {two:.2f} % for seed {seed}' in accuracies[0].cause
    centred = results.read(str(RESULTS / 'gcn_centred' / 'alex_cifar10_paper'))
    (one, *_) = centred.experiments['alex_cifar10'][0].measurement.exit_accuracy_percent
    falling = _of_notebook([v for v in claims.check(centred) if v.status == FAIL])
    assert f'right on {one:.2f} %, and {len(falling)} of the settings fail' in accuracies[0].cause
    run = runs[0]
    shares = next(v for v in failed if v.claim.id == 'table1/CPU/B-AlexNet/exit 1')
    published = [65.6, 25.2, 9.2]
    for near in sorted(run.measurement.sweep, key=lambda s: np.abs(np.subtract(s.exit_percent, published)).max())[:2]:
        thresholds, left = ' '.join(map(str, near.thresholds)), ' '.join(f'{share:.1f}' for share in near.exit_percent)
        assert f'T = {thresholds} ({left} %' in shares.cause and f'{near.accuracy_percent:.2f} %' in shares.cause
    claim = next(claim for claim in claims.claims() if claim.id == 'table1/CPU/LeNet/accuracy before joint training')
    curves = baseline.read(str(RESULTS / 'baseline_lenet_mnist')).curves
    reached = [max(curve.accuracy_percent) >= claim.bounds()[0] for curve in curves]
    assert (sum(reached), len(reached)) == (2, 3) and 'two of the three seeds' in claim.cause(98.9)


@pytest.mark.parametrize(
    'name, known, unknown',
    [
        ('table1/CPU/LeNet/accuracy before joint training', [98.9], [98.5, 10, math.nan]),
        ('table1/CPU/AlexNet/accuracy before joint training', [76], [74, 10]),
        ('table1/CPU/B-LeNet/gain/whole', [2.7], [1.4, 0.1]),
        ('table1/CPU/B-LeNet/gain/released', [], [2.7]),
        ('table1/GPU/B-LeNet/gain/whole', [], [2.7]),
        ('table1/CPU/B-AlexNet/exit 1', [39], [30, 95]),
        ('table1/CPU/B-AlexNet/exit 3', [22], [39, 95]),
        ('notebook/B-AlexNet/0.01 5.0/accuracy', [77], [60]),
        ('text/speed-up/CPU/B-AlexNet/whole', [1.3], [0.5]),
        ('text/speed-up/GPU/B-AlexNet/whole', [], [1.3]),
    ],
)
def test_a_cause_explains_only_the_figures_that_it_was_found_for(name, known, unknown):
    (claim,) = (claim for claim in claims.claims() if claim.id == name)
    assert all(claims.Verdict(claim, FAIL, [value], '').cause for value in known)
    assert not any(claims.Verdict(claim, FAIL, [value], '').cause for value in unknown)
    assert not any(claims.Verdict(claim, PASS, [value], '').cause for value in known)


def test_a_training_that_has_not_ended_checks_no_claim_of_its_preset(published):
    (run,) = published.experiments['lenet_mnist']
    name = 'table1/CPU/LeNet/accuracy'
    assert verdict_of(published, name).measured
    more = copy.deepcopy(run)
    more.seed, more.training.joint_epochs = 1, 4
    published.experiments['lenet_mnist'].append(more)
    verdict = verdict_of(published, name)
    assert verdict.status == NOT_RUN
    assert verdict.reason == 'needs all 50 + 100 epochs of preset paper (this run has 50 + 4)'
    more.training.joint_epochs, more.training.main_epochs = 100, 49
    assert verdict_of(published, name).status == NOT_RUN
    more.training.main_epochs, more.training.joint_epochs = 12, 35  # enough for the claims of quick
    assert verdict_of(published, 'quick/lenet_mnist').status != NOT_RUN


@pytest.mark.parametrize(
    'of, field, amount, reason',
    [
        ('training', 'main_epochs', 51, 'the 50 main epochs of preset paper (this run has 51)'),
        ('training', 'joint_epochs', 101, 'the 100 joint epochs of preset paper (this run has 101)'),
        ('training', 'batchsize', 256, 'the 512 images per step of preset paper (this run has 256)'),
        ('training', 'train_samples', 59999, 'the 60000 training images of preset paper (this run has 59999)'),
        ('measurement', 'test_samples', 9999, 'the 10000 test images of preset paper (this run has 9999)'),
    ],
)
@pytest.mark.parametrize('name', ['table1/CPU/LeNet/accuracy', 'quick/lenet_mnist'])
def test_a_run_with_other_amounts_than_its_preset_checks_no_claim(published, name, of, field, amount, reason):
    assert verdict_of(published, name).status != NOT_RUN
    (run,) = published.experiments['lenet_mnist']
    other = copy.deepcopy(run)
    other.seed = 1
    setattr(getattr(other, of), field, amount)
    published.experiments['lenet_mnist'].append(other)
    verdict = verdict_of(published, name)
    assert (verdict.status, verdict.reason) == (NOT_RUN, f'needs {reason}')


def test_a_part_that_was_to_start_from_a_trained_baseline_has_one():
    found = results.read(str(RESULTS / 'initialisation_reduced'))
    found.preset, name = 'paper', 'text/initialisation'
    for run in found.experiments['initialisation']:
        run.training.joint_epochs = 100
        run.training.main_epochs = 50 if run.part == 'trained' else 0
    assert verdict_of(found, name).measured
    found.experiments['initialisation'][1].training.main_epochs = 0
    assert verdict_of(found, name).reason == 'needs all 50 + 100 epochs of preset paper (this run has 0 + 100)'


def test_every_preset_of_an_experiment_says_all_its_amounts():
    assert all(None not in preset for name in NAMES for preset in get_experiment(name).presets.values())


def test_a_share_that_the_curve_lacks_is_a_failure(example):
    claim = next(c for c in claims.claims() if c.id.startswith('figure4/accuracy') and float(c.row['x']) > 50)
    (run,) = example.experiments['lenet_mnist']
    run.measurement.exit1_curve = results.Exit1Curve(
        exit1_percent=[0.0, 50.0], accuracy_percent=[99.0, 98.0], max_entropy_nat=[0.0, 1.0]
    )
    for measure in claims.accuracy_at_share, claims.entropy_at_share:
        with pytest.raises(claims.NotFound, match=f'the curve has no share of {claim.row["x"]} %, only 0 to 50 %'):
            measure(claim, [run])


@pytest.mark.parametrize(
    'change',
    [
        {'cache_miss_percent': -1.0},
        {'cache_miss_percent': math.nan},
        {'cache_miss_percent': math.inf},
        {'misses': -1},
        {'references': 0},
    ],
)
def test_no_cache_miss_rate_is_below_nothing(change):
    point = {'thresholds': [], 'runtime_ms': 1.0, 'references': 10, 'misses': 0, 'cache_miss_percent': 0.0}
    results.CachePoint(**point)
    with pytest.raises(ValueError, match=next(iter(change))):
        results.CachePoint(**{**point, **change})


def cache_of(**percent_by_thresholds):
    """A measurement of figure 6 with the settings high, low and baseline, as far as they are given."""
    thresholds = {'high': [10.0, 10.0], 'low': [0.1, 0.1], 'baseline': []}
    points = [
        results.CachePoint(
            thresholds=thresholds[name], runtime_ms=1.0, references=1000, misses=1, cache_miss_percent=percent
        )
        for name, percent in percent_by_thresholds.items()
    ]
    environment = runs.environment('.')
    return results.CacheMeasurement(
        device='@numpy',
        environment=environment,
        test_samples=200,
        data_sha256='',
        variant='code',
        tool='a tool',
        cache=points,
    )


@pytest.mark.parametrize('kept', [['baseline'], ['high', 'low'], ['high'], [], ['baseline', 'high']])
def test_counts_without_settings_or_without_the_baseline_at_the_end_are_refused(kept):
    with pytest.raises(ValueError, match='expected some settings, then the baseline'):
        cache_of(**dict.fromkeys(kept, 1.0))


def test_the_rate_of_cache_misses_is_that_of_the_setting_at_which_all_leave():
    (claim,) = (claim for claim in claims.claims() if claim.id == 'figure6/direction')
    run = results.CacheRun(seed=0, measurement=cache_of(low=1.0, high=3.0, baseline=2.0))
    assert claims.cache_miss_ratio(claim, [run]) == 1.5
    run = results.CacheRun(seed=0, measurement=cache_of(low=1.0, baseline=2.0))
    with pytest.raises(claims.NotFound, match='no setting was counted whose thresholds are 2.5 nats or more'):
        claims.cache_miss_ratio(claim, [run])


def test_counts_with_weights_that_were_replaced_are_no_verdict(example):
    (trained,) = example.experiments['lenet_mnist'][:1]
    found = results.Results(preset='paper', variant='code', experiments={'alex_cifar10': [trained]})
    for weights, status in ((None, FAIL), (trained.training.weights_sha256, FAIL), ('other', NOT_RUN)):
        measurement = attrs.evolve(cache_of(high=3.0, low=1.0, baseline=2.0), weights_sha256=weights)
        found.experiments['figure6'] = [results.CacheRun(seed=trained.seed, measurement=measurement)]
        verdict = verdict_of(found, 'figure6/direction')
        assert verdict.status == status, verdict
    assert verdict.reason == 'needs figure6 counted again (it was, with weights that this folder does not have)'


def test_a_measurement_has_the_exits_of_its_training(example):
    (run,) = example.experiments['lenet_mnist'][:1]
    run.training.joint.loss[-1].append(0.1)
    with pytest.raises(ValueError, match='has 2 exits in its measurement: expected as many as its training'):
        attrs.evolve(run)


def test_the_minutes_of_every_claim_are_known():
    assert all(claim.minutes() > 0 for claim in claims.claims() if 'measure' in claim.entry)


def test_only_what_was_not_run_is_not_run(example):
    reasons = {v.reason for v in claims.check(example) if v.status == NOT_RUN}
    no_test = 'with thresholds of 2.5 nats or more all images leave at exit 1, whatever the network'
    known = {'needs preset paper', 'needs preset paper and a GPU', 'needs a GPU', 'needs --device cpu', no_test} | {
        f'{name} was not run'
        for name in ('alex_cifar10', 'resnet_cifar10', 'figure5', 'figure6', 'loss_weights', 'initialisation')
    }
    assert reasons - known == {entry['not_checked'] for entry in claims._file()['claim'] if 'not_checked' in entry}


def test_the_tolerance_of_a_share_is_that_of_its_exit():
    """B-AlexNet's are the differences between the authors' two runs."""
    table = next(
        row for row in claims.published('table1.csv') if (row['device'], row['network']) == ('CPU', 'B-AlexNet')
    )
    notebook = next(
        row for row in claims.published('notebook_alex_cifar10.csv') if row['thresholds'] == table['thresholds']
    )
    pairs = zip(*(map(float, row['exit_percent'].split()) for row in (table, notebook)))
    for k, (one, other) in enumerate(pairs, 1):
        claim = next(claim for claim in claims.claims() if claim.id == f'table1/CPU/B-AlexNet/exit {k}')
        least, most = claim.bounds()
        assert abs(max(most - one, one - least) - abs(one - other)) < 0.05


def test_no_range_of_a_share_or_an_entropy_leaves_what_there_is():
    for claim in claims.claims():
        if claim.entry.get('measure') in ('exit_share', 'entropy_at_share'):
            least, most = claim.bounds()
            assert least >= 0 and most <= 100


def test_both_baselines_are_claimed():
    ids = {claim.id for claim in claims.claims()}
    for network in 'LeNet', 'AlexNet', 'ResNet':
        assert {f'table1/CPU/{network}/accuracy', f'table1/CPU/{network}/accuracy before joint training'} <= ids


@hypothesis.given(st.integers(1, 10000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_holds_the_share(counts):
    correct, count = counts
    low, high = intervals.wilson(correct, count)
    assert 0 <= low <= correct / count <= high <= 1


@hypothesis.given(st.lists(st.floats(0, 100), min_size=2, max_size=6))
@hypothesis.example([0.0, 6e-277])  # whose squares are 0
@hypothesis.example([0.1, 0.1, 0.1])
def test_the_interval_over_seeds_holds_the_mean(values):
    low, high = intervals.accuracy(values, 10000)
    assert low - 1e-9 <= np.mean(values) <= high + 1e-9


def test_mcnemar_is_symmetric_and_1_without_a_difference():
    assert intervals.mcnemar(0, 0) == intervals.mcnemar(7, 7) == 1
    assert intervals.mcnemar(3, 12) == intervals.mcnemar(12, 3) < 0.05
