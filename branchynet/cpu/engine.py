"""The protocol of ``inference.Compiled``'s engines, and the parts that they share.

The engines are Cascade (machine code), Stagewise (one stage after the other) and branchynet.forward.Forward (a chain's
own forward).
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Iterable, Sequence
from typing import Any, Callable, NamedTuple, Protocol

import numpy as np

SAMPLES_OF_CALL = 32  # samples that are worth a thread's call


class Result(NamedTuple):
    """The answer to N samples.

    Attributes:
        label: int64 (N,), the class of each sample; -1 where the answer is NaN.
        exit: int64 (N,), where each sample left, from 0.
        logits: (N, C), the logits of that exit, in the dtype of the input.
        seconds: in the trunk's stages, of all samples together.
    """

    label: np.ndarray
    exit: np.ndarray
    logits: np.ndarray
    seconds: float


def label_of(logits: np.ndarray) -> int:
    """`exits.labels` for the logits of one sample, with the least overhead."""
    label = int(logits.argmax())  # the index of a NaN, if there is one
    return label if math.isfinite(logits.item(label)) else -1


class NotFinite(ValueError):
    """A sample has a NaN or an infinity."""

    def __init__(self, message: str = 'x has a NaN or an infinity') -> None:  # pickle gives it the message
        super().__init__(message)


def check_finite(x: np.ndarray) -> None:
    """Raises NotFinite where a number of x is NaN or infinite."""
    if not np.isfinite(x).all():
        raise NotFinite


class Engine(Protocol):
    """A net's exits and main for samples of one shape, with the weights that the net had when it was made.

    Any number of threads may call an engine at once.
    """

    @property
    def most(self) -> int:
        """Samples in one call, at most.

        An engine that computes a call on one thread takes SAMPLES_OF_CALL, and the caller's threads share the calls.
        The samples of a call are the same with any number of threads, as a sample's bits may depend on how many run
        together.
        """

    @property
    def classes(self) -> int:
        """Number of classes."""

    def leave(self, x: np.ndarray, thresholds: Sequence[float]) -> Result:
        """Early exit.

        Args:
            x: (N, ...), contiguous.
            thresholds: E - 1 numbers, nats, rounded to the dtype of the entropies.

        Returns:
            A Result.

        Raises:
            NotFinite: x has a NaN or an infinity.
        """

    def leave_one(self, x: np.ndarray, thresholds: Sequence[float]) -> tuple[int, int, float]:
        """(label, exit, seconds in the trunk's stages) of one sample (1, ...): ``leave`` with the least overhead."""

    def record(self, x: np.ndarray) -> tuple[Iterable[np.ndarray], np.ndarray, np.ndarray]:
        """Every exit's answer to x (N, ...), without early exit.

        Returns:
            (logits, released, whole): E arrays (N, C); seconds (E, N) in the trunk's stage before each exit; seconds
            (E, N) in that stage, the exit's links, softmax and entropy.

        Raises:
            NotFinite: x has a NaN or an infinity.
        """

    def main(self, x: np.ndarray) -> tuple[np.ndarray, float]:
        """main's logits (N, C) of x (N, ...), and its seconds, of all threads together.

        Raises:
            NotFinite: x has a NaN or an infinity.
        """

    def main_one(self, x: np.ndarray) -> int:
        """The label that main gives one sample (1, ...), with the least overhead."""


def take_turns(engine: Engine) -> None:
    """Lets the threads that call an engine wait for each other: for a net whose links change as they run.

    Args:
        engine: whose methods are replaced.
    """
    lock = threading.RLock()  # a method may call another

    def in_turn(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def called(*arguments: Any) -> Any:
            with lock:
                return method(*arguments)

        return called

    for name in 'leave', 'leave_one', 'record', 'main', 'main_one':
        setattr(engine, name, in_turn(getattr(engine, name)))
