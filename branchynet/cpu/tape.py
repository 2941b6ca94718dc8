"""Training steps of links on arrays, without Chainer's graph.

Chainer checks the types of every function it calls, and wraps what goes in and comes out in Variables; a small network
spends most of its time on that. Here the functions are called with arrays. They are Chainer's own, or the kernels that
are in place for them, and gradients are added in Chainer's order, so that the results have the same bits. A link that
is not known by its exact class is called as it is, with a graph of its own.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import heapq
from collections.abc import Iterable, Sequence
from typing import Any, Callable, Optional

from branchynet.batching import check_within
from branchynet.cpu import convolution, elementwise, install, normalization, onednn
from branchynet.cpu.geometry import geometry_of, settings_of_link
from branchynet.cpu.layout import channels_last, dense, empty_like, like, plain, takes
from branchynet.exits import accuracy
from branchynet.links.links import FL, Net, arguments_of, calls_one_of, is_unchanged
from branchynet.links.resnet import ResBlock, shortcut

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
from chainer.functions.activation.relu import ReLU, ReLUGrad2
from chainer.functions.connection.linear import LinearFunction, LinearGradData, LinearGradWeight
from chainer.functions.loss.softmax_cross_entropy import (
    SoftmaxCrossEntropy,
    _SoftmaxCrossEntropyGrad_NoDoubleBackprop,
)
from chainer.functions.math.basic_math import Add
from chainer.functions.noise.dropout import Dropout, DropoutGrad
from chainer.functions.normalization.batch_normalization import BatchNormalization, BatchNormalizationGrad
from chainer.functions.normalization.local_response_normalization import (
    LocalResponseNormalization,
    LocalResponseNormalizationGrad,
)
from chainer.functions.pooling.average_pooling_2d import AveragePooling2D, AveragePooling2DGrad
from chainer.functions.pooling.max_pooling_nd import MaxPoolingND, MaxPoolingNDGrad

# Takes the gradient of a value; returns those of the values that it was made of, None where nothing needs one.
Back = Callable[[Any], Sequence[Any]]


def _of_one_thread(function: Callable) -> Callable:
    """The function in a context in which oneDNN uses one thread, so that none of its calls must see to that."""

    @functools.wraps(function)
    def called(*arguments: Any) -> Any:
        with onednn.single_threaded() if install.are_onednns_in_place() else contextlib.nullcontext():
            return function(*arguments)

    return called


class Value:
    """An array and the way back from it.

    Args:
        array: the array.
        inputs: the values that it was made of.
        back: takes the array's gradient, stores those of parameters, and returns those of the inputs; None: nothing
            needs the array's gradient.

    Attributes:
        rank: number of functions on the longest way to it. Chainer goes back by falling rank.
        returns_new_arrays: whether ``back`` returns arrays that nobody else has.
        takes_masked: whether ``back`` takes a MaskedGradient too.
    """

    def __init__(self, array: np.ndarray, inputs: Sequence[Value] = (), back: Optional[Back] = None) -> None:
        self.array = array
        self.inputs = inputs
        self.back = back
        self.returns_new_arrays = self.takes_masked = False
        self.rank: int = 1 + max((value.rank for value in inputs), default=-1)

    @property
    def wanted(self) -> bool:
        """Whether a parameter or something before it needs its gradient."""
        return self.back is not None

    def item(self) -> float:
        """The number that the array holds."""
        return self.array.item()

    @_of_one_thread
    def backward(self) -> None:
        """Stores the gradients of all parameters that this number depends on."""
        gradients: dict[Value, np.ndarray | MaskedGradient] = {self: np.ones_like(self.array)}
        seen, waiting = {self}, [(0, 0, self)]
        while waiting:
            *_, value = heapq.heappop(waiting)
            assert value.back is not None
            gradient = gradients.pop(value)
            for x, gx in zip(value.inputs, value.back(gradient if value.takes_masked else _array_of(gradient))):
                if gx is None or not x.wanted:
                    continue
                gradients[x] = _sum(gradients[x], gx, value.returns_new_arrays) if x in gradients else gx
                if x not in seen:
                    heapq.heappush(waiting, (-x.rank, len(seen), x))
                    seen.add(x)


class MaskedGradient:
    """A gradient that ReLU lets pass where its output is positive, as long as nobody needs it as an array.

    Args:
        y: the output of ReLU.
        gy: its gradient, in the memory order of y.
        masks: where y is positive, as of normalization.empty_masks.
    """

    def __init__(self, y: np.ndarray, gy: np.ndarray, masks: np.ndarray) -> None:
        self.y, self.gy, self.masks = y, gy, masks

    @functools.cached_property
    def array(self) -> np.ndarray:
        """The gradient."""
        return elementwise.relu_gx(self.y, self.gy)


def _array_of(gradient: np.ndarray | MaskedGradient) -> np.ndarray:
    return gradient.array if isinstance(gradient, MaskedGradient) else gradient


def _sum(first: np.ndarray | MaskedGradient, second: np.ndarray | MaskedGradient, is_free: bool) -> np.ndarray:
    """first + second; ``is_free``: the second is an array whose place the result may take."""
    model = first.y if isinstance(first, MaskedGradient) else first
    if isinstance(second, MaskedGradient) or not is_free or not _fit(model, second):
        return Add().forward((_array_of(first), _array_of(second)))[0]
    if isinstance(first, MaskedGradient):
        return elementwise.add_passed(first.y, first.gy, second)
    return elementwise.add(first, second, out=second)


def _fit(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether the kernels take both, element by element in the order of memory."""
    is_alike = x.shape == y.shape and x.strides == y.strides
    return install.are_in_place() and takes(x, y) and is_alike and dense(x)[0] is x


def _derived(array: np.ndarray, x: Value, back: Back) -> Value:
    """The value that a function without parameters makes of x."""
    return Value(array, [x], back if x.wanted else None)


_REMEMBERED = 8  # lists of links, the newest


class Tapes:
    """The lists of links whose steps need Chainer's graph no more, because it has checked them once."""

    def __init__(self) -> None:
        self._lists: list[tuple[list[chainer.Link], tuple]] = []  # with the shape and dtype of a sample

    def add(self, links: list[chainer.Link], x: Any, forks: Iterable[chainer.Link] = ()) -> None:
        """Takes note that Chainer trained these links on x (B, ...).

        Args:
            links: the links.
            x: the samples.
            forks: links that share their input with others. One that is not known here may use it twice, and a sum of
                three gradients has other bits in another order.
        """
        parameters = [id(parameter) for link in links for parameter in link.params()]
        is_clear = (
            len(set(parameters)) == len(parameters) and all(map(_is_known, forks)) and all(map(_is_closed, links))
        )
        if type(x) is np.ndarray and is_clear:
            self._lists = [*self._lists[1 - _REMEMBERED :], (links, (x.shape[1:], x.dtype))]

    def fit(self, links: list[chainer.Link], x: Any) -> bool:
        """Whether these links can be trained on x (B, ...) without Chainer's graph, and nobody looks at that."""
        return type(x) is np.ndarray and (links, (x.shape[1:], x.dtype)) in self._lists and _is_graph_unseen()


def _is_known(link: chainer.Link) -> bool:
    return calls_one_of(link, _FUNCTIONS) if type(link) is FL else type(link) in _LINKS


def _is_closed(link: chainer.Link) -> bool:
    """Whether a link surely computes from its input and its own parameters alone.

    Its gradients are computed apart from those of the other links. So it may not reach their parameters or Variables,
    as a function of the user's may, nor keep some of the step before, as L.LSTM does.
    """
    for inner in link.links():
        values = list(vars(inner).values())
        if type(inner) is FL:
            values += [*inner.args, *inner.kwargs.values()]
            is_ours = (getattr(inner.fn, '__module__', None) or '').startswith('chainer.functions.')
        else:
            is_ours = type(inner).__module__.startswith(('chainer.links.', 'branchynet.links.'))
        keeps_variable = any(
            isinstance(value, chainer.Variable) and not isinstance(value, chainer.Parameter) for value in values
        )
        if not is_ours or keeps_variable or 'forward' in vars(inner):
            return False
    return True


def _is_graph_unseen() -> bool:
    config = chainer.config
    return (
        config.train
        and config.enable_backprop
        and config.schedule_func is None
        and not (config.debug or config.in_recomputing or config.lazy_grad_sum)
        and not (chainer.get_function_hooks() or chainer._get_link_hooks())
    )


@_of_one_thread
def joint(
    models: Sequence[Net], x: np.ndarray, t: np.ndarray, reach: Sequence[bool]
) -> tuple[list[Value], list[np.ndarray], Value]:
    """The joint loss of exits (section III of the paper).

    Args:
        models: a Net for every exit, as of BranchyNet.
        x: samples (B, ...).
        t: labels (B,).
        reach: for every exit, whether its loss trains the trunk.

    Returns:
        (losses, accuracies, total): a number for every exit, and the weighted sum of the losses.
    """
    h, total = Value(x), None
    losses, accuracies = [], []
    for model, reaches_trunk in zip(models, reach):
        h = forward(model[model.starti : model.endi], h)
        logits = forward(model[model.endi :], h if reaches_trunk else Value(h.array))
        loss, accuracy = _loss(logits, t)
        losses.append(loss)
        accuracies.append(accuracy)
        total = _add(total, _times(loss, model.weight))
    assert total is not None
    return losses, accuracies, total


@_of_one_thread
def alone(links: Iterable[chainer.Link], x: np.ndarray, t: np.ndarray) -> tuple[Value, np.ndarray]:
    """(loss, accuracy) of links that make logits of samples x (B, ...) with labels t (B,)."""
    return _loss(forward(links, Value(x)), t)


def _loss(logits: Value, t: np.ndarray) -> tuple[Value, np.ndarray]:
    """(softmax cross entropy, accuracy) for logits (B, C) and labels (B,)."""
    scores = logits.array
    check_within(t, scores.shape[1])
    function = SoftmaxCrossEntropy()
    (loss,) = function.forward((scores, t))
    gradient = _SoftmaxCrossEntropyGrad_NoDoubleBackprop(-1, None, function.y, function._coeff, False)
    return _derived(loss, logits, lambda gy: gradient.forward((scores, t, gy))), accuracy(scores, t)


def _times(x: Value, weight: float) -> Value:
    factor = x.array.dtype.type(weight)
    return _derived(np.asarray(factor * x.array), x, lambda gy: [np.asarray(factor * gy)])


def _add(x: Optional[Value], y: Value) -> Value:
    """x + y; None counts as 0, which Chainer adds too."""
    if x is None:
        return _derived(y.array, y, lambda gy: [gy])
    (array,) = Add().forward((x.array, y.array))
    return Value(array, [x, y], (lambda gy: [gy, gy]) if x.wanted or y.wanted else None)


def forward(links: Iterable[chainer.Link], x: Value) -> Value:
    """The value of links that are called one after the other; no parameter is in two of them."""
    waiting = collections.deque(links)
    while waiting:
        link = waiting.popleft()
        is_pair = _is_norm(link) and waiting and _is_relu(waiting[0])
        fused = _normalization(link, x, with_relu=True) if is_pair else None
        if fused is not None:
            waiting.popleft()
            x = fused
        else:
            x = (_LINKS[type(link)] if _is_plain(link) else _call_in_chainer)(link, x)
    return x


def _is_plain(link: Any) -> bool:
    """Whether a link is known, and does what its class does."""
    return type(link) in _LINKS and is_unchanged(link)


def _is_relu(link: Any) -> bool:
    return type(link) is FL and link.fn is F.relu and not (link.args or link.kwargs) and _is_plain(link)


def _is_norm(link: Any) -> bool:
    return type(link) is L.BatchNormalization and _is_plain(link)


def _call_in_chainer(link: chainer.Link, x: Value) -> Value:
    given: Any = chainer.Variable(x.array, requires_grad=x.wanted)
    y = link(given)

    def back(gy: np.ndarray) -> list[Optional[np.ndarray]]:
        y.grad = gy
        y.backward()
        return [given.grad]

    value = Value(y.array, [x], back if y.requires_grad else None)
    value.rank = x.rank + y.rank
    return value


# The links that are known. Each function takes a link and its input.


def _are_of_images(x: np.ndarray, w: Any, b: Any) -> bool:
    """Whether the numbers of dimensions are those of a convolution, and the bias is one for each output channel."""
    return w is not None and x.ndim == w.ndim == 4 and (b is None or b.shape == w.shape[:1])


def _convolution(link: L.Convolution2D, x: Value) -> Value:
    parameters: Any = [link.W] if link.b is None else [link.W, link.b]
    w: Any = link.W.array
    b: Any = None if link.b is None else link.b.array
    geometry = None
    if (
        install.are_onednns_in_place()
        and takes(x.array, w, b)
        and _are_of_images(x.array, w, b)
        and not link.cudnn_fast
    ):
        geometry = geometry_of(x.array.shape, w.shape, settings_of_link(link))
    if geometry is None:
        return _call_in_chainer(link, x)
    (images,), (w, b) = dense(x.array), plain(w, b)
    y = convolution.convolution(images, w, b, geometry)

    def back(gy: np.ndarray) -> list[Optional[np.ndarray]]:
        gx, *gradients = convolution.convolution_gradients(images, w, dense(gy)[0], geometry, x.wanted, True)
        _store(parameters, gradients)
        return [gx]

    value = Value(y, [x], back)
    value.returns_new_arrays = True
    return value


def _linear(link: L.Linear, x: Value) -> Value:
    if x.array.ndim > 2:
        x = _rows(x)
    parameters = [link.W] if link.b is None else [link.W, link.b]
    w: Any = link.W.array
    (y,) = LinearFunction().forward((x.array, *(parameter.array for parameter in parameters)))

    def back(gy: np.ndarray) -> list[Optional[np.ndarray]]:
        (gw,) = LinearGradWeight(w.dtype).forward((x.array, gy))
        _store(parameters, [gw] if link.b is None else [gw, gy.sum(axis=0)])
        return [LinearGradData().forward((w, gy))[0] if x.wanted else None]

    return Value(y, [x], back)


def _rows(x: Value) -> Value:
    shape = x.array.shape
    return _derived(x.array.reshape(len(x.array), -1), x, lambda gy: [gy.reshape(shape)])


def _batch_normalization(link: L.BatchNormalization, x: Value) -> Value:
    ours = _normalization(link, x, with_relu=False)
    if ours is not None:
        return ours
    parameters: tuple[Any, ...] = link.gamma, link.beta
    if link.avg_mean is None or any(parameter is None for parameter in parameters):
        return _call_in_chainer(link, x)
    gamma, beta = (parameter.array for parameter in parameters)
    function: Any = BatchNormalization(link.eps, link.avg_mean, link.avg_var, link.decay, link.axis)
    function._input_layouts = (None,) * 3
    (y,) = function.forward((x.array, gamma, beta))

    def back(gy: np.ndarray) -> list[Optional[np.ndarray]]:
        gradient: Any = BatchNormalizationGrad(
            function.eps,
            function.expander,
            function.axis,
            function.mean,
            None,
            function.inv_std,
            function.key_axis,
            function._impl,
            function.forward_data,
        )
        gradient._input_layouts = (None,) * 3
        gx, *gradients = gradient.forward((x.array, gamma, gy))
        _store(parameters, gradients)
        return [gx]

    return Value(y, [x], back)


def _normalization(link: L.BatchNormalization, x: Value, with_relu: bool) -> Optional[Value]:
    """A batch normalisation by the kernels, perhaps in one pass with the ReLU after it; None where they do not do it.

    The ReLU of such a pass makes 0 of NaN. So if a result may be NaN, it is thrown away, and None is returned before
    any running statistic has changed. Its gradient is 0 where the ReLU passes nothing, as Chainer's is unless the
    gradient that comes back to it is NaN or infinite there: then what follows it has such gradients too.
    """
    parameters: Any = link.gamma, link.beta
    is_whole = link.avg_mean is not None and all(parameter is not None for parameter in parameters)
    if not (install.are_onednns_in_place() and is_whole and link.axis in (None, (0, 2, 3))):
        return None
    gamma, beta = (parameter.array for parameter in parameters)
    if not (normalization.fits(x.array, gamma, beta) and x.array.size > gamma.size):
        return None
    (images,) = dense(x.array)
    can_fuse = normalization.can_fuse_relu(images)
    if with_relu and not can_fuse:
        return None
    eps, own_masks = float(link.eps), normalization.empty_masks(images) if with_relu else None
    y, moments = normalization.batch_normalization(images, gamma, beta, eps, own_masks)
    if with_relu and not moments.is_finite:
        return None
    moments.move(link.avg_mean, link.avg_var, images.size // gamma.size, link.decay)

    def back(gradient: np.ndarray | MaskedGradient) -> list[Optional[np.ndarray]]:
        gy, masks = (gradient.gy, gradient.masks) if isinstance(gradient, MaskedGradient) else (gradient, own_masks)
        gx, *gradients = normalization.batch_normalization_gradients(
            images, gamma, like(gy, images), moments.mean, moments.inv_std, masks
        )
        _store(parameters, gradients)
        return [gx]

    value = Value(y, [x], back)
    value.takes_masked = can_fuse and not with_relu
    return _counted_twice(value) if with_relu else value


_RELU = FL(F.relu)


def _block(link: ResBlock, x: Value) -> Value:
    h = forward([link.conv1, link.bn1, _RELU, link.conv2, link.bn2], x)
    short = x if x.array.shape == h.array.shape else _shortcut(x, h.array.shape)
    return _relu_of_sum(h, short, is_free=_is_norm(link.bn2))  # a batch normalisation does not need its output again


def _shortcut(x: Value, shape: tuple[int, ...]) -> Value:
    """links.shortcut, in the memory order of convolutions where it takes every second pixel."""
    pixels, front = x.array[:, :, ::2, ::2], shape[1] - x.array.shape[1]
    is_half = x.array.shape[2:] != shape[2:] == pixels.shape[2:]
    if not (is_half and front >= 0 and install.are_onednns_in_place() and takes(x.array)):
        return _call_in_chainer(FL(shortcut, shape), x)
    y = channels_last(shape)
    y[:, :front] = 0
    np.add(pixels, 0, out=y[:, front:])  # as the pooling of one pixel does: -0 becomes 0

    def back(gy: np.ndarray) -> list[np.ndarray]:
        gx = channels_last(x.array.shape)
        gx[:] = 0
        gx[:, :, ::2, ::2] += gy[:, front:]
        return [gx]

    value = _derived(y, x, back)
    value.returns_new_arrays = True
    return _counted_twice(value) if front else value  # Chainer adds the channels by a function of their own


def _relu_of_sum(x: Value, y: Value, is_free: bool) -> Value:
    """ReLU of x + y; ``is_free``: the result may take the place of x's array."""
    if not _fit(x.array, y.array):
        return _relu(_add(x, y))
    masks = normalization.empty_masks(x.array) if x.takes_masked else None
    out = x.array if is_free else empty_like(x.array)
    array = elementwise.relu_of_sum(x.array, y.array, out, masks)

    def back(gy: np.ndarray) -> Sequence[np.ndarray | MaskedGradient]:
        gy = like(gy, array)
        return [elementwise.relu_gx(array, gy) if masks is None else MaskedGradient(array, gy, masks)] * 2

    return _counted_twice(Value(array, [x, y], back if x.wanted or y.wanted else None))


def _counted_twice(value: Value) -> Value:
    """A value that one function made, in the place of two: Chainer's order of gradients counts functions."""
    return _derived(value.array, value, lambda gy: [gy])


def _function(link: FL, x: Value) -> Value:
    if not calls_one_of(link, _FUNCTIONS):
        return _call_in_chainer(link, x)
    try:
        arguments = _arguments(link.fn, link.args, tuple(link.kwargs.items()))
    except TypeError:  # an argument that cannot be hashed, or does not fit
        return _call_in_chainer(link, x)
    return _FUNCTIONS[link.fn](x, *arguments)


@functools.lru_cache(1000)
def _arguments(function: Callable, args: tuple, kwargs: tuple) -> list[Any]:
    """arguments_of, kept by arguments that can be hashed."""
    return arguments_of(function, args, dict(kwargs))


def _relu(x: Value) -> Value:
    (y,) = ReLU().forward((x.array,))
    return _derived(y, x, lambda gy: ReLUGrad2(y).forward((gy,)))


def _max_pooling(x: Value, ksize: Any, stride: Any, pad: Any, cover_all: bool, return_indices: bool) -> Value:
    function = MaxPoolingND(x.array.ndim - 2, ksize, stride, pad, cover_all)
    (y,) = function.forward((x.array,))
    return _derived(y, x, lambda gy: MaxPoolingNDGrad(function).forward((gy,)))


def _average_pooling(x: Value, ksize: Any, stride: Any, pad: Any) -> Value:
    function = AveragePooling2D(ksize, stride, pad, False)
    (y,) = function.forward((x.array,))
    return _derived(y, x, lambda gy: AveragePooling2DGrad(function).forward((gy,)))


def _local_response(x: Value, n: int, k: float, alpha: float, beta: float) -> Value:
    function = LocalResponseNormalization(n, k, alpha, beta)
    (y,) = function.forward((x.array,))

    def back(gy: np.ndarray) -> Sequence[Optional[np.ndarray]]:
        gradient = LocalResponseNormalizationGrad(n, k, alpha, beta, False, function.scale, None, function.unit_scale)
        return gradient.forward((x.array, y, gy))

    return _derived(y, x, back)


def _dropout(x: Value, ratio: float, more: dict[str, Any]) -> Value:
    # more: return_mask alone, which is for a link that takes a tuple, and such a net has no tape.
    function = Dropout(ratio)
    (y,) = function.forward((x.array,))
    return _derived(y, x, lambda gy: DropoutGrad(function.mask).forward((gy,)))


def _store(parameters: Sequence[Any], gradients: Iterable[Any]) -> None:
    for parameter, gradient in zip(parameters, gradients):
        parameter.grad = gradient


_LINKS: dict[type, Callable] = {
    FL: _function,
    ResBlock: _block,
    L.BatchNormalization: _batch_normalization,
    L.Convolution2D: _convolution,
    L.Linear: _linear,
}
_FUNCTIONS: dict[Callable, Callable] = {
    F.average_pooling_2d: _average_pooling,
    F.dropout: _dropout,
    F.local_response_normalization: _local_response,
    F.max_pooling_2d: _max_pooling,
    F.relu: _relu,
}
