"""Kills a training at random moments and resumes it: the weights must be those of an uninterrupted run, to the bit.

    python tests/kill_and_resume.py [--network small|lenet|alexnet|resnet] [--kills 20] [--seed 0]

The small network has batch normalisation and dropout. All train on some real images (those of AlexNet and
ResNet-110 are CIFAR-10's); checkpoints come as often as they can, so that many a kill hits one being written.
Status 1 where the bits differ.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from functools import partial

import branchynet
from branchynet import cpu, schema
from branchynet.datasets import cifar10, mnist
from branchynet.experiments import runs
from branchynet.experiments.run_id import RunId
from branchynet.networks import alex_cifar10, lenet_mnist, resnet_cifar10

import chainer
import chainer.functions as F
import chainer.links as L


def get_network():
    """Two exits over convolutions with batch normalisation; dropout before the last."""
    relu = branchynet.FL(F.relu)
    return branchynet.BranchyNet(
        [
            L.Convolution2D(1, 8, 5),
            L.BatchNormalization(8),
            relu,
            branchynet.FL(F.max_pooling_2d, 2, 2),
            branchynet.Branch([L.Linear(1152, 10)]),
            L.Convolution2D(8, 16, 3),
            L.BatchNormalization(16),
            relu,
            branchynet.FL(F.max_pooling_2d, 2, 2),
            L.Linear(400, 64),
            branchynet.FL(F.dropout, 0.5),
            branchynet.Branch([L.Linear(64, 10)]),
        ]
    )


get_cifar10 = partial(cifar10.get_data, whitening=0)
NETWORKS = {  # builder, data, main and joint epochs, batch, images
    'small': (get_network, mnist.get_data, 2, 3, 32, 640),
    'lenet': (lenet_mnist.get_network, mnist.get_data, 2, 3, 64, 1280),
    'alexnet': (alex_cifar10.get_network, get_cifar10, 1, 2, 16, 96),
    'resnet': (resnet_cifar10.get_network, get_cifar10, 1, 2, 4, 16),
}


def train(network, out):
    """The whole training, on from its checkpoint where there is one; writes result.json when it is done."""
    runs.ResumableTraining.INTERVAL, runs.ResumableTraining.SHARE = 0, 1
    builder, get_data, *amounts = NETWORKS[network]
    preset = runs.Preset(*amounts, test_samples=1)
    data = runs.cut(get_data(), preset.train_samples, preset.test_samples)
    setup = runs.Setup('code', chainer.get_device('@numpy'), out, 'smoke', resume=True)
    run = runs.begin(RunId('killed', '', 0), builder, preset, data, setup)
    print('begins', flush=True)
    with cpu.fast():
        for phase in 'main', 'joint':
            run.train(phase)
    schema.write(os.path.join(out, 'result.json'), run.record)


def start(network, out):
    """A process that trains, as soon as it begins to."""
    process = subprocess.Popen(
        [sys.executable, os.path.abspath(__file__), '--network', network, '--train', out], stdout=subprocess.PIPE
    )
    process.stdout.readline()
    return process


def finish(process, out):
    """What the training of a process came to: epochs' losses, accuracies and weights."""
    process.wait()
    process.stdout.close()
    if process.returncode:
        raise SystemExit(f'the training ended with status {process.returncode}')
    with open(os.path.join(out, 'result.json')) as f:
        result = json.load(f)
    return [[result[phase][key] for key in ('loss', 'accuracy', 'weights_sha256')] for phase in ('main', 'joint')]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--network', choices=NETWORKS, default='small')
    parser.add_argument('--kills', type=int, default=20, metavar='N')
    parser.add_argument('--seed', type=int, default=0, help='of the moments')
    parser.add_argument('--train', metavar='DIR', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        return train(args.network, args.train)
    with tempfile.TemporaryDirectory() as folder:
        whole = os.path.join(folder, 'whole')
        os.mkdir(whole)
        begun = time.monotonic()
        expected = finish(start(args.network, whole), whole)
        longest = (time.monotonic() - begun) / 3
        lifetime = partial(random.Random(args.seed).uniform, 0, longest)
        return kill(args.network, args.kills, lifetime, folder, expected)


def kill(network, kills, lifetime, folder, expected):
    """Kills each training after lifetime() seconds, until ``kills`` were killed; returns the exit status."""
    killed, finished = 0, 0
    while True:
        out = os.path.join(folder, str(finished))
        os.makedirs(out, exist_ok=True)
        process = start(network, out)
        if killed < kills:
            try:
                process.wait(lifetime())
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                process.stdout.close()
                killed += 1
                left = ' '.join(sorted(os.listdir(out))) or 'nothing'
                print(f'killed {killed}; left: {left}', flush=True)
                continue
        if finish(process, out) != expected:
            print(f'After {killed} kills the bits differ')
            return 1
        finished += 1
        if killed == kills:
            print(f'{killed} kills in {finished} trainings, all resumed to the same bits')
            return 0


if __name__ == '__main__':
    sys.exit(main())
