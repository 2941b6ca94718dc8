"""Early exit for any batch size: classify, and Compiled for the CPU."""
from __future__ import annotations

import copy
import math
from numbers import Real
import threading
import time
from typing import Any, Callable, NamedTuple, Optional, Sequence
import warnings

from branchynet import _chainer  # noqa: F401
import chainer
from chainer.backends.cuda import to_cpu
import numpy as np

from branchynet import exits
from branchynet.cpu import onednn
from branchynet.cpu.program import Packed, Program, Workspace
from branchynet.cpu.threads import run
from branchynet.exits import Array, Setting, answer, answer_on_cpu, below, check_per_exit, leave_at, rounded
from branchynet.net import BranchyNet, Look, check_labels, inference_mode


try:
    from branchynet.cpu.cascade import Cascade, NotCovered, NotFinite
except ImportError:  # no llvmlite
    Cascade = None

    class NotFinite(ValueError):
        """Never raised."""


class Classification(NamedTuple):
    """The result of early exit for N samples, in the order of the input.

    Attributes:
        label: int (N,), the class of highest probability.
        exit: int (N,), where each sample left, from 0.
        entropy: float (N,), nats, of the exit where it left.
        prob: float (N, C), the softmax of the exit where it left.
    """
    label: np.ndarray
    exit: np.ndarray
    entropy: np.ndarray
    prob: np.ndarray


def classify(net: BranchyNet | Compiled, x: Array, thresholds: Setting) -> Classification:
    """Early-exit classification of x (B, ...), for any batch size.

    Args:
        net: a BranchyNet, or a Compiled, which is many times as fast on a CPU.
        x: NumPy or CuPy array or Variable (B, ...), of the parameters' dtype.
        thresholds: entropy (nats) below which a sample leaves: a number, or a sequence of one for every exit but
            the last.

    Returns:
        A Classification, of NumPy arrays.

    Raises:
        TypeError: x or the thresholds have the wrong type.
        ValueError: x or the thresholds do not fit, x holds NaN, or an exit's answer is NaN.
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
    return _without_nan(Classification(prob[order].argmax(axis=1), exit[order], entropy[order], prob[order]))


def _without_nan(result: Classification) -> Classification:
    """The result.

    Raises:
        ValueError: an answer is NaN.
    """
    if math.isnan(result.entropy.sum()):
        sample = np.isnan(result.entropy).argmax()
        raise ValueError(f'exit {result.exit[sample]} answers NaN, first for sample {sample}: the weights hold NaN, or '
                         'are so large that numbers overflow')
    return result


def is_compilable(net: BranchyNet) -> bool:
    """Whether Compiled takes a BranchyNet: float32 parameters on the CPU, all with a shape, and oneDNN loads."""
    return _obstacle(net) is None


def _obstacle(net: BranchyNet) -> Optional[str]:
    """The reason why a net cannot be compiled, and the remedy; None if it can be."""
    if net.gpu:
        return 'its parameters are on a GPU: call net.to_cpu() first'
    head = {id(param) for param in _main_head(net)}
    for path, param in net.namedparams():
        if not param.is_initialized:
            if id(param) not in head:
                return f'parameter {path} has no shape yet: run a batch first, for example net.get_SM(x)'
        elif param.dtype != np.float32:
            return f'parameter {path} has dtype {param.dtype}: expected float32'
    try:
        onednn.library()
    except (OSError, ImportError) as e:
        return f'oneDNN does not load ({e}): pip install onednn-cpu-gomp'
    return None


def _main_head(net: BranchyNet) -> list[chainer.Parameter]:
    """The parameters of main's own head, which have no shape while it was never run."""
    return [param for link in net.main[net.models[-1].endi:] for param in link.params()]


def _snapshot(net: BranchyNet) -> BranchyNet:
    """A copy of a net without the parts that only training needs: gradients, optimisers and their state."""
    memo: dict[int, Any] = {id(param.update_rule): None for param in net.params()}
    memo.update((id(param.grad), None) for param in net.params() if param.is_initialized and param.grad is not None)
    for name in 'optimizer', 'optimizers', 'main_copy', 'optimizer_copy':
        memo[id(getattr(net, name, None))] = None
    return copy.deepcopy(net, memo)


class Compiled:
    """A BranchyNet compiled for inference on the CPU, with the weights that it has at that moment.

    It keeps a copy of the weights, so training, changing or deleting the net afterwards does not change its answers.
    It can be pickled, copied, and sent to another process.

    There is no graph, batch normalisation is folded into the convolutions, and all buffers are preallocated. Batches
    are split into chunks shared among threads; samples that have exited are dropped from later stages. Where all links
    have a kernel of branchynet.cpu.cascade, samples run through stages, exits and the exit rule in machine code, one
    after the other. Else stages are called one by one, and links that the compiler does not know by their exact class,
    and links with hooks, are called as they are. While a link hook
    is on for all links (``with hook:``), the copy of the net answers in Chainer, so that the hook sees its links.

    ``test``, ``test_main``, ``look`` and ``numexits`` are those of BranchyNet; ``test`` lets samples leave by
    ``thresholdExits`` alone.

    Args:
        net: a BranchyNet.

    Attributes:
        thresholdExits: for ``test``, in nats: a number, or a list of one for every exit but the last. At first the
            net's.

    Raises:
        ValueError: is_compilable(net) is False; the message says why.
    """

    gpu = False

    def __init__(self, net: BranchyNet) -> None:
        obstacle = _obstacle(net)
        if obstacle is not None:
            raise ValueError(f'net cannot be compiled: {obstacle}')
        self.thresholdExits = net.thresholdExits
        self._net = _snapshot(net)
        self._forget()

    def _forget(self) -> None:
        """Starts without programs: they are compiled when they are first needed."""
        self._local = threading.local()
        self._packed = Packed()
        self._lock = threading.Lock()
        self._cascades: dict[tuple[int, ...], Optional[Cascade]] = {}  # by the shape of a sample
        self._samples: set[tuple] = set()  # shapes of float32 samples that the net was found to take
        self._has_main_head = all(param.is_initialized for param in _main_head(self._net))
        self._checked: dict[Any, tuple] = {}  # thresholds that were checked, and their cuts

    def __getstate__(self) -> dict[str, Any]:
        return {'thresholdExits': self.thresholdExits, '_net': self._net}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def numexits(self) -> int:
        """Number of exits, including the final one."""
        return self._net.numexits()

    def classify(self, x: Array, thresholds: Setting) -> Classification:
        """inference.classify."""
        cuts = self._cuts('thresholds', thresholds)
        x, _ = self._given(x, None)
        if chainer._get_link_hooks():
            return classify(self._net, x, cuts)
        if len(x) > 1 or self._cascade(x):
            return _without_nan(self._classify(x, cuts)[0])
        k, prob, entropy, _ = self._leave_one(x, cuts)
        result = Classification(prob.argmax(axis=1), np.array([k]), entropy, prob)
        return result if entropy.item() >= 0 else _without_nan(result)

    def test(self, x: Array, t: Optional[Array] = None) -> tuple[float, list[float], list[int], float]:
        """BranchyNet.test, by thresholdExits."""
        cuts = self._cuts('thresholdExits', self.thresholdExits)
        x, t = self._given(x, t)
        if chainer._get_link_hooks():
            self._net.thresholdExits = list(cuts)
            return self._net.test(x, t)
        counts = [0] * self.numexits()
        if len(x) == 1:
            label, k, seconds = self._test_one(x, t, cuts)
            right = math.nan if t is None else float(label == t[0])
            accuracies = [0.] * len(counts)
            counts[k], accuracies[k] = 1, right
            return right, accuracies, counts, seconds
        result, seconds = self._classify(x, cuts)
        if t is not None:
            check_labels(result.prob, t)
        counts = np.bincount(result.exit, minlength=len(counts)).tolist()
        right = np.full(len(x), math.nan) if t is None else result.label == t
        correct = np.bincount(result.exit, right, len(counts)).tolist()
        return sum(correct) / len(x), [c / n if n else 0. for c, n in zip(correct, counts)], counts, seconds

    def test_main(self, x: Array, t: Optional[Array] = None) -> tuple[float, float]:
        """BranchyNet.test_main."""
        x, t = self._given(x, t)
        if chainer._get_link_hooks():
            return self._net.test_main(x, t)
        self._check_main_head()
        cascade = self._cascade(x)
        if cascade is not None and len(x) == 1:
            self._check_label(cascade, t)
            start = time.perf_counter()
            label = self._natively(cascade.main_one, x)
            return math.nan if t is None else float(label == t[0]), time.perf_counter() - start
        parts = _chunks(len(x))
        labels, seconds = np.empty(len(x), int), [0.] * len(parts)

        def task(i: int) -> None:
            start = time.perf_counter()
            logits = self._main(x[parts[i]]) if cascade is None else cascade.main(x[parts[i]])
            seconds[i] = time.perf_counter() - start
            if t is not None:
                check_labels(logits, t)
            labels[parts[i]] = logits.argmax(axis=1)

        x = np.ascontiguousarray(x)
        run(task, len(parts), around=onednn.single_threaded)
        return math.nan if t is None else float((labels == t).mean()), sum(seconds)

    def _main(self, x: np.ndarray) -> np.ndarray:
        program = self._programs(x, main=True)
        program.run()
        return program.y[:len(x)]

    def _check_main_head(self) -> None:
        if not self._has_main_head:
            raise ValueError("main's head has no weights: call net.train_main or net.run_main(x) before Compiled(net)")

    def look(self, x: Array) -> list[Look]:
        """BranchyNet.look."""
        x, _ = self._given(x, None)
        if chainer._get_link_hooks():
            return self._net.look(x)
        cascade, x = self._cascade(x), np.ascontiguousarray(x)
        parts = [self._look(x[part]) if cascade is None else _look_natively(cascade, x[part])
                 for part in _chunks(len(x))]
        return [_together(looks) for looks in zip(*parts)]

    def _given(self, x: Array, t: Optional[Array]) -> tuple[np.ndarray, Optional[np.ndarray]]:
        """x and t as BranchyNet.checked returns them, and x of a shape that the net takes."""
        # Fast path: skip full validation for one sample like others that were validated. Machine code looks for
        # numbers that are not finite itself.
        if (type(x) is np.ndarray and x.dtype == np.float32 and len(x) == 1 and x.shape[1:] in self._samples
                and (self._cascades.get(x.shape[1:]) is not None or _is_finite(x.ravel()))
                and (t is None or type(t) is np.ndarray and t.dtype == np.int32 and t.shape == (1,) and t[0] >= 0)):
            return x, t
        x, t = self._net.checked(x, t)
        if x.dtype != np.float32 or x.shape[1:] not in self._samples:
            try:
                self._net.get_SM(x[:1])
            except (TypeError, ValueError):
                self._net.get_SM(x)  # raises as the net does, with the shape of the whole batch
                raise
            if x.dtype == np.float32:
                self._samples.add(x.shape[1:])
        return x, t

    def _cuts(self, name: str, thresholds: Setting) -> tuple[float, ...]:
        """A threshold for every exit but the last, rounded to float32."""
        key = tuple(thresholds) if isinstance(thresholds, list) else thresholds
        try:
            return self._checked[key]
        except (KeyError, TypeError):  # an array cannot be a key
            pass
        count = self.numexits() - 1
        check_per_exit(name, thresholds, count)
        cuts = tuple(rounded(np.broadcast_to(thresholds, count), np.float32).tolist())
        if isinstance(key, (Real, tuple)):
            if len(self._checked) >= _REMEMBERED:
                self._checked.clear()
            self._checked[key] = cuts
        return cuts

    def _look(self, x: np.ndarray) -> list[Look]:
        result = []
        with onednn.single_threaded():
            for stage, head in self._programs(x):
                start = time.perf_counter()
                stage.run()
                trunk = time.perf_counter()
                head.run()
                prob, entropy = answer(head.y[:len(x)])
                result.append(Look(prob, entropy, trunk - start, time.perf_counter() - start))
        return result

    def _classify(self, x: np.ndarray, cuts: Sequence[float]) -> tuple[Classification, float]:
        """(Classification, seconds in the trunk's stages) of a batch."""
        cascade = self._cascade(x)
        if cascade is not None:
            return self._natively(lambda x: _classify_natively(cascade, x, cuts), x)
        parts = _chunks(len(x))
        chunks: list[Any] = [None] * len(parts)

        def task(i: int) -> None:
            chunks[i] = self._classify_chunk(x[parts[i]], cuts)

        run(task, len(parts), around=onednn.single_threaded)
        exit, entropy, prob, seconds = chunks[0] if len(chunks) == 1 else _joined(chunks)
        return Classification(prob.argmax(axis=1), exit, entropy, prob), seconds

    def _cascade(self, x: np.ndarray) -> Optional[Cascade]:
        """Machine code for samples like those of x; None where a link has no kernel there."""
        if x.dtype != np.float32 or x.ndim != 4:
            return None
        shape = x.shape[1:]
        if shape not in self._cascades:
            with self._lock:
                if shape not in self._cascades:
                    self._cascades[shape] = _machine_code(self._net, shape, self._has_main_head)
        return self._cascades[shape]

    def _natively(self, call: Callable[[np.ndarray], Any], x: np.ndarray) -> Any:
        try:
            return call(x)
        except NotFinite:
            self._net.checked(x)  # names the sample
            raise

    def _test_one(self, x: np.ndarray, t: Optional[np.ndarray], cuts: Sequence[float]) -> tuple[int, int, float]:
        """(label, exit, seconds in the trunk's stages) of one sample."""
        cascade = self._cascade(x)
        if cascade is not None:
            self._check_label(cascade, t)
            return self._natively(lambda x: cascade.leave_one(x, cuts, _rule(cuts)), x)
        k, prob, _, seconds = self._leave_one(x, cuts)
        if t is not None and t[0] >= prob.shape[1]:
            check_labels(prob, t)
        return int(prob.argmax()), k, seconds

    def _check_label(self, cascade: Cascade, t: Optional[np.ndarray]) -> None:
        if t is not None and t[0] >= cascade.classes:
            check_labels(np.empty((1, cascade.classes)), t)

    def _leave_one(self, x: np.ndarray, cuts: Sequence[float]) -> tuple[int, np.ndarray, np.ndarray, float]:
        """(exit, prob (1, C), entropy (1,), seconds in the trunk's stages) of one sample."""
        seconds = 0.
        with onednn.single_threaded():
            for k, (stage, head) in enumerate(self._programs(x)):
                start = time.perf_counter()
                stage.run()
                seconds += time.perf_counter() - start
                head.run()
                prob, entropy = answer_on_cpu(head.y)
                if k == len(cuts) or entropy.item() < cuts[k]:  # exits.below, on numbers that are rounded already
                    break
        return k, prob, entropy, seconds

    def _classify_chunk(self, x: np.ndarray, cuts: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """(exit, entropy, prob, seconds in the trunk's stages)."""
        seconds, rows = 0., None  # rows: the samples that have not left; None: all
        programs = self._programs(x)
        for k in range(len(programs)):
            stage, head = programs[k]
            start = time.perf_counter()
            stage.run()
            seconds += time.perf_counter() - start
            head.run()
            count = len(x) if rows is None else len(rows)
            prob, entropy = answer(head.y[:count])
            leaves = below(entropy, cuts[k]) if k < len(cuts) else np.ones(count, bool)
            if rows is None:
                exits, entropies, probs = np.full(len(x), k), entropy, prob
            else:
                exits[rows], entropies[rows], probs[rows] = k, entropy, prob
            if leaves.all():
                break
            if leaves.any():
                stays = ~leaves
                rows = np.flatnonzero(stays) if rows is None else rows[stays]
                programs = self._carried_on(programs, k, stays, len(rows), x)
        return exits, entropies, probs, seconds

    def _carried_on(self, programs: list, k: int, stays: np.ndarray, count: int, x: np.ndarray) -> list:
        """Programs for the samples of x that stay after exit k, their features in place."""
        features = programs[k][0].y[:len(stays)][stays]
        programs = self._chain(_padded(count), x.shape[1:], x.dtype)
        programs[k + 1][0].x[:count] = features
        return programs

    def _programs(self, x: np.ndarray, main: bool = False) -> Any:
        """Programs for a chunk, the chunk in place."""
        programs = self._chain(_padded(len(x)), x.shape[1:], x.dtype, main)
        (programs if main else programs[0][0]).x[:len(x)] = x
        return programs

    def _chain(self, count: int, shape: tuple, dtype: np.dtype, main: bool = False) -> Any:
        """This thread's programs for ``count`` samples: main's, or (stage, exit's links) of every exit."""
        cache = self._local.__dict__
        key = count, shape, dtype, main
        if key not in cache:
            cache[key] = self._compile(np.zeros((count,) + shape, dtype), main)
        return cache[key]

    def _compile(self, x: np.ndarray, main: bool) -> Any:
        workspace = self._local.__dict__.setdefault('workspace', Workspace())
        if main:
            return Program(self._net.main, x, self._packed, workspace)
        chain = []
        for model in self._net.models:
            stage = Program(model[model.starti:model.endi], x, self._packed, workspace)
            chain.append((stage, Program(model[model.endi:], stage.y, self._packed, workspace)))
            x = stage.y
        return chain


def _machine_code(net: BranchyNet, shape: tuple[int, ...], with_main: bool) -> Optional[Cascade]:
    if Cascade is None:
        warnings.warn('llvmlite does not load: samples go through stages one by one, in Python; pip install llvmlite',
                      stacklevel=5)
        return None
    try:
        return Cascade(net.models, net.main if with_main else None, shape)
    except NotCovered:
        return None


def _rule(cuts: Sequence[float]) -> Callable[[np.ndarray], int]:
    """The exit rule for the logits (E, C) of one sample."""
    return lambda logits: int(leave_at(answer(logits).entropy[:, None], cuts)[0])


def _classify_natively(cascade: Cascade, x: np.ndarray, cuts: Sequence[float]) -> tuple[Classification, float]:
    parts, rule, x = _chunks(len(x)), _rule(cuts), np.ascontiguousarray(x)
    results: list[Any] = [None] * len(parts)

    def task(i: int) -> None:
        results[i] = cascade.leave(x[parts[i]], cuts, rule)

    run(task, len(parts))
    exit, score = (np.concatenate([getattr(result, name) for result in results]) for name in ('exit', 'score'))
    prob, entropy = answer(score)
    return Classification(prob.argmax(axis=1), exit, entropy, prob), sum(result.seconds for result in results)


def _look_natively(cascade: Cascade, x: np.ndarray) -> list[Look]:
    scores, released, whole = cascade.record(x)
    return [Look(*answer(score), float(trunk.sum()), float(all_of_it.sum()))
            for score, trunk, all_of_it in zip(scores, released, whole)]


_REMEMBERED = 1000  # settings of thresholds
_CHUNK = 32  # samples that are classified together


def _is_finite(x: np.ndarray) -> bool:
    """Whether a vector holds neither NaN nor infinity; False for numbers so large that their squares overflow."""
    return math.isfinite(x.dot(x))


def _chunks(count: int) -> list[slice]:
    return [slice(i, min(i + _CHUNK, count)) for i in range(0, count, _CHUNK)]


def _joined(chunks: list) -> tuple:
    """What _classify_chunk returned for every chunk, as for one."""
    *arrays, seconds = zip(*chunks)
    return (*map(np.concatenate, arrays), sum(seconds))


def _together(looks: Sequence[Look]) -> Look:
    """The Looks of one exit at several chunks, as one."""
    prob, entropy, released, whole = zip(*looks)
    return Look(np.concatenate(prob), np.concatenate(entropy), sum(released), sum(whole))


def _padded(count: int) -> int:
    """The size of the program that takes ``count`` samples: a power of two, so that there are few sizes."""
    return 1 << (count - 1).bit_length()
