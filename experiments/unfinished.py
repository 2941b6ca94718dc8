"""Results of trainings that have not ended: the weights after the last joint epoch, measured.

    branchynet measure results/local --out so_far

Every network trains with a constant step size, so that these are the weights of a training of as many epochs. The
folder stays as it is, and the trainings may go on meanwhile.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any, NamedTuple

from branchynet import checkpoint, files, provenance, schema
from branchynet.experiments import NETWORKS, report, reproduce, results, runs

import attrs


class _Begun(NamedTuple):
    """A network's training that has begun: its experiment, seed and checkpoint after the last epoch."""

    experiment: Any
    seed: int
    path: str


def has(folder: str) -> bool:
    """Whether a folder holds a training of a network that has not ended and has whole epochs."""
    return any(_begun(folder))


def measure(folder: str, out: str, device: Any) -> int:
    """Measures a folder's unfinished trainings, and writes results, figures and reports.

    Args:
        folder: where `reproduce` trains, or was stopped.
        out: the results folder to write, another one.
        device: a Chainer device.

    Returns:
        The exit status, 0.

    Raises:
        OSError: a checkpoint, the baseline's weights or data are missing or damaged.
        ValueError: no joint epoch has ended; the trainings are of different presets, or on other data.
    """
    with files.lock(out):
        found: results.Results | None = None
        for begun in _begun(folder):
            preset, record, net = _restored(begun)
            setup = runs.Setup(preset, record.variant, device, out, False)
            if found is None:
                found = results.Results(preset=preset, variant=record.variant)
            if (found.preset, found.variant) != (preset, record.variant):
                raise ValueError(f'{begun.path} is of preset {preset}, variant {record.variant}: expected those of one')
            data = runs.cut(begun.experiment.get_data(), begun.experiment.presets[preset])
            if provenance.sha256_of_arrays(data) != record.data_sha256:
                raise ValueError(f'{begun.path} was trained on other data: build the data by the same recipe')
            record = _with_weights(begun, record, net, folder, out)
            print(f'{runs.stem(begun.experiment.name, "", begun.seed)} ...', flush=True)
            measurement = begun.experiment.measure('', begun.seed, record, data, setup)
            run = results.NetworkRun(seed=begun.seed, training=record, measurement=measurement)
            found.experiments.setdefault(begun.experiment.name, []).append(run)
        assert found is not None
        results.write(out, found)
        reproduce.write(found, out)
    print(f'{report.tables(found)}\n{folder}: unfinished; written to {out}')
    return 0


def _begun(folder: str) -> Iterator[_Begun]:
    for name in NETWORKS:
        prefix = f'checkpoint_{name}_seed'
        for file in sorted(os.listdir(folder) if os.path.isdir(folder) else []):
            if file.startswith(prefix) and file.endswith('.npz' + checkpoint.EPOCH):
                seed = file[len(prefix) : -len('.npz' + checkpoint.EPOCH)]
                yield _Begun(report.load(name), int(seed), os.path.join(folder, file))


def _restored(begun: _Begun) -> tuple[str, results.Training, Any]:
    """The preset, the record as of a training of so many epochs, and the net with its weights."""
    state = checkpoint.read(begun.path)
    try:
        record = schema.structure(state.meta['notes'], results.Training)
    except ValueError as e:
        raise OSError(f'{begun.path} is not a checkpoint of this version ({e}): train again') from e
    if not record.joint.loss:
        raise ValueError(f'{begun.path}: no joint epoch has ended yet; measure it when one has')
    wanted = record.main_epochs, record.joint_epochs, record.batchsize
    presets = [name for name, preset in begun.experiment.presets.items() if tuple(preset)[:3] == wanted]
    if not presets:
        raise ValueError(f'{begun.path} is of no preset of {begun.experiment.name}')
    net = begun.experiment.get_network(variant=record.variant)
    checkpoint.restore(begun.path, state, net)
    return presets[0], attrs.evolve(record, joint_epochs=len(record.joint.loss)), net


def _with_weights(begun: _Begun, record: results.Training, net: Any, folder: str, out: str) -> results.Training:
    """The record with the hashes of both weights, which are written to the results folder."""
    which = begun.experiment.name, '', begun.seed
    main = runs.main_weights_path(folder, *which)
    runs.load_weights(begun.experiment.get_network(variant=record.variant).main, main, record.main_weights_sha256)
    shutil.copyfile(main, runs.main_weights_path(out, *which))
    return attrs.evolve(record, weights_sha256=runs.save_weights(net, runs.weights_path(out, *which)))
