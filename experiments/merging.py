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
        for name, run in one.named_runs()
        for path in outputs.kept_weights(name, run, folder)
    ]
    with files.lock(out):
        if os.path.exists(results.path_of(out)):
            raise ValueError(f'{out} holds results already: name a new or an empty folder with --out')
        runs.check_replaces(out, {(name, run.part, run.seed): run.training for name, run in joined.named_runs()})
        for path in weights:
            files.copy(path, os.path.join(out, os.path.basename(path)))
        results.write(out, joined)
        outputs.write(joined, out)
    return joined


def _joined(found: dict[str, Results]) -> Results:
    """The results of all folders as one; ``found`` holds them by folder."""
    (first, like), *_ = found.items()
    origins: dict[str, str] = {}  # the folder of every run, by the run's name
    joined = Results(preset=like.preset, variant=like.variant)
    for folder, one in found.items():
        for key in 'preset', 'variant':
            _check_same(key, getattr(one, key), folder, getattr(like, key), first)
        for name, seeds in one.experiments.items():
            mine = joined.experiments.setdefault(name, [])
            for run in seeds:
                stem = runs.stem(name, run.part, run.seed)
                if stem in origins:
                    raise ValueError(f'{origins[stem]} and {folder} both hold {stem}: expected other seeds in each')
                _check_settings(name, run, folder, mine, origins)
                origins[stem] = folder
                mine.append(run)
    for name, seeds in joined.experiments.items():
        joined.experiments[name] = outputs.in_order(get_experiment(name), seeds)
    return joined


def _check_settings(name: str, run: Any, folder: str, others: list[Any], origins: dict[str, str]) -> None:
    """Checks that a run has the settings of the first of ``others`` that is of its part."""
    for other in others:
        if other.part == run.part:
            where = origins[runs.stem(name, other.part, other.seed)]
            theirs = _settings(name, other)
            for key, value in _settings(name, run).items():
                _check_same(f'{name} with {key}', value, folder, theirs[key], where)
            return


def _settings(name: str, run: Any) -> dict[str, Any]:
    """The settings that all seeds of a part share."""
    described = outputs.run_of_manifest(name, run)
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
