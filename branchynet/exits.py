"""Early exit's one rule: the softmax and the entropy of an exit, and which samples leave there.

Every part of the project that lets samples leave calls this file: BranchyNet (test, run, and the samples that
training drops), ``inference`` and ``sweep``, from which tables and figures are computed.

The rule works in the dtype of the logits, float32 for the published networks. The entropy is computed in it, as
the authors' release does, and a threshold, which users give as a Python float (float64), is rounded to it before
the comparison, as NumPy did for the release. So a threshold that was chosen among recorded entropies is compared
with the very number that was recorded, and, as the comparison is strict, the sample that it was recorded of stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple, Protocol, Union

from branchynet import _chainer  # noqa: F401
from branchynet.functions import entropy, smallest

import numpy as np
from chainer.backend import get_array_module

Array = Any  # a NumPy or CuPy array
Setting = Union[float, Sequence[float]]  # one number for all exits but the last, or one for each of them


class Answer(NamedTuple):
    """The answer of one exit to B samples.

    Attributes:
        prob: (B, C), the softmax of the exit's logits.
        entropy: (B,), nats: the criterion by which samples leave (section III of the paper).
    """

    prob: Array
    entropy: Array


def answer(logits: Array) -> Answer:
    """Softmax and entropy of an exit.

    A row's bits depend on that row alone, not on the other rows or on how many there are.

    Args:
        logits: NumPy or CuPy array (B, C).

    Returns:
        An Answer, in the dtype and on the device of the logits.
    """
    if type(logits) is np.ndarray:
        return Answer(*answer_on_cpu(logits))
    xp = get_array_module(logits)
    prob = xp.exp(logits - logits.max(axis=1, keepdims=True))
    prob /= prob.sum(axis=1, keepdims=True)
    return Answer(prob, entropy(prob))


def answer_on_cpu(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """answer for NumPy arrays, with little overhead: the time of a single sample consists of calls."""
    prob = logits - _max(logits, 1, None, None, True)
    _exp(prob, prob)
    prob /= _sum(prob, 1, None, None, True)
    logs = _maximum(prob, smallest(prob.dtype))
    _log(logs, logs)
    logs *= prob
    return prob, -_sum(logs, 1)


# Their arguments are (array, axis, dtype, out, keepdims).
_max: Any = np.maximum.reduce
_sum: Any = np.add.reduce
_exp, _log, _maximum = np.exp, np.log, np.maximum


def below(entropy: Array, threshold: float) -> Array:
    """The exit rule: a sample leaves where its entropy lies strictly below the threshold.

    Args:
        entropy: (B,), nats; NaN is never below.
        threshold: nats; rounded to the dtype of ``entropy``.

    Returns:
        Boolean array (B,) on the device of ``entropy``.
    """
    return entropy < rounded(threshold, entropy.dtype)


def rounded(thresholds: Any, dtype: Any) -> Any:
    """Thresholds, a number or an array-like, in the dtype of the entropies that they are compared with."""
    with np.errstate(over='ignore'):  # a threshold beyond the largest float32 becomes infinite
        return np.asarray(thresholds, float).astype(dtype)[()]


def count_below(entropy: np.ndarray, thresholds: np.ndarray, order: np.ndarray) -> np.ndarray:
    """How many entropies lie below each threshold, as ``below`` compares them.

    Args:
        entropy: (N,), nats.
        thresholds: (S,), nats.
        order: (N,), ``entropy.argsort()``.

    Returns:
        Integers (S,).
    """
    return np.searchsorted(entropy, rounded(thresholds, entropy.dtype), sorter=order)


def lowest(entropy: Array, count: int) -> Array:
    """The ``count`` rows of lowest entropy.

    Ties go to the earlier row; if there are fewer than ``count`` rows, all are selected.

    Args:
        entropy: (B,).
        count: how many rows; none if it is 0 or negative.

    Returns:
        Boolean array (B,) on the device of ``entropy``.
    """
    xp = get_array_module(entropy)
    order = entropy.argsort(kind='stable') if xp is np else entropy.argsort()  # CuPy's is stable
    mask = xp.zeros(len(entropy), bool)
    mask[order[: max(count, 0)]] = True
    return mask


def leave_at(entropy: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """The exit at which every sample leaves under one setting of thresholds.

    Args:
        entropy: (E, N), nats, of every exit and sample.
        thresholds: (E - 1,), nats.

    Returns:
        Integers (N,), 0 to E - 1.
    """
    left = np.full(entropy.shape[1], len(entropy) - 1)
    for k in reversed(range(len(entropy) - 1)):
        left[below(entropy[k], thresholds[k])] = k
    return left


# Which of the samples that reach an exit leave there


class Rule(Protocol):
    """Decides at every exit but the last, where all leave."""

    def leaves(self, k: int, entropy: Array, batch: int) -> Array:
        """Which of the samples that reach exit k leave there.

        Args:
            k: the exit, from 0.
            entropy: (remaining,), nats, of the samples that reach it.
            batch: how many samples there were before the first exit.

        Returns:
            Boolean array (remaining,).
        """


class Thresholds:
    """Samples whose entropy lies below the exit's threshold leave (algorithm 1 of the paper).

    Args:
        thresholds: nats; a number for every exit, or one for each.
    """

    def __init__(self, thresholds: Setting) -> None:
        self._thresholds = thresholds

    def leaves(self, k: int, entropy: Array, batch: int) -> Array:
        """The samples whose entropy lies below the threshold of exit k; for the arguments see Rule."""
        return below(entropy, of_exit(self._thresholds, k))


class Shares:
    """A share of the samples leaves, those of lowest entropy.

    Args:
        shares: in [0, 1]. A number is a share of the samples that reach the exit; a list gives shares of the
            original batch (as released).
        stay: whether they are the shares that stay, and the others leave.
    """

    def __init__(self, shares: Setting, stay: bool = False) -> None:
        self._shares = shares
        self._stay = stay

    def count(self, k: int, remaining: int, batch: int) -> int:
        """How many of the ``remaining`` samples leave at exit k; none if it is 0 or negative."""
        share = of_exit(self._shares, k) * (remaining if isinstance(self._shares, Real) else batch)
        return int(remaining - share if self._stay else share)

    def leaves(self, k: int, entropy: Array, batch: int) -> Array:
        """The samples of lowest entropy, `count` of them; for the arguments see Rule."""
        return lowest(entropy, self.count(k, len(entropy), batch))


# Settings: a number for all exits but the last, or a sequence of one for each


def of_exit(setting: Any, k: int) -> float:
    """The value of a setting at exit k."""
    value: Any = setting if isinstance(setting, Real) else setting[k]
    return value


def check_per_exit(name: str, value: Any, exits: int, upper: float = math.inf) -> None:
    """Raises unless ``value`` is a setting for every exit but the last.

    Args:
        name: of the setting, for the message.
        value: a number for all exits but the last, or a sequence of one for each.
        exits: the number of exits, the last one not counted.
        upper: 1 for a share, which cannot be negative either.

    Raises:
        TypeError: it does not consist of numbers.
        ValueError: the number of values is wrong, or a value is NaN or out of range.
    """
    try:
        values: list[Any] = [value] if isinstance(value, Real) else list(value)
    except TypeError:
        raise TypeError(f'{name} is {value}: expected a number, or a sequence of {exits}') from None
    if not isinstance(value, Real) and len(values) != exits:
        raise ValueError(
            f'{name} is {value}: expected a number, or a sequence of {exits} (one for every exit but the last)'
        )
    if not all(isinstance(v, Real) for v in values):
        raise TypeError(f'{name} is {value}: expected numbers')
    for v in values:
        if math.isnan(v) or (upper == 1 and not 0 <= v <= 1):
            expected = 'shares between 0 and 1' if upper == 1 else 'numbers that are not NaN'
            raise ValueError(f'{name} is {value}: expected {expected}')
