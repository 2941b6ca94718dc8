"""The cost of the bits of profile portable: its joint training step beside that of profile fast.

Two processes, one of each profile, take turns; a ratio is the median of the pairs' ratios. About 2 minutes on
2 cores. Also measured: the cost of a checkpoint, and how seldom it is therefore written within an epoch. Writes
determinism.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from branchynet import checkpoint, cpu, determinism, provenance, schema
from branchynet.benchmarks import measuring, options
from branchynet.benchmarks.networks import EXPERIMENTS, batchsize
from branchynet.experiments import pages
from branchynet.experiments.runs import ResumableTraining
from branchynet.training import steps

import numpy as np

EPOCH = {'lenet': 60000, 'alexnet': 50000, 'resnet': 50000}  # images
FILE = 'determinism.json'
TURN = 0.5  # seconds of steps in a row, at least
_net: Any = None  # of a process, with its batch
_x: Any = None
_t: Any = None


def prepare(network: str) -> str | None:
    """Makes a network and its batch; one step warms up. Returns the profile that is in place."""
    global _net, _x, _t
    count = batchsize(network)
    determinism.seed_generators(0)
    _net = EXPERIMENTS[network].get_network()
    _x = np.random.rand(count, *EXPERIMENTS[network].shape).astype(np.float32)
    _t = np.random.randint(0, 10, count).astype(np.int32)
    cpu.enable()
    _net.train(_x, _t)
    return determinism.profile_in_place()


def step() -> float:
    """Seconds of a joint step, the mean of a turn."""
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < TURN:
        _net.train(_x, _t)
        count += 1
    return (time.perf_counter() - start) / count


def checkpoint_cost(network: str) -> tuple[float, int]:
    """Seconds of a checkpoint within an epoch, the median of five, and its bytes."""
    count = EPOCH[network]
    x, t = np.broadcast_to(_x[:1], (count, *_x.shape[1:])), np.zeros(count, np.int32)
    position = next(steps(_net, x, t, len(_x)))
    with tempfile.TemporaryDirectory(dir='.') as folder:
        path = os.path.join(folder, 'checkpoint.npz')
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            checkpoint.save(path, _net, {}, position)
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds), os.path.getsize(path)


def pool(profile: str) -> ProcessPoolExecutor:
    """A process in which a profile is in place."""
    with measuring.variables(measuring.profile_variables(profile)):
        executor = ProcessPoolExecutor(1, multiprocessing.get_context('spawn'))
        executor.submit(os.getpid).result()
        return executor


def time_network(network: str, rounds: int) -> dict[str, Any]:
    """The measurements of a network: seconds of a step per profile and round, seconds and bytes of a checkpoint."""
    pools = {profile: pool(profile) for profile in determinism.PROFILES}
    for profile, executor in pools.items():
        if executor.submit(prepare, network).result() != profile:
            raise OSError(f"profile {profile} cannot be put in place here; 'branchynet info' shows the one that can")
    seconds: dict[str, list[float]] = {profile: [] for profile in pools}
    for _ in range(rounds):
        for profile, executor in pools.items():
            seconds[profile].append(executor.submit(step).result())
    saving, size = pools['portable'].submit(checkpoint_cost, network).result()
    for executor in pools.values():
        executor.shutdown()
    return {'batchsize': batchsize(network), 'step_s': seconds, 'checkpoint_s': saving, 'checkpoint_bytes': size}


def table(measured: dict[str, Any]) -> str:
    """A benchmark's file as Markdown."""
    rows = [['Network', 'Batch', 'portable (ms)', 'fast (ms)', 'portable / fast', 'Checkpoint', 'Written every']]
    for network, m in measured['networks'].items():
        portable, fast = m['step_s']['portable'], m['step_s']['fast']
        ratios = [p / f for p, f in zip(portable, fast)]
        waited = max(ResumableTraining.INTERVAL, m['checkpoint_s'] / ResumableTraining.SHARE)
        rows.append(
            [
                network,
                f'{m["batchsize"]}',
                *(f'{1e3 * statistics.median(s):.1f}' for s in (portable, fast)),
                f'{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})',
                f'{1e3 * m["checkpoint_s"]:.0f} ms, {m["checkpoint_bytes"] / 1e6:.1f} MB',
                f'{waited:.0f} s ({100 * m["checkpoint_s"] / waited:.2f} % of the time)',
            ]
        )
    env = measured['environment']
    origin = f'{env["cpu"]}, {env["threads"]} threads, NumPy {env["numpy"]}, commit {(env["commit"] or "unknown")[:12]}'
    note = f'{origin}; medians of {len(portable)} pairs.'
    return pages.markdown([pages.Table(rows[0], rows[1:]), pages.Text(note)])


def update(page: str, path: str) -> None:
    """Puts the table of a benchmark's file between the markers of a Markdown page."""
    with open(path) as f:
        measured = json.load(f)
    pages.update(page, lambda text: pages.between_markers(text, table(measured)))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measures, prints the table and writes the file."""
    measured = {
        'environment': provenance.environment(),
        'networks': {network: time_network(network, args.rounds) for network in args.networks},
    }
    schema.write(os.path.join(args.out, FILE), measured)
    print(table(measured))
    return measured


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    parser = options.parser('determinism', __doc__, rounds=7)
    parser.add_argument('--networks', **options.some_of(list(EXPERIMENTS)))
    parser.add_argument('--update', metavar='PAGE', help='measure nothing, but put the table of --out into a page')
    args = parser.parse_args(argv)
    if args.update:
        update(args.update, os.path.join(args.out, FILE))
    else:
        options.print_result(args, measure)
    return 0
