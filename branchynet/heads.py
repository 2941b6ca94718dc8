"""Heads for exits on features of any shape, such as those of BranchyNet.from_chain.

Every head begins with a ReLU, because the output of a Chain's layer often lacks the activation that forward applies to
it; on features that went through a ReLU, another one changes nothing. Features with pixels, or steps in time, are
averaged to a small grid, so that a head's parameters do not grow with the size of the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from branchynet.links.links import FL

import chainer
import chainer.functions as F
import chainer.links as L


def linear(classes: int, grid: int = 4) -> list[chainer.Link]:
    """A ReLU, means over a grid, and a linear layer.

    The internal classifiers of Shallow-Deep Networks (Kaya, Hong, Dumitras, ICML 2019, section 4.1) reduce features
    to 4 by 4 pixels in this way; their pooling also mixes in maxima.

    Args:
        classes: number of classes.
        grid: as of `means`; 1 takes one mean for every channel.

    Returns:
        Links from features (B, C) or (B, C, ...) to logits (B, classes).
    """
    return [FL(F.relu), FL(means, grid), L.Linear(None, classes)]


def conv(classes: int, channels: int = 32, grid: int = 4) -> list[chainer.Link]:
    """A ReLU, a convolution of 3 by 3 pixels, a ReLU, means over a grid, and a linear layer.

    The branches of B-AlexNet (section V of the paper) are convolutions of 3 by 3 pixels to 32 channels, a pooling and
    a linear layer; MSDNet's classifiers (Huang et al., ICLR 2018, section 4) have two such convolutions and end in
    means. An early layer's features say little of the class one by one; the convolution combines them.

    Args:
        classes: number of classes.
        channels: number of channels of the convolution.
        grid: as of `means`.

    Returns:
        Links from features (B, C, H, W) to logits (B, classes).
    """
    return [
        FL(F.relu),
        L.Convolution2D(None, channels, 3, pad=1),
        FL(F.relu),
        FL(means, grid),
        L.Linear(None, classes),
    ]


def suggest(shape: Sequence[int], classes: int) -> list[chainer.Link]:
    """A head for features of a shape: `conv` for images of 8 by 8 pixels or more, `linear` for all others.

    Args:
        shape: of a sample's features, without the batch.
        classes: number of classes.

    Returns:
        Links from the features to logits (B, classes).

    Raises:
        ValueError: the shape is empty.
    """
    if not len(shape):
        raise ValueError('the features of a sample are a single number: expected at least an axis of channels')
    return conv(classes) if len(shape) == 3 and min(shape[1:]) >= 8 else linear(classes)


def means(x: Any, grid: int) -> Any:
    """Means over equal windows, of which there are at most ``grid`` along each axis after the channels.

    Where the windows do not fill an axis, the rest at its end is left out.

    Args:
        x: Variable or array (B, C, ...).
        grid: number of windows along an axis, at most.

    Returns:
        A Variable (B, C, ...); x itself where no axis is longer than the grid.

    Raises:
        ValueError: the grid is below 1.
    """
    if grid < 1:
        raise ValueError(f'grid is {grid}: expected 1 or more')
    window = tuple(-(-size // grid) for size in x.shape[2:])
    if set(window) <= {1}:
        return x
    pooling = F.average_pooling_2d if x.ndim == 4 else F.average_pooling_nd
    return pooling(x, window, window)
