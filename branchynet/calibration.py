"""Thresholds for a target, and calibrated probabilities, both from held-out data.

The held-out samples must be some that no training saw: a network is surer of samples that it was trained on, and right
more often. Thresholds that were chosen on them are judged on others, the test set.

    recorded = sweep.record(net, x_held, t_held)
    thresholds = calibration.choose(recorded, Target(accuracy_loss=0.5), baseline_correct)
    calibration.judge(sweep.record(net, x_test, t_test), thresholds, baseline_correct_on_test)

``choose`` knows every setting that the record tells apart: for one and for two thresholds its answer is exact. With a
guarantee (Learn then Test: Angelopoulos, Bates, Candès, Jordan, Lei, 2021) it answers with a setting whose loss of
accuracy, over all samples of the kind that were held out, is below the target with the given probability.

Everywhere here the loss of accuracy is in points (hundredths), and positive where early exit is right less often than
the baseline on the same samples.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from numbers import Real
from typing import Any, NamedTuple, Optional

from branchynet.batching import batches
from branchynet.exits import Setting, check_per_exit, leave_at, of_exit
from branchynet.inference import check_classifier
from branchynet.sweep import ExitRecord, check_record, pareto

import numpy as np
from attrs import define
from chainer.backends.cuda import to_cpu

LEVEL = 0.95  # of intervals
CLOCKS = 'whole', 'released'


class Target(NamedTuple):
    """The conditions that a setting of thresholds must fulfil; at least one field is set.

    With an accuracy target the cheapest such setting is the answer, otherwise the most accurate. It is the cheapest by
    multiply-adds if only these are limited, otherwise by seconds.

    Attributes:
        accuracy_loss: the largest loss of accuracy, in percentage points under the baseline.
        seconds: the longest mean time of a sample, composed from the record's times.
        macs: at most this share of the baseline's multiply-adds.
        leave: at least this share of all samples leaves at ``exit``.
        exit: from 0.
        clock: 'whole' or 'released' (timing.py).
    """

    accuracy_loss: Optional[float] = None
    seconds: Optional[float] = None
    macs: Optional[float] = None
    leave: Optional[float] = None
    exit: int = 0
    clock: str = 'whole'


class Macs(NamedTuple):
    """Multiply-adds for one sample, as cost.cost counts them.

    Attributes:
        main: of the baseline.
        exits: of all that runs for a sample that leaves at each exit.
    """

    main: int
    exits: Sequence[int]


@define(kw_only=True)
class Judgement:
    """The effect of a setting on N samples, beside the baseline.

    Attributes:
        samples: N.
        accuracy_percent: of early exit.
        baseline_percent: accuracy of the baseline.
        loss_points: the second minus the first.
        loss_interval_points: the 95 % interval of the loss over all such samples, as `loss_bound` gives its ends.
        exit_percent: samples that leave at each exit.
        released_ms: mean time of a sample on the released clock, composed.
        whole_ms: the same on the whole clock.
        macs_percent: of the baseline's multiply-adds; None where these were not given.
    """

    samples: int
    accuracy_percent: float
    baseline_percent: float
    loss_points: float
    loss_interval_points: list[float]
    exit_percent: list[float]
    released_ms: float
    whole_ms: float
    macs_percent: Optional[float] = None


class Infeasible(ValueError):
    """No setting fulfils the target; the message names the nearest target that one fulfils."""


# Temperatures


def fit_temperatures(logits: Any, t: Any) -> list[float]:
    """The temperature of every exit under which its probabilities fit the labels best.

    It minimises the mean negative log likelihood of softmax(logits / T) over T from 1/20 to 20 (Guo, Pleiss, Sun,
    Weinberger, 2017, section 4.2).

    Args:
        logits: (E, N, C), of held-out samples, from `logits_of` a net without temperatures.
        t: labels, int (N,).

    Returns:
        A float for every exit, for ``net.temperatures``.

    Raises:
        ValueError: there are no samples, or all have one label; labels are no integers; or logits are not finite, or do
            not fit the labels.
    """
    from scipy import optimize, special

    logits, t = np.asarray(logits, float), np.asarray(t)
    if logits.ndim != 3 or t.shape != logits.shape[1:2]:
        raise ValueError(f'logits have shape {logits.shape} and t {t.shape}: expected (exits, N, classes) and (N,)')
    check_held_out(t)
    if t.dtype.kind not in 'iu':
        raise ValueError(f't has dtype {t.dtype}: expected integers, the labels')
    if not np.isfinite(logits).all():
        raise ValueError('logits hold NaN or infinity: the weights hold some, or are so large that numbers overflow')
    if not 0 <= t.min() <= t.max() < logits.shape[2]:
        raise ValueError(f't holds labels from {t.min()} to {t.max()}: expected 0 to {logits.shape[2] - 1}')

    def fitted(z: np.ndarray) -> float:
        right = z[np.arange(len(t)), t]

        def loss(log_temperature: float) -> float:
            scale = math.exp(-log_temperature)
            return float(np.mean(special.logsumexp(z * scale, axis=1) - right * scale))

        bound = math.log(20)
        found = optimize.minimize_scalar(loss, bounds=(-bound, bound), method='bounded', options={'xatol': 1e-6})
        return float(math.exp(found.x))

    return [fitted(z) for z in logits]


def logits_of(net: Any, x: Any, batchsize: int = 32) -> np.ndarray:
    """Computes the logits of all exits.

    Args:
        net: a BranchyNet or a Compiled.
        x: samples (N, ...).
        batchsize: samples that run together.

    Returns:
        An array (E, N, C). Where the net has temperatures, the logits are divided by them: to fit temperatures again,
        set ``net.temperatures = None`` first.

    Raises:
        TypeError: net is neither.
        ValueError: x holds no samples.
    """
    check_classifier(net)
    if len(x) == 0:
        raise ValueError('x holds no samples: expected at least one')
    looks = [net.look(x[part]) for part in batches(len(x), batchsize)]
    return np.stack([np.concatenate([to_cpu(look.logits) for look in of_exit]) for of_exit in zip(*looks)])


def expected_calibration_error(prob: Any, t: Any, bins: int = 15) -> float:
    """How far an exit's highest probabilities lie from its accuracy.

    ECE = sum over the bins of ``|B| / N * |accuracy(B) - mean probability(B)|``, where a bin B holds the samples whose
    highest probability lies in (m / bins, (m + 1) / bins] (Guo et al., 2017, equation 3).

    Args:
        prob: softmax (N, C).
        t: labels, int (N,).
        bins: of equal width.

    Returns:
        A float in [0, 1].

    Raises:
        ValueError: there are no samples, shapes do not fit, there are no bins, or a probability is NaN.
    """
    prob, t = np.asarray(prob, float), np.asarray(t)
    if len(prob) == 0:
        raise ValueError('prob holds no samples: expected at least one')
    if prob.ndim != 2 or t.shape != prob.shape[:1]:
        raise ValueError(f'prob has shape {prob.shape}, t {t.shape}: expected (samples, classes) and (samples,)')
    if bins < 1:
        raise ValueError(f'bins is {bins}: expected 1 or more')
    if np.isnan(prob).any():
        raise ValueError('prob holds NaN: expected probabilities')
    sure, right = prob.max(axis=1), prob.argmax(axis=1) == t
    place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    return float(np.abs(np.bincount(place, right - sure, bins)).sum() / len(sure))


# Choosing


def choose(
    recorded: ExitRecord,
    target: Target,
    baseline: Any = None,
    macs: Macs | None = None,
    guarantee: float | None = None,
    seed: int = 0,
) -> list[float | None]:
    """The thresholds that fulfil a target on held-out samples; see Target for what is optimised.

    For one and two thresholds all settings are compared that the record tells apart, in O(N log N) and O(N^2). For
    more, those before the last come from a grid of quantiles, of about GRID combinations, and from about GRID settings
    in which all exits from some exit on have one threshold and those before it none; with each of them every rank of
    the last is compared. From ten exits on, the grid would be too coarse and is left out.

    With a guarantee, a third of the samples, chosen at random, gives a path: its Pareto front of accuracy and cost,
    from the most accurate setting to the cheapest, in STEPS steps. The other samples test the settings in this order,
    each by `p_value`, up to the first that fails (fixed-sequence testing on split data, in Learn then Test). The answer
    is the last setting that passed and fulfils the other targets on all samples. If the held-out samples are a random
    choice from all that are ever classified, the loss of accuracy on the latter is below the target, with at least the
    probability of the guarantee.

    Args:
        recorded: an ExitRecord of N held-out samples.
        target: the conditions that the setting must fulfil.
        baseline: whether the baseline is right, bool (N,); None: the final exit is the baseline.
        macs: of the network; needed for a target of multiply-adds.
        guarantee: None, or a probability such as 0.95, for a target of accuracy.
        seed: of the choice of the third.

    Returns:
        A threshold for every exit but the last, on the scale of the record's criterion; None: no sample leaves there.

    Raises:
        Infeasible: no setting fulfils the target. The message names the nearest target that one fulfils.
        TypeError: the target is no Target, or a field of it or the guarantee is no number.
        ValueError: the target is impossible, or the record is empty or does not fit the other arguments.
    """
    baseline = _checked_baseline(recorded, baseline)
    check_target(target, len(recorded.score), guarantee)
    _check_macs(macs, len(recorded.score))
    if target.macs is not None and macs is None:
        raise ValueError('macs is a target, and the multiply-adds of the network are missing: give them as macs=')
    if guarantee is not None:
        return _guaranteed(recorded, target, baseline, macs, guarantee, seed)
    space, bounds = _Space(recorded, target, macs), _bounds(recorded, target, baseline, macs)
    found = space.best(bounds, _objective(target))
    if found is None:
        raise Infeasible(_nearest(space, bounds, target, baseline, macs))
    return found[1]


GRID = 1000
_NOBODY = -math.inf, None  # the cut below which no key lies, and its threshold


class _Totals(NamedTuple):
    """Sums over all samples, less of each being better: of settings, arrays (S,); as bounds, numbers.

    Attributes:
        wrong: samples that are classified wrongly.
        seconds: of all samples, on the target's clock.
        macs: multiply-adds of all samples.
        staying: samples that do not leave at the target's exit.
    """

    wrong: Any
    seconds: Any
    macs: Any
    staying: Any


# The field of _Totals that each field of Target limits.
_KINDS = {
    'accuracy_loss': 'wrong',
    'seconds': 'seconds',
    'macs': 'macs',
    'leave': 'staying',
}


def _objective(target: Target) -> list[str]:
    """The fields of _Totals that are made small, the first before the second."""
    cost = 'macs' if target.macs is not None and target.seconds is None else 'seconds'
    return [cost, 'wrong'] if target.accuracy_loss is not None else ['wrong', cost]


def _bounds(recorded: ExitRecord, target: Target, baseline: np.ndarray, macs: Macs | None) -> _Totals:
    """The highest totals that fulfil the target; infinite where it says nothing."""
    samples, bounds = len(baseline), dict.fromkeys(_Totals._fields, math.inf)
    if target.accuracy_loss is not None:
        bounds['wrong'] = math.floor((~baseline).sum() + target.accuracy_loss / 100 * samples + _ROUNDING)
    if target.seconds is not None:
        bounds['seconds'] = target.seconds * samples * (1 + _ROUNDING)
    if target.macs is not None and macs is not None:
        bounds['macs'] = target.macs * macs.main * samples * (1 + _ROUNDING)
    if target.leave is not None:
        bounds['staying'] = math.floor((1 - target.leave) * samples + _ROUNDING)
    return _Totals(**bounds)


_ROUNDING = 1e-9  # a target that was computed from a record is fulfilled by that record


class _Space:
    """Every setting that a record tells apart, in blocks of settings that share all thresholds but the last."""

    def __init__(self, recorded: ExitRecord, target: Target, macs: Macs | None) -> None:
        exits, samples = recorded.score.shape
        self._criterion = recorded.criterion
        order = recorded.key[-2].argsort(kind='stable')
        self._key = recorded.key[:-1, order]  # (E - 1, N)
        seconds = np.cumsum(getattr(recorded, target.clock), axis=0)
        exit_macs = np.zeros(exits) if macs is None else np.array(macs.exits, float)
        # (E, 4, N): the amounts that a sample adds to the _Totals if it leaves at an exit.
        self._added = np.array(
            [
                [
                    ~recorded.correct[k, order],
                    seconds[k, order],
                    np.full(samples, exit_macs[k]),
                    np.full(samples, k != target.exit),
                ]
                for k in range(exits)
            ],
            float,
        )

    def blocks(self) -> Iterator[tuple[_Totals, Callable[[int], list[float | None]]]]:
        """Yields the totals of settings, and a function that gives the thresholds of the i-th of them."""
        for cuts in self._combinations():
            yield self._block(cuts)

    def _combinations(self) -> Iterator[list[tuple[Any, float | None]]]:
        """Cuts of all exits before the last early one."""
        others = len(self._key) - 1
        if others <= 1:
            yield from ([cut] for cut in self._cuts(self._key[0])) if others else [[]]
            return
        each = round(GRID ** (1 / others))
        if each > 2:
            yield from map(list, product(*(self._cuts(key, each) for key in self._key[:-1])))
        # A grid of many exits is too coarse for most targets. One threshold for all from some exit on has only two
        # numbers to choose, and does nearly as well.
        for cut in self._cuts(self._key[:-1].ravel(), max(100, GRID // others)):
            for off in range(others):
                yield [_NOBODY] * off + [cut] * (others - off)

    def _cuts(self, key: np.ndarray, count: int | None = None) -> list[tuple[Any, float | None]]:
        """Cuts, each with the threshold that it stands for.

        Args:
            key: of samples.
            count: at about so many quantiles; None: all that the keys tell apart.
        """
        key = np.sort(key)
        ranks = _ranks(key)
        if count is not None:
            ranks = np.unique(ranks[np.linspace(0, len(ranks) - 1, count).round().astype(int)])
        thresholds = [self._criterion.threshold(key, rank) for rank in ranks]
        return [(self._criterion.cut(threshold, key.dtype), threshold) for threshold in thresholds]

    def _block(self, cuts: list[tuple[Any, float | None]]) -> tuple[_Totals, Callable[[int], list[float | None]]]:
        stays, total = np.ones(self._key.shape[1], bool), np.zeros(4)
        for key, (cut, _), added in zip(self._key, cuts, self._added):
            total += added @ (stays & (key < cut))
            stays &= ~(key < cut)
        here, later = self._added[-2:]
        changes = (here - later)[:, stays]  # where one more of them leaves before the last exit
        totals = np.zeros((4, changes.shape[1] + 1))
        np.cumsum(changes, axis=1, out=totals[:, 1:])
        totals += (total + later @ stays)[:, None]
        key = self._key[-1, stays]
        ranks = _ranks(key)

        def thresholds(i: int) -> list[float | None]:
            return [threshold for _, threshold in cuts] + [self._criterion.threshold(key, ranks[i])]

        return _Totals(*totals[:, ranks]), thresholds

    def best(self, bounds: _Totals, objective: Sequence[str]) -> tuple[_Totals, list[float | None]] | None:
        """The totals and thresholds of the best setting within bounds; None where no setting is."""
        best: tuple[_Totals, list[float | None]] | None = None
        for totals, thresholds in self.blocks():
            within = np.flatnonzero(np.all([total <= bound for total, bound in zip(totals, bounds)], axis=0))
            if len(within):
                i = within[np.lexsort([getattr(totals, name)[within] for name in reversed(objective)])[0]]
                found = _Totals(*(float(total[i]) for total in totals))
                if best is None or _by(found, objective) < _by(best[0], objective):
                    best = found, thresholds(i)
        return best

    def front(self, cost: str) -> list[list[float | None]]:
        """The thresholds of the settings on the Pareto front of accuracy and a cost, the most accurate first."""
        points: list[tuple[float, float, list[float | None]]] = []
        for totals, thresholds in self.blocks():
            costs = getattr(totals, cost)
            points += [(-totals.wrong[i], costs[i], thresholds(i)) for i in pareto(-totals.wrong, costs)]
        right, costs, found = zip(*points)
        return [found[i] for i in pareto(right, costs)[::-1]]


def _by(totals: _Totals, objective: Sequence[str]) -> list[float]:
    return [getattr(totals, name) for name in objective]


def _ranks(key: np.ndarray) -> np.ndarray:
    """How many samples a threshold can let leave, given their sorted keys (N,); equal keys leave together."""
    key = key[: np.searchsorted(key, math.inf)]  # infinite keys and NaN never leave
    ends = 1 + np.flatnonzero(key[1:] != key[:-1])
    return np.concatenate([[0], ends, [len(key)] * bool(len(key))]).astype(int)


def _nearest(space: _Space, bounds: _Totals, target: Target, baseline: np.ndarray, macs: Macs | None) -> str:
    """The message of Infeasible: for every part of the target, the nearest that can be fulfilled with the other parts.

    Where the other parts cannot be fulfilled either, it is the nearest that can be fulfilled alone.
    """
    wanted = [name for name in _KINDS if getattr(target, name) is not None]
    words = ' and '.join(f'{name} {getattr(target, name):g}' for name in wanted)
    for others, alone in (bounds, ''), (_Totals(*[math.inf] * 4), ' alone'):
        found = {name: space.best(others._replace(**{_KINDS[name]: math.inf}), [_KINDS[name]]) for name in wanted}
        nearest = [
            f'{name} {_as_target(name, getattr(best[0], _KINDS[name]), baseline, macs)}{alone}'
            for name, best in found.items()
            if best is not None
        ]
        if nearest:
            break
    return f'no setting of thresholds fulfils {words}: the nearest that can be fulfilled is {" or ".join(nearest)}'


def _as_target(name: str, total: float, baseline: np.ndarray, macs: Macs | None) -> str:
    """A total as a number of Target, of four digits, rounded so that the total fulfils it."""
    mean = total / len(baseline)
    if name == 'accuracy_loss':
        return _rounded_up(100 * (mean - float((~baseline).mean())))
    if name == 'leave':
        return _rounded_up(mean - 1).lstrip('-')  # rounded down
    return _rounded_up(mean / macs.main if name == 'macs' and macs is not None else mean)


def _rounded_up(value: float) -> str:
    if abs(value) < 1e-12:
        return '0'
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 3)
    return f'{math.ceil(value / unit - 1e-6) * unit:.4g}'


# The guarantee


def _guaranteed(
    recorded: ExitRecord, target: Target, baseline: np.ndarray, macs: Macs | None, guarantee: float, seed: int
) -> list[float | None]:
    """choose, with a guarantee."""
    assert target.accuracy_loss is not None  # check_target was called
    if len(baseline) < 3:
        raise ValueError(
            f'the record holds {len(baseline)} samples: a guarantee needs three at least, and far more to tell'
        )
    bounds = _bounds(recorded, target, baseline, macs)._replace(wrong=math.inf)
    for_path = path_part(len(baseline), seed)
    for_tests = np.setdiff1d(np.arange(len(baseline)), for_path)
    chosen, passed = None, 0
    path = _Space(_part(recorded, for_path), target, macs).front(_objective(target)[0])
    for i in np.unique(np.linspace(0, len(path) - 1, STEPS).round().astype(int)):
        thresholds = path[i]
        lost, gained = _lost_and_gained(_part(recorded, for_tests), thresholds, baseline[for_tests])
        if p_value(lost, gained, len(for_tests), target.accuracy_loss / 100) > 1 - guarantee:
            break
        passed += 1
        if _fulfils(recorded, thresholds, bounds, target, macs):
            chosen = thresholds
    if chosen is not None:
        return chosen
    if passed:
        raise Infeasible(
            f'none of the {passed} settings whose loss of accuracy is guaranteed fulfils the other targets: loosen one'
        )
    bound = 100 * loss_bound(lost, gained, len(for_tests), 1 - guarantee)
    raise Infeasible(
        f'{len(for_tests)} samples cannot guarantee accuracy_loss {target.accuracy_loss:g} for any setting: the '
        f'nearest that they can guarantee is accuracy_loss {_rounded_up(bound)}; more held-out samples lower it'
    )


STEPS = 50  # of the path


def path_part(samples: int, seed: int) -> np.ndarray:
    """The third of N samples that gives the path of a guarantee.

    Whatever else is fitted on held-out samples before `choose`, such as temperatures, must not use the others: then the
    guarantee holds for it too.

    Args:
        samples: N.
        seed: as in `choose`.

    Returns:
        Indices, int (N // 3,).
    """
    return np.random.RandomState(seed).permutation(samples)[: samples // 3]


def _part(recorded: ExitRecord, index: np.ndarray) -> ExitRecord:
    """The record of some of the samples."""
    return recorded._replace(
        **{name: getattr(recorded, name)[:, index] for name in ('score', 'correct', 'released', 'whole')}
    )


def _fulfils(
    recorded: ExitRecord, thresholds: list[float | None], bounds: _Totals, target: Target, macs: Macs | None
) -> bool:
    """Whether a setting's totals are within bounds of seconds, multiply-adds and staying samples."""
    exits, each = _exits(recorded, thresholds), np.arange(recorded.score.shape[1])
    seconds = np.cumsum(getattr(recorded, target.clock), axis=0)[exits, each].sum()
    total_macs = 0 if macs is None else np.take(macs.exits, exits).sum()
    return seconds <= bounds.seconds and total_macs <= bounds.macs and (exits != target.exit).sum() <= bounds.staying


def p_value(lost: int, gained: int, samples: int, loss: float) -> float:
    """P-value of the hypothesis that early exit is right less often than the baseline, by ``loss`` or more.

    Of N samples, C are right by early exit alone and B by the baseline alone, with probabilities q and q + loss or
    more. If q were known, P(B - C <= lost - gained), a sum of binomial terms, would be an exact p-value. It falls where
    the probability of B rises, and rises with that of C. So over the interval of Clopper and Pearson for q, cut into
    cells, its highest value is at most that of some cell's highest q beside q + loss from the cell's lowest. The
    probability that q lies outside the interval, 1/1000, is added (Berger and Boos, 1994). So P(p_value <= a) <= a for
    every a, N and q.

    Args:
        lost: samples that only the baseline classifies correctly.
        gained: samples that only early exit classifies correctly.
        samples: N.
        loss: a share of the samples (a hundredth of points), from -1 to 1.

    Returns:
        A float in (0, 1].
    """
    from scipy import stats

    interval = stats.binomtest(gained, samples).proportion_ci(1 - OUTSIDE, method='exact')
    highest_q = (1 - loss) / 2  # q and q + loss are 1 at most together
    if highest_q < interval.low:
        return OUTSIDE
    edges = np.linspace(interval.low, min(interval.high, highest_q), CELLS + 1)
    highest_p = _share_below(lost - gained, samples, np.maximum(edges[:-1] + loss, 0), edges[1:]).max()
    return float(min(1.0, highest_p + OUTSIDE))


CELLS = 200
OUTSIDE = 1e-3  # the probability that the interval of the nuisance parameter leaves out; it adds to every p value


def _share_below(most: int, samples: int, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """P(B - C <= most) for samples of which B have probability ``up`` (K,) and C ``down`` (K,), at most 1e-9 too high.

    The distribution of B - C is the inverse Fourier transform of a power of one sample's. Values that lie further from
    the mean than ``far`` have a probability below 1e-9, by Bernstein's inequality, and count in full.
    """
    mean, log = samples * (up - down), math.log(2e9)
    far = math.sqrt(2 * log * samples * (up + down).max()) + 4 / 3 * log
    first = math.floor(mean.min() - far)
    size = 2 ** math.ceil(math.log2(mean.max() + far - first + 1))
    turn = np.exp(-2j * math.pi / size * np.arange(size // 2 + 1))[:, None]
    shares = np.fft.irfft((1 - up - down + up * turn + down * turn.conj()) ** samples, size, axis=0)
    within = np.arange(first, min(most, first + size - 1) + 1) % size
    return np.clip(shares[within].sum(axis=0), 0, 1) + 1e-9


def loss_bound(lost: int, gained: int, samples: int, error: float) -> float:
    """A number that the loss of accuracy lies below, but for a probability of ``error``: p_value, inverted.

    Args:
        lost: as in p_value.
        gained: as in p_value.
        samples: as in p_value.
        error: above OUTSIDE.

    Returns:
        A share of the samples.
    """
    from scipy import optimize

    def excess(loss: float) -> float:
        return p_value(lost, gained, samples, loss) - error

    found = (lost - gained) / samples
    high = min(1.0, found + 10 * (math.sqrt(lost + gained) + 1) / samples)
    while excess(high) > 0:
        if high == 1:
            return 1.0
        high = min(1.0, 2 * high - found)
    return float(optimize.brentq(excess, found, high, xtol=1e-6)) if excess(found) > 0 else found


# Judging


def judge(recorded: ExitRecord, thresholds: Setting, baseline: Any = None, macs: Macs | None = None) -> Judgement:
    """The effect of a setting on the samples of a record, such as those of a test set.

    Args:
        recorded: an ExitRecord of N samples.
        thresholds: one for every exit but the last, as `choose` returns them, or a number for all of them.
        baseline: as in `choose`.
        macs: of the network, to count them.

    Returns:
        A Judgement.

    Raises:
        TypeError: recorded is no ExitRecord, or holds something else than numbers.
        ValueError: the record is empty, or does not fit the other arguments.
    """
    baseline = _checked_baseline(recorded, baseline)
    _check_macs(macs, len(recorded.score))
    exits, each = _exits(recorded, thresholds), np.arange(len(baseline))
    lost, gained = _lost_and_gained(recorded, thresholds, baseline)
    ends = [-loss_bound(gained, lost, len(each), (1 - LEVEL) / 2), loss_bound(lost, gained, len(each), (1 - LEVEL) / 2)]
    released, whole = (np.cumsum(times, axis=0)[exits, each].mean() for times in (recorded.released, recorded.whole))
    return Judgement(
        samples=len(each),
        accuracy_percent=100 * float(recorded.correct[exits, each].mean()),
        baseline_percent=100 * float(baseline.mean()),
        loss_points=100 * (lost - gained) / len(each),
        loss_interval_points=[100 * end for end in ends],
        exit_percent=(100 * np.bincount(exits, minlength=len(recorded.score)) / len(each)).tolist(),
        released_ms=1000 * float(released),
        whole_ms=1000 * float(whole),
        macs_percent=None if macs is None else 100 * float(np.take(macs.exits, exits).mean()) / macs.main,
    )


def _exits(recorded: ExitRecord, thresholds: Setting) -> np.ndarray:
    """The exit (N,) where each sample leaves."""
    check_per_exit('thresholds', thresholds, len(recorded.score) - 1)
    exits = range(len(recorded.score) - 1)
    cuts = [recorded.criterion.cut(of_exit(thresholds, k), recorded.score.dtype) for k in exits]
    return leave_at(recorded.key, cuts)


def _lost_and_gained(recorded: ExitRecord, thresholds: Setting, baseline: np.ndarray) -> tuple[int, int]:
    """Samples that only the baseline, and that only early exit classifies correctly."""
    correct = recorded.correct[_exits(recorded, thresholds), np.arange(len(baseline))]
    return int((baseline & ~correct).sum()), int((correct & ~baseline).sum())


# Checks


def check_held_out(t: np.ndarray) -> None:
    """Checks the labels (N,) of held-out samples.

    Raises:
        ValueError: there are none, or all are the same.
    """
    if len(t) == 0:
        raise ValueError('no samples are held out: expected some of every class')
    if (t == t[0]).all():
        raise ValueError(f'all {len(t)} held-out samples have the label {t[0]}: expected some of every class')


def _checked_baseline(recorded: ExitRecord, baseline: Any) -> np.ndarray:
    check_record(recorded)
    exits, samples = recorded.score.shape
    if samples == 0:
        raise ValueError('the exit record is empty: expected the record of held-out samples')
    if exits < 2:
        raise ValueError('the record has a single exit, where all samples leave: there is no threshold to choose')
    if baseline is None:
        return recorded.correct[-1]
    baseline = np.asarray(baseline)
    if baseline.shape != (samples,) or baseline.dtype != bool:
        raise ValueError(
            f'baseline has shape {baseline.shape} and dtype {baseline.dtype}: expected bool of shape ({samples},)'
        )
    return baseline


def check_target(target: Target, exits: int, guarantee: float | None = None) -> None:
    """Checks a target by itself, before the time of a record is spent.

    Args:
        target: the conditions that the thresholds must fulfil.
        exits: number of the net's exits.
        guarantee: as in `choose`.

    Raises:
        TypeError: a field or the guarantee has the wrong type.
        ValueError: no field is set, or one or the guarantee is out of its range.
    """
    if not isinstance(target, Target):
        raise TypeError(f'target is {target!r}: expected a calibration.Target')
    wanted = {name: getattr(target, name) for name in _KINDS if getattr(target, name) is not None}
    if not wanted:
        raise ValueError(f'the target is empty: expected {", ".join(_KINDS)} or several of them')
    for name, value in wanted.items():
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError(f'{name} is {value!r}: expected a number')
        low, high, expected = _RANGES[name]
        if not low <= float(value) <= high:  # NaN too
            raise ValueError(f'{name} is {value}: expected {expected}')
    if target.clock not in CLOCKS:
        raise ValueError(f'clock is {target.clock!r}: expected {" or ".join(CLOCKS)}')
    if target.exit not in range(exits - 1):
        raise ValueError(f'exit is {target.exit}: expected 0 to {exits - 2}, as all leave at the last exit')
    if guarantee is None:
        return
    if target.accuracy_loss is None:
        raise ValueError('a guarantee is one of accuracy: give the target an accuracy_loss')
    if not isinstance(guarantee, Real) or isinstance(guarantee, bool):
        raise TypeError(f'guarantee is {guarantee!r}: expected a number')
    if not 0 < guarantee < 1 - OUTSIDE:
        raise ValueError(f'guarantee is {guarantee}: expected a number between 0 and {1 - OUTSIDE}')


def _check_macs(macs: Macs | None, exits: int) -> None:
    if macs is not None and not all(isinstance(count, Real) for count in [macs.main, *macs.exits]):
        raise TypeError(
            'macs does not hold numbers alone: expected Macs(costs.main.macs, [e.leaving.macs for e in costs.exits])'
        )
    if macs is not None and len(macs.exits) != exits:
        raise ValueError(f'macs has {len(macs.exits)} exits: expected {exits}')


_POSITIVE = math.ulp(0.0), sys.float_info.max, 'a finite number above 0'
_RANGES = {
    'accuracy_loss': (-100, 100, 'points from -100 to 100'),
    'seconds': _POSITIVE,
    'macs': _POSITIVE,
    'leave': (0, 1, 'a share from 0 to 1'),
}
