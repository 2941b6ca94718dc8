"""Parameters and multiply-adds of a network's stages and exits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from branchynet import _chainer  # noqa: F401
from branchynet.net import BranchyNet

import chainer
import numpy as np
from chainer.computational_graph import build_computational_graph
from chainer.functions.connection.convolution_2d import Convolution2DFunction
from chainer.functions.connection.convolution_nd import ConvolutionND
from chainer.functions.connection.linear import LinearFunction

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


def cost(net: BranchyNet, shape: Sequence[int]) -> NetCost:
    """Counts parameters and multiply-adds of a BranchyNet, from one sample of zeros in testing mode.

    A convolution or linear layer counts one multiply-add for every output number and every weight that it is the sum
    over (of a grouped convolution: the filter's own channels). Padding zeros count, because they are computed; so does
    the whole matrix of a SparseLinear or DenseSparseLinear, which multiply densely. The addition of biases,
    normalisation, activations, pooling, softmax, entropy and all other functions do not count.

    Args:
        net: a BranchyNet; it does not change.
        shape: shape of a sample, without the batch axis.

    Returns:
        A NetCost.

    Raises:
        ValueError: the net cannot take such a sample, or a parameter has no shape yet.
    """
    for path, param in net.namedparams():
        if not param.is_initialized:
            raise ValueError(
                f'parameter {path} has no shape yet: call net.run_main(x) and net.get_SM(x) on a batch first'
            )
    x, _ = net.checked(np.zeros((1, *shape), next((p.dtype for p in net.params()), np.float32)))
    with chainer.using_config('train', False), chainer.force_backprop_mode():
        return NetCost(_exits(net, x), _cost(net.main(chainer.Variable(x))))


def _exits(net: BranchyNet, x: Any) -> list[ExitCost]:
    """An ExitCost for every exit, counted on x (1, ...)."""
    stage_of_pass, graphs, costs, macs = net.one_pass(), [], [], 0
    for k in range(net.numexits()):
        h = stage_of_pass(k, chainer.Variable(x))  # a new Variable: its graph begins at this stage
        x = h.array
        logits = net.exit(k, chainer.Variable(x))
        graphs += [h, logits]
        stage, branch = _cost(h), _cost(logits)
        macs += stage.macs + branch.macs
        costs.append(ExitCost(stage, branch, Cost(_params(graphs), macs)))
    return costs


def _cost(y: chainer.Variable) -> Cost:
    """Cost of the graph behind the Variable y (1, ...)."""
    functions: list[Any] = [node for node in build_computational_graph([y]).nodes if isinstance(node, COUNTED)]
    # inputs[1] holds the weights, its first axis the filters.
    macs = sum(math.prod(f.outputs[0]().shape) * math.prod(f.inputs[1].shape[1:]) for f in functions)
    return Cost(_params([y]), macs)


def _params(outputs: Sequence[chainer.Variable]) -> int:
    """Numbers in the parameters from which outputs are computed; a parameter that they share counts once."""
    nodes = [
        node for node in build_computational_graph(outputs).nodes if isinstance(node, chainer.variable.VariableNode)
    ]
    variables = {id(node): node.get_variable_or_none() for node in nodes}
    return sum(v.size for v in variables.values() if isinstance(v, chainer.Parameter))
