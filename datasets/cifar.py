"""CIFAR-10 and CIFAR-100 as they are published: a binary and a Python version, in an archive or unpacked.

A version is described by a dict:

======= ================================================================================
archive name of its .tar.gz file
md5     the archive's MD5, as published
folder  the folder that the archive unpacks to
files   {file name: its MD5 or SHA-256}, or None where neither is published
decode  makes records of a file's content: uint8 (N, 3073), a label and 3 x 32 x 32 pixels
======= ================================================================================
"""

import io
import os
import pickle

from branchynet.datasets import folder

import numpy as np

URL = 'https://www.cs.toronto.edu/~kriz/'
PIXELS = 3 * 32 * 32
PICKLED = 'numpy.core.multiarray _reconstruct', 'numpy ndarray', 'numpy dtype'


def read(name, versions):
    """Records of a data set, from the first archive or folder of a version that is there.

    Where there is none, the archive of the first version is downloaded.

    Returns:
        list of uint8 (N, 3073), in the order of the version's files.

    Raises:
        OSError: a file is damaged, or missing and not to be had; one line that says how to mend it.
    """
    with folder.mended_by_download(name):
        version, path = find(name, versions)
        if path is None:
            version = versions[0]
            path = _download(name, version)
        return [version['decode'](content) for content in _contents(version, path)]


def find(name, versions):
    """(version, path) of the first archive or folder of a version that is there; (None, None) where none is."""
    there = [(version, archive_path(name, version)) for version in versions]
    # An unpacked file is read only where its digest is known.
    there += [
        (version, os.path.join(folder.root(), name, version['folder']))
        for version in versions
        if all(version['files'].values())
    ]
    return next((pair for pair in there if os.path.exists(pair[1])), (None, None))


def download(name, versions):
    """Downloads the archive of the first version, unless the data set is there and whole.

    Raises:
        OSError: it is not to be had.
    """
    try:
        if find(name, versions)[1] is not None:
            read(name, versions)
            return
    except OSError:
        pass  # damaged: the archive that is downloaded is looked for first
    _download(name, versions[0])


def inspect(name, versions):
    """Yields (what is there, None) for a data set that is whole, else ('', the error)."""
    version, path = find(name, versions)
    try:
        if path is None:
            raise FileNotFoundError('there is no {}'.format(' or '.join(archive_path(name, v) for v in versions)))
        list(_contents(version, path))
        yield path + ' holds all of it', None
    except OSError as e:
        yield '', e


def archive_path(name, version):
    """Where the data folder holds the archive of a version."""
    return os.path.join(folder.root(), name, version['archive'])


def decode_binary(content, label_bytes=1):
    """Records of the binary version; CIFAR-100 has 2 bytes of labels, of which the last is the fine one."""
    records = np.frombuffer(content, np.uint8).reshape(-1, label_bytes + PIXELS)
    return records[:, label_bytes - 1 :]


def decode_python(content, label_key=b'labels'):
    """Records of the Python version, a pickled dict of labels and pixels.

    Raises:
        pickle.UnpicklingError: it holds anything but NumPy arrays, bytes, str, dict, list and int.
    """
    batch = _unpickle(content)
    return np.concatenate([np.array(batch[label_key], np.uint8)[:, None], batch[b'data']], axis=1)


def split(records, test_records):
    """(x_train, y_train, x_test, y_test) of records: x uint8 (N, 3, 32, 32), y int32 (N,)."""
    parts = []
    for part in records, test_records:
        parts += [part[:, 1:].reshape(-1, 3, 32, 32), part[:, 0].astype(np.int32)]
    return tuple(parts)


def of_classes(data, numclasses):
    """The samples of (x_train, y_train, x_test, y_test) whose label is below numclasses.

    Raises:
        ValueError: there are not that many classes.
    """
    x_train, y_train, x_test, y_test = data
    classes = y_train.max() + 1
    if not 1 <= numclasses <= classes:
        raise ValueError(f'numclasses is {numclasses}: expected 1 to {classes}')
    train, test = y_train < numclasses, y_test < numclasses
    return x_train[train], y_train[train], x_test[test], y_test[test]


def _download(name, version):
    path = archive_path(name, version)
    folder.download(URL + version['archive'], path, version['md5'])
    return path


def _contents(version, path):
    """Contents of the files of a version's archive or folder, checked, one by one."""
    if path.endswith(version['archive']):
        # Names in an archive have slashes on every system.
        members = [version['folder'] + '/' + file for file in version['files']]
        found = folder.read_archive(path, version['md5'], members)
        return [found[member] for member in members]
    return (folder.read(os.path.join(path, file), expected) for file, expected in version['files'].items())


def _unpickle(content):
    # Loading a pickle calls whatever it names; what the published files name makes arrays.
    reconstruct = np.empty(0).__reduce__()[0]
    admitted = dict(zip(PICKLED, (reconstruct, np.ndarray, np.dtype)))

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            called = f'{module} {name}'
            if called not in admitted:
                raise pickle.UnpicklingError(
                    'the pickle calls {}: expected only {}'.format(called, ', '.join(admitted))
                )
            return admitted[called]

    # Python 2 wrote the published files: its strings are bytes.
    return Unpickler(io.BytesIO(content), encoding='bytes').load()
