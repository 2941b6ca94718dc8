"""The uncertainty of an accuracy: intervals and tests from scipy.stats."""

from __future__ import annotations

import numpy as np
from scipy import stats

LEVEL = 0.95


def wilson(correct: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson, 1927).

    Args:
        correct: number of samples that count for the share.
        count: number of all samples.

    Returns:
        Its ends (low, high), in [0, 1].
    """
    interval = stats.binomtest(correct, count).proportion_ci(LEVEL, method='wilson')
    return interval.low, interval.high


def over_seeds(values: list[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean over trainings.

    Args:
        values: one for each training; at least two.

    Returns:
        Its ends (low, high), in the unit of the values.
    """
    error = stats.sem(values)
    if error == 0:  # Student's t needs a spread, and one that float64 can hold
        return values[0], values[0]
    low, high = stats.t.interval(LEVEL, len(values) - 1, np.mean(values), error)
    return float(low), float(high)


def accuracy(percents: list[float], images: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy.

    For one seed it is Wilson's interval over the test images: the uncertainty that comes from the choice of test
    images. For several seeds it is Student's interval over the seeds: the uncertainty that comes from the trainings.

    Args:
        percents: accuracies (%), one for each seed.
        images: number of images in the test set.

    Returns:
        Its ends (low, high), in percent.
    """
    if len(percents) > 1:
        return over_seeds(percents)
    low, high = wilson(round(percents[0] / 100 * images), images)
    return 100 * low, 100 * high


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p value of McNemar's test for the hypothesis that two classifiers are equally accurate.

    Args:
        only_first: number of samples that only the first classifies correctly.
        only_second: number of samples that only the second classifies correctly.
    """
    count = only_first + only_second
    return float(stats.binomtest(only_first, count, 0.5).pvalue) if count else 1.0
