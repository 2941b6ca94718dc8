"""This project beside stock Chainer, PyTorch and ONNX Runtime, on the CPU.

Tasks are the joint step, the step of main, softmax of all exits (evaluate), early exit (inference), a threshold
sweep, and the memory of a joint step. Each runs in a process of its own, in which the contenders take turns
(A B C A B C ...) after two calls to warm up. A ratio is the median of the rounds' ratios. Everything takes about 40
minutes on 2 idle cores, most of them stock Chainer's. torch.compile takes part if --contenders names it: it needs a C++
compiler, and compiles a network for minutes before each task. Writes benchmark.csv (every single value), benchmark.png,
scaling.png (where --batches asks for more than one) and environment.json.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, Optional

import branchynet  # noqa: F401  (before chainer)
from branchynet import inference, sweep, utils
from branchynet.benchmarks import measuring, options
from branchynet.benchmarks.measuring import Row
from branchynet.benchmarks.networks import (
    EXPERIMENTS,
    batchsize,
    build,
    images,
    leaving_thresholds,
    published_shares,
)
from branchynet.cost import cost
from branchynet.net import BranchyNet

import numpy as np

TASKS = ['joint', 'main', 'evaluate', 'inference', 'sweep', 'memory']
BATCHES_OF = {'inference': [1, 256], 'sweep': [1]}
INFERENCE_IMAGES, SWEEP_IMAGES = 256, 10000
CONTENDERS = [
    'branchynet',  # cpu.fast(), and Compiled for inference
    'chainer',  # stock
    'pytorch',  # eager
    'onnxruntime',  # on a file for every stage
    'settings',  # Compiled, for one setting after the other
]
COMPILED = 'torch.compile'
IN_PYTORCH = 'pytorch', COMPILED
ONLY_FOR = {'onnxruntime': 'inference', 'settings': 'sweep'}
CHECKED_IMAGES = 8

Value = tuple[str, int, float]  # contender, round, seconds


# Contenders


def make(contender: str, network: str, weights: Optional[str] = None) -> Any:
    """A contender's network, ready for `call`; ``weights`` as in `networks.build`."""
    net = build(network, weights)
    if contender not in (*IN_PYTORCH, 'onnxruntime'):
        return net
    from branchynet.benchmarks import peers

    peer = in_pytorch(contender, net)
    return peers.to_onnx(peer, images(network, 2)[0]) if contender == 'onnxruntime' else peer


def in_pytorch(contender: str, net: BranchyNet) -> Any:
    """The Peer of a net, compiled for the contender that asks for it."""
    from branchynet.benchmarks import peers

    peer = peers.Peer(net)
    if contender == COMPILED:
        peer.compile_modules()
    return peer


def call(contender: str, model: Any, task: str, x: np.ndarray, t: np.ndarray, batch: int) -> Callable[[], Any]:
    """A function that does a task once: a step on x (B, ...) and t (B,), or inference of x batch by batch."""
    if task == 'inference':
        classify = _classifier(contender, model)
        return lambda: [classify(x[i : i + batch]) for i in range(0, len(x), batch)]
    if task == 'evaluate':
        return partial(model.softmax if contender in IN_PYTORCH else model.get_SM, x)
    if task == 'main':
        return partial(model.train_main, x, t)
    return partial(model.train_joint if contender in IN_PYTORCH else model.train, x, t)


def _classifier(contender: str, model: Any) -> Callable[[np.ndarray], Any]:
    if contender in (*IN_PYTORCH, 'onnxruntime'):
        return model.classify
    if contender == 'chainer':
        return model.run
    net = inference.Compiled(model) if inference.is_compilable(model) else model
    return lambda x: inference.classify(net, x, model.thresholdExits)


def takes_part(contender: str, task: str) -> bool:
    """Whether a contender does a task; a sweep is this project's alone."""
    return contender == 'branchynet' or (
        ONLY_FOR.get(contender, task) == task and (task != 'sweep' or contender == 'settings')
    )


# What one process does


def time_task(
    network: str, task: str, batch: int, contenders: Sequence[str], rounds: int, weights: Optional[str]
) -> tuple[list[Value], float]:
    """Times a task; returns the seconds per batch, and the floating-point operations of a batch."""
    from branchynet.benchmarks import peers

    count = INFERENCE_IMAGES if task == 'inference' else batch
    x, t = images(network, max(count, CHECKED_IMAGES))
    net = build(network, weights)
    peers.assert_same_outputs(net, peers.Peer(net), x[:CHECKED_IMAGES])
    shares = published_shares(network)
    thresholds = leaving_thresholds(net, x, shares)
    x, t = x[:count], t[:count]
    calls = {}
    for contender in contenders:
        model = make(contender, network, weights)
        if task == 'inference':
            model.thresholdExits = thresholds  # in training they would drop samples
        calls[contender] = call(contender, model, task, x, t, batch)
    batches = -(-count // batch) if task == 'inference' else 1
    values = [(name, turn, seconds / batches) for name, turn, seconds in measuring.interleaved(calls, rounds)]
    return values, batch * flops(net, task, x[:1], shares)


def flops(net: BranchyNet, task: str, x: np.ndarray, shares: np.ndarray) -> float:
    """Floating-point operations per image, of convolutions and linear layers: two for a multiply-add.

    Args:
        net: the network.
        task: one of TASKS.
        x: one image (1, C, H, W).
        shares: (E,), of images that leave at each exit in inference.
    """
    costs = cost(net, x.shape[1:])
    everything = costs.main.macs if task == 'main' else costs.exits[-1].leaving.macs
    if task == 'inference':
        return 2 * sum(share * exit.leaving.macs for share, exit in zip(shares, costs.exits))
    if task == 'evaluate':
        return 2 * everything
    # Backward computes two gradients of the same cost, but none of the image.
    first = net.main[0]
    return 2 * (3 * everything - first(x).size * first.W.array[0].size)


def time_sweep(network: str, contenders: Sequence[str], rounds: int, weights: Optional[str]) -> list[Value]:
    """Times all settings of the paper's sweep, from one pass or one after the other: seconds per image."""
    x, t = images(network, SWEEP_IMAGES)
    net = inference.Compiled(build(network, weights))
    settings = utils.generate_thresholds(EXPERIMENTS[network].base_thresholds, net.numexits())

    def one_pass() -> None:
        sweep.sweep(sweep.record(net, x, t), settings)

    def one_by_one() -> None:
        for net.thresholdExits in settings:
            utils.test(net, x[:INFERENCE_IMAGES], t[:INFERENCE_IMAGES], 1)

    calls = {'branchynet': (one_pass, len(x)), 'settings': (one_by_one, INFERENCE_IMAGES)}
    return [
        (name, turn, seconds / calls[name][1])
        for name, turn, seconds in measuring.interleaved({name: calls[name][0] for name in contenders}, rounds)
    ]


def step_memory(network: str, batch: int, contender: str) -> float:
    """MB that a joint step adds to the process's peak."""
    # Noise: reading MNIST would raise the peak before the step.
    rng = np.random.RandomState(0)
    x, t = rng.randn(batch, *EXPERIMENTS[network].shape).astype(np.float32), rng.randint(0, 10, batch).astype(np.int32)
    np.random.seed(0)
    model: Any = EXPERIMENTS[network].get_network()
    if contender in IN_PYTORCH:
        model = in_pytorch(contender, model)

    def step(count: int) -> None:
        call(contender, model, 'joint', x[:count], t[:count], count)()

    def two_steps() -> None:
        step(batch)
        step(batch)

    return measuring.peak_memory(contender, partial(step, 2), two_steps)


# All processes


def measure_all(args: argparse.Namespace, threads: int, peak: float, died: list[str]) -> Iterator[list[Row]]:
    """Yields the Rows of one network's task and batch after the other.

    Args:
        args: of the command line.
        threads: of everything.
        peak: of sgemm, FLOP per second.
        died: takes the names of those whose process died.
    """
    for network in args.networks:
        for task in args.only:
            for batch in BATCHES_OF.get(task) or args.batches or [batchsize(network)]:
                try:
                    yield measure_one(args, network, task, batch, threads, peak)
                except BrokenProcessPool:
                    died.append(f'{network} {task} of batch {batch}')


def measure_one(args: argparse.Namespace, network: str, task: str, batch: int, threads: int, peak: float) -> list[Row]:
    """The Rows of one task, from a process of its own; from one for each contender where memory is measured."""
    row, in_child = partial(Row, network, task, batch, threads), partial(measuring.in_child, threads)
    contenders = [name for name in args.contenders if takes_part(name, task)]
    if task == 'memory':
        return [row(name, 0, in_child(step_memory, network, batch, name)) for name in contenders]
    if task == 'sweep':
        return [row(*value) for value in in_child(time_sweep, network, contenders, args.rounds, args.weights)]
    values, flop = in_child(time_task, network, task, batch, contenders, args.rounds, args.weights)
    return [row(*value) for value in values] + [row('limit', 0, flop / peak)]


# What is shown

HEADER = f'{"network":8} {"task":9} {"batch":>5} {"threads":>7}  {"ours: median (min ... max)":30} others / ours'


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """This project's values, and every other's ratio to them with the least and the greatest of all rounds."""
    for (network, task, batch, threads), values in measuring.grouped(rows).items():
        name = 'branchynet' if 'branchynet' in values else next(iter(values))
        ours, limit = values.pop(name), values.pop('limit', None)
        unit, scale = ('MB', 1) if task == 'memory' else ('ms', 1e3)
        columns = [
            '{} {:.2f} ({:.2f} ... {:.2f})'.format(name, *measuring.ratios(theirs, ours))
            for name, theirs in values.items()
        ]
        if limit:
            columns.append(f'limit {limit[0] / measuring.spread(ours)[0]:.3f}')
        median, least, greatest = (scale * value for value in measuring.spread(ours))
        spread = f'{median:.2f} ({least:.2f} ... {greatest:.2f}) {unit}'
        yield f'{network:8} {task:9} {batch:5} {threads:7}  {spread:30} {", ".join(columns)}'


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measures what the command line asks for, prints it and writes the files.

    Raises:
        OSError: processes died; the files hold what the others measured.
    """
    from branchynet.benchmarks import figures

    rows: list[Row] = []
    died: list[str] = []
    environments: dict[int, Any] = {}
    measured: dict[str, Any] = {}
    for threads in args.threads:
        environments[threads] = environment = measuring.in_child(threads, measuring.environment)
        print(f'{threads} threads: {measuring.describe(environment)}\n{HEADER}', flush=True)
        for new in measure_all(args, threads, environment['sgemm_flop_per_s'], died):
            rows += new
            print('\n'.join(lines(new)), flush=True)
            measured = measuring.write(args.out, rows, environments)
    if rows:
        figures.bars(rows, os.path.join(args.out, 'benchmark.png'))
        if args.batches:
            figures.scaling(rows, os.path.join(args.out, 'scaling.png'))
    if died:
        raise OSError(f'the processes of {", ".join(died)} died, probably for lack of memory')
    return measured


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    parser = options.parser('compare', __doc__, rounds=5)
    parser.add_argument('--only', **options.some_of(TASKS))
    parser.add_argument('--networks', **options.some_of(list(EXPERIMENTS)))
    parser.add_argument('--contenders', **options.some_of([*CONTENDERS, COMPILED], CONTENDERS))
    parser.add_argument('--threads', **options.threads())
    parser.add_argument('--batches', type=options.counts, help='of steps, evaluation and memory, as 1,16,256,2048')
    parser.add_argument('--weights', metavar='DIR', help="a run's results, to time inference with trained weights")
    options.print_result(parser.parse_args(argv), measure)
    return 0
