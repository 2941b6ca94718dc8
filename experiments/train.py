"""One training of a network of the paper, without the measurement: `branchynet train`.

The same settings give the same bits as `branchynet reproduce`.
"""

from __future__ import annotations

import contextlib
import os
from typing import Callable

from branchynet import checkpoint, files, schema
from branchynet.experiments import results, runs
from branchynet.experiments.network_experiment import NetworkExperiment

PRESET = 'train'
EXPECTED = 'the record of a training'


def path_of(out: str, name: str, seed: int) -> str:
    """The path of a training's record, in folder ``out``."""
    return os.path.join(out, f'training_{runs.stem(name, "", seed)}.json')


def train(
    experiment: NetworkExperiment,
    preset: runs.Preset,
    seed: int,
    get_data: Callable[[], runs.Data],
    setup: runs.Setup,
) -> results.Training:
    """Trains a network and writes its weights and the record of the training to the folder setup.out.

    Args:
        experiment: the network.
        preset: the amount of training.
        seed: of the random generators.
        get_data: loads the arrays.
        setup: the user's choices; setup.preset is PRESET.

    Returns:
        The record.

    Raises:
        OSError: data are missing, the folder cannot be written or is in use, or the checkpoint is damaged.
        ValueError: the net does not take the data; the folder holds an unfinished training, and setup.resume is not
            set; or as of runs.begin.
    """
    experiment = experiment._replace(presets={PRESET: preset})
    ranks, path = setup.ranks, path_of(setup.out, experiment.name, seed)
    saved = runs.checkpoint_path(setup.out, experiment.name, '', seed)
    data = ranks.together(lambda: runs.cut(get_data(), preset))
    with contextlib.ExitStack() as stack:
        ranks.from_first(lambda: stack.enter_context(files.lock(setup.out)))
        if setup.resume and ranks.from_first(lambda: os.path.exists(path)):
            wanted = ranks.together(lambda: runs.new_record(preset, data, setup))
            return ranks.from_first(lambda: runs.check_same_training(path, wanted, schema.read_json(path, EXPECTED)))
        ranks.from_first(lambda: _check_no_results(setup.out, experiment.name, seed))
        if not setup.resume:
            ranks.from_first(lambda: runs.check_not_begun(setup.out, experiment.name, '', seed))
        ranks.from_first(lambda: _begin_anew(path))
        record = experiment.train('', seed, data, setup)
        ranks.from_first(lambda: schema.write(path, record))
        ranks.from_first(lambda: checkpoint.remove(saved))
    return record


def _check_no_results(out: str, name: str, seed: int) -> None:
    """Checks that a folder has no results of a run, whose weights a training would replace."""
    there = results.read(out).experiments.get(name, []) if os.path.exists(results.path_of(out)) else []
    if any(run.seed == seed for run in there):
        raise ValueError(f'{out} holds results of {runs.stem(name, "", seed)}: name another folder with --out')


def _begin_anew(path: str) -> None:
    """Removes the record of an earlier training, so that no later one is taken for done."""
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)
