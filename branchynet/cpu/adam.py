"""Adam (Kingma, Ba, 2014), in blocks that threads share: in machine code, or without llvmlite by NumPy."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Callable, Optional

from branchynet import _chainer  # noqa: F401
from branchynet.cpu.layout import plain, run_frames, takes
from branchynet.cpu.threads import blocks, run, scratch

import numpy as np
from chainer.optimizers.adam import AdamRule

_ELEMENTS = 1 << 18  # of a block


class Optimizer:
    """Adam's method."""

    def update(self: Any, *args: Any, stock: Callable, **kwargs: Any) -> None:
        """The method of this name, for gradients that are there and rules that nobody looks at.

        Chainer goes from rule to rule, which takes longer than to update a small parameter.
        """
        frames = _frames_of(self) if not (args or kwargs) else None
        if frames is None:
            stock(self, *args, **kwargs)
            return
        code = _machine_code()
        assert code is not None
        self.t += 1
        run_frames(code, frames)


def _frames_of(optimizer: Any) -> Optional[list[list[int]]]:
    """Frames of machine code for all parameters, whose rules count the step; None where Chainer's own way is needed."""
    params, hp = list(optimizer.target.params()), optimizer.hyperparam
    if _machine_code() is None or _is_special(hp) or optimizer._loss_scale is not None or _has_hooks(optimizer):
        return None
    if not 0 < len(params) == len(set(map(id, params))):  # one that is there twice is updated twice
        return None
    for param in params:
        if type(param.array) is np.ndarray and param.grad is None:  # nothing depends on it: it moves on, as in Chainer
            param.grad = np.zeros_like(param.array)
    if not all(_is_ordinary(param, params[0].update_rule, hp) for param in params):
        return None
    for param in params:
        param.update_rule.t += 1
    numbers, frames = _numbers(params[0].update_rule.alpha_t, hp), []
    for param in params:
        state = param.update_rule.state
        frames += _frames([param.array, param.grad, state['m'], state['v']], numbers)
    return frames


def _is_special(hp: Any) -> bool:
    """Whether the rule is another than Adam's, or its numbers raise NumPy's precision."""
    are_plain = all(type(number) in (float, int) for number in (hp.alpha, hp.beta1, hp.beta2, hp.eps, hp.eta))
    return bool(hp.amsgrad or hp.adabound or hp.weight_decay_rate or not are_plain or not np.float32(hp.eps))


def _has_hooks(owner: Any) -> bool:
    hooks = owner._hookable
    return hooks is not None and bool(hooks._pre_update_hooks or hooks._post_update_hooks)


def _is_ordinary(param: Any, first: Any, hp: Any) -> bool:
    """Whether Chainer would do with a parameter as the machine code does, at the same step as with the first one's."""
    rule = param.update_rule
    return (
        type(rule) is AdamRule
        and rule.enabled
        and rule.t == first.t
        and rule.state is not None
        and vars(rule.hyperparam) == {'_parent': hp}
        and not rule._use_fp32_update
        and param._loss_scale is None
        and param.layout is None
        and not _has_hooks(rule)
        and _are_plain(param.array, param.grad, rule.state['m'], rule.state['v'])
    )


def _are_plain(*arrays: Any) -> bool:
    return all(a is not None for a in arrays) and takes(*arrays) and all(a.flags.c_contiguous for a in arrays)


class Rule:
    """AdamRule's method."""

    def update_core_cpu(self: Any, param: Any, stock: Callable) -> None:
        """The method of this name, for arrays that the kernels take."""
        hp = self.hyperparam
        # A parameter that has no size yet has no gradient and no state either.
        if param.grad is None or hp.amsgrad or hp.adabound or hp.weight_decay_rate:
            stock(self, param)
            return
        changed = w, m, v = param.array, self.state['m'], self.state['v']
        if not (takes(param.grad, *changed) and all(a.flags.c_contiguous for a in changed)):
            stock(self, param)
            return
        self._check_eps(np.float32)
        (grad,) = plain(param.grad)
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
    code, numbers = _machine_code(), _numbers(alpha_t, hyperparam)
    if code is None or not all(type(number) in (float, int) for number in numbers):  # NumPy's own raise the precision
        arrays, parts = [array.reshape(-1) for array in (w, grad, m, v)], blocks(w.size, 1, _ELEMENTS)
        run(lambda i: _update([array[parts[i]] for array in arrays], numbers), len(parts))
        return
    run_frames(code, _frames([w, grad, m, v], numbers))


def _numbers(alpha_t: float, hyperparam: Any) -> tuple:
    """The numbers that both ways take, as those of the rule are given."""
    return alpha_t, 1 - hyperparam.beta1, 1 - hyperparam.beta2, hyperparam.eps, -hyperparam.eta


def _frames(arrays: Sequence[np.ndarray], numbers: tuple) -> list[list[int]]:
    """Frames for blocks of w, grad, m and v, which are C-contiguous."""
    starts, at = [array.ctypes.data for array in arrays], _rounded(numbers)[1]
    return [
        [*(start + 4 * part.start for start in starts), part.stop - part.start, at]
        for part in blocks(arrays[0].size, 1, _ELEMENTS)
    ]


@functools.lru_cache(maxsize=16)
def _rounded(numbers: tuple) -> tuple[np.ndarray, int]:
    """The numbers, which are the same for many parameters, as float32, and their address."""
    rounded = np.array(numbers, np.float32)
    return rounded, rounded.ctypes.data


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
def _machine_code() -> Optional[Callable[[int], int]]:
    """The same in machine code; None without llvmlite.

    It takes the address of a frame of 64-bit numbers: the addresses of w, grad, m and v, their size, and the address of
    the five numbers, as float32.
    """
    try:
        from branchynet.cpu.emitter import INT, LANES, REAL, VECTOR, Code, Emitter
    except ImportError:
        return None
    emit = Emitter()

    def write(frame: Any) -> None:
        build = emit.builder
        *starts, count, numbers = (emit.load(emit.add(frame, 8 * i), INT) for i in range(6))
        scalars = [emit.load(emit.add(numbers, 4 * i), REAL) for i in range(5)]
        constants = {REAL: scalars, VECTOR: [emit.splat(scalar) for scalar in scalars]}
        roots = {
            kind: emit.external(name, kind, [kind])
            for kind, name in ((REAL, 'llvm.sqrt.f32'), (VECTOR, f'llvm.sqrt.v{LANES}f32'))
        }

        def update(i: Any, kind: Any) -> None:
            alpha_t, rest1, rest2, eps, minus_eta = constants[kind]
            places = [emit.at(start, i, 4) for start in starts]
            w, grad, m, v = (emit.load(place, kind) for place in places)
            m = build.fadd(m, build.fmul(build.fsub(grad, m), rest1))
            v = build.fadd(v, build.fmul(build.fsub(build.fmul(grad, grad), v), rest2))
            step = build.fdiv(alpha_t, build.fadd(build.call(roots[kind], [v]), eps))
            w = build.fadd(w, build.fmul(build.fmul(step, m), minus_eta))
            for value, place in zip((w, m, v), (places[0], places[2], places[3])):
                emit.store(value, place)

        emit.elements(count, update)

    emit.function('adam', 1, write, name='adam')
    return Code(emit.module()).call('adam')
