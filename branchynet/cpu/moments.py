"""The numbers of every channel in a batch normalisation: in machine code, or without llvmlite by NumPy.

They are few, so that NumPy would spend its time on the calls.
"""

from __future__ import annotations

import array as packed
import functools
from typing import TYPE_CHECKING, Any, Optional

from branchynet.cpu.layout import rows_of, takes
from branchynet.cpu.memory import address

import numpy as np

if TYPE_CHECKING:
    from branchynet.cpu.emitter import Function

_FAR = 2  # standard deviations between zero and a mean, where sums in float32 leave too much out
_IS_NEAR, _IS_FINITE = 1, 2


class Moments:
    """The moments of a batch, and the factor and shift of its batch normalisation.

    Args:
        gamma: factor of every channel, (C,) float32.
        beta: shift of every channel, (C,) float32.

    Attributes:
        gamma, beta: copies of them.
        mean: of every channel, (C,); uninitialised.
        variance: of every channel, biased, (C,); uninitialised.
        inv_std: (variance + eps)**-0.5, by ``derive``.
        rows: all these, in this order, (5, C).
        is_finite: whether they, and so the batch normalisation of finite numbers, are finite; by ``derive``.
    """

    def __init__(self, gamma: np.ndarray, beta: np.ndarray) -> None:
        self.rows = np.empty((5, len(gamma)), np.float32)
        self.gamma, self.beta, self.mean, self.variance, self.inv_std = self.rows
        self.gamma[:], self.beta[:] = gamma, beta

    def derive(self, eps: float) -> bool:
        """Fills inv_std and is_finite.

        Args:
            eps: added to the variance.

        Returns:
            Whether every mean is so near zero that float32 was enough to compute it.
        """
        codes, frame = _machine_code(), (len(self.mean), *rows_of(self.rows))
        found = _derive(self, eps) if codes is None else _call(codes['derive'], frame, (eps,))
        self.is_finite = bool(found & _IS_FINITE)
        return bool(found & _IS_NEAR)

    def move(self, running_mean: Any, running_var: Any, count: int, decay: float) -> None:
        """Moves running statistics (C,) towards these, the variance made unbiased, as Chainer does.

        Args:
            running_mean: changed in place.
            running_var: changed in place.
            count: numbers that each moment was taken of.
            decay: factor of what was.
        """
        codes = _machine_code()
        factors = decay, 1 - decay, (1 - decay) * (count / max(count - 1.0, 1.0))
        running = running_mean, running_var
        # NumPy's own numbers raise the precision.
        if codes is None or type(decay) is not float or not all(map(self._fits, running)):
            _move(self, running_mean, running_var, *factors)
            return
        places = *map(address, running), *rows_of(self.rows)[2:4]
        _call(codes['move'], (len(self.mean), *places), factors)

    def _fits(self, running: Any) -> bool:
        """Whether the machine code takes a running statistic."""
        return takes(running) and running.shape == self.mean.shape and running.flags.carray


def _call(code: Function, frame: tuple[int, ...], reals: tuple[float, ...]) -> int:
    """Calls machine code with a frame of 64-bit numbers, the last of which is the address of float64 numbers."""
    numbers = packed.array('d', reals)
    words = packed.array('q', (*frame, numbers.buffer_info()[0]))
    return code(words.buffer_info()[0])


def _derive(moments: Moments, eps: float) -> int:
    deviation = np.sqrt(moments.variance + np.float32(eps))
    np.reciprocal(deviation, out=moments.inv_std)
    is_near = (np.abs(moments.mean) <= _FAR * deviation).all()
    numbers = moments.gamma * moments.inv_std + moments.beta + moments.mean + moments.variance
    return _IS_NEAR * bool(is_near) + _IS_FINITE * bool(np.isfinite(numbers).all())


def _move(moments: Moments, running_mean: Any, running_var: Any, decay: Any, of_mean: Any, of_variance: Any) -> None:
    running_mean *= decay
    running_mean += of_mean * moments.mean
    running_var *= decay
    running_var += of_variance * moments.variance


@functools.cache
def _machine_code() -> Optional[dict[str, Function]]:
    """`_derive` and `_move` in machine code; None without llvmlite.

    Both take the address of a frame of 64-bit numbers: the number of channels, then addresses. Those of derive are of
    gamma, beta, mean, variance, inv_std, and of eps as float64; those of move of the running statistics, of mean and
    variance, and of the three factors as float64.
    """
    try:
        from branchynet.cpu.emitter import DOUBLE, INT, REAL, Emitter, constant, integer
    except ImportError:
        return None
    emit = Emitter()

    def real(numbers: Any, i: int) -> Any:
        return emit.builder.fptrunc(emit.load(emit.add(numbers, 8 * i), DOUBLE), REAL)

    def derive(frame: Any) -> Any:
        build = emit.builder
        count, *rows, inv_std, numbers = emit.words(frame, 7)
        eps = real(numbers, 0)

        def channel(i: Any, result: Any) -> list[Any]:
            gamma, beta, mean, variance = (emit.load(emit.at(row, i, 4), REAL) for row in rows)
            deviation = emit.square_root(build.fadd(variance, eps))
            inverse = build.fdiv(constant(1, REAL), deviation)
            emit.store(inverse, emit.at(inv_std, i, 4))
            bound = build.fmul(constant(_FAR, REAL), deviation)
            is_near = build.and_(
                build.fcmp_ordered('<=', mean, bound), build.fcmp_ordered('>=', mean, build.fneg(bound))
            )
            total = build.fmul(gamma, inverse)
            for number in (beta, mean, variance):
                total = build.fadd(total, number)
            is_finite = build.fcmp_ordered('==', build.fsub(total, total), constant(0, REAL))
            for is_so, bit in ((is_near, _IS_NEAR), (is_finite, _IS_FINITE)):
                result = build.and_(result, build.select(is_so, INT(-1), INT(~bit)))
            return [result]

        (result,) = emit.loop(count, channel, [integer(_IS_NEAR | _IS_FINITE)])
        return result

    def move(frame: Any) -> None:
        build = emit.builder
        count, *places, numbers = emit.words(frame, 6)
        decay, *factors = (real(numbers, i) for i in range(3))

        def channel(i: Any) -> None:
            for running, moment, factor in zip(places[:2], places[2:], factors):
                place = emit.at(running, i, 4)
                kept = build.fmul(emit.load(place, REAL), decay)
                emit.store(build.fadd(kept, build.fmul(factor, emit.load(emit.at(moment, i, 4), REAL))), place)

        emit.loop(count, channel)

    for function in (derive, move):
        emit.function(function.__name__, 1, function)
    return emit.compiled('derive', 'move')
