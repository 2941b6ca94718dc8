"""An ONNX graph in the making: nodes, constants and the arrays that they stand for."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple, Optional

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper


class Value(NamedTuple):
    """An array of the recorded call.

    Attributes:
        name: of the ONNX value that holds it; None for an array that does not depend on the input.
        array: its numbers in the recorded call; the batch comes first where there is a name.
    """

    name: Optional[str]
    array: np.ndarray


class Graph:
    """Nodes and constants of an ONNX graph, or of a subgraph (a branch of an If) that sees all of its outer graph.

    Nodes that compute the same are made once, so that a subgraph takes up what its outer graph has computed.

    Args:
        weights: names for constants: id of an array to its path in the net.
        outer: the graph around this subgraph.
    """

    def __init__(self, weights: dict[int, str], outer: Optional[Graph] = None) -> None:
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._weights = weights
        self._outer = outer
        self._known: dict[Any, str] = {}
        self._numbers: dict[str, itertools.count] = outer._numbers if outer else {}

    def subgraph(self) -> Graph:
        """A graph for a branch of an If within this one."""
        return Graph(self._weights, self)

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node of one output, unless there is one that computes the same; returns the output's name."""
        key = op, inputs, repr(sorted(attributes.items()))
        return self._find(key) or self._remember(key, self.new_node(op, *inputs, **attributes))

    def new_node(self, op: str, *inputs: str, output: Optional[str] = None, **attributes: Any) -> str:
        """Adds a node whose output has the given name; without one, a name of its own."""
        name = output or self._name(op)
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(self, array: Any, dtype: Any = np.float32) -> str:
        """Name of a constant, which is stored once."""
        path = self._weights.get(id(array))
        array = np.asarray(array, dtype, order='C')
        key = array.dtype.str, array.shape, array.tobytes()
        return self._find(key) or self._remember(key, self._initializer(path, array))

    def is_weight(self, value: Value) -> bool:
        """Whether a value is a parameter of the net."""
        return id(value.array) in self._weights

    def integers(self, *values: int) -> str:
        """Name of a constant vector of int64."""
        return self.constant(values, np.int64)

    def named(self, value: Value) -> str:
        """Name of a value's ONNX value, a constant where it does not depend on the input."""
        return self.constant(value.array) if value.name is None else value.name

    def _initializer(self, path: Optional[str], array: np.ndarray) -> str:
        name = path or self._name('constant')
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def _find(self, key: Any) -> Optional[str]:
        return self._known.get(key) or (self._outer._find(key) if self._outer else None)

    def _remember(self, key: Any, name: str) -> str:
        self._known[key] = name
        return name

    def _name(self, word: str) -> str:
        return f'{word}_{next(self._numbers.setdefault(word, itertools.count()))}'
