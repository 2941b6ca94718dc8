"""The two clocks.

``released`` is the original's: it runs in the trunk's stages only (for the baseline: in main's whole
forward) and does not wait for a GPU. ``whole`` is what a user waits for: the call of test or test_main,
from arrays to labels, with the exits' links, softmax and entropy, and the GPU's work done.
"""
import time
from typing import NamedTuple

from branchynet import _chainer  # noqa: F401
from chainer.backends import cuda
import numpy as np

from branchynet.progress import progress
from branchynet.training import batches, check_pairs

WARMUP = 20  # batches, run before any clock starts


class Measurement(NamedTuple):
    """A timed evaluation of N samples.

    Attributes:
        accuracy: a share.
        correct: int, samples of every batch that were classified correctly.
        exits: int (E,), samples that left at each exit; zeros for main.
        released, whole: seconds per sample of every batch, on either clock.
    """
    accuracy: float
    correct: np.ndarray
    exits: np.ndarray
    released: np.ndarray
    whole: np.ndarray


def now(net):
    """Seconds, once the net's GPU (if any) has done all that was asked of it."""
    if net.gpu:
        cuda.Stream.null.synchronize()
    return time.perf_counter()


def measure(net, x, t, batchsize=1, main=False):
    """Runs test (with the net's own settings) or test_main over x (N, ...), t (N,): a Measurement."""
    check_pairs(x, t)
    parts = batches(len(x), batchsize)
    for part in parts[:WARMUP]:
        _timed(net, x[part], t[part], main)
    correct, exits, released, whole = zip(
        *(_timed(net, x[part], t[part], main) for part in progress(parts, 'timing')))
    return Measurement(sum(correct) / len(x), np.array(correct), np.sum(exits, axis=0), np.array(released),
                       np.array(whole))


def _timed(net, x, t, main):
    start = now(net)
    if main:
        accuracy, released = net.test_main(x, t)
        exits = [0] * net.numexits()
    else:
        accuracy, _, exits, released = net.test(x, t)
    return round(accuracy * len(x)), exits, released / len(x), (now(net) - start) / len(x)


def summary(seconds):
    """Mean, median and 95th percentile of seconds (N,), in milliseconds."""
    return {
        'mean_ms': float(np.mean(seconds) * 1e3),
        'median_ms': float(np.median(seconds) * 1e3),
        'p95_ms': float(np.percentile(seconds, 95) * 1e3),
    }
