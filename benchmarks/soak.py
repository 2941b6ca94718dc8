"""One Compiled under load for ten minutes: threads and forked processes classify batches of 1 to 300 real images.

Eight threads classify with one Compiled B-LeNet. While they are busy, the process forks four times, and every child
goes on with the same Compiled. Every answer is compared with that of one thread, bit by bit, and the resident memory
(RSS) of every process is followed. Status 1: an answer differs, or the memory of a process grows by more than
5 percent. Needs Linux. Writes soak.json, with the keys

    environment, threads, processes, seconds
    load       load averages of the machine over one minute, before and after
    different  answers that are not those of one thread to the bit
    memory     of every process: warm_rss_mb at the end of the warm-up (a tenth of the time), highest_rss_mb since
               then, and growth_percent from one to the other
    latency    of calls by the batch's size: their count, and percentiles in ms (rounded up by 2 percent at most)
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from branchynet import provenance, schema
from branchynet.benchmarks import options
from branchynet.benchmarks.networks import build, images
from branchynet.cpu import threads
from branchynet.inference import Classification, Compiled

import numpy as np

THREADS, PROCESSES, SECONDS = 8, 4, 600
LARGEST = 300  # images of a batch
THRESHOLDS = [0.025]  # nats, the paper's
WARM_UP = 0.1  # of the time
GROWTH = 5  # percent of memory, at most
PATIENCE = 60  # seconds until a child that says nothing counts as hanging
SIZES = {'1': 1, '2 to 10': 10, '11 to 100': 100, '101 to 300': LARGEST}  # of a batch, by the largest of each group
PERCENTILES = (50, 90, 99, 99.9)
_BIN = math.log(1.02)  # of the histograms of times: each bin ends 2 percent above its begin
_BINS = 1200  # from a microsecond up to hours


class Task(NamedTuple):
    """A net and samples that are classified over and over.

    Attributes:
        net: which threads and processes share.
        x: images (N, 1, 28, 28).
        expected: the answers of one thread to all of them.
    """

    net: Compiled
    x: np.ndarray
    expected: Classification


def task(weights: str) -> Task:
    """B-LeNet with weights of a results folder, and the test images of MNIST.

    Args:
        weights: the folder.
    """
    net, (x, _) = Compiled(build('lenet', weights)), images('lenet', 10000)
    threads.set_num_threads(1)
    expected = net.classify(x, THRESHOLDS)
    threads.set_num_threads(None)
    return Task(net, x, expected)


class Record:
    """The calls of one thread. Its size does not depend on their number.

    Attributes:
        different: number of calls whose answer was not the expected one.
        counts: (sizes, bins), calls by size of the batch and time.
    """

    def __init__(self) -> None:
        self.different = 0
        self.counts = np.zeros((len(SIZES), _BINS), np.int64)

    def add(self, size: int, seconds: float, same: bool) -> None:
        """Counts a call."""
        self.different += not same
        place = int(math.log(max(seconds, 1e-6) * 1e6) / _BIN)
        self.counts[next(i for i, largest in enumerate(SIZES.values()) if size <= largest), min(place, _BINS - 1)] += 1


def classify(task: Task, seed: int, until: float, between: Callable[[], Any] = lambda: None) -> Record:
    """Classifies random batches of images that follow one another.

    Args:
        task: the net and its samples.
        seed: of sizes and places. The logarithm of a size is uniform, so that small batches and large ones are common.
        until: the end, as of time.monotonic.
        between: called after every batch.

    Returns:
        The calls.
    """
    random, record = np.random.RandomState(seed), Record()
    while time.monotonic() < until:
        size = int((LARGEST + 1) ** random.rand())
        begin = random.randint(len(task.x) - size + 1)
        part = slice(begin, begin + size)
        start = time.perf_counter()
        answer = task.net.classify(task.x[part], THRESHOLDS)
        seconds = time.perf_counter() - start
        same = all(a.tobytes() == b[part].tobytes() for a, b in zip(answer, task.expected))
        record.add(size, seconds, same)
        between()
    return record


class Memory:
    """Follows the resident memory of this process."""

    def __init__(self, seconds: float) -> None:
        self._warm_until = time.monotonic() + seconds
        self._next = 0.0
        self.warm, self.highest = 0.0, 0.0  # MB
        self.look()

    def look(self) -> None:
        """Reads the memory, at most ten times a second."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + 0.1
        with open('/proc/self/statm') as f:
            used = int(f.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**20
        if now < self._warm_until or not self.warm:
            self.warm = used
        self.highest = max(used, self.highest) if now >= self._warm_until else used

    def summary(self) -> dict[str, float]:
        """The entry of the file."""
        growth = (self.highest / self.warm - 1) * 100
        return {'warm_rss_mb': self.warm, 'highest_rss_mb': self.highest, 'growth_percent': growth}


def _child(task: Task, seed: int, until: float, pipe: Any) -> None:
    memory = Memory((until - time.monotonic()) * WARM_UP)
    record = classify(task, seed, until, memory.look)
    pipe.send((record, memory.summary()))


def soak(task: Task, seconds: float) -> dict[str, Any]:
    """Puts a Compiled under load, in this process and in forked ones.

    Args:
        task: the net and its samples.
        seconds: duration.

    Returns:
        The content of the file.

    Raises:
        OSError: a process hangs or has ended before its time.
    """
    before, until = os.getloadavg()[0], time.monotonic() + seconds
    memory = Memory(seconds * WARM_UP)
    with ThreadPoolExecutor(THREADS) as pool:
        calls = [pool.submit(classify, task, seed, until) for seed in range(THREADS)]
        time.sleep(min(1, seconds / 10))  # all threads are busy when the process forks
        children = [_fork(task, seed, until) for seed in range(THREADS, THREADS + PROCESSES)]
        while time.monotonic() < until:
            memory.look()
            time.sleep(0.1)
        records = [call.result() for call in calls]
    memories = [memory.summary()]
    for child in children:
        record, used = _result(*child)
        records.append(record)
        memories.append(used)
    return {
        'seconds': seconds,
        'threads': THREADS,
        'processes': PROCESSES,
        'load': {'before': before, 'after': os.getloadavg()[0]},
        'different': sum(record.different for record in records),
        'memory': memories,
        'latency': latencies(np.sum([record.counts for record in records], axis=0)),
        'environment': provenance.environment(),
    }


def _fork(task: Task, seed: int, until: float) -> tuple[Any, Any]:
    """Starts a child; returns it and the pipe that its result comes through."""
    fork = multiprocessing.get_context('fork')
    pipe, end = fork.Pipe(duplex=False)
    process = fork.Process(target=_child, args=(task, seed, until, end), daemon=True)
    process.start()
    end.close()
    return process, pipe


def _result(process: Any, pipe: Any) -> tuple[Record, dict[str, float]]:
    """The result of a child, which is to come at once."""
    if not pipe.poll(PATIENCE):
        process.kill()
        raise OSError(f'process {process.pid} hangs')
    try:
        return pipe.recv()
    except EOFError:
        process.join()
        raise OSError(f'process {process.pid} ended with status {process.exitcode}') from None


def latencies(counts: np.ndarray) -> dict[str, dict[str, float]]:
    """Percentiles of the times of calls.

    Args:
        counts: of a Record, or a sum of several.

    Returns:
        By the batch's size: count, and the percentiles in ms.
    """
    ends = np.exp(_BIN * np.arange(1, _BINS + 1)) / 1e3  # ms
    found: dict[str, dict[str, float]] = {}
    for size, histogram in zip(SIZES, counts):
        total = histogram.cumsum()
        found[size] = {'count': int(total[-1])}
        if total[-1]:
            places = [int(np.searchsorted(total, total[-1] * percent / 100)) for percent in PERCENTILES]
            found[size].update({f'p{percent}_ms': ends[place] for percent, place in zip(PERCENTILES, places)})
    return found


def verdict(measured: dict[str, Any]) -> list[str]:
    """The faults of a measurement, in words; nothing if all is well."""
    wrong = [f'no calls of {size} images' for size, latency in measured['latency'].items() if not latency['count']]
    wrong += [f'{measured["different"]} answers differ from those of one thread'] * bool(measured['different'])
    growth = max(process['growth_percent'] for process in measured['memory'])
    return wrong + [f'the memory of a process grew by {growth:.1f} %: expected {GROWTH} % at most'] * (growth > GROWTH)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measures, and writes the file."""
    measured = soak(task(args.weights), args.seconds)
    schema.write(os.path.join(args.out, 'soak.json'), measured)
    for size, latency in measured['latency'].items():
        percentiles = [f'{name[1:-3]} % {value:.3g} ms' for name, value in latency.items() if name != 'count']
        print(f'{size} images: {latency["count"]} calls; ' + ', '.join(percentiles))
    growths = ', '.join(f'{process["growth_percent"]:.1f} %' for process in measured['memory'])
    print(f'Memory grew by {growths}; answers that differ: {measured["different"]}')
    return measured


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    parser = options.parser('soak', __doc__)
    parser.add_argument(
        '--weights',
        default=os.path.join('results', 'lenet_mnist_quick'),
        metavar='DIR',
        help='results folder with weights of B-LeNet (default: %(default)s)',
    )
    parser.add_argument(
        '--seconds',
        type=options.whole_number('number of seconds'),
        default=SECONDS,
        metavar='S',
        help='(default: %(default)s)',
    )
    wrong = verdict(options.print_result(parser.parse_args(argv), measure))
    for line in wrong:
        print(line, file=sys.stderr)
    return int(bool(wrong))
