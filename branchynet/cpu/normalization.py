"""Batch normalisation over (B, H, W), by oneDNN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from ctypes import c_void_p
from typing import Any, Callable, Optional

from branchynet.cpu import onednn
from branchynet.cpu.elementwise import add
from branchynet.cpu.layout import (
    PARTS,
    addresses_of,
    cached,
    dense,
    empty_like,
    form_of,
    is_channels_last,
    like,
    parts_of,
    rows_of,
    run_primitives,
    scratch_like,
    sizes_of,
    takes,
)
from branchynet.cpu.onednn import (
    DIFF_DST,
    DIFF_SCALE,
    DIFF_SHIFT,
    DIFF_SRC,
    DST,
    MEAN,
    SCALE,
    SHIFT,
    SRC,
    VARIANCE,
    VECTOR,
    WORKSPACE,
    create_descriptor,
    describe,
)
from branchynet.cpu.threads import equal_blocks

import numpy as np

_BYTES_OF_PART = 1 << 22  # of a batch normalisation, which takes less from memory the fewer calls it is made of
_FAR = 2  # standard deviations between zero and a mean, where sums in float32 leave too much out


class BatchNormalization:
    """GeneralBatchNormalizationImpl's methods, for statistics per channel of images."""

    def forward(
        self: Any,
        axis: tuple,
        gamma: Any,
        x: Any,
        x_layout: Any,
        xp: Any,
        expander: Any,
        beta: Any,
        eps: Any,
        decay: float,
        running_mean: Any,
        running_var: Any,
        stock: Callable,
    ) -> tuple:
        """The method of this name, for arrays that the kernels take."""
        if not (fits(x, gamma, beta) and tuple(axis) == (0, 2, 3)):
            return stock(self, axis, gamma, x, x_layout, xp, expander, beta, eps, decay, running_mean, running_var)
        (x,) = dense(x)
        eps = float(eps)  # users give arrays too
        y, mean, var = batch_normalization(x, gamma, beta, eps)
        inv_std = inverse_deviation(var, eps)
        if running_mean is not None:
            update_running(running_mean, running_var, mean, var, x.size // gamma.size, decay)
        return y, x_layout, running_mean, running_var, mean, var, inv_std, None

    def backward(
        self: Any,
        axis: tuple,
        gamma: Any,
        gy: Any,
        x: Any,
        x_layout: Any,
        xp: Any,
        expander: Any,
        mean: Any,
        inv_std: Any,
        eps: Any,
        var: Any,
        forward_data: Any,
        stock: Callable,
    ) -> tuple:
        """The method of this name, for arrays that the kernels take."""
        if not (takes(x, gamma, gy) and x.ndim == 4 and tuple(axis) == (0, 2, 3) and gamma.shape == x.shape[1:2]):
            return stock(self, axis, gamma, gy, x, x_layout, xp, expander, mean, inv_std, eps, var, forward_data)
        (x,) = dense(x)
        gy = like(gy, x)
        gx, ggamma, gbeta = batch_normalization_gradients(x, gamma, gy, mean, inv_std)
        return gx, None, ggamma, gbeta


def apply_bn_fwd(xp: Any, x: Any, mean: Any, inv_std: Any, gamma: Any, beta: Any, stock: Callable) -> np.ndarray:
    """batch_normalization's function of this name: the formula with statistics that are given."""
    vectors = mean, inv_std, gamma, beta
    if not (takes(x, *vectors) and x.ndim == 4 and all(v.shape == (1, x.shape[1], 1, 1) for v in vectors)):
        return stock(xp, x, mean, inv_std, gamma, beta)
    (x,) = dense(x)
    return scale_and_shift(x, (gamma * inv_std).ravel(), beta.ravel(), mean.ravel())


def fits(x: Any, gamma: Any, beta: Any) -> bool:
    """Whether the kernels take images x (B, C, H, W) with factors and shifts of every channel, (C,)."""
    return takes(x, gamma, beta) and x.ndim == 4 and gamma.shape == beta.shape == x.shape[1:2]


def inverse_deviation(variance: np.ndarray, eps: float) -> np.ndarray:
    """(variance + eps)**-0.5, of every channel (C,)."""
    return np.reciprocal(np.sqrt(variance + np.float32(eps)))


def update_running(
    running_mean: Any, running_var: Any, mean: np.ndarray, variance: np.ndarray, count: int, decay: float
) -> None:
    """Moves the running statistics (C,) towards a batch's, whose variance is made unbiased, as Chainer does.

    Args:
        running_mean: changed in place.
        running_var: changed in place.
        mean: of the batch.
        variance: of the batch, biased.
        count: numbers that each of them was taken of.
        decay: factor of what was.
    """
    running_mean *= decay
    running_mean += (1 - decay) * mean
    running_var *= decay
    running_var += (1 - decay) * (count / max(count - 1.0, 1.0)) * variance


@cached
def _batch_normalization(
    shape: tuple[int, ...], form: int, eps: float, relu: bool = False
) -> tuple[onednn.Primitive, onednn.Primitive]:
    """(forward, backward) primitives of a whole batch."""
    return _forward_and_backward(shape, form, eps, relu, 0)


@cached
def _normalization(shape: tuple[int, ...], form: int, relu: bool = False) -> tuple[onednn.Primitive, onednn.Primitive]:
    """(forward, backward) primitives of a block, with statistics that are given."""
    return _forward_and_backward(shape, form, 0, relu, onednn.GIVEN_STATISTICS)


def _forward_and_backward(
    shape: tuple[int, ...], form: int, eps: float, relu: bool, flags: int
) -> tuple[onednn.Primitive, onednn.Primitive]:
    x, vector = describe(shape, form), describe(shape[1:2], VECTOR)
    hint, descriptor = _descriptors(x, eps, flags, relu)
    statistics = {MEAN: vector, VARIANCE: vector}
    mask = {WORKSPACE: None} if relu else {}
    return (
        onednn.Primitive(hint, {SRC: x, DST: x, SCALE: vector, SHIFT: vector, **statistics, **mask}),
        onednn.Primitive(
            descriptor,
            {
                **{SRC: x, DIFF_DST: x, SCALE: vector, DIFF_SRC: x, DIFF_SCALE: vector, DIFF_SHIFT: vector},
                **statistics,
                **mask,
            },
        ),
    )


def _descriptors(x: c_void_p, eps: float, flags: int, relu: bool) -> tuple[c_void_p, c_void_p]:
    """(forward, backward), scaled and shifted."""
    numbers = onednn.real(eps), onednn.flags(flags | onednn.SCALED | onednn.SHIFTED | (onednn.WITH_RELU if relu else 0))
    hint = create_descriptor('batch_normalization_forward', onednn.FORWARD_TRAINING, x, x, *numbers)
    return hint, create_descriptor('batch_normalization_backward', onednn.BACKWARD, x, x, x, *numbers, hint)


@cached
def _has_relu(shape: tuple[int, ...], form: int) -> bool:
    """Whether oneDNN uses the same code where a ReLU follows, so that the bits are the same, and its masks are ours."""
    x = describe(shape, form)
    names = [
        [onednn.implementation(descriptor) for descriptor in _descriptors(x, 0, flags, relu)]
        for relu in (False, True)
        for flags in (0, onednn.GIVEN_STATISTICS)
    ]
    return names[:2] == names[2:] and _has_bits(shape, form)


def _has_bits(shape: tuple[int, ...], form: int) -> bool:
    """Whether oneDNN's masks are those that Masks describes, on an example."""
    forward, _ = _normalization(shape, form, True)
    x = np.random.RandomState(0).rand(math.prod(shape)).astype(np.float32) - np.float32(0.5)
    y, bits = np.empty_like(x), np.empty(forward.sizes[WORKSPACE], np.uint8)
    vectors = np.repeat(np.array([[0], [1], [1], [0]], np.float32), shape[1], axis=1)
    given = dict(zip((MEAN, VARIANCE, SCALE, SHIFT), rows_of(vectors)))
    forward({SRC: x.ctypes.data, DST: y.ctypes.data, WORKSPACE: bits.ctypes.data, **given})
    return np.array_equal(bits, np.packbits(x > 0, bitorder='little'))


@cached
def _whitening(shape: tuple[int, ...], form: int, flags: int) -> onednn.Primitive:
    """The primitive of (x - mean) / sqrt(variance) of a block, and of its mean and variance unless those are given."""
    x, vector = describe(shape, form), describe(shape[1:2], VECTOR)
    descriptor = create_descriptor(
        'batch_normalization_forward', onednn.FORWARD_TRAINING, x, x, onednn.real(0), onednn.flags(flags)
    )
    return onednn.Primitive(descriptor, {SRC: x, DST: x, MEAN: vector, VARIANCE: vector})


class Masks:
    """Where ReLU lets numbers pass: a bit for each, in the order of memory, as oneDNN takes them for the gradient.

    Args:
        x: the input of the batch normalisation before it, (B, C, H, W).

    Attributes:
        bits: uint8, 8 numbers in each, the first of them in the lowest bit.
        addresses: where those of each part of the batch lie.
    """

    def __init__(self, x: np.ndarray) -> None:
        self.bits = np.empty(x.size // 8, np.uint8)
        first, step = self.bits.ctypes.data, x[0].size // 8
        self.addresses = [first + part.start * step for part in _batch_parts(x)]

    @staticmethod
    def fit(x: np.ndarray) -> bool:
        """Whether there are masks for x."""
        return x[0].size % 8 == 0 and all(_has_relu(sizes_of(part, x), form_of(x)) for part in _batch_parts(x))


def batch_normalization(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, eps: float, masks: Optional[Masks] = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Batch normalisation (Ioffe, Szegedy, 2015) over all but the channels.

    Args:
        x: images (B, C, H, W), float32, C-contiguous or channels last.
        gamma: factor of every channel (C,), float32.
        beta: shift of every channel (C,), float32.
        eps: added to the variance.
        masks: where given, ReLU follows, which makes 0 of NaN, and fills these.

    Returns:
        y in the shape and memory order of x, and the mean and the (biased) variance of every channel, (C,).
    """
    rough: Optional[list[np.ndarray]] = None
    if len(_batch_parts(x)) == 1:
        y, *rough = _normalized_at_once(x, gamma, beta, eps, masks)
        mean, variance = rough
        if (np.abs(mean) <= _FAR * np.sqrt(variance + np.float32(eps))).all():
            return y, mean, variance
    mean, variance = _mean_and_variance(x, rough)
    return scale_and_shift(x, gamma / np.sqrt(variance + np.float32(eps)), beta, mean, masks), mean, variance


def _batch_parts(x: np.ndarray) -> tuple[slice, ...]:
    return equal_blocks(len(x), min(PARTS, x.nbytes // _BYTES_OF_PART))


def _normalized_at_once(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, eps: float, masks: Optional[Masks]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """batch_normalization in one call; the mean is the less exact the farther it is from zero."""
    y = empty_like(x)
    vectors = np.empty((4, len(gamma)), np.float32)
    vectors[0], vectors[1] = gamma, beta
    forward, _ = _batch_normalization(x.shape, form_of(x), eps, masks is not None)
    given = dict(zip((SCALE, SHIFT, MEAN, VARIANCE), rows_of(vectors)))
    with onednn.single_threaded():
        forward({SRC: x.ctypes.data, DST: y.ctypes.data, **given, **_mask(masks, 0)})
    return y, vectors[2], vectors[3]


def _mask(masks: Optional[Masks], i: int) -> dict[int, int]:
    """A primitive's argument for the mask of a part."""
    return {} if masks is None else {WORKSPACE: masks.addresses[i]}


def _mean_and_variance(x: np.ndarray, rough: Optional[Sequence[np.ndarray]] = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and (biased) variance of every channel of images (B, C, H, W), both (C,) float32, in float64's precision.

    Args:
        x: the images.
        rough: both in float32's precision, where they are known of a batch that is one part.
    """
    parts, pixels = _batch_parts(x), x[0, 0].size
    means, variances = (np.empty((len(parts), x.shape[1])) for _ in range(2))
    counts = np.array([(part.stop - part.start) * pixels for part in parts])[:, None]
    xs, form = addresses_of(x, parts), form_of(x)

    def task(i: int) -> None:
        mean, variance = statistics = np.empty((2, x.shape[1]), np.float32) if rough is None else np.array(rough)
        y = scratch_like('difference', x[parts[i]])
        whitening = _whitening(y.shape, form, 0 if rough is None else onednn.GIVEN_STATISTICS)
        whitening({SRC: xs[i], DST: y.ctypes.data, **dict(zip((MEAN, VARIANCE), rows_of(statistics)))})
        # The float32 mean has a rounding error; the mean of y recovers it.
        deviation = np.sqrt(variance.astype(np.float64))
        rest = np.where(deviation > 0, _sum(y) / counts[i], 0) * deviation
        means[i], variances[i] = mean + rest, np.maximum(variance - rest**2, 0)

    run_primitives(task, len(parts))
    mean = (means * counts).sum(axis=0) / counts.sum()
    variance = ((variances + (means - mean) ** 2) * counts).sum(axis=0) / counts.sum()
    return mean.astype(np.float32), variance.astype(np.float32)


def _sum(x: np.ndarray) -> np.ndarray:
    """(C,) float64: sums over all but the channels."""
    if is_channels_last(x):
        # Long rows first: NumPy adds those fast.
        rows = x.transpose(0, 2, 3, 1).reshape(len(x), -1).sum(axis=0).reshape(x.shape[2], -1).sum(axis=0)
        return rows.reshape(-1, x.shape[1]).sum(axis=0, dtype=np.float64)
    return x.reshape((*x.shape[:2], -1)).sum(axis=2).sum(axis=0, dtype=np.float64)


def scale_and_shift(
    x: np.ndarray, scale: np.ndarray, shift: np.ndarray, mean: np.ndarray, masks: Optional[Masks] = None
) -> np.ndarray:
    """(x - mean) * scale + shift, in this order: far from zero, another order would lose digits of x.

    Args:
        x: images (B, C, H, W), float32, C-contiguous or channels last.
        scale: factor of every channel (C,).
        shift: what is added to every channel (C,).
        mean: what is subtracted from every channel (C,).
        masks: where given, ReLU follows and fills these.
    """
    y = empty_like(x)
    parts = parts_of(x) if masks is None else _batch_parts(x)
    xs, ys, form = addresses_of(x, parts), addresses_of(y, parts), form_of(x)
    vectors = np.array([mean, np.ones_like(mean), scale, shift], np.float32)
    given = dict(zip((MEAN, VARIANCE, SCALE, SHIFT), rows_of(vectors)))

    def task(i: int) -> None:
        forward, _ = _normalization(sizes_of(parts[i], x), form, masks is not None)
        forward({SRC: xs[i], DST: ys[i], **given, **_mask(masks, i)})

    run_primitives(task, len(parts))
    return y


def batch_normalization_gradients(
    x: np.ndarray,
    gamma: np.ndarray,
    gy: np.ndarray,
    mean: np.ndarray,
    inv_std: np.ndarray,
    masks: Optional[Masks] = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of batch normalisation.

    Args:
        x: its input (B, C, H, W), float32, C-contiguous or channels last.
        gamma: its factors (C,).
        gy: gradient of its output, in the shape and memory order of x.
        mean: mean of every channel of x, (C,).
        inv_std: (variance + eps)**-0.5 of every channel, (C,).
        masks: where the ReLU that followed, if any, let numbers pass.

    Returns:
        Gradients of x (B, C, H, W), gamma (C,) and beta (C,).
    """
    parts, form, relu = _batch_parts(x), form_of(x), masks is not None
    gx = empty_like(x)
    sums = np.empty((len(parts), 2, x.shape[1]), np.float32)
    vectors = np.array([mean, inv_std**-2, gamma], np.float32)
    given = dict(zip((MEAN, VARIANCE, SCALE), rows_of(vectors)))
    xs, gys, gxs = (addresses_of(array, parts) for array in (x, gy, gx))
    at_once = len(parts) == 1

    def task(i: int) -> None:
        shape = sizes_of(parts[i], x)
        _, backward = _batch_normalization(shape, form, 0.0, relu) if at_once else _normalization(shape, form, relu)
        own = dict(zip((DIFF_SCALE, DIFF_SHIFT), rows_of(sums[i])))
        backward({SRC: xs[i], DIFF_DST: gys[i], DIFF_SRC: gxs[i], **own, **given, **_mask(masks, i)})

    run_primitives(task, len(parts))
    if at_once:
        return (gx, *sums[0])
    ggamma, gbeta = sums.sum(axis=0)
    # What goes through the statistics of the whole batch is left to add.
    count = np.float32(x.size // x.shape[1])
    add(gx, scale_and_shift(x, -gamma * inv_std**2 * ggamma / count, -gamma * inv_std * gbeta / count, mean), out=gx)
    return gx, ggamma, gbeta
