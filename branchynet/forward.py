"""A chain's own forward as an engine of inference.Compiled."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

from branchynet import cpu
from branchynet.cpu import onednn
from branchynet.cpu.engine import SAMPLES_OF_CALL, Result, check_finite
from branchynet.exits import Thresholds, labels
from branchynet.functions import inference_mode
from branchynet.net import BranchyNet

import chainer
import numpy as np


class Forward:
    """A net of from_chain that runs in Chainer, with the fast kernels for Chainer's functions: an Engine.

    Args:
        net: the net, which must not change afterwards.
        shape: of a sample, without the batch.
        dtype: of the samples.

    Attributes:
        classes: number of classes.
    """

    most = SAMPLES_OF_CALL

    def __init__(self, net: BranchyNet, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._net = net
        self.classes = net.run_main(np.zeros((1, *shape), dtype)).shape[1]

    def leave(self, x: np.ndarray, thresholds: Sequence[float]) -> Result:
        """Engine.leave."""
        with _fast(x):
            parts = list(self._net.leave(x, Thresholds(thresholds)))
        exit, logits = np.empty(len(x), np.int64), np.empty((len(x), self.classes), parts[0].logits.dtype)
        for k, part in enumerate(parts):
            exit[part.index], logits[part.index] = k, part.logits
        return Result(labels(logits), exit, logits, sum(part.seconds for part in parts))

    def leave_one(self, x: np.ndarray, thresholds: Sequence[float]) -> tuple[int, int, float]:
        """Engine.leave_one."""
        result = self.leave(x, thresholds)
        return int(result.label[0]), int(result.exit[0]), result.seconds

    def record(self, x: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """Engine.record; samples of a batch have equal shares of its seconds."""
        with _fast(x):
            looks = self._net.look(x)
        released = np.repeat([[look.released / len(x)] for look in looks], len(x), axis=1)
        whole = np.repeat([[look.whole / len(x)] for look in looks], len(x), axis=1)
        return [look.logits for look in looks], released, whole

    def main(self, x: np.ndarray) -> tuple[np.ndarray, float]:
        """Engine.main."""
        with _fast(x):
            start = time.perf_counter()
            logits = chainer.as_array(self._net.main(x))  # run_main would spend time on checks
            return logits, time.perf_counter() - start

    def main_one(self, x: np.ndarray) -> int:
        """Engine.main_one."""
        return int(labels(self.main(x)[0])[0])


@contextlib.contextmanager
def _fast(x: np.ndarray) -> Iterator[None]:
    """A context for inference on x with the fast kernels, and one thread for OpenMP; x must be finite."""
    check_finite(x)
    with cpu.fast(), onednn.single_threaded(), inference_mode():
        yield
