"""Early exit for any batch size: classify, and Compiled for the CPU."""
import math
from numbers import Real
import threading
import time
from typing import NamedTuple

from branchynet import _chainer  # noqa: F401
from chainer.backends.cuda import to_cpu
import numpy as np

from branchynet import exits
from branchynet.cpu import onednn
from branchynet.cpu.program import Program
from branchynet.cpu.threads import run
from branchynet.exits import answer, below, check_per_exit, rounded
from branchynet.net import Look, inference_mode


class Classification(NamedTuple):
    """What early exit says of N samples, in the order of the input.

    Attributes:
        label: int (N,). exit: int (N,), where each sample left.
        entropy: float (N,), nats, and prob: float (N, C), the softmax of the exit where it left.
    """
    label: np.ndarray
    exit: np.ndarray
    entropy: np.ndarray
    prob: np.ndarray


def classify(net, x, thresholds):
    """Early-exit classification of x (B, ...), for any batch size.

    Args:
        net: a BranchyNet, or a Compiled, which is many times as fast on a CPU.
        thresholds: entropy (nats) below which a sample leaves: a number, or a sequence of one for every
            exit but the last.

    Returns:
        A Classification, of NumPy arrays.

    Raises:
        TypeError, ValueError: x or the thresholds do not fit.
    """
    if isinstance(net, Compiled):
        return net.classify(x, thresholds)
    check_per_exit('thresholds', thresholds, net.numexits() - 1)
    x, _ = net.checked(x)
    with inference_mode():
        parts = [tuple(map(to_cpu, left[:4])) for left in net.leave(x, exits.Thresholds(thresholds))]
    index, _, prob, entropy = map(np.concatenate, zip(*parts))
    exit = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
    order = index.argsort()
    return Classification(prob[order].argmax(axis=1), exit[order], entropy[order], prob[order])


def is_compilable(net):
    """Whether Compiled takes a BranchyNet: float32, on the CPU, with oneDNN at hand."""
    try:
        onednn.library()
    except (OSError, ImportError):
        return False
    return not net.gpu and all(param.dtype == np.float32 for param in net.params())


class Compiled:
    """A BranchyNet compiled for inference on the CPU, with the weights that it has now.

    There is no graph, batch normalisation is folded into the convolutions, and every buffer is made
    beforehand. A batch goes up in chunks, shared among threads; samples that left take no part in what
    follows. ``test``, ``test_main`` and ``numexits`` are BranchyNet's, by ``thresholdExits`` alone.

    Raises:
        ValueError: is_compilable(net) is False.
    """

    def __init__(self, net):
        if not is_compilable(net):
            raise ValueError('net cannot be compiled: expected float32 parameters on the CPU, and oneDNN (pip '
                             'install onednn-cpu-gomp)')
        self.thresholdExits = net.thresholdExits
        self.gpu = False
        self._net = net
        self._local = threading.local()
        self._shapes = set()  # of samples that were checked before

    def numexits(self):
        """Number of exits, the final one counted."""
        return self._net.numexits()

    def classify(self, x, thresholds):
        """inference.classify."""
        return self._classify(self._given(x, None)[0], self._per_exit(thresholds))[0]

    def test(self, x, t=None):
        """BranchyNet.test."""
        x, t = self._given(x, t)
        thresholds = self._per_exit(self.thresholdExits)
        exits = [0] * self.numexits()
        correct = [0.] * self.numexits()
        if len(x) == 1:
            k, prob, _, seconds = self._leave_one(x, thresholds)
            exits[k], correct[k] = 1, math.nan if t is None else float(prob.argmax() == t[0])
        else:
            result, seconds = self._classify(x, thresholds)
            exits = np.bincount(result.exit, minlength=len(exits)).tolist()
            right = np.full(len(x), math.nan) if t is None else result.label == t
            correct = np.bincount(result.exit, right, len(exits)).tolist()
        return sum(correct) / len(x), [c / n if n else 0. for c, n in zip(correct, exits)], exits, seconds

    def test_main(self, x, t=None):
        """BranchyNet.test_main."""
        x, t = self._given(x, t)
        correct, seconds = 0, 0.
        for part in _chunks(len(x)):
            program = self._programs(x[part], main=True)
            start = time.perf_counter()
            program.run()
            seconds += time.perf_counter() - start
            if t is not None:
                correct += int((program.y[:part.stop - part.start].argmax(axis=1) == t[part]).sum())
        return math.nan if t is None else correct / len(x), seconds

    def _given(self, x, t):
        """x and t as BranchyNet.checked has them; a look is enough at one sample like others before it."""
        if (type(x) is np.ndarray and x.dtype == np.float32 and len(x) == 1 and x.shape[1:] in self._shapes
                and math.isfinite(np.vdot(x, x))
                and (t is None or type(t) is np.ndarray and t.dtype == np.int32 and t.shape == (1,) and t[0] >= 0)):
            return x, t
        x, t = self._net.checked(x, t)
        self._shapes.add(x.shape[1:])
        return x, t

    def _per_exit(self, thresholds):
        """A threshold for every exit but the last."""
        exits = self.numexits() - 1
        check_per_exit('thresholds', thresholds, exits)
        return [thresholds] * exits if isinstance(thresholds, Real) else thresholds

    def look(self, x):
        """BranchyNet.look."""
        x, _ = self._given(x, None)
        parts = [self._look(x[part]) for part in _chunks(len(x))]
        return [_together(looks) for looks in zip(*parts)]

    def _look(self, x):
        result = []
        for stage, head in self._programs(x):
            start = time.perf_counter()
            stage.run()
            trunk = time.perf_counter()
            head.run()
            prob, entropy = answer(head.y[:len(x)])
            result.append(Look(prob, entropy, trunk - start, time.perf_counter() - start))
        return result

    def _classify(self, x, thresholds):
        """(Classification, seconds in the trunk's stages)."""
        if len(x) == 1:
            k, prob, ent, seconds = self._leave_one(x, thresholds)
            return Classification(prob.argmax(axis=1), np.array([k]), ent, prob), seconds
        parts = _chunks(len(x))
        chunks = [None] * len(parts)

        def task(i):
            chunks[i] = self._classify_chunk(x[parts[i]], thresholds)

        run(task, len(parts))
        exits, ent, prob, seconds = chunks[0] if len(chunks) == 1 else _joined(chunks)
        return Classification(prob.argmax(axis=1), exits, ent, prob), seconds

    def _classify_chunk(self, x, thresholds):
        """(exit, entropy, prob, seconds in the trunk's stages)."""
        seconds, rows = 0., None  # rows: whose samples are still under way; None: all
        programs = self._programs(x)
        for k in range(len(programs)):
            stage, head = programs[k]
            start = time.perf_counter()
            stage.run()
            seconds += time.perf_counter() - start
            head.run()
            count = len(x) if rows is None else len(rows)
            prob, ent = answer(head.y[:count])
            leaves = below(ent, thresholds[k]) if k < len(thresholds) else np.ones(count, bool)
            if rows is None:
                exits, entropies, probs = np.full(len(x), k), ent, prob
            else:
                exits[rows], entropies[rows], probs[rows] = k, ent, prob
            if leaves.all():
                break
            if leaves.any():
                stays = ~leaves
                rows = np.flatnonzero(stays) if rows is None else rows[stays]
                programs = self._carried_on(programs, k, stays, len(rows), x.shape[1:])
        return exits, entropies, probs, seconds

    def _leave_one(self, x, thresholds):
        """(exit, prob (1, C), entropy (1,), seconds in the trunk's stages) of one sample."""
        seconds, cuts = 0., rounded(thresholds, np.float32)
        for k, (stage, head) in enumerate(self._programs(x)):
            start = time.perf_counter()
            stage.run()
            seconds += time.perf_counter() - start
            head.run()
            prob, ent = answer(head.y)
            if k == len(cuts) or ent[0] < cuts[k]:
                return k, prob, ent, seconds

    def _carried_on(self, programs, k, stays, count, shape):
        """Programs for the samples that stay after exit k, their features in place."""
        features = programs[k][0].y[:len(stays)][stays]
        programs = self._chain(_padded(count), shape)
        programs[k + 1][0].x[:count] = features
        return programs

    def _programs(self, x, main=False):
        """Programs for a chunk, the chunk in place."""
        programs = self._chain(_padded(len(x)), x.shape[1:], main)
        (programs if main else programs[0][0]).x[:len(x)] = x
        return programs

    def _chain(self, count, shape, main=False):
        """This thread's programs for ``count`` samples: main's, or the stage and the exit of every exit."""
        cache = self._local.__dict__
        key = count, shape, main
        if key not in cache:
            cache[key] = self._compile(np.zeros((count,) + shape, np.float32), main)
        return cache[key]

    def _compile(self, x, main):
        if main:
            return Program(self._net.main, x)
        chain = []
        for model in self._net.models:
            stage = Program(model[model.starti:model.endi], x)
            chain.append((stage, Program(model[model.endi:], stage.y)))
            x = stage.y
        return chain


_CHUNK = 32  # samples that go up together


def _chunks(count):
    return [slice(i, min(i + _CHUNK, count)) for i in range(0, count, _CHUNK)]


def _joined(chunks):
    """What _classify_chunk returned for every chunk, as for one."""
    *arrays, seconds = zip(*chunks)
    return (*map(np.concatenate, arrays), sum(seconds))


def _together(looks):
    """The Looks of one exit at several chunks, as one."""
    prob, entropy, released, whole = zip(*looks)
    return Look(np.concatenate(prob), np.concatenate(entropy), sum(released), sum(whole))


def _padded(count):
    """The size of program for so many samples: a power of two, so that there are few."""
    return 1 << (count - 1).bit_length()
