"""Runs experiments and writes a results folder: the work of `branchynet reproduce` and get_results.sh."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from typing import Any

from branchynet import checkpoint, devices, files, verify
from branchynet.experiments import PRESETS, get_experiment, jobs, outputs, runs, tables, verdicts
from branchynet.experiments import results as results_file
from branchynet.experiments.results import Results
from branchynet.experiments.run_id import RunId


def reproduce(names: list[str], seeds: range, setup: runs.Setup, all_of_them: bool = False) -> int:
    """Runs the experiments whose data is present, and prints and writes their measurements.

    A run replaces the folder's run of its part and seed when it is done; all others stay. Results of another preset are
    not replaced, except those of smoke, which claims nothing.

    Args:
        names: of the experiments.
        seeds: the seeds.
        setup: the user's choices.
        all_of_them: whether an experiment that cannot run is a failure.

    Returns:
        The exit status: 0 all checked claims hold, 1 a claim fell short, 2 nothing can run, a run failed or, with
        all_of_them, not everything can run.

    Raises:
        OSError: another process writes to the folder, or files in it are damaged or are not those of its runs.
        ValueError: the folder holds results or checkpoints of another preset, variant or origin; or an unfinished
            training, and setup.resume is not set.
    """
    ready, skipped = _ready(names, setup.preset)
    for line in skipped:
        print(line, file=sys.stderr)
    if not ready:
        return 2
    check_writable(setup.out)
    with files.lock(setup.out):
        return _reproduce(ready, skipped, seeds, setup, all_of_them)


def _reproduce(
    ready: list[tuple[Any, runs.Data]], skipped: list[str], seeds: range, setup: runs.Setup, all_of_them: bool
) -> int:
    """Runs experiments in a folder that is locked; returns the exit status."""
    results = _earlier(setup)
    todo = [run_id for experiment, _ in ready for run_id in _todo(experiment, seeds, setup, results)]
    _check_folder({experiment.name for experiment, _ in ready}, todo, setup, results)
    if not results.experiments:
        _remove_replaced(setup.out)
    minutes = sum(experiment.minutes(experiment.presets[setup.preset], data, setup) for experiment, data in ready)
    less = ', less the time of what is done' if setup.resume else ''
    print(
        f'Preset {setup.preset} on {devices.device_name(setup.device)}: about '
        f'{max(1, minutes * len(seeds)):.0f} min{" one run after another" if setup.jobs > 1 else ""}{less}.',
        flush=True,
    )
    failed: dict[RunId, str] = {}
    if setup.jobs > 1:
        failed = jobs.train(_jobs(ready, todo), setup)
        setup = setup._replace(resume=True)  # from where the jobs have ended
    for experiment, data in ready:
        mine = [run_id for run_id in todo if run_id.experiment == experiment.name and run_id not in failed]
        skipped += _run(experiment, mine, data, setup, results, failed)
    failures = [f'{run_id} failed: {reason}' for run_id, reason in failed.items()]
    if not results.experiments:
        print(*skipped, *failures, sep='\n', file=sys.stderr)
        return 2
    outputs.write(results, setup.out)
    print(f'\n{tables.markdown(results)}\nWritten to {setup.out}', *skipped, *failures, sep='\n')
    print(f'Preset {setup.preset} {PRESETS[setup.preset]}.')
    status = verdicts.verdict(results)
    return 2 if failures or (skipped and all_of_them) else status


def check_writable(out: str) -> None:
    """Checks, before hours of training, that a folder can be written or created.

    Args:
        out: the folder.

    Raises:
        OSError: it cannot.
        ValueError: its name is empty.
    """
    if not out:
        raise ValueError('--out is empty: expected a folder')
    folder = os.path.abspath(out)
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as e:
        raise OSError(f'--out {out}: expected a folder that can be written ({e.strerror})') from e


def _ready(names: list[str], preset_name: str) -> tuple[list[tuple[Any, runs.Data]], list[str]]:
    """Pairs of an experiment and its data, and a line for each experiment that cannot run."""
    ready, skipped, found = [], [], {}
    for name in names:
        experiment = get_experiment(name)
        if preset_name not in experiment.presets:
            skipped.append(f'{name} is skipped: it has no preset {preset_name}, only {", ".join(experiment.presets)}')
            continue
        get_data = experiment.get_data
        if get_data not in found:
            found[get_data] = _data_or_error(get_data)
        if isinstance(found[get_data], OSError):
            skipped.append(f'{name} is skipped: {found[get_data]}')
        else:
            preset = experiment.presets[preset_name]
            ready.append((experiment, runs.cut(found[get_data], preset.train_samples, preset.test_samples)))
    return ready, skipped


def _data_or_error(get_data: Any) -> Any:
    try:
        return get_data()
    except OSError as e:
        return e


def _earlier(setup: runs.Setup) -> Results:
    """The folder's results; empty ones if it has none, or those of preset smoke, which this run replaces."""
    path = results_file.path_of(setup.out)
    new = Results(preset=setup.preset, variant=setup.variant)
    if not os.path.exists(path):
        return new
    earlier = results_file.read(setup.out)
    for key in 'preset', 'variant':
        if getattr(earlier, key) != getattr(setup, key):
            if earlier.preset == 'smoke' and not setup.resume:
                return new
            raise ValueError(
                f'{path} is of {key} {getattr(earlier, key)}: expected {getattr(setup, key)}; name '
                'another folder with --out'
            )
    return earlier


def _remove_replaced(out: str) -> None:
    """Removes the results that this run replaces, and the files of their manifest but those that have changed since."""
    manifest, path_of_results = os.path.join(out, 'manifest.json'), results_file.path_of(out)
    if not os.path.exists(path_of_results):
        return
    if os.path.exists(manifest):
        for name, sha256 in verify.read(manifest).sha256.items():
            path = os.path.join(out, name)
            if os.path.exists(path) and files.digest(path) == sha256:
                os.remove(path)
        os.remove(manifest)
    if os.path.exists(path_of_results):  # an interrupted run wrote no manifest that lists it
        os.remove(path_of_results)


def _todo(experiment: Any, seeds: range, setup: runs.Setup, results: Results) -> list[RunId]:
    """The runs of an experiment to begin or to go on with.

    Raises:
        ValueError: the folder holds an unfinished training of one of them, and setup.resume is not set; or a training
            by `branchynet train`.
    """
    wanted = [RunId(experiment.name, part, seed) for seed, part in itertools.product(seeds, experiment.parts)]
    for run_id in wanted:
        if os.path.exists(run_id.record_path(setup.out)):
            raise ValueError(
                f"{setup.out} holds a training of {run_id} by 'branchynet train': name another folder with --out"
            )
    if not setup.resume:
        for run_id in wanted:
            runs.check_not_begun(setup.out, run_id)
        return wanted
    done = results.by_id()
    # A run that is trained again has a checkpoint, and its earlier results until it is done.
    return [run_id for run_id in wanted if run_id not in done or checkpoint.has(run_id.checkpoint_path(setup.out))]


def _check_folder(names: set[str], todo: list[RunId], setup: runs.Setup, results: Results) -> None:
    """Checks, before hours of training, that the folder's files and runs can stay beside the new ones.

    Args:
        names: of the experiments that run.
        todo: their runs.
        setup: the user's choices.
        results: the folder's.

    Raises:
        OSError: weights of a run that stays are damaged.
        ValueError: a run that stays has another origin, or the folder has weights of another training.
    """
    path = results_file.path_of(setup.out)
    if not os.path.exists(path):
        for run_id in todo:
            if not checkpoint.has(run_id.checkpoint_path(setup.out)):
                runs.check_no_other_training(setup.out, run_id, ())
    stay = {run_id: run for run_id, run in results.by_id().items() if run_id not in todo}
    runs.check_origin(path, [run for run_id, run in stay.items() if run_id.experiment in names], setup)
    for run_id, run in stay.items():
        outputs.kept_weights(run_id, run.training, setup.out)


def _jobs(ready: list[tuple[Any, runs.Data]], todo: list[RunId]) -> list[jobs.Job]:
    """The trainings of runs; an experiment that trains nothing has none."""
    experiments = {experiment.name: experiment for experiment, _ in ready if hasattr(experiment, 'train')}
    return [jobs.Job(experiments[run_id.experiment], run_id) for run_id in todo if run_id.experiment in experiments]


def _run(
    experiment: Any,
    todo: list[RunId],
    data: runs.Data,
    setup: runs.Setup,
    results: Results,
    failed: dict[RunId, str],
) -> list[str]:
    """Runs parts and seeds of an experiment and puts them into the results, also on disk.

    Args:
        experiment: the experiment.
        todo: the runs.
        data: cut to the preset.
        setup: the user's choices.
        results: take the runs.
        failed: takes the reason for which a run failed, such as weights that became NaN. Its checkpoint stays.

    Returns:
        A line for each run that cannot be made, with the reason.
    """
    skipped = []
    for run_id in todo:
        print(f'{run_id} {"is measured " if setup.jobs > 1 else ""}...', flush=True)
        try:
            run = experiment.run(run_id, data, setup)
        except runs.CannotRun as e:
            skipped.append(f'{run_id} is skipped: {e}')
            continue
        except (OSError, ValueError) as e:
            failed[run_id] = str(e)
            print(f'{run_id} failed: {e}', flush=True)
            continue
        mine = {other: one for other, one in results.by_id().items() if other.experiment == experiment.name}
        mine[run_id] = run
        results.experiments[experiment.name] = outputs.in_order(experiment, list(mine.values()))
        results_file.write(setup.out, results)
        checkpoint.remove(run_id.checkpoint_path(setup.out))
    return skipped
