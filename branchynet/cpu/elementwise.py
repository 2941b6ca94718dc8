"""Addition and ReLU, in blocks that threads share: in machine code, or without llvmlite by NumPy."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Callable, Optional

from branchynet.cpu.layout import dense, empty_like, is_channels_last, like, takes
from branchynet.cpu.memory import address
from branchynet.cpu.team import run_frames
from branchynet.cpu.threads import blocks, run

import numpy as np

if TYPE_CHECKING:
    from branchynet.cpu.emitter import Function

_ELEMENTS = 1 << 18  # of a block
_BITS = 8  # of a byte
_LOWEST = float(np.finfo(np.float32).min)


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


def relu_of_sum(x: np.ndarray, y: np.ndarray, out: np.ndarray, bits: Optional[np.ndarray] = None) -> np.ndarray:
    """Writes max(x + y, 0) into ``out``, all float32 of one shape and memory order, and returns it.

    Args:
        x: an array.
        y: an array.
        out: where the result goes; it may be x or y.
        bits: where given, uint8 of an eighth of the size, gets a bit for each number, in the order of memory: 1 where
            it is positive.
    """
    return _apply('relu_of_sum', x, y, out, bits=bits)


def relu_gx(y: np.ndarray, gy: np.ndarray) -> np.ndarray:
    """gy where y is positive, else 0; both float32, of one shape and memory order."""
    return _apply('relu_gx', y, gy, empty_like(gy))


def add_passed(y: np.ndarray, gy: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Adds relu_gx(y, gy) to x, all float32 of one shape and memory order, and returns it."""
    return _apply('add_passed', y, gy, x, x)


def are_ordinary(x: np.ndarray) -> bool:
    """Whether all numbers of x, float32 without gaps, are finite, and above the lowest that is."""
    codes = _machine_code()
    if codes is None:
        with np.errstate(invalid='ignore'):
            return bool(x.min() > _LOWEST and x.max() < np.inf)  # NaN is neither
    start, parts = address(x), blocks(x.size, 1, _ELEMENTS)
    return not run_frames(codes['is_odd'], [(part.stop - part.start, start + 4 * part.start) for part in parts])


def _lines(x: np.ndarray) -> np.ndarray:
    """A view of all elements in the order of memory."""
    return (x.transpose(0, 2, 3, 1) if is_channels_last(x) else x).reshape(-1)


def _apply(name: str, *arrays: np.ndarray, bits: Optional[np.ndarray] = None) -> np.ndarray:
    """Calls a function of _NUMPY, or its machine code, on blocks of arrays; the last gets the result, and is returned.

    Args:
        name: of the function.
        arrays: of one size and memory order.
        bits: as of relu_of_sum.
    """
    size, codes = arrays[0].size, _machine_code()
    parts = [
        slice(part.start * _BITS, min(part.stop * _BITS, size)) for part in blocks(-(-size // _BITS), _BITS, _ELEMENTS)
    ]
    if codes is None:
        lines = [_lines(array) for array in arrays]
        run(lambda i: _NUMPY[name](*(line[parts[i]] for line in lines)), len(parts))
        if bits is not None:
            bits[:] = np.packbits(lines[-1] > 0, bitorder='little')
        return arrays[-1]
    starts = [address(array) for array in arrays]
    frames = [[part.stop - part.start, *(start + 4 * part.start for start in starts)] for part in parts]
    if bits is not None:
        name += '_with_bits'
        for frame, part in zip(frames, parts):
            frame.append(address(bits) + part.start // _BITS)
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


def _add_passed(y: np.ndarray, gy: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
    passed = np.greater(y, 0).astype(np.float32)
    passed *= gy
    np.add(x, passed, out=out)


_NUMPY: dict[str, Callable[..., Any]] = {
    'add': np.add,
    'add_passed': _add_passed,
    'relu': _relu,
    'relu_of_sum': _relu_of_sum,
    'relu_gx': _relu_gx,
}


@functools.cache
def _machine_code() -> Optional[dict[str, Function]]:
    """The functions of _NUMPY in machine code, relu_of_sum with bits, and is_odd; None without llvmlite.

    Each takes the address of a frame of 64-bit numbers: the number of elements, then the addresses of the arrays. The
    result of is_odd is not 0 where an element is not ordinary.
    """
    try:
        from branchynet.cpu.emitter import BYTE, INT, VECTOR, Emitter, constant
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

    def relu_of_sum(x: Any, y: Any, kind: Any) -> Any:
        return relu(emit.builder.fadd(x, y), kind)

    functions: dict[str, tuple[int, Callable]] = {  # with the number of arrays that they read
        'add': (2, lambda x, y, kind: emit.builder.fadd(x, y)),
        'add_passed': (3, lambda y, gy, x, kind: emit.builder.fadd(x, relu_gx(y, gy, kind))),
        'relu': (1, relu),
        'relu_of_sum': (2, relu_of_sum),
        'relu_of_sum_with_bits': (2, relu_of_sum),
        'relu_gx': (2, relu_gx),
    }

    def write(frame: Any, inputs: int, function: Callable, has_bits: bool) -> None:
        count, *starts = emit.words(frame, 2 + inputs + has_bits)

        def compute(i: Any, kind: Any) -> None:
            result = function(*(emit.load(emit.at(start, i, 4), kind) for start in starts[:inputs]), kind)
            emit.store(result, emit.at(starts[inputs], i, 4))
            if has_bits and kind == VECTOR:  # their number is a multiple of a vector's
                is_positive = emit.builder.fcmp_ordered('>', result, constant(0, kind))
                byte = emit.builder.bitcast(is_positive, BYTE)
                emit.store(byte, emit.builder.add(starts[-1], emit.builder.lshr(i, INT(3))))

        emit.elements(count, compute)

    def is_odd(frame: Any) -> Any:
        build = emit.builder
        count, start = emit.words(frame, 2)

        def look(i: Any, kind: Any, found: Any) -> list[Any]:
            x = emit.load(emit.at(start, i, 4), kind)
            is_low = build.fcmp_unordered('<=', x, constant(_LOWEST, kind))  # NaN is too
            is_high = build.fcmp_unordered('>=', x, constant(float('inf'), kind))
            bits = build.or_(is_low, is_high)
            bits = build.bitcast(bits, BYTE) if kind == VECTOR else build.zext(bits, BYTE)
            return [build.or_(found, bits)]

        (found,) = emit.elements(count, look, [BYTE(0)])
        return build.zext(found, INT)

    for name, (inputs, function) in functions.items():
        has_bits = name.endswith('_with_bits')
        writer = functools.partial(write, inputs=inputs, function=function, has_bits=has_bits)
        emit.function(name, 1, writer)
    emit.function('is_odd', 1, is_odd)
    return emit.compiled(*functions, 'is_odd')
