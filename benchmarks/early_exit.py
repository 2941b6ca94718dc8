"""The gain by early exit on the clock of a user: whole calls, against the gain that multiply-adds allow.

Takes about three minutes on 2 idle cores. The baseline (``Compiled.test_main``), early exit (``Compiled.test``) and,
for single images, ONNX Runtime with the exported file take turns in one process, with the same threads. Samples leave
in the shares of the paper's Table I, whatever the weights; without --weights a network is untrained. A ratio is
the median of the rounds' ratios. Writes benchmark.csv (every round), benchmark.md and environment.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Optional

from branchynet import provenance
from branchynet.benchmarks import measuring, options
from branchynet.benchmarks.networks import EXPERIMENTS, build, images, leaving_thresholds, published_shares
from branchynet.cost import cost
from branchynet.export import export
from branchynet.files import write_atomically
from branchynet.inference import Compiled, classify
from branchynet.net import BranchyNet

import numpy as np

BATCHES = [1, 256]
IMAGES = 512


class Row(NamedTuple):
    """Seconds per image of one contender in one round; ``allowed`` is the gain that multiply-adds allow."""

    network: str
    batch: int
    threads: int
    contender: str
    round: int
    seconds: float
    allowed: float


def time_network(network: str, batch: int, threads: int, rounds: int, weights: Optional[str]) -> list[Row]:
    """The rows of one network and batch size, in a process that has these threads."""
    net = build(network, weights)
    x, _ = images(network, IMAGES)
    net.thresholdExits = leaving_thresholds(net, x, published_shares(network))
    compiled = Compiled(net)
    parts = [x[i : i + batch] for i in range(0, len(x), batch)]
    shares = np.bincount(classify(compiled, x, net.thresholdExits).exit, minlength=net.numexits()) / len(x)
    costs = cost(net, EXPERIMENTS[network].shape)
    allowed = costs.main.macs / sum(share * exit.leaving.macs for share, exit in zip(shares, costs.exits))
    calls: dict[str, Callable] = {'main': compiled.test_main, 'exits': compiled.test}
    if batch == 1:
        calls['onnxruntime'] = _onnx_runtime(net, EXPERIMENTS[network].shape, threads)
    rows = []
    for turn in range(rounds + 1):  # the first one warms up
        for contender, call in calls.items():
            start = time.perf_counter()
            for part in parts:
                call(part)
            rows.append(Row(network, batch, threads, contender, turn, (time.perf_counter() - start) / len(x), allowed))
    return [row for row in rows if row.round]


def _onnx_runtime(net: BranchyNet, shape: tuple[int, ...], threads: int) -> Callable:
    """A call of ONNX Runtime with the file of the whole net."""
    import onnxruntime

    threading = onnxruntime.SessionOptions()
    threading.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'net.onnx')
        export(net, path, shape, net.thresholdExits)
        session = onnxruntime.InferenceSession(path, threading, providers=['CPUExecutionProvider'])
    return lambda x: session.run(None, {'x': x})


def table(rows: Sequence[Row]) -> str:
    """Medians and ratios as a table in Markdown."""
    lines = [
        '| network | batch | threads | main, µs | exits, µs | gain | multiply-adds allow | efficiency '
        '| ONNX Runtime / exits |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    groups: dict[tuple, dict[str, list[float]]] = {}
    for row in rows:
        contenders = groups.setdefault((row.network, row.batch, row.threads, row.allowed), {})
        contenders.setdefault(row.contender, []).append(row.seconds)
    for (network, batch, threads, allowed), seconds in groups.items():
        main, exits, onnx = (seconds.get(name, []) for name in ('main', 'exits', 'onnxruntime'))
        gain = _ratio(main, exits)
        cells = [
            network,
            batch,
            threads,
            f'{statistics.median(main) * 1e6:.1f}',
            f'{statistics.median(exits) * 1e6:.1f}',
            f'{gain:.2f}',
            f'{allowed:.2f}',
            f'{gain / allowed:.2f}',
            f'{_ratio(onnx, exits):.2f}' if onnx else '',
        ]
        lines.append(f'| {" | ".join(map(str, cells))} |')
    return '\n'.join(lines)


def _ratio(seconds: Sequence[float], others: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(seconds, others))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measures, prints the table and writes the files."""
    rows: list[Row] = []
    for network in args.networks:
        for threads in args.threads:
            for batch in BATCHES:
                rows += measuring.in_child(threads, time_network, network, batch, threads, args.rounds, args.weights)
                print(table(rows).splitlines()[-1], flush=True)
    print(table(rows))
    write_atomically(os.path.join(args.out, 'benchmark.md'), (table(rows) + '\n').encode())
    environments = {threads: measuring.in_child(threads, provenance.environment) for threads in args.threads}
    return measuring.write(args.out, rows, environments)


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    parser = options.parser('early_exit', __doc__, rounds=15)
    parser.add_argument('--networks', **options.some_of(list(EXPERIMENTS)))
    parser.add_argument('--threads', **options.threads())
    parser.add_argument('--weights', metavar='DIR', help="a run's results, for trained weights")
    options.print_result(parser.parse_args(argv), measure)
    return 0
