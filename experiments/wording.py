"""Figures and origins of runs in words, as cells and sentences of reports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from branchynet import sweep
from branchynet.experiments import claims, intervals
from branchynet.experiments.results import Environment, NetworkRun

import numpy as np


def percent(percents: Sequence[float], images: int) -> str:
    """Writes the mean of accuracies or shares, and its 95 % interval in a second line.

    Args:
        percents: one for each seed.
        images: number of test images.
    """
    low, high = intervals.accuracy(list(percents), images)
    return f'{mean(percents, 2)}\n{low:.2f} to {high:.2f}'


def mean(values: Sequence[float], digits: int) -> str:
    """Writes the mean; of several values also their standard deviation and number.

    Args:
        values: one for each seed.
        digits: after the point.
    """
    text = f'{np.mean(values):.{digits}f}'
    return text if len(values) == 1 else f'{text} ± {np.std(values, ddof=1):.{digits}f} ({len(values)})'


def spread(values: Sequence[float]) -> str:
    """Writes the mean; of several values also their standard deviation.

    Args:
        values: one for each seed.
    """
    text = f'{np.mean(values):.2f}'
    return text if len(values) == 1 else f'{text} ± {np.std(values, ddof=1):.2f}'


def numbers(values: Sequence[float], form: str) -> str:
    """Writes numbers with blanks between them, as the published tables do.

    Args:
        values: the numbers.
        form: of each, as format() takes it.
    """
    return ' '.join(f'{v:{form}}' for v in values)


def milliseconds(values: Sequence[float]) -> str:
    """Writes the mean as `mean` does, with three significant digits.

    Args:
        values: one for each seed.
    """
    return mean(values, max(0, 2 - math.floor(math.log10(np.mean(values)))))


def over_seeds(runs: Sequence[Any]) -> str:
    """Says which seed figures are of, or of how many they are the mean.

    Args:
        runs: of one experiment.
    """
    seeds = list(dict.fromkeys(run.seed for run in runs))
    return f'seed {seeds[0]}' if len(seeds) == 1 else f'mean ± std (count) of {len(seeds)} seeds'


def epochs(name: str, seeds: Sequence[NetworkRun], preset: str) -> str:
    """Puts the numbers of epochs into words, and those of the preset where a training has not ended.

    Args:
        name: of the experiment.
        seeds: its runs.
        preset: its name.
    """
    short = claims.fewer_epochs(name, seeds, preset)
    counts = dict.fromkeys((run.training.main_epochs, run.training.joint_epochs) for run in seeds)
    text = ' or '.join(f'{main} + {joint}' for main, joint in counts) + ' epochs'
    if short is None:
        return text
    _, whole = short
    return f'{text} (unfinished: the preset has {whole.main_epochs} + {whole.joint_epochs})'


def timed_images(seeds: Sequence[NetworkRun]) -> str:
    """Says which images the times of the stages were taken on, of which times of settings are composed.

    Args:
        seeds: runs of networks.
    """
    some = any(run.measurement.compiled and run.measurement.test_samples > sweep.TIMED for run in seeds)
    return f'the first {sweep.TIMED} test images only' if some else 'all test images'


def device_of(seeds: Sequence[NetworkRun]) -> str:
    """Returns Table I's name of the device that a network was measured on, 'CPU' or 'GPU'.

    Args:
        seeds: its runs.
    """
    return 'GPU' if 'cupy' in seeds[0].measurement.device else 'CPU'


def commit(environment: Environment) -> str:
    """Writes the commit of a run, and whether the checkout was changed.

    Args:
        environment: of the run.
    """
    return (environment.commit or 'unknown')[:12] + {'dirty': ', changed'}.get(environment.tree or '', '')


def machine(environment: Environment) -> str:
    """Describes the machine of a run.

    Args:
        environment: of the run.
    """
    blas = ', '.join(
        f'{b.internal_api} {b.version} ({b.architecture}, {b.num_threads} threads)'
        for b in environment.blas
        if b.internal_api != 'openmp'
    )
    return ', '.join(
        [
            environment.cpu,
            f'{environment.cores} cores',
            *environment.gpus,
            f'Python {environment.python}',
            f'NumPy {environment.numpy}',
            blas,
        ]
    )
