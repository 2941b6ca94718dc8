"""The functions that a link calls, in their order, with the arrays that they take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chainer
import numpy as np


class Call(NamedTuple):
    """A function that was called, and the arrays that it took."""

    function: Any
    inputs: Sequence[np.ndarray]


class Recording(NamedTuple):
    """What a link has done with an array.

    Attributes:
        start: the array as a Variable.
        y: what the link has returned.
        calls: those that y was computed by, in an order in which they can be made.
    """

    start: chainer.Variable
    y: Any
    calls: list[Call]


def record(link: Callable, x: np.ndarray) -> Recording:
    """Calls a link, or any callable that takes a Variable, in testing mode; records the functions that are called."""
    start = chainer.Variable(x)
    with chainer.using_config('train', False), chainer.force_backprop_mode(), _Inputs() as inputs:
        y = link(start)
    # y may also come from functions that were called before, of weights alone.
    calls = [Call(function, inputs.of[function]) for function in _functions(y) if function in inputs.of]
    return Recording(start, y, calls)


class _Inputs(chainer.FunctionHook):
    """Keeps the arrays that functions take, of which Chainer's graph keeps only some."""

    name = 'BranchyNet recording'

    def __init__(self) -> None:
        self.of: dict[chainer.FunctionNode, Sequence[np.ndarray]] = {}

    def forward_postprocess(self, function: chainer.FunctionNode, in_data: Sequence[np.ndarray]) -> None:
        self.of[function] = in_data


def _functions(y: Any) -> list[chainer.FunctionNode]:
    """The functions that a Variable comes from, in an order in which they can be called."""
    found: dict[chainer.FunctionNode, None] = {}  # a set that keeps the order
    waiting = [y.creator_node] if isinstance(y, chainer.Variable) else []
    while waiting:
        function = waiting.pop()
        if function is not None and function not in found:
            found[function] = None
            waiting += [node.creator_node for node in function.inputs]
    return sorted(found, key=lambda function: function.rank)
