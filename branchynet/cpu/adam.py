"""Adam (Kingma, Ba, 2014), in blocks that threads share: in machine code, or without llvmlite by NumPy."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Callable, Optional

from branchynet.cpu.layout import plain, run_frames, takes
from branchynet.cpu.threads import blocks, run, scratch

import numpy as np

_ELEMENTS = 1 << 18  # of a block


class Adam:
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
    parts, code = blocks(w.size, 1, _ELEMENTS), _machine_code()
    numbers = alpha_t, 1 - hyperparam.beta1, 1 - hyperparam.beta2, hyperparam.eps, -hyperparam.eta
    if code is None or not all(type(number) in (float, int) for number in numbers):  # NumPy's own raise the precision
        arrays = [array.reshape(-1) for array in (w, grad, m, v)]
        run(lambda i: _update([array[parts[i]] for array in arrays], numbers), len(parts))
        return
    rounded, starts = _rounded(numbers), [array.ctypes.data for array in (w, grad, m, v)]
    run_frames(
        code,
        [
            [*(start + 4 * part.start for start in starts), part.stop - part.start, rounded.ctypes.data]
            for part in parts
        ],
    )


@functools.lru_cache(maxsize=16)
def _rounded(numbers: tuple) -> np.ndarray:
    """The numbers, which are the same for many parameters, as float32."""
    return np.array(numbers, np.float32)


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
