"""Threshold sweeps from one pass: what every exit says of every sample determines every setting."""
from typing import NamedTuple

from branchynet import _chainer  # noqa: F401
from chainer.backends.cuda import to_cpu
import numpy as np

from branchynet import timing
from branchynet.cpu.threads import run
from branchynet.exits import count_below, leave_at
from branchynet.inference import Compiled
from branchynet.net import check_labels
from branchynet.progress import progress
from branchynet.training import batches, check_pairs


class Profile(NamedTuple):
    """What one pass without early exit recorded of N samples at E exits.

    Attributes:
        entropy: float (E, N), nats.
        correct: bool (E, N).
        released: seconds per sample (E, N) of the trunk's stage before each exit.
        whole: seconds per sample (E, N) of that stage, the exit's links, softmax and entropy.
    """
    entropy: np.ndarray
    correct: np.ndarray
    released: np.ndarray
    whole: np.ndarray


class Sweep(NamedTuple):
    """S settings over N samples and E exits.

    Attributes:
        thresholds: float (S, E - 1), nats.
        accuracy: float (S,), a share.
        exits: int (S, E), samples that leave at each exit.
        released, whole: float (S,), mean seconds per sample on either clock, composed from stage times.
    """
    thresholds: np.ndarray
    accuracy: np.ndarray
    exits: np.ndarray
    released: np.ndarray
    whole: np.ndarray


def profile(net, x, t, batchsize=1):
    """Passes x (N, ...), t (N,) by every exit of a BranchyNet (or a Compiled) and records a Profile.

    A Compiled is timed on the first thousand batches, one after the other. The other samples are given the same
    times in turn, and go up in larger batches that threads share: what is recorded of them may differ from what
    one by one gives in the last digit.
    """
    check_pairs(x, t)
    parts = batches(len(x), batchsize)
    for part in parts[:timing.WARMUP]:
        _profile_batch(net, x[part], t[part])
    timed = parts[:_TIMED] if isinstance(net, Compiled) else parts
    recorded = [_profile_batch(net, x[part], t[part]) for part in progress(timed, 'sweeping')]
    released, whole = (np.concatenate([r[i] for r in recorded], axis=1) for i in (2, 3))
    recorded += _profile_together(net, x[timed[-1].stop:], t[timed[-1].stop:])
    ent, correct = (np.concatenate([r[i] for r in recorded], axis=1) for i in (0, 1))
    turns = np.arange(len(x)) % released.shape[1]
    return Profile(ent, correct, released[:, turns], whole[:, turns])


_TIMED, _TOGETHER = 1000, 32  # batches; samples


def _profile_together(net, x, t):
    parts = batches(len(x), _TOGETHER)
    recorded = [None] * len(parts)

    def look(i):
        recorded[i] = _profile_batch(net, x[parts[i]], t[parts[i]])

    run(look, len(parts))
    return recorded


def _profile_batch(net, x, t):
    count, rows = len(x), []
    for look in net.look(x):
        check_labels(look.prob, t)
        rows.append((to_cpu(look.entropy), to_cpu(look.prob).argmax(axis=1) == t,
                     np.full(count, look.released / count), np.full(count, look.whole / count)))
    return [np.stack(values) for values in zip(*rows)]


def sweep(profile, thresholds):
    """Evaluates settings exactly: each sample leaves at the first exit whose entropy is below its threshold.

    A threshold matters only by its rank, the number of entropies below it. One pass over the samples serves
    all settings that differ in the last threshold's rank alone: it adds up in the order of that exit's
    entropy, and a setting's sum stands at its rank. S settings over N samples thus take O(S log S) and one
    pass of O(N) for 2 exits, D <= N + 1 passes for 3 exits (of D ranks at the first exit), and for more
    exits one for each combination of ranks before the last.

    Args:
        profile: a Profile.
        thresholds: (S, E - 1), nats.

    Returns:
        A Sweep.

    Raises:
        ValueError: another shape, a NaN, or no samples or settings at all.
    """
    thresholds = _checked(profile, thresholds)
    exits, samples = profile.entropy.shape
    # What a sample adds by reaching an exit: itself, its correctness in place of that at the exit before,
    # and two times. Sums of whole numbers are exact in float64.
    gains = np.stack([np.ones((exits, samples)), np.diff(profile.correct.astype(float), axis=0, prepend=0),
                      profile.released, profile.whole], axis=1)
    order, ranks = _ranks(profile.entropy[:-1], thresholds)
    totals = np.empty((exits, 4, len(thresholds)))
    totals[0] = gains[0].sum(axis=1, keepdims=True)
    for k in range(1, exits):
        totals[k] = _going_on(order[:k], ranks[:k], gains[k])
    correct, released, whole = totals[:, 1:].sum(axis=0) / samples
    left = -np.diff(totals[:, 0], axis=0, append=0)
    return Sweep(thresholds, correct, left.T.astype(int), released, whole)


def percentiles(profile, thresholds, q=(50, 95)):
    """Percentiles over the samples of their seconds on the whole clock, where sweep gives the mean.

    They need every sample's time under every setting, O(S N log N): for hundreds of settings, not for millions.

    Args:
        profile, thresholds: as of sweep.
        q: percentages.

    Returns:
        Float (len(q), S).

    Raises:
        ValueError: as sweep.
    """
    thresholds = _checked(profile, thresholds)
    whole, each = np.cumsum(profile.whole, axis=0), np.arange(profile.entropy.shape[1])
    return np.transpose([np.percentile(whole[leave_at(profile.entropy, setting), each], q) for setting in thresholds])


def _checked(profile, thresholds):
    """thresholds as float (S, E - 1)."""
    thresholds = np.asarray(thresholds, float)
    exits, samples = profile.entropy.shape
    if thresholds.ndim != 2 or thresholds.shape[1] != exits - 1 or not len(thresholds) or np.isnan(thresholds).any():
        raise ValueError('thresholds have shape %s%s: expected (settings, %d), at least one setting, without NaN' % (
            thresholds.shape, ' and hold NaN' if np.isnan(thresholds).any() else '', exits - 1))
    if samples == 0:
        raise ValueError('profile holds no samples: expected at least one')
    return thresholds


def _ranks(ent, thresholds):
    """Samples (K, N) by rising entropy (K, N) of each exit, and how many (K, S) lie below thresholds (S, K)."""
    order = ent.argsort(axis=1)
    ranks = np.empty(thresholds.shape[::-1], int)
    for k, cuts in enumerate(thresholds.T):
        ranks[k] = count_below(ent[k], cuts, order[k])
    return order, ranks


def _going_on(order, ranks, gains):
    """Sums of gains (V, N) over the samples that leave at none of K exits: float (V, S).

    Args:
        order: (K, N) and ranks: (K, S), as _ranks gives them.
    """
    falling = order[-1, ::-1]  # of those that reach the last of the K exits, the N - rank first go on
    places, gains = order[:-1].argsort(axis=1).take(falling, axis=1), gains.take(falling, axis=1)
    sums = np.zeros((len(gains), len(falling) + 1))
    result = np.empty((len(gains), ranks.shape[1]))
    for group in _groups(ranks[:-1]):
        reached = np.flatnonzero((places >= ranks[:-1, group[:1]]).all(axis=0))
        gains.take(reached, axis=1).cumsum(axis=1, out=sums[:, 1:len(reached) + 1])
        counts = np.searchsorted(reached, len(falling) - ranks[-1, group])
        result[:, group] = sums.take(counts, axis=1)
    return result


def _groups(columns):
    """Index arrays of the columns (K, S) that equal each other."""
    if not len(columns):
        return [np.arange(columns.shape[1])]
    by = np.lexsort(columns)
    return np.split(by, 1 + np.flatnonzero(np.diff(columns[:, by]).any(axis=0)))


def pareto(accuracy, seconds):
    """Indices, by rising time, of the settings that no other beats: as good on both, and better on one.

    Of settings that equal each other it keeps the first.

    Args:
        accuracy, seconds: (S,) of the settings.
    """
    accuracy, seconds = np.asarray(accuracy), np.asarray(seconds)
    order = np.lexsort((-accuracy, seconds))
    best = np.maximum.accumulate(accuracy[order])
    return order[np.diff(best, prepend=-np.inf) > 0]


def knee(accuracy, seconds, base_accuracy):
    """Index of the fastest setting that is at least as accurate as the baseline; without one, of the most accurate.

    The authors picked theirs by hand. In Table I of the paper B-LeNet and B-AlexNet stand above their
    baselines and B-ResNet 1.5 points below; on the authors' published sweeps neither this rule nor the
    largest distance from the chord (Satopaa et al., Finding a "Kneedle" in a Haystack, 2011) finds their
    thresholds, and this one has a meaning: nothing is paid for the speed.

    Args:
        accuracy, seconds: (S,) of the settings.
        base_accuracy: the baseline's.
    """
    accuracy, seconds = np.asarray(accuracy), np.asarray(seconds)
    enough = accuracy >= min(base_accuracy, accuracy.max())
    fastest = enough & (seconds == seconds[enough].min())
    return int(np.where(fastest, accuracy, -np.inf).argmax())
