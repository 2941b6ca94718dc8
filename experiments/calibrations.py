"""The format of calibration.json: trainings that left images out, and the thresholds that were chosen on these."""

from __future__ import annotations

import os
from typing import Optional

from branchynet import schema
from branchynet.calibration import Judgement
from branchynet.experiments import results

from attrs import define, field

CALIBRATION = 'calibration.json'  # beside weights that experiments.calibration trained


@define(kw_only=True)
class HeldOut:
    """Images that a training did not see: those of ``splits.stratified(labels, samples, seed)``.

    Attributes:
        samples: their number.
        seed: of the choice.
    """

    samples: int
    seed: int


@define(kw_only=True)
class Choice:
    """Thresholds and what they do; of a target that cannot be fulfilled, the reason.

    Attributes:
        accuracy_loss: the target in points; None: thresholds that were not chosen for a target.
        baseline: 'main', before joint training, or 'the final exit'.
        guarantee: the probability that was asked for; None: none was.
        thresholds: of every exit but the last, nats; None: no sample leaves there.
        held_out: on the images that they were chosen on.
        test: on the test set.
        refused: the message of calibration.Infeasible; '' where there are thresholds.
    """

    accuracy_loss: Optional[float] = None
    baseline: str = 'main'
    guarantee: Optional[float] = None
    thresholds: Optional[list[Optional[float]]] = None
    held_out: Optional[Judgement] = None
    test: Optional[Judgement] = None
    refused: str = ''


@define(kw_only=True)
class Measurement:
    """The choices for one training.

    Attributes:
        environment: where the times were measured.
        choices: for either baseline and every target, without and with a guarantee.
        published: the paper's thresholds, judged on the test set.
        knee: the fastest setting of the experiment's sweep that is as accurate as the baseline, chosen on the test set
            and judged on it, as in the paper.
        temperatures: of each exit, fitted on the held-out images.
        calibration_error_before: expected calibration error of each exit on the test set, without temperatures.
        calibration_error: the same with the temperatures.
    """

    environment: results.Environment
    choices: list[Choice]
    published: Choice
    knee: Choice
    temperatures: list[float]
    calibration_error_before: list[float]
    calibration_error: list[float]


@define(kw_only=True)
class Run:
    """A network that was trained without the held-out images.

    Attributes:
        network: the experiment that defines it.
        seed: of the training.
        held_out: the images that it never saw.
        training: its history.
        measurement: None until the weights are measured.
    """

    network: str
    seed: int
    held_out: HeldOut
    training: results.Training
    measurement: Optional[Measurement] = None


@define(kw_only=True)
class Calibrations:
    """The content of calibration.json."""

    runs: list[Run] = field(factory=list)


def read(folder: str) -> Calibrations:
    """Reads a folder's calibration.json.

    Raises:
        OSError: it is missing or damaged.
    """
    return schema.read(os.path.join(folder, CALIBRATION), Calibrations, 'calibrations')
