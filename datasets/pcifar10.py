"""Preprocessed CIFAR-10, which the paper's experiments read from pcifar10/data.npz.

The authors' file is lost; docs/reproducing.md says what replaces it, and why.
"""

from __future__ import annotations

import json
import os
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from branchynet import files
from branchynet.batching import batches
from branchynet.datasets import cifar, cifar10, folder, recipes

import numpy as np

KEYS = 'train_x', 'train_y', 'test_x', 'test_y'
COUNTS = 50000, 10000
# By recipe: the SHA-256 of the data.npz that `build` writes, the same on every machine.
SHA256 = {
    'gcn': '5c1f5e7d0201ccc774c3409a858bbb6f574e52e6c30ed217789769415ebdd2cb',
    'gcn_centred': '7a607249e0b34db315d8dfb97d860f502a9557f716759f586a55672f6794adcc',
    'zca': 'ec5822933a326c762d857bc020d4b7efad1ee43723223fb9c22caf71430ad4e3',
}
# By recipe: the SHA-256 of the whole arrays of `get_data`, by which a training's record names its data.
ARRAYS_SHA256 = {
    'gcn': '59387267ce9d00e3b3e9c983d58c3d2f295f2aad268b014bdc833d02ed94cfe7',
    'gcn_centred': '61fc2ab4668186fb54534aa237650d81a9a2a39a5dcf7354d9f99fa7163de1df',
    'zca': '751e20994c461e660cedfabc1eeed6b80b87d96aa9b4a949637e6f5d255d56ec',
}
DEFAULT = 'gcn'


def recipe_of(arrays_sha256: str) -> str | None:
    """Finds the recipe of the data of a training.

    Args:
        arrays_sha256: of all four arrays, as `branchynet.provenance.sha256_of_arrays` computes it.

    Returns:
        A key of SHA256; None if it is of another data set or of a part of the images.
    """
    return next((recipe for recipe, known in ARRAYS_SHA256.items() if known == arrays_sha256), None)


def get_data() -> cifar.Data:
    """Reads the images and labels of data.npz. If it is missing, they are made from CIFAR-10 by recipe gcn.

    Returns:
        (x_train, y_train, x_test, y_test):

        ======= ===================== ======= ========
        x_train (50000, 3, 32, 32)    float32
        y_train (50000,)              int32   0 ... 9
        x_test  (10000, 3, 32, 32)    float32
        y_test  (10000,)              int32   0 ... 9
        ======= ===================== ======= ========

    Raises:
        OSError: data.npz is damaged or holds other data; or it is missing, and CIFAR-10 cannot be downloaded.
    """
    if os.path.exists(path()):
        return _read()[0]
    print(
        f"pcifar10: {path()} is missing: taking CIFAR-10 by recipe {DEFAULT}, as '{folder.command()} data build "
        "pcifar10' would write it",
        file=sys.stderr,
    )
    return recipes.apply(DEFAULT, cifar10.read())


def get_data_dev(numclasses: int = 2) -> cifar.Data:
    """Returns the data of `get_data` for the first classes only.

    Args:
        numclasses: number of classes.

    Returns:
        (x_train, y_train, x_test, y_test) of the samples whose labels are below ``numclasses``.

    Raises:
        ValueError: numclasses is below 1, or above the number of classes.
        OSError: as of `get_data`.
    """
    return cifar.of_classes(get_data(), numclasses)


def path() -> str:
    """Returns the path of data.npz in the data folder."""
    return os.path.join(folder.root(), 'pcifar10', 'data.npz')


def build(recipe: str = DEFAULT) -> None:
    """Writes data.npz from CIFAR-10, with the same bytes on every machine.

    Besides the arrays, the file has a JSON text under the key 'recipe': the recipe's name, and the SHA-256 of each
    batch of the source. It has no versions of Python or NumPy, as the bytes do not depend on them.

    Args:
        recipe: a key of SHA256.

    Raises:
        ValueError: the recipe does not exist, or the bytes are not the expected ones.
        OSError: data.npz already exists, or CIFAR-10 cannot be downloaded.
    """
    if recipe not in SHA256:
        raise ValueError(f'recipe is {recipe}: expected {" or ".join(SHA256)}')
    if os.path.exists(path()):
        raise FileExistsError(f'{path()} exists already: move it away to build another')
    x_train, y_train, x_test, y_test = cifar10.read()
    transform = recipes.RECIPES[recipe](x_train)
    about = np.array(json.dumps({'recipe': recipe, 'source': 'cifar10', 'source_sha256': cifar10.BATCHES}))
    os.makedirs(os.path.dirname(path()), exist_ok=True)
    with files.written_whole(path()) as f:
        with zipfile.ZipFile(f, 'w') as archive:
            for name, x, y in ('train', x_train, y_train), ('test', x_test, y_test):
                _write_array(
                    archive,
                    name + '_x',
                    '<f4',
                    x.shape,
                    (transform(x[part]) for part in batches(len(x), recipes.BLOCK)),
                )
                _write_array(archive, name + '_y', '<i4', y.shape, [y])
            _write_array(archive, 'recipe', f'<U{len(str(about))}', (), [about])
        f.flush()
        _check_built(f.name, recipe)


def inspect() -> Iterator[tuple[str, OSError | None]]:
    """Checks data.npz.

    Yields:
        (its path and recipe, None) if the file is complete, (the recipe that stands in for it, None) if it is missing
        and CIFAR-10 is there, else ('', the error).
    """
    try:
        if os.path.exists(path()):
            data, recipe = _read()
            yield f'{path()}, {f"recipe {recipe}" if recipe else _looks_like(data[0])}', None
        elif cifar.find(cifar10.NAME, cifar10.VERSIONS) is None:
            download = f"'{folder.command()} data download cifar10' gets that"
            raise FileNotFoundError(f'{path()} is missing, and so is cifar10, of which it is made: {download}')
        else:
            _, error = next(iter(cifar10.inspect()))
            if error:
                raise OSError(f'{path()} is missing, and cifar10, of which it is made, is damaged: {error}')
            build = f"'{folder.command()} data build pcifar10' writes it"
            yield f'{path()} is missing: CIFAR-10 by recipe {DEFAULT} stands in for it; {build}', None
    except OSError as e:
        yield '', e


def _read() -> tuple[cifar.Data, str | None]:
    """Reads and checks data.npz: ((x_train, y_train, x_test, y_test), the recipe that it names, or None)."""
    try:
        if not zipfile.is_zipfile(path()):
            raise ValueError('it is not an npz file')
        with np.load(path(), allow_pickle=False) as npz:
            missing = [key for key in KEYS if key not in npz]
            if missing:
                raise ValueError(f'it has no array {missing[0]}')
            arrays = [npz[key] for key in KEYS]
            recipe = json.loads(str(npz['recipe']))['recipe'] if 'recipe' in npz else None
        for k, count in enumerate(COUNTS):
            _check_arrays(KEYS[2 * k : 2 * k + 2], arrays[2 * k], arrays[2 * k + 1], count)
        if recipe:
            _check_built(path(), recipe)
    except (ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as e:
        raise OSError(
            f'{path()} is damaged, or not this data set ({e}): expected arrays {", ".join(KEYS)}; move it away, and '
            f"'{folder.command()} data build pcifar10' makes another"
        ) from e
    x_train, y_train, x_test, y_test = arrays
    return (
        x_train.astype(np.float32, copy=False),
        y_train.astype(np.int32, copy=False),
        x_test.astype(np.float32, copy=False),
        y_test.astype(np.int32, copy=False),
    ), recipe


def _check_arrays(keys: tuple[str, ...], x: np.ndarray, y: np.ndarray, count: int) -> None:
    if x.shape != (count, 3, 32, 32) or x.dtype.kind != 'f':
        raise ValueError(f'{keys[0]} is {x.dtype} {x.shape}: expected floats {(count, 3, 32, 32)}')
    if y.shape != (count,) or y.dtype.kind not in 'iu':
        raise ValueError(f'{keys[1]} is {y.dtype} {y.shape}: expected integers {(count,)}')
    if set(np.unique(y)) != set(range(10)):
        raise ValueError(f'{keys[1]} has labels from {y.min()} to {y.max()}: expected 0 to 9, all of them')


def _check_built(file: str, recipe: str) -> None:
    found = files.digest(file)
    if found != SHA256.get(recipe):
        raise ValueError(
            f'{file}, of recipe {recipe}, has SHA-256 {found}: expected '
            + SHA256.get(recipe, f'recipe {" or ".join(SHA256)}')
        )


def _looks_like(x: np.ndarray) -> str:
    """Guesses, from the first 1000 images of (N, 3, 32, 32), the recipe that made them; in words."""
    x = x[:1000].astype(np.float64)
    rows = x.reshape(len(x), -1)
    if np.allclose(rows.std(axis=1, ddof=1), 1, atol=1e-3):
        means = abs(rows.mean(axis=1))
        if means.max() > 0.1:
            return 'looks like recipe gcn (every image has standard deviation 1, around a mean of its own)'
        if means.max() < 1e-3:
            return 'looks like recipe gcn_centred (every image has mean 0 and standard deviation 1)'
    centred = x - x.mean(axis=(2, 3), keepdims=True)
    neighbours = (centred[..., 1:] * centred[..., :-1]).sum() / (centred**2).sum()
    if np.allclose(rows.min(axis=1), 0, atol=1e-3) and np.allclose(rows.max(axis=1), 1, atol=1e-3) and neighbours < 0.5:
        return 'looks like recipe zca (every image spans 0 to 1, its neighbouring pixels hardly correlated)'
    return 'recipe unknown'


def _write_array(archive: zipfile.ZipFile, key: str, dtype: str, shape: tuple[int, ...], blocks: Iterable[Any]) -> None:
    """Adds an array to the archive, block by block.

    numpy.savez would write the time, and a header that depends on NumPy's version.
    """
    header = repr({'descr': dtype, 'fortran_order': False, 'shape': shape}).encode()
    header += b' ' * (-(len(header) + 11) % 64) + b'\n'
    entry = zipfile.ZipInfo(key + '.npy', date_time=(1980, 1, 1, 0, 0, 0))
    entry.create_system = 3  # Unix, on every system
    entry.external_attr = 0o644 << 16
    with archive.open(entry, 'w') as f:
        f.write(b'\x93NUMPY\x01\x00' + len(header).to_bytes(2, 'little') + header)
        for block in blocks:
            f.write(np.ascontiguousarray(block, dtype).data)
