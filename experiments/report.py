"""The report of a run: measured beside published, computed from results.json and claims.toml."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from branchynet.datasets import pcifar10
from branchynet.experiments import NETWORKS, PRESETS, claims, get_experiment, intervals, pages
from branchynet.experiments.claims import FAIL, NOT_RUN, PASS, Claim, Verdict
from branchynet.experiments.figures import Drawn
from branchynet.experiments.results import DISAGREEMENT_PERCENT, Environment, NetworkRun, Pairs, Results
from branchynet.files import write_atomically

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
READING = (
    "Times are at batch size 1. The **released clock** is the original's: it runs in the trunk's stages only. The "
    "**whole clock** includes the exits' own links, softmax, entropy and the decision; its mean is followed by the "
    "median and the 95th percentile. A **gain** is the baseline's mean time over the setting's on the same machine, "
    'and means little without the accuracy beside it. The **gain allowed** is that of the multiply-adds at the same '
    "exit shares; the **efficiency** is the whole clock's gain over it. It may exceed 1, as multiply-adds leave out "
    'normalisation and pooling. The **knee** is the fastest setting that is at least as accurate as the baseline, '
    "chosen on the test images, as in the paper. **McNemar's p** tests whether the B-net and the baseline before joint "
    'training are right equally often; the B-net was trained for more epochs, so that a small p does not speak for '
    "early exit alone. Intervals are of 95 %: for one seed Wilson's, over the test images; for several seeds Student's "
    't, over the seeds.'
)
TIMED = (
    'Settings in this table were run by themselves over all test images. In the sweep and in figure 3 times are '
    "composed from the stages' times, which were taken on the first 1000 test images only."
)
CAPTIONS = {
    '_figure3': "Figure 3: accuracy against time, in units of the baseline's",
    '_figure4': 'Figure 4: accuracy and highest entropy against the share leaving at exit 1',
    '_main': 'Training of the baseline',
    '_joint': 'Joint training',
    '_leaving': 'Images that leave at each exit at the published thresholds; below each the answer, the true class if '
    'the answer is wrong, and the entropy (nat)',
    '_confusion': 'Confusion matrix of each exit over all test images: of each true class, the percentage that gets '
    'each answer',
    '_reliability': 'Reliability of each exit over all test images: how often an answer is right against its '
    'probability (bins of equally many images; below the diagonal the exit is too sure)',
}


# On the terminal


def lines(verdicts: Sequence[Verdict]) -> list[str]:
    """Writes a line for each claim, those that were not run first and failures last, and then the counts.

    Args:
        verdicts: on all claims.
    """
    return [line(v) for status in (NOT_RUN, PASS, FAIL) for v in verdicts if v.status == status] + [counts(verdicts)]


def summary(verdicts: Sequence[Verdict]) -> list[str]:
    """Writes what failed, the counts, and a line for each group of reasons why claims were not run.

    Args:
        verdicts: on all claims.
    """
    return failures(verdicts) + [counts(verdicts)] + [f'{NOT_RUN}: {text}' for text in reasons(verdicts)]


def failures(verdicts: Sequence[Verdict]) -> list[str]:
    """Writes a line for each failure. Claims of one kind that failed for one known cause share the line of the worst.

    Args:
        verdicts: on all claims.
    """
    groups: dict[tuple[str, ...], list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.status == FAIL:
            claim, cause = verdict.claim, verdict.cause
            groups.setdefault((claim.entry['id'], cause) if cause else (claim.id,), []).append(verdict)
    return [line(max(group, key=_miss), group) for group in groups.values()]


def _miss(verdict: Verdict) -> float:
    """By how much a figure is out of its claim's range; infinite where there is no figure."""
    least, most = verdict.claim.bounds()
    found = np.mean(verdict.measured) if verdict.measured else np.nan
    return float(max(least - found, found - most)) if np.isfinite(found) else np.inf


def line(verdict: Verdict, group: Sequence[Verdict] = ()) -> str:
    """Puts a verdict into one line.

    Args:
        verdict: on one claim.
        group: if it is a failure, the claims of one kind that failed for one cause, of which it is the worst.
    """
    claim = verdict.claim
    if verdict.status == NOT_RUN:
        return f'{NOT_RUN}: {claim.id}: {verdict.reason}'
    different = len({tuple(v.measured) for v in group})
    figures = f', with {different} different figures' if different < len(group) else ''
    others = f' (the worst of {len(group)} of this kind{figures})' if len(group) > 1 else ''
    cause = f' (cause: {verdict.cause})' if verdict.cause else ''
    return f'{verdict.status}: {claim.id}{others}: {claim.text}: {_found(verdict)}, expected {bounds(claim)}{cause}'


def bounds(claim: Claim) -> str:
    """Puts the range of values for which a claim holds into words.

    Args:
        claim: a claim that is checked.
    """
    least, most = claim.bounds()
    if most == np.inf:
        return f'{least:.4g} or more'
    return f'{most:.4g} or less' if least == -np.inf else f'{least:.4g} to {most:.4g}'


def counts(verdicts: Sequence[Verdict]) -> str:
    """Puts the numbers of claims that passed, failed and were not run into words.

    Args:
        verdicts: on all claims.
    """
    return 'Claims: ' + ', '.join(f'{count} {status}' for status, count in _counted(verdicts).items())


def reasons(verdicts: Sequence[Verdict]) -> list[str]:
    """Groups the claims that were not run by reason.

    Args:
        verdicts: on all claims.

    Returns:
        A line for each group: the number of claims and their common reason.
    """
    absent: Counter = Counter()
    needed: Counter = Counter()
    unchecked: Counter = Counter()
    for verdict in verdicts:
        if verdict.status == NOT_RUN:
            if 'not_checked' in verdict.claim.entry:
                unchecked[verdict.reason] += 1
            elif verdict.reason == f'{verdict.claim.experiment} was not run':
                absent[verdict.claim.experiment] += 1
            else:
                needed[verdict.reason] += 1
    found = [f'{count}: {reason}' for reason, count in needed.most_common()]
    if absent:
        found.append(f'{sum(absent.values())}: of experiments that were not run ({_listed(absent)})')
    if unchecked:
        found.append(f'{sum(unchecked.values())}: no run can check them ({_listed(unchecked)})')
    return found


def _listed(counter: Counter) -> str:
    return '; '.join(f'{what}: {count}' for what, count in counter.most_common())


def _counted(verdicts: Sequence[Verdict]) -> dict[str, int]:
    found = Counter(v.status for v in verdicts)
    return {status: found[status] for status in (PASS, FAIL, NOT_RUN)}


# The page


def blocks(results: Results, figures: Mapping[str, Drawn]) -> list[pages.Block]:
    """Makes the whole report.

    Args:
        results: of a folder.
        figures: of the experiments, by name.

    Returns:
        Its blocks, for pages.markdown and pages.html.
    """
    verdicts = claims.check(results)
    networks = {name: seeds for name, seeds in results.experiments.items() if name in NETWORKS}
    page: list[pages.Block] = [
        pages.Heading(1, 'BranchyNet: measured beside published'),
        pages.Text(f'Preset **{results.preset}** {PRESETS[results.preset]}.'),
        *(
            pages.Text(f'**{get_experiment(name).network}**: {epochs(name, seeds, results.preset)}.')
            for name, seeds in networks.items()
            if claims.unfinished(name, seeds, results.preset)
        ),
        pages.Counts(_counted(verdicts)),
    ]
    if networks:
        page += [
            _table1(networks, verdicts),
            pages.Heading(3, 'Is it faster?'),
            pages.Lines([_speed(name, seeds) for name, seeds in networks.items()]),
        ]
    page += [
        pages.Heading(3, 'Not run, and why'),
        pages.Lines(reasons(verdicts)),
        pages.Heading(3, 'Run on'),
        pages.Facts(_facts(results)),
    ]
    for name, seeds in results.experiments.items():
        page += [
            pages.Heading(2, get_experiment(name).title),
            *_tables(name, seeds, results),
            *_disagreements(name, seeds),
        ]
        if name in NETWORKS:
            page += [pages.Text(TIMED), pages.Text(READING)]
        drawn = figures.get(name, Drawn([]))
        page.append(pages.Figures({path: caption(path) for path in drawn.paths}))
        if drawn.missing:
            page.append(pages.Text(drawn.missing))
    return page + _claims(verdicts) + _environment(results)


def caption(path: str) -> str:
    """Finds a figure's caption.

    Args:
        path: of the file, whose name says what the figure shows.
    """
    stem = os.path.splitext(os.path.basename(path))[0]
    found = next((text for what, text in CAPTIONS.items() if stem.endswith(what)), None)
    seed = re.search(r'_seed(\d+)', stem)
    return (f'{found}, seed {seed.group(1)}' if seed else found) if found else stem


class Row(NamedTuple):
    """A number of Table I.

    Attributes:
        what: the quantity.
        note: what a reader has to know of it; may be empty.
        published: as in the paper.
        measured: the mean, with the interval in a second line where there is one.
        status: the verdict.
        why: the range that was expected, and the cause of a FAIL; or the reason of a NOT RUN.
    """

    what: str
    note: str
    published: str
    measured: str
    status: str
    why: str

    def cells(self) -> list[str]:
        """Quantity with note, published, measured."""
        return [f'{self.what}\n{self.note}'.strip(), self.published, self.measured]


def _table1(networks: Mapping[str, Sequence[NetworkRun]], verdicts: Sequence[Verdict]) -> pages.Table:
    """Table I, published and measured, a verdict on each row."""
    rows: list[list[str]] = []
    for name, seeds in networks.items():
        rows.append([f'{get_experiment(name).network} ({device_of(seeds)})'])
        for row in table1_rows(name, seeds, verdicts):
            rows.append([*row.cells(), f'{row.status}\n{row.why}'.strip()])
    return pages.Table(['Table I', 'Published', 'Measured', 'Verdict'], rows)


def table1_rows(name: str, seeds: Sequence[NetworkRun], verdicts: Sequence[Verdict]) -> Iterator[Row]:
    """Makes Table I's rows of a network and its B-net.

    Args:
        name: of the experiment.
        seeds: its runs.
        verdicts: on all claims.

    Yields:
        The rows, the same quantities in the same order for all runs of an experiment.
    """
    network, device = get_experiment(name).network, device_of(seeds)
    by_id = {v.claim.id: v for v in verdicts}
    base, branchy = (_published(row, device) for row in (network, f'B-{network}'))
    images = seeds[0].measurement.test_samples
    baselines = [run.measurement.baseline for run in seeds]
    settings = [run.measurement.measured.published for run in seeds]

    shown: set[str] = set()  # causes

    def row(what: str, note: str, published: str, measured: str, claim: str) -> Row:
        status, why, cause = _outcome(by_id[f'table1/{device}/{claim}'])
        said = 'the same cause' if cause in shown else cause
        shown.update(filter(None, [cause]))
        return Row(what, note, published, measured, status, '\n'.join(filter(None, (why, said))))

    yield row(
        f'{network} accuracy (%), as released',
        'after joint training',
        base['accuracy_percent'],
        percent([b.accuracy_as_released_percent for b in baselines], images),
        f'{network}/accuracy',
    )
    yield row(
        f'{network} accuracy (%), alone',
        'before joint training',
        base['accuracy_percent'],
        percent([b.accuracy_percent for b in baselines], images),
        f'{network}/accuracy before joint training',
    )
    yield row(
        f'B-{network} accuracy (%)',
        f'T = {branchy["thresholds"]}',
        branchy['accuracy_percent'],
        percent([s.accuracy_percent for s in settings], images),
        f'B-{network}/accuracy',
    )
    for k, published in enumerate(branchy['exit_percent'].split()):
        yield row(
            f'B-{network}: leaving at exit {k + 1} (%)',
            '',
            published,
            percent([s.exit_percent[k] for s in settings], images),
            f'B-{network}/exit {k + 1}',
        )
    notes = {
        'released': "the paper's",
        'whole': f"not the paper's; multiply-adds allow {_mean([s.gain_allowed for s in settings], 2)}",
    }
    for clock, note in notes.items():
        yield row(
            f'B-{network}: gain, {clock} clock',
            note,
            branchy['gain'],
            _mean([getattr(s, f'gain_{clock}') for s in settings], 2),
            f'B-{network}/gain/{clock}',
        )


def _outcome(verdict: Verdict) -> tuple[str, str, str]:
    """(status, explanation, cause of a FAIL) of a verdict."""
    if verdict.status == NOT_RUN:
        return NOT_RUN, verdict.reason, ''
    why = '\n'.join(filter(None, (f'expected {bounds(verdict.claim)}', verdict.reason)))
    return verdict.status, why, verdict.cause


def _speed(name: str, seeds: Sequence[NetworkRun]) -> str:
    """On which clock a B-net is faster than its baseline, by how much, and how accurate both are, in words."""
    network = get_experiment(name).network
    baselines = [run.measurement.baseline for run in seeds]
    settings = [run.measurement.measured.published for run in seeds]

    def clock(which: str) -> str:
        gain = float(np.mean([getattr(s, f'gain_{which}') for s in settings]))
        ms = [np.mean([getattr(one, which).mean_ms for one in group]) for group in (settings, baselines)]
        word = 'as fast as' if f'{gain:.2f}' == '1.00' else 'faster than' if gain > 1 else 'slower than'
        return f'**{word}** {network}: {ms[0]:.3g} ms against {ms[1]:.3g} ms per image, a gain of {gain:.2f}'

    return (
        f'On the whole clock, the time that a user waits, B-{network} is {clock("whole")}. On the released clock, '
        f"which leaves out the exits' own links, softmax and entropy, it is {clock('released')}. Its multiply-adds "
        f'allow a gain of {np.mean([s.gain_allowed for s in settings]):.2f}. It classifies '
        f'{np.mean([s.accuracy_percent for s in settings]):.2f} % of the test images rightly, the baseline '
        f'{np.mean([b.accuracy_percent for b in baselines]):.2f} % before joint training and '
        f'{np.mean([b.accuracy_as_released_percent for b in baselines]):.2f} % after it.'
    )


def _facts(results: Results) -> list[tuple[str, str]]:
    """The machine, the code and the amount of work of a run."""
    runs = [run for _, run in results.named_runs()]
    trained = [f'{name} {_minutes_of(seeds):.1f}' for name, seeds in results.experiments.items() if seeds[0].training]
    facts = [
        ('Device', ', '.join(dict.fromkeys('GPU' if 'cupy' in run.measurement.device else 'CPU' for run in runs))),
        ('Trained on', _origins([run.training.environment for run in runs if run.training])),
        ('Measured on', _origins([run.measurement.environment for run in runs])),
        ('Preset', f'{results.preset}, variant {results.variant}'),
        ('Data', _data(results)),
        (
            'Training',
            f'{", ".join(trained)} minutes by the clock, other work on the machine included' if trained else '',
        ),
    ]
    if any(name in NETWORKS for name in results.experiments):
        facts.append(('Timing', 'batch size 1; composed times are from the first 1000 test images only'))
    return [(label, text) for label, text in facts if text]


def _data(results: Results) -> str:
    """The recipes of CIFAR-10 that the runs were trained on; '' where none is known."""
    by_recipe: dict[str, list[str]] = {}
    for name, run in results.named_runs():
        recipe = pcifar10.recipe_of(run.training.data_sha256) if run.training else None
        if recipe and name not in by_recipe.setdefault(recipe, []):
            by_recipe[recipe].append(name)
    return '; '.join(
        f"{', '.join(names)}: CIFAR-10 by recipe {recipe}, which stands in for the authors' lost file"
        for recipe, names in by_recipe.items()
    )


def _origins(environments: Sequence[Environment]) -> str:
    """The machines and the commits of runs."""
    found = (f'{_machine(e)}, {e.threads} threads: commit {_commit(e)}' for e in environments)
    return '; '.join(dict.fromkeys(found))


def _minutes_of(seeds: Sequence[Any]) -> float:
    return sum(run.training.main.seconds + run.training.joint.seconds for run in seeds) / 60


# The tables of single experiments


def tables(results: Results) -> str:
    """Writes the tables of all experiments as Markdown.

    Args:
        results: of a folder.
    """
    return pages.markdown(
        [
            block
            for name, seeds in results.experiments.items()
            for block in (*_tables(name, seeds, results), *_disagreements(name, seeds))
        ]
    )


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
                comparisons += _analysis(name, seeds, results)
    page = [*([pages.Table(OVERVIEW, networks)] if networks else []), *comparisons]
    checked = [v for v in _merged(map(claims.check, found)) if v.status != NOT_RUN]
    if checked:
        holding = f'Of {len(checked)} claims that these runs can check, {_counted(checked)[PASS]} hold.'
        page.append(pages.Text(holding))
    return pages.markdown(page)


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


def _overview_rows(name: str, seeds: Sequence[NetworkRun], results: Results) -> list[list[str]]:
    """A row of a network and one of its B-net."""
    network, device = get_experiment(name).network, device_of(seeds)
    base, branchy = (_published(one, device) for one in (network, f'B-{network}'))
    baselines = [run.measurement.baseline for run in seeds]
    settings = [run.measurement.measured.published for run in seeds]
    as_released = _spread([b.accuracy_as_released_percent for b in baselines])
    alone = _spread([b.accuracy_percent for b in baselines])
    amount = f'{epochs(name, seeds, results.preset)}, {len(seeds)} seed{"s" if len(seeds) > 1 else ""}'
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
            _spread([s.accuracy_percent for s in settings]),
            branchy['exit_percent'],
            _numbers(np.mean([s.exit_percent for s in settings], axis=0), '.1f'),
            branchy['gain'],
            *(_spread([getattr(s, f'gain_{clock}') for s in settings]) for clock in ('released', 'whole')),
            '',
        ],
    ]


def _spread(values: Sequence[float]) -> str:
    """The mean, and the standard deviation over the seeds if there are several."""
    text = f'{np.mean(values):.2f}'
    return text if len(values) == 1 else f'{text} ± {np.std(values, ddof=1):.2f}'


def _tables(name: str, seeds: Sequence[Any], results: Results) -> list[pages.Block]:
    return (_network if name in NETWORKS else _analysis)(name, seeds, results)


def _network(name: str, seeds: Sequence[NetworkRun], results: Results) -> list[pages.Block]:
    training = seeds[0].training
    text = (
        f'**{name}**, preset {results.preset}: {epochs(name, seeds, results.preset)}, batch '
        f'{training.batchsize}, {training.train_samples} training images, {_seeds(seeds)}; '
        f'{seeds[0].measurement.test_samples} test images.'
    )
    machines = dict.fromkeys(_machine(run.measurement.environment) for run in seeds)
    network = get_experiment(name).network
    return [
        pages.Text(text),
        pages.Table(COLUMNS, _published_rows(network, device_of(seeds)) + _measured_rows(network, seeds)),
        pages.Text(f'Measured on: {"; ".join(machines)}.'),
    ]


def epochs(name: str, seeds: Sequence[NetworkRun], preset: str) -> str:
    """Puts the numbers of epochs into words, and those of the preset where a training has not ended.

    Args:
        name: of the experiment.
        seeds: its runs.
        preset: its name.
    """
    short = claims.unfinished(name, seeds, preset)
    counts = dict.fromkeys((run.training.main_epochs, run.training.joint_epochs) for run in seeds)
    text = ' or '.join(f'{main} + {joint}' for main, joint in counts) + ' epochs'
    if short is None:
        return text
    _, whole = short
    return f'{text} (unfinished: the preset has {whole.main_epochs} + {whole.joint_epochs})'


def _disagreements(name: str, seeds: Sequence[Any]) -> Iterator[pages.Text]:
    """A text on the settings whose composed and direct times differ; none if they agree in all seeds."""
    networks = seeds if name in NETWORKS else []
    found = [(run.seed, setting, one) for run in networks for setting, one in run.measurement.disagreements().items()]
    if found:
        times = '; '.join(
            f'seed {seed}, {setting} setting, {one.clock} clock: composed {one.composed_ms:.3f} ms, measured '
            f'{one.direct_ms:.3f} ms'
            for seed, setting, one in found
        )
        yield pages.Text(
            f'**Composed times differ from directly measured ones by more than {DISAGREEMENT_PERCENT} %** ({times}). A '
            'composed time adds up times of single stages, which come from an earlier pass over the first 1000 test '
            'images, and can leave out part of the cost of the call itself. To measure both again, run `branchynet '
            'measure DIR` on a quiet machine.'
        )


def _published(network: str, device: str) -> dict[str, str]:
    return next(row for row in claims.published('table1.csv') if row['device'] == device and row['network'] == network)


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
        for row in [_published(one, device)]
    ]


def _measured_rows(network: str, seeds: Sequence[NetworkRun]) -> list[list[str]]:
    """The rows of the baseline before and after joint training, and of two settings that were run by themselves.

    Args:
        network: its name in the paper, without B-.
        seeds: the runs.
    """
    baselines, images = [run.measurement.baseline for run in seeds], seeds[0].measurement.test_samples
    rows = [
        [network, percent([b.accuracy_percent for b in baselines], images), '', '', '', *_times(baselines)],
        [
            f'{network} after joint training, as released',
            percent([b.accuracy_as_released_percent for b in baselines], images),
            *[''] * (len(COLUMNS) - 2),
        ],
    ]
    for label, name in ('published threshold', 'published'), ('knee', 'knee'):
        settings = [getattr(run.measurement.measured, name) for run in seeds]
        rows.append(
            [
                f'B-{network}, {label}',
                percent([s.accuracy_percent for s in settings], images),
                ', '.join(_p_value(s.images) for s in settings),
                ' or '.join(dict.fromkeys(_numbers(s.thresholds, 'g') for s in settings)),
                _numbers(np.mean([s.exit_percent for s in settings], axis=0), '.2f'),
                *_times(settings),
            ]
        )
    return rows


def percent(percents: Sequence[float], images: int) -> str:
    """Writes the mean of accuracies or shares, and its 95 % interval in a second line.

    Args:
        percents: one for each seed.
        images: number of test images.
    """
    low, high = intervals.accuracy(list(percents), images)
    return f'{_mean(percents, 2)}\n{low:.2f} to {high:.2f}'


def _p_value(images: Pairs) -> str:
    return f'{intervals.mcnemar(images.only_branchy_right, images.only_baseline_right):.2g}'


def _times(settings: Sequence[Any]) -> list[str]:
    """The cells of both clocks. Each gain is shown with its accuracy; the baseline has no gain."""
    gains = [''] * 4
    if hasattr(settings[0], 'gain_whole'):
        gains = [
            _mean([getattr(s, key) for s in settings], 2)
            for key in ('gain_released', 'gain_whole', 'gain_allowed', 'efficiency')
        ]
        accuracy = np.mean([s.accuracy_percent for s in settings])
        gains[:2] = [f'{gain}\nat {accuracy:.2f} %' for gain in gains[:2]]
    mean, median, p95 = (
        _milliseconds([getattr(s.whole, key) for s in settings]) for key in ('mean_ms', 'median_ms', 'p95_ms')
    )
    return [_milliseconds([s.released.mean_ms for s in settings]), gains[0], f'{mean}\n{median} / {p95}', *gains[1:]]


def _milliseconds(values: Sequence[float]) -> str:
    """The mean with three significant digits."""
    return _mean(values, max(0, 2 - math.floor(math.log10(np.mean(values)))))


def _analysis(name: str, seeds: Sequence[Any], results: Results) -> list[pages.Block]:
    """An experiment that is not a network of the paper."""
    text = pages.Text(
        f'**{name}**, preset {results.preset}, {_seeds(seeds)}; {seeds[0].measurement.test_samples} test images.'
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
                    percent(accuracies, mine[0].measurement.test_samples),
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
                _numbers(point.thresholds, 'g') or 'baseline',
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


# Claims and environment


def _claims(verdicts: Sequence[Verdict]) -> list[pages.Block]:
    """The checked claims, failures first, then the others under each reason."""
    checked = [v for status in (FAIL, PASS) for v in verdicts if v.status == status]
    page: list[pages.Block] = [pages.Heading(2, 'Claims'), pages.Text(f'{counts(verdicts)}.')]
    causes = list(dict.fromkeys(v.cause for v in checked if v.cause))
    if causes:
        page.append(pages.Lines([f'**cause {k}**: {cause}' for k, cause in enumerate(causes, 1)]))
    if checked:
        page.append(
            pages.Table(
                ['', 'Claim', 'Source', 'Measured', 'Published or stated', 'Holds for', 'Why this tolerance', 'Id'],
                [
                    [
                        f'{FAIL}\ncause {causes.index(v.cause) + 1}' if v.cause else v.status,
                        v.claim.text,
                        v.claim.source,
                        _found(v),
                        f'{v.claim.expected:g}',
                        bounds(v.claim),
                        v.claim.why,
                        v.claim.id,
                    ]
                    for v in checked
                ],
            )
        )
    for reason in dict.fromkeys(v.reason for v in verdicts if v.status == NOT_RUN):
        rows = [
            [
                v.claim.text,
                v.claim.source,
                str(v.claim.expected),
                v.claim.command() or '',
                _minutes(v.claim),
                v.claim.id,
            ]
            for v in verdicts
            if v.status == NOT_RUN and v.reason == reason
        ]
        page.append(
            pages.Folded(
                f'{NOT_RUN}: {reason} ({len(rows)})',
                [
                    pages.Table(
                        ['Claim', 'Source', 'Published or stated', 'Command', 'Minutes on 2 CPU cores', 'Id'], rows
                    )
                ],
            )
        )
    return page


def _found(verdict: Verdict) -> str:
    return _mean(verdict.measured, 2) if verdict.measured else verdict.reason


def _minutes(claim: Claim) -> str:
    """Expected minutes of a claim's command on 2 cores of a CPU; those of a GPU were not measured."""
    if 'measure' not in claim.entry:
        return ''
    return 'not measured' if claim.device == 'gpu' else f'{claim.minutes():g}'


def _environment(results: Results) -> list[pages.Block]:
    rows = []
    for name, run in results.named_runs():
        training, measurement = run.training, run.measurement
        rows.append(
            [
                ' '.join(filter(None, [name, run.part, f'seed {run.seed}'])),
                _commit(training.environment) if training else '',
                _commit(measurement.environment),
                _machine(measurement.environment),
                f'{_minutes_of([run]):.1f}' if training else '',
                {True: 'compiled', False: 'Chainer', None: ''}[getattr(measurement, 'compiled', None)],
                training.data_sha256[:12] if training else '',
            ]
        )
    return [
        pages.Heading(2, 'Environment'),
        pages.Table(
            [
                'Run',
                'Trained at commit',
                'Measured at commit',
                'Machine',
                'Training (min)',
                'Inference',
                'SHA-256 of the data',
            ],
            rows,
        ),
    ]


def _commit(environment: Environment) -> str:
    return (environment.commit or 'unknown')[:12] + {'dirty': ', changed'}.get(environment.tree or '', '')


def _machine(environment: Environment) -> str:
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


def device_of(seeds: Sequence[NetworkRun]) -> str:
    """Returns Table I's name of the device that a network was measured on, 'CPU' or 'GPU'.

    Args:
        seeds: its runs.
    """
    return 'GPU' if 'cupy' in seeds[0].measurement.device else 'CPU'


def _mean(values: Sequence[float], digits: int) -> str:
    text = f'{np.mean(values):.{digits}f}'
    return text if len(values) == 1 else f'{text} ± {np.std(values, ddof=1):.{digits}f} ({len(values)})'


def _numbers(values: Sequence[float], form: str) -> str:
    return ' '.join(f'{v:{form}}' for v in values)


def _seeds(runs: Sequence[Any]) -> str:
    seeds = list(dict.fromkeys(run.seed for run in runs))
    return f'seed {seeds[0]}' if len(seeds) == 1 else f'mean ± std (count) of {len(seeds)} seeds'


# Parts of Markdown pages that are generated


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
                amount = f'preset {results.preset}, {epochs(name, seeds, results.preset)}'
                rows.append([f'{get_experiment(name).network}, {amount}, {_seeds(seeds)}'])
                for row in table1_rows(name, seeds, verdicts):
                    rows.append([*row.cells(), row.status, row.why.replace('\n', '; ')])
    merged = _merged(checks)
    sources = dict.fromkeys(v.claim.source for v in merged)
    by_source = []
    for source in sources:
        mine = [v for v in merged if v.claim.source == source]
        by_source.append([source, *map(str, _counted(mine).values()), '; '.join(reasons(mine))])
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
    return min(verdicts, key=lambda v: (order[v.status], v.reason == f'{v.claim.experiment} was not run'))


def updated(text: str, found: Sequence[Results]) -> str:
    """Replaces the generated parts of a Markdown page, between the markers `tables` and `reproduces`.

    Args:
        text: of the page.
        found: results of the folders that the page shows.

    Returns:
        The new text.

    Raises:
        ValueError: the page has neither pair of markers.
    """
    parts = {
        'tables': lambda: overview(found),
        'reproduces': lambda: reproduces(found),
    }
    names = [name for name in parts if _markers(name)[0] in text]
    if not names:
        raise ValueError(f'expected the lines {" and ".join(_markers("tables"))}, or the same with reproduces')
    for name in names:
        text = between_markers(text, parts[name](), name)
    return text


def put_between_markers(path: str, part: str, name: str) -> None:
    """Replaces the text between two markers of a Markdown file.

    Args:
        path: of the file.
        part: as of `between_markers`.
        name: as of `between_markers`.

    Raises:
        OSError: the file cannot be read or written.
        ValueError: as of `between_markers`.
    """
    with open(path, encoding='utf-8') as f:
        text = f.read()
    write_atomically(path, between_markers(text, part, name).encode())


def between_markers(text: str, part: str, name: str = 'results') -> str:
    """Replaces the text between two markers of a Markdown page.

    Args:
        text: of the page.
        part: the new text between the markers.
        name: of the markers.

    Returns:
        The new text of the page.

    Raises:
        ValueError: the page does not have both markers, in order.
    """
    first, last = _markers(name)
    head, begin, rest = text.partition(first)
    _, end, tail = rest.partition(last)
    if not (begin and end):
        raise ValueError(f'expected the lines {first} and {last}')
    return f'{head}{begin}\n{part}{end}{tail}'


def _markers(name: str) -> tuple[str, str]:
    return f'<!-- {name}: begin -->', f'<!-- {name}: end -->'
