"""Machine code written from Python: functions over float32 arrays in memory, through LLVM.

An Emitter collects functions; ``compiled`` turns them into machine code. What it offers is what small kernels need:
addresses, vectors of float32, fused multiply-adds, counted loops. All arithmetic is written out in its order, so that
results are the same bits whatever vectors the processor has.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import platform
from collections.abc import Sequence
from typing import Any, Callable, Protocol

from branchynet.cpu import memory
from branchynet.cpu.memory import LINE

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

INT = ir.IntType(64)  # numbers and addresses alike
REAL = ir.FloatType()
DOUBLE = ir.DoubleType()
INDEX = ir.IntType(32)  # of lanes, and C's int
BYTE = ir.IntType(8)
_BOOL = ir.IntType(1)

LANES = 8  # float32 in a vector, where no other number is given
VECTOR = ir.VectorType(REAL, LANES)


class Emitter:
    """Functions under construction, and the constants that they read.

    Attributes:
        builder: llvmlite's IRBuilder of the function that is being written; None between functions.
        constants: the numbers that the functions read.
    """

    def __init__(self) -> None:
        self._module = ir.Module('branchynet')
        self.constants = Constants()
        self._functions: dict[Any, ir.Function] = {}
        self.builder: Any = None

    def function(self, key: Any, parameters: int, write: Callable[..., Any], result: ir.Type = INT) -> ir.Function:
        """The function of a key; ``write(*arguments)`` emits it where it does not exist yet.

        Args:
            key: distinguishes functions; equal keys share one. ``compiled`` finds functions whose key is a string.
            parameters: number of 64-bit integer parameters.
            write: emits the body and returns the result, None for 0.
            result: type of the result.
        """
        if key not in self._functions:
            name = key if isinstance(key, str) else f'kernel{len(self._functions)}'
            function = ir.Function(self._module, ir.FunctionType(result, [INT] * parameters), name)
            self._functions[key] = function
            outer, self.builder = self.builder, ir.IRBuilder(function.append_basic_block())
            value = write(*function.args)
            if not self.builder.block.is_terminated:
                self.builder.ret(integer(0) if value is None else value)
            self.builder = outer
        return self._functions[key]

    def external(self, name: str, result: ir.Type, parameters: Sequence[ir.Type]) -> ir.Function:
        """A function of the C library or an LLVM intrinsic."""
        if name not in self._functions:
            self._functions[name] = ir.Function(self._module, ir.FunctionType(result, parameters), name)
        return self._functions[name]

    # Numbers and memory

    def add(self, address: ir.Value, offset: int) -> ir.Value:
        """Address + offset, bytes."""
        return self.builder.add(address, integer(offset)) if offset else address

    def least(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The smaller of two numbers."""
        return self.builder.select(self.builder.icmp_signed('<', a, b), a, b)

    def at(self, address: ir.Value, index: ir.Value, step: int) -> ir.Value:
        """Address + index * step, bytes."""
        return self.builder.add(address, self.builder.mul(index, integer(step)))

    def load(self, address: ir.Value, kind: ir.Type = VECTOR) -> ir.Value:
        """The value of a type that lies at an address."""
        value = self.builder.load(self.builder.inttoptr(address, kind.as_pointer()))
        value.align = _alignment(kind)
        return value

    def words(self, address: ir.Value, count: int) -> list[ir.Value]:
        """The 64-bit numbers that lie from an address on."""
        return [self.load(self.add(address, 8 * i), INT) for i in range(count)]

    def store(self, value: ir.Value, address: ir.Value) -> None:
        """Writes a value to an address."""
        place = self.builder.inttoptr(address, value.type.as_pointer())
        self.builder.store(value, place, align=_alignment(value.type))

    # Vectors

    def splat(self, value: ir.Value, lanes: int = LANES) -> ir.Value:
        """A vector of one float32."""
        undefined = ir.Constant(vector_type(lanes), ir.Undefined)
        first = self.builder.insert_element(undefined, value, ir.Constant(INDEX, 0))
        return self.pick(first, undefined, [0] * lanes)

    def pick(self, a: ir.Value, b: ir.Value, lanes: Sequence[int]) -> ir.Value:
        """A vector of the named lanes of a and b, whose lanes are counted on from those of a."""
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(INDEX, len(lanes)), list(lanes)))

    def multiply_add(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """The sum of a * b and c, rounded once."""
        name = 'llvm.fma.f32' if a.type == REAL else f'llvm.fma.v{a.type.count}f32'
        return self.builder.call(self.external(name, a.type, [a.type] * 3), [a, b, c])

    def square_root(self, a: ir.Value) -> ir.Value:
        """The square root of a float32, or of each lane of a vector."""
        name = f'llvm.sqrt.v{LANES}f32' if a.type == VECTOR else 'llvm.sqrt.f32'
        return self.builder.call(self.external(name, a.type, [a.type]), [a])

    def power(self, a: ir.Value, exponent: ir.Value) -> ir.Value:
        """Each lane to the power of the exponent's lane."""
        return self.builder.call(self.external(f'llvm.pow.v{LANES}f32', VECTOR, [VECTOR] * 2), [a, exponent])

    def maximum(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The greater number of each lane; NaN where one is NaN."""
        build, bits = self.builder, ir.VectorType(ir.IntType(32), a.type.count)
        greater = build.select(build.fcmp_ordered('>', a, b), a, b)  # b where one is NaN
        is_nan = build.sext(build.fcmp_unordered('uno', a, a), bits)  # all bits set, which as a float32 is NaN
        return build.bitcast(build.or_(build.bitcast(greater, bits), is_nan), a.type)

    def rectified(self, a: ir.Value, slope: float, most: float) -> ir.Value:
        """A float32, or each lane of a vector: negative numbers times slope, others up to ``most``; NaN stays."""
        build = self.builder

        def number(value: float) -> ir.Constant:
            return ir.Constant(REAL, value) if a.type == REAL else vector(value, a.type.count)

        below = build.fmul(a, number(slope)) if slope else number(0.0)
        y = build.select(build.fcmp_ordered('>', number(0.0), a), below, a)
        return y if most == math.inf else build.select(build.fcmp_ordered('>', y, number(most)), number(most), y)

    def first_lanes(self, a: ir.Value, count: int, otherwise: float) -> ir.Value:
        """The vector a, with ``otherwise`` in all lanes from ``count`` on."""
        lanes = a.type.count
        return self.choose([lane < count for lane in range(lanes)], a, vector(otherwise, lanes))

    def choose(self, lanes: Sequence[bool], a: ir.Value, b: ir.Value) -> ir.Value:
        """The vector a in the lanes that are true, and b in the others."""
        if all(lanes):
            return a
        kind = ir.VectorType(_BOOL, len(lanes))
        return self.builder.select(ir.Constant(kind, [int(lane) for lane in lanes]), a, b)

    def sum_of_lanes(self, a: ir.Value) -> ir.Value:
        """A float32: neighbours that lie 4 lanes apart are added first, then 2, then 1."""
        for distance in (4, 2, 1):
            a = self.builder.fadd(a, self.pick(a, a, [(lane + distance) % LANES for lane in range(LANES)]))
        return self.builder.extract_element(a, ir.Constant(INDEX, 0))

    # Control

    def loop(
        self, count: ir.Value | int, body: Callable[..., Any], carried: Sequence[ir.Value] = (), step: int = 1
    ) -> list[ir.Value]:
        """``carried = body(i, *carried)`` for i in range(0, count, step); returns the last.

        Args:
            count: 1 or more; the body runs at least once.
            body: emits what is done for i, and returns the values that the next time gets.
            carried: the first values.
            step: from i to i.
        """
        builder = self.builder
        before, head = builder.block, builder.append_basic_block()
        builder.branch(head)
        builder.position_at_end(head)
        i = builder.phi(INT)
        i.add_incoming(integer(0), before)
        values = [builder.phi(value.type) for value in carried]
        for phi, value in zip(values, carried):
            phi.add_incoming(value, before)
        results = list(body(i, *values) or ())
        following = builder.add(i, integer(step))
        i.add_incoming(following, builder.block)
        for phi, value in zip(values, results):
            phi.add_incoming(value, builder.block)
        after = builder.append_basic_block()
        limit = integer(count) if isinstance(count, int) else count
        builder.cbranch(builder.icmp_signed('<', following, limit), head, after)
        builder.position_at_end(after)
        return results

    def elements(
        self, count: ir.Value, body: Callable[..., Any], carried: Sequence[ir.Value] = ()
    ) -> Sequence[ir.Value]:
        """``carried = body(i, kind, *carried)`` for all i below ``count``; returns the last.

        The kind is VECTOR for LANES elements at once, and REAL for each of those that are left.
        """
        builder = self.builder
        whole = builder.and_(count, INT(-LANES))
        carried = self.loop_if_any(whole, lambda i, *values: body(i, VECTOR, *values), carried, LANES)
        rest = builder.sub(count, whole)
        return self.loop_if_any(rest, lambda i, *values: body(builder.add(whole, i), REAL, *values), carried, 1)

    def loop_if_any(
        self, count: ir.Value, body: Callable[..., Any], carried: Sequence[ir.Value], step: int
    ) -> Sequence[ir.Value]:
        """``loop``, or nothing if the count is 0."""
        builder = self.builder
        before = builder.block
        with builder.if_then(builder.icmp_signed('>', count, INT(0))):
            results = self.loop(count, body, carried, step)
            inside = builder.block
        values = [builder.phi(value.type) for value in carried]
        for phi, value, result in zip(values, carried, results):
            phi.add_incoming(value, before)
            phi.add_incoming(result, inside)
        return values

    def groups(self, count: ir.Value, largest: int, write: Callable[[ir.Value, int], Any]) -> None:
        """Emits ``write(first, number)`` for groups of ``count`` things: ``largest`` in each, then fewer.

        Args:
            count: of all things; may be 0.
            largest: things in a group, a power of 2.
            write: emits the work on a group, given the index of its first thing and how many it has.
        """
        builder = self.builder
        self.loop_if_any(builder.and_(count, INT(-largest)), lambda first: write(first, largest), (), largest)
        number = largest
        while number > 1:
            number //= 2
            with builder.if_then(builder.icmp_signed('!=', builder.and_(count, INT(number)), INT(0))):
                write(builder.and_(count, INT(-2 * number)), number)

    def shared_loop(
        self, counter: ir.Value, count: ir.Value, body: Callable[..., Any], carried: Sequence[ir.Value] = ()
    ) -> list[ir.Value]:
        """``carried = body(i, *carried)`` for every i below ``count`` that no other thread has begun; returns the last.

        Args:
            counter: address of a number that all threads share, 0 at first.
            count: how often the body runs, in all threads together.
            body: emits what is done for i, and returns the values that the next time gets.
            carried: the first values.
        """
        builder = self.builder
        before, head, work, after = builder.block, *(builder.append_basic_block() for _ in range(3))
        builder.branch(head)
        builder.position_at_end(head)
        values = [builder.phi(value.type) for value in carried]
        i = builder.atomic_rmw('add', builder.inttoptr(counter, INT.as_pointer()), integer(1), 'monotonic')
        builder.cbranch(builder.icmp_signed('<', i, count), work, after)
        builder.position_at_end(work)
        results = list(body(i, *values) or ())
        for phi, value, result in zip(values, carried, results):
            phi.add_incoming(value, before)
            phi.add_incoming(result, builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        return values

    def compiled(self, *keys: str) -> dict[str, Function]:
        """The functions of these keys in machine code, which Python calls."""
        code = _code(str(self._module))
        return {key: code.call(key) for key in keys}


class Constants:
    """Arrays to be laid out in one block of memory; an array that is packed twice in the same way is stored once."""

    def __init__(self) -> None:
        self._places: dict[Any, tuple[int, np.ndarray, np.ndarray]] = {}
        self._size = 0

    def offset(self, array: np.ndarray, key: Any, pack: Callable[[np.ndarray], np.ndarray]) -> int:
        """Offset in bytes of ``pack(array)``; ``key`` tells packings apart."""
        place = id(array), key
        if place not in self._places:
            packed = np.ascontiguousarray(pack(array), np.float32)
            self._places[place] = self._size, packed, array  # an array that is kept keeps its id
            self._size += -(-packed.nbytes // LINE) * LINE
        return self._places[place][0]

    def block(self) -> np.ndarray:
        """All of them, float32."""
        block = aligned(self._size // 4)
        for offset, packed, _ in self._places.values():
            block[offset // 4 : offset // 4 + packed.size] = packed.ravel()
        return block


class Function(Protocol):
    """A function in machine code, which takes an address. The GIL is released during a call."""

    address: int

    def __call__(self, argument: int, /) -> int:
        """Calls it, with an address."""


@functools.lru_cache(maxsize=8)
def _code(module: str) -> _Code:
    """The machine code of a module. Nets of one structure share it: their weights are not in it."""
    return _Code(module)


class _Code:
    """Machine code for the processor that it is made on."""

    def __init__(self, module: str) -> None:
        _initialize()
        parsed = llvm.parse_assembly(module)
        parsed.verify()
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
        )
        self._engine = llvm.create_mcjit_compiler(parsed, machine)  # the code lives as long as its engine
        self._engine.finalize_object()

    def call(self, name: str) -> Function:
        """The function of a name."""
        address = self._engine.get_function_address(name)
        function: Any = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(address)
        function.address = address
        function.code = self  # the code lives as long as a function that runs it
        return function


def aligned(count: int) -> np.ndarray:
    """Zeros, float32 (count,), that begin on a cache line; many of them, in huge pages where the system has those."""
    block = memory.unshared(count)
    block[:] = 0
    return block


def has(feature: str) -> bool:
    """Whether this processor has a feature, by LLVM's name."""
    return bool(llvm.get_host_cpu_features().get(feature))


def has_multiply_add() -> bool:
    """Whether this processor has an instruction for ``multiply_add``; else each of them would be a call."""
    return has('fma') or platform.machine() not in ('x86_64', 'AMD64')


@functools.cache
def _initialize() -> None:
    with contextlib.suppress(RuntimeError):  # newer versions of llvmlite do it by themselves, and object
        llvm.initialize()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


def _alignment(kind: ir.Type) -> int:
    """The bytes of which the address of a value is a multiple; a promise of more would let LLVM read beside it."""
    return {INT: 8, DOUBLE: 8, REAL: 4, INDEX: 4}.get(kind, 4 if isinstance(kind, ir.VectorType) else 1)


def integer(value: int) -> ir.Constant:
    """A constant number."""
    return ir.Constant(INT, value)


def vector_type(lanes: int) -> ir.Type:
    """The type of vectors of float32."""
    return ir.VectorType(REAL, lanes)


def vector(value: float, lanes: int = LANES) -> ir.Constant:
    """A constant vector of one value."""
    return ir.Constant(vector_type(lanes), [value] * lanes)


def constant(value: float, kind: ir.Type) -> ir.Constant:
    """A constant of a type: REAL, or VECTOR, whose lanes all have the value."""
    return vector(value) if kind == VECTOR else ir.Constant(kind, value)
