"""Batch normalisation over (B, H, W): by channelwise where it takes the images, else by oneDNN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from ctypes import c_float, c_uint, c_void_p
from typing import Any, Callable, Optional

from branchynet.cpu import onednn
from branchynet.cpu.elementwise import add
from branchynet.cpu.layout import (
    BYTES_OF_BLOCK,
    PARTS,
    addresses_of,
    cached,
    dense,
    empty_like,
    form_of,
    is_channels_last,
    like,
    rows_of,
    scratch_like,
    takes,
)
from branchynet.cpu.loops import Blocks, Loop, Loops, Place, grouped
from branchynet.cpu.moments import Moments
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
from branchynet.cpu.threads import equal_blocks, run

import numpy as np

try:
    from branchynet.cpu import channelwise, emitter

    _HAS_CHANNELWISE = emitter.has_multiply_add()
except (ImportError, OSError):  # llvmlite is missing, or does not load
    _HAS_CHANNELWISE = False

_BYTES_OF_PART = 1 << 22  # of a batch normalisation, which takes less from memory the fewer calls it is made of


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
        y, moments = batch_normalization(x, gamma, beta, float(eps))  # users give arrays too
        if running_mean is not None:
            moments.move(running_mean, running_var, x.size // gamma.size, decay)
        return y, x_layout, running_mean, running_var, moments.mean, moments.variance, moments.inv_std, None

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


@cached
def _primitives(
    shape: tuple[int, ...], form: int, relu: bool, eps: float, flags: int
) -> tuple[onednn.Primitive, onednn.Primitive]:
    """(forward, backward) primitives: of a whole batch, or with GIVEN_STATISTICS of a block."""
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
    numbers = c_float(eps), c_uint(flags | onednn.SCALED | onednn.SHIFTED | (onednn.WITH_RELU if relu else 0))
    hint = create_descriptor('batch_normalization_forward', onednn.FORWARD_TRAINING, x, x, *numbers)
    return hint, create_descriptor('batch_normalization_backward', onednn.BACKWARD, x, x, x, *numbers, hint)


@cached
def _fuses_exactly(shape: tuple[int, ...], form: int) -> bool:
    """Whether oneDNN uses the same code where a ReLU follows, so that the bits are the same, and its masks are ours."""
    x = describe(shape, form)
    names = [
        [onednn.implementation(descriptor) for descriptor in _descriptors(x, 0, flags, relu)]
        for relu in (False, True)
        for flags in (0, onednn.GIVEN_STATISTICS)
    ]
    return names[:2] == names[2:] and _masks_are_ours(shape, form)


def _masks_are_ours(shape: tuple[int, ...], form: int) -> bool:
    """Whether oneDNN's masks are those that empty_masks describes, on an example."""
    forward, _ = _primitives(shape, form, True, 0.0, onednn.GIVEN_STATISTICS)
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
        'batch_normalization_forward', onednn.FORWARD_TRAINING, x, x, c_float(0), c_uint(flags)
    )
    return onednn.Primitive(descriptor, {SRC: x, DST: x, MEAN: vector, VARIANCE: vector})


def can_fuse_relu(x: np.ndarray) -> bool:
    """Whether one pass computes the batch normalisation of images x (B, C, H, W), and the ReLU after it with masks."""
    return _is_channelwise(x) or _can_fuse(x.shape, form_of(x))


def _is_channelwise(x: np.ndarray) -> bool:
    return _HAS_CHANNELWISE and channelwise.fits(x)


@cached
def _can_fuse(shape: tuple[int, ...], form: int) -> bool:
    parts = {(part.stop - part.start, *shape[1:]) for part in _batch_parts(shape)}
    return math.prod(shape[1:]) % 8 == 0 and all(_fuses_exactly(part, form) for part in parts)


def empty_masks(x: np.ndarray) -> np.ndarray:
    """Masks for images x: where the ReLU after their batch normalisation lets numbers pass.

    Returns:
        uint8: a bit for each number, in the order of memory, the first of a byte in its lowest bit, as oneDNN takes
        them for the gradient.
    """
    return np.empty(x.size // 8, np.uint8)


def batch_normalization(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, eps: float, masks: Optional[np.ndarray] = None
) -> tuple[np.ndarray, Moments]:
    """Batch normalisation (Ioffe, Szegedy, 2015) over all but the channels.

    Args:
        x: images (B, C, H, W), float32, C-contiguous or channels last.
        gamma: factor of every channel (C,), float32.
        beta: shift of every channel (C,), float32.
        eps: added to the variance.
        masks: where given, ReLU follows, which makes 0 of NaN, and fills these.

    Returns:
        y in the shape and memory order of x, and the moments, derived.
    """
    moments = Moments(gamma, beta)
    if _is_channelwise(x):
        moments.mean[:], moments.variance[:] = channelwise.mean_and_variance(x)
        moments.derive(eps)
        return scale_and_shift(x, moments.gamma * moments.inv_std, moments.beta, moments.mean, masks), moments
    is_rough = len(_batch_parts(x.shape)) == 1
    if is_rough:
        y = empty_like(x)
        _loops_at_once(x.shape, form_of(x), eps, masks is not None).run(x, y, moments.rows, masks)
        if moments.derive(eps):
            return y, moments
    _measure(x, moments, is_rough)
    moments.derive(eps)
    scale = gamma / np.sqrt(moments.variance + np.float32(eps))
    return scale_and_shift(x, scale, beta, moments.mean, masks), moments


def _batch_parts(shape: tuple[int, ...]) -> tuple[slice, ...]:
    return equal_blocks(shape[0], min(PARTS, 4 * math.prod(shape) // _BYTES_OF_PART))


@cached
def _loops_at_once(shape: tuple[int, ...], form: int, eps: float, relu: bool) -> Loops:
    """Loops that run on x, y, the rows of moments, and masks, in this order.

    They fill mean and variance; a mean is the less exact the farther it is from zero.
    """
    forward, _ = _primitives(shape, form, relu, eps, 0)
    places = {
        **{SRC: Place(0), DST: Place(1)},
        **_rows((SCALE, SHIFT, MEAN, VARIANCE), 2, shape),
        **({WORKSPACE: Place(3)} if relu else {}),
    }
    return Loops([Loop(forward, places, 1)], arrays=4)


def _rows(kinds: Sequence[int], array: int, shape: tuple[int, ...]) -> dict[int, Place]:
    """Places of arguments of every channel, which are the rows of an array."""
    return {kind: Place(array, 4 * shape[1] * i) for i, kind in enumerate(kinds)}


def _measure(x: np.ndarray, moments: Moments, is_rough: bool) -> None:
    """Fills mean and variance in float64's precision.

    Args:
        x: images (B, C, H, W).
        moments: the moments.
        is_rough: whether they hold mean and variance in float32's precision, which a batch of one part has.
    """
    parts, pixels = _batch_parts(x.shape), x[0, 0].size
    means, variances = (np.empty((len(parts), x.shape[1])) for _ in range(2))
    counts = np.array([(part.stop - part.start) * pixels for part in parts])[:, None]
    xs, form = addresses_of(x, parts), form_of(x)

    def task(i: int) -> None:
        mean, variance = statistics = np.array([moments.mean, moments.variance])
        y = scratch_like('difference', x[parts[i]])
        whitening = _whitening(y.shape, form, onednn.GIVEN_STATISTICS if is_rough else 0)
        whitening({SRC: xs[i], DST: y.ctypes.data, **dict(zip((MEAN, VARIANCE), rows_of(statistics)))})
        # The float32 mean has a rounding error; the mean of y recovers it.
        deviation = np.sqrt(variance.astype(np.float64))
        rest = np.where(deviation > 0, _sum(y) / counts[i], 0) * deviation
        means[i], variances[i] = mean + rest, np.maximum(variance - rest**2, 0)

    run(task, len(parts), around=onednn.single_threaded)
    mean = (means * counts).sum(axis=0) / counts.sum()
    variance = ((variances + (means - mean) ** 2) * counts).sum(axis=0) / counts.sum()
    moments.mean[:], moments.variance[:] = mean, variance


def _sum(x: np.ndarray) -> np.ndarray:
    """(C,) float64: sums over all but the channels."""
    if is_channels_last(x):
        # Long rows first: NumPy adds those fast.
        rows = x.transpose(0, 2, 3, 1).reshape(len(x), -1).sum(axis=0).reshape(x.shape[2], -1).sum(axis=0)
        return rows.reshape(-1, x.shape[1]).sum(axis=0, dtype=np.float64)
    return x.reshape((*x.shape[:2], -1)).sum(axis=2).sum(axis=0, dtype=np.float64)


def scale_and_shift(
    x: np.ndarray, scale: np.ndarray, shift: np.ndarray, mean: np.ndarray, masks: Optional[np.ndarray] = None
) -> np.ndarray:
    """(x - mean) * scale + shift, in this order: far from zero, another order would lose digits of x.

    Args:
        x: images (B, C, H, W), float32, C-contiguous or channels last.
        scale: factor of every channel (C,).
        shift: the number added to every channel (C,).
        mean: the number subtracted from every channel (C,).
        masks: where given, ReLU follows and fills these.
    """
    if _is_channelwise(x):
        return channelwise.scale_and_shift(x, np.array([mean, scale, shift], np.float32), masks)
    y = empty_like(x)
    vectors = np.array([mean, np.ones_like(mean), scale, shift], np.float32)
    _loops_of_scaling(x.shape, form_of(x), masks is not None).run(x, y, vectors, masks)
    return y


@cached
def _loops_of_scaling(shape: tuple[int, ...], form: int, relu: bool) -> Loops:
    """Loops that run on x, y, the rows of mean, variance, scale and shift, and masks, in this order."""
    parts = _batch_parts(shape) if relu else equal_blocks(shape[0], min(PARTS, 4 * math.prod(shape) // BYTES_OF_BLOCK))
    size, loops = math.prod(shape[1:]), []
    for blocks in grouped(parts):
        forward, _ = _primitives((blocks.size, *shape[1:]), form, relu, 0.0, onednn.GIVEN_STATISTICS)
        mask = {WORKSPACE: blocks.of(3, size // 8)} if relu else {}
        images = {SRC: blocks.of(0, 4 * size), DST: blocks.of(1, 4 * size)}
        loops.append(
            Loop(forward, {**images, **_rows((MEAN, VARIANCE, SCALE, SHIFT), 2, shape), **mask}, blocks.number)
        )
    return Loops(loops, arrays=4)


def batch_normalization_gradients(
    x: np.ndarray,
    gamma: np.ndarray,
    gy: np.ndarray,
    mean: np.ndarray,
    inv_std: np.ndarray,
    masks: Optional[np.ndarray] = None,
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
    if _is_channelwise(x):
        return channelwise.gradients(x, gamma, gy, mean, inv_std, masks)
    parts = len(_batch_parts(x.shape))
    gx = empty_like(x)
    sums = np.empty((parts, 2, x.shape[1]), np.float32)
    vectors = np.array([mean, inv_std**-2, gamma], np.float32)
    _loops_of_gradients(x.shape, form_of(x), masks is not None).run(x, gy, gx, vectors, sums, masks)
    if parts == 1:
        return (gx, *sums[0])
    ggamma, gbeta = sums.sum(axis=0)
    # What goes through the statistics of the whole batch is left to add.
    count = np.float32(x.size // x.shape[1])
    add(gx, scale_and_shift(x, -gamma * inv_std**2 * ggamma / count, -gamma * inv_std * gbeta / count, mean), out=gx)
    return gx, ggamma, gbeta


@cached
def _loops_of_gradients(shape: tuple[int, ...], form: int, relu: bool) -> Loops:
    """Loops that run on x, gy, gx, vectors, sums, and masks, in this order.

    The vectors are mean, variance and gamma; the sums, the gradients of gamma and beta of each part, (parts, 2, C).
    """
    parts = _batch_parts(shape)
    size, loops, done = math.prod(shape[1:]), [], 0
    for blocks in grouped(parts):
        flags = 0 if len(parts) == 1 else onednn.GIVEN_STATISTICS
        _, backward = _primitives((blocks.size, *shape[1:]), form, relu, 0.0, flags)
        sums = Blocks(done, 1, blocks.number).of(4, 8 * shape[1])
        places = {
            **{SRC: blocks.of(0, 4 * size), DIFF_DST: blocks.of(1, 4 * size), DIFF_SRC: blocks.of(2, 4 * size)},
            **_rows((MEAN, VARIANCE, SCALE), 3, shape),
            **{DIFF_SCALE: sums, DIFF_SHIFT: sums._replace(first=sums.first + 4 * shape[1])},
            **({WORKSPACE: blocks.of(5, size // 8)} if relu else {}),
        }
        loops.append(Loop(backward, places, blocks.number))
        done += blocks.number
    return Loops(loops, arrays=6)
