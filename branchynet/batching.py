"""Samples and labels in pairs, and in batches; labels that a net has classes for."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import chainer
import numpy as np


def check_pairs(x: Any, y: Any) -> None:
    """Checks that samples and labels come in pairs.

    Args:
        x: samples (N, ...).
        y: labels (N,).

    Raises:
        TypeError: one of them is no array.
        ValueError: their numbers differ, or are 0.
    """
    for name, value in (('x', x), ('y', y)):
        checked_array(name, value)
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f'x has {len(x)} samples and y has {len(y)}: both need the same number, at least one')


def checked_array(name: str, value: Any) -> Any:
    """A batch as an array.

    Args:
        name: of the batch, for messages.
        value: NumPy or CuPy array or Variable (B, ...).

    Raises:
        TypeError: it is none of these.
        ValueError: it has no axis.
    """
    array = chainer.as_array(value)
    if not isinstance(array, chainer.get_array_types()):
        raise TypeError(f'{name} is a {type(value).__name__}: expected a NumPy or CuPy array, or a Variable')
    if array.ndim == 0:
        raise ValueError(f'{name} has shape (): expected a batch')
    return array


def checked_labels(t: Any, x: Any) -> Any:
    """Labels as an array.

    Args:
        t: labels (B,) of samples x (B, ...): NumPy or CuPy array or Variable.
        x: the samples.

    Raises:
        TypeError: they are no signed integers.
        ValueError: their shape is another, or one is below 0.
    """
    t = checked_array('t', t)
    if t.dtype.kind != 'i':
        raise TypeError(f't has dtype {t.dtype}: expected signed integers (int32)')
    if t.shape != x.shape[:1]:
        raise ValueError(f't has shape {t.shape}: expected {x.shape[:1]}, one label for every sample of x')
    if t.min() < 0:
        raise ValueError(f't holds the label {t.min()}: expected 0 or more')
    return t


def check_shape(shape: Any) -> None:
    """Raises TypeError unless ``shape`` is that of a sample: a sequence of whole numbers."""
    if not isinstance(shape, (Sequence, np.ndarray)) or not all(isinstance(size, Integral) for size in shape):
        raise TypeError(f'shape is {shape!r}: expected that of a sample, such as (3, 32, 32)')


def batches(count: int, batchsize: int) -> list[slice]:
    """Returns slices that divide samples into batches, in order.

    Args:
        count: number of samples.
        batchsize: samples of a batch; the last batch may have fewer.

    Raises:
        ValueError: the batch size is below 1.
    """
    if batchsize < 1:
        raise ValueError(f'batchsize is {batchsize}: it must be 1 or more')
    return [slice(i, i + batchsize) for i in range(0, count, batchsize)]


def check_within(t: Any, classes: int) -> None:
    """Checks that no label in t (B,) is beyond the classes.

    Raises:
        ValueError: a label is.
    """
    if t.max() >= classes:
        raise ValueError(f't holds the label {t.max()}: expected less than {classes}, the number of classes')
