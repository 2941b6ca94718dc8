"""Every kind of layer of the three networks by itself: this project's kernels, stock Chainer and PyTorch.

Forward and backward are timed apart, contenders in turn. Takes 20 minutes on 2 cores for all three networks. Writes
benchmark.csv and environment.json; run it before and after a change of the kernels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import branchynet
from branchynet import provenance
from branchynet.benchmarks import measuring, options
from branchynet.benchmarks.measuring import Row
from branchynet.benchmarks.networks import EXPERIMENTS, batchsize

import chainer
import numpy as np

CONTENDERS = ['branchynet', 'chainer', 'pytorch']
Shape = tuple[int, ...]


class _Layers(chainer.LinkHook):
    """Collects the links without children, each kind once: {name: (link, shape of a sample)}."""

    name = 'layers'

    def __init__(self) -> None:
        self.found: dict[str, tuple[Any, Shape]] = {}

    def forward_preprocess(self, args: Any) -> None:
        from branchynet.benchmarks import peers

        if not list(args.link.children()) and isinstance(args.link, (branchynet.FL, *peers.LINKS)):
            shape = args.args[0].shape[1:]
            self.found.setdefault(describe(args.link, shape), (args.link, shape))


def describe(link: Any, shape: Shape) -> str:
    """A layer and its samples, in short."""
    size = 'x'.join(map(str, shape))
    if isinstance(link, branchynet.FL):
        return f'{link.fn.__name__} {",".join(map(str, link.args))} {size}'
    if isinstance(link, chainer.links.BatchNormalization):
        return f'batch_normalization {size}'
    return f'{type(link).__name__} {"x".join(map(str, link.W.shape))} {size}'


def layers(network: str) -> dict[str, tuple[Any, Shape]]:
    """{name: (link, shape of a sample)} of a network."""
    np.random.seed(0)
    net, hook = EXPERIMENTS[network].get_network(), _Layers()
    with hook, chainer.no_backprop_mode():
        x: Any = np.random.randn(2, *EXPERIMENTS[network].shape).astype(np.float32)
        for k in range(net.numexits()):
            x = net.stage(k, x)
            net.exit(k, x)
    return hook.found


def time_layers(network: str, batch: int, rounds: int) -> list[tuple[str, str, int, float, float]]:
    """[(layer, contender, round, seconds forward, seconds backward)]."""
    return [
        (name, *values)
        for name, (link, shape) in layers(network).items()
        for values in _time_layer(link, (batch, *shape), rounds)
    ]


def _time_layer(link: chainer.Link, shape: Shape, rounds: int) -> Iterator[tuple[str, int, float, float]]:
    from branchynet.benchmarks import peers

    import torch

    x = np.random.RandomState(0).randn(*shape).astype(np.float32)
    gy = np.ones_like(link(x).array)
    module = peers.convert(link)
    outputs: dict[str, Any] = {}

    def ours(name: str) -> None:
        outputs[name] = link(chainer.Variable(x))

    def theirs() -> None:
        outputs['pytorch'] = module(torch.from_numpy(x).requires_grad_())

    forward: dict[str, Callable] = {
        'branchynet': partial(ours, 'branchynet'),
        'chainer': partial(ours, 'chainer'),
        'pytorch': theirs,
    }
    backward: dict[str, Callable] = {name: partial(_backward, outputs, name, gy) for name in forward}
    # A round of forward calls, then one of backward calls, which need their graphs.
    for turn in range(-1, rounds):
        seconds = [{name: measuring.timed(name, call) for name, call in calls.items()} for calls in (forward, backward)]
        link.cleargrads()
        module.zero_grad()
        if turn >= 0:
            yield from ((name, turn, seconds[0][name], seconds[1][name]) for name in forward)


def _backward(outputs: dict[str, Any], name: str, gy: np.ndarray) -> None:
    if name == 'pytorch':
        import torch

        outputs[name].backward(torch.from_numpy(gy))
    else:
        outputs[name].grad = gy
        outputs[name].backward()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Times every layer, prints the medians and writes the files."""
    rows = []
    for network in args.networks:
        batch = batchsize(network)
        for threads in args.threads:
            for layer, name, turn, *seconds in measuring.in_child(threads, time_layers, network, batch, args.rounds):
                rows += [
                    Row(layer, task, batch, threads, name, turn, s) for task, s in zip(['forward', 'backward'], seconds)
                ]
    print(f'{"":9} {"threads":>7} {"ms":48} ' + ' '.join(f'{name:>10}' for name in CONTENDERS))
    for (layer, task, _, threads), values in measuring.grouped(rows).items():
        medians = [1e3 * measuring.spread(values[name])[0] for name in CONTENDERS]
        print(f'{task:9} {threads:7} {layer:48} {" ".join(f"{ms:10.2f}" for ms in medians)}')
    environments = {threads: measuring.in_child(threads, provenance.environment) for threads in args.threads}
    return measuring.write(args.out, rows, environments)


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    parser = options.parser('kernels', __doc__, rounds=5)
    parser.add_argument('--networks', **options.some_of(list(EXPERIMENTS)))
    parser.add_argument('--threads', **options.threads())
    options.print_result(parser.parse_args(argv), measure)
    return 0
