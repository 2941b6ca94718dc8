"""A model of data-parallel joint training on 1 to 256 workers, checked against the measured points.

A step of n workers takes the time of its arithmetic and then that of its message:

    compute = FLOP_PER_MAC * macs * batch / (peak * UTILISATION)     of one worker's part of the batch
    message = 2 (n - 1) / n * bytes / bandwidth + 2 (n - 1) * latency     a ring all-reduce

macs are the multiply-adds of one image through the trunk and all exits (branchynet.cost), bytes those that
branchynet.parallel averages. The ring is that of Patarasuk and Yuan, Bandwidth optimal all-reduce algorithms for
clusters of workstations (2009): every worker sends and receives 2 (n - 1) messages of bytes / n.

    branchynet bench scaling_model --measured results/benchmarks/scaling --update docs/scaling.md

writes the tables of that page. It takes seconds and measures nothing; no figure for a GPU is measured anywhere.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import branchynet  # noqa: F401  (before chainer)
from branchynet import parallel, schema
from branchynet.benchmarks.networks import EXPERIMENTS, batchsize, published_name
from branchynet.cli import Parser
from branchynet.cost import cost
from branchynet.experiments import pages
from branchynet.experiments.pages import Table

WORKERS = [2**k for k in range(9)]
FLOP_PER_MAC = 6  # a multiplication and an addition, forward, for the inputs' gradients, and for the weights' gradients
UTILISATION = 0.3  # share of the peak that training reaches: an assumption


class Gpu(NamedTuple):
    """A GPU by its data sheet.

    Attributes:
        flops: peak FLOP/s in float32 without tensor cores, which the bit profiles leave unused.
        nvlink: bytes per second in each direction.
    """

    flops: float
    nvlink: float


class Link(NamedTuple):
    """A connection of workers.

    Attributes:
        bandwidth: bytes per second in each direction.
        latency: seconds of the smallest message.
    """

    bandwidth: float
    latency: float


class Load(NamedTuple):
    """A network's training, as released.

    Attributes:
        macs: multiply-adds of an image through trunk and exits, forward.
        message: bytes that a step averages.
        batch: images of a step.
    """

    macs: int
    message: int
    batch: int


# Peak and NVLink: NVIDIA's data sheets of A100 SXM and H100 SXM (600 and 900 GB/s are the sums of both directions).
GPUS = {'A100': Gpu(19.5e12, 300e9), 'H100': Gpu(67e12, 450e9)}
ETHERNET = {'10 Gbit/s': Link(10e9 / 8, 30e-6), '100 Gbit/s': Link(100e9 / 8, 10e-6)}  # latencies: assumptions
NVLINK_LATENCY = 5e-6  # an assumption


def load(network: str) -> Load:
    """Counts a network's work per step.

    Args:
        network: a name in EXPERIMENTS.
    """
    net = EXPERIMENTS[network].get_network()
    macs = cost(net, EXPERIMENTS[network].shape).exits[-1].leaving.macs
    return Load(macs, sum(array.nbytes for array in parallel.message(net)), batchsize(network))


def compute_seconds(macs: int, images: float, flops: float) -> float:
    """Time of a worker's arithmetic in a step.

    Args:
        macs: multiply-adds of an image, forward.
        images: of the worker.
        flops: FLOP/s that it reaches.
    """
    return FLOP_PER_MAC * macs * images / flops


def message_seconds(count: int, workers: int, link: Link) -> float:
    """Time of a ring all-reduce.

    Args:
        count: bytes.
        workers: their number.
        link: the connection of each with the next.
    """
    return 2 * (workers - 1) / workers * count / link.bandwidth + 2 * (workers - 1) * link.latency


def strong(load: Load, workers: int, flops: float, link: Link) -> float:
    """Speedup of workers that share a batch, over one that has it all."""
    alone = compute_seconds(load.macs, load.batch, flops)
    step = compute_seconds(load.macs, load.batch / workers, flops) + message_seconds(load.message, workers, link)
    return alone / step


def weak(load: Load, workers: int, flops: float, link: Link) -> float:
    """Efficiency of workers that have a batch each: one worker's seconds per step over theirs."""
    alone = compute_seconds(load.macs, load.batch, flops)
    return alone / (alone + message_seconds(load.message, workers, link))


# The tables


def _links(gpu: Gpu) -> dict[str, Link]:
    return {**ETHERNET, 'NVLink': Link(gpu.nvlink, NVLINK_LATENCY)}


def loads_table(loads: dict[str, Load]) -> Table:
    """The work and the messages of a step, and the time of each part on each GPU and link alone."""
    head = ['Network', 'Batch', 'Multiply-adds per image', 'Message (bytes)']
    head += [f'Compute, {name} (ms)' for name in GPUS]
    head += [f'Message, 8 at {name} (ms)' for name in ETHERNET]
    rows = []
    for network, one in loads.items():
        times = [compute_seconds(one.macs, one.batch, gpu.flops * UTILISATION) for gpu in GPUS.values()]
        times += [message_seconds(one.message, 8, link) for link in ETHERNET.values()]
        counts = [f'{one.batch}', f'{one.macs:,}', f'{one.message:,}']
        rows.append([published_name(network), *counts, *(f'{1e3 * seconds:.3g}' for seconds in times)])
    return Table(head, rows)


def assumptions_table() -> Table:
    """The numbers that the model takes from elsewhere."""
    rows = [
        [name, f'{gpu.flops / 1e12:g} TFLOP/s, of which {UTILISATION:.0%} is reached'] for name, gpu in GPUS.items()
    ]
    links = {**ETHERNET, **{f'NVLink of {name}': _links(gpu)['NVLink'] for name, gpu in GPUS.items()}}
    rows += [
        [name, f'{link.bandwidth / 1e9:g} GB/s in each direction, latency {1e6 * link.latency:g} µs']
        for name, link in links.items()
    ]
    return Table(['Quantity', 'Assumed'], rows)


def simulated_tables(loads: dict[str, Load]) -> list[Table]:
    """Strong and weak scaling over WORKERS."""
    titles = ['Speedup, one batch shared', 'Efficiency (%), a batch each']
    return [
        Table([title, *map(str, WORKERS)], [row for network in loads for row in _simulated(network, loads[network], i)])
        for i, title in enumerate(titles)
    ]


def _simulated(network: str, load: Load, which: int) -> Iterator[list[str]]:
    yield [published_name(network)]
    for name, gpu in GPUS.items():
        for link_name, link in _links(gpu).items():
            row = [f'{name}, {link_name}']
            for workers in WORKERS:
                flops = gpu.flops * UTILISATION
                if which == 0:
                    row.append(f'{strong(load, workers, flops, link):.2f}' if workers <= load.batch else '')
                else:
                    row.append(f'{100 * weak(load, workers, flops, link):.0f}')
            yield row


class Check(NamedTuple):
    """A measured point, and what the model makes of its parts. Times are seconds per step.

    Attributes:
        network: its name.
        scaling: 'strong' or 'weak'.
        ranks: their number.
        step: the whole step.
        parts: arithmetic of as many ranks at the same time, without messages, and the message alone.
        processor: processor time of a rank's arithmetic.
        predicted: the same as it follows from one rank alone on the machine: in proportion to the images.
    """

    network: str
    scaling: str
    ranks: int
    step: float
    parts: float
    processor: float
    predicted: float


def checks(measured: dict[str, Any]) -> list[Check]:
    """Measured points beside the model.

    Every time is the smallest of the rounds, which other work on the machine has disturbed least.

    Args:
        measured: the content of a file that `branchynet bench scaling` wrote.
    """
    found = []
    for point in measured['points']:
        scaling, ranks = point['scaling'], point['ranks']
        alone = next((one for one in measured['points'] if (one['scaling'], one['ranks']) == (scaling, 1)), None)
        if alone is None:
            raise OSError(
                f"{measured['network']} was not measured on one rank: 'branchynet bench scaling --ranks 1' does"
            )
        share = point['global_batch'] / ranks / alone['global_batch']
        step, compute, message, processor = (
            point[f'{name}_seconds']['min'] for name in ('step', 'compute', 'message', 'cpu')
        )
        parts = compute + message * (ranks > 1)
        predicted = alone['cpu_seconds']['min'] * share
        found.append(Check(measured['network'], scaling, ranks, step, parts, processor, predicted))
    return found


def measured_table(measured: Sequence[dict[str, Any]]) -> Table:
    """The measured points, and beside them what the model says."""
    head = ['Network', 'Scaling', 'Ranks', 'Step (ms)', 'Gain']
    head += ['Parts (ms)', 'off by', 'Processor (ms)', 'Model (ms)', 'off by']
    rows = []
    for one in measured:
        alone = {check.scaling: check.step for check in checks(one) if check.ranks == 1}
        for check in checks(one):
            gain = alone[check.scaling] / check.step
            rows.append(
                [
                    published_name(check.network),
                    check.scaling,
                    str(check.ranks),
                    f'{1e3 * check.step:.1f}',
                    f'{gain:.2f}' if check.scaling == 'strong' else f'{gain:.0%}',
                    f'{1e3 * check.parts:.1f}',
                    f'{check.parts / check.step - 1:+.0%}',
                    f'{1e3 * check.processor:.1f}',
                    f'{1e3 * check.predicted:.1f}',
                    f'{check.predicted / check.processor - 1:+.0%}',
                ]
            )
    return Table(head, rows)


def tables() -> dict[str, str]:
    """The page's tables of the model alone, as Markdown by the names of their markers."""
    loads = {network: load(network) for network in EXPERIMENTS}
    return {
        'loads': loads_table(loads).markdown(),
        'assumptions': assumptions_table().markdown(),
        'simulated': '\n\n'.join(table.markdown() for table in simulated_tables(loads)),
    }


def updated(page: str, measured: Sequence[dict[str, Any]]) -> str:
    """Replaces the tables of a Markdown page between their markers.

    Args:
        page: the text of the page, with the markers measured, loads, assumptions and simulated.
        measured: contents of the files of `branchynet bench scaling`.

    Returns:
        The new text.

    Raises:
        ValueError: the page lacks a pair of markers.
    """
    for name, table in {'measured': measured_table(measured).markdown(), **tables()}.items():
        page = pages.between_markers(page, table + '\n', name)
    return page


def read(folder: str) -> list[dict[str, Any]]:
    """The files of `branchynet bench scaling` in a folder.

    Raises:
        OSError: there is none, or one is damaged.
    """
    paths = [os.path.join(folder, f'{network}.json') for network in EXPERIMENTS]
    found = [schema.read_json(path, "a file of 'branchynet bench scaling'") for path in paths if os.path.exists(path)]
    if not found:
        raise OSError(f"{folder} holds no measured points: 'branchynet bench scaling --out {folder}' writes them")
    return found


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    parser = Parser(
        'branchynet bench scaling_model', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--measured',
        default=os.path.join('results', 'benchmarks', 'scaling'),
        metavar='DIR',
        help='folder that branchynet bench scaling wrote (default: %(default)s)',
    )
    parser.add_argument(
        '--update',
        default=os.path.join('docs', 'scaling.md'),
        metavar='FILE',
        help='page whose tables are replaced (default: %(default)s)',
    )
    args = parser.parse_args(argv)
    pages.update(args.update, lambda page: updated(page, read(args.measured)))
    print(f'{args.update}: tables made of {args.measured}')
    return 0
