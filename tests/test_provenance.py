import subprocess
import sys
import types

import branchynet  # noqa: F401
from branchynet import cli, provenance

import chainer
import pytest


def test_the_hash_of_a_net_is_of_weights_and_statistics():
    first = chainer.links.BatchNormalization(2)
    second = first.copy('copy')
    assert provenance.sha256_of_net(first) == provenance.sha256_of_net(second)
    second.avg_mean[0] = 1
    assert provenance.sha256_of_net(first) != provenance.sha256_of_net(second)


def test_a_dirty_tree_is_refused_where_a_clean_one_is_required(monkeypatch, capsys):
    monkeypatch.setattr(provenance, '_tree', lambda out: 'dirty')
    assert cli.main(['reproduce', '--preset', 'smoke', '--require-clean']) == 2
    error = capsys.readouterr().err
    assert 'the tree is dirty: commit or remove' in error and error.count('\n') == 1


@pytest.mark.parametrize(
    'program, module, expected',
    [
        ('/home/a/.venv/bin/branchynet', None, 'branchynet measure DIR'),
        ('/home/a/branchynet/__main__.py', 'branchynet.__main__', 'python -m branchynet measure DIR'),
        ('/home/a/experiments/baseline.py', 'experiments.baseline', 'python -m experiments.baseline measure DIR'),
    ],
)
def test_a_command_is_recorded_as_it_is_typed_on_any_machine(monkeypatch, program, module, expected):
    spec = module and types.SimpleNamespace(name=module)
    monkeypatch.setattr(sys.modules['__main__'], '__spec__', spec)
    monkeypatch.setattr(sys, 'argv', [program, 'measure', 'DIR'])
    assert provenance.environment()['command'] == expected


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout that holds the package's files, and a function that runs git in it."""

    def git(*words):
        subprocess.run(
            ['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *words],
            cwd=tmp_path,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    for name in 'branchynet/provenance.py', 'results/run/results.json', 'README.md':
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('a')
    monkeypatch.setattr(provenance, '__file__', str(tmp_path / 'branchynet' / 'provenance.py'))
    git('init', '-q')
    git('add', '.')
    git('commit', '-q', '-m', 'a')
    return tmp_path, git


@pytest.mark.parametrize(
    'name, expected',
    [
        ('branchynet/provenance.py', 'dirty'),
        ('README.md', 'dirty'),
        ('branchynet/new.py', 'dirty'),
        ('outside/results.json', 'dirty'),
        ('output/results.json', 'dirty'),
        ('out/figures/figure.png', 'clean'),
        ('out/results.json', 'clean'),
        ('results/run/results.json', 'clean'),
        ('results/new/results.json', 'clean'),
    ],
)
def test_what_runs_write_does_not_make_a_tree_dirty(checkout, name, expected):
    folder, _ = checkout
    assert provenance.tree(str(folder / 'out')) == provenance.tree() == 'clean'
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text('b')
    assert provenance.tree(str(folder / 'out')) == expected


def test_another_projects_commit_is_not_taken_for_this_ones(checkout):
    _, git = checkout
    assert len(provenance.commit()) == 40
    git('rm', '-q', '--cached', 'branchynet/provenance.py')  # as where it is installed into a checkout's .venv
    assert provenance.commit() is provenance.tree() is None


@pytest.mark.parametrize(
    'script, why',
    [
        (None, 'git cannot be run: No such file or directory'),
        ('echo "fatal: detected dubious ownership in repository" >&2; exit 128', 'detected dubious ownership'),
        (
            'case $1 in ls-files) echo name;; *) echo "fatal: index file corrupt" >&2; exit 128;; esac',
            'index file corrupt',
        ),
        ('case $1 in ls-files|rev-parse) echo name;; *) exit 3;; esac', 'git status failed: status 3'),
    ],
)
def test_where_git_fails_a_tree_is_never_clean(checkout, monkeypatch, capsys, script, why):
    folder, _ = checkout
    tools = folder / 'tools'
    tools.mkdir()
    if script is not None:
        (tools / 'git').write_text(f'#!/bin/sh\n{script}\n')
        (tools / 'git').chmod(0o755)
    monkeypatch.setenv('PATH', f'{tools}')
    assert provenance.tree() == 'unknown' and provenance.tree(str(folder / 'out')) == 'unknown'
    assert cli.main(['reproduce', '--preset', 'smoke', '--require-clean', '--out', str(folder / 'out')]) == 2
    error = capsys.readouterr().err
    assert why in error and 'is unknown' in error and error.count('\n') == 1


def test_a_clean_tree_passes_and_code_outside_a_checkout_does_not(checkout, tmp_path_factory, monkeypatch):
    folder, _ = checkout
    provenance.require_clean(str(folder / 'out'))
    provenance.require_clean(str(tmp_path_factory.mktemp('elsewhere')))
    monkeypatch.setattr(provenance, '__file__', str(tmp_path_factory.mktemp('none') / 'provenance.py'))
    with pytest.raises(ValueError, match='needs a git checkout'):
        provenance.require_clean()
