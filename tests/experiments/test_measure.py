"""`branchynet measure`, `retrain` and `results convert` on a run of a few real images."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import branchynet  # noqa: F401
from branchynet import cli, determinism, files
from branchynet.experiments import lenet_mnist, measure, results, runs

import attrs
import numpy as np
import pytest

WEIGHTS, MAIN = 'weights_lenet_mnist_seed0.npz', 'weights_lenet_mnist_seed0_main.npz'


def run_of(folder: Path) -> results.NetworkRun:
    return results.read(str(folder)).experiments['lenet_mnist'][0]


def figures(run: results.NetworkRun) -> list:
    return list(measure._figures(run))


def rewrite(folder: Path, change) -> None:
    """Changes the content of results.json."""
    path = folder / 'results.json'
    content = json.loads(path.read_text())
    change(content['experiments']['lenet_mnist'][0])
    path.write_text(json.dumps(content))


def run(*words: object) -> int:
    return cli.main([*map(str, words), '--device', 'cpu'])


def error_of(capsys) -> str:
    return capsys.readouterr().err


def test_a_folder_is_measured_again_from_its_weights_alone(folder, tmp_path, capsys):
    before = run_of(folder)
    bare = tmp_path / 'bare'
    bare.mkdir()
    for name in 'results.json', WEIGHTS, MAIN:
        shutil.copy(folder / name, bare)
    assert run('measure', bare) == 0
    assert 'accuracies and exits are identical' in capsys.readouterr().out
    after = run_of(bare)
    assert after.training == before.training
    assert figures(after) == figures(before) and after.measurement.outputs == before.measurement.outputs
    assert after.measurement.baseline.whole != before.measurement.baseline.whole  # times are taken again
    assert sorted(os.listdir(bare)) == sorted(os.listdir(folder))
    manifest = json.loads((bare / 'manifest.json').read_text())
    assert manifest['runs'][0]['weights_sha256'] == {
        WEIGHTS: before.training.weights_sha256,
        MAIN: before.training.main_weights_sha256,
    }
    assert {'environment', 'measured_in'} <= manifest['runs'][0].keys()
    capsys.readouterr()
    assert cli.main(['verify', str(folder), str(bare)]) == 0
    assert 'identical' in capsys.readouterr().out


def test_the_origin_of_the_training_stays(folder, tmp_path):
    rewrite(folder, lambda run: run['training']['environment'].update(commit='of the training'))
    before = (folder / 'results.json').read_bytes()
    assert run('measure', folder, '--out', tmp_path / 'out') == 0
    after = run_of(tmp_path / 'out')
    assert after.training.environment.commit == 'of the training'
    assert after.measurement.environment.commit != 'of the training'
    assert (folder / 'results.json').read_bytes() == before
    manifest = json.loads((tmp_path / 'out' / 'manifest.json').read_text())['runs'][0]
    assert manifest['environment']['commit'] == 'of the training' != manifest['measured_in']['commit']
    assert all(
        files.digest(str(tmp_path / 'out' / name)) == files.digest(str(folder / name)) for name in (WEIGHTS, MAIN)
    )


@pytest.mark.parametrize(
    'change',
    [
        lambda run: run['measurement']['baseline'].update(accuracy_percent=12.5),
        lambda run: run['measurement']['baseline'].update(accuracy_as_released_percent=12.5),
        lambda run: run['measurement']['sweep'][3].update(exit_percent=[12.5, 87.5]),
        lambda run: run['measurement']['sweep'].pop(),
        lambda run: run['measurement'].update(exit_accuracy_percent=[12.5, 12.5]),
        lambda run: run['measurement']['exit1_curve']['accuracy_percent'].__setitem__(7, 12.5),
        lambda run: run['measurement']['exit1_curve']['exit1_percent'].__setitem__(0, 0.5),
        lambda run: run['measurement']['measured']['published']['images'].update(both_right=41),
    ],
)
def test_other_accuracies_or_exits_are_status_1(folder, capsys, monkeypatch, change):
    measurement = run_of(folder).measurement  # taken once: every other test here takes it again
    monkeypatch.setattr(lenet_mnist.NetworkExperiment, 'measure', lambda *_: measurement)
    rewrite(folder, change)
    assert run('measure', folder) == 1
    captured = capsys.readouterr()
    assert 'was recorded' in captured.err and 'is measured' in captured.err and '--out' in captured.err


def test_other_accuracies_replace_nothing(folder, tmp_path, capsys):
    rewrite(folder, lambda run: run['measurement']['sweep'].pop())
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for itself in [], ['--out', folder], ['--out', folder / '..' / folder.name]:
        assert run('measure', folder, *itself) == 1
        assert 'was recorded' in capsys.readouterr().err
        assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert run('measure', folder, '--out', tmp_path / 'out') == 1
    assert 'accuracies and exits differ' in capsys.readouterr().out
    assert len(run_of(tmp_path / 'out').measurement.sweep) == 17


@pytest.mark.parametrize(
    'damage, words',
    [
        (lambda folder: (folder / MAIN).unlink(), MAIN + ' is missing'),
        (lambda folder: (folder / WEIGHTS).unlink(), WEIGHTS + ' is missing'),
        (lambda folder: (folder / WEIGHTS).write_bytes(b'x'), WEIGHTS + ' is not what its run wrote: expected SHA-256'),
        (
            lambda folder: (folder / MAIN).write_bytes((folder / WEIGHTS).read_bytes()),
            MAIN + ' is not what its run wrote',
        ),
        (lambda folder: (folder / 'results.json').unlink(), 'results.json is missing'),
        (
            lambda folder: rewrite(folder, lambda run: run['training'].update(data_sha256='other')),
            'was trained on data of SHA-256 other',
        ),
    ],
)
def test_what_cannot_be_measured_is_one_line_and_status_2(folder, capsys, damage, words):
    damage(folder)
    before = sorted(os.listdir(folder))
    capsys.readouterr()
    assert run('measure', folder) == 2
    error = error_of(capsys)
    assert words in error and error.count('\n') == 1
    assert sorted(os.listdir(folder)) == before


def test_without_data_nothing_is_measured(folder, tmp_path, monkeypatch, capsys):
    from branchynet.datasets import mnist

    monkeypatch.setenv('BRANCHYNET_DATA', str(tmp_path / 'data'))
    monkeypatch.setattr(mnist, 'FOLDER', str(tmp_path / 'nothing'))
    assert run('measure', folder) == 2
    error = error_of(capsys)
    assert 'train-images-idx3-ubyte.gz is missing' in error and error.count('\n') == 1


def test_weights_are_loaded_without_unpickling(folder, capsys):
    import numpy as np

    np.savez(folder / WEIGHTS, **{'models/0/0/W': np.array([print], dtype=object)})
    rewrite(folder, lambda run: run['training'].update(weights_sha256=files.digest(str(folder / WEIGHTS))))
    assert run('measure', folder) == 2
    error = error_of(capsys)
    assert WEIGHTS in error and error.count('\n') == 1


def test_a_folder_in_use_is_left_alone(folder, capsys):
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with files.lock(str(folder)):
        reproduce = ['reproduce', '--preset', 'smoke', '--only', 'lenet_mnist', '--out', folder]
        for command in (['measure', folder], reproduce):
            assert run(*command) == 2
            error = error_of(capsys)
            assert f'{folder} is in use by process {os.getpid()}' in error and error.count('\n') == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


@pytest.mark.parametrize('command', [['measure'], ['report', '--write']])
def test_results_are_read_when_no_other_process_can_write_them(folder, monkeypatch, command):
    lock = files.lock

    @contextlib.contextmanager
    def ends_meanwhile(path):
        rewrite(folder, lambda run: run['training']['environment'].update(commit='of the run that has ended'))
        (folder / 'manifest.json').unlink(missing_ok=True)
        with lock(path):
            yield

    monkeypatch.setattr(files, 'lock', ends_meanwhile)
    cli.main([*command, str(folder)])
    assert run_of(folder).training.environment.commit == 'of the run that has ended'
    assert 'of the run that has ended'[:12] in (folder / 'report.md').read_text()


def test_committed_folders_are_made_again(folder, tmp_path):
    root = tmp_path / 'results'
    shutil.copytree(folder, root / 'lenet_mnist_smoke')
    shutil.copytree(folder, root / 'local')
    assert measure.committed(str(root), str(tmp_path / 'out'), runs.chainer.get_device('@numpy')) == 0
    assert os.listdir(tmp_path / 'out') == ['lenet_mnist_smoke']
    assert figures(run_of(tmp_path / 'out' / 'lenet_mnist_smoke')) == figures(run_of(folder))
    (root / 'lenet_mnist_smoke' / MAIN).unlink()
    with pytest.raises(FileNotFoundError, match='the manifest lists it'):
        measure.committed(str(root), str(tmp_path / 'out'), runs.chainer.get_device('@numpy'))


def test_committed_results_without_weights_have_their_figures_made_again(folder, tmp_path, capsys):
    root = tmp_path / 'results'
    shutil.copytree(folder, root / 'lenet_mnist_smoke')
    committed = root / 'lenet_mnist_smoke'
    for name in WEIGHTS, MAIN:
        (committed / name).unlink()
    manifest = json.loads((committed / 'manifest.json').read_text())
    for name in WEIGHTS, MAIN:
        del manifest['sha256'][name]
    (committed / 'manifest.json').write_text(json.dumps(manifest))
    assert measure.committed(str(root), str(tmp_path / 'out'), runs.chainer.get_device('@numpy')) == 2
    printed = capsys.readouterr().out
    assert f'{WEIGHTS} was not kept' in printed and '0 of 1 results folders were measured again' in printed
    assert "'./get_results.sh --only lenet_mnist --preset smoke' trains the weights again" in printed
    assert sorted(os.listdir(tmp_path / 'out' / 'lenet_mnist_smoke')) == sorted(os.listdir(committed))


def test_results_of_other_trainings_are_not_overwritten(folder, tmp_path, capsys):
    out = tmp_path / 'out'
    shutil.copytree(folder, out)
    rewrite(out, lambda run: run['training']['joint']['weights_sha256'].__setitem__(1, 'other'))
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert run('measure', folder, '--out', out) == 2
    error = error_of(capsys)
    assert f'{out} holds the results of another training of lenet_mnist_seed0: name another' in error
    assert error.count('\n') == 1
    with pytest.raises(ValueError, match='holds the results of another training'):
        measure._write_again(str(folder), str(out))
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    rewrite(out, lambda run: run.update(seed=1))  # a seed that would be lost
    assert run('measure', folder, '--out', out) == 2
    assert 'another training of lenet_mnist_seed1' in error_of(capsys)


@pytest.mark.parametrize('there', ['weights', 'checkpoint'])
def test_files_of_another_training_are_not_overwritten(folder, tmp_path, capsys, there):
    """No results.json tells of them: of `branchynet train`, or of a training that was interrupted."""
    out = tmp_path / 'out'
    out.mkdir()
    file = out / (WEIGHTS if there == 'weights' else 'checkpoint_lenet_mnist_seed0.npz')
    file.write_bytes(b'of another training')
    assert run('measure', folder, '--out', out) == 2
    error = error_of(capsys)
    assert error.count('\n') == 1 and 'name another folder with --out' in error
    with pytest.raises(ValueError, match='name another folder with --out'):
        measure._write_again(str(folder), str(out))
    assert [path.name for path in out.iterdir()] == [file.name] and file.read_bytes() == b'of another training'


def test_a_measurement_that_fails_leaves_the_folder_as_it_was(folder, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    assert run('measure', folder, '--out', out) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(lenet_mnist.EXPERIMENT.__class__, 'measure', interrupted)
    assert run('measure', folder, '--out', out) == 130
    assert run('measure', folder, '--out', tmp_path / 'new') == 130
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    assert not (tmp_path / 'new').exists()


def test_committed_results_without_data_have_their_figures_made_again(folder, tmp_path, monkeypatch, capsys):
    root, out, data_of = tmp_path / 'results', tmp_path / 'out', runs.data_of
    for name in 'a', 'b':
        shutil.copytree(folder, root / name)
    rewrite(root / 'a', lambda run: run['training']['environment'].update(command='of a'))
    manifest = json.loads((root / 'a' / 'manifest.json').read_text())
    manifest['sha256']['results.json'] = files.digest(str(root / 'a' / 'results.json'))
    (root / 'a' / 'manifest.json').write_text(json.dumps(manifest))

    def missing(experiment, training, test_samples):
        if training.environment.command == 'of a':
            raise FileNotFoundError('the data is missing: get it so')
        return data_of(experiment, training, test_samples)

    monkeypatch.setattr(runs, 'data_of', missing)
    assert measure.committed(str(root), str(out), runs.chainer.get_device('@numpy')) == 2
    error = error_of(capsys)
    assert f'{root / "a"}: the data is missing: get it so; tables and figures were made from results.json' in error
    assert error.count('\n') == 1
    assert (out / 'a' / 'report.md').exists() and not list((out / 'a').glob('*.npz'))
    assert figures(run_of(out / 'b')) == figures(run_of(folder))


def test_a_command_makes_consecutive_seeds_alone(folder):
    found = results.read(str(folder))
    one = run_of(folder)
    seeds = [attrs.evolve(one, seed=seed) for seed in (0, 1, 4, 6, 7)]
    commands = measure._commands(attrs.evolve(found, experiments={'lenet_mnist': seeds}))
    assert [command.rpartition(' --preset smoke')[2] for command in commands] == [
        ' --seeds 0-1',
        ' --seeds 4-4',
        ' --seeds 6-7',
    ]


def test_committed_folders_hold_what_their_manifests_list_and_nothing_else():
    root = Path(__file__).parents[2] / 'results'
    manifests = [path for path in root.rglob('manifest.json') if measure.NOT_COMMITTED not in path.parts]
    assert manifests
    for manifest in manifests:
        found = {str(path.relative_to(manifest.parent)) for path in manifest.parent.rglob('*') if path.is_file()}
        assert found - {'manifest.json'} == set(json.loads(manifest.read_text())['sha256']), manifest.parent.name


@pytest.mark.parametrize('epochs', [1, 3, 4])
def test_the_first_epochs_trained_again_have_the_recorded_weights(folder, capsys, epochs):
    assert run('retrain', folder, '--epochs', epochs) == 0
    assert capsys.readouterr().out == f'lenet_mnist_seed0: identical ({epochs + 1} steps)\n'


@pytest.mark.slow
def test_the_command_trains_the_smoke_preset_again_to_the_same_bits(tmp_path):
    """In processes of their own, which start again with the bit profile of the recorded run in place."""

    def command(*words: object) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, '-m', 'branchynet.cli', *map(str, words), '--device', 'cpu'],
            capture_output=True,
            text=True,
        )

    out = tmp_path / 'out'
    done = command('reproduce', '--only', 'lenet_mnist', '--preset', 'smoke', '--out', out)
    assert done.returncode == 0, done.stderr
    training = run_of(out).training
    assert training.environment.profile == determinism.default_profile()
    done = command('retrain', out, '--epochs', 3)
    assert (done.returncode, done.stdout) == (0, 'lenet_mnist_seed0: identical (4 steps)\n'), done.stderr
    assert 'may differ' not in done.stderr
    rewrite(out, lambda run: run['training']['joint']['weights_sha256'].__setitem__(1, 'other'))
    done = command('retrain', out, '--epochs', 3)
    assert done.returncode == 1
    assert 'different; first in weights after epoch 2 of joint training' in done.stdout


def test_other_weights_are_told_by_retraining(folder, capsys):
    rewrite(folder, lambda run: run['training']['main'].update(weights_sha256=['other', 'weights']))
    assert run('retrain', folder) == 1
    assert 'different; first in weights after epoch 1 of main training' in capsys.readouterr().out
    assert run('retrain', folder, '--epochs', 5) == 2
    assert 'has 4 epochs: --epochs 5 is too many' in capsys.readouterr().err
    assert run('retrain', folder, '--seed', 1) == 2
    assert 'has no trained run of seed 1' in capsys.readouterr().err


def format1(folder: Path) -> None:
    """Writes a results.json as the tag results-1 did."""
    path = folder / 'results.json'
    content = json.loads(path.read_text())
    run = content['experiments']['lenet_mnist'][0]
    training, measurement = run['training'], run['measurement']
    for setting in [*measurement['sweep'], *measurement['measured'].values()]:
        for key in 'gain_allowed', 'efficiency':
            del setting[key]
    measured = [
        {
            key: measurement['measured'][name][key]
            for key in ('thresholds', 'exit_percent', 'accuracy_percent', 'released', 'whole', 'images')
        }
        for name in ('published', 'knee')
    ]
    old = {
        'seed': run['seed'],
        'main_training': training.pop('main'),
        'joint_training': training.pop('joint'),
        **training,
        **{
            key: measurement[key]
            for key in (
                'test_samples',
                'compiled',
                'baseline',
                'exit_accuracy_percent',
                'outputs',
                'exit1_curve',
                'sweep',
                'knee',
            )
        },
        'measured': measured,
    }
    path.write_text(
        json.dumps(
            {
                'format': 1,
                'preset': 'smoke',
                'variant': 'code',
                'experiments': {
                    'lenet_mnist': {'network': 'LeNet', 'seeds': [old]},
                    'figure6': {'title': 'Figure 6', 'seeds': []},
                },
            }
        )
    )


def test_results_of_format_1_are_refused_by_the_commands_name_and_converted(folder, capsys):
    before = run_of(folder)
    format1(folder)
    assert cli.main(['report', str(folder)]) == 2
    error = error_of(capsys)
    assert f"'branchynet results convert {folder}'" in error and error.count('\n') == 1
    assert cli.main(['results', 'convert', str(folder)]) == 0
    after = run_of(folder)
    assert after.training == before.training and figures(after) == figures(before)
    for name in 'published', 'knee':
        one, other = (getattr(run.measurement.measured, name) for run in (before, after))
        assert other.gain_whole == pytest.approx(one.gain_whole) and other.gain_allowed == one.gain_allowed
        assert other.composed_whole_ms == pytest.approx(one.composed_whole_ms)
    assert after.measurement.measured.fastest is None
    assert cli.main(['report', str(folder)]) == 0
    capsys.readouterr()
    assert cli.main(['results', 'convert', str(folder)]) == 0
    assert 'has the present format already' in capsys.readouterr().out


def test_a_conversion_that_fails_leaves_the_folder_as_it_was(folder, capsys):
    format1(folder)
    with open(folder / WEIGHTS, 'ab') as f:
        f.write(b'more')
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for _ in range(2):
        assert cli.main(['results', 'convert', str(folder)]) == 2
        error = error_of(capsys)
        assert f'{WEIGHTS} is not what its run wrote' in error and error.count('\n') == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_folder_of_format_1_is_measured(folder):
    before = run_of(folder)
    format1(folder)
    assert run('measure', folder) == 0
    after = run_of(folder)
    assert after.training == before.training and figures(after) == figures(before)
    assert after.measurement.measured.fastest is not None


def test_damaged_results_of_format_1_are_named(folder, capsys):
    format1(folder)
    content = json.loads((folder / 'results.json').read_text())
    del content['experiments']['lenet_mnist']['seeds'][0]['baseline']
    (folder / 'results.json').write_text(json.dumps(content))
    assert cli.main(['results', 'convert', str(folder)]) == 2
    error = error_of(capsys)
    assert 'results.json is damaged' in error and 'baseline' in error and error.count('\n') == 1


def test_results_that_were_edited_are_told_and_not_made_official(folder, tmp_path, capsys):
    rewrite(folder, lambda run: run['measurement']['measured']['published'].update(gain_whole=100.0))
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    page = tmp_path / 'page.md'
    page.write_text('<!-- tables: begin -->\n<!-- tables: end -->\n')
    assert cli.main(['report', str(folder)]) == 2
    assert f'results.json is not the file that {folder / "manifest.json"} lists: it was edited' in error_of(capsys)
    for options in ['--write'], ['--update', str(page)]:
        assert cli.main(['report', str(folder), *options]) == 2
        error = error_of(capsys)
        assert 'is not the file that' in error and error.count('\n') == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert page.read_text().count('\n') == 2


def test_a_damaged_manifest_is_told_in_a_line(folder, capsys):
    (folder / 'manifest.json').write_text('[]')
    assert cli.main(['report', str(folder)]) == 2
    error = error_of(capsys)
    assert 'manifest.json is not of format' in error and error.count('\n') == 1


def test_other_exits_do_not_pass_within_a_tolerance(folder, trained, capsys):
    """Shares of all exits together always have the same mean."""
    manifest = json.loads((folder / 'manifest.json').read_text())
    (step,) = [step for step in manifest['runs'][0]['steps'] if step['what'] == 'output sweep_exits']
    assert np.mean([row.exit_percent for row in run_of(folder).measurement.sweep], axis=0) / 100 == pytest.approx(
        step['mean']
    )
    step.update(sha256='other', mean=[step['mean'][0] - 0.1, step['mean'][1] + 0.1])
    (folder / 'other.json').write_text(json.dumps(manifest))
    assert cli.main(['verify', str(trained), str(folder / 'other.json'), '--tolerance', '0.09']) == 1
    assert cli.main(['verify', str(trained), str(folder / 'other.json'), '--tolerance', '0.11']) == 0
    assert 'numbers by up to 0.1' in capsys.readouterr().out


def test_a_file_is_no_results_folder(folder, capsys):
    assert cli.main(['report', str(folder / 'results.json')]) == 2
    assert (
        error_of(capsys)
        == f'branchynet: {folder / "results.json"} is a file: expected the folder of the results of a run\n'
    )
