"""CIFAR-10 with global contrast normalisation."""

from branchynet.datasets import cifar, cifar10, recipes


def get_data():
    """Training and test images and labels: /255, minus the mean training image, over each image's deviation.

    Returns:
        (x_train, y_train, x_test, y_test):

        ======= ===================== ======= ========================================
        x_train (50000, 3, 32, 32)    float32 standard deviation 1 within every image
        y_train (50000,)              int32   0 ... 9
        x_test  (10000, 3, 32, 32)    float32 standard deviation 1 within every image
        y_test  (10000,)              int32   0 ... 9
        ======= ===================== ======= ========================================

    Raises:
        OSError: a file is damaged, or missing and not to be had.
    """
    return recipes.apply('gcn', cifar10.read())


def get_data_dev(numclasses=2):
    """What get_data returns, of the classes below ``numclasses`` alone."""
    return cifar.of_classes(get_data(), numclasses)
