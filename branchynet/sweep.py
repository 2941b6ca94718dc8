"""Threshold sweeps from one pass: what every exit says of every sample determines every setting."""
from typing import NamedTuple

from branchynet import _chainer  # noqa: F401
import chainer
import chainer.functions as F
from chainer.backends.cuda import to_cpu
import numpy as np

from branchynet import timing
from branchynet.functions import entropy
from branchynet.inference import below
from branchynet.training import batches, check_pairs, progress


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
        released, whole: float (S,), seconds per sample on either clock, composed from stage times.
        p50, p95: float (S,), median and 95th percentile over the samples on the whole clock.
    """
    thresholds: np.ndarray
    accuracy: np.ndarray
    exits: np.ndarray
    released: np.ndarray
    whole: np.ndarray
    p50: np.ndarray
    p95: np.ndarray


def profile(net, x, t, batchsize=1):
    """Passes x (N, ...), t (N,) by every exit and records a Profile."""
    check_pairs(x, t)
    parts = batches(len(x), batchsize)
    for part in parts[:timing.WARMUP]:
        _profile_batch(net, x[part], t[part])
    recorded = [_profile_batch(net, x[part], t[part]) for part in progress(parts, 'sweeping')]
    return Profile(*(np.concatenate(arrays, axis=1) for arrays in zip(*recorded)))


def _profile_batch(net, x, t):
    x, t = net.checked(x, t)
    count, rows = len(x), []
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        for k in range(net.numexits()):
            start = timing.now(net)
            x = net.stage(k, x)
            trunk = timing.now(net)
            prob = F.softmax(net.exit(k, x)).array
            ent = entropy(prob)
            end = timing.now(net)
            rows.append((to_cpu(ent), to_cpu(prob.argmax(axis=1) == t),
                         np.full(count, (trunk - start) / count), np.full(count, (end - start) / count)))
    return [np.stack(values) for values in zip(*rows)]


def sweep(profile, thresholds):
    """Evaluates settings exactly: each sample leaves at the first exit whose entropy is below its threshold.

    Args:
        profile: a Profile.
        thresholds: (S, E - 1), nats.

    Returns:
        A Sweep.

    Raises:
        ValueError: another shape, or a NaN.
    """
    thresholds = np.asarray(thresholds, float)
    exits, samples = profile.entropy.shape
    if thresholds.ndim != 2 or thresholds.shape[1] != exits - 1 or np.isnan(thresholds).any():
        raise ValueError('thresholds have shape %s%s: expected (settings, %d) without NaN' % (
            thresholds.shape, ' and hold NaN' if np.isnan(thresholds).any() else '', exits - 1))
    released, whole = np.cumsum(profile.released, axis=0), np.cumsum(profile.whole, axis=0)
    each, rows = np.arange(samples), []
    for setting in thresholds:
        left = leave_at(profile.entropy, setting)
        seconds = whole[left, each]
        rows.append((profile.correct[left, each].mean(), np.bincount(left, minlength=exits),
                     released[left, each].mean(), seconds.mean(), *np.percentile(seconds, [50, 95])))
    return Sweep(thresholds, *(np.array(column) for column in zip(*rows)))


def leave_at(ent, setting):
    """Exit (N,) at which samples of entropy (E, N) leave under one setting (E - 1,)."""
    left = np.full(ent.shape[1], len(ent) - 1)
    for k in reversed(range(len(setting))):
        left[below(ent[k], setting[k])] = k
    return left


def knee(accuracy, seconds, base_accuracy):
    """Index of the fastest setting that is at least as accurate as the baseline; without one, of the most accurate.

    Args:
        accuracy, seconds: (S,) of the settings.
        base_accuracy: the baseline's.
    """
    accuracy, seconds = np.asarray(accuracy), np.asarray(seconds)
    enough = accuracy >= min(base_accuracy, accuracy.max())
    return int(np.where(enough, seconds, np.inf).argmin())
