"""The links of a network's list: functions as links, branches, and the chains that are built from them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from numbers import Real
from types import FunctionType
from typing import Any

import chainer
import chainer.functions as F
from chainer.utils.type_check import InvalidType


class FL(chainer.Link):
    """A function as a link: ``FL(fn, *args, **kwargs)(x)`` is ``fn(x, *args, **kwargs)``.

    Args:
        fn: a function of a Variable or array, such as F.relu.
        args: further arguments of the function.
        kwargs: keyword arguments of the function.
    """

    def __init__(self, fn: Callable, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.fn = fn
        self.args = args
        self.kwargs = kwargs

    def forward(self, x: Any) -> Any:
        """The function's result for x."""
        return self.fn(x, *self.args, **self.kwargs)


def calls_one_of(link: Any, functions: Container[Any]) -> bool:
    """Whether a link is an FL of one of these functions; its type comes first, as a callable may have no hash."""
    return type(link) is FL and isinstance(link.fn, FunctionType) and link.fn in functions


def arguments_of(function: Callable, args: Iterable[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments after x in ``function(x, *args, **kwargs)``, in the function's order, with its defaults.

    Args:
        function: one of Chainer's.
        args: as of FL.
        kwargs: as of FL.

    Raises:
        TypeError: the function does not take these arguments.
    """
    bound = inspect.signature(function).bind(None, *args, **kwargs)
    bound.apply_defaults()
    return list(bound.arguments.values())[1:]


def is_unchanged(link: chainer.Link) -> bool:
    """Whether a link does what its class does: it has no hooks, and no forward of its own."""
    return not link._n_local_link_hooks and 'forward' not in vars(link)


class SL(chainer.Chain):
    """One link in training mode, another in testing mode.

    Args:
        fnTrain: the link for training mode.
        fnTest: the link for testing mode; None: the identity.
    """

    def __init__(self, fnTrain: chainer.Link, fnTest: chainer.Link | None = None) -> None:
        super().__init__()
        with self.init_scope():
            self.fnTrain = fnTrain
            self.fnTest = fnTest

    def forward(self, x: Any) -> Any:
        """The result of the mode's link for x."""
        if chainer.config.train:
            return self.fnTrain(x)
        return x if self.fnTest is None else self.fnTest(x)


class Branch(chainer.ChainList):
    """Marks an exit in a network's list.

    Args:
        links: the exit's own links, from the trunk's features to the logits.
        weight: weight of this exit's loss in the joint loss (section III of the paper), 0 or more.

    Raises:
        TypeError: ``links`` is not a list of links, or the weight no number.
        ValueError: the weight is NaN, infinite or negative.
    """

    def __init__(self, links: Iterable[chainer.Link], weight: float = 1.0) -> None:
        links = list(links) if isinstance(links, Iterable) else links
        check_links('links', links)
        check_number('weight', weight)
        super().__init__(*links)
        self.weight = weight


def check_number(name: str, value: Any, below: float = math.inf) -> None:
    """Checks a setting.

    Args:
        name: name of the setting, for the message.
        value: a number of 0 or more.
        below: a number that the value must not reach.

    Raises:
        TypeError: the value is no number.
        ValueError: the value is NaN or out of range.
    """
    if not isinstance(value, Real):
        raise TypeError(f'{name} is {value!r}: expected a number')
    if not 0 <= float(value) < below:
        limit = f'less than {below}' if below < math.inf else 'finite'
        raise ValueError(f'{name} is {value}: expected 0 or more, and {limit}')


def check_links(name: str, links: Any) -> None:
    """Checks that every element of a list is a link.

    Args:
        name: name of the list, for the message.
        links: the list.

    Raises:
        TypeError: it is not a list, or an element is not a link.
    """
    if not isinstance(links, Iterable):
        raise TypeError(f'{name} is a {type(links).__name__}: expected a list of links')
    for i, link in enumerate(links):
        if not isinstance(link, chainer.Link):
            raise TypeError(f'{name}[{i}] is {link!r}: expected a link (FL makes one of a function)')


class Net(chainer.ChainList):
    """A sequence of links that can be run whole or in part.

    Args:
        weight: see the attribute.

    Attributes:
        weight: weight of this net's loss in the joint loss, read at every step.
        starti: in an exit's net, index of the first link of its stage: the stage is ``net[starti:endi]``.
        endi: in an exit's net, index of the first of the exit's own links, ``net[endi:]``.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight
        self.starti = 0
        self.endi = 0

    def forward(self, x: Any, test: bool = False, starti: int = 0, endi: int | None = None) -> Any:
        """Runs the links ``[starti:endi]``.

        Args:
            x: Variable or array (B, ...).
            test: whether to run in testing mode, whatever Chainer's mode is.
            starti: index of the first link.
            endi: index after the last link; None: to the end.

        Returns:
            The output, a Variable (B, ...); x itself if there are no links.

        Raises:
            ValueError: a link cannot take its input.
        """
        with chainer.using_config('train', chainer.config.train and not test):
            for i, link in enumerate(self[starti:endi], starti):
                x = call(link, i, x)
        return x

    def train(
        self, x: Any, t: Any, starti: int = 0, endi: int | None = None
    ) -> tuple[chainer.Variable, chainer.Variable]:
        """Loss and accuracy in training mode.

        Args:
            x: Variable or array (B, ...).
            t: labels (B,).
            starti: index of the first link.
            endi: index after the last link; None: to the end.

        Returns:
            (softmax cross entropy, accuracy), Variables ().
        """
        with chainer.using_config('train', True):
            y = self(x, starti=starti, endi=endi)
        return F.softmax_cross_entropy(y, t), F.accuracy(y, t)

    def test(self, x: Any, starti: int = 0, endi: int | None = None) -> Any:
        """The output of `forward` in testing mode."""
        return self(x, test=True, starti=starti, endi=endi)


REFUSALS = InvalidType, AssertionError  # errors of Chainer's functions; AssertionError: the output would have no pixels


def reason(refusal: Exception) -> str:
    """The reason for which a function of Chainer refuses an array, in one line.

    Args:
        refusal: one of REFUSALS.
    """
    if isinstance(refusal, InvalidType):
        return f'expected {refusal.expect}, got {refusal.actual}'
    return str(refusal)


def call(link: chainer.Link, i: int, x: Any) -> Any:
    """The output of a link for x.

    Args:
        link: the link.
        i: its index, for the message.
        x: samples or features (B, ...).

    Raises:
        ValueError: Chainer finds that the shape or dtype does not fit.
    """
    try:
        return link(x)
    except REFUSALS as e:
        raise ValueError(
            f'link {i} ({type(link).__name__}) cannot take an array of shape {x.shape} and dtype {x.dtype}: {reason(e)}'
        ) from e


class X(chainer.ChainList):
    """A residual wrapper: ``weights[0] * f(x) + weights[1] * x``, where f runs the links one after another.

    Where f changes the shape, x goes through ResBlock's shortcut.

    Args:
        links: the links of f.
    """

    def __init__(self, links: Sequence[chainer.Link]) -> None:
        super().__init__(*links)
        self.set_weights([1.0, 1.0])

    def set_weights(self, weights: Sequence[float]) -> None:
        """Sets the two weights, of f(x) and of x; both are 1 at first."""
        self.weights = weights

    def forward(self, x: Any) -> chainer.Variable:
        """The weighted sum, a Variable of f(x)'s shape."""
        h = x
        for link in self:
            h = link(h)
        return self.weights[0] * h + self.weights[1] * shortcut(x, h.shape)


def shortcut(x: Any, shape: tuple[int, ...]) -> Any:
    """Makes the input of a residual block fit its output: zero channels in front, then every second pixel.

    Args:
        x: Variable or array (B, C, H, W).
        shape: shape of the block's output: (B, C', H, W) or (B, C', H', W'), where H' is half of H, rounded up.

    Returns:
        A Variable of this shape; x itself where it fits.

    Raises:
        ValueError: the output has fewer channels than x.
    """
    if x.shape[1] > shape[1]:
        raise ValueError(f'a residual block makes {shape[1]} channels of {x.shape[1]}: expected as many or more')
    if x.shape[1] < shape[1]:
        xp = chainer.backend.get_array_module(x)
        zeros = xp.zeros((x.shape[0], shape[1] - x.shape[1], *x.shape[2:]), x.dtype)
        x = F.concat((zeros, x))
    if x.shape[2:] != shape[2:]:
        x = F.average_pooling_2d(x, 1, 2)
    return x
