"""One pass of a chain's own forward, paused after some of its layers.

The forward runs in a greenlet. A link hook pauses it after a layer. It goes on with the features of the samples that
stay, which take the place of the layer's output; if none stays, the greenlet is dropped, and no further layer runs.
All of this belongs to one pass in one thread: nothing is installed on the chain.
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import chainer
import greenlet


class Pass:
    """The stages of one pass: ``stage(k, x)``, to be called once for k = 0, 1, ...

    Nothing that the greenlet's frames hold refers to the pass, so that it ends, and the greenlet with it, as soon as
    its last reference goes.

    Args:
        run: runs the whole trunk.
        layers: paths of the layers after which it pauses, in the order of their calls, by the id of the layer.
    """

    def __init__(self, run: Callable[[Any], Any], layers: dict[int, str]) -> None:
        self._pause = _Pause(layers)
        self._greenlet = greenlet.greenlet(run)
        self._greenlet.gr_context = contextvars.copy_context()  # NumPy keeps its errstate there
        self._state: list[dict[str, Any]] = []  # as forward left it
        self._hooks: dict[str, dict[str, Any]] = {'link_hooks': {self._pause.name: self._pause}, 'function_hooks': {}}
        self._next = 0

    def __call__(self, k: int, x: Any) -> chainer.Variable:
        """Runs forward on, with the features x (B, ...) of the samples that are left, to the next stop.

        Args:
            k: the stage, which must be the next one.
            x: the samples or features.

        Returns:
            The output of the layer after which it pauses, or that of the whole run.

        Raises:
            ValueError: another stage is due, or forward does not call its layers as it should.
        """
        if k != self._next:
            raise ValueError(f'stage {k} of a pass is called where stage {self._next} is due: a pass is for one batch')
        if self._greenlet.dead:
            raise ValueError(f'stage {k} of a pass is called after its last stage, {k - 1}')
        self._next += 1
        with self._inside():
            y = self._greenlet.switch(x)
        if self._greenlet.dead and self._pause.due:
            raise ValueError(f'forward ends without a call of the layer {self._pause.due[0]}, which has an exit')
        if not hasattr(y, 'shape'):
            mode = 'training' if chainer.config.train else 'testing'
            raise ValueError(f'forward returns a {type(y).__name__} in {mode} mode: expected the logits, an array')
        if y.shape[:1] != x.shape[:1]:
            raise ValueError(
                f'forward gives an array of shape {y.shape} for {len(x)} samples: expected the batch first'
            )
        return y

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        """The settings and hooks of forward: at first the caller's, and the hook that pauses it."""
        outside = _state()
        inside = self._state or _state()
        for kind, own in self._hooks.items():
            inside[0][kind] = collections.OrderedDict({**outside[0].get(kind, {}), **own})
        _put(inside)
        try:
            yield
        finally:
            self._state = _state()
            for kind in self._hooks:
                theirs = outside[0].get(kind, {})
                self._hooks[kind] = {n: hook for n, hook in self._state[0].get(kind, {}).items() if n not in theirs}
            _put(outside)

    def __del__(self) -> None:
        # What forward does on its way out, such as to leave a using_config, belongs to its own state. In another
        # thread, where only the garbage collector comes to it, it is left to greenlet.
        if self._greenlet:
            with contextlib.suppress(greenlet.error), self._inside():
                self._greenlet.throw()


# Chainer's hooks and settings of a thread. Where forward pauses within a `with` that changes them, it would change
# them for its caller too, and for good where it never goes on. Besides, Chainer iterates over the link hooks around
# the pause, so that their dict must stay as it is.
_LOCALS = chainer._thread_local, chainer.config._local


def _state() -> list[dict[str, Any]]:
    """The contents of _LOCALS in this thread."""
    return [dict(vars(local)) for local in _LOCALS]


def _put(states: list[dict[str, Any]]) -> None:
    """Lets _LOCALS hold these states."""
    for local, state in zip(_LOCALS, states):
        vars(local).clear()
        vars(local).update(state)


class _Pause(chainer.LinkHook):
    """Pauses the greenlet in which it is called, after some layers: hands out their output, and takes another."""

    def __init__(self, layers: dict[int, str]) -> None:
        self.name = f'BranchyNet pass {next(_numbers)}'  # a layer may run passes of its own
        self._layers = layers
        self.due = list(layers.values())

    def forward_postprocess(self, args: Any) -> None:
        path = self._layers.get(id(args.link))
        if path is None:
            return
        if self.due[:1] != [path]:
            expected = f'before {self.due[0]}' if self.due else 'again'
            raise ValueError(
                f'forward calls the layer {path} {expected}: layers with exits must be called once, in the order of '
                'the exits, in training and in testing mode'
            )
        del self.due[0]
        features = _twin(args.out)
        _become(args.out, chainer.as_variable(greenlet.getcurrent().parent.switch(features)))


_numbers = itertools.count()


def _twin(variable: chainer.Variable) -> chainer.Variable:
    """Another Variable of the same array and node, to which the node refers from then on.

    A Variable's whole state is its __dict__, which Chainer's own Variable.__copy__ copies too; Chainer 7.8.1 is its
    last version.
    """
    twin = chainer.Variable()
    _become(twin, variable)
    return twin


def _become(variable: chainer.Variable, other: chainer.Variable) -> None:
    """Lets a Variable stand for what another one stands for, wherever forward holds it."""
    vars(variable).update(vars(other))
    variable.node._variable = weakref.ref(variable)
