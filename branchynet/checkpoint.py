"""Checkpoints anywhere in a training, written and read whole."""
import contextlib
import hashlib
import io
import json
import os
import random
import sys

from branchynet import _chainer  # noqa: F401
import chainer
import numpy as np

from branchynet.files import remove_parts, write_atomically
from branchynet.training import Position

_FORMAT = 2  # of a checkpoint


def save(path, net, notes, position=None):
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
    write_atomically(path, buffer.getvalue() + hashlib.sha256(buffer.getbuffer()).digest(), keep=_before(path))


def load(path, net):
    """Puts back what save wrote last; where that is damaged, with a warning, what it wrote before.

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


def has(path):
    """Whether save has written there, even if it was interrupted since."""
    return os.path.exists(path) or os.path.exists(_before(path))


def remove(path):
    """Removes what save wrote, where there is anything."""
    remove_parts(path)
    for name in path, _before(path):
        with contextlib.suppress(FileNotFoundError):
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
