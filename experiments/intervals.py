"""How sure an accuracy is: intervals and tests by scipy.stats."""
from __future__ import annotations

import numpy as np
from scipy import stats

LEVEL = .95


def wilson(correct: int, count: int) -> tuple[float, float]:
    """The 95 % interval (low, high) of a share, from ``correct`` of ``count`` samples (Wilson, 1927)."""
    interval = stats.binomtest(correct, count).proportion_ci(LEVEL, method='wilson')
    return interval.low, interval.high


def over_seeds(values: list[float]) -> tuple[float, float]:
    """The 95 % interval (low, high) of the mean over trainings, by Student's t; it needs two values at least."""
    if np.ptp(values) == 0:  # Student's t needs a spread
        return values[0], values[0]
    low, high = stats.t.interval(LEVEL, len(values) - 1, np.mean(values), stats.sem(values))
    return float(low), float(high)


def accuracy(percents: list[float], images: int) -> tuple[float, float]:
    """The 95 % interval (low, high) of an accuracy in percent.

    Of one seed it is Wilson's, for the test images: how far another test set may be off. Of several seeds it is
    Student's t over them: how far the mean of other trainings may be off.

    Args:
        percents: one for each seed. images: in the test set.
    """
    if len(percents) > 1:
        return over_seeds(percents)
    low, high = wilson(round(percents[0] / 100 * images), images)
    return 100 * low, 100 * high


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p value of McNemar's test: are two classifiers right equally often?

    Args:
        only_first, only_second: samples that only the first, only the second classifies correctly.
    """
    count = only_first + only_second
    return float(stats.binomtest(only_first, count, .5).pvalue) if count else 1.
