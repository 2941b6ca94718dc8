"""Heads for features of any shape."""

import branchynet  # noqa: F401
from branchynet import heads
from branchynet.links.links import Branch

import chainer
import chainer.functions as F
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def logits(links, x):
    for link in links:
        x = link(x)
    return x


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 11), min_size=1, max_size=4).map(tuple),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 5),
)
def test_heads_fit_features_of_every_shape(shape, classes, count, grid):
    x = np.random.RandomState(0).randn(count, *shape).astype(np.float32)
    assert logits(heads.suggest(shape, classes), x).shape == (count, classes)
    assert logits(heads.linear(classes, grid), x).shape == (count, classes)
    found = chainer.as_array(heads.means(x, grid))
    assert found.shape[:2] == x.shape[:2] and all(size <= grid for size in found.shape[2:])
    # Each mean is of a window of its own: sums of windows are sums of what lies in them.
    window = tuple(-(-size // grid) for size in shape[1:])
    inside = (slice(None),) * 2 + tuple(slice(0, n * w) for n, w in zip(found.shape[2:], window))
    np.testing.assert_allclose(found.sum() * np.prod(window), x[inside].sum(), rtol=1e-3, atol=1e-3)


def test_convolutions_are_suggested_for_images_alone():
    def kinds(shape):
        return [type(link).__name__ for link in heads.suggest(shape, 10)]

    assert 'Convolution2D' in kinds((3, 8, 8))
    for shape in [(3, 8, 7), (64,), (64, 9), (3, 9, 9, 9)]:
        assert 'Convolution2D' not in kinds(shape)
    with pytest.raises(ValueError, match='expected at least an axis of channels'):
        heads.suggest((), 10)


def test_linear_is_a_linear_layer_on_the_means_of_what_is_positive():
    x = np.random.RandomState(0).randn(3, 4, 5, 6).astype(np.float32)
    links = heads.linear(2, grid=1)
    found = logits(links, x).array
    expected = np.maximum(x, 0).mean(axis=(2, 3)) @ links[-1].W.array.T
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(logits(links, F.relu(x).array).array, found)  # a second ReLU changes nothing


def test_a_gradient_reaches_every_channel():
    x = chainer.Variable(np.random.RandomState(0).rand(2, 3, 9, 9).astype(np.float32))
    branch = Branch(heads.conv(5, channels=4))
    F.sum(logits(branch, x) ** 2).backward()
    assert (abs(x.grad).sum(axis=(0, 2, 3)) > 0).all()
    assert all(param.grad is not None for param in branch.params())


def test_a_grid_without_windows_is_refused():
    with pytest.raises(ValueError, match='^grid is 0: expected 1 or more$'):
        heads.means(np.zeros((1, 2, 4, 4), np.float32), 0)
