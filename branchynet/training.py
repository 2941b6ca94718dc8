"""Epochs of training, as the original runs them."""
from branchynet import _chainer  # noqa: F401
import numpy as np


def check_pairs(x, y):
    """Raises ValueError unless x (N, ...) and y (N,) hold as many samples, and at least one."""
    if len(x) != len(y) or len(x) == 0:
        raise ValueError('x has %d samples and y %d: expected as many, and at least one' % (len(x), len(y)))


def batches(count, batchsize):
    """Slices of ``batchsize`` that cover ``count`` samples in order; the last may be shorter."""
    if batchsize < 1:
        raise ValueError('batchsize is %s: expected 1 or more' % batchsize)
    return [slice(i, i + batchsize) for i in range(0, count, batchsize)]


def progress(iterable, label):
    """``iterable`` with a progress bar where it takes longer than 2 s and standard error is a terminal."""
    from tqdm import tqdm
    return tqdm(iterable, label, leave=False, delay=2, disable=None)


def train_epoch(net, x, y, batchsize, main=False, label='training'):
    """One epoch over x (N, ...), y (N,), in the order of ``numpy.random.permutation``.

    Args:
        main: train the baseline instead of all exits jointly.

    Returns:
        (loss, accuracy): means over the batches, an array per exit; scalars for main.
    """
    check_pairs(x, y)
    step = net.train_main if main else net.train
    order = np.random.permutation(len(x))
    results = [step(x[order[part]], y[order[part]]) for part in progress(batches(len(x), batchsize), label)]
    losses, accuracies = zip(*results)
    return np.mean(losses, axis=0), np.mean(accuracies, axis=0)
