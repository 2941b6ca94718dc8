"""Figure 6: cache misses against runtime, of B-AlexNet's settings and its baseline.

    ./get_results.sh --only alex_cifar10,figure6 --preset quick

A separate process classifies images one by one, with the weights that alex_cifar10 wrote to the results folder.
`perf stat` counts its cache misses if the machine has counters; otherwise valgrind's callgrind simulates the
last-level cache of the paper's processor (20 MB). The experiment is skipped if neither is installed. The counts of
a process that classifies the first image alone are subtracted. A rate is last-level misses over loads and stores.
In the paper, the longer the runtime, the higher the rate. Here the whole compiled network fits into the simulated
cache, so that only the images themselves are missed: expect the opposite.
"""

from __future__ import annotations

import csv
import gc
import os
import re
import shutil
import subprocess
import sys
import tempfile
from typing import Any, Callable, NamedTuple

from branchynet import checkpoint, cpu, provenance, timing, visualize
from branchynet.datasets import pcifar10
from branchynet.experiments import claims, results, runs
from branchynet.experiments.alex_cifar10 import EXPERIMENT as ALEXNET
from branchynet.experiments.run_id import RunId
from branchynet.net import BranchyNet

import numpy as np

EVENTS = 'cache-misses:u', 'L1-dcache-loads:u', 'L1-dcache-stores:u'
PERF = ['perf', 'stat', '-x', ',', '-e', ','.join(EVENTS)]
CALLGRIND = [
    'valgrind',
    '--tool=callgrind',
    '--cache-sim=yes',
    '--LL=20971520,20,64',
    '--instr-atstart=no',
    '--callgrind-out-file=/dev/null',
]
# Callgrind's requests, as its callgrind.h numbers them.
_START, _STOP = (ord('C') << 24 | ord('T') << 16 | i for i in (4, 5))
_MINUTES = 3  # of a seed with callgrind, whatever the number of images
_IMAGES_PER_MINUTE = 10


class Figure6(NamedTuple):
    """Counts cache misses of settings of the network that alex_cifar10 trained.

    Attributes:
        name: of the experiment.
        title: its heading in reports.
        get_data: loads the arrays.
        presets: Preset by name, of which only test_samples is used.
    """

    name: str
    title: str
    get_data: Callable[[], runs.Data]
    presets: dict[str, runs.Preset]

    @property
    def parts(self) -> tuple[str, ...]:
        """The one part, which has no name."""
        return ('',)

    def minutes(self, preset: runs.Preset, data: runs.Data, setup: runs.Setup) -> float:
        """The minutes that one seed takes with callgrind."""
        return _MINUTES + len(data[2]) / _IMAGES_PER_MINUTE

    def run(self, run_id: RunId, data: runs.Data, setup: runs.Setup) -> results.CacheRun:
        """Counts the cache misses of one seed.

        Args:
            run_id: of this experiment; the seed is that of a training of alex_cifar10.
            data: cut to the preset.
            setup: the user's choices; setup.out holds the weights.

        Returns:
            The counts of each setting and of the baseline.

        Raises:
            runs.CannotRun: no tool that counts is installed, the tool fails or its counts are too noisy, or the folder
                holds no weights of this seed.
        """
        tool, trained = _tool(), RunId(ALEXNET.name, '', run_id.seed)
        training, weights = _training(trained, setup), trained.weights_path(setup.out)
        if training is None:
            raise runs.CannotRun(f'{setup.out} holds no weights of {trained}: run --only {ALEXNET.name},{self.name}')
        net = ALEXNET.get_network(variant=setup.variant)
        runs.load_weights(net, weights, training.weights_sha256)
        _, _, x, t = data
        with tempfile.TemporaryDirectory() as folder, cpu.fast():
            images = os.path.join(folder, 'images.npy')
            np.save(images, x)
            points = [
                _point(
                    net,
                    setting,
                    x,
                    t,
                    *(_count(tool, setup.variant, weights, images, count, setting) for count in (0, len(x))),
                )
                for setting in ([10.0, 10.0], ALEXNET.published_thresholds, [0.0, 0.0], [])
            ]
        return results.CacheRun(
            seed=run_id.seed,
            measurement=results.CacheMeasurement(
                device='@numpy',
                environment=runs.environment(setup.out),
                test_samples=len(x),
                data_sha256=provenance.sha256_of_arrays(data),
                variant=setup.variant,
                tool=tool[0],
                cache=points,
                weights_sha256=training.weights_sha256,
            ),
        )

    def write(self, seeds: list[results.CacheRun], out: str) -> list[str]:
        """Draws the points of every seed.

        Args:
            seeds: the runs.
            out: the results folder.

        Returns:
            The paths of the files.
        """
        published = [
            (row['series'], (float(row['x']), float(row['y']) / 100))
            for row in claims.published('figures.csv')
            if row['figure'] == '6'
        ]
        paths = []
        for run in seeds:
            *settings, base = [(p.runtime_ms, p.cache_miss_percent / 100) for p in run.measurement.cache]
            for suffix in 'png', 'pdf':
                paths.append(os.path.join(out, 'figures', f'{RunId(self.name, "", run.seed)}.{suffix}'))
                times, rates = zip(*settings)
                visualize.plot_cache_misses(
                    times,
                    rates,
                    *base,
                    published=[point for series, point in published if series != 'AlexNet'],
                    published_base=next(point for series, point in published if series == 'AlexNet'),
                    output_path=paths[-1],
                )
        return paths


def _training(run_id: RunId, setup: runs.Setup) -> results.Training | None:
    """The training that wrote a run's weights in the folder; None if there is none of this preset."""
    if not (os.path.exists(run_id.weights_path(setup.out)) and os.path.exists(results.path_of(setup.out))):
        return None
    found = results.read(setup.out)
    if (found.preset, found.variant) != (setup.preset, setup.variant):
        return None
    return found.trainings().get(run_id)


def _tool() -> list[str]:
    """The command of the first tool that counts on this machine."""
    if shutil.which('perf'):
        trial = subprocess.run([*PERF, 'true'], capture_output=True, text=True)
        if trial.returncode == 0 and '<not' not in trial.stderr:
            return PERF
    if shutil.which('valgrind'):
        return CALLGRIND
    raise runs.CannotRun(
        'this machine has no cache counters that perf can read, and no valgrind: run apt-get install valgrind'
    )


def _count(
    tool: list[str], variant: str, weights: str, images: str, count: int, setting: list[float]
) -> tuple[int, int]:
    """Runs a process that classifies one image and then ``count`` images; returns (loads and stores, misses)."""
    command = [sys.executable, '-m', __name__, variant, weights, images, str(count), *map(str, setting)]
    run = subprocess.run([*tool, *command], capture_output=True, text=True)
    if run.returncode:
        why = run.stderr.strip() or f'status {run.returncode}'
        raise runs.CannotRun(f'{tool[0]} failed: {why.splitlines()[-1]}')
    return _perf_counts(run.stderr) if tool is PERF else _callgrind_counts(run.stderr)


def _perf_counts(text: str) -> tuple[int, int]:
    counts = {fields[2]: fields[0] for fields in csv.reader(text.splitlines()) if len(fields) > 2}
    numbers = [counts.get(event, 'nothing') for event in EVENTS]
    if not all(map(str.isdecimal, numbers)):
        raise runs.CannotRun(
            f'perf counted {", ".join(numbers)} of {", ".join(EVENTS)}: use a machine with these counters'
        )
    misses, loads, stores = map(int, numbers)
    return loads + stores, misses


def _callgrind_counts(text: str) -> tuple[int, int]:
    found = dict(re.findall(r'(D   refs|LL misses):\s*([\d,]+)', text))
    if len(found) < 2:
        raise runs.CannotRun("valgrind's output names no data references and misses: use valgrind 3.19 or later")
    references, misses = (int(found[what].replace(',', '')) for what in ('D   refs', 'LL misses'))
    return references, misses


def _point(
    net: BranchyNet, setting: list[float], x: np.ndarray, t: np.ndarray, before: tuple[int, int], after: tuple[int, int]
) -> results.CachePoint:
    """The point of one setting (an empty one: the baseline); its time is measured without counting."""
    refs, misses = np.subtract(after, before)
    if refs <= 0 or misses < 0:
        raise runs.CannotRun(
            f'{len(x)} additional images added {refs} loads and stores and {misses} misses: the counts are too noisy; '
            'run figure6 again on an idle machine'
        )
    net.thresholdExits = setting or None
    measurement = timing.measure(runs.for_inference(net), x, t, main=not setting)
    return results.CachePoint(
        thresholds=setting,
        runtime_ms=timing.summary(measurement.whole)['mean_ms'],
        references=int(refs),
        misses=int(misses),
        cache_miss_percent=float(misses / refs * 100),
    )


def classify(variant: str, weights: str, images: str, count: str, *setting: str) -> None:
    """Classifies one image, which fills the caches, and then ``count`` images one by one: the counted process.

    Args:
        variant: of the network.
        weights: path of the weights.
        images: path of an .npy file (N, 3, 32, 32) float32.
        count: number of images, as text.
        setting: (E - 1,) thresholds (nats), as text; none for the baseline.
    """
    net = ALEXNET.get_network(variant=variant)
    checkpoint.load_npz(weights, net)
    net.thresholdExits = [float(t) for t in setting] or None
    compiled = runs.for_inference(net)
    x = np.load(images, allow_pickle=False)
    step, request = compiled.test if setting else compiled.test_main, _callgrind()
    step(x[:1])  # allocates all buffers
    gc.disable()
    request(_START)
    for i in [0, *range(int(count))]:
        step(x[i : i + 1])
    request(_STOP)


def _callgrind() -> Callable[[int], None]:
    """A function that sends a request to callgrind, which simulates the caches between _START and _STOP alone.

    Valgrind knows a request by instructions that do nothing elsewhere; its valgrind.h has them.
    """
    from branchynet.cpu.emitter import INT, Emitter, integer, ir, llvm

    llvm.initialize_native_asmparser()
    emit = Emitter()

    def write(words: Any) -> Any:
        rotations = '; '.join(f'rol $${bits}, %rdi' for bits in (3, 13, 61, 51))
        kind, registers = ir.FunctionType(INT, [INT, INT]), '={rdx},{rax},0,~{memory},~{cc}'
        return emit.builder.asm(kind, f'{rotations}; xchg %rbx, %rbx', registers, [words, integer(0)], True)

    emit.function('request', 1, write)
    code = emit.compiled('request')['request']

    def request(number: int) -> None:
        words = np.array([number, 0, 0, 0, 0, 0], np.int64)
        code(words.ctypes.data)

    return request


EXPERIMENT = Figure6(
    name='figure6',
    title='Figure 6: cache misses against runtime, B-AlexNet',
    get_data=pcifar10.get_data,
    presets={
        name: runs.Preset(main_epochs=0, joint_epochs=0, batchsize=1, train_samples=1, test_samples=count)
        for name, count in (('smoke', 10), ('quick', 50), ('paper', 200))
    },
)

if __name__ == '__main__':
    classify(*sys.argv[1:])
