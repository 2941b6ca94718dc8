"""BranchyNet: one trunk, its exits, and the baseline that shares the trunk.

The paper is Teerapittayanon, McDanel, Kung: BranchyNet: Fast Inference via Early Exiting from Deep
Neural Networks, ICPR 2016. Names and results are those of its authors' release; docs/fidelity.md
lists what differs from it, and why.
"""
from __future__ import annotations

import contextlib
import copy
import math
import time
from typing import Iterator, NamedTuple

from branchynet import _chainer  # noqa: F401
import chainer
import chainer.functions as F
from chainer.backend import get_array_module
from chainer.backends.cuda import to_cpu
import numpy as np

from branchynet import exits
from branchynet.exits import Array, check_per_exit
from branchynet.functions import rows
from branchynet.links.links import Branch, Net, check_links
from branchynet.timing import now
from branchynet.progress import progress
from branchynet.training import batches, check_pairs


class Leaving(NamedTuple):
    """The n samples that leave at an exit.

    Attributes:
        index: integers (n,), their places in the batch, in rising order.
        logits, prob: (n, C), the exit's output and its softmax.
        entropy: (n,), nats.
        seconds: of the trunk's stage before the exit, which all samples that reach the exit went through.
    """
    index: Array
    logits: Array
    prob: Array
    entropy: Array
    seconds: float


class Look(NamedTuple):
    """The answer of one exit to all B samples of a batch.

    Attributes:
        prob: (B, C), the softmax. entropy: (B,), nats.
        released: seconds of the trunk's stage before the exit.
        whole: seconds of that stage, the exit's links, softmax and entropy.
    """
    prob: Array
    entropy: Array
    released: float
    whole: float


@contextlib.contextmanager
def inference_mode() -> Iterator[None]:
    """Chainer in testing mode, without graphs."""
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        yield


class BranchyNet(chainer.Chain):
    """A network with early exits, trained jointly.

    Methods take NumPy or CuPy arrays or Variables: x (B, ...) of the parameters' dtype, t (B,)
    integer labels. They raise TypeError or ValueError, before any parameter changes, where these do
    not fit. ``train*`` and ``find_*`` run in training mode, all others in testing mode.

    Args:
        network: list of links, which become the net's own; a Branch in it marks an exit, and its last
            element is a Branch.
        thresholdExits: entropy (nats) below which a sample leaves at an exit: a number or a list,
            one for every exit but the last. Training drops samples by it too.
        percentTestExits: where there are no thresholds, the share of samples of lowest entropy that
            leaves: a number, of those that reach the exit; a list, of the whole batch.
        percentTrainKeeps: where there are no thresholds, the share of samples that training carries
            on past an exit: a number or a list, as above.
        lr, momentum, weight_decay: of MomentumSGD.
        alpha: of the trunk's Adam; the exits' own links keep Chainer's default, as released.
        opt: 'Adam' or 'MomentumSGD'.
        joint: False: only the last exit's gradient reaches the trunk.
        verbose: print the models once built.

    Attributes:
        main: Net of the trunk and its own copy of the final exit: the baseline.
        models: one Net per exit, the trunk up to it and the exit's own links. The trunk's links are
            the very objects of ``main``.
        optimizer, optimizers: of ``main``; of every exit's own links.
        percentTrainExits: None, or the share that training drops at an exit (in place of
            percentTrainKeeps).
        forwardMain: None, or anything else to let main's loss take the last exit's place in training
            the trunk.
    """

    def __init__(self, network, thresholdExits=None, percentTestExits=.9, percentTrainKeeps=1., lr=0.1,
                 momentum=0.9, weight_decay=0.0001, alpha=0.001, opt="Adam", joint=True, verbose=False):
        super().__init__()
        _check_network(network)
        if opt not in ('Adam', 'MomentumSGD'):
            raise ValueError("opt is %r: expected 'Adam' or 'MomentumSGD'" % (opt,))
        self.thresholdExits = thresholdExits
        self.percentTestExits = percentTestExits
        self.percentTrainKeeps = percentTrainKeeps
        self.percentTrainExits = None
        self.forwardMain = None
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
        # The head is copied as a list, so that blocks keep their weights (see ResBlock).
        trunk, head = nets[-1][:nets[-1].endi], copy.deepcopy(list(network[-1]))
        for link in trunk + head:
            self.main.append(link)
        self._check_settings()
        self._setup_optimizers()
        self.clearLearnedExitsThresholds()
        if verbose:
            self.print_models()

    def _setup_optimizers(self):
        self.optimizer = self._make_optimizer(self.main, self.alpha, self.momentum)
        # The exits' own links: Chainer's default alpha and a momentum of 0.9, whatever was given.
        self.optimizers = [
            self._make_optimizer(chainer.ChainList(*model[model.endi:]), 0.001, 0.9) for model in self.models]

    def _make_optimizer(self, target, alpha, momentum):
        if self.opt == 'Adam':
            return chainer.optimizers.Adam(alpha=alpha).setup(target)
        optimizer = chainer.optimizers.MomentumSGD(self.lr, momentum).setup(target)
        optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(self.weight_decay))
        return optimizer

    # Training

    def train_main(self, x, t):
        """One step of main alone on x (B, ...), t (B,): returns (loss, accuracy)."""
        return _train_net(self.main, self.optimizer, *self.checked(x, t))

    def train(self, x, t):
        """One joint step (section III of the paper) on x (B, ...), t (B,).

        Returns:
            (losses, accuracies): a float per exit, over the samples that reach it, 0 where none does.
        """
        x, t = self.checked(x, t)
        with chainer.using_config('train', True):
            losses, accuracies, total = self._joint(x, t)
        _step(total, [self.optimizer] + self.optimizers)
        return [float(loss.array) for loss in losses], [float(a.array) for a in accuracies]

    def train_branch(self, i, x, t):
        """One step of exit i's own links alone on x (B, ...), t (B,): returns (loss, accuracy)."""
        if not 0 <= i < self.numexits():
            raise ValueError('exit is %s: expected 0 to %d' % (i, self.numexits() - 1))
        x, t = self.checked(x, t)
        model = self.models[i]
        with chainer.using_config('train', True), chainer.no_backprop_mode():
            h = chainer.as_array(model(x, endi=model.endi))
        return _train_net(model, self.optimizers[i], h, t, starti=model.endi)

    def forward(self, x, t):
        """The joint loss (a Variable), for Chainer's updaters and evaluators.

        Reports ``loss``, and ``exit<k>/loss`` and ``exit<k>/accuracy`` of every exit. In testing mode
        no sample is dropped on the way. An optimiser that is set up on the whole net takes the place
        of ``optimizer`` and ``optimizers``.
        """
        losses, accuracies, total = self._joint(*self.checked(x, t))
        report = {'loss': total}
        for k in range(self.numexits()):
            report['exit%d/loss' % k] = losses[k]
            report['exit%d/accuracy' % k] = accuracies[k]
        chainer.report(report, self)
        return total

    def _joint(self, x, t):
        """(loss per exit, accuracy per exit, weighted sum of losses), all Variables."""
        total = 0
        if self.forwardMain is not None:
            total, _ = _loss(self.main(x), t)
        batch = len(t)
        losses, accuracies = [], []
        for k, model in enumerate(self.models):
            if len(t) == 0:
                losses.append(chainer.Variable(self.xp.zeros((), x.dtype)))
                accuracies.append(losses[-1])
                continue
            x = self.stage(k, x)
            logits = self.exit(k, x if self._reaches_trunk(k) else chainer.as_array(x))
            loss, accuracy = _loss(logits, t)
            losses.append(loss)
            accuracies.append(accuracy)
            total += model.weight * loss
            if chainer.config.train and k < self.numexits() - 1:
                kept = self._kept(k, logits, batch)
                if kept is not None:
                    x, t = rows(x, kept), t[kept]
        return losses, accuracies, total

    def _reaches_trunk(self, k):
        """Whether exit k's loss trains the trunk."""
        if k == self.numexits() - 1:
            return self.forwardMain is None
        return self.joint

    def _kept(self, k, logits, batch):
        """Indices of the samples that training carries on past exit k; None for all of them."""
        rule = self._training_rule()
        if isinstance(rule, exits.Shares) and rule.count(k, len(logits), batch) <= 0:
            return None  # no entropy is needed
        entropy = exits.answer(logits.array).entropy
        dropped = rule.leaves(k, entropy, batch)
        if dropped.any():
            self._learned[k].append(float(entropy[dropped].max()))
        return self.xp.flatnonzero(~dropped)

    def _training_rule(self):
        """The rule by which training drops samples."""
        if self.thresholdExits is not None:
            return exits.Thresholds(self.thresholdExits)
        if self.percentTrainExits is not None:
            return exits.Shares(self.percentTrainExits)
        return exits.Shares(self.percentTrainKeeps, stay=True)

    def getLearnedExitsThresholds(self):
        """The entropy up to which training dropped samples, per exit but the last.

        Returns:
            List of floats (nats): the mean over the steps since the last clear, NaN where none was dropped.
        """
        return [float(np.mean(cuts)) if cuts else math.nan for cuts in self._learned]

    def clearLearnedExitsThresholds(self):
        """Forgets the steps behind getLearnedExitsThresholds."""
        self._learned = [[] for _ in range(self.numexits() - 1)]

    # Inference

    def test(self, x, t=None):
        """Early-exit classification of x (B, ...).

        Returns:
            (accuracy, accuracy per exit, samples per exit, seconds): accuracies are 0 at an exit where
            none left, and NaN without labels. The clock is the released one: it runs in the trunk's
            stages only, and does not wait for a GPU.
        """
        x, t = self.checked(x, t)
        counts, correct, seconds = [0] * self.numexits(), [0] * self.numexits(), 0.
        with inference_mode():
            for k, left in enumerate(self.leave(x, self._testing_rule())):
                seconds += left.seconds
                counts[k] = len(left.index)
                correct[k] = math.nan if t is None else _count_correct(left.logits, t[left.index])
        accuracies = [c / n if n else 0. for c, n in zip(correct, counts)]
        return sum(correct) / len(x), accuracies, counts, seconds

    def run(self, x):
        """Logits (B, C) of the exit at which every sample of x leaves, in the order of x."""
        x, _ = self.checked(x)
        with inference_mode():
            parts = list(self.leave(x, self._testing_rule()))
        first = parts[0].logits
        result = self.xp.empty((len(x), first.shape[1]), first.dtype)
        for part in parts:
            result[part.index] = part.logits
        return result

    def test_main(self, x, t=None):
        """main on x (B, ...): returns (accuracy (NaN without labels), seconds of the whole forward)."""
        return _test_net(self.main, *self.checked(x, t))

    def run_main(self, x):
        """main's logits (B, C) for x (B, ...)."""
        x, _ = self.checked(x)
        with inference_mode():
            return chainer.as_array(self.main(x))

    def get_SM(self, x):
        """Softmax of every exit for every sample of x (B, ...), without early exit: a list of (B, C)."""
        return [look.prob for look in self.look(x)]

    def leave(self, x: Array, rule: exits.Rule) -> Iterator[Leaving]:
        """Early exit, exit by exit, for x (B, ...).

        The caller must set inference mode and move x to the net's device.

        Args:
            rule: decides which samples leave; at the last exit all do.

        Yields:
            A Leaving for every exit, up to the one at which the last samples leave.
        """
        index, batch = self.xp.arange(len(x)), len(x)
        for k in range(self.numexits()):
            start = time.perf_counter()
            x = chainer.as_array(self.stage(k, x))
            seconds = time.perf_counter() - start
            logits = chainer.as_array(self.exit(k, x))
            prob, entropy = exits.answer(logits)
            if k < self.numexits() - 1:
                leaves = rule.leaves(k, entropy, batch)
            else:
                leaves = self.xp.ones(len(index), bool)
            yield Leaving(index[leaves], logits[leaves], prob[leaves], entropy[leaves], seconds)
            if leaves.all():
                return
            index, x = index[~leaves], x[~leaves]

    def _testing_rule(self) -> exits.Rule:
        """The rule by which test and run let samples leave."""
        if self.thresholdExits is not None:
            return exits.Thresholds(self.thresholdExits)
        return exits.Shares(self.percentTestExits)

    def look(self, x: Array) -> list[Look]:
        """The answers of all exits to x (B, ...), without early exit, and their times: a Look for every exit."""
        x, _ = self.checked(x)
        result = []
        with inference_mode():
            for k in range(self.numexits()):
                start = now(self)
                x = self.stage(k, x)
                trunk = now(self)
                prob, entropy = exits.answer(self.exit(k, x).array)
                result.append(Look(prob, entropy, trunk - start, now(self) - start))
        return result

    # Thresholds

    def find_entropies(self, x, y=None, batchsize=1024):
        """Entropy of x (N, ...) at every exit but the last: a list of NumPy arrays (N,), in nats.

        In training mode and over all samples, as released; the labels ``y`` are not looked at.
        """
        check_pairs(x, x if y is None else y)
        result = []
        for part in progress(batches(len(x), batchsize), 'entropies'):
            h, _ = self.checked(x[part])
            with chainer.using_config('train', True), chainer.no_backprop_mode():
                batch = []
                for k in range(self.numexits() - 1):
                    h = self.stage(k, h)
                    batch.append(to_cpu(exits.answer(self.exit(k, h).array).entropy))
            result.append(batch)
        return [np.concatenate(parts) for parts in zip(*result)]

    def find_thresholds(self, x, y=None, percentTrainKeeps=.5, batchsize=1024):
        """Thresholds (nats) for every exit but the last, above which a share of x (N, ...) stays.

        Args:
            percentTrainKeeps: the share: a number, or a list of one for every exit but the last.
        """
        return self.find_thresholds_entropies(x, y, percentTrainKeeps, batchsize)[0]

    def find_thresholds_entropies(self, x, y=None, percentTrainKeeps=.5, batchsize=1024):
        """What find_thresholds and find_entropies return, from one pass."""
        check_per_exit('percentTrainKeeps', percentTrainKeeps, self.numexits() - 1, upper=1)
        entropies = self.find_entropies(x, y, batchsize)
        thresholds = []
        for k, ent in enumerate(entropies):
            total = len(ent)
            cut = min(int(total - exits.of_exit(percentTrainKeeps, k) * total), total - 1)
            thresholds.append(float(np.sort(ent)[cut]))
        return thresholds, entropies

    # A copy of main, to go on with beside the joint training

    def copy_main(self):
        """Copies main with its optimiser, for train_main_copy and test_main_copy."""
        self.main_copy, self.optimizer_copy = copy.deepcopy((self.main, self.optimizer))

    def train_main_copy(self, x, t):
        """train_main for the copy."""
        return _train_net(self.main_copy, self.optimizer_copy, *self.checked(x, t))

    def test_main_copy(self, x, t=None):
        """test_main for the copy."""
        return _test_net(self.main_copy, *self.checked(x, t))

    # The network's parts

    def numexits(self):
        """Number of exits, the final one counted."""
        return len(self.models)

    def stage(self, k, x):
        """The trunk from exit k - 1 (from the input for 0) to exit k."""
        model = self.models[k]
        return model(x, starti=model.starti, endi=model.endi)

    def exit(self, k, h):
        """Logits of exit k for the trunk's features there."""
        model = self.models[k]
        return model(h, starti=model.endi)

    def print_models(self):
        """Prints main and the model of every exit, link by link."""
        for name, net in [('main', self.main)] + [('exit %d' % k, m) for k, m in enumerate(self.models)]:
            print('%s: %s' % (name, ' '.join(type(link).__name__ for link in net)))

    def training(self):
        """Puts Chainer (``chainer.config.train``) into training mode, for direct calls of nets and links."""
        chainer.config.train = True

    def testing(self):
        """Puts Chainer (``chainer.config.train``) into testing mode, for direct calls of nets and links."""
        chainer.config.train = False

    @property
    def gpu(self):
        """Whether the parameters are on a GPU."""
        return self.xp is not np

    # What Chainer asks of a Chain, each link of the shared trunk once: as main's

    def namedlinks(self, skipself=False):
        return _once(super().namedlinks(skipself))

    def links(self, skipself=False):
        return (link for _, link in self.namedlinks(skipself))

    def namedparams(self, include_uninit=True):
        return _once(super().namedparams(include_uninit))

    def params(self, include_uninit=True):
        return (param for _, param in self.namedparams(include_uninit))

    def addgrads(self, link):
        for param, other in zip(self.params(), link.params()):
            param.addgrad(other)

    def serialize(self, serializer):
        self.main.serialize(serializer['main'])
        for k, model in enumerate(self.models):
            for i in range(model.endi, len(model)):
                model[i].serialize(serializer['models'][str(k)][str(i)])

    def copy(self, mode='share'):
        if mode == 'copy':
            return copy.deepcopy(self)
        new = super().copy(mode)
        for model in new.models:
            model[:model.endi] = new.main[:model.endi]
        new._setup_optimizers()
        new.clearLearnedExitsThresholds()
        return new

    # Checks

    def _check_settings(self):
        count = self.numexits() - 1
        if self.thresholdExits is not None:
            check_per_exit('thresholdExits', self.thresholdExits, count)
        if self.percentTrainExits is not None:
            check_per_exit('percentTrainExits', self.percentTrainExits, count, upper=1)
        check_per_exit('percentTrainKeeps', self.percentTrainKeeps, count, upper=1)
        check_per_exit('percentTestExits', self.percentTestExits, count, upper=1)

    def checked(self, x, t=None):
        """x (B, ...) and t (B,) as arrays on the net's device.

        Raises:
            TypeError, ValueError: they, or the net's settings, cannot be right.
        """
        self._check_settings()
        x = self._checked_x(x)
        if t is not None:
            t = self.device.send(_checked_t(t, x))
        return self.device.send(x), t

    def check_data(self, x, t, sample):
        """Raises as checked does, for a whole data set, before anything is learned from a part of it.

        Args:
            sample: an input (1, ...), to see how many classes there are.
        """
        t = _checked_t(t, self._checked_x(x))
        with inference_mode():
            check_labels(self.exit(0, self.stage(0, self.checked(sample)[0])), t)

    def _checked_x(self, x):
        x = _checked_array('x', x)
        dtype = next((p.dtype for p in self.params(include_uninit=False) if p.dtype.kind == 'f'), x.dtype)
        if x.dtype.kind == 'f' and x.dtype != dtype:
            raise TypeError('x has dtype %s: expected %s, as the parameters have' % (x.dtype, dtype))
        if x.size == 0:
            raise ValueError('x has shape %s: expected at least one sample' % (x.shape,))
        xp = get_array_module(x)
        # The difference is not finite wherever a value is not, and seldom else.
        if not xp.isfinite(x.max() - x.min()) and not xp.isfinite(x).all():
            raise ValueError('x holds NaN or infinity, first in sample %d: expected numbers' % (
                (~xp.isfinite(x)).reshape(len(x), -1).any(axis=1).argmax()))
        return x


def _check_network(network):
    check_links('network', network)
    if not network or not isinstance(network[-1], Branch):
        raise ValueError('network ends with %s: expected a Branch, the final exit' % (
            type(network[-1]).__name__ if network else 'nothing'))


def _exit_nets(network):
    """A Net for every Branch of the list: the trunk's links before it, then its own."""
    trunk, nets, starti = [], [], 0
    for link in network:
        if not isinstance(link, Branch):
            trunk.append(link)
            continue
        net = Net(link.weight)
        net.starti, net.endi = starti, len(trunk)
        starti = net.endi
        for part in trunk + list(link):
            net.append(part)
        nets.append(net)
    return nets


def _checked_array(name, value):
    array = chainer.as_array(value)
    if not isinstance(array, chainer.get_array_types()):
        raise TypeError('%s is a %s: expected a NumPy or CuPy array, or a Variable' % (name, type(value).__name__))
    if array.ndim == 0:
        raise ValueError('%s has shape (): expected a batch' % name)
    return array


def _checked_t(t, x):
    t = _checked_array('t', t)
    if t.dtype.kind != 'i':
        raise TypeError('t has dtype %s: expected signed integers (int32)' % t.dtype)
    if t.shape != x.shape[:1]:
        raise ValueError('t has shape %s: expected %s, a label per sample of x' % (t.shape, x.shape[:1]))
    if t.min() < 0:
        raise ValueError('t holds the label %d: expected 0 or more' % t.min())
    return t


def _loss(logits, t):
    """Softmax cross entropy and accuracy; raises on a label beyond the classes."""
    check_labels(logits, t)
    return F.softmax_cross_entropy(logits, t), F.accuracy(logits, t)


def check_labels(logits, t):
    """Raises ValueError on a label in t (B,) beyond the classes of logits (B, C)."""
    if t.max() >= logits.shape[1]:
        raise ValueError('t holds the label %d: expected less than %d, the number of classes' % (
            t.max(), logits.shape[1]))


def _train_net(net, optimizer, x, t, starti=0):
    with chainer.using_config('train', True):
        loss, accuracy = _loss(net(x, starti=starti), t)
    _step(loss, [optimizer])
    return float(loss.array), float(accuracy.array)


def _step(loss, optimizers):
    for optimizer in optimizers:
        optimizer.target.cleargrads()
    loss.backward()
    for optimizer in optimizers:
        optimizer.update()


def _test_net(net, x, t):
    with inference_mode():
        start = time.perf_counter()
        logits = chainer.as_array(net(x))
        seconds = time.perf_counter() - start
    return math.nan if t is None else _count_correct(logits, t) / len(x), seconds


def _count_correct(logits, t):
    if len(t):
        check_labels(logits, t)
    return int((logits.argmax(axis=1) == t).sum())


def _once(named):
    """The (name, object) pairs without those whose object came before."""
    seen = set()
    for name, value in named:
        if id(value) not in seen:
            seen.add(id(value))
            yield name, value
