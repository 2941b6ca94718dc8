"""Numbers and arrays from the records of an old pickle."""

from __future__ import annotations

import math
from typing import Any

from branchynet.legacy.pickles import Name, Record

import numpy as np

ARRAY = 'numpy.core.multiarray _reconstruct'
GPU_ARRAY = 'cupy.core.core array'
SCALAR = 'numpy.core.multiarray scalar'
NAMES = {ARRAY, GPU_ARRAY, SCALAR, 'numpy ndarray', 'numpy dtype'}
_NUMBERS = ('b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8')


def kind(value: Any) -> str:
    """A few words for what a file holds."""
    if isinstance(value, Record):
        return f'a {value.name.split()[-1]}'
    return f'a {type(value).__name__.lower()}'


class Values:
    """Makes values of today of a file's records, each checked first.

    Args:
        size: bytes of the file. A file that refers to one array many times is refused before its copies fill the
            memory.
    """

    def __init__(self, size: int) -> None:
        self.bytes_left = 3 * size  # statistics are read several times

    def state(self, value: Any, name: str) -> dict[str, Any]:
        """The attributes of an object of the class `name`."""
        if not (isinstance(value, Record) and value.name == name and isinstance(value.state, dict)):
            raise ValueError(f'it has {kind(value)} where a {name.split()[-1]} was expected')
        return value.state

    def items(self, value: Any) -> list[Any]:
        """The items of a list."""
        if not isinstance(value, list):
            raise ValueError(f'it has {kind(value)} where a list was expected')
        return value

    def number(self, value: Any) -> bool | int | float:
        """A number of Python."""
        if isinstance(value, Record) and value.name == SCALAR and len(value.args) == 2:
            dtype, raw = value.args
            value = self._array(self.dtype(dtype), (), False, raw).item()
        if not isinstance(value, (bool, int, float)):
            raise ValueError(f'it has {kind(value)} where a number was expected')
        return value

    def whole(self, value: Any) -> int:
        """A whole number, 0 or more."""
        value = self.number(value)
        if isinstance(value, float) or value < 0:
            raise ValueError(f'it has {value} where a whole number was expected')
        return int(value)

    def pair(self, value: Any) -> tuple[int, int]:
        """Two whole numbers."""
        if not (isinstance(value, tuple) and len(value) == 2):
            raise ValueError(f'it has {kind(value)} where two numbers were expected')
        return self.whole(value[0]), self.whole(value[1])

    def setting(self, value: Any) -> Any:
        """None, a text, a number, or a list of numbers."""
        if value is None or (isinstance(value, (str, bool, int, float)) and not isinstance(value, Name)):
            return value
        if isinstance(value, (list, tuple)):
            return [self.number(v) for v in value]
        if isinstance(value, Record) and value.name in (ARRAY, GPU_ARRAY):
            return self.array(value).tolist()
        return self.number(value)

    def numbers(self, value: Any, budget: list[int], depth: int = 0) -> Any:
        """A number, an array, or lists of them, `budget[0]` elements at most."""
        budget[0] -= 1
        if budget[0] < 0 or depth > 4:
            raise ValueError('its lists are too long or too deep')
        if isinstance(value, Record) and value.name in (ARRAY, GPU_ARRAY):
            array = self.array(value)
            budget[0] -= array.size
            return array
        if not isinstance(value, (list, tuple)):
            return self.number(value)
        parts = [self.numbers(v, budget, depth + 1) for v in value]
        if len({np.shape(part) for part in parts}) > 1:
            raise ValueError('it has lists of different lengths where a table was expected')
        return np.array(parts)

    # Arrays

    def dtype(self, value: Any) -> np.dtype[Any]:
        """A plain numeric type."""
        if isinstance(value, Record) and value.name == 'numpy dtype' and value.args and isinstance(value.state, tuple):
            code = value.args[0]
            order = value.state[1] if len(value.state) > 1 else None
            if code in _NUMBERS and order in ('<', '>', '|', '='):
                return np.dtype(order + code)
        raise ValueError('it has an array whose elements are no plain numbers')

    def array(self, value: Any) -> np.ndarray:
        """A copy of an array, in the byte order of this machine."""
        if isinstance(value, Record) and value.name == GPU_ARRAY and len(value.args) == 1:
            value = value.args[0]
        if not (
            isinstance(value, Record)
            and value.name == ARRAY
            and value.args[:1] == ('numpy ndarray',)
            and isinstance(value.state, tuple)
            and len(value.state) == 5
        ):
            raise ValueError(f'it has {kind(value)} where an array was expected')
        _, shape, dtype, fortran, raw = value.state
        if not isinstance(shape, tuple) or len(shape) > 8:
            raise ValueError('it has an array without a shape')
        return self._array(self.dtype(dtype), tuple(self.whole(n) for n in shape), bool(fortran), raw)

    def _array(self, dtype: np.dtype[Any], shape: tuple[int, ...], fortran: bool, raw: Any) -> np.ndarray:
        if isinstance(raw, str) and not isinstance(raw, Name):
            raw = raw.encode('latin-1')
        size = math.prod(shape) * dtype.itemsize
        if not isinstance(raw, (bytes, memoryview)) or len(raw) != size:
            raise ValueError(f'it has an array of shape {shape} whose contents have another size')
        self.bytes_left -= size
        if self.bytes_left < 0:
            raise ValueError('its arrays are larger than the file')
        array = np.frombuffer(raw, dtype).reshape(shape, order='F' if fortran else 'C')
        return np.array(array, dtype.newbyteorder('='), order='C')
