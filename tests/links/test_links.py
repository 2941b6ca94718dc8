import copy

import branchynet
from branchynet.links.links import FL, SL, Branch, Net, X, shortcut
from branchynet.links.resnet import Block, BottleNeckA, BottleNeckB, ResBlock

import chainer
import chainer.functions as F
import chainer.links as L
import dill
import numpy as np
import pytest

X0 = np.random.RandomState(0).randn(2, 3, 4, 4).astype(np.float32)


def net_of(*links):
    net = Net()
    for link in links:
        net.append(link)
    return net


def test_fl_passes_arguments_on():
    link = FL(F.leaky_relu, slope=0.5)
    np.testing.assert_array_equal(link(np.float32([[-2, 2]])).array, [[-1, 2]])
    assert FL(F.max_pooling_2d, 2, 2)(X0).shape == (2, 3, 2, 2)


def test_sl_takes_the_link_of_the_mode():
    both, one = SL(FL(F.exp), FL(F.log)), SL(FL(F.exp))
    x = np.float32([[1, 2]])
    np.testing.assert_array_equal(both(x).array, F.exp(x).array)
    with chainer.using_config('train', False):
        np.testing.assert_array_equal(both(x).array, F.log(x).array)
        np.testing.assert_array_equal(chainer.as_array(one(x)), x)


def test_net_runs_a_part():
    net = net_of(FL(lambda x: x + 1), FL(lambda x: x * 2), FL(lambda x: x - 3))
    assert net(5.0) == 9
    assert net(5.0, starti=1) == 7
    assert net(5.0, starti=1, endi=2) == 10
    assert net(5.0, endi=0) == 5


def test_net_test_is_without_dropout_and_train_with_it():
    net = net_of(FL(F.dropout, 0.5), L.Linear(4, 3))
    x, t = np.ones((6, 4), np.float32), np.zeros(6, np.int32)
    np.testing.assert_array_equal(net.test(x).array, net(x, test=True).array)
    np.testing.assert_array_equal(net.test(x).array, net(x, starti=1).array)
    with chainer.using_config('train', False):
        np.random.seed(0)
        first, _ = net.train(x, t)
        second, _ = net.train(x, t)
    assert first.array != second.array


def test_net_names_the_link_that_does_not_fit():
    net = net_of(FL(F.relu), L.Linear(5, 3))
    with pytest.raises(ValueError, match=r'^link 1 \(Linear\) cannot take an array of shape \(2, 3, 4, 4\)[^\n]*$'):
        net(X0)


def test_x_adds_its_links_output_to_its_input():
    link = X([FL(lambda x: 3 * x)])
    np.testing.assert_allclose(chainer.as_array(link(X0)), 4 * X0, rtol=1e-6)
    link.set_weights([2.0, -1.0])
    np.testing.assert_allclose(chainer.as_array(link(X0)), 5 * X0, rtol=1e-6)


def test_shortcut_puts_zeros_in_front_and_takes_every_second_pixel():
    y = shortcut(chainer.Variable(X0), (2, 5, 2, 2)).array
    np.testing.assert_array_equal(y[:, :2], 0)
    np.testing.assert_array_equal(y[:, 2:], X0[:, :, ::2, ::2])


def test_x_takes_the_shortcut_where_the_shape_changes():
    link = X([L.Convolution2D(3, 5, 3, 2, 1, initialW=0)])
    np.testing.assert_array_equal(link(X0).array, shortcut(X0, (2, 5, 2, 2)).array)


def test_resblock_is_the_published_block():
    block = ResBlock(3, 6, 2)
    with chainer.using_config('train', True):
        y = block(X0).array
        h = F.relu(F.fixed_batch_normalization(*_normalised(block.conv1(X0))))
        h = F.fixed_batch_normalization(*_normalised(block.conv2(h)))
    np.testing.assert_allclose(y, F.relu(h + shortcut(X0, h.shape)).array, atol=1e-4)


def _normalised(h):
    """Arguments that normalise h by its own statistics."""
    h = h.array
    c = h.shape[1]
    return (h, np.ones(c, 'f'), np.zeros(c, 'f'), h.mean((0, 2, 3)), h.var((0, 2, 3)))


def test_a_block_of_fewer_channels_is_refused():
    with pytest.raises(ValueError, match='a residual block makes 2 channels of 3: expected as many or more'):
        ResBlock(3, 2)(X0)


def test_a_copied_block_has_new_weights_but_a_copied_net_keeps_them():
    block = ResBlock(3, 3)
    assert not np.array_equal(copy.deepcopy(block).conv1.W.array, block.conv1.W.array)
    net = net_of(block)
    block.bn1.avg_mean[...] = 7
    for copied in (copy.deepcopy(net), net.copy('copy')):
        np.testing.assert_array_equal(copied[0].conv1.W.array, block.conv1.W.array)
        np.testing.assert_array_equal(copied[0].bn1.avg_mean, 7)
        assert copied[0].conv1.W is not block.conv1.W


def test_bottlenecks_change_shapes_as_asked():
    x = np.random.RandomState(1).randn(2, 4, 8, 8).astype(np.float32)
    assert BottleNeckA(4, 2, 8)(x).shape == (2, 8, 4, 4)
    assert BottleNeckB(4, 2)(x).shape == (2, 4, 8, 8)
    block = Block(3, 4, 2, 8, 1)
    assert block(x).shape == (2, 8, 8, 8)
    assert [type(link) for link in block] == [BottleNeckA, BottleNeckB, BottleNeckB]


@pytest.mark.parametrize(
    'link',
    [
        FL(F.relu),
        SL(FL(F.dropout, 0.5)),
        Branch([L.Linear(48, 3)], weight=0.5),
        net_of(L.Linear(48, 3), FL(F.relu)),
        X([FL(F.relu)]),
        ResBlock(3, 6, 2),
        BottleNeckA(3, 2, 6),
        BottleNeckB(3, 2),
        Block(2, 3, 2, 6),
    ],
    ids=lambda link: type(link).__name__,
)
@pytest.mark.parametrize(
    'duplicate', [lambda link: dill.loads(dill.dumps(link)), lambda link: link.copy('copy')], ids=['dill', 'copy']
)
def test_links_survive_copies(link, duplicate):
    new = duplicate(link)
    new.to_cpu()
    params, new_params = dict(link.namedparams()), dict(new.namedparams())
    assert params.keys() == new_params.keys()
    for path, param in params.items():
        np.testing.assert_array_equal(new_params[path].array, param.array)
    if not isinstance(link, Branch):
        with chainer.using_config('train', False):
            np.testing.assert_array_equal(chainer.as_array(new(X0)), chainer.as_array(link(X0)))
    else:
        assert new.weight == 0.5


def test_parameter_paths_are_the_originals():
    net = net_of(L.Linear(4, 3), ResBlock(3, 3))
    paths = {path for path, _ in net.namedparams()}
    assert {'/0/W', '/0/b', '/1/conv1/W', '/1/bn2/gamma'} <= paths


def test_branch_weight_reaches_its_model():
    net = branchynet.BranchyNet([L.Linear(4, 4), Branch([L.Linear(4, 2)], 0.3), Branch([L.Linear(4, 2)])])
    assert [model.weight for model in net.models] == [0.3, 1.0]


def test_a_branch_takes_any_iterable_of_links():
    assert len(Branch(link for link in [L.Linear(2, 3), L.Linear(3, 3)])) == 2
