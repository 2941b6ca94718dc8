"""Checkpoints at any step of a training, and a loader of weights that runs no code of the file.

A checkpoint is an .npz archive followed by its SHA-256, which readers of .npz files ignore.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import struct
import sys
import tokenize
import zipfile
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

from branchynet.chains.trunk import LAYERS
from branchynet.exits import SAVED_SETTINGS, check_settings
from branchynet.files import copy, remove_parts, write_atomically
from branchynet.training import Position

import chainer
import numpy as np

if TYPE_CHECKING:
    from branchynet.net import BranchyNet

EPOCH = '.epoch'
_FORMAT = 2  # the version of a checkpoint's format
_CHECKSUM_BYTES = hashlib.sha256().digest_size
# What NumPy and zipfile raise on damaged archives; zipfile reports encryption as a RuntimeError.
_DAMAGED = (
    AttributeError,
    EOFError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def check(net: chainer.Link) -> None:
    """Checks that all parameters of a net have values, so that they can be saved.

    Args:
        net: any link.

    Raises:
        ValueError: a parameter has no shape yet.
    """
    for name, param in sorted(net.namedparams()):
        if param.array is None:
            raise ValueError(
                f'parameter {name} has no shape yet, so the net cannot be saved: give its link the size '
                'of its input, or pass some samples through the net first'
            )


def save(path: str, net: BranchyNet, notes: Any, position: Position | None = None) -> None:
    """Writes the state of a training, atomically.

    The state is the net with its frozen parts, its optimisers, the generators of Python and NumPy, and within an epoch
    the Position. The state of a GPU's generators is not saved. The previous checkpoint is kept beside the new one.

    Args:
        path: path of the checkpoint.
        net: the net.
        notes: any JSON-ready value; `load` returns it.
        position: the progress of the epoch; None between epochs.

    Raises:
        ValueError: a parameter has no shape yet.
        OSError: the file cannot be written.
    """
    check(net)
    # An optimiser that has made no step has no moments yet: it is left out.
    parts = {'net': net, **{name: optimizer for name, optimizer in _optimizers(net).items() if optimizer.t}}
    serializer = chainer.serializers.DictionarySerializer()
    for name, part in parts.items():
        serializer[name].save(part)
    name, keys, *rest = np.random.get_state()
    meta = {
        'format': _FORMAT,
        'network': _shapes(net),
        'parts': list(parts),
        'numpy': [name, *rest],
        'python': random.getstate(),
        'learned': net._learned,
        'frozen': sorted(net.frozen, key=str),
        'notes': notes,
    }
    arrays = {**serializer.target, 'generator': keys}
    if position is not None:
        arrays['order'] = position.order.astype(np.int32)
        meta['results'] = position.results
    buffer = io.BytesIO()
    np.savez(buffer, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8), **arrays)
    content = buffer.getvalue()
    write_atomically(path, content + hashlib.sha256(content).digest(), keep=_before(path))


def keep_epoch(path: str) -> None:
    """Keeps the checkpoint that was just saved, of a whole epoch, until that of the next one.

    Args:
        path: path of the checkpoint; the copy's ends in EPOCH.
    """
    copy(path, path + EPOCH)


class State(NamedTuple):
    """The content of a checkpoint: arrays by their names, and all else."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


def load(path: str, net: BranchyNet) -> tuple[Any, Position | None]:
    """Restores the state of a training from a checkpoint: `read`, then `restore`.

    Args:
        path: path of the checkpoint.
        net: as of `restore`.

    Returns:
        As of `restore`.

    Raises:
        ValueError: as of `restore`.
        OSError: as of `read` and `restore`.
    """
    return restore(path, read(path), net)


def read(path: str) -> State:
    """Reads a checkpoint.

    If the last checkpoint is damaged, the previous one takes its place, and a line on standard error says so.

    Args:
        path: path of the checkpoint.

    Raises:
        OSError: both checkpoints are damaged or missing.
    """
    try:
        return _read(path)
    except (FileNotFoundError, ValueError) as e:  # another error does not say that it is damaged
        why = getattr(e, 'strerror', None) or e
        try:
            state = _read(_before(path))
        except (FileNotFoundError, ValueError):
            if isinstance(e, FileNotFoundError):
                raise FileNotFoundError(f'{path} is missing: expected a checkpoint') from e
            raise OSError(f'{path} is not a whole checkpoint ({why}), nor is the one before: {anew(path)}') from e
        print(f'{path} is not a whole checkpoint ({why}): going on from the one before', file=sys.stderr)
        os.replace(_before(path), path)
        return state


def restore(path: str, state: State, net: BranchyNet) -> tuple[Any, Position | None]:
    """Restores the state of a training: the net, its optimisers and the generators.

    Args:
        path: path of the checkpoint, for messages.
        state: its content.
        net: a net with the same parameters and optimiser, which takes the state.

    Returns:
        (notes, position): the notes that were given to `save`; the progress of the epoch, None between epochs.

    Raises:
        ValueError: a parameter has no shape yet.
        OSError: the checkpoint has another version or network, and the net is unchanged; or it lacks the moments of a
            parameter, and the net holds a part of it.
    """
    check(net)
    arrays, meta = state
    if meta.get('format') != _FORMAT:
        raise OSError(
            f'{path} is a checkpoint of version {meta.get("format")}, and only version {_FORMAT} can be read: '
            f'{anew(path)}'
        )
    if meta['network'] != _shapes(net):
        raise OSError(
            f'{path} is a checkpoint of another network (names and shapes of parameters differ): {anew(path)}'
        )
    deserializer = chainer.serializers.NpzDeserializer(arrays)
    deserializer['net'].load(net)
    for name, optimizer in _optimizers(net).items():
        load_optimizer(optimizer, deserializer[name] if name in meta['parts'] else None)
    if 'frozen' in meta:  # a checkpoint of an earlier version does not say
        net.thaw()
        net.freeze(*(part for part in meta['frozen'] if net._links_of(part)))
    name, *rest = meta['numpy']
    np.random.set_state((name, arrays['generator'], *rest))
    version, numbers, gauss = meta['python']
    random.setstate((version, tuple(numbers), gauss))
    net._learned = meta['learned']
    position = Position(arrays['order'], meta['results']) if 'results' in meta else None
    return meta['notes'], position


def load_optimizer(optimizer: Any, serializer: chainer.Deserializer | None) -> None:
    """Gives an optimiser the state that a file has, where frozen parameters may have no moments.

    Args:
        optimizer: the optimiser; what it had before is gone.
        serializer: of the file; None: the optimiser has made no step.

    Raises:
        OSError: a parameter that has made steps has no moments in the file.
    """
    rules = [param.update_rule for param in optimizer.target.params()]
    enabled = [rule.enabled for rule in rules]
    optimizer.t = optimizer.epoch = 0
    for rule in rules:
        rule.t, rule._state = 0, None
    if serializer is None:
        return
    for rule in rules:
        rule.enabled = False  # Chainer then takes missing moments for those of a parameter that was not updated
    try:
        serializer.load(optimizer)
    finally:
        for rule, was_enabled in zip(rules, enabled):
            rule.enabled = was_enabled
    for name, param in optimizer.target.namedparams(include_uninit=False):
        if param.update_rule.t and param.update_rule.state is None:
            raise OSError(f'the file has no moments of parameter {name}, which has made {param.update_rule.t} steps')


def anew(path: str) -> str:
    """For messages: how to start a training anew where its checkpoint, or its record, cannot be resumed."""
    return f'to start anew, name another folder with --out, or remove {path}*'


def has(path: str) -> bool:
    """Returns whether there is a checkpoint, even if a later `save` was interrupted.

    Args:
        path: path of the checkpoint.
    """
    return os.path.exists(path) or os.path.exists(_before(path))


def remove(path: str) -> None:
    """Removes both checkpoints of `save`, that of the last epoch, and the parts of one that was killed.

    Args:
        path: path of the checkpoint.
    """
    if not os.path.isdir(os.path.dirname(path) or '.'):
        return
    remove_parts(path)
    for name in path, _before(path), path + EPOCH:
        with contextlib.suppress(FileNotFoundError):
            os.remove(name)


def load_npz(path: str, link: chainer.Link) -> None:
    """Reads the weights of ``chainer.serializers.save_npz``. Unlike Chainer's load_npz, it never runs code of a file.

    A BranchyNet takes the file's thresholdExits and temperatures too; it keeps its own where the file has none.

    Args:
        path: path of an .npz file.
        link: the link that takes the weights.

    Raises:
        OSError: the file is missing or damaged, holds Python objects, or has the weights of another network; one line.
            The link is unchanged.
    """
    expected = chainer.serializers.DictionarySerializer()
    expected.save(link)
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {
                name: _array(content, name, expected.target[name])
                for name in expected.target
                if name not in (*SAVED_SETTINGS, LAYERS)
            }
            settings = {name: content[name] for name in SAVED_SETTINGS if name in content and hasattr(link, name)}
            layers = {LAYERS: content[LAYERS]} if LAYERS in content else {}
    except KeyError as e:
        raise OSError(f'{path} holds the weights of another network: {e.args[0]}') from e
    except _DAMAGED as e:
        raise OSError(f'{path} cannot be read as weights ({e})') from e
    for name, array in arrays.items():
        wanted = np.asarray(expected.target[name])
        if wanted.dtype == object:  # no shape yet
            continue
        if array.shape != wanted.shape or not np.can_cast(array.dtype, wanted.dtype, 'same_kind'):
            raise OSError(
                f'{path} holds the weights of another network: {name} has shape {array.shape} and dtype {array.dtype}, '
                f'and this one needs {wanted.shape} and {wanted.dtype}'
            )
    if settings:
        try:
            check_settings({name: value.tolist() for name, value in settings.items()}, link.numexits())
        except (TypeError, ValueError) as e:
            raise OSError(f'{path} holds settings of another network: {e}') from e
    try:
        chainer.serializers.NpzDeserializer({**arrays, **settings, **layers}).load(link)
    except OSError as e:
        raise OSError(f'{path} holds the weights of another network: {e}') from e


def _array(content: Any, name: str, wanted: Any) -> Any:
    """An array of a file; one of None, as serializers.save_npz writes it, where neither side has a shape yet."""
    try:
        array = content[name]
    except ValueError:  # an object: None, or something that is not to be unpickled
        if np.asarray(wanted).dtype == object:
            return np.array(None)
        raise
    if not isinstance(array, np.ndarray):
        raise ValueError(f'{name} is not an array')
    return array


def _read(path: str) -> State:
    """The content of a file; ValueError if it is damaged."""
    with open(path, 'rb') as f:
        content = f.read()
    archive, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
    if hashlib.sha256(archive).digest() != checksum:
        raise ValueError('its checksum is wrong')
    with np.load(io.BytesIO(archive), allow_pickle=False) as arrays:
        arrays = dict(arrays)
    meta = json.loads(arrays.pop('meta').tobytes())
    return State(arrays, meta)


def _before(path: str) -> str:
    """Path of the previous checkpoint."""
    return path + '.before'


def _shapes(net: BranchyNet) -> list:
    """The optimiser, and the names and shapes of all parameters: they tell networks apart."""
    return [net.opt, *([name, list(param.shape)] for name, param in sorted(net.namedparams()))]


def _optimizers(net: BranchyNet) -> dict[str, chainer.Optimizer]:
    """The net's optimisers, by their names in a checkpoint."""
    return {'optimizer': net.optimizer, **{f'optimizers/{k}': one for k, one in enumerate(net.optimizers)}}
