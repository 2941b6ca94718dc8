"""Threshold sweeps from one pass: the exit record determines the result of every setting of thresholds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple

from branchynet import timing
from branchynet.batching import batches, check_pairs, check_within, checked_array, checked_labels
from branchynet.devices import now
from branchynet.exits import (
    ENTROPY,
    Answer,
    Array,
    Criterion,
    check_answer,
    check_criterion,
    count_below,
    labels,
    leave_at,
    scores,
)
from branchynet.inference import Compiled, check_classifier
from branchynet.net import BranchyNet
from branchynet.progress import progress

import numpy as np
from chainer.backends.cuda import to_cpu


class ExitRecord(NamedTuple):
    """The answers of E exits to N samples, from one pass without early exit.

    Attributes:
        score: float (E, N), of the criterion; of the paper's criterion, entropy in nats.
        correct: bool (E, N), whether the exit's most probable class is the label.
        released: float (E, N), seconds per sample of the trunk's stage before each exit.
        whole: float (E, N), seconds per sample that each exit adds. Exit 0: those of a whole call of `test` in which
            all samples leave there. A later exit: those of the stage before it, its links, softmax and entropy. The
            sum over exits 0 to k is the time of a sample that leaves at exit k. Another criterion's own arithmetic is
            not in it.
        criterion: by which samples leave.
    """

    score: np.ndarray
    correct: np.ndarray
    released: np.ndarray
    whole: np.ndarray
    criterion: Criterion = ENTROPY

    @property
    def entropy(self) -> np.ndarray:
        """The scores (E, N), nats, of a record whose criterion is entropy; of any other it raises ValueError."""
        if self.criterion is not ENTROPY:
            raise ValueError(f'the record holds scores of the criterion {self.criterion.name}: expected entropy')
        return self.score

    @property
    def key(self) -> np.ndarray:
        """The scores (E, N) with the sign by which a sample leaves below a number (exits.Criterion)."""
        return self.criterion.key(self.score)


class Sweep(NamedTuple):
    """The results of S settings over N samples and E exits.

    Attributes:
        thresholds: float (S, E - 1), on the scale of the criterion's scores; of the paper's, nats.
        accuracy: float (S,), in [0, 1].
        exits: int (S, E), samples that leave at each exit.
        released: float (S,), mean seconds per sample on the released clock, composed of the stages' times.
        whole: float (S,), the same on the whole clock.
    """

    thresholds: np.ndarray
    accuracy: np.ndarray
    exits: np.ndarray
    released: np.ndarray
    whole: np.ndarray


def record(
    net: BranchyNet | Compiled, x: Array, t: Array, batchsize: int = 1, criterion: Criterion = ENTROPY
) -> ExitRecord:
    """Passes samples by every exit, without early exit, and records the exits' answers and times.

    With a Compiled, only the first 1000 batches are timed. The other samples reuse those times cyclically and run in
    larger batches on several threads, so the last digit of their entropies may differ from that of one by one.

    Args:
        net: a BranchyNet or a Compiled.
        x: samples (N, ...), of the parameters' dtype.
        t: labels (N,), signed integers.
        batchsize: samples that run together.
        criterion: of exits.py, by which samples leave.

    Returns:
        An ExitRecord.

    Raises:
        TypeError: net, x, t or criterion has the wrong type.
        ValueError: x and t do not fit each other or the net, or hold no samples; an exit answers NaN; or the criterion
            returns something else than floats (B,).
    """
    check_classifier(net)
    check_pairs(x, t)
    t = to_cpu(checked_labels(t, checked_array('x', x)))
    check_criterion(criterion)
    parts = batches(len(x), batchsize)
    for part in parts[: timing.WARMUP]:
        _record_batch(net, x, t, part, criterion)
    timed = parts[:TIMED] if isinstance(net, Compiled) else parts
    with timing.no_collection():
        recorded = [_record_batch(net, x, t, part, criterion) for part in progress(timed, 'sweeping')]
        for of_part, part in zip(recorded, timed):
            of_part.whole[0] = _seconds_of_first_exit(net, x[part])
    released, whole = (np.concatenate([getattr(r, name) for r in recorded], axis=1) for name in ('released', 'whole'))
    rest = [slice(first, first + _TOGETHER) for first in range(timed[-1].stop, len(x), _TOGETHER)]
    recorded += [_record_batch(net, x, t, part, criterion) for part in rest]
    score, correct = (np.concatenate([getattr(r, name) for r in recorded], axis=1) for name in ('score', 'correct'))
    turns = np.arange(len(x)) % released.shape[1]
    return ExitRecord(score, correct, released[:, turns], whole[:, turns], criterion)


def _seconds_of_first_exit(net: BranchyNet | Compiled, x: Array) -> float:
    """Seconds per sample of a call in which all samples leave at the first exit."""
    start = now(net)
    net.test_at(math.inf, x)
    return (now(net) - start) / len(x)


TIMED = 1000  # batches of a Compiled that are timed
_TOGETHER = 1024  # samples of a batch that is not timed; they share threads


def _record_batch(net: BranchyNet | Compiled, x: Array, t: Array, part: slice, criterion: Criterion) -> ExitRecord:
    """The record of a part of the samples."""
    looks, t, rows = net.look(x[part]), t[part], []
    count = len(t)
    answers = [Answer(look.prob, look.entropy) for look in looks]
    for k, (look, score) in enumerate(zip(looks, scores(criterion, [look.logits for look in looks], answers))):
        check_within(t, look.prob.shape[1])
        check_answer(k, look.entropy, part.start)
        rows.append(
            (
                to_cpu(score),
                to_cpu(labels(look.logits)) == t,
                np.full(count, look.released / count),
                np.full(count, look.whole / count),
            )
        )
    score, correct, released, whole = map(np.stack, zip(*rows))
    return ExitRecord(score, correct, released, whole, criterion)


def sweep(recorded: ExitRecord, thresholds: Any) -> Sweep:
    """Evaluates settings exactly: each sample leaves at the first exit whose score its threshold lets go.

    A threshold matters only by its rank, the number of samples that it lets leave. One pass over the samples serves
    all settings that differ only in the rank of their last threshold: it takes cumulative sums in the order of that
    exit's scores, and a setting's total is the entry at its rank. Sorting S settings takes O(S log S). The passes
    of O(N) are one for 2 exits, one per rank that occurs at the first exit (at most N + 1) for 3 exits, and one per
    combination of ranks before the last threshold for more exits.

    Args:
        recorded: an ExitRecord of N samples.
        thresholds: array-like (S, E - 1), on the scale of the criterion's scores; of the paper's, nats. None: no sample
            leaves there.

    Returns:
        A Sweep.

    Raises:
        TypeError: recorded is no ExitRecord, or the thresholds are a single number.
        ValueError: the thresholds have another shape or hold NaN, or there are no samples or no settings.

    Example:
        >>> from branchynet import inference, sweep
        >>> from branchynet.datasets import mnist
        >>> from branchynet.networks import lenet_mnist
        >>> _, _, x, t = mnist.get_data()
        >>> recorded = sweep.record(inference.Compiled(lenet_mnist.get_network()), x[:500], t[:500])
        >>> swept = sweep.sweep(recorded, [[0.0], [np.median(recorded.entropy[0])], [math.inf]])
        >>> swept.exits.tolist()  # samples that leave at each exit, under each setting
        [[0, 500], [250, 250], [500, 0]]
    """
    thresholds, cuts = _checked(recorded, thresholds)
    exits, samples = recorded.score.shape
    # What changes when a sample reaches an exit: the count there by 1, correctness (this exit's in place of that of
    # the exit before), and two times. Sums of whole numbers are exact in float64.
    gains = np.stack(
        [
            np.ones((exits, samples)),
            np.diff(recorded.correct.astype(float), axis=0, prepend=0),
            recorded.released,
            recorded.whole,
        ],
        axis=1,
    )
    order, ranks = _ranks(recorded.key[:-1], cuts)
    totals = np.empty((exits, 4, len(thresholds)))
    totals[0] = gains[0].sum(axis=1, keepdims=True)
    for k in range(1, exits):
        totals[k] = _sums_of_remaining(order[:k], ranks[:k], gains[k])
    correct, released, whole = totals[:, 1:].sum(axis=0) / samples
    left = -np.diff(totals[:, 0], axis=0, append=0)
    return Sweep(thresholds, correct, left.T.astype(int), released, whole)


def percentiles(recorded: ExitRecord, thresholds: Any, q: Sequence[float] = (50, 95)) -> np.ndarray:
    """Percentiles over the samples of their seconds on the whole clock, where `sweep` gives the mean.

    They need every sample's time under every setting, O(S N log N): for hundreds of settings, not for millions.

    Args:
        recorded: an ExitRecord of N samples.
        thresholds: as in `sweep`.
        q: percentages.

    Returns:
        Float array (len(q), S), seconds.

    Raises:
        TypeError, ValueError: as in `sweep`.
    """
    _, cuts = _checked(recorded, thresholds)
    whole, each = np.cumsum(recorded.whole, axis=0), np.arange(recorded.score.shape[1])
    key = recorded.key
    return np.transpose([np.percentile(whole[leave_at(key, setting), each], q) for setting in cuts])


def check_record(recorded: Any) -> None:
    """Raises TypeError unless it is an ExitRecord."""
    if not isinstance(recorded, ExitRecord):
        raise TypeError(f'recorded is a {type(recorded).__name__}: expected an ExitRecord, which sweep.record returns')


def _checked(recorded: ExitRecord, thresholds: Any) -> tuple[np.ndarray, np.ndarray]:
    """Thresholds and the cuts below which a sample's key lets it leave: float arrays (S, E - 1)."""
    check_record(recorded)
    if thresholds is None or isinstance(thresholds, Real) or getattr(thresholds, 'ndim', 1) == 0:
        raise TypeError(f'thresholds is {thresholds!r}: expected settings, each a sequence of thresholds')
    if not isinstance(thresholds, np.ndarray):
        thresholds = np.asarray([list(setting) if np.ndim(setting) else setting for setting in thresholds], object)
    exits, samples = recorded.score.shape
    if thresholds.ndim != 2 or thresholds.shape[1] != exits - 1 or not len(thresholds):
        raise ValueError(
            f'thresholds have shape {thresholds.shape}: expected (settings, {exits - 1}), at least one setting'
        )
    is_off = thresholds == np.array(None) if thresholds.dtype == object else np.zeros(thresholds.shape, bool)
    nobody = -math.inf if recorded.criterion.side == 'below' else math.inf
    numbers = np.where(is_off, nobody, thresholds).astype(float)
    if np.isnan(numbers).any():
        raise ValueError('thresholds hold NaN')
    if samples == 0:
        raise ValueError('the exit record is empty: a sweep needs at least one sample')
    # An infinite score is at least infinite: the cut of None is another than that of infinity.
    return numbers, recorded.criterion.cut(np.where(is_off, math.nan, numbers), recorded.score.dtype)


def _ranks(key: np.ndarray, cuts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorts the samples of K exits, and ranks cuts among them.

    Args:
        key: (K, N), of an ExitRecord.
        cuts: (S, K), from _checked.

    Returns:
        Two integer arrays: (K, N), each exit's samples by rising key, and (K, S), the number of each exit's keys that
        lie below its cut.
    """
    order = key.argsort(axis=1)
    ranks = np.empty(cuts.shape[::-1], int)
    for k, cut in enumerate(cuts.T):
        ranks[k] = count_below(key[k], cut, order[k])
    return order, ranks


def _sums_of_remaining(order: np.ndarray, ranks: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Sums over the samples that remain after K exits, under every setting.

    Args:
        order: (K, N), from _ranks.
        ranks: (K, S), from _ranks.
        gains: (V, N), the values to sum.

    Returns:
        Float array (V, S).
    """
    falling = order[-1, ::-1]  # the first N - rank of them do not leave at the last of the K exits
    places, gains = order[:-1].argsort(axis=1).take(falling, axis=1), gains.take(falling, axis=1)
    sums = np.zeros((len(gains), len(falling) + 1))
    result = np.empty((len(gains), ranks.shape[1]))
    for group in _groups(ranks[:-1]):
        reached = np.flatnonzero((places >= ranks[:-1, group[:1]]).all(axis=0))
        gains.take(reached, axis=1).cumsum(axis=1, out=sums[:, 1 : len(reached) + 1])
        counts = np.searchsorted(reached, len(falling) - ranks[-1, group])
        result[:, group] = sums.take(counts, axis=1)
    return result


def _groups(columns: np.ndarray) -> list[np.ndarray]:
    """Groups equal columns of an array (K, S): a list of arrays of their indices."""
    if not len(columns):
        return [np.arange(columns.shape[1])]
    order = np.lexsort(columns)
    return np.split(order, 1 + np.flatnonzero(np.diff(columns[:, order]).any(axis=0)))


def pareto(accuracy: Any, seconds: Any) -> np.ndarray:
    """The Pareto front: the settings for which no other is at least as good in both respects and better in one.

    Of equal settings the first is kept.

    Args:
        accuracy: array-like (S,), accuracy of every setting.
        seconds: array-like (S,), time of every setting.

    Returns:
        Integer array, indices of the settings on the front by rising time.

    Raises:
        ValueError: an accuracy or a time is NaN.
    """
    accuracy, seconds = _checked_settings(accuracy, seconds)
    order = np.lexsort((-accuracy, seconds))
    best = np.maximum.accumulate(accuracy[order])
    return order[np.diff(best, prepend=-np.inf) > 0]


def _checked_settings(accuracy: Any, seconds: Any) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and time of settings, both float (S,); ValueError if one is NaN."""
    accuracy, seconds = np.asarray(accuracy, float), np.asarray(seconds, float)
    if np.isnan(accuracy).any() or np.isnan(seconds).any():
        raise ValueError('an accuracy or a time is NaN: expected numbers')
    return accuracy, seconds


def knee(accuracy: Any, seconds: Any, base_accuracy: float) -> int:
    """The fastest setting that is at least as accurate as the baseline; if there is none, the most accurate setting.

    The authors picked their thresholds by hand. In Table I of the paper, B-LeNet and B-AlexNet are more accurate than
    their baselines, and B-ResNet is 1.5 points less accurate. On the authors' published sweeps, neither this rule nor
    the largest distance from the chord (Satopaa et al., Finding a "Kneedle" in a Haystack, 2011) finds their
    thresholds. This rule has a plain meaning: the speed costs no accuracy.

    Args:
        accuracy: array-like (S,), accuracy of every setting.
        seconds: array-like (S,), time of every setting.
        base_accuracy: accuracy of the baseline, in the unit of ``accuracy``.

    Returns:
        The index of the setting. Ties go to the more accurate setting.

    Raises:
        ValueError: an accuracy or a time is NaN, or there are no settings.
    """
    accuracy, seconds = _checked_settings(accuracy, seconds)
    if not len(accuracy) or math.isnan(base_accuracy):
        raise ValueError(
            f'{len(accuracy)} settings, baseline {base_accuracy}: expected one setting or more, and a number'
        )
    enough = accuracy >= min(base_accuracy, accuracy.max())
    fastest = enough & (seconds == seconds[enough].min())
    return int(np.where(fastest, accuracy, -np.inf).argmax())
