"""CIFAR-100 (Krizhevsky 2009) with fine labels and global contrast normalisation."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from branchynet.datasets import cifar, recipes

NAME = 'cifar100'
VERSIONS: list[cifar.Version] = [
    {
        'archive': 'cifar-100-python.tar.gz',
        'md5': 'eb9058c3a382ffc7106e4002c42a8d85',
        'folder': 'cifar-100-python',
        'files': {'train': '16019d7e3df5f24257cddd939b257f8d', 'test': 'f0ef6b0ae62326f3e7ffdfab6717acfc'},
        'decode': partial(cifar.decode_python, label_key=b'fine_labels'),
    },
    {
        'archive': 'cifar-100-binary.tar.gz',
        'md5': '03b5dce01913d631647c71ecec9e9cb8',
        'folder': 'cifar-100-binary',
        'files': {'train.bin': None, 'test.bin': None},
        'decode': partial(cifar.decode_binary, label_bytes=2),
    },
]


def get_data() -> cifar.Data:
    """Reads the images, normalised as by cifar10gcn, and the fine labels. If missing, they are downloaded first.

    Returns:
        (x_train, y_train, x_test, y_test):

        ======= ===================== ======= ========================================
        x_train (50000, 3, 32, 32)    float32 standard deviation 1 within every image
        y_train (50000,)              int32   0 ... 99
        x_test  (10000, 3, 32, 32)    float32 standard deviation 1 within every image
        y_test  (10000,)              int32   0 ... 99
        ======= ===================== ======= ========================================

    Raises:
        OSError: a file is damaged, or is missing and cannot be downloaded.
    """
    return recipes.apply('gcn', cifar.split(*cifar.read(NAME, VERSIONS)))


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


def download() -> None:
    """Downloads the data set, unless it is complete.

    Raises:
        OSError: the archive cannot be downloaded.
    """
    cifar.download(NAME, VERSIONS)


def inspect() -> Iterator[tuple[str, OSError | None]]:
    """Checks the data set.

    Yields:
        (a line for the user, None) if the data set is complete, else ('', the error).
    """
    return cifar.inspect(NAME, VERSIONS)
