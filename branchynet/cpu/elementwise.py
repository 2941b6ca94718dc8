"""Addition and ReLU, in blocks that threads share: in machine code, or without llvmlite by NumPy."""

from __future__ import annotations

import functools
from typing import Any, Callable, Optional

from branchynet.cpu.layout import dense, empty_like, is_channels_last, like, run_frames, takes
from branchynet.cpu.threads import blocks, run

import numpy as np

_ELEMENTS = 1 << 18  # of a block


class Add:
    """Add's method."""

    def forward(self: Any, inputs: tuple, stock: Callable) -> tuple:
        """The method of this name, for arrays that the kernels take."""
        x, y = inputs
        if not (takes(x, y) and x.shape == y.shape):
            return stock(self, inputs)
        (x,) = dense(x)
        return (add(x, like(y, x), out=empty_like(x)),)


class ReLU:
    """ReLU's method."""

    def forward_cpu(self: Any, inputs: tuple, stock: Callable) -> tuple:
        """The method of this name, for arrays that the kernels take."""
        (x,) = inputs
        if not takes(x):
            return stock(self, inputs)
        self.retain_outputs((0,))
        (x,) = dense(x)
        return (relu(x),)


class ReLUGradient:
    """ReLUGrad2's method."""

    def forward_cpu(self: Any, inputs: tuple, stock: Callable) -> tuple:
        """The method of this name, for arrays that the kernels take."""
        (gy,) = inputs
        if not takes(gy, self.b):
            return stock(self, inputs)
        (y,) = dense(self.b)
        gy = like(gy, y)
        return (relu_gx(y, gy),)


def add(x: np.ndarray, y: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Writes x + y into ``out``, all float32 of one shape and memory order, and returns it."""
    return _apply('add', x, y, out)


def relu(x: np.ndarray) -> np.ndarray:
    """max(x, 0), in the memory order of x, float32."""
    return _apply('relu', x, empty_like(x))


def relu_of_sum(x: np.ndarray, y: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Writes max(x + y, 0) into ``out``, all float32 of one shape and memory order, and returns it."""
    return _apply('relu_of_sum', x, y, out)


def relu_gx(y: np.ndarray, gy: np.ndarray) -> np.ndarray:
    """gy where y is positive, else 0; both float32, of one shape and memory order."""
    return _apply('relu_gx', y, gy, empty_like(gy))


def _lines(x: np.ndarray) -> np.ndarray:
    """A view of all elements in the order of memory."""
    return (x.transpose(0, 2, 3, 1) if is_channels_last(x) else x).reshape(-1)


def _apply(name: str, *arrays: np.ndarray) -> np.ndarray:
    """Computes the last of the arrays from the others, by a function in _NUMPY or its machine code, and returns it."""
    parts, codes = blocks(arrays[0].size, 1, _ELEMENTS), _machine_code()
    if codes is None:
        lines = [_lines(array) for array in arrays]
        run(lambda i: _NUMPY[name](*(line[parts[i]] for line in lines)), len(parts))
        return arrays[-1]
    starts = [array.ctypes.data for array in arrays]
    frames = [[part.stop - part.start, *(start + 4 * part.start for start in starts)] for part in parts]
    run_frames(codes[name], frames)
    return arrays[-1]


_ZEROS = np.zeros(_ELEMENTS, np.float32)  # NumPy's maximum of two arrays is faster than of an array and a number


def _relu(x: np.ndarray, out: np.ndarray) -> None:
    np.maximum(x, _ZEROS[: len(x)], out=out)


def _relu_of_sum(x: np.ndarray, y: np.ndarray, out: np.ndarray) -> None:
    np.add(x, y, out=out)
    _relu(out, out)


def _relu_gx(y: np.ndarray, gy: np.ndarray, out: np.ndarray) -> None:
    np.greater(y, 0, out=out)
    out *= gy


_NUMPY: dict[str, Callable[..., Any]] = {
    'add': np.add,
    'relu': _relu,
    'relu_of_sum': _relu_of_sum,
    'relu_gx': _relu_gx,
}


@functools.cache
def _machine_code() -> Optional[dict[str, Callable[[int], int]]]:
    """The functions of _NUMPY in machine code; None without llvmlite.

    Each takes the address of a frame of 64-bit numbers: the number of elements, then the addresses of the arrays.
    """
    try:
        from branchynet.cpu.emitter import INT, Code, Emitter, constant
    except ImportError:
        return None
    emit = Emitter()

    def relu(x: Any, kind: Any) -> Any:
        zero = constant(0, kind)
        return emit.builder.select(emit.builder.fcmp_unordered('>', x, zero), x, zero)  # NaN stays NaN

    def relu_gx(y: Any, gy: Any, kind: Any) -> Any:
        is_positive = emit.builder.fcmp_ordered('>', y, constant(0, kind))
        # A product, as NumPy's: infinity times 0 is NaN.
        return emit.builder.fmul(emit.builder.select(is_positive, constant(1, kind), constant(0, kind)), gy)

    functions: dict[str, tuple[int, Callable]] = {
        'add': (2, lambda x, y, kind: emit.builder.fadd(x, y)),
        'relu': (1, relu),
        'relu_of_sum': (2, lambda x, y, kind: relu(emit.builder.fadd(x, y), kind)),
        'relu_gx': (2, relu_gx),
    }

    def write(frame: Any, inputs: int, function: Callable) -> None:
        count, *starts, out = (emit.load(emit.add(frame, 8 * i), INT) for i in range(inputs + 2))

        def compute(i: Any, kind: Any) -> None:
            values = [emit.load(emit.at(start, i, 4), kind) for start in starts]
            emit.store(function(*values, kind), emit.at(out, i, 4))

        emit.elements(count, compute)

    for name, (inputs, function) in functions.items():
        emit.function(name, 1, functools.partial(write, inputs=inputs, function=function), name=name)
    code = Code(emit.module())
    return {name: code.call(name) for name in functions}
