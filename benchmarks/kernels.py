"""Every kind of layer of the three networks by itself: this project's kernels, stock Chainer and PyTorch.

    python benchmarks/kernels.py [--networks lenet] [--pairs 5] [--threads 2] [--out DIR]

Forward and backward are timed apart, contenders in turn. Writes kernels.csv; run it before and after a change
of the kernels. 10 minutes on 2 cores for all three networks.
"""

import argparse
import os
import sys
from functools import partial

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # `benchmarks`, for a script in it
import branchynet

import chainer
import numpy as np
import torch

from benchmarks import measuring, peers
from benchmarks.measuring import Row
from benchmarks.run import BATCHES, NETWORKS, SHAPES


class _Layers(chainer.LinkHook):
    """Collects the links without children, each kind once: {name: (link, shape of a sample)}."""

    name = 'layers'

    def __init__(self):
        self.found = {}

    def forward_preprocess(self, args):
        if not list(args.link.children()) and isinstance(args.link, (branchynet.FL, *peers.LINKS)):
            shape = args.args[0].shape[1:]
            self.found.setdefault(describe(args.link, shape), (args.link, shape))


def describe(link, shape):
    """What a layer does to which samples, in short."""
    size = 'x'.join(map(str, shape))
    if isinstance(link, branchynet.FL):
        return f'{link.fn.__name__} {",".join(map(str, link.args))} {size}'
    if isinstance(link, chainer.links.BatchNormalization):
        return f'batch_normalization {size}'
    return f'{type(link).__name__} {"x".join(map(str, link.W.shape))} {size}'


def layers(network):
    """{name: (link, shape of a sample)} of a network."""
    np.random.seed(0)
    net, hook = NETWORKS[network].get_network(), _Layers()
    with hook, chainer.no_backprop_mode():
        x = np.random.randn(2, *SHAPES[network]).astype(np.float32)
        for k in range(net.numexits()):
            x = net.stage(k, x)
            net.exit(k, x)
    return hook.found


def time_layers(network, batch, pairs):
    """[(layer, contender, pair, seconds forward, seconds backward)]."""
    return [
        (name, *values)
        for name, (link, shape) in layers(network).items()
        for values in _time_layer(link, (batch, *shape), pairs)
    ]


def _time_layer(link, shape, pairs):
    x = np.random.RandomState(0).randn(*shape).astype(np.float32)
    gy = np.ones_like(link(x).array)
    module = peers.convert(link)
    outputs = {}

    def ours(name):
        outputs[name] = link(chainer.Variable(x))

    def theirs():
        outputs['pytorch'] = module(torch.from_numpy(x).requires_grad_())

    forward = {'branchynet': partial(ours, 'branchynet'), 'chainer': partial(ours, 'chainer'), 'pytorch': theirs}
    backward = {name: partial(_backward, outputs, name, gy) for name in forward}
    # A round of forward calls, then one of backward calls, which need their graphs.
    for pair in range(-1, pairs):
        seconds = [{name: measuring.timed(name, call) for name, call in calls.items()} for calls in (forward, backward)]
        link.cleargrads()
        module.zero_grad()
        if pair >= 0:
            yield from ((name, pair, seconds[0][name], seconds[1][name]) for name in forward)


def _backward(outputs, name, gy):
    if name == 'pytorch':
        outputs[name].backward(torch.from_numpy(gy))
    else:
        outputs[name].grad = gy
        outputs[name].backward()


def main() -> None:
    """Times every layer, prints the medians and writes kernels.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--networks', default=','.join(NETWORKS))
    parser.add_argument('--pairs', type=int, default=5)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--out', default=os.path.join('results', 'local', 'benchmarks'))
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    rows = []
    print(f'{"":9} {"ms":48} {"branchynet":>10} {"chainer":>10} {"pytorch":>10}')
    for network in args.networks.split(','):
        batch = BATCHES[network]
        for layer, name, pair, *seconds in measuring.in_child(args.threads, time_layers, network, batch, args.pairs):
            rows += [
                Row(layer, task, batch, args.threads, name, pair, s)
                for task, s in zip(['forward', 'backward'], seconds)
            ]
    for (layer, task, _, _), values in measuring.grouped(rows).items():
        medians = [1e3 * measuring.spread(values[name])[0] for name in ('branchynet', 'chainer', 'pytorch')]
        print(f'{task:9} {layer:48} {" ".join(f"{ms:10.2f}" for ms in medians)}')
    measuring.write_csv(os.path.join(args.out, 'kernels.csv'), rows)


if __name__ == '__main__':
    main()
