"""How photographs are preprocessed, to the same bits on every machine.

Sums run over integers that float64 or int64 hold exactly, so that their order, and with it the processor, the number of
threads and the BLAS, do not matter. What is not exact is done element by element, where IEEE 754 says the bits.
"""

import math

from branchynet.training import batches

import numpy as np

BLOCK = 1000  # images that are worked on at a time
EPSILON = 1e-5  # added to the eigenvalues of the covariance, of images in [0, 1], before whitening
_BITS = 20  # products of two such integers, summed over 3072, stay below 2^53


def apply(recipe, data):
    """Preprocesses both sets of images by what ``recipe`` learns from the training images.

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


def fit_scaled(x_train):
    """Nothing is learned: pixels over 255."""
    return lambda x: x.astype(np.float32) / np.float32(255)


def fit_gcn(x_train):
    """Global contrast normalisation: /255, minus the mean image, over each image's standard deviation (ddof=1)."""
    count, total = len(x_train), x_train.sum(axis=0, dtype=np.int64)
    size = total.size

    def transform(x):
        # 255 * count times the deviation from the mean image, in integers; the factor cancels in the end.
        deviation = (x.astype(np.int64) * count - total).reshape(len(x), size)
        sums, squares = deviation.sum(axis=1), (deviation**2).sum(axis=1)
        # Python's integers do not overflow, and their quotient is rounded once.
        variances = [(size * int(q) - int(s) ** 2) / (size * (size - 1)) for s, q in zip(sums, squares)]
        return (deviation / np.sqrt(variances)[:, None]).astype(np.float32).reshape(x.shape)

    return transform


def fit_zca(x_train):
    """ZCA whitening, (covariance + EPSILON)^(-1/2) of the deviation from the mean image; each image to [0, 1]."""
    count = len(x_train)
    pixels = x_train.reshape(count, -1)
    total = pixels.sum(axis=0, dtype=np.int64)
    matrix = _inverse_root(_covariance(pixels, total))
    # In integers below 2^27, for exact products with pixels; the factor cancels when an image is scaled.
    matrix = np.rint(matrix * (2.0**27 / abs(matrix).max()))
    offset = total @ matrix.astype(np.int64) / count

    def transform(x):
        white = x.reshape(len(x), -1).astype(np.float64) @ matrix - offset
        low, high = white.min(axis=1, keepdims=True), white.max(axis=1, keepdims=True)
        return ((white - low) / (high - low)).astype(np.float32).reshape(x.shape)

    return transform


def _covariance(pixels, total):
    """Covariance of uint8 pixels (N, D) over 255, with EPSILON on its diagonal."""
    count, size = pixels.shape
    products = np.zeros((size, size))
    for part in batches(count, BLOCK):
        block = pixels[part].astype(np.float64)
        products += block.T @ block
    total = total.astype(np.float64)
    covariance = (count * products - total[:, None] * total) / (255.0 * count) ** 2
    covariance[np.diag_indices(size)] += EPSILON
    return covariance


def _inverse_root(matrix):
    """matrix^(-1/2), up to a factor, of a symmetric matrix with eigenvalues of EPSILON or more.

    Newton-Schulz iteration: root and inverse approach matrix^(1/2) and matrix^(-1/2), while the eigenvalues of their
    product, which lie in [low^2, 1], approach 1; stretched by as much as keeps them there (Chen and Chow 2014).
    LAPACK's eigenvectors would differ from one machine to the next.
    """
    # No eigenvalue is above the largest sum of a row. Its bits may depend on the order, so it is rounded up.
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


def _product(a, b):
    """a @ b to about 40 bits, the same whatever the order of its sums.

    Each matrix is split in two of integers up to 2^20 with a power of two as their unit. Their products are exact.
    """
    a_high, a_low, a_unit = _split(a)
    b_high, b_low, b_unit = _split(b)
    low = a_high @ b_low + a_low @ b_high
    return (a_high @ b_high + low * 2.0**-_BITS) * (a_unit * b_unit)


def _split(matrix):
    unit = 2.0 ** (math.frexp(abs(matrix).max())[1] - _BITS)
    high = np.rint(matrix / unit)
    return high, np.rint((matrix / unit - high) * 2.0**_BITS), unit


RECIPES = {'scaled': fit_scaled, 'gcn': fit_gcn, 'zca': fit_zca}
