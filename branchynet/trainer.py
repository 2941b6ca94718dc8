"""BranchyNet in Chainer's Trainer: an updater, an evaluator, and an order of samples that can be resumed.

Example:
    from branchynet import trainer
    import chainer
    from chainer.training import extensions

    updater = trainer.Updater(chainer.iterators.SerialIterator(pairs, 128), net)
    loop = chainer.training.Trainer(updater, (10, 'epoch'))
    loop.extend(trainer.Evaluator(chainer.iterators.SerialIterator(test_pairs, 1000, repeat=False), net))
    loop.extend(extensions.LogReport())
    loop.extend(extensions.PrintReport(['epoch', 'main/exit0/loss', 'validation/main/exit0/share']))
    loop.run()
"""

from __future__ import annotations

import random
import zlib
from typing import Any, Callable

from branchynet.checkpoint import load_optimizer
from branchynet.exits import Array
from branchynet.functions import inference_mode
from branchynet.net import BranchyNet, check_net
from branchynet.shares import Batch

import chainer
import numpy as np
from chainer.training import extensions, updaters


class Updater(updaters.StandardUpdater):
    """Does the step of ``BranchyNet.train``, with the net's own optimisers.

    Reports ``main/exit<k>/loss`` and ``main/exit<k>/accuracy`` of every exit and ``main/loss``, the sum of the exits'
    losses, each times its weight; with ``main``, ``main/loss`` and ``main/accuracy``. Optimisers are named 'main' (of
    the trunk) and 'exit<k>'. Its part of a snapshot is all that a training resumes from to the same bits, except a
    GPU's generators; the net's is found under ``updater/model:main/``.

    Args:
        iterator: yields batches of pairs (x, t), as BranchyNet.train takes them.
        net: the net.
        main: train main alone, by the step of ``BranchyNet.train_main``.
        converter: makes arrays of a batch.
        device: where the net trains; None: where it is.

    Raises:
        TypeError: the net is no BranchyNet.
    """

    def __init__(
        self,
        iterator: chainer.dataset.Iterator,
        net: BranchyNet,
        main: bool = False,
        converter: Callable = chainer.dataset.concat_examples,
        device: Any = None,
    ) -> None:
        check_net(net)
        if device is not None:
            net.to_device(device)
        optimizers = {'main': net.optimizer}
        if not main:
            optimizers.update((f'exit{k}', optimizer) for k, optimizer in enumerate(net.optimizers))
        super().__init__(iterator, optimizers, converter, auto_new_epoch=False)
        self._net = net
        self._main = main

    def update_core(self) -> None:
        """Trains by one step, on the iterator's next batch.

        Raises:
            TypeError: the batch is not of pairs (x, t); else as BranchyNet.train or train_main.
        """
        x, t = _pair(self.converter, self.get_iterator('main').next())
        if self._main:
            loss, accuracy = self._net.train_main(x, t)
            chainer.report({'main/loss': loss, 'main/accuracy': accuracy})
            return
        losses, accuracies = self._net.train(x, t)
        total = sum(model.weight * loss for model, loss in zip(self._net.models, losses))
        chainer.report({'main/loss': total, **_by_exit(loss=losses, accuracy=accuracies)})

    def serialize(self, serializer: Any) -> None:
        """Saves or loads iterators, net, optimisers, learned thresholds, frozen parts and both generators."""
        for name, iterator in self._iterators.items():
            iterator.serialize(serializer['iterator:' + name])
        self._net.serialize(serializer['model:main'])
        for name, optimizer in self.get_all_optimizers().items():
            if _saves(serializer):
                optimizer.serialize(serializer['optimizer:' + name])
            else:
                load_optimizer(optimizer, serializer['optimizer:' + name])
        self.iteration = serializer('iteration', self.iteration)
        for k, learned in enumerate(self._net._learned):
            learned[:] = serializer(f'learned{k}', np.array(learned) if _saves(serializer) else None).tolist()
        self._serialize_frozen(serializer)
        _serialize_generators(serializer['generators'])

    def _serialize_frozen(self, serializer: Any) -> None:
        """Saves or loads which parts are frozen, as a flag for the trunk and one for every exit."""
        parts: list[Any] = ['trunk', *range(self._net.numexits())]
        if _saves(serializer):
            serializer('frozen', np.array([part in self._net.frozen for part in parts]))
            return
        try:
            flags = serializer('frozen', None)
        except KeyError:
            flags = None
        if flags is None:  # a snapshot of an earlier version
            return
        self._net.thaw()
        self._net.freeze(*(part for part, is_frozen in zip(parts, flags) if is_frozen and self._net._links_of(part)))


class Evaluator(extensions.Evaluator):
    """Measures a net in testing mode, over all samples of an iterator.

    Reports of every exit, under ``validation/main/``: ``exit<k>/loss`` and ``exit<k>/accuracy`` over all samples, and
    ``exit<k>/share``, the share of samples that leaves there by the net's thresholds (or percentTestExits); and of the
    net: ``loss``, as BranchyNet.forward returns it, and ``accuracy`` with early exit.

    Args:
        iterator: yields batches of pairs (x, t), and ends after one pass (``repeat=False``).
        net: the net.
        converter: makes arrays of a batch.

    Raises:
        TypeError: the net is no BranchyNet.
    """

    def __init__(
        self,
        iterator: chainer.dataset.Iterator,
        net: BranchyNet,
        converter: Callable = chainer.dataset.concat_examples,
    ) -> None:
        check_net(net)
        super().__init__(iterator, net, converter)

    def evaluate(self) -> dict[str, float]:
        """Returns the means over all samples, by the names under which they are reported.

        Raises:
            TypeError, ValueError: the iterator yields no samples, or something else than pairs (x, t) that fit.
        """
        net, iterator = self.get_target('main'), self.get_iterator('main')
        no_samples = ValueError('the iterator of the evaluation yields no samples: expected pairs (x, t)')
        dataset = getattr(iterator, 'dataset', None)
        if dataset is not None and not len(dataset):  # Chainer's iterators would raise errors of their own
            raise no_samples
        iterator.reset()
        sums: dict[str, float] = {}
        count = 0
        for batch in iterator:
            x, t = net.checked(*_pair(self.converter, batch))
            count += len(t)
            for name, mean in _measured(net, x, t).items():
                sums[name] = sums.get(name, 0.0) + mean * len(t)
        if not count:
            raise no_samples
        observation: dict[str, float] = {}
        with chainer.reporter.report_scope(observation):
            chainer.report({name: total / count for name, total in sums.items()}, net)
        return observation


class Order(chainer.iterators.OrderSampler):
    """The order of samples in every epoch, as a function of the one before: an order sampler for Chainer's iterators.

    Its orders do not depend on the generators of NumPy, which a MultiprocessIterator uses ahead of time. So a training
    with that iterator resumes to the same bits too.

    Args:
        seed: an integer from 0 to 2**32 - 1.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def __call__(self, current_order: np.ndarray, current_position: int) -> np.ndarray:
        """Returns the indices (N,) of the next epoch, from those of the present one."""
        before = np.asarray(current_order, np.int64)
        return np.random.RandomState([self._seed, zlib.crc32(before.tobytes())]).permutation(len(before))


def _pair(converter: Callable, batch: Any) -> tuple[Array, Array]:
    """x (B, ...) and t (B,) of a batch of an iterator."""
    converted = converter(batch)
    if not isinstance(converted, tuple) or len(converted) != 2:
        item = type(batch[0]).__name__ + (f' of {len(batch[0])}' if isinstance(batch[0], tuple) else '')
        raise TypeError(f'the iterator yields batches of {item}: expected pairs (x, t)')
    return converted


def _measured(net: BranchyNet, x: Array, t: Array) -> dict[str, float]:
    """The means of one batch that an Evaluator reports."""
    with inference_mode():
        losses, accuracies, total = net.joint_loss(x, t, Batch(len(t)))
    accuracy, _, counts, _ = net.test(x, t)
    shares = [count / len(t) for count in counts]
    means = [[value.item() for value in values] for values in (losses, accuracies)]
    return {
        'loss': total.item(),
        'accuracy': accuracy,
        **_by_exit('', loss=means[0], accuracy=means[1], share=shares),
    }


def _by_exit(prefix: str = 'main/', **values: list[float]) -> dict[str, float]:
    """Values of every exit by their names, such as main/exit0/loss."""
    return {f'{prefix}exit{k}/{name}': value for name, by_exit in values.items() for k, value in enumerate(by_exit)}


def _saves(serializer: Any) -> bool:
    return isinstance(serializer, chainer.Serializer)


def _serialize_generators(serializer: Any) -> None:
    """Saves or loads the states of the generators of Python and NumPy."""
    name, keys, *rest = np.random.get_state()
    version, state, gauss = random.getstate()
    keys = serializer('numpy', keys)
    rest = [serializer(f'numpy_{what}', value) for what, value in zip(('place', 'has_gauss', 'gauss'), rest)]
    state = serializer('python', np.array(state, np.int64))
    gauss = serializer('python_gauss', np.nan if gauss is None else gauss)
    if not _saves(serializer):
        np.random.set_state((name, keys, *rest))
        random.setstate((version, tuple(np.asarray(state).tolist()), None if np.isnan(gauss) else float(gauss)))
