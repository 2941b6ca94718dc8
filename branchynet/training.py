"""Epochs of training, as the original runs them."""
from typing import NamedTuple

from branchynet import _chainer  # noqa: F401
import numpy as np

from branchynet.progress import progress


def check_pairs(x, y):
    """Raises ValueError unless x (N, ...) and y (N,) hold as many samples, and at least one."""
    if len(x) != len(y) or len(x) == 0:
        raise ValueError('x has %d samples and y %d: expected as many, and at least one' % (len(x), len(y)))


def batches(count, batchsize):
    """Slices of ``batchsize`` that cover ``count`` samples in order; the last may be shorter."""
    if batchsize < 1:
        raise ValueError('batchsize is %s: expected 1 or more' % batchsize)
    return [slice(i, i + batchsize) for i in range(0, count, batchsize)]


class Position(NamedTuple):
    """How far an epoch is.

    Attributes:
        order: int (N,), in which the epoch takes the samples.
        results: (losses, accuracies) of every step so far.
    """
    order: np.ndarray
    results: list

    def means(self):
        """(loss, accuracy): means over the steps, an array per exit; scalars for main."""
        losses, accuracies = zip(*self.results)
        return np.mean(losses, axis=0), np.mean(accuracies, axis=0)


def steps(net, x, y, batchsize, main=False, position=None):
    """One epoch on x (N, ...), y (N,), in the order of ``numpy.random.permutation``.

    Args:
        main: train the baseline instead of all exits jointly.
        position: a Position of this epoch, to go on from there.

    Yields:
        The Position after every step; it is one object, whose results grow.
    """
    check_pairs(x, y)
    net.check_data(x, y, x[:1])
    if position is None:
        position = Position(np.random.permutation(len(x)), [])
    step = net.train_main if main else net.train
    for part in batches(len(x), batchsize)[len(position.results):]:
        samples = position.order[part]
        position.results.append(step(x[samples], y[samples]))
        yield position


def epochs(net, x, y, batchsize, num_epoch, main=False):
    """Trains on x (N, ...), y (N,), epoch by epoch.

    Args:
        main: train the baseline instead of all exits jointly.

    Yields:
        (loss, accuracy) after every epoch: means over the batches, an array per exit; scalars for main.
    """
    with progress_of_steps(len(x), batchsize, num_epoch, main) as bar:
        for _ in range(num_epoch):
            for position in steps(net, x, y, batchsize, main):
                bar.update()
            yield position.means()


def progress_of_steps(count, batchsize, num_epoch, main, done=0):
    """A progress bar over the steps of ``num_epoch`` epochs of ``count`` samples, ``done`` of them made."""
    label = 'training %s' % ('main' if main else 'exits')
    total = len(batches(count, batchsize)) * num_epoch
    return progress(label=label, total=total, initial=done, unit='step')
