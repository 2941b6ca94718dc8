"""Strong and weak scaling of joint training: seconds per step of ranks that train together.

    python benchmarks/scaling.py [--networks lenet,resnet] [--ranks 1,2] [--rounds 5] [--steps 10] [--out DIR]

Takes about five minutes on 2 idle cores; needs `pip install "branchynet[mpi]"`. Every rank has one thread. In each
round, jobs of every number of ranks take turns, so that the machine's noise affects all alike. The message is timed
apart from the steps too.

Writes DIR/<network>.json (default: results/benchmarks/scaling):

    network, environment
    gradient_bytes    of the message that each step averages: gradients of trunk and exits, running statistics, losses
    points            a list of
      scaling           'strong': the batch of a step stays; 'weak': the batch of a rank stays
      ranks, global_batch
      step_seconds      {median, min, rounds}: of a step; `rounds` holds the mean of each round's steps
      compute_seconds   the same without messages: every rank trains on its share by itself, all at the same time
      cpu_seconds       processor time of `compute_seconds`, which other work on the machine disturbs less
      message_seconds   the same of averaging the message alone
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # `benchmarks`, for a script in it
from branchynet import cpu, parallel, provenance
from branchynet.files import write_atomically

import numpy as np

from benchmarks.networks import BATCHES, NETWORKS, build, images

ONE_THREAD = dict.fromkeys(['OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'BRANCHYNET_NUM_THREADS'], '1')

CLOCKS = ['step_seconds', 'compute_seconds', 'cpu_seconds', 'message_seconds']


def measure(network: str, scaling: str, steps: int, ranks: parallel.Ranks) -> dict[str, Any]:
    """One round's point of a network, on every rank of a job."""
    batch = BATCHES[network] * (ranks.size if scaling == 'weak' else 1)
    net, (x, t) = build(network), images(network, batch)
    trained, share = ranks.parallel(net), slice(batch // ranks.size)
    with cpu.fast():
        trained.train(x, t)  # warms up
        step = _seconds(lambda: trained.train(x, t), steps, ranks)
        started = time.process_time()
        compute = _seconds(lambda: net.train(x[share], t[share]), steps, ranks)
        processor = (time.process_time() - started) / steps
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
        'message_seconds': _seconds(lambda: parallel.average_in_one_pass([message], ranks.comm), 10 * steps, ranks),
    }


def _seconds(call: Any, count: int, ranks: parallel.Ranks) -> float:
    """Mean seconds of a call that all ranks make together."""
    ranks.comm.mpi_comm.Barrier()
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def launched(ranks: int, networks: list[str], steps: int) -> list[dict[str, Any]]:
    """The points of one round and number of ranks, from a job of its own."""
    mpiexec = shutil.which('mpiexec', path=os.path.join(sys.prefix, 'bin')) or 'mpiexec'
    words = [
        mpiexec,
        '--bind-to',
        'none',
        '--oversubscribe',
        '-n',
        str(ranks),
        sys.executable,
        os.path.abspath(__file__),
    ]
    job = subprocess.run(
        [*words, '--networks', ','.join(networks), '--steps', str(steps), '--job'],
        env={**os.environ, **ONE_THREAD},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(job.stdout)


def summary(values: list[float]) -> dict[str, Any]:
    """Median, minimum and all values."""
    return {'median': statistics.median(values), 'min': min(values), 'rounds': values}


def summarised(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """A point of the file, from its rounds."""
    point = {name: rounds[0][name] for name in ('scaling', 'ranks', 'global_batch')}
    return {**point, **{name: summary([one[name] for one in rounds]) for name in CLOCKS}}


def write(out: str, network: str, points: list[dict[str, Any]]) -> None:
    """Writes the file of a network."""
    found: dict[tuple, list[dict[str, Any]]] = {}
    for point in points:
        if point['network'] == network:
            found.setdefault((point['scaling'], point['ranks']), []).append(point)
    content = {
        'network': network,
        'gradient_bytes': next(iter(found.values()))[0]['gradient_bytes'],
        'points': [summarised(rounds) for rounds in found.values()],
        'environment': provenance.environment(out),
    }
    os.makedirs(out, exist_ok=True)
    write_atomically(os.path.join(out, f'{network}.json'), (json.dumps(content, indent=1) + '\n').encode())


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--networks', type=lambda text: text.split(','), default=['lenet', 'resnet'])
    parser.add_argument('--ranks', type=lambda text: [int(n) for n in text.split(',')], default=[1, 2])
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--steps', type=int, default=10)
    parser.add_argument('--out', metavar='DIR', default=os.path.join('results', 'benchmarks', 'scaling'))
    parser.add_argument('--job', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    unknown = [network for network in args.networks if network not in NETWORKS]
    if unknown:
        parser.error(f'{unknown[0]} is no network: choose from {", ".join(NETWORKS)}')
    if args.job:
        with parallel.job('naive') as ranks:
            points = [measure(n, scaling, args.steps, ranks) for n in args.networks for scaling in ('strong', 'weak')]
            if ranks.rank == 0:
                print(json.dumps(points))
        return
    points = []
    for turn in range(args.rounds):
        for ranks in args.ranks:
            print(f'round {turn + 1} of {args.rounds}, {ranks} ranks', file=sys.stderr)
            points += launched(ranks, args.networks, args.steps)
        for network in args.networks:
            write(args.out, network, points)


if __name__ == '__main__':
    main()
