"""CIFAR-100 (Krizhevsky), fine labels, with global contrast normalisation."""

from functools import partial

from branchynet.datasets import cifar, recipes

NAME = 'cifar100'
VERSIONS = [
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


def get_data():
    """Training and test images and fine labels, normalised as by cifar10gcn; downloaded if absent.

    Returns:
        (x_train, y_train, x_test, y_test):

        ======= ===================== ======= ========================================
        x_train (50000, 3, 32, 32)    float32 standard deviation 1 within every image
        y_train (50000,)              int32   0 ... 99
        x_test  (10000, 3, 32, 32)    float32 standard deviation 1 within every image
        y_test  (10000,)              int32   0 ... 99
        ======= ===================== ======= ========================================

    Raises:
        OSError: a file is damaged, or missing and not to be had.
    """
    return recipes.apply('gcn', cifar.split(*cifar.read(NAME, VERSIONS)))


def get_data_dev(numclasses=2):
    """What get_data returns, of the classes below ``numclasses`` alone."""
    return cifar.of_classes(get_data(), numclasses)


def download():
    """Downloads the data set unless it is there and whole. Raises OSError where it cannot be had."""
    cifar.download(NAME, VERSIONS)


def inspect():
    """Yields (what is there, None) where the data set is whole, else ('', the error)."""
    return cifar.inspect(NAME, VERSIONS)
