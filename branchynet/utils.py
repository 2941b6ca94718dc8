"""The original's helper functions, under their names, arguments and returns."""
import itertools
import time

from branchynet import _chainer  # noqa: F401
from chainer.backends.cuda import to_cpu
import numpy as np

from branchynet import augment, sweep
from branchynet.exits import check_per_exit, lowest
from branchynet.progress import progress
from branchynet.training import batches, check_pairs, epochs


def train(net, x, y, batchsize=10000, num_epoch=20, main=False):
    """Trains all exits jointly, or main alone, on x (N, ...), y (N,).

    Returns:
        (losses, accuracies, seconds): the first two a list of the epochs' means over batches, an
        array per exit, or a scalar for main.
    """
    start = time.perf_counter()
    history = list(epochs(net, x, y, batchsize, num_epoch, main))
    return (*_columns(history, 2), time.perf_counter() - start)


def _columns(rows, count):
    """Rows as ``count`` lists, empty ones where there is no row."""
    return [list(column) for column in zip(*rows)] or [[] for _ in range(count)]


def test(net, x, y, batchsize=10000, main=False):
    """Early-exit classification of x (N, ...), y (N,), or main's.

    Returns:
        (accuracy, seconds, exits, accuracies): overall accuracy, the released clock's total seconds,
        samples per exit (int array) and accuracy per exit (array); zeros for main.
    """
    check_pairs(x, y)
    return _test(net, ((x[part], y[part]) for part in progress(batches(len(x), batchsize), 'testing')), main)


def _test(net, pairs, main):
    total, correct, seconds = 0, 0, 0.
    exits, exits_correct = np.zeros(net.numexits(), int), np.zeros(net.numexits())
    for x, y in pairs:
        if main:
            accuracy, elapsed = net.test_main(x, y)
        else:
            accuracy, accuracies, counts, elapsed = net.test(x, y)
            exits += counts
            exits_correct += np.rint(np.multiply(accuracies, counts))
        total += len(x)
        correct += round(accuracy * len(x))
        seconds += elapsed
    return correct / total, seconds, exits, exits_correct / np.maximum(exits, 1)


def traintest(net, xtr, ytr, xte, yte, batchsize=10000, num_epoch=20, main=False, verbose=False):
    """Trains on (xtr, ytr) and tests on (xte, yte) after every epoch.

    Returns:
        (losses, accuracies, train seconds, test accuracies, test seconds, test exits, test accuracies
        per exit): seconds in all, the others a list of one per epoch.
    """
    def train_once():
        return train(net, xtr, ytr, batchsize, 1, main)

    def test_once():
        return test(net, xte, yte, batchsize, main)

    return _traintest(train_once, test_once, num_epoch, verbose)


def _traintest(train_once, test_once, num_epoch, verbose):
    rows, train_seconds, test_seconds = [], 0., 0.
    for epoch in range(num_epoch):
        losses, accuracies, seconds = train_once()
        train_seconds += seconds
        test_accuracy, seconds, exits, test_accuracies = test_once()
        test_seconds += seconds
        rows.append((losses[0], accuracies[0], test_accuracy, exits, test_accuracies))
        if verbose:
            print('epoch %d: loss %s, accuracy %s, test accuracy %s' % (epoch, losses[0], accuracies[0], test_accuracy))
    losses, accuracies, test_accuracy, exits, test_accuracies = _columns(rows, 5)
    return losses, accuracies, train_seconds, test_accuracy, test_seconds, exits, test_accuracies


def train_augment(net, x, y, batchsize=10000, num_epoch=20, main=False):
    """train over augment.augmentation: ``batchsize`` images make a batch of all their views."""
    check_pairs(x, y)
    net.check_data(x, y, augment.normalize(augment.crops(x[:1]))[:1])
    start = time.perf_counter()
    history = list(epochs(net, x, y, batchsize, num_epoch, main, feed=augment.augmentation))
    return (*_columns(history, 2), time.perf_counter() - start)


def test_augment(net, x, y, batchsize=10000, main=False):
    """test over augment.augmentation: counts are of views."""
    check_pairs(x, y)
    return _test(net, augment.augmentation(x, y, batchsize), main)


def traintest_augment(net, xtr, ytr, xte, yte, batchsize=10000, num_epoch=20, main=False, verbose=False):
    """traintest over augment.augmentation."""
    def train_once():
        return train_augment(net, xtr, ytr, batchsize, 1, main)

    def test_once():
        return test_augment(net, xte, yte, batchsize, main)

    return _traintest(train_once, test_once, num_epoch, verbose)


def test_suite_A(net, x, y, batchsize=10000, ps=np.linspace(.1, 1., 10)):
    """Runs every setting of percentTestExits and puts the net's own settings back.

    Returns:
        (ps, accuracies, seconds): one per setting; seconds are the released clock's total.
    """
    results = _test_settings(net, x, y, batchsize, [(None, p) for p in ps])
    return ps, [r[0] for r in results], [r[1] for r in results]


def test_suite_B(net, x, y, batchsize=10000, ps=np.linspace(.1, 1., 10)):
    """Runs every setting of thresholdExits and puts the net's own settings back.

    Returns:
        (ps, accuracies (array), seconds per sample (array, released clock), exits (list of int arrays)).
    """
    results = _test_settings(net, x, y, batchsize, [(p, net.percentTestExits) for p in ps])
    return ps, np.array([r[0] for r in results]), np.array([r[1] for r in results]) / len(x), [r[2] for r in results]


def _test_settings(net, x, y, batchsize, settings):
    own = net.thresholdExits, net.percentTestExits
    try:
        results = []
        for net.thresholdExits, net.percentTestExits in settings:
            results.append(test(net, x, y, batchsize))
        return results
    finally:
        net.thresholdExits, net.percentTestExits = own


def generate_thresholds(base_ts, num_exits):
    """Every combination of the thresholds ``base_ts`` over the exits but the last: a list of lists."""
    return [list(ts) for ts in itertools.product(base_ts, repeat=num_exits - 1)]


def screen_branchy(net, x, y, base_ts, batchsize=1, enumerate_ts=True, verbose=False):
    """Sweeps thresholdExits on x (N, ...), y (N,), from one pass at ``batchsize``.

    Args:
        base_ts: thresholds to combine over the exits; with enumerate_ts=False the settings themselves.

    Returns:
        (settings, accuracies (array), seconds per sample (array), exits (int array (S, E))): exits and
        accuracies as test gives them; seconds of the released clock, composed from the stages' times.
    """
    ts = generate_thresholds(base_ts, net.numexits()) if enumerate_ts else base_ts
    for setting in ts:
        check_per_exit('threshold setting', setting, net.numexits() - 1)
    result = sweep.sweep(sweep.record(net, x, y, batchsize), np.reshape(ts, (len(ts), -1)))
    if verbose:
        for setting, accuracy, seconds, exits in zip(ts, result.accuracy, result.released, result.exits):
            print('thresholds %s: accuracy %.4f, %.3f ms, exits %s' % (setting, accuracy, seconds * 1e3, exits))
    return ts, result.accuracy, result.released, result.exits


def get_inc_points(accs, diffs, ts, exits, inc_amt=-0.0005):
    """By rising time, the points whose accuracy exceeds the last one kept plus ``inc_amt``.

    Args:
        accs, diffs, ts, exits: accuracy, time, thresholds and exits of every setting.

    Returns:
        (accuracies, times, thresholds, exits): lists.
    """
    kept = []
    for i in np.argsort(diffs, kind='stable'):
        if not kept or accs[i] > accs[kept[-1]] + inc_amt:
            kept.append(i)
    return tuple([values[i] for i in kept] for values in (accs, diffs, ts, exits))


def branchy_table_results(network, baseacc, basediff, accs, diffs, exits, ts):
    """Prints the published table: the baseline's row and one for every setting.

    Args:
        network: name of the baseline; the settings' rows are named B-<network>.
        baseacc, accs: accuracies as shares.
        basediff, diffs: times in ms.
        exits, ts: samples per exit and thresholds of every setting.
    """
    def line(*cells):
        print(''.join('%15s' % cell for cell in cells))

    line('Network', 'Acc.(%)', 'Time(ms)', 'Gain', 'Thrshld.T', 'Exit(%)')
    line(network, '%.2f' % (baseacc * 100), '%.2f' % basediff, '-', '-', '-')
    for accuracy, time_ms, counts, setting in zip(accs, diffs, exits, ts):
        shares = np.divide(counts, np.sum(counts)) * 100
        line('B-' + network, '%.2f' % (accuracy * 100), '%.2f' % time_ms, '%.2f' % (basediff / time_ms),
             ', '.join('%g' % t for t in np.atleast_1d(setting)), ', '.join('%.2f' % s for s in shares))


def compute_network_times(exits, branch_times):
    """Mean ms per sample, from samples per exit (E,) and seconds per sample of leaving at each (E,)."""
    return float(np.dot(exits, branch_times) / np.sum(exits) * 1e3)


def compute_branch_times(net, x, y, batchsize=1, num_samples=200):
    """Seconds per sample (array (E,), released clock) of leaving at each exit, over the first samples."""
    recorded = sweep.record(net, x[:num_samples], y[:num_samples], batchsize)
    return np.cumsum(recorded.released.mean(axis=1))


def get_SM(net, x, batchsize=10000):
    """Softmax of every exit for x (N, ...): a list of NumPy arrays (N, C)."""
    check_pairs(x, x)
    parts = [net.get_SM(x[part]) for part in progress(batches(len(x), batchsize), 'softmax')]
    return [np.concatenate([to_cpu(a) for a in arrays]) for arrays in zip(*parts)]


def get_ent_setdiff(old, new, percentExit=.5):
    """Share of samples that changed exit between two entropies (N,), of which the lowest ``percentExit`` leave."""
    count = int(percentExit * len(old))
    return float((lowest(np.asarray(old), count) != lowest(np.asarray(new), count)).mean())
