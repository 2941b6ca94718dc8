"""A network of the paper and its baseline: training, threshold sweep and times."""

from __future__ import annotations

import csv
import io
import os
from functools import partial
from typing import Any, Callable, NamedTuple

from branchynet import cpu, sweep, timing, utils, visualize
from branchynet.cost import cost
from branchynet.experiments import claims, pages, results, runs
from branchynet.experiments.run_id import RunId
from branchynet.files import write_atomically
from branchynet.inference import Compiled
from branchynet.net import BranchyNet

import numpy as np

SHARES = np.linspace(0, 1, 51)  # of images that leave at exit 1, for figure 4


class NetworkExperiment(NamedTuple):
    """A network of the paper.

    Attributes:
        name: of the experiment.
        network: its name in the paper; the early-exit version has the prefix B-.
        get_network: makes the net; it takes the argument `variant`.
        get_data: loads the arrays.
        shape: of an image, (C, H, W).
        classes: names of the classes, by label.
        base_thresholds: entropies (nats); the sweep takes every combination of them over all exits but the last.
        published_thresholds: (E - 1,), nats, of Table I.
        presets: amounts of training by preset; some presets may be absent.
    """

    name: str
    network: str
    get_network: Callable[..., BranchyNet]
    get_data: Callable[[], runs.Data]
    shape: tuple[int, int, int]
    classes: list[str]
    base_thresholds: list[float]
    published_thresholds: list[float]
    presets: dict[str, runs.Preset]

    @property
    def parts(self) -> tuple[str, ...]:
        """The one part, which has no name."""
        return ('',)

    @property
    def title(self) -> str:
        """The heading in reports."""
        return f'{self.network} and B-{self.network}'

    def amount(self, part: str, preset: runs.Preset) -> runs.Preset:
        """The amount of training, which is that of the preset.

        Args:
            part: ''.
            preset: of the experiment.
        """
        return preset

    def minutes(self, preset: runs.Preset, data: runs.Data, setup: runs.Setup) -> float:
        """Estimates the minutes that one seed takes.

        Args:
            preset: the amount of training.
            data: cut to the preset.
            setup: the user's choices.
        """
        net = self.get_network(variant=setup.variant)
        net.to_device(setup.device)
        training = runs.training_minutes(net, preset, data)
        # Single images are classified by the baseline, in the sweep, and at four settings.
        look = runs.seconds(net, runs.for_inference(net).look, data[2][:1])
        return training + 6 * len(data[2]) * look / 60

    def run(self, run_id: RunId, data: runs.Data, setup: runs.Setup) -> results.NetworkRun:
        """Trains one seed and measures it. The checkpoint stays; the caller removes it after writing the result.

        Args:
            run_id: of this experiment.
            data: cut to the preset.
            setup: the user's choices.

        Returns:
            The record of the training and its measurement.
        """
        record = self.train(run_id, self.presets[setup.preset], data, setup)
        measurement = self.measure(run_id, record, data, setup, setup.out)
        return results.NetworkRun(seed=run_id.seed, training=record, measurement=measurement)

    def train(self, run_id: RunId, preset: runs.Preset, data: runs.Data, setup: runs.Setup) -> results.Training:
        """Trains one seed and writes its weights: main alone, then all exits jointly. The checkpoint stays.

        Args:
            run_id: of this experiment.
            preset: the amount of training.
            data: cut to the preset.
            setup: the user's choices.

        Returns:
            The record of the training.
        """
        training = runs.begin(run_id, partial(self.get_network, variant=setup.variant), preset, data, setup)
        record = training.record
        with cpu.fast():
            training.train('main')
            if record.main_weights_sha256 is None:
                # The paper's baseline is the network before joint training, which changes the trunk that main shares.
                record.main_weights_sha256 = training.save_weights(
                    training.net.main, run_id.main_weights_path(setup.out)
                )
                training.save()
            training.train('joint')
            record.weights_sha256 = training.save_weights(training.net, run_id.weights_path(setup.out))
        return record

    def measure(
        self, run_id: RunId, training: results.Training, data: runs.Data, setup: runs.Setup, folder: str
    ) -> results.NetworkMeasurement:
        """Measures the weights that a training wrote.

        Args:
            run_id: of this experiment.
            training: its record.
            data: cut to the preset.
            setup: the user's choices; setup.out is the folder of the new results.
            folder: of the weights.

        Returns:
            Accuracies, exits and times.

        Raises:
            OSError: weights are missing, or are not those of the training.
        """
        _, _, x, t = data
        baseline, net = (self.get_network(variant=training.variant) for _ in range(2))
        runs.load_weights(baseline.main, run_id.main_weights_path(folder), training.main_weights_sha256)
        runs.load_weights(net, run_id.weights_path(folder), training.weights_sha256)
        for one in baseline, net:
            one.to_device(setup.device)
        with cpu.fast():
            return _measure(self, baseline, net, x, t, setup)

    def write(self, seeds: list[results.NetworkRun], out: str) -> list[str]:
        """Writes the sweep's CSV and the figures of all seeds.

        Args:
            seeds: the runs.
            out: the results folder.

        Returns:
            The paths of the files.
        """
        path = os.path.join(out, f'sweep_{self.name}.csv')
        write_sweep(path, seeds)
        return [path] + [figure for run in seeds for figure in draw(self, run, os.path.join(out, 'figures'))]


def _measure(
    experiment: NetworkExperiment,
    baseline_net: BranchyNet,
    net: BranchyNet,
    x: np.ndarray,
    t: np.ndarray,
    setup: runs.Setup,
) -> results.NetworkMeasurement:
    """Measures the baseline, the sweep, and four settings run by themselves."""
    costs = cost(net, x.shape[1:])
    macs = results.Macs(main=costs.main.macs, exits=[one.leaving.macs for one in costs.exits])
    direct = timing.measure(runs.for_inference(baseline_net), x, t, main=True)
    correct = direct.correct.astype(bool)
    baseline = results.Baseline(
        accuracy_percent=direct.accuracy * 100,
        **_times(direct),
        accuracy_as_released_percent=utils.test(net, x, t, batchsize=1000, main=True)[0] * 100,
    )
    net = runs.for_inference(net)
    recorded = sweep.record(net, x, t)
    settings = utils.generate_thresholds(experiment.base_thresholds, net.numexits())
    swept = sweep.sweep(recorded, settings)
    rows = _rows(swept, sweep.percentiles(recorded, settings), baseline, macs)
    knee = sweep.knee(swept.accuracy * 100, swept.whole, baseline.accuracy_percent)
    chosen = {
        'published': experiment.published_thresholds,
        'knee': rows[knee].thresholds,
        'fastest': rows[int(swept.whole.argmin())].thresholds,
        'slowest': rows[int(swept.whole.argmax())].thresholds,
    }
    measured = results.Measured(
        **{name: _directly(net, recorded, setting, x, t, correct, baseline, macs) for name, setting in chosen.items()}
    )
    return results.NetworkMeasurement(
        device=str(setup.device),
        environment=runs.environment(setup.out),
        test_samples=len(x),
        compiled=isinstance(net, Compiled),
        baseline=baseline,
        macs=macs,
        exit_accuracy_percent=(recorded.correct.mean(axis=1) * 100).tolist(),
        outputs={
            'main_correct': runs.digest(correct),
            'entropy': runs.digest(recorded.entropy),
            'correct': runs.digest(recorded.correct),
            'sweep_accuracy': runs.digest(swept.accuracy),
            'sweep_exits': runs.digest(swept.exits / len(x)),
        },
        exit1_curve=_exit1_curve(recorded, experiment.published_thresholds[1:]),
        sweep=rows,
        knee=knee,
        measured=measured,
        composed_off_percent=max(setting.disagreement_percent() for setting in measured.by_name().values()),
    )


def gain_allowed(exit_percent: list[float], main_macs: int, exit_macs: list[int]) -> float:
    """The gain that multiply-adds allow: those of the baseline over the mean of those at these exit shares.

    Args:
        exit_percent: (E,), images that leave at each exit.
        main_macs: multiply-adds of the baseline.
        exit_macs: (E,), multiply-adds of everything that runs for an image that leaves at each exit.
    """
    return main_macs * 100 / float(np.dot(exit_percent, exit_macs))


def _gains(
    exits: np.ndarray, released_ms: float, whole_ms: float, baseline: results.Baseline, macs: results.Macs
) -> dict[str, Any]:
    """The fields of a results.Setting that follow from its numbers of images per exit (E,) and its times."""
    percent = (np.asarray(exits) / np.sum(exits) * 100).tolist()
    allowed = gain_allowed(percent, macs.main, macs.exits)
    gain = baseline.whole.mean_ms / whole_ms
    return {
        'exit_percent': percent,
        'gain_released': baseline.released.mean_ms / released_ms,
        'gain_whole': gain,
        'gain_allowed': allowed,
        'efficiency': gain / allowed,
    }


def _exit1_curve(recorded: sweep.ExitRecord, thresholds: list[float]) -> results.Exit1Curve:
    """Accuracy and the highest entropy that leaves at exit 1, against the share that leaves there (figure 4).

    Args:
        recorded: entropies and correctness at all exits.
        thresholds: (E - 2,), nats, of the exits between the first and the last.
    """
    ent = np.sort(recorded.entropy[0]).astype(float)
    counts = np.rint(SHARES * len(ent)).astype(int)
    cuts = np.append(ent, np.inf)[counts]  # above exactly `counts` entropies, or fewer where some are equal
    swept = sweep.sweep(recorded, [[cut, *thresholds] for cut in cuts])
    left = swept.exits[:, 0]
    return results.Exit1Curve(
        exit1_percent=(left / len(ent) * 100).tolist(),
        accuracy_percent=(swept.accuracy * 100).tolist(),
        max_entropy_nat=[float(ent[count - 1]) if count else 0.0 for count in left],
    )


def _times(measurement: timing.Measurement) -> dict[str, Any]:
    """The fields `released` and `whole` of a record."""
    return {clock: results.Timed(**timing.summary(getattr(measurement, clock))) for clock in ('released', 'whole')}


def _directly(
    net: Any,
    recorded: sweep.ExitRecord,
    thresholds: list[float],
    x: np.ndarray,
    t: np.ndarray,
    baseline_correct: np.ndarray,
    baseline: results.Baseline,
    macs: results.Macs,
) -> results.DirectSetting:
    """Runs one setting image by image; the sweep only composes its times."""
    net.thresholdExits = thresholds
    measurement = timing.measure(net, x, t)
    net.thresholdExits = None
    composed = sweep.sweep(recorded, [thresholds])
    times = _times(measurement)
    return results.DirectSetting(
        thresholds=thresholds,
        accuracy_percent=measurement.accuracy * 100,
        **times,
        **_gains(measurement.exits, times['released'].mean_ms, times['whole'].mean_ms, baseline, macs),
        images=_pairs(measurement.correct.astype(bool), baseline_correct),
        composed_released_ms=float(composed.released[0] * 1e3),
        composed_whole_ms=float(composed.whole[0] * 1e3),
    )


def _pairs(correct: np.ndarray, baseline_correct: np.ndarray) -> results.Pairs:
    return results.Pairs(
        both_right=int((correct & baseline_correct).sum()),
        only_branchy_right=int((correct & ~baseline_correct).sum()),
        only_baseline_right=int((~correct & baseline_correct).sum()),
        both_wrong=int((~correct & ~baseline_correct).sum()),
    )


def _rows(
    swept: sweep.Sweep, percentiles: np.ndarray, baseline: results.Baseline, macs: results.Macs
) -> list[results.SweptSetting]:
    return [
        results.SweptSetting(
            thresholds=thresholds.tolist(),
            accuracy_percent=float(accuracy * 100),
            **_gains(exits, float(released * 1e3), float(whole * 1e3), baseline, macs),
            released_ms=float(released * 1e3),
            whole_ms=float(whole * 1e3),
            whole_median_ms=float(p50 * 1e3),
            whole_p95_ms=float(p95 * 1e3),
        )
        for thresholds, accuracy, exits, released, whole, p50, p95 in zip(*swept, *percentiles)
    ]


def write_sweep(path: str, seeds: list[results.NetworkRun]) -> None:
    """Writes the sweeps of all seeds as CSV, with lists separated by blanks as in the published tables.

    Args:
        path: of the file.
        seeds: the runs.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    columns = [
        'thresholds',
        'accuracy_percent',
        'exit_percent',
        'released_ms',
        'whole_ms',
        'whole_median_ms',
        'whole_p95_ms',
        'gain_released',
        'gain_whole',
        'gain_allowed',
        'efficiency',
    ]
    writer.writerow(['seed', *columns])
    for run in seeds:
        for row in run.measurement.sweep:
            writer.writerow([run.seed, *(pages.cell(getattr(row, column), 6) for column in columns)])
    write_atomically(path, text.getvalue().encode())


def draw(experiment: NetworkExperiment, run: results.NetworkRun, folder: str) -> list[str]:
    """Draws both trainings, the trade-off (figure 3) and exit 1 (figure 4), as PNG and PDF.

    Args:
        experiment: the experiment of the run.
        run: a seed.
        folder: where to write.

    Returns:
        The paths of the files.
    """
    paths: list[str] = []
    run_id = RunId(experiment.name, run.part, run.seed)
    for suffix in 'png', 'pdf':
        whats = 'figure3', 'figure4', 'main', 'joint'
        path = {what: os.path.join(folder, f'{run_id}_{what}.{suffix}') for what in whats}
        _draw_figure3(experiment, run.measurement, path['figure3'])
        _draw_figure4(experiment, run.measurement, path['figure4'])
        for phase in 'main', 'joint':
            history = getattr(run.training, phase)
            visualize.plot_curves(history.loss, history.accuracy, output_path=path[phase])
        paths += path.values()
    return paths


def _draw_figure3(experiment: NetworkExperiment, measurement: results.NetworkMeasurement, path: str) -> None:
    rows, baseline = measurement.sweep, measurement.baseline
    accuracies = [row.accuracy_percent / 100 for row in rows]
    curves = {
        'released clock': ([row.released_ms / baseline.released.mean_ms for row in rows], accuracies),
        'whole clock': ([row.whole_ms / baseline.whole.mean_ms for row in rows], accuracies),
    }
    points = {
        series: [
            (float(row['x']), float(row['y']) / 100)
            for row in claims.published('figures.csv')
            if row['figure'] == '3' and row['series'].split()[0] == series
        ]
        for series in (experiment.network, f'B-{experiment.network}')
    }
    base, base_accuracy = points[experiment.network][0]
    visualize.plot_relative_tradeoff(
        curves,
        baseline.accuracy_percent / 100,
        measurement.knee,
        [(x / base, y) for x, y in points[f'B-{experiment.network}']],
        base_accuracy,
        experiment.network,
        output_path=path,
    )


def _draw_figure4(experiment: NetworkExperiment, measurement: results.NetworkMeasurement, path: str) -> None:
    curve = measurement.exit1_curve
    points = {
        what: [
            (float(row['x']) / 100, float(row['y']))
            for row in claims.published('figures.csv')
            if row['figure'] == '4' and row['series'] == f'B-{experiment.network} {what}'
        ]
        for what in ('accuracy', 'max entropy')
    }
    visualize.plot_exit1(
        [percent / 100 for percent in curve.exit1_percent],
        [percent / 100 for percent in curve.accuracy_percent],
        curve.max_entropy_nat,
        [(x, y / 100) for x, y in points['accuracy']],
        points['max entropy'],
        output_path=path,
    )
