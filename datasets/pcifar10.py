"""CIFAR-10 preprocessed, as the paper's experiments read it: the arrays of pcifar10/data.npz.

The authors' file is lost; docs/reproducing.md says what stands in for it, and why.
"""

import json
import os
import sys
import zipfile
import zlib

from branchynet import files
from branchynet.datasets import cifar, cifar10, folder, recipes
from branchynet.training import batches

import numpy as np

KEYS = 'train_x', 'train_y', 'test_x', 'test_y'
COUNTS = 50000, 10000
# SHA-256 of the data.npz that build writes with a recipe, on every machine.
SHA256 = {
    'gcn': '5c1f5e7d0201ccc774c3409a858bbb6f574e52e6c30ed217789769415ebdd2cb',
    'zca': 'ec5822933a326c762d857bc020d4b7efad1ee43723223fb9c22caf71430ad4e3',
}
DEFAULT = 'gcn'


def get_data():
    """Training and test images and labels of data.npz; where it is missing, made of CIFAR-10 by recipe gcn.

    Returns:
        (x_train, y_train, x_test, y_test):

        ======= ===================== ======= ========
        x_train (50000, 3, 32, 32)    float32
        y_train (50000,)              int32   0 ... 9
        x_test  (10000, 3, 32, 32)    float32
        y_test  (10000,)              int32   0 ... 9
        ======= ===================== ======= ========

    Raises:
        OSError: data.npz is damaged or holds other data; or it is missing, and CIFAR-10 is not to be had.
    """
    if os.path.exists(path()):
        return _read()[0]
    print(
        f"pcifar10: {path()} is missing: taking CIFAR-10 by recipe {DEFAULT}, as '{folder.command()} data build pcifar10' would write it",
        file=sys.stderr,
    )
    return recipes.apply(DEFAULT, cifar10.read())


def get_data_dev(numclasses=2):
    """What get_data returns, of the classes below ``numclasses`` alone."""
    return cifar.of_classes(get_data(), numclasses)


def path():
    """Where the data folder holds data.npz."""
    return os.path.join(folder.root(), 'pcifar10', 'data.npz')


def build(recipe=DEFAULT):
    """Writes data.npz from CIFAR-10: the same bytes on every machine.

    It also holds, under the key recipe, a JSON text: the recipe's name and the SHA-256 of what it was made of. Versions
    of Python or NumPy are not in it, as the bytes do not depend on them.

    Args:
        recipe: gcn or zca.

    Raises:
        ValueError: another recipe, or the bytes are not those expected.
        OSError: there is a data.npz already, or CIFAR-10 is not to be had.
    """
    if recipe not in SHA256:
        raise ValueError('recipe is {}: expected {}'.format(recipe, ' or '.join(SHA256)))
    if os.path.exists(path()):
        raise FileExistsError(f'{path()} exists, expected none: move it away to build another')
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


def inspect():
    """Yields (where data.npz is and its recipe, None) where it is whole, else ('', the error)."""
    try:
        if not os.path.exists(path()):
            raise FileNotFoundError(
                f"{path()} is missing: CIFAR-10 by recipe {DEFAULT} stands in for it; '{folder.command()} data build pcifar10' "
                'writes it'
            )
        data, recipe = _read()
        yield '{}, {}'.format(path(), 'recipe ' + recipe if recipe else _looks_like(data[0])), None
    except OSError as e:
        yield '', e


def _read():
    """((x_train, y_train, x_test, y_test), the recipe it was built with, or None), checked."""
    try:
        if not zipfile.is_zipfile(path()):
            raise ValueError('it is no npz file')
        with np.load(path(), allow_pickle=False) as npz:
            missing = [key for key in KEYS if key not in npz]
            if missing:
                raise ValueError(f'it has no array {missing[0]}')
            arrays = [npz[key] for key in KEYS]
            recipe = json.loads(str(npz['recipe']))['recipe'] if 'recipe' in npz else None
        for k, count in enumerate(COUNTS):
            _check_arrays(KEYS[2 * k : 2 * k + 2], *arrays[2 * k : 2 * k + 2], count)
        if recipe:
            _check_built(path(), recipe)
    except (ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as e:
        raise OSError(
            "{} is not whole, or not this data set ({}): expected arrays {}; move it away, and '{} data "
            "build pcifar10' makes another".format(path(), e, ', '.join(KEYS), folder.command())
        ) from e
    x_train, y_train, x_test, y_test = arrays
    return (
        x_train.astype(np.float32, copy=False),
        y_train.astype(np.int32, copy=False),
        x_test.astype(np.float32, copy=False),
        y_test.astype(np.int32, copy=False),
    ), recipe


def _check_arrays(keys, x, y, count):
    if x.shape != (count, 3, 32, 32) or x.dtype.kind != 'f':
        raise ValueError(f'{keys[0]} is {x.dtype} {x.shape}: expected floats {(count, 3, 32, 32)}')
    if y.shape != (count,) or y.dtype.kind not in 'iu':
        raise ValueError(f'{keys[1]} is {y.dtype} {y.shape}: expected integers {(count,)}')
    if set(np.unique(y)) != set(range(10)):
        raise ValueError('%s has labels from %d to %d: expected 0 to 9, all of them' % (keys[1], y.min(), y.max()))


def _check_built(file, recipe):
    found = files.digest(file)
    if found != SHA256.get(recipe):
        raise ValueError(
            '{}, of recipe {}, has SHA-256 {}: expected {}'.format(
                file, recipe, found, SHA256.get(recipe, 'recipe ' + ' or '.join(SHA256))
            )
        )


def _looks_like(x):
    """In words, which recipe images (N, 3, 32, 32) seem to come from: the first thousand tell."""
    x = x[:1000].astype(np.float64)
    rows = x.reshape(len(x), -1)
    if np.allclose(rows.std(axis=1, ddof=1), 1, atol=1e-3) and abs(rows.mean(axis=1)).max() > 0.1:
        return 'looks like recipe gcn (every image has standard deviation 1, around a mean of its own)'
    centred = x - x.mean(axis=(2, 3), keepdims=True)
    neighbours = (centred[..., 1:] * centred[..., :-1]).sum() / (centred**2).sum()
    if np.allclose(rows.min(axis=1), 0, atol=1e-3) and np.allclose(rows.max(axis=1), 1, atol=1e-3) and neighbours < 0.5:
        return 'looks like recipe zca (every image spans 0 to 1, its neighbouring pixels hardly correlated)'
    return 'recipe unknown'


def _write_array(archive, key, dtype, shape, blocks):
    """Adds an array, block by block. numpy.savez would put the time, and a header of its version's, into the file."""
    header = repr({'descr': dtype, 'fortran_order': False, 'shape': shape}).encode()
    header += b' ' * (-(len(header) + 11) % 64) + b'\n'
    entry = zipfile.ZipInfo(key + '.npy', date_time=(1980, 1, 1, 0, 0, 0))
    entry.create_system = 3  # Unix, on every system
    entry.external_attr = 0o644 << 16
    with archive.open(entry, 'w') as f:
        f.write(b'\x93NUMPY\x01\x00' + len(header).to_bytes(2, 'little') + header)
        for block in blocks:
            f.write(np.ascontiguousarray(block, dtype))
