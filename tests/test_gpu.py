"""What the port does on a GPU, held against the recorded original, the CPU and itself; skipped where there is none."""

import os
import subprocess
import sys

import branchynet  # noqa: F401
from branchynet import cli, determinism, utils

import chainer.functions as F
import numpy as np
import pytest
from chainer.backends import cuda
from helpers import same, small_data, small_net, weights
from test_golden import Golden

pytestmark = pytest.mark.gpu
NAMES = pytest.mark.parametrize('name', ['lenet', 'alexnet', 'resnet110'])
SOFTMAX, LOSS = 2e-3, 1e-3  # other kernels than the CPU's, perhaps with TF32
SPIN = 'extern "C" __global__ void spin() { long long start = clock64(); while (clock64() - start < 2000000000); }'


@NAMES
def test_recorded_outputs(name):
    case = Golden(name)
    for stage in ['init'] + ['final'] * case.has('final'):
        case.net.to_cpu()
        case.load(stage)
        case.net.to_gpu()
        for k, prob in enumerate(utils.get_SM(case.net, case.test[0])):
            np.testing.assert_allclose(prob, case.arrays[f'softmax_{stage}/{k}'], atol=SOFTMAX)


@NAMES
def test_a_step_is_the_cpus(name):
    x, t = (a[:64] for a in Golden(name).train)
    losses = []
    for on_gpu in False, True:
        case = Golden(name)
        for link in case.net.links():
            if getattr(link, 'fn', None) is F.dropout:
                link.args = (0.0,)  # drop-out draws from another generator there
        if on_gpu:
            case.net.to_gpu()
        losses.append(case.net.train(x, t)[0])
    np.testing.assert_allclose(losses[1], losses[0], rtol=LOSS)


def trained(**kwargs):
    x, t = small_data()
    determinism.seed_generators(0)
    net = small_net(**kwargs)
    net.to_gpu()
    for _ in range(3):
        net.train_main(x, t)
        net.train(x, t)
    net.to_cpu()
    return weights(net)


@pytest.mark.parametrize('dropout', [False, True])
def test_training_repeats_to_the_bit(dropout):
    assert same(trained(dropout=dropout), trained(dropout=dropout))


def test_runs_repeat_to_the_bit(tmp_path, capsys):
    """All three networks under a profile, each run in a process of its own."""
    paths = [str(tmp_path / name) for name in ('a.json', 'b.json')]
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'cut_down.py')
    for path in paths:
        subprocess.run([sys.executable, script, path, '--profile', 'fast', '--device', 'gpu:0'], check=True)
    assert cli.main(['verify', *paths]) == 0, capsys.readouterr().out


@NAMES
def test_a_stage_does_not_wait_for_the_gpu(name):
    case = Golden(name)
    case.net.to_gpu()
    case.net.testing()
    x = cuda.to_gpu(case.test[0][:2])
    stream = cuda.cupy.cuda.get_current_stream()
    spin = cuda.cupy.RawKernel(SPIN, 'spin')
    for _ in range(2):  # the first compiles kernels and chooses algorithms
        h, waits = x, []
        for k in range(case.net.numexits()):  # one by one: a stream that holds about 1000 kernels lets callers wait
            stream.synchronize()
            spin((1,), (1,), ())
            h = case.net.stage(k, h)
            case.net.exit(k, h)
            waits.append(stream.done)
    assert not any(waits)
