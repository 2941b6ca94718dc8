"""Matrix products by oneDNN, float32, in blocks that threads share."""

from __future__ import annotations

import array as packed
import functools
import itertools
from collections.abc import Sequence
from ctypes import c_void_p, cast
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

from branchynet.cpu import onednn
from branchynet.cpu.layout import BYTES_OF_BLOCK
from branchynet.cpu.memory import address
from branchynet.cpu.signals import emit_undisturbed, undisturbed
from branchynet.cpu.team import call_frames, run_frames
from branchynet.cpu.threads import run

import numpy as np

if TYPE_CHECKING:
    from branchynet.cpu.emitter import Function

WORK_OF_BLOCK = 1 << 21  # multiplications and additions that are worth a thread's call
_BYTES = 4  # of a number
_BYTES_OF_PART = 16  # where a block begins and ends, as machine code reads it


class Shape(NamedTuple):
    """A product of a (M, K) and b (K, N), float32, and how they lie in memory.

    Attributes:
        m: M.
        n: N.
        k: K.
        is_a_transposed: whether a lies in memory as (K, M).
        is_b_transposed: whether b lies in memory as (N, K).
    """

    m: int
    n: int
    k: int
    is_a_transposed: bool = False
    is_b_transposed: bool = False


class Product:
    """A matrix product, which is computed in blocks.

    Args:
        shape: of the product.
        parts: the rows of a, or the columns of b, of each block. The last may overlap the one before: it is computed
            after all others, because sgemm keeps partial sums in the output, where only one thread may write.
        of_columns: whether the parts are columns.
    """

    def __init__(self, shape: Shape, parts: Sequence[slice], of_columns: bool = False) -> None:
        m, n, k, is_a_transposed, is_b_transposed = shape
        a_row, b_row = m if is_a_transposed else k, k if is_b_transposed else n
        # 0 stands for the size of a block.
        if of_columns:
            n, steps = 0, (0, b_row if is_b_transposed else 1, 1)
        else:
            m, steps = 0, (1 if is_a_transposed else a_row, 0, n)
        self._numbers = packed.array(
            'q',
            (
                *(ord('T') if is_transposed else ord('N') for is_transposed in (is_a_transposed, is_b_transposed)),
                *(m, n, k, a_row, b_row, shape.n),
                *(_BYTES * step for step in steps),
            ),
        )
        self._parts = parts
        self._bounds = packed.array('q', itertools.chain.from_iterable((part.start, part.stop) for part in parts))
        self._is_last_apart = len(parts) > 1 and parts[-1].start < parts[-2].stop
        self._is_little = len(parts) == 1 or (
            shape.m * shape.n * k <= WORK_OF_BLOCK and _BYTES * shape.n * k <= BYTES_OF_BLOCK
        )
        # The first numbers of a frame of machine code: for all blocks, and for each.
        numbers, bounds = (array.buffer_info()[0] for array in (self._numbers, self._bounds))
        self._all = numbers, bounds, len(parts)
        self._each = [(numbers, bounds + i * _BYTES_OF_PART, 1) for i in range(len(parts))]

    def write(self, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        """Writes a b.

        Args:
            a: as it lies in memory, C-contiguous as all three.
            b: as it lies in memory.
            out: (M, N).
        """
        code, starts = _machine_code(), (address(a), address(b), address(out))
        if code is None:
            self.write_without_machine_code(*starts)
        elif self._is_little:
            _check(call_frames(code, ((*self._all, *starts),)))
        elif self._is_last_apart:
            *together, last = self.frames(*starts)
            _check(run_frames(code, together) | call_frames(code, [last]))
        else:
            _check(run_frames(code, self.frames(*starts)))

    def frames(self, a: int, b: int, out: int) -> list[tuple[int, ...]]:
        """The numbers that machine code takes for each block, given the addresses of a, b and the product."""
        return [(*numbers, a, b, out) for numbers in self._each]

    def write_without_machine_code(self, a: int, b: int, out: int) -> None:
        """As ``write``, with addresses."""
        a_order, b_order, m, n, k, a_row, b_row, out_row, *steps = self._numbers
        sgemm = onednn.library().sgemm

        def write(i: int) -> None:
            first, size = self._parts[i].start, self._parts[i].stop - self._parts[i].start
            a_start, b_start, out_start = (start + first * step for start, step in zip((a, b, out), steps))
            numbers = a_start, a_row, b_start, b_row, 0, out_start, out_row
            _check(undisturbed(sgemm, a_order, b_order, m or size, n or size, k, 1, *numbers))

        count = len(self._parts)
        run(write, count - self._is_last_apart, around=onednn.single_threaded)
        if self._is_last_apart:
            with onednn.single_threaded():
                write(count - 1)


def write_products(products: Sequence[tuple[Product, int, int, int]]) -> None:
    """Writes products, whose blocks threads share.

    Args:
        products: of blocks that do not overlap, each with the addresses of its a, b and out.
    """
    code = _machine_code()
    if code is None:
        for product, *starts in products:
            product.write_without_machine_code(*starts)
    else:
        _check(run_frames(code, [frame for product, *starts in products for frame in product.frames(*starts)]))


def _check(status: int) -> None:
    if status:
        raise RuntimeError('oneDNN: sgemm failed')


@functools.cache
def _machine_code() -> Optional[Function]:
    """Blocks of a product in machine code; None without llvmlite.

    It takes the address of 64-bit numbers: the address of those of the product, the address of the blocks' bounds, how
    many blocks, and the addresses of a, b and out. Those of the product: whether a and b lie transposed, as letters;
    m, n and k, where 0 stands for the rows or columns of a block; how many numbers of a, b and out lie in a row; from
    a row or column of the product to the next, the bytes to where a block would begin in a, b and out.
    """
    try:
        from branchynet.cpu.emitter import BYTE, INDEX, INT, REAL, Emitter, constant, integer, ir
    except ImportError:
        return None
    emit = Emitter()

    def call(function: Any, result: Any, arguments: Sequence[Any]) -> Any:
        place = cast(function, c_void_p).value
        assert place is not None
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        return emit.builder.call(emit.builder.inttoptr(integer(place), kind.as_pointer()), arguments)

    def blocks(frame: Any) -> Any:
        build = emit.builder
        product, bounds, count, *starts = emit.words(frame, 6)
        *orders, m, n, k, a_row, b_row, out_row, a_step, b_step, out_step = emit.words(product, 11)
        a_order, b_order = (build.trunc(order, BYTE) for order in orders)
        one, zero = constant(1, REAL), constant(0, REAL)

        def block(i: Any, before: Any) -> list[Any]:
            first, end = emit.words(emit.at(bounds, i, _BYTES_OF_PART), 2)
            size = build.sub(end, first)
            rows, columns = (build.select(build.icmp_signed('==', number, INT(0)), size, number) for number in (m, n))
            a, b, out = (
                build.add(start, build.mul(first, step)) for start, step in zip(starts, (a_step, b_step, out_step))
            )
            arguments = [a_order, b_order, rows, columns, k, one, a, a_row, b, b_row, zero, out, out_row]
            return [build.or_(before, call(onednn.library().sgemm, INDEX, arguments))]

        loop = functools.partial(emit.loop, count, block, [ir.Constant(INDEX, 0)])
        (status,) = emit_undisturbed(emit, functools.partial(by_one_thread, loop))
        return build.zext(status, INT)

    def by_one_thread(work: Any) -> Any:
        """Emits the work while OpenMP has one thread, as in onednn.single_threaded."""
        build, gomp, one = emit.builder, onednn.library().gomp, ir.Constant(INDEX, 1)
        threads = call(gomp.omp_get_max_threads, INDEX, [])
        has_others = build.icmp_signed('!=', threads, one)
        with build.if_then(has_others):
            call(gomp.omp_set_num_threads, ir.VoidType(), [one])
        result = work()
        with build.if_then(has_others):
            call(gomp.omp_set_num_threads, ir.VoidType(), [threads])
        return result

    emit.function('blocks', 1, blocks)
    return emit.compiled('blocks')['blocks']
