import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
INSTALL = str(ROOT / 'docker' / 'install.sh')


def call(command, **kwargs):
    return subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, **kwargs)


def checked(command, **kwargs):
    done = call(command, **kwargs)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    """A copy of the checkout to build in, without what is neither needed nor small."""
    folder = tmp_path_factory.mktemp('packaging') / 'checkout'
    shutil.copytree(str(ROOT), str(folder), ignore=shutil.ignore_patterns(
        '.*', 'build', '*.egg-info', '__pycache__', 'golden', 'results'))
    return folder


def test_only_the_package_is_built(copy, tmp_path):
    checked([sys.executable, 'setup.py', 'build_py', '--build-lib', tmp_path], cwd=str(copy))
    assert os.listdir(str(tmp_path)) == ['branchynet']
    built = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*') if path.is_file()}
    for folder in ['branchynet', 'branchynet/links', 'branchynet/networks', 'branchynet/datasets',
                   'branchynet/experiments']:
        assert folder + '/__init__.py' in built
    for path in (ROOT / 'experiments' / 'published').glob('*.csv'):
        assert 'branchynet/experiments/published/' + path.name in built
    assert {os.path.splitext(name)[1] for name in built} <= {'.py', '.toml', '.csv'}  # no data sets


@pytest.mark.slow  # half a minute, and it needs the package index
def test_the_documented_line_installs_into_a_fresh_environment(copy, tmp_path):
    python = tmp_path / 'bin' / 'python'
    checked([sys.executable, '-m', 'venv', tmp_path])
    constraints = {name: 'docker/build-constraints.txt' for name in ['PIP_CONSTRAINT', 'PIP_BUILD_CONSTRAINT']}
    checked([python, '-m', 'pip', 'install', '.'], cwd=str(copy), env={**os.environ, **constraints})
    checked([python, '-c', 'import branchynet.networks.lenet_mnist, branchynet.datasets, branchynet.experiments'],
            cwd=str(tmp_path))
    assert not list(tmp_path.glob('lib/python*/site-packages/datasets'))

    checked([python, '-m', 'pip', 'wheel', '--no-deps', '--wheel-dir', tmp_path, '.'], cwd=str(copy))
    wheel, = tmp_path.glob('branchynet-*.whl')
    names = zipfile.ZipFile(str(wheel)).namelist()
    assert {name.partition('/')[0].partition('-')[0] for name in names} == {'branchynet'}


def test_installed_names(tmp_path):
    checked([sys.executable, '-c', 'import branchynet.networks.lenet_mnist, branchynet.datasets.mnist'],
            cwd=str(tmp_path))
    checked([sys.executable, '-c', 'from networks import lenet_mnist; from datasets import mnist'], cwd=str(ROOT))


@pytest.mark.parametrize('arguments, said', [
    (['--cpu'], "unknown argument '--cpu', expected"),
    (['--venv'], 'expected --venv DIR'),
    (['--venv', ROOT / 'docker'], 'neither empty nor a virtual environment'),
])
def test_install_refuses(arguments, said):
    done = call([INSTALL, *arguments])
    assert done.returncode == 2
    assert said in done.stderr and done.stderr.count('\n') == 1


@pytest.mark.parametrize('script, said', [
    ('exit 127', 'no Python 3.9-3.13 with venv found'),  # as pyenv's shims do
    ('echo is Python 3.8; exit 1', 'is Python 3.8'),
    ('echo lacks the module ensurepip; exit 1', 'lacks the module ensurepip'),
])
def test_install_says_which_python_is_missing(script, said, tmp_path):
    for tool in ['bash', 'cat', 'dirname', 'ls']:
        (tmp_path / tool).symlink_to(shutil.which(tool))
    python = tmp_path / 'python3'
    python.write_text('#!/bin/sh\n' + script + '\n')
    python.chmod(0o755)
    done = call([INSTALL, '--venv', tmp_path / 'venv'], env={'PATH': str(tmp_path)})
    assert done.returncode == 2
    assert said in done.stderr and done.stderr.count('\n') == 1
    assert not (tmp_path / 'venv').exists()


def test_install_refuses_a_python_that_does_not_fit(tmp_path):
    python = tmp_path / 'python3'
    done = call([INSTALL, '--venv', tmp_path / 'venv'], env={**os.environ, 'PYTHON': str(python)})
    assert done.returncode == 2
    assert done.stderr == (
        'docker/install.sh: PYTHON=%s is not to be found, expected Python 3.9-3.13 with venv\n' % python)


def test_install_help():
    assert '--venv DIR' in checked([INSTALL, '--help'])


def test_help_installs_nothing_and_a_place_that_cannot_be_written_names_the_remedy():
    environment = {**os.environ, 'BRANCHYNET_VENV': '/dev/null/venv'}
    for words in ['--help'], ['--preset', 'smoke', '-h']:
        done = subprocess.run(['bash', str(ROOT / 'get_results.sh'), *words], capture_output=True, text=True,
                              env=environment)
        assert done.returncode == 0 and done.stderr == ''
        assert '--preset smoke|quick|paper' in done.stdout and 'Exit status' in done.stdout
    done = subprocess.run(['bash', str(ROOT / 'docker' / 'install.sh')], capture_output=True, text=True,
                          env=environment)
    assert done.returncode == 2
    assert done.stderr == ('docker/install.sh: /dev/null/venv cannot be made; name another folder in '
                           'BRANCHYNET_VENV\n')
