"""Parameters and multiply-adds of a network's stages and exits."""
import math
from typing import NamedTuple

from branchynet import _chainer  # noqa: F401
import chainer
from chainer.computational_graph import build_computational_graph
from chainer.functions.connection.convolution_2d import Convolution2DFunction
from chainer.functions.connection.convolution_nd import ConvolutionND
from chainer.functions.connection.linear import LinearFunction
import numpy as np

COUNTED = Convolution2DFunction, ConvolutionND, LinearFunction


class Cost(NamedTuple):
    """What a part of a network takes.

    Attributes:
        params: numbers that training changes (biases and those of BN counted), as they are stored.
        macs: multiply-adds of convolutions and linear layers for one sample.
    """
    params: int
    macs: int


class ExitCost(NamedTuple):
    """The Costs of one exit.

    Attributes:
        stage: of the trunk's stage before it.
        exit: of its own links.
        leaving: of all that runs for a sample that leaves here: the stages and the exits' links so far.
    """
    stage: Cost
    exit: Cost
    leaving: Cost


class NetCost(NamedTuple):
    """The cost of a BranchyNet: an ExitCost per exit, and the Cost of the baseline."""
    exits: list
    main: Cost


def cost(net, shape):
    """Counts parameters and multiply-adds of a BranchyNet, from one sample of zeros in testing mode.

    A convolution or linear layer counts one multiply-add for every weight of a filter (of its group) and
    every number that it puts out. Counted is what runs: the zeros of padding as well, and the whole
    matrix of a SparseLinear or DenseSparseLinear, which multiply densely. Not counted are the addition of
    biases, normalisation, activations, pooling, softmax, entropy and all other functions.

    Args:
        net: a BranchyNet; nothing in it changes.
        shape: of a sample, without the batch.

    Returns:
        A NetCost.

    Raises:
        ValueError: the net cannot take such a sample, or has a parameter without a shape yet.
    """
    for path, param in net.namedparams():
        if not param.is_initialized:
            raise ValueError('parameter %s has no shape yet: expected a net that has seen a batch' % path)
    x, _ = net.checked(np.zeros((1, *shape), next((p.dtype for p in net.params()), np.float32)))
    with chainer.using_config('train', False), chainer.force_backprop_mode():
        return NetCost(_exits(net, x), Cost(_params(net.main), _macs(net.main(chainer.Variable(x)))))


def _exits(net, x):
    """An ExitCost per exit for x (1, ...)."""
    ran, macs, costs = [], 0, []
    for k, model in enumerate(net.models):
        h = net.stage(k, chainer.Variable(x))  # a new Variable: its graph begins at this stage
        x = h.array
        trunk, own = model[model.starti:model.endi], model[model.endi:]
        stage = Cost(_params(trunk), _macs(h))
        branch = Cost(_params(own), _macs(net.exit(k, chainer.Variable(x))))
        ran += trunk + own
        macs += stage.macs + branch.macs
        costs.append(ExitCost(stage, branch, Cost(_params(ran), macs)))
    return costs


def _params(links):
    """Numbers in the links' parameters, each once where links share them."""
    return sum({id(param): param.size for link in links for param in link.params()}.values())


def _macs(y):
    """Multiply-adds of the counted functions in the graph behind the Variable y (1, ...)."""
    functions = [node for node in build_computational_graph([y]).nodes if isinstance(node, COUNTED)]
    # inputs[1] holds the weights, its first axis the filters.
    return sum(math.prod(f.outputs[0]().shape) * math.prod(f.inputs[1].shape[1:]) for f in functions)
