"""Strong and weak scaling of joint training: seconds per step of ranks that train together.

Takes about 10 minutes on 2 idle cores. Every rank has one thread. In each round, jobs of every number of ranks take
turns, so that the machine's noise affects all alike. Writes <network>.json, with the keys

    network, environment
    gradient_bytes     of the message that a step averages: gradients of trunk and exits, running statistics
    points             a list of
      scaling            'strong': the batch of a step stays; 'weak': the batch of a rank stays
      ranks, global_batch
      step_seconds       {median, min, rounds}: of a step; 'rounds' holds every round's mean over its steps
      compute_seconds    the same without messages: every rank makes steps on its share by itself, all at once
      cpu_seconds        processor time of compute_seconds, which other work on the machine disturbs less
      message_seconds    of averaging the message alone
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from branchynet import cpu, parallel, provenance, schema
from branchynet.benchmarks import measuring, options
from branchynet.benchmarks.networks import EXPERIMENTS, batchsize, build, images

import numpy as np

SCALINGS = ['strong', 'weak']
CLOCKS = ['step_seconds', 'compute_seconds', 'cpu_seconds', 'message_seconds']
ONE_THREAD = dict.fromkeys(['OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'BRANCHYNET_NUM_THREADS'], '1')
JOB = 'import sys; from branchynet.benchmarks import scaling; scaling.job(sys.argv[1].split(","), int(sys.argv[2]))'


def job(networks: Sequence[str], steps: int) -> None:
    """Measures one round's points and prints them as JSON; the program of every rank.

    Args:
        networks: names in EXPERIMENTS.
        steps: steps of a point.
    """
    with parallel.job('naive') as ranks:
        points = [time_point(network, scaling, steps, ranks) for network in networks for scaling in SCALINGS]
        if ranks.rank == 0:
            print(json.dumps(points))


def time_point(network: str, scaling: str, steps: int, ranks: parallel.Ranks) -> dict[str, Any]:
    """One point of one round, on every rank of a job."""
    batch = batchsize(network) * (ranks.size if scaling == 'weak' else 1)
    net, (x, t) = build(network), images(network, batch)
    trained, share = ranks.parallel(net), slice(batch // ranks.size)
    alone = parallel.Parallel(net, ranks.comm.split(ranks.rank, 0))
    with cpu.fast():
        trained.train(x, t)  # warms up
        step, _ = _seconds(lambda: trained.train(x, t), steps, ranks)
        compute, processor = _seconds(lambda: alone.train(x[share], t[share]), steps, ranks)
    message = np.zeros(sum(array.size for array in parallel.message(net)), np.float32)
    return {
        'network': network,
        'scaling': scaling,
        'ranks': ranks.size,
        'global_batch': batch,
        'gradient_bytes': message.nbytes,
        'step_seconds': step,
        'compute_seconds': compute,
        'cpu_seconds': processor,
        'message_seconds': _seconds(lambda: parallel.average_in_one_pass([message], ranks.comm), 10 * steps, ranks)[0],
    }


def _seconds(call: Callable[[], Any], count: int, ranks: parallel.Ranks) -> tuple[float, float]:
    """Mean seconds of a call that all ranks make together: by the clock, and of the processor for this rank."""
    ranks.comm.mpi_comm.Barrier()
    start, of_processor = time.perf_counter(), time.process_time()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count, (time.process_time() - of_processor) / count


def launch(ranks: int, networks: Sequence[str], steps: int) -> list[dict[str, Any]]:
    """The points of one round and number of ranks, from a job of its own.

    Raises:
        OSError: the job fails.
    """
    words = [sys.executable, '-c', JOB, ','.join(networks), str(steps)]
    environment = {**os.environ, **ONE_THREAD}
    done = subprocess.run(parallel.mpiexec(ranks, words), env=environment, stdout=subprocess.PIPE)
    if done.returncode:
        raise OSError(f'{ranks} ranks ended with status {done.returncode}; the reason is above')
    return json.loads(done.stdout)


def summarised(points: list[dict[str, Any]]) -> dict[str, Any]:
    """A point of the file, from its rounds."""
    point: dict[str, Any] = {name: points[0][name] for name in ('scaling', 'ranks', 'global_batch')}
    for clock in CLOCKS:
        rounds = [one[clock] for one in points]
        point[clock] = {'median': statistics.median(rounds), 'min': min(rounds), 'rounds': rounds}
    return point


def content(network: str, points: list[dict[str, Any]], environment: dict[str, Any]) -> dict[str, Any]:
    """The file of a network, from the points of all rounds."""
    found: dict[tuple, list[dict[str, Any]]] = {}
    for point in points:
        if point['network'] == network:
            found.setdefault((point['scaling'], point['ranks']), []).append(point)
    return {
        'network': network,
        'gradient_bytes': next(iter(found.values()))[0]['gradient_bytes'],
        'points': [summarised(rounds) for _, rounds in sorted(found.items())],
        'environment': environment,
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measures round by round, and writes the files after every round."""
    points: list[dict[str, Any]] = []
    environment = measuring.in_child(1, provenance.environment)  # of a rank
    for turn in range(args.rounds):
        for ranks in args.ranks:
            points += launch(ranks, args.networks, args.steps)
            for point in points[-len(SCALINGS) * len(args.networks) :]:
                print(
                    f'round {turn + 1}: {point["network"]}, {ranks} ranks, {point["scaling"]}: '
                    f'{1e3 * point["step_seconds"]:.1f} ms a step'
                )
        measured = {network: content(network, points, environment) for network in args.networks}
        for network in args.networks:
            schema.write(os.path.join(args.out, f'{network}.json'), measured[network])
    return measured


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    parser = options.parser('scaling', __doc__, rounds=5)
    parser.add_argument('--networks', **options.some_of(list(EXPERIMENTS), ['lenet', 'resnet']))
    parser.add_argument('--ranks', type=options.counts, default=[1, 2], metavar='N,...', help='(default: 1,2)')
    parser.add_argument(
        '--steps',
        type=options.whole_number('number of steps'),
        default=10,
        metavar='N',
        help='of a point (default: %(default)s)',
    )
    options.print_result(parser.parse_args(argv), measure)
    return 0
