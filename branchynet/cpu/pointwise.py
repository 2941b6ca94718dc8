"""Gradients of the weights of 1x1 convolutions, as matrix products: oneDNN's own take up to three times as long."""

from __future__ import annotations

import functools

from branchynet.cpu import memory
from branchynet.cpu.memory import address
from branchynet.cpu.products import Product, Shape, write_products
from branchynet.cpu.threads import blocks, equal_blocks

import numpy as np

_FEWEST_PIXELS = 1024  # of a part: adding up the parts' gradients would take long beside the products
_COLUMNS = 256  # of a block of a product
FEWEST = (
    128  # pixels of all images: for fewer, oneDNN's own code is as fast, or for many weights a product with windows
)


def gradients_of_w(x: np.ndarray, gy: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of the weights and the bias of a 1x1 convolution without padding.

    Args:
        x: images (B, C, H, W) without the pixels that the stride skips, float32 as all arrays.
        gy: gradient of the output (B, O, H, W), C-contiguous or channels last.
        most: parts of the images, at most, that threads share; their gradients are added up in order.

    Returns:
        Gradients of w (O, C, 1, 1) and b (O,).
    """
    x, gy = (np.ascontiguousarray(array.transpose(0, 2, 3, 1)) for array in (x, gy))
    (images, height, width, channels), outputs = x.shape, gy.shape[3]
    pixels = height * width
    parts = equal_blocks(images, max(1, min(most, images * pixels // _FEWEST_PIXELS)))
    # Each part has a row for every channel of the gradient of w, transposed, then that of b, which is ones times gy.
    sums = memory.empty((len(parts), channels + 1, outputs))
    ones = np.ones((parts[0].stop * pixels, 1), np.float32)
    products = []
    for part, own in zip(parts, sums):
        count = (part.stop - part.start) * pixels
        for factor, out in (x[part], own[:-1]), (ones, own[-1:]):
            product = _product(count, len(out), outputs)
            products.append((product, address(factor), address(gy[part]), address(out)))
    write_products(products)
    total = sums.sum(axis=0)
    return np.ascontiguousarray(total[:-1].T)[..., None, None], total[-1]


@functools.lru_cache(maxsize=1024)
def _product(count: int, rows: int, outputs: int) -> Product:
    """Pixels (count, rows), transposed, times (count, outputs)."""
    return Product(Shape(rows, outputs, count, is_a_transposed=True), blocks(outputs, 1, _COLUMNS), of_columns=True)
