"""CIFAR-10 and CIFAR-100 made up, in the formats in which they are published."""

import hashlib
import io
import pickle
import struct
import tarfile

import numpy as np


class Python2Pickler(pickle._Pickler):
    """Writes strings as Python 2 did, in which the Python versions were pickled."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, string):
        content = string if isinstance(string, bytes) else string.encode('ascii')
        self.write(pickle.BINSTRING + struct.pack('<i', len(content)) + content)
        self.memoize(string)

    dispatch[bytes] = dispatch[str] = save_string


def pickled(batch):
    """A dict as Python 2 pickled it."""
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(batch)
    return file.getvalue().replace(b'numpy._core.multiarray', b'numpy.core.multiarray')


def records(count, classes, seed):
    """Random records uint8 (count, 3073) whose labels cover all classes."""
    made = np.random.RandomState(seed).randint(0, 256, (count, 3073)).astype(np.uint8)
    made[:, 0] = np.arange(count) % classes
    return made


def tar(members):
    """A .tar.gz archive of {name: content}; a name as content makes a link."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w:gz') as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def md5(content):
    return hashlib.md5(content).hexdigest()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def put(data, name, version, contents, packed, extra=()):
    """Puts a version into the data folder, packed or not, and its digests into its description."""
    version['files'] = {file: md5(content) for file, content in contents.items()}
    members = {version['folder'] + '/' + file: content for file, content in contents.items()}
    archive = tar({**dict(extra), **members})
    version['md5'] = md5(archive)
    if packed:
        write(data / name / version['archive'], archive)
    else:
        for member, content in members.items():
            write(data / name / member, content)


def python_batch(rows, key=b'labels'):
    """The content of a file of the Python version."""
    return pickled({b'batch_label': b'made up', key: rows[:, 0].tolist(), b'data': np.ascontiguousarray(rows[:, 1:])})
