"""Devices by name: the CPU and the GPUs."""

from __future__ import annotations

import time
from typing import Any

import chainer
import numpy as np
from chainer.backends import cuda


def count_gpus() -> int:
    """Returns the number of GPUs that the driver reports; 0 if CuPy or the driver is missing."""
    if not cuda.available:
        return 0
    try:
        return cuda.cupy.cuda.runtime.getDeviceCount()
    except cuda.cupy.cuda.runtime.CUDARuntimeError:
        return 0


def find_device(name: str) -> Any:
    """Returns Chainer's device of a name.

    Args:
        name: 'cpu', 'gpu:N' or 'auto' (the first GPU if there is one, else the CPU).

    Returns:
        A chainer.backend.Device.

    Raises:
        ValueError: the name has another form, or the GPU does not exist.
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
    """Returns the name of a device, as `find_device` takes it: 'cpu' or 'gpu:N'.

    Args:
        device: a device of `find_device`.
    """
    return 'cpu' if device.xp is np else f'gpu:{device.device.id}'


def now(net: Any) -> float:
    """The time in seconds, read once the GPU of a BranchyNet or Compiled (if it has one) has finished its work."""
    if net.gpu:
        cuda.Stream.null.synchronize()
    return time.perf_counter()
