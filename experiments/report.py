"""The report of a run: measured beside published, computed from results.json and claims.toml."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from branchynet.datasets import pcifar10
from branchynet.experiments import NETWORKS, PRESETS, claims, get_experiment, pages, table1, tables, wording
from branchynet.experiments.claims import FAIL, NOT_RUN, PASS, Claim, Verdict
from branchynet.experiments.figures import Drawn
from branchynet.experiments.results import Environment, NetworkRun, Results
from branchynet.experiments.verdicts import bounds, counted, counts, figure, reasons

import numpy as np

READING = (
    "Times are at batch size 1. The **released clock** is the original's: it runs in the trunk's stages only. The "
    "**whole clock** includes the exits' own links, softmax, entropy and the decision; its mean is followed by the "
    "median and the 95th percentile. A **gain** is the baseline's mean time over the setting's on the same machine, "
    'and means little without the accuracy beside it. The **gain allowed** is that of the multiply-adds at the same '
    "exit shares; the **efficiency** is the whole clock's gain over it. It may exceed 1, as multiply-adds leave out "
    'normalisation and pooling. The **knee** is the fastest setting that is at least as accurate as the baseline, '
    'or the most accurate one if there is none, chosen on the test images, as in the paper. '
    "**McNemar's p** tests whether the B-net and the baseline before joint training have the same accuracy; the "
    'B-net was trained for more epochs, so that a small p does not speak for '
    "early exit alone. Intervals are of 95 %: for one seed Wilson's, over the test images; for several seeds Student's "
    't, over the seeds.'
)
TIMED = (
    'Each setting in this table was measured in a run of its own over all test images. In the sweep and in figure 3 '
    "times are composed from the stages' times, which were taken on {images}."
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
    'figure5': 'Figure 5: accuracy of the final exit against the convolutions in the first branch',
    'figure6': 'Figure 6: cache misses against the time of an image',
    'initialisation': 'Section IV: accuracy of the final exit from the trained baseline and from random weights',
    'loss_weights': 'Section V-A: accuracy of the final exit by the weights of the losses',
}


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
            pages.Text(f'**{get_experiment(name).network}**: {wording.epochs(name, seeds, results.preset)}.')
            for name, seeds in networks.items()
            if claims.fewer_epochs(name, seeds, results.preset)
        ),
        pages.Counts(counted(verdicts)),
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
        page += [pages.Heading(2, get_experiment(name).title), *tables.of_experiment(name, seeds, results)]
        if name in NETWORKS:
            page += [pages.Text(TIMED.format(images=wording.timed_images(seeds))), pages.Text(READING)]
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
    seed = re.search(r'_seed(\d+)', stem)
    kind = stem.replace(seed.group(), '') if seed else stem
    found = next((text for what, text in CAPTIONS.items() if kind.endswith(what)), None)
    return (f'{found}, seed {seed.group(1)}' if seed else found) if found else stem


def _table1(networks: Mapping[str, Sequence[NetworkRun]], verdicts: Sequence[Verdict]) -> pages.Table:
    """Table I, published and measured, a verdict on each row."""
    rows: list[list[str]] = []
    for name, seeds in networks.items():
        rows.append([f'{get_experiment(name).network} ({wording.device_of(seeds)})'])
        for row in table1.rows(name, seeds, verdicts):
            rows.append([*row.cells(), f'{row.status}\n{row.why}'.strip()])
    return pages.Table(['Table I', 'Published', 'Measured', 'Verdict'], rows)


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
        f'{np.mean([s.accuracy_percent for s in settings]):.2f} % of the test images correctly, the baseline '
        f'{np.mean([b.accuracy_percent for b in baselines]):.2f} % before joint training and '
        f'{np.mean([b.accuracy_as_released_percent for b in baselines]):.2f} % after it.'
    )


def _facts(results: Results) -> list[tuple[str, str]]:
    """The machine, the code and the amount of work of a run."""
    runs = list(results.by_id().values())
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
    networks = [run for run_id, run in results.by_id().items() if run_id.experiment in NETWORKS]
    if networks:
        facts.append(('Timing', f'batch size 1; composed times are from {wording.timed_images(networks)}'))
    return [(label, text) for label, text in facts if text]


def _data(results: Results) -> str:
    """The recipes of CIFAR-10 that the runs were trained on; '' where none is known."""
    by_recipe: dict[str, list[str]] = {}
    for (name, _, _), training in results.trainings().items():
        recipe = pcifar10.recipe_of(training.data_sha256) if training else None
        if recipe and name not in by_recipe.setdefault(recipe, []):
            by_recipe[recipe].append(name)
    return '; '.join(
        f"{', '.join(names)}: CIFAR-10 by recipe {recipe}, which stands in for the authors' lost file"
        for recipe, names in by_recipe.items()
    )


def _origins(environments: Sequence[Environment]) -> str:
    """The machines and the commits of runs."""
    found = (f'{wording.machine(e)}, {e.threads} threads: commit {wording.commit(e)}' for e in environments)
    return '; '.join(dict.fromkeys(found))


def _minutes_of(seeds: Sequence[Any]) -> float:
    return sum(run.training.main.seconds + run.training.joint.seconds for run in seeds) / 60


def _claims(verdicts: Sequence[Verdict]) -> list[pages.Block]:
    """The checked claims, failures first, then the others under each reason."""
    heading: list[pages.Block] = [pages.Heading(2, 'Claims'), pages.Text(f'{counts(verdicts)}.')]
    return [*heading, *_checked_claims(verdicts), *_other_claims(verdicts)]


def _checked_claims(verdicts: Sequence[Verdict]) -> Iterator[pages.Block]:
    """The known causes of failures, and a table of the claims that were checked, failures first."""
    checked = [v for status in (FAIL, PASS) for v in verdicts if v.status == status]
    causes = list(dict.fromkeys(v.cause for v in checked if v.cause))
    if causes:
        yield pages.Lines([f'**cause {k}**: {cause}' for k, cause in enumerate(causes, 1)])
    rows = [
        [
            f'{FAIL}\ncause {causes.index(v.cause) + 1}' if v.cause else v.status,
            v.claim.text,
            v.claim.source,
            figure(v),
            f'{v.claim.expected:g}',
            bounds(v.claim),
            v.claim.why,
            v.claim.id,
        ]
        for v in checked
    ]
    if rows:
        head = ['', 'Claim', 'Source', 'Measured', 'Published or stated', 'Holds for', 'Why this tolerance', 'Id']
        yield pages.Table(head, rows)


def _other_claims(verdicts: Sequence[Verdict]) -> Iterator[pages.Block]:
    """A folded table for each reason why claims were not run."""
    head = ['Claim', 'Source', 'Published or stated', 'Command', 'Minutes on 2 CPU cores', 'Id']
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
        yield pages.Folded(f'{NOT_RUN}: {reason} ({len(rows)})', [pages.Table(head, rows)])


def _minutes(claim: Claim) -> str:
    """Expected minutes of a claim's command on 2 cores of a CPU; those of a GPU were not measured."""
    if claim.not_checked is not None:
        return ''
    return 'not measured' if claim.device == 'gpu' else f'{claim.minutes():g}'


def _environment(results: Results) -> list[pages.Block]:
    rows = []
    for (name, part, seed), run in results.by_id().items():
        training, measurement = run.training, run.measurement
        rows.append(
            [
                ' '.join(filter(None, [name, part, f'seed {seed}'])),
                _origins([training.environment]) if training else '',
                f'{_minutes_of([run]):.1f}' if training else '',
                _origins([measurement.environment]),
                {True: 'compiled', False: 'Chainer', None: ''}[getattr(measurement, 'compiled', None)],
                training.data_sha256[:12] if training else '',
            ]
        )
    return [
        pages.Heading(2, 'Environment'),
        pages.Table(
            [
                'Run',
                'Trained on',
                'Training (min)',
                'Measured on',
                'Inference',
                'SHA-256 of the data',
            ],
            rows,
        ),
    ]
