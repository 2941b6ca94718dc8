"""MNIST (LeCun, Cortes, Burges): 60,000 + 10,000 images of handwritten digits."""
import os

from branchynet.datasets import folder
import numpy as np

# Content's SHA-256, and shape.
FILES = {
    'train-images-idx3-ubyte.gz': (
        'ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db', (60000, 1, 28, 28)),
    'train-labels-idx1-ubyte.gz': (
        '65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5', (60000,)),
    't10k-images-idx3-ubyte.gz': (
        '0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7', (10000, 1, 28, 28)),
    't10k-labels-idx1-ubyte.gz': (
        'ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2', (10000,)),
}
MIRRORS = [
    'https://storage.googleapis.com/cvdf-datasets/mnist/',
    'https://ossci-datasets.s3.amazonaws.com/mnist/',
    'http://yann.lecun.com/exdb/mnist/',
]


def get_data():
    """Training and test images and labels, from the data folder; downloaded into it if absent.

    Returns:
        (x_train, y_train, x_test, y_test):

        ======= ================== ======= ========
        x_train (60000, 1, 28, 28) float32 [0, 1]
        y_train (60000,)           int32   0 ... 9
        x_test  (10000, 1, 28, 28) float32 [0, 1]
        y_test  (10000,)           int32   0 ... 9
        ======= ================== ======= ========

    Raises:
        OSError: a file is damaged, or missing and not to be had.
    """
    x_train, y_train, x_test, y_test = [_read(name) for name in FILES]
    return _scaled(x_train), y_train.astype(np.int32), _scaled(x_test), y_test.astype(np.int32)


def download():
    """Downloads the files that are missing or damaged.

    Raises:
        OSError: one cannot be had.
    """
    for name, (sha256, _) in FILES.items():
        try:
            folder.read_gzip(path(name), sha256)
        except OSError:
            folder.download_gzip(path(name), sha256, MIRRORS)


def inspect():
    """Yields (what is there, None) or ('', the error) for every file."""
    for name, (sha256, _) in FILES.items():
        try:
            folder.read_gzip(path(name), sha256)
            yield path(name) + ' is whole', None
        except OSError as e:
            yield '', e


def path(name):
    """Where the data folder holds a file."""
    return os.path.join(folder.root(), 'mnist', name)


def _read(name):
    sha256, shape = FILES[name]
    with folder.mended_by_download('mnist'):
        if not os.path.exists(path(name)):
            folder.download_gzip(path(name), sha256, MIRRORS)
        content = folder.read_gzip(path(name), sha256)
    # IDX: a header of 4 bytes and 4 more for every dimension, then the values, row by row.
    header = 4 + 4 * (3 if len(shape) > 1 else 1)
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _scaled(images):
    return images.astype(np.float32) / 255
