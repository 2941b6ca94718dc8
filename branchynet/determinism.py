"""Bit-for-bit reproducible runs: bit profiles and seeds.

The bits of a training depend on the seeds, and on the kernels that libraries choose for the processor and the number
of threads. A *bit profile* fixes these choices by environment variables.

Example:
    from branchynet import determinism

    determinism.fix('portable')  # first in a script, because it may start the script again
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import random
import shlex
import stat
import subprocess
import sys
from typing import Any

from branchynet.devices import count_gpus

import chainer
import numpy as np
from chainer.backends import cuda

PROFILES = ['portable', 'fast']
_NUMPY = (getattr(np, '_core', None) or np.core)._multiarray_umath
_STARTED_AGAIN = 'BRANCHYNET_STARTED_AGAIN'  # the environment variable that marks a process started again

# The environment variables of a profile, which libraries read when they load; None stands for an unset variable.
# Profile fast gives the same bits on the same machine.
_FAST: dict[str, str | None] = {
    'PYTHONHASHSEED': '0',
    'CHAINER_SEED': '0',  # seeds cuDNN's dropout
    'CUBLAS_WORKSPACE_CONFIG': ':4096:8',
    'CUPY_TF32': None,
    'NVIDIA_TF32_OVERRIDE': '0',
}
# Profile portable gives the same bits on every x86-64 processor with AVX2 and FMA. AVX-512 kernels sum in another
# order, and so does OpenBLAS for another processor or number of threads.
_PORTABLE: dict[str, str | None] = {
    **_FAST,
    'OPENBLAS_CORETYPE': 'Haswell',
    'OPENBLAS_NUM_THREADS': '1',
    'OMP_NUM_THREADS': '1',
    'NPY_ENABLE_CPU_FEATURES': None,
    # Only names that this NumPy knows, because it ignores others. Xeon Phi's names are left out: each implies another
    # of the names.
    'NPY_DISABLE_CPU_FEATURES': ' '.join(
        name for name in _NUMPY.__cpu_dispatch__ if name.startswith(('AVX512', 'X86_V4')) and '_KN' not in name
    ),
    'ONEDNN_MAX_CPU_ISA': 'AVX2',
    'DNNL_MAX_CPU_ISA': None,
    'ONEDNN_DEFAULT_FPMATH_MODE': None,
    'DNNL_DEFAULT_FPMATH_MODE': None,
    'GLIBC_TUNABLES': None,  # it can make exp and log run without FMA
    'CHAINER_DTYPE': None,
}


def variables(profile: str) -> dict[str, str | None]:
    """Returns the environment variables of a profile.

    Args:
        profile: 'portable' or 'fast'.

    Returns:
        The value of each variable by its name; None for a variable that must not be set.

    Raises:
        ValueError: the profile does not exist, or this processor cannot run it.
    """
    if profile not in PROFILES:
        raise ValueError(f'profile is {profile}: expected {" or ".join(PROFILES)}')
    if profile == 'portable' and not _has_avx2():
        raise ValueError('profile is portable: expected fast on a processor that is not x86-64 with AVX2 and FMA')
    return dict(_PORTABLE if profile == 'portable' else _FAST)


def default_profile() -> str:
    """Returns 'portable' if this processor can run that profile, else 'fast'."""
    return 'portable' if _has_avx2() else 'fast'


def _has_avx2() -> bool:
    # A feature that the environment disables in NumPy counts: NumPy checks it when the process has started again.
    disabled = os.environ.get('NPY_DISABLE_CPU_FEATURES', '').replace(',', ' ').split()
    return platform.machine() in ('x86_64', 'AMD64') and all(
        _NUMPY.__cpu_features__.get(name) or name in disabled for name in ('AVX2', 'FMA3')
    )


def fix(profile: str, seed: int = 0, restart: bool = True) -> None:
    """Puts a profile in place and seeds all generators.

    If libraries have already loaded in another environment, the process starts again, once, and prints a line that
    says so.

    Args:
        profile: 'portable' or 'fast'.
        seed: the seed of all generators.
        restart: whether the process may start again; if not, a ValueError is raised instead.

    Raises:
        ValueError: the profile does not exist, or this processor cannot run it; or the process cannot start again (it
            is interactive, a worker, or runs a script that was read from a pipe); or it has started again, and
            something has reset the environment.
    """
    different = {name: value for name, value in variables(profile).items() if os.environ.get(name) != value}
    if different or _loaded_otherwise(profile):
        _start_again(profile, different, restart)
    os.environ.pop(_STARTED_AGAIN, None)
    for config in chainer.config, chainer.global_config:
        config.cudnn_deterministic = True
        config.autotune = False
    seed_generators(seed)


def _loaded_otherwise(profile: str) -> list[str]:
    """The libraries, in words, that loaded before the environment of the profile was set."""
    from branchynet.cpu import onednn

    found = ['random hashes (python -I and -E ignore PYTHONHASHSEED)'] * sys.flags.hash_randomization
    if profile == 'portable':
        found += [f"NumPy's {name}" for name in numpy_kernels() if name.startswith(('AVX512', 'X86_V4'))]
        found += [
            f'{library} for {processor} with {threads} threads'
            for library, processor, threads in _blas()
            if (library, processor, threads) != ('openblas', 'Haswell', 1)
        ]
        isa = (onednn.version() or {'isa': 'AVX2'})['isa']
        found += [f"oneDNN's {isa}"] * (isa != 'AVX2')
    return found


def _start_again(profile: str, different: dict[str, str | None], restart: bool) -> None:
    """Replaces this process by a new one with the profile's environment, or raises the ValueError of `fix`."""
    words = [f'{name}={shlex.quote(value)}' for name, value in different.items() if value is not None]
    words += [f'no {name}' for name, value in different.items() if value is None]
    wanted = ' '.join(words) or f'none of {", ".join(_loaded_otherwise(profile))}'
    if _STARTED_AGAIN in os.environ:
        raise ValueError(f'profile {profile} is not in place after starting again: expected {wanted}')
    if not (restart and _can_start_again()):
        raise ValueError(f'profile {profile} needs another environment: expected Python to be started with {wanted}')
    given = [f'{name}={shlex.quote(os.environ[name])}' for name in different if name in os.environ]
    replaced = f', in place of {" ".join(given)}' if given else ''
    print(f'Profile {profile}: starting again with {wanted}{replaced}', file=sys.stderr, flush=True)
    sys.stdout.flush()
    environment = {**os.environ, **different, _STARTED_AGAIN: '1'}
    os.execve(
        sys.executable,
        [sys.executable, *_command()],
        {name: value for name, value in environment.items() if value is not None},
    )


def _can_start_again() -> bool:
    """Whether this process is not interactive, not a worker process, and its script was not read from a pipe."""
    kept = os.path.exists(sys.argv[0]) and not stat.S_ISFIFO(os.stat(sys.argv[0]).st_mode)
    return (kept or (sys.argv[0] == '-c' and hasattr(sys, 'orig_argv'))) and not (
        hasattr(sys, 'ps1') or 'ipykernel' in sys.modules or multiprocessing.parent_process()
    )


def _command() -> list[str]:
    """The words of this process's command line after the interpreter."""
    if hasattr(sys, 'orig_argv'):  # Python 3.10
        return sys.orig_argv[1:]
    spec = sys.modules['__main__'].__spec__
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return flags + (['-m', spec.name] if spec else sys.argv[:1]) + sys.argv[1:]


def profile_in_place() -> str | None:
    """Returns the strictest profile whose environment this process has, or None."""
    for profile, wanted in ('portable', _PORTABLE), ('fast', _FAST):
        if all(os.environ.get(name) == value for name, value in wanted.items()) and not _loaded_otherwise(profile):
            return profile
    return None


def seed_generators(value: int) -> None:
    """Seeds the generators of Python and NumPy, and on the current GPU, if there is one, those of CuPy and cuDNN.

    Args:
        value: the seed.
    """
    random.seed(value)
    np.random.seed(value)
    if count_gpus():
        cuda.cupy.random.seed(value)
        if cuda.cudnn_enabled:
            # Chainer keeps one generator for cuDNN's dropout as long as the process lives, so it is reset in place.
            cuda.get_cudnn_dropout_states().__init__(None, value)


def numpy_kernels() -> list[str]:
    """Returns the names of the vector instruction sets beyond its baseline that NumPy uses in this process."""
    return [name for name in _NUMPY.__cpu_dispatch__ if _NUMPY.__cpu_features__.get(name)]


def _blas() -> list[tuple[str, str | None, int]]:
    """(library, processor that its kernels are for, threads) of every BLAS that has loaded."""
    return [
        (pool['internal_api'], pool['architecture'], pool['num_threads'])
        for pool in pools()
        if pool['internal_api'] != 'openmp'
    ]


def pools() -> list[dict[str, Any]]:
    """Returns a description of every loaded library that has a thread pool of its own, such as a BLAS.

    Returns:
        Dicts with the keys internal_api, version, architecture and num_threads of threadpoolctl; JSON-ready.
    """
    import threadpoolctl

    return [
        {key: pool.get(key) for key in ('internal_api', 'version', 'architecture', 'num_threads')}
        for pool in threadpoolctl.threadpool_info()
    ]
