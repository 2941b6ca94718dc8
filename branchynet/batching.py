"""Samples and labels in pairs, and in batches; labels that a net has classes for."""

from __future__ import annotations

from typing import Any


def check_pairs(x: Any, y: Any) -> None:
    """Checks that samples and labels come in pairs.

    Args:
        x: Samples (N, ...).
        y: Labels (N,).

    Raises:
        ValueError: Their numbers differ, or are 0.
    """
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f'x has {len(x)} samples and y has {len(y)}: both need the same number, at least one')


def batches(count: int, batchsize: int) -> list[slice]:
    """Returns slices that divide samples into batches, in order.

    Args:
        count: Number of samples.
        batchsize: Samples of a batch; the last batch may have fewer.

    Raises:
        ValueError: The batch size is below 1.
    """
    if batchsize < 1:
        raise ValueError(f'batchsize is {batchsize}: it must be 1 or more')
    return [slice(i, i + batchsize) for i in range(0, count, batchsize)]


def check_labels(logits: Any, t: Any) -> None:
    """Checks that no label in t (B,) is beyond the classes of logits (B, C).

    Raises:
        ValueError: A label is.
    """
    if t.max() >= logits.shape[1]:
        raise ValueError(f't holds the label {t.max()}: expected less than {logits.shape[1]}, the number of classes')
