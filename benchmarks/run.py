"""This project beside stock Chainer and PyTorch, on the CPU.

    python benchmarks/run.py [--only joint,inference] [--networks lenet] [--pairs 5] [--out DIR]

Needs the extra 'bench' (PyTorch), and for ONNX Runtime the packages onnx and onnxruntime. Everything takes
about 40 minutes on 2 idle cores, most of them stock Chainer's; a task of one network half a minute to some minutes.

Every task runs in a process of its own, in which the contenders take turns (A B C A B C ...) after a round to
warm up. A ratio is the median of the rounds' ratios. Writes benchmark.csv (every single value), benchmark.png,
scaling.png (where --batches asks for more than one) and environment.json.
"""

import argparse
import importlib.util
import json
import os
import sys
from concurrent.futures.process import BrokenProcessPool
from functools import partial

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # `benchmarks`, for a script in it
import branchynet  # noqa: F401
from branchynet import inference, sweep, utils
from branchynet.cost import cost
from branchynet.experiments import alex_cifar10 as alex
from branchynet.experiments import lenet_mnist as lenet
from branchynet.experiments import resnet_cifar10 as resnet

import numpy as np

from benchmarks.networks import BATCHES, NETWORKS, SHAPES, build, images, leaving_thresholds, published_shares

try:
    from benchmarks import measuring, peers
    from benchmarks.measuring import Row
except ModuleNotFoundError as e:  # without PyTorch there is --help
    if e.name != 'torch':
        raise
    measuring = peers = None

EXPERIMENTS = {'lenet': lenet.EXPERIMENT, 'alexnet': alex.EXPERIMENT, 'resnet': resnet.EXPERIMENT}
TASKS = ['joint', 'main', 'evaluate', 'inference', 'sweep', 'memory']
BATCHES_OF = {'inference': [1, 256], 'sweep': [1]}
INFERENCE_IMAGES, SWEEP_IMAGES = 256, 10000
# cpu.fast(), stock, eager, Compiled for one setting after the other
CONTENDERS = ['branchynet', 'chainer', 'pytorch', 'onnxruntime', 'settings']
ONLY_FOR = {'onnxruntime': 'inference', 'settings': 'sweep'}
CHECKED_IMAGES = 8


# Contenders


def make(contender, network, weights=None):
    """A contender's network, ready for `call`."""
    net = build(network, weights)
    if contender == 'pytorch':
        return peers.Peer(net)
    if contender == 'onnxruntime':
        return peers.to_onnx(peers.Peer(net), images(network, 2)[0])
    return net


def call(contender, model, task, x, t, batch):
    """A function that does a task once: a step on x, or inference of x batch by batch."""
    if task == 'inference':
        classify = _classifier(contender, model)
        return lambda: [classify(x[i : i + batch]) for i in range(0, len(x), batch)]
    if contender == 'pytorch':
        steps = {'joint': model.train_joint, 'main': model.train_main}
        return partial(model.softmax, x) if task == 'evaluate' else partial(steps[task], x, t)
    steps = {'joint': model.train, 'main': model.train_main}
    return partial(model.get_SM, x) if task == 'evaluate' else partial(steps[task], x, t)


def _classifier(contender, model):
    if contender in ('pytorch', 'onnxruntime'):
        return model.classify
    if contender == 'chainer':
        return model.run
    net = inference.Compiled(model) if inference.is_compilable(model) else model
    return lambda x: inference.classify(net, x, model.thresholdExits)


def takes_part(contender, task):
    """Whether a contender does a task; a sweep is this project's alone."""
    return contender == 'branchynet' or (
        ONLY_FOR.get(contender, task) == task and (task != 'sweep' or contender == 'settings')
    )


# What one process does


def time_task(network, task, batch, contenders, pairs, weights):
    """Returns ([(contender, pair, seconds per batch)], floating-point operations per batch)."""
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
    values = [(name, pair, seconds / batches) for name, pair, seconds in measuring.interleaved(calls, pairs)]
    return values, batch * flops(net, task, x[:1], shares)


def time_sweep(network, contenders, pairs, weights):
    """[(contender, pair, seconds per image)] of all settings, from one pass or one after the other."""
    x, t = images(network, SWEEP_IMAGES)
    net = inference.Compiled(build(network, weights))
    settings = utils.generate_thresholds(EXPERIMENTS[network].base_thresholds, net.numexits())

    def one_pass():
        sweep.sweep(sweep.record(net, x, t), settings)

    def one_by_one():
        for net.thresholdExits in settings:
            utils.test(net, x[:INFERENCE_IMAGES], t[:INFERENCE_IMAGES], 1)

    calls = {'branchynet': (one_pass, len(x)), 'settings': (one_by_one, INFERENCE_IMAGES)}
    return [
        (name, pair, seconds / calls[name][1])
        for name, pair, seconds in measuring.interleaved({name: calls[name][0] for name in contenders}, pairs)
    ]


def flops(net, task, x, shares):
    """Floating-point operations per image, of convolutions and linear layers: two for a multiply-add."""
    costs = cost(net, x.shape[1:])
    everything = costs.main.macs if task == 'main' else costs.exits[-1].leaving.macs
    if task == 'inference':
        return 2 * sum(share * exit.leaving.macs for share, exit in zip(shares, costs.exits))
    if task == 'evaluate':
        return 2 * everything
    # Backward computes two gradients of the same cost, but none of the image.
    first = net.main[0]
    return 2 * (3 * everything - first(x).size * first.W.array[0].size)


def step_memory(network, batch, contender):
    """MB that a joint step adds to the process's peak."""
    # Noise: reading MNIST would raise the peak before the step.
    rng = np.random.RandomState(0)
    x, t = rng.randn(batch, *SHAPES[network]).astype(np.float32), rng.randint(0, 10, batch).astype(np.int32)
    np.random.seed(0)
    net = NETWORKS[network].get_network()
    model = peers.Peer(net) if contender == 'pytorch' else net

    def step(count):
        call(contender, model, 'joint', x[:count], t[:count], count)()

    return measuring.peak_memory(contender, partial(step, 2), lambda: [step(batch), step(batch)])


# All processes


def measure(args, threads, peak):
    """Yields the Rows of one network's task and batch after the other; peak is of sgemm, FLOP per second."""
    for network in args.networks:
        for task in args.only:
            for batch in BATCHES_OF.get(task) or args.batches or [BATCHES[network]]:
                row = partial(Row, network, task, batch, threads)
                contenders = [name for name in args.contenders if takes_part(name, task)]
                try:
                    if task == 'memory':
                        yield [
                            row(name, 0, measuring.in_child(threads, step_memory, network, batch, name))
                            for name in contenders
                        ]
                        continue
                    if task == 'sweep':
                        yield [
                            row(*value)
                            for value in measuring.in_child(
                                threads, time_sweep, network, contenders, args.pairs, args.weights
                            )
                        ]
                        continue
                    values, flop = measuring.in_child(
                        threads, time_task, network, task, batch, contenders, args.pairs, args.weights
                    )
                    yield [row(*value) for value in values] + [row('limit', 0, flop / peak)]
                except BrokenProcessPool:
                    print(f'{network}, {task}, batch {batch}: the process died, probably for lack of memory')


# What is shown

HEADER = f'{"network":8} {"task":9} {"batch":>5} {"threads":>7}  {"ours: median (min ... max)":30} others / ours'


def lines(rows):
    """This project's values, and every other's ratio to them with the least and the greatest of all rounds."""
    for (network, task, batch, threads), values in measuring.grouped(rows).items():
        name = 'branchynet' if 'branchynet' in values else 'chainer'
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


def draw(out, rows, scaling):
    """The figures."""
    from benchmarks import figures

    figures.bars(rows, os.path.join(out, 'benchmark.png'))
    if scaling:
        figures.scaling(rows, os.path.join(out, 'scaling.png'))


def main() -> None:
    """Measures what the command line asks for, prints it and writes the files."""
    args = _parse()
    if peers is None:
        sys.exit('benchmarks/run.py: PyTorch is not installed: run `pip install torch`')
    if 'onnxruntime' in args.contenders and not all(map(importlib.util.find_spec, ['onnx', 'onnxruntime'])):
        print('onnxruntime is not measured: expected the packages onnx and onnxruntime')
        args.contenders.remove('onnxruntime')
    os.makedirs(args.out, exist_ok=True)
    rows, environments = [], {}
    for threads in args.threads:
        environments[threads] = environment = measuring.in_child(threads, measuring.environment)
        print(f'{threads} threads: {measuring.describe(environment)}\n{HEADER}', flush=True)
        for new in measure(args, threads, environment['sgemm_flop_per_s']):
            rows += new
            print('\n'.join(lines(new)), flush=True)
            measuring.write_csv(os.path.join(args.out, 'benchmark.csv'), rows)
    with open(os.path.join(args.out, 'environment.json'), 'w') as f:
        json.dump(environments, f, indent=1)
    draw(args.out, rows, args.batches)
    print('Written to ' + args.out)


def _parse():
    def some_of(names):
        def parse(text):
            for name in text.split(','):
                if name not in names:
                    raise argparse.ArgumentTypeError('{!r}: expected some of {}'.format(name, ','.join(names)))
            return text.split(',')

        return parse

    def numbers(text):
        return [int(number) for number in text.split(',')]

    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', type=some_of(TASKS), default=TASKS, help=','.join(TASKS))
    parser.add_argument('--networks', type=some_of(NETWORKS), default=list(NETWORKS), help=','.join(NETWORKS))
    parser.add_argument('--contenders', type=some_of(CONTENDERS), default=list(CONTENDERS), help=','.join(CONTENDERS))
    parser.add_argument('--pairs', type=int, default=5, help='rounds (5)')
    parser.add_argument('--threads', type=numbers, default=sorted({1, min(2, cores)}), help='1,2')
    parser.add_argument('--batches', type=numbers, help='of steps, evaluation and memory, as 1,16,256,2048')
    parser.add_argument('--weights', help="folder of a run's results, to time inference with trained weights")
    parser.add_argument('--out', default=os.path.join('results', 'local', 'benchmarks'), help='folder to write to')
    return parser.parse_args()


if __name__ == '__main__':
    main()
