"""ONNX files: every covered function against Chainer, exits against the net, real early exit, mistakes."""

from __future__ import annotations

import functools
import json
import math
import os
import sys

import branchynet
from branchynet import cpu, export
from branchynet.cli import main
from branchynet.export import OnnxBranchyNet
from branchynet.files import digest
from branchynet.inference import classify
from branchynet.links.densesparselinear import DenseSparseLinear
from branchynet.links.links import FL, SL, Branch, X
from branchynet.links.resnet import Block, ResBlock
from branchynet.links.sparselinear import SparseLinear
from branchynet.networks import alex_cifar10
from branchynet.onnx_graph import Graph, Value
from branchynet.onnx_nodes import add_link, describe

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import QUICK, RESULTS, WEIGHTS, needs_cifar10, small_chain_net, small_data, small_net
from onnx import TensorProto, helper

IMAGES = 2, 6, 6  # a sample


def samples(count: int = 4, shape: tuple = IMAGES, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal((count, *shape)).astype(np.float32)


def randomised(link: chainer.Link, seed: int = 3) -> chainer.Link:
    """The link with parameters and BN statistics that are not their initial ones."""
    rng = np.random.RandomState(seed)
    for one in link.links():
        for name in [*one._params, *one._persistent]:
            value = getattr(one, name)
            array = value.array if isinstance(value, chainer.Parameter) else value
            if isinstance(array, np.ndarray) and array.dtype == np.float32 and name != 'mask':
                array[...] = array + rng.uniform(0.1, 0.5, array.shape)
    return link


def in_onnx(link: chainer.Link, x: np.ndarray, traced: int = 5) -> tuple[np.ndarray, onnx.ModelProto]:
    """What a link's ONNX nodes, of a call on another batch, give for x (B, ...)."""
    graph = Graph({})
    y = add_link(graph, link, Value('x', samples(traced, x.shape[1:], seed=1)), 'link')
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            'link',
            [helper.make_tensor_value_info('x', TensorProto.FLOAT, ['batch', *x.shape[1:]])],
            [helper.make_tensor_value_info(y.name, TensorProto.FLOAT, ['batch', *y.array.shape[1:]])],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid('', export.OLDEST_OPSET)],
        ir_version=8,
    )
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    return session.run([y.name], {'x': x})[0], model


def ops(graph: onnx.GraphProto) -> list[str]:
    """Operators of a graph and its subgraphs."""
    return [
        op
        for node in graph.node
        for op in [node.op_type, *(op for a in node.attribute if a.HasField('g') for op in ops(a.g))]
    ]


class Sigmoided(chainer.Chain):
    """A chain of a user's own."""

    def __init__(self) -> None:
        super().__init__()
        with self.init_scope():
            self.conv = L.Convolution2D(2, 3, 3, pad=1)
            self.scale = chainer.Parameter(np.float32([1, 2, 3]))

    def forward(self, x: chainer.Variable) -> chainer.Variable:
        h = F.sigmoid(self.conv(x)) * F.exp(-F.absolute(self.conv(x)))
        return F.scale(h, self.scale) + F.mean(h, axis=(2, 3), keepdims=True)


class Squeezed(chainer.Chain):
    """Channels weighted by a small network of their means (squeeze and excitation)."""

    def __init__(self) -> None:
        super().__init__()
        with self.init_scope():
            self.fc = L.Linear(2, 2)

    def forward(self, x: chainer.Variable) -> chainer.Variable:
        weight = F.sigmoid(self.fc(F.average_pooling_2d(x, x.shape[2:])))
        return x * F.broadcast_to(F.reshape(weight, (len(x), 2, 1, 1)), x.shape)


LINKS = {
    'convolution': lambda: L.Convolution2D(2, 3, 3),
    'convolution without bias': lambda: L.Convolution2D(2, 3, 3, nobias=True),
    'convolution stride 2 pad 1': lambda: L.Convolution2D(2, 3, 3, stride=2, pad=1),
    'convolution of another height': lambda: L.Convolution2D(2, 3, (3, 1), stride=(1, 3), pad=(1, 0)),
    'convolution in groups': lambda: L.Convolution2D(2, 4, 3, groups=2),
    'dilated convolution': lambda: L.Convolution2D(2, 3, 2, dilate=2, pad=1, stride=2),
    'convolution that covers all': lambda: FL(F.convolution_2d, samples(3, (2, 3, 3)), None, 2, 0, True),
    'lazy convolution': lambda: L.Convolution2D(None, 3, 3),
    'deconvolution': lambda: L.Deconvolution2D(2, 3, 3, stride=2, pad=1),
    'deconvolution of an outsize': lambda: L.Deconvolution2D(2, 3, 3, stride=2, pad=1, outsize=(12, 12)),
    'depthwise convolution': lambda: L.DepthwiseConvolution2D(2, 3, 3, pad=1),
    'linear of images': lambda: L.Linear(72, 5),
    'linear without bias': lambda: L.Linear(72, 5, nobias=True),
    'sparse linear': lambda: SparseLinear(72, 5, sparseness=0.5),
    'dense sparse linear': lambda: DenseSparseLinear(72, 5, sparseness=0.5),
    'batch normalisation': lambda: L.BatchNormalization(2),
    'batch normalisation without gamma': lambda: L.BatchNormalization(2, use_gamma=False, use_beta=False, eps=0.1),
    'batch normalisation per pixel': lambda: L.BatchNormalization((2, 6, 6)),
    'batch normalisation of axes': lambda: L.BatchNormalization(axis=(0, 1), size=(6, 6)),
    'local response normalisation': lambda: FL(F.local_response_normalization, n=3, alpha=0.1, beta=0.75, k=2),
    'local response normalisation, even': lambda: FL(F.local_response_normalization, n=2, alpha=0.1, beta=0.5, k=1),
    'layer normalisation': lambda: FL(
        lambda x: F.layer_normalization(F.reshape(x, (len(x), 72)), samples(1, (72,))[0], samples(1, (72,))[0])
    ),
    'group normalisation': lambda: FL(lambda x: L.GroupNormalization(2)(F.concat((x, 2 * x)))),
    'group normalisation with parameters': lambda: L.GroupNormalization(1, 2, initial_gamma=0.5, initial_beta=2.0),
    'l2 normalisation': lambda: FL(F.normalize, axis=(1, 2)),
    'max pooling': lambda: FL(F.max_pooling_2d, 2, 2),
    'max pooling covers all': lambda: FL(F.max_pooling_2d, 3, 2),
    'max pooling does not cover all': lambda: FL(F.max_pooling_2d, 3, 2, cover_all=False),
    'max pooling with padding': lambda: FL(F.max_pooling_2d, 3, 2, 1),
    'average pooling': lambda: FL(F.average_pooling_2d, 3, 2, 1),
    'average pooling of every second pixel': lambda: FL(F.average_pooling_2d, 1, 2),
    'average pooling, padding not counted': lambda: FL(F.average_pooling_nd, 3, 2, 1, None),
    'global average pooling': lambda: FL(lambda x: F.average_pooling_2d(x, x.shape[2:])),
    'mean over pixels': lambda: FL(F.mean, axis=(2, 3)),
    'sum and maximum': lambda: FL(lambda x: F.sum(x, axis=2) + F.max(x, axis=3) - F.min(x, axis=-1)),
    'relu': lambda: FL(F.relu),
    'sigmoid': lambda: FL(F.sigmoid),
    'tanh': lambda: FL(F.tanh),
    'leaky relu': lambda: FL(F.leaky_relu, 0.3),
    'elu': lambda: FL(F.elu, 1.5),
    'selu': lambda: FL(F.selu),
    'clipped relu': lambda: FL(F.clipped_relu, 0.5),
    'relu6': lambda: FL(F.relu6),
    'clip': lambda: FL(F.clip, -0.5, 0.25),
    'clip on one side': lambda: FL(lambda x: F.clip(F.clip(x, None, 0.5), -0.25, None)),
    'crelu': lambda: FL(F.crelu),
    'gelu': lambda: FL(lambda x: x * (F.erf(x / 2**0.5) + 1) / 2),
    'hard sigmoid': lambda: FL(F.hard_sigmoid),
    'softplus': lambda: FL(F.softplus),
    'softplus of beta': lambda: FL(F.softplus, beta=2.0),
    'swish': lambda: L.Swish((2,)),
    'prelu': lambda: L.PReLU((2,)),
    'softmax': lambda: FL(F.softmax),
    'log softmax': lambda: FL(F.log_softmax, axis=2),
    'maxout': lambda: L.Maxout(72, 4, 3),
    'flatten by reshape': lambda: FL(lambda x: F.reshape(x, (len(x), -1))),
    'reshape': lambda: FL(F.reshape, (-1, 6, 12)),
    'transpose': lambda: FL(F.transpose, (0, 2, 3, 1)),
    'axes moved': lambda: FL(lambda x: F.moveaxis(F.swapaxes(F.rollaxis(x, 3, 1), 2, 3), 1, -1)),
    'squeeze': lambda: FL(lambda x: F.squeeze(F.expand_dims(x, 1), 1)),
    'slices': lambda: FL(lambda x: x[:, 1:, ::2, -3:-1]),
    'slices backwards': lambda: FL(lambda x: x[:, ::-1, 4:0:-2, ::-1]),
    'numbers and new axes': lambda: FL(lambda x: x[:, None, -1, ..., 2]),
    'all': lambda: FL(lambda x: x[...]),
    'split': lambda: FL(lambda x: F.concat(F.split_axis(x, 3, axis=2)[::-1], axis=1)),
    'split at indices': lambda: FL(lambda x: F.relu(F.split_axis(x, [1, 4], axis=-1)[1])),
    'separate': lambda: FL(lambda x: F.separate(x, axis=1)[1] * 2),
    'channel shuffle': lambda: FL(lambda x: F.reshape(F.swapaxes(F.stack(F.separate(x, 1), 1), 1, 2), (len(x), -1))),
    'pad': lambda: FL(F.pad, ((0, 0), (0, 0), (1, 2), (0, 1)), 'constant', constant_values=3),
    'concat': lambda: FL(lambda x: F.concat((x, F.relu(x), x), axis=1)),
    'concat of zeros after': lambda: FL(lambda x: F.concat((x, np.zeros(x.shape, x.dtype)), axis=2)),
    'arithmetic': lambda: FL(lambda x: 2 - (3 * x + 1) / (x**2 + 2) - x / 3 + 1 / (F.sqrt(F.square(x) + 1))),
    'maximum and minimum': lambda: FL(lambda x: F.maximum(x, -x) + F.minimum(x, x * x)),
    'sum of three': lambda: FL(lambda x: F.add(x, F.log(F.exp(x)), x)),
    'matmul': lambda: FL(lambda x: F.matmul(F.reshape(x, (len(x), 72)), samples(5, (72,)), transb=True)),
    'dropout': lambda: FL(F.dropout, 0.5),
    'SL': lambda: SL(FL(F.tanh), FL(F.relu)),
    'SL without a test link': lambda: SL(FL(F.dropout)),
    'X': lambda: X([L.Convolution2D(2, 2, 3, pad=1), FL(F.relu)]),
    'X with a shortcut': lambda: X([L.Convolution2D(2, 5, 3, stride=2, pad=1)]),
    'residual block': lambda: ResBlock(2, 2),
    'residual block with a shortcut': lambda: ResBlock(2, 4, stride=2),
    'bottlenecks': lambda: Block(2, 2, 3, 4),
    'lambda': lambda: FL(lambda x: F.relu(x) + 1),
    'partial': lambda: FL(functools.partial(F.leaky_relu, slope=0.4)),
    "a chain of a user's own": Sigmoided,
    'squeeze and excitation': Squeezed,
}


@pytest.mark.parametrize('name', LINKS)
def test_nodes_of_a_link_compute_what_it_computes(name):
    np.random.seed(0)
    link, x = LINKS[name](), samples()
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        link(x)  # lazy sizes
        randomised(link)
        expected = chainer.as_array(link(x))
    y, _ = in_onnx(link, x)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, rtol=2e-5, atol=2e-6 * abs(expected).max())
    assert np.array_equal(in_onnx(link, x[:1])[0].shape, expected[:1].shape)


def test_batch_normalisation_of_vectors():
    link = randomised(L.BatchNormalization(4))
    x = samples(3, (4,))
    with chainer.using_config('train', False):
        np.testing.assert_allclose(in_onnx(link, x)[0], link(x).array, rtol=1e-5)


def test_what_is_computed_from_weights_alone_is_a_constant():
    _, model = in_onnx(SparseLinear(72, 5, sparseness=0.5), samples())
    assert ops(model.graph) == ['Flatten', 'Gemm']


@pytest.mark.parametrize(
    'link, message',
    [
        (FL(F.cumsum, axis=1), 'link: the function Cumsum has no ONNX nodes here (covered: Absolute, Add,'),
        (FL(lambda x: x.array * 2), "computes outside Chainer's functions"),
        (FL(lambda x: chainer.Variable(x.array) * 2), "computes outside Chainer's functions"),
        (FL(lambda x: F.repeat(x, 2, 1)), 'the function Repeat has no ONNX nodes here'),
        (FL(lambda x: F.separate(x, 0)[0]), 'mixes the samples of a batch'),
        (FL(lambda x: F.split_axis(x, len(x), 0)[1]), 'mixes the samples of a batch'),
        (FL(lambda x: F.split_axis(x, 1, 0)[0]), 'SplitAxis splits a batch'),
        (FL(F.normalize, axis=0), 'NormalizeL2 mixes the samples'),
        (FL(lambda x: x[::-1]), 'takes a part of the batch'),
        (FL(lambda x: x[:, [1, 0]]), 'by other than slices and numbers'),
        (FL(lambda x: x[:, np.array([True, False])]), 'by other than slices and numbers'),
        (FL(lambda x: F.stack((x, x), 0)), 'mixes the samples of a batch'),
        (FL(lambda x: F.swapaxes(x, 0, 1)), 'mixes the samples of a batch'),
        (FL(F.separate, axis=1), 'link returns a tuple: expected one array'),
        (FL(F.transpose), 'Transpose'),
        (FL(F.reshape, (-1, 6)), 'mixes the samples of a batch'),
        (FL(F.sum), 'mixes the samples of a batch'),
        (FL(lambda x: F.concat((x, x), axis=0)), 'mixes the samples of a batch'),
        (FL(lambda x: F.concat((x, np.ones(x.shape, x.dtype)))), 'do not depend on the input'),
        (FL(F.pad, 1, 'reflect'), 'mixes the samples of a batch'),
        (FL(F.max_pooling_2d, (2, 1), 4, pad=(2, 0)), 'a pooling has windows of padding alone'),
        (FL(F.pad, ((0, 0), (0, 0), (1, 1), (1, 1)), 'reflect'), 'another mode'),
    ],
    ids=range(22),
)
def test_what_is_not_covered_is_named(link, message):
    with pytest.raises(ValueError, match='^link') as e:
        in_onnx(link, samples())
    assert message in str(e.value) and '\n' not in str(e.value)


def test_links_are_described_by_their_function():
    assert [
        describe(link)
        for link in (
            L.Linear(1, 1),
            FL(F.relu),
            FL(functools.partial(F.elu, alpha=2)),
            FL(lambda x: x),
            FL(Sigmoided()),
        )
    ] == ['Linear', 'FL of relu', 'FL of elu', 'FL of <lambda>', 'FL of Sigmoided']


# Whole nets

THRESHOLDS = [0.9, 0.8]


@pytest.fixture(params=['file', 'folder'])
def form(request, tmp_path):
    """Where to export to: one file, and a folder."""
    return str(tmp_path / {'file': 'net.onnx', 'folder': 'net'}[request.param])


def exported(
    net: branchynet.BranchyNet, path: str, shape: tuple = (4,), thresholds: object = THRESHOLDS, **kwargs: object
) -> OnnxBranchyNet:
    export.export(net, path, shape, thresholds, **kwargs)
    return OnnxBranchyNet(path)


@pytest.fixture(scope='module')
def lenet(lenet):
    lenet.thresholdExits = 0.025
    return lenet


def assert_same(found, expected):
    """Labels and exits are equal, and the numbers close."""
    assert np.array_equal(found.label, expected.label) and np.array_equal(found.exit, expected.exit)
    np.testing.assert_allclose(found.entropy, expected.entropy, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.prob, expected.prob, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('thresholds', [THRESHOLDS, [-1, 0.8], [-1, -1], [0, 0], [10, 10], [math.inf, 0], 0.9])
def test_batches_leave_where_the_net_says(form, thresholds):
    net, (x, t) = small_net(), small_data(300)
    ours = exported(net, form, thresholds=[0.1, 0.2])
    assert_same(ours.classify(x, thresholds), classify(net, x, thresholds))
    ours.thresholdExits = net.thresholdExits = thresholds
    accuracy, accuracies, exits, seconds = ours.test(x, t)
    expected = net.test(x, t)
    assert (exits, seconds > 0) == (expected[2], True)
    np.testing.assert_allclose([accuracy, *accuracies], [expected[0], *expected[1]])
    assert math.isnan(ours.test(x)[0]) and ours.numexits() == 3


def test_a_sample_whose_entropy_is_the_threshold_stays(form):
    net, (x, _) = small_net(), small_data(50)
    ours = exported(net, form)
    for i in range(len(x)):
        (entropy,) = ours.classify(x[i : i + 1], math.inf).entropy  # of exit 0
        for threshold, expected in (entropy, False), (np.nextafter(entropy, np.float32(9)), True):
            left = ours.classify(x[i : i + 1], [threshold, 0]).exit[0] == 0
            assert left == expected


def test_a_threshold_is_rounded_to_float32(form):
    net, (x, _) = small_net(), small_data(1)
    ours = exported(net, form)
    entropy = float(ours.classify(x, math.inf).entropy[0])
    assert ours.classify(x, [np.nextafter(entropy, 9), 0]).exit[0] != 0  # in float64 it lies below


def test_probabilities_of_zero_and_one_have_entropy_zero(form):
    net = small_net()
    net.models[0][2].W.array *= 1e4
    x, _ = small_data(50)
    result = exported(net, form).classify(x, 0.1)
    sure = ((result.prob == 1) | (result.prob == 0)).all(axis=1) & (result.exit == 0)
    assert sure.sum() > 10 and not result.entropy[sure].any() and np.isfinite(result.entropy).all()


def test_lenet_on_real_images(lenet, images, form):
    x, t = images
    ours = exported(lenet, form, x.shape[1:], None)
    assert ours.thresholdExits == [0.025]
    assert_same(ours.classify(x), classify(lenet, x, 0.025))
    assert ours.test(x, t)[:3] == lenet.test(x, t)[:3]


@pytest.mark.slow
def test_lenet_on_all_test_images(lenet, form):
    from branchynet.datasets import mnist

    _, _, x, _ = mnist.get_data()
    ours = exported(lenet, form, x.shape[1:], None)
    with cpu.fast():
        assert_same(ours.classify(x), classify(lenet, x, 0.025))


@needs_cifar10
@pytest.mark.slow
def test_alexnet_on_test_images(form):
    from branchynet.datasets import pcifar10

    net = alex_cifar10.get_network()
    chainer.serializers.load_npz(os.path.join(RESULTS, 'alex_cifar10_quick', 'weights_alex_cifar10_seed0.npz'), net)
    x = pcifar10.get_data()[2][:500]
    with cpu.fast():
        assert_same(exported(net, form, x.shape[1:], [0.5, 0.5]).classify(x), classify(net, x, [0.5, 0.5]))


def test_a_residual_net_in_stages(form):
    np.random.seed(0)
    net = branchynet.BranchyNet(
        [
            L.Convolution2D(2, 4, 3, pad=1),
            L.BatchNormalization(4),
            Branch([L.Linear(144, 3)]),
            ResBlock(4, 6, stride=2),
            Branch([FL(F.relu), L.Linear(54, 3)]),
            Branch([L.Linear(54, 3)]),
        ]
    )
    x = samples(64)
    net.train(x, np.arange(64, dtype=np.int32) % 3)
    assert_same(exported(net, form, IMAGES, [1.0, 0.9]).classify(x), classify(net, x, [1.0, 0.9]))


@pytest.mark.parametrize(
    'link, message',
    [
        (lambda h: h / 255 if abs(h.array).max() > 1 else h * 1.0, 'a link computes something else for other batches'),
        (lambda h: h * float(len(h)), 'a link computes something else for other batches'),
        (functools.partial(F.softmax, axis=0), 'the function Softmax mixes the samples of a batch'),
    ],
)
def test_links_that_look_at_the_batch_are_refused(form, link, message):
    np.random.seed(0)
    net = branchynet.BranchyNet([L.Linear(4, 8), FL(link), Branch([L.Linear(8, 3)])])
    with pytest.raises(ValueError, match=message):
        exported(net, form, thresholds=[])


def test_a_net_of_one_exit(form):
    net = branchynet.BranchyNet([L.Linear(4, 3), Branch([FL(F.relu)])])
    x, _ = small_data(8)
    assert_same(exported(net, form, thresholds=[]).classify(x), classify(net, x, []))


def test_the_net_stays_as_it_was_and_the_files_are_the_same_again(form):
    net = small_net(dropout=True)
    net.cleargrads()
    before, mode = {path: param.array.tobytes() for path, param in net.namedparams()}, chainer.config.train
    exported(net, form)
    first = read(form)
    assert before == {path: param.array.tobytes() for path, param in net.namedparams()}
    assert chainer.config.train == mode and all(param.grad is None for param in net.params())
    with cpu.fast():
        exported(net, form)
    assert read(form) == first


def read(path: str) -> list[bytes]:
    paths = [path] if os.path.isfile(path) else [os.path.join(path, name) for name in sorted(os.listdir(path))]
    contents = []
    for one in paths:
        with open(one, 'rb') as f:
            contents.append(f.read())
    return contents


def test_metadata_say_what_was_exported(form):
    from branchynet.provenance import commit, sha256_of_net

    net = small_net(thresholdExits=[0.25, 0.5])
    properties = exported(net, form, thresholds=None, properties={'network': 'small'}).properties
    assert properties['network'] == 'small' and json.loads(properties['thresholds']) == [0.25, 0.5]
    assert properties['weights_sha256'] == sha256_of_net(net) and properties['commit'] == (commit() or '')
    assert properties['version'] and properties['exits'] == '3'


@pytest.mark.parametrize('opset', [export.OLDEST_OPSET, 21])
def test_an_older_opset_for_an_older_runtime(form, opset):
    exported(small_net(), form, opset=opset)
    path = form if os.path.isfile(form) else os.path.join(form, 'stage0.onnx')
    model = onnx.load(path)
    assert [(o.domain, o.version) for o in model.opset_import] == [('', opset)]
    assert model.ir_version == helper.find_min_ir_version_for(model.opset_import)


# The one file in any runtime


@pytest.fixture
def session(lenet, tmp_path):
    path = str(tmp_path / 'lenet.onnx')
    export.export(lenet, path, (1, 28, 28))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / 'profile')
    return onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])


def test_thresholds_are_an_input_with_a_default(lenet, images, session):
    assert [i.name for i in session.get_inputs()] == ['x']
    assert [(i.name, i.shape) for i in session.get_overridable_initializers()] == [('thresholds', [1])]
    assert [(o.name, o.shape, o.type) for o in session.get_outputs()] == [
        ('label', [1], 'tensor(int64)'),
        ('prob', [1, 10], 'tensor(float)'),
        ('exit', [1], 'tensor(int64)'),
        ('entropy', [1], 'tensor(float)'),
    ]
    expected = classify(lenet, images[0], 0.025)
    found = [session.run(['exit'], {'x': x[None]})[0][0] for x in images[0]]
    assert np.array_equal(found, expected.exit) and set(found) == {0, 1}
    everything = np.full(1, np.inf, np.float32)
    assert not any(session.run(['exit'], {'x': x[None], 'thresholds': everything})[0][0] for x in images[0][:20])


def test_later_stages_do_not_run_for_a_sample_that_leaves(images, session):
    for threshold in np.inf, -np.inf:
        session.run(None, {'x': images[0][:1], 'thresholds': np.float32([threshold])})
    with open(session.end_profiling()) as f:
        ran = [event['args']['op_name'] for event in json.load(f) if event['name'].endswith('_kernel_time')]
    # Two convolutions before exit 1 and two after it; the second sample runs all four.
    assert ran.count('Conv') + ran.count('FusedConv') == 2 + 4


def test_weights_of_later_stages_lie_in_the_else_branch(lenet, tmp_path):
    path = str(tmp_path / 'lenet.onnx')
    export.export(lenet, path, (1, 28, 28))
    graph = onnx.load(path).graph
    branch = {a.name: a.g for a in graph.node[-1].attribute}
    assert graph.node[-1].op_type == 'If'
    assert {w.name for w in graph.initializer} >= {'main/0/W', 'models/0/3/W', 'thresholds'}
    assert {w.name for w in branch['else_branch'].initializer} >= {'main/3/W', 'main/6/W', 'models/1/10/b'}
    # The pooling and ReLU that both sides begin with are computed once.
    assert ops(graph).count('MaxPool') == 4 and ops(branch['then_branch']) == [
        'ArgMax',
        'Identity',
        'Identity',
        'Constant',
    ]


@pytest.mark.parametrize(
    'feed, message',
    [
        ({'thresholds': np.float32([1, 1])}, 'Got invalid dimensions for input: thresholds'),
        ({'thresholds': np.float32([])}, 'Got invalid dimensions for input: thresholds'),
        ({'thresholds': np.float32([np.nan])}, 'NaN_in_x_or_thresholds'),
        ({'x': np.full((1, 1, 28, 28), np.nan, np.float32)}, 'NaN_in_x_or_thresholds'),
        ({'x': np.zeros((0, 1, 28, 28), np.float32)}, 'Got invalid dimensions for input: x'),
        ({'x': np.zeros((2, 1, 28, 28), np.float32)}, 'Got invalid dimensions for input: x'),
    ],
    ids=range(6),
)
def test_the_runtime_refuses_what_does_not_fit(session, feed, message):
    with pytest.raises(Exception, match=message):
        session.run(None, {'x': np.zeros((1, 1, 28, 28), np.float32), **feed})


# Mistakes


@pytest.mark.parametrize(
    'x, message',
    [
        (np.zeros((0, 4), np.float32), 'expected at least one sample'),
        (np.zeros((2, 5), np.float32), 'expected samples of shape'),
        (np.float32([[1, 2, np.nan, 4]]), 'first in sample 0'),
        (np.float32([[1, 2, 3, 4], [1, 2, np.inf, 4]]), 'first in sample 1'),
        (np.zeros((2, 4)), 'float32'),
        (np.zeros((2, 4), np.uint8), 'float32'),
        ([[0.0] * 4], 'float32'),
    ],
    ids=range(7),
)
def test_samples_that_the_net_refuses_are_refused(form, x, message):
    ours = exported(small_net(), form)
    with pytest.raises((TypeError, ValueError), match=message) as e:
        ours.classify(x)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda ours, x: ours.classify(x, [0.1]), 'sequence of 2'),
        (lambda ours, x: ours.classify(x, [0.1, math.nan]), 'NaN'),
        (lambda ours, x: ours.test(x, np.int32([3])), 'label 3'),
        (lambda ours, x: ours.test(x, np.int32([-1])), 'label -1'),
        (lambda ours, x: ours.test(x, np.int32([0, 0])), 'shape'),
        (lambda ours, x: ours.test(x, np.float32([0])), 'integers'),
    ],
    ids=range(6),
)
def test_settings_and_labels_that_do_not_fit(form, call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call(exported(small_net(), form), small_data(1)[0])


def uninitialised():
    return branchynet.BranchyNet([L.Linear(None, 3), Branch([FL(F.relu)])])


def of_float64():
    with chainer.using_config('dtype', np.float64):
        return branchynet.BranchyNet([L.Linear(4, 3), Branch([FL(F.relu)])])


def with_nan():
    net = branchynet.BranchyNet([L.Linear(4, 3), Branch([FL(F.relu)])])
    net.main[0].W.array[0, 0] = np.nan
    return net


def of(function):
    return lambda: branchynet.BranchyNet([L.Linear(4, 3), FL(function), Branch([FL(F.relu)])])


@pytest.mark.parametrize(
    'make, message',
    [
        (uninitialised, 'parameter /main/0/W has no shape yet'),
        (of_float64, 'dtype float64: expected float32'),
        (with_nan, 'exit 0 of the net gives NaN'),
        (
            of(lambda x: F.cumsum(x, axis=1)),
            r'stage 0: link 1 \(FL of <lambda>\): the function Cumsum has no ONNX nodes here',
        ),
        (of(lambda x: x.array), r'stage 0: link 1 \(FL of <lambda>\) computes outside'),
        (of(lambda x: x * len(x)), 'exit 0 differs from the net'),
        (of(lambda x: F.reshape(x, (len(x), 3, 1))), r'expected \(classes,\)'),
    ],
    ids=range(7),
)
def test_nets_that_cannot_be_exported_are_told_and_nothing_is_written(form, make, message):
    with pytest.raises(ValueError, match=message) as e:
        export.export(make(), form, (4,), [])
    assert '\n' not in str(e.value) and not os.path.exists(form)


@pytest.mark.parametrize(
    'arguments, message',
    [
        ({'thresholds': None}, 'thresholds are missing'),
        ({'thresholds': [0.1]}, 'sequence of 2'),
        ({'thresholds': [0.1, math.nan]}, 'NaN'),
        ({'thresholds': ['a', 'b']}, 'numbers'),
        ({'shape': (5,)}, r'link 0 \(Linear\) cannot take'),
        ({'opset': 17}, 'opset is 17: expected 18 to'),
        ({'opset': 999}, 'opset is 999'),
    ],
    ids=range(7),
)
def test_arguments_that_do_not_fit(form, arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        export.export(small_net(), form, **{'shape': (4,), 'thresholds': THRESHOLDS, **arguments})
    assert not os.path.exists(form)


def test_what_cannot_be_written(tmp_path):
    (tmp_path / 'taken').write_text('a file')
    for path in tmp_path / 'taken' / 'net.onnx', tmp_path / 'taken', tmp_path / 'taken' / 'net':
        with pytest.raises(OSError) as e:
            export.export(small_net(), str(path), (4,), THRESHOLDS)
        assert 'taken' in str(e.value) and '\n' not in str(e.value)
    assert (tmp_path / 'taken').read_text() == 'a file'


@pytest.mark.parametrize('name', ['net.onnx', 'net/stage1.onnx', 'net/network.json'])
def test_what_is_missing_or_damaged(tmp_path, name):
    path, part = tmp_path / name.split('/')[0], tmp_path / name
    with pytest.raises(OSError):
        OnnxBranchyNet(path)
    exported(small_net(), path)
    content = part.read_bytes()
    changed = content.replace(b'Gemm', b'Gemn').replace(b'"sha256"', b'"sha255"')
    for damaged in b'', content[: len(content) // 2], changed, b'{"stages": [1]}', b'[' * 100000:
        part.write_bytes(damaged)
        with pytest.raises(ValueError, match='is not a whole export') as e:
            OnnxBranchyNet(path)
        assert '\n' not in str(e.value)
    part.unlink()
    with pytest.raises(OSError, match=part.name):
        OnnxBranchyNet(path)
    part.write_bytes(content)
    OnnxBranchyNet(path)


def test_an_onnx_file_of_another_kind_is_refused(tmp_path):
    _, model = in_onnx(L.Linear(4, 3), samples(2, (4,)))
    onnx.save(model, str(tmp_path / 'other.onnx'))
    with pytest.raises(ValueError, match='lacks the metadata of an export'):
        OnnxBranchyNet(str(tmp_path / 'other.onnx'))


def test_the_extra_is_named_where_it_is_missing(monkeypatch, form):
    exported(small_net(), form)
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(ImportError, match=r'pip install "branchynet\[onnx\]"'):
        OnnxBranchyNet(form)
    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(ImportError, match=r'onnx cannot be imported .* pip install "branchynet\[onnx\]"'):
        export.export(small_net(), form, (4,), THRESHOLDS)


def test_threads_are_positive(form):
    exported(small_net(), form)
    assert OnnxBranchyNet(form, threads=2).classify(small_data(3)[0]).label.shape == (3,)
    with pytest.raises(ValueError, match='threads is 0'):
        OnnxBranchyNet(form, threads=0)


# The command


@pytest.mark.parametrize('source', [QUICK, WEIGHTS])
def test_the_command_exports_a_folders_or_a_files_weights(form, source, lenet, images):
    assert main(['export', 'onnx', source, '--network', 'lenet_mnist', '--thresholds', '.5', '--out', form]) == 0
    ours = OnnxBranchyNet(form)
    assert ours.thresholdExits == [0.5] and ours.properties['network'] == 'lenet_mnist'
    assert ours.properties['weights_file_sha256'] == digest(WEIGHTS)
    assert_same(ours.classify(images[0]), classify(lenet, images[0], 0.5))


@pytest.mark.parametrize(
    'arguments, message',
    [
        ([QUICK, '--network', 'alex_cifar10'], 'holds no weights of alex_cifar10: train them'),
        ([WEIGHTS, '--network', 'alex_cifar10'], 'another network'),
        (['missing.npz', '--network', 'lenet_mnist'], 'missing.npz'),
        ([__file__, '--network', 'lenet_mnist'], 'cannot be read as weights'),
        ([WEIGHTS, '--network', 'lenet_mnist', '--thresholds', '1', '2'], 'sequence of 1'),
        ([WEIGHTS, '--network', 'lenet_mnist', '--thresholds', 'nan'], 'NaN'),
        ([WEIGHTS, '--network', 'lenet_mnist', '--opset', '3'], 'opset is 3'),
    ],
    ids=range(7),
)
def test_mistakes_on_the_command_line_are_one_line(form, arguments, message, capsys):
    assert main(['export', 'onnx', *arguments, '--out', form]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1 and not os.path.exists(form)


def test_the_command_names_the_extra(form, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'onnx', None)
    assert main(['export', 'onnx', WEIGHTS, '--network', 'lenet_mnist', '--out', form]) == 2
    assert 'pip install "branchynet[onnx]"' in capsys.readouterr().err


def test_a_net_with_a_frozen_trunk_is_exported(tmp_path):
    net, (x, _) = small_chain_net(), small_data()
    net.freeze('trunk')
    export.export(net, tmp_path / 'net.onnx', (4,), [0.9])
    expected = classify(net, x, 0.9)
    assert_same(OnnxBranchyNet(tmp_path / 'net.onnx').classify(x), expected)


def test_rows_of_weights_that_are_alike_are_no_batch(tmp_path):
    layer = L.Linear(4, export._TRACED, initialW=0)  # as many rows as samples are recorded
    net = branchynet.BranchyNet([Branch([layer]), Branch([L.Linear(4, export._TRACED)])])
    x, _ = small_data()
    net.run_main(x)
    export.export(net, str(tmp_path / 'net.onnx'), (4,), [1.0])
    assert_same(OnnxBranchyNet(str(tmp_path / 'net.onnx')).classify(x), classify(net, x, 1.0))


@pytest.mark.parametrize(
    'name, value, error, message',
    [
        ('thresholds', 'mine', ValueError, 'properties holds thresholds, which export writes itself'),
        ('author', 3, TypeError, 'the property author is 3: expected a str'),
    ],
)
def test_properties_that_cannot_be_written(tmp_path, name, value, error, message):
    with pytest.raises(error, match=message):
        export.export(small_net(), str(tmp_path / 'net.onnx'), (4,), 0.5, properties={name: value})
    assert not os.listdir(tmp_path)


def test_temperatures_that_do_not_fit_are_not_exported(tmp_path):
    net = small_net()
    net.temperatures = [2.0]
    with pytest.raises(ValueError, match='^temperatures is'):
        export.export(net, str(tmp_path / 'net.onnx'), (4,), 0.5)


@pytest.mark.parametrize(
    'name, message',
    [
        ('cascade.onnx', 'ONNX Runtime gives no answer, as where numbers overflow'),
        ('stages', 'exit 1 answers NaN, first for sample 0'),
    ],
)
def test_numbers_that_overflow_are_no_answer(tmp_path, name, message):
    np.random.seed(0)
    net = branchynet.BranchyNet([L.Linear(4, 8), Branch([L.Linear(8, 2)]), L.Linear(8, 8), Branch([L.Linear(8, 2)])])
    path = str(tmp_path / name)
    export.export(net, path, (4,), 0.5)
    x = np.full((2, 4), 3e38, np.float32)
    with pytest.raises(ValueError, match=f'^{message}'):
        export.OnnxBranchyNet(path).classify(x)
    if name == 'stages':  # the file for single samples stops there
        accuracy, accuracies, *_ = export.OnnxBranchyNet(path).test(x, np.array([0, 1], np.int32))
        assert accuracy == 0 and accuracies == [0, 0]


def test_a_head_of_main_that_was_never_run_does_not_hinder(tmp_path):
    np.random.seed(0)
    net = branchynet.BranchyNet(
        [L.Linear(4, 8), Branch([L.Linear(None, 2)]), L.Linear(8, 8), Branch([L.Linear(None, 2)])]
    )
    x = np.random.rand(6, 4).astype(np.float32)
    looks = net.look(x)
    path = str(tmp_path / 'stages')
    export.export(net, path, (4,), 0.0)
    np.testing.assert_allclose(export.OnnxBranchyNet(path).classify(x).prob, looks[-1].prob, rtol=1e-5)


def test_names_of_weights_are_those_of_arrays_that_live():
    """Not of those that a serializer makes of numbers, whose ids other arrays take later."""
    net = branchynet.BranchyNet(
        [L.Linear(4, 8), L.BatchNormalization(8), Branch([L.Linear(None, 2)])], thresholdExits=[]
    )
    names = export._weight_names(net)
    assert not [path for path in names.values() if path.endswith(('/N', 'thresholdExits')) or path == 'main/2/W']
    arrays = {id(param.array): path[1:] for path, param in net.namedparams() if param.array is not None}
    norm = net.main[1]
    arrays.update({id(norm.avg_mean): 'main/1/avg_mean', id(norm.avg_var): 'main/1/avg_var'})
    assert names == arrays
