"""Files of 2016, opened without running anything in them.

The authors' release saved a trained network with dill, under Python 2.7 and Chainer 1.17 (``_models/*.bn``).
No current Python unpickles such a file, and unpickling runs whatever a file asks for. `load` reads it as inert
records (`branchynet.legacy.pickles`) and builds a BranchyNet of today from them; `load_results` does so for the
release's tables, `load_snapshot` for the snapshots of Chainer 1's own serializers, and `convert` writes what
`load` has read as ``.npz`` and JSON.

docs/from-chainer-1.md lists what has changed since.
"""

from __future__ import annotations

import json
import os
from typing import Any

from branchynet.files import digest, written_whole
from branchynet.legacy import pickles
from branchynet.legacy.content import Path, about, content_of
from branchynet.legacy.network import ARGUMENTS, BRANCHYNET, NAMES, Builder, generator_kept, shapes
from branchynet.legacy.pickles import Record
from branchynet.legacy.snapshots import load_snapshot
from branchynet.legacy.values import Values, kind
from branchynet.net import BranchyNet

import chainer
import numpy as np

__all__ = ['convert', 'load', 'load_results', 'load_snapshot']

_MAX_RESULTS = 10_000_000
_RESULTS = ('accs', 'rt', 'exits', 'ts', 'baseacc', 'basediff')


def load(path: Path, statistics: str = 'exits') -> BranchyNet:
    """Opens a network that the release saved, without running anything in the file.

    The file holds the trunk several times: in main and, with the same weights, in the model of every exit. The
    weights of today's one trunk are main's. Running means and variances of batch normalisation differ between
    those copies, because each copy saw the batches of its own forward passes: main's are of the training of main
    alone, the exits' of the joint training, which has moved the weights since.

    Args:
        path: a ``.bn`` file, or one compressed by gzip or xz.
        statistics: whose running statistics the trunk takes. 'exits': for every link those of the model that
            evaluates it in the released ``test`` and ``run`` (of main where that model has normalised no batch);
            'main': main's, as in the released ``test_main`` after joint training.

    Returns:
        The network on the CPU, with its settings and its optimisers' moments.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such file, or is damaged.

    Example:
        >>> from branchynet import legacy
        >>> net = legacy.load('tests/legacy/alex.bn.xz')  # a small net of that form, for the tests
        >>> net.numexits(), net.opt
        (3, 'Adam')
    """
    if statistics not in ('exits', 'main'):
        raise ValueError(f"statistics is {statistics!r}: expected 'exits' or 'main'")
    with about(path, 'a network of the release'):
        data = content_of(path)
        root = pickles.read(data, NAMES)
        if not (isinstance(root, Record) and root.name == BRANCHYNET):
            found = 'results: load_results reads them' if isinstance(root, dict) else kind(root)
            raise ValueError(f'it holds {found}')
        with generator_kept():
            return Builder(len(data), statistics).branchynet(root)


def load_results(path: Path) -> dict[str, np.ndarray]:
    """Opens a table of results that the release saved, without running anything in the file.

    Args:
        path: a file that holds a dict of accs, rt, exits, ts, baseacc, basediff, or such a file compressed by gzip
            or xz.

    Returns:
        An array for each name: over S settings of E exits usually accs (S,) accuracies, rt (S,) times per sample,
        exits (S, E) samples per exit, ts (S, E - 1) thresholds in nats; baseacc () accuracy and basediff () time
        per sample of the baseline. Numbers are as in the file: the released scripts save times in milliseconds.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such file, or is damaged.
    """
    with about(path, 'results of the release'):
        data = content_of(path)
        root = pickles.read(data, NAMES)
        if not isinstance(root, dict):
            raise ValueError(f'it holds {kind(root)}')
        missing = [name for name in _RESULTS if name not in root]
        if missing:
            raise ValueError(f'it has no {missing[0]}')
        converter = Values(len(data))
        budget = [_MAX_RESULTS]
        return {str(name): np.asarray(converter.numbers(value, budget)) for name, value in root.items()}


def convert(old: Path, new: Path, force: bool = False) -> dict[str, Any]:
    """Writes a network of the release as ``.npz`` and, beside it, its settings as JSON.

    ``chainer.serializers.load_npz(new, net)`` loads the weights into the network of the same name, and
    ``load_npz(new, net.optimizer, path='optimizer/')`` and ``path='optimizers/0/'`` its optimisers' moments.

    Args:
        old: see `load`.
        new: the file to write, ``NAME.npz``; the settings become ``NAME.json``.
        force: whether to replace files that exist.

    Returns:
        The content of the JSON: ``network``, the module in ``branchynet.networks`` that builds this network, or None;
        ``settings``, the arguments for its get_network; ``percentTrainExits`` and ``forwardMain``; ``weights`` of
        the exits in the joint loss; ``steps`` of main's optimiser; ``file`` and ``sha256`` of `old`.

    Raises:
        OSError: a file cannot be read or written, or exists.
        ValueError: see `load`; `new` does not end in .npz.
    """
    stem, suffix = os.path.splitext(os.fspath(new))
    if suffix != '.npz':
        raise ValueError(f'{os.fspath(new)} cannot be the name of weights: expected NAME.npz')
    for path in (f'{stem}.npz', f'{stem}.json'):
        if os.path.lexists(path) and not force:
            raise FileExistsError(f'{path} exists: --force (force=True) replaces it')
    net = load(old)
    with generator_kept():
        network = _network_name(net)
    description = {
        'network': network,
        'settings': {name: getattr(net, name) for name in ARGUMENTS},
        'percentTrainExits': net.percentTrainExits,
        'forwardMain': net.forwardMain,
        'weights': [model.weight for model in net.models],
        'steps': net.optimizer.t,
        'file': os.path.basename(os.fspath(old)),
        'sha256': digest(os.fspath(old)),
    }
    arrays: dict[str, Any] = {}
    serializer = chainer.serializers.DictionarySerializer(arrays)
    serializer.save(net)
    serializer['optimizer'].save(net.optimizer)
    for k, optimizer in enumerate(net.optimizers):
        serializer['optimizers'][str(k)].save(optimizer)
    with written_whole(f'{stem}.npz') as weights, written_whole(f'{stem}.json') as settings:
        np.savez_compressed(weights, **arrays)
        settings.write(json.dumps(description, indent=1).encode())
        weights.flush()  # a full disk shows here, before one of the two replaces an old file
        settings.flush()
    return description


def _network_name(net: BranchyNet) -> str | None:
    """The module in branchynet.networks whose get_network builds a network like this one."""
    from branchynet.networks import alex_cifar10, lenet_mnist, resnet_cifar10

    for module in (lenet_mnist, alex_cifar10, resnet_cifar10):
        other = module.get_network()
        if shapes(other) == shapes(net) and [m.endi for m in other.models] == [m.endi for m in net.models]:
            return module.__name__.rsplit('.', 1)[-1]
    return None
