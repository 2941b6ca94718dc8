"""Measures the weights of results folders again, or trains their first epochs again.

    branchynet measure results/lenet_mnist_quick --out measured
    branchynet retrain results/lenet_mnist_quick --epochs 2
    ./get_results.sh --from-results

A measurement trains nothing: it keeps the records of the trainings, and repeats sweep, times and accuracies with the
present code on the present machine. Accuracies and exits must be as recorded; times may differ.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from branchynet import cpu, files, schema, verify
from branchynet.experiments import (
    VARIANTS,
    claims,
    conversion,
    get_experiment,
    outputs,
    results,
    runs,
    tables,
    unfinished,
)
from branchynet.experiments.run_id import RunId

import attrs

NOT_COMMITTED = 'local'  # the subfolder of results/ that holds a user's own runs


class NoData(OSError):
    """The data of a training is missing or damaged; the message says how to get it."""


def measure(folder: str, out: str | None, device: Any, data: dict[str, runs.Data] | None = None) -> int:
    """Measures a results folder's weights, and writes its results, figures and reports again.

    Args:
        folder: a results folder of any format, or one of trainings that have not ended.
        out: the folder to write; None: the results folder itself, and only if accuracies and exits are as recorded.
        device: a Chainer device.
        data: of trainings, by its SHA-256. Other data is read, and added to it.

    Returns:
        The exit status: 0 accuracies and exits are as recorded, 1 they differ.

    Raises:
        NoData: data is missing or damaged.
        OSError: results or weights are missing or damaged, or another process holds the folder's lock.
        ValueError: the folder has nothing to measure, or was trained on other data; or ``out`` holds results of other
            trainings.
    """
    if not os.path.exists(results.path_of(folder)) and unfinished.has(folder):
        if out is None or (os.path.exists(out) and os.path.samefile(folder, out)):
            raise ValueError(f'{folder} holds an unfinished training: name another folder with --out')
        unfinished.measure(folder, out, device)
        return 0
    target = folder if out is None else out
    data = {} if data is None else data
    with files.lock(target):  # before results are read: a run that ends meanwhile would be lost
        recorded = conversion.read(folder)
        _read_data(recorded, folder, data)
        _check_weights(_trained(recorded), folder)
        elsewhere = not os.path.samefile(folder, target)
        if elsewhere:
            runs.check_replaces(target, recorded.trainings())
        measured = _measured_again(recorded, data, folder, target, device)
        different = list(_differences(recorded, measured))
        for line in different:
            print(f'{folder}: {line}', file=sys.stderr)
        if different and not elsewhere:
            print(f'{folder} stays as it is: name another folder with --out to keep this measurement', file=sys.stderr)
            return 1
        if elsewhere:
            _copy_weights(recorded, folder, target)
        results.write(target, measured)
        outputs.write(measured, target)
    for run_id in unfinished.others(folder, recorded):
        print(f'{folder}: {run_id} has not ended, and is not measured', file=sys.stderr)
    print(
        f'{tables.markdown(measured)}\n{folder}: accuracies and exits '
        f'{"differ" if different else "are identical"}; written to {target}'
    )
    return int(bool(different))


def committed(root: str, out: str, device: Any) -> int:
    """Makes every table and figure of the committed results again, from their weights.

    If the weights of a folder were not committed, or its data is missing, its tables and figures are made from its
    results.json, and a line names the command that trains the weights again, or the data. The last line says how many
    folders were measured.

    Args:
        root: the folder of results folders.
        out: where to write a subfolder for each of them.
        device: a Chainer device.

    Returns:
        The exit status: 0 accuracies and exits are as committed, 1 they differ, 2 the data of a folder is missing, or
        no folder has its weights.

    Raises:
        OSError: there is no results folder; or results or weights are missing or damaged.
        ValueError: a folder was trained on other data, or a subfolder of ``out`` holds the results of other trainings.
    """
    folders = [
        os.path.join(root, name)
        for name in sorted(os.listdir(root))
        if name != NOT_COMMITTED and os.path.exists(results.path_of(os.path.join(root, name)))
    ]
    if not folders:
        raise OSError(f'{root} holds no results folder')
    status = measured = different = 0
    data: dict[str, runs.Data] = {}
    for folder in folders:
        target = os.path.join(out, os.path.basename(folder))
        missing = _weights_not_kept(folder)
        if missing:
            recorded = _write_again(folder, target)
            commands = "' and '".join(_commands(recorded))
            print(
                f'{folder}: {missing[0]} was not kept; tables and figures were made from results.json and written '
                f"to {target}; '{commands}' trains the weights again{_epochs_more(recorded)}"
            )
            continue
        try:
            differs = measure(folder, target, device, data)
            status, measured, different = max(status, differs), measured + 1, different + differs
        except NoData as e:
            _write_again(folder, target)
            print(
                f'{folder}: {e}; tables and figures were made from results.json and written to {target}',
                file=sys.stderr,
            )
            status = 2
    equal = f'accuracies and exits are identical in {measured - different} of these'
    print(f'{measured} of {len(folders)} results folders were measured again; {equal}')
    return status if measured else 2


def _write_again(folder: str, target: str) -> results.Results:
    """Writes to another folder everything that follows from a folder's results.json; returns the results."""
    recorded = conversion.read(folder)
    with files.lock(target):
        runs.check_replaces(target, recorded.trainings())
        results.write(target, recorded)
        outputs.write(recorded, target)
    return recorded


def _commands(recorded: results.Results) -> list[str]:
    """The commands that make results again, with their weights, in their default folder: one for consecutive seeds."""
    words = ['./get_results.sh', '--only', ','.join(recorded.experiments), '--preset', recorded.preset]
    if recorded.variant != VARIANTS[0]:
        words += ['--variant', recorded.variant]
    seeds = sorted({run_id.seed for run_id in recorded.by_id()})
    firsts = [seed for seed in seeds if seed - 1 not in seeds]
    lasts = [seed for seed in seeds if seed + 1 not in seeds]
    options = [[] if first == last == 0 else ['--seeds', f'{first}-{last}'] for first, last in zip(firsts, lasts)]
    return [' '.join(words + option) for option in options]


def _epochs_more(recorded: results.Results) -> str:
    """The further work of an unfinished training's command; '' if all trainings have ended."""
    for name, seeds in recorded.experiments.items():
        short = claims.fewer_epochs(name, seeds, recorded.preset)
        if short is not None:
            training, preset = short
            return f', and goes on to {preset.joint_epochs} joint epochs; these are {training.joint_epochs}'
    return ''


def _weights_not_kept(folder: str) -> list[str]:
    """The names of weights that a folder lacks and that its manifest does not list.

    Raises:
        OSError: a file that the manifest lists is missing or has another SHA-256.
    """
    listed = verify.read(folder).sha256
    recorded = conversion.read(folder)
    wanted = [path for run_id, run in _trained(recorded).items() for path in _weights_to_measure(run_id, run, folder)]
    return [name for name in map(os.path.basename, wanted) if name not in listed]


def _weights_to_measure(run_id: RunId, run: Any, folder: str) -> list[str]:
    """The paths of the weights that a measurement of a run needs."""
    main = [run_id.main_weights_path(folder)] if isinstance(run, results.NetworkRun) else []
    return [run_id.weights_path(folder), *main]


def _copy_weights(recorded: results.Results, folder: str, target: str) -> None:
    for run_id, training in recorded.trainings().items():
        for path in outputs.kept_weights(run_id, training, folder):
            files.copy(path, os.path.join(target, os.path.basename(path)))


def _read_data(recorded: results.Results, folder: str, data: dict[str, runs.Data]) -> None:
    """Reads the data of all trainings that is not in ``data`` yet, where its SHA-256 is the key.

    Raises:
        NoData: data is missing or damaged.
        ValueError: the folder has no run that trained weights, or was trained on other data.
    """
    trained = _trained(recorded)
    if not trained:
        raise ValueError(f'{folder} holds no run that trained weights')
    for run_id, run in trained.items():
        if run.training.data_sha256 in data:
            continue
        try:
            got = runs.data_of(get_experiment(run_id.experiment), run.training, run.measurement.test_samples)
        except OSError as e:
            raise NoData(str(e)) from e
        data[run.training.data_sha256] = got


def _trained(recorded: results.Results) -> dict[RunId, Any]:
    """All runs but those of figure6, which trains nothing."""
    return {run_id: run for run_id, run in recorded.by_id().items() if run.training}


def _measured_again(
    recorded: results.Results, data: dict[str, runs.Data], folder: str, target: str, device: Any
) -> results.Results:
    """The results with new measurements of all trained runs; the others stay."""
    setup = runs.Setup(recorded.variant, device, target)

    measured = attrs.evolve(recorded, experiments={name: [] for name in recorded.experiments})
    for run_id, run in recorded.by_id().items():
        if run.training:
            print(f'{run_id} ...', flush=True)
            experiment, its_data = get_experiment(run_id.experiment), data[run.training.data_sha256]
            measurement = experiment.measure(run_id, run.training, its_data, setup, folder)
            run = attrs.evolve(run, measurement=measurement)
        measured.experiments[run_id.experiment].append(run)
    return measured


def _check_weights(trained: dict[RunId, Any], folder: str) -> None:
    """Checks, before anything is measured, that all weights exist and are those of their runs.

    Raises:
        OSError: weights are missing or are not those of their run.
    """
    for run_id, run in trained.items():
        outputs.kept_weights(run_id, run.training, folder)
        for path in _weights_to_measure(run_id, run, folder):
            if not os.path.exists(path):
                raise FileNotFoundError(
                    f"{path} is missing: copy it here, or train again by '{run.training.environment.command}'"
                )


def _differences(old: results.Results, new: results.Results) -> Iterator[str]:
    """Yields a line for each run whose accuracies or exits are not as recorded."""
    again = new.by_id()
    for run_id, run in old.by_id().items():
        for one, other in itertools.zip_longest(_figures(run), _figures(again[run_id])):
            if one != other:
                yield f'{run_id}: {_words(one)} was recorded, {_words(other)} is measured'
                break


def _words(figure: tuple[str, Any] | None) -> str:
    return 'nothing' if figure is None else f'{figure[0]} {figure[1]}'


def _figures(run: Any) -> Iterator[tuple[str, Any]]:
    """Yields names and values of a run's accuracies and exits. The knee is left out, because it depends on times."""
    measurement = run.measurement
    if isinstance(run, results.NetworkRun):
        yield 'baseline accuracy (%)', measurement.baseline.accuracy_percent
        yield 'baseline accuracy as released (%)', measurement.baseline.accuracy_as_released_percent
        for setting in [measurement.measured.published, *measurement.sweep]:
            where = f'at T = {setting.thresholds}'
            yield f'accuracy (%) {where}', setting.accuracy_percent
            yield f'exits (%) {where}', setting.exit_percent
        curve = measurement.exit1_curve
        yield 'figure 4: leaving at exit 1 (%)', curve.exit1_percent
        yield 'figure 4: accuracy (%)', curve.accuracy_percent
        yield 'images right and wrong', attrs.astuple(measurement.measured.published.images)
    yield 'accuracy of the exits (%)', getattr(measurement, 'exit_accuracy_percent', None)


def retrain(folder: str, epochs: int, seed: int, device: Any) -> int:
    """Trains the first epochs of a folder's runs again, and compares the weights after each epoch with those recorded.

    Args:
        folder: a results folder of any format, which stays as it is.
        epochs: number of epochs, of the baseline first and then of the joint training.
        seed: of the runs.
        device: a Chainer device.

    Returns:
        The exit status: 0 the weights are identical, 1 they differ.

    Raises:
        OSError: the folder holds no results, or data is missing.
        ValueError: the folder has no run of this seed, a run has fewer epochs, or it was trained on other data.
    """
    pairs = [_retrained(run_id, run, epochs, device) for run_id, run in trained_runs(folder, seed).items()]
    recorded, again = (verify.Manifest(runs=list(manifest)) for manifest in zip(*pairs))
    comparisons = verify.compare(recorded, again)
    print(*verify.lines(comparisons, 0), sep='\n')
    return int(any(c.difference is not None for c in comparisons))


def trained_runs(folder: str, seed: int) -> dict[RunId, Any]:
    """Finds the runs of one seed that trained weights.

    Args:
        folder: a results folder of any format.
        seed: of the runs.

    Raises:
        OSError: the folder holds no results.
        ValueError: there is no such run.
    """
    found = {run_id: run for run_id, run in _trained(conversion.read(folder)).items() if run_id.seed == seed}
    if not found:
        raise ValueError(f'{folder} has no trained run of seed {seed}')
    return found


def _retrained(run_id: RunId, run: Any, epochs: int, device: Any) -> tuple[verify.Run, verify.Run]:
    """A run as recorded and as trained again, both up to an epoch."""
    training, experiment = run.training, get_experiment(run_id.experiment)
    total = training.main_epochs + training.joint_epochs
    if epochs > total:
        raise ValueError(f'{run_id} has {total} epochs: --epochs {epochs} is too many')
    get_network = experiment.parts[run.part].get_network if run.part else experiment.get_network
    preset = runs.Preset(training.main_epochs, training.joint_epochs, training.batchsize)
    main = min(epochs, training.main_epochs)
    with tempfile.TemporaryDirectory() as out, cpu.fast():
        setup = runs.Setup(training.variant, device, out)
        again = runs.begin(
            run_id,
            lambda: get_network(variant=training.variant),
            preset,
            runs.data_of(experiment, training, run.measurement.test_samples),
            setup,
        )
        again.train('main', main)
        again.train('joint', epochs - main)
    recorded = attrs.evolve(outputs.run_of_manifest(run_id, run), steps=outputs.training_steps(training)[: epochs + 1])
    return recorded, attrs.evolve(
        recorded,
        device=again.record.device,
        environment=schema.unstructure(again.record.environment),
        steps=outputs.training_steps(again.record),
    )
