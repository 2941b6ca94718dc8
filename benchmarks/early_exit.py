"""The gain by early exit on the clock of a user: whole calls, against the gain that multiply-adds allow.

    python benchmarks/early_exit.py [--networks lenet,alexnet,resnet] [--weights DIR] [--threads 1,2] [--rounds 15]
                                    [--out DIR]

Takes about three minutes on 2 idle cores. The baseline (``Compiled.test_main``), early exit (``Compiled.test``) and,
for single images, ONNX Runtime with the exported file take turns in one process, with the same threads. Samples leave
in the shares of the paper's Table I, whatever the weights; without --weights a network is untrained. A ratio is
the median of the rounds' ratios. Writes benchmark.csv (every round), benchmark.md and environment.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # `benchmarks`, for a script in it
from branchynet import provenance
from branchynet.cost import cost
from branchynet.export import export
from branchynet.files import write_atomically
from branchynet.inference import Compiled, classify

import numpy as np

from benchmarks.networks import NETWORKS, SHAPES, build, images, leaving_thresholds, published_shares

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


def measure(network: str, batch: int, threads: int, rounds: int, weights: str | None) -> list[Row]:
    """The rows of one network and batch size, in a process that has these threads."""
    net = build(network, weights)
    x, _ = images(network, IMAGES)
    net.thresholdExits = leaving_thresholds(net, x, published_shares(network))
    compiled = Compiled(net)
    parts = [x[i : i + batch] for i in range(0, len(x), batch)]
    shares = np.bincount(classify(compiled, x, net.thresholdExits).exit, minlength=net.numexits()) / len(x)
    costs = cost(net, SHAPES[network])
    allowed = costs.main.macs / sum(share * exit.leaving.macs for share, exit in zip(shares, costs.exits))
    calls: dict[str, Callable] = {'main': compiled.test_main, 'exits': compiled.test}
    if batch == 1:
        calls['onnxruntime'] = _onnx_runtime(net, SHAPES[network], threads)
    rows = []
    for turn in range(rounds + 1):  # the first one warms up
        for contender, call in calls.items():
            start = time.perf_counter()
            for part in parts:
                call(part)
            rows.append(Row(network, batch, threads, contender, turn, (time.perf_counter() - start) / len(x), allowed))
    return [row for row in rows if row.round]


def _onnx_runtime(net, shape: tuple[int, ...], threads: int) -> Callable:
    """A call of ONNX Runtime with the file of the whole net."""
    import onnxruntime

    path = os.path.join(tempfile.mkdtemp(), 'net.onnx')
    export(net, path, shape, net.thresholdExits)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    return lambda x: session.run(None, {'x': x})


def table(rows: list[Row]) -> str:
    """Medians and ratios as a table in Markdown."""
    lines = [
        '| network | batch | threads | main, µs | exits, µs | gain | multiply-adds allow | efficiency '
        '| ONNX Runtime / exits |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    groups: dict[tuple, dict[str, list[float]]] = {}
    for row in rows:
        groups.setdefault((row.network, row.batch, row.threads, row.allowed), {}).setdefault(row.contender, []).append(
            row.seconds
        )
    for (network, batch, threads, allowed), values in groups.items():
        main, exits = values['main'], values['exits']
        gain = statistics.median(a / b for a, b in zip(main, exits))
        onnx = (
            [f'{statistics.median(a / b for a, b in zip(values["onnxruntime"], exits)):.2f}']
            if 'onnxruntime' in values
            else ['']
        )
        cells = [
            network,
            batch,
            threads,
            f'{statistics.median(main) * 1e6:.1f}',
            f'{statistics.median(exits) * 1e6:.1f}',
            f'{gain:.2f}',
            f'{allowed:.2f}',
            f'{gain / allowed:.2f}',
            *onnx,
        ]
        lines.append(f'| {" | ".join(map(str, cells))} |')
    return '\n'.join(lines)


def in_process(threads: int, *arguments) -> list[Row]:
    """``measure`` in a new process, in which everything has ``threads`` threads."""
    names = ['OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'BRANCHYNET_NUM_THREADS']
    os.environ.update(dict.fromkeys(names, str(threads)))
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        return pool.submit(measure, *arguments).result()


def main() -> None:
    """Measures, prints the table and writes the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--networks', type=lambda text: text.split(','), default=list(NETWORKS))
    parser.add_argument('--weights', help="folder of a run's results")
    parser.add_argument('--threads', type=lambda text: [int(n) for n in text.split(',')], default=[1, 2])
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--out', default=os.path.join('results', 'local', 'early_exit'))
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    rows: list[Row] = []
    for network in args.networks:
        for threads in args.threads:
            for batch in BATCHES:
                rows += in_process(threads, network, batch, threads, args.rounds, args.weights)
                print(table(rows).splitlines()[-1], flush=True)
    with open(os.path.join(args.out, 'benchmark.csv'), 'w', newline='') as f:
        csv.writer(f).writerows([Row._fields, *rows])
    write_atomically(os.path.join(args.out, 'benchmark.md'), (table(rows) + '\n').encode())
    write_atomically(
        os.path.join(args.out, 'environment.json'), (json.dumps(provenance.environment(), indent=1) + '\n').encode()
    )
    print(table(rows))


if __name__ == '__main__':
    main()
