"""Parameters and multiply-adds of a network's stages and exits."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from branchynet.batching import check_shape
from branchynet.functions import inference_mode
from branchynet.net import BranchyNet, check_net

import chainer
import numpy as np
from chainer.functions.connection.convolution_2d import Convolution2DFunction
from chainer.functions.connection.convolution_nd import ConvolutionND
from chainer.functions.connection.linear import LinearFunction
from chainer.utils.conv import get_conv_outsize

COUNTED = Convolution2DFunction, ConvolutionND, LinearFunction


class Cost(NamedTuple):
    """The cost of a part of a network.

    Attributes:
        params: trainable numbers of the parameters that it uses, with biases and those of batch normalisation.
        macs: multiply-adds of convolutions and linear layers for one sample.
    """

    params: int
    macs: int


class ExitCost(NamedTuple):
    """The costs of one exit.

    Attributes:
        stage: cost of the trunk's stage before it.
        exit: cost of its own links.
        leaving: cost of everything that runs for a sample that leaves here: all stages and exits' links so far.
    """

    stage: Cost
    exit: Cost
    leaving: Cost


class NetCost(NamedTuple):
    """The cost of a BranchyNet.

    Attributes:
        exits: an ExitCost for every exit.
        main: cost of the baseline.
    """

    exits: list[ExitCost]
    main: Cost


def cost(net: BranchyNet, shape: Sequence[int], dtype: Any = None) -> NetCost:
    """Counts parameters and multiply-adds of a BranchyNet, from one sample of zeros in testing mode.

    A convolution or linear layer counts one multiply-add for every weight that goes into an output number (of a grouped
    convolution: the filter's own channels). Padding zeros count, because they are computed; so does
    the whole matrix of a SparseLinear or DenseSparseLinear, which multiply densely. The addition of biases,
    normalisation, activations, pooling, softmax, entropy and all other functions do not count.

    Args:
        net: a BranchyNet; it does not change.
        shape: shape of a sample, without the batch axis.
        dtype: of a sample; None: that of the parameters.

    Returns:
        A NetCost.

    Raises:
        TypeError: net is no BranchyNet, or shape is none.
        ValueError: the net cannot take such a sample, or a parameter has no shape yet.
    """
    check_net(net)
    check_shape(shape)
    for path, param in net.namedparams():
        if not param.is_initialized:
            raise ValueError(
                f'parameter {path} has no shape yet: call net.run_main(x) and net.get_SM(x) on a batch first'
            )
    x, _ = net.checked(np.zeros((1, *shape), dtype or next(iter(net.dtypes()), np.float32)))
    with inference_mode():
        with _as_before(net):
            exits = _exits(net, x)
        with _as_before(net), _Count(net) as main:
            net.main(x)
    return NetCost(exits, main.cost())


def _exits(net: BranchyNet, x: Any) -> list[ExitCost]:
    """An ExitCost for every exit, counted on x (1, ...)."""
    stage_of_pass, costs, macs, used = net.one_pass(), [], 0, {}
    for k in range(net.numexits()):
        with _Count(net) as stage:
            x = chainer.as_array(stage_of_pass(k, x))
        with _Count(net) as branch:
            net.exit(k, x)
        macs += stage.macs + branch.macs
        used.update({**stage.used, **branch.used})
        costs.append(ExitCost(stage.cost(), branch.cost(), Cost(sum(used.values()), macs)))
    return costs


@contextlib.contextmanager
def _as_before(net: BranchyNet) -> Iterator[None]:
    """Gives the links of a net their attributes back in the end, such as the state of an LSTM."""
    before: list[tuple[Any, dict[str, Any]]] = [(link, dict(vars(link))) for link in net.links()]
    try:
        yield
    finally:
        for link, attributes in before:
            vars(link).clear()
            vars(link).update(attributes)


class _Count(chainer.FunctionHook):
    """Counts the functions that run within it: also those of a forward that keeps no graph.

    Attributes:
        macs: multiply-adds so far.
        used: sizes of the parameters that the functions take, by identity.
    """

    name = 'BranchyNet cost'

    def __init__(self, net: BranchyNet) -> None:
        self.macs = 0
        self.used: dict[int, int] = {}
        self._params = {id(param.array): param for param in net.params()}

    def forward_postprocess(self, function: Any, in_data: Sequence[Any]) -> None:
        self.used.update({id(array): array.size for array in in_data if id(array) in self._params})
        if isinstance(function, COUNTED):
            x, w, *_ = in_data
            self.macs += len(x) * math.prod(_places(function, x, w)) * w.size

    def cost(self) -> Cost:
        """The sum."""
        return Cost(sum(self.used.values()), self.macs)


def _places(function: Any, x: Any, w: Any) -> list[int]:
    """The spatial sizes of the output of a convolution of x (B, C, ...) by filters w; none of a linear layer."""
    if isinstance(function, LinearFunction):
        return []
    if isinstance(function, ConvolutionND):
        stride, pad, dilate = function.stride, function.pad, function.dilate
    else:
        stride, pad = (function.sy, function.sx), (function.ph, function.pw)
        dilate = (function.dy, function.dx)
    sizes = zip(x.shape[2:], w.shape[2:], stride, pad, dilate)
    return [get_conv_outsize(size, k, s, p, function.cover_all, d) for size, k, s, p, d in sizes]
