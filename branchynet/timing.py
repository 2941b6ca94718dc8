"""The two clocks.

``released`` is the original's: it runs in the trunk's stages only (for the baseline: in main's whole
forward) and does not wait for a GPU. ``whole`` runs from the array to the logits: trunk, exits, softmax,
entropy and the decision, with the GPU's work done.
"""
import time

from branchynet import _chainer  # noqa: F401
from chainer.backends import cuda
import numpy as np

from branchynet.training import batches, progress

WARMUP = 20  # batches, run before any clock starts


def now(net):
    """Seconds, once the net's GPU (if any) has done all that was asked of it."""
    if net.gpu:
        cuda.Stream.null.synchronize()
    return time.perf_counter()


def whole_seconds(net, x, batchsize=1, main=False):
    """Measures run (with the net's thresholds) or run_main on the whole clock, batch by batch.

    Returns:
        NumPy array (number of batches,): seconds per sample of the batch.
    """
    run = net.run_main if main else net.run
    parts = batches(len(x), batchsize)
    for part in parts[:WARMUP]:
        run(x[part])
    result = []
    for part in progress(parts, 'timing'):
        start = now(net)
        run(x[part])
        result.append((now(net) - start) / len(x[part]))
    return np.array(result)


def summary(seconds):
    """Mean, median and 95th percentile of seconds (N,), in milliseconds."""
    return {
        'mean_ms': float(np.mean(seconds) * 1e3),
        'median_ms': float(np.median(seconds) * 1e3),
        'p95_ms': float(np.percentile(seconds, 95) * 1e3),
    }
