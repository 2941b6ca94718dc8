"""Random splits of a data set that keep the shares of the classes."""

from __future__ import annotations

import numpy as np


def stratified(y: np.ndarray, held_out: int | float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits samples at random, so that every class has the same share of both parts.

    The same arguments give the same split.

    Args:
        y: labels, int (N,).
        held_out: size of the held-out part: a number of samples (int), or a share in (0, 1) (float).
        seed: seed of the random choice.

    Returns:
        (kept, held): int arrays of indices in increasing order. Together they hold each of 0 to N - 1 once.

    Raises:
        ValueError: a part would have fewer samples than there are classes, or a class has a single sample.
    """
    from sklearn.model_selection import train_test_split  # half a second, which other imports need not wait for

    kept, held = train_test_split(np.arange(len(y)), test_size=held_out, random_state=seed, stratify=y)
    return np.sort(kept), np.sort(held)
