"""Claims never pass by accident: properties of the verdicts, and mistakes in claims.toml."""

from __future__ import annotations

import copy
import math
from typing import Any

import branchynet  # noqa: F401
from branchynet import cli
from branchynet.experiments import claims, intervals, results
from branchynet.experiments.claims import FAIL, NOT_RUN, PASS

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


def test_where_no_setting_meets_a_claims_condition_it_fails_with_the_cause(example, capsys):
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


def test_a_setting_that_the_sweep_lacks_is_a_failure(example):
    example.preset = 'paper'
    verdict = verdict_of(example, 'notebook/B-LeNet/0.005/accuracy')
    assert (verdict.status, verdict.reason) == (FAIL, 'the sweep has no setting T = 0.005')


def test_a_measure_that_breaks_is_no_claim_left_out(example, monkeypatch):
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
    with pytest.raises(ValueError, match='claim quick/lenet_mnist ' + words):
        claims.claims()


def test_a_cause_is_shown_beside_the_failure_and_widens_nothing(example, monkeypatch, capsys):
    changed = copy.deepcopy(claims._file())
    entry = next(entry for entry in changed['claim'] if entry['id'] == 'quick/lenet_mnist')
    entry.update(expected=99.9, cause='too few epochs: branchynet reproduce --preset paper shows it')
    monkeypatch.setattr(claims, '_file', lambda: changed)
    verdict = verdict_of(example, 'quick/lenet_mnist')
    assert verdict.status == FAIL and verdict.claim.bounds()[0] == 99.9
    from branchynet.experiments import report

    assert 'too few epochs: branchynet reproduce --preset paper shows it' in '\n'.join(report.lines([verdict]))


def test_only_what_was_not_run_is_not_run(example):
    reasons = {v.reason for v in claims.check(example) if v.status == NOT_RUN}
    known = {'needs preset paper', 'needs preset paper and a GPU', 'needs a GPU', 'needs --device cpu'} | {
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
