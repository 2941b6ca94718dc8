"""The loop over epochs and steps of a training, as in the original."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from branchynet.batching import batches, check_pairs
from branchynet.progress import progress

import numpy as np

if TYPE_CHECKING:
    from branchynet.net import BranchyNet

# Makes the batches (x, y) of an epoch from x (N, ...) and y (N,), which are in the epoch's order, and the batch size.
Feed = Callable[[np.ndarray, np.ndarray, int], Iterable[tuple[np.ndarray, np.ndarray]]]


class Position(NamedTuple):
    """The progress of an epoch.

    Attributes:
        order: int (N,), the indices of the samples in the order in which the epoch takes them.
        results: (losses, accuracies) of every step so far; losses in nats, accuracies in [0, 1].
    """

    order: np.ndarray
    results: list

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns (loss, accuracy), each a mean over the steps: an array (exits,), or a scalar for the baseline."""
        losses, accuracies = zip(*self.results)
        return np.mean(losses, axis=0), np.mean(accuracies, axis=0)


def steps(
    net: BranchyNet,
    x: np.ndarray,
    y: np.ndarray,
    batchsize: int,
    main: bool = False,
    position: Position | None = None,
    feed: Feed | None = None,
) -> Iterator[Position]:
    """Trains one epoch, in the order of ``numpy.random.permutation``.

    Args:
        net: the net.
        x: samples (N, ...).
        y: labels (N,).
        batchsize: samples of a step.
        main: train the baseline instead of all exits jointly.
        position: where to resume within this epoch; None to begin it.
        feed: makes the batches from the ordered samples. Without it, batches are slices of them, and all samples are
            checked before any parameter changes.

    Yields:
        The Position after every step. It is always the same object, whose results grow.

    Raises:
        ValueError: x and y do not come in pairs, or the net does not take them.
    """
    check_pairs(x, y)
    if feed is None:
        net.check_data(x, y, x[:1])
    if position is None:
        position = Position(np.random.permutation(len(x)), [])
    step = net.train_main if main else net.train
    rest = position.order[len(position.results) * batchsize :]
    if feed is None:
        pairs: Iterable = ((x[rest[part]], y[rest[part]]) for part in batches(len(rest), batchsize))
    else:
        pairs = feed(x[rest], y[rest], batchsize)
    for pair in pairs:
        position.results.append(step(*pair))
        yield position


def check_epochs(num_epoch: int) -> None:
    """Raises ValueError unless a number of epochs is 0 or more."""
    if num_epoch < 0:
        raise ValueError(f'num_epoch is {num_epoch}: expected 0 or more')


def epochs(
    net: BranchyNet,
    x: np.ndarray,
    y: np.ndarray,
    batchsize: int,
    num_epoch: int,
    main: bool = False,
    begun: int = 0,
    position: Position | None = None,
    feed: Feed | None = None,
    after_step: Callable[[Position], None] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Trains epoch by epoch, with a progress bar.

    Args:
        net: the net.
        x: samples (N, ...).
        y: labels (N,).
        batchsize: samples of a step.
        num_epoch: number of epochs, those of ``begun`` included.
        main: train the baseline instead of all exits jointly.
        begun: number of epochs that are already done.
        position: where to resume within the next epoch; None to begin it.
        feed: makes the batches, as in `steps`.
        after_step: called with the Position after every step.

    Yields:
        (loss, accuracy) after every epoch, each a mean over its steps: an array (exits,), or a scalar for the baseline.

    Raises:
        ValueError: num_epoch is below 0, or as in `steps`.
    """
    check_epochs(num_epoch)
    count = len(batches(len(x), batchsize))
    done = begun * count + (len(position.results) if position else 0)
    label = f'training {"main" if main else "exits"}'
    with progress(label=label, total=num_epoch * count, initial=done, unit='step') as bar:
        for _ in range(begun, num_epoch):
            for reached in steps(net, x, y, batchsize, main, position, feed):
                bar.update()
                if after_step:
                    after_step(reached)
                position = reached
            assert position is not None  # an epoch has a step, or was interrupted after its last one
            yield position.means()
            position = None
