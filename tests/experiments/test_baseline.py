"""The experiment that tests main after every epoch of its training, and its committed accuracies."""

from __future__ import annotations

from pathlib import Path

import branchynet  # noqa: F401
from branchynet.datasets import mnist
from branchynet.experiments import baseline, lenet_mnist, results, runs

import numpy as np
import pytest

RESULTS = Path(__file__).parents[2] / 'results'
COMMITTED = {'lenet_mnist': [0, 1, 2], 'alex_cifar10': [0]}  # with the seeds
PRESET = runs.Preset(main_epochs=4, joint_epochs=0, batchsize=50, train_samples=300, test_samples=100)


@pytest.fixture(scope='module')
def curve():
    return measure()


def measure():
    return baseline.measure(lenet_mnist.EXPERIMENT, 0, runs.cut(mnist.get_data(), PRESET), PRESET, 2)


def test_the_last_epochs_are_trained_twice(curve):
    assert len(curve.accuracy_percent) == len(curve.weights_sha256) == 4
    assert len(curve.with_smaller_steps_percent) == 2
    assert all(10 < accuracy <= 100 for accuracy in curve.accuracy_percent + curve.with_smaller_steps_percent)
    assert curve.accuracy_percent[0] < curve.accuracy_percent[2] < curve.accuracy_percent[0] + 90


def test_steps_of_the_same_size_give_the_same(monkeypatch, curve):
    monkeypatch.setattr(baseline, 'FACTOR', 1.0)
    again = measure()
    assert again.accuracy_percent == curve.accuracy_percent and again.weights_sha256 == curve.weights_sha256
    assert again.with_smaller_steps_percent == curve.accuracy_percent[-2:]


def test_the_table_has_the_ends_and_the_ranges():
    one = baseline.Curve(seed=5, accuracy_percent=[90.0, *[98.0] * 9, 97.5], with_smaller_steps_percent=[98.5, 99.0])
    text = baseline.table(baseline.Baseline(experiment='lenet_mnist', environment=None, curves=[one]))
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.strip().splitlines()]
    assert rows[2] == ['5', '97.50', '97.50 to 98.00', '99.00', '98.50 to 99.00']
    assert rows[3] == ['mean', '97.50', '-', '99.00', '-']


@pytest.mark.parametrize('network, seeds', COMMITTED.items())
def test_the_committed_trainings_are_those_of_the_committed_results(network, seeds):
    runs_of = results.read(str(RESULTS / f'{network}_paper')).experiments[network]
    trained = {run.seed: run.training for run in runs_of}
    found = baseline.read(str(RESULTS / f'baseline_{network}'))
    assert (found.experiment, [curve.seed for curve in found.curves]) == (network, seeds)
    for curve in found.curves:
        assert curve.weights_sha256 == trained[curve.seed].main.weights_sha256
        assert len(curve.accuracy_percent) == 50 and len(curve.with_smaller_steps_percent) == baseline.LAST
        assert np.isfinite(curve.with_smaller_steps_percent).all()


@pytest.mark.parametrize('network', COMMITTED)
def test_the_page_has_the_table_of_the_committed_file(network):
    page = (RESULTS.parent / 'docs' / 'reproducing.md').read_text()
    assert baseline.table(baseline.read(str(RESULTS / f'baseline_{network}'))) in page


def test_a_folder_of_another_network_is_refused(monkeypatch, capsys, tmp_path):
    given = ['baseline', '--only', 'alex_cifar10', '--out', str(tmp_path)]
    (tmp_path / baseline.FILE).write_bytes((RESULTS / 'baseline_lenet_mnist' / baseline.FILE).read_bytes())
    monkeypatch.setattr('sys.argv', given)
    monkeypatch.setattr('branchynet.determinism.fix', lambda profile: None)
    with pytest.raises(SystemExit):
        baseline.main()
    assert 'is of lenet_mnist: choose another folder' in capsys.readouterr().err
