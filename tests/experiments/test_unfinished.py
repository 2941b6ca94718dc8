"""`branchynet measure` of a training that has not ended, on a few real images."""

import os

import branchynet  # noqa: F401
from branchynet import checkpoint, cli
from branchynet.experiments import lenet_mnist, results, runs
from branchynet.experiments import measure as again

import pytest

TINY = runs.Preset(main_epochs=2, joint_epochs=2, batchsize=64, train_samples=256, test_samples=40)


@pytest.fixture
def interrupted(monkeypatch):
    """Begins a training in a folder, and ends it after an epoch: interrupted(folder, epoch)."""
    preset(monkeypatch, TINY)

    def begin(folder, epoch):
        keep, kept = checkpoint.keep_epoch, []

        def interrupt(path):
            keep(path)
            kept.append(path)
            if len(kept) == epoch:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, 'keep_epoch', interrupt)
            assert reproduce(folder) == 130

    return begin


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


def test_it_is_that_of_fewer_epochs(interrupted, tmp_path, monkeypatch, capsys):
    begun, so_far, fewer = (str(tmp_path / name) for name in ('begun', 'so_far', 'fewer'))
    interrupted(begun, 3)
    before = {name: (tmp_path / 'begun' / name).read_bytes() for name in os.listdir(begun)}
    assert measure(begun, '--out', so_far) == 0
    assert 'unfinished' in capsys.readouterr().out
    assert {name: (tmp_path / 'begun' / name).read_bytes() for name in os.listdir(begun)} == before
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
    assert not [name for name in os.listdir(begun) if 'checkpoint' in name]
    assert 'unfinished' not in (tmp_path / 'begun' / 'report.md').read_text()


def test_what_cannot_be_measured_is_said_in_a_line(interrupted, tmp_path, capsys):
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


def test_a_training_that_is_too_early_does_not_hinder_the_others(interrupted, tmp_path, capsys):
    begun, out = tmp_path / 'begun', tmp_path / 'out'
    interrupted(begun, 3)
    interrupted(tmp_path / 'early', 1)
    early = begun / 'checkpoint_lenet_mnist_seed1.npz.epoch'
    (tmp_path / 'early' / 'checkpoint_lenet_mnist_seed0.npz.epoch').rename(early)
    assert measure(begun, '--out', str(out)) == 0
    assert f'{early}: no joint epoch has ended yet\n' in capsys.readouterr().out
    assert run_of(out).seed == 0


def test_results_of_other_trainings_are_not_overwritten(interrupted, tmp_path, monkeypatch, capsys):
    begun, out = tmp_path / 'begun', tmp_path / 'out'
    interrupted(begun, 3)
    assert measure(begun, '--out', str(out)) == 0
    assert measure(begun, '--out', str(out)) == 0  # so far again
    run = run_of(out)
    run.training.main.weights_sha256[0] = 'other'
    results.write(str(out), results.Results(preset='smoke', variant='code', experiments={'lenet_mnist': [run]}))
    before = {path: path.read_bytes() for path in out.rglob('*') if path.is_file()}
    capsys.readouterr()
    assert measure(begun, '--out', str(out)) == 2
    error = capsys.readouterr().err
    assert f'{out} holds the results of another training (lenet_mnist, seed 0)' in error and error.count('\n') == 1
    assert {path: path.read_bytes() for path in out.rglob('*') if path.is_file()} == before


def test_a_baseline_of_another_training_is_refused(interrupted, tmp_path, capsys):
    begun = tmp_path / 'begun'
    interrupted(begun, 3)
    (begun / 'weights_lenet_mnist_seed0_main.npz').write_bytes(b'other')
    capsys.readouterr()
    assert measure(begun, '--out', str(tmp_path / 'out')) == 2
    assert 'weights_lenet_mnist_seed0_main.npz is not what its run wrote' in capsys.readouterr().err


def test_what_is_measured_into_is_not_another_unfinished_training(interrupted, tmp_path, capsys):
    begun, other = tmp_path / 'begun', tmp_path / 'other'
    interrupted(begun, 3)
    interrupted(other, 3)
    before = {path: path.read_bytes() for path in other.iterdir()}
    capsys.readouterr()
    assert measure(begun, '--out', str(other)) == 2
    error = capsys.readouterr().err
    assert f'{other} holds an unfinished training of lenet_mnist_seed0' in error and error.count('\n') == 1
    assert {path: path.read_bytes() for path in other.iterdir()} == before


def test_fewer_images_than_the_presets_make_no_preset(interrupted, tmp_path, monkeypatch, capsys):
    begun = tmp_path / 'begun'
    interrupted(begun, 3)
    preset(monkeypatch, TINY._replace(train_samples=None))
    capsys.readouterr()
    assert measure(begun, '--out', str(tmp_path / 'out')) == 2
    error = capsys.readouterr().err
    assert 'is of no preset of lenet_mnist' in error and error.count('\n') == 1
