"""What the bits of a run depend on: its bit profile and its seeds.

    from branchynet import determinism
    determinism.fix('portable')   # first of all: it may start the script again
"""
import multiprocessing
import os
import platform
import random
import shlex
import stat
import subprocess
import sys

from branchynet import _chainer  # noqa: F401
import chainer
from chainer.backends import cuda
import numpy as np

from branchynet.devices import count_gpus

PROFILES = ['portable', 'fast']
_NUMPY = (getattr(np, '_core', None) or np.core)._multiarray_umath
_STARTED_AGAIN = 'BRANCHYNET_STARTED_AGAIN'  # the environment variable of a process that did

# Environment variables of the profiles, which libraries read when they load; None: not set. fast: the same bits
# on the same machine.
_FAST = {
    'PYTHONHASHSEED': '0',
    'CHAINER_SEED': '0',  # of cuDNN's dropout
    'CUBLAS_WORKSPACE_CONFIG': ':4096:8',
    'CUPY_TF32': None,
    'NVIDIA_TF32_OVERRIDE': '0',
}
# portable: the same bits on every x86-64 processor with AVX2 and FMA. Kernels for AVX-512 add up in another order,
# as do OpenBLAS's for another processor or number of threads.
_PORTABLE = {
    **_FAST,
    'OPENBLAS_CORETYPE': 'Haswell',
    'OPENBLAS_NUM_THREADS': '1',
    'OMP_NUM_THREADS': '1',
    'NPY_ENABLE_CPU_FEATURES': None,
    # The names that this NumPy has for them: others it would ignore. Xeon Phi's imply another of the names.
    'NPY_DISABLE_CPU_FEATURES': ' '.join(
        name for name in _NUMPY.__cpu_dispatch__ if name.startswith(('AVX512', 'X86_V4')) and '_KN' not in name),
    'ONEDNN_MAX_CPU_ISA': 'AVX2',
    'DNNL_MAX_CPU_ISA': None,
    'ONEDNN_DEFAULT_FPMATH_MODE': None,
    'DNNL_DEFAULT_FPMATH_MODE': None,
    'GLIBC_TUNABLES': None,  # they can take FMA from exp and log
    'CHAINER_DTYPE': None,
}


def variables(profile):
    """The environment variables of a profile: a dict from name to value, None for those that are not set.

    Raises:
        ValueError: there is no such profile, or this processor cannot have it.
    """
    if profile not in PROFILES:
        raise ValueError('profile is %s: expected %s' % (profile, ' or '.join(PROFILES)))
    if profile == 'portable' and not _has_avx2():
        raise ValueError('profile is portable: expected fast on a processor that is not x86-64 with AVX2 and FMA')
    return dict(_PORTABLE if profile == 'portable' else _FAST)


def default_profile():
    """'portable' where the processor can have it, else 'fast'."""
    return 'portable' if _has_avx2() else 'fast'


def _has_avx2():
    # What the environment takes from NumPy, the processor may have: after starting again NumPy says so itself.
    taken = os.environ.get('NPY_DISABLE_CPU_FEATURES', '').replace(',', ' ').split()
    return platform.machine() in ('x86_64', 'AMD64') and all(
        _NUMPY.__cpu_features__.get(name) or name in taken for name in ('AVX2', 'FMA3'))


def fix(profile, seed=0, restart=True):
    """Puts a profile in place and seeds all generators.

    Where libraries have loaded in another environment, this process starts again, once, and says so; with
    ``restart=False`` that is a ValueError.

    Raises:
        ValueError: there is no such profile here; this process cannot start again, as a session, a worker or a
            script that is read from a pipe cannot; or it did, and something set the environment back.
    """
    different = {name: value for name, value in variables(profile).items() if os.environ.get(name) != value}
    if different or _loaded_otherwise(profile):
        _start_again(profile, different, restart)
    os.environ.pop(_STARTED_AGAIN, None)
    for config in chainer.config, chainer.global_config:
        config.cudnn_deterministic = True
        config.autotune = False
    seed_generators(seed)


def _loaded_otherwise(profile):
    """What has loaded before the environment of a profile was there; empty if nothing has."""
    from branchynet.cpu import onednn
    found = ['random hashes (python -I and -E ignore PYTHONHASHSEED)'] * sys.flags.hash_randomization
    if profile == 'portable':
        found += ["NumPy's " + name for name in numpy_kernels() if name.startswith(('AVX512', 'X86_V4'))]
        found += ['%s for %s with %s threads' % blas for blas in _blas() if blas != ('openblas', 'Haswell', 1)]
        isa = (onednn.version() or {'isa': 'AVX2'})['isa']
        found += ["oneDNN's " + isa] * (isa != 'AVX2')
    return found


def _start_again(profile, different, restart):
    words = ['%s=%s' % (name, shlex.quote(value)) for name, value in different.items() if value is not None]
    words += ['no ' + name for name, value in different.items() if value is None]
    wanted = ' '.join(words) or 'none of ' + ', '.join(_loaded_otherwise(profile))
    if _STARTED_AGAIN in os.environ:
        raise ValueError('profile %s is not in place after starting again: expected %s' % (profile, wanted))
    if not (restart and _can_start_again()):
        raise ValueError('profile %s needs another environment: expected Python to be started with %s' % (
            profile, wanted))
    given = ['%s=%s' % (name, shlex.quote(os.environ[name])) for name in different if name in os.environ]
    print('Profile %s: starting again with %s%s' % (
        profile, wanted, ', in place of ' + ' '.join(given) if given else ''), file=sys.stderr, flush=True)
    sys.stdout.flush()
    environment = {**os.environ, **different, _STARTED_AGAIN: '1'}
    os.execve(sys.executable, [sys.executable] + _command(),
              {name: value for name, value in environment.items() if value is not None})


def _can_start_again():
    """Not a session or a worker, nor a script that is gone once it was read."""
    kept = os.path.exists(sys.argv[0]) and not stat.S_ISFIFO(os.stat(sys.argv[0]).st_mode)
    return (kept or sys.argv[0] == '-c' and hasattr(sys, 'orig_argv')) and not (
        hasattr(sys, 'ps1') or 'ipykernel' in sys.modules or multiprocessing.parent_process())


def _command():
    """The words that followed the interpreter's name."""
    if hasattr(sys, 'orig_argv'):  # Python 3.10
        return sys.orig_argv[1:]
    spec = sys.modules['__main__'].__spec__
    return subprocess._args_from_interpreter_flags() + (['-m', spec.name] if spec else sys.argv[:1]) + sys.argv[1:]


def profile_in_place():
    """The strictest profile whose environment this process has; None: none."""
    for profile, wanted in ('portable', _PORTABLE), ('fast', _FAST):
        if all(os.environ.get(name) == value for name, value in wanted.items()) and not _loaded_otherwise(profile):
            return profile
    return None


def seed_generators(value):
    """Seeds Python's, NumPy's and (where there is a GPU) CuPy's and cuDNN's generators, on the current device."""
    random.seed(value)
    np.random.seed(value)
    if count_gpus():
        cuda.cupy.random.seed(value)
        if cuda.cudnn_enabled:
            # Chainer keeps one generator for cuDNN's dropout as long as the process lives: it is begun anew in place.
            cuda.get_cudnn_dropout_states().__init__(None, value)


def numpy_kernels():
    """The vector instructions beyond its baseline that NumPy uses here."""
    return [name for name in _NUMPY.__cpu_dispatch__ if _NUMPY.__cpu_features__.get(name)]


def _blas():
    return [(pool['internal_api'], pool['architecture'], pool['num_threads'])
            for pool in pools() if pool['internal_api'] != 'openmp']


def pools():
    """The libraries that have threads of their own, BLAS among them."""
    import threadpoolctl
    return [{key: pool.get(key) for key in ('internal_api', 'version', 'architecture', 'num_threads')}
            for pool in threadpoolctl.threadpool_info()]
