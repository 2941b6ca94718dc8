"""Programs under mpiexec, for the tests of several processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import branchynet  # noqa: F401
from branchynet import parallel

import pytest


def command(ranks: int, words: Sequence[str]) -> list[str]:
    """The command line that runs a command on several ranks."""
    try:
        import mpi4py  # noqa: F401

        return parallel.mpiexec(ranks, words)
    except (ImportError, OSError) as e:
        if sys.platform == 'linux':  # where what the tests need brings both
            raise
        pytest.skip(str(e))


def run(ranks: int, words: Sequence[str], **options: Any) -> Any:
    """Runs a command on several ranks; returns subprocess's CompletedProcess."""
    return subprocess.run(command(ranks, words), capture_output=True, text=True, timeout=300, **options)
