"""Matrix products by oneDNN, float32, in blocks that threads share."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from ctypes import c_void_p, cast
from typing import TYPE_CHECKING, Any, Optional

from branchynet.cpu import onednn
from branchynet.cpu.layout import BYTES_OF_BLOCK
from branchynet.cpu.memory import address
from branchynet.cpu.team import call_frames, run_frames
from branchynet.cpu.threads import run

import numpy as np

if TYPE_CHECKING:
    from branchynet.cpu.emitter import Function

WORK_OF_BLOCK = 1 << 21  # multiplications and additions that are worth a thread's call
_BYTES = 4  # of a number
_PLAIN, _TRANSPOSED = ord('N'), ord('T')


# A block as oneDNN's sgemm takes it: whether a and b lie transposed, the m, n and k of the shapes (m, k), (k, n) and
# (m, n), and for each of a, b and the product its address and the numbers in a row as it lies in memory.
_Block = tuple[int, int, int, int, int, int, int, int, int, int, int]


def product_of_rows(a: np.ndarray, b: np.ndarray, out: np.ndarray, parts: Sequence[slice]) -> None:
    """Writes a matrix product, block of rows by block of rows.

    Args:
        a: (M, K), float32 as all three, C-contiguous.
        b: (K, N), C-contiguous or transposed.
        out: (M, N), C-contiguous, where the product goes.
        parts: the rows of each block. The last may overlap the one before: it comes when all others are done, as sgemm
            adds to rows what it has written there.
    """
    n, k = out.shape[1], a.shape[1]
    (b_order, b_row), (start, b_start, out_start) = _lies(b), map(address, (a, b, out))
    step, out_step = _BYTES * k, _BYTES * n
    blocks: list[_Block] = [
        (
            *(_PLAIN, b_order, part.stop - part.start, n, k),
            *(start + part.start * step, k, b_start, b_row, out_start + part.start * out_step, n),
        )
        for part in parts
    ]
    apart = len(blocks) - (len(parts) > 1 and parts[-1].start < parts[-2].stop)
    _multiply(blocks[:apart], _is_little(b, out))
    if apart < len(blocks):
        _multiply(blocks[apart:], is_little=True)


def product_of_columns(a: np.ndarray, b: np.ndarray, out: np.ndarray, parts: Sequence[slice]) -> None:
    """As product_of_rows, in blocks of columns of b; a may be transposed too."""
    (m, n), k = out.shape, a.shape[1]
    (a_order, a_row), (b_order, b_row) = _lies(a), _lies(b)
    start, b_start, out_start = map(address, (a, b, out))
    b_step = _BYTES * (b_row if b_order == _TRANSPOSED else 1)
    blocks: list[_Block] = [
        (
            *(a_order, b_order, m, part.stop - part.start, k),
            *(start, a_row, b_start + part.start * b_step, b_row, out_start + part.start * _BYTES, n),
        )
        for part in parts
    ]
    _multiply(blocks, _is_little(b, out))


def _lies(a: np.ndarray) -> tuple[int, int]:
    """How a matrix lies in memory: _PLAIN or _TRANSPOSED, and the numbers in a row."""
    return (_PLAIN, a.shape[1]) if a.flags.c_contiguous else (_TRANSPOSED, a.shape[0])


def _is_little(b: np.ndarray, out: np.ndarray) -> bool:
    """Whether a product with b is not worth another thread."""
    return out.size * len(b) <= WORK_OF_BLOCK and b.nbytes <= BYTES_OF_BLOCK


def _multiply(blocks: Sequence[_Block], is_little: bool) -> None:
    code = _machine_code()
    with onednn.single_threaded():
        if code is None:
            run(lambda i: _multiply_block(blocks[i]), len(blocks), around=onednn.single_threaded)
        elif (call_frames if is_little else run_frames)(code, blocks):
            raise RuntimeError('oneDNN: sgemm failed')


def _multiply_block(block: _Block) -> None:
    a_order, b_order, m, n, k, a, a_row, b, b_row, out, out_row = block
    if onednn.library().sgemm(a_order, b_order, m, n, k, 1, a, a_row, b, b_row, 0, out, out_row):
        raise RuntimeError('oneDNN: sgemm failed')


@functools.cache
def _machine_code() -> Optional[Function]:
    """`_multiply_block` in machine code, which takes the address of the block's numbers; None without llvmlite."""
    try:
        from branchynet.cpu.emitter import BYTE, INDEX, INT, REAL, Emitter, constant, integer, ir
    except ImportError:
        return None
    emit = Emitter()

    def write(block: Any) -> Any:
        build = emit.builder
        *orders, m, n, k, a, a_row, b, b_row, out, out_row = emit.words(block, 11)
        a_order, b_order = (build.trunc(order, BYTE) for order in orders)
        one, zero = constant(1, REAL), constant(0, REAL)
        arguments = [a_order, b_order, m, n, k, one, a, a_row, b, b_row, zero, out, out_row]
        sgemm = cast(onednn.library().sgemm, c_void_p).value
        assert sgemm is not None
        kind = ir.FunctionType(INDEX, [argument.type for argument in arguments])
        return build.zext(build.call(build.inttoptr(integer(sgemm), kind.as_pointer()), arguments), INT)

    emit.function('product', 1, write)
    return emit.compiled('product')['product']
