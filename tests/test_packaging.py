import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import branchynet
from branchynet.datasets import mnist

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
INSTALL = str(ROOT / 'docker' / 'install.sh')


def call(command, **kwargs):
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, **kwargs)


def checked(command, **kwargs):
    done = call(command, **kwargs)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    """A copy of the checkout to build in, without large folders that a build does not need."""
    folder = tmp_path_factory.mktemp('packaging') / 'checkout'
    shutil.copytree(
        str(ROOT),
        str(folder),
        ignore=shutil.ignore_patterns('.*', 'build', '*.egg-info', '__pycache__', 'golden', 'results'),
    )
    return folder


def test_only_the_package_is_built(copy, tmp_path):
    checked([sys.executable, 'setup.py', 'build_py', '--build-lib', tmp_path], cwd=str(copy))
    assert os.listdir(str(tmp_path)) == ['branchynet']
    built = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*') if path.is_file()}
    for folder in [
        'branchynet',
        'branchynet/links',
        'branchynet/networks',
        'branchynet/datasets',
        'branchynet/experiments',
        'branchynet/benchmarks',
    ]:
        assert folder + '/__init__.py' in built
    for path in (ROOT / 'experiments' / 'published').glob('*.csv'):
        assert 'branchynet/experiments/published/' + path.name in built
    assert {name for name in built if name.endswith('.gz')} == {  # MNIST, and no other data set
        f'branchynet/datasets/data/mnist/{name}' for name in mnist.FILES
    }
    for path in (ROOT / 'experiments' / 'templates').iterdir():
        assert f'branchynet/experiments/templates/{path.name}' in built
    assert {os.path.splitext(name)[1] for name in built} <= {'.py', '.toml', '.csv', '.gz', '.html', '.css'}


@pytest.mark.slow  # a minute, and it needs the package index
def test_the_documented_line_installs_into_a_fresh_environment(copy, tmp_path):
    checked([sys.executable, '-m', 'venv', tmp_path])
    line = re.search(r'^ {4}(pip install "setuptools<81".*)$', (ROOT / 'README.md').read_text(), re.MULTILINE).group(1)
    bin_folder = tmp_path / 'bin'
    environment = {**os.environ, 'PATH': f'{bin_folder}:{os.environ["PATH"]}'}
    checked(['bash', '-c', line], cwd=str(copy), env=environment)
    data = 'from branchynet.datasets import mnist; print(mnist.get_data()[0].shape)'
    checked(
        [bin_folder / 'python', '-c', 'import branchynet.networks.lenet_mnist, branchynet.experiments'],
        cwd=str(tmp_path),
    )
    said = checked([bin_folder / 'python', '-c', data], cwd=str(tmp_path), env={**environment, 'HOME': str(tmp_path)})
    assert said == '(60000, 1, 28, 28)\n'
    assert not list(tmp_path.glob('lib/python*/site-packages/datasets'))

    checked([bin_folder / 'pip', 'wheel', '--no-deps', '--wheel-dir', tmp_path, '.'], cwd=str(copy))
    (wheel,) = tmp_path.glob('branchynet-*.whl')
    names = zipfile.ZipFile(str(wheel)).namelist()
    assert {name.partition('/')[0].partition('-')[0] for name in names} == {'branchynet'}
    assert wheel.name.startswith(f'branchynet-{branchynet.__version__}-')


def setup_in(environment, found, tmp_path):
    """Runs setup.py as pip does where only some packages are installed: `environment` {name: version} where pip
    installs, `found` where it builds."""
    purelib = tmp_path / 'purelib'
    for name, version in environment.items():
        folder = purelib / f'{name}-{version}.dist-info'
        folder.mkdir(parents=True)
        (folder / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')
    code = (
        'import importlib.util, sysconfig, sys; real = importlib.util.find_spec; '
        f'importlib.util.find_spec = lambda name: name in {found!r} if name == "pkg_resources" else real(name); '
        f'sysconfig.get_path = lambda name: {str(purelib)!r}; '
        'import setuptools; setuptools.setup = lambda **kwargs: print("built"); '
        f'exec(open({str(ROOT / "setup.py")!r}).read())'
    )
    return call([sys.executable, '-c', code], env={**os.environ, 'PIP_BUILD_TRACKER': 'x'})


@pytest.mark.parametrize(
    'environment, found, builds',
    [
        ({'pip': '24.2'}, (), False),  # as a fresh one of Python 3.13
        ({'pip': '23.2.1', 'setuptools': '65.5.0'}, (), False),  # as one of Python 3.11
        ({'pip': '25.3', 'setuptools': '65.5.0', 'wheel': '0.48'}, (), False),
        ({'pip': '25.3'}, ('pkg_resources',), True),  # with a build constraint
        ({'pip': '25.3', 'chainer': '7.8.1'}, (), True),
        ({'pip': '23.0.1', 'setuptools': '58.1.0'}, (), True),  # as one of Python 3.9: it builds in place
        ({'pip': '24.2', 'setuptools': '65.5.0', 'wheel': '0.48'}, (), True),
    ],
)
def test_plain_pip_is_told_what_to_do_where_chainer_would_not_build(environment, found, builds, tmp_path):
    done = setup_in(environment, found, tmp_path)
    if builds:
        assert (done.returncode, done.stdout) == (0, 'built\n'), done.stderr
    else:
        assert done.returncode == 1
        assert done.stderr.startswith('Chainer must be installed first') and done.stderr.count('\n') == 1
        line = re.search('Run: (pip install .*)', done.stderr).group(1)
        assert f'    {line}\n' in (ROOT / 'README.md').read_text()


SAME = '; '.join(
    [
        'import sys',
        # An editable install's finder would hide missing modules.
        "sys.meta_path[:] = [finder for finder in sys.meta_path if 'editable' not in repr(finder).lower()]",
        *[
            f'import {first}.{module}, {second}.{module}; assert {first}.{module} is {second}.{module}'
            for name, module in [
                ('networks', 'lenet_mnist'),
                ('datasets', 'mnist'),
                ('experiments', 'claims'),
                ('benchmarks', 'networks'),
            ]
            for first, second in [(name, f'branchynet.{name}')]
        ],
        'from experiments import claims; import branchynet; assert claims is branchynet.experiments.claims',
        'print(branchynet.networks.lenet_mnist.__file__)',
    ]
)


@pytest.mark.parametrize('first', ['', 'import branchynet; ', 'import branchynet.networks.lenet_mnist; '])
def test_both_names_are_one_module_in_a_checkout_that_is_not_installed(copy, first):
    code = SAME.replace('import networks', first + 'import networks', 1)
    said = checked([sys.executable, '-c', code], cwd=str(copy))
    assert said == f'{copy / "networks" / "lenet_mnist.py"}\n'


def test_the_tests_are_collected_without_cifar10(tmp_path):
    command = [sys.executable, '-m', 'pytest', '--collect-only', '-q', '-p', 'no:cacheprovider', 'tests/test_timing.py']
    said = checked(command, cwd=str(ROOT), env={**os.environ, 'BRANCHYNET_DATA': str(tmp_path)})
    assert 'tests/test_timing.py::' in said


def test_another_package_may_be_named_datasets(tmp_path):
    (tmp_path / 'datasets').mkdir()
    (tmp_path / 'datasets' / '__init__.py').touch()
    (tmp_path / 'datasets' / 'mnist.py').write_text('MINE = True')
    code = 'import branchynet.datasets.mnist, datasets.mnist; print(datasets.mnist.MINE)'
    assert checked([sys.executable, '-c', code], cwd=str(tmp_path)) == 'True\n'


def test_installed_names(tmp_path):
    checked(
        [sys.executable, '-c', 'import branchynet.networks.lenet_mnist, branchynet.datasets.mnist'], cwd=str(tmp_path)
    )
    checked([sys.executable, '-c', 'from networks import lenet_mnist; from datasets import mnist'], cwd=str(ROOT))


@pytest.mark.parametrize(
    'arguments, said',
    [
        (['--cpu'], "unknown argument '--cpu', expected"),
        (['--venv'], 'expected --venv DIR'),
        (['--venv', ROOT / 'docker'], 'neither empty nor a virtual environment'),
    ],
)
def test_install_refuses(arguments, said):
    done = call([INSTALL, *arguments])
    assert done.returncode == 2
    assert said in done.stderr and done.stderr.count('\n') == 1


@pytest.mark.parametrize(
    'script, said',
    [
        ('exit 127', 'no Python 3.9-3.13 with venv found'),  # as pyenv's shims do
        ('echo is Python 3.8; exit 1', 'is Python 3.8'),
        ('echo lacks the module ensurepip; exit 1', 'lacks the module ensurepip'),
    ],
)
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
        f'docker/install.sh: PYTHON={python} is not to be found, expected Python 3.9-3.13 with venv\n'
    )


def test_install_help():
    assert '--venv DIR' in checked([INSTALL, '--help'])


def test_help_installs_nothing_and_a_place_that_cannot_be_written_names_the_remedy():
    environment = {**os.environ, 'BRANCHYNET_VENV': '/dev/null/venv'}
    for words in ['--help'], ['--preset', 'smoke', '-h']:
        done = subprocess.run(
            ['bash', str(ROOT / 'get_results.sh'), *words], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0 and done.stderr == ''
        assert '--preset smoke|quick|reduced|paper' in done.stdout and 'Exit status' in done.stdout
    done = subprocess.run(
        ['bash', str(ROOT / 'docker' / 'install.sh')], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 2
    assert done.stderr == ('docker/install.sh: /dev/null/venv cannot be made; name another folder in BRANCHYNET_VENV\n')


PYTHON = """#!/usr/bin/env bash
case "$*" in
    -) echo 3.11.0 ;; # asked for its version
    -c*) cat >/dev/null && echo hash ;;
    "-m venv"*) mkdir -p "${!#}/bin" && cp "$0" "${!#}/bin/python" ;;
    *"pip "*install*) $INSTALLS ;;
esac
"""


@pytest.fixture
def stand_in(tmp_path):
    """In place of Python: what `docker/install.sh` calls, where the variable INSTALLS is what installs packages."""
    python = tmp_path / 'python'
    python.write_text(PYTHON)
    python.chmod(0o755)
    return {**os.environ, 'PYTHON': str(python), 'BRANCHYNET_VENV': str(tmp_path / 'venv')}


@pytest.mark.parametrize('script', [ROOT / 'get_results.sh', INSTALL])
def test_an_installation_that_fails_is_status_2_and_a_line(stand_in, script):
    done = call([script], env={**stand_in, 'INSTALLS': 'false'})
    assert done.returncode == 2
    assert done.stderr.startswith('docker/install.sh: pip could not install into ') and done.stderr.count('\n') == 1


def test_an_empty_stamp_does_not_count_as_installed(stand_in, tmp_path):
    stamp = tmp_path / 'venv' / 'branchynet-installed'
    for _ in range(2):
        done = call([INSTALL], env={**stand_in, 'INSTALLS': 'true'})
        assert done.returncode == 0, done.stderr
        assert stamp.read_text() == 'hash \n'
        stamp.write_text('')
        (tmp_path / 'venv' / 'pyvenv.cfg').touch()
