"""Epochs of training, as the original runs them, and checkpoints between them."""
import io
import json
import os
import zipfile

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


def epochs(net, x, y, batchsize, num_epoch, main=False, start=0):
    """Trains on x (N, ...), y (N,), every epoch in the order of ``numpy.random.permutation``.

    Args:
        main: train the baseline instead of all exits jointly.
        start: epochs done before.

    Yields:
        (loss, accuracy) after every epoch: means over the batches, an array per exit; scalars for main.
    """
    check_pairs(x, y)
    net.check_data(x, y, x[:1])
    step = net.train_main if main else net.train
    parts = batches(len(x), batchsize)
    label = 'training %s' % ('main' if main else 'exits')
    with progress(label=label, total=len(parts) * num_epoch, initial=len(parts) * start, unit='step') as bar:
        for _ in range(start, num_epoch):
            order = np.random.permutation(len(x))
            results = []
            for part in parts:
                results.append(step(x[order[part]], y[order[part]]))
                bar.update()
            losses, accuracies = zip(*results)
            yield np.mean(losses, axis=0), np.mean(accuracies, axis=0)


def save_checkpoint(path, net, notes):
    """Writes net, its optimisers, NumPy's generator and ``notes`` (JSON-ready) to an .npz file, whole or not at all."""
    # An optimiser that has made no step has no moments to write, and Chainer cannot read what is not there.
    parts = {name: part for name, part in _parts(net).items() if part is net or part.t}
    serializer = chainer.serializers.DictionarySerializer()
    for name, part in parts.items():
        serializer[name].save(part)
    name, keys, *rest = np.random.get_state()
    meta = {'parts': list(parts), 'generator': [name] + rest, 'notes': notes}
    buffer = io.BytesIO()
    np.savez(buffer, **serializer.target, generator=keys, meta=np.array(json.dumps(meta)))
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path, net):
    """Puts back what save_checkpoint wrote and returns its notes.

    Raises:
        OSError: the file is damaged, or not a checkpoint of such a net.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            meta = json.loads(str(arrays['meta']))
            deserializer = chainer.serializers.NpzDeserializer(arrays)
            for name in meta['parts']:
                deserializer[name].load(_parts(net)[name])
            name, *rest = meta['generator']
            np.random.set_state((name, arrays['generator'], *rest))
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as e:
        raise OSError('%s is not a whole checkpoint of this network (%s): delete it to start anew' % (path, e)) from e
    return meta['notes']


def _parts(net):
    parts = {'net': net, 'optimizer': net.optimizer}
    parts.update(('optimizers/%d' % k, optimizer) for k, optimizer in enumerate(net.optimizers))
    return parts


def write_atomically(path, content):
    """Writes bytes to a file that appears only once it is whole."""
    part = path + '.part'
    try:
        with open(part, 'wb') as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except BaseException:
        if os.path.exists(part):
            os.remove(part)
        raise
