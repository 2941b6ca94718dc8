"""What a network's list is made of: functions as links, exits, and the chains built from them."""
from branchynet import _chainer  # noqa: F401
import chainer
import chainer.functions as F
from chainer.utils.type_check import InvalidType


class FL(chainer.Link):
    """A function as a link: ``FL(fn, *args, **kwargs)(x)`` is ``fn(x, *args, **kwargs)``."""

    def __init__(self, fn, *args, **kwargs):
        super().__init__()
        self.fn = fn
        self.args = args
        self.kwargs = kwargs

    def forward(self, x):
        return self.fn(x, *self.args, **self.kwargs)


class SL(chainer.Chain):
    """One link in training mode, another in testing mode (without one: the identity)."""

    def __init__(self, fnTrain, fnTest=None):
        super().__init__()
        with self.init_scope():
            self.fnTrain = fnTrain
            self.fnTest = fnTest

    def forward(self, x):
        if chainer.config.train:
            return self.fnTrain(x)
        return x if self.fnTest is None else self.fnTest(x)


class Branch(chainer.ChainList):
    """Marks an exit in a network's list.

    Args:
        links: the exit's own links, from the trunk's features to the logits.
        weight: of this exit's loss in the joint loss (section III of the paper).
    """

    def __init__(self, links, weight=1.):
        check_links('links', links)
        super().__init__(*links)
        self.weight = weight


def check_links(name, links):
    """Raises TypeError unless every element of a list is a link."""
    for i, link in enumerate(links):
        if not isinstance(link, chainer.Link):
            raise TypeError('%s[%d] is %r: expected a link (FL makes one of a function)' % (name, i, link))


class Net(chainer.ChainList):
    """Links called one after the other, or a part of them.

    Attributes:
        weight: of its loss in the joint loss, read at every step.
        starti, endi: for an exit's net: its own stage of the trunk is ``net[starti:endi]``,
            its own links are ``net[endi:]``.
    """

    def __init__(self, weight=1.):
        super().__init__()
        self.weight = weight
        self.starti = 0
        self.endi = 0

    def forward(self, x, test=False, starti=0, endi=None):
        """Output of the links ``starti`` to ``endi`` for ``x``; ``test=True`` in testing mode.

        Raises:
            ValueError: a link cannot take what reaches it.
        """
        with chainer.using_config('train', chainer.config.train and not test):
            for i, link in enumerate(self[starti:endi], starti):
                x = _call(link, i, x)
        return x

    def train(self, x, t, starti=0, endi=None):
        """Softmax cross entropy and accuracy (Variables) in training mode."""
        with chainer.using_config('train', True):
            y = self(x, starti=starti, endi=endi)
        return F.softmax_cross_entropy(y, t), F.accuracy(y, t)

    def test(self, x, starti=0, endi=None):
        """Output (Variable) in testing mode."""
        return self(x, test=True, starti=starti, endi=endi)


def _call(link, i, x):
    try:
        return link(x)
    except (InvalidType, AssertionError) as e:  # Chainer asserts that an output has pixels
        why = 'expected %s, got %s' % (e.expect, e.actual) if isinstance(e, InvalidType) else e
        raise ValueError('link %d (%s) cannot take an array of shape %s and dtype %s: %s' % (
            i, type(link).__name__, x.shape, x.dtype, why)) from e


class X(chainer.ChainList):
    """A residual wrapper: ``weights[0] * f(x) + weights[1] * x``, with f the links in turn.

    Where f changes the shape, x goes through ResBlock's shortcut.
    """

    def __init__(self, links):
        super().__init__(*links)
        self.set_weights([1., 1.])

    def set_weights(self, weights):
        self.weights = weights

    def forward(self, x):
        h = x
        for link in self:
            h = link(h)
        return self.weights[0] * h + self.weights[1] * shortcut(x, h.shape)


def shortcut(x, shape):
    """x (B, C, H, W) made to fit `shape`: zero channels in front, then every second pixel."""
    if x.shape[1] != shape[1]:
        xp = chainer.backend.get_array_module(x)
        zeros = xp.zeros((x.shape[0], shape[1] - x.shape[1]) + x.shape[2:], x.dtype)
        x = F.concat((zeros, x))
    if x.shape[2:] != shape[2:]:
        x = F.average_pooling_2d(x, 1, 2)
    return x
