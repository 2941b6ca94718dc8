"""Where a result comes from: the commit, the machine and its libraries, and hashes of arrays and nets."""
import hashlib
from importlib import metadata
import os
import platform
import re
import subprocess
import sys

from branchynet import _chainer, cpu  # noqa: F401
import chainer
from chainer.backends import cuda
import numpy as np

from branchynet import determinism
from branchynet.devices import count_gpus


def environment(out=None):
    """What a result may depend on: versions, processor, threads, BLAS, commit. A JSON-ready dict.

    Args:
        out: of tree.
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
        'command': ' '.join([os.path.basename(sys.argv[0])] + sys.argv[1:]),
    }


def commit():
    """The commit of these files; None outside a checkout, or where they are installed inside another project's."""
    return _git('rev-parse', 'HEAD') if _git('ls-files', os.path.abspath(__file__)) else None


def tree(out=None):
    """'clean', 'dirty' (the checkout differs from its commit), or None where commit() is None.

    What runs write does not count: all of results/, and what is in the folder ``out``, if the commit holds none of it.
    """
    if commit() is None:
        return None
    changes = _git('status', '--porcelain', '-z', '--untracked-files=all', '--', ':/', ':(top,exclude)results')
    if out is not None and not _git('ls-files', '--', os.path.realpath(out)):
        out = os.path.relpath(os.path.realpath(out), os.path.realpath(_git('rev-parse', '--show-toplevel')))
        changes = ''.join(change for change in changes.split('\0') if not change.startswith('?? %s%s' % (out, os.sep)))
    return 'dirty' if changes else 'clean'


def sha256_of_arrays(arrays):
    """SHA-256 over the bytes of NumPy arrays, one after the other."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def sha256_of_net(net):
    """SHA-256 over a link's parameters and persistent values (BN statistics), in the order of their paths."""
    serializer = chainer.serializers.DictionarySerializer()
    serializer.save(net)
    return sha256_of_arrays(np.asarray(array) for _, array in sorted(serializer.target.items()))


def _git(*words):
    here = os.path.dirname(os.path.abspath(__file__))
    try:
        return subprocess.run(('git',) + words, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              check=True, universal_newlines=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _packages(name):
    """Versions of what an installed package needs, and what that needs, by name; extras as far as installed."""
    found, names = {}, [name]
    while names:
        name = re.sub('[-_.]+', '-', names.pop()).lower()
        if name in found:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found[name] = distribution.version
        names += [re.match(r'[\w.-]+', text).group() for text in distribution.requires or ()
                  if 'extra ==' not in text or 'cuda12' in text]
    return dict(sorted(found.items()))


def _cuda():
    """Versions of the driver and of CUDA's libraries."""
    runtime = cuda.cupy.cuda.runtime
    return {'driver': _driver(), 'driver_cuda': runtime.driverGetVersion(), 'runtime': runtime.runtimeGetVersion(),
            'cudnn': cuda.libcudnn.getVersion() if cuda.cudnn_enabled else None}


def _driver():
    """The version of NVIDIA's driver, as Linux tells it."""
    try:
        with open('/proc/driver/nvidia/version') as f:
            return re.search(r'\d+\.[\d.]+', f.read()).group()
    except (OSError, AttributeError):
        return None


def _cpu():
    try:
        with open('/proc/cpuinfo') as f:
            return next(line.split(':', 1)[1].strip() for line in f if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor()


def _gpu_name(i):
    return cuda.cupy.cuda.runtime.getDeviceProperties(i)['name'].decode()
