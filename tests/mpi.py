"""Programs under mpiexec, for the tests of several processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest


def command(ranks: int, words: Sequence[str]) -> list[str]:
    """The command line that runs a command on several ranks; skips the test where there is no MPI."""
    pytest.importorskip('mpi4py', reason='mpi4py is not installed')
    mpiexec = shutil.which('mpiexec', path=os.path.join(sys.prefix, 'bin')) or shutil.which('mpiexec')
    if mpiexec is None:
        pytest.skip('mpiexec is not installed')
    version = subprocess.run([mpiexec, '--version'], capture_output=True, text=True).stdout
    options = ['--allow-run-as-root', '--oversubscribe'] if 'Open MPI' in version else []
    return [mpiexec, *options, '-n', str(ranks), *words]


def run(ranks: int, words: Sequence[str], **options: Any) -> Any:
    """Runs a command on several ranks; returns subprocess's CompletedProcess."""
    return subprocess.run(command(ranks, words), capture_output=True, text=True, timeout=300, **options)
