"""Results of the same networks side by side, such as those of trainings on other data.

    branchynet results compare results/alex_cifar10_paper results/alex_cifar10_quick

Nothing is measured or written to the folders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from branchynet.datasets import pcifar10
from branchynet.experiments import NETWORKS, claims, get_experiment, pages, table1, wording
from branchynet.experiments.claims import NOT_RUN, PASS, Verdict
from branchynet.experiments.results import NetworkRun, Results

MARKERS = 'side by side'  # around the tables in a page


def tables(found: dict[str, Results]) -> str:
    """Compares results folders, network by network.

    Args:
        found: the results by folder, two or more.

    Returns:
        A table for every network of which two folders or more hold runs, as Markdown. It has a column for each of these
        folders. Rows: data, amount of training, device, Table I with verdicts, the accuracy of each exit over all test
        images, and how many claims hold.

    Raises:
        ValueError: no two folders hold runs of the same network.
    """
    holders = {name: {folder: one for folder, one in found.items() if name in one.experiments} for name in NETWORKS}
    blocks = [_table(name, some) for name, some in holders.items() if len(some) > 1]
    if not blocks:
        raise ValueError(f'no two folders of {", ".join(found)} hold runs of the same network: nothing to compare')
    return pages.markdown(blocks)


def _table(name: str, found: dict[str, Results]) -> pages.Table:
    columns = [_column(name, results) for results in found.values()]
    rows = []
    for cells in zip(*columns):
        what, *_ = cells[0]
        # Published numbers differ between a CPU and a GPU.
        rows.append(
            [what, ' or '.join(dict.fromkeys(published for _, published, _ in cells)), *(cell[2] for cell in cells)]
        )
    return pages.Table(
        [get_experiment(name).network, 'Published', *found], [row for row in rows if any(cell for cell in row[1:])]
    )


def _column(name: str, results: Results) -> Iterator[tuple[str, str, str]]:
    """Yields (quantity, published, measured) for a folder: the same quantities for every folder with the network."""
    seeds, verdicts = results.experiments[name], claims.check(results)
    training, images = seeds[0].training, seeds[0].measurement.test_samples
    yield 'Training images', '', f'{training.train_samples}\n{_data(seeds)}'
    yield 'Test images', '', str(images)
    yield 'Preset', '', f'{results.preset}, variant {results.variant}'
    yield 'Epochs', '', wording.epochs(name, seeds, results.preset)
    yield 'Batch', '', str(training.batchsize)
    yield 'Seeds', '', ', '.join(str(run.seed) for run in seeds)
    yield 'Measured on', '', wording.device_of(seeds)
    for row in table1.rows(name, seeds, verdicts):
        yield row.what, row.published, f'{row.measured}\n{row.status}'
    for k, accuracies in enumerate(zip(*(run.measurement.exit_accuracy_percent for run in seeds)), 1):
        yield f'Accuracy of exit {k} by itself (%)', '', wording.percent(accuracies, images)
    yield from _holding([verdict for verdict in verdicts if verdict.claim.experiment == name])


def _data(seeds: Sequence[NetworkRun]) -> str:
    """The recipe of the data of CIFAR-10, or the first digits of the SHA-256 of other data."""
    return ' or '.join(
        dict.fromkeys(
            f'recipe {recipe}' if recipe else f'SHA-256 {run.training.data_sha256[:12]}...'
            for run in seeds
            for recipe in [pcifar10.recipe_of(run.training.data_sha256)]
        )
    )


def _holding(verdicts: Sequence[Verdict]) -> Iterator[tuple[str, str, str]]:
    """Yields 'K of N' for each source of claims: the folder can check N, and K of them hold; '' if it checks none."""
    for source in dict.fromkeys(verdict.claim.source for verdict in verdicts):
        checked = [verdict for verdict in verdicts if verdict.claim.source == source and verdict.status != NOT_RUN]
        holding = sum(verdict.status == PASS for verdict in checked)
        yield f'Claims that hold: {source}', '', f'{holding} of {len(checked)}' if checked else ''
