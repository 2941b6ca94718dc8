"""What a network's list is made of: functions as links, exits, and the chains built from them."""
from __future__ import annotations

import math
from numbers import Real
from typing import Any, Callable, Iterable, Optional, Sequence

from branchynet import _chainer  # noqa: F401
import chainer
import chainer.functions as F
from chainer.utils.type_check import InvalidType


class FL(chainer.Link):
    """A function as a link: ``FL(fn, *args, **kwargs)(x)`` is ``fn(x, *args, **kwargs)``."""

    def __init__(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.fn = fn
        self.args = args
        self.kwargs = kwargs

    def forward(self, x: Any) -> Any:
        return self.fn(x, *self.args, **self.kwargs)


class SL(chainer.Chain):
    """One link in training mode, and another in testing mode, or the identity if there is none."""

    def __init__(self, fnTrain: chainer.Link, fnTest: Optional[chainer.Link] = None) -> None:
        super().__init__()
        with self.init_scope():
            self.fnTrain = fnTrain
            self.fnTest = fnTest

    def forward(self, x: Any) -> Any:
        if chainer.config.train:
            return self.fnTrain(x)
        return x if self.fnTest is None else self.fnTest(x)


class Branch(chainer.ChainList):
    """Marks an exit in a network's list.

    Args:
        links: a list of the exit's own links, from the trunk's features to the logits.
        weight: the factor of this exit's loss in the joint loss (section III of the paper), 0 or more.

    Raises:
        TypeError: ``links`` is not a list of links, or the weight no number.
        ValueError: the weight is NaN, infinite or negative.
    """

    def __init__(self, links: Sequence[chainer.Link], weight: float = 1.) -> None:
        check_links('links', links)
        check_number('weight', weight)
        super().__init__(*links)
        self.weight = weight


def check_number(name: str, value: Any, below: float = math.inf) -> None:
    """Raises unless a setting is a number from 0 to ``below``, the latter excluded.

    Raises:
        TypeError: it is no number.
        ValueError: it is NaN or out of range.
    """
    if not isinstance(value, Real):
        raise TypeError(f'{name} is {value!r}: expected a number')
    if not 0 <= value < below:
        raise ValueError(f'{name} is {value}: expected 0 or more' + (f', and less than {below}' if below < math.inf else
                                                                    ', and finite'))


def check_links(name: str, links: Any) -> None:
    """Raises TypeError unless ``links`` is a list of links."""
    if not isinstance(links, Iterable):
        raise TypeError(f'{name} is a {type(links).__name__}: expected a list of links')
    for i, link in enumerate(links):
        if not isinstance(link, chainer.Link):
            raise TypeError(f'{name}[{i}] is {link!r}: expected a link (FL makes one of a function)')


class Net(chainer.ChainList):
    """Links called one after the other, or a part of them.

    Attributes:
        weight: of its loss in the joint loss, read at every step.
        starti, endi: for an exit's net: its own stage of the trunk is ``net[starti:endi]``,
            its own links are ``net[endi:]``.
    """

    def __init__(self, weight: float = 1.) -> None:
        super().__init__()
        self.weight = weight
        self.starti = 0
        self.endi = 0

    def forward(self, x: Any, test: bool = False, starti: int = 0, endi: Optional[int] = None) -> chainer.Variable:
        """Calls the links ``starti`` to ``endi``.

        Args:
            x: array or Variable (B, ...).
            test: whether to call them in testing mode whatever mode Chainer is in.
            starti, endi: the links as a slice has them.

        Returns:
            The output of the last link.

        Raises:
            ValueError: a link cannot take the array that reaches it.
        """
        with chainer.using_config('train', chainer.config.train and not test):
            for i, link in enumerate(self[starti:endi], starti):
                x = _call(link, i, x)
        return x

    def train(self, x: Any, t: Any, starti: int = 0,
              endi: Optional[int] = None) -> tuple[chainer.Variable, chainer.Variable]:
        """Softmax cross entropy and accuracy (Variables) in training mode."""
        with chainer.using_config('train', True):
            y = self(x, starti=starti, endi=endi)
        return F.softmax_cross_entropy(y, t), F.accuracy(y, t)

    def test(self, x: Any, starti: int = 0, endi: Optional[int] = None) -> chainer.Variable:
        """Output (Variable) in testing mode."""
        return self(x, test=True, starti=starti, endi=endi)


def _call(link: chainer.Link, i: int, x: Any) -> chainer.Variable:
    try:
        return link(x)
    except (InvalidType, AssertionError) as e:  # Chainer asserts that an output has pixels
        why = f'expected {e.expect}, got {e.actual}' if isinstance(e, InvalidType) else e
        raise ValueError(f'link {i} ({type(link).__name__}) cannot take an array of shape {x.shape} and dtype {x.dtype}: '
                         f'{why}') from e


class X(chainer.ChainList):
    """A residual wrapper: ``weights[0] * f(x) + weights[1] * x``, where f calls the links one after the other.

    If f changes the shape, x goes through ResBlock's shortcut.
    """

    def __init__(self, links: Sequence[chainer.Link]) -> None:
        super().__init__(*links)
        self.set_weights([1., 1.])

    def set_weights(self, weights: Sequence[float]) -> None:
        """Sets the factors of f(x) and of x."""
        self.weights = weights

    def forward(self, x: Any) -> chainer.Variable:
        h = x
        for link in self:
            h = link(h)
        return self.weights[0] * h + self.weights[1] * shortcut(x, h.shape)


def shortcut(x: Any, shape: tuple[int, ...]) -> Any:
    """x (B, C, H, W) made to fit ``shape``: zero channels in front, then every second pixel."""
    if x.shape[1] != shape[1]:
        xp = chainer.backend.get_array_module(x)
        zeros = xp.zeros((x.shape[0], shape[1] - x.shape[1]) + x.shape[2:], x.dtype)
        x = F.concat((zeros, x))
    if x.shape[2:] != shape[2:]:
        x = F.average_pooling_2d(x, 1, 2)
    return x
