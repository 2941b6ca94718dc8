"""Adam (Kingma, Ba, 2014), by NumPy in blocks that threads share."""

from __future__ import annotations

from typing import Any, Callable

from branchynet.cpu.layout import plain, takes
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
    w, grad, m, v = (a.reshape(-1) for a in (w, grad, m, v))
    parts = blocks(w.size, 1, _ELEMENTS)

    def task(i: int) -> None:
        part = parts[i]
        d = scratch('difference', grad[part].shape)
        np.subtract(grad[part], m[part], out=d)
        d *= 1 - hyperparam.beta1
        m[part] += d
        np.multiply(grad[part], grad[part], out=d)
        d -= v[part]
        d *= 1 - hyperparam.beta2
        v[part] += d
        np.sqrt(v[part], out=d)
        d += hyperparam.eps
        np.divide(alpha_t, d, out=d)
        d *= m[part]
        d *= -hyperparam.eta
        w[part] += d

    run(task, len(parts))
