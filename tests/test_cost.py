"""Parameters and multiply-adds, worked out by hand from the layers that original.md lists."""

import branchynet
from branchynet.cost import Cost, cost
from branchynet.links.densesparselinear import DenseSparseLinear
from branchynet.links.links import SL, X
from branchynet.links.resnet import Block
from branchynet.links.sparselinear import SparseLinear
from branchynet.networks import alex_cifar10, lenet_mnist, resnet_cifar10

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from helpers import same, small_chain_net, small_net


def conv(i, o, k, size):
    """Cost of a k x k convolution from i to o channels with size x size outputs."""
    return Cost(i * o * k * k + o, i * o * k * k * size * size)


def linear(i, o):
    return Cost(i * o + o, i * o)


def block(i, o, size):
    return together([conv(i, o, 3, size), conv(o, o, 3, size), Cost(4 * o, 0)])


def together(costs):
    return Cost(*map(sum, zip(*costs)))


# Per exit: the layers of its stage of the trunk, its own layers.
LENET = [
    ([conv(1, 5, 5, 30)], [conv(5, 10, 3, 15), linear(640, 10)]),
    ([conv(5, 10, 5, 17), conv(10, 20, 5, 11), linear(720, 84)], [linear(84, 10)]),
]
ALEXNET = [
    ([conv(3, 32, 5, 32), conv(32, 64, 5, 16)], [conv(64, 32, 3, 8), conv(32, 32, 3, 8), linear(512, 10)]),
    ([conv(64, 96, 3, 8)], [conv(96, 32, 3, 4), linear(128, 10)]),
    ([conv(96, 96, 3, 8), conv(96, 64, 3, 8), linear(1024, 256), linear(256, 128)], [linear(128, 10)]),
]
RESNET = [
    (
        [conv(3, 16, 3, 30), Cost(2 * 16, 0)],
        [conv(16, 64, 5, 30), conv(64, 32, 3, 30), conv(32, 32, 3, 30), linear(28800, 10)],
    ),
    (18 * [block(16, 16, 30)], [block(16, 16, 30), linear(14400, 10)]),
    ([block(16, 32, 15), *17 * [block(32, 32, 15)], block(32, 64, 8), *17 * [block(64, 64, 8)]], [linear(576, 10)]),
]


@pytest.mark.parametrize(
    'builder, shape, layers, macs',
    [
        (lenet_mnist, (1, 28, 28), LENET, 1140070),
        (alex_cifar10, (3, 32, 32), ALEXNET, 28247296),
        (resnet_cifar10, (3, 32, 32), RESNET, 232411968),
    ],
    ids=['lenet', 'alexnet', 'resnet'],
)
def test_networks_by_hand(builder, shape, layers, macs):
    exits, main = cost(builder.get_network(), shape)
    ran = []
    for counted, (stage, own) in zip(exits, layers):
        ran += stage + own
        assert counted == (together(stage), together(own), together(ran))
    trunk = [layer for stage, _ in layers for layer in stage]
    assert main == together(trunk + layers[-1][1])
    assert main.macs == macs and len(exits) == len(layers)


def test_links_of_the_original_by_hand():
    net = branchynet.BranchyNet(
        [
            X([L.Convolution2D(2, 4, 3, 2, 1)]),  # 6x6 to 3x3
            branchynet.Branch([SparseLinear(36, 10, 0.9)]),
            Block(2, 4, 2, 8, 1),
            SL(branchynet.FL(F.dropout, 0.5), L.Linear(72, 5)),
            branchynet.Branch([DenseSparseLinear(5, 3, 0.5)]),
        ]
    )
    (first, last), main = cost(net, (2, 6, 6))
    assert first.stage == (72 + 4, 72 * 9)
    assert first.exit == (36 + 10, 360)  # a tenth of the weights is stored; the product is dense
    convolutions = (4 * 2 + 2 * 2 * 9 + 2 * 8 + 4 * 8) + (8 * 2 + 2 * 2 * 9 + 2 * 8)
    assert last.stage == (convolutions + 2 * (2 + 2 + 8 + 8 + 2 + 2 + 8) + 72 * 5 + 5, convolutions * 9 + 72 * 5)
    assert last.exit == (15 + 3, 15)
    assert last.leaving == together([*first[:2], *last[:2]])
    assert main == together([first.stage, *last[:2]])


def test_functions_groups_and_one_dimension_by_hand():
    filters = np.ones((4, 2, 3), np.float32)
    net = branchynet.BranchyNet(
        [
            L.Convolution1D(2, 4, 3),  # 10 to 8
            branchynet.FL(F.convolution_1d, filters, groups=2),  # to 6
            branchynet.Branch([L.Linear(24, 2)]),
        ]
    )
    assert cost(net, (2, 10)).exits[0].stage == (2 * 4 * 3 + 4, 2 * 4 * 3 * 8 + 4 * 2 * 3 * 6)


def test_a_shared_link_is_stored_once_and_runs_twice():
    shared = L.Linear(4, 4)
    net = branchynet.BranchyNet(
        [shared, branchynet.Branch([L.Linear(4, 2)]), shared, branchynet.Branch([L.Linear(4, 2)])]
    )
    last = cost(net, (4,)).exits[1]
    assert last.stage == (20, 16) and last.leaving == (20 + 10 + 10, 16 + 16 + 8 + 8)


def test_nothing_changes():
    net = resnet_cifar10.get_network()
    before, generator = state(net), np.random.get_state()[1].copy()
    with chainer.no_backprop_mode():
        cost(net, (3, 32, 32))
    assert same(before, state(net)) and chainer.config.train
    np.testing.assert_array_equal(np.random.get_state()[1], generator)


def state(net):
    """Copies of all parameters and of BN's statistics."""
    serializer = chainer.serializers.DictionarySerializer()
    serializer.save(net)
    return {path: np.copy(array) for path, array in serializer.target.items()}


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r'^link 0 \(Linear\) cannot take an array of shape \(1, 5\)'):
        cost(small_net(), (5,))
    lazy = branchynet.BranchyNet([branchynet.Branch([L.Linear(None, 3)])])
    words = r'^parameter /main/0/W has no shape yet: call net.run_main\(x\) and net.get_SM\(x\) on a batch first$'
    with pytest.raises(ValueError, match=words):
        cost(lazy, (5,))


def test_a_frozen_trunk_costs_as_much():
    for net in small_net(), small_chain_net():
        before = cost(net, (4,))
        net.freeze('trunk')
        assert cost(net, (4,)) == before


class Extractor(chainer.Chain):
    """Layers that are not trained, which keep no graph, then one that is."""

    def __init__(self):
        super().__init__()
        with self.init_scope():
            self.a, self.b, self.c = L.Linear(4, 100), L.Linear(100, 50), L.Linear(50, 3)

    def forward(self, x):
        with chainer.no_backprop_mode():
            h = F.relu(self.b(F.relu(self.a(x))))
        return self.c(h.array)


def test_a_forward_that_keeps_no_graph_counts():
    x = np.ones((2, 4), np.float32)
    exits, main = cost(branchynet.BranchyNet.from_chain(Extractor(), {'b': L.Linear(50, 3)}, x=x), (4,))
    assert main == together([linear(4, 100), linear(100, 50), linear(50, 3)])
    assert exits[0].stage == together([linear(4, 100), linear(100, 50)]) and exits[0].exit == linear(50, 3)
    assert exits[1].leaving == together([main, linear(50, 3)])


def test_a_link_with_a_state_costs_the_same_again_and_keeps_its_state():
    net = branchynet.BranchyNet(
        [L.LSTM(4, 8), branchynet.Branch([L.Linear(8, 3)]), L.Linear(8, 8), branchynet.Branch([L.Linear(8, 3)])]
    )
    before = cost(net, (4,))
    assert before.main.macs == 4 * 32 + 8 * 8 + 8 * 3 and net.main[0].h is None  # no state yet: nothing from it
    assert cost(net, (4,)) == before
    net.test(np.ones((5, 4), np.float32))  # of another size than the counted sample


def test_samples_of_whole_numbers():
    net = branchynet.BranchyNet(
        [L.EmbedID(10, 4), branchynet.Branch([L.Linear(20, 3)]), branchynet.Branch([L.Linear(20, 3)])]
    )
    assert cost(net, (5,), np.int32).exits[0].leaving == (40 + 60 + 3, 60)
