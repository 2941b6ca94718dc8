"""A chain as the trunk of a BranchyNet."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from branchynet.chains.passes import Pass
from branchynet.links.links import REFUSALS, call, reason

import chainer

LAYERS = 'layers'  # the entry of a net's file that names the layers with exits


class Trunk(chainer.Chain):
    """A chain up to the logits of the last exit.

    Args:
        chain: the chain.
        layers: see the attribute.
        logits: see the attribute.
        end: links that run on the chain's output.

    Attributes:
        layers: paths of the layers with exits, in the order of their calls.
        logits: path of the layer whose output is the logits, after which forward is not run. None: the output of
            the last link of ``end`` or, where there is none, of the chain.
        is_read: whether the chain was read, which also sets ``logits`` where the chain's output is a softmax.
    """

    def __init__(self, chain: chainer.Link, layers: list[str], logits: str | None, end: list[chainer.Link]) -> None:
        super().__init__()
        self.layers = layers
        self.logits = logits
        self.is_read = False
        with self.init_scope():
            self.chain = chain
            self.end = chainer.ChainList(*end)

    def forward(self, x: Any) -> chainer.Variable:
        """Logits (B, C) for x (B, ...).

        Raises:
            ValueError: the chain was not read.
        """
        return self.one_pass([], contextlib.nullcontext())(0, x)

    def one_pass(self, layers: Sequence[str], mode: contextlib.AbstractContextManager[None]) -> Pass:
        """A pass that pauses after some layers, and ends with the logits.

        Args:
            layers: paths, in the order of the layers' calls.
            mode: the context in which the chain runs.

        Raises:
            ValueError: the chain was not read.
        """
        self.check_read()
        return self.new_pass(layers, mode)

    def check_read(self) -> None:
        """Raises ValueError unless the chain was read."""
        if not self.is_read:
            raise ValueError('the chain was not read yet: run a batch first, for example net.get_SM(x)')

    def new_pass(self, layers: Sequence[str], mode: contextlib.AbstractContextManager[None]) -> Pass:
        """As one_pass, also of a chain that is being read."""

        def run(x: Any) -> Any:
            with mode:
                return self.end_of(self.call(x))

        return Pass(run, {id(find(self.chain, path)): path for path in self._paths(layers)})

    def stops(self) -> list[chainer.Link]:
        """The layers after which a pass with all exits pauses."""
        return [find(self.chain, path) for path in self._paths(self.layers)]

    def _paths(self, layers: Sequence[str]) -> list[str]:
        return [*layers] if self.logits is None else [*layers, self.logits]

    def call(self, x: Any) -> Any:
        """The output of the chain's forward for x (B, ...).

        Raises:
            ValueError: Chainer finds that shapes or dtypes do not fit.
        """
        try:
            return self.chain(x)
        except REFUSALS as e:
            if not reason(e):
                raise  # an assertion of the user's
            raise ValueError(
                f'forward cannot take samples of shape {x.shape[1:]} and dtype {x.dtype}: {reason(e)}'
            ) from e

    def end_of(self, y: Any) -> Any:
        """The logits, from the chain's output."""
        y = only(y)
        for i, link in enumerate(self.end):
            y = call(link, i, y)
        return y


def find(chain: chainer.Link, path: str) -> chainer.Link:
    """The layer at a path of namedlinks."""
    link: Any = chain
    for name in path[1:].split('/'):
        link = link[name] if isinstance(link, chainer.Chain) else list(link.children())[int(name)]
    return link


def only(y: Any) -> Any:
    """A chain's output; of a dict, its only entry."""
    if not isinstance(y, Mapping):
        return y
    if len(y) != 1:
        raise ValueError(
            f'the chain gives a dict of {len(y)} arrays ({", ".join(map(str, y))}): say by final= which layer gives '
            'the logits'
        )
    (entry,) = y.values()
    return entry
