"""BranchyNet: one trunk, its exits, and the baseline that shares the trunk.

The paper is Teerapittayanon, McDanel, Kung: BranchyNet: Fast Inference via Early Exiting from Deep
Neural Networks, ICPR 2016. Names and results are those of its authors' release; docs/fidelity.md
lists what differs from it, and why.
"""

from __future__ import annotations

import contextlib
import copy
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Union

from branchynet import exits
from branchynet.batching import batches, check_pairs, check_within, checked_array, checked_labels
from branchynet.chains.arguments import parse
from branchynet.chains.reading import Stage, read
from branchynet.chains.trunk import LAYERS, Trunk
from branchynet.cpu import tape
from branchynet.devices import now
from branchynet.exits import Array, Setting, check_per_exit
from branchynet.functions import inference_mode, rows
from branchynet.links.links import Branch, Net, check_links, check_number
from branchynet.progress import progress
from branchynet.shares import Batch

import chainer
import chainer.functions as F
import numpy as np
from chainer.backend import get_array_module
from chainer.backends.cuda import to_cpu


class Leaving(NamedTuple):
    """The n samples that leave at an exit.

    Attributes:
        index: integers (n,), their positions in the batch, in rising order.
        logits: (n, C), the exit's output, divided by the exit's temperature.
        prob: (n, C), its softmax.
        entropy: (n,), nats.
        seconds: duration of the trunk's stage before the exit, for all samples that reach the exit.
    """

    index: Array
    logits: Array
    prob: Array
    entropy: Array
    seconds: float


class Look(NamedTuple):
    """The answer of one exit to all B samples of a batch.

    Attributes:
        prob: (B, C), the softmax of the exit's logits.
        entropy: (B,), nats.
        released: seconds of the trunk's stage before the exit.
        whole: seconds of that stage, the exit's links, softmax and entropy.
        logits: (B, C), divided by the exit's temperature.
    """

    prob: Array
    entropy: Array
    released: float
    whole: float
    logits: Array


Part = Union[str, int]  # 'trunk', or the number of an exit


class BranchyNet(chainer.Chain):
    """A network with early exits, trained jointly (sections III and IV of the paper).

    Methods take NumPy or CuPy arrays or Variables: x (B, ...) of the parameters' dtype, and t (B,), signed integer
    labels from 0. Before any parameter changes, a method raises TypeError where a type or dtype is wrong, and
    ValueError where a shape or a value is. ``train*`` and ``find_*`` run in training mode; ``test*``, ``run*``,
    ``look`` and ``get_SM`` in testing mode; ``forward``, ``stage`` and ``exit`` in Chainer's present mode.

    Args:
        network: list of links, which become the net's own. A Branch in it marks an exit; the last element is a Branch.
        thresholdExits: entropy (nats) below which a sample leaves at an exit: a number for all exits but the last, or
            a list of one for each, in which None lets no sample leave. Training then drops samples by it too.
        percentTestExits: without thresholds, the share of samples of lowest entropy that leaves at an exit. A number
            is a share of the samples that reach the exit; a list gives shares of the whole batch.
        percentTrainKeeps: without thresholds, the share of samples that training carries on past an exit: a number
            or a list, as above.
        lr: learning rate of MomentumSGD.
        momentum: momentum of the MomentumSGD of ``main``; the exits' own links keep 0.9, as released.
        weight_decay: weight decay that goes with MomentumSGD.
        alpha: step size of the Adam of ``main``; the exits' own links keep Chainer's default, as released.
        opt: 'Adam' or 'MomentumSGD'.
        joint: if False, only the last exit's gradient reaches the trunk.
        verbose: whether to print the models once they are built.

    Attributes:
        main: the baseline: a Net of the trunk and its own copy of the final exit.
        models: a Net for every exit: the trunk up to it, then the exit's own links. The trunk's links are the same
            objects as in ``main``.
        optimizer: the optimiser of ``main``.
        optimizers: a list with an optimiser for every exit's own links. Links that exits share are the first one's.
        percentTrainExits: None, or the share that training drops at an exit (used instead of percentTrainKeeps).
        forwardMain: None; with any other value, even False, main's loss replaces the last exit's in training the trunk.
        temperatures: None, or a number above 0 for every exit, the last one included. Softmax and entropy are those
            of the logits divided by it (`calibration.fit_temperatures`); the losses do not change.
        frozen: the frozen parts: 'trunk' and numbers of exits.

    Raises:
        TypeError: the network holds something that is not a link, or a setting is not a number.
        ValueError: the network does not end with a Branch, or a setting is out of range.

    Example:
        >>> import chainer.functions as F, chainer.links as L
        >>> from branchynet import Branch, BranchyNet, FL
        >>> net = BranchyNet(
        ...     [
        ...         L.Linear(4, 32),
        ...         FL(F.relu),
        ...         Branch([L.Linear(32, 3)]),  # the first exit, with its own links
        ...         L.Linear(32, 32),
        ...         FL(F.relu),
        ...         Branch([L.Linear(32, 3)]),  # the final exit
        ...     ]
        ... )
        >>> x, t = np.random.rand(150, 4).astype(np.float32), np.arange(150) % 3
        >>> losses, accuracies = net.train(x, t)  # one joint step
        >>> len(losses)
        2
        >>> net.thresholdExits = 1.0  # nats
        >>> accuracy, accuracies, counts, seconds = net.test(x, t)
        >>> sum(counts)
        150
    """

    frozen: frozenset[Part] = frozenset()

    temperatures: list[float] | None = None  # here, so that a net of an earlier version, unpickled, has none

    def __init__(
        self,
        network: list[chainer.Link],
        thresholdExits: Setting | None = None,
        percentTestExits: Setting = 0.9,
        percentTrainKeeps: Setting = 1.0,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0001,
        alpha: float = 0.001,
        opt: str = 'Adam',
        joint: bool = True,
        verbose: bool = False,
    ) -> None:
        super().__init__()
        network = list(network) if isinstance(network, Iterable) else network  # a generator is gone through once
        _check_network(network)
        if opt not in ('Adam', 'MomentumSGD'):
            raise ValueError(f"opt is {opt!r}: expected 'Adam' or 'MomentumSGD'")
        check_number('lr', lr)
        check_number('momentum', momentum, below=1)
        check_number('weight_decay', weight_decay)
        check_number('alpha', alpha)
        self.thresholdExits = thresholdExits
        self.percentTestExits = percentTestExits
        self.percentTrainKeeps = percentTrainKeeps
        self.percentTrainExits: Setting | None = None
        self.forwardMain: Any = None
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.alpha = alpha
        self.opt = opt
        self.joint = joint
        self.verbose = verbose
        nets = _exit_nets(network)
        with self.init_scope():
            self.main = Net()
            self.models = chainer.ChainList(*nets)
        # Within a copied list, residual blocks keep their weights; copied alone, they would not (see ResBlock).
        trunk, head = nets[-1][: nets[-1].endi], copy.deepcopy(list(network[-1]))
        for link in trunk + head:
            self.main.append(link)
        self._tapes = tape.Tapes()
        self._check_settings()
        self._setup_optimizers()
        self.clearLearnedExitsThresholds()
        if verbose:
            self.print_models()

    @staticmethod
    def from_chain(
        chain: chainer.Link,
        exits: Mapping[str, Any],
        final: str | Any | None = None,
        x: Array | None = None,
        **settings: Any,
    ) -> BranchyNet:
        """Gives any Chain exits after named layers; its own output is the last exit.

        The chain becomes the trunk, as it is: its forward is paused after an exit's layer, and goes on with the
        samples that stay. When all have left, no further layer runs. Nothing is added to the chain or its layers.

        The first batch is also read: a small part of it goes through the chain in testing mode, which shows whether
        the exits can stand where they are. Each exit's layer must be called once, as a link, and its output be all
        that the layers after it use. An exit belongs to one layer of the chain; its own links cannot have exits.

        A chainer.Sequential becomes an ordinary BranchyNet, which can be compiled and exported link by link.

        Args:
            chain: a link whose forward takes an array (B, ...). It is not copied.
            exits: for each exit, in the order in which forward calls their layers: the path of a layer, as in
                ``chain.namedlinks()`` ('/res3/a', or 'res3/a'), and the exit's own links, from the layer's output to
                logits (B, C): a list of links and functions, one of them, or a Branch, which also has a weight.
                branchynet.heads makes such lists.
            final: where the last exit's logits are. None: the chain's output, or the only entry of an output that is
                a dict; where this is a softmax, its input. A path: the output of this layer, after which forward is
                not run. Links, as for an exit: they run on the chain's output, as part of the trunk.
            x: samples (B, ...), one or more, to read the chain now and not at the first batch.
            **settings: as of BranchyNet: thresholdExits and others.

        Returns:
            A BranchyNet. Its trunk, ``main``, ends with the last exit's logits; ``main.chain`` is the chain.

        Raises:
            TypeError: the chain or an exit is not made of links.
            ValueError: there is no such layer, an exit cannot stand there, or it cannot take the layer's output; what
                only reading shows is raised by the first call with a batch.

        Example:
            >>> import chainer, chainer.functions as F, chainer.links as L
            >>> from branchynet import BranchyNet
            >>> class Network(chainer.Chain):
            ...     def __init__(self):
            ...         super().__init__()
            ...         with self.init_scope():
            ...             self.first, self.second = L.Linear(4, 8), L.Linear(8, 3)
            ...
            ...     def forward(self, x):
            ...         return self.second(F.relu(self.first(x)))
            >>> x = np.random.rand(10, 4).astype(np.float32)
            >>> net = BranchyNet.from_chain(Network(), exits={'first': [F.relu, L.Linear(8, 3)]}, x=x)
            >>> net.numexits(), net.run(x).shape
            (2, (10, 3))
        """
        branches, logits, last, network = parse(chain, exits, final)
        if network is None:
            net: BranchyNet = ChainNet(chain, branches, logits, last, **settings)
        else:
            net = BranchyNet(network, **settings)
        if x is not None:
            net.get_SM(x[: len(exits) + 2])  # as many as are read
        return net

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({'_tapes': tape.Tapes(), **state})  # a net of an earlier version, unpickled, has none

    def _setup_optimizers(self) -> None:
        self.optimizer = self._make_optimizer(self.main, self.alpha, self.momentum)
        owned = {id(param) for param in self.main.params()}
        own = [_unowned(k, model[model.endi :], owned) for k, model in enumerate(self.models)]
        # As released, the exits' own links have Chainer's default alpha and a momentum of 0.9, whatever was given.
        self.optimizers = [self._make_optimizer(chainer.ChainList(*links), 0.001, 0.9) for links in own]
        self._hold_frozen()

    def _make_optimizer(self, target: chainer.Link, alpha: float, momentum: float) -> chainer.Optimizer:
        if self.opt == 'Adam':
            return chainer.optimizers.Adam(alpha=alpha).setup(target)
        optimizer = chainer.optimizers.MomentumSGD(self.lr, momentum).setup(target)
        optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(self.weight_decay))
        return optimizer

    # Training

    def train_main(self, x: Array, t: Array) -> tuple[float, float]:
        """Trains main alone, by one step.

        Args:
            x: samples (B, ...).
            t: labels (B,).

        Returns:
            (loss, accuracy): softmax cross entropy, and the share of samples that are classified correctly.

        Raises:
            ValueError: the trunk is frozen.
        """
        self.check_thawed('trunk')
        return self._train_net(self.main, self.optimizer, *self.checked(x, t))

    def train(self, x: Array, t: Array) -> tuple[list[float], list[float]]:
        """Trains all exits jointly (section III of the paper), by one step.

        Args:
            x: samples (B, ...).
            t: labels (B,).

        Returns:
            (losses, accuracies): lists of a float for every exit, over the samples that reach it; 0 if none does.
        """
        x, t = self.checked(x, t)
        links = [link for model in self.models for link in model[model.starti :]]
        losses: Sequence[Any]
        accuracies: Sequence[Any]
        total: chainer.Variable | tape.Value
        with chainer.using_config('train', True):
            # The first step on a shape runs in Chainer, which checks types; later ones run on the tape, with its bits.
            if self._tapes.fit(links, x) and self._is_plain_step(len(x)):
                reach = [self._reaches_trunk(k) for k in range(self.numexits())]
                losses, accuracies, total = tape.joint(self.models, x, t, reach)
            else:
                losses, accuracies, total = self.joint_loss(x, t, Batch(len(x)))
                spans = [span for m in self.models for span in (m[m.starti : m.endi], m[m.endi :]) if span]
                self._tapes.add(links, x, [span[0] for span in spans])
        step(total, [self.optimizer, *self.optimizers])
        return [float(loss.item()) for loss in losses], [float(accuracy.item()) for accuracy in accuracies]

    def _is_plain_step(self, count: int) -> bool:
        """Whether a joint step on ``count`` samples needs nothing but the exits' losses.

        So forwardMain is not set, nothing is frozen, no samples are dropped, no exit's Net has a hook, and neither a
        subclass nor the net itself has another joint_loss, or another of the methods that it calls.
        """
        return (
            self.forwardMain is None
            and not self.frozen
            and not self.drops_samples(count)
            and not any(model._n_local_link_hooks for model in self.models)
            and not any(
                name in vars(self) or getattr(type(self), name) is not getattr(BranchyNet, name)
                for name in ('joint_loss', 'one_pass', 'stage', 'exit')
            )
        )

    def _train_net(
        self, net: Net, optimizer: chainer.Optimizer, x: Array, t: Array, starti: int = 0
    ) -> tuple[float, float]:
        """Trains a net, or its links from ``starti`` on, by one step."""
        links = net[starti:] if type(net) is Net else [net]
        loss: chainer.Variable | tape.Value
        accuracy: Any
        with chainer.using_config('train', True):
            if self._tapes.fit(links, x) and not net._n_local_link_hooks:
                loss, accuracy = tape.alone(links, x, t)
            else:
                loss, accuracy = loss_and_accuracy(net(x, starti=starti) if starti else net(x), t)
                self._tapes.add(links, x)
        step(loss, [optimizer])
        return float(loss.item()), float(accuracy.item())

    def train_branch(self, i: int, x: Array, t: Array) -> tuple[float, float]:
        """Trains the own links of exit i alone, by one step.

        Args:
            i: the exit, from 0.
            x: samples (B, ...).
            t: labels (B,).

        Returns:
            (loss, accuracy), as train_main.

        Raises:
            ValueError: there is no exit i, or it is frozen.
        """
        if not 0 <= i < self.numexits():
            raise ValueError(f'exit is {i}: expected 0 to {self.numexits() - 1}')
        self.check_thawed(i)
        x, t = self.checked(x, t)
        stage, h = self.one_pass(), x
        with chainer.using_config('train', True), chainer.no_backprop_mode():
            for k in range(i + 1):
                h = stage(k, h)
        model = self.models[i]
        return self._train_net(model, self.optimizers[i], chainer.as_array(h), t, starti=model.endi)

    def forward(self, x: Array, t: Array) -> chainer.Variable:
        """The joint loss, for Chainer's updaters and evaluators.

        Reports ``loss``, and ``exit<k>/loss`` and ``exit<k>/accuracy`` of every exit. In testing mode no samples are
        dropped between exits. Set up an optimiser of your own on the whole net; it replaces ``optimizer`` and
        ``optimizers``.

        Args:
            x: samples (B, ...).
            t: labels (B,).

        Returns:
            Variable (), the sum of the exits' losses, each times its weight; with forwardMain, main's loss is added.
        """
        losses, accuracies, total = self.joint_loss(*self.checked(x, t), Batch(len(x)))
        report = {'loss': total}
        for k in range(self.numexits()):
            report[f'exit{k}/loss'] = losses[k]
            report[f'exit{k}/accuracy'] = accuracies[k]
        chainer.report(report, self)
        return total

    def joint_loss(
        self, x: Array, t: Array, batch: Batch
    ) -> tuple[list[chainer.Variable], list[chainer.Variable], chainer.Variable]:
        """The losses of all exits, in Chainer's present mode; in training mode samples are dropped between exits.

        Args:
            x: samples (B, ...), checked and on the net's device.
            t: labels (B,).
            batch: the Batch of these samples; where ranks train together, the SharedBatch of which they are a share.

        Returns:
            (losses, accuracies, total): lists of a Variable () for every exit; the loss of `forward`.
        """
        total: Any = 0
        self._hold_frozen()  # the user may have set up an optimiser since
        if self.forwardMain is not None:
            if chainer.config.train:
                self.check_thawed('trunk')
            total = batch.weighted(loss_and_accuracy(self.main(x), t)[0])
        stage = self.one_pass()
        losses: list[chainer.Variable] = []
        accuracies: list[chainer.Variable] = []
        for k, model in enumerate(self.models):
            if len(t) == 0:
                losses.append(chainer.Variable(self.xp.zeros((), x.dtype)))
                accuracies.append(losses[-1])
                continue
            x = stage(k, x)
            logits = self.exit(k, x if self._reaches_trunk(k) else chainer.as_array(x))
            loss, accuracy = map(batch.weighted, loss_and_accuracy(logits, t))
            losses.append(loss)
            accuracies.append(accuracy)
            total += model.weight * loss
            if chainer.config.train and k < self.numexits() - 1:
                kept = self._kept(k, logits, batch)
                if kept is not None:
                    x, t = rows(x, kept), t[kept]
        return losses, accuracies, total

    def _reaches_trunk(self, k: int) -> bool:
        """Whether exit k's loss trains the trunk."""
        if k == self.numexits() - 1:
            return self.forwardMain is None
        return self.joint

    def _kept(self, k: int, logits: chainer.Variable, batch: Batch) -> Array | None:
        """Indices of the samples that training carries on past exit k; None if these are all samples."""
        rule = self._training_rule()
        if isinstance(rule, exits.Shares) and rule.count(k, batch.remaining, batch.size) <= 0:
            return None  # no entropy is needed
        scaled = batch.of_all(self._scaled(k, chainer.as_array(logits)))
        answer = exits.answer(scaled)
        dropped = rule.leaves(k, scaled, answer, batch.size)
        if dropped.any():
            self._learned[k].append(float(answer.entropy[dropped].max()))
        return batch.keep(~dropped)

    def _training_rule(self) -> exits.Rule:
        """The rule by which training drops samples."""
        if self.thresholdExits is not None:
            return exits.Thresholds(self.thresholdExits)
        if self.percentTrainExits is not None:
            return exits.Shares(self.percentTrainExits)
        return exits.Shares(self.percentTrainKeeps, stay=True)

    def drops_samples(self, batch: int) -> bool:
        """Whether training may drop samples of a batch between exits."""
        rule = self._training_rule()
        return not isinstance(rule, exits.Shares) or any(
            rule.count(k, batch, batch) > 0 for k in range(self.numexits() - 1)
        )

    def getLearnedExitsThresholds(self) -> list[float]:
        """The entropies up to which training dropped samples.

        Returns:
            A float (nats) for every exit but the last: the mean over the steps since clearLearnedExitsThresholds, or
            NaN if no sample was dropped.
        """
        return [float(np.mean(cuts)) if cuts else math.nan for cuts in self._learned]

    def clearLearnedExitsThresholds(self) -> None:
        """Starts the means of getLearnedExitsThresholds again."""
        self._learned: list[list[float]] = [[] for _ in range(self.numexits() - 1)]

    # Inference

    def test(self, x: Array, t: Array | None = None) -> tuple[float, list[float], list[int], float]:
        """Classifies a batch with early exit (algorithm 1 of the paper).

        Args:
            x: samples (B, ...).
            t: labels (B,), or None.

        Returns:
            (accuracy, accuracies, counts, seconds): overall accuracy; for every exit, the accuracy of the samples that
            left there (0 if none did) and their number. Accuracies are NaN without labels. The clock is the released
            one: it runs only in the trunk's stages and does not wait for a GPU.
        """
        return self._test(self._testing_rule(), x, t)

    def test_at(
        self, thresholds: exits.Setting, x: Array, t: Array | None = None
    ) -> tuple[float, list[float], list[int], float]:
        """`test` at thresholds of its own, in place of the net's settings, which stay as they are.

        Args:
            thresholds: nats; a number, or one for every exit but the last.
            x: samples (B, ...).
            t: labels (B,), or None.

        Returns:
            As of `test`.

        Raises:
            TypeError, ValueError: the thresholds do not fit.
        """
        exits.check_per_exit('thresholds', thresholds, self.numexits() - 1)
        return self._test(exits.Thresholds(thresholds), x, t)

    def _test(self, rule: exits.Rule, x: Array, t: Array | None) -> tuple[float, list[float], list[int], float]:
        x, t = self.checked(x, t)
        counts, seconds = [0] * self.numexits(), 0.0
        correct: list[float] = [0] * self.numexits()
        with inference_mode():
            for k, left in enumerate(self.leave(x, rule)):
                seconds += left.seconds
                counts[k] = len(left.index)
                correct[k] = math.nan if t is None else _count_correct(left.logits, t[left.index])
        accuracies = [c / n if n else 0.0 for c, n in zip(correct, counts)]
        return sum(correct) / len(x), accuracies, counts, seconds

    def run(self, x: Array) -> Array:
        """Classifies a batch with early exit and returns the logits.

        Args:
            x: samples (B, ...).

        Returns:
            Array (B, C), for each sample the logits of the exit where it leaves, divided by the exit's temperature, in
            the order of x.
        """
        x, _ = self.checked(x)
        with inference_mode():
            parts = list(self.leave(x, self._testing_rule()))
        check_same_classes([part.logits for part in parts])
        first = parts[0].logits
        result = self.xp.empty((len(x), first.shape[1]), first.dtype)
        for part in parts:
            result[part.index] = part.logits
        return result

    def test_main(self, x: Array, t: Array | None = None) -> tuple[float, float]:
        """Classifies a batch by main.

        After joint training, main's own head no longer fits the trunk: for a baseline, test main before joint
        training.

        Args:
            x: samples (B, ...).
            t: labels (B,), or None.

        Returns:
            (accuracy, seconds): the accuracy (NaN without labels) and the time of main's whole forward pass.
        """
        return _test_net(self.main, *self.checked(x, t))

    def run_main(self, x: Array) -> Array:
        """main's logits (B, C) for x (B, ...)."""
        x, _ = self.checked(x)
        with inference_mode():
            return chainer.as_array(self.main(x))

    def get_SM(self, x: Array) -> list[Array]:
        """Softmax of every exit for every sample of x (B, ...), without early exit: an array (B, C) for each exit."""
        return [look.prob for look in self.look(x)]

    def leave(self, x: Array, rule: exits.Rule) -> Iterator[Leaving]:
        """Carries a batch up the trunk and lets samples leave, exit by exit.

        The caller must set inference mode and move x to the net's device.

        Args:
            x: samples (B, ...).
            rule: decides which samples leave; at the last exit all do.

        Yields:
            A Leaving for every exit, up to the one at which the last samples leave.
        """
        stage, index, batch = self.one_pass(), self.xp.arange(len(x)), len(x)
        for k in range(self.numexits()):
            start = time.perf_counter()
            x = chainer.as_array(stage(k, x))
            seconds = time.perf_counter() - start
            logits = self._scaled(k, chainer.as_array(self.exit(k, x)))
            answer = exits.answer(logits)
            if k < self.numexits() - 1:
                leaves = rule.leaves(k, logits, answer, batch)
            else:
                leaves = self.xp.ones(len(index), bool)
            yield Leaving(index[leaves], logits[leaves], answer.prob[leaves], answer.entropy[leaves], seconds)
            if leaves.all():
                return
            index, x = index[~leaves], x[~leaves]

    def _testing_rule(self) -> exits.Rule:
        """The rule by which test and run let samples leave."""
        if self.thresholdExits is not None:
            return exits.Thresholds(self.thresholdExits)
        return exits.Shares(self.percentTestExits)

    def look(self, x: Array) -> list[Look]:
        """The answers of all exits to a batch, without early exit, and their times.

        Args:
            x: samples (B, ...).

        Returns:
            A Look for every exit.
        """
        x, _ = self.checked(x)
        stage, result = self.one_pass(), []
        with inference_mode():
            for k in range(self.numexits()):
                start = now(self)
                x = stage(k, x)
                trunk = now(self)
                logits = self._scaled(k, chainer.as_array(self.exit(k, x)))
                prob, entropy = exits.answer(logits)
                result.append(Look(prob, entropy, trunk - start, now(self) - start, logits))
        check_same_classes([look.logits for look in result])
        return result

    # Thresholds

    def find_entropies(self, x: Array, y: Array | None = None, batchsize: int = 1024) -> list[np.ndarray]:
        """Entropies at every exit but the last, in training mode and over all samples, as released.

        In training mode, batch normalisation uses a batch's statistics and moves its running ones, and dropout drops.

        Args:
            x: samples (N, ...).
            y: labels (N,), or None; only their number is checked.
            batchsize: samples that run together.

        Returns:
            A NumPy array (N,) for every exit but the last, nats.
        """
        check_pairs(x, x if y is None else y)
        result = []
        for part in progress(batches(len(x), batchsize), 'entropies'):
            h, _ = self.checked(x[part])
            stage, batch = self.one_pass(), []
            with chainer.using_config('train', True), chainer.no_backprop_mode():
                for k in range(self.numexits() - 1):
                    h = stage(k, h)
                    batch.append(to_cpu(exits.answer(self._scaled(k, chainer.as_array(self.exit(k, h)))).entropy))
            result.append(batch)
        return [np.concatenate(parts) for parts in zip(*result)]

    def find_thresholds(
        self, x: Array, y: Array | None = None, percentTrainKeeps: Setting = 0.5, batchsize: int = 1024
    ) -> list[float]:
        """Thresholds with which a given share of the samples stays at each exit, from `find_entropies`.

        Each exit's threshold is found over all samples, also over those that would have left before it.

        Args:
            x: samples (N, ...).
            y: labels (N,), or None; only their number is checked.
            percentTrainKeeps: share of samples that stay: a number for all exits but the last, or a list of one for
                each.
            batchsize: samples that run together.

        Returns:
            A threshold (nats) for every exit but the last.
        """
        return self.find_thresholds_entropies(x, y, percentTrainKeeps, batchsize)[0]

    def find_thresholds_entropies(
        self, x: Array, y: Array | None = None, percentTrainKeeps: Setting = 0.5, batchsize: int = 1024
    ) -> tuple[list[float], list[np.ndarray]]:
        """Thresholds and entropies from one pass: (find_thresholds, find_entropies), with their arguments."""
        check_per_exit('percentTrainKeeps', percentTrainKeeps, self.numexits() - 1, share=True)
        entropies = self.find_entropies(x, y, batchsize)
        thresholds = []
        for k, ent in enumerate(entropies):
            total = len(ent)
            cut = min(int(total - exits.of_exit(percentTrainKeeps, k) * total), total - 1)
            thresholds.append(float(np.sort(ent)[cut]))
        return thresholds, entropies

    # A copy of main, which is trained and tested apart from the joint training

    def copy_main(self) -> None:
        """Copies main with its optimiser, for train_main_copy and test_main_copy.

        Raises:
            ValueError: main is a chain that was not read.
        """
        if isinstance(self.main, Trunk):
            self.main.check_read()
        self.main_copy, self.optimizer_copy = copy.deepcopy((self.main, self.optimizer))
        if 'trunk' in self.frozen:  # only of the net: the copy trains
            self.main_copy.enable_update()

    def train_main_copy(self, x: Array, t: Array) -> tuple[float, float]:
        """train_main for the copy."""
        self._check_copy()
        return self._train_net(self.main_copy, self.optimizer_copy, *self.checked(x, t))

    def test_main_copy(self, x: Array, t: Array | None = None) -> tuple[float, float]:
        """test_main for the copy."""
        self._check_copy()
        return _test_net(self.main_copy, *self.checked(x, t))

    def _check_copy(self) -> None:
        if not hasattr(self, 'main_copy'):
            raise ValueError('main has no copy: call net.copy_main() first')

    # The network's parts

    def numexits(self) -> int:
        """Number of exits, including the final one."""
        return len(self.models)

    def one_pass(self) -> Stage:
        """`stage` for one batch, to be called for one exit after the other, from exit 0.

        Between two calls, samples may be taken out of the features. Nets of `from_chain` keep the state of a pass in
        the result, which is for one batch and one thread.
        """
        return self.stage

    def stage(self, k: int, x: Array) -> chainer.Variable:
        """Runs the trunk from exit k - 1 (for k = 0: from the input) to exit k.

        Code that should take nets of `from_chain` too calls `one_pass` instead.

        Args:
            k: the exit, from 0.
            x: the features at exit k - 1, or the samples (B, ...).

        Returns:
            The trunk's features at exit k, a Variable (B, ...).
        """
        model = self.models[k]
        with self._mode('trunk'):
            return model(x, starti=model.starti, endi=model.endi)

    def exit(self, k: int, h: Array) -> chainer.Variable:
        """Logits, a Variable (B, C), of exit k for the trunk's features h (B, ...) there."""
        model = self.models[k]
        with self._mode(k):
            return model(h, starti=model.endi)

    def _scaled(self, k: int, logits: Array) -> Array:
        """Logits (B, C) of exit k divided by its temperature (Guo et al. 2017, section 4.2), in their dtype."""
        if logits.ndim != 2:
            raise ValueError(f'exit {k} gives logits of shape {logits.shape[1:]} for a sample: expected (classes,)')
        return logits if self.temperatures is None else logits / logits.dtype.type(self.temperatures[k])

    def print_models(self) -> None:
        """Prints main and the model of every exit, link by link."""
        for name, net in [('main', self.main)] + [(f'exit {k}', model) for k, model in enumerate(self.models)]:
            print(f'{name}: {" ".join(type(link).__name__ for link in net.children())}')

    def training(self) -> None:
        """Puts Chainer (``chainer.config.train``) into training mode, for direct calls of nets and links."""
        chainer.config.train = True

    def testing(self) -> None:
        """Puts Chainer (``chainer.config.train``) into testing mode, for direct calls of nets and links."""
        chainer.config.train = False

    # Parts that training leaves as they are

    def freeze(self, *parts: Part) -> None:
        """Keeps parts of the net as they are in training.

        A frozen part runs in testing mode, so that its batch normalisation keeps and uses its running statistics, and
        no optimiser changes its parameters. Through a frozen trunk there is no backward pass; a frozen exit still hands
        its gradient to the trunk. To train one exit alone, see `train_branch`.

        Args:
            *parts: 'trunk', 'exits' or numbers of exits, from 0.

        Raises:
            ValueError: there is no such part.
        """
        self.frozen = self.frozen | self._named_parts(parts)
        self._hold_frozen()

    def thaw(self, *parts: Part) -> None:
        """Lets training change frozen parts again.

        Args:
            *parts: as in `freeze`; without any, all that is frozen.

        Raises:
            ValueError: there is no such part.
        """
        thawed = self.frozen & self._named_parts(parts) if parts else self.frozen
        self.frozen = self.frozen - thawed
        for part in thawed:
            for link in self._links_of(part):
                link.enable_update()
        self._hold_frozen()  # another frozen part may share some of these links

    def _named_parts(self, names: tuple[Part, ...]) -> frozenset[Part]:
        """The parts that freeze and thaw are given."""
        parts: set[Part] = set()
        for name in names:
            if name == 'exits':
                parts.update(range(self.numexits()))
            elif name == 'trunk':
                parts.add(name)
            elif isinstance(name, (int, np.integer)) and not isinstance(name, bool) and 0 <= name < self.numexits():
                parts.add(int(name))
            else:
                raise ValueError(
                    f"the part to freeze or thaw is {name!r}: expected 'trunk', 'exits' or an exit from 0 to "
                    f'{self.numexits() - 1}'
                )
        return frozenset(parts)

    def _links_of(self, part: Part) -> list[chainer.Link]:
        """The links of a part."""
        if part == 'trunk':
            return self.models[-1][: self.models[-1].endi]
        return self.models[part][self.models[part].endi :]

    def _hold_frozen(self) -> None:
        """Keeps the optimisers that are set up now from changing what is frozen."""
        for part in self.frozen:
            for link in self._links_of(part):
                link.disable_update()

    def check_thawed(self, part: Part) -> None:
        """Raises ValueError if a part, 'trunk' or the number of an exit, is frozen."""
        if part in self.frozen:
            name = part if part == 'trunk' else f'exit {part}'
            raise ValueError(f'{name} is frozen and cannot be trained: call net.thaw({part!r}) first')

    @contextlib.contextmanager
    def _mode(self, part: Part) -> Iterator[None]:
        """The context in which a part runs: where it is frozen, in testing mode, and a trunk without a graph."""
        if part not in self.frozen:
            yield
            return
        # Outside of training, the caller says whether there is a graph: an export and the cost are read from one.
        needs_no_graph = part == 'trunk' and chainer.config.train
        with inference_mode() if needs_no_graph else chainer.using_config('train', False):
            yield

    def dtypes(self) -> list[np.dtype]:
        """The dtypes of floating parameters, each once; two where batch normalisation stays float32 beside float16."""
        return sorted({p.dtype for p in self.params(include_uninit=False) if p.dtype.kind == 'f'}, key=str)

    @property
    def gpu(self) -> bool:
        """Whether the parameters are on a GPU."""
        return self.xp is not np

    # The methods of a Chain, in which each link of the shared trunk occurs once, under main's path

    def namedlinks(self, skipself: bool = False) -> Iterator[tuple[str, chainer.Link]]:
        """(path, link) of every link, each once."""
        return _once(super().namedlinks(skipself))

    def links(self, skipself: bool = False) -> Iterator[chainer.Link]:
        """Every link, once."""
        return (link for _, link in self.namedlinks(skipself))

    def namedparams(self, include_uninit: bool = True) -> Iterator[tuple[str, chainer.Parameter]]:
        """(path, parameter) of every parameter, each once."""
        return _once(super().namedparams(include_uninit))

    def params(self, include_uninit: bool = True) -> Iterator[chainer.Parameter]:
        """Every parameter, once."""
        return (param for _, param in self.namedparams(include_uninit))

    def addgrads(self, link: chainer.Link) -> None:
        """Adds the gradients of another BranchyNet of the same structure, each once."""
        for param, other in zip(self.params(), link.params()):
            param.addgrad(other)

    def serialize(self, serializer: Any) -> None:
        """Saves or loads all parameters and running statistics, each once, thresholdExits and temperatures if set."""
        self.main.serialize(serializer['main'])
        for k, model in enumerate(self.models):
            for i in range(model.endi, len(model)):
                model[i].serialize(serializer['models'][str(k)][str(i)])
        for name in exits.SAVED_SETTINGS:
            self._serialize_setting(serializer, name)

    def _serialize_setting(self, serializer: Any, name: str) -> None:
        """Keeps a setting in the file if it is set; a file without it leaves the net's as it is."""
        value = getattr(self, name)
        if isinstance(serializer, chainer.Serializer):
            if value is not None:
                serializer(name, np.array(exits.closed(value), float))
            return
        try:
            value = serializer(name, None)
        except KeyError:
            return
        if value is not None:
            setattr(self, name, value.tolist())

    def copy(self, mode: str = 'share') -> BranchyNet:
        """A copy with one trunk and optimisers of its own; for the modes see chainer.Link.copy."""
        if mode == 'copy':
            return copy.deepcopy(self)
        new = super().copy(mode)
        copies: dict[int, chainer.Link] = {}  # by the link's identity, as a link may have several places in a net
        for net, of_new in zip([self.main, *self.models], [new.main, *new.models]):
            for i, link in enumerate(net if isinstance(net, Net) else []):  # a chain's own copy is whole
                of_new[i] = copies.setdefault(id(link), of_new[i])
        new._setup_optimizers()
        new.clearLearnedExitsThresholds()
        return new

    # Checks

    def _check_settings(self) -> None:
        count = self.numexits() - 1
        exits.check_settings({name: getattr(self, name) for name in exits.SAVED_SETTINGS}, self.numexits())
        if self.percentTrainExits is not None:
            check_per_exit('percentTrainExits', self.percentTrainExits, count, share=True)
        check_per_exit('percentTrainKeeps', self.percentTrainKeeps, count, share=True)
        check_per_exit('percentTestExits', self.percentTestExits, count, share=True)
        for k, model in enumerate(self.models):
            check_number(f'weight of exit {k}', model.weight)

    def checked(self, x: Array, t: Array | None = None) -> tuple[Array, Array | None]:
        """Checks a batch and the net's settings.

        Args:
            x: samples (B, ...), of the parameters' dtype, or integers for a first link that takes them.
            t: labels (B,), signed integers from 0, or None.

        Returns:
            (x, t) as arrays on the net's device.

        Raises:
            TypeError: an array or a setting has the wrong type, or an array the wrong dtype.
            ValueError: a shape is wrong, a setting or a label is out of range, or x holds NaN or infinity.
        """
        self._check_settings()
        x = self._checked_x(x)
        if t is not None:
            t = self.device.send(checked_labels(t, x))
        return self.device.send(x), t

    def check_data(self, x: Array, t: Array, sample: Array) -> None:
        """Checks a whole data set as `checked` does, before the net is trained on a part of it.

        Args:
            x: samples (N, ...).
            t: labels (N,).
            sample: an input (1, ...), which is run to find the number of classes.

        Raises:
            TypeError: as in `checked`.
            ValueError: as in `checked`, or a label is beyond the classes.
        """
        t = checked_labels(t, self._checked_x(x))
        with inference_mode():
            sample, _ = self.checked(sample)
            check_within(t, self.exit(0, self.one_pass()(0, sample)).shape[1])

    def _checked_x(self, x: Array) -> Array:
        x = checked_array('x', x)
        if x.dtype.kind not in 'fiu':
            raise TypeError(f'x has dtype {x.dtype}: expected numbers')
        if x.dtype.kind == 'f' and not any(p.dtype == x.dtype for p in self.params(include_uninit=False)):
            expected = ' or '.join(map(str, self.dtypes()))
            if expected:
                raise TypeError(f'x has dtype {x.dtype}: expected {expected}, the dtype of the parameters')
        if x.size == 0:
            raise ValueError(f'x has shape {x.shape}: expected at least one sample')
        xp = get_array_module(x)
        # A quick test first: if any value is NaN or infinite, so is the difference.
        if not xp.isfinite(x.max() - x.min()) and not xp.isfinite(x).all():
            sample = int((~xp.isfinite(x)).reshape(len(x), -1).any(axis=1).argmax())
            raise ValueError(f'x holds NaN or infinity, first in sample {sample}: expected finite numbers')
        return x


class ChainNet(BranchyNet):
    """A BranchyNet whose trunk is a whole chain, with exits after some of its layers.

    Args:
        chain: the chain.
        branches: the Branch of each exit, by the path of its layer, in the order of the layers' calls.
        logits: as of Trunk.
        last: links that run on the chain's output, and the weight of the last exit.
        **settings: as of BranchyNet.

    Attributes:
        main: the Trunk, which gives the last exit's logits.
        models: a Net of the own links of every exit; that of the last one is empty.
    """

    def __init__(
        self, chain: chainer.Link, branches: Mapping[str, Branch], logits: str | None, last: Branch, **settings: Any
    ) -> None:
        super().__init__([*branches.values(), Branch([], last.weight)], **{**settings, 'verbose': False})
        del self.main  # of a network of branches alone
        with self.init_scope():
            self.main = Trunk(chain, list(branches), logits, list(last))
        self._setup_optimizers()
        self.verbose = settings.get('verbose', False)
        if self.verbose:
            self.print_models()

    def checked(self, x: Array, t: Array | None = None) -> tuple[Array, Array | None]:
        """As of BranchyNet; the first batch is also read (see from_chain)."""
        x, t = super().checked(x, t)
        if not self.main.is_read:
            with _reading:
                if not self.main.is_read:
                    read(self.main, x, self.exit, lambda: self.main.new_pass(self.main.layers, self._mode('trunk')))
        return x, t

    def one_pass(self) -> Stage:
        """As of BranchyNet. Where samples are left, the pass ends when the result is deleted."""
        return self.main.one_pass(self.main.layers, self._mode('trunk'))

    def stage(self, k: int, x: Array) -> chainer.Variable:
        """As of BranchyNet, for the first stage alone.

        Raises:
            ValueError: k is not 0: the other stages belong to a pass.
        """
        if k != 0:
            raise ValueError(
                f'stage {k} cannot run alone: call stage = net.one_pass(), then stage(0, x), stage(1, h), ...'
            )
        return self.one_pass()(0, x)

    def train_branch(self, i: int, x: Array, t: Array) -> tuple[float, float]:
        """As of BranchyNet.

        Raises:
            ValueError: as of BranchyNet; also for the last exit, which has no links of its own.
        """
        if i == self.numexits() - 1:
            raise ValueError(f'exit {i} is the end of the chain and has no links of its own: call train_main')
        return super().train_branch(i, x, t)

    def _named_parts(self, names: tuple[Part, ...]) -> frozenset[Part]:
        last = self.numexits() - 1
        if last in names:
            raise ValueError(f"exit {last} is the end of the chain and has no links of its own: name 'trunk'")
        return super()._named_parts(names) - {last}

    def serialize(self, serializer: Any) -> None:
        """As of BranchyNet; the file also names the layers with exits.

        Raises:
            OSError: the file is of a net with exits at other layers; this net is unchanged.
        """
        layers = '\n'.join(self.main.layers).encode()
        if isinstance(serializer, chainer.Serializer):
            serializer(LAYERS, np.frombuffer(layers, np.uint8))
        else:
            try:
                found = serializer(LAYERS, None)
            except KeyError:
                found = None
            if found is not None and found.tobytes() != layers:  # a file of an earlier version does not name them
                other, own = (text.decode(errors='replace').replace('\n', ', ') for text in (found.tobytes(), layers))
                raise OSError(f'the file is of a net with exits at {other}, and this one has them at {own}')
        super().serialize(serializer)

    def _links_of(self, part: Part) -> list[chainer.Link]:
        return [self.main] if part == 'trunk' else super()._links_of(part)


_reading = threading.RLock()  # a layer may be a net that reads a chain


def check_net(net: Any) -> None:
    """Raises TypeError unless ``net`` is a BranchyNet."""
    if not isinstance(net, BranchyNet):
        raise TypeError(f'net is a {type(net).__name__}: expected a BranchyNet, which has exits')


def _check_network(network: list[chainer.Link]) -> None:
    check_links('network', network)
    if not network or not isinstance(network[-1], Branch):
        last = f'ends with a {type(network[-1]).__name__}' if network else 'is empty'
        raise ValueError(f'network {last}: its last element must be a Branch, the final exit')


def _exit_nets(network: list[chainer.Link]) -> list[Net]:
    """A Net for every Branch of the list: the trunk's links before it, then its own."""
    trunk: list[chainer.Link] = []
    nets, starti = [], 0
    for link in network:
        if not isinstance(link, Branch):
            trunk.append(link)
            continue
        net = Net(link.weight)
        net.starti, net.endi = starti, len(trunk)
        starti = net.endi
        for part in [*trunk, *link]:
            net.append(part)
        nets.append(net)
    return nets


def _unowned(k: int, links: Sequence[chainer.Link], owned: set[int]) -> list[chainer.Link]:
    """The links of exit k that no optimiser has yet, so that a step moves what exits share once.

    Args:
        k: the exit, from 0.
        links: its own links.
        owned: identities of the parameters that optimisers have; those of the result are added.

    Raises:
        ValueError: a link shares some of its parameters, and has others of its own.
    """
    result = []
    for link in links:
        params = {id(param) for param in link.params()}
        if params.isdisjoint(owned):
            result.append(link)
            owned |= params
        elif not params <= owned:
            raise ValueError(
                f'a {type(link).__name__} of exit {k} shares some of its parameters with another part of the network: '
                'make what is shared a link of its own in the Branch'
            )
    return result


def check_same_classes(logits: Sequence[Array]) -> None:
    """Raises ValueError unless the exits' logits (B, C) have the same classes."""
    shapes = [of_exit.shape[1:] for of_exit in logits]
    for k, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(
                f'exit {k} gives logits of shape {shape} for a sample, exit 0 {shapes[0]}: expected (classes,), the '
                'same at every exit'
            )


def loss_and_accuracy(logits: chainer.Variable, t: Array) -> tuple[chainer.Variable, chainer.Variable]:
    """Softmax cross entropy and accuracy of logits.

    Args:
        logits: Variable (B, C).
        t: labels (B,).

    Returns:
        (loss, accuracy), Variables ().

    Raises:
        ValueError: the logits have other axes, or a label is beyond the classes.
    """
    if logits.ndim != 2:
        raise ValueError(f'an exit gives logits of shape {logits.shape[1:]} for a sample: expected (classes,)')
    check_within(t, logits.shape[1])
    return F.softmax_cross_entropy(logits, t), chainer.Variable(exits.accuracy(chainer.as_array(logits), t))


def step(
    loss: chainer.Variable | tape.Value, optimizers: list[Any], before_update: Callable[[], None] = lambda: None
) -> None:
    """Updates the parameters of optimisers by the gradients of a loss.

    Args:
        loss: a scalar.
        optimizers: optimisers whose parameters the loss depends on.
        before_update: called when all gradients are there.
    """
    for optimizer in optimizers:
        optimizer.target.cleargrads()
    loss.backward()
    before_update()
    for optimizer in optimizers:
        optimizer.update()


def _test_net(net: Net, x: Array, t: Array | None) -> tuple[float, float]:
    with inference_mode():
        start = time.perf_counter()
        logits = chainer.as_array(net(x))
        seconds = time.perf_counter() - start
    return math.nan if t is None else _count_correct(logits, t) / len(x), seconds


def _count_correct(logits: Array, t: Array) -> int:
    if len(t):
        check_within(t, logits.shape[1])
    return int((exits.labels(logits) == t).sum())


def _once(named: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Leaves out the (name, object) pairs whose object came before."""
    seen = set()
    for name, value in named:
        if id(value) not in seen:
            seen.add(id(value))
            yield name, value
