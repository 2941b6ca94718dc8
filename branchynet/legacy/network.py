"""A BranchyNet of today from the records of a released one."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Callable

from branchynet import _chainer  # noqa: F401
from branchynet.legacy import values
from branchynet.legacy.pickles import Name, Record
from branchynet.legacy.values import Values, kind
from branchynet.links.links import FL, SL, Branch
from branchynet.links.resnet import ResBlock
from branchynet.net import BranchyNet

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np

_MAX_LINKS = 10_000  # the released ResNet-110 has 70, and as many again in each copy of its trunk

BRANCHYNET = 'branchynet.net BranchyNet'
_NET = 'branchynet.links.links Net'
_FL = 'branchynet.links.links FL'
_SL = 'branchynet.links.links SL'
_BLOCK = 'branchynet.links.resnet ResBlock'
_CONVOLUTION = 'chainer.links.connection.convolution_2d Convolution2D'
_LINEAR = 'chainer.links.connection.linear Linear'
_NORM = 'chainer.links.normalization.batch_normalization BatchNormalization'
_VARIABLE = 'chainer.variable Variable'
_ADAM = 'chainer.optimizers.adam Adam'
_MOMENTUM = 'chainer.optimizers.momentum_sgd MomentumSGD'

# A function or Function class of Chainer 1: the function of today, and those of its arguments, in the order of
# Chainer 1, that are left. cuDNN and the mode have become settings (chainer.config).
_FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    'chainer.functions.activation.relu relu': (F.relu, ()),
    'chainer.functions.activation.relu ReLU': (F.relu, ()),
    'chainer.functions.pooling.max_pooling_2d max_pooling_2d': (
        F.max_pooling_2d,
        ('ksize', 'stride', 'pad', 'cover_all'),
    ),
    'chainer.functions.pooling.average_pooling_2d average_pooling_2d': (
        F.average_pooling_2d,
        ('ksize', 'stride', 'pad'),
    ),
    'chainer.functions.normalization.local_response_normalization local_response_normalization': (
        F.local_response_normalization,
        ('n', 'k', 'alpha', 'beta'),
    ),
    'chainer.functions.noise.dropout dropout': (F.dropout, ('ratio',)),
}
_GONE_ARGUMENTS = ('use_cudnn', 'train')

NAMES = (
    values.NAMES
    | set(_FUNCTIONS)
    | {
        BRANCHYNET,
        _NET,
        _FL,
        _SL,
        _BLOCK,
        _CONVOLUTION,
        _LINEAR,
        _NORM,
        _VARIABLE,
        _ADAM,
        _MOMENTUM,
        'chainer.flag Flag',
        'chainer.initializers.normal HeNormal',
        'chainer.optimizer WeightDecay',
        'collections OrderedDict',
        '__builtin__ set',
        'dill.dill _create_weakref',
        'dill.dill _import_module',
    }
)

# The arguments of BranchyNet that a file keeps, and what each was by default.
SETTINGS = {
    'thresholdExits': None,
    'percentTestExits': 0.9,
    'percentTrainKeeps': 1.0,
    'lr': 0.1,
    'momentum': 0.9,
    'weight_decay': 0.0001,
    'alpha': 0.001,
    'opt': 'Adam',
    'joint': True,
    'verbose': False,
}


class Network(Values):
    """Makes a network of today of a file's records, each checked first.

    Args:
        size: bytes of the file.
        statistics: see `branchynet.legacy.load`.
    """

    def __init__(self, size: int, statistics: str) -> None:
        super().__init__(size)
        self.links_left = _MAX_LINKS
        self.statistics = statistics

    # Links

    def weights(self, value: Any, ndim: int) -> np.ndarray:
        """The array of a parameter."""
        if isinstance(value, Record) and value.name == _VARIABLE and value.args:
            value = value.args[0]
        if value is None:
            raise ValueError('it has a link without weights: the network has never seen an image')
        array = self.array(value)
        if array.ndim != ndim or array.size == 0 or array.dtype.kind != 'f':
            raise ValueError(
                f'it has weights of shape {array.shape} and dtype {array.dtype}, '
                f'where {ndim} axes of floating-point numbers were expected'
            )
        return array

    def link(self, record: Any, twin: Any = None) -> chainer.Link:
        """The link of today.

        Args:
            record: the link in the file.
            twin: the same link of another copy of the trunk, whose running statistics it takes.
        """
        self.links_left -= 1
        if self.links_left < 0:
            raise ValueError(f'it has more than {_MAX_LINKS} links')
        if isinstance(record, Record) and record.name == _SL:
            state = self.state(record, _SL)
            test = state.get('fnTest')
            return SL(self.plain_link(state.get('fnTrain')), None if test is None else self.plain_link(test))
        return self.plain_link(record, twin)

    def plain_link(self, record: Any, twin: Any = None) -> chainer.Link:
        """Any link but an SL, which holds other links; see `link`."""
        if isinstance(record, Record):
            if record.name == _FL:
                return self.function(self.state(record, _FL))
            if record.name == _CONVOLUTION:
                return self.convolution(self.state(record, _CONVOLUTION))
            if record.name == _LINEAR:
                return self.linear(self.state(record, _LINEAR))
            if record.name == _NORM:
                return self.norm(record, twin)
            if record.name == _BLOCK:
                return self.block(record, twin)
        raise ValueError(f'it has {kind(record)} where a link was expected')

    def function(self, state: dict[str, Any]) -> FL:
        """An FL with the function of today and the arguments that it still has."""
        fn = state.get('fn')
        name = fn.name if isinstance(fn, Record) else fn
        if not isinstance(name, Name) or name not in _FUNCTIONS:
            raise ValueError(f'it has {kind(fn)} where a function was expected')
        function, names = _FUNCTIONS[name]
        args, kwargs = state.get('arguments'), state.get('keywords')
        if not isinstance(args, tuple) or not isinstance(kwargs, dict):
            raise ValueError('it has a function without arguments')
        if len(args) > len(names) + 1:
            raise ValueError(f'it has {name.split()[-1]} with {len(args)} arguments')
        unknown = [key for key in kwargs if key not in names + _GONE_ARGUMENTS]
        if unknown:
            raise ValueError(f'it has {name.split()[-1]} with the argument {unknown[0]!r}')
        if function is F.dropout and not kwargs.get('train', args[1] if len(args) > 1 else True):
            return FL(F.identity)
        return FL(
            function,
            *[self.argument(v) for v in args[: len(names)]],
            **{key: self.argument(v) for key, v in kwargs.items() if key in names},
        )

    def argument(self, value: Any) -> Any:
        """An argument of a function: None, a number, or two of them."""
        if value is None:
            return None
        return self.pair(value) if isinstance(value, tuple) else self.number(value)

    def convolution(self, state: dict[str, Any]) -> L.Convolution2D:
        """A convolution, its sizes taken from its weights."""
        w, b = self.weights_and_bias(state, 4)
        ksize = w.shape[2] if w.shape[2] == w.shape[3] else w.shape[2:]
        link = L.Convolution2D(
            w.shape[1],
            w.shape[0],
            ksize,
            self.pair(state.get('stride')),
            self.pair(state.get('pad')),
            nobias=b is None,
            initialW=np.float32(0),
        )
        return _filled(link, {'W': w, 'b': b})

    def linear(self, state: dict[str, Any]) -> L.Linear:
        """A linear layer, its sizes taken from its weights."""
        w, b = self.weights_and_bias(state, 2)
        return _filled(L.Linear(w.shape[1], w.shape[0], nobias=b is None, initialW=np.float32(0)), {'W': w, 'b': b})

    def weights_and_bias(self, state: dict[str, Any], ndim: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The arrays W of ``ndim`` axes, and b, or None without biases."""
        w = self.weights(state.get('W'), ndim)
        b = None if state.get('b') is None else self.weights(state['b'], 1)
        if b is not None and len(b) != len(w):
            raise ValueError(f'it has weights for {len(w)} channels and {len(b)} biases')
        return w, b

    def norm(self, record: Any, twin: Any = None) -> L.BatchNormalization:
        """Batch normalisation; see `link` for the twin."""
        state = self.state(record, _NORM)
        source = state if twin is None else self.state(twin, _NORM)
        if not self.has_statistics(source):
            source = state
        mean, var = self.array(source.get('avg_mean')), self.array(source.get('avg_var'))
        factors: dict[str, np.ndarray | None] = {
            name: self.weights(state[name], 1) for name in ('gamma', 'beta') if name in state
        }
        if (
            mean.ndim != 1
            or mean.dtype.kind != 'f'
            or any(a is None or a.shape != mean.shape for a in (var, *factors.values()))
        ):
            raise ValueError('it has batch normalisation whose arrays do not fit each other')
        eps = float(self.number(state.get('eps')))
        link = L.BatchNormalization(
            mean.shape[0],
            float(self.number(state.get('decay'))),
            eps,
            mean.dtype,
            'gamma' in factors,
            'beta' in factors,
            initial_avg_var=0,
        )
        link.avg_mean, link.N = mean, self.whole(source.get('N'))
        link.avg_var = without_eps(var, eps) if self.has_statistics(source) else var
        return _filled(link, factors)

    def has_statistics(self, state: dict[str, Any]) -> bool:
        """Whether batch normalisation has seen a batch: in Chainer 1 both statistics started at 0."""
        return any(self.array(state.get(name)).any() for name in ('avg_mean', 'avg_var'))

    def block(self, record: Any, twin: Any = None) -> ResBlock:
        """A residual block; see `link` for the twin."""
        state = self.state(record, _BLOCK)
        twins = {} if twin is None else self.state(twin, _BLOCK)
        conv1, conv2 = [self.convolution(self.state(state.get(name), _CONVOLUTION)) for name in ('conv1', 'conv2')]
        bn1, bn2 = [self.norm(state.get(name), twins.get(name)) for name in ('bn1', 'bn2')]
        out_size, in_size = conv1.W.shape[:2]
        if conv2.W.shape != (out_size, out_size, 3, 3):  # before a block of these sizes is made
            raise ValueError('it has a ResBlock whose convolutions do not fit each other')
        block = ResBlock(in_size, out_size, conv1.stride[0])
        for name, part in dict(conv1=conv1, bn1=bn1, conv2=conv2, bn2=bn2).items():
            if shapes(part) != shapes(block[name]) or _geometry(part) != _geometry(block[name]):
                raise ValueError(f'it has a ResBlock whose {name} is not the released one')
            delattr(block, name)
            with block.init_scope():
                setattr(block, name, part)
        return block

    # The network

    def branchynet(self, root: Record) -> BranchyNet:
        """The whole network, with settings and optimisers."""
        state = self.state(root, BRANCHYNET)
        main = self.items(self.state(state.get('main'), _NET).get('_children'))
        models = [self.state(model, _NET) for model in self.items(state.get('models'))]
        ends = [self.whole(model.get('endi')) for model in models]
        children = [self.items(model.get('_children')) for model in models]
        if (
            not models
            or ends != sorted(ends)
            or ends[-1] > len(main)
            or any(end >= len(links) for end, links in zip(ends, children))
        ):
            raise ValueError('its exits do not fit its trunk')
        network: list[chainer.Link] = []
        start = 0
        for end, links, model in zip(ends, children, models):
            for i in range(start, end):
                network.append(self.link(main[i], links[i] if self.statistics == 'exits' else None))
            network.append(Branch([self.link(one) for one in links[end:]], float(self.number(model.get('weight')))))
            start = end
        net = BranchyNet(network, **self.settings(state))
        net.percentTrainExits = self.setting(state.get('percentTrainExits'))
        net.forwardMain = None if state.get('forwardMain') is None else True
        net._check_settings()
        self.main_head(net, main[start:])
        self.optimizers(net, state)
        return net

    def settings(self, state: dict[str, Any]) -> dict[str, Any]:
        """The arguments of BranchyNet that are no links."""
        settings = {name: self.setting(state.get(name, default)) for name, default in SETTINGS.items()}
        for name in ('lr', 'momentum', 'weight_decay', 'alpha', 'percentTestExits', 'percentTrainKeeps'):
            if settings[name] is None or isinstance(settings[name], str):
                raise ValueError(f'{name} is no number')
        return {**settings, 'joint': bool(settings['joint']), 'verbose': bool(settings['verbose'])}

    def main_head(self, net: BranchyNet, records: list[Any]) -> None:
        """Gives main its own copy of the final exit."""
        own = net.main[net.models[-1].endi :]
        loaded = [self.link(record) for record in records]
        if [shapes(link) for link in own] != [shapes(link) for link in loaded]:
            raise ValueError("main's last links are not those of the last exit")
        for link, source in zip(own, loaded):
            link.copyparams(source)

    # Optimisers

    def optimizers(self, net: BranchyNet, state: dict[str, Any]) -> None:
        """Gives main's optimiser and those of the exits what the file's have."""
        records = self.items(state.get('optimizers'))
        if len(records) != net.numexits():
            raise ValueError(f'it has {net.numexits()} exits and {len(records)} optimisers for them')
        self.optimizer(net.optimizer, state.get('optimizer'), 0)
        for model, optimizer, record in zip(net.models, net.optimizers, records):
            self.optimizer(optimizer, record, model.endi)

    def optimizer(self, optimizer: chainer.Optimizer, record: Any, first: int) -> None:
        """Gives an optimiser its settings and moments.

        Args:
            optimizer: today's.
            record: the old one.
            first: which link of the old optimiser's net is the first of the new one's. An exit's old optimiser
                had moments for its copy of the trunk too.
        """
        adam = isinstance(optimizer, chainer.optimizers.Adam)
        state = self.state(record, _ADAM if adam else _MOMENTUM)
        for name in ('alpha', 'beta1', 'beta2', 'eps') if adam else ('lr', 'momentum'):
            setattr(optimizer, name, float(self.number(state.get(name))))
        moments = state.get('_states')
        if not isinstance(moments, dict):
            raise ValueError('it has an optimiser without moments')
        steps = self.whole(state.get('t'))
        values: dict[str, Any] = {'t': steps, 'epoch': self.whole(state.get('epoch'))}
        assert optimizer.target is not None  # BranchyNet has set it up
        for path, param in optimizer.target.namedparams():
            _, index, rest = path.split('/', 2)
            old = moments.get(f'/{int(index) + first}/{rest}')
            if not isinstance(old, dict):
                warnings.warn(
                    f"the file has no moments for the parameter {path}: its optimiser's start at 0", stacklevel=2
                )
                return
            values[f'{path[1:]}/t'] = steps
            for name in ('m', 'v') if adam else ('v',):
                moment = self.array(old.get(name))
                if moment.shape != param.shape:
                    raise ValueError(f'it has moments of shape {moment.shape} for weights of shape {param.shape}')
                values[f'{path[1:]}/{name}'] = moment.astype(param.dtype, copy=False)
        optimizer.serialize(
            chainer.serializers.NpzDeserializer({key: np.asarray(value) for key, value in values.items()})
        )


def without_eps(avg_var: np.ndarray, eps: float) -> np.ndarray:
    """A running variance of today: Chainer 1 added eps before it averaged, where Chainer 7 adds it afterwards."""
    return (avg_var - eps).astype(avg_var.dtype)


def _filled(link: chainer.Link, arrays: Mapping[str, np.ndarray | None]) -> Any:
    """The link, with these arrays as its parameters."""
    for name, array in arrays.items():
        if array is not None:
            getattr(link, name).array = array
    return link


def _geometry(link: chainer.Link) -> Any:
    return getattr(link, 'stride', None), getattr(link, 'pad', None)


def shapes(link: chainer.Link) -> list[Any]:
    """The path and shape of every parameter."""
    return [(name, param.shape) for name, param in sorted(link.namedparams())]


@contextlib.contextmanager
def generator_kept() -> Iterator[None]:
    """Leaves NumPy's global generator as it was: a new block draws weights, which the file's replace."""
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)
