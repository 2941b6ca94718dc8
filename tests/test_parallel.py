"""Ranks that train together come to what one process comes to."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import branchynet
from branchynet import parallel
from branchynet.links.links import Branch

import chainer
import chainer.functions as F
import chainer.links as L
import mpi
import numpy as np
import pytest
from helpers import small_data, small_net
from train_on_ranks import CASES

PROGRAM = [sys.executable, os.path.join(os.path.dirname(__file__), 'train_on_ranks.py')]
NOISY = {'dropout'}  # every rank has noise of its own


def alone(names):
    """Losses and learned thresholds of one process, by case."""
    return json.loads(subprocess.check_output([*PROGRAM, ','.join(names)]))


def together(ranks, names, batch_normalization='local'):
    """The same of several ranks."""
    done = mpi.run(ranks, [*PROGRAM, ','.join(names), batch_normalization])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_close(found, expected, tolerance):
    assert len(found) == len(expected)
    for (losses, learned), (right, right_learned) in zip(found, expected):
        np.testing.assert_allclose(losses, right, rtol=tolerance)
        np.testing.assert_allclose(learned, right_learned, rtol=tolerance)


@pytest.mark.parametrize('ranks', [1, 2, 3])
def test_ranks_train_as_one_process(ranks):
    left_out = {'lenet', 'normalised'} | (NOISY if ranks > 1 else set())
    names = [name for name, (_, _, batch, _) in CASES.items() if name not in left_out and batch % ranks == 0]
    expected, found = alone(names), together(ranks, names)
    for name in names:
        assert_close(found[name], expected[name], 1e-5)


@pytest.mark.parametrize('ranks', [2, pytest.param(4, marks=pytest.mark.slow)])
def test_synchronised_batch_normalisation_is_that_of_the_whole_batch(ranks):
    assert_close(
        together(ranks, ['normalised'], 'synchronised')['normalised'], alone(['normalised'])['normalised'], 1e-3
    )


def test_local_batch_normalisation_and_dropout_leave_the_same_net_on_all_ranks():
    found = together(2, ['normalised', 'dropout'])
    assert all(np.isfinite(losses).all() for case in found.values() for losses, _ in case)


@pytest.mark.slow
@pytest.mark.parametrize('ranks', [1, 2, 4])
def test_lenet_on_mnist(ranks):
    expected, found = alone(['lenet'])['lenet'], together(ranks, ['lenet'])['lenet']
    assert len(expected) == 20
    assert_close(found, expected, 1e-5)


def test_samples_and_labels_come_in_pairs():
    x, t = small_data()
    trained = parallel.Parallel(small_net(), SimpleNamespace(size=1))
    for train in trained.train, trained.train_main:
        with pytest.raises(ValueError, match='^x has 16 samples and y has 32: both need the same number'):
            train(x[:16], t)


class Normalised(chainer.Chain):
    """A chain whose first layer is normalised."""

    def __init__(self):
        super().__init__()
        with self.init_scope():
            self.a, self.n, self.c = L.Linear(4, 8), L.BatchNormalization(8), L.Linear(8, 3)

    def forward(self, x):
        return self.c(F.relu(self.n(self.a(x))))


def net_with(link):
    return branchynet.BranchyNet([L.Linear(4, 8), link, Branch([L.Linear(8, 3)])])


@pytest.mark.parametrize(
    'net, words',
    [
        (net_with(L.BatchRenormalization(8)), '/main/1 is a BatchRenormalization, which cannot be synchronised'),
        (net_with(L.DecorrelatedBatchNormalization(8)), '/main/1 is a DecorrelatedBatchNormalization, which cannot'),
        (net_with(L.BatchNormalization(8, axis=(0,))), r'/main/1 normalises over the axes \(0,\), which cannot'),
        (
            branchynet.BranchyNet.from_chain(Normalised(), {'n': L.Linear(8, 3)}, x=small_data()[0]),
            '/main/chain/n cannot be synchronised, as an exit stands after it',
        ),
    ],
)
def test_normalisation_that_cannot_be_synchronised_is_refused(net, words):
    with pytest.raises(parallel.Refused, match=f'^{words}'):
        parallel.synchronise(net, None)


@pytest.mark.parametrize(
    'link, names',
    [
        (L.BatchNormalization(8), ['avg_mean', 'avg_var']),
        (L.DecorrelatedBatchNormalization(8), ['avg_mean', 'avg_projection']),
    ],
)
def test_running_statistics_of_any_link_are_averaged(link, names):
    net = net_with(link)
    net.cleargrads()
    found = parallel.message(net)
    assert [id(array) for array in found] == [id(getattr(link, name)) for name in names]
