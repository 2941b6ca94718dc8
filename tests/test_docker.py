import datetime
import importlib.util
import os
import pathlib
import platform
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / 'Dockerfile').read_text()
SCRIPTS = ['docker/build.sh', 'docker/shell.sh', 'docker/check.sh']

_spec = importlib.util.spec_from_file_location('replay', str(ROOT / 'docker' / 'replay.py'))
replay = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(replay)


def call(command, **kwargs):
    return subprocess.run(
        [str(word) for word in command], capture_output=True, stdin=subprocess.DEVNULL, text=True, **kwargs
    )


@pytest.fixture
def tools(tmp_path):
    """A folder to use as PATH: the system's commands that the scripts need, without docker and nvidia-smi."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    for tool in ['bash', 'cat', 'dirname', 'id', 'sed']:
        (folder / tool).symlink_to(shutil.which(tool))
    return folder


def stand_in(tools, name, script):
    (tools / name).write_text('#!/bin/sh\n' + script)
    (tools / name).chmod(0o755)


lints = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ('linux', 'x86_64'), reason='the lock has the lint tools for Linux on x86-64'
)


@lints
def test_hadolint_has_nothing_to_say():
    done = call([pathlib.Path(sys.executable).parent / 'hadolint', ROOT / 'Dockerfile'])
    assert (done.returncode, done.stdout + done.stderr) == (0, '')


@lints
def test_shellcheck_has_nothing_to_say():
    scripts = [ROOT / 'get_results.sh', ROOT / '.ci' / 'run', *ROOT.glob('docker/*.sh'), *ROOT.glob('tests/*.sh')]
    done = call([pathlib.Path(sys.executable).parent / 'shellcheck', *scripts])
    assert (done.returncode, done.stdout + done.stderr) == (0, '')


@pytest.mark.parametrize('script', SCRIPTS)
def test_help(script):
    done = call([ROOT / script, '--help'])
    assert done.returncode == 0 and done.stdout.startswith('usage: ' + script)


@pytest.mark.parametrize(
    'command, said',
    [
        (['docker/build.sh', 'tpu'], "unknown target 'tpu', expected cpu or gpu"),
        (['docker/shell.sh', '--gpu'], "unknown argument '--gpu', expected"),
        (['docker/check.sh', 'tpu'], "unknown argument 'tpu', expected"),
        (['docker/check.sh', 'cpu', 'gpu'], 'targets are cpu and gpu, expected one'),
        (['docker/check.sh', '--cache'], '--cache names nothing, expected --cache DIR'),
    ],
)
def test_wrong_arguments(command, said):
    done = call([ROOT / command[0], *command[1:]])
    assert done.returncode == 2
    assert said in done.stderr and done.stderr.count('\n') == 1


@pytest.mark.parametrize('script', ['docker/build.sh', 'docker/shell.sh'])
def test_no_docker(script, tools):
    done = call([ROOT / script, 'cpu'], env={'PATH': str(tools)})
    assert done.returncode == 2
    assert done.stderr == (
        'docker/build.sh: docker is not installed: install Docker 23 or newer; '
        'docker/check.sh checks the image without Docker\n'
    )


def test_no_docker_engine(tools):
    stand_in(tools, 'docker', 'echo "Cannot connect to the Docker daemon." >&2; exit 1\n')
    done = call([ROOT / 'docker' / 'build.sh'], env={'PATH': str(tools)})
    assert done.returncode == 2
    assert done.stderr == (
        'docker/build.sh: no Docker engine answers (Cannot connect to the Docker daemon.); '
        'docker/check.sh checks the image without one\n'
    )


def test_data_folder_that_is_not_there(tools, tmp_path):
    done = call([ROOT / 'docker' / 'shell.sh'], env={'PATH': str(tools), 'BRANCHYNET_DATA': str(tmp_path / 'no')})
    assert done.returncode == 2
    assert done.stderr == 'docker/shell.sh: BRANCHYNET_DATA is %s, expected a folder\n' % (tmp_path / 'no')


def test_the_variable_names_the_environment():
    """As in the image, whose environment lies outside the checkout."""
    done = call([ROOT / 'get_results.sh'], env={**os.environ, 'BRANCHYNET_VENV': str(ROOT / 'docker')})
    assert done.returncode == 2
    assert done.stderr == 'docker/install.sh: %s is neither empty nor a virtual environment\n' % (ROOT / 'docker')


@pytest.mark.parametrize('gpu', [False, True])
def test_what_docker_is_asked_for(gpu, tools, tmp_path):
    stand_in(tools, 'docker', '[ "$1" = info ] || echo "$@"\n[ "$1" != image ]\n')  # no image yet
    if gpu:
        stand_in(tools, 'nvidia-smi', 'exit 0\n')
    done = call(
        [ROOT / 'docker' / 'shell.sh', './get_results.sh', '--preset', 'smoke'],
        env={'PATH': str(tools), 'BRANCHYNET_DATA': str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    build, run = done.stdout.splitlines()
    target = 'gpu' if gpu else 'cpu'
    assert f'--target {target} --tag branchynet:{target}' in build
    assert '--build-arg SOURCE_DATE_EPOCH=1' in build
    assert f'--user {os.getuid()}:{os.getgid()}' in run
    assert f'--volume {ROOT}:/branchynet' in run and f'--volume {tmp_path}:/data' in run
    assert ('--gpus all' in run) == gpu
    assert run.endswith(f' branchynet:{target} ./get_results.sh --preset smoke')


def test_without_root_or_docker_the_steps_are_known():
    """Every instruction of the Dockerfile is one that docker/check.sh replays."""
    steps = replay.steps_of(replay.parse(DOCKERFILE), 'gpu')
    assert {name for name, _ in steps} <= {'FROM', 'ARG', 'ENV', 'WORKDIR', 'USER', 'COPY', 'RUN', 'CMD'}
    assert [rest for name, rest in steps if name == 'USER'] == ['1000', '0', '1000']


def test_both_targets_stand_on_one_base():
    instructions = replay.parse(DOCKERFILE)
    cpu, gpu = (replay.steps_of(instructions, target) for target in ['cpu', 'gpu'])
    assert gpu[: len(cpu)] == cpu
    assert cpu[0] == ('FROM', 'debian:bookworm-slim@${BASE_DIGEST}')
    with pytest.raises(ValueError, match='target is tpu: expected one of cpu, gpu'):
        replay.steps_of(instructions, 'tpu')


def test_arguments_pin_base_and_packages():
    values = replay.global_arguments(replay.parse(DOCKERFILE), {'SNAPSHOT': '20250101T000000Z'})
    assert values['DEBIAN'].endswith('/debian/20250101T000000Z')
    values = replay.global_arguments(replay.parse(DOCKERFILE), {})
    assert len(values['BASE_DIGEST']) == len('sha256:') + 64
    day = datetime.datetime.strptime(values['SNAPSHOT'] + '+0000', '%Y%m%dT%H%M%SZ%z')
    assert values['SOURCE_DATE_EPOCH'] == str(int(day.timestamp()))


def test_parse():
    text = '# note\nARG A=1\nFROM x AS y\nRUN --mount=a \\\n    # why\n    one \\\n  && two\n'
    assert replay.parse(text) == [('ARG', 'A=1'), ('FROM', 'x AS y'), ('RUN', '--mount=a one && two')]


@pytest.mark.parametrize(
    'name, rest',
    [
        ('ADD', '. /x'),
        ('ARG', 'A=1'),
        ('COPY', 'a b'),
        ('COPY', '--link . .'),
        ('RUN', '--mount=type=ssh true'),
        ('FROM', 'alpine'),
    ],
)
def test_what_the_replay_does_not_know_it_refuses(name, rest, tmp_path):
    image = replay.Image(tmp_path, tmp_path, {})
    with pytest.raises(ValueError, match='expected'):
        image.step(name, rest)


def test_environment_of_the_image(tmp_path):
    image = replay.Image(tmp_path, tmp_path, {'DAY': '7'})
    for name, rest in [('ARG', 'DAY'), ('ENV', 'A=/opt/a B="x y"'), ('ENV', 'PATH=$A/bin:$PATH C=${DAY}')]:
        image.step(name, rest)
    assert image.env['PATH'].startswith('/opt/a/bin:/usr/local/sbin:')
    assert (image.env['B'], image.env['C']) == ('x y', '7')


def test_the_steps_reach_registries_as_this_machine_does(monkeypatch):
    settings = {'https_proxy': 'http://a:1', 'PIP_PROXY': 'http://b:2', 'PIP_CERT': '/c', 'PIP_FIND_LINKS': '/x'}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    found = replay.host_settings()
    assert {name: found.get(name) for name in settings} == {**settings, 'PIP_FIND_LINKS': None}


@pytest.mark.parametrize(
    'path, ignored',
    [
        ('setup.py', False),
        ('.git', True),
        ('.git/HEAD', True),
        ('.gitignore', False),
        ('a/b/__pycache__/c.pyc', True),
        ('__pycache__', True),
        ('results/local/results.json', True),
        ('results/lenet_mnist_quick/report.md', False),
        ('datasets/data/cifar10', True),
        ('datasets/data/mnist/train-images-idx3-ubyte.gz', False),
        ('builder', False),
    ],
)
def test_dockerignore(path, ignored):
    assert replay.is_ignored(path, (ROOT / '.dockerignore').read_text().splitlines()) == ignored


@pytest.mark.skipif(not (ROOT / '.git').exists(), reason='not a git checkout')
def test_the_image_holds_what_git_holds():
    taken = set(replay.files_of_checkout())
    tracked = {path for path in call(['git', 'ls-files'], cwd=str(ROOT)).stdout.splitlines() if (ROOT / path).exists()}
    assert tracked <= taken
    listed = ['git', 'ls-files', '--others', '--ignored', '--exclude-standard']
    assert not taken & set(call(listed, cwd=str(ROOT)).stdout.splitlines())
