"""Readers of CIFAR-10 and CIFAR-100 as published: a binary and a Python version, in an archive or unpacked.

A version is described by a dict (`Version`):

======= ====================================================================================
archive name of the .tar.gz file
md5     MD5 of the archive, as published
folder  the folder that the archive unpacks to
files   {file name: MD5 or SHA-256 of the file; None if neither is published}
decode  function from a file's content to records: uint8 (N, 3073), a label and 3 x 32 x 32 pixels
======= ====================================================================================
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypedDict

from branchynet.datasets import folder

import numpy as np

URL = 'https://www.cs.toronto.edu/~kriz/'
VALUES = 3 * 32 * 32  # of an image: 3 channels of 32 x 32 pixels
# What the pickles of the published files may name.
PICKLED = 'numpy.core.multiarray _reconstruct', 'numpy ndarray', 'numpy dtype'

# (x_train, y_train, x_test, y_test)
Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Version(TypedDict):
    """One of the forms in which a data set is published; the module's docstring explains the keys."""

    archive: str
    md5: str
    folder: str
    files: dict[str, Any]
    decode: Callable[[bytes], np.ndarray]


def read(name: str, versions: Sequence[Version]) -> list[np.ndarray]:
    """Reads the records of a data set from the first archive or folder that exists.

    If none exists, the archive of the first version is downloaded.

    Args:
        name: folder of the data set inside the data folder.
        versions: the versions, in the order of preference.

    Returns:
        The records of each file of the version, uint8 (N, 3073).

    Raises:
        OSError: a file is damaged, or is missing and cannot be downloaded; one line that says how to repair it.
    """
    with folder.mended_by_download(name):
        version, path = find(name, versions) or (versions[0], _download(name, versions[0]))
        return [version['decode'](content) for content in _contents(version, path)]


def find(name: str, versions: Sequence[Version]) -> tuple[Version, str] | None:
    """Finds the first archive or folder of a data set that exists.

    Args:
        name: folder of the data set inside the data folder.
        versions: the versions, in the order of preference; archives come before folders.

    Returns:
        (version, path), or None if no version exists.
    """
    there = [(version, archive_path(name, version)) for version in versions]
    # An unpacked file is read only if its digest is known.
    there += [
        (version, os.path.join(folder.root(), name, version['folder']))
        for version in versions
        if all(version['files'].values())
    ]
    for version, path in there:
        if os.path.exists(path):
            return version, path
    return None


def download(name: str, versions: Sequence[Version]) -> None:
    """Downloads the archive of the first version, unless the data set is complete.

    Args:
        name: folder of the data set inside the data folder.
        versions: the versions, in the order of preference.

    Raises:
        OSError: the archive cannot be downloaded.
    """
    try:
        if find(name, versions) is not None:
            read(name, versions)
            return
    except OSError:
        pass  # damaged: the new archive will be found before it
    _download(name, versions[0])


def inspect(name: str, versions: Sequence[Version]) -> Iterator[tuple[str, OSError | None]]:
    """Checks a data set.

    Args:
        name: folder of the data set inside the data folder.
        versions: the versions, in the order of preference.

    Yields:
        (a line for the user, None) if the data set is complete, else ('', the error).
    """
    found = find(name, versions)
    try:
        if found is None:
            raise FileNotFoundError('there is no {}'.format(' or '.join(archive_path(name, v) for v in versions)))
        version, path = found
        list(_contents(version, path))
        yield f'{path} is intact', None
    except OSError as e:
        yield '', e


def archive_path(name: str, version: Version) -> str:
    """Returns the path of a version's archive in the data folder.

    Args:
        name: folder of the data set inside the data folder.
        version: the version.
    """
    return os.path.join(folder.root(), name, version['archive'])


def decode_binary(content: bytes, label_bytes: int = 1) -> np.ndarray:
    """Decodes a file of the binary version.

    Args:
        content: content of the file.
        label_bytes: bytes of labels of each record, of which the last is kept. CIFAR-100 has 2; the last is the fine
            label.

    Returns:
        Records, uint8 (N, 3073).
    """
    records = np.frombuffer(content, np.uint8).reshape(-1, label_bytes + VALUES)
    return records[:, label_bytes - 1 :]


def decode_python(content: bytes, label_key: bytes = b'labels') -> np.ndarray:
    """Decodes a file of the Python version, a pickled dict of labels and pixels.

    Args:
        content: content of the file.
        label_key: key of the labels in the dict.

    Returns:
        Records, uint8 (N, 3073).

    Raises:
        pickle.UnpicklingError: the pickle holds objects other than NumPy arrays, bytes, str, dict, list and int.
    """
    batch = _unpickle(content)
    return np.concatenate([np.array(batch[label_key], np.uint8)[:, None], batch[b'data']], axis=1)


def split(records: np.ndarray, test_records: np.ndarray) -> Data:
    """Splits records into images and labels.

    Args:
        records: training records, uint8 (N, 3073).
        test_records: test records, uint8 (M, 3073).

    Returns:
        (x_train, y_train, x_test, y_test): x uint8 (N, 3, 32, 32), y int32 (N,).
    """
    parts: list[np.ndarray] = []
    for part in records, test_records:
        parts += [part[:, 1:].reshape(-1, 3, 32, 32), part[:, 0].astype(np.int32)]
    x_train, y_train, x_test, y_test = parts
    return x_train, y_train, x_test, y_test


def of_classes(data: Data, numclasses: int) -> Data:
    """Selects the samples of the first classes.

    Args:
        data: (x_train, y_train, x_test, y_test).
        numclasses: number of classes; samples with labels below it are kept.

    Returns:
        (x_train, y_train, x_test, y_test) of these samples.

    Raises:
        ValueError: numclasses is below 1, or above the number of classes of the data set.
    """
    x_train, y_train, x_test, y_test = data
    classes = y_train.max() + 1
    if not 1 <= numclasses <= classes:
        raise ValueError(f'numclasses is {numclasses}: expected 1 to {classes}')
    train, test = y_train < numclasses, y_test < numclasses
    return x_train[train], y_train[train], x_test[test], y_test[test]


def _download(name: str, version: Version) -> str:
    path = archive_path(name, version)
    folder.download(URL + version['archive'], path, version['md5'])
    return path


def _contents(version: Version, path: str) -> Iterable[bytes]:
    """The contents of the files of a version's archive or folder; each is checked."""
    if path.endswith(version['archive']):
        # Names inside an archive have slashes on every system.
        members = [version['folder'] + '/' + file for file in version['files']]
        found = folder.read_archive(path, version['md5'], members)
        return [found[member] for member in members]
    return (folder.read(os.path.join(path, file), expected) for file, expected in version['files'].items())


def _unpickle(content: bytes) -> Any:
    # Loading a pickle calls the functions that it names. Only those are admitted that the published files need to make
    # arrays.
    reconstruct = np.empty(0).__reduce__()[0]
    admitted = dict(zip(PICKLED, (reconstruct, np.ndarray, np.dtype)))

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            called = f'{module} {name}'
            if called not in admitted:
                raise pickle.UnpicklingError(
                    'the pickle calls {}: expected only {}'.format(called, ', '.join(admitted))
                )
            return admitted[called]

    # Python 2 wrote the published files: its strings are bytes.
    return Unpickler(io.BytesIO(content), encoding='bytes').load()
