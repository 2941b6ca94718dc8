"""Joins results folders whose seeds differ, such as those that two machines or two versions of the code trained.

    branchynet results merge results/seeds_0_to_2 results/seeds_3_to_4 --out results/five_seeds

Every run keeps the record of its own training and measurement, with the commit and the machine of each. The report, the
figures and the manifest are made from all runs together.
"""

from __future__ import annotations

import os
from typing import Any

from branchynet import files
from branchynet.experiments import get_experiment, outputs, reproduce, results, runs
from branchynet.experiments.results import Results
from branchynet.experiments.run_id import RunId


def merge(folders: list[str], out: str) -> Results:
    """Joins the runs and the weights of results folders in a new one.

    Args:
        folders: two results folders or more, of one preset and variant, which stay as they are.
        out: the folder to write, which holds no results yet.

    Returns:
        The joined results.

    Raises:
        OSError: a folder holds no results, or its weights are not those of its runs; or ``out`` is in use or cannot be
            written.
        ValueError: there is one folder only, or one is given twice; or ``out`` holds results, or weights of another
            training; or the preset, the variant, the data or another setting differs between the folders; or two
            folders hold the same run.
    """
    results.check_several(folders)
    reproduce.check_writable(out)
    found = {folder: results.read(folder) for folder in folders}
    joined = _joined(found)
    weights = [
        path
        for folder, one in found.items()
        for run_id, training in one.trainings().items()
        for path in outputs.kept_weights(run_id, training, folder)
    ]
    with files.lock(out):
        if os.path.exists(results.path_of(out)):
            raise ValueError(f'{out} holds results already: name a new or an empty folder with --out')
        runs.check_replaces(out, joined.trainings())
        for path in weights:
            files.copy(path, os.path.join(out, os.path.basename(path)))
        results.write(out, joined)
        outputs.write(joined, out)
    return joined


def _joined(found: dict[str, Results]) -> Results:
    """The results of all folders as one; ``found`` holds them by folder."""
    (first, like), *_ = found.items()
    origins: dict[RunId, str] = {}  # the folder of every run
    joined = Results(preset=like.preset, variant=like.variant)
    for folder, one in found.items():
        for key in 'preset', 'variant':
            _check_same(key, getattr(one, key), folder, getattr(like, key), first)
        for run_id, run in one.by_id().items():
            if run_id in origins:
                raise ValueError(f'{origins[run_id]} and {folder} both hold {run_id}: expected other seeds in each')
            _check_settings(run_id, run, folder, joined, origins)
            origins[run_id] = folder
            joined.experiments.setdefault(run_id.experiment, []).append(run)
    for name, seeds in joined.experiments.items():
        joined.experiments[name] = outputs.in_order(get_experiment(name), seeds)
    return joined


def _check_settings(run_id: RunId, run: Any, folder: str, joined: Results, origins: dict[RunId, str]) -> None:
    """Checks that a run has the settings of the first of the joined runs that is of its experiment and part."""
    for other_id, other in joined.by_id().items():
        if other_id[:2] == run_id[:2]:
            theirs = _settings(other_id, other)
            for key, value in _settings(run_id, run).items():
                _check_same(f'{run_id.experiment} with {key}', value, folder, theirs[key], origins[other_id])
            return


def _settings(run_id: RunId, run: Any) -> dict[str, Any]:
    """The settings that all seeds of a part share."""
    described = outputs.run_of_manifest(run_id, run)
    settings = {
        **described.settings,
        'data_sha256': described.steps[0].sha256,
        'device': described.device,
        'device of the measurement': run.measurement.device,
        'compiled': getattr(run.measurement, 'compiled', None),  # of networks
    }
    del settings['seed']
    return settings


def _check_same(what: str, value: Any, folder: str, other: Any, where: str) -> None:
    if value != other:
        raise ValueError(
            f'{folder} has {what} {value}, but {where} has {other}: folders can be joined only if nothing but their '
            'seeds differs'
        )
