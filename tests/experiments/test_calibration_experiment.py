"""The calibration of the paper's networks: on a training of a second, and the table of the committed one."""

import os

import branchynet  # noqa: F401
from branchynet import devices, files
from branchynet.datasets import mnist, splits
from branchynet.experiments import calibration, lenet_mnist, runs, weights
from branchynet.experiments.run_id import RunId

import numpy as np
import pytest


@pytest.fixture
def small(monkeypatch):
    """3000 images of MNIST, of which 1000 are held out, and one training of two epochs."""
    x, y, x_test, t_test = mnist.get_data()
    few = x[:3000], y[:3000], x_test[:500], t_test[:500]
    experiment = lenet_mnist.EXPERIMENT._replace(get_data=lambda: few)
    monkeypatch.setattr(lenet_mnist, 'EXPERIMENT', experiment)
    monkeypatch.setattr(calibration, 'HELD_OUT', 1000)
    monkeypatch.setattr(calibration, 'TRAININGS', {'lenet_mnist': runs.Preset(1, 1, batchsize=100)})
    monkeypatch.setattr(calibration, 'LOSSES', (1.0, 30.0))
    return few


def test_a_run_from_training_to_table(small, tmp_path):
    out = str(tmp_path)
    calibration.complete(out, ['lenet_mnist'], [1], devices.find_device('cpu'))
    (run,) = calibration.read(out).runs
    assert run.training.train_samples == 2000 and run.held_out.samples == 1000 and run.held_out.seed == 1
    choices = run.measurement.choices
    assert [(choice.baseline, choice.accuracy_loss, choice.guarantee) for choice in choices] == [
        (baseline, loss, guarantee)
        for baseline in ('main', 'the final exit')
        for loss in (1.0, 30.0)
        for guarantee in (None, 0.95)
    ]
    for choice in choices:
        if choice.refused:
            assert choice.accuracy_loss == 1.0 and choice.thresholds is None and choice.test is None
        else:
            assert choice.held_out.loss_points <= choice.accuracy_loss
            assert choice.held_out.samples == 1000 and choice.test.samples == 500
    assert run.measurement.published.thresholds == [0.025]
    assert run.measurement.knee.test.loss_points <= 0.2  # 1 of 500 images: compiled and not, they differ by rounding
    table = calibration.table(calibration.read(out))
    assert (
        '| at most 30 points under the final exit, with probability 0.95' in table
        and 'held-out images, seeds 1.' in table
    )
    # What was held out is not what was trained on, and `branchynet calibrate` finds it.
    loaded = weights.load(RunId('lenet_mnist', '', 1).weights_path(out), 'lenet_mnist', 'code')
    _, held = splits.stratified(small[1], 1000, 1)
    index, seen = weights.hold_out(loaded.trained, small[1], 1000, 0)
    assert seen == 0 and loaded.baseline is not None
    np.testing.assert_array_equal(index, held)
    # What the folder holds is not made again.
    before = files.digest(os.path.join(out, 'calibration.json'))
    calibration.complete(out, ['lenet_mnist'], [1], None)
    assert files.digest(os.path.join(out, 'calibration.json')) == before


def test_weights_of_another_training_are_not_replaced(small, tmp_path):
    path = tmp_path / 'weights_lenet_mnist_seed1.npz'
    path.write_bytes(b'of hours of training')
    with pytest.raises(ValueError, match='is of another training'):
        calibration.complete(str(tmp_path), ['lenet_mnist'], [1], devices.find_device('cpu'))
    assert path.read_bytes() == b'of hours of training'


def test_trainings_with_other_epochs_are_not_continued(small, tmp_path, monkeypatch):
    out = str(tmp_path)
    calibration.complete(out, ['lenet_mnist'], [1], devices.find_device('cpu'))
    monkeypatch.setattr(calibration, 'TRAININGS', {'lenet_mnist': runs.Preset(1, 2, batchsize=100)})
    with pytest.raises(ValueError, match='holds trainings of lenet_mnist by other presets'):
        calibration.complete(out, ['lenet_mnist'], [1, 2], devices.find_device('cpu'))


def test_a_damaged_file_is_one_line(tmp_path):
    (tmp_path / 'calibration.json').write_text('{"runs": [{"network": 1}]}')
    with pytest.raises(OSError, match=r'calibration.json is damaged: runs\[0\]') as info:
        calibration.read(str(tmp_path))
    assert '\n' not in str(info.value)
