"""The original's helper functions, under their names, arguments and returns."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from branchynet import augment, sweep
from branchynet.batching import batches, check_pairs
from branchynet.exits import Array, lowest, per_exit, setting_text
from branchynet.inference import Compiled, check_classifier
from branchynet.net import BranchyNet, check_net
from branchynet.progress import progress
from branchynet.training import check_epochs, epochs

import numpy as np
from chainer.backends.cuda import to_cpu


def train(
    net: BranchyNet, x: Array, y: Array, batchsize: int = 10000, num_epoch: int = 20, main: bool = False
) -> tuple[list, list, float]:
    """Trains all exits jointly (section III of the paper), or main alone.

    Args:
        net: a BranchyNet.
        x: samples (N, ...).
        y: labels (N,).
        batchsize: samples of a step.
        num_epoch: number of epochs.
        main: whether to train main instead of all exits.

    Returns:
        (losses, accuracies, seconds): the first two are lists with the mean over the steps of every epoch, an array
        (E,), or a scalar for main.
    """
    check_net(net)
    start = time.perf_counter()
    history = list(epochs(net, x, y, batchsize, num_epoch, main))
    losses, accuracies = _columns(history, 2)
    return losses, accuracies, time.perf_counter() - start


def _columns(rows: Iterable, count: int) -> list[list]:
    """The ``count`` columns of rows, as lists; they are empty if there are no rows."""
    return [list(column) for column in zip(*rows)] or [[] for _ in range(count)]


def test(
    net: BranchyNet | Compiled, x: Array, y: Array, batchsize: int = 10000, main: bool = False
) -> tuple[float, float, np.ndarray, np.ndarray]:
    """Classifies samples with early exit, or by main.

    ``main=True`` gives a baseline only before joint training, which changes the trunk, while main's own head gets no
    gradients and moves by Adam's moments alone, so that its accuracy may rise or fall.

    Args:
        net: a BranchyNet or a Compiled.
        x: samples (N, ...).
        y: labels (N,).
        batchsize: samples that run together.
        main: whether to test main instead of early exit.

    Returns:
        (accuracy, seconds, exits, accuracies): overall accuracy; total seconds on the released clock; for every exit
        the number of samples that left there (int array) and their accuracy (array), zeros for main.
    """
    check_pairs(x, y)
    return _test(net, ((x[part], y[part]) for part in progress(batches(len(x), batchsize), 'testing')), main)


def _test(
    net: BranchyNet | Compiled, pairs: Iterable[tuple[Array, Array]], main: bool
) -> tuple[float, float, np.ndarray, np.ndarray]:
    check_classifier(net)
    total, correct, seconds = 0, 0, 0.0
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


def traintest(
    net: BranchyNet,
    xtr: Array,
    ytr: Array,
    xte: Array,
    yte: Array,
    batchsize: int = 10000,
    num_epoch: int = 20,
    main: bool = False,
    verbose: bool = False,
) -> tuple:
    """Trains and, after every epoch, tests.

    Args:
        net: a BranchyNet.
        xtr: training samples (N, ...).
        ytr: their labels (N,).
        xte: test samples (M, ...).
        yte: their labels (M,).
        batchsize: samples that run together.
        num_epoch: number of epochs.
        main: whether to train and test main instead of all exits.
        verbose: whether to print a line after every epoch.

    Returns:
        (losses, accuracies, train seconds, test accuracies, test seconds, test exits, test accuracies per exit):
        the two times are totals; the others are lists with an element for every epoch, as in `train` and `test`.
    """

    def train_once() -> tuple:
        return train(net, xtr, ytr, batchsize, 1, main)

    def test_once() -> tuple:
        return test(net, xte, yte, batchsize, main)

    return _traintest(train_once, test_once, num_epoch, verbose)


def _traintest(train_once: Callable[[], tuple], test_once: Callable[[], tuple], num_epoch: int, verbose: bool) -> tuple:
    check_epochs(num_epoch)
    rows, train_seconds, test_seconds = [], 0.0, 0.0
    for epoch in range(num_epoch):
        losses, accuracies, seconds = train_once()
        train_seconds += seconds
        test_accuracy, seconds, exits, test_accuracies = test_once()
        test_seconds += seconds
        rows.append((losses[0], accuracies[0], test_accuracy, exits, test_accuracies))
        if verbose:
            print(f'epoch {epoch}: loss {losses[0]}, accuracy {accuracies[0]}, test accuracy {test_accuracy}')
    losses, accuracies, test_accuracy, exits, test_accuracies = _columns(rows, 5)
    return losses, accuracies, train_seconds, test_accuracy, test_seconds, exits, test_accuracies


def train_augment(
    net: BranchyNet, x: np.ndarray, y: np.ndarray, batchsize: int = 10000, num_epoch: int = 20, main: bool = False
) -> tuple[list, list, float]:
    """`train` over augment.augmentation; a step takes all views of ``batchsize`` images."""
    check_net(net)
    check_epochs(num_epoch)
    check_pairs(x, y)
    augment.check_images(x, y)
    net.check_data(x, y, augment.normalize(augment.crops(x[:1]))[:1])
    start = time.perf_counter()
    history = list(epochs(net, x, y, batchsize, num_epoch, main, feed=augment.augmentation))
    losses, accuracies = _columns(history, 2)
    return losses, accuracies, time.perf_counter() - start


def test_augment(
    net: BranchyNet, x: np.ndarray, y: np.ndarray, batchsize: int = 10000, main: bool = False
) -> tuple[float, float, np.ndarray, np.ndarray]:
    """`test` over augment.augmentation; it counts views, not images."""
    check_pairs(x, y)
    return _test(net, augment.augmentation(x, y, batchsize), main)


def traintest_augment(
    net: BranchyNet,
    xtr: np.ndarray,
    ytr: np.ndarray,
    xte: np.ndarray,
    yte: np.ndarray,
    batchsize: int = 10000,
    num_epoch: int = 20,
    main: bool = False,
    verbose: bool = False,
) -> tuple:
    """`traintest` over augment.augmentation."""

    def train_once() -> tuple:
        return train_augment(net, xtr, ytr, batchsize, 1, main)

    def test_once() -> tuple:
        return test_augment(net, xte, yte, batchsize, main)

    return _traintest(train_once, test_once, num_epoch, verbose)


def test_suite_A(
    net: BranchyNet, x: Array, y: Array, batchsize: int = 10000, ps: Any = None
) -> tuple[Any, list[float], list[float]]:
    """Runs `test` with every setting of percentTestExits and puts the net's own settings back.

    Args:
        net: a BranchyNet.
        x: samples (N, ...).
        y: labels (N,).
        batchsize: samples that run together.
        ps: the settings; None: 0.1, 0.2, ..., 1.

    Returns:
        (ps, accuracies, seconds): one per setting; seconds are the released clock's total.
    """
    check_net(net)
    ps = np.linspace(0.1, 1.0, 10) if ps is None else ps
    results = _test_settings(net, x, y, batchsize, [{'thresholdExits': None, 'percentTestExits': p} for p in ps])
    return ps, [r[0] for r in results], [r[1] for r in results]


def test_suite_B(
    net: BranchyNet | Compiled, x: Array, y: Array, batchsize: int = 10000, ps: Any = None
) -> tuple[Any, np.ndarray, np.ndarray, list]:
    """Runs `test` with every setting of thresholdExits and puts the net's own settings back.

    Args:
        net: a BranchyNet or a Compiled.
        x: samples (N, ...).
        y: labels (N,).
        batchsize: samples that run together.
        ps: the settings, nats; None: ten from 0.1 to 2, as released.

    Returns:
        (ps, accuracies (array), seconds per sample (array, released clock), exits (list of int arrays)).
    """
    ps = np.linspace(0.1, 2.0, 10) if ps is None else ps
    results = _test_settings(net, x, y, batchsize, [{'thresholdExits': p} for p in ps])
    return ps, np.array([r[0] for r in results]), np.array([r[1] for r in results]) / len(x), [r[2] for r in results]


def _test_settings(
    net: BranchyNet | Compiled, x: Array, y: Array, batchsize: int, settings: list[dict[str, Any]]
) -> list[tuple]:
    """The results of `test` with each of the settings, by their names; the net then has its own again."""
    own = {name: getattr(net, name) for setting in settings for name in setting}
    try:
        results = []
        for setting in settings:
            _set(net, setting)
            results.append(test(net, x, y, batchsize))
        return results
    finally:
        _set(net, own)


def _set(net: BranchyNet | Compiled, setting: dict[str, Any]) -> None:
    for name, value in setting.items():
        setattr(net, name, value)


def generate_thresholds(base_ts: Iterable[float], num_exits: int) -> list[list[float]]:
    """Every combination of the thresholds ``base_ts`` over the exits but the last: a list of lists."""
    return [list(ts) for ts in itertools.product(base_ts, repeat=num_exits - 1)]


def screen_branchy(
    net: BranchyNet | Compiled,
    x: Array,
    y: Array,
    base_ts: Any,
    batchsize: int = 1,
    enumerate_ts: bool = True,
    verbose: bool = False,
) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
    """Sweeps thresholds over the samples, from one pass.

    Args:
        net: a BranchyNet or a Compiled.
        x: samples (N, ...).
        y: labels (N,).
        batchsize: samples that run together.
        base_ts: thresholds (nats) that are combined over the exits but the last; with enumerate_ts=False the settings
            themselves.
        enumerate_ts: whether to combine the thresholds.
        verbose: whether to print a line for every setting.

    Returns:
        (settings, accuracies, seconds, exits): the S settings; arrays (S,) of their accuracies, as `test` gives them,
        and of mean seconds per sample on the released clock, composed of the stages' times; an int array (S, E), the
        samples that leave at each exit.

    Raises:
        TypeError: a threshold is no number.
        ValueError: there are no thresholds, or they do not fit the net.
    """
    ts = generate_thresholds(base_ts, net.numexits()) if enumerate_ts else list(base_ts)
    if not ts:
        raise ValueError('base_ts is empty: expected one threshold or more')
    settings = [per_exit('threshold setting', setting, net.numexits() - 1) for setting in ts]
    result = sweep.sweep(sweep.record(net, x, y, batchsize), np.reshape(settings, (len(ts), -1)))
    if verbose:
        for setting, accuracy, seconds, exits in zip(ts, result.accuracy, result.released, result.exits):
            print(f'thresholds {setting}: accuracy {accuracy:.4f}, {seconds * 1e3:.3f} ms, exits {exits}')
    return ts, result.accuracy, result.released, result.exits


def get_inc_points(
    accs: Sequence, diffs: Sequence, ts: Sequence, exits: Sequence, inc_amt: float = -0.0005
) -> tuple[list, ...]:
    """Goes through the settings by rising time and keeps those whose accuracy exceeds that of the last one kept.

    Args:
        accs: accuracy of every setting.
        diffs: time of every setting.
        ts: thresholds of every setting.
        exits: samples per exit of every setting.
        inc_amt: by how much. A negative number, such as the release's, also keeps settings that are less accurate by
            less than that.

    Returns:
        (accuracies, times, thresholds, exits): lists.
    """
    kept: list[int] = []
    for i in np.argsort(diffs, kind='stable'):
        if not kept or accs[i] > accs[kept[-1]] + inc_amt:
            kept.append(i)
    return tuple([values[i] for i in kept] for values in (accs, diffs, ts, exits))


def branchy_table_results(
    network: str, baseacc: float, basediff: float, accs: Iterable, diffs: Iterable, exits: Iterable, ts: Iterable
) -> None:
    """Prints the published table: the baseline's row and one for every setting.

    Args:
        network: name of the baseline; the settings' rows are named B-<network>.
        baseacc: accuracy of the baseline, in [0, 1].
        basediff: time of the baseline, ms.
        accs: accuracy of every setting, in [0, 1].
        diffs: time of every setting, ms.
        exits: samples per exit of every setting.
        ts: thresholds of every setting, nats.
    """

    def line(*cells: str) -> None:
        print(''.join(f'{cell:>15}' for cell in cells))

    line('Network', 'Acc.(%)', 'Time(ms)', 'Gain', 'Thrshld.T', 'Exit(%)')
    line(network, f'{baseacc * 100:.2f}', f'{basediff:.2f}', '-', '-', '-')
    for accuracy, time_ms, counts, setting in zip(accs, diffs, exits, ts):
        shares = np.divide(counts, np.sum(counts)) * 100
        line(
            f'B-{network}',
            f'{accuracy * 100:.2f}',
            f'{time_ms:.2f}',
            f'{basediff / time_ms:.2f}',
            setting_text(setting),
            ', '.join(f'{share:.2f}' for share in shares),
        )


def compute_network_times(exits: Any, branch_times: Any) -> float | list[float]:
    """Computes mean times per sample from the numbers of samples that leave at each exit.

    Args:
        exits: samples per exit, of one setting (E,) or of several (S, E).
        branch_times: (E,), seconds per sample of leaving at each exit.

    Returns:
        ms per sample: a float, or a list of one for every setting.

    Raises:
        ValueError: a setting has no samples.
    """
    exits = np.asarray(exits)
    if not (exits.sum(axis=-1) > 0).all():
        raise ValueError(f'exits holds a setting without samples: {exits.tolist()}')
    return (exits @ np.asarray(branch_times) / exits.sum(axis=-1) * 1e3).tolist()


def compute_branch_times(
    net: BranchyNet | Compiled, x: Array, y: Array, batchsize: int = 1, num_samples: int = 200
) -> np.ndarray:
    """Mean seconds (array (E,), released clock) of a sample that leaves at each exit, over the first samples."""
    recorded = sweep.record(net, x[:num_samples], y[:num_samples], batchsize)
    return np.cumsum(recorded.released.mean(axis=1))


def get_SM(net: BranchyNet, x: Array, batchsize: int = 10000) -> list[np.ndarray]:
    """Softmax of every exit for x (N, ...), one sample or more: a list of NumPy arrays (N, C)."""
    if not len(x):
        raise ValueError('x holds no samples: expected at least one')
    parts = [net.get_SM(x[part]) for part in progress(batches(len(x), batchsize), 'softmax')]
    return [np.concatenate([to_cpu(a) for a in arrays]) for arrays in zip(*parts)]


def get_ent_setdiff(old: Any, new: Any, percentExit: float = 0.5) -> float | list[float]:
    """Compares which samples leave in two nets, if at each exit the share ``percentExit`` of the remaining ones leaves.

    Args:
        old: entropies of one net: (N,) at one exit, or a list of such arrays for several, as find_entropies returns it.
        new: those of the other net, for the same samples.
        percentExit: in [0, 1].

    Returns:
        At one exit, the share of all samples that leave by only one of the two. At several, a list with the share of
        the samples leaving in ``old`` that do not leave there in ``new``; NaN where none leaves.

    Raises:
        ValueError: percentExit is not in [0, 1].
    """
    old, new = np.asarray(old), np.asarray(new)
    if not 0 <= percentExit <= 1:
        raise ValueError(f'percentExit is {percentExit}: expected a share between 0 and 1')
    if old.ndim == 1:
        count = int(percentExit * len(old))
        return float((lowest(old, count) != lowest(new, count)).mean())
    shares, stays = [], np.ones((2, old.shape[1]), bool)
    for both in zip(old, new):
        count = int(percentExit * stays[0].sum())
        leaves = np.zeros_like(stays)
        for i, entropy in enumerate(both):
            leaves[i, stays[i]] = lowest(entropy[stays[i]], count)
        stays &= ~leaves
        shares.append(float((leaves[0] & ~leaves[1]).sum() / count) if count else math.nan)
    return shares
