"""Nets of chains in machine code: what their forward calls, recorded once."""

import pickle

from branchynet import cpu, heads
from branchynet.cpu import graph
from branchynet.cpu.cascade import Cascade, NotCovered
from branchynet.cpu.trace import operations_of
from branchynet.inference import Compiled, classify
from branchynet.links.links import FL, Branch
from branchynet.net import BranchyNet

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from chainer.link_hooks import TimerHook
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.onednn
SHAPE = 3, 12, 12
X = np.random.RandomState(0).randn(40, *SHAPE).astype(np.float32)
T = np.arange(40, dtype=np.int32) % 5


class Layered(chainer.Chain):
    """Layers a, b, c, ... and a forward of them."""

    def __init__(self, forward, **layers):
        super().__init__()
        self._forward = forward
        with self.init_scope():
            for name, layer in layers.items():
                setattr(self, name, layer)

    def forward(self, x):
        return self._forward(self, x)


def net_of(chain, **settings):
    """A net with an exit at layer a, trained for a few steps."""
    np.random.seed(0)
    net = BranchyNet.from_chain(chain, {'a': heads.linear(5)}, x=X[:2], **settings)
    for _ in range(3):
        net.train(X, T)
    return net


def convolution(inputs=3, outputs=6, **settings):
    return L.Convolution2D(inputs, outputs, 3, pad=1, **settings)


def residual(self, x):
    h = F.relu(self.norm(self.a(x)))
    h = F.relu(h + self.inner_norm(self.inner(F.relu(self.b(h)))))
    h = F.relu(self.inner2(h) + self.projection(h))
    return self.logits(F.mean(F.max_pooling_2d(h, 2), axis=(2, 3)))


def lenet(self, x):
    h = F.max_pooling_2d(F.relu(self.a(x)), 3, 2, 1)
    h = F.local_response_normalization(F.relu(self.b(h)), n=3, alpha=0.1)
    h = F.dropout(F.relu(self.dense_norm(self.dense(F.reshape(h, (len(h), -1))))))
    return self.logits(h)


def pooled(self, x):
    h = F.average_pooling_2d(self.norm(F.max_pooling_2d(self.a(x), 2, 2)), 3, 2, 1)
    return F.squeeze(F.average_pooling_2d(self.c(h), h.shape[2:]), axis=(2, 3))


def twice(self, x):
    h = F.relu(self.a(x))
    return self.logits(F.relu(self.b(F.relu(self.b(h)))))


def dense(self, x):
    h = self.a(x)
    h = F.concat([h, self.b(F.leaky_relu(self.norm(h)))])
    h = F.concat([F.max_pooling_2d(h, 3, 2, 1, cover_all=False), F.average_pooling_2d(h, 2)])
    return self.logits(F.relu6(self.c(h)))


def bottlenecks(self, x):
    h = F.clipped_relu(self.a(x), 0.5)
    h = F.relu(h) + F.leaky_relu(self.norm(h), 0.3)
    return self.logits(F.clipped_relu(self.dense(F.relu6(self.b(h)) + h), 2.0))


CHAINS = {
    'residual': lambda: Layered(
        residual,
        a=convolution(nobias=True),
        norm=L.BatchNormalization(6),
        b=convolution(6),
        inner=convolution(6),
        inner_norm=L.BatchNormalization(6, use_gamma=False),
        inner2=convolution(6, 9, stride=2),
        projection=L.Convolution2D(6, 9, 1, 2),
        logits=L.Linear(9, 5),
    ),
    'lenet': lambda: Layered(
        lenet,
        a=convolution(),
        b=convolution(6, 4),
        dense=L.Linear(None, 20),
        dense_norm=L.BatchNormalization(20),
        logits=L.Linear(20, 5, nobias=True),
    ),
    'pooled': lambda: Layered(pooled, a=convolution(), norm=L.BatchNormalization(6), c=convolution(6, 5)),
    'dense': lambda: Layered(
        dense,
        a=convolution(),
        norm=L.BatchNormalization(6),
        b=convolution(6, 3),
        c=L.Convolution2D(18, 7, 1),
        logits=L.Linear(None, 5),
    ),
    'bottlenecks': lambda: Layered(
        bottlenecks,
        a=convolution(),
        norm=L.BatchNormalization(6),
        b=L.DepthwiseConvolution2D(6, 1, 3, pad=1),
        dense=L.Linear(None, 20),
        logits=L.Linear(20, 5),
    ),
    'twice': lambda: Layered(twice, a=convolution(), b=convolution(6), logits=L.Linear(None, 5)),
}


@pytest.mark.parametrize('name', CHAINS)
@pytest.mark.parametrize('temperatures', [None, [0.5, 3.0]])
def test_a_chain_in_machine_code_answers_as_the_net(name, temperatures):
    net = net_of(CHAINS[name]())
    net.temperatures = temperatures
    compiled = Compiled(net, traced=True)
    threshold = float(np.median(net.look(X)[0].entropy)) * 1.001
    for count in 1, 7, 40:
        found, expected = (classify(each, X[:count], threshold) for each in (compiled, net))
        np.testing.assert_array_equal(found.label, expected.label)
        np.testing.assert_array_equal(found.exit, expected.exit)
        np.testing.assert_allclose(found.prob, expected.prob, rtol=1e-3, atol=1e-5)
    assert set(found.exit) == {0, 1}
    assert compiled.test_main(X, T)[0] == net.test_main(X, T)[0]
    assert [type(engine) for engine in compiled._engines.values()] == [Cascade]


def test_a_trace_has_the_bits_of_the_same_links():
    np.random.seed(0)
    links = [convolution(), L.BatchNormalization(6), FL(F.relu), Branch([L.Linear(None, 5)])]
    links += [convolution(6), FL(F.max_pooling_2d, 2), L.BatchNormalization(6), L.Linear(None, 9)]
    net = BranchyNet([*links, L.BatchNormalization(9), Branch([L.Linear(9, 5)])])
    for _ in range(3):
        net.train(X, T)
    by_links = Cascade(graph.operations_of(net, SHAPE, with_main=True))
    traced = Cascade(operations_of(net, SHAPE, with_main=True))
    assert np.array_equal(by_links.record(X)[0], traced.record(X)[0])
    assert np.array_equal(by_links.main(X)[0], traced.main(X)[0])


def test_bits_depend_neither_on_the_batch_nor_on_threads():
    compiled = Compiled(net_of(CHAINS['residual']()), traced=True)
    expected = [look.logits for look in compiled.look(X)]
    try:
        for count in 1, 3:
            cpu.set_num_threads(count)
            for size in 1, 9:
                found = [
                    np.concatenate(each)
                    for each in zip(
                        *([look.logits for look in compiled.look(X[i : i + size])] for i in range(0, len(X), size))
                    )
                ]
                assert all(np.array_equal(a, b) for a, b in zip(found, expected))
    finally:
        cpu.set_num_threads(None)


def test_a_trace_keeps_the_weights_and_can_be_pickled():
    net = net_of(CHAINS['lenet']())
    compiled = Compiled(net, traced=True)
    before = compiled.classify(X, 1.0)
    for param in net.params():
        param.array[...] = 0
    again = pickle.loads(pickle.dumps(compiled))
    assert np.array_equal(again.classify(X, 1.0).prob, before.prob)
    assert [type(engine) for engine in again._engines.values()] == [Cascade]


LAYERS = {
    'convolution': lambda: L.Convolution2D(6, 6, 3, pad=1),
    'depthwise': lambda: L.DepthwiseConvolution2D(6, 1, 3, pad=1),
    'dilated': lambda: L.DilatedConvolution2D(6, 6, 3, pad=2, dilate=2),
    'strided': lambda: L.Convolution2D(6, 6, 2, stride=2, pad=1),
    'norm': lambda: L.BatchNormalization(6),
    'relu': lambda: F.relu,
    'maximum': lambda: lambda x: F.max_pooling_2d(x, 3, 2, 1, cover_all=False),
    'average': lambda: lambda x: F.average_pooling_2d(x, 2, 1, 1),
    'clipped': lambda: lambda x: F.clipped_relu(x, 0.75),
    'leaky': lambda: F.leaky_relu,
    'sum': lambda: lambda x: F.relu(x) + x,
    'concat': lambda: (lambda f, g: chainer.Sequential(lambda x: F.concat([g(x), F.relu(f(x))])))(
        L.Convolution2D(6, 3, 1), L.Convolution2D(6, 3, 3, pad=1)
    ),
    'response': lambda: F.local_response_normalization,
    'residual': lambda: (lambda link: chainer.Sequential(lambda x: link(x) + x))(L.Convolution2D(6, 6, 3, pad=1)),
    'residual of two': lambda: (lambda f, g: chainer.Sequential(lambda x: F.relu(f(x)) + g(x)))(
        L.Convolution2D(6, 6, 1), L.Convolution2D(6, 6, 3, pad=1)
    ),
}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(sorted(LAYERS)), max_size=6))
def test_chains_of_any_layers(names):
    np.random.seed(len(names))
    layers = [LAYERS[name]() for name in names]

    def forward(self, x):
        h = self.a(x)
        for layer in layers:
            h = layer(h)
        return self.logits(h)

    chain = Layered(forward, a=convolution(), logits=L.Linear(None, 5))
    net = BranchyNet.from_chain(chain, {'a': heads.linear(5)}, x=X[:2])
    net.get_SM(X)
    compiled = Compiled(net, traced=True)
    for found, expected in zip(compiled.look(X), net.look(X)):
        np.testing.assert_allclose(found.prob, expected.prob, rtol=1e-3, atol=1e-5)
    assert [type(engine) for engine in compiled._engines.values()] == [Cascade]


@pytest.mark.parametrize(
    'function',
    [
        F.relu6,
        lambda x: F.clipped_relu(x, 0.3),
        F.leaky_relu,
        lambda x: F.leaky_relu(x, -0.5),
        lambda x: x + F.leaky_relu(x),
        lambda x: F.concat([x, F.relu(x), x]),
    ],
)
def test_functions_without_sums_give_the_same_numbers_at_their_bends_too(function):
    bends = np.float32([0.0, 0.3, 6.0])
    values = np.concatenate([bends, -bends, np.nextafter(bends, np.float32(9)), np.nextafter(bends, np.float32(-9))])
    x = np.resize(values, (2, *SHAPE))

    def forward(self, x):
        h = function(self.a(x))
        return F.reshape(h, (len(h), -1))

    chain = Layered(
        forward,
        a=L.Convolution2D(3, 3, 1, initialW=np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)),
    )
    expected = chain(x).array
    net = BranchyNet.from_chain(chain, {'a': heads.linear(expected.shape[1])}, x=x)
    found, _ = Cascade(operations_of(net, SHAPE, with_main=True)).main(x)
    np.testing.assert_array_equal(found, expected)


NOT_COVERED = {
    'Tanh': lambda self, h: F.tanh(h),
    'a sum of different shapes': lambda self, h: h + F.max_pooling_2d(h, (12, 1)),
    'Concat of other than channels': lambda self, h: F.concat([h, h], axis=2),
    'Concat of such values': lambda self, h: F.concat([h, np.zeros_like(h.array)]),
    'Add': lambda self, h: h + np.ones((1, 6, 12, 12), np.float32) if len(h) == 1 else h + np.ones_like(h.array),
    'AddConstant': lambda self, h: h + 1,
    'a change of shape': lambda self, h: F.reshape(h, (len(h), 12, 6, 12)),
    'a mean over other axes': lambda self, h: F.mean(h, axis=(1, 2)),
    "numbers from outside Chainer's functions": lambda self, h: chainer.Variable(h.array * 2),
    'LocalResponseNormalization of a vector': lambda self, h: (
        F.local_response_normalization(F.flatten(h[0])[None])
        if len(h) == 1
        else F.local_response_normalization(F.reshape(h, (len(h), -1)))
    ),
}


@pytest.mark.parametrize('message', NOT_COVERED)
def test_other_functions_are_called_as_they_are(message):
    def forward(self, x):
        return self.logits(NOT_COVERED[message](self, F.relu(self.a(x))))

    np.random.seed(0)
    net = BranchyNet.from_chain(
        Layered(forward, a=convolution(), logits=L.Linear(None, 5)), {'a': heads.linear(5)}, x=X[:2]
    )
    net.get_SM(X)
    with pytest.raises(NotCovered, match=message):
        operations_of(net, SHAPE, with_main=True)
    with pytest.warns(UserWarning, match='traced=True changes nothing, as there is no machine code for') as warned:
        found = classify(Compiled(net, traced=True), X, 1.5)
    assert [one.filename for one in warned] == [__file__]
    expected = classify(net, X, 1.5)
    np.testing.assert_array_equal(found.label, expected.label)
    np.testing.assert_allclose(found.prob, expected.prob, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('limit', [0.5, 20])
def test_a_forward_that_looks_at_its_samples_is_refused(limit):
    def forward(self, x):
        h = self.a(x)
        return self.logits(F.relu(h) if float(abs(h.array).max()) < limit else h)

    net = net_of(Layered(forward, a=convolution(), logits=L.Linear(None, 5)))
    with pytest.raises(ValueError, match='the trace and the net give different logits at exit 1.*traced=True') as e:
        Compiled(net, traced=True).classify(X, 1.0)
    assert '\n' not in str(e.value)
    assert len(Compiled(net).classify(X, 1.0).label) == len(X)


def test_weights_that_forward_computes_before_an_exit_and_uses_behind_it():
    def forward(self, x):
        w = F.tanh(self.b.W)
        return self.logits(F.relu(F.convolution_2d(F.relu(self.a(F.convolution_2d(x, w[:3, :3]))), w)))

    net = net_of(Layered(forward, a=convolution(), b=convolution(6), logits=L.Linear(None, 5)))
    compiled = Compiled(net, traced=True)
    for found, expected in zip(compiled.look(X), net.look(X)):
        np.testing.assert_allclose(found.prob, expected.prob, rtol=1e-3, atol=1e-5)
    assert [type(engine) for engine in compiled._engines.values()] == [Cascade]


def test_an_exit_at_a_convolution_does_not_make_it_run_twice():
    def forward(self, x):
        return self.logits(F.relu(self.norm(self.a(x))))

    net = net_of(Layered(forward, a=convolution(), norm=L.BatchNormalization(6), logits=L.Linear(None, 5)))
    operations = operations_of(net, SHAPE, with_main=False)
    assert [node.kind for node in graph.ancestors(operations.heads)].count('convolution') == 1


def test_logits_may_be_a_convolution_that_was_flattened():
    def forward(self, x):
        h = F.max_pooling_2d(self.last(F.relu(self.a(x))), (3, 12), (2, 12), cover_all=False)
        return F.reshape(h, (len(h), -1))  # of (B, 1, 5, 1)

    net = net_of(Layered(forward, a=convolution(), last=convolution(6, 1)))
    compiled = Compiled(net, traced=True)
    for found, expected in zip(compiled.look(X), net.look(X)):
        np.testing.assert_allclose(found.prob, expected.prob, rtol=1e-3, atol=1e-5)
    assert [type(engine) for engine in compiled._engines.values()] == [Cascade]


def test_a_link_with_a_hook_is_called():
    net = net_of(CHAINS['twice']())
    net.main.chain.b.add_hook(TimerHook())
    with pytest.warns(UserWarning, match='no machine code for a link with a hook'):
        Compiled(net, traced=True).classify(X, 1.0)


def test_links_that_are_not_known_by_their_class_are_traced():
    np.random.seed(0)
    net = BranchyNet(
        [
            convolution(),
            FL(lambda x: F.relu(x)),
            Branch([L.Linear(None, 5)]),
            Layered(lambda self, x: F.relu(self.b(x)), b=convolution(6)),
            Branch([L.Linear(None, 5)]),
        ]
    )
    net.get_SM(X)
    compiled = Compiled(net, traced=True)
    for found, expected in zip(compiled.look(X), net.look(X)):
        np.testing.assert_allclose(found.prob, expected.prob, rtol=1e-3, atol=1e-5)
    assert [type(engine) for engine in compiled._engines.values()] == [Cascade]
