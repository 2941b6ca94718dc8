"""Figure 6: cache misses against runtime, of B-AlexNet's settings and its baseline.

    ./get_results.sh --only alex_cifar10,figure6 --preset quick

It counts in a process of its own that classifies images one by one, with the weights that alex_cifar10 left in
the results folder: by `perf stat` where the machine has counters, else by valgrind's cachegrind, which
simulates the last-level cache of the paper's processor (20 MB); without either it says that it cannot. What the
process does up to the first image's end is counted apart and taken off. A rate is last-level misses over loads
and stores. About 8 minutes on 2 cores with cachegrind; the published rate falls with the runtime.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile
from typing import Callable, NamedTuple

from branchynet import cpu, files, timing, visualize
from branchynet.datasets import pcifar10
from branchynet.experiments import claims, runs
from branchynet.experiments.alex_cifar10 import EXPERIMENT as ALEXNET
import chainer
import numpy as np

PERF = ['perf', 'stat', '-x', ',', '-e', 'cache-misses:u,L1-dcache-loads:u,L1-dcache-stores:u']
CACHEGRIND = ['valgrind', '--tool=cachegrind', '--cache-sim=yes', '--LL=20971520,20,64',
              '--cachegrind-out-file=/dev/null']
MINUTES = 8  # of a seed with cachegrind


class Figure6(NamedTuple):
    """Counts cache misses of settings of a network that another experiment trained."""
    name: str
    title: str
    get_data: Callable
    presets: dict
    parts = ['']

    def about(self):
        """What results.json says of the experiment itself."""
        return {'title': self.title}

    def minutes(self, preset, data, setup):
        """Minutes that a seed will take."""
        return MINUTES

    def run(self, part, seed, data, setup):
        """Counts for one seed: a JSON-ready dict, units in its keys.

        Raises:
            runs.CannotRun: there is nothing to count with, or no weights.
        """
        tool, weights = _tool(), runs.weights_path(setup.out, ALEXNET.name, '', seed)
        if not _is_of_a_run(weights, seed, setup):
            raise runs.CannotRun('%s is not there, or of another run than results.json: expected it from --only '
                                     '%s,%s' % (weights, ALEXNET.name, self.name))
        setup = setup._replace(device=chainer.get_device('@numpy'))
        run = runs.begin((self.name, part, seed), lambda: ALEXNET.get_network(variant=setup.variant),
                             self.presets[setup.preset], data, setup)
        net, result = run.net, run.result
        chainer.serializers.load_npz(weights, net)
        result['tool'] = tool[0]
        with tempfile.TemporaryDirectory() as folder, cpu.fast():
            images = os.path.join(folder, 'images.npy')
            np.save(images, data[2])
            result['cache'] = [_point(net, setting, data, *(
                _count(tool, setup.variant, weights, images, count, setting) for count in (0, len(data[2]))))
                for setting in ([10., 10.], ALEXNET.published_thresholds, [0., 0.], [])]
        return result

    def write(self, results, out):
        """Draws every seed's points; returns the paths."""
        published = [(row['series'], (float(row['x']), float(row['y']) / 100))
                     for row in claims.published('figures.csv') if row['figure'] == '6']
        paths = []
        for result in results:
            *settings, base = [(p['runtime_ms'], p['cache_miss_percent'] / 100) for p in result['cache']]
            for suffix in 'png', 'pdf':
                paths.append(os.path.join(out, 'figures', 'figure6_seed%d.%s' % (result['seed'], suffix)))
                visualize.plot_cache_misses(
                    *zip(*settings), *base, [point for series, point in published if series != 'AlexNet'],
                    next(point for series, point in published if series == 'AlexNet'), output_path=paths[-1])
        return paths


def _is_of_a_run(weights, seed, setup):
    """Whether weights are what the folder's results say that this seed came to."""
    path = os.path.join(setup.out, 'results.json')
    if not (os.path.exists(weights) and os.path.exists(path)):
        return False
    results = runs.read_results(path)
    trained = results['experiments'].get(ALEXNET.name, {'seeds': []})['seeds']
    return (results['preset'], results['variant']) == (setup.preset, setup.variant) and any(
        (run['seed'], run.get('weights_sha256')) == (seed, files.digest(weights)) for run in trained)


def _tool():
    """The command that counts, of those that do here."""
    if shutil.which('perf'):
        trial = subprocess.run(PERF + ['true'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
        if trial.returncode == 0 and '<not' not in trial.stderr:
            return PERF
    if shutil.which('valgrind'):
        return CACHEGRIND
    raise runs.CannotRun('this machine has no cache counters: expected perf and counters, or valgrind '
                             '(apt-get install valgrind)')


def _count(tool, variant, weights, images, count, setting):
    """(loads and stores, last-level misses) of a process that classifies one image, and so many again."""
    command = [sys.executable, '-m', __name__, variant, weights, images, str(count), *map(str, setting)]
    run = subprocess.run(tool + command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    if run.returncode:
        why = run.stderr.strip() or 'status %d' % run.returncode
        raise OSError('%s failed: %s' % (tool[0], why.splitlines()[-1]))
    return _perf_counts(run.stderr) if tool is PERF else _cachegrind_counts(run.stderr)


def _perf_counts(text):
    misses, *loads_and_stores = (int(line.split(',')[0]) for line in text.splitlines() if re.match(r'\d+,', line))
    return sum(loads_and_stores), misses


def _cachegrind_counts(text):
    return tuple(int(re.search(what + r':\s*([\d,]+)', text).group(1).replace(',', ''))
                 for what in ('D   refs', 'LL misses'))


def _point(net, setting, data, before, after):
    """One setting (none: the baseline), its time taken without counting."""
    _, _, x, t = data
    refs, misses = np.subtract(after, before)
    net.thresholdExits = setting or None
    measurement = timing.measure(runs.for_inference(net), x, t, main=not setting)
    return {'thresholds': setting, 'runtime_ms': timing.summary(measurement.whole)['mean_ms'],
            'references': int(refs), 'misses': int(misses), 'cache_miss_percent': float(misses / refs * 100)}


def classify(variant, weights, images, count, *setting):
    """Classifies one image, for which buffers are made, and ``count`` images one by one: what is counted."""
    net = ALEXNET.get_network(variant=variant)
    chainer.serializers.load_npz(weights, net)
    net.thresholdExits = [float(t) for t in setting] or None
    net = runs.for_inference(net)
    x = np.load(images)
    step = net.test if setting else net.test_main
    for i in [0, *range(int(count))]:
        step(x[i:i + 1])


EXPERIMENT = Figure6(
    name='figure6',
    title='Figure 6: cache misses against runtime, B-AlexNet',
    get_data=pcifar10.get_data,
    presets={name: runs.Preset(main_epochs=0, joint_epochs=0, batchsize=1, train_samples=1, test_samples=count)
             for name, count in (('smoke', 10), ('quick', 200), ('paper', 500))},
)

if __name__ == '__main__':
    classify(*sys.argv[1:])
