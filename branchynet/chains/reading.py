"""Reading a chain: a few samples go through it, to see where its logits are and whether the exits can stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from branchynet.chains.trunk import Trunk, find, only
from branchynet.exits import Array
from branchynet.functions import inference_mode

import chainer
import numpy as np
from chainer.functions.activation.softmax import Softmax

Exit = Callable[[int, chainer.Variable], chainer.Variable]
Stage = Callable[[int, Array], chainer.Variable]  # BranchyNet.stage, within one pass


class _Call(NamedTuple):
    """A call of a layer, and its output."""

    link: chainer.Link
    path: str
    output: Any


class _Record(chainer.LinkHook):
    """Records the calls of a chain's layers, in the order in which they end."""

    def __init__(self, chain: chainer.Link) -> None:
        self.name = f'BranchyNet reading {id(self)}'  # a layer may be a net that reads a chain
        self._paths = {id(link): path for path, link in chain.namedlinks(skipself=True)}
        self.calls: list[_Call] = []

    def forward_postprocess(self, args: Any) -> None:
        if id(args.link) in self._paths:
            self.calls.append(_Call(args.link, self._paths[id(args.link)], args.out))


class _Uses(chainer.FunctionHook):
    """Finds the nodes of an array in the graph: the inputs of functions that take it."""

    def __init__(self, array: Array) -> None:
        self.name = f'BranchyNet reading {id(self)}'
        self._array = array
        self._uses: list[tuple[Any, int]] = []

    def forward_preprocess(self, function: Any, in_data: Sequence[Array]) -> None:
        self._uses += [(function, i) for i, array in enumerate(in_data) if array is self._array]

    def nodes(self) -> set:
        """The nodes, once forward has run."""
        return {function.inputs[i] for function, i in self._uses if function.inputs}


def read(trunk: Trunk, x: Array, exit: Exit, one_pass: Callable[[], Stage]) -> None:
    """Reads a chain by a few samples: where the logits are, and whether the exits can stand.

    Args:
        trunk: the chain as a trunk.
        x: samples (B, ...).
        exit: gives the logits of exit k, from the features in front of it.
        one_pass: makes a function that runs the stages of the trunk in turn: it takes the number of a stage, and the
            samples or the features in front of it.
    """
    samples = _differing(x, len(trunk.layers) + 2)
    record, uses = _Record(trunk.chain), _Uses(samples)
    with chainer.using_config('train', False), chainer.force_backprop_mode(), record, uses:
        y = trunk.call(samples)
    calls = record.calls
    if trunk.logits is None and not len(trunk.end):
        trunk.logits = _layer_before_softmax(only(y), calls)
    places = _places(trunk, calls)
    features = [calls[place].output for place in places]
    if trunk.logits is None:
        with inference_mode():
            features.append(trunk.end_of(y))
    for name, variable in zip([*trunk.layers, trunk.logits or 'the end'], features):
        _check_features(name, variable, len(samples))
    end = features[-1] if trunk.logits else only(y)
    for place in places[: len(trunk.layers)]:
        _check_nothing_passes(calls, place, end, uses.nodes())
    with inference_mode():
        _check_exits(trunk, exit, features)
        _check_leaving(trunk, one_pass(), samples, features)
    trunk.is_read = True  # not before: the exits had no parameters, and other threads would have made their own


def _differing(x: Array, count: int) -> Array:
    """Samples (count, ...) that differ, made of the samples x (B, ...)."""
    xp = chainer.backend.get_array_module(x)
    return xp.stack([xp.roll(x[i % len(x)], i // len(x)) for i in range(count)])


def _layer_before_softmax(y: Any, calls: list[_Call]) -> str | None:
    """Path of the layer whose output goes into the softmax that made y; None if no softmax made it.

    Raises:
        ValueError: no layer's output goes into it.
    """
    function = y.creator_node if isinstance(y, chainer.Variable) else None
    if not isinstance(function, Softmax):
        return None
    inputs: Any = function.inputs
    for call in calls:
        if _node(call.output) is inputs[0]:
            return call.path
    raise ValueError(
        "the chain ends with a softmax of something that is no layer's output: let forward give logits, or say by "
        'final= which layer gives them'
    )


def _places(trunk: Trunk, calls: list[_Call]) -> list[int]:
    """Where in the calls the layers with exits are called, and last the layer that gives the logits, if one does."""
    places = []
    for path in [*trunk.layers, *([trunk.logits] if trunk.logits else [])]:
        link = find(trunk.chain, path)
        found = [i for i, call in enumerate(calls) if call.link is link]
        if len(found) != 1:
            times = f'{len(found)} times' if found else 'never'
            if type(link).__call__ is not chainer.Link.__call__:
                raise ValueError(
                    f'the layer {path} defines __call__, so that Chainer does not see its calls: name it forward'
                )
            raise ValueError(
                f'forward calls the layer {path} {times}: an exit needs a layer that it calls once, as a link'
            )
        places += found
    if places != sorted(places):
        order = ', '.join(calls[place].path for place in sorted(places))
        raise ValueError(f'forward calls the layers in the order {order}: give the exits, and final, in this order')
    return places


def _check_features(name: str, features: Any, count: int) -> None:
    if not isinstance(features, chainer.Variable):
        raise ValueError(f'forward gives a {type(features).__name__} at {name}: an exit needs one Variable')
    if features.shape[:1] != (count,):
        raise ValueError(
            f'forward gives an array of shape {features.shape} at {name} for {count} samples: expected the batch first'
        )


def _check_nothing_passes(calls: list[_Call], place: int, end: Any, inputs: set) -> None:
    """Raises ValueError if the end (a Variable) is computed from more of the input than the output of one call.

    Where forward computes outside Chainer's functions, _check_leaving finds it.

    Args:
        calls: all calls.
        place: that of the call.
        end: the value to compute.
        inputs: the nodes of the chain's input.
    """
    passing = _way_around(end, calls[place].output, inputs)
    if passing is None:
        return
    before = [call.path for call in calls[:place] if _node(call.output) in passing]
    after = [call.path for call in calls[place + 1 :] if _is_only_way(end, call.output, inputs)]
    advice = f'the next layer that can have an exit is {after[0]}' if after else 'choose an earlier layer'
    raise ValueError(
        f'an exit cannot stand at {calls[place].path}: what comes after it also uses '
        f'{f"the output of {before[-1]}" if before else "the input"}, past it; {advice}'
    )


def _is_only_way(end: Any, output: Any, inputs: set) -> bool:
    return _node(output) not in (None, end.node) and _way_around(end, output, inputs) is None


def _way_around(end: chainer.Variable, output: Any, inputs: set) -> set | None:
    """The nodes from which end is computed without a call's output; None if none of the inputs is among them."""
    found: set[Any] = set()
    waiting: list[Any] = [end.node]
    while waiting:
        node = waiting.pop()
        if node not in found and node is not _node(output):
            found.add(node)
            waiting += node.creator_node.inputs if node.creator_node else []
    return found if found & inputs else None


def _node(output: Any) -> Any:
    return output.node if isinstance(output, chainer.Variable) else None


def _check_exits(trunk: Trunk, exit: Exit, features: Sequence[Any]) -> None:
    """Raises ValueError unless every exit's links make logits of its features."""
    classes = features[-1].shape[1:]
    if len(classes) != 1:
        raise ValueError(
            f'the last exit gives arrays of shape {classes} for a sample: expected (classes,); say by final= where the '
            'logits are'
        )
    for k, path in enumerate(trunk.layers):
        shape = features[k].shape[1:]
        advice = f'branchynet.heads.suggest({shape}, {classes[0]}) makes links that fit'
        try:
            logits = exit(k, features[k])
        except Exception as e:
            raise ValueError(f'the exit at {path} cannot take features of shape {shape}: {_line(e)}; {advice}') from e
        if not isinstance(logits, chainer.Variable):
            raise ValueError(f'the exit at {path} gives a {type(logits).__name__}: expected a Variable; {advice}')
        if logits.shape != features[-1].shape:
            raise ValueError(
                f'the exit at {path} gives arrays of shape {logits.shape[1:]} for a sample, the last exit {classes}: '
                f'{advice}'
            )


def _check_leaving(trunk: Trunk, stage: Stage, samples: Array, features: Sequence[Any]) -> None:
    """Raises ValueError if forward does not give the same when a sample leaves at each exit."""
    h, names = samples, [*trunk.layers, 'the end']
    for k, name in enumerate(names):
        where = f'when samples have left at {names[k - 1]}' if k else 'a second time'
        try:
            h = chainer.as_array(stage(k, h))
        except Exception as e:
            # What Chainer found: the samples, which Trunk.call names, are not to blame here.
            raise ValueError(f'forward cannot go on {where}: {_line(e.__cause__ or e)}; {_ADVICE}') from e
        if not _close(h, features[k].array[k:]):
            raise ValueError(f'forward gives something else at {name} {where}; {_ADVICE}')
        h = h[1:]


_ADVICE = (
    'after an exit, it may use nothing but the output of its layer: no size or numbers of the batch from before, and '
    'no random numbers in testing mode'
)


def _close(found: Array, expected: Array) -> bool:
    """Whether arrays differ by rounding only; an array that is not finite says nothing."""
    xp = chainer.backend.get_array_module(expected)
    if not xp.isfinite(expected).all():
        return True
    tolerance = float(np.finfo(expected.dtype).eps) ** 0.5 * float(abs(expected).max())
    return found.shape == expected.shape and bool((abs(found - expected) <= tolerance).all())


def _line(error: BaseException) -> str:
    """An error's class and the first line that it says."""
    return ': '.join([type(error).__name__, *str(error).strip().splitlines()[:1]])
