"""What the bits of profile portable cost: its joint training step beside that of profile fast.

    python benchmarks/determinism.py [--networks lenet,alexnet,resnet] [--pairs 7] [--file FILE]
    python benchmarks/determinism.py --file results/benchmarks/determinism.json --update docs/reproducing.md

Two processes, one of each profile, take turns; a ratio is the median of the pairs' ratios. About 2 minutes on
2 cores. Also measured: what a checkpoint costs, and how seldom it is therefore written within an epoch.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor

import branchynet  # noqa: F401
from branchynet import checkpoint, cpu, determinism, provenance, schema
from branchynet.experiments import pages, report
from branchynet.experiments.runs import ResumableTraining
from branchynet.files import write_atomically
from branchynet.networks import alex_cifar10, lenet_mnist, resnet_cifar10
from branchynet.training import steps

import numpy as np

NETWORKS = {  # builder, shape of an image, images of a batch, images of an epoch
    'lenet': (lenet_mnist, (1, 28, 28), 512, 60000),
    'alexnet': (alex_cifar10, (3, 32, 32), 512, 50000),
    'resnet': (resnet_cifar10, (3, 32, 32), 64, 50000),
}
TURN = 0.5  # seconds of steps in a row, at least
_net, _x, _t = None, None, None  # of a process


def prepare(network):
    """Makes a network and its batch; one step warms up. Returns the profile that is in place."""
    global _net, _x, _t
    builder, shape, count, _ = NETWORKS[network]
    determinism.seed_generators(0)
    _net = builder.get_network()
    _x = np.random.rand(count, *shape).astype(np.float32)
    _t = np.random.randint(0, 10, count).astype(np.int32)
    cpu.enable()
    _net.train(_x, _t)
    return determinism.profile_in_place()


def step():
    """Seconds of a joint step, the mean of a turn."""
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < TURN:
        _net.train(_x, _t)
        count += 1
    return (time.perf_counter() - start) / count


def checkpoint_cost(network):
    """Seconds of a checkpoint within an epoch, the median of five, and its bytes."""
    count = NETWORKS[network][3]
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


def pool(profile):
    """A process in which a profile is in place."""
    before = dict(os.environ)
    wanted = determinism.variables(profile)
    unset = {name for name in determinism.variables('portable') if wanted.get(name) is None}
    os.environ.update({name: value for name, value in wanted.items() if value is not None})
    for name in unset:
        os.environ.pop(name, None)
    try:
        executor = ProcessPoolExecutor(1, multiprocessing.get_context('spawn'))
        executor.submit(os.getpid).result()
        return executor
    finally:
        os.environ.clear()
        os.environ.update(before)


def measure(network, pairs):
    """What was measured of a network: seconds of a step per profile and pair, seconds and bytes of a checkpoint."""
    pools = {profile: pool(profile) for profile in determinism.PROFILES}
    for profile, executor in pools.items():
        assert executor.submit(prepare, network).result() == profile
    seconds = {profile: [] for profile in pools}
    for _ in range(pairs):
        for profile, executor in pools.items():
            seconds[profile].append(executor.submit(step).result())
    saving, size = pools['portable'].submit(checkpoint_cost, network).result()
    for executor in pools.values():
        executor.shutdown()
    return {'batchsize': NETWORKS[network][2], 'step_s': seconds, 'checkpoint_s': saving, 'checkpoint_bytes': size}


def table(measured):
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
    note = f'{env["cpu"]}, {env["threads"]} threads, NumPy {env["numpy"]}; medians of {len(portable)} pairs.'
    return pages.markdown([pages.Table(rows[0], rows[1:]), pages.Text(note)])


def update(page, path):
    """Puts the table of a benchmark's file between the markers of a Markdown page."""
    with open(path) as f, open(page, encoding='utf-8') as g:
        text = report.between_markers(g.read(), table(json.load(f)))
    write_atomically(page, text.encode())


def main() -> None:
    """Measures, or updates a page, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--networks', type=lambda text: text.split(','), default=list(NETWORKS))
    parser.add_argument('--pairs', type=int, default=7)
    parser.add_argument('--file', default=os.path.join('results', 'local', 'determinism.json'))
    parser.add_argument('--update', metavar='PAGE', help='measure nothing, but put the table of --file into a page')
    args = parser.parse_args()
    if args.update:
        update(args.update, args.file)
        return
    unknown = set(args.networks) - set(NETWORKS)
    if unknown:
        parser.error(f'network is {min(unknown)}: expected some of {", ".join(NETWORKS)}')
    measured = {
        'environment': provenance.environment(),
        'networks': {network: measure(network, args.pairs) for network in args.networks},
    }
    os.makedirs(os.path.dirname(os.path.abspath(args.file)), exist_ok=True)
    schema.write(args.file, measured)
    print(table(measured))


if __name__ == '__main__':
    main()
