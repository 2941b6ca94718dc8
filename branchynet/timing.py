"""The two clocks.

``released`` is the original's clock: it runs only in the trunk's stages (for the baseline: in main's whole forward)
and does not wait for a GPU. ``whole`` is the time that a user waits: the call of ``test`` or ``test_main``, from arrays
to labels, with the exits' links, softmax and entropy, until the GPU has finished.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import NamedTuple

from branchynet.batching import batches, check_pairs
from branchynet.devices import now
from branchynet.exits import Array
from branchynet.inference import Compiled, check_classifier
from branchynet.net import BranchyNet
from branchynet.progress import progress

import numpy as np

WARMUP = 20  # batches that run before any clock starts


class Measurement(NamedTuple):
    """A timed evaluation of N samples.

    Attributes:
        accuracy: share of the N samples that were classified correctly.
        correct: int (batches,), samples of each batch that were classified correctly.
        exits: int (E,), samples that left at each exit; zeros for main.
        released: float (batches,), seconds per sample of each batch on the released clock.
        whole: float (batches,), the same on the whole clock.
    """

    accuracy: float
    correct: np.ndarray
    exits: np.ndarray
    released: np.ndarray
    whole: np.ndarray


def measure(net: BranchyNet | Compiled, x: Array, t: Array, batchsize: int = 1, main: bool = False) -> Measurement:
    """Times ``test``, with the net's own settings, or ``test_main``.

    Args:
        net: a BranchyNet or a Compiled.
        x: samples (N, ...), of the parameters' dtype.
        t: labels (N,), signed integers.
        batchsize: samples that run together.
        main: whether to time the baseline instead of early exit.

    Returns:
        A Measurement.

    Raises:
        TypeError: x or t has the wrong type.
        ValueError: x and t do not fit each other or the net, or hold no samples.
    """
    check_classifier(net)
    check_pairs(x, t)
    parts = batches(len(x), batchsize)
    for part in parts[:WARMUP]:
        _timed(net, x[part], t[part], main)
    with no_collection():
        timed = [_timed(net, x[part], t[part], main) for part in progress(parts, 'timing')]
    correct, exits, released, whole = zip(*timed)
    return Measurement(
        sum(correct) / len(x), np.array(correct), np.sum(exits, axis=0), np.array(released), np.array(whole)
    )


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Keeps Python from collecting garbage meanwhile, as ``timeit`` does: it would take as long as many samples."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _timed(net: BranchyNet | Compiled, x: Array, t: Array, main: bool) -> tuple[int, list[int], float, float]:
    """(correct samples, samples per exit, released and whole seconds per sample) of one batch."""
    start = now(net)
    if main:
        accuracy, released = net.test_main(x, t)
        exits = [0] * net.numexits()
    else:
        accuracy, _, exits, released = net.test(x, t)
    return round(accuracy * len(x)), exits, released / len(x), (now(net) - start) / len(x)


def summary(seconds: np.ndarray) -> dict[str, float]:
    """Statistics of seconds (N,), in milliseconds.

    Args:
        seconds: (N,), of samples or of batches, which count alike.

    Returns:
        A dictionary of mean_ms, median_ms and p95_ms (the 95th percentile).
    """
    return {
        'mean_ms': float(np.mean(seconds) * 1e3),
        'median_ms': float(np.median(seconds) * 1e3),
        'p95_ms': float(np.percentile(seconds, 95) * 1e3),
    }
