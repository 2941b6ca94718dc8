"""B-LeNet and B-AlexNet calibrated on held-out data: thresholds for "at most 0.1 and 0.5 points under the baseline".

    python -m branchynet.experiments.calibration --out results/local/calibration
    python -m branchynet.experiments.calibration --out results/calibration --table docs/calibration.md

The first command trains three seeds of both networks, far shorter than published (TRAININGS), on a part of the
training data: for each seed, 10,000 images, another stratified choice each time, are held out from it. On these it
chooses thresholds, without and with a guarantee, and on the test set it judges them, beside the paper's thresholds and
the knee. Weights and calibration.json go to the folder; what it holds already is not trained again, nor measured again
unless its "measurement" is set to null. About half an hour on 2 cores, 8 minutes of it to measure. The second command
trains nothing: it puts the table of a folder's calibration.json between the markers of a page.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from branchynet import calibration, checkpoint, determinism, devices, exits, files, schema, sweep, utils
from branchynet.calibration import Judgement, Target
from branchynet.datasets import splits
from branchynet.experiments import get_experiment, pages, runs, weights
from branchynet.experiments.calibrations import (
    CALIBRATION,
    Calibrations,
    Choice,
    HeldOut,
    Measurement,
    Run,
    read,
)
from branchynet.experiments.run_id import RunId
from branchynet.experiments.runs import Preset

import numpy as np

HELD_OUT = 10000  # images
SEEDS = 3
TRAININGS = {
    'lenet_mnist': Preset(main_epochs=5, joint_epochs=10, batchsize=128),
    'alex_cifar10': Preset(main_epochs=4, joint_epochs=4, batchsize=64, train_samples=16000),
}
LOSSES = 0.1, 0.5  # points
GUARANTEE = 0.95


def complete(out: str, networks: Sequence[str], seeds: Sequence[int], device: Any) -> None:
    """Trains and measures what a folder lacks.

    Args:
        out: the folder, which holds weights and calibration.json.
        networks: some of TRAININGS.
        seeds: of the trainings.
        device: a Chainer device.

    Raises:
        OSError: calibration.json or data is damaged or missing.
        ValueError: the folder holds trainings with other epochs or batches.
    """
    path = os.path.join(out, CALIBRATION)
    found = read(out) if os.path.exists(path) else Calibrations()
    for run in found.runs:
        amount = run.training.main_epochs, run.training.joint_epochs, run.training.batchsize
        if run.network in networks and amount != TRAININGS[run.network][:3]:
            raise ValueError(
                f'{path} holds trainings of {run.network} by other presets: name another folder with --out'
            )
    for network in networks:
        for seed in seeds:
            held_out = HeldOut(samples=HELD_OUT, seed=seed)
            if not any((run.network, run.held_out) == (network, held_out) for run in found.runs):
                found.runs.append(_trained(network, held_out, out, device))
                schema.write(path, found)
                checkpoint.remove(RunId(network, '', seed).checkpoint_path(out))
    for run in found.runs:
        if run.network in networks and run.measurement is None:
            run.measurement = _measured(run, out)
            schema.write(path, found)


def _trained(network: str, held_out: HeldOut, out: str, device: Any) -> Run:
    """Trains with the seed of the held-out images, and writes the weights and those of the baseline.

    Raises:
        ValueError: the folder holds weights of another training.
    """
    experiment, run_id = get_experiment(network), RunId(network, '', held_out.seed)
    x, y, *test = experiment.get_data()
    kept, _ = splits.stratified(y, held_out.samples, held_out.seed)
    preset = TRAININGS[network]
    data = runs.cut((x[kept], y[kept], *test), preset.train_samples, preset.test_samples)
    if not checkpoint.has(run_id.checkpoint_path(out)):
        runs.check_no_other_training(out, run_id, ())
    setup = runs.Setup('code', device, out, resume=True)
    trained = experiment.train(run_id, preset, data, setup)
    return Run(network=network, seed=run_id.seed, held_out=held_out, training=trained)


def _measured(run: Run, out: str) -> Measurement:
    """Chooses thresholds for a run's weights on its held-out images, and judges them on the test set."""
    run_id = RunId(run.network, '', run.seed)
    print(f'{run_id} ...', flush=True)
    loaded = weights.load(run_id.weights_path(out), run.network, 'code')
    x, y, x_test, y_test = loaded.data()
    test = x_test, y_test
    _, held = splits.stratified(y, run.held_out.samples, run.held_out.seed)
    held_out = x[held], y[held]
    macs = loaded.macs(x)
    recorded, tested = (loaded.record(x, t, exits.ENTROPY) for x, t in (held_out, test))
    # Whether each baseline is right, on the held-out images and on the test set.
    baselines = {
        'main': (loaded.baseline_correct(*held_out), loaded.baseline_correct(*test)),
        weights.FINAL_EXIT: (recorded.correct[-1], tested.correct[-1]),
    }
    of_main = baselines['main'][1]

    def chosen(name: str, loss: float, guarantee: float | None) -> Choice:
        choice = Choice(accuracy_loss=loss, baseline=name, guarantee=guarantee)
        baseline, test_baseline = baselines[name]
        try:
            choice.thresholds = calibration.choose(recorded, Target(loss), baseline, macs, guarantee, run.seed)
        except calibration.Infeasible as e:
            choice.refused = str(e)
            return choice
        choice.held_out = calibration.judge(recorded, choice.thresholds, baseline, macs)
        choice.test = calibration.judge(tested, choice.thresholds, test_baseline, macs)
        return choice

    def as_it_is(thresholds: list[float]) -> Choice:
        judged = calibration.judge(tested, thresholds, of_main, macs)
        return Choice(thresholds=list(thresholds), test=judged)

    settings = utils.generate_thresholds(loaded.experiment.base_thresholds, len(recorded.score))
    swept = sweep.sweep(tested, settings)
    knee = sweep.knee(swept.accuracy, swept.whole, float(np.mean(of_main)))
    return Measurement(
        environment=runs.environment(out),
        choices=[chosen(*one) for one in itertools.product(baselines, LOSSES, (None, GUARANTEE))],
        published=as_it_is(loaded.experiment.published_thresholds),
        knee=as_it_is(settings[knee]),
        **weights.fit_temperatures(loaded.net, held_out, test)._asdict(),
    )


# The table


def table(found: Calibrations) -> str:
    """The table of calibrations as Markdown, a row for every target, with the figures of the seeds in their order."""
    blocks: list[pages.Block] = []
    for network in dict.fromkeys(run.network for run in found.runs):
        of_network = [run for run in found.runs if run.network == network]
        measured = {run.seed: run.measurement for run in of_network if run.measurement is not None}
        if measured:
            blocks += [
                pages.Text(_trainings([run for run in of_network if run.seed in measured])),
                _choices(list(measured.values())),
                pages.Lines(_refused(measured)),
                _temperatures(measured),
            ]
    return pages.markdown(blocks) + '\n'


def _trainings(trained: Sequence[Run]) -> str:
    one, held_out, seeds = trained[0].training, trained[0].held_out, ', '.join(str(run.seed) for run in trained)
    return (
        f'**{trained[0].network}**: {one.main_epochs} + {one.joint_epochs} epochs, batch {one.batchsize}, '
        f'{one.train_samples} training images; {held_out.samples} held-out images, seeds {seeds}. '
        'Losses are points under the baseline, below 0 where early exit is right more often; main is the network '
        'before joint training, and the baseline of the last two rows.'
    )


def _choices(measured: Sequence[Measurement]) -> pages.Table:
    rows = []
    for i, choice in enumerate(measured[0].choices):
        guaranteed = '' if choice.guarantee is None else f', with probability {choice.guarantee:g}'
        target = f'at most {choice.accuracy_loss:g} points under {choice.baseline}{guaranteed}'
        rows.append(_row(target, [one.choices[i] for one in measured]))
    rows.append(_row("the paper's thresholds", [one.published for one in measured]))
    rows.append(_row('knee, chosen on the test set', [one.knee for one in measured]))
    head = [
        'Target',
        'T (nat)',
        'Loss on held-out images',
        'Loss on the test set',
        '95 % interval',
        'Kept',
        'Exits (%)',
    ]
    return pages.Table([*head, "Baseline's multiply-adds (%)"], rows)


def _row(name: str, choices: Sequence[Choice]) -> list[str]:
    """A row of the table: the same choice of every seed."""

    def cell(show: Callable[[Judgement], str], which: str = 'test') -> str:
        judged = [getattr(choice, which) for choice in choices]
        return '; '.join('none' if one is None else show(one) for one in judged) if any(judged) else ''

    kept = [
        [loss <= choice.accuracy_loss for loss in (choice.test.loss_points, choice.test.loss_interval_points[0])]
        for choice in choices
        if choice.test is not None and choice.accuracy_loss is not None
    ]
    found, possible = np.sum(kept, axis=0) if kept else (0, 0)
    return [
        name,
        '; '.join('none' if choice.thresholds is None else _numbers(choice.thresholds) for choice in choices),
        cell(lambda one: f'{one.loss_points:.2f}', 'held_out'),
        cell(lambda one: f'{one.loss_points:.2f}'),
        cell(lambda one: ' to '.join(f'{end:.2f}' for end in one.loss_interval_points)),
        f'{found} of {len(kept)}\n{possible} by the interval' if kept else '',
        cell(lambda one: ' '.join(f'{share:.1f}' for share in one.exit_percent)),
        cell(lambda one: f'{one.macs_percent:.1f}'),
    ]


def _refused(measured: Mapping[int, Measurement]) -> list[str]:
    """Why a target has no thresholds, a line for each; measurements by seed."""
    return [
        f'Seed {seed}, under {choice.baseline}: {choice.refused}.'
        for seed, one in measured.items()
        for choice in one.choices
        if choice.refused
    ]


def _numbers(thresholds: Sequence[float | None]) -> str:
    return ' '.join('off' if threshold is None else f'{threshold:.3g}' for threshold in thresholds)


def _temperatures(measured: Mapping[int, Measurement]) -> pages.Table:
    rows = []
    for seed, one in measured.items():
        columns = one.temperatures, one.calibration_error_before, one.calibration_error
        rows += [
            [f'{seed}', f'{k + 1}', f'{temperature:.3f}', f'{100 * before:.2f}', f'{100 * after:.2f}']
            for k, (temperature, before, after) in enumerate(zip(*columns))
        ]
    head = ['Seed', 'Exit', 'Temperature', 'Calibration error before (%)', 'after (%)']
    return pages.Table(head, rows)


def main() -> int:
    """Runs the commands that the docstring of this file shows; returns the exit status."""
    parser = argparse.ArgumentParser(prog='python -m branchynet.experiments.calibration')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder of weights and calibration.json')
    parser.add_argument('--only', choices=list(TRAININGS), help='network to train (default: all)')
    parser.add_argument('--seed', type=int, metavar='K', help='seed to train (default: 0 to 2)')
    parser.add_argument('--table', metavar='FILE', help="put the folder's table into this page, and do nothing else")
    args = parser.parse_args()
    try:
        if args.table is not None:
            found = table(read(args.out))
            pages.update(args.table, lambda page: pages.between_markers(page, found, 'calibration'))
            return 0
        determinism.fix('portable')
        with files.lock(args.out):
            networks = list(TRAININGS) if args.only is None else [args.only]
            seeds = list(range(SEEDS)) if args.seed is None else [args.seed]
            complete(args.out, networks, seeds, devices.find_device('cpu'))
    except (OSError, ValueError) as e:
        print(f'{parser.prog}: {e}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
