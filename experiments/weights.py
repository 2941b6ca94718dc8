"""Trained weights of the paper's networks: which samples their training saw, sweeps, and thresholds for a target.

    branchynet sweep results/lenet_mnist_quick --network lenet_mnist
    branchynet calibrate results/calibration/weights_lenet_mnist_seed0.npz --network lenet_mnist --accuracy-loss 0.1

A weights file says nothing of its training. results.json, calibration.json or the record of `branchynet train` beside
it does, if it lists the file's SHA-256.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

from branchynet import calibration, checkpoint, cpu, exits, files, schema, sweep, visualize
from branchynet.batching import batches
from branchynet.calibration import Judgement, Macs, Target
from branchynet.cost import cost
from branchynet.datasets import splits
from branchynet.experiments import calibrations, get_experiment, pages, results, runs, train
from branchynet.experiments.calibrations import CALIBRATION, HeldOut
from branchynet.experiments.run_id import RunId
from branchynet.net import BranchyNet

import numpy as np
from attrs import define

FINAL_EXIT = 'the final exit'  # as a baseline
Samples = tuple[np.ndarray, np.ndarray]  # x (N, ...), t (N,)


class Trained(NamedTuple):
    """The record, beside some weights, of their training.

    Attributes:
        training: the record; its images are the first ones of those that are not held out.
        held_out: the images that were left out; None: none was.
        test_samples: number of test images that belong to the training's data; None: all.
    """

    training: results.Training
    held_out: HeldOut | None = None
    test_samples: int | None = None


class Weights(NamedTuple):
    """Trained weights of a network of the paper.

    Attributes:
        path: of the file.
        experiment: that defines the network.
        variant: of the network.
        net: with the weights.
        baseline: a net whose main is the network before joint training; None if its file is missing.
        trained: the record of the training; None if there is none.
    """

    path: str
    experiment: Any
    variant: str
    net: BranchyNet
    baseline: BranchyNet | None
    trained: Trained | None

    def data(self) -> runs.Data:
        """The experiment's data.

        Raises:
            OSError: it is missing or damaged.
            ValueError: the weights were trained on other data.
        """
        data = x, y, x_test, t_test = self.experiment.get_data()
        trained = self.trained
        if trained is not None:
            if trained.held_out is not None:
                index = np.flatnonzero(seen(trained, y))
                x, y = x[index], y[index]
            its_data = runs.cut((x, y, x_test, t_test), trained.training.train_samples, trained.test_samples)
            try:
                runs.check_data(self.experiment.name, its_data, trained.training.data_sha256)
            except ValueError as e:
                raise ValueError(f'{e}; weights of another data set are swept and calibrated in Python alone') from e
        return data

    def macs(self, x: np.ndarray) -> Macs:
        """Multiply-adds for one of the samples x (N, ...)."""
        costs = cost(self.net, x.shape[1:])
        return Macs(costs.main.macs, [one.leaving.macs for one in costs.exits])

    def record(self, x: np.ndarray, t: np.ndarray, criterion: exits.Criterion) -> sweep.ExitRecord:
        """The exits' answers to samples and their times, one by one, compiled if possible."""
        with cpu.fast():
            return sweep.record(runs.for_inference(self.net), x, t, criterion=criterion)

    def baseline_correct(self, x: np.ndarray, t: np.ndarray) -> np.ndarray | None:
        """Whether the baseline classifies samples correctly, bool (N,); None if there is no baseline."""
        if self.baseline is None:
            return None
        with cpu.fast():
            parts = [self.baseline.run_main(x[part]).argmax(axis=1) for part in batches(len(x), runs.BATCHSIZE)]
        return np.concatenate(parts) == t


def load(path: str, network: str, variant: str) -> Weights:
    """Reads a weights file, and what lies beside it.

    Args:
        path: of the file.
        network: the experiment that defines the network.
        variant: one of VARIANTS.

    Returns:
        The Weights.

    Raises:
        OSError: the file is missing or damaged, or has the weights of another network; or a file beside it is damaged.
    """
    experiment = get_experiment(network)
    net = experiment.get_network(variant=variant)
    checkpoint.load_npz(path, net)
    net.thresholdExits = None  # a sweep and a calibration set their own
    trained, baseline = _trained(path, network), None
    main = path[: -len('.npz')] + '_main.npz'
    if path.endswith('.npz') and os.path.exists(main):
        if trained is not None:
            runs.check_written(main, trained.training.main_weights_sha256)
        baseline = experiment.get_network(variant=variant)
        checkpoint.load_npz(main, baseline.main)
    return Weights(path, experiment, variant, net, baseline, trained)


def _trained(path: str, network: str) -> Trained | None:
    """The record of a weights file's training, in a JSON file beside it: of calibrations, results or one training."""
    folder, sha256 = os.path.dirname(path), files.digest(path)
    if os.path.exists(os.path.join(folder, CALIBRATION)):
        for calibrated in calibrations.read(folder).runs:
            if calibrated.training.weights_sha256 == sha256:
                return Trained(calibrated.training, calibrated.held_out)
    if os.path.exists(results.path_of(folder)):
        for run in results.read(folder).experiments.get(network, []):
            if run.training.weights_sha256 == sha256:
                return Trained(run.training, test_samples=run.measurement.test_samples)
    named = re.fullmatch(f'weights_{network}_seed(\\d+).npz', os.path.basename(path))
    record = RunId(network, '', int(named.group(1))).record_path(folder) if named else ''
    if os.path.exists(record):
        training = schema.read(record, results.Training, train.EXPECTED)
        if training.weights_sha256 == sha256:
            return Trained(training)
    return None


def seen(trained: Trained, y: np.ndarray) -> np.ndarray:
    """Which training images a training saw, bool (N,), given the labels (N,) of all."""
    kept = np.arange(len(y))
    if trained.held_out is not None:
        kept, _ = splits.stratified(y, trained.held_out.samples, trained.held_out.seed)
    mask = np.zeros(len(y), bool)
    mask[kept[: trained.training.train_samples]] = True
    return mask


def hold_out(trained: Trained | None, y: np.ndarray, samples: int, seed: int) -> tuple[np.ndarray, int | None]:
    """Chooses training images to calibrate on, where possible some that the training did not see.

    Args:
        trained: of the weights; None: unknown.
        y: labels (N,) of all training images.
        samples: how many, at most. If the training left images out and there are fewer, all of them.
        seed: of the choice, which keeps the classes' shares.

    Returns:
        (indices, number of them that the training saw; None: unknown).

    Raises:
        ValueError: the number does not fit, or all chosen images have one label.
    """
    mask = np.zeros(len(y), bool) if trained is None else seen(trained, y)
    pool = np.arange(len(y)) if mask.all() else np.flatnonzero(~mask)
    classes = len(np.unique(y))
    if not classes <= samples <= len(y) - classes:
        raise ValueError(
            f'holdout is {samples}: expected {classes} to {len(y) - classes} of the {len(y)} training images'
        )
    index = pool
    if samples <= len(pool) - classes:
        index = pool[splits.stratified(y[pool], samples, seed)[1]]
    calibration.check_held_out(y[index])
    return index, None if trained is None else int(mask[index].sum())


# Calibration


@define(kw_only=True)
class Calibrated:
    """Thresholds that were chosen on held-out images: the output of `branchynet calibrate`.

    Attributes:
        network: the experiment that defines it.
        variant: of the network.
        weights_sha256: of the weights file.
        criterion: of exits.CRITERIA.
        thresholds: one for every exit but the last, for inference.classify; None: no sample leaves there.
        temperatures: for net.temperatures, to which the thresholds belong; None: the logits are taken as they are.
        target: the fields of the target that are set.
        guarantee: the probability with which the loss of accuracy is below the target; None: nothing is guaranteed.
        baseline: 'main', before joint training, or FINAL_EXIT, where its weights are missing.
        held_out_seen: how many of the held-out images the training saw; None: unknown.
        held_out: the effect of the thresholds on the images that they were chosen on.
        test: their effect on the test set.
        calibration_error_before: of each exit, on the test set, without temperatures; None: none were fitted.
        calibration_error: the same with the temperatures.
    """

    network: str
    variant: str
    weights_sha256: str
    criterion: str
    thresholds: list[Optional[float]]
    temperatures: Optional[list[float]]
    target: dict[str, Any]
    guarantee: Optional[float]
    baseline: str
    held_out_seen: Optional[int]
    held_out: Judgement
    test: Judgement
    calibration_error_before: Optional[list[float]]
    calibration_error: Optional[list[float]]


class Options(NamedTuple):
    """Choices of `branchynet calibrate` beside the target.

    Attributes:
        criterion: of exits.CRITERIA.
        temperature: whether a temperature is fitted for every exit.
        guarantee: as in calibration.choose.
        samples: of hold_out.
        seed: of hold_out and of calibration.choose.
    """

    criterion: str = 'entropy'
    temperature: bool = False
    guarantee: float | None = None
    samples: int = 10000
    seed: int = 0


def calibrate(weights: Weights, target: Target, options: Options) -> Calibrated:
    """Chooses thresholds on held-out training images and judges them on the test set.

    A guarantee holds for thresholds and not for temperatures: these are then fitted on the third of the held-out images
    that gives the path.

    Args:
        weights: of a network; with options.temperature, its net gets the temperatures.
        target: as in calibration.choose.
        options: the other choices.

    Returns:
        A Calibrated.

    Raises:
        calibration.Infeasible: no setting fulfils the target.
        OSError: the data is missing or damaged.
        ValueError: the target is impossible, too few images can be held out, or the weights were trained on other data.
    """
    calibration.check_target(target, weights.net.numexits(), options.guarantee)
    x, y, x_test, t_test = weights.data()
    index, seen_by_training = hold_out(weights.trained, y, options.samples, options.seed)
    x, t = x[index], y[index]
    criterion, macs = exits.CRITERIA[options.criterion], weights.macs(x)
    fitted = None
    if options.temperature:
        part = calibration.path_part(len(x), options.seed) if options.guarantee is not None else slice(None)
        fitted = fit_temperatures(weights.net, (x[part], t[part]), (x_test, t_test))
        weights.net.temperatures = fitted.temperatures
    recorded, baseline = weights.record(x, t, criterion), weights.baseline_correct(x, t)
    thresholds = calibration.choose(recorded, target, baseline, macs, options.guarantee, options.seed)
    tested = weights.record(x_test, t_test, criterion)
    return Calibrated(
        network=weights.experiment.name,
        variant=weights.variant,
        weights_sha256=files.digest(weights.path),
        criterion=criterion.name,
        thresholds=thresholds,
        temperatures=weights.net.temperatures,
        target={name: value for name, value in target._asdict().items() if value is not None},
        guarantee=options.guarantee,
        baseline=FINAL_EXIT if baseline is None else 'main',
        held_out_seen=seen_by_training,
        held_out=calibration.judge(recorded, thresholds, baseline, macs),
        test=calibration.judge(tested, thresholds, weights.baseline_correct(x_test, t_test), macs),
        calibration_error_before=None if fitted is None else fitted.calibration_error_before,
        calibration_error=None if fitted is None else fitted.calibration_error,
    )


class Temperatures(NamedTuple):
    """Temperatures of the exits, and what they change.

    Attributes:
        temperatures: of each exit.
        calibration_error_before: expected calibration error of each exit on the test set, without temperatures.
        calibration_error: the same with the temperatures.
    """

    temperatures: list[float]
    calibration_error_before: list[float]
    calibration_error: list[float]


def fit_temperatures(net: BranchyNet, held_out: Samples, test: Samples) -> Temperatures:
    """Fits temperatures on held-out samples and judges them on others.

    Args:
        net: its own temperatures are taken away.
        held_out: samples and labels.
        test: samples and labels.

    Returns:
        The Temperatures.
    """
    net.temperatures = None
    with cpu.fast():
        logits, tested = (calibration.logits_of(runs.for_inference(net), x) for x, _ in (held_out, test))
    temperatures = calibration.fit_temperatures(logits, held_out[1])

    def errors(temperatures: Sequence[float]) -> list[float]:
        probs = (exits.answer(one / np.float32(temperature)).prob for one, temperature in zip(tested, temperatures))
        return [calibration.expected_calibration_error(prob, test[1]) for prob in probs]

    return Temperatures(temperatures, errors([1.0] * len(temperatures)), errors(temperatures))


def draw_reliability(weights: Weights, path: str) -> None:
    """Draws how often each exit is right on the test set against its probability, with the net's temperatures.

    Args:
        weights: of a network.
        path: of the figure.
    """
    _, _, x, t = weights.data()
    with cpu.fast():
        logits = calibration.logits_of(runs.for_inference(weights.net), x)
    visualize.plot_reliability(t, np.stack([exits.answer(one).prob for one in logits]), output_path=path)


def text(found: Calibrated) -> str:
    """The output of `branchynet calibrate`, line by line."""
    thresholds = ', '.join('off' if t is None else f'{t:.6g}' for t in found.thresholds)
    lines = [f'thresholds ({found.criterion}): {thresholds}']
    if found.temperatures is not None:
        lines.append('temperatures: ' + ', '.join(f'{t:.4g}' for t in found.temperatures))
    for name, judged in ('held-out images', found.held_out), ('test set', found.test):
        low, high = judged.loss_interval_points
        shares = ' '.join(f'{share:.2f}' for share in judged.exit_percent)
        lines.append(
            f'{name} ({judged.samples}): accuracy {judged.accuracy_percent:.2f} %, loss under the baseline '
            f'{judged.loss_points:.2f} points (95 %: {low:.2f} to {high:.2f}); exits {shares} %; '
            f"{judged.whole_ms:.4f} ms; {judged.macs_percent:.1f} % of the baseline's multiply-adds"
        )
    if found.calibration_error_before is not None and found.calibration_error is not None:
        before, after = (
            ' '.join(f'{100 * error:.2f}' for error in errors)
            for errors in (found.calibration_error_before, found.calibration_error)
        )
        lines.append(f'calibration error of the exits, test set: {before} % before, {after} % after')
    return '\n'.join(lines + notes(found))


def notes(found: Calibrated) -> list[str]:
    """Warnings about the held-out images and the baseline, and the guarantee if it holds."""
    lines = []
    if found.held_out_seen is None:
        lines.append('nothing beside the weights says what they were trained on: perhaps on the held-out images too')
    elif found.held_out_seen:
        lines.append(
            f'the training saw {found.held_out_seen} of the {found.held_out.samples} held-out images: the network is '
            'better on them than on others, so this accuracy tells little; train without them (docs/calibration.md)'
        )
    if found.baseline == FINAL_EXIT:
        lines.append('the weights of the baseline are missing: the final exit is taken for it')
    if found.guarantee is not None and found.held_out_seen == 0:
        lines.append(f'with probability {found.guarantee:g} the loss is below {found.target["accuracy_loss"]:g} points')
    return [f'note: {line}' for line in lines]


# Sweep


COLUMNS = 'thresholds', 'accuracy_percent', 'exit_percent', 'released_ms', 'whole_ms', 'mark'


def sweep_test_set(weights: Weights, criterion: str, base_thresholds: list[float] | None) -> list[dict[str, Any]]:
    """Sweeps thresholds over the test set.

    Args:
        weights: of a network.
        criterion: of exits.CRITERIA.
        base_thresholds: every combination of them over the exits is a setting; None: those of the experiment, for
            another criterion than entropy the deciles of the scores of each exit.

    Returns:
        A JSON-ready dictionary for every setting, with the keys COLUMNS. Its mark is 'front' on the Pareto front of
        accuracy and time, else ''.

    Raises:
        OSError: the data is missing or damaged.
        ValueError: the weights were trained on other data.
    """
    _, _, x, t = weights.data()
    recorded = weights.record(x, t, exits.CRITERIA[criterion])
    if base_thresholds is None and criterion == exits.ENTROPY.name:
        base_thresholds = weights.experiment.base_thresholds
    choices = [
        base_thresholds or np.unique(np.quantile(score, np.linspace(0, 1, 11))).tolist()
        for score in recorded.score[:-1]
    ]
    swept = sweep.sweep(recorded, [list(setting) for setting in itertools.product(*choices)])
    front = sweep.pareto(swept.accuracy, swept.whole)
    return [
        {
            'thresholds': thresholds.tolist(),
            'accuracy_percent': 100 * float(accuracy),
            'exit_percent': (100 * left / left.sum()).tolist(),
            'released_ms': 1000 * float(released),
            'whole_ms': 1000 * float(whole),
            'mark': 'front' if i in front else '',
        }
        for i, (thresholds, accuracy, left, released, whole) in enumerate(zip(*swept))
    ]


def sweep_csv(found: list[dict[str, Any]]) -> str:
    """Settings as CSV, with lists separated by blanks as in the published tables."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator='\n')
    writer.writerow(COLUMNS)
    writer.writerows([pages.cell(row[column], 6) for column in COLUMNS] for row in found)
    return out.getvalue()


def sweep_text(found: list[dict[str, Any]]) -> str:
    """Settings as a table with columns of equal width."""
    table = [COLUMNS, *([pages.cell(row[column], 4) for column in COLUMNS] for row in found)]
    widths = [max(len(cells[i]) for cells in table) for i in range(len(COLUMNS))]
    return '\n'.join('  '.join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip() for cells in table)
