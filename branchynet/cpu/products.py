"""Matrix products by oneDNN, float32, in blocks that threads share."""

from __future__ import annotations

import array as packed
import functools
from collections.abc import Sequence
from ctypes import c_void_p, cast
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

from branchynet.cpu import onednn
from branchynet.cpu.layout import BYTES_OF_BLOCK
from branchynet.cpu.team import call_frames, run_frames
from branchynet.cpu.threads import run

import numpy as np

if TYPE_CHECKING:
    from branchynet.cpu.emitter import Function

WORK_OF_BLOCK = 1 << 21  # multiplications and additions that are worth a thread's call
_BYTES = 4  # of a number
_PLAIN, _TRANSPOSED = ord('N'), ord('T')


class _Product(NamedTuple):
    """A product out = a b, as oneDNN's sgemm takes it.

    Attributes:
        a_order: _PLAIN, or _TRANSPOSED where a' lies in memory.
        b_order: the same for b.
        m, n, k: of the shapes (M, N) of ``out``, (M, K) of a, and (K, N) of b.
        a, b, out: addresses.
        a_row, b_row, out_row: numbers in a row, as it lies in memory.
    """

    a_order: int
    b_order: int
    m: int
    n: int
    k: int
    a: int
    a_row: int
    b: int
    b_row: int
    out: int
    out_row: int

    def rows(self, start: int, count: int) -> _Product:
        """Of rows of a, which is plain."""
        return self._replace(
            m=count, a=self.a + _BYTES * start * self.a_row, out=self.out + _BYTES * start * self.out_row
        )

    def columns(self, start: int, count: int) -> _Product:
        """Of columns of b."""
        step = self.b_row if self.b_order == _TRANSPOSED else 1
        return self._replace(n=count, b=self.b + _BYTES * start * step, out=self.out + _BYTES * start)


def product_of_rows(a: np.ndarray, b: np.ndarray, out: np.ndarray, parts: Sequence[slice]) -> None:
    """Writes a matrix product, block of rows by block of rows.

    Args:
        a: (M, K), float32 as all three, C-contiguous.
        b: (K, N), C-contiguous or transposed.
        out: (M, N), C-contiguous, where the product goes.
        parts: the rows of each block.
    """
    _multiply('rows', a, b, out, parts)


def product_of_columns(a: np.ndarray, b: np.ndarray, out: np.ndarray, parts: Sequence[slice]) -> None:
    """As product_of_rows, in blocks of columns of b; a may be transposed too."""
    _multiply('columns', a, b, out, parts)


def _multiply(kind: str, a: np.ndarray, b: np.ndarray, out: np.ndarray, parts: Sequence[slice]) -> None:
    """Computes a product in parts, which are its 'rows' or 'columns'."""
    (m, n), k = out.shape, a.shape[1]
    (a_order, a_row), (b_order, b_row) = _lies(a), _lies(b)
    product = _Product(a_order, b_order, m, n, k, a.ctypes.data, a_row, b.ctypes.data, b_row, out.ctypes.data, n)
    codes = _machine_code()
    with onednn.single_threaded():
        if codes is None:
            blocks = [getattr(product, kind)(part.start, part.stop - part.start) for part in parts]
            run(lambda i: _multiply_block(blocks[i]), len(blocks), around=onednn.single_threaded)
            return
        numbers = packed.array('q', product)
        address = numbers.buffer_info()[0]
        frames = [(address, part.start, part.stop - part.start) for part in parts]
        is_little = m * n * k <= WORK_OF_BLOCK and b.nbytes <= BYTES_OF_BLOCK
        if (call_frames if is_little else run_frames)(codes[kind], frames):
            raise RuntimeError('oneDNN: sgemm failed')


def _lies(a: np.ndarray) -> tuple[int, int]:
    """How a matrix lies in memory: (order, numbers in a row)."""
    return (_PLAIN, a.shape[1]) if a.flags.c_contiguous else (_TRANSPOSED, a.shape[0])


def _multiply_block(block: _Product) -> None:
    a_order, b_order, m, n, k, a, a_row, b, b_row, out, out_row = block
    if onednn.library().sgemm(a_order, b_order, m, n, k, 1, a, a_row, b, b_row, 0, out, out_row):
        raise RuntimeError('oneDNN: sgemm failed')


@functools.cache
def _machine_code() -> Optional[dict[str, Function]]:
    """The products of 'rows' and 'columns' in machine code; None without llvmlite.

    Each takes the address of 64-bit numbers: the address of a _Product, where the block begins, and its size.
    """
    try:
        from branchynet.cpu.emitter import BYTE, INDEX, INT, REAL, Code, Emitter, constant, integer, ir
    except ImportError:
        return None
    emit = Emitter()

    def write(frame: Any, is_of_rows: bool) -> Any:
        build = emit.builder
        address, start, count = emit.words(frame, 3)
        *orders, m, n, k, a, a_row, b, b_row, out, out_row = emit.words(address, len(_Product._fields))
        if is_of_rows:
            m, a = count, emit.at(a, build.mul(start, a_row), _BYTES)
            out = emit.at(out, build.mul(start, out_row), _BYTES)
        else:
            is_plain = build.icmp_signed('==', orders[1], integer(_PLAIN))
            step = build.select(is_plain, start, build.mul(start, b_row))
            n, b, out = count, emit.at(b, step, _BYTES), emit.at(out, start, _BYTES)
        a_order, b_order = (build.trunc(order, BYTE) for order in orders)
        one, zero = constant(1, REAL), constant(0, REAL)
        arguments = [a_order, b_order, m, n, k, one, a, a_row, b, b_row, zero, out, out_row]
        sgemm = cast(onednn.library().sgemm, c_void_p).value
        assert sgemm is not None
        kind = ir.FunctionType(INDEX, [argument.type for argument in arguments])
        return build.zext(build.call(build.inttoptr(integer(sgemm), kind.as_pointer()), arguments), INT)

    for name in ('rows', 'columns'):
        emit.function(name, 1, functools.partial(write, is_of_rows=name == 'rows'), name=name)
    code = Code(emit.module())
    return {name: code.call(name) for name in ('rows', 'columns')}
