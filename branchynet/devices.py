"""GPUs and CPU, by name."""
from branchynet import _chainer  # noqa: F401
import chainer
from chainer.backends import cuda
import numpy as np


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
