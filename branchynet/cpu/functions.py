"""Chainer's functions on the fast kernels: which calls they take, and how they are put in place."""
import types
import warnings

from branchynet import _chainer
import chainer
from chainer.functions.activation.relu import ReLU, ReLUGrad2
from chainer.functions.connection.convolution_2d import Convolution2DFunction
from chainer.functions.connection.linear import LinearFunction, LinearGradData, LinearGradWeight
from chainer.functions.math.basic_math import Add
from chainer.functions.normalization import batch_normalization
from chainer.functions.normalization.batch_normalization import GeneralBatchNormalizationImpl
from chainer.functions.normalization.local_response_normalization import (
    LocalResponseNormalization, LocalResponseNormalizationGrad)
from chainer.functions.pooling.average_pooling_2d import AveragePooling2D, AveragePooling2DGrad
from chainer.functions.pooling.max_pooling_nd import MaxPoolingND, MaxPoolingNDGrad
from chainer.optimizers.adam import AdamRule
from chainer.utils.conv import get_conv_outsize
import numpy as np

from branchynet.cpu import kernels, onednn

_LARGEST_WINDOW = 255  # of a pooling: its indexes are uint8


def _takes(*arrays):
    """Whether the kernels take these arrays: float32, on the CPU, with something in them."""
    return all(type(a) is np.ndarray and a.dtype == np.float32 and a.size for a in arrays if a is not None)


def _dense(*arrays):
    """The arrays without gaps: as they are where their channels lie last, else C-contiguous."""
    return [a if a is None or kernels.is_channels_last(a) else np.asarray(a, order='C') for a in arrays]


def _plain(*arrays):
    """The arrays, C-contiguous."""
    return [a if a is None else np.asarray(a, order='C') for a in arrays]  # ascontiguousarray has no 0 dimensions


def _variables(arrays):
    return tuple(chainer.Variable(a) for a in arrays)


class _Convolution:
    """Convolution2DFunction's methods."""

    def forward_cpu(self, inputs):
        x, w, b = inputs if len(inputs) == 3 else (*inputs, None)
        if not (_takes(x, w, b) and _is_simple_convolution(self) and _fits(self, x, w, b)):
            return _stock(Convolution2DFunction, 'forward_cpu')(self, inputs)
        self._check_input_layouts_all_standard()
        y_shape = (len(x), len(w)) + self._get_out_size(x.shape, w.shape)
        self.retain_inputs((0, 1))
        x, = _dense(x)
        w, b = _plain(w, b)
        return kernels.convolution(x, w, b, y_shape, (self.sy, self.sx), (self.ph, self.pw)),

    def backward(self, indexes, grad_outputs):
        x, w = (v.array for v in self.get_retained_inputs())
        gy = grad_outputs[0].array
        # With a graph of the gradients asked for, Chainer's own backward makes it.
        if chainer.config.enable_backprop or not (_takes(x, w, gy) and _is_simple_convolution(self)):
            return _stock(Convolution2DFunction, 'backward')(self, indexes, grad_outputs)
        x, gy = _dense(x, gy)
        w, = _plain(w)
        gradients = kernels.convolution_gradients(
            x, w, gy, (self.sy, self.sx), (self.ph, self.pw), of_x=0 in indexes, of_w=1 in indexes or 2 in indexes)
        return _variables(gradients[i] for i in indexes)


def _is_simple_convolution(function):
    return ((function.groups, function.dy, function.dx, function.cover_all, function.cudnn_fast)
            == (1, 1, 1, False, False) and min(function.sy, function.sx) > 0 and min(function.ph, function.pw) >= 0)


def _fits(function, x, w, b):
    """Whether the shapes are those of a convolution; where not, Chainer says so."""
    return x.shape[1] == w.shape[1] and (b is None or b.shape == w.shape[:1]) and all(
        get_conv_outsize(size, k, s, p) > 0 for size, k, s, p in zip(
            x.shape[2:], w.shape[2:], (function.sy, function.sx), (function.ph, function.pw)))


class _MaxPooling:
    """MaxPoolingND's method; the indexes are Chainer's, so that its gradients of gradients work on them."""

    def forward_cpu(self, inputs):
        x, = inputs
        if not (_takes(x) and self.ndim == 2 and np.prod(self.ksize) <= _LARGEST_WINDOW):
            return _stock(MaxPoolingND, 'forward_cpu')(self, inputs)
        y_shape = x.shape[:2] + tuple(
            get_conv_outsize(size, k, s, p, self.cover_all)
            for size, k, s, p in zip(x.shape[2:], self.ksize, self.stride, self.pad))
        geometry = self.ksize, self.stride, self.pad
        if min(y_shape) <= 0 or not kernels.covers(x.shape, y_shape, *geometry):
            return _stock(MaxPoolingND, 'forward_cpu')(self, inputs)
        self._in_shape, self._in_dtype = x.shape, x.dtype
        x, = _dense(x)
        y, self.indexes = kernels.max_pooling(x, y_shape, *geometry)
        if self.indexes is None:
            return _stock(MaxPoolingND, 'forward_cpu')(self, inputs)
        return y,


class _MaxPoolingGradient:
    """MaxPoolingNDGrad's method."""

    def forward_cpu(self, inputs):
        gy, = inputs
        function = self.func
        if not (_takes(gy) and function.ndim == 2 and function.indexes.dtype == np.uint8):
            return _stock(MaxPoolingNDGrad, 'forward_cpu')(self, inputs)
        gy, = _dense(gy)
        return kernels.max_pooling_gx(
            gy, function.indexes, function.ksize, function.stride, function.pad, function._in_shape),


class _AveragePooling:
    """AveragePooling2D's method."""

    def forward_cpu(self, inputs):
        x, = inputs
        if not _takes(x):
            return _stock(AveragePooling2D, 'forward_cpu')(self, inputs)
        y_shape = x.shape[:2] + tuple(
            get_conv_outsize(size, k, s, p)
            for size, k, s, p in zip(x.shape[2:], (self.kh, self.kw), (self.sy, self.sx), (self.ph, self.pw)))
        geometry = _geometry(self)
        if min(y_shape) <= 0 or not kernels.covers(x.shape, y_shape, *geometry):
            return _stock(AveragePooling2D, 'forward_cpu')(self, inputs)
        self._in_shape, self._in_dtype = x.shape, x.dtype
        x, = _dense(x)
        return kernels.average_pooling(x, y_shape, *geometry),


class _AveragePoolingGradient:
    """AveragePooling2DGrad's method."""

    def forward_cpu(self, inputs):
        gy, = inputs
        geometry = _geometry(self)
        if not (_takes(gy) and kernels.covers(self._in_shape, gy.shape, *geometry)):
            return _stock(AveragePooling2DGrad, 'forward_cpu')(self, inputs)
        gy, = _dense(gy)
        return kernels.average_pooling_gx(gy, *geometry, self._in_shape),


def _geometry(function):
    """Kernel, stride and padding of a pooling."""
    return (function.kh, function.kw), (function.sy, function.sx), (function.ph, function.pw)


class _LocalResponse:
    """LocalResponseNormalization's method."""

    def forward_cpu(self, inputs):
        x, = inputs
        if not (_takes(x) and x.ndim == 4 and self.n // 2 < x.shape[1]):
            return _stock(LocalResponseNormalization, 'forward_cpu')(self, inputs)
        self.retain_inputs((0,))
        self.retain_outputs((0,))
        x, = _dense(x)
        y, self.unit_scale, self.scale = kernels.local_response(x, self.n, self.k, self.alpha, self.beta)
        return y,


class _LocalResponseGradient:
    """LocalResponseNormalizationGrad's method."""

    def forward_cpu(self, inputs):
        x, y, gy = inputs
        if not (_takes(x, y, gy, self.scale) and x.ndim == 4 and self.n // 2 < x.shape[1]):
            return _stock(LocalResponseNormalizationGrad, 'forward_cpu')(self, inputs)
        self.retain_inputs((0, 1, 2))
        x, = _dense(x)
        y, gy = kernels.like(y, x), kernels.like(gy, x)
        return kernels.local_response_gx(x, y, gy, self.unit_scale, self.scale, self.n, self.alpha, self.beta),


class _BatchNormalization:
    """GeneralBatchNormalizationImpl's methods, for statistics per channel of images."""

    def forward(self, axis, gamma, x, x_layout, xp, expander, beta, eps, decay, running_mean, running_var):
        if not (_takes(x, gamma, beta) and x.ndim == 4 and tuple(axis) == (0, 2, 3)
                and gamma.shape == beta.shape == x.shape[1:2]):
            return _stock(GeneralBatchNormalizationImpl, 'forward')(
                self, axis, gamma, x, x_layout, xp, expander, beta, eps, decay, running_mean, running_var)
        x, = _dense(x)
        y, mean, var = kernels.batch_normalization(x, gamma, beta, eps)
        inv_std = np.reciprocal(np.sqrt(var + np.float32(eps)))
        if running_mean is not None:
            m = x.size // gamma.size
            running_mean *= decay
            running_mean += (1 - decay) * mean
            running_var *= decay
            running_var += (1 - decay) * (m / max(m - 1., 1.)) * var
        return y, x_layout, running_mean, running_var, mean, var, inv_std, None

    def backward(self, axis, gamma, gy, x, x_layout, xp, expander, mean, inv_std, eps, var, forward_data):
        if not (_takes(x, gamma, gy) and x.ndim == 4 and tuple(axis) == (0, 2, 3) and gamma.shape == x.shape[1:2]):
            return _stock(GeneralBatchNormalizationImpl, 'backward')(
                self, axis, gamma, gy, x, x_layout, xp, expander, mean, inv_std, eps, var, forward_data)
        x, = _dense(x)
        gy = kernels.like(gy, x)
        gx, ggamma, gbeta = kernels.batch_normalization_gradients(x, gamma, gy, mean, inv_std)
        return gx, None, ggamma, gbeta


def _apply_bn_fwd(xp, x, mean, inv_std, gamma, beta):
    """batch_normalization's function of this name: the formula with statistics that are given."""
    vectors = mean, inv_std, gamma, beta
    if not (_takes(x, *vectors) and x.ndim == 4 and all(v.shape == (1, x.shape[1], 1, 1) for v in vectors)):
        return _stock(batch_normalization, '_apply_bn_fwd')(xp, x, mean, inv_std, gamma, beta)
    x, = _dense(x)
    return kernels.scale_and_shift(x, (gamma * inv_std).ravel(), beta.ravel(), mean.ravel())


class _Add:

    def forward(self, inputs):
        x, y = inputs
        if not (_takes(x, y) and x.shape == y.shape):
            return _stock(Add, 'forward')(self, inputs)
        x, = _dense(x)
        return kernels.add(x, kernels.like(y, x), out=np.empty_like(x)),


class _ReLU:

    def forward_cpu(self, inputs):
        x, = inputs
        if not _takes(x):
            return _stock(ReLU, 'forward_cpu')(self, inputs)
        self.retain_outputs((0,))
        x, = _dense(x)
        return kernels.relu(x),


class _ReLUGradient:

    def forward_cpu(self, inputs):
        gy, = inputs
        if not _takes(gy, self.b):
            return _stock(ReLUGrad2, 'forward_cpu')(self, inputs)
        y, = _dense(self.b)
        gy = kernels.like(gy, y)
        return kernels.relu_gx(y, gy),


class _Linear:

    def forward(self, inputs):
        x, w, b = inputs if len(inputs) == 3 else (*inputs, None)
        if not (_takes(x, w, b) and x.shape[1] == w.shape[1]):
            return _stock(LinearFunction, 'forward')(self, inputs)
        self._config_use_ideep = chainer.config.use_ideep
        self.retain_inputs((0, 1))
        return kernels.linear(*_plain(x, w, b)),


class _LinearGradientOfX:

    def forward(self, inputs):
        if not _takes(*inputs):
            return _stock(LinearGradData, 'forward')(self, inputs)
        self._config_use_ideep = chainer.config.use_ideep
        self.retain_inputs((0, 1))
        return kernels.linear_gx(*_plain(*inputs)),


class _LinearGradientOfW:

    def forward(self, inputs):
        if not (_takes(*inputs) and self._w_dtype == np.float32):
            return _stock(LinearGradWeight, 'forward')(self, inputs)
        self._config_use_ideep = chainer.config.use_ideep
        self.retain_inputs((0, 1))
        return kernels.linear_gw(*_plain(*inputs)),


class _Adam:
    """AdamRule's method."""

    def update_core_cpu(self, param):
        hp = self.hyperparam
        changed = param.array, self.state['m'], self.state['v']
        if not (param.grad is not None and _takes(param.grad, *changed) and all(a.flags.c_contiguous for a in changed)
                and not (hp.amsgrad or hp.adabound or hp.weight_decay_rate)):
            return _stock(AdamRule, 'update_core_cpu')(self, param)
        self._check_eps(np.float32)
        w, m, v = changed
        kernels.adam(w, *_plain(param.grad), m, v, self.alpha_t, hp)


_NUMPY = {
    Add: _Add,
    AdamRule: _Adam,
    LocalResponseNormalization: _LocalResponse,
    LocalResponseNormalizationGrad: _LocalResponseGradient,
    ReLU: _ReLU,
    ReLUGrad2: _ReLUGradient,
}
_ONEDNN = {
    batch_normalization: types.SimpleNamespace(_apply_bn_fwd=_apply_bn_fwd),
    AveragePooling2D: _AveragePooling,
    AveragePooling2DGrad: _AveragePoolingGradient,
    Convolution2DFunction: _Convolution,
    GeneralBatchNormalizationImpl: _BatchNormalization,
    MaxPoolingND: _MaxPooling,
    MaxPoolingNDGrad: _MaxPoolingGradient,
    LinearFunction: _Linear,
    LinearGradData: _LinearGradientOfX,
    LinearGradWeight: _LinearGradientOfW,
}
_warned = False
_swapped = {}  # (class or module, name of the function): Chainer's own


def _stock(owner, name):
    """Chainer's own function."""
    return _swapped[owner, name]


def installed():
    """Whether the kernels are in place."""
    return bool(_swapped)


def install(stacklevel=3):
    """Puts the kernels in place."""
    global _warned
    if installed():
        return
    replacements = dict(_NUMPY)
    try:
        onednn.library()
        replacements.update(_ONEDNN)
    except (OSError, ImportError) as e:
        if not _warned:
            _warned = True
            warnings.warn('oneDNN does not load (%s): convolution, pooling, batch normalization and linear layers stay '
                          "as slow as Chainer's own; pip install onednn-cpu-gomp" % e, stacklevel=stacklevel)
    for owner, methods in replacements.items():
        for name, method in vars(methods).items():
            if not name.startswith('__'):
                _swapped[owner, name] = _chainer.swap_method(owner, name, method)


def uninstall():
    """Puts Chainer's own methods back."""
    while _swapped:
        (owner, name), stock = _swapped.popitem()
        _chainer.swap_method(owner, name, stock)
