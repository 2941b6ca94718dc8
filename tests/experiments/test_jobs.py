"""`branchynet reproduce --jobs N` on a few real images."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

import branchynet  # noqa: F401
from branchynet import checkpoint, cli
from branchynet.experiments import (
    NAMES,
    PRESETS,
    figures,
    get_experiment,
    jobs,
    loss_weights,
    network_experiment,
    results,
    runs,
)

import pytest
from helpers import needs_cifar10

# The command with its LeNet experiment cut down; the first word is the number of epochs.
CODE = """
import sys
from branchynet import cli
from branchynet.experiments import PRESETS, figures, lenet_mnist, network_experiment, runs
network_experiment.draw, figures.draw = lambda *_: [], lambda *_: figures.Drawn([])
epochs = int(sys.argv.pop(1))
preset = runs.Preset(epochs, epochs, batchsize=64, train_samples=256, test_samples=40)
lenet_mnist.EXPERIMENT = lenet_mnist.EXPERIMENT._replace(presets=dict.fromkeys(PRESETS, preset))
sys.exit(cli.main())
"""


@pytest.fixture
def tiny(tiny, monkeypatch):
    """The LeNet experiment, its presets all tiny, without figures."""
    monkeypatch.setattr(network_experiment, 'draw', lambda *_: [])
    monkeypatch.setattr(figures, 'draw', lambda *_: figures.Drawn([]))


def words(out: Path, *options: str) -> list[str]:
    return ['reproduce', '--only', 'lenet_mnist', '--preset', 'smoke', '--device', 'cpu', '--out', str(out), *options]


def command(epochs: int, *arguments: str) -> subprocess.Popen:
    """Starts the command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, '-c', CODE, str(epochs), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition: Callable[[], Any]) -> None:
    """Waits for something that comes soon."""
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    """The processes that the threads of a process have started."""
    return [
        int(child) for path in Path('/proc', str(pid), 'task').glob('*/children') for child in path.read_text().split()
    ]


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    return False


def test_seeds_side_by_side_have_the_bits_of_one_by_one(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('BRANCHYNET_NUM_THREADS', '5')
    assert cli.main(words(tmp_path / 'one', '--seeds', '3')) == 0
    capsys.readouterr()
    assert cli.main(words(tmp_path / 'two', '--seeds', '3', '--jobs', '2')) == 0
    printed = capsys.readouterr().out
    assert '\r' not in printed
    for seed in range(3):
        begins, ends = (printed.index(f'lenet_mnist_seed{seed}{what}') for what in (' ...\n', ': trained in '))
        assert begins < ends < printed.index(f'lenet_mnist_seed{seed} is measured ...')
    assert cli.main(['verify', str(tmp_path / 'one'), str(tmp_path / 'two')]) == 0
    identical = [f'lenet_mnist_seed{seed}: identical (10 steps)' for seed in range(3)]
    assert capsys.readouterr().out.splitlines() == identical
    assert sorted(os.listdir(tmp_path / 'one')) == sorted(os.listdir(tmp_path / 'two'))
    run = results.read(str(tmp_path / 'two')).experiments['lenet_mnist'][0]
    assert (run.training.environment.threads, run.measurement.environment.threads) == (2, 5)  # a job has its share
    assert run.training.environment.command == run.measurement.environment.command


def test_jobs_that_fail_are_named_and_the_others_finish(tiny, tmp_path, monkeypatch, capsys):
    follow = jobs._Trainer._follow

    def kill_seed_0(self, process, job):
        if job.run_id.seed == 0:
            process.kill()
            process.wait()
        return follow(self, process, job)

    monkeypatch.setattr(jobs._Trainer, '_follow', kill_seed_0)
    damaged = tmp_path / 'checkpoint_lenet_mnist_seed1.npz'
    damaged.write_bytes(b'no checkpoint')
    assert cli.main(words(tmp_path, '--seeds', '3', '--jobs', '2', '--resume')) == 2
    printed = capsys.readouterr().out
    assert printed.count('lenet_mnist_seed0 failed: its process ended with status -9\n') == 1
    assert printed.count(f'lenet_mnist_seed1 failed: {damaged} is not a whole checkpoint') == 1
    assert [run.seed for run in results.read(str(tmp_path)).experiments['lenet_mnist']] == [2]
    assert re.search(r'Claims: \d+ PASS, \d+ FAIL', printed)
    assert damaged.read_bytes() == b'no checkpoint'


def test_a_folder_stays_away_where_all_jobs_fail(tiny, tmp_path, monkeypatch, capsys):
    follow = jobs._Trainer._follow

    def follow_late(self, process, job):  # once it has ended, before it has its order
        while process.poll() is None:
            time.sleep(0.01)
        return follow(self, process, job)

    monkeypatch.setattr(jobs._Trainer, '_follow', follow_late)
    monkeypatch.setattr(jobs, '_COMMAND', [sys.executable, '-c', 'raise MemoryError("all is used")'])
    assert cli.main(words(tmp_path / 'out', '--seeds', '2', '--jobs', '2')) == 2
    reason = 'failed: MemoryError: all is used'
    assert capsys.readouterr().err.endswith(f'lenet_mnist_seed0 {reason}\nlenet_mnist_seed1 {reason}\n')
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_ctrl_c_ends_all_jobs_and_resume_goes_on_to_the_same_bits(tmp_path):
    whole = command(8, *words(tmp_path / 'whole', '--seeds', '2'))
    assert whole.wait() == 0
    out = tmp_path / 'out'
    first = command(8, *words(out, '--seeds', '2', '--jobs', '2'))
    saved = [out / f'checkpoint_lenet_mnist_seed{seed}.npz' for seed in range(2)]
    wait_until(lambda: all(path.exists() for path in saved))
    running = children(first.pid)
    first.send_signal(signal.SIGINT)
    assert first.wait(20) == 130
    _, error = first.communicate()
    assert error.splitlines()[-1] == 'branchynet: interrupted' and 'Traceback' not in error
    assert len(running) == 2 and not any(map(is_alive, running))
    assert not (out / 'results.json').exists()
    for path in saved:
        checkpoint._read(str(path))  # raises an error where it is not whole
    again = command(8, *words(out, '--seeds', '2', '--jobs', '2', '--resume'))
    assert again.wait() == 0
    assert cli.main(['verify', str(tmp_path / 'whole'), str(out)]) == 0


def test_no_job_outlives_its_parent(tmp_path):
    parent = command(10000, *words(tmp_path, '--seeds', '2', '--jobs', '2'))
    saved = [tmp_path / f'checkpoint_lenet_mnist_seed{seed}.npz' for seed in range(2)]
    wait_until(lambda: all(path.exists() for path in saved))
    running = children(parent.pid)
    parent.kill()
    parent.communicate()
    assert len(running) == 2
    wait_until(lambda: not any(map(is_alive, running)))


@pytest.mark.slow
@needs_cifar10
def test_parts_of_a_comparison_run_side_by_side(tmp_path, monkeypatch, capsys):
    experiment = loss_weights.EXPERIMENT
    preset = runs.Preset(main_epochs=1, joint_epochs=1, batchsize=16, train_samples=32, test_samples=20)
    monkeypatch.setattr(loss_weights, 'EXPERIMENT', experiment._replace(presets=dict.fromkeys(PRESETS, preset)))
    for name, jobs_of in ('one', '1'), ('two', '3'):
        options = ['--preset', 'smoke', '--device', 'cpu', '--jobs', jobs_of, '--out', str(tmp_path / name)]
        assert cli.main(['reproduce', '--only', 'loss_weights', *options]) == 0
    capsys.readouterr()
    assert cli.main(['verify', str(tmp_path / 'one'), str(tmp_path / 'two')]) == 0
    assert capsys.readouterr().out.count('identical') == len(experiment.parts)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_the_bar_of_every_job(monkeypatch, capsys):
    shown = Terminal()
    monkeypatch.setattr(sys, 'stderr', shown)
    output = b'\rtraining exits:  10%|#  | 1/10\rtraining exits:  20%|## | 2/10\r   \rfrom the one before\n'
    assert jobs._show_output('lenet_mnist_seed3', io.BytesIO(output)) == 'from the one before'
    assert 'lenet_mnist_seed3: training exits:  20%|## | 2/10' in shown.getvalue()
    assert shown.getvalue().endswith('\r')  # nothing of the bars stays
    assert capsys.readouterr().out == 'lenet_mnist_seed3: from the one before\n'


def test_experiments_can_be_sent_to_processes():
    import pickle

    for experiment in map(get_experiment, NAMES):
        assert pickle.loads(pickle.dumps(experiment)).name == experiment.name


@pytest.mark.parametrize('text', ['0', '-1', 'two', '1.5'])
def test_a_number_of_jobs_that_makes_no_sense_is_status_2(text, capsys):
    with pytest.raises(SystemExit) as info:
        cli.main(['reproduce', '--jobs', text])
    error = capsys.readouterr().err
    assert info.value.code == 2 and 'is not a number of jobs: give 1 or more' in error and error.count('\n') == 1
