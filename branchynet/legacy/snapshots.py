"""Snapshots that the serializers of Chainer 1 saved, read without unpickling anything in them."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

from branchynet import exits
from branchynet.chains.trunk import LAYERS
from branchynet.legacy.content import Path, about
from branchynet.legacy.network import without_eps

import chainer
import chainer.links as L
import numpy as np


def load_snapshot(path: Path, link: chainer.Link) -> None:
    """Loads into a link what a serializer of Chainer 1 saved: its parameters and running statistics.

    Chainer's own ``load_npz`` reads the same files, but unpickles objects in them, and takes the running variances
    as they are (see docs/from-chainer-1.md).

    Args:
        path: of a file by ``save_npz`` or ``save_hdf5`` (HDF5 needs the package h5py), of such a link or of an object
            that held one: an optimiser's target, a Classifier, a Trainer.
        link: a network of the same structure. It changes only if the whole file fits it.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no snapshot, is damaged, or does not fit.
        ImportError: h5py is missing.
    """
    wanted: dict[str, Any] = {}
    chainer.serializers.DictionarySerializer(wanted).save(link)
    for name in (*exits.SAVED_SETTINGS, LAYERS):  # of a BranchyNet, which no such file has
        wanted.pop(name, None)
    with about(path, 'a snapshot of Chainer 1'), open(path, 'rb') as f:
        start = f.read(8)
        f.seek(0)
        if start[:4] == b'PK\x03\x04':
            arrays = _npz_arrays(f, wanted)
        elif start == b'\x89HDF\r\n\x1a\n':
            arrays = _hdf5_arrays(f, wanted)
        else:
            raise ValueError('it is neither .npz nor HDF5')
        for path_, one in link.namedlinks():
            key = f'{path_}/avg_var'.strip('/')
            if isinstance(one, L.BatchNormalization) and arrays[key].any():
                arrays[key] = without_eps(arrays[key], one.eps)
        chainer.serializers.NpzDeserializer(arrays).load(link)


def _npz_arrays(f: Any, wanted: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays that are wanted, from an archive of .npy files, none larger than wanted."""
    try:
        with zipfile.ZipFile(f) as archive:
            names = [name[:-4] for name in archive.namelist() if name.endswith('.npy')]
            prefix = _prefix(names, wanted)
            arrays = {}
            for key, value in wanted.items():
                with archive.open(f'{prefix}{key}.npy') as member:
                    arrays[key] = _npy_array(member, key, np.asarray(value))
            return arrays
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, RuntimeError, struct.error) as e:
        raise ValueError(f'it is damaged ({e})') from e


def _npy_array(member: Any, key: str, wanted: np.ndarray) -> np.ndarray:
    """An array of the shape that is wanted. Nothing of another shape is read, and no object."""
    version = np.lib.format.read_magic(member)
    if version != (1, 0):
        raise ValueError(f'{key} has version {version} of the array format: Chainer 1 wrote (1, 0)')
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
    _check_array(key, shape, dtype, wanted)
    raw = member.read(math.prod(shape) * dtype.itemsize)
    if len(raw) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f'{key} is truncated')
    return np.array(np.frombuffer(raw, dtype).reshape(shape, order='F' if fortran else 'C'))


def _hdf5_arrays(f: Any, wanted: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays that are wanted, from an HDF5 file that holds them itself."""
    try:
        import h5py
    except ImportError as e:
        raise ImportError('HDF5 snapshots need the package h5py: pip install h5py') from e
    try:
        with h5py.File(f, 'r') as file:
            names: list[str] = []
            file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
            prefix = _prefix(names, wanted)
            arrays = {}
            for key, value in wanted.items():
                data = file[prefix + key]
                if data.external is not None or data.is_virtual:  # it would read other files
                    raise ValueError(f'{key} is in another file')
                _check_array(key, data.shape, data.dtype, np.asarray(value))
                arrays[key] = np.asarray(data[()])
            return arrays
    except (OSError, KeyError, RuntimeError, TypeError) as e:  # as h5py reports a damaged file
        raise ValueError(f'it is damaged ({e})') from e


def _check_array(key: str, shape: Any, dtype: np.dtype[Any], wanted: np.ndarray) -> None:
    if wanted.dtype == object:
        raise ValueError(f'{key} has no shape in this network yet: run a batch through it first')
    if tuple(shape) != wanted.shape:
        raise ValueError(f'{key} has shape {shape}: this network has {wanted.shape}')
    if dtype.kind not in 'fiu' or (wanted.dtype.kind == 'f' and dtype.kind != 'f'):
        raise ValueError(f'{key} has dtype {dtype}: this network has {wanted.dtype}')


def _prefix(names: list[str], wanted: Mapping[str, Any]) -> str:
    """Where in a snapshot the link is: '' or 'updater/model:main/predictor/'."""
    if not wanted:
        raise ValueError('the network has no parameters to load')
    present = set(names)
    first = max(wanted, key=len)
    prefixes = [name[: -len(first)] for name in names if name == first or name.endswith(f'/{first}')]
    whole = [prefix for prefix in prefixes if all(prefix + key in present for key in wanted)]
    if not whole:
        missing = next(
            (key for key in wanted if not any(prefix + key in present for prefix in prefixes or [''])), first
        )
        raise ValueError(f'it has no {missing}, which this network has')
    if len(whole) > 1:
        raise ValueError(f'it has several such networks: under {", ".join(sorted(whole))}')
    return whole[0]
