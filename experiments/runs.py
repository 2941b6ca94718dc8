"""The steps that all experiments share: data cut to a preset, trainings that resume, and files of weights."""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Container, Mapping
from importlib.util import find_spec
from typing import Any, Callable, NamedTuple

from branchynet import calibration, checkpoint, cpu, determinism, files, parallel, provenance, schema
from branchynet.datasets import pcifar10
from branchynet.devices import now
from branchynet.experiments import results
from branchynet.experiments.run_id import RunId
from branchynet.files import write_atomically
from branchynet.inference import Compiled, is_compilable
from branchynet.net import BranchyNet
from branchynet.training import Position, epochs

import attrs
import chainer
import numpy as np

BATCHSIZE = 500  # of a test in which nothing is timed

Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # x_train, y_train, x_test, y_test


class CannotRun(Exception):
    """Something is missing that only this experiment needs; the message names it and how to get it."""


class Preset(NamedTuple):
    """The amount of training.

    Attributes:
        main_epochs: epochs of the baseline.
        joint_epochs: epochs of the joint training.
        batchsize: images per step.
        train_samples: number of training images; None: all.
        test_samples: number of test images; None: all.
    """

    main_epochs: int
    joint_epochs: int
    batchsize: int
    train_samples: int | None = None
    test_samples: int | None = None


class Setup(NamedTuple):
    """The choices that a user makes for all experiments.

    Attributes:
        variant: one of VARIANTS.
        device: a Chainer device.
        out: the results folder.
        preset: one of PRESETS; '' where nothing depends on it, as in a measurement.
        resume: whether to continue from the checkpoints in the folder.
        jobs: number of runs that train at a time.
        ranks: those that train together; by default this process alone.
    """

    variant: str
    device: Any
    out: str
    preset: str = ''
    resume: bool = False
    jobs: int = 1
    ranks: parallel.Alone = parallel.ALONE


def cut(data: Data, train_samples: int | None, test_samples: int | None) -> Data:
    """Keeps the first samples of each set.

    Args:
        data: x_train (N, C, H, W), y_train (N,), x_test (M, C, H, W), y_test (M,).
        train_samples: number of training images; None: all.
        test_samples: number of test images; None: all.

    Returns:
        The four arrays.
    """
    x_train, y_train, x_test, y_test = data
    train, test = slice(train_samples), slice(test_samples)
    return x_train[train], y_train[train], x_test[test], y_test[test]


def training_minutes(net: BranchyNet, preset: Preset, data: Data) -> float:
    """Estimates the minutes of a training from a few timed steps.

    Args:
        net: a net for this purpose alone, as the steps change its weights.
        preset: the amount of training.
        data: cut to the preset.
    """
    x, y, _, _ = data
    first, steps = slice(preset.batchsize), len(x) / preset.batchsize
    phases = (preset.main_epochs, net.train_main), (preset.joint_epochs, net.train)
    with cpu.fast():
        return sum(epochs * steps * seconds(net, step, x[first], y[first]) for epochs, step in phases if epochs) / 60


def seconds(net: BranchyNet, step: Callable[..., Any], *arrays: np.ndarray) -> float:
    """Measures the seconds of ``step(*arrays)``, after a first call that is not timed.

    Args:
        net: the net that the step runs, for the clock of its device.
        step: a function.
        arrays: its arguments.
    """
    step(*arrays)
    start = now(net)
    step(*arrays)
    return now(net) - start


def check_not_begun(out: str, run_id: RunId) -> None:
    """Checks that a training from the start destroys no checkpoint.

    Args:
        out: the results folder.
        run_id: of the run.

    Raises:
        ValueError: the folder holds a checkpoint of the run.
    """
    path = run_id.checkpoint_path(out)
    if checkpoint.has(path):
        raise ValueError(
            f'{out} holds an unfinished training of {run_id}: --resume goes on with it; {checkpoint.anew(path)}'
        )


def check_replaces(out: str, trainings: Mapping[RunId, results.Training | None]) -> None:
    """Checks that nothing of another training is lost where new results are written to a folder.

    Args:
        out: the folder, which may hold results, weights and checkpoints.
        trainings: of the new results; None for a run that trained nothing.

    Raises:
        OSError: the folder's results.json is damaged.
        ValueError: the folder has a run that the new results lack or that is of another training; or an unfinished
            training of one of them, or weights of another one.
    """
    old = results.read(out).trainings() if os.path.exists(results.path_of(out)) else {}
    replaced: set[str | None] = set()  # SHA-256 of weights
    for run_id, training in old.items():
        if run_id not in trainings or not _goes_on(training, trainings[run_id]):
            raise ValueError(f'{out} holds the results of another training of {run_id}: name another folder with --out')
        if training is not None:
            replaced |= {training.weights_sha256, training.main_weights_sha256}
    for run_id, training in trainings.items():
        if training is not None:
            check_no_other_training(out, run_id, replaced | {training.weights_sha256, training.main_weights_sha256})


def check_no_other_training(out: str, run_id: RunId, replaceable: Container[str | None]) -> None:
    """Checks that a folder has no checkpoint of a run, and no weights but those that may be replaced.

    Args:
        out: the folder.
        run_id: of the run.
        replaceable: SHA-256 of weights.

    Raises:
        ValueError: it has.
    """
    if checkpoint.has(run_id.checkpoint_path(out)):
        raise ValueError(f'{out} holds an unfinished training of {run_id}: name another folder with --out')
    for path in run_id.weights_path(out), run_id.main_weights_path(out):
        if os.path.exists(path) and files.digest(path) not in replaceable:
            raise ValueError(
                f'{path} is of another training, or of one whose checkpoint was removed: name another folder with '
                '--out, or remove it'
            )


def _goes_on(old: results.Training | None, new: results.Training | None) -> bool:
    """Whether the new training is the old one, or continues it."""
    if old is None or new is None:
        return old is new
    before, after = ([*one.main.weights_sha256, *one.joint.weights_sha256] for one in (old, new))
    return after[: len(before)] == before


def data_of(experiment: Any, training: results.Training, test_samples: int | None) -> Data:
    """The data of a training, cut as it was then.

    Args:
        experiment: that trained.
        training: its record.
        test_samples: number of test images; None: all.

    Raises:
        OSError: the data is missing or damaged.
        ValueError: the data here is not that of the training.
    """
    data = cut(experiment.get_data(), training.train_samples, test_samples)
    check_data(experiment.name, data, training.data_sha256)
    return data


def check_data(name: str, data: Data, data_sha256: str) -> None:
    """Checks that data is that of a training.

    Args:
        name: of the experiment, for the message.
        data: cut as the training's was.
        data_sha256: as the training recorded it.

    Raises:
        ValueError: it is other data.
    """
    found = provenance.sha256_of_arrays(data)
    if found != data_sha256:
        raise ValueError(
            f'{name} was trained on {named(data_sha256)}, and the data here is {named(found)}: build the data by the '
            'same recipe'
        )


def named(data_sha256: str) -> str:
    """Puts the identity of data into words.

    Args:
        data_sha256: over all four arrays, cut to a preset.
    """
    recipe = pcifar10.recipe_of(data_sha256)
    return f'pcifar10 by recipe {recipe}' if recipe else f'data of SHA-256 {data_sha256}'


def begin(
    run_id: RunId, get_network: Callable[[], BranchyNet], preset: Preset, data: Data, setup: Setup
) -> ResumableTraining:
    """Makes a net and its training: from the start, or, if setup.resume is set, from the run's checkpoint if it exists.

    Args:
        run_id: of the run.
        get_network: makes the net.
        preset: the amount of training.
        data: cut to the preset.
        setup: the user's choices.

    Returns:
        A training that has not run yet.

    Raises:
        OSError: the checkpoint is damaged or of another network.
        ValueError: the checkpoint was made with other settings, data, code or libraries, or the ranks cannot share the
            data.
        parallel.Refused: one of these, of several ranks; or settings, data, code or libraries differ among them.
    """
    ranks, path = setup.ranks, run_id.checkpoint_path(setup.out)
    record = ranks.together(lambda: new_record(preset, data, setup))
    same = {**_settings(record), **_origin(record.device, record.environment)}
    ranks.check_same({name: value for name, value in same.items() if name != 'device'})  # each has a GPU of its own
    net = ranks.together(lambda: _new_net(run_id.seed, get_network, preset, data, setup))
    resume = setup.resume and ranks.from_first(lambda: checkpoint.has(path))
    if not resume:
        return ResumableTraining(net, data, record, path, ranks=ranks)
    state = ranks.from_first(lambda: checkpoint.read(path))
    record, position = ranks.together(lambda: _restored(path, state, net, record))
    return ResumableTraining(net, data, record, path, position, ranks)


def new_record(preset: Preset, data: Data, setup: Setup) -> results.Training:
    """The record of a training that has not begun.

    Args:
        preset: the amount of training.
        data: cut to the preset.
        setup: the user's choices.
    """
    return results.Training(
        variant=setup.variant,
        device=str(setup.device),
        main_epochs=preset.main_epochs,
        joint_epochs=preset.joint_epochs,
        batchsize=preset.batchsize,
        train_samples=len(data[0]),
        data_sha256=provenance.sha256_of_arrays(data),
        environment=environment(setup.out),
        ranks=setup.ranks.size,
        communicator=setup.ranks.communicator,
        batch_normalization=setup.ranks.batch_normalization,
    )


def check_same_training(path: str, wanted: results.Training, saved: Any) -> results.Training:
    """Checks that a training that was saved is the one that is asked for.

    Args:
        path: of the file, for messages.
        wanted: the record of the training that would start now.
        saved: JSON-ready content of a record.

    Returns:
        The saved record.

    Raises:
        OSError: this version cannot read the content.
        ValueError: settings, data, code or libraries differ.
    """
    try:
        found = schema.structure(saved, results.Training)
    except ValueError as e:
        raise OSError(f'{path} holds no training of this version ({e}); {checkpoint.anew(path)}') from e
    one, other = ({**_settings(record), **_origin(record.device, record.environment)} for record in (wanted, found))
    _check_same(path, one, other, checkpoint.anew(path))
    return found


def _new_net(seed: int, get_network: Callable[[], BranchyNet], preset: Preset, data: Data, setup: Setup) -> BranchyNet:
    """The net of a training that has not begun; for the arguments see `begin`."""
    x, t, _, _ = data
    determinism.seed_generators(seed)
    net = get_network()
    checkpoint.check(net)
    net.to_device(setup.device)
    setup.ranks.check_data(net, x, t, preset.batchsize)
    return net


def _restored(
    path: str, state: checkpoint.State, net: BranchyNet, record: results.Training
) -> tuple[results.Training, Position | None]:
    """The record and the place of a training that goes on, whose net takes the checkpoint's state."""
    notes, position = checkpoint.restore(path, state, net)
    saved = check_same_training(path, record, notes)
    return saved if saved.has_all_epochs() else attrs.evolve(saved, environment=record.environment), position


def check_origin(path: str, runs: list[Any], setup: Setup) -> None:
    """Checks that earlier runs of a results file have the same origin as runs that start now.

    Args:
        path: of the results file, for the message.
        runs: the earlier runs.
        setup: the user's choices.

    Raises:
        ValueError: device, commit, code, profile or libraries differ.
    """
    here = _origin(str(setup.device), environment(setup.out))
    for run in runs:
        made = run.training or run.measurement
        found = _origin(made.device, made.environment)
        if made is run.measurement:  # figure6 trains nothing, and counts on the CPU whatever the device of the others
            found['device'] = here['device']
        _check_same(path, here, found, 'name another folder with --out')


def environment(out: str) -> results.Environment:
    """Describes the environment of this process.

    Args:
        out: the results folder, whose files do not count as changes of the checkout.
    """
    return schema.structure({**provenance.environment(out), 'code_sha256': _code_sha256()}, results.Environment)


def _code_sha256() -> str:
    """SHA-256 over the files of this package, which its commit describes only in a clean checkout."""
    found = {}
    for package in 'branchynet', 'branchynet.datasets', 'branchynet.experiments', 'branchynet.networks':
        spec = find_spec(package)
        assert spec is not None and spec.submodule_search_locations is not None  # all four are packages
        (root,) = spec.submodule_search_locations
        for folder, _, names in os.walk(root):
            for name in names:
                if name.endswith(('.py', '.toml', '.csv')):
                    inside = os.path.relpath(os.path.join(folder, name), root)
                    found['/'.join(package.split('.')[1:] + inside.split(os.sep))] = os.path.join(folder, name)
    listing = [f'{files.digest(path)} {name}\n' for name, path in sorted(found.items())]
    return hashlib.sha256(''.join(listing).encode()).hexdigest()


def _settings(record: results.Training) -> dict[str, Any]:
    names = (
        *('variant', 'main_epochs', 'joint_epochs', 'batchsize', 'train_samples', 'data_sha256'),
        *('ranks', 'communicator', 'batch_normalization'),
    )
    return {name: getattr(record, name) for name in names}


def _origin(device: str, environment: results.Environment) -> dict[str, Any]:
    """The facts that must agree for the same bits."""
    names = ('commit', 'code_sha256', 'profile', 'numpy', 'onednn')
    return {'device': device, **{name: getattr(environment, name) for name in names}}


def _check_same(path: str, wanted: dict[str, Any], saved: dict[str, Any], remedy: str) -> None:
    for key, value in wanted.items():
        if saved[key] != value:
            raise ValueError(f'{path} has {key} {saved[key]}: expected {value}; {remedy}')


class ResumableTraining:
    """The training of one seed, which continues from its last checkpoint.

    Attributes:
        net: on its device.
        record: the training's history so far.
    """

    INTERVAL = 30  # least seconds between checkpoints within an epoch
    SHARE = 0.01  # largest share of the time that these checkpoints may take

    def __init__(
        self,
        net: BranchyNet,
        data: Data,
        record: results.Training,
        path: str,
        position: Position | None = None,
        ranks: parallel.Alone = parallel.ALONE,
    ) -> None:
        self.net = net
        self.record = record
        self._ranks = ranks
        self._trained = ranks.parallel(net)
        self._data = data
        self._checkpoint = path
        self._position = position
        self._saved, self._cost = time.perf_counter(), 0.0

    def train(self, phase: str, num_epoch: int | None = None) -> None:
        """Trains the remaining epochs of a phase and writes checkpoints.

        Args:
            phase: 'main' or 'joint'.
            num_epoch: epochs of the phase in total; by default those of the record.
        """
        record, (x, y, _, _) = self.record, self._data
        history = getattr(record, phase)
        if num_epoch is None:
            num_epoch = getattr(record, f'{phase}_epochs')
        start = time.perf_counter()

        def count_seconds() -> None:
            nonlocal start
            now = time.perf_counter()
            history.seconds += now - start
            start = now

        def save_if_due(position: Position) -> None:
            if self._ranks.from_first(self._is_due):
                count_seconds()
                self.save(position)

        for losses, accuracies in epochs(
            self._trained,
            x,
            y,
            record.batchsize,
            num_epoch,
            phase == 'main',
            len(history.loss),
            self._position,
            after_step=save_if_due,
        ):
            history.loss.append(losses.tolist())
            history.accuracy.append(accuracies.tolist())
            history.weights_sha256.append(provenance.sha256_of_net(self.net))
            self._ranks.check_same({'weights_sha256': history.weights_sha256[-1]})
            count_seconds()
            self._position = None
            self.save()
            self._ranks.from_first(lambda: checkpoint.keep_epoch(self._checkpoint))

    def _is_due(self) -> bool:
        # The state of a GPU's random generators cannot be saved, so a training there resumes at an epoch only.
        waited = time.perf_counter() - self._saved
        return not self.net.gpu and waited >= max(self.INTERVAL, self._cost / self.SHARE)

    def save(self, position: Position | None = None) -> None:
        """Writes a checkpoint, on rank 0: all ranks have the same state.

        Args:
            position: the place within an epoch; None: between epochs.
        """
        start, notes = time.perf_counter(), schema.unstructure(self.record)
        self._ranks.from_first(lambda: checkpoint.save(self._checkpoint, self.net, notes, position))
        self._saved = time.perf_counter()
        self._cost = self._saved - start

    def save_weights(self, net: chainer.Link, path: str) -> str:
        """As `save_weights` of this module, on rank 0."""
        return self._ranks.from_first(lambda: save_weights(net, path))


def for_inference(net: BranchyNet) -> Any:
    """The net in the form in which it is measured: an inference.Compiled if possible, else the net itself."""
    return Compiled(net) if is_compilable(net) else net


def logits_of(net: BranchyNet, x: np.ndarray) -> np.ndarray:
    """The logits (E, N, C) of every exit for images x (N, ...), without early exit."""
    return calibration.logits_of(for_inference(net), x, BATCHSIZE)


def digest(array: np.ndarray) -> results.Digest:
    """The SHA-256 and the mean of an output array."""
    return results.Digest(sha256=provenance.sha256_of_arrays([array]), mean=float(np.mean(array, dtype=float)))


def save_weights(net: chainer.Link, path: str) -> str:
    """Writes the weights of a net or link.

    Args:
        net: a net or link.
        path: of the file, whose name ends in .npz.

    Returns:
        The file's SHA-256.
    """
    buffer = io.BytesIO()
    chainer.serializers.save_npz(buffer, net)
    write_atomically(path, buffer.getvalue())
    return files.digest(path)


def load_weights(net: chainer.Link, path: str, sha256: str | None) -> None:
    """Reads weights into a net or link, without unpickling anything.

    Args:
        net: the net or link, which gets the weights.
        path: of the file.
        sha256: of the file, as the run recorded it; None: the run did not keep the weights.

    Raises:
        OSError: the file is missing, is not the file that the run wrote, or belongs to another network.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f'{path} is missing: expected the weights of the run')
    check_written(path, sha256)
    checkpoint.load_npz(path, net)


def check_written(path: str, sha256: str | None) -> None:
    """Raises OSError unless a file of weights has the SHA-256 that its run recorded."""
    if files.digest(path) != sha256:
        if sha256 is None:
            raise OSError(f'{path} is of another run: this one kept no such weights; remove the file')
        raise OSError(f'{path} is not what its run wrote: expected SHA-256 {sha256}')
