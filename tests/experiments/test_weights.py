"""branchynet sweep and branchynet calibrate: on committed weights, and on a training that held images out."""

import csv
import json
import os
import shutil
from unittest import mock

import branchynet  # noqa: F401
from branchynet import cli, exits, files, provenance, schema, sweep
from branchynet.calibration import Target
from branchynet.datasets import mnist, splits
from branchynet.experiments import calibrations, lenet_mnist, results, weights
from branchynet.experiments.calibrations import HeldOut
from branchynet.experiments.weights import Trained

import numpy as np
import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
COMMITTED = os.path.join(ROOT, 'results', 'lenet_mnist_quick')
LENET = ['--network', 'lenet_mnist']


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    """The first images of MNIST in place of all: 3000 to train on and 500 to test on."""
    x, y, x_test, t_test = mnist.get_data()
    few = x[:3000], y[:3000], x_test[:500], t_test[:500]
    experiment = lenet_mnist.EXPERIMENT._replace(get_data=lambda: few)
    monkeypatch.setattr(lenet_mnist, 'EXPERIMENT', experiment)
    return few


@pytest.fixture
def folder(tmp_path, few_images):
    """A copy of the committed folder, as if the few images had trained its weights."""
    copied = tmp_path / 'folder'
    copied.mkdir()
    for name in 'weights_lenet_mnist_seed0.npz', 'weights_lenet_mnist_seed0_main.npz':
        shutil.copyfile(os.path.join(COMMITTED, name), copied / name)
    found = results.read(COMMITTED)
    (one,) = found.experiments['lenet_mnist']
    one.training.data_sha256 = provenance.sha256_of_arrays(few_images)
    one.training.train_samples, one.measurement.test_samples = 3000, 500
    results.write(str(copied), found)
    return str(copied)


def run(capsys, *words):
    """(status, standard output, standard error) of a command."""
    status = cli.main(list(words))
    return (status, *capsys.readouterr())


@pytest.mark.parametrize('command', [['sweep', '--thresholds', '0.5'], ['calibrate', '--leave', '0.5']])
def test_weights_that_were_trained_on_other_data_are_refused(capsys, folder, command):
    found = results.read(folder)
    found.experiments['lenet_mnist'][0].training.data_sha256 = '0' * 64
    results.write(folder, found)
    status, _, error = run(capsys, command[0], folder, *LENET, *command[1:])
    assert status == 2 and error.count('\n') == 1
    assert error.startswith(f'branchynet: lenet_mnist was trained on data of SHA-256 {"0" * 64}, and the data here is ')


def test_sweep_prints_and_writes_what_a_sweep_finds(capsys, tmp_path, few_images, folder):
    path = tmp_path / 'sweep.csv'
    words = ['sweep', folder, *LENET, '--thresholds', '0.01', '0.5']
    status, shown, _ = run(capsys, *words, '--out', str(path))
    assert status == 0 and shown.count('\n') == 3 and shown.startswith('thresholds')
    with open(path, newline='') as f:
        written = list(csv.DictReader(f))
    _, shown, _ = run(capsys, *words, '--json')
    found = json.loads(shown)
    assert [row['thresholds'] for row in found] == [[0.01], [0.5]]
    for row, line in zip(found, written):
        assert float(line['accuracy_percent']) == pytest.approx(row['accuracy_percent'])
        assert sum(row['exit_percent']) == pytest.approx(100) and row['whole_ms'] > 0
    loaded = weights.load(os.path.join(COMMITTED, 'weights_lenet_mnist_seed0.npz'), 'lenet_mnist', 'code')
    swept = sweep.sweep(sweep.record(loaded.net, *few_images[2:], 500), [[0.01], [0.5]])
    assert [row['accuracy_percent'] for row in found] == pytest.approx((100 * swept.accuracy).tolist(), abs=0.21)


def test_a_sweep_of_another_criterion_takes_the_deciles_of_its_scores(capsys, folder):
    status, shown, _ = run(capsys, 'sweep', folder, *LENET, '--criterion', 'margin', '--json')
    found = json.loads(shown)
    assert status == 0 and 5 < len(found) <= 11
    leaving = [row['exit_percent'][0] for row in found]  # rising thresholds let fewer leave
    assert leaving == sorted(leaving, reverse=True) and leaving[0] > 50
    assert {row['mark'] for row in found} <= {'front', ''}


@pytest.mark.parametrize(
    'options, check',
    [
        (['--accuracy-loss', '1'], lambda found: found.held_out.loss_points <= 1),
        (['--leave', '0.6'], lambda found: found.held_out.exit_percent[0] >= 60),
        (['--macs', '0.5', '--criterion', 'top_prob'], lambda found: found.held_out.macs_percent <= 50),
        (['--accuracy-loss', '10', '--guarantee', '0.9', '--temperature'], lambda found: found.guarantee == 0.9),
    ],
)
def test_calibrate_fulfils_its_target_and_says_that_the_images_were_seen(
    capsys, tmp_path, few_images, folder, options, check
):
    path = str(tmp_path / 'thresholds.json')
    figure = tmp_path / 'reliability.png'
    options = [*options, '--holdout', '1000', '--out', path, '--draw', str(figure)]
    status, shown, _ = run(capsys, 'calibrate', folder, *LENET, *options)
    assert figure.read_bytes().startswith(b'\x89PNG')
    found = schema.structure(schema.read_json(path, 'thresholds'), weights.Calibrated)
    assert status == 0 and check(found)
    assert 'note: the training saw 1000 of the 1000 held-out images' in shown
    assert found.held_out_seen == 1000 and found.held_out.samples == 1000 and found.test.samples == 500
    assert found.weights_sha256 == files.digest(os.path.join(COMMITTED, 'weights_lenet_mnist_seed0.npz'))
    # The file says all that classifies the same again.
    net = weights.load(os.path.join(COMMITTED, 'weights_lenet_mnist_seed0.npz'), 'lenet_mnist', 'code').net
    net.temperatures = found.temperatures
    result = weights.runs.for_inference(net).classify(few_images[2], found.thresholds, exits.CRITERIA[found.criterion])
    shares = 100 * np.bincount(result.exit, minlength=2) / 500
    assert shares.tolist() == pytest.approx(found.test.exit_percent)


def test_images_that_a_training_left_out_are_held_out(capsys, tmp_path, few_images):
    y = few_images[1]
    kept, held = splits.stratified(y, 800, 5)
    trained = Trained(mock.Mock(train_samples=1500), HeldOut(samples=800, seed=5))
    mask = weights.seen(trained, y)
    assert mask.sum() == 1500 and mask[kept[:1500]].all() and not mask[held].any()
    index, seen = weights.hold_out(trained, y, 400, 0)
    assert len(index) == 400 and seen == 0 and not mask[index].any()
    index, seen = weights.hold_out(trained, y, 2000, 0)  # there are 1500
    assert len(index) == 1500 and seen == 0
    index, seen = weights.hold_out(Trained(mock.Mock(train_samples=3000)), y, 400, 0)
    assert len(index) == 400 and seen == 400
    assert weights.hold_out(None, y, 400, 0)[1] is None

    path = tmp_path / 'weights_lenet_mnist_seed0.npz'
    shutil.copyfile(os.path.join(COMMITTED, path.name), path)
    words = ['calibrate', str(tmp_path), *LENET, '--leave', '0.5', '--holdout', '700']
    _, shown, _ = run(capsys, *words)
    assert 'nothing beside the weights says what they were trained on' in shown
    (one,) = results.read(COMMITTED).experiments['lenet_mnist']
    kept, _ = splits.stratified(y, 800, 5)
    one.training.train_samples = 2200
    one.training.data_sha256 = provenance.sha256_of_arrays([few_images[0][kept], y[kept], *few_images[2:]])
    run_of_file = schema.unstructure(
        calibrations.Run(network='lenet_mnist', seed=0, held_out=HeldOut(samples=800, seed=5), training=one.training)
    )
    (tmp_path / 'calibration.json').write_text(json.dumps({'runs': [run_of_file]}))
    status, shown, _ = run(capsys, *words)
    assert status == 0 and 'note' not in shown.replace('note: the weights of the baseline are missing', '')
    for damaged in [1], {'runs': [{}]}, {'runs': [{**run_of_file, 'held_out': 800}]}:
        (tmp_path / 'calibration.json').write_text(json.dumps(damaged))
        status, _, error = run(capsys, *words)
        assert status == 2 and error.count('\n') == 1 and 'calibration.json is damaged' in error


@pytest.mark.parametrize(
    'words, message',
    [
        (['--leave', '1.5'], 'leave is 1.5: expected a share from 0 to 1'),
        (['--leave', '0.5', '--at', '0'], '--at is 0: expected 1 to 1, as exits are counted from 1'),
        (['--leave', '0.5', '--at', '2'], '--at is 2: expected 1 to 1, as exits are counted from 1'),
        ([], 'the target is empty: expected accuracy_loss'),
        (['--seconds', '1e-9'], 'no setting of thresholds fulfils seconds 1e-09: the nearest that can be fulfilled is'),
        (['--leave', '0.5', '--holdout', '5'], 'holdout is 5: expected 10 to 2990 of the 3000 training images'),
        (
            ['--leave', '0.5', '--guarantee', '0.9'],
            'a guarantee is one of accuracy: give the target an accuracy_loss',
        ),
    ],
)
def test_what_cannot_be_is_one_line(capsys, tmp_path, folder, words, message):
    out = str(tmp_path / 'thresholds.json')
    words = ['--holdout', '500', *words] if '--holdout' not in words else words
    status, _, error = run(capsys, 'calibrate', folder, *LENET, *words, '--out', out)
    assert status == 2 and error.startswith(f'branchynet: {message}') and error.count('\n') == 1
    assert not os.path.exists(out)


def test_a_target_is_checked_before_the_time_of_a_record():
    loaded = weights.load(os.path.join(COMMITTED, 'weights_lenet_mnist_seed0.npz'), 'lenet_mnist', 'code')
    loaded = loaded._replace(experiment=None)  # whose data are not asked for
    for target, guarantee, message in (
        (Target(leave=1.5), None, 'leave is 1.5: expected'),
        (Target(leave=0.5), 0.9, 'give the target an accuracy_loss'),
        (Target(), None, 'the target is empty'),
        (Target(macs=0), None, 'macs is 0: expected'),
    ):
        with pytest.raises(ValueError, match=message):
            weights.calibrate(loaded, target, weights.Options(guarantee=guarantee))


def test_weights_of_another_trainings_baseline_are_refused(capsys, folder):
    words = ['calibrate', folder, *LENET, '--leave', '0.5', '--holdout', '700']
    assert run(capsys, *words)[0] == 0
    other = os.path.join(ROOT, 'results', 'lenet_mnist_paper', 'weights_lenet_mnist_seed0_main.npz')
    shutil.copyfile(other, os.path.join(folder, 'weights_lenet_mnist_seed0_main.npz'))
    status, _, error = run(capsys, *words)
    assert status == 2 and error.count('\n') == 1
    assert 'weights_lenet_mnist_seed0_main.npz is not what its run wrote: expected SHA-256 ' in error


def test_a_baseline_beside_weights_whose_run_kept_none_is_refused(capsys, folder):
    path = os.path.join(folder, 'results.json')
    with open(path) as f:
        content = json.load(f)
    content['experiments']['lenet_mnist'][0]['training']['main_weights_sha256'] = None
    with open(path, 'w') as f:
        json.dump(content, f)
    status, _, error = run(capsys, 'calibrate', folder, *LENET, '--leave', '0.5', '--holdout', '700')
    assert status == 2 and error.count('\n') == 1
    assert 'weights_lenet_mnist_seed0_main.npz is of another run' in error


@pytest.mark.parametrize('seen,is_said', [(0, True), (None, False), (3, False)])
def test_a_guarantee_is_said_of_images_that_the_training_did_not_see(seen, is_said):
    found = mock.Mock(held_out_seen=seen, guarantee=0.9, target={'accuracy_loss': 0.5}, baseline='main')
    assert ('with probability 0.9' in ' '.join(weights.notes(found))) == is_said


def test_weights_that_are_missing_or_of_another_network_are_one_line(capsys):
    for words in (['nowhere.npz', *LENET], [COMMITTED, '--network', 'alex_cifar10']):
        status, _, error = run(capsys, 'calibrate', *words, '--leave', '0.5')
        assert status == 2 and error.count('\n') == 1


def test_a_split_of_one_class_is_refused():
    with pytest.raises(ValueError, match='^all 50 held-out samples have the label 3: expected some of every class$'):
        weights.hold_out(None, np.full(100, 3), 50, 0)
