"""Adam (Kingma, Ba, 2014), in blocks that threads share: in machine code, or without llvmlite by NumPy."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional

from branchynet.cpu.layout import plain, takes
from branchynet.cpu.memory import address
from branchynet.cpu.team import call_frames, run_frames
from branchynet.cpu.threads import blocks, run, scratch

import chainer
import numpy as np
from chainer.optimizers.adam import AdamRule

if TYPE_CHECKING:
    from branchynet.cpu.emitter import Function

_ELEMENTS = 1 << 18  # of a block


class Optimizer:
    """Adam's method."""

    def update(self: Any, *args: Any, stock: Callable, **kwargs: Any) -> None:
        """The method of this name, for plain Adam: no hooks, no loss scaling, no rule that was changed.

        Chainer goes from rule to rule, which takes longer than to update a small parameter.
        """
        params = list(self.target.params())
        if args or kwargs or _machine_code() is None or not _is_plain(self, params):
            stock(self, *args, **kwargs)
            return
        for param in params:  # missing gradients become zeros, as Chainer makes them
            if type(param.array) is np.ndarray and param.grad is None:
                param.grad = np.zeros_like(param.array)
        parameters = [_arrays_of(param) for param in params]
        places = [_places(arrays) for arrays in parameters] if all(_fit(*arrays) for arrays in parameters) else []
        if not places or not _are_apart(places):
            stock(self, *args, **kwargs)
            return
        self.t += 1
        for param in params:
            param.update_rule.t += 1
        _run(places, _numbers(params[0].update_rule.alpha_t, self.hyperparam))


def _is_plain(optimizer: Any, params: Sequence[Any]) -> bool:
    """Whether Chainer would do with all parameters, at once, as the machine code does, if it takes their arrays."""
    hp = optimizer.hyperparam
    if not params or _is_special(hp) or optimizer._loss_scale is not None or _has_hooks(optimizer):
        return False
    if not all(type(param) is chainer.Parameter and param.layout is None for param in params):
        return False
    rules = [param.update_rule for param in params]
    return all(_is_ordinary(rule, rules[0], hp) for rule in rules) and all(p._loss_scale is None for p in params)


def _is_special(hp: Any) -> bool:
    """Whether the numbers are not those of plain Adam, raise NumPy's precision, or are too small for float32."""
    are_plain = all(type(number) in (float, int) for number in (hp.alpha, hp.beta1, hp.beta2, hp.eps, hp.eta))
    return bool(hp.amsgrad or hp.adabound or hp.weight_decay_rate or not are_plain or not np.float32(hp.eps))


def _has_hooks(owner: Any) -> bool:
    hooks = owner._hookable
    return hooks is not None and bool(hooks._pre_update_hooks or hooks._post_update_hooks)


def _is_ordinary(rule: Any, first: Any, hp: Any) -> bool:
    """Whether a rule is as the optimizer made it, and at the same step as the first one."""
    return (
        type(rule) is AdamRule
        and rule.enabled
        and rule.t == first.t
        and rule.state is not None
        and vars(rule.hyperparam) == {'_parent': hp}
        and not rule._use_fp32_update
        and not _has_hooks(rule)
    )


def _arrays_of(param: Any) -> list[Any]:
    """w, grad, m and v."""
    state = param.update_rule.state
    return [param.array, param.grad, state['m'], state['v']]


def _fit(w: Any, grad: Any, m: Any, v: Any) -> bool:
    """Whether the kernels take these arrays."""
    arrays = w, grad, m, v
    return (
        all(type(array) is np.ndarray and array.shape == w.shape and array.flags.c_contiguous for array in arrays)
        and takes(*arrays)
        and all(array.flags.writeable for array in (w, m, v))
    )


class _Places(NamedTuple):
    """Where a parameter's arrays lie: the addresses of w, grad, m and v, and the number of elements of each."""

    starts: list[int]
    size: int


def _places(arrays: Sequence[np.ndarray]) -> _Places:
    return _Places([address(array) for array in arrays], arrays[0].size)


def _are_apart(places: Sequence[_Places]) -> bool:
    """Whether no two arrays share memory: parameters that do are updated one after the other."""
    ends = sorted((start, start + 4 * size) for starts, size in places for start in starts)
    return all(end <= start for (_, end), (start, _) in zip(ends, ends[1:]))


class Rule:
    """AdamRule's method."""

    def update_core_cpu(self: Any, param: Any, stock: Callable) -> None:
        """The method of this name, for arrays that the kernels take."""
        hp = self.hyperparam
        # A parameter that has no size yet has no gradient and no state either.
        if param.grad is None or hp.amsgrad or hp.adabound or hp.weight_decay_rate:
            stock(self, param)
            return
        (grad,) = plain(param.grad)
        w, m, v = param.array, self.state['m'], self.state['v']
        if not _fit(w, grad, m, v):
            stock(self, param)
            return
        self._check_eps(np.float32)
        adam(w, grad, m, v, self.alpha_t, hp)


def adam(w: np.ndarray, grad: np.ndarray, m: np.ndarray, v: np.ndarray, alpha_t: float, hyperparam: Any) -> None:
    """Updates w, m and v as Chainer does, number by number, in its order of operations.

    Args:
        w: the parameter; float32 and C-contiguous, as all arrays, and of the same size.
        grad: its gradient.
        m: the first moment.
        v: the second moment.
        alpha_t: the step, corrected for the moments' start at zero.
        hyperparam: of Chainer's rule: beta1, beta2, eps, eta.
    """
    numbers = _numbers(alpha_t, hyperparam)
    if _machine_code() is None or not all(type(number) in (float, int) for number in numbers):
        # NumPy's own numbers raise the precision.
        arrays, parts = [array.reshape(-1) for array in (w, grad, m, v)], blocks(w.size, 1, _ELEMENTS)
        run(lambda i: _update([array[parts[i]] for array in arrays], numbers), len(parts))
        return
    _run([_places((w, grad, m, v))], numbers)


def _numbers(alpha_t: float, hyperparam: Any) -> tuple:
    """The numbers that both ways take, as those of the rule are given."""
    return alpha_t, 1 - hyperparam.beta1, 1 - hyperparam.beta2, hyperparam.eps, -hyperparam.eta


def _run(places: Sequence[_Places], numbers: tuple) -> None:
    """Updates parameters in machine code, by the numbers of `_numbers`."""
    code, rounded = _machine_code(), np.array(numbers, np.float32)
    assert code is not None
    first = address(rounded)
    frames = [
        (*(start + 4 * part.start for start in starts), part.stop - part.start, first)
        for starts, size in places
        for part in blocks(size, 1, _ELEMENTS)
    ]
    is_little = sum(size for _, size in places) <= _ELEMENTS
    (call_frames if is_little else run_frames)(code, frames)


def _update(arrays: Sequence[np.ndarray], numbers: Sequence[float]) -> None:
    """Updates a block by NumPy; arrays and numbers are those of `adam`."""
    w, grad, m, v = arrays
    alpha_t, rest1, rest2, eps, minus_eta = numbers
    d = scratch('difference', grad.shape)
    np.subtract(grad, m, out=d)
    d *= rest1
    m += d
    np.multiply(grad, grad, out=d)
    d -= v
    d *= rest2
    v += d
    np.sqrt(v, out=d)
    d += eps
    np.divide(alpha_t, d, out=d)
    d *= m
    d *= minus_eta
    w += d


@functools.cache
def _machine_code() -> Optional[Function]:
    """`_update` in machine code; None without llvmlite.

    It takes the address of 64-bit numbers: the addresses of w, grad, m and v, their size, and the address of the five
    numbers, as float32.
    """
    try:
        from branchynet.cpu.emitter import REAL, VECTOR, Emitter
    except ImportError:
        return None
    emit = Emitter()

    def block(frame: Any) -> None:
        build = emit.builder
        *starts, count, numbers = emit.words(frame, 6)
        scalars = [emit.load(emit.add(numbers, 4 * i), REAL) for i in range(5)]
        constants = {REAL: scalars, VECTOR: [emit.splat(scalar) for scalar in scalars]}

        def update(i: Any, kind: Any) -> None:
            alpha_t, rest1, rest2, eps, minus_eta = constants[kind]
            places = [emit.at(start, i, 4) for start in starts]
            w, grad, m, v = (emit.load(place, kind) for place in places)
            m = build.fadd(m, build.fmul(build.fsub(grad, m), rest1))
            v = build.fadd(v, build.fmul(build.fsub(build.fmul(grad, grad), v), rest2))
            step = build.fdiv(alpha_t, build.fadd(emit.square_root(v), eps))
            w = build.fadd(w, build.fmul(build.fmul(step, m), minus_eta))
            for value, place in zip((w, m, v), (places[0], places[2], places[3])):
                emit.store(value, place)

        emit.elements(count, update)

    emit.function('adam', 1, block)
    return emit.compiled('adam')['adam']
