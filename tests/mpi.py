"""Programs under mpiexec, for the tests of several processes."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Any

import branchynet  # noqa: F401
from branchynet import parallel

import pytest


def command(ranks: int, words: Sequence[str]) -> list[str]:
    """The command line that runs a command on several ranks; skips the test where there is no MPI."""
    pytest.importorskip('mpi4py', reason='mpi4py is not installed')
    try:
        return parallel.mpiexec(ranks, words)
    except OSError as e:
        pytest.skip(str(e))


def run(ranks: int, words: Sequence[str], **options: Any) -> Any:
    """Runs a command on several ranks; returns subprocess's CompletedProcess."""
    return subprocess.run(command(ranks, words), capture_output=True, text=True, timeout=300, **options)
