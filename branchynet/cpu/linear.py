"""Linear layers, by oneDNN: x (B, I), w (O, I), gy (B, O)."""
from branchynet import _chainer  # noqa: F401
import chainer
import numpy as np

from branchynet.cpu import onednn
from branchynet.cpu.layout import plain, run_primitives, takes
from branchynet.cpu.threads import blocks


class Linear:

    def forward(self, inputs, stock):
        x, w, b = inputs if len(inputs) == 3 else (*inputs, None)
        if not (takes(x, w, b) and x.shape[1] == w.shape[1]):
            return stock(self, inputs)
        self._config_use_ideep = chainer.config.use_ideep
        self.retain_inputs((0, 1))
        return linear(*plain(x, w, b)),


class LinearGradientOfX:

    def forward(self, inputs, stock):
        if not takes(*inputs):
            return stock(self, inputs)
        self._config_use_ideep = chainer.config.use_ideep
        self.retain_inputs((0, 1))
        return linear_gx(*plain(*inputs)),


class LinearGradientOfW:

    def forward(self, inputs, stock):
        if not (takes(*inputs) and self._w_dtype == np.float32):
            return stock(self, inputs)
        self._config_use_ideep = chainer.config.use_ideep
        self.retain_inputs((0, 1))
        return linear_gw(*plain(*inputs)),


_ROWS, _COLUMNS = 64, 256  # of a block of a matrix product


def linear(x, w, b):
    """x w' + b; b may be None."""
    y = np.empty((len(x), len(w)), np.float32)
    parts = blocks(len(x), 1, _ROWS)

    def task(i):
        onednn.matmul(x[parts[i]], w, y[parts[i]], transpose_b=True)
        if b is not None:
            y[parts[i]] += b

    run_primitives(task, len(parts))
    return y


def linear_gx(w, gy):
    """Gradient of x."""
    gx = np.empty((len(gy), w.shape[1]), np.float32)
    parts = blocks(len(gy), 1, _ROWS)
    run_primitives(lambda i: onednn.matmul(gy[parts[i]], w, gx[parts[i]]), len(parts))
    return gx


def linear_gw(x, gy):
    """Gradient of w."""
    gw = np.empty((gy.shape[1], x.shape[1]), np.float32)
    parts = blocks(x.shape[1], 1, _COLUMNS)
    run_primitives(lambda i: onednn.matmul(gy, x[:, parts[i]], gw[:, parts[i]], transpose_a=True), len(parts))
    return gw
