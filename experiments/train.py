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
from branchynet.experiments.run_id import RunId

EXPECTED = 'the record of a training'


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
        setup: the user's choices.

    Returns:
        The record.

    Raises:
        OSError: data are missing, the folder cannot be written or is in use, the checkpoint or the record is damaged,
            or a training that is resumed has ended and its weights are missing.
        ValueError: the net does not take the data; the folder holds an unfinished training, and setup.resume is not
            set, or results or weights of another training; or as of runs.begin.
    """
    ranks, out, run_id = setup.ranks, setup.out, RunId(experiment.name, '', seed)
    path, saved = run_id.record_path(out), run_id.checkpoint_path(out)
    data = ranks.together(lambda: runs.cut(get_data(), preset.train_samples, preset.test_samples))
    with contextlib.ExitStack() as stack:
        ranks.from_first(lambda: stack.enter_context(files.lock(out)))
        if setup.resume and ranks.from_first(lambda: os.path.exists(path) and not checkpoint.has(saved)):
            wanted = ranks.together(lambda: runs.new_record(preset, data, setup))
            return ranks.from_first(lambda: _finished(out, run_id, wanted))
        ranks.from_first(lambda: _check_replaces(out, run_id))
        if not setup.resume:
            ranks.from_first(lambda: runs.check_not_begun(out, run_id))
        record = experiment.train(run_id, preset, data, setup)
        ranks.from_first(lambda: schema.write(path, record))
        ranks.from_first(lambda: checkpoint.remove(saved))
    return record


def _finished(out: str, run_id: RunId, wanted: results.Training) -> results.Training:
    """The record of a training that has ended, if it is the one that is asked for and its weights are there."""
    path = run_id.record_path(out)
    found = runs.check_same_training(path, wanted, schema.read_json(path, EXPECTED))
    kept = {
        run_id.main_weights_path(out): found.main_weights_sha256,
        run_id.weights_path(out): found.weights_sha256,
    }
    for weights, sha256 in kept.items():
        if not os.path.exists(weights) or files.digest(weights) != sha256:
            raise OSError(f'{weights} is not what its training wrote: {checkpoint.anew(path)}')
    return found


def _check_replaces(out: str, run_id: RunId) -> None:
    """Checks that a training replaces no results and no weights but those of a training by this command."""
    if os.path.exists(results.path_of(out)) and run_id in results.read(out).by_id():
        raise ValueError(f'{out} holds results of {run_id}: name another folder with --out')
    if checkpoint.has(run_id.checkpoint_path(out)):
        return  # of a training that has written main's weights, perhaps
    path, own = run_id.record_path(out), []
    if os.path.exists(path):
        try:
            record = schema.read(path, results.Training, EXPECTED)
        except OSError as e:
            raise OSError(f'{e}; {checkpoint.anew(path)}') from e
        own = [record.main_weights_sha256, record.weights_sha256]
    runs.check_no_other_training(out, run_id, own)
