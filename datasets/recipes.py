"""Preprocessing of photographs that gives the same bits on every machine.

Sums are taken over integers that float64 or int64 represent exactly. So their order does not matter, nor do the
processor, the number of threads and the BLAS. Inexact operations are elementwise, where IEEE 754 defines the bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from branchynet.batching import batches
from branchynet.datasets.cifar import Data

import numpy as np

BLOCK = 100  # images that are transformed at a time: few enough for a processor's cache
_FACTORS = 1000  # images whose products are added at a time: a sum (D, D) takes long
EPSILON = 1e-5  # added to the eigenvalues of the covariance, of images in [0, 1], before whitening
_BITS = 20  # of an integer; sums of 3072 products of two of them stay below 2^53

# From images uint8 (N, 3, 32, 32) to float32 of the same shape.
Transform = Callable[[np.ndarray], np.ndarray]


def apply(recipe: str, data: Data) -> Data:
    """Fits a recipe to the training images, and preprocesses the training and test images with it.

    Args:
        recipe: a name of RECIPES.
        data: (x_train, y_train, x_test, y_test), images uint8 (N, 3, 32, 32).

    Returns:
        (x_train, y_train, x_test, y_test), images float32.
    """
    x_train, y_train, x_test, y_test = data
    transform = RECIPES[recipe](x_train)
    images = []
    for x in x_train, x_test:
        images.append(np.empty(x.shape, np.float32))
        for part in batches(len(x), BLOCK):
            images[-1][part] = transform(x[part])
    return images[0], y_train, images[1], y_test


def fit_scaled(x_train: np.ndarray) -> Transform:
    """Returns the transform that divides pixels by 255.

    Args:
        x_train: not used.
    """
    return lambda x: x.astype(np.float32) / np.float32(255)


def fit_gcn(x_train: np.ndarray) -> Transform:
    """Returns the transform of global contrast normalisation that keeps the brightness of an image.

    Pixels are divided by 255; then the mean training image is subtracted from each image, and the image is divided by
    its standard deviation (ddof=1).

    Args:
        x_train: training images, uint8 (N, 3, 32, 32).
    """
    count, total = len(x_train), x_train.sum(axis=0, dtype=np.int64)

    def transform(x: np.ndarray) -> np.ndarray:
        deviation, _, std = _deviations(x, count, total)
        return (deviation / std[:, None]).astype(np.float32).reshape(x.shape)

    return transform


def fit_gcn_centred(x_train: np.ndarray) -> Transform:
    """Returns the transform of global contrast normalisation as the release's own loader computes it.

    As `fit_gcn`; but after the mean training image, the mean of all pixels and channels of the image is subtracted too.

    Args:
        x_train: training images, uint8 (N, 3, 32, 32).
    """
    count, total = len(x_train), x_train.sum(axis=0, dtype=np.int64)
    size = total.size

    def transform(x: np.ndarray) -> np.ndarray:
        deviation, sums, std = _deviations(x, count, total)
        centred = size * deviation - sums[:, None]  # times size, so that they are integers
        return (centred / (size * std)[:, None]).astype(np.float32).reshape(x.shape)

    return transform


def _deviations(x: np.ndarray, count: int, total: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The deviations of images from the mean training image, times 255 * count, so that they are integers.

    The factor cancels where they are divided by their standard deviation.

    Args:
        x: images, uint8 (B, 3, 32, 32).
        count: number of training images.
        total: their sum, int64 (3, 32, 32).

    Returns:
        (deviations (B, D), their sum over each image (B,), their standard deviation within each image (B,), ddof=1).
    """
    size = total.size
    deviation = (x.astype(np.int64) * count - total).reshape(len(x), size)
    sums, squares = deviation.sum(axis=1), (deviation**2).sum(axis=1)
    # Python's integers do not overflow, and their quotient is rounded only once.
    variances = [(size * int(q) - int(s) ** 2) / (size * (size - 1)) for s, q in zip(sums, squares)]
    return deviation, sums, np.sqrt(variances)


def fit_zca(x_train: np.ndarray) -> Transform:
    """Returns the transform of ZCA whitening, after which each image is scaled to [0, 1].

    The deviation from the mean training image is multiplied by (covariance + EPSILON)^(-1/2).

    Args:
        x_train: training images, uint8 (N, 3, 32, 32).
    """
    count = len(x_train)
    pixels = x_train.reshape(count, -1)
    total = pixels.sum(axis=0, dtype=np.int64)
    matrix = _inverse_root(_covariance(pixels, total))
    # Integers up to 2^27, whose products with pixels are exact. The factor cancels when an image is scaled.
    matrix = np.rint(matrix * (2.0**27 / abs(matrix).max()))
    offset = total @ matrix.astype(np.int64) / count

    def transform(x: np.ndarray) -> np.ndarray:
        white = x.reshape(len(x), -1).astype(np.float64) @ matrix - offset
        low, high = white.min(axis=1, keepdims=True), white.max(axis=1, keepdims=True)
        return ((white - low) / (high - low)).astype(np.float32).reshape(x.shape)

    return transform


def _covariance(pixels: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Covariance (D, D) of uint8 pixels (N, D) / 255, plus EPSILON on the diagonal; ``total`` (D,) is their sum."""
    count, size = pixels.shape
    products = np.zeros((size, size))
    for part in batches(count, _FACTORS):
        block = pixels[part].astype(np.float64)
        products += block.T @ block
    total = total.astype(np.float64)
    covariance = (count * products - total[:, None] * total) / (255.0 * count) ** 2
    covariance[np.diag_indices(size)] += EPSILON
    return covariance


def _inverse_root(matrix: np.ndarray) -> np.ndarray:
    """matrix^(-1/2), up to a factor, of a symmetric matrix whose eigenvalues are EPSILON or more.

    The scaled Newton-Schulz iteration (Chen and Chow 2014): root and inverse converge to matrix^(1/2) and
    matrix^(-1/2). The eigenvalues of their product lie in [low^2, 1] and converge to 1; each step is scaled as far as
    they stay in this interval. LAPACK's eigenvectors would differ between machines.
    """
    # No eigenvalue exceeds the largest sum of a row. The bits of this sum may depend on its order, so it is rounded up
    # to a power of two.
    bound = 2.0 ** math.frexp(abs(matrix).sum(axis=1).max())[1]
    root, inverse = matrix / bound, np.eye(len(matrix))
    low = math.sqrt(EPSILON / bound)
    while low < 1 - 2.0**-_BITS:
        stretch = math.sqrt(3 / (1 + low + low * low))
        step = _product(inverse, root) * (-0.5 * stretch * stretch * stretch)
        step[np.diag_indices(len(step))] += 1.5 * stretch
        root, inverse = _product(root, step), _product(step, inverse)
        low = stretch * low * (3 - stretch * stretch * low * low) / 2
    return inverse


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b to about 40 bits, independent of the order of its sums.

    Each matrix is split into two matrices of integers up to 2^20, whose unit is a power of two. Their products are
    exact.
    """
    a_high, a_low, a_unit = _split(a)
    b_high, b_low, b_unit = _split(b)
    low = a_high @ b_low + a_low @ b_high
    return (a_high @ b_high + low * 2.0**-_BITS) * (a_unit * b_unit)


def _split(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """(high, low, unit): integers with matrix = (high + low / 2^20) * unit, rounded."""
    unit = 2.0 ** (math.frexp(abs(matrix).max())[1] - _BITS)
    high = np.rint(matrix / unit)
    return high, np.rint((matrix / unit - high) * 2.0**_BITS), unit


RECIPES = {'scaled': fit_scaled, 'gcn': fit_gcn, 'gcn_centred': fit_gcn_centred, 'zca': fit_zca}
