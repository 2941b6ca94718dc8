"""Crops and mirror images of 32x32 images, made by a worker process while the network learns."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

VIEWS = 36  # of every image
SIZE = 24  # pixels of a view
# Pixel under the centre of each of 24 pixels laid over 28: nearest neighbour, as Pillow resizes.
_NEAREST = ((np.arange(SIZE) + 0.5) * 28 / SIZE).astype(int)


def crops(x: np.ndarray) -> np.ndarray:
    """Cuts 36 views from every image.

    From each image: nine crops of 24x24 (offsets 0, 4, 8), nine windows of 28x28 (offsets 0, 2, 4)
    resized to 24x24 by nearest neighbour, both row by row, then the mirror images of these 18.

    Args:
        x: array (N, C, 32, 32).

    Returns:
        Array (36 N, C, 24, 24) of x's dtype; view v of image n is row 36 n + v.
    """
    parts = [x[:, :, i : i + SIZE, j : j + SIZE] for i in (0, 4, 8) for j in (0, 4, 8)]
    parts += [np.take(x[:, :, i + _NEAREST], j + _NEAREST, axis=3) for i in (0, 2, 4) for j in (0, 2, 4)]
    views = np.stack(parts, axis=1)
    return np.concatenate((views, views[..., ::-1]), axis=1).reshape(-1, *views.shape[2:])


def normalize(x: np.ndarray) -> np.ndarray:
    """Every channel of every image minus its mean and then (sic) minus its standard deviation and 1e-5.

    (A bug of the original, kept: normally one divides by the deviation.)

    Args:
        x: array (N, C, H, W).

    Returns:
        Array of x's shape and dtype.
    """
    axes = (2, 3)
    return x - x.mean(axis=axes, keepdims=True) - (x.std(axis=axes, keepdims=True) + x.dtype.type(1e-5))


def augmentation(x: np.ndarray, y: np.ndarray, batchsize: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Normalised views of the images in order, batch by batch, made by a worker process.

    The worker is one batch ahead. It ends with the generator: when that is exhausted, closed or garbage-collected.

    Args:
        x: float32 NumPy array (N, C, 32, 32).
        y: int32 NumPy array (N,).
        batchsize: images n per batch. A batch of CIFAR-10 takes 249 KB times n.

    Yields:
        float32 array (36 n, C, 24, 24) and int32 array (36 n,); the last n may be smaller.

    Raises:
        TypeError: x is no float32 NumPy array.
        ValueError: shapes or batchsize do not fit.
        RuntimeError: the worker was killed. An exception in the worker is raised as it is, with the
            worker's traceback as its cause.
    """
    check_images(x, y)
    if batchsize < 1:
        raise ValueError(f'batchsize must be at least 1, not {batchsize}')
    return _receive(x, y, batchsize)


def check_images(x: np.ndarray, y: np.ndarray) -> None:
    """Raises as `augmentation` does unless x and y are images and labels for it."""
    for name, array in ('x', x), ('y', y):
        if not isinstance(array, np.ndarray):
            raise TypeError(f'{name} must be a NumPy array, not a {type(array).__name__}')
    if x.dtype != np.float32:
        raise TypeError(f'x must be a NumPy array of float32, not of {x.dtype}')
    if x.ndim != 4 or x.shape[2:] != (32, 32):
        raise ValueError(f'x must have the shape (N, C, 32, 32), not {x.shape}')
    if y.shape != x.shape[:1]:
        raise ValueError(f'y must have the shape {x.shape[:1]}, one label per image, not {y.shape}')


def _receive(x: np.ndarray, y: np.ndarray, batchsize: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    # A pipe, not a queue: it holds no more than the worker's next batch and leaves no semaphore.
    receiver, sender = multiprocessing.Pipe(duplex=False)
    worker = multiprocessing.Process(target=_work, args=(receiver, sender, x, y, batchsize), daemon=True)
    worker.start()
    sender.close()
    try:
        for _ in range(0, len(x), batchsize):
            batch, error = _next(receiver, worker)
            if error:
                raise batch from RuntimeError('in the worker process:\n' + error)
            yield batch
    finally:
        worker.kill()
        worker.join()
        worker.close()
        receiver.close()


def _next(receiver: Connection, worker: multiprocessing.Process) -> Any:
    """The next (batch, None) or (exception, its traceback) of the worker."""
    try:
        return receiver.recv()
    except (EOFError, OSError):  # between two batches, within one
        worker.join()
        raise RuntimeError(f'the augmentation worker ended with exit code {worker.exitcode}') from None


def _work(receiver: Connection, sender: Connection, x: np.ndarray, y: np.ndarray, batchsize: int) -> None:
    """Sends (batch, None) for every batch, or (exception, its traceback) and ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle
    receiver.close()  # so that sending fails, not waits, once the caller is gone
    try:
        for i in range(0, len(x), batchsize):
            batch = normalize(crops(x[i : i + batchsize])), np.repeat(y[i : i + batchsize], VIEWS)
            sender.send((batch, None))
    except BrokenPipeError:
        pass
    except Exception as error:
        sender.send((error, traceback.format_exc()))
