"""GPUs and the CPU, by name."""
from __future__ import annotations

from typing import Any

from branchynet import _chainer  # noqa: F401

import chainer
import numpy as np
from chainer.backends import cuda


def count_gpus() -> int:
    """Number of GPUs that the driver has: CUDA's libraries alone do not make a GPU."""
    if not cuda.available:
        return 0
    try:
        return cuda.cupy.cuda.runtime.getDeviceCount()
    except cuda.cupy.cuda.runtime.CUDARuntimeError:
        return 0


def find_device(name: str) -> Any:
    """Chainer's device of a name.

    Args:
        name: 'cpu', 'gpu:N' or 'auto' (the first GPU, else the CPU).

    Raises:
        ValueError: Another name, or a GPU that is not there.
    """
    gpus = count_gpus()
    if name == 'auto':
        name = 'gpu:0' if gpus else 'cpu'
    if name == 'cpu':
        return chainer.get_device('@numpy')
    if name.startswith('gpu:') and name[4:].isdigit():
        if int(name[4:]) < gpus:
            return chainer.get_device('@cupy:' + name[4:])
        raise ValueError(f'device is {name}, but the driver has {gpus} GPUs: choose another, or cpu')
    raise ValueError(f"device is {name}: choose 'auto', 'cpu' or 'gpu:N'")


def device_name(device: Any) -> str:
    """The name that `find_device` knows a device by."""
    return 'cpu' if device.xp is np else f'gpu:{device.device.id}'
