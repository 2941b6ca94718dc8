"""CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test photographs of 32 x 32 pixels in 10 classes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from branchynet.datasets import cifar, recipes

import numpy as np

NAME = 'cifar10'
SHAPE = 3, 32, 32  # of an image
CLASSES = ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']  # by label
# SHA-256 of the records (label, pixels) of every batch. The files of the binary version have the same bytes.
BATCHES = {
    'data_batch_1': 'cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5',
    'data_batch_2': 'a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed',
    'data_batch_3': 'bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67',
    'data_batch_4': '014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48',
    'data_batch_5': '755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add',
    'test_batch': '8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b',
}
VERSIONS: list[cifar.Version] = [
    {
        'archive': 'cifar-10-binary.tar.gz',
        'md5': 'c32a1d4ab5d03f1284b67883e8d87530',
        'folder': 'cifar-10-batches-bin',
        'files': {f'{batch}.bin': sha256 for batch, sha256 in BATCHES.items()},
        'decode': cifar.decode_binary,
    },
    {
        'archive': 'cifar-10-python.tar.gz',
        'md5': 'c58f30108f718f92721af3b95e74349a',
        'folder': 'cifar-10-batches-py',
        'files': {
            'data_batch_1': 'c99cafc152244af753f735de768cd75f',
            'data_batch_2': 'd4bba439e000b95fd0a9bffe97cbabec',
            'data_batch_3': '54ebc095f3ab1f0389bbae665268c751',
            'data_batch_4': '634d18415352ddfa80567beed471001a',
            'data_batch_5': '482c414d41f54cd18b22e5b47cb7c3cb',
            'test_batch': '40351d587109b95175f43aff81a1287e',
        },
        'decode': cifar.decode_python,
    },
]


def get_data(whitening: int = 1) -> cifar.Data:
    """Reads the images and labels from the data folder. If they are missing, they are downloaded first.

    Args:
        whitening: if true, the images are whitened by the ZCA of the training images, and each image is scaled to
            [0, 1], which takes minutes. Otherwise the pixels are divided by 255.

    Returns:
        (x_train, y_train, x_test, y_test):

        ======= ===================== ======= ========
        x_train (50000, 3, 32, 32)    float32 [0, 1]
        y_train (50000,)              int32   0 ... 9
        x_test  (10000, 3, 32, 32)    float32 [0, 1]
        y_test  (10000,)              int32   0 ... 9
        ======= ===================== ======= ========

    Raises:
        OSError: a file is damaged, or is missing and cannot be downloaded.
    """
    return recipes.apply('zca' if whitening else 'scaled', read())


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


def read() -> cifar.Data:
    """Reads the images as published; if they are missing, they are downloaded first.

    Returns:
        (x_train, y_train, x_test, y_test) as of `get_data`, but x is uint8.

    Raises:
        OSError: a file is damaged, or is missing and cannot be downloaded.
    """
    records = cifar.read(NAME, VERSIONS)
    for (batch, sha256), part in zip(BATCHES.items(), records):
        found = hashlib.sha256(np.ascontiguousarray(part).data).hexdigest()
        if found != sha256:
            raise OSError(f"CIFAR-10's {batch} has records of SHA-256 {found}: expected {sha256}")
    return cifar.split(np.concatenate(records[:-1]), records[-1])


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
