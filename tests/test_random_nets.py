"""Nets of random layers: compiled, trained with the fast kernels, and exported, they are what Chainer makes of them."""

from __future__ import annotations

import contextlib
import copy

import branchynet
from branchynet import cpu, export
from branchynet.inference import Compiled
from branchynet.links.links import FL, SL, Branch

import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

# Layers of random nets, by the number of axes that they take.
OF_ANY = {
    'linear': lambda: L.Linear(None, 16),
    'relu': lambda: FL(F.relu),
    'relu6': lambda: FL(F.relu6),
    'clipped': lambda: FL(F.clipped_relu, z=0.5),
    'leaky': lambda: FL(F.leaky_relu, 0.1),
    'dropout': lambda: FL(F.dropout, 0.5),
    'testing': lambda: SL(FL(F.dropout, 0.5)),
    'tanh': lambda: FL(F.tanh),
    'itself': lambda: FL(lambda h: h),
    'norm': lambda: L.BatchNormalization(axis=0),
}
OF_IMAGES = {
    'convolution': lambda: L.Convolution2D(None, 4, 3, pad=1),
    'wide': lambda: L.Convolution2D(None, 16, 3, pad=1),
    'single pixels': lambda: L.Convolution2D(None, 8, 1, nobias=True),
    'pooling': lambda: FL(F.max_pooling_2d, 2, 1),
    'average': lambda: FL(F.average_pooling_2d, 2, 1),
    'local': lambda: FL(F.local_response_normalization),
    'norm of channels': lambda: L.BatchNormalization(axis=(0, 2, 3)),
    'norm of rows': lambda: L.BatchNormalization(axis=(0, 1, 3)),
}
OF_VECTORS = {'local': lambda: FL(F.local_response_normalization), 'view': lambda: FL(F.reshape, (-1, 16))}
KINDS = st.lists(st.sampled_from(sorted({**OF_ANY, **OF_IMAGES, **OF_VECTORS})), max_size=4)


def random_net(stages, heads, tail, is_image):
    """A net of the kinds of layers that take such samples; a linear layer makes vectors of images."""

    def made(kinds, is_image):
        links = []
        for kind in kinds:
            make = {**OF_ANY, **(OF_IMAGES if is_image else OF_VECTORS)}.get(kind)
            links += [] if make is None else [make()]
            is_image = is_image and kind != 'linear'
        return links, is_image

    network = []
    for stage, head in zip(stages, heads):
        links, is_image = made(stage, is_image)
        network += [*links, Branch([*made(head, is_image)[0], L.Linear(None, 3), *made(tail, False)[0]])]
    return branchynet.BranchyNet(network)


def data(is_image):
    np.random.seed(0)
    x = np.random.randn(20, *((2, 14, 14) if is_image else (16,))).astype(np.float32)
    return x, np.random.randint(0, 3, 20).astype(np.int32)


NETS = st.tuples(KINDS, KINDS), st.tuples(KINDS, KINDS), st.sampled_from([[], ['relu'], ['norm']]), st.booleans()


@pytest.mark.onednn
@given(*NETS)
@settings(max_examples=60, deadline=None)
def test_compiled(stages, heads, tail, is_image):
    x, t = data(is_image)
    net = random_net(stages, heads, tail, is_image)
    for _ in range(2):
        net.train(x, t)  # statistics of batch normalisation
    compiled = Compiled(net)
    for count in 1, 20:
        for one, other in zip(compiled.look(x[:count]), net.look(x[:count])):
            np.testing.assert_allclose(one.logits, other.logits, rtol=1e-3, atol=1e-4)
    expected = net.look(x)[-1].logits
    for count in 1, 20:  # no sample leaves early: the exits' links run before the next stage
        answers = compiled.classify(x[:count], -1.0)
        assert (answers.exit == 1).all()
        np.testing.assert_allclose(answers.prob, F.softmax(expected[:count]).array, rtol=1e-3, atol=1e-4)


def persistents(net):
    """Paths and values of the statistics of batch normalisation."""
    return [
        (f'{path}/{name}', vars(link)[name])
        for path, link in sorted(net.namedlinks())
        for name in sorted(link._persistent)
    ]


@given(*NETS, st.sampled_from([[], ['trunk'], [0], ['exits']]))
@settings(max_examples=60, deadline=None)
def test_trained_with_the_fast_kernels(stages, heads, tail, is_image, frozen):
    """Losses and gradients of a step; weights part by more, as Adam's first steps are of one size for any gradient."""
    x, t = data(is_image)
    slow = random_net(stages, heads, tail, is_image)
    slow.look(x)
    slow.run_main(x)
    slow.freeze(*frozen)
    fast = copy.deepcopy(slow)
    for repeat in range(2):  # with Chainer's graph, and without
        outcomes = []
        for net, context in (slow, contextlib.nullcontext()), (fast, cpu.fast()):
            with context:
                np.random.seed(repeat)
                outcomes.append(net.train(x, t))
        for one, other in zip(*outcomes):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
        for (path, one), (_, other) in zip(sorted(slow.namedparams()), sorted(fast.namedparams())):
            if one.grad is not None:  # as a whole: rounding lets ReLU pass other numbers near 0
                assert np.linalg.norm(one.grad - other.grad) <= 0.05 * np.linalg.norm(one.grad) + 1e-4, path
        for (path, one), (_, other) in zip(persistents(slow), persistents(fast)):
            np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-3, err_msg=path)
        fast.copyparams(slow)


@given(*NETS)
@settings(max_examples=20, deadline=None)
def test_exported(tmp_path_factory, stages, heads, tail, is_image):
    pytest.importorskip('onnxruntime')
    stages, heads = (
        [[k for k in kinds if k not in ('itself', 'norm of rows')] for kinds in both] for both in (stages, heads)
    )
    x, t = data(is_image)
    net = random_net(stages, heads, tail, is_image)
    for _ in range(2):
        net.train(x, t)
    path = str(tmp_path_factory.mktemp('exported') / 'stages')
    export.export(net, path, x.shape[1:], -1.0)
    answers = export.OnnxBranchyNet(path).classify(x)
    np.testing.assert_allclose(answers.prob, net.look(x)[-1].prob, rtol=1e-3, atol=1e-4)
