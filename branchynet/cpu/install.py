"""Puts the fast kernels in the place of Chainer's functions, for those who ask for them.

The kernels are in place after ``enable()``, and as long as any thread is inside ``fast()``; blocks are counted under a
lock. Chainer's own methods are kept for ever, and are back when nobody asks for the kernels any more.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import types
import warnings
from typing import Any, Callable, Optional

from branchynet import _chainer
from branchynet.cpu import (
    adam,
    convolution,
    elementwise,
    linear,
    local_response,
    memory,
    normalization,
    onednn,
    pooling,
)
from branchynet.cpu.threads import release_scratch

import chainer
from chainer.functions.activation.relu import ReLU, ReLUGrad2
from chainer.functions.connection.convolution_2d import Convolution2DFunction
from chainer.functions.connection.linear import LinearFunction, LinearGradData, LinearGradWeight
from chainer.functions.math.basic_math import Add
from chainer.functions.normalization import batch_normalization
from chainer.functions.normalization.batch_normalization import GeneralBatchNormalizationImpl
from chainer.functions.normalization.local_response_normalization import (
    LocalResponseNormalization,
    LocalResponseNormalizationGrad,
)
from chainer.functions.pooling.average_pooling_2d import AveragePooling2D, AveragePooling2DGrad
from chainer.functions.pooling.max_pooling_nd import MaxPoolingND, MaxPoolingNDGrad
from chainer.optimizers.adam import Adam, AdamRule

# The class or module that has a function, and the kernels' functions of the same names. Each takes the arguments of
# the one that it replaces and, as ``stock``, that one itself, for the calls that it does not cover.
_NUMPY = {
    Add: elementwise.Add,
    Adam: adam.Optimizer,
    AdamRule: adam.Rule,
    LocalResponseNormalization: local_response.LocalResponse,
    LocalResponseNormalizationGrad: local_response.LocalResponseGradient,
    ReLU: elementwise.ReLU,
    ReLUGrad2: elementwise.ReLUGradient,
}
_ONEDNN = {
    batch_normalization: types.SimpleNamespace(_apply_bn_fwd=normalization.apply_bn_fwd),
    AveragePooling2D: pooling.AveragePooling,
    AveragePooling2DGrad: pooling.AveragePoolingGradient,
    Convolution2DFunction: convolution.Convolution,
    GeneralBatchNormalizationImpl: normalization.BatchNormalization,
    MaxPoolingND: pooling.MaxPooling,
    MaxPoolingNDGrad: pooling.MaxPoolingGradient,
    LinearFunction: linear.Linear,
    LinearGradData: linear.LinearGradientOfX,
    LinearGradWeight: linear.LinearGradientOfW,
}


_INHERITED = {(Adam, 'update')}  # are not the owner's own: the way back is to take the kernel away


class _Thread(threading.local):
    """The calling thread's innermost ``fast()`` that still holds, or None."""

    block: Optional[Block] = None


_thread = _Thread()
_lock = threading.RLock()  # a signal's handler may come while it is held
_enabled = False
_blocks: set[Block] = set()  # of all threads
_kernels: dict[tuple[Any, str], Callable] = {}  # by class or module and name; filled when first needed
_stock: dict[tuple[Any, str], Callable] = {}  # the methods that kernels replace, or replaced last; never emptied
_in_place = False


def enable() -> None:
    """Puts the kernels in place."""
    _change(stacklevel=5, enabled=True)


def disable() -> None:
    """Undoes ``enable()`` and ends this thread's ``fast()``; where other threads' blocks hold, the kernels stay.

    The memory that the kernels keep for their next calls, after ``fast()`` too, goes back to the system.
    """
    block, _thread.block = _thread.block, None
    while block is not None:
        _blocks.discard(block)
        block = block.outer
    _change(enabled=False)
    memory.release()
    release_scratch()


class Block(contextlib.ContextDecorator):
    """Keeps the kernels in place from entering to leaving.

    Attributes:
        outer: the block around it that held when it was entered, or None.
    """

    outer: Optional[Block] = None

    def _recreate_cm(self) -> Block:
        # As a decorator: a block of its own for every call, which may be in another thread.
        return Block()

    def __enter__(self) -> None:
        if self in _blocks:
            raise RuntimeError('this cpu.fast() is in use already: write "with cpu.fast():" for each block')
        self.outer = _thread.block
        _thread.block = self
        _blocks.add(self)
        try:
            _change(stacklevel=4)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *error: Any) -> None:
        _thread.block = self.outer if self.outer in _blocks else None
        _blocks.discard(self)
        _change()


def are_in_place() -> bool:
    """Whether the kernels are in place now."""
    return _in_place


def are_onednns_in_place() -> bool:
    """Whether the kernels are in place now, and those of oneDNN among them."""
    return _in_place and (Convolution2DFunction, 'forward_cpu') in _kernels


def _change(stacklevel: int = 0, enabled: Optional[bool] = None) -> None:
    """Puts the kernels in place or takes them away, by what is asked for now.

    Args:
        stacklevel: of the caller's line, for the warning that oneDNN is missing.
        enabled: whether ``enable()`` holds; None: as before.
    """
    global _enabled, _in_place
    with _lock:
        wanted = (_enabled if enabled is None else enabled) or bool(_blocks)
        if wanted and not _kernels:
            _kernels.update(_make_kernels(stacklevel))
            _chainer.set_method(MaxPoolingND, '__getattr__', pooling.indexes_on_demand)
        if enabled is not None:  # only now: the warning of _make_kernels may be an error
            _enabled = enabled
        if wanted != _in_place:
            _in_place = wanted
            _switch(wanted)
            while _in_place != wanted:  # a signal's handler came meanwhile and switched them back
                wanted = _in_place
                _switch(wanted)


def _switch(on: bool) -> None:
    """Puts kernels in place that are not there, or takes away those that are."""
    for key, kernel in _kernels.items():
        owner, name = key
        if on == (vars(owner).get(name) is kernel):
            continue
        if on:
            _stock[key] = getattr(owner, name)
            _chainer.set_method(owner, name, kernel)
        elif key in _INHERITED:
            delattr(owner, name)
        else:
            _chainer.set_method(owner, name, _stock[key])


def _make_kernels(stacklevel: int) -> dict[tuple[Any, str], Callable]:
    """The methods that take Chainer's place; without oneDNN, with a warning, those that need none."""
    replacements: dict[Any, Any] = dict(_NUMPY)
    try:
        onednn.library()
        replacements.update(_ONEDNN)
    except (OSError, ImportError) as e:
        warnings.warn(
            f'{onednn.obstacle(e)}. Without it, convolution, pooling, batch normalization and linear layers run as '
            "Chainer's own code",
            stacklevel=stacklevel,
        )
    return {
        (owner, name): _method(owner, name, kernel)
        for owner, kernels in replacements.items()
        for name, kernel in vars(kernels).items()
        if not name.startswith('__')
    }


def _method(owner: Any, name: str, kernel: Callable) -> Callable:
    """The method that calls the kernel, where Chainer's own is not needed."""
    key = owner, name
    if isinstance(owner, types.ModuleType):

        @functools.wraps(getattr(owner, name))
        def method(*args: Any, **kwargs: Any) -> Any:
            return kernel(*args, **kwargs, stock=_stock[key])
    else:

        @functools.wraps(getattr(owner, name))
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            # A subclass may have changed what this method builds on; chainer.static_graph records calls of Chainer's.
            # A user's own keyword of the name that kernels take goes to Chainer.
            if type(self) is owner and chainer.config.schedule_func is None and 'stock' not in kwargs:
                return kernel(self, *args, **kwargs, stock=_stock[key])
            return _stock[key](self, *args, **kwargs)

    return method


def _after_fork() -> None:
    # A forked child has none of its parent's other threads: what they asked for or were about to change is gone.
    global _lock, _blocks
    _lock = threading.RLock()
    own, block = set(), _thread.block
    while block is not None:
        own.add(block)
        block = block.outer
    _blocks = own & _blocks
    _change(stacklevel=2)


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(  # not while another thread is putting kernels in place
        before=lambda: _lock.acquire(), after_in_parent=lambda: _lock.release(), after_in_child=_after_fork
    )
