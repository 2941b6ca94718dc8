"""MNIST (LeCun, Cortes, Burges): 60,000 training and 10,000 test images of digits.

Files in ``mnist`` of the data folder are read first; where one is missing there, the package's own is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from branchynet.datasets import folder

import numpy as np

SHAPE = 1, 28, 28  # of an image
CLASSES = list('0123456789')  # by label
# By file: the SHA-256 of the unpacked content, and the shape of the array.
FILES: dict[str, tuple[str, tuple[int, ...]]] = {
    'train-images-idx3-ubyte.gz': (
        'ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db',
        (60000, 1, 28, 28),
    ),
    'train-labels-idx1-ubyte.gz': ('65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5', (60000,)),
    't10k-images-idx3-ubyte.gz': (
        '0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7',
        (10000, 1, 28, 28),
    ),
    't10k-labels-idx1-ubyte.gz': ('ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2', (10000,)),
}
FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'data', 'mnist')  # of the package's own files


def get_data() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Reads the images and labels.

    Returns:
        (x_train, y_train, x_test, y_test):

        ======= ================== ======= ========
        x_train (60000, 1, 28, 28) float32 [0, 1]
        y_train (60000,)           int32   0 ... 9
        x_test  (10000, 1, 28, 28) float32 [0, 1]
        y_test  (10000,)           int32   0 ... 9
        ======= ================== ======= ========

    Raises:
        OSError: a file is damaged or missing.
    """
    x_train, y_train, x_test, y_test = [_read(name) for name in FILES]
    return _scaled(x_train), y_train.astype(np.int32), _scaled(x_test), y_test.astype(np.int32)


def download() -> None:
    """Checks the files: there is nothing to download.

    Raises:
        OSError: a file is damaged or missing.
    """
    for name in FILES:
        _content(name)


def inspect() -> Iterator[tuple[str, OSError | None]]:
    """Checks every file.

    Yields:
        For each file (a line for the user, None) if it is undamaged, else ('', the error).
    """
    for name in FILES:
        try:
            _content(name)
            yield f'{path(name)} is intact', None
        except OSError as e:
            yield '', e


def path(name: str) -> str:
    """Returns the path of a file: in the data folder, or of the package's own if there is none.

    Args:
        name: a name of FILES.
    """
    own = os.path.join(folder.root(), 'mnist', name)
    return own if os.path.exists(own) else os.path.join(FOLDER, name)


def _read(name: str) -> np.ndarray:
    shape = FILES[name][1]
    # IDX: a header of 4 bytes and 4 more for every dimension (images have three), then the values, row by row.
    header = 4 + 4 * (3 if len(shape) > 1 else 1)
    return np.frombuffer(_content(name), np.uint8, offset=header).reshape(shape)


def _content(name: str) -> bytes:
    file = path(name)
    try:
        return folder.read_gzip(file, FILES[name][0])
    except OSError as e:
        if os.path.dirname(file) == FOLDER:
            remedy = 'restore the file with "git checkout", or install the package again'
        else:
            remedy = 'remove the file, and the one that comes with the package is read'
        raise type(e)(f'{e}; {remedy}') from e


def _scaled(images: np.ndarray) -> np.ndarray:
    return np.divide(images, 255, dtype=np.float32)
