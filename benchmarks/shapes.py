"""Convolutions, poolings and linear layers of many shapes: this project's kernels beside stock Chainer's.

Shapes that oneDNN's convolutions are slow at are products with windows (branchynet/cpu/convolution.py says which); slow
poolings and small linear layers stay Chainer's. This sweep finds shapes that are still slower than in stock Chainer.
Forward and every gradient are timed apart, both contenders in turn; with one thread by the thread's own clock, on
which other programs hardly count.
Writes benchmark.csv, environment.json and shapes.png, and prints the shapes whose ratio exceeds LIMIT; the exit
status is 1 if there are any. --draw makes one figure of several folders, a colour for each. Three minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Callable, NamedTuple, Optional

from branchynet import determinism, provenance
from branchynet.benchmarks import measuring, options
from branchynet.benchmarks.measuring import Row

import chainer
import chainer.functions as F
import numpy as np

LIMIT = 1.3  # times stock Chainer's duration
TURN = 0.02  # seconds
REPEATS = 4
TASKS = ('forward', 'gradient of x', 'gradient of w')


class Layer(NamedTuple):
    """A layer that is timed.

    Attributes:
        name: its name in the figure.
        function: of x and, where there are weights, w.
        x: shape of its input.
        w: shape of its weights, or None.
    """

    name: str
    function: Callable
    x: tuple[int, ...]
    w: Optional[tuple[int, ...]]


def convolution(
    x: tuple, channels: int, kernel: tuple, stride: int = 1, pad: tuple = (0, 0), dilate: int = 1, groups: int = 1
) -> Layer:
    """A convolution of images x (B, C, H, W) into ``channels``."""
    sizes = 'x'.join(map(str, kernel))
    more = f' d{dilate}' * (dilate > 1) + f' g{groups}' * (groups > 1)
    name = f'{x[1]}→{channels} k{sizes} s{stride}{more} on {x[2]}x{x[3]}, B {x[0]}'
    function = partial(F.convolution_2d, stride=stride, pad=pad, dilate=dilate, groups=groups)
    return Layer(name, function, x, (channels, x[1] // groups, *kernel))


def pooling(kind: Callable, x: tuple, size: int, stride: int) -> Layer:
    """A maximum or average pooling."""
    name = f'{kind.__name__[:3]} {x[1]} channels k{size} s{stride} on {x[2]}x{x[3]}, B {x[0]}'
    return Layer(name, partial(kind, ksize=size, stride=stride), x, None)


def linear(batch: int, inputs: int, outputs: int) -> Layer:
    """A linear layer."""
    return Layer(f'{inputs}→{outputs}, B {batch}', F.linear, (batch, inputs), (outputs, inputs))


def families() -> dict[str, list[Layer]]:
    """The layers of the sweep, by the title of their panel."""
    kernels = 1, 2, 3, 5, 7, 9, 11, 13, 14, 15, 17, 21, 31
    return {
        **{
            f'kernel size {c}→{o} channels': [
                convolution((2, c, 32, 32), o, (k, k), pad=(k // 2, k // 2)) for k in kernels
            ]
            for c, o in ((3, 16), (32, 32))
        },
        'stride': [
            convolution((8, c, size, size), o, (k, k), s, (p, p))
            for c, size, o, k, s, p in (
                (16, 32, 32, 1, 2, 0),
                (64, 16, 128, 1, 2, 0),
                (16, 32, 32, 3, 2, 1),
                (64, 16, 128, 3, 2, 1),
                (3, 64, 64, 7, 2, 3),
                (32, 32, 32, 5, 2, 2),
                (32, 32, 32, 7, 2, 3),
                (16, 32, 16, 5, 3, 2),
                (5, 20, 10, 9, 3, 0),
                (3, 64, 96, 11, 4, 2),
                (32, 32, 32, 9, 4, 4),
                (16, 33, 16, 3, 4, 1),
            )
        ],
        'patches': [
            convolution((b, c, size, size), o, (k, k), k)
            for b, c, size, o, k in (
                (8, 16, 32, 16, 2),
                (8, 64, 32, 128, 2),
                (8, 32, 32, 64, 4),
                (4, 3, 64, 48, 4),
                (4, 3, 64, 64, 8),
                (4, 3, 224, 192, 16),
                (4, 1, 64, 32, 16),
            )
        ],
        'one-dimensional': [
            convolution((4, c, 1, length), o, (1, k), s, (0, p))
            for c, length, o, k, s, p in (
                (16, 500, 16, 3, 1, 1),
                (64, 500, 64, 3, 1, 1),
                (16, 1000, 16, 9, 1, 4),
                (16, 1000, 16, 15, 1, 7),
                (16, 1000, 16, 31, 1, 0),
                (1, 1000, 16, 64, 1, 0),
                (16, 1000, 16, 64, 1, 0),
                (64, 1000, 64, 64, 1, 0),
                (16, 1000, 16, 64, 8, 0),
                (1, 4000, 32, 80, 4, 0),
                (1, 1000, 1, 31, 1, 15),
            )
        ]
        + [convolution((4, c, 1000, 1), o, (k, 1)) for c, o, k in ((16, 16, 9), (16, 16, 64))],
        'fully connected convolution': [
            convolution((b, c, k, k), o, (k, k))
            for b, c, o, k in (
                (8, 128, 256, 7),
                (64, 128, 256, 7),
                (2, 256, 512, 6),
                (16, 16, 120, 5),
                (64, 512, 10, 1),
                (8, 64, 64, 14),
            )
        ],
        'channels': [
            convolution((8, c, 16, 16), o, (k, k), pad=(k // 2, k // 2))
            for c, o, k in (
                (1, 1, 3),
                (1, 8, 5),
                (1, 64, 3),
                (2, 3, 3),
                (7, 13, 3),
                (7, 13, 7),
                (17, 31, 5),
                (64, 1, 3),
                (64, 2, 1),
                (100, 100, 3),
                (256, 16, 1),
                (16, 256, 1),
                (64, 256, 1),
                (5, 256, 3),
                (8, 512, 3),
                (16, 512, 3),
                (32, 512, 3),
                (256, 256, 3),
                (256, 512, 3),
            )
        ],
        'groups': [
            convolution((b, c, size, size), o, (k, k), s, (k // 2, k // 2), groups=g)
            for b, c, size, o, k, s, g in (
                (8, 32, 32, 32, 3, 1, 32),
                (8, 64, 16, 64, 3, 1, 64),
                (8, 64, 16, 64, 3, 2, 64),
                (8, 30, 16, 30, 5, 1, 30),
                (8, 96, 14, 96, 7, 1, 96),
                (1, 512, 7, 512, 3, 1, 512),
                (8, 3, 32, 3, 3, 1, 3),
                (8, 3, 32, 24, 3, 1, 3),
                (8, 30, 16, 60, 3, 1, 30),
                (8, 64, 16, 128, 3, 1, 64),
                (8, 64, 16, 64, 3, 1, 2),
                (8, 64, 16, 64, 3, 2, 8),
                (8, 96, 16, 96, 3, 1, 32),
                (8, 6, 32, 10, 5, 1, 2),
                (8, 64, 16, 128, 1, 1, 4),
                (8, 64, 16, 128, 1, 2, 4),
                (2, 512, 7, 512, 3, 1, 2),
                (1, 1024, 7, 1024, 1, 1, 4),
                (8, 64, 1, 64, 1, 1, 4),
                (8, 32, 32, 32, 15, 1, 32),
                (4, 32, 32, 32, 15, 1, 4),
            )
        ],
        'dilation': [
            convolution((b, c, size, size), o, (k, k), s, (d * (k // 2), d * (k // 2)), d, g)
            for b, c, size, o, k, s, d, g in (
                (8, 32, 32, 32, 3, 1, 2, 1),
                (8, 64, 16, 64, 3, 1, 4, 1),
                (8, 16, 16, 20, 3, 2, 2, 1),
                (8, 3, 32, 16, 3, 1, 2, 1),
                (8, 5, 28, 10, 5, 1, 2, 1),
                (2, 256, 14, 256, 3, 1, 2, 1),
                (8, 64, 16, 64, 3, 1, 2, 64),
                (8, 64, 16, 64, 3, 1, 2, 4),
                (8, 1, 28, 1, 3, 1, 2, 1),
            )
        ],
        'many weights, few pixels': [
            convolution((b, c, size, size), o, (k, k), s, (k // 2, k // 2))
            for b, c, size, o, k, s in (
                (2, 512, 2, 512, 3, 1),
                (2, 512, 4, 512, 3, 1),
                (16, 512, 4, 512, 3, 1),
                (4, 512, 4, 512, 5, 1),
                (8, 256, 8, 512, 3, 2),
                (4, 128, 7, 256, 3, 1),
                (1, 256, 14, 256, 1, 1),
                (4, 512, 7, 2048, 1, 1),
                (8, 256, 14, 512, 1, 2),
            )
        ],
        'pooling': [
            pooling(kind, (8, c, size, size), k, s)
            for kind in (F.max_pooling_2d, F.average_pooling_2d)
            for c, size, k, s in (
                (16, 32, 2, 2),
                (16, 32, 3, 2),
                (3, 64, 3, 1),
                (64, 8, 8, 8),
                (16, 32, 15, 1),
                (1, 128, 2, 2),
                (256, 7, 7, 7),
            )
        ],
        'linear layer': [
            linear(*sizes)
            for sizes in (
                (100000, 100, 1),
                (100000, 1, 100),
                (100000, 10, 10),
                (10000, 100, 2),
                (10000, 100, 10),
                (1, 1000, 1000),
                (1, 2304, 256),
                (1, 4096, 4096),
                (8, 4096, 4096),
                (128, 4096, 4096),
                (512, 4096, 1000),
                (4, 20000, 16),
                (64, 1000, 100),
                (2, 16, 16),
                (16, 64, 64),
                (32, 100, 100),
                (4, 1000, 1000),
                (8, 4096, 500),
                (32, 2048, 1024),
                (4, 5000, 10),
                (16, 5000, 10),
                (60, 1000, 20),
                (64, 1, 1000),
                (64, 1000, 1),
                (512, 720, 84),
                (512, 84, 10),
                (4096, 64, 64),
                (100000, 3, 3),
                (16, 100000, 10),
                (16, 10, 100000),
                (100000, 64, 8),
                (1000, 1000, 4),
            )
        ],
    }


def calls(layer: Layer, task: str) -> dict[str, Callable]:
    """{contender: a function that does the task once}."""
    rng = np.random.RandomState(0)
    arrays = [rng.randn(*shape).astype(np.float32) for shape in (layer.x, layer.w) if shape]
    wanted = TASKS.index(task) - 1
    variables = {
        name: [chainer.Variable(array, requires_grad=i == wanted) for i, array in enumerate(arrays)]
        for name in ('branchynet', 'chainer')
    }

    def forward() -> None:
        with chainer.no_backprop_mode():
            layer.function(*arrays)

    if task == 'forward':
        return dict.fromkeys(variables, forward)
    outputs: dict[str, tuple[Any, np.ndarray]] = {}

    def backward(name: str) -> None:
        if name not in outputs:  # under the contender's own kernels
            y = layer.function(*variables[name])
            outputs[name] = y, np.ones_like(y.array)
        y, gy = outputs[name]
        y.grad = gy
        variables[name][wanted].cleargrad()
        y.backward()

    return {name: partial(backward, name) for name in variables}


def time_family(name: str, rounds: int, clock: Callable[[], float]) -> list[tuple]:
    """[(layer, task, batch, contender, round, seconds)] of a family's layers."""
    return [
        (layer.name, task, layer.x[0], *value)
        for layer in families()[name]
        for task in TASKS
        if layer.w or task != TASKS[2]
        for value in time_task(layer, task, rounds, clock)
    ]


def time_task(layer: Layer, task: str, rounds: int, clock: Callable[[], float]) -> list[tuple[str, int, float]]:
    """[(contender, round, seconds)]; where the ratio exceeds LIMIT, up to REPEATS times as many rounds as asked for.

    Other programs make single rounds longer, seldom all: the shortest of each contender's count.
    """
    values: list[tuple[str, int, float]] = []
    for repeat in range(REPEATS):
        values += [
            (name, repeat * rounds + turn, seconds)
            for name, turn, seconds in measuring.interleaved(calls(layer, task), rounds, TURN, clock)
        ]
        shortest = {name: min(seconds for other, _, seconds in values if other == name) for name, _, _ in values}
        if shortest['branchynet'] <= LIMIT * shortest['chainer']:
            break
    return values


def ratios(rows: list[Row]) -> Iterator[tuple[str, str, float]]:
    """(layer, task, ratio of the shortest durations: this project's to stock Chainer's)."""
    for (layer, task, _, _), values in measuring.grouped(rows).items():
        yield layer, task, min(values['branchynet']) / min(values['chainer'])


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measures, prints and draws."""
    with measuring.variables(measuring.profile_variables(args.profile) if args.profile else {}):
        return _measure(args)


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    environment = measuring.in_child(args.threads[0], provenance.environment)
    rows: list[Row] = []
    for family in args.families:
        for threads in args.threads:
            clock = time.thread_time if threads == 1 else time.perf_counter
            new = [
                Row(layer, task, batch, threads, *value)
                for layer, task, batch, *value in measuring.in_child(threads, time_family, family, args.rounds, clock)
            ]
            rows += new
            print(f'{family}, {threads} threads: this project / stock Chainer, duration')
            for layer, task, ratio in ratios(new):
                print(f'  {layer:45s} {task:14s} {ratio:6.2f}' + f'  more than {LIMIT}' * (ratio > LIMIT), flush=True)
            measured = measuring.write(args.out, rows, environment)
    draw([args.out])
    found = [ratio for _, _, ratio in ratios(rows)]
    measured['slow'] = sum(ratio > LIMIT for ratio in found)
    print(f'{measured["slow"]} of {len(found)} are more than {LIMIT} times as slow')
    return measured


def draw(folders: Sequence[str]) -> None:
    """Draws the ratios of several folders into the first, a colour for each folder and number of threads."""
    from branchynet.benchmarks import figures

    runs = {}
    for folder in folders:
        with open(os.path.join(folder, 'environment.json')) as f:
            isa = (json.load(f)['onednn'] or {'isa': 'no oneDNN'})['isa']
        rows = _read(os.path.join(folder, 'benchmark.csv'))
        for threads in sorted({row.threads for row in rows}):
            found = ratios([row for row in rows if row.threads == threads])
            runs[f'{isa}, {threads} threads'] = {(layer, task): ratio for layer, task, ratio in found}
    panels = {family: [layer.name for layer in layers] for family, layers in families().items()}
    figures.shapes(runs, panels, TASKS, LIMIT, os.path.join(folders[0], 'shapes.png'))


def _read(path: str) -> list[Row]:
    kinds = {'batch': int, 'threads': int, 'round': int, 'value': float}
    with open(path, newline='') as f:
        return [Row(**{key: kinds.get(key, str)(text) for key, text in row.items()}) for row in csv.DictReader(f)]


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    parser = options.parser('shapes', __doc__, rounds=3)
    parser.add_argument('--families', **options.some_of(list(families())))
    parser.add_argument('--threads', **options.threads())
    parser.add_argument(
        '--profile', choices=determinism.PROFILES, help='portable: as on a processor with AVX2 (default: none)'
    )
    parser.add_argument('--draw', nargs='+', metavar='DIR', help='draw these folders into the first, measure nothing')
    args = parser.parse_args(argv)
    if args.draw:
        draw(args.draw)
        return 0
    return int(options.print_result(args, measure)['slow'] > 0)
