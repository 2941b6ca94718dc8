"""Tests a network after every epoch of its training, to show why it falls short of the published accuracy.

    python -m branchynet.experiments.baseline --only lenet_mnist --seeds 3 --out results/baseline_lenet_mnist
    python -m branchynet.experiments.baseline --out results/baseline_lenet_mnist --table docs/reproducing.md

The first command trains as preset paper does, with the same bits, for every seed: main, then all exits jointly. Then
the last LAST epochs of main are trained a second time from the same state, with the same batches and a tenth of Adam's
step size. On 2 cores, a seed of lenet_mnist takes about a quarter of an hour, one of alex_cifar10 two and a half hours.
Accuracies go to the folder's baseline.json. Seeds that it holds are not trained again, unless it lacks their joint
training. The second command trains nothing: it puts the tables of a folder between the markers of a page.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from typing import Any

from branchynet import cpu, determinism, devices, files, schema, sweep, utils
from branchynet.experiments import alex_cifar10, lenet_mnist, pages, results, runs
from branchynet.experiments.network_experiment import NetworkExperiment
from branchynet.experiments.run_id import RunId
from branchynet.net import BranchyNet
from branchynet.training import epochs

import numpy as np
from attrs import define, field
from attrs.validators import min_len

FILE = 'baseline.json'
PRESET = 'paper'
EXPERIMENTS = {module.EXPERIMENT.name: module.EXPERIMENT for module in (lenet_mnist, alex_cifar10)}
LAST = 10  # epochs
FACTOR = 0.1  # of the step size


@define(kw_only=True)
class Curve:
    """The training of one seed.

    Attributes:
        seed: of the training.
        environment: where it ran.
        accuracy_percent: of main on the test set, after every epoch of its training.
        with_smaller_steps_percent: the same of the last epochs, with FACTOR of the step size.
        weights_sha256: of the whole net after every epoch of main's training with the published step size.
        as_released_percent: accuracy of main after every joint epoch; empty where no joint training followed.
        exits_percent: (joint epochs, E), accuracy of every exit over all test images after every joint epoch.
        joint_weights_sha256: of the whole net after every joint epoch.
    """

    seed: int
    environment: results.Environment
    accuracy_percent: list[float] = field(validator=results.PERCENTAGES)
    with_smaller_steps_percent: list[float] = field(validator=results.PERCENTAGES)
    weights_sha256: list[str] = field(factory=list)
    as_released_percent: list[float] = field(factory=list)
    exits_percent: list[list[float]] = field(factory=list)
    joint_weights_sha256: list[str] = field(factory=list)


@define(kw_only=True)
class Baseline:
    """The content of baseline.json.

    Attributes:
        experiment: whose network was trained.
        curves: one for every seed.
    """

    experiment: str
    curves: list[Curve] = field(validator=min_len(1))


def read(folder: str) -> Baseline:
    """Reads a folder's baseline.json.

    Raises:
        OSError: it is missing or damaged.
    """
    return schema.read(os.path.join(folder, FILE), Baseline, 'accuracies of main')


def measure(experiment: NetworkExperiment, seed: int, data: runs.Data, preset: runs.Preset, last: int) -> Curve:
    """Trains main, then all exits jointly, and tests the network after every epoch.

    Args:
        experiment: whose network it is.
        seed: of the training.
        data: cut to the preset.
        preset: the amount of training.
        last: epochs of main that are trained a second time, with smaller steps.

    Returns:
        The Curve.
    """
    x, y, x_test, t_test = data

    def accuracy(net: BranchyNet) -> float:
        return utils.test(net, x_test, t_test, batchsize=1000, main=True)[0] * 100

    with cpu.fast(), tempfile.TemporaryDirectory() as folder:
        setup = runs.Setup('code', devices.find_device('cpu'), folder)
        get_network = partial(experiment.get_network, variant=setup.variant)
        training = runs.begin(RunId(experiment.name, '', seed), get_network, preset, data, setup)
        alone: list[float] = []

        def train_main(last_epoch: int) -> None:
            while len(alone) < last_epoch:
                training.train('main', len(alone) + 1)
                alone.append(accuracy(training.net))

        train_main(preset.main_epochs - last)
        net, state = copy.deepcopy(training.net), np.random.get_state()
        train_main(preset.main_epochs)
        as_released, of_exits = [], []
        for epoch in range(preset.joint_epochs):
            training.train('joint', epoch + 1)
            as_released.append(accuracy(training.net))
            recorded = sweep.record(runs.for_inference(training.net), x_test, t_test)
            of_exits.append((recorded.correct.mean(axis=1) * 100).tolist())
        np.random.set_state(state)
        adam: Any = net.optimizer
        adam.alpha *= FACTOR
        smaller = [accuracy(net) for _ in epochs(net, x, y, preset.batchsize, last, main=True)]
        return Curve(
            seed=seed,
            environment=training.record.environment,
            accuracy_percent=alone,
            with_smaller_steps_percent=smaller,
            weights_sha256=training.record.main.weights_sha256,
            as_released_percent=as_released,
            exits_percent=of_exits,
            joint_weights_sha256=training.record.joint.weights_sha256,
        )


def tables(found: Baseline) -> str:
    """The accuracies of main after its own training, and of main and the exits after joint training, as Markdown.

    Args:
        found: the content of a baseline.json.

    Returns:
        A table of main's own training, and one of the joint training where there was one: a row for every seed.
    """
    columns: dict[str, list[list[float]]] = {
        'After the last epoch': [curve.accuracy_percent for curve in found.curves],
        f'Steps {FACTOR:g} times as large': [curve.with_smaller_steps_percent for curve in found.curves],
    }
    blocks = [_table(found.curves, columns)]
    joint = [curve for curve in found.curves if curve.as_released_percent]
    if joint:
        columns = {'As released, after the last joint epoch': [curve.as_released_percent for curve in joint]}
        for k in range(len(joint[0].exits_percent[0])):
            columns[f'Exit {k + 1}'] = [[exits[k] for exits in curve.exits_percent] for curve in joint]
        blocks.append(_table(joint, columns))
    return pages.markdown(blocks) + '\n'


def _table(found: Sequence[Curve], columns: dict[str, list[list[float]]]) -> pages.Table:
    """A row for every seed and one for the mean: the accuracy after the last epoch, and the range of the last ones.

    Args:
        found: the trainings.
        columns: by title, the accuracies after every epoch of each training.
    """
    head, rows = ['Seed'], [[str(curve.seed)] for curve in found] + [['mean']]
    for title, curves in columns.items():
        head += [title, f'In the last {LAST} epochs']
        for row, curve in zip(rows, curves):
            row += [f'{curve[-1]:.2f}', _range(curve[-LAST:])]
        rows[-1] += [f'{np.mean([curve[-1] for curve in curves]):.2f}', '']
    return pages.Table(head, rows)


def _range(accuracies: Sequence[float]) -> str:
    return f'{min(accuracies):.2f} to {max(accuracies):.2f}'


def main() -> int:
    """Runs the commands that the docstring of this file shows; returns the exit status."""
    parser = argparse.ArgumentParser(prog='python -m branchynet.experiments.baseline')
    parser.add_argument('--out', required=True, metavar='DIR', help=f'folder of {FILE}')
    parser.add_argument('--only', default='lenet_mnist', choices=EXPERIMENTS, help='the network')
    parser.add_argument('--seeds', default=1, type=int, metavar='N', help='how many, from seed 0 on')
    parser.add_argument('--table', metavar='FILE', help="put the folder's tables into this page, and do nothing else")
    args = parser.parse_args()
    try:
        if args.table is not None:
            found = read(args.out)
            table, markers = tables(found), f'baseline of {found.experiment}'
            pages.update(args.table, lambda page: pages.between_markers(page, table, markers))
        else:
            determinism.fix('portable')
            _train(args.only, args.seeds, args.out)
    except (OSError, ValueError) as e:
        print(f'{parser.prog}: {e}', file=sys.stderr)
        return 2
    return 0


def _train(name: str, seeds: int, out: str) -> None:
    """Trains the seeds that a folder lacks, and writes its baseline.json after each."""
    if seeds < 1:
        raise ValueError(f'--seeds is {seeds}: expected 1 or more')
    experiment = EXPERIMENTS[name]
    preset = experiment.presets[PRESET]
    with files.lock(out):
        path = os.path.join(out, FILE)
        curves: dict[int, Curve] = {}
        if os.path.exists(path):
            found = read(out)
            if found.experiment != name:
                raise ValueError(f'{path} is of {found.experiment}: choose another folder')
            curves = {curve.seed: curve for curve in found.curves}
        todo = [seed for seed in range(seeds) if seed not in curves or not curves[seed].as_released_percent]
        data = runs.cut(experiment.get_data(), preset.train_samples, preset.test_samples)
        for seed in todo:
            print(f'{name}, seed {seed} ...', flush=True)
            curves[seed] = measure(experiment, seed, data, preset, LAST)
            schema.write(path, Baseline(experiment=name, curves=[curves[seed] for seed in sorted(curves)]))


if __name__ == '__main__':
    sys.exit(main())
