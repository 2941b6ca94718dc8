"""Why a baseline falls short of the published accuracy: main is tested after every epoch of its training.

    python -m branchynet.experiments.baseline --only lenet_mnist --seeds 3 --out results/baseline_lenet_mnist
    python -m branchynet.experiments.baseline --out results/baseline_lenet_mnist --table docs/reproducing.md

The first command trains main as preset paper does, with the same bits, for every seed. From the state that is LAST
epochs before the end it then goes on once more, with the same batches and a tenth of Adam's step size. On 2 cores,
a seed of lenet_mnist takes about 8 minutes, one of alex_cifar10 about an hour. Accuracies go to the folder's
baseline.json. The second command trains nothing: it puts the table of a folder between the markers of a page.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
from collections.abc import Sequence
from functools import partial
from typing import Any

from branchynet import cpu, determinism, devices, files, schema, utils
from branchynet.experiments import alex_cifar10, lenet_mnist, pages, report, results, runs
from branchynet.experiments.network_experiment import NetworkExperiment
from branchynet.net import BranchyNet
from branchynet.training import epochs

import numpy as np
from attrs import define, field

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
        accuracy_percent: on the test set, after every epoch.
        with_smaller_steps_percent: the same of the last epochs, with FACTOR of the step size.
        weights_sha256: of the whole net after every epoch with the published step size.
    """

    seed: int
    accuracy_percent: list[float] = field(factory=list)
    with_smaller_steps_percent: list[float] = field(factory=list)
    weights_sha256: list[str] = field(factory=list)


@define(kw_only=True)
class Baseline:
    """The content of baseline.json.

    Attributes:
        experiment: whose main was trained.
        environment: where.
        curves: one for every seed.
    """

    experiment: str
    environment: results.Environment
    curves: list[Curve] = field(factory=list)


def read(folder: str) -> Baseline:
    """Reads a folder's baseline.json.

    Raises:
        OSError: it is missing or damaged.
    """
    return schema.read(os.path.join(folder, FILE), Baseline, 'accuracies of main')


def measure(experiment: NetworkExperiment, seed: int, data: runs.Data, preset: runs.Preset, last: int) -> Curve:
    """Trains main and tests it after every epoch.

    Args:
        experiment: whose main it is.
        seed: of the training.
        data: cut to the preset.
        preset: the amount of training.
        last: epochs that are trained a second time, with smaller steps.

    Returns:
        The Curve.
    """
    curve = Curve(seed=seed)
    x, y, *test = data
    with cpu.fast(), tempfile.TemporaryDirectory() as folder:
        setup = runs.Setup(PRESET, 'code', devices.find_device('cpu'), folder, False)
        get_network = partial(experiment.get_network, variant=setup.variant)
        training = runs.begin((experiment.name, '', seed), get_network, preset, data, setup)
        for epoch in range(preset.main_epochs):
            if epoch == preset.main_epochs - last:
                net, state = copy.deepcopy(training.net), np.random.get_state()
            training.train('main', epoch + 1)
            curve.accuracy_percent.append(_accuracy(training.net, *test))
        curve.weights_sha256 = training.record.main.weights_sha256
        np.random.set_state(state)
        adam: Any = net.optimizer
        adam.alpha *= FACTOR
        for _ in epochs(net, x, y, preset.batchsize, last, main=True):
            curve.with_smaller_steps_percent.append(_accuracy(net, *test))
    return curve


def _accuracy(net: BranchyNet, x: np.ndarray, t: np.ndarray) -> float:
    return utils.test(net, x, t, batchsize=1000, main=True)[0] * 100


def table(found: Baseline) -> str:
    """The accuracies in the last epochs as Markdown, a row for every seed."""
    rows = []
    for curve in found.curves:
        last, smaller = curve.accuracy_percent[-LAST:], curve.with_smaller_steps_percent
        rows.append([str(curve.seed), f'{last[-1]:.2f}', _range(last), f'{smaller[-1]:.2f}', _range(smaller)])
    ends = np.array([[curve.accuracy_percent[-1], curve.with_smaller_steps_percent[-1]] for curve in found.curves])
    as_published, with_smaller = ends.mean(axis=0)
    rows.append(['mean', f'{as_published:.2f}', '', f'{with_smaller:.2f}', ''])
    epochs_of = f'last {LAST} epochs'
    head = [
        'Seed',
        'After the last epoch',
        f'In the {epochs_of}',
        f'Steps {FACTOR:g} times as large',
        f'In their {epochs_of}',
    ]
    return pages.markdown([pages.Table(head, rows)]) + '\n'


def _range(accuracies: Sequence[float]) -> str:
    return f'{min(accuracies):.2f} to {max(accuracies):.2f}'


def main() -> None:
    """Runs the commands that the docstring of this file shows."""
    parser = argparse.ArgumentParser(prog='python -m branchynet.experiments.baseline')
    parser.add_argument('--out', required=True, metavar='DIR', help=f'folder of {FILE}')
    parser.add_argument('--only', default='lenet_mnist', choices=EXPERIMENTS, help='the network')
    parser.add_argument('--seeds', default=1, type=int, metavar='N', help='how many, from seed 0 on')
    parser.add_argument('--table', metavar='FILE', help="put the folder's table into this page, and do nothing else")
    args = parser.parse_args()
    if args.table is not None:
        found = read(args.out)
        report.put_between_markers(args.table, table(found), f'baseline of {found.experiment}')
        return
    determinism.fix('portable')
    experiment = EXPERIMENTS[args.only]
    preset = experiment.presets[PRESET]
    with files.lock(args.out):
        path = os.path.join(args.out, FILE)
        new = Baseline(experiment=args.only, environment=runs.environment(args.out))
        found = read(args.out) if os.path.exists(path) else new
        if found.experiment != args.only:
            parser.error(f'{path} is of {found.experiment}: choose another folder')
        data = runs.cut(experiment.get_data(), preset)
        for seed in range(len(found.curves), args.seeds):
            found.curves.append(measure(experiment, seed, data, preset, LAST))
            schema.write(path, found)


if __name__ == '__main__':
    main()
