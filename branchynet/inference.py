"""Early exit for any batch size: classify, and Compiled for the CPU."""

from __future__ import annotations

import contextlib
import copy
import math
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Any, Callable, NamedTuple, Optional

from branchynet import exits
from branchynet.batching import batches, check_within
from branchynet.cpu import onednn
from branchynet.cpu.engine import SAMPLES_OF_CALL, Engine, NotFinite, Result, take_turns
from branchynet.cpu.stagewise import Stagewise
from branchynet.cpu.threads import run
from branchynet.exits import (
    ENTROPY,
    Array,
    Criterion,
    Setting,
    answer,
    check_answer,
    check_criterion,
    check_per_exit,
    labels,
    leave_at,
    of_exit,
    per_exit,
    rounded,
)
from branchynet.forward import Forward
from branchynet.functions import inference_mode
from branchynet.links.links import FL, Net
from branchynet.net import BranchyNet, Look, check_net, check_same_classes

import chainer
import chainer.links as L
import numpy as np
from chainer.backends.cuda import to_cpu

try:
    from branchynet.cpu import graph, trace
    from branchynet.cpu.cascade import Cascade, NotCovered
except ImportError:  # no llvmlite
    Cascade = None  # type: ignore[assignment, misc]


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


def classify(
    net: BranchyNet | Compiled, x: Array, thresholds: Setting, criterion: Criterion = ENTROPY
) -> Classification:
    """Early-exit classification of x (B, ...), for any batch size.

    Args:
        net: a BranchyNet, or a Compiled, which is faster on a CPU (docs/inference.md).
        x: NumPy or CuPy array or Variable (B, ...), of the parameters' dtype.
        thresholds: a number, or a sequence of one for every exit but the last; None in it: no sample leaves there. With
            the criterion entropy, a sample leaves where its entropy (nats) is below.
        criterion: one of exits.CRITERIA, or one by exits.by_scores. A Compiled runs all exits for any but entropy.

    Returns:
        A Classification, of NumPy arrays.

    Raises:
        TypeError: x or the thresholds have the wrong type.
        ValueError: x or the thresholds do not fit, x holds NaN, an exit's answer is NaN, or the criterion returns
            something else than floats (B,).

    Example:
        >>> from branchynet import inference
        >>> from branchynet.datasets import mnist
        >>> from branchynet.networks import lenet_mnist
        >>> net = lenet_mnist.get_network()  # not trained: its exits are sure of nothing
        >>> _, _, x, t = mnist.get_data()
        >>> result = inference.classify(net, x[:200], thresholds=[0.1])
        >>> result.label.shape, result.prob.shape
        ((200,), (200, 10))
        >>> np.bincount(result.exit, minlength=2).tolist()  # samples that leave at each exit
        [0, 200]
    """
    if isinstance(net, Compiled):
        return net.classify(x, thresholds, criterion)
    check_net(net)
    check_per_exit('thresholds', thresholds, net.numexits() - 1)
    x, _ = net.checked(x)
    rule = exits.Thresholds(thresholds) if criterion is ENTROPY else exits.Scores(criterion, thresholds)
    with inference_mode():
        parts = [tuple(map(to_cpu, left[:4])) for left in net.leave(x, rule)]
    check_same_classes([part[1] for part in parts])
    index, logits, prob, entropy = map(np.concatenate, zip(*parts))
    exit = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
    order = index.argsort()
    return _without_nan(Classification(labels(logits[order]), exit[order], entropy[order], prob[order]))


def _without_nan(result: Classification) -> Classification:
    """The result, unless an answer in it is NaN: then raises ValueError."""
    check_answer(result.exit, result.entropy)
    return result


def check_classifier(net: Any) -> None:
    """Raises TypeError unless ``net`` is a BranchyNet or a Compiled."""
    if not isinstance(net, Compiled):
        check_net(net)


def is_compilable(net: BranchyNet) -> bool:
    """Whether Compiled takes a net.

    Its parameters are float32, on the CPU and have a shape; those before the last layers are finite; and oneDNN loads.
    """
    return _obstacle(net) is None


def _obstacle(net: BranchyNet) -> Optional[str]:
    """The reason why a net cannot be compiled, and the remedy; None if it can be."""
    found = obstacle_of_parameters(net)
    if found is not None:
        return found
    spoiled = _not_finite(net)
    if spoiled is not None:
        return f'{spoiled} holds NaN or infinity: expected finite numbers before the last layers'
    try:
        onednn.library()
    except (OSError, ImportError) as e:
        return onednn.obstacle(e)
    return None


def obstacle_of_parameters(net: BranchyNet) -> Optional[str]:
    """Why a net cannot be compiled or exported because of its parameters, and the remedy.

    They must be float32, on the CPU, and have a shape.

    Args:
        net: a BranchyNet; main's own head, and links that a chain's forward does not call, need no shape.

    Returns:
        One line; None if they are.
    """
    if net.gpu:
        return 'its parameters are on a GPU: call net.to_cpu() first'
    unused = {id(param) for param in _main_head(net)}
    # Once a chain was read, a parameter without a shape is of a link that its forward does not call.
    if not isinstance(net.main, Net) and net.main.is_read:
        unused.update(map(id, net.main.params()))
    for path, param in net.namedparams():
        if not param.is_initialized:
            if id(param) not in unused:
                return f'parameter {path} has no shape yet: run a batch first, for example net.get_SM(x)'
        elif param.dtype != np.float32:
            return f'parameter {path} has dtype {param.dtype}: expected float32'
    return None


def _not_finite(net: BranchyNet) -> Optional[str]:
    """The path of a link with weights or statistics that are not finite: oneDNN's ReLU would turn NaN into 0.

    The last layers of the exits and of main are exempt: their NaN reaches the answer, where it is an error, and -inf in
    them rules out a class.
    """
    last = {id(value) for model in (*net.models, net.main) if isinstance(model, Net) for value in _numbers(model[-1:])}
    for path, link in net.namedlinks():
        for value in _numbers([link]):
            if id(value) not in last and not np.isfinite(value).all():
                return path
    return None


def _numbers(links: Sequence[chainer.Link]) -> Iterator[np.ndarray]:
    """Yields arrays of floats that links hold themselves: parameters and running statistics."""
    for link in links:
        for name in sorted(link._params | link._persistent):
            value = chainer.as_array(getattr(link, name))
            if isinstance(value, np.ndarray) and value.dtype.kind == 'f':
                yield value


def _main_head(net: BranchyNet) -> list[chainer.Parameter]:
    """Lists the parameters of main's own head, which have no shape while it was never run; a chain has none.

    Args:
        net: a BranchyNet.
    """
    if not isinstance(net.main, Net):
        return []
    return [param for link in net.main[net.models[-1].endi :] for param in link.params()]


def _snapshot(net: BranchyNet) -> BranchyNet:
    """A copy of a net without the parts that only training needs: gradients, optimisers and their state."""
    memo: dict[int, Any] = {id(param.update_rule): None for param in net.params()}
    memo.update((id(param.grad), None) for param in net.params() if param.is_initialized and param.grad is not None)
    for name in 'optimizer', 'optimizers', 'main_copy', 'optimizer_copy', '_tapes':
        memo[id(getattr(net, name, None))] = None
    return copy.deepcopy(net, memo)


def fold_temperatures(net: BranchyNet) -> None:
    """Divides the exits' last layers by the temperatures, which the net then no longer has.

    Where an exit ends with something else than a chainer.links.Linear, a division is added to the exit. The logits are
    those before, but for the last digit.

    Args:
        net: a BranchyNet; its weights change.

    Raises:
        TypeError, ValueError: the temperatures are not a number above 0 for every exit.
    """
    if net.temperatures is None:
        return
    exits.check_temperatures(net.temperatures, net.numexits())
    for model, temperature in zip(net.models, net.temperatures):
        if not _ends_linearly(model):
            model.append(FL(_divided, temperature))
            continue
        model[-1] = copy.deepcopy(model[-1])  # another exit may share it
        for param in model[-1].params():
            param.array /= param.dtype.type(temperature)
    net.temperatures = None


def _ends_linearly(model: Net) -> bool:
    """Whether the last of an exit's own links is exactly a chainer.links.Linear."""
    return len(model) > model.endi and type(model[-1]) is L.Linear


def _divided(x: Any, number: float) -> Any:
    return x / number


class Compiled:
    """A BranchyNet compiled for inference on the CPU, with the weights that it has at that moment.

    It keeps a copy of the weights, so training, changing or deleting the net afterwards does not change its answers.
    The net's temperatures become part of the copy's last layers. It can be pickled, copied, and sent to another
    process.

    There is no graph, batch normalisation is folded into the convolutions, and all buffers are preallocated. Batches
    are split into chunks shared among threads; samples that have exited are dropped from later stages. Where all links
    have a kernel in machine code, one engine (branchynet.cpu.cascade) takes samples through stages, exits and the exit
    rule, one after the other. Otherwise another (branchynet.cpu.stagewise) calls the stages one by one; links that its
    compiler does not know by their exact class, and links with hooks, are called in Chainer. Nets of `from_chain` run
    their chain's own forward, unless they are traced. In both cases Chainer's functions have the fast kernels
    meanwhile, as in cpu.fast().
    While a link hook is on for all links (``with hook:``), the copy of the net answers in Chainer, so that the hook
    sees its links. docs/inference.md says more.

    ``test``, ``test_at``, ``test_main``, ``look`` and ``numexits`` are those of BranchyNet; ``test`` lets samples leave
    by ``thresholdExits`` alone.

    Args:
        net: a BranchyNet.
        traced: True: the functions that the net's forward calls are recorded, once for each shape of samples, and run
            in machine code. This is for nets of `from_chain`, and for lists with links that machine code does not
            know. Forward must call the same functions, with the same settings, for every sample. Where there is no
            machine code for one of them, a warning names it, and the net runs as without a trace.

    Attributes:
        thresholdExits: for ``test``, in nats: a number, or a list of one for every exit but the last. At first the
            net's.

    Raises:
        TypeError, ValueError: is_compilable(net) is False, or the temperatures do not fit; the message says why. With
            ``traced``, the first call for samples of a shape raises ValueError where the trace answers otherwise.

    Example:
        >>> from branchynet.inference import Compiled
        >>> from branchynet.networks import lenet_mnist
        >>> net = lenet_mnist.get_network(thresholdExits=[math.inf])  # all leave at the first exit
        >>> compiled = Compiled(net)
        >>> x = np.random.rand(1, 1, 28, 28).astype(np.float32)
        >>> compiled.classify(x, [math.inf]).exit.tolist()
        [0]
        >>> accuracy, accuracies, counts, seconds = compiled.test(x)
        >>> counts
        [1, 0]
    """

    gpu = False

    def __init__(self, net: BranchyNet, traced: bool = False) -> None:
        check_net(net)
        obstacle = _obstacle(net)
        if obstacle is not None:
            raise ValueError(f'net cannot be compiled: {obstacle}')
        self.thresholdExits = copy.copy(net.thresholdExits)
        self._net = _snapshot(net)
        fold_temperatures(self._net)
        self._traced = traced
        self._forget()

    def _forget(self) -> None:
        """Starts without engines: they are compiled when they are first needed."""
        self._lock = threading.Lock()
        self._engines: dict[tuple[tuple[int, ...], np.dtype], Engine] = {}  # by shape and dtype of a sample
        self._samples: set[tuple] = set()  # shapes of float32 samples that the net was found to take
        self._has_main_head = all(param.is_initialized for param in _main_head(self._net))
        self._checked: dict[Any, tuple] = {}  # thresholds that were checked, and their cuts

    def __getstate__(self) -> dict[str, Any]:
        return {'thresholdExits': self.thresholdExits, '_net': self._net, '_traced': self._traced}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def numexits(self) -> int:
        """Number of exits, including the final one."""
        return self._net.numexits()

    def classify(self, x: Array, thresholds: Setting, criterion: Criterion = ENTROPY) -> Classification:
        """Early-exit classification of x (B, ...), for any batch size: see inference.classify."""
        if criterion is not ENTROPY:
            return self._classify_by(criterion, x, thresholds)
        cuts = self._cuts('thresholds', thresholds)
        x, _ = self._given(x, None)
        if chainer._get_link_hooks():
            return classify(self._net, x, cuts)
        result = self._leave(x, cuts)
        prob, entropy = answer(result.logits)
        return _without_nan(Classification(result.label, result.exit, entropy, prob))

    def _classify_by(self, criterion: Criterion, x: Array, thresholds: Setting) -> Classification:
        """classify by any criterion: the machine code knows entropy alone, so all exits answer all samples."""
        check_criterion(criterion)
        check_per_exit('thresholds', thresholds, self.numexits() - 1)
        looks = self.look(x)
        each = np.arange(len(looks[0].prob))
        answers = [exits.Answer(look.prob, look.entropy) for look in looks]
        score = np.stack(exits.scores(criterion, [look.logits for look in looks], answers))
        cuts = [criterion.cut(of_exit(thresholds, k), score.dtype) for k in range(len(looks) - 1)]
        exit = leave_at(criterion.key(score), cuts)
        prob, entropy, logits = (
            np.stack([getattr(look, name) for look in looks])[exit, each] for name in ('prob', 'entropy', 'logits')
        )
        return _without_nan(Classification(labels(logits), exit, entropy, prob))

    def test(self, x: Array, t: Optional[Array] = None) -> tuple[float, list[float], list[int], float]:
        """Classifies with early exit by thresholdExits, as BranchyNet.test does.

        Args:
            x: NumPy array or Variable (B, ...), of the parameters' dtype.
            t: labels (B,), signed integers; None: accuracies are NaN.

        Returns:
            (accuracy, accuracy per exit, samples per exit, seconds): accuracies in [0, 1], 0 at an exit where none
            left; seconds in the trunk's stages (the released clock).

        Raises:
            TypeError, ValueError: as BranchyNet.test; x, t or the thresholds do not fit.
        """
        return self._test(self._cuts('thresholdExits', self.thresholdExits), x, t)

    def test_at(
        self, thresholds: Setting, x: Array, t: Optional[Array] = None
    ) -> tuple[float, list[float], list[int], float]:
        """`test` at thresholds of its own, in place of ``thresholdExits``: see BranchyNet.test_at."""
        return self._test(self._cuts('thresholds', thresholds), x, t)

    def _test(
        self, cuts: tuple[float, ...], x: Array, t: Optional[Array]
    ) -> tuple[float, list[float], list[int], float]:
        x, t = self._given(x, t)
        if chainer._get_link_hooks():
            return self._net.test_at(cuts, x, t)
        if len(x) == 1:
            engine = self._engine(x)
            if t is not None:
                check_within(t, engine.classes)
            label, k, seconds = self._call(engine.leave_one, x, cuts)
            accuracy = math.nan if t is None else float(label == t[0])
            counts, accuracies = [0] * self.numexits(), [0.0] * self.numexits()
            counts[k], accuracies[k] = 1, accuracy
            return accuracy, accuracies, counts, seconds
        result = self._leave(x, cuts)
        if t is not None:
            check_within(t, result.logits.shape[1])
        return (*tally(result.label, result.exit, t, self.numexits()), result.seconds)

    def test_main(self, x: Array, t: Optional[Array] = None) -> tuple[float, float]:
        """Classifies by main, as BranchyNet.test_main does.

        Args:
            x: NumPy array or Variable (B, ...), of the parameters' dtype.
            t: labels (B,), signed integers; None: the accuracy is NaN.

        Returns:
            (accuracy, seconds in main).

        Raises:
            TypeError, ValueError: as BranchyNet.test_main; also where main's head has no weights.
        """
        x, t = self._given(x, t)
        if chainer._get_link_hooks():
            return self._net.test_main(x, t)
        self._check_main_head()
        engine = self._engine(x)
        if len(x) == 1:
            if t is not None:
                check_within(t, engine.classes)
            start = time.perf_counter()
            label = self._call(engine.main_one, x)
            return math.nan if t is None else float(label == t[0]), time.perf_counter() - start
        parts, x = batches(len(x), engine.most), np.ascontiguousarray(x)
        label, seconds = np.empty(len(x), int), [0.0] * len(parts)

        def task(i: int) -> None:
            logits, seconds[i] = engine.main(x[parts[i]])
            if t is not None:
                check_within(t, logits.shape[1])
            label[parts[i]] = labels(logits)

        run(task, len(parts))
        return math.nan if t is None else float((label == t).mean()), sum(seconds)

    def _check_main_head(self) -> None:
        if not self._has_main_head:
            raise ValueError("main's head has no weights: call net.train_main or net.run_main(x) before Compiled(net)")

    def look(self, x: Array) -> list[Look]:
        """The answer of every exit to all samples, without early exit, as BranchyNet.look gives it.

        Args:
            x: NumPy array or Variable (B, ...), of the parameters' dtype.

        Returns:
            A Look for each exit.

        Raises:
            TypeError, ValueError: x does not fit.
        """
        x, _ = self._given(x, None)
        if chainer._get_link_hooks():
            return self._net.look(x)
        engine, parts, x = self._engine(x), batches(len(x), SAMPLES_OF_CALL), np.ascontiguousarray(x)
        recorded: list[Any] = [None] * len(parts)

        def task(i: int) -> None:
            recorded[i] = self._call(engine.record, x[parts[i]])

        run(task, len(parts))
        parts_of_exits, released, whole = zip(*recorded)
        logits = [np.concatenate(of_exit) for of_exit in zip(*parts_of_exits)]
        return [
            Look(
                *answer(logits[k]),
                sum(float(seconds[k].sum()) for seconds in released),
                sum(float(seconds[k].sum()) for seconds in whole),
                logits[k],
            )
            for k in range(len(logits))
        ]

    def _given(self, x: Array, t: Optional[Array]) -> tuple[np.ndarray, Optional[np.ndarray]]:
        """x and t as BranchyNet.checked returns them, and x of a shape that the net takes."""
        # Fast path: skip full validation for one sample of a shape already validated. The engine itself looks for
        # numbers that are not finite.
        if (
            type(x) is np.ndarray
            and x.dtype == np.float32
            and x.ndim > 1
            and len(x) == 1
            and x.shape[1:] in self._samples
            and (t is None or (type(t) is np.ndarray and t.dtype == np.int32 and t.shape == (1,) and t[0] >= 0))
        ):
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

    def _cuts(self, name: str, thresholds: Any) -> tuple[float, ...]:
        """A threshold for every exit but the last, rounded to float32, if the thresholds are a Setting that fits."""
        key = tuple(thresholds) if isinstance(thresholds, list) else thresholds
        try:
            return self._checked[key]
        except (KeyError, TypeError):  # an array cannot be a key
            pass
        count = self.numexits() - 1
        if thresholds is None:
            raise TypeError(f'{name} is None: set it, as a Compiled has no percentTestExits')
        cuts = tuple(rounded(per_exit(name, thresholds, count), np.float32).tolist())
        if isinstance(key, (Real, tuple)):
            if len(self._checked) >= _REMEMBERED:
                self._checked.clear()
            self._checked[key] = cuts
        return cuts

    def _leave(self, x: np.ndarray, cuts: Sequence[float]) -> Result:
        """The answer to a batch, whose chunks threads share."""
        engine, x = self._engine(x), np.ascontiguousarray(x)
        parts = batches(len(x), engine.most)
        results: list[Any] = [None] * len(parts)

        def task(i: int) -> None:
            results[i] = self._call(engine.leave, x[parts[i]], cuts)

        run(task, len(parts))
        label, exit, logits = (
            np.concatenate([getattr(result, name) for result in results]) for name in ('label', 'exit', 'logits')
        )
        return Result(label, exit, logits, sum(result.seconds for result in results))

    def _engine(self, x: np.ndarray) -> Engine:
        """The engine for samples like those of x: machine code, or a Stagewise where a link has no kernel there."""
        key = x.shape[1:], x.dtype
        engine = self._engines.get(key)
        if engine is None:
            with self._lock:
                engine = self._engines.get(key)
                if engine is None:
                    engine = self._engines[key] = self._new_engine(*key)
        return engine

    def _new_engine(self, shape: tuple[int, ...], dtype: np.dtype) -> Engine:
        if dtype == np.float32 and len(shape) == 3:
            channels, height, width = shape
            cascade = _machine_code(self._net, (channels, height, width), self._has_main_head, self._traced)
            if cascade is not None:
                return cascade
        if not isinstance(self._net.main, Net):
            return self._guarded(Forward(self._net, shape, dtype), shape, dtype)
        main = self._net.main if self._has_main_head else None
        return self._guarded(Stagewise(self._net.models, main, shape, dtype), shape, dtype)

    def _guarded(self, engine: Engine, shape: tuple[int, ...], dtype: np.dtype) -> Engine:
        """The engine; where links keep a state in attributes, as L.LSTM does, for one thread at a time."""
        before = _attributes(self._net)
        x = np.zeros((1, *shape), dtype)
        self._net.look(x)
        if self._has_main_head:
            self._net.run_main(x)
        if any(value is not before.get(place) for place, value in _attributes(self._net).items()):
            take_turns(engine)
        return engine

    def _call(self, method: Callable[..., Any], x: np.ndarray, *args: Any) -> Any:
        """Calls an engine; where it finds x not finite, raises the net's error, which names the sample."""
        try:
            return method(x, *args)
        except NotFinite:
            self._net.checked(x)
            raise


def _attributes(net: BranchyNet) -> dict[tuple[int, str], Any]:
    """All attributes of all links, by the link's identity and the attribute's name."""
    return {(id(link), name): value for link in net.links() for name, value in vars(link).items()}


def tally(
    label: np.ndarray, exit: np.ndarray, t: Optional[np.ndarray], exits: int
) -> tuple[float, list[float], list[int]]:
    """The results of `test` without the time.

    Args:
        label: int (N,), the answers.
        exit: int (N,), where the samples left, from 0.
        t: labels (N,); None: accuracies are NaN.
        exits: number of exits.

    Returns:
        (accuracy, accuracy per exit, samples per exit): accuracies in [0, 1], 0 at an exit where none left.
    """
    counts = np.bincount(exit, minlength=exits).tolist()
    right = np.full(len(label), math.nan) if t is None else label == t
    correct = np.bincount(exit, right, exits).tolist()
    return sum(correct) / len(label), [c / n if n else 0.0 for c, n in zip(correct, counts)], counts


def _machine_code(net: BranchyNet, shape: tuple[int, int, int], with_main: bool, traced: bool) -> Optional[Cascade]:
    """The net in machine code; None where there is no kernel for a link or function, or llvmlite does not load."""
    is_list = isinstance(net.main, Net)
    if not (is_list or traced):
        return None
    if Cascade is None:
        _warn('llvmlite does not load: samples go through stages one by one, in Python; pip install llvmlite')
        return None
    if is_list:
        with contextlib.suppress(NotCovered):
            return Cascade(graph.operations_of(net, shape, with_main))
    if not traced:
        return None
    try:
        cascade = Cascade(trace.operations_of(net, shape, with_main))
    except NotCovered as e:
        _warn(f'traced=True changes nothing, as there is no machine code for {e}')
        return None
    _check_trace(cascade, net, shape, with_main)
    return cascade


def _warn(message: str) -> None:
    """Warns with the line that called this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get('__name__', '').startswith('branchynet.'):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def _check_trace(cascade: Cascade, net: BranchyNet, shape: tuple[int, ...], with_main: bool) -> None:
    """Raises ValueError unless a traced net answers as the net does, to samples of different sizes."""
    random = np.random.RandomState(1)
    for size in (0.01, 0.1, 1, 10, 100):
        x = random.randn(1, *shape).astype(np.float32) * np.float32(size)
        pairs = [(found, look.logits) for found, look in zip(cascade.record(x)[0], net.look(x))]
        if with_main:
            pairs.append((cascade.main(x)[0], chainer.as_array(net.run_main(x))))
        for k, (found, expected) in enumerate(pairs):
            largest = abs(expected[np.isfinite(expected)]).max(initial=0)
            if not np.allclose(found, expected, rtol=1e-3, atol=1e-4 * largest, equal_nan=True):
                place = f'exit {k}' if k < net.numexits() else 'main'
                raise ValueError(
                    f'the trace and the net give different logits at {place}: forward may call other functions for '
                    'some samples; leave out traced=True'
                )


_REMEMBERED = 1000  # settings of thresholds
