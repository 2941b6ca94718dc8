"""The parts of README.md and docs/ that are generated from results folders, between two markers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from branchynet.experiments import NAMES, NETWORKS, claims, get_experiment, pages, table1, tables, wording
from branchynet.experiments.claims import FAIL, NOT_RUN, PASS, Verdict
from branchynet.experiments.results import NetworkRun, Results
from branchynet.experiments.verdicts import counted, reasons

import numpy as np

OVERVIEW = [
    '',
    'Accuracy (%): published',
    'measured',
    'Leaving at each exit (%): published',
    'measured',
    'Gain: published',
    'released clock',
    'whole clock',
    'Preset: trained',
]


def updated(text: str, found: Sequence[Results]) -> str:
    """Replaces the generated parts of a Markdown page, between the markers `tables`, `verdicts` and `reproduces`.

    Args:
        text: of the page.
        found: results of the folders that the page shows.

    Returns:
        The new text.

    Raises:
        ValueError: the page has none of these pairs of markers.
    """
    parts = {
        'tables': lambda: overview(found),
        'verdicts': lambda: by_experiment(found),
        'reproduces': lambda: reproduces(found),
    }
    names = [name for name in parts if pages.markers(name)[0] in text]
    if not names:
        raise ValueError(
            f'expected the lines {" and ".join(pages.markers("tables"))}, or the same with verdicts or reproduces'
        )
    for name in names:
        text = pages.between_markers(text, parts[name](), name)
    return text


def overview(found: Sequence[Results]) -> str:
    """Writes the tables of README.md.

    Args:
        found: results of one folder each.

    Returns:
        Markdown: the main figures of all networks in one table, the comparisons, and how many claims hold.
    """
    networks, comparisons = [], []
    for results in found:
        for name, seeds in results.experiments.items():
            if name in NETWORKS:
                networks += _overview_rows(name, seeds, results)
            elif name != 'figure6':
                comparisons += tables.analysis(name, seeds, results)
    page = [*([pages.Table(OVERVIEW, networks)] if networks else []), *comparisons]
    checked = [v for v in _merged(map(claims.check, found)) if v.status != NOT_RUN]
    if checked:
        page.append(pages.Text(_holding(checked)))
    return pages.markdown(page)


def _holding(checked: Sequence[Verdict]) -> str:
    """How many claims hold, and how many figures these are: settings that differ in later thresholds share some."""
    figures = {(v.claim.experiment, v.claim.entry['measure'], v.claim.expected, tuple(v.measured)): v for v in checked}
    return (
        f'Of {len(checked)} claims that these runs can check, {counted(checked)[PASS]} hold; they are '
        f'{len(figures)} different figures, of which {counted(list(figures.values()))[PASS]} hold.'
    )


def by_experiment(found: Sequence[Results]) -> str:
    """Writes the table of README.md, as Markdown, that says how many claims hold, fail and were not run.

    Args:
        found: results of one folder each.
    """
    merged = _merged(map(claims.check, found))
    trained: dict[str, str] = {}
    for results in found:
        for name, seeds in results.experiments.items():
            count = len({run.seed for run in seeds})
            amount = f'{results.preset}, {count} seed{"s" if count > 1 else ""}'
            parts, all_parts = {run.part for run in seeds}, get_experiment(name).parts
            if len(parts) < len(all_parts):
                amount += f', {len(parts)} of {len(all_parts)} networks'
            if claims.fewer_epochs(name, seeds, results.preset):
                amount += ', unfinished'
            trained[name] = f'{trained[name]}; {amount}' if name in trained else amount
    rows = []
    for name in NAMES:
        counts = counted([v for v in merged if v.claim.experiment == name])
        rows.append([get_experiment(name).title, trained.get(name, NOT_RUN), *map(str, counts.values())])
    return pages.markdown([pages.Table(['Experiment', 'Trained', 'Claims: hold', 'fail', 'not run'], rows)])


def _overview_rows(name: str, seeds: Sequence[NetworkRun], results: Results) -> list[list[str]]:
    """A row of a network and one of its B-net."""
    network, device = get_experiment(name).network, wording.device_of(seeds)
    base, branchy = (table1.published(one, device) for one in (network, f'B-{network}'))
    baselines = [run.measurement.baseline for run in seeds]
    settings = [run.measurement.measured.published for run in seeds]
    as_released = wording.spread([b.accuracy_as_released_percent for b in baselines])
    alone = wording.spread([b.accuracy_percent for b in baselines])
    amount = f'{wording.epochs(name, seeds, results.preset)}, {len(seeds)} seed{"s" if len(seeds) > 1 else ""}'
    return [
        [
            f'{network} ({device})',
            base['accuracy_percent'],
            f'{as_released}\nalone {alone}',
            *[''] * 5,
            f'{results.preset}: {amount}',
        ],
        [
            f'B-{network}',
            branchy['accuracy_percent'],
            wording.spread([s.accuracy_percent for s in settings]),
            branchy['exit_percent'],
            wording.numbers(np.mean([s.exit_percent for s in settings], axis=0), '.1f'),
            branchy['gain'],
            *(wording.spread([getattr(s, f'gain_{clock}') for s in settings]) for clock in ('released', 'whole')),
            '',
        ],
    ]


def reproduces(found: Sequence[Results]) -> str:
    """Writes the tables of docs/reproducing.md, "What reproduces, what does not, and why", as Markdown.

    Args:
        found: results of one folder each.
    """
    checks = [claims.check(results) for results in found]
    rows: list[list[str]] = []
    for results, verdicts in zip(found, checks):
        for name, seeds in results.experiments.items():
            if name in NETWORKS:
                amount = f'preset {results.preset}, {wording.epochs(name, seeds, results.preset)}'
                rows.append([f'{get_experiment(name).network}, {amount}, {wording.over_seeds(seeds)}'])
                for row in table1.rows(name, seeds, verdicts):
                    rows.append([*row.cells(), row.status, row.why.replace('\n', '; ')])
    merged = _merged(checks)
    sources = dict.fromkeys(v.claim.source for v in merged)
    by_source = []
    for source in sources:
        mine = [v for v in merged if v.claim.source == source]
        by_source.append([source, *map(str, counted(mine).values()), '; '.join(reasons(mine))])
    return pages.markdown(
        [
            pages.Table(['Table I', 'Published', 'Measured', 'Verdict', 'Why'], rows),
            pages.Table(['All claims', PASS, FAIL, NOT_RUN, 'Not run, and why'], by_source),
        ]
    )


def _merged(checks: Iterable[Sequence[Verdict]]) -> list[Verdict]:
    """A verdict on each claim, of those of several folders."""
    return [_best(of_one) for of_one in zip(*checks)]


def _best(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict of several folders on one claim: a failure, else a pass, else the most informative reason."""
    order = {FAIL: 0, PASS: 1, NOT_RUN: 2}
    return min(verdicts, key=lambda v: (order[v.status], v.is_absent))
