"""`branchynet results merge` on runs of a few real images."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Callable

import branchynet  # noqa: F401
from branchynet import cli, files
from branchynet.experiments import PRESETS, lenet_mnist, results, runs

import pytest

TINY = runs.Preset(main_epochs=1, joint_epochs=1, batchsize=64, train_samples=128, test_samples=40)


def reproduce(out: Path, *options: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lenet_mnist, 'EXPERIMENT', lenet_mnist.EXPERIMENT._replace(presets=dict.fromkeys(PRESETS, TINY)))
        words = ['--only', 'lenet_mnist', '--preset', 'smoke', '--device', 'cpu', '--out', str(out), *options]
        return cli.main(['reproduce', *words])


def merge(*folders: Path, out: Path) -> int:
    return cli.main(['results', 'merge', *map(str, folders), '--out', str(out)])


def change(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edits the content of a folder's results.json."""
    path = folder / 'results.json'
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def edit_run(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Sets a value in the first run of LeNet."""

    def edit(content: dict[str, Any]) -> None:
        place = content['experiments']['lenet_mnist'][0]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return edit


def as_of_paper(content: dict[str, Any]) -> None:
    content['variant'] = 'paper'
    edit_run('training', 'variant', value='paper')(content)


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> dict[str, Path]:
    """Folders with seeds 0 and 1, and with seed 2."""
    folder = tmp_path_factory.mktemp('trained')
    seeds = {'2': folder / 'first', '2-2': folder / 'more'}
    for option, out in seeds.items():
        assert reproduce(out, '--seeds', option) == 0
    return {out.name: out for out in seeds.values()}


@pytest.fixture
def more(trained, tmp_path) -> Path:
    """A copy of the folder with seed 2, without its figures."""
    copy = tmp_path / 'more'
    copy.mkdir()
    for path in trained['more'].iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    return copy


@pytest.mark.slow
def test_joined_seeds_are_those_of_one_run(trained, tmp_path, capsys):
    out, together = tmp_path / 'out', tmp_path / 'together'
    assert reproduce(together, '--seeds', '3') == 0
    capsys.readouterr()
    assert merge(trained['more'], trained['first'], out=out) == 0
    assert 'mean ± std (count) of 3 seeds' in capsys.readouterr().out
    assert cli.main(['verify', str(together), str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == [f'lenet_mnist_seed{seed}: identical (8 steps)' for seed in range(3)]
    assert sorted(os.listdir(out)) == sorted(os.listdir(together))
    assert sorted(os.listdir(out / 'figures')) == sorted(os.listdir(together / 'figures'))
    assert cli.main(['measure', str(out), '--out', str(tmp_path / 'again'), '--device', 'cpu']) == 0


def test_every_run_keeps_its_origin(trained, more, tmp_path):
    change(more, edit_run('training', 'environment', 'commit', value='another'))
    out = tmp_path / 'out'
    assert merge(trained['first'], more, out=out) == 0
    *_, last = results.read(str(out)).experiments['lenet_mnist']
    assert last == results.read(str(more)).experiments['lenet_mnist'][0]
    manifest = json.loads((out / 'manifest.json').read_text())
    commits = [run['environment']['commit'] for run in manifest['runs']]
    assert commits[2] == 'another' and 'another' not in commits[:2]
    assert 'another' in (out / 'report.md').read_text()
    weights = 'weights_lenet_mnist_seed2.npz'
    assert files.digest(str(out / weights)) == files.digest(str(more / weights)) == manifest['sha256'][weights]


@pytest.mark.parametrize(
    'edit, words',
    [
        (lambda content: content.update(preset='quick'), 'has preset quick, but {first} has smoke'),
        (lambda content: content.update(variant='paper'), 'has variant code: expected paper, as the results'),
        (as_of_paper, 'has variant paper, but {first} has code'),
        (edit_run('training', 'batchsize', value=32), 'has lenet_mnist with batchsize 32, but {first} has 64'),
        (edit_run('training', 'data_sha256', value='other'), 'has lenet_mnist with data_sha256 other, but {first} '),
        (edit_run('training', 'device', value='@cupy:0'), 'has lenet_mnist with device @cupy:0, but {first}'),
        (edit_run('measurement', 'test_samples', value=30), 'has lenet_mnist with test_samples 30, but {first} has 40'),
        (
            edit_run('measurement', 'device', value='@cupy:0'),
            'has lenet_mnist with device of the measurement @cupy:0, but {first} has @numpy',
        ),
        (edit_run('measurement', 'compiled', value=False), 'has lenet_mnist with compiled False, but {first} has True'),
        (edit_run('seed', value=1), '{first} and {more} both hold lenet_mnist_seed1'),
        (lambda content: content.update(format=99), 'not of format 2'),
        (
            edit_run('training', 'weights_sha256', value='other'),
            'npz is not what its run wrote: expected SHA-256 other',
        ),
    ],
)
def test_what_does_not_belong_together_is_not_joined(trained, more, tmp_path, capsys, edit, words):
    change(more, edit)
    assert merge(trained['first'], more, out=tmp_path / 'out') == 2
    error = capsys.readouterr().err
    assert words.format(first=trained['first'], more=more) in error and error.count('\n') == 1
    assert not (tmp_path / 'out').exists()


def test_results_are_not_replaced(trained, more, capsys):
    before = {path.name: path.read_bytes() for path in more.iterdir()}
    assert merge(trained['first'], more, out=more) == 2
    assert f'{more} holds results' in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in more.iterdir()} == before


def test_weights_of_another_training_are_not_replaced(trained, more, tmp_path, capsys):
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'weights_lenet_mnist_seed2.npz').write_bytes(b'of another training')
    assert merge(trained['first'], more, out=out) == 2
    error = capsys.readouterr().err
    assert 'weights_lenet_mnist_seed2.npz is of another training' in error and error.count('\n') == 1
    assert [path.read_bytes() for path in out.iterdir()] == [b'of another training']


def test_weights_that_were_not_kept_stay_away_and_are_named(trained, more, tmp_path, capsys):
    (more / 'weights_lenet_mnist_seed2_main.npz').unlink()
    assert merge(trained['first'], more, out=tmp_path / 'out') == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == 'Without weights that the folders do not hold: weights_lenet_mnist_seed2_main.npz'
    assert sorted(path.name for path in (tmp_path / 'out').glob('*seed2*')) == ['weights_lenet_mnist_seed2.npz']


@pytest.mark.parametrize(
    'words, message',
    [
        (['merge', 'a', 'b'], "'branchynet results merge' needs --out"),
        (['merge', 'a', '--out', 'b'], 'one folder is given'),
        (['merge', 'a', './a', '--out', 'b'], 'a folder is given twice among a, ./a'),
        (['merge', 'a', 'b', '--out', ''], '--out is empty'),
        (['merge', 'nowhere', 'neither', '--out', 'out'], 'is missing'),
        (['convert', 'a', '--out', 'b'], "--out goes with 'branchynet results merge' only"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(words, message, capsys):
    assert cli.main(['results', *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1
