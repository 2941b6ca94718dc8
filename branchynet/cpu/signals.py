"""Signals wait while oneDNN multiplies matrices.

Its generated code for matrix products points the stack pointer at other memory; a signal's frame would be written over
what lies there (oneDNN issue 4845; no released wheel has the version that mends it). Python's own handlers
lose nothing: they run when the call of machine code has ended.
"""

from __future__ import annotations

import ctypes
import functools
import signal
from typing import TYPE_CHECKING, Any, Callable

if TYPE_CHECKING:
    from branchynet.cpu.emitter import Emitter

_Set = ctypes.c_uint64 * 16  # sigset_t
_OF_INSTRUCTIONS = 'SIGBUS', 'SIGFPE', 'SIGILL', 'SIGSEGV', 'SIGTRAP'  # they cannot wait


def undisturbed(function: Callable, *arguments: Any) -> Any:
    """Calls a function while signals wait."""
    change = libc().pthread_sigmask
    before = _Set()
    change(signal.SIG_BLOCK, None, before)
    try:
        change(signal.SIG_BLOCK, _all(), None)
        return function(*arguments)
    finally:
        change(signal.SIG_SETMASK, before, None)


def emit_undisturbed(emit: Emitter, work: Callable[[], Any]) -> Any:
    """Emits ``work()`` as machine code during which signals wait; returns what it returns."""
    from branchynet.cpu.emitter import INDEX, INT, integer, ir

    build = emit.builder
    change = emit.external('pthread_sigmask', INDEX, [INDEX, INT, INT])
    before = build.ptrtoint(build.alloca(ir.ArrayType(INT, len(_Set()))), INT)
    build.call(change, [ir.Constant(INDEX, int(signal.SIG_BLOCK)), integer(ctypes.addressof(_all())), before])
    result = work()
    build.call(change, [ir.Constant(INDEX, int(signal.SIG_SETMASK)), before, integer(0)])
    return result


@functools.cache
def _all() -> ctypes.Array:
    """The signals that can wait."""
    found = _Set()
    libc().sigfillset(found)
    for name in _OF_INSTRUCTIONS:
        libc().sigdelset(found, getattr(signal, name))
    return found


@functools.cache
def libc() -> ctypes.CDLL:
    """The C library of this process."""
    return ctypes.CDLL(None)
