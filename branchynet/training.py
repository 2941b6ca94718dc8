"""The epochs of a training, as the original runs them: the only loop over epochs."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

from branchynet import _chainer  # noqa: F401
from branchynet.progress import progress

import numpy as np

if TYPE_CHECKING:
    from branchynet.net import BranchyNet

# Makes an epoch's batches (x, y) of x (N, ...), y (N,) in the order of the epoch, and a batch size.
Feed = Callable[[np.ndarray, np.ndarray, int], Iterable[tuple[np.ndarray, np.ndarray]]]


def check_pairs(x: Any, y: Any) -> None:
    """Raises ValueError unless x (N, ...) and y (N,) hold the same number of samples, and at least one."""
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f'x has {len(x)} samples and y has {len(y)}: both need the same number, at least one')


def batches(count: int, batchsize: int) -> list[slice]:
    """Slices of ``batchsize`` samples that cover ``count`` samples in order; the last may be shorter."""
    if batchsize < 1:
        raise ValueError(f'batchsize is {batchsize}: it must be 1 or more')
    return [slice(i, i + batchsize) for i in range(0, count, batchsize)]


class Position(NamedTuple):
    """How far an epoch is.

    Attributes:
        order: int (N,), in which the epoch takes the samples.
        results: (losses, accuracies) of every step so far.
    """
    order: np.ndarray
    results: list

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """(loss, accuracy): means over the steps, an array with an element per exit; scalars for main."""
        losses, accuracies = zip(*self.results)
        return np.mean(losses, axis=0), np.mean(accuracies, axis=0)


def steps(net: BranchyNet, x: np.ndarray, y: np.ndarray, batchsize: int, main: bool = False,
          position: Optional[Position] = None, feed: Optional[Feed] = None) -> Iterator[Position]:
    """One epoch, in the order of ``numpy.random.permutation``.

    Args:
        net: What is trained.
        x: Samples (N, ...).
        y: Labels (N,).
        batchsize: Samples of a step.
        main: Train the baseline instead of all exits jointly.
        position: Where in this epoch to go on from.
        feed: Makes the batches of the ordered samples; None: slices of them, checked before any parameter changes.

    Yields:
        The Position after every step. It is one object, whose results grow.
    """
    check_pairs(x, y)
    if feed is None:
        net.check_data(x, y, x[:1])
    if position is None:
        position = Position(np.random.permutation(len(x)), [])
    step = net.train_main if main else net.train
    rest = position.order[len(position.results) * batchsize:]
    if feed is None:
        pairs: Iterable = ((x[rest[part]], y[rest[part]]) for part in batches(len(rest), batchsize))
    else:
        pairs = feed(x[rest], y[rest], batchsize)
    for pair in pairs:
        position.results.append(step(*pair))
        yield position


def epochs(net: BranchyNet, x: np.ndarray, y: np.ndarray, batchsize: int, num_epoch: int, main: bool = False,
           begun: int = 0, position: Optional[Position] = None, feed: Optional[Feed] = None,
           after_step: Optional[Callable[[Position], None]] = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Trains epoch by epoch, with a progress bar.

    Args:
        net: What is trained.
        x: Samples (N, ...).
        y: Labels (N,).
        batchsize: Samples of a step.
        num_epoch: Epochs in all.
        main: Train the baseline instead of all exits jointly.
        begun: Epochs that were done before, of ``num_epoch``.
        position: Where in the epoch after these to go on from.
        feed: As in `steps`.
        after_step: Called with the Position after every step.

    Yields:
        (loss, accuracy) after every epoch: means over its steps, an array with an element per exit; scalars for main.
    """
    if num_epoch < 0:
        raise ValueError(f'num_epoch is {num_epoch}: it must be 0 or more')
    count = len(batches(len(x), batchsize))
    done = begun * count + (len(position.results) if position else 0)
    label = f'training {"main" if main else "exits"}'
    with progress(label=label, total=num_epoch * count, initial=done, unit='step') as bar:
        for _ in range(begun, num_epoch):
            for position in steps(net, x, y, batchsize, main, position, feed):
                bar.update()
                if after_step:
                    after_step(position)
            assert position is not None  # an epoch has a step, or was interrupted after its last one
            yield position.means()
            position = None
