"""Results made by hand."""
from __future__ import annotations

from typing import Any

import pytest

import branchynet  # noqa: F401
from branchynet.experiments import results, runs
from branchynet.experiments.results import (
    Baseline, Digest, DirectSetting, Exit1Curve, JointTraining, Macs, MainTraining, Measured, NetworkMeasurement,
    NetworkRun, Pairs, Results, SweptSetting, Timed, Training)


def timed(ms: float) -> Timed:
    """The same time whatever the average."""
    return Timed(mean_ms=ms, median_ms=ms, p95_ms=ms)


def direct(thresholds: list[float], **changes: Any) -> DirectSetting:
    """A setting as it is run by itself."""
    fields = dict(
        thresholds=thresholds, exit_percent=[90., 10.], accuracy_percent=98.5, released=timed(.5), whole=timed(1.),
        gain_released=4., gain_whole=3., gain_allowed=4.5, efficiency=3 / 4.5, composed_released_ms=.5,
        composed_whole_ms=1., images=Pairs(both_right=960, only_branchy_right=25, only_baseline_right=10, both_wrong=5))
    return DirectSetting(**{**fields, **changes})


def swept(threshold: float, accuracy: float, share: float, ms: float) -> SweptSetting:
    """A setting of the sweep."""
    return SweptSetting(
        thresholds=[threshold], accuracy_percent=accuracy, exit_percent=[share, 100 - share], released_ms=ms,
        whole_ms=2 * ms, whole_median_ms=2 * ms, whole_p95_ms=2 * ms, gain_released=2 / ms, gain_whole=1.5 / ms,
        gain_allowed=4., efficiency=.375 / ms)


@pytest.fixture
def example() -> Results:
    """One seed of LeNet, preset quick, whose every number differs from the published."""
    environment = runs.environment('.')
    environment.cpu, environment.cores = 'a processor', 2
    training = Training(
        variant='code', device='@numpy', main_epochs=2, joint_epochs=3, batchsize=64, train_samples=256,
        data_sha256='abcdef0123456789', environment=environment,
        main=MainTraining(loss=[.5, .4], accuracy=[.8, .9], weights_sha256=['a', 'b'], seconds=60.),
        joint=JointTraining(loss=[[.5, .4], [.4, .3], [.3, .25]], accuracy=[[.8, .9]] * 3,
                            weights_sha256=['c', 'd', 'e'], seconds=120.),
        main_weights_sha256='1' * 64, weights_sha256='0' * 64)
    measurement = NetworkMeasurement(
        device='@numpy', environment=environment, test_samples=1000, compiled=True,
        baseline=Baseline(accuracy_percent=97., accuracy_as_released_percent=97.25, released=timed(2.),
                          whole=timed(3.)),
        macs=Macs(main=900, exits=[100, 1100]), exit_accuracy_percent=[98., 99.],
        outputs={'correct': Digest(sha256='f' * 64, mean=.985)},
        exit1_curve=Exit1Curve(exit1_percent=[0., 50., 100.], accuracy_percent=[99., 98.75, 98.],
                               max_entropy_nat=[0., .1, 2.]),
        sweep=[swept(.025, 98.5, 90., .5), swept(.1, 98.75, 94., .4), swept(.5, 98.25, 96., .375)], knee=1,
        measured=Measured(published=direct([.025]), knee=direct([.1], accuracy_percent=98.75),
                          fastest=direct([.5]), slowest=direct([.025])),
        composed_off_percent=0.)
    return Results(preset='quick', variant='code', experiments={
        'lenet_mnist': [NetworkRun(seed=0, training=training, measurement=measurement)]})


@pytest.fixture
def written(example: Results, tmp_path) -> str:
    """A folder that holds the example's results.json."""
    results.write(str(tmp_path), example)
    return str(tmp_path)
