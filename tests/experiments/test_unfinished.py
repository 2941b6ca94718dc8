"""`branchynet measure` of a training that has not ended, on a few real images."""

import os
import shutil

import branchynet  # noqa: F401
from branchynet import checkpoint, cli
from branchynet.experiments import lenet_mnist, results
from branchynet.experiments import measure as again

import pytest
from helpers import TINY


def interrupted(folder, epoch):
    """Begins a training in a folder, and ends it after an epoch."""
    keep, kept = checkpoint.keep_epoch, []

    def interrupt(path):
        keep(path)
        kept.append(path)
        if len(kept) == epoch:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        preset(patch, TINY)
        patch.setattr(checkpoint, 'keep_epoch', interrupt)
        assert reproduce(folder) == 130


@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
    """A folder with a training that was ended after its first joint epoch; tests read it."""
    folder = tmp_path_factory.mktemp('stopped') / 'begun'
    interrupted(folder, 3)
    return folder


@pytest.fixture
def begun(tiny, stopped, tmp_path):
    """A copy of that folder, for a test to change."""
    shutil.copytree(stopped, tmp_path / 'begun')
    return tmp_path / 'begun'


def preset(monkeypatch, amount):
    monkeypatch.setattr(lenet_mnist, 'EXPERIMENT', lenet_mnist.EXPERIMENT._replace(presets={'smoke': amount}))


def reproduce(out, *options):
    return cli.main(
        ['reproduce', '--only', 'lenet_mnist', '--preset', 'smoke', '--device', 'cpu', '--out', str(out), *options]
    )


def measure(folder, *options):
    return cli.main(['measure', str(folder), '--device', 'cpu', *options])


def run_of(folder):
    (run,) = results.read(str(folder)).experiments['lenet_mnist']
    return run


def test_an_unfinished_training_is_measured_like_one_of_fewer_epochs(begun, tmp_path, monkeypatch, capsys):
    so_far, fewer = (str(tmp_path / name) for name in ('so_far', 'fewer'))
    before = {path.name: path.read_bytes() for path in begun.iterdir()}
    assert measure(begun, '--out', so_far) == 0
    assert 'unfinished' in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in begun.iterdir()} == before
    report = (tmp_path / 'so_far' / 'report.md').read_text()
    assert '2 + 1 epochs (unfinished: the preset has 2 + 2)' in report
    assert again._epochs_more(results.read(so_far)) == ', and goes on to 2 joint epochs; these are 1'
    assert measure(so_far) == 0  # a results folder like any other
    assert cli.main(['retrain', so_far, '--epochs', '3', '--device', 'cpu']) == 0

    with monkeypatch.context() as patch:
        preset(patch, TINY._replace(joint_epochs=1))
        assert reproduce(fewer) == 0
    for name in 'weights_lenet_mnist_seed0.npz', 'weights_lenet_mnist_seed0_main.npz':
        assert (tmp_path / 'so_far' / name).read_bytes() == (tmp_path / 'fewer' / name).read_bytes()
    one, other = run_of(so_far), run_of(fewer)
    assert one.training.joint_epochs == 1 and one.training.joint.loss == other.training.joint.loss
    assert one.measurement.outputs == other.measurement.outputs

    assert reproduce(begun, '--resume') == 0  # the training goes on
    assert run_of(begun).training.joint_epochs == 2
    assert not list(begun.glob('*checkpoint*'))
    assert 'unfinished' not in (begun / 'report.md').read_text()


def test_a_training_that_has_not_ended_is_named_beside_those_that_have(begun, folder, capsys):
    checkpoint = 'checkpoint_lenet_mnist_seed{}.npz.epoch'
    shutil.copy(begun / checkpoint.format(0), folder / checkpoint.format(3))
    capsys.readouterr()
    assert measure(folder) == 0
    assert capsys.readouterr().err == f'{folder}: lenet_mnist_seed3 has not ended, and is not measured\n'


def test_what_cannot_be_measured_is_said_in_a_line(tiny, tmp_path, capsys):
    begun, out = tmp_path / 'begun', tmp_path / 'out'
    interrupted(begun, 2)
    capsys.readouterr()
    for folder, options, words in (
        (begun, ['--out', str(out)], 'no joint epoch has ended yet'),
        (begun, [], 'name another folder with --out'),
        (begun, ['--out', str(begun)], 'name another folder with --out'),
        (tmp_path / 'none', ['--out', str(out)], 'results.json'),
    ):
        assert measure(folder, *options) == 2
        error = capsys.readouterr().err
        assert words in error and error.count('\n') == 1
    assert not os.path.exists(str(out / 'results.json'))


def test_a_training_that_is_too_early_does_not_hinder_the_others(begun, tmp_path, capsys):
    out = tmp_path / 'out'
    interrupted(tmp_path / 'early', 1)
    early = begun / 'checkpoint_lenet_mnist_seed1.npz.epoch'
    (tmp_path / 'early' / 'checkpoint_lenet_mnist_seed0.npz.epoch').rename(early)
    assert measure(begun, '--out', str(out)) == 0
    assert f'{early}: no joint epoch has ended yet\n' in capsys.readouterr().out
    assert run_of(out).seed == 0


def test_results_of_other_trainings_are_not_overwritten(begun, tmp_path, capsys):
    out = tmp_path / 'out'
    assert measure(begun, '--out', str(out)) == 0
    assert measure(begun, '--out', str(out)) == 0  # so far again
    run = run_of(out)
    run.training.main.weights_sha256[0] = 'other'
    results.write(str(out), results.Results(preset='smoke', variant='code', experiments={'lenet_mnist': [run]}))
    before = {path: path.read_bytes() for path in out.rglob('*') if path.is_file()}
    capsys.readouterr()
    assert measure(begun, '--out', str(out)) == 2
    error = capsys.readouterr().err
    assert f'{out} holds the results of another training of lenet_mnist_seed0' in error and error.count('\n') == 1
    assert {path: path.read_bytes() for path in out.rglob('*') if path.is_file()} == before


def test_a_baseline_of_another_training_is_refused(begun, tmp_path, capsys):
    (begun / 'weights_lenet_mnist_seed0_main.npz').write_bytes(b'other')
    capsys.readouterr()
    assert measure(begun, '--out', str(tmp_path / 'out')) == 2
    assert 'weights_lenet_mnist_seed0_main.npz is not what its run wrote' in capsys.readouterr().err


def test_what_is_measured_into_is_not_another_unfinished_training(begun, tmp_path, capsys):
    other = tmp_path / 'other'
    shutil.copytree(begun, other)
    before = {path: path.read_bytes() for path in other.iterdir()}
    capsys.readouterr()
    assert measure(begun, '--out', str(other)) == 2
    error = capsys.readouterr().err
    assert f'{other} holds an unfinished training of lenet_mnist_seed0' in error and error.count('\n') == 1
    assert {path: path.read_bytes() for path in other.iterdir()} == before


def test_fewer_images_than_the_presets_make_no_preset(begun, tmp_path, monkeypatch, capsys):
    preset(monkeypatch, TINY._replace(train_samples=60000))
    capsys.readouterr()
    assert measure(begun, '--out', str(tmp_path / 'out')) == 2
    error = capsys.readouterr().err
    assert 'is of no preset of lenet_mnist' in error and error.count('\n') == 1
