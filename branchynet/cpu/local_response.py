"""Local response normalisation, in blocks for threads: in machine code for many images, else by NumPy."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Callable, Optional

from branchynet.cpu.layout import (
    addresses_of,
    dense,
    empty_like,
    image_blocks,
    is_channels_last,
    like,
    scratch_like,
    takes,
)
from branchynet.cpu.team import run_frames
from branchynet.cpu.threads import run

import numpy as np

if TYPE_CHECKING:
    from branchynet.cpu.emitter import Function

_MOST_CHANNELS = 512  # the machine code of a pixel is written out for all channels


class LocalResponse:
    """LocalResponseNormalization's method."""

    def forward_cpu(self: Any, inputs: tuple, stock: Callable) -> tuple:
        """The method of this name, for arrays that the kernels take."""
        (x,) = inputs
        if not (takes(x) and x.ndim == 4 and self.n // 2 < x.shape[1]):
            return stock(self, inputs)
        self.retain_inputs((0,))
        self.retain_outputs((0,))
        (x,) = dense(x)
        y, self.unit_scale, self.scale = local_response(x, self.n, self.k, self.alpha, self.beta)
        return (y,)


class LocalResponseGradient:
    """LocalResponseNormalizationGrad's method."""

    def forward_cpu(self: Any, inputs: tuple, stock: Callable) -> tuple:
        """The method of this name, for arrays that the kernels take."""
        x, y, gy = inputs
        if not (takes(x, y, gy, self.unit_scale, self.scale) and x.ndim == 4 and self.n // 2 < x.shape[1]):
            return stock(self, inputs)
        self.retain_inputs((0, 1, 2))
        (x,) = dense(x)
        # Where the forward pass was stock Chainer's, its arrays may have another memory order.
        y, gy, s, scale = (like(a, x) for a in (y, gy, self.unit_scale, self.scale))
        return (local_response_gx(x, y, gy, s, scale, self.n, self.alpha, self.beta),)


def _window_sum(x: np.ndarray, n: int, out: np.ndarray) -> None:
    """Writes into ``out`` the sum over n neighbouring channels, the channel itself in the middle."""
    np.copyto(out, x)
    for i in range(1, n // 2 + 1):
        out[:, i:] += x[:, :-i]
        out[:, :-i] += x[:, i:]


def _negative_power(s: np.ndarray, beta: float, out: np.ndarray) -> None:
    """Writes s ** -beta into ``out``; for the beta of the paper's networks, 0.75, by square roots."""
    if beta != 0.75:
        np.power(s, np.float32(-beta), out=out)
        return
    np.sqrt(s, out=out)
    root = scratch_like('root', s)
    np.sqrt(out, out=root)
    out *= root
    np.reciprocal(out, out=out)


def local_response(
    x: np.ndarray, n: int, k: float, alpha: float, beta: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Local response normalisation (Krizhevsky, Sutskever, Hinton, 2012, section 3.3).

    Args:
        x: images (B, C, H, W), float32, C-contiguous or channels last.
        n: channels of a window.
        k: added to the sum of squares.
        alpha: factor of the sum of squares.
        beta: exponent.

    Returns:
        y = x s**-beta, s = k + alpha (sum of x**2 over the window), and s**-beta, all in the shape and memory order
        of x.
    """
    y, s, scale = (empty_like(x) for _ in range(3))
    parts = image_blocks(x, y, s, scale)

    code = _machine_code(x, n, beta)
    if code is not None:
        _run(code['y'], parts, [x, y, s, scale], [alpha, k])
        return y, s, scale

    def task(i: int) -> None:
        part = parts[i]
        square = scratch_like('square', x[part])
        np.multiply(x[part], x[part], out=square)
        _window_sum(square, n, s[part])
        s[part] *= np.float32(alpha)
        s[part] += np.float32(k)
        _negative_power(s[part], beta, scale[part])
        np.multiply(x[part], scale[part], out=y[part])

    run(task, len(parts))
    return y, s, scale


def local_response_gx(
    x: np.ndarray,
    y: np.ndarray,
    gy: np.ndarray,
    s: np.ndarray,
    scale: np.ndarray,
    n: int,
    alpha: float,
    beta: float,
) -> np.ndarray:
    """Gradient of x: gy s**-beta - 2 alpha beta x (sum over n channels of gy y / s).

    Args:
        x: input of local_response; this and the other arrays are of its shape and memory order.
        y: its output.
        gy: gradient of y.
        s: its second result.
        scale: its third, s**-beta.
        n: as there.
        alpha: as there.
        beta: as there.
    """
    gx = empty_like(x)
    parts = image_blocks(x, y, gy, gx)

    code = _machine_code(x, n, beta)
    if code is not None:
        _run(code['gx'], parts, [x, y, gy, s, scale, gx], [-2 * alpha * beta])
        return gx

    def task(i: int) -> None:
        part = parts[i]
        ratio, total = scratch_like('square', x[part]), scratch_like('root', x[part])
        np.multiply(gy[part], y[part], out=ratio)
        ratio /= s[part]
        _window_sum(ratio, n, total)
        total *= x[part]
        total *= np.float32(-2 * alpha * beta)
        np.multiply(gy[part], scale[part], out=gx[part])
        gx[part] += total

    run(task, len(parts))
    return gx


def _machine_code(x: np.ndarray, n: int, beta: float) -> Optional[dict[str, Function]]:
    """The functions 'y' and 'gx' for images like x; None where there are none, and without llvmlite."""
    channels = x.shape[1]
    if not is_channels_last(x) or channels % 8 or channels > _MOST_CHANNELS or n // 2 > 8 or beta != 0.75:
        return None
    return _compiled(channels, n)


def _run(function: Function, parts: Sequence[slice], arrays: Sequence[np.ndarray], numbers: list) -> None:
    """Calls a function of `_compiled` for parts of the images."""
    rounded, pixels = np.array(numbers, np.float32), arrays[0][0, 0].size
    starts = zip(*(addresses_of(array, parts) for array in arrays))
    run_frames(
        function,
        [
            [(part.stop - part.start) * pixels, rounded.ctypes.data, *addresses]
            for part, addresses in zip(parts, starts)
        ],
    )


@functools.lru_cache(maxsize=16)
def _compiled(channels: int, n: int) -> Optional[dict[str, Function]]:
    """The machine code for images of these channels and beta = 0.75, with NumPy's bits; None without llvmlite.

    Each takes the address of a frame of 64-bit numbers: the number of pixels, the address of the factors, as float32,
    and the addresses of the arrays, in the order in which the functions above name them.
    """
    try:
        from branchynet.cpu.emitter import LANES, REAL, Emitter, vector
    except ImportError:
        return None
    emit, starts = Emitter(), range(0, channels, LANES)

    def window_sums(values: Sequence[Any]) -> list[Any]:
        """Of vectors of all channels, as _window_sum adds them."""
        return [window_sum(values, v) for v in range(len(values))]

    def window_sum(values: Sequence[Any], v: int) -> Any:
        total, lanes = values[v], range(LANES)
        before = values[v - 1] if v else vector(0)
        after = values[v + 1] if v + 1 < len(values) else vector(0)
        for i in range(1, n // 2 + 1):
            left = emit.pick(before, values[v], [LANES - i + lane for lane in lanes])
            right = emit.pick(values[v], after, [i + lane for lane in lanes])
            for neighbours, channel in ((left, -i), (right, i)):
                exist = [0 <= v * LANES + lane + channel < channels for lane in lanes]
                total = emit.choose(exist, emit.builder.fadd(total, neighbours), total)
        return total

    def write_y(frame: Any) -> None:
        build = emit.builder
        pixels, numbers, *arrays = emit.words(frame, 6)
        alpha, k = (emit.splat(emit.load(emit.add(numbers, 4 * i), REAL)) for i in range(2))

        def pixel(i: Any) -> None:
            x, y, s, scale = (emit.at(array, i, 4 * channels) for array in arrays)
            values = [emit.load(emit.add(x, 4 * start)) for start in starts]
            sums = window_sums([build.fmul(value, value) for value in values])
            for start, value, total in zip(starts, values, sums):
                total = build.fadd(build.fmul(total, alpha), k)
                root = emit.square_root(total)
                power = build.fdiv(vector(1), build.fmul(root, emit.square_root(root)))
                for result, place in ((build.fmul(value, power), y), (total, s), (power, scale)):
                    emit.store(result, emit.add(place, 4 * start))

        emit.loop(pixels, pixel)

    def write_gx(frame: Any) -> None:
        build = emit.builder
        pixels, numbers, *arrays = emit.words(frame, 8)
        factor = emit.splat(emit.load(numbers, REAL))

        def pixel(i: Any) -> None:
            places = [emit.at(array, i, 4 * channels) for array in arrays]
            x, y, gy, s, scale = ([emit.load(emit.add(p, 4 * start)) for start in starts] for p in places[:5])
            sums = window_sums([build.fdiv(build.fmul(a, b), c) for a, b, c in zip(gy, y, s)])
            for v, start in enumerate(starts):
                total = build.fmul(build.fmul(sums[v], x[v]), factor)
                emit.store(build.fadd(build.fmul(gy[v], scale[v]), total), emit.add(places[5], 4 * start))

        emit.loop(pixels, pixel)

    emit.function('y', 1, write_y)
    emit.function('gx', 1, write_gx)
    return emit.compiled('y', 'gx')
