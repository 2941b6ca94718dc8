"""Runs of the original (Chainer 1.17), repeated by the port; see golden/README.md for the cases and tolerances."""

import contextlib
import json
import os

import branchynet  # noqa: F401
from branchynet import cpu, utils
from branchynet.networks import alex_cifar10, lenet_mnist, resnet_cifar10

import chainer.links as L
import numpy as np
import pytest

GOLDEN = os.path.join(os.path.dirname(__file__), 'golden')
BUILDERS = {'lenet': lenet_mnist, 'alex': alex_cifar10, 'resnet': resnet_cifar10}
LOSS = 5e-3
# Near a loss of ln 10 an image's classes are all but tied, and float noise decides for a few of 512.
ACCURACY = 1e-2
# Relative: of find_thresholds; of the second joint step; of softmax on loaded weights, absolute.
THRESHOLDS = {'lenet': 1e-3, 'alexnet': 1e-2}
SECOND_STEP = {'resnet110': 2e-3}
SOFTMAX = {'resnet110': 2e-3}


class Golden:
    """A recorded case, its data, and a net with its initial weights."""

    def __init__(self, name):
        self.name = name
        with np.load(os.path.join(GOLDEN, name + '.npz')) as f:
            self.arrays = {key: f[key] for key in f.files}
        self.meta = json.loads(str(self.arrays['meta']))
        self.train = self._data(100, self.meta['n_train'])
        self.test = self._data(101, self.meta['n_test'])
        self.batchsize = self.meta['batchsize']
        self.net = BUILDERS[self.meta['network']].get_network(**self.meta.get('kwargs', {}))
        self.load('init')

    def _data(self, seed, n):
        shape = (1, 28, 28) if self.meta['network'] == 'lenet' else (3, 32, 32)
        prototypes = np.random.RandomState(99).randn(10, *shape)
        y = np.random.RandomState(seed).randint(0, 10, n)
        x = prototypes[y] * 0.5 + 1.5 * np.random.RandomState(seed + 100).randn(n, *shape)
        return x.astype(np.float32), y.astype(np.int32)

    def params(self):
        """Parameters by the paths of the recording."""
        params = {'main' + path: param for path, param in self.net.main.namedparams()}
        for k, model in enumerate(self.net.models):
            for j, link in enumerate(model[model.endi :]):
                params.update((f'exit{k}/{j}{path}', param) for path, param in link.namedparams())
        return params

    def load(self, stage):
        """Puts the weights recorded at a stage into the net, every one of them."""
        params = self.params()
        recorded = {key[len(stage) + 1 :]: a for key, a in self.arrays.items() if key.startswith(stage + '/')}
        assert recorded.keys() == params.keys()
        for path, param in params.items():
            param.array[...] = recorded[path]
        for link in self.net.links():
            if isinstance(link, L.BatchNormalization):
                link.avg_mean[...] = 0
                link.avg_var[...] = 1

    def has(self, stage):
        return any(key.startswith(stage + '/') for key in self.arrays)


def relative(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.max(np.abs(a - b) / np.maximum(np.abs(b), 1e-12), initial=0))


def check_inference(case, stage, report):
    x, _ = case.test
    for k, prob in enumerate(case.net.get_SM(x)):
        error = float(np.abs(prob - case.arrays[f'softmax_{stage}/{k}']).max())
        report(f'softmax_{stage}', error, SOFTMAX.get(case.name, 2e-6))
    for row in case.meta['rows_' + stage]:
        check_row(case, row, report)


def check_row(case, row, report):
    x, y = case.test
    case.net.thresholdExits = row.get('T')
    case.net.percentTestExits = row.get('p', 0.9)
    accuracy, _, exits, accuracies = utils.test(
        case.net, x, y, batchsize=row.get('batchsize', case.batchsize), main=row['what'] == 'main'
    )
    case.net.thresholdExits = None
    # A threshold lies between neighbours, and float noise can move one sample across it.
    report('accuracy in samples', abs(accuracy - row['acc']) * len(x), 1.01)
    if row['what'] != 'main':
        report('exits in samples', np.abs(exits - row['exits']).max(), 1)
        right, recorded = accuracies * exits, np.multiply(row['exit_acc'], row['exits'])
        report('right at an exit in samples', np.abs(right - recorded).max(), 1.01)


def check_training(case, phase, report):
    meta, steps = case.meta, []
    main = phase == 'main'
    epochs = meta[phase + '_epochs']
    np.random.seed(meta['seed'] + (1 if main else 2))
    step = case.net.train_main if main else case.net.train

    def recording(x, t):
        result = step(x, t)
        steps.append(result[0])
        return result

    setattr(case.net, step.__name__, recording)
    losses, accuracies, _ = utils.train(case.net, *case.train, batchsize=case.batchsize, num_epoch=epochs, main=main)
    delattr(case.net, step.__name__)
    recorded = case.arrays[phase + '_step_loss']
    assert np.shape(steps) == recorded.shape
    first = 5e-5 if not main and meta['main_epochs'] else 2e-6
    report(phase + ' first step', relative(steps[0], recorded[0]), first)
    if not main and len(steps) > 1:
        report(phase + ' second step', relative(steps[1], recorded[1]), SECOND_STEP.get(case.name, 5e-5))
    report(phase + ' epoch losses', relative(losses, case.arrays[phase + '_loss']), LOSS)
    accuracy_error = np.abs(np.subtract(accuracies, case.arrays[phase + '_acc'])).max()
    report(phase + ' epoch accuracies', accuracy_error, ACCURACY)


def check_movement(case, report):
    """Trained weights: the error as a share of the movement from the initial ones."""
    groups = {}
    for path, param in case.params().items():
        last = case.net.models[-1].endi
        if not path.startswith('main'):
            group = 'own links'
        else:
            group = 'head' if int(path.split('/')[1]) >= last else 'trunk'
        final, init = case.arrays['final/' + path], case.arrays['init/' + path]
        error, moved = groups.get(group, (0, 0))
        groups[group] = (error + ((param.array - final) ** 2).sum(), moved + ((final - init) ** 2).sum())
    for group, limit in (('head', 1e-3), ('trunk', 4e-2), ('own links', 1.5e-2)):
        error, moved = groups[group]
        report('weights of ' + group, float(np.sqrt(error / moved)), limit)


@pytest.mark.parametrize('kernels', [contextlib.nullcontext, cpu.fast], ids=['stock', 'fast'])
@pytest.mark.parametrize('name', ['lenet', 'alexnet', 'resnet110'])
def test_golden(name, kernels, record_property):
    with kernels():
        check_case(name, record_property)


def check_case(name, record_property):
    case = Golden(name)
    worst = {}

    def report(what, error, limit):
        worst[what] = max(worst.get(what, (0, limit)), (float(error), limit))

    check_inference(case, 'init', report)
    case.net.training()
    for phase in ('main', 'joint'):
        if case.meta[phase + '_epochs']:
            check_training(case, phase, report)
    np.random.seed(case.meta['seed'] + 3)
    for row in case.meta.get('find_thresholds', []):
        found = case.net.find_thresholds(
            *case.train, percentTrainKeeps=row['percentTrainKeeps'], batchsize=case.batchsize
        )
        report('find_thresholds', relative(found, row['T']), THRESHOLDS[name])
    if case.has('final'):
        check_movement(case, report)
        case.load('final')
        check_inference(case, 'final', report)
    for what, (error, limit) in worst.items():
        record_property(what, error)
        print(f'{name}: {what}: {error:.2g} (limit {limit:.2g})')
    assert not [what for what, (error, limit) in worst.items() if error > limit], worst
