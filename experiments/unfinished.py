"""Results of trainings that have not ended: the weights after the last joint epoch, measured.

    branchynet measure results/local --out so_far

The step size is constant, so that a training of exactly this many epochs would have ended with these weights. The
folder stays as it is, and the trainings may go on meanwhile.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

from branchynet import checkpoint, files, schema
from branchynet.experiments import NETWORKS, get_experiment, outputs, results, runs, tables
from branchynet.experiments.run_id import RunId

import attrs


class _Begun(NamedTuple):
    """A network's training that has begun, with the record and the net of its last epoch."""

    experiment: Any
    run_id: RunId
    path: str
    preset: str
    record: results.Training
    net: Any


def has(folder: str) -> bool:
    """Whether a folder holds a training of a network that has not ended and has whole epochs."""
    return any(_found(folder))


def others(folder: str, recorded: results.Results) -> list[RunId]:
    """Finds trainings of networks that have not ended and that a folder's results lack.

    Args:
        folder: where `reproduce` trains, or was stopped.
        recorded: the folder's results.
    """
    return [run_id for _, run_id, _ in _found(folder) if run_id not in recorded.by_id()]


def measure(folder: str, out: str, device: Any) -> None:
    """Measures a folder's unfinished trainings, and writes results, figures and reports.

    Args:
        folder: where `reproduce` trains, or was stopped.
        out: the results folder to write, another one.
        device: a Chainer device.

    Raises:
        OSError: a checkpoint, the baseline's weights or data are missing or damaged.
        ValueError: no joint epoch of any training has ended; the trainings are of different presets, or on other data;
            or ``out`` holds the results of other trainings.
    """
    with files.lock(out), tempfile.TemporaryDirectory() as weights:
        begun = [_restored(*one) for one in _found(folder)]
        ready = [one for one in begun if one.record.joint.loss]
        if not ready:
            raise ValueError(f'{folder}: no joint epoch has ended yet; measure it when one has')
        found = results.Results(preset=ready[0].preset, variant=ready[0].record.variant)
        for one in ready[1:]:
            if (found.preset, found.variant) != (one.preset, one.record.variant):
                raise ValueError(
                    f'{one.path} is of preset {one.preset}, variant {one.record.variant}: expected '
                    f'{found.preset}, {found.variant}, as of {ready[0].path}'
                )
        ready = [one._replace(record=_with_weights(one, folder, weights)) for one in ready]
        runs.check_replaces(out, {one.run_id: one.record for one in ready})
        for one in ready:
            run = _measured(one, weights, out, device)
            found.experiments.setdefault(one.experiment.name, []).append(run)
        for name in sorted(os.listdir(weights)):
            files.copy(os.path.join(weights, name), os.path.join(out, name))
        results.write(out, found)
        outputs.write(found, out)
    early = [f'{one.path}: no joint epoch has ended yet' for one in begun if not one.record.joint.loss]
    print(f'{tables.markdown(found)}\n{folder}: unfinished; written to {out}', *early, sep='\n')


def _measured(begun: _Begun, weights: str, out: str, device: Any) -> results.NetworkRun:
    """The run of a training so far, whose weights are in the folder ``weights``."""
    experiment, run_id, record = begun.experiment, begun.run_id, begun.record
    data = runs.data_of(experiment, record, experiment.presets[begun.preset].test_samples)
    print(f'{run_id} ...', flush=True)
    setup = runs.Setup(record.variant, device, out)
    measurement = experiment.measure(run_id, record, data, setup, weights)
    return results.NetworkRun(seed=run_id.seed, training=record, measurement=measurement)


def _found(folder: str) -> Iterator[tuple[Any, RunId, str]]:
    """Yields experiment, run and path of every checkpoint of a whole epoch."""
    for name in NETWORKS:
        prefix = f'checkpoint_{name}_seed'
        for file in sorted(os.listdir(folder) if os.path.isdir(folder) else []):
            if file.startswith(prefix) and file.endswith('.npz' + checkpoint.EPOCH):
                seed = file[len(prefix) : -len('.npz' + checkpoint.EPOCH)]
                yield get_experiment(name), RunId(name, '', int(seed)), os.path.join(folder, file)


def _restored(experiment: Any, run_id: RunId, path: str) -> _Begun:
    """A training with its record as of a training of so many epochs, and the net with its weights."""
    state = checkpoint.read(path)
    try:
        record = schema.structure(state.meta['notes'], results.Training)
    except ValueError as e:
        raise OSError(f'{path} is not a checkpoint of this version ({e}): train again') from e
    amount = record.main_epochs, record.joint_epochs, record.batchsize, record.train_samples
    presets = [name for name, preset in experiment.presets.items() if preset[:4] == amount]
    if not presets:
        raise ValueError(f'{path} is of no preset of {experiment.name}: it cannot be measured before it has ended')
    net = experiment.get_network(variant=record.variant)
    checkpoint.restore(path, state, net)
    return _Begun(experiment, run_id, path, presets[0], attrs.evolve(record, joint_epochs=len(record.joint.loss)), net)


def _with_weights(begun: _Begun, folder: str, weights: str) -> results.Training:
    """The record with the hashes of both weights, which are written to the folder ``weights``."""
    run_id, record = begun.run_id, begun.record
    main = run_id.main_weights_path(folder)
    runs.load_weights(begun.experiment.get_network(variant=record.variant).main, main, record.main_weights_sha256)
    files.copy(main, run_id.main_weights_path(weights))
    return attrs.evolve(record, weights_sha256=runs.save_weights(begun.net, run_id.weights_path(weights)))
