"""The exit criteria: which samples leave at an exit, and which are dropped in training."""
import math
from numbers import Real

from branchynet import _chainer  # noqa: F401
from chainer.backend import get_array_module
import numpy as np


def below(entropy, threshold):
    """Rows whose entropy (nats) lies strictly below the threshold.

    Returns:
        Boolean array (B,) on the device of ``entropy`` (B,).
    """
    return entropy < entropy.dtype.type(threshold)  # float64 would tell apart what float32 does not


def lowest(entropy, count):
    """The ``count`` rows of lowest entropy, of equals the earlier; all rows where there are fewer.

    Returns:
        Boolean array (B,) on the device of ``entropy`` (B,).
    """
    xp = get_array_module(entropy)
    order = entropy.argsort(kind='stable') if xp is np else entropy.argsort()  # CuPy's is stable
    mask = xp.zeros(len(entropy), bool)
    mask[order[:max(count, 0)]] = True
    return mask


def check_per_exit(name, value, exits, upper=math.inf):
    """Raises unless ``value`` is a setting for every exit but the last.

    Args:
        name: of the setting, for the error.
        value: a number for all of them, or a sequence of one each.
        exits: how many there are (the last one not counted).
        upper: 1 for a share, which cannot be negative either.

    Raises:
        TypeError: not numbers.
        ValueError: another number of values, or a value that is NaN or out of range.
    """
    values = [value] if isinstance(value, Real) else list(value)
    if not isinstance(value, Real) and len(values) != exits:
        raise ValueError('%s is %s: expected a number, or a sequence of %d (one for every exit but the last)' % (
            name, value, exits))
    for v in values:
        if not isinstance(v, Real):
            raise TypeError('%s is %s: expected numbers' % (name, value))
        if math.isnan(v) or upper == 1 and not 0 <= v <= 1:
            raise ValueError('%s is %s: expected %s' % (
                name, value, 'shares between 0 and 1' if upper == 1 else 'numbers that are not NaN'))
