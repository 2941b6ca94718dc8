"""A BranchyNet of today from the records of a released one."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Callable

from branchynet.legacy import values
from branchynet.legacy.pickles import Name, Record
from branchynet.legacy.values import Values, kind
from branchynet.links.densesparselinear import DenseSparseLinear
from branchynet.links.links import FL, SL, Branch, X
from branchynet.links.resnet import Block, BottleNeckA, BottleNeckB, ResBlock
from branchynet.links.sparselinear import SparseLinear
from branchynet.net import BranchyNet

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np

_MAX_DEPTH = 20  # of X within X; the released networks have none
_MAX_LINKS = 10_000  # the released ResNet-110 has 70, and as many again in each copy of its trunk

BRANCHYNET = 'branchynet.net BranchyNet'
_NET = 'branchynet.links.links Net'
_FL = 'branchynet.links.links FL'
_SL = 'branchynet.links.links SL'
_X = 'branchynet.links.links X'
_RES_BLOCK = 'branchynet.links.resnet ResBlock'
_BOTTLENECK_A = 'branchynet.links.resnet BottleNeckA'
_BOTTLENECK_B = 'branchynet.links.resnet BottleNeckB'
_BLOCK = 'branchynet.links.resnet Block'
_SPARSE = 'branchynet.links.sparselinear SparseLinear'
_SPARSE_FUNCTION = 'branchynet.links.sparselinear SparseLinearFunction'
_DENSE_SPARSE = 'branchynet.links.densesparselinear DenseSparseLinear'
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
        _X,
        _RES_BLOCK,
        _BOTTLENECK_A,
        _BOTTLENECK_B,
        _BLOCK,
        _SPARSE,
        _SPARSE_FUNCTION,
        _DENSE_SPARSE,
        'branchynet.links.densesparselinear SparseLinearFunction',
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
        'scipy.sparse.csr csr_matrix',
    }
)

# The arguments of BranchyNet that a file keeps, and what each was by default.
ARGUMENTS = {
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


class Builder(Values):
    """Makes a network of today of a file's records, each checked first.

    Args:
        size: bytes of the file.
        statistics: see `branchynet.legacy.load`.
    """

    def __init__(self, size: int, statistics: str) -> None:
        super().__init__(size)
        self.links_left = _MAX_LINKS
        self.depth = 0
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
        """Any link but an SL; see `link`."""
        makers: dict[str, Callable[[], chainer.Link]] = {
            _FL: lambda: self.function(self.state(record, _FL)),
            _CONVOLUTION: lambda: self.convolution(self.state(record, _CONVOLUTION)),
            _LINEAR: lambda: self.linear(self.state(record, _LINEAR)),
            _NORM: lambda: self.norm(record, twin),
            _RES_BLOCK: lambda: self.residual(record, twin),
            _BOTTLENECK_A: lambda: self.residual(record, twin),
            _BOTTLENECK_B: lambda: self.residual(record, twin),
            _BLOCK: lambda: self.block(record, twin),
            _X: lambda: self.weighted(record, twin),
            _SPARSE: lambda: self.sparse(self.state(record, _SPARSE)),
            _DENSE_SPARSE: lambda: self.dense_sparse(self.state(record, _DENSE_SPARSE)),
        }
        if not isinstance(record, Record) or record.name not in makers:
            raise ValueError(f'it has {kind(record)} where a link was expected')
        return makers[record.name]()

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

    def residual(self, record: Record, twin: Any = None) -> chainer.Chain:
        """A ResBlock, BottleNeckA or BottleNeckB; see `link` for the twin."""
        name = record.name.split()[-1]
        state = self.state(record, record.name)
        twins = {} if twin is None else self.state(twin, record.name)
        count = {_RES_BLOCK: 2, _BOTTLENECK_A: 4, _BOTTLENECK_B: 3}[record.name]
        parts: dict[str, chainer.Link] = {}
        for k in range(1, count + 1):
            parts[f'conv{k}'] = self.convolution(self.state(state.get(f'conv{k}'), _CONVOLUTION))
            parts[f'bn{k}'] = self.norm(state.get(f'bn{k}'), twins.get(f'bn{k}'))
        sizes = [parts[f'conv{k}'].W.shape for k in range(1, count + 1)]
        expected, make = _released_residual(record.name, sizes, parts['conv1'].stride[0])
        if sizes != expected:  # before a block of these sizes is made
            raise ValueError(f'it has a {name} whose convolutions do not fit each other')
        block = make()
        for key, part in parts.items():
            if shapes(part) != shapes(block[key]) or _geometry(part) != _geometry(block[key]):
                raise ValueError(f'it has a {name} whose {key} is not the released one')
            delattr(block, key)
            with block.init_scope():
                setattr(block, key, part)
        return block

    def block(self, record: Record, twin: Any = None) -> Block:
        """A Block of bottlenecks; see `link` for the twin."""
        state = self.state(record, _BLOCK)
        twins = {} if twin is None else self.state(twin, _BLOCK)
        count = self.whole(state.get('layer'))
        if not 1 <= count <= _MAX_LINKS:
            raise ValueError(f'it has a Block of {count} bottlenecks')
        names = [_bottleneck_name(k) for k in range(count)]
        kinds = [_BOTTLENECK_A] + [_BOTTLENECK_B] * (count - 1)
        if [getattr(state.get(name), 'name', None) for name in names] != kinds:
            raise ValueError('it has a Block whose links are not the released ones')
        first, *others = [self.link(state[name], twins.get(name)) for name in names]
        (ch, in_size), out_size = first.conv1.W.shape[:2], first.conv3.W.shape[0]
        if any(one.conv1.W.shape[:2] != (ch, out_size) for one in others):
            raise ValueError('it has a Block whose bottlenecks do not fit each other')
        block = Block(1, in_size, ch, out_size, first.conv1.stride[0])
        block[0] = first
        for one in others:
            block.append(one)
        return block

    def weighted(self, record: Record, twin: Any = None) -> X:
        """An X with its links; see `link` for the twin."""
        state = self.state(record, _X)
        records = self.items(state.get('_children'))
        twins = [None] * len(records) if twin is None else self.items(self.state(twin, _X).get('_children'))
        weights = [float(self.number(weight)) for weight in self.items(state.get('weights'))]
        if len(weights) != 2 or len(twins) != len(records):
            raise ValueError('it has an X whose weights or links are not two numbers or those of its copies')
        if self.depth == _MAX_DEPTH:
            raise ValueError(f'it has more than {_MAX_DEPTH} X, one within the other')
        self.depth += 1
        link = X([self.link(*pair) for pair in zip(records, twins)])
        self.depth -= 1
        link.set_weights(weights)
        return link

    def sparse(self, state: dict[str, Any]) -> SparseLinear:
        """A linear layer that stores only few weights."""
        w = self.weights(state.get('W'), 1)
        b = None if state.get('b') is None else self.weights(state['b'], 1)
        out_size, in_size = self.mask(state).shape
        places = self.state(state.get('slf'), _SPARSE_FUNCTION)
        columns, starts = self.array(places.get('indices')), self.array(places.get('indptr'))
        if not (
            columns.dtype.kind == starts.dtype.kind == 'i'
            and columns.shape == w.shape
            and starts.shape == (out_size + 1,)
            and (starts[0], starts[-1]) == (0, len(w))
            and (np.diff(starts) >= 0).all()
            and (0 <= columns.min() <= columns.max() < in_size)
            and (b is None or len(b) == out_size)
        ):
            raise ValueError('it has a SparseLinear whose arrays do not fit each other')
        link = SparseLinear(in_size, out_size, nobias=b is None, initialW=np.float32(0))
        del link.W
        with link.init_scope():
            link.W = chainer.Parameter(w)
        link.indices, link.indptr = columns.astype(np.int32), starts.astype(np.int32)
        return _filled(link, {'b': b})

    def dense_sparse(self, state: dict[str, Any]) -> DenseSparseLinear:
        """A linear layer in which most weights stay zero."""
        w, b = self.weights_and_bias(state, 2)
        mask = self.mask(state)
        if mask.shape != w.shape:
            raise ValueError('it has a DenseSparseLinear whose arrays do not fit each other')
        link = DenseSparseLinear(w.shape[1], w.shape[0], nobias=b is None, initialW=np.float32(0))
        link.mask = mask.astype(w.dtype)
        return _filled(link, {'W': w, 'b': b})

    def mask(self, state: dict[str, Any]) -> np.ndarray:
        """Which weights are kept: bool (out, in)."""
        mask = self.array(state.get('mask'))
        if mask.dtype.kind != 'b' or mask.ndim != 2 or mask.size == 0:
            raise ValueError(f'it has a mask of shape {mask.shape} and dtype {mask.dtype}')
        return mask

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
        settings = {name: self.setting(state.get(name, default)) for name, default in ARGUMENTS.items()}
        for name in ('lr', 'momentum', 'weight_decay', 'alpha', 'percentTestExits', 'percentTrainKeeps'):
            if settings[name] is None or isinstance(settings[name], str):
                raise ValueError(f'{name} is not a number')
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
            old = moments.get(_old_path(optimizer.target, path, first))
            if not isinstance(old, dict):
                warnings.warn(
                    f'the file has no moments for the parameter {path}: its optimiser starts anew, with moments of 0',
                    stacklevel=2,
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


def _released_residual(
    name: str, sizes: list[tuple[int, ...]], stride: int
) -> tuple[list[tuple[int, ...]], Callable[[], chainer.Chain]]:
    """The form of the released block of such sizes.

    Args:
        name: of its class.
        sizes: shapes of the weights of its convolutions in the file.
        stride: of the first of them.

    Returns:
        The shapes that fit each other, and a function that makes a block of them.
    """
    (ch, in_size), out_size = sizes[0][:2], sizes[-2 if name == _BOTTLENECK_A else -1][0]
    if name == _RES_BLOCK:
        return [(ch, in_size, 3, 3), (ch, ch, 3, 3)], lambda: ResBlock(in_size, ch, stride)
    shapes: list[tuple[int, ...]] = [(ch, in_size, 1, 1), (ch, ch, 3, 3), (out_size, ch, 1, 1)]
    if name == _BOTTLENECK_B:
        shapes[2] = (in_size, ch, 1, 1)
        return shapes, lambda: BottleNeckB(in_size, ch)
    return [*shapes, (out_size, in_size, 1, 1)], lambda: BottleNeckA(in_size, ch, out_size, stride)


def _bottleneck_name(index: int) -> str:
    """The released Block's name of a bottleneck."""
    return f'b{index}' if index else 'a'


def _old_path(link: Any, path: str, first: int = 0) -> str:
    """The path of a parameter in the release.

    Args:
        link: today's link.
        path: of the parameter within it, today.
        first: which link of the old net is the first of today's.
    """
    if not isinstance(link, (chainer.ChainList, chainer.Sequential)):
        return path
    _, index, rest = path.split('/', 2)
    name = _bottleneck_name(int(index)) if isinstance(link, Block) else str(int(index) + first)
    return f'/{name}{_old_path(link[int(index)], f"/{rest}")}'


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
