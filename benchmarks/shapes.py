"""Convolutions, poolings and linear layers of many shapes: this project's kernels beside stock Chainer's.

    python benchmarks/shapes.py [--isa AVX2] [--families "pooling,linear layer"] [--pairs 3] [--threads 2] [--out DIR]
    python benchmarks/shapes.py --draw DIR ...

The kernels leave the shapes that they compute slowly to stock Chainer (branchynet/cpu/convolution.py says which);
this sweep shows that none of them is left out. Forward and every gradient are timed apart, both contenders in turn.
Writes shapes.csv, environment.json and shapes.png, and prints the shapes whose ratio exceeds LIMIT; the exit
status is 1 if there are any. --draw makes one figure of several folders, a colour for each. 10 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from typing import Callable, NamedTuple, Optional

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # `benchmarks`, for a script in it
import branchynet  # noqa: F401  (before chainer)
from branchynet import provenance

import chainer
import chainer.functions as F
import numpy as np

from benchmarks import measuring
from benchmarks.measuring import Row

LIMIT = 1.3  # times stock Chainer's duration
TURN = 0.02  # seconds
REPEATS = 4
TASKS = ('forward', 'gradient of x', 'gradient of w')


class Layer(NamedTuple):
    """A layer that is timed.

    Attributes:
        name: what the figure calls it.
        function: of x and, where there are weights, w.
        x: shape of its input.
        w: shape of its weights, or None.
    """

    name: str
    function: Callable
    x: tuple[int, ...]
    w: Optional[tuple[int, ...]]


def convolution(x: tuple, channels: int, kernel: tuple, stride: int = 1, pad: tuple = (0, 0)) -> Layer:
    """A convolution of images x (B, C, H, W) into ``channels``."""
    sizes = 'x'.join(map(str, kernel))
    name = f'{x[1]}→{channels} k{sizes} s{stride} on {x[2]}x{x[3]}, B {x[0]}'
    return Layer(name, partial(F.convolution_2d, stride=stride, pad=pad), x, (channels, x[1], *kernel))


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
            f'kernel size, {c}→{o} channels': [
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
                (256, 256, 3),
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
                (8, 4096, 4096),
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

    def forward():
        with chainer.no_backprop_mode():
            layer.function(*arrays)

    if task == 'forward':
        return dict.fromkeys(variables, forward)
    outputs = {}

    def backward(name):
        if name not in outputs:  # under the contender's own kernels
            y = layer.function(*variables[name])
            outputs[name] = y, np.ones_like(y.array)
        y, gy = outputs[name]
        y.grad = gy
        variables[name][wanted].cleargrad()
        y.backward()

    return {name: partial(backward, name) for name in variables}


def time_family(name: str, pairs: int) -> list[tuple]:
    """[(layer, task, batch, contender, pair, seconds)] of a family's layers."""
    return [
        (layer.name, task, layer.x[0], *value)
        for layer in families()[name]
        for task in TASKS
        if layer.w or task != TASKS[2]
        for value in time_task(layer, task, pairs)
    ]


def time_task(layer: Layer, task: str, pairs: int) -> list[tuple[str, int, float]]:
    """[(contender, pair, seconds)]; where the ratio exceeds LIMIT, up to REPEATS times as many rounds as asked for.

    Other programs make single rounds longer, seldom all: the shortest of each contender's count.
    """
    values = []
    for repeat in range(REPEATS):
        values += [
            (name, repeat * pairs + pair, seconds)
            for name, pair, seconds in measuring.interleaved(calls(layer, task), pairs, TURN)
        ]
        shortest = {name: min(seconds for other, _, seconds in values if other == name) for name, _, _ in values}
        if shortest['branchynet'] <= LIMIT * shortest['chainer']:
            break
    return values


def ratios(rows: list[Row]) -> Iterator[tuple[str, str, float]]:
    """(layer, task, ratio of the shortest durations: this project's to stock Chainer's)."""
    for (layer, task, _, _), values in measuring.grouped(rows).items():
        yield layer, task, min(values['branchynet']) / min(values['chainer'])


def main() -> None:
    """Measures, prints and draws."""
    args = _parse()
    if args.draw:
        return _draw(args.draw, os.path.join(args.draw[0], 'shapes.png'))
    os.makedirs(args.out, exist_ok=True)
    if args.isa:
        os.environ['ONEDNN_MAX_CPU_ISA'] = args.isa
    with open(os.path.join(args.out, 'environment.json'), 'w') as f:
        json.dump(measuring.in_child(args.threads, provenance.environment), f, indent=1)
    rows, slow = [], 0
    for family in args.families:
        new = [
            Row(layer, task, batch, args.threads, *value)
            for layer, task, batch, *value in measuring.in_child(args.threads, time_family, family, args.pairs)
        ]
        rows += new
        print(f'{family}: this project / stock Chainer, duration')
        for layer, task, ratio in ratios(new):
            slow += ratio > LIMIT
            print(f'  {layer:45s} {task:14s} {ratio:6.2f}' + f'  more than {LIMIT}' * (ratio > LIMIT), flush=True)
        measuring.write_csv(os.path.join(args.out, 'shapes.csv'), rows)
    _draw([args.out], os.path.join(args.out, 'shapes.png'))
    print(f'Written to {args.out}; {slow} of {len(list(ratios(rows)))} are more than {LIMIT} times as slow')
    sys.exit(slow > 0)


def _draw(folders: list[str], path: str) -> None:
    from benchmarks import figures

    runs = {}
    for folder in folders:
        with open(os.path.join(folder, 'shapes.csv'), newline='') as f:
            rows = [
                Row(
                    r['network'],
                    r['task'],
                    int(r['batch']),
                    int(r['threads']),
                    r['contender'],
                    int(r['pair']),
                    float(r['value']),
                )
                for r in csv.DictReader(f)
            ]
        with open(os.path.join(folder, 'environment.json')) as f:
            isa = json.load(f)['onednn']['isa']
        runs[f'{isa}, {rows[0].threads} threads'] = {(layer, task): ratio for layer, task, ratio in ratios(rows)}
    panels = {family: [layer.name for layer in layers] for family, layers in families().items()}
    figures.shapes(runs, panels, TASKS, LIMIT, path)


def _parse() -> argparse.Namespace:
    def some(text):
        unknown = set(text.split(',')) - set(families())
        if unknown:
            raise argparse.ArgumentTypeError(f'no family {", ".join(unknown)}; there are: {"; ".join(families())}')
        return text.split(',')

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--isa', help="the most that oneDNN may use, as AVX2; the machine's own if not given")
    parser.add_argument('--families', type=some, default=list(families()), help='; '.join(families()))
    parser.add_argument('--pairs', type=int, default=3, help='rounds (3)')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--draw', nargs='+', metavar='DIR', help='draw these folders into the first, measure nothing')
    parser.add_argument('--out', default=os.path.join('results', 'local', 'benchmarks', 'shapes'), help='folder')
    return parser.parse_args()


if __name__ == '__main__':
    main()
