"""Results made by hand, and those of a short training."""

from __future__ import annotations

import contextlib
import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import branchynet  # noqa: F401
from branchynet import cli
from branchynet.experiments import PRESETS, lenet_mnist, results, runs
from branchynet.experiments.results import (
    Baseline,
    Digest,
    DirectSetting,
    Exit1Curve,
    JointTraining,
    Macs,
    MainTraining,
    Measured,
    NetworkMeasurement,
    NetworkRun,
    Pairs,
    Results,
    SweptSetting,
    Timed,
    Training,
)

import pytest
from helpers import TINY
from matplotlib.figure import Figure

_SAVEFIG = Figure.savefig


@contextlib.contextmanager
def blank_figures() -> Iterator[pytest.MonkeyPatch]:
    """Figures are made, but blank ones are saved: to render them takes half of the tests' time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, 'savefig', lambda self, *args, **kwargs: _SAVEFIG(Figure((1, 1)), *args, **kwargs))
        yield patch


@pytest.fixture(scope='module', autouse=True)
def _blank_figures():
    """Blank figures in the tests of this folder, and in no others."""
    with blank_figures():
        yield


@pytest.fixture
def rendered_figures(monkeypatch):
    """Figures are rendered in the test that asks for this: one for each kind of figures."""
    monkeypatch.setattr(Figure, 'savefig', _SAVEFIG)


def timed(ms: float) -> Timed:
    """The same time whatever the average."""
    return Timed(mean_ms=ms, median_ms=ms, p95_ms=ms)


def direct(thresholds: list[float], **changes: Any) -> DirectSetting:
    """A setting as it is run by itself."""
    fields = dict(
        thresholds=thresholds,
        exit_percent=[90.0, 10.0],
        accuracy_percent=98.5,
        released=timed(0.5),
        whole=timed(1.0),
        gain_released=4.0,
        gain_whole=3.0,
        gain_allowed=4.5,
        efficiency=3 / 4.5,
        composed_released_ms=0.5,
        composed_whole_ms=1.0,
        images=Pairs(both_right=960, only_branchy_right=25, only_baseline_right=10, both_wrong=5),
    )
    return DirectSetting(**{**fields, **changes})


def swept(threshold: float, accuracy: float, share: float, ms: float) -> SweptSetting:
    """A setting of the sweep."""
    return SweptSetting(
        thresholds=[threshold],
        accuracy_percent=accuracy,
        exit_percent=[share, 100 - share],
        released_ms=ms,
        whole_ms=2 * ms,
        whole_median_ms=2 * ms,
        whole_p95_ms=2 * ms,
        gain_released=2 / ms,
        gain_whole=1.5 / ms,
        gain_allowed=4.0,
        efficiency=0.375 / ms,
    )


@pytest.fixture
def example() -> Results:
    """One seed of LeNet by preset quick, whose every number differs from the published."""
    environment = runs.environment('.')
    environment.cpu, environment.cores = 'a processor', 2
    training = Training(
        variant='code',
        device='@numpy',
        main_epochs=12,
        joint_epochs=35,
        batchsize=128,
        train_samples=60000,
        data_sha256='abcdef0123456789',
        environment=environment,
        main=MainTraining(loss=[0.5, 0.4] * 6, accuracy=[0.8, 0.9] * 6, weights_sha256=['a', 'b'] * 6, seconds=60.0),
        joint=JointTraining(
            loss=[[0.5, 0.4]] + [[0.4, 0.3]] * 34,
            accuracy=[[0.8, 0.9]] * 35,
            weights_sha256=['c'] * 35,
            seconds=120.0,
        ),
        main_weights_sha256='1' * 64,
        weights_sha256='0' * 64,
    )
    measurement = NetworkMeasurement(
        device='@numpy',
        environment=environment,
        test_samples=10000,
        compiled=True,
        baseline=Baseline(
            accuracy_percent=97.0, accuracy_as_released_percent=97.25, released=timed(2.0), whole=timed(3.0)
        ),
        macs=Macs(main=900, exits=[100, 1100]),
        exit_accuracy_percent=[98.0, 99.0],
        outputs={'correct': Digest(sha256='f' * 64, mean=0.985)},
        exit1_curve=Exit1Curve(
            exit1_percent=[0.0, 50.0, 100.0], accuracy_percent=[99.0, 98.75, 98.0], max_entropy_nat=[0.0, 0.1, 2.0]
        ),
        sweep=[swept(0.025, 98.5, 90.0, 0.5), swept(0.1, 98.75, 94.0, 0.4), swept(0.5, 98.25, 96.0, 0.375)],
        knee=1,
        measured=Measured(
            published=direct([0.025]),
            knee=direct([0.1], accuracy_percent=98.75),
            fastest=direct([0.5]),
            slowest=direct([0.025]),
        ),
        composed_off_percent=0.0,
    )
    return Results(
        preset='quick',
        variant='code',
        experiments={'lenet_mnist': [NetworkRun(seed=0, training=training, measurement=measurement)]},
    )


@pytest.fixture
def published(example: Results) -> Results:
    """A copy of the example, as a run of preset paper."""
    found = copy.deepcopy(example)
    found.preset = 'paper'
    training = found.experiments['lenet_mnist'][0].training
    training.batchsize, training.main_epochs, training.joint_epochs = 512, 50, 100
    for phase, count in (training.main, 50), (training.joint, 100):
        for history in phase.loss, phase.accuracy, phase.weights_sha256:
            history += history[-1:] * (count - len(history))
    return found


@pytest.fixture
def written(example: Results, tmp_path) -> str:
    """A folder that holds the example's results.json."""
    results.write(str(tmp_path), example)
    return str(tmp_path)


@pytest.fixture
def tiny(monkeypatch) -> None:
    """The LeNet experiment, its presets all tiny."""
    monkeypatch.setattr(
        lenet_mnist, 'EXPERIMENT', lenet_mnist.EXPERIMENT._replace(presets=dict.fromkeys(PRESETS, TINY))
    )


@pytest.fixture(scope='package')
def trained(tmp_path_factory) -> Path:
    """A results folder that a tiny run of LeNet wrote; tests read it."""
    folder = tmp_path_factory.mktemp('trained') / 'out'
    words = ['--only', 'lenet_mnist', '--preset', 'smoke', '--device', 'cpu', '--out', str(folder)]
    with blank_figures() as patch:
        patch.setattr(lenet_mnist, 'EXPERIMENT', lenet_mnist.EXPERIMENT._replace(presets=dict.fromkeys(PRESETS, TINY)))
        assert cli.main(['reproduce', *words]) == 0
    return folder


@pytest.fixture
def folder(trained, tmp_path) -> Path:
    """A copy of that folder, for a test to change."""
    shutil.copytree(trained, tmp_path / 'copy')
    return tmp_path / 'copy'
