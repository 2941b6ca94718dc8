"""Measurement for the benchmarks: contenders take turns in one process with a given number of threads."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from branchynet import cpu, determinism, files, provenance, schema

import numpy as np

_THREAD_VARIABLES = ['OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS', 'BRANCHYNET_NUM_THREADS']

TURN = 0.2  # seconds


class Row(NamedTuple):
    """One measured value.

    Attributes:
        network: or layer.
        task: the work that was timed, or 'memory'.
        batch: images.
        threads: of every contender.
        contender: who did it.
        round: its number; the same round's values were taken one after the other.
        value: seconds per batch, or MB.
    """

    network: str
    task: str
    batch: int
    threads: int
    contender: str
    round: int
    value: float


def context(contender: str) -> AbstractContextManager:
    """The context of a contender: for 'branchynet' this project's CPU kernels."""
    return cpu.fast() if contender == 'branchynet' else contextlib.nullcontext()


def in_child(threads: int, function: Callable, *args: Any) -> Any:
    """Returns function(*args), called in a new process in which every library has this number of threads."""
    spawn = multiprocessing.get_context('spawn')
    with variables(dict.fromkeys(_THREAD_VARIABLES, str(threads))), ProcessPoolExecutor(1, spawn) as pool:
        return pool.submit(function, *args).result()


@contextlib.contextmanager
def variables(values: Mapping[str, str | None]) -> Iterator[None]:
    """A context in which environment variables have these values for processes that start; None: it is not set."""
    before = dict(os.environ)
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def profile_variables(profile: str) -> dict[str, str | None]:
    """The environment variables of a bit profile, with None for those that only another profile sets."""
    return {**dict.fromkeys(determinism.variables('portable')), **determinism.variables(profile)}


def timed(
    contender: str, call: Callable[[], Any], count: int = 1, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of call() on a clock, the mean of `count` in a row."""
    with context(contender):
        start = clock()
        for _ in range(count):
            call()
        return (clock() - start) / count


def interleaved(
    calls: dict[str, Callable[[], Any]],
    rounds: int,
    seconds: float = TURN,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[tuple[str, int, float]]:
    """Times every call in turn in each round, so that the machine's noise affects all calls alike.

    Args:
        calls: a function for each contender's name.
        rounds: number of rounds, after two calls to warm up. A short call is repeated.
        seconds: that its repetitions take in a round.
        clock: returns seconds. `time.thread_time` counts neither other programs nor the call's other threads.

    Yields:
        (contender, round, seconds of a call).
    """
    counts = {}
    for name, call in calls.items():
        timed(name, call)
        counts[name] = max(1, int(seconds / timed(name, call)))
    for turn in range(rounds):
        for name, call in calls.items():
            yield name, turn, timed(name, call, counts[name], clock)


def peak_memory(name: str, warm_up: Callable[[], Any], call: Callable[[], Any]) -> float:
    """MB by which call() raises this process's memory at its peak. Only meaningful in a new process."""
    with context(name):
        warm_up()
        _forget_peak()
        before = _peak()
        call()
        return _peak() - before


def _forget_peak() -> None:
    """Starts the peak again, where Linux allows it: a child inherits that of its parent."""
    with contextlib.suppress(OSError), open('/proc/self/clear_refs', 'w') as f:
        f.write('5')


def _peak() -> float:
    """MB."""
    with contextlib.suppress(OSError), open('/proc/self/status') as f:
        return next(int(line.split()[1]) for line in f if line.startswith('VmHWM:')) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == 'darwin' else peak / 2**10


def sgemm_peak() -> float:
    """FLOP per second of the float32 matrix product, NumPy's or PyTorch's, whichever is faster."""
    import torch

    size = 2048
    a = np.random.RandomState(0).rand(size, size).astype(np.float32)
    b = torch.from_numpy(a)
    seconds = [s for _, _, s in interleaved({'numpy': lambda: a @ a, 'torch': lambda: b @ b}, 20)]
    return 2 * size**3 / min(seconds)


def environment() -> dict[str, Any]:
    """Describes everything that the times in this process depend on; a JSON-ready dict."""
    import torch

    return {
        **provenance.environment(),
        'torch': torch.__version__,
        'torch_threads': torch.get_num_threads(),
        'sgemm_flop_per_s': sgemm_peak(),
    }


def describe(environment: dict[str, Any]) -> str:
    """Describes the environment in one line."""
    blas = ', '.join(
        '{internal_api} {version} ({architecture}, {num_threads} threads)'.format(**b)
        for b in environment['blas']
        if b['version']
    )
    return '{}; Python {}, NumPy {}, Chainer {}, PyTorch {} ({} threads); {}; sgemm {:.0f} GFLOP/s'.format(
        environment['cpu'],
        *(environment[name] for name in ['python', 'numpy', 'chainer', 'torch', 'torch_threads']),
        blas,
        environment['sgemm_flop_per_s'] / 1e9,
    )


def write(out: str, rows: Sequence[Any], environment: dict[Any, Any]) -> dict[str, Any]:
    """Writes named tuples of one kind as out/benchmark.csv, and the environment as out/environment.json.

    Returns:
        Both, JSON-ready.
    """
    text = io.StringIO()
    csv.writer(text).writerows([rows[0]._fields, *rows])
    files.write_atomically(os.path.join(out, 'benchmark.csv'), text.getvalue().encode())
    schema.write(os.path.join(out, 'environment.json'), environment)
    return {'environment': environment, 'rows': [row._asdict() for row in rows]}


# What rows say


def grouped(rows: Iterable[Row]) -> dict[tuple, dict[str, list[float]]]:
    """{(network, task, batch, threads): {contender: values in the order of the rounds}}."""
    result: dict[tuple, dict[str, list[float]]] = {}
    for row in rows:
        result.setdefault(row[:4], {}).setdefault(row.contender, []).append(row.value)
    return result


def spread(values: list[float]) -> tuple[float, float, float]:
    """(median, minimum, maximum)."""
    return statistics.median(values), min(values), max(values)


def ratios(values: list[float], base: list[float]) -> tuple[float, float, float]:
    """Spread of values / base, divided round by round; NaN where the base is 0, as memory may be."""
    return spread([v / b if b else math.nan for v, b in zip(values, base)])
