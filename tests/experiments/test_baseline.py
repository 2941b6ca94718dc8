"""The experiment that tests main after every epoch of its training, and its committed accuracies."""

from __future__ import annotations

from pathlib import Path

import branchynet  # noqa: F401
from branchynet.datasets import mnist
from branchynet.experiments import baseline, results, runs

import numpy as np
import pytest

RESULTS = Path(__file__).parents[2] / 'results'
PRESET = runs.Preset(main_epochs=4, joint_epochs=0, batchsize=50, train_samples=300, test_samples=100)


@pytest.fixture(scope='module')
def curve():
    return baseline.measure(0, runs.cut(mnist.get_data(), PRESET), PRESET, 2)


def test_the_last_epochs_are_trained_twice(curve):
    assert len(curve.accuracy_percent) == len(curve.weights_sha256) == 4
    assert len(curve.with_smaller_steps_percent) == 2
    assert all(10 < accuracy <= 100 for accuracy in curve.accuracy_percent + curve.with_smaller_steps_percent)
    assert curve.accuracy_percent[0] < curve.accuracy_percent[2] < curve.accuracy_percent[0] + 90


def test_steps_of_the_same_size_give_the_same(monkeypatch, curve):
    monkeypatch.setattr(baseline, 'FACTOR', 1.0)
    again = baseline.measure(0, runs.cut(mnist.get_data(), PRESET), PRESET, 2)
    assert again.accuracy_percent == curve.accuracy_percent and again.weights_sha256 == curve.weights_sha256
    assert again.with_smaller_steps_percent == curve.accuracy_percent[-2:]


def test_the_table_has_the_ends_and_the_ranges():
    one = baseline.Curve(seed=5, accuracy_percent=[90.0, *[98.0] * 9, 97.5], with_smaller_steps_percent=[98.5, 99.0])
    text = baseline.table(baseline.Baseline(environment=None, curves=[one]))
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.strip().splitlines()]
    assert rows[2] == ['5', '97.50', '97.50 to 98.00', '99.00', '98.50 to 99.00']
    assert rows[3] == ['mean', '97.50', '-', '99.00', '-']


def test_the_committed_trainings_are_those_of_the_committed_results():
    trained = {
        run.seed: run.training for run in results.read(str(RESULTS / 'lenet_mnist_paper')).experiments['lenet_mnist']
    }
    found = baseline.read(str(RESULTS / 'baseline'))
    assert [curve.seed for curve in found.curves] == list(range(baseline.SEEDS))
    for curve in found.curves:
        assert curve.weights_sha256 == trained[curve.seed].main.weights_sha256
        assert len(curve.accuracy_percent) == 50 and len(curve.with_smaller_steps_percent) == baseline.LAST
        assert np.isfinite(curve.with_smaller_steps_percent).all()


def test_the_page_has_the_table_of_the_committed_file():
    page = (RESULTS.parent / 'docs' / 'reproducing.md').read_text()
    assert baseline.table(baseline.read(str(RESULTS / 'baseline'))) in page
