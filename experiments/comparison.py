"""Variants of a network, trained in the same way and compared by the accuracy of their final exits."""

from __future__ import annotations

import os
from functools import partial
from typing import Callable, NamedTuple

from branchynet import cpu, visualize
from branchynet.exits import answer, check_answer, labels
from branchynet.experiments import intervals, results, runs
from branchynet.experiments.run_id import RunId
from branchynet.net import BranchyNet

import numpy as np

AMOUNTS = {  # of training, by preset
    'smoke': runs.Preset(main_epochs=1, joint_epochs=1, batchsize=64, train_samples=256, test_samples=100),
    'quick': runs.Preset(main_epochs=4, joint_epochs=8, batchsize=128, train_samples=10000, test_samples=10000),
    'reduced': runs.Preset(main_epochs=12, joint_epochs=25, batchsize=512, train_samples=50000, test_samples=10000),
    'paper': runs.Preset(main_epochs=50, joint_epochs=100, batchsize=512, train_samples=50000, test_samples=10000),
}


class Part(NamedTuple):
    """A network of a comparison.

    Attributes:
        get_network: makes the net; it takes the argument `variant`.
        trained: whether the joint training starts from the trained baseline; False: from random weights.
    """

    get_network: Callable[..., BranchyNet]
    trained: bool = True


class Comparison(NamedTuple):
    """Networks that differ in one choice.

    Attributes:
        name: of the experiment.
        title: its heading in reports.
        xlabel: label of the axis along which the parts stand.
        parts: the networks by name.
        get_data: loads the arrays.
        presets: amounts of training by preset.
        published: published accuracies (shares) of the final exit by part; some parts may be absent.
    """

    name: str
    title: str
    xlabel: str
    parts: dict[str, Part]
    get_data: Callable[[], runs.Data]
    presets: dict[str, runs.Preset]
    published: dict[str, float]

    def amount(self, part: str, preset: runs.Preset) -> runs.Preset:
        """The amount of training of a part: that of the preset, without the baseline's where it starts at random.

        Args:
            part: its name.
            preset: of the experiment.
        """
        return preset if self.parts[part].trained else preset._replace(main_epochs=0)

    def minutes(self, preset: runs.Preset, data: runs.Data, setup: runs.Setup) -> float:
        """Estimates the minutes that one seed of all parts takes.

        Args:
            preset: the amount of training.
            data: cut to the preset.
            setup: the user's choices.
        """
        total = 0.0
        for part in self.parts:
            net = self.parts[part].get_network(variant=setup.variant)
            net.to_device(setup.device)
            total += runs.training_minutes(net, self.amount(part, preset), data)
        return total

    def run(self, run_id: RunId, data: runs.Data, setup: runs.Setup) -> results.ComparisonRun:
        """Trains one part with one seed and measures it.

        Args:
            run_id: of this experiment.
            data: cut to the preset.
            setup: the user's choices.

        Returns:
            The record of the training and its measurement.
        """
        record = self.train(run_id, self.presets[setup.preset], data, setup)
        measurement = self.measure(run_id, record, data, setup, setup.out)
        return results.ComparisonRun(seed=run_id.seed, part=run_id.part, training=record, measurement=measurement)

    def train(self, run_id: RunId, preset: runs.Preset, data: runs.Data, setup: runs.Setup) -> results.Training:
        """Trains one part with one seed, and writes the weights to the results folder. The checkpoint stays.

        Args:
            run_id: of this experiment.
            preset: the amount of training.
            data: cut to the preset.
            setup: the user's choices.

        Returns:
            The record of the training.
        """
        get_network = partial(self.parts[run_id.part].get_network, variant=setup.variant)
        training = runs.begin(run_id, get_network, self.amount(run_id.part, preset), data, setup)
        with cpu.fast():
            for phase in 'main', 'joint':
                training.train(phase)
        record = training.record
        record.weights_sha256 = training.save_weights(training.net, run_id.weights_path(setup.out))
        return record

    def measure(
        self, run_id: RunId, training: results.Training, data: runs.Data, setup: runs.Setup, folder: str
    ) -> results.ComparisonMeasurement:
        """Measures the weights that a training wrote.

        Args:
            run_id: of this experiment.
            training: its record.
            data: cut to the preset.
            setup: the user's choices; setup.out is the folder of the new results.
            folder: of the weights.

        Returns:
            The accuracies of the exits.

        Raises:
            OSError: weights are missing, or are not those of the training.
        """
        net = self.parts[run_id.part].get_network(variant=training.variant)
        runs.load_weights(net, run_id.weights_path(folder), training.weights_sha256)
        net.to_device(setup.device)
        x, t = data[2:]
        with cpu.fast():
            logits = runs.logits_of(net, x)
        entropy = np.stack([answer(of_exit).entropy for of_exit in logits])
        for k, of_exit in enumerate(entropy):
            check_answer(k, of_exit)
        correct = np.stack([labels(of_exit) == t for of_exit in logits])
        return results.ComparisonMeasurement(
            device=str(setup.device),
            environment=runs.environment(setup.out),
            test_samples=len(x),
            exit_accuracy_percent=(correct.mean(axis=1) * 100).tolist(),
            outputs={'entropy': runs.digest(entropy), 'correct': runs.digest(correct)},
        )

    def write(self, seeds: list[results.ComparisonRun], out: str) -> list[str]:
        """Draws the accuracy of the final exit by part, with its 95 % interval.

        Args:
            seeds: the runs.
            out: the results folder.

        Returns:
            The paths of the files.
        """
        of_part = {part: [run.measurement for run in seeds if run.part == part] for part in self.parts}
        parts = [part for part, found in of_part.items() if found]
        accuracies, ends = [], []
        for found in (of_part[part] for part in parts):
            percents = [one.exit_accuracy_percent[-1] for one in found]
            low, high = intervals.accuracy(percents, found[0].test_samples)
            accuracies.append([percent / 100 for percent in percents])
            ends.append((low / 100, high / 100))
        paths = [os.path.join(out, 'figures', f'{self.name}.{suffix}') for suffix in ('png', 'pdf')]
        for path in paths:
            visualize.plot_comparison(parts, accuracies, self.published, self.xlabel, path, ends)
        return paths
