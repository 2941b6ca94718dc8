"""The origin of a result: the commit, the machine and its libraries, and hashes of arrays and nets."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from typing import Any

from branchynet import cpu, determinism
from branchynet.chains.trunk import LAYERS
from branchynet.devices import count_gpus

import chainer
import numpy as np
from chainer.backends import cuda


def environment(out: str | None = None) -> dict[str, Any]:
    """Describes everything that a result may depend on: versions, processor, threads, BLAS, commit.

    Args:
        out: a results folder, whose files do not make the tree dirty; as in `tree`.

    Returns:
        A JSON-ready dict.
    """
    from branchynet.cpu import onednn

    return {
        'commit': commit(),
        'tree': tree(out),
        'python': platform.python_version(),
        'numpy': np.__version__,
        'chainer': chainer.__version__,
        'cupy': cuda.cupy.__version__ if cuda.available else None,
        'packages': _packages('branchynet'),
        'platform': platform.platform(),
        'cpu': _cpu(),
        'cores': os.cpu_count(),
        'profile': determinism.profile_in_place(),
        'threads': cpu.threads.num_threads(),
        'numpy_kernels': determinism.numpy_kernels(),
        'onednn': onednn.version(),
        'blas': determinism.pools(),
        'gpus': [_gpu_name(i) for i in range(count_gpus())],
        'cuda': _cuda() if count_gpus() else None,
        'command': ' '.join([program(), *sys.argv[1:]]),
    }


def program() -> str:
    """Returns the first words of this process's command, as a user types them on any machine."""
    spec = getattr(sys.modules['__main__'], '__spec__', None)
    name = os.path.basename(sys.argv[0])
    return f'python -m {spec.name.removesuffix(".__main__")}' if spec and name.endswith('.py') else name


def commit() -> str | None:
    """Returns the commit of these files.

    Returns:
        The hash; None if the files are in no checkout, are installed inside another project's, or if git fails.
    """
    try:
        return _git('rev-parse', 'HEAD') if _is_tracked() else None
    except _GitFailed:
        return None


def _is_tracked() -> bool:
    return bool(_git('ls-files', os.path.abspath(__file__)))


def tree(out: str | None = None) -> str | None:
    """Returns whether the checkout is the same as its commit.

    Files that runs write do not count: the folder results/, and the files in ``out`` if the commit holds none of them.

    Args:
        out: a results folder.

    Returns:
        'clean'; 'dirty'; 'unknown' if git is missing or fails; None if these files are in no checkout.
    """
    try:
        return _tree(out)
    except _GitFailed:
        return 'unknown'


def require_clean(out: str | None = None) -> None:
    """Checks that the tree is certainly clean.

    Args:
        out: a results folder, as in `tree`.

    Raises:
        ValueError: the tree is not clean, or that is unknown; the message has the reason.
    """
    try:
        found = _tree(out)
    except _GitFailed as e:
        raise ValueError(f'whether the tree is clean, as --require-clean demands, is unknown: {e}') from e
    if found is None:
        raise ValueError('--require-clean needs a git checkout, and this code is not in one')
    if found != 'clean':
        raise ValueError(
            f'the tree is {found}: commit or remove the changes that `git status` lists, or leave out --require-clean'
        )


def _tree(out: str | None) -> str | None:
    if not _is_tracked():
        return None
    changes = _git('status', '--porcelain', '-z', '--untracked-files=all', '--', ':/', ':(top,exclude)results')
    top = _git('rev-parse', '--show-toplevel')
    if changes is None or top is None:
        raise _GitFailed('git lost the repository')
    if out is not None and not _in_commit(os.path.realpath(out), os.path.realpath(top)):
        written = f'?? {os.path.relpath(os.path.realpath(out), os.path.realpath(top))}{os.sep}'
        changes = ''.join(change for change in changes.split('\0') if not change.startswith(written))
    return 'dirty' if changes else 'clean'


def _in_commit(folder: str, top: str) -> bool:
    """Whether the repository at ``top`` holds files of a folder. Git fails for a folder outside the repository."""
    return os.path.commonpath([folder, top]) == top and bool(_git('ls-files', '--', folder))


def sha256_of_arrays(arrays: Iterable[np.ndarray]) -> str:
    """Returns the SHA-256 of the bytes of arrays, one after the other.

    Args:
        arrays: NumPy arrays of any shape and dtype.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def sha256_of_net(net: chainer.Link) -> str:
    """Returns the SHA-256 of a link's parameters and persistent values (BN statistics), in the order of their paths.

    Args:
        net: a chainer.Link on the CPU or a GPU.

    Returns:
        64 hexadecimal digits.
    """
    serializer = chainer.serializers.DictionarySerializer()
    serializer.save(net)
    serializer.target.pop(LAYERS, None)  # which are no weights
    return sha256_of_arrays(np.asarray(array) for _, array in sorted(serializer.target.items()))


class _GitFailed(Exception):
    """Git is missing or failed; the message says why in one line."""


def _git(*words: str) -> str | None:
    """The output of a git command in the folder of these files; None if the folder is in no repository.

    Raises:
        _GitFailed: Git is missing, or failed for another reason.
    """
    here = os.path.dirname(os.path.abspath(__file__))
    try:
        done = subprocess.run(
            ['git', *words],
            cwd=here,
            capture_output=True,
            text=True,
            errors='surrogateescape',  # names of files may be any bytes
            check=False,
            env={**os.environ, 'LC_ALL': 'C'},
        )
    except OSError as e:
        raise _GitFailed(f'git cannot be run: {e.strerror}') from e
    if done.returncode == 0:
        return done.stdout.strip()
    if 'not a git repository' in done.stderr:
        return None
    why = done.stderr.strip().splitlines() or [f'status {done.returncode}']
    raise _GitFailed(f'git {words[0]} failed: {why[0]}')


def _packages(name: str) -> dict[str, str]:
    """Versions, by name, of an installed package and its dependencies, with those of the CUDA extra."""
    found: dict[str, str] = {}
    names = [name]
    while names:
        name = re.sub('[-_.]+', '-', names.pop()).lower()
        if name in found:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found[name] = distribution.version
        names += [
            re.split(r'[^\w.-]', text, maxsplit=1)[0]
            for text in distribution.requires or ()
            if 'extra ==' not in text or 'cuda12' in text
        ]
    return dict(sorted(found.items()))


def _cuda() -> dict[str, Any]:
    """Versions of the driver and of CUDA's libraries."""
    runtime = cuda.cupy.cuda.runtime
    return {
        'driver': _driver(),
        'driver_cuda': runtime.driverGetVersion(),
        'runtime': runtime.runtimeGetVersion(),
        'cudnn': cuda.libcudnn.getVersion() if cuda.cudnn_enabled else None,
    }


def _driver() -> str | None:
    """The version of NVIDIA's driver, from Linux's /proc."""
    try:
        with open('/proc/driver/nvidia/version') as f:
            found = re.search(r'\d+\.[\d.]+', f.read())
    except OSError:
        return None
    return found.group() if found else None


def _cpu() -> str:
    try:
        with open('/proc/cpuinfo') as f:
            return next(line.split(':', 1)[1].strip() for line in f if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor()


def _gpu_name(i: int) -> str:
    return cuda.cupy.cuda.runtime.getDeviceProperties(i)['name'].decode()
