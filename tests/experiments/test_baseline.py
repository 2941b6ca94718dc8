"""The experiment that tests main after every epoch of its training, and its committed accuracies."""

from __future__ import annotations

import re
from pathlib import Path
from unittest.mock import ANY

import branchynet  # noqa: F401
from branchynet import cpu, devices, schema, sweep, utils
from branchynet.datasets import mnist
from branchynet.experiments import baseline, claims, lenet_mnist, results, runs
from branchynet.experiments.run_id import RunId

import attrs
import numpy as np
import pytest

RESULTS = Path(__file__).parents[2] / 'results'
COMMITTED = {'lenet_mnist': [0, 1, 2], 'alex_cifar10': [0]}  # with the seeds
PRESET = runs.Preset(main_epochs=4, joint_epochs=3, batchsize=50, train_samples=300, test_samples=100)


@pytest.fixture(scope='module')
def curve():
    return measure()


def measure():
    return baseline.measure(
        lenet_mnist.EXPERIMENT, 0, runs.cut(mnist.get_data(), PRESET.train_samples, PRESET.test_samples), PRESET, 2
    )


def test_the_last_epochs_are_trained_twice(curve):
    assert len(curve.accuracy_percent) == len(curve.weights_sha256) == 4
    assert len(curve.with_smaller_steps_percent) == 2
    assert all(10 < accuracy <= 100 for accuracy in curve.accuracy_percent + curve.with_smaller_steps_percent)
    assert curve.accuracy_percent[0] < curve.accuracy_percent[2] < curve.accuracy_percent[0] + 90


def test_joint_training_follows_main_and_is_tested_too(curve, tmp_path):
    assert len(curve.as_released_percent) == len(curve.exits_percent) == len(curve.joint_weights_sha256) == 3
    assert all(len(exits) == 2 for exits in curve.exits_percent)
    setup = runs.Setup('code', devices.find_device('cpu'), str(tmp_path))
    with cpu.fast():
        training = runs.begin(
            RunId('lenet_mnist', '', 0),
            lenet_mnist.EXPERIMENT.get_network,
            PRESET,
            runs.cut(mnist.get_data(), PRESET.train_samples, PRESET.test_samples),
            setup,
        )
        training.train('main', 4)
        training.train('joint', 3)
    # It is the training of reproduce: testing between the epochs changes nothing.
    assert curve.weights_sha256 == training.record.main.weights_sha256
    assert curve.joint_weights_sha256 == training.record.joint.weights_sha256
    _, _, *test = runs.cut(mnist.get_data(), PRESET.train_samples, PRESET.test_samples)
    assert curve.as_released_percent[-1] == utils.test(training.net, *test, main=True)[0] * 100
    assert curve.exits_percent[-1] == (sweep.record(training.net, *test).correct.mean(axis=1) * 100).tolist()


def test_steps_of_the_same_size_give_the_same(monkeypatch, curve):
    monkeypatch.setattr(baseline, 'FACTOR', 1.0)
    again = measure()
    assert again.accuracy_percent == curve.accuracy_percent and again.weights_sha256 == curve.weights_sha256
    assert again.with_smaller_steps_percent == curve.accuracy_percent[-2:]


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split('|')[1:-1]] for line in table.strip().splitlines()]


def test_the_tables_have_the_ends_and_the_ranges():
    main = {'accuracy_percent': [90.0, *[98.0] * 9, 97.5], 'with_smaller_steps_percent': [98.5, 99.0]}
    joint = {
        'as_released_percent': [50.0, *[97.0] * 9, 97.25],
        'exits_percent': [[10.0, 20.0], *[[91.0, 94.0]] * 9, [92.0, 93.0]],
    }
    one, other = (
        baseline.Curve(seed=5, environment=None, **main),
        baseline.Curve(seed=6, environment=None, **main, **joint),
    )
    alone, *more = baseline.tables(of(one)).strip().split('\n\n')
    assert not more
    assert cells(alone)[2:] == [
        ['5', '97.50', '97.50 to 98.00', '99.00', '98.50 to 99.00'],
        ['mean', '97.50', '-', '99.00', '-'],
    ]
    alone, together = baseline.tables(of(one, other)).strip().split('\n\n')
    assert [row[0] for row in cells(alone)[2:]] == ['5', '6', 'mean']  # and the joint one has those that it knows:
    last = 'In the last 10 epochs'
    assert cells(together) == [
        ['Seed', 'As released, after the last joint epoch', last, 'Exit 1', last, 'Exit 2', last],
        ANY,
        ['6', '97.25', '97.00 to 97.25', '92.00', '91.00 to 92.00', '93.00', '93.00 to 94.00'],
        ['mean', '97.25', '-', '92.00', '-', '93.00', '-'],
    ]


def of(*curves: baseline.Curve) -> baseline.Baseline:
    return baseline.Baseline(experiment='lenet_mnist', curves=list(curves))


@pytest.mark.parametrize('network, seeds', COMMITTED.items())
def test_the_committed_trainings_are_those_of_the_committed_results(network, seeds):
    runs_of = results.read(str(RESULTS / f'{network}_paper')).experiments[network]
    trained = {run.seed: run.training for run in runs_of}
    found = baseline.read(str(RESULTS / f'baseline_{network}'))
    assert (found.experiment, [curve.seed for curve in found.curves]) == (network, seeds)
    for curve in found.curves:
        assert curve.weights_sha256 == trained[curve.seed].main.weights_sha256
        if curve.joint_weights_sha256:
            assert curve.joint_weights_sha256 == trained[curve.seed].joint.weights_sha256
            assert len(curve.as_released_percent) == len(curve.exits_percent) == 100
        assert len(curve.accuracy_percent) == 50 and len(curve.with_smaller_steps_percent) == baseline.LAST
        assert np.isfinite(curve.with_smaller_steps_percent).all()


def test_the_last_epoch_is_not_the_cause_of_lenets_accuracy_as_released():
    curves = [curve.as_released_percent for curve in baseline.read(str(RESULTS / 'baseline_lenet_mnist')).curves]
    last = [curve[-baseline.LAST :] for curve in curves]
    assert max(map(np.ptp, last)) < np.ptp([curve[-1] for curve in curves])
    assert max(map(max, last)) < float(claims.published('table1.csv')[0]['accuracy_percent'])


def test_what_a_page_says_of_two_processors_is_so():
    found = baseline.read(str(RESULTS / 'baseline_lenet_mnist')).curves
    runs_of = {
        run.seed: run.training for run in results.read(str(RESULTS / 'lenet_mnist_paper')).experiments['lenet_mnist']
    }
    for curve in found:
        assert 'Intel' in curve.environment.cpu and 'AMD' in runs_of[curve.seed].environment.cpu
        assert curve.environment.commit != runs_of[curve.seed].environment.commit
        assert len(curve.joint_weights_sha256) == 100


@pytest.mark.parametrize('network', COMMITTED)
def test_the_page_has_the_table_of_the_committed_file(network):
    page = (RESULTS.parent / 'docs' / 'reproducing.md').read_text()
    assert baseline.tables(baseline.read(str(RESULTS / f'baseline_{network}'))) in page


@pytest.fixture
def command(monkeypatch):
    """The command, with some arguments; returns its status."""
    monkeypatch.setattr('branchynet.determinism.fix', lambda profile: None)

    def run(*words):
        monkeypatch.setattr('sys.argv', ['baseline', *map(str, words)])
        return baseline.main()

    return run


def test_seeds_are_trained_that_are_missing_or_lack_the_joint_training(command, curve, monkeypatch, tmp_path):
    alone = attrs.evolve(curve, as_released_percent=[], exits_percent=[], joint_weights_sha256=[])
    schema.write(str(tmp_path / baseline.FILE), of(alone, attrs.evolve(curve, seed=2)))
    trained = []

    def measure(experiment, seed, data, preset, last):
        trained.append(seed)
        return attrs.evolve(curve, seed=seed)

    monkeypatch.setattr(baseline, 'measure', measure)
    assert command('--out', tmp_path, '--seeds', 3) == 0
    assert trained == [0, 1]
    found = baseline.read(str(tmp_path)).curves
    assert [one.seed for one in found] == [0, 1, 2] and all(one.exits_percent for one in found)
    assert command('--out', tmp_path, '--seeds', 3) == 0
    assert trained == [0, 1]


@pytest.mark.parametrize(
    'words, message',
    [
        (['--only', 'alex_cifar10'], 'is of lenet_mnist: choose another folder'),
        (['--seeds', '0'], '--seeds is 0: expected 1 or more'),
        (['--table', 'nowhere.md'], 'nowhere.md'),
    ],
)
def test_mistakes_are_told_in_one_line(command, capsys, tmp_path, words, message):
    (tmp_path / baseline.FILE).write_bytes((RESULTS / 'baseline_lenet_mnist' / baseline.FILE).read_bytes())
    assert command('--out', tmp_path, *words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1


@pytest.mark.parametrize('accuracies', ['[]', '[NaN]', '[101.0]'])
def test_accuracies_that_cannot_be_are_refused(command, capsys, tmp_path, curve, accuracies):
    schema.write(str(tmp_path / baseline.FILE), of(attrs.evolve(curve, accuracy_percent=[99.5])))
    path = tmp_path / baseline.FILE
    path.write_text(re.sub(r'\[\s*99.5\s*\]', accuracies, path.read_text()))
    assert command('--out', tmp_path, '--table', 'page.md') == 2
    error = capsys.readouterr().err
    assert 'accuracy_percent' in error and error.count('\n') == 1
