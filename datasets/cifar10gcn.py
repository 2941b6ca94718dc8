"""CIFAR-10 with global contrast normalisation."""

from __future__ import annotations

from branchynet.datasets import cifar, cifar10, recipes


def get_data() -> cifar.Data:
    """Reads the images and labels of CIFAR-10. If they are missing, they are downloaded first.

    Pixels are divided by 255; then the mean training image is subtracted from each image, and the image is divided by
    its standard deviation. The release's loader also subtracts each image's mean before that:
    ``recipes.apply('gcn_centred', cifar10.read())``.

    Returns:
        (x_train, y_train, x_test, y_test):

        ======= ===================== ======= ========================================
        x_train (50000, 3, 32, 32)    float32 standard deviation 1 within every image
        y_train (50000,)              int32   0 ... 9
        x_test  (10000, 3, 32, 32)    float32 standard deviation 1 within every image
        y_test  (10000,)              int32   0 ... 9
        ======= ===================== ======= ========================================

    Raises:
        OSError: a file is damaged, or is missing and cannot be downloaded.
    """
    return recipes.apply('gcn', cifar10.read())


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
