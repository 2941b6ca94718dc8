"""A chain with exits, classified by the net, by a compiled copy of it and by a traced one.

The chains are a small residual network, MobileNets of both versions and a DenseNet, on images like those of CIFAR-10;
the networks are not trained, and all samples go through all exits. Contenders: the net in Chainer ('chainer'), the
same with the fast kernels ('branchynet'), ``Compiled(net)`` ('compiled') and ``Compiled(net, traced=True)`` ('traced').
Durations are medians. Writes benchmark.csv (every round), benchmark.md and environment.json. Two minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from branchynet import heads, provenance
from branchynet.benchmarks import measuring, options
from branchynet.benchmarks.measuring import Row
from branchynet.files import write_atomically
from branchynet.inference import Compiled, classify
from branchynet.net import BranchyNet

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np

BATCHES = [1, 128]
SHAPE = 3, 32, 32
CONTENDERS = 'chainer', 'branchynet', 'compiled', 'traced'


class Convolved(chainer.Chain):
    """A convolution and its batch normalisation."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        with self.init_scope():
            self.conv = L.Convolution2D(inputs, outputs, size, stride, size // 2, nobias=True, groups=groups)
            self.norm = L.BatchNormalization(outputs)

    def forward(self, x: chainer.Variable) -> chainer.Variable:  # noqa: D102
        return self.norm(self.conv(x))


class Block(chainer.Chain):
    """A residual block."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        with self.init_scope():
            self.first, self.second = Convolved(inputs, outputs, 3, stride), Convolved(outputs, outputs, 3)
            self.shortcut = Convolved(inputs, outputs, 1, stride)

    def forward(self, x: chainer.Variable) -> chainer.Variable:  # noqa: D102
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


class Separable(chainer.Chain):
    """A depthwise convolution and one of single pixels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        with self.init_scope():
            self.depthwise = Convolved(inputs, inputs, 3, stride, groups=inputs)
            self.pointwise = Convolved(inputs, outputs, 1)

    def forward(self, x: chainer.Variable) -> chainer.Variable:  # noqa: D102
        return F.relu(self.pointwise(F.relu(self.depthwise(x))))


class Inverted(chainer.Chain):
    """An inverted block, as of MobileNetV2: it is wide inside, narrow at both ends; a residual layer follows."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = 4 * inputs
        with self.init_scope():
            self.expand = Convolved(inputs, wide, 1)
            self.depthwise = Convolved(wide, wide, 3, stride, groups=wide)
            self.project = Convolved(wide, outputs, 1)
            self.again = Convolved(outputs, outputs, 1)

    def forward(self, x: chainer.Variable) -> chainer.Variable:  # noqa: D102
        h = self.project(F.relu6(self.depthwise(F.relu6(self.expand(x)))))
        return h + self.again(h)


class Dense(chainer.Chain):
    """A block of a DenseNet: every convolution reads the outputs of all before it."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        growth = outputs // 4
        with self.init_scope():
            self.norm1, self.conv1 = L.BatchNormalization(inputs), L.Convolution2D(inputs, growth, 3, pad=1)
            self.norm2 = L.BatchNormalization(inputs + growth)
            self.conv2 = L.Convolution2D(inputs + growth, growth, 3, pad=1)
            self.transition = Convolved(inputs + 2 * growth, outputs, 1)
        self.stride = stride

    def forward(self, x: chainer.Variable) -> chainer.Variable:  # noqa: D102
        h = F.concat([x, self.conv1(F.relu(self.norm1(x)))])
        h = F.concat([h, self.conv2(F.relu(self.norm2(h)))])
        return F.average_pooling_2d(F.relu(self.transition(h)), self.stride)


class Network(chainer.Chain):
    """Blocks of one kind."""

    def __init__(self, kind: Callable[[int, int, int], chainer.Chain]) -> None:
        super().__init__()
        with self.init_scope():
            self.start = Convolved(SHAPE[0], 16, 3)
            self.block1, self.block2, self.block3 = kind(16, 32, 1), kind(32, 64, 2), kind(64, 64, 2)
            self.logits = L.Linear(64, 10)

    def forward(self, x: chainer.Variable) -> chainer.Variable:  # noqa: D102
        h = self.block3(self.block2(self.block1(F.relu(self.start(x)))))
        return self.logits(F.average_pooling_2d(h, h.shape[2:]))


NETWORKS: dict[str, Callable] = {
    'residual': Block,
    'mobilenet': Separable,
    'mobilenetv2': Inverted,
    'densenet': Dense,
}


def time_network(network: str, batch: int, threads: int, rounds: int) -> list[Row]:
    """The rows of one network and batch size, in a process that has these threads."""
    np.random.seed(0)
    x = np.random.rand(batch, *SHAPE).astype(np.float32)
    exits = {'block1': heads.linear(10), 'block2': heads.linear(10)}
    net = BranchyNet.from_chain(Network(NETWORKS[network]), exits, x=x[:1])
    nets = net, net, Compiled(net), Compiled(net, traced=True)
    calls: dict[str, Callable] = {
        name: lambda each=each: classify(each, x, [-1.0, -1.0]) for name, each in zip(CONTENDERS, nets)
    }
    return [Row(network, 'classify', batch, threads, *value) for value in measuring.interleaved(calls, rounds)]


def table(rows: Sequence[Row]) -> str:
    """Medians in microseconds per image, and how many times as long 'chainer' takes as 'traced', in Markdown."""
    head = ['network', 'batch', 'threads', *(f'{name}, µs' for name in CONTENDERS), 'chainer / traced']
    lines = [head, ['---'] * len(head)]
    for (network, _, batch, threads), seconds in measuring.grouped(rows).items():
        medians = [f'{statistics.median(seconds[name]) / batch * 1e6:.0f}' for name in CONTENDERS]
        ratio = statistics.median(a / b for a, b in zip(seconds['chainer'], seconds['traced']))
        lines.append([network, str(batch), str(threads), *medians, f'{ratio:.1f}'])
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measures, prints the table and writes the files."""
    rows: list[Row] = []
    for network in args.networks:
        for threads in args.threads:
            for batch in BATCHES:
                rows += measuring.in_child(threads, time_network, network, batch, threads, args.rounds)
    print(table(rows))
    write_atomically(os.path.join(args.out, 'benchmark.md'), (table(rows) + '\n').encode())
    environments = {threads: measuring.in_child(threads, provenance.environment) for threads in args.threads}
    return measuring.write(args.out, rows, environments)


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    parser = options.parser('chains', __doc__, rounds=9)
    parser.add_argument('--networks', **options.some_of(list(NETWORKS)))
    parser.add_argument('--threads', **options.threads())
    options.print_result(parser.parse_args(argv), measure)
    return 0
