"""How sure an accuracy is."""
import math

Z = 1.959964  # of a normal distribution's central 95 %


def wilson(share, count):
    """95 % interval (low, high) of a share seen in ``count`` samples (Wilson, 1927)."""
    middle = share + Z * Z / (2 * count)
    half = Z * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    return (middle - half) / (1 + Z * Z / count), (middle + half) / (1 + Z * Z / count)


def mcnemar(only_first, only_second):
    """Exact two-sided p value of McNemar's test: are two classifiers right equally often?

    Args:
        only_first, only_second: samples that only the one, only the other classifies correctly.
    """
    count, fewer = only_first + only_second, min(only_first, only_second)
    log_half = count * math.log(.5)
    tail = sum(math.exp(math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) + log_half)
               for k in range(fewer + 1))
    return min(1., 2 * tail)
