"""What a run depends on: its seeds and device, and a record of where it ran."""
import hashlib
import os
import platform
import random
import subprocess
import sys

from branchynet import _chainer  # noqa: F401
import chainer
from chainer.backends import cuda
import numpy as np


def seed(value):
    """Seeds Python's, NumPy's and (where there is a GPU) CuPy's generators."""
    random.seed(value)
    np.random.seed(value)
    if count_gpus():
        cuda.cupy.random.seed(value)


def count_gpus():
    """Number of GPUs that the driver has: CUDA's libraries alone do not make a GPU."""
    if not cuda.available:
        return 0
    try:
        return cuda.cupy.cuda.runtime.getDeviceCount()
    except cuda.cupy.cuda.runtime.CUDARuntimeError:
        return 0


def find_device(name):
    """Chainer's device for 'cpu', 'gpu:N' or 'auto' (the first GPU, else the CPU).

    Raises:
        ValueError: another name, or a GPU that is not there.
    """
    gpus = count_gpus()
    if name == 'auto':
        name = 'gpu:0' if gpus else 'cpu'
    if name == 'cpu':
        return chainer.get_device('@numpy')
    if name.startswith('gpu:') and name[4:].isdigit():
        if int(name[4:]) < gpus:
            return chainer.get_device('@cupy:' + name[4:])
        raise ValueError('device is %s: expected one of the %d GPUs that the driver has' % (name, gpus))
    raise ValueError("device is %s: expected 'auto', 'cpu' or 'gpu:N'" % name)


def device_name(device):
    """What find_device calls a device."""
    return 'cpu' if device.xp is np else 'gpu:%d' % device.device.id


def environment():
    """What a result may depend on: versions, processor, threads, BLAS, commit. A JSON-ready dict."""
    import threadpoolctl
    return {
        'commit': _git('rev-parse', 'HEAD'),
        'tree': {None: None, '': 'clean'}.get(_git('status', '--porcelain'), 'dirty'),
        'python': platform.python_version(),
        'numpy': np.__version__,
        'chainer': chainer.__version__,
        'cupy': cuda.cupy.__version__ if cuda.available else None,
        'platform': platform.platform(),
        'cpu': _cpu(),
        'cores': os.cpu_count(),
        'blas': [{key: pool.get(key) for key in ('internal_api', 'version', 'architecture', 'num_threads')}
                 for pool in threadpoolctl.threadpool_info()],
        'gpus': [_gpu_name(i) for i in range(count_gpus())],
        'command': ' '.join([os.path.basename(sys.argv[0])] + sys.argv[1:]),
    }


def sha256(path):
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, 'rb') as f:
        return hashlib.sha256(f.read()).hexdigest()


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


def _cpu():
    try:
        with open('/proc/cpuinfo') as f:
            return next(line.split(':', 1)[1].strip() for line in f if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor()


def _gpu_name(i):
    return cuda.cupy.cuda.runtime.getDeviceProperties(i)['name'].decode()
