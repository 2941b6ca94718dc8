"""Table I, published and measured: the same rows for reports, pages and comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from branchynet.experiments import claims, get_experiment, wording
from branchynet.experiments.claims import NOT_RUN, Verdict
from branchynet.experiments.results import NetworkRun
from branchynet.experiments.verdicts import bounds


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


def rows(name: str, seeds: Sequence[NetworkRun], verdicts: Sequence[Verdict]) -> Iterator[Row]:
    """Makes Table I's rows of a network and its B-net.

    Args:
        name: of the experiment.
        seeds: its runs.
        verdicts: on all claims.

    Yields:
        The rows, the same quantities in the same order for all runs of an experiment.
    """
    network, device = get_experiment(name).network, wording.device_of(seeds)
    by_id = {v.claim.id: v for v in verdicts}
    base, branchy = (published(row, device) for row in (network, f'B-{network}'))
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
        wording.percent([b.accuracy_as_released_percent for b in baselines], images),
        f'{network}/accuracy',
    )
    yield row(
        f'{network} accuracy (%), alone',
        'before joint training',
        base['accuracy_percent'],
        wording.percent([b.accuracy_percent for b in baselines], images),
        f'{network}/accuracy before joint training',
    )
    yield row(
        f'B-{network} accuracy (%)',
        f'T = {branchy["thresholds"]}',
        branchy['accuracy_percent'],
        wording.percent([s.accuracy_percent for s in settings], images),
        f'B-{network}/accuracy',
    )
    for k, share in enumerate(branchy['exit_percent'].split()):
        yield row(
            f'B-{network}: leaving at exit {k + 1} (%)',
            '',
            share,
            wording.percent([s.exit_percent[k] for s in settings], images),
            f'B-{network}/exit {k + 1}',
        )
    notes = {
        'released': "the paper's",
        'whole': f"not the paper's; multiply-adds allow {wording.mean([s.gain_allowed for s in settings], 2)}",
    }
    for clock, note in notes.items():
        yield row(
            f'B-{network}: gain, {clock} clock',
            note,
            branchy['gain'],
            wording.mean([getattr(s, f'gain_{clock}') for s in settings], 2),
            f'B-{network}/gain/{clock}',
        )


def _outcome(verdict: Verdict) -> tuple[str, str, str]:
    """(status, explanation, cause of a FAIL) of a verdict."""
    if verdict.status == NOT_RUN:
        return NOT_RUN, verdict.reason, ''
    why = '\n'.join(filter(None, (f'expected {bounds(verdict.claim)}', verdict.reason)))
    return verdict.status, why, verdict.cause


def published(network: str, device: str) -> dict[str, str]:
    """Finds a row of the published table.

    Args:
        network: its name in the paper, with B- or without.
        device: 'CPU' or 'GPU'.

    Returns:
        The cells by column.
    """
    return next(row for row in claims.published('table1.csv') if row['device'] == device and row['network'] == network)
