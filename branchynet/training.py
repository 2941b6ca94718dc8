"""Epochs of training, as the original runs them, and checkpoints anywhere in them."""
import hashlib
import io
import json
import os
import random
import sys
from typing import NamedTuple

from branchynet import _chainer  # noqa: F401
import chainer
import numpy as np


def check_pairs(x, y):
    """Raises ValueError unless x (N, ...) and y (N,) hold as many samples, and at least one."""
    if len(x) != len(y) or len(x) == 0:
        raise ValueError('x has %d samples and y %d: expected as many, and at least one' % (len(x), len(y)))


def batches(count, batchsize):
    """Slices of ``batchsize`` that cover ``count`` samples in order; the last may be shorter."""
    if batchsize < 1:
        raise ValueError('batchsize is %s: expected 1 or more' % batchsize)
    return [slice(i, i + batchsize) for i in range(0, count, batchsize)]


def progress(iterable=None, label=None, **kwargs):
    """A tqdm bar, shown where it takes longer than 2 s and standard error is a terminal."""
    from tqdm import tqdm
    return tqdm(iterable, label, leave=False, delay=2, disable=None, **kwargs)


class Position(NamedTuple):
    """How far an epoch is.

    Attributes:
        order: int (N,), in which the epoch takes the samples.
        results: (losses, accuracies) of every step so far.
    """
    order: np.ndarray
    results: list

    def means(self):
        """(loss, accuracy): means over the steps, an array per exit; scalars for main."""
        losses, accuracies = zip(*self.results)
        return np.mean(losses, axis=0), np.mean(accuracies, axis=0)


def steps(net, x, y, batchsize, main=False, position=None):
    """One epoch on x (N, ...), y (N,), in the order of ``numpy.random.permutation``.

    Args:
        main: train the baseline instead of all exits jointly.
        position: a Position of this epoch, to go on from there.

    Yields:
        The Position after every step; it is one object, whose results grow.
    """
    check_pairs(x, y)
    net.check_data(x, y, x[:1])
    if position is None:
        position = Position(np.random.permutation(len(x)), [])
    step = net.train_main if main else net.train
    for part in batches(len(x), batchsize)[len(position.results):]:
        samples = position.order[part]
        position.results.append(step(x[samples], y[samples]))
        yield position


def epochs(net, x, y, batchsize, num_epoch, main=False):
    """Trains on x (N, ...), y (N,), epoch by epoch.

    Args:
        main: train the baseline instead of all exits jointly.

    Yields:
        (loss, accuracy) after every epoch: means over the batches, an array per exit; scalars for main.
    """
    with progress_of_steps(len(x), batchsize, num_epoch, main) as bar:
        for _ in range(num_epoch):
            for position in steps(net, x, y, batchsize, main):
                bar.update()
            yield position.means()


def progress_of_steps(count, batchsize, num_epoch, main, done=0):
    """A progress bar over the steps of ``num_epoch`` epochs of ``count`` samples, ``done`` of them made."""
    label = 'training %s' % ('main' if main else 'exits')
    total = len(batches(count, batchsize)) * num_epoch
    return progress(label=label, total=total, initial=done, unit='step')


_FORMAT = 2  # of a checkpoint


def save_checkpoint(path, net, notes, position=None):
    """Writes all that the rest of a training depends on, and ``notes`` (JSON-ready), whole or not at all.

    That is the net and its optimisers, the generators of Python and NumPy, and within an epoch its Position. The
    checkpoint before is kept beside it. Not kept is the state of a GPU's generators.
    """
    # An optimiser that has made no step has no moments to write, and Chainer cannot read what is not there.
    parts = {name: part for name, part in _parts(net).items() if part is net or part.t}
    serializer = chainer.serializers.DictionarySerializer()
    for name, part in parts.items():
        serializer[name].save(part)
    name, keys, *rest = np.random.get_state()
    meta = {'format': _FORMAT, 'network': _shapes(net), 'parts': list(parts), 'numpy': [name] + rest,
            'python': random.getstate(), 'learned': net._learned, 'notes': notes}
    arrays = {**serializer.target, 'generator': keys}
    if position is not None:
        arrays['order'] = position.order.astype(np.int32)
        meta['results'] = position.results
    buffer = io.BytesIO()
    np.savez(buffer, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8), **arrays)
    # What follows the archive's end is its checksum, which zip's own readers pass over.
    write_atomically(path + '.new', buffer.getvalue() + hashlib.sha256(buffer.getbuffer()).digest())
    if os.path.exists(path):
        os.replace(path, _before(path))
    os.replace(path + '.new', path)


def load_checkpoint(path, net):
    """Puts back what save_checkpoint wrote last; where that is damaged, with a warning, what it wrote before.

    Returns:
        (notes, position): the latter None between epochs.

    Raises:
        OSError: none is whole, or it is of another version or network. The net is as it was.
    """
    try:
        arrays, meta = _read(path)
    except (FileNotFoundError, ValueError) as e:  # another error does not say that it is damaged
        why = getattr(e, 'strerror', None) or e
        try:
            arrays, meta = _read(_before(path))
        except (FileNotFoundError, ValueError):
            raise OSError('%s is not a whole checkpoint (%s), nor is the one before: expected one of them; '
                          'leave out --resume to start anew' % (path, why)) from e
        print('%s is not a whole checkpoint (%s): going on from the one before' % (path, why), file=sys.stderr)
        os.replace(_before(path), path)
    if meta.get('format') != _FORMAT:
        raise OSError('%s is a checkpoint of version %s: expected %d; leave out --resume to start anew' % (
            path, meta.get('format'), _FORMAT))
    if meta['network'] != _shapes(net):
        raise OSError('%s is a checkpoint of another network: expected parameters of the same names and shapes; '
                      'leave out --resume to start anew' % path)
    deserializer = chainer.serializers.NpzDeserializer(arrays)
    for name in meta['parts']:
        deserializer[name].load(_parts(net)[name])
    name, *rest = meta['numpy']
    np.random.set_state((name, arrays['generator'], *rest))
    version, state, gauss = meta['python']
    random.setstate((version, tuple(state), gauss))
    net._learned = meta['learned']
    position = Position(arrays['order'], meta['results']) if 'results' in meta else None
    return meta['notes'], position


def has_checkpoint(path):
    """Whether save_checkpoint has written there, even if it was interrupted since."""
    return os.path.exists(path) or os.path.exists(_before(path))


def remove_checkpoint(path):
    """Removes what save_checkpoint wrote, where there is anything."""
    for name in path, _before(path), path + '.new':
        if os.path.exists(name):
            os.remove(name)


def _read(path):
    """(arrays, meta) of a checkpoint; ValueError where it is not whole."""
    with open(path, 'rb') as f:
        content = f.read()
    archive, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
    if hashlib.sha256(archive).digest() != checksum:
        raise ValueError('its checksum is wrong')
    with np.load(io.BytesIO(archive), allow_pickle=False) as arrays:
        arrays = dict(arrays)
    return arrays, json.loads(arrays.pop('meta').tobytes())


_CHECKSUM_BYTES = hashlib.sha256().digest_size


def _before(path):
    """Where the checkpoint before the last is."""
    return path + '.before'


def _shapes(net):
    """What tells one network from another: the names and shapes of its parameters, and its optimiser."""
    return [net.opt] + [[name, list(param.shape or ())] for name, param in sorted(net.namedparams())]


def _parts(net):
    parts = {'net': net, 'optimizer': net.optimizer}
    parts.update(('optimizers/%d' % k, optimizer) for k, optimizer in enumerate(net.optimizers))
    return parts


def write_atomically(path, content):
    """Writes bytes to a file that appears only once it is whole; an OSError names it."""
    part = path + '.part'
    try:
        with open(part, 'wb') as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except BaseException as e:
        if os.path.exists(part):
            os.remove(part)
        if isinstance(e, OSError) and e.errno:
            raise OSError(e.errno, e.strerror, path) from e
        raise
