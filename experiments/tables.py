"""The tables of every experiment in a results folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from branchynet.experiments import NETWORKS, get_experiment, intervals, pages, table1, wording
from branchynet.experiments.results import DISAGREEMENT_PERCENT, NetworkRun, Pairs, Results

import numpy as np

COLUMNS = [
    '',
    'Accuracy (%)',
    "McNemar's p",
    'T',
    'Exits (%)',
    'Released clock (ms)',
    'Gain',
    'Whole clock (ms)',
    'Gain',
    'Gain allowed',
    'Efficiency',
]


def markdown(results: Results) -> str:
    """Writes the tables of all experiments as Markdown.

    Args:
        results: of a folder.
    """
    return pages.markdown(
        [block for name, seeds in results.experiments.items() for block in of_experiment(name, seeds, results)]
    )


def of_experiment(name: str, seeds: Sequence[Any], results: Results) -> list[pages.Block]:
    """Makes the table of an experiment, and texts on how it was made and which of its times differ.

    Args:
        name: of the experiment.
        seeds: its runs.
        results: those of the folder.
    """
    if name not in NETWORKS:
        return analysis(name, seeds, results)
    return [*_network(name, seeds, results), *_disagreements(seeds)]


def _network(name: str, seeds: Sequence[NetworkRun], results: Results) -> list[pages.Block]:
    training = seeds[0].training
    text = (
        f'**{name}**, preset {results.preset}: {wording.epochs(name, seeds, results.preset)}, batch '
        f'{training.batchsize}, {training.train_samples} training images, {wording.over_seeds(seeds)}; '
        f'{seeds[0].measurement.test_samples} test images.'
    )
    machines = dict.fromkeys(wording.machine(run.measurement.environment) for run in seeds)
    network = get_experiment(name).network
    return [
        pages.Text(text),
        pages.Table(COLUMNS, _published_rows(network, wording.device_of(seeds)) + _measured_rows(network, seeds)),
        pages.Text(f'Measured on: {"; ".join(machines)}.'),
    ]


def _published_rows(network: str, device: str) -> list[list[str]]:
    """Table I's rows of a network and its B-net. The paper's times are on the released clock.

    Args:
        network: its name in the paper, without B-.
        device: 'CPU' or 'GPU'.
    """
    return [
        [
            f'{one}, published ({device})',
            row['accuracy_percent'],
            '',
            row['thresholds'],
            row['exit_percent'],
            row['time_ms'],
            row['gain'],
            '',
            '',
            '',
            '',
        ]
        for one in (network, f'B-{network}')
        for row in [table1.published(one, device)]
    ]


def _measured_rows(network: str, seeds: Sequence[NetworkRun]) -> list[list[str]]:
    """The rows of the baseline before and after joint training, and of two settings that were run by themselves.

    Args:
        network: its name in the paper, without B-.
        seeds: the runs.
    """
    baselines, images = [run.measurement.baseline for run in seeds], seeds[0].measurement.test_samples
    rows = [
        [network, wording.percent([b.accuracy_percent for b in baselines], images), '', '', '', *_times(baselines)],
        [
            f'{network} after joint training, as released',
            wording.percent([b.accuracy_as_released_percent for b in baselines], images),
            *[''] * (len(COLUMNS) - 2),
        ],
    ]
    for label, name in ('published threshold', 'published'), ('knee', 'knee'):
        settings = [getattr(run.measurement.measured, name) for run in seeds]
        rows.append(
            [
                f'B-{network}, {label}',
                wording.percent([s.accuracy_percent for s in settings], images),
                ', '.join(_p_value(s.images) for s in settings),
                ' or '.join(dict.fromkeys(wording.numbers(s.thresholds, 'g') for s in settings)),
                wording.numbers(np.mean([s.exit_percent for s in settings], axis=0), '.2f'),
                *_times(settings),
            ]
        )
    return rows


def _p_value(images: Pairs) -> str:
    return f'{intervals.mcnemar(images.only_branchy_right, images.only_baseline_right):.2g}'


def _times(settings: Sequence[Any]) -> list[str]:
    """The cells of both clocks. Each gain is shown with its accuracy; the baseline has no gain."""
    gains = [''] * 4
    if hasattr(settings[0], 'gain_whole'):
        gains = [
            wording.mean([getattr(s, key) for s in settings], 2)
            for key in ('gain_released', 'gain_whole', 'gain_allowed', 'efficiency')
        ]
        accuracy = np.mean([s.accuracy_percent for s in settings])
        gains[:2] = [f'{gain}\nat {accuracy:.2f} %' for gain in gains[:2]]
    mean, median, p95 = (
        wording.milliseconds([getattr(s.whole, key) for s in settings]) for key in ('mean_ms', 'median_ms', 'p95_ms')
    )
    released = wording.milliseconds([s.released.mean_ms for s in settings])
    return [released, gains[0], f'{mean}\n{median} / {p95}', *gains[1:]]


def _disagreements(seeds: Sequence[NetworkRun]) -> Iterator[pages.Text]:
    """A text on the settings whose composed and direct times differ; none if they agree in all seeds."""
    found = [(run.seed, setting, one) for run in seeds for setting, one in run.measurement.disagreements().items()]
    if found:
        times = '; '.join(
            f'seed {seed}, {setting} setting, {one.clock} clock: composed {one.composed_ms:.4g} ms, measured '
            f'{one.direct_ms:.4g} ms'
            for seed, setting, one in found
        )
        yield pages.Text(
            f'**Composed times differ from directly measured ones by more than {DISAGREEMENT_PERCENT} %** ({times}). A '
            f'composed time adds up times of single stages, which come from an earlier pass over '
            f'{wording.timed_images(seeds)}, and can leave out part of the cost of the call itself. To measure both '
            'again, run `branchynet measure DIR` on a quiet machine.'
        )


def analysis(name: str, seeds: Sequence[Any], results: Results) -> list[pages.Block]:
    """Makes the table of an experiment that is not a network of the paper, and a text on how it was made.

    Args:
        name: of the experiment.
        seeds: its runs.
        results: those of the folder.
    """
    text = pages.Text(
        f'**{name}**, preset {results.preset}, {wording.over_seeds(seeds)}; '
        f'{seeds[0].measurement.test_samples} test images.'
    )
    return [text, (_cache_table if name == 'figure6' else _comparison_table)(name, seeds)]


def _comparison_table(name: str, seeds: Sequence[Any]) -> pages.Table:
    experiment, rows = get_experiment(name), []
    for part in experiment.parts:
        mine = [run for run in seeds if run.part == part]
        if mine:
            published, training = experiment.published.get(part), mine[0].training
            accuracies = [run.measurement.exit_accuracy_percent[-1] for run in mine]
            rows.append(
                [
                    part,
                    wording.percent(accuracies, mine[0].measurement.test_samples),
                    '' if published is None else f'{100 * published:.2f}',
                    f'{training.main_epochs} + {training.joint_epochs}',
                    str(training.train_samples),
                ]
            )
    return pages.Table([experiment.xlabel, 'Final exit (%)', 'Published (%)', 'Epochs', 'Training images'], rows)


def _cache_table(name: str, seeds: Sequence[Any]) -> pages.Table:
    return pages.Table(
        ['Seed', 'T', 'Whole clock (ms)', 'Loads and stores', 'Last-level misses', 'Cache misses (%)', 'Tool'],
        [
            [
                str(run.seed),
                wording.numbers(point.thresholds, 'g') or 'baseline',
                f'{point.runtime_ms:.3f}',
                str(point.references),
                str(point.misses),
                f'{point.cache_miss_percent:.4f}',
                run.measurement.tool,
            ]
            for run in seeds
            for point in run.measurement.cache
        ],
    )
