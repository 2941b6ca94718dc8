"""The sequence of calls in the released scripts and notebooks, on a few real images."""

import branchynet  # noqa: F401
from branchynet import utils, visualize
from branchynet.datasets import mnist
from branchynet.networks import lenet_mnist

import chainer
import dill
import numpy as np
import pytest


@pytest.fixture(scope='module')
def data():
    x_train, y_train, x_test, y_test = mnist.get_data()
    return x_train[:2000], y_train[:2000], x_test[:60], y_test[:60]


def test_released_notebook(data, tmp_path, capsys):
    x_train, y_train, x_test, y_test = data
    np.random.seed(0)
    net = lenet_mnist.get_network()
    net.training()
    losses, accs, seconds = utils.train(net, x_train, y_train, main=True, batchsize=64, num_epoch=1)
    assert np.shape(losses) == (1,) and seconds > 0
    losses, accs, seconds = utils.train(net, x_train, y_train, batchsize=64, num_epoch=3)
    assert np.shape(losses) == np.shape(accs) == (3, 2)
    visualize.plot_layers(losses, save_name=str(tmp_path / 'losses.png'))
    (axes,) = visualize.plot_layers(zip(*losses), save_name=str(tmp_path / 'zipped')).axes  # as the scripts call it
    assert (tmp_path / 'zipped.png').exists()
    for k, line in enumerate(axes.lines):
        np.testing.assert_array_equal(line.get_ydata(), [of_epoch[k] for of_epoch in losses])
    assert len(axes.lines) == 2

    net.testing()
    baseacc, basediff, _, _ = utils.test(net, x_test, y_test, main=True, batchsize=1)
    basediff = basediff / len(y_test) * 1000
    thresholds = [0.0001, 0.01, 0.1, 0.5, 1, 10]
    ts, accs, diffs, exits = utils.screen_branchy(net, x_test, y_test, thresholds, batchsize=1)
    diffs = np.array(diffs) * 1000
    visualize.plot_line_tradeoff(
        accs,
        diffs,
        ts,
        exits,
        baseacc,
        basediff,
        orig_label='LeNet',
        our_label='B-LeNet',
        all_samples=False,
        title='LeNet CPU',
        xlabel='Runtime (ms)',
        ylabel='Classification Accuracy',
        knee_idx=0,
        output_path=str(tmp_path / '_figs' / 'lenet_cpu.pdf'),
    )
    assert (tmp_path / '_figs' / 'lenet_cpu.pdf').read_bytes().startswith(b'%PDF')
    utils.branchy_table_results('LeNet', baseacc, basediff, accs, diffs, exits, ts)
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(thresholds)

    # The sequence has learned something, and leaving early answers for the exits' shares.
    assert accs.max() > 0.8
    assert exits[-1].tolist() == [60, 0]
    assert [e.sum() for e in exits] == [60] * 6
    assert (np.diff([e[0] for e in exits]) >= 0).all()

    loaded = dill.loads(dill.dumps(net, recurse=True))
    loaded.thresholdExits = net.thresholdExits = [0.1]
    np.testing.assert_array_equal(loaded.run(x_test), net.run(x_test))

    chainer.serializers.save_npz(str(tmp_path / 'net.npz'), net)
    other = lenet_mnist.get_network(thresholdExits=[0.1])
    chainer.serializers.load_npz(str(tmp_path / 'net.npz'), other)
    np.testing.assert_array_equal(other.run(x_test), net.run(x_test))
