import json
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap
from unittest import mock

import branchynet  # noqa: F401
from branchynet import cli, determinism

import numpy as np
import pytest
from helpers import needs_cifar10

HERE = os.path.dirname(os.path.abspath(__file__))
PORTABLE = pytest.mark.skipif(determinism.default_profile() != 'portable', reason='needs x86-64 with AVX2')
SCRIPT = """
import random, sys
from branchynet import determinism
determinism.fix(sys.argv[1])
print(sys.argv[1:], determinism.profile_in_place(), hash('a'))
"""


def execute(folder, before, *words, options=(), **variables):
    """Runs SCRIPT after other lines, with these arguments and some variables of the environment more."""
    path = folder / 'script.py'
    path.write_text(before + SCRIPT)
    return subprocess.run(
        [sys.executable, '-W', 'ignore', *options, str(path), *words],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def script(tmp_path):
    """Executes SCRIPT alone and returns its output."""

    def run(*words, **variables):
        done = execute(tmp_path, '', *words, **variables)
        return done.stdout, done.stderr

    return run


@PORTABLE
def test_a_profile_starts_the_command_again_once_and_says_so(script):
    out, error = script('portable', 'two words', OPENBLAS_CORETYPE='Sky lake', NPY_DISABLE_CPU_FEATURES='AVX512_ICL')
    assert out.startswith("['portable', 'two words'] portable ")
    assert error.startswith('Profile portable: starting again with ') and error.count('\n') == 1
    assert "in place of OPENBLAS_CORETYPE='Sky lake' NPY_DISABLE_CPU_FEATURES=AVX512_ICL" in error
    variables = {name: value for name, value in determinism.variables('portable').items() if value is not None}
    assert script('portable', 'two words', **variables) == (out, '')  # nothing is left to change, hash seed included


@PORTABLE
def test_what_sets_the_environment_back_does_not_start_it_again_for_ever(tmp_path):
    error = execute(tmp_path, "import os\nos.environ['OMP_NUM_THREADS'] = '2'\n", 'portable').stderr
    assert error.splitlines()[0].startswith('Profile portable: starting again with ')
    assert error.splitlines()[-1] == (
        'ValueError: profile portable is not in place after starting again: expected OMP_NUM_THREADS=1'
    )


@PORTABLE
@pytest.mark.onednn
def test_variables_that_came_too_late_do_not_pass_for_a_profile(tmp_path):
    late = """
        import os
        import numpy as np
        from branchynet import determinism
        if 'BRANCHYNET_STARTED_AGAIN' not in os.environ:
            for name, value in determinism.variables('portable').items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})
            assert determinism.profile_in_place() is None
        """
    done = execute(tmp_path, textwrap.dedent(late), 'portable')
    assert done.returncode == 0, done.stderr
    assert done.stderr.count('starting again') == 1
    assert "['portable'] portable " in done.stdout


def test_random_hashes_are_told(tmp_path):
    error = execute(tmp_path, '', 'fast', options=['-I']).stderr
    assert 'expected none of random hashes (python -I and -E ignore PYTHONHASHSEED)' in error.splitlines()[-1]


@pytest.mark.parametrize('words', [['-'], []])
def test_a_script_that_is_gone_does_not_start_again(words):
    done = subprocess.run(
        [sys.executable, *words],
        input="from branchynet import determinism\ndeterminism.fix('fast')",
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONHASHSEED': '1'},
    )
    assert done.returncode == 1
    assert 'expected Python to be started with PYTHONHASHSEED=0' in done.stderr.splitlines()[-1]


def test_a_worker_does_not_start_again(monkeypatch):
    monkeypatch.setattr('multiprocessing.parent_process', lambda: 'a process')
    monkeypatch.setenv('PYTHONHASHSEED', '1')
    with pytest.raises(ValueError, match='expected Python to be started with .*PYTHONHASHSEED=0'):
        determinism.fix('fast')


def test_avx2_that_the_environment_hides_is_still_there(monkeypatch):
    profile = determinism.default_profile()
    monkeypatch.setattr(
        determinism, '_NUMPY', mock.Mock(__cpu_features__={**determinism._NUMPY.__cpu_features__, 'AVX2': False})
    )
    assert determinism.default_profile() == 'fast'
    monkeypatch.setenv('NPY_DISABLE_CPU_FEATURES', 'AVX512F,AVX2')
    assert determinism.default_profile() == profile


def test_fast_keeps_the_kernels_of_the_machine(script):
    out, error = script('fast', ONEDNN_MAX_CPU_ISA='SSE41', CUPY_TF32='1')
    assert out.startswith("['fast'] fast ")
    assert 'ONEDNN' not in error and 'no CUPY_TF32, in place of CUPY_TF32=1' in error


def test_profiles_that_are_not_there_are_named(monkeypatch):
    with pytest.raises(ValueError, match='profile is exact: expected portable or fast'):
        determinism.fix('exact')
    monkeypatch.setattr('platform.machine', lambda: 'arm64')
    assert determinism.default_profile() == 'fast'
    with pytest.raises(ValueError, match='expected fast on a processor that is not'):
        determinism.fix('portable')


def test_an_interactive_session_does_not_start_again(monkeypatch):
    monkeypatch.setattr(sys, 'ps1', '>>> ', raising=False)
    monkeypatch.setenv('PYTHONHASHSEED', '1')
    with pytest.raises(ValueError, match='expected Python to be started with .*PYTHONHASHSEED=0'):
        determinism.fix('fast')


def test_a_seed_fixes_every_generator():
    import random

    draws = []
    for _ in range(2):
        determinism.seed_generators(3)
        draws.append((random.random(), np.random.rand()))
    assert draws[0] == draws[1]


def cut_down(path, prefix=(), **variables):
    """Runs a few steps of all networks under the portable profile."""
    environment = {**os.environ, **variables, **determinism.variables('portable')}
    subprocess.run(
        [*prefix, sys.executable, os.path.join(HERE, 'cut_down.py'), str(path)],
        check=True,
        env={name: value for name, value in environment.items() if value is not None},
    )
    return str(path)


@PORTABLE
@pytest.mark.slow
@pytest.mark.onednn
@pytest.mark.parametrize('model', ['Haswell', 'EPYC'])
def test_portable_bits_are_those_of_another_processor(tmp_path, model, capsys):
    if not shutil.which('qemu-x86_64'):
        pytest.skip('qemu-x86_64 is not to be found (Debian: apt-get install qemu-user)')
    here = cut_down(tmp_path / 'here.json')
    there = cut_down(tmp_path / 'there.json', ['qemu-x86_64', '-cpu', model], BRANCHYNET_NUM_THREADS='3')
    assert cli.main(['verify', here, there]) == 0, capsys.readouterr().out
    found, expected = (json.loads(pathlib.Path(path).read_text())['runs'][0] for path in (there, here))
    assert found['environment']['numpy_kernels'] == expected['environment']['numpy_kernels']


@pytest.mark.slow
@pytest.mark.onednn
@pytest.mark.parametrize(
    'network', ['small', 'lenet', *(pytest.param(name, marks=needs_cifar10) for name in ('alexnet', 'resnet'))]
)
def test_a_training_that_is_killed_goes_on_to_the_same_bits(network):
    run = subprocess.run(
        [sys.executable, os.path.join(HERE, 'kill_and_resume.py'), '--network', network, '--kills', '3'],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.returncode == 0, run.stdout
