"""Trains runs side by side, each in a process of its own: `branchynet reproduce --jobs N`.

A run leaves its checkpoint and its weights in the results folder. The caller goes on from there as after an
interruption: it finds nothing left to train and measures one run after another, so that no training disturbs the times.

The runs are no tasks of a pool of workers such as joblib's: when one worker is killed, such a pool loses all runs, and
Ctrl-C reaches its workers in the middle of their work. Here a run's process is started for it alone. It inherits the
environment variables of the bit profile, which are in place before it loads NumPy. It is in a session of its own, which
Ctrl-C does not reach. It ends by itself when its parent ends, in whatever way, because that closes its standard input.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, NamedTuple

from branchynet import cpu, determinism, provenance
from branchynet.experiments import runs
from branchynet.experiments.run_id import RunId

import chainer

_COMMAND = [sys.executable, '-c', 'from branchynet.experiments import jobs; jobs.work()']


class Job(NamedTuple):
    """A run to train.

    Attributes:
        experiment: a NetworkExperiment or a Comparison.
        run_id: of it.
    """

    experiment: Any
    run_id: RunId


def train(jobs: list[Job], setup: runs.Setup) -> dict[RunId, str]:
    """Trains runs, setup.jobs at a time. All have ended when it returns or raises.

    Every process has an equal share of the threads, at least one. Bits do not depend on their number.

    Args:
        jobs: the runs, in the order in which they begin.
        setup: the user's choices; the caller holds the lock of setup.out.

    Returns:
        The reason, in words, of each run that failed.
    """
    trainer = _Trainer(setup)
    pool = ThreadPoolExecutor(setup.jobs)
    try:
        reasons = list(pool.map(trainer.train, jobs))
    finally:  # also where the user interrupts
        trainer.end()
        pool.shutdown()
    return {job.run_id: reason for job, reason in zip(jobs, reasons) if reason}


class _Trainer:
    """Starts the processes of runs, and ends them."""

    def __init__(self, setup: runs.Setup) -> None:
        self._order = {
            'setup': setup._replace(device=str(setup.device)),
            'threads': max(1, cpu.threads.num_threads() // setup.jobs),
            'profile': determinism.profile_in_place(),
            'argv': [provenance.program(), *sys.argv[1:]],
            'terminal': sys.stderr.isatty(),
        }
        self._lock = threading.Lock()
        self._processes: list[subprocess.Popen] = []
        self._ended = False

    def train(self, job: Job) -> str:
        """Runs a job's process to its end; returns the reason if it failed, else ''."""
        with self._lock:
            if self._ended:
                return 'it was not started'
            process = subprocess.Popen(
                _COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._processes.append(process)
        _show(f'{job.run_id} ...')
        start, last = time.perf_counter(), self._follow(process, job)
        if process.returncode == 0:
            _show(f'{job.run_id}: trained in {(time.perf_counter() - start) / 60:.1f} min')
            return ''
        if not self._ended:
            _show(f'{job.run_id} failed')
        return last if process.returncode > 0 and last else f'its process ended with status {process.returncode}'

    def _follow(self, process: subprocess.Popen, job: Job) -> str:
        """Gives a process its order and shows its output; returns the last line when the process has ended."""
        assert process.stdin is not None and process.stdout is not None  # they are pipes
        last = ''
        with contextlib.suppress(BrokenPipeError), process:  # broken: it ended at once; its output says why
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(pickle.dumps({**self._order, 'job': job}))
                process.stdin.flush()
            last = _show_output(str(job.run_id), process.stdout)
            process.wait()  # before its standard input is closed
        return last

    def end(self) -> None:
        """Ends all processes. They leave every file whole, as files are written under other names and then renamed."""
        with self._lock:
            self._ended = True
            for process in self._processes:
                process.kill()  # does nothing where the process has ended


def _show_output(name: str, output: IO[bytes]) -> str:
    """Shows the lines of a process as they come, and its progress bar as one line; returns its last line."""
    from tqdm import tqdm

    last = ''
    with tqdm(bar_format='{desc}', leave=False, disable=None) as bar:
        for text in io.TextIOWrapper(output, 'utf-8', 'replace', newline=''):
            words = text.strip()
            if text.endswith('\r'):  # the next bar follows it
                bar.set_description_str(f'{name}: {words}'[: shutil.get_terminal_size().columns - 1])
            elif words:
                last = words
                _show(f'{name}: {words}')
    return last


def _show(line: str) -> None:
    """Prints a line above the progress bars."""
    from tqdm import tqdm

    tqdm.write(line)
    sys.stdout.flush()


def work() -> None:
    """Trains the run that standard input names: the work of a job's process."""
    order = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.argv = order['argv']  # the command that the run records
    sys.stdout = sys.stderr = _Output(order['terminal'])
    try:
        if order['profile']:
            determinism.fix(order['profile'], restart=False)
        cpu.threads.set_num_threads(order['threads'])
        _train(order['job'], order['setup'])
    except (OSError, ValueError) as e:
        print(e)
        sys.exit(1)


def _train(job: Job, setup: runs.Setup) -> None:
    device = chainer.get_device(setup.device)
    device.use()
    preset = job.experiment.presets[setup.preset]
    data = runs.cut(job.experiment.get_data(), preset.train_samples, preset.test_samples)
    job.experiment.train(job.run_id, preset, data, setup._replace(device=device))


def _end_with_parent() -> None:
    os.read(0, 1)  # standard input: returns when the parent ends or closes the pipe, as it writes nothing more
    os._exit(1)


class _Output(io.TextIOWrapper):
    """The output of a job's process, for the parent, whose terminal shows progress bars."""

    def __init__(self, terminal: bool) -> None:
        super().__init__(sys.stdout.buffer, 'utf-8', line_buffering=True)
        self._terminal = terminal

    def isatty(self) -> bool:
        """Whether the parent's standard error is a terminal."""
        return self._terminal
