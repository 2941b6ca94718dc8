"""B-LeNet and B-AlexNet calibrated on held-out data: thresholds for "at most 0.1 and 0.5 points under the baseline".

    python -m branchynet.experiments.calibration --out results/local/calibration

It trains three seeds of both networks, far shorter than published (TRAININGS), on a part of the training data: for each
seed, 10,000 images, another stratified choice each time, are held out from it. The weights and calibration.json, which
says what was trained, go to the folder; what it holds already is not trained again. About half an hour on 2 cores.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from typing import Any

from branchynet import cpu, determinism, devices, files, schema
from branchynet.datasets import splits
from branchynet.experiments import report, results, runs
from branchynet.experiments.runs import Preset

from attrs import define, field

NAME = 'calibration.json'
HELD_OUT = 10000  # images
SEEDS = 3
TRAININGS = {
    'lenet_mnist': Preset(main_epochs=5, joint_epochs=10, batchsize=128),
    'alex_cifar10': Preset(main_epochs=2, joint_epochs=3, batchsize=64, train_samples=16000),
}


@define(kw_only=True)
class HeldOut:
    """The choice of held-out images: ``splits.stratified(y_train, samples, seed)``."""

    samples: int
    seed: int


@define(kw_only=True)
class Run:
    """A network that was trained without the held-out images.

    Attributes:
        network: The experiment that defines it.
        seed: Of the training.
        held_out: The images that it never saw.
        training: Its history.
    """

    network: str
    seed: int
    held_out: HeldOut
    training: results.Training


@define(kw_only=True)
class Calibrations:
    """The content of calibration.json."""

    runs: list[Run] = field(factory=list)


def train(out: str, networks: list[str], device: Any) -> Calibrations:
    """Trains what a folder lacks.

    Args:
        out: The folder, which holds weights and calibration.json.
        networks: Some of TRAININGS.
        device: A Chainer device.

    Returns:
        All runs of the folder.
    """
    path = os.path.join(out, NAME)
    found = read(out) if os.path.exists(path) else Calibrations()
    for network in networks:
        for seed in range(SEEDS):
            if not any((run.network, run.seed) == (network, seed) for run in found.runs):
                found.runs.append(_trained(network, seed, out, device))
                schema.write(path, found)
    return found


def read(folder: str) -> Calibrations:
    """Reads a folder's calibration.json.

    Raises:
        OSError: It is missing or damaged.
    """
    path = os.path.join(folder, NAME)
    try:
        return schema.structure(schema.read_json(path, 'calibrations'), Calibrations)
    except ValueError as e:
        raise OSError(f'{path} is damaged: {e}') from e


def _trained(network: str, seed: int, out: str, device: Any) -> Run:
    """Trains one seed, and writes its weights and those of the baseline."""
    experiment, held_out = report.load(network), HeldOut(samples=HELD_OUT, seed=seed)
    x, y, *test = experiment.get_data()
    kept, _ = splits.stratified(y, held_out.samples, held_out.seed)
    data = runs.cut((x[kept], y[kept], *test), TRAININGS[network])
    setup = runs.Setup('', 'code', device, out, True)
    which = network, '', seed
    training = runs.begin(which, partial(experiment.get_network, variant='code'), TRAININGS[network], data, setup)
    with cpu.fast():
        training.train('main')
        record = training.record
        if record.main_weights_sha256 is None:
            record.main_weights_sha256 = runs.save_weights(training.net.main, runs.main_weights_path(out, *which))
            training.save()
        training.train('joint')
    record.weights_sha256 = runs.save_weights(training.net, runs.weights_path(out, *which))
    print(f'{runs.stem(*which)}: {record.joint.accuracy[-1]} of the last training epoch', flush=True)
    return Run(network=network, seed=seed, held_out=held_out, training=record)


def main() -> None:
    """Runs the command that the docstring of this file shows."""
    parser = argparse.ArgumentParser(prog='python -m branchynet.experiments.calibration')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder of weights and calibration.json')
    parser.add_argument('--only', choices=list(TRAININGS), help='network to train (default: all)')
    args = parser.parse_args()
    determinism.fix('portable')
    with files.lock(args.out):
        train(args.out, [args.only] if args.only else list(TRAININGS), devices.find_device('cpu'))


if __name__ == '__main__':
    main()
