"""Early exit stage by stage: the engine for nets with links that have no kernel in machine code.

A net's stages, exits and main are compiled into Programs, which call oneDNN's primitives, and Chainer for links that
Program does not know. Between stages, Python drops the samples that have left.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from branchynet import cpu
from branchynet.cpu import onednn
from branchynet.cpu.engine import SAMPLES_OF_CALL, Result, check_finite, label_of
from branchynet.cpu.program import Packed, Program, Workspace
from branchynet.exits import answer, answer_on_cpu, below, labels

import chainer
import numpy as np


class _Exit(NamedTuple):
    """The Programs of the stage before an exit, and of the exit's own links."""

    stage: Program
    head: Program

    def run(self) -> float:
        """Runs both; returns the seconds in the stage."""
        start = time.perf_counter()
        self.stage.run()
        seconds = time.perf_counter() - start
        self.head.run()
        return seconds


class _Thread(threading.local):
    """What every thread has of its own: the memory of its Programs, and the Programs by their number of samples."""

    def __init__(self) -> None:
        self.workspace = Workspace()
        self.exits: dict[int, list[_Exit]] = {}
        self.mains: dict[int, Program] = {}


class Stagewise:
    """A net's exits and main for samples of one shape: an Engine.

    Programs are compiled for a number of samples when a thread first needs them, and each thread has its own. The
    packed weights are shared.

    Args:
        models: the Nets of a BranchyNet's exits, which must not change afterwards.
        main: its baseline, or None.
        shape: of a sample, without the batch.
        dtype: of the samples.
    """

    most = SAMPLES_OF_CALL

    def __init__(self, models: Sequence[Any], main: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._models, self._main_links = models, main
        self._shape, self._dtype = shape, dtype
        self._packed = Packed()
        self._calls_links = False
        self._thread = _Thread()

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self._exits(1)[0].head.y.shape[1]

    def leave(self, x: np.ndarray, thresholds: Sequence[float]) -> Result:
        """Engine.leave."""
        check_finite(x)
        with onednn.single_threaded():
            exits = self._started(x)
            with self._kernels():
                return self._leave(exits, x, thresholds)

    def _leave(self, exits: list[_Exit], x: np.ndarray, thresholds: Sequence[float]) -> Result:
        label, left, rows, seconds = np.empty(len(x), np.int64), np.empty(len(x), np.int64), np.arange(len(x)), 0.0
        for k in range(len(exits)):
            seconds += exits[k].run()
            found = exits[k].head.y[: len(rows)]
            _, entropy = answer(found)
            if k == 0:
                logits = found.copy()
            else:
                logits[rows] = found
            label[rows], left[rows] = labels(found), k
            if k == len(thresholds):
                break
            stays = ~below(entropy, thresholds[k])
            if not stays.any():
                break
            if not stays.all():
                rows = rows[stays]
                exits = self._carried_on(exits, k, stays)
        return Result(label, left, logits, seconds)

    def leave_one(self, x: np.ndarray, thresholds: Sequence[float]) -> tuple[int, int, float]:
        """Engine.leave_one."""
        check_finite(x)
        seconds = 0.0
        with onednn.single_threaded():
            exits = self._started(x)
            with self._kernels():
                for k, exit in enumerate(exits):
                    seconds += exit.run()
                    _, entropy = answer_on_cpu(exit.head.y)
                    if k == len(thresholds) or entropy.item() < thresholds[k]:  # exits.below, on rounded numbers
                        break
        return label_of(exit.head.y), k, seconds

    def record(self, x: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """Engine.record; samples of a batch have equal shares of its seconds."""
        check_finite(x)
        logits = []
        released, whole = np.empty((len(self._models), len(x))), np.empty((len(self._models), len(x)))
        with onednn.single_threaded():
            exits = self._started(x)
            with self._kernels():
                for k, exit in enumerate(exits):
                    start = time.perf_counter()
                    released[k] = exit.run() / len(x)
                    found = exit.head.y[: len(x)]
                    answer(found)  # for its time
                    whole[k] = (time.perf_counter() - start) / len(x)
                    logits.append(found.copy())
        return logits, released, whole

    def main(self, x: np.ndarray) -> tuple[np.ndarray, float]:
        """Engine.main."""
        check_finite(x)
        logits, seconds = self._main(x)
        return logits.copy(), seconds

    def main_one(self, x: np.ndarray) -> int:
        """Engine.main_one."""
        check_finite(x)
        return label_of(self._main(x)[0])

    def _main(self, x: np.ndarray) -> tuple[np.ndarray, float]:
        """main's logits (N, C), valid until this thread calls the engine again, and its seconds."""
        with onednn.single_threaded():
            program = self._main_program(_padded(len(x)))
            program.x[: len(x)] = x
            with self._kernels():
                start = time.perf_counter()
                program.run()
                seconds = time.perf_counter() - start
        return program.y[: len(x)], seconds

    def _kernels(self) -> contextlib.AbstractContextManager[Any]:
        """The fast kernels for Chainer's functions, where a link is called as it is."""
        return cpu.fast() if self._calls_links else contextlib.nullcontext()

    def _started(self, x: np.ndarray) -> list[_Exit]:
        """The exits for the samples x, which are in place."""
        exits = self._exits(_padded(len(x)))
        exits[0].stage.x[: len(x)] = x
        return exits

    def _carried_on(self, exits: list[_Exit], k: int, stays: np.ndarray) -> list[_Exit]:
        """The exits for the samples that stay after exit k, whose features are in place."""
        features = exits[k].stage.y[: len(stays)][stays]
        fewer = self._exits(_padded(len(features)))
        fewer[k + 1].stage.x[: len(features)] = features
        return fewer

    def _exits(self, count: int) -> list[_Exit]:
        """This thread's stages and exits for ``count`` samples."""
        cache = self._thread.exits
        if count not in cache:
            x, exits = np.zeros((count, *self._shape), self._dtype), []
            for model in self._models:
                stage = self._program(model[model.starti : model.endi], x)
                exits.append(_Exit(stage, self._program(model[model.endi :], stage.y)))
                x = stage.y
            cache[count] = exits
        return cache[count]

    def _main_program(self, count: int) -> Program:
        """This thread's main for ``count`` samples."""
        cache = self._thread.mains
        if count not in cache:
            cache[count] = self._program(self._main_links, np.zeros((count, *self._shape), self._dtype))
        return cache[count]

    def _program(self, links: Sequence[chainer.Link], x: np.ndarray) -> Program:
        program = Program(links, x, self._packed, self._thread.workspace)
        if program.calls_links:
            self._calls_links = True
        return program


def _padded(count: int) -> int:
    """The size of the Program that takes ``count`` samples: a power of two, so that there are few sizes."""
    return 1 << (count - 1).bit_length()
