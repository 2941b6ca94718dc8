"""The samples that this process trains on: a batch, or its share of one where ranks train together."""

from __future__ import annotations

from typing import Any

import numpy as np
from chainer.backend import get_array_module
from chainer.backends.cuda import to_cpu


class Batch:
    """A batch of one process, of which some samples leave at each exit.

    Args:
        size: number of samples before the first exit.

    Attributes:
        size: as given.
        remaining: number of samples that are still in the network.
    """

    def __init__(self, size: int) -> None:
        self.size = self.remaining = size

    def weighted(self, mean: Any) -> Any:
        """Scales a mean over this process's samples so that its mean over all ranks is the batch's."""
        return mean

    def of_all(self, rows: Any) -> Any:
        """The rows (remaining, ...) of the batch's samples, from those of this process's samples."""
        return rows

    def keep(self, kept: Any) -> Any:
        """Lets samples leave.

        Args:
            kept: booleans (remaining,), over the batch.

        Returns:
            The indices of the samples to go on with, among those of this process.
        """
        self.remaining = int(kept.sum())
        return get_array_module(kept).flatnonzero(kept)


class SharedBatch(Batch):
    """A batch that ranks train on together, seen from one of them.

    A rank's share are consecutive samples, as many as the others' or one less or more.

    A rank none of whose samples remain goes on with one of them, so that all ranks run the same links. It counts in
    running statistics, not in losses and gradients.

    Args:
        size: number of samples of the whole batch.
        mpi: communicator of mpi4py.

    Attributes:
        samples: a slice, the rank's samples in the batch.
    """

    def __init__(self, size: int, mpi: Any) -> None:
        super().__init__(size)
        self._mpi = mpi
        self._bounds = np.arange(mpi.size + 1) * size // mpi.size  # between the ranks' samples that remain
        first, last = self._own()
        self.samples = slice(first, last) if first < last else slice(0, 1)

    def _own(self) -> tuple[int, int]:
        first, last = self._bounds[self._mpi.rank : self._mpi.rank + 2].tolist()
        return first, last

    def weighted(self, mean: Any) -> Any:
        """See Batch; the factor is 1 where all ranks have as many samples."""
        first, last = self._own()
        return mean * (self._mpi.size * (last - first) / self.remaining)

    def of_all(self, rows: Any) -> Any:
        """See Batch."""
        first, last = self._own()
        parts = self._mpi.allgather(to_cpu(rows[: last - first]))
        return get_array_module(rows).asarray(np.concatenate(parts))

    def keep(self, kept: Any) -> Any:
        """See Batch."""
        xp = get_array_module(kept)
        first, last = self._own()
        index = xp.flatnonzero(kept[first:last])
        self._bounds = np.concatenate([[0], to_cpu(kept).cumsum()])[self._bounds]
        self.remaining = int(self._bounds[-1])
        return index if len(index) or not self.remaining else xp.zeros(1, int)
