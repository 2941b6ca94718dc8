import json
import subprocess
import sys

import pytest

import branchynet  # noqa: F401
from branchynet import cli
from branchynet.datasets import mnist


@pytest.mark.parametrize('command', [[], ['reproduce'], ['report'], ['verify'], ['data'], ['info']])
def test_help_everywhere(command, capsys):
    with pytest.raises(SystemExit) as info:
        cli.main(command + ['--help'])
    assert info.value.code == 0
    assert capsys.readouterr().out.startswith('usage: branchynet')


def test_a_command_is_needed(capsys):
    with pytest.raises(SystemExit) as info:
        cli.main([])
    assert info.value.code == 2


def test_data_says_what_is_there(capsys, tmp_path, monkeypatch):
    assert cli.main(['data']) == 0
    assert capsys.readouterr().out.count(' is whole') == len(mnist.FILES)
    monkeypatch.setenv('BRANCHYNET_DATA', str(tmp_path))
    monkeypatch.setattr(mnist, 'MIRRORS', [])
    assert cli.main(['data']) == 2
    out = capsys.readouterr().out
    assert out.count(' is missing: expected') == len(mnist.FILES)
    assert "branchynet data download mnist' gets" in out
    assert cli.main(['data', 'download', 'mnist']) == 2
    error = capsys.readouterr().err
    assert error.startswith('branchynet: ') and error.count('\n') == 1


def test_info_says_what_results_depend_on(capsys):
    assert cli.main(['info']) == 0
    info = json.loads(capsys.readouterr().out)
    assert {'python', 'numpy', 'chainer', 'cpu', 'cores', 'blas', 'gpus', 'commit', 'data_folder'} <= info.keys()
    assert info['chainer'].startswith('7.8')


def test_the_command_runs_as_a_module():
    run = subprocess.run([sys.executable, '-m', 'branchynet.cli', 'report', 'nowhere'],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    assert run.returncode == 2
    assert run.stderr.startswith('branchynet: nowhere') and run.stderr.count('\n') == 1


def test_importing_branchynet_imports_nothing_heavy():
    code = "import sys, branchynet; print([m for m in ('matplotlib', 'tqdm', 'dill', 'cupy') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, '-c', code], universal_newlines=True).strip() == '[]'
