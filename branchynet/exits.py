"""Early exit's one rule: the softmax and the entropy of an exit, and which samples leave there.

Every part of the project that lets samples leave calls this file: BranchyNet (test, run, and the samples that
training drops), ``inference`` and ``sweep``, from which tables and figures are computed.

The rule works in the dtype of the logits, float32 for the published networks. The entropy is computed in it, as
the authors' release does, and a threshold, which users give as a Python float (float64), is rounded to it before
the comparison, as NumPy did for the release. So a threshold that was chosen among recorded entropies is compared
with the very number that was recorded, and, as the comparison is strict, the sample that it was recorded of stays.

Entropy is the paper's criterion, and the only one of BranchyNet's own methods. ``inference.classify`` and
``sweep.record`` take any Criterion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal, NamedTuple, Optional, Protocol, Union, get_args

from branchynet.functions import entropy, smallest

import chainer
import numpy as np
from chainer.backend import get_array_module
from chainer.backends.cuda import to_cpu

Array = Any  # a NumPy or CuPy array
# One number for all exits but the last, or one for each of them. As a threshold, None: no sample leaves there.
Setting = Union[float, Sequence[Optional[float]]]
Side = Literal['below', 'above', 'at least']
SAVED_SETTINGS = 'thresholdExits', 'temperatures'  # of a BranchyNet, which its file holds where they are set


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


def labels(logits: Array) -> Array:
    """The labels (B,) that logits (B, C) give: the class of the highest; -1, which is none, where the answer is NaN."""
    xp = get_array_module(logits)
    return xp.where(xp.isfinite(logits.max(axis=1)), logits.argmax(axis=1), -1)


def accuracy(logits: Array, t: Array) -> Array:
    """The share of logits (B, C) whose label is that of t (B,), as an array () of their dtype; NaN is never right."""
    return get_array_module(logits).asarray((labels(logits) == t).mean(dtype=logits.dtype))


def check_answer(exit: Any, entropy: Array, first: int = 0) -> None:
    """Raises ValueError if the answer to a sample is NaN.

    Args:
        exit: where each sample was answered, from 0: integers (B,), or one number for all.
        entropy: (B,), nats.
        first: the number of the first of these samples in the data.
    """
    entropy = to_cpu(entropy)
    if math.isnan(entropy.sum()):
        sample = int(np.isnan(entropy).argmax())
        raise ValueError(
            f'exit {np.broadcast_to(exit, entropy.shape)[sample]} answers NaN, first for sample {first + sample}: '
            'the weights hold NaN, or numbers overflow, as weights or samples are too large'
        )


def below(key: Array, cut: float) -> Array:
    """The exit rule: a sample leaves where its entropy lies strictly below the threshold.

    Args:
        key: (B,), entropies (nats), or the keys of another criterion; NaN is never below.
        cut: the threshold, or that criterion's cut; rounded to the dtype of ``key``.

    Returns:
        Boolean array (B,) on the device of ``key``.
    """
    return key < rounded(cut, key.dtype)


def rounded(thresholds: Any, dtype: Any) -> Any:
    """Thresholds, a number or an array-like, in the dtype of the entropies that they are compared with."""
    with np.errstate(over='ignore'):  # a threshold beyond the largest float32 becomes infinite
        return np.asarray(thresholds, float).astype(dtype)[()]


def count_below(key: np.ndarray, cuts: np.ndarray, order: np.ndarray) -> np.ndarray:
    """How many entropies lie below each threshold, as ``below`` compares them.

    Args:
        key: (N,), as of ``below``.
        cuts: (S,), as of ``below``.
        order: (N,), ``key.argsort()``.

    Returns:
        Integers (S,).
    """
    return np.searchsorted(key, rounded(cuts, key.dtype), sorter=order)


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


# Criteria


class Criterion(NamedTuple):
    """A number that says how sure an exit is of a sample, and on which side of a threshold the sample leaves.

    Attributes:
        name: for messages and files.
        side: samples leave strictly below the threshold, strictly above it, or where they are at least as high.
        score: takes the logits (B, C) of an exit, their Answer, and how many exits in a row, this one included, agree
            on the label of each sample, integers (B,). Returns floats (B,). A sample whose score is NaN stays.
    """

    name: str
    side: Side
    score: Callable[[Array, Answer, Array], Array]

    def key(self, score: Array) -> Array:
        """The scores with the sign that lets the exit rule `below` compare them with `cut`."""
        return score if self.side == 'below' else -score

    def cut(self, threshold: Any, dtype: Any) -> Any:
        """Converts thresholds to cuts: a sample leaves where its `key` is below the cut.

        Args:
            threshold: a number or an array, on the scale of the scores; None, or NaN: no sample leaves.
            dtype: of the scores.
        """
        cut = rounded(threshold, dtype)
        is_off = np.isnan(cut)  # which None becomes
        if self.side != 'below':
            cut = -cut
        if self.side == 'at least':
            cut = np.nextafter(cut, dtype.type(math.inf))
        return np.where(is_off, dtype.type(-math.inf), cut)[()]

    def threshold(self, key: np.ndarray, rank: int) -> Optional[float]:
        """The threshold with which the ``rank`` samples of lowest key leave.

        Args:
            key: (N,), sorted, without NaN at the places up to ``rank``; ``key[rank - 1] < key[rank]``.
            rank: from 0 to N.

        Returns:
            A float; None, which also lets none of any other samples leave, for rank 0.
        """
        if rank == 0:
            return None
        last = key[rank - 1]
        if self.side == 'at least':
            return float(-last)
        # Between two keys, so that another order of sums, which rounds otherwise, moves no sample across; where all
        # samples leave, the smallest number above the last key.
        cut = np.nextafter(last, key.dtype.type(math.inf))
        if rank < len(key) and not np.isnan(key[rank]):
            cut = max(cut, key.dtype.type((float(last) + float(key[rank])) / 2))
        return float(cut if self.side == 'below' else -cut)

    def __reduce__(self) -> tuple[Any, ...]:  # those of CRITERIA are themselves again, when they come from a pickle
        return (_known, (self.name,)) if CRITERIA.get(self.name) is self else (Criterion, tuple(self))


def _known(name: str) -> Criterion:
    return CRITERIA[name]


ENTROPY = Criterion('entropy', 'below', lambda logits, answer, agreed: answer.entropy)  # the paper's, section III
TOP_PROB = Criterion('top_prob', 'above', lambda logits, answer, agreed: answer.prob.max(axis=1))
MARGIN = Criterion('margin', 'above', lambda logits, answer, agreed: _margin(answer.prob))
# The threshold is the number of exits in a row that agree (Zhou et al. 2020, BERT Loses Patience: theirs plus one).
PATIENCE = Criterion('patience', 'at least', lambda logits, answer, agreed: agreed.astype(answer.prob.dtype))
CRITERIA = {criterion.name: criterion for criterion in (ENTROPY, TOP_PROB, MARGIN, PATIENCE)}


def by_scores(function: Callable[[Array], Array], side: Side = 'above', name: str = '') -> Criterion:
    """A criterion of your own.

    Args:
        function: takes the logits (B, C) of an exit, divided by its temperature; returns floats (B,) on their device.
        side: as in Criterion.
        name: as in Criterion; '': the function's.

    Returns:
        A Criterion. It raises ValueError where the function returns something else.

    Raises:
        TypeError: the function is no callable.
        ValueError: there is no such side.
    """
    if not callable(function):
        raise TypeError(f'a criterion is a function of logits: expected a callable, got {function!r}')
    if side not in get_args(Side):
        raise ValueError(f'side is {side!r}: expected one of {", ".join(get_args(Side))}')
    name = name or getattr(function, '__name__', 'scores')

    def score(logits: Array, answer: Answer, agreed: Array) -> Array:
        found = chainer.as_array(function(logits))
        dtype = getattr(found, 'dtype', None)
        if getattr(found, 'shape', None) != logits.shape[:1] or dtype is None or dtype.kind != 'f':
            what = type(found).__name__ if dtype is None else f'an array of shape {found.shape} and dtype {dtype}'
            raise ValueError(f'criterion {name} returns {what}: expected floats of shape {logits.shape[:1]}')
        return found

    return Criterion(name, side, score)


def check_criterion(criterion: Any) -> None:
    """Raises TypeError unless it is a Criterion."""
    if not isinstance(criterion, Criterion):
        raise TypeError(
            f'criterion is {criterion!r}: expected one of exits.py, such as exits.MARGIN, or exits.by_scores(function)'
        )


def _margin(prob: Array) -> Array:
    """The highest minus the second highest probability (B,) of prob (B, C); of a single class, its own."""
    if prob.shape[1] == 1:
        return prob[:, 0]
    highest = get_array_module(prob).partition(prob, -2, axis=1)[:, -2:]
    return highest[:, 1] - highest[:, 0]


class Agreement:
    """How many exits in a row agree on the label of each sample that goes from exit to exit."""

    def __init__(self) -> None:
        self._label: Any = None
        self._count: Any = None

    def count(self, logits: Array) -> Array:
        """Takes the logits (B, C) of the next exit; returns integers (B,), 1 where it agrees with none before it."""
        label = labels(logits)
        count = get_array_module(logits).ones_like(label)
        if self._label is not None:
            count += self._count * (label == self._label)
        self._label, self._count = label, count
        return count

    def keep(self, stays: Array) -> None:
        """Goes on with the samples of the mask ``stays`` (B,)."""
        self._label, self._count = self._label[stays], self._count[stays]


def scores(criterion: Criterion, logits: Sequence[Array], answers: Sequence[Answer]) -> list[Array]:
    """The scores (B,) of every exit, where all samples pass all exits.

    Args:
        criterion: any.
        logits: (B, C), of every exit.
        answers: theirs.
    """
    if criterion is ENTROPY:  # needs no agreement
        return [answer.entropy for answer in answers]
    agreement = Agreement()
    return [criterion.score(of_exit, one, agreement.count(of_exit)) for of_exit, one in zip(logits, answers)]


def leave_at(key: np.ndarray, cuts: Sequence[float]) -> np.ndarray:
    """The exit at which every sample leaves under one setting of thresholds.

    Args:
        key: (E, N), as of ``below``, of every exit and sample.
        cuts: (E - 1,), as of ``below``.

    Returns:
        Integers (N,), 0 to E - 1.
    """
    left = np.full(key.shape[1], len(key) - 1)
    for k in reversed(range(len(key) - 1)):
        left[below(key[k], cuts[k])] = k
    return left


# Which of the samples that reach an exit leave there


class Rule(Protocol):
    """Decides at every exit but the last, where all leave."""

    def leaves(self, k: int, logits: Array, answer: Answer, batch: int) -> Array:
        """Which of the samples that reach exit k leave there.

        Args:
            k: the exit, from 0.
            logits: (remaining, C), of the samples that reach it.
            answer: theirs.
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
        self._thresholds = closed(thresholds)

    def leaves(self, k: int, logits: Array, answer: Answer, batch: int) -> Array:
        """The samples whose entropy lies below the threshold of exit k; for the arguments see Rule."""
        return below(answer.entropy, of_exit(self._thresholds, k))


class Scores:
    """Samples leave by a criterion. An object serves one batch on its way from exit to exit.

    Args:
        criterion: any.
        thresholds: on the scale of its scores; a number for every exit, or one for each.
    """

    def __init__(self, criterion: Criterion, thresholds: Setting) -> None:
        check_criterion(criterion)
        self._criterion = criterion
        self._thresholds = thresholds
        self._agreement = Agreement()

    def leaves(self, k: int, logits: Array, answer: Answer, batch: int) -> Array:
        """The samples whose score is on the threshold's side; for the arguments see Rule."""
        score = self._criterion.score(logits, answer, self._agreement.count(logits))
        cut = self._criterion.cut(of_exit(self._thresholds, k), score.dtype)
        leaves = self._criterion.key(score) < cut
        self._agreement.keep(~leaves)
        return leaves


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

    def leaves(self, k: int, logits: Array, answer: Answer, batch: int) -> Array:
        """The samples of lowest entropy, `count` of them; for the arguments see Rule."""
        return lowest(answer.entropy, self.count(k, len(logits), batch))


# Settings: a number for all exits but the last, or a sequence of one for each


def of_exit(setting: Any, k: int) -> float:
    """The value of a setting at exit k."""
    value: Any = setting if isinstance(setting, Real) else setting[k]
    return value


def setting_text(setting: Setting) -> str:
    """A setting for tables and figures: '0.5, off' for [0.5, None]."""
    return ', '.join('off' if value is None else f'{value:g}' for value in np.atleast_1d(np.asarray(setting)))


def closed(thresholds: Any) -> Any:
    """Replaces every None by -inf, an entropy below which no sample lies."""
    if isinstance(thresholds, Real):
        return thresholds
    return [-math.inf if threshold is None else threshold for threshold in thresholds]


def check_per_exit(name: str, value: Any, exits: int, share: bool = False) -> None:
    """Raises unless ``value`` is a setting for every exit but the last.

    Args:
        name: of the setting, for the message.
        value: a number for all exits but the last, or a sequence of one for each. A threshold in a sequence may be
            None.
        exits: the number of exits, the last one not counted.
        share: whether the values are shares, from 0 to 1.

    Raises:
        TypeError: it does not consist of numbers.
        ValueError: the number of values is wrong, or a value is NaN or out of range.
    """
    if not isinstance(value, (Real, Sequence)) and getattr(value, 'ndim', None) != 1:
        raise TypeError(f'{name} is {value!r}: expected a number, or a sequence of {exits}')
    values: list[Any] = [value] if isinstance(value, Real) else list(value)
    if not isinstance(value, Real) and len(values) != exits:
        raise ValueError(
            f'{name} is {value!r}: expected a number, or a sequence of {exits} (one for every exit but the last)'
        )
    if not share:
        values = [v for v in values if v is not None]
    if not all(isinstance(v, Real) for v in values):
        raise TypeError(f'{name} is {value!r}: expected numbers')
    for v in values:
        if math.isnan(v) or (share and not 0 <= v <= 1):
            expected = 'shares between 0 and 1' if share else 'numbers that are not NaN'
            raise ValueError(f'{name} is {value!r}: expected {expected}')


def per_exit(name: str, thresholds: Setting, exits: int) -> list[float]:
    """A threshold for each of ``exits`` exits, -inf for None; for the errors see check_per_exit."""
    check_per_exit(name, thresholds, exits)
    return np.broadcast_to(np.asarray(closed(thresholds), float), exits).tolist()


def check_settings(settings: Mapping[str, Any], exits: int) -> None:
    """Raises TypeError or ValueError unless the SAVED_SETTINGS among these are of a net of as many exits."""
    if settings.get('thresholdExits') is not None:
        check_per_exit('thresholdExits', settings['thresholdExits'], exits - 1)
    if settings.get('temperatures') is not None:
        check_temperatures(settings['temperatures'], exits)


def check_temperatures(value: Any, exits: int) -> None:
    """Raises unless ``value`` is a sequence of a temperature for each of the exits, the last one included.

    Raises:
        TypeError: it is no sequence of numbers.
        ValueError: the number of values is wrong, or a value is not finite and above 0.
    """
    values = None if isinstance(value, (str, Real)) or getattr(value, 'ndim', 1) == 0 else list(value)
    if values is None or not all(isinstance(v, Real) for v in values):
        raise TypeError(f'temperatures is {value!r}: expected a sequence of {exits} numbers, one for every exit')
    if len(values) != exits or not all(0 < v < math.inf for v in values):
        raise ValueError(f'temperatures is {value!r}: expected {exits} finite numbers above 0, one for every exit')
