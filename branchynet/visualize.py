"""Figures of training, of the trade-off between accuracy and time, and of the exits.

Every function returns its matplotlib Figure. With a path (``output_path``; ``save_name`` in plot_layers) the figure is
saved there, in the format that the suffix names (.png, .pdf, .svg), and pyplot does not keep it. Without a path it is
an open pyplot figure: a notebook shows it below the cell (twice if the call is the cell's last line and has no
semicolon), a script shows it at ``plt.show()``. matplotlib is imported by the first call. Its settings and its backend
stay as they are.

Accuracies and probabilities are fractions in [0, 1]; the figures show them in percent.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from branchynet import (
    functions,
    sweep,
    utils,
)
from branchynet.drawing import (
    BLACK,
    BLUE,
    COLORS,
    GREY,
    ORANGE,
    SKY,
    VERMILION,
    PathLike,
    add_legend,
    line_style,
    new_figure,
    show_percent,
)
from branchynet.exits import Setting, setting_text

import numpy as np
from chainer.backends.cuda import to_cpu

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple  # (x, y)


def plot_layers(values: Iterable, save_name: PathLike | None = None, xlabel: str = '', ylabel: str = '') -> Figure:
    """Draws a line per exit over the epochs.

    Args:
        values: losses or accuracies as utils.train returns them: per epoch a scalar or an array (exits,). Or, as the
            released scripts give them by ``zip(*losses)``, a tuple or list over the epochs for every exit.
        save_name: path of the file; without a suffix, '.png' is added.
        xlabel: label of the x axis.
        ylabel: label of the y axis.
    """
    if save_name is not None and not Path(save_name).suffix:
        save_name = f'{os.fspath(save_name)}.png'
    values = list(values)
    if all(isinstance(value, (tuple, list)) for value in values):
        values = list(zip(*values))
    with new_figure(save_name) as figure:
        axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel)
        _epochs(axes, values)
        add_legend(axes)
    return figure


def plot_curves(
    losses: Sequence, accs: Sequence, labels: Sequence[str] | None = None, output_path: PathLike | None = None
) -> Figure:
    """Draws loss and accuracy over the epochs in two panels, a line per exit.

    Args:
        losses: losses as utils.train returns them: per epoch a scalar or an array (exits,).
        accs: accuracies in the same form.
        labels: names of the exits; 'Exit 1', 'Exit 2', ... by default.
        output_path: path of the file.
    """
    with new_figure(output_path, columns=2) as figure:
        left = figure.add_subplot(1, 2, 1, xlabel='Epoch', ylabel='Training loss')
        right = figure.add_subplot(1, 2, 2, xlabel='Epoch', ylabel='Training accuracy')
        _epochs(left, losses, labels)
        _epochs(right, accs, labels)
        show_percent(right.yaxis)
        add_legend(right)
    return figure


def plot_tradeoff(
    ps: Sequence[Setting],
    accs: Sequence[float],
    diffs: Sequence[float],
    baseacc: float,
    basediff: float,
    output_path: PathLike | None = None,
) -> Figure:
    """Draws accuracy and time of every setting in two panels, one above the other; the baseline is a line.

    Args:
        ps: the settings, a tick each.
        accs: accuracy of every setting, as utils.test_suite_A and test_suite_B return it.
        diffs: time of every setting, as they return it.
        baseacc: the baseline's accuracy.
        basediff: the baseline's time, in the unit of diffs.
        output_path: path of the file.
    """
    with new_figure(output_path, rows=2) as figure:
        upper, lower = figure.subplots(2, sharex=True)
        for axes, values, base in ((upper, accs, baseacc), (lower, diffs, basediff)):
            axes.plot(range(len(ps)), values, 'o-', color=BLUE, markersize=3, label='BranchyNet')
            axes.axhline(base, color=GREY, linestyle='--', label='Baseline')
        upper.set_ylabel('Accuracy')
        show_percent(upper.yaxis)
        add_legend(upper)
        lower.set_ylabel('Time')
        lower.set_ylim(bottom=0)
        lower.set_xlabel('Exit setting')
        _setting_ticks(lower, ps)
    return figure


def plot_roc(
    ps: Sequence[Setting],
    accs: Sequence[float],
    diffs: Sequence[float],
    baseacc: float,
    basediff: float,
    output_path: PathLike | None = None,
) -> Figure:
    """Draws the change of accuracy against the speed-up, both over the baseline, of every setting.

    The line joins the Pareto front (sweep.pareto). The settings at its two ends, the most accurate and the fastest,
    are named.

    Args:
        ps: the settings.
        accs: their accuracies.
        diffs: their times.
        baseacc: the baseline's accuracy.
        basediff: the baseline's time, in the unit of diffs.
        output_path: path of the file.
    """
    gains = basediff / np.asarray(diffs)
    changes = 100 * (np.asarray(accs) - baseacc)
    best = sweep.pareto(accs, diffs)[::-1]  # by rising gain
    with new_figure(output_path) as figure:
        axes = figure.add_subplot(xlabel='Speed-up over the baseline', ylabel='Change of accuracy (points)')
        axes.plot(gains, changes, 'o', color=SKY, alpha=0.6, markeredgewidth=0, label='All settings')
        axes.plot(gains[best], changes[best], 'o-', color=BLUE, label='Best settings')
        axes.plot(1, 0, 'D', color=VERMILION, markersize=7, label='Baseline')
        for k, place in ((best[0], {'xytext': (0, 7)}), (best[-1], {'xytext': (6, 0), 'va': 'center'})):
            axes.annotate(
                f'T = {setting_text(ps[k])}', (gains[k], changes[k]), textcoords='offset points', fontsize=8, **place
            )
        axes.xaxis.set_major_formatter('{x:g}x')
        axes.legend(loc='lower left')  # slow and inaccurate settings: the emptiest corner
    return figure


def plot_line_tradeoff(
    accs: Sequence[float],
    diffs: Sequence[float],
    ps: Sequence[Sequence[float]],
    exits: Sequence[Sequence[int]],
    baseacc: float,
    basediff: float,
    orig_label: str = 'Baseline',
    title: str | None = None,
    our_label: str = 'Our Method',
    xlabel: str = 'Runtime (ms)',
    ylabel: str = 'Classification Accuracy',
    all_samples: bool = False,
    knee_idx: int | None = None,
    xlim: tuple[float, float] | None = None,
    ylim: tuple[float, float] | None = None,
    inc_amt: float = -0.0005,
    output_path: PathLike | None = None,
) -> Figure:
    """Draws the trade-off curve of a BranchyNet and its baseline (figure 3 of the paper).

    The curve joins the settings that utils.get_inc_points keeps.

    Args:
        accs: accuracy of every setting, as utils.screen_branchy returns it.
        diffs: time of every setting, in the unit that xlabel names.
        ps: thresholds of every setting.
        exits: number of samples per exit of every setting.
        baseacc: the baseline's accuracy.
        basediff: the baseline's time.
        orig_label: name of the baseline.
        title: title of the figure.
        our_label: name of the BranchyNet.
        xlabel: label of the x axis.
        ylabel: label of the y axis.
        all_samples: whether every setting is drawn too.
        knee_idx: which of the kept settings (by rising time, from 0) is marked as the knee.
        xlim: limits of the time.
        ylim: limits of the accuracy.
        inc_amt: by how much an accuracy must exceed the last one kept.
        output_path: path of the file.

    Raises:
        ValueError: knee_idx is not one of the kept settings.
    """
    kept_accs, kept_times, kept_ps, _ = utils.get_inc_points(accs, diffs, ps, exits, inc_amt)
    if knee_idx is not None and not 0 <= knee_idx < len(kept_accs):
        raise ValueError(
            f'knee_idx must be one of the {len(kept_accs)} kept settings, 0 to {len(kept_accs) - 1}, not {knee_idx}'
        )
    with new_figure(output_path) as figure:
        axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel, title=title)
        if all_samples:
            axes.plot(
                diffs,
                accs,
                'o',
                color=SKY,
                alpha=0.5,
                markersize=3.5,
                markeredgewidth=0,
                label=f'{our_label}, all settings',
            )
        axes.plot(kept_times, kept_accs, 'o-', color=BLUE, label=our_label)
        if knee_idx is not None:
            axes.plot(
                kept_times[knee_idx],
                kept_accs[knee_idx],
                '*',
                color=ORANGE,
                markersize=13,
                markeredgecolor='black',
                markeredgewidth=0.6,
                label=f'Knee: T = {setting_text(kept_ps[knee_idx])}',
            )
        axes.plot(basediff, baseacc, 'D', color=VERMILION, markersize=7, label=orig_label)
        show_percent(axes.yaxis)
        axes.set(xlim=xlim, ylim=ylim)
        add_legend(axes)
    return figure


def plot_layer_entropy(net: Any, x: Any, output_path: PathLike | None = None) -> Figure:
    """Draws, for every exit, the share of samples whose entropy is below a threshold, against the threshold.

    At a threshold, a line's height is the share that would leave at that exit if it were the first.

    Args:
        net: a BranchyNet.
        x: samples (N, ...), on the net's device.
        output_path: path of the file.
    """
    with new_figure(output_path) as figure:
        axes = figure.add_subplot(xlabel='Entropy (nat)', ylabel='Samples below')
        ends = 1e-5, 10  # a little more than the published thresholds span
        axes.set(xscale='log', xlim=ends, ylim=(0, 1.02))
        for k, prob in enumerate(net.get_SM(x)):
            entropies = np.sort(to_cpu(functions.entropy(prob))).clip(*ends)  # NaN, which is below nothing, comes last
            known = np.count_nonzero(~np.isnan(entropies))
            shares = np.arange(1, known + 1) / len(entropies)
            axes.step(
                [*entropies[:known], ends[1]],
                [*shares, known / len(entropies)],
                where='post',
                label=f'Exit {k + 1}',
                **line_style(k),
            )
        show_percent(axes.yaxis)
        add_legend(axes)
    return figure


def plot_exits(
    exits: Sequence[Sequence[int]],
    accs: Sequence[float],
    exits2: Sequence[Sequence[int]],
    accs2: Sequence[float],
    i: int = 0,
    labels: Sequence[str] = ('Network 1', 'Network 2'),
    output_path: PathLike | None = None,
) -> Figure:
    """Draws accuracy against the share of samples that leave at exit i, for two networks.

    Every setting is a point; the line joins the most accurate setting at each share.

    Args:
        exits: (settings, exits), number of samples that left at every exit of the first network.
        accs: (settings,), its accuracies.
        exits2: exits of the second network.
        accs2: accuracies of the second network.
        i: the exit, from 0.
        labels: names of the two networks.
        output_path: path of the file.
    """
    with new_figure(output_path) as figure:
        axes = figure.add_subplot(xlabel=f'Samples leaving at exit {i + 1}', ylabel='Accuracy')
        for k, (counts, values, marker) in enumerate(
            ((np.asarray(exits), accs, 'o'), (np.asarray(exits2), accs2, 's'))
        ):
            share = counts[:, i] / counts.sum(axis=1)
            axes.plot(share, values, marker, color=COLORS[k], alpha=0.4, markeredgewidth=0)
            axes.plot(*_best_at_each(share, values), marker=marker, label=labels[k], **line_style(k))
        show_percent(axes.yaxis)
        show_percent(axes.xaxis)
        add_legend(axes)
    return figure


def plot_runtimes(
    labels: Sequence[str], times: Sequence[float], xlabel: str = 'Runtime (ms)', output_path: PathLike | None = None
) -> Figure:
    """Draws a bar with its value for the time of every network, the first on top.

    Args:
        labels: names of the networks.
        times: (networks,), in the unit that xlabel names.
        xlabel: label of the x axis.
        output_path: path of the file.
    """
    with new_figure(output_path) as figure:
        axes = figure.add_subplot(xlabel=xlabel)
        bars = axes.barh(range(len(labels)), times, height=0.6, color=BLUE)
        axes.set_yticks(range(len(labels)), labels)
        axes.bar_label(bars, fmt='%.3g', padding=3, fontsize=8)
        axes.invert_yaxis()
        axes.grid(axis='y', visible=False)
        axes.tick_params(axis='y', length=0)
        axes.margins(x=0.12)
    return figure


def plot_relative_tradeoff(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    base_accuracy: float,
    knee: int,
    published: Sequence[Point] = (),
    published_base: float | None = None,
    network: str = 'Network',
    output_path: PathLike | None = None,
) -> Figure:
    """Draws accuracy against the share of the baseline's time, a line per clock (figure 3 of the paper).

    Args:
        curves: {label: (shares of the baseline's time, accuracies)} of every setting. A line joins the Pareto front.
        base_accuracy: the baseline's accuracy.
        knee: index of the setting that is marked as the knee.
        published: points (share of its baseline's time, accuracy) of the paper.
        published_base: accuracy of the paper's baseline.
        network: the baseline's name.
        output_path: path of the file.
    """
    with new_figure(output_path) as figure:
        axes = figure.add_subplot(xlabel="Time, in units of the baseline's", ylabel='Accuracy')
        for k, (label, (shares, values)) in enumerate(curves.items()):
            times, accuracies = np.asarray(shares), np.asarray(values)
            best = sweep.pareto(accuracies, times)
            axes.plot(
                times, accuracies, 'o', color=COLORS[k % len(COLORS)], alpha=0.15, markersize=3, markeredgewidth=0
            )
            axes.plot(
                times[best], accuracies[best], marker='o', markersize=3, label=f'B-{network}, {label}', **line_style(k)
            )
            axes.plot(
                times[knee],
                accuracies[knee],
                '*',
                color=ORANGE,
                markersize=12,
                markeredgecolor='black',
                markeredgewidth=0.6,
                zorder=3,
                label='Knee' if k == 0 else None,
            )
        if len(published):
            axes.plot(
                *np.transpose(sorted(published)),
                's--',
                color=GREY,
                markersize=4,
                linewidth=1,
                label=f'B-{network}, published',
            )
        if published_base is not None:
            axes.plot(1, published_base, 'D', color=GREY, markersize=6, label=f'{network}, published')
        axes.plot(1, base_accuracy, 'D', color=BLACK, markersize=6, label=network)
        axes.set_xlim(left=0)
        show_percent(axes.yaxis)
        axes.legend(loc='upper center', bbox_to_anchor=(0.5, -0.16), ncol=2)  # outside: points may lie anywhere inside
    return figure


def plot_exit1(
    share: Sequence[float],
    accuracy: Sequence[float],
    entropy: Sequence[float],
    published_accuracy: Sequence[Point] = (),
    published_entropy: Sequence[Point] = (),
    output_path: PathLike | None = None,
) -> Figure:
    """Draws accuracy and the highest entropy that leaves against the share leaving at exit 1 (figure 4 of the paper).

    Args:
        share: (settings,), share of samples leaving at exit 1.
        accuracy: (settings,).
        entropy: (settings,), nats.
        published_accuracy: points (share, accuracy) of the paper.
        published_entropy: points (share, nats) of the paper.
        output_path: path of the file.
    """
    with new_figure(output_path, columns=2) as figure:
        left = figure.add_subplot(1, 2, 1, xlabel='Samples leaving at exit 1', ylabel='Accuracy')
        right = figure.add_subplot(1, 2, 2, xlabel='Samples leaving at exit 1', ylabel='Highest entropy (nat)')
        for axes, values, points in (left, accuracy, published_accuracy), (right, entropy, published_entropy):
            axes.plot(share, values, color=BLUE, label='Measured')
            if len(points):
                axes.plot(*np.transpose(points), 's--', color=GREY, markersize=4, linewidth=1, label='Published')
            show_percent(axes.xaxis)
            add_legend(axes)
        show_percent(left.yaxis)
    return figure


def plot_comparison(
    names: Sequence[str],
    accuracies: Sequence[Sequence[float]],
    published: Mapping[str, float],
    xlabel: str = '',
    output_path: PathLike | None = None,
    intervals: Sequence[Point] = (),
) -> Figure:
    """Draws the accuracy of variants of a network, a dot per run; a line joins the means where names are numbers.

    Args:
        names: of the variants.
        accuracies: per variant the accuracies of its runs.
        published: the paper's accuracy by name.
        xlabel: label of the x axis.
        output_path: path of the file.
        intervals: per variant the ends (low, high) of the 95 % interval of its accuracy.
    """
    with new_figure(output_path) as figure:
        axes = figure.add_subplot(xlabel=xlabel, ylabel='Accuracy of the final exit')
        places = range(len(names))
        runs = [(place, value) for place, values in zip(places, accuracies) for value in values]
        axes.plot(*np.transpose(runs), 'o', color=BLUE, label='Measured')
        for place, ends in zip(places, intervals):
            label = '95 % interval' if place == 0 else None
            axes.plot([place] * 2, ends, '_-', color=BLUE, markersize=8, linewidth=1, label=label)
        if all(name.isdigit() for name in names):
            axes.plot(places, [np.mean(values) for values in accuracies], '-', color=BLUE)
        known = [(place, published[name]) for place, name in zip(places, names) if name in published]
        if known:
            axes.plot(*np.transpose(known), 's--', color=GREY, markersize=4, linewidth=1, label='Published')
        axes.set_xticks(places, names)
        axes.margins(x=0.1)
        show_percent(axes.yaxis)
        add_legend(axes)
    return figure


def plot_cache_misses(
    times: Sequence[float],
    rates: Sequence[float],
    base_time: float,
    base_rate: float,
    published: Sequence[Point] = (),
    published_base: Point = (),
    output_path: PathLike | None = None,
) -> Figure:
    """Draws the rate of cache misses against the runtime (figure 6 of the paper), measured and published panels.

    Args:
        times: (settings,), ms.
        rates: (settings,), misses as a share of loads and stores.
        base_time: the baseline's time, ms.
        base_rate: the baseline's rate.
        published: points (ms, rate) of the paper.
        published_base: the point of the paper's baseline.
        output_path: path of the file.
    """
    with new_figure(output_path, columns=1 + bool(len(published))) as figure:
        panels = [('Measured', list(zip(times, rates)), (base_time, base_rate))]
        if len(published):
            panels.append(('Published', list(published), published_base))
        for k, (title, points, base) in enumerate(panels):
            axes = figure.add_subplot(
                1, len(panels), k + 1, title=title, xlabel='Runtime (ms)', ylabel='Cache miss rate'
            )
            axes.plot(*np.transpose(sorted(points)), 'o-', color=BLUE, label='With exits')
            if len(base):
                axes.plot(*base, 'D', color=BLACK, markersize=6, label='Baseline')
            axes.set(xlim=(0, None), ylim=(0, None))
            show_percent(axes.yaxis)
            add_legend(axes)
    return figure


def plot_leaving(
    x: np.ndarray,
    labels: np.ndarray,
    probs: np.ndarray,
    exits: np.ndarray,
    names: Sequence[str],
    count: int = 5,
    output_path: PathLike | None = None,
) -> Figure:
    """Shows samples that leave at every exit: the easiest and the hardest, those classified rightly and wrongly.

    A sample is easy where the entropy at the exit that it leaves is low. Below it stands the class that the exit
    names, and below that the entropy in nats; under a wrong one also the true class.

    Args:
        x: images (N, C, H, W) of 1 or 3 channels. Each is shown from its own darkest to its own brightest value.
        labels: int (N,), the true classes.
        probs: (E, N, K), softmax of every exit.
        exits: int (N,), the exit at which each sample leaves, from 0.
        names: of the K classes.
        count: of samples in each group, at most.
        output_path: path of the file.
    """
    probs = np.asarray(probs)
    entropies = np.stack([functions.entropy(prob) for prob in probs])[exits, np.arange(len(x))]
    answers = np.stack(list(map(_answers, probs)))[exits, np.arange(len(x))]
    rows = [(k, right) for k in range(len(probs)) for right in (True, False)]
    with new_figure(output_path, columns=2, rows=0.75 + 0.72 * len(rows)) as figure:
        panels = figure.subplots(len(rows), 2, squeeze=False)
        for (k, right), pair in zip(rows, panels):
            group = np.flatnonzero((exits == k) & ((answers == labels) == right))
            group = group[np.argsort(entropies[group], kind='stable')]
            title = f'Exit {k + 1}, {"right" if right else "wrong"}'
            halves = (pair[0], group[:count], 'easiest'), (pair[1], group[::-1][:count], 'hardest')
            for axes, chosen, which in halves:
                axes.set_title(
                    f'{title}: {which} of {len(group)}' if len(group) else f'{title}: none', loc='left', fontsize=9
                )
                texts = [
                    ('NaN' if answers[i] < 0 else names[answers[i]])
                    + ('' if right else f'\nis {names[labels[i]]}')
                    + f'\n{entropies[i] + 0:.2g}'
                    for i in chosen
                ]
                _strip(axes, x[chosen], texts, count)
    return figure


def _answers(prob: np.ndarray) -> np.ndarray:
    """The class that an exit names for each row of prob (N, K); -1, which is no class, where it answers NaN."""
    return np.where(np.isnan(prob).any(axis=1), -1, prob.argmax(axis=1))


def _strip(axes: Axes, images: np.ndarray, texts: Sequence[str], count: int) -> None:
    """Shows up to ``count`` images (B, C, H, W) in a row, a text under each."""
    from skimage import exposure, util

    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=7, pad=2)
    axes.set_yticks([])
    gap, (height, width) = 2, images.shape[2:]
    axes.set(xlim=(-0.5, count * (width + gap) + gap - 0.5), ylim=(height + 2 * gap - 0.5, -0.5))
    axes.set_xticks([])
    if not len(images):
        return
    scaled = [
        exposure.rescale_intensity(image.astype(float), out_range=(0.0, 1.0)).transpose(1, 2, 0) for image in images
    ]
    if images.shape[1] == 1:
        scaled = [1 - image for image in scaled]  # dark strokes on white
    montage = util.montage(
        scaled, grid_shape=(1, len(scaled)), padding_width=gap, fill=[1.0] * scaled[0].shape[2], channel_axis=3
    )
    axes.imshow(montage.squeeze(), cmap='gray', vmin=0, vmax=1, interpolation='nearest')
    axes.set(xlim=(-0.5, count * (width + gap) + gap - 0.5), ylim=(height + 2 * gap - 0.5, -0.5))
    axes.set_xticks([gap + width / 2 - 0.5 + i * (width + gap) for i in range(len(images))], texts)


def plot_confusion(
    labels: np.ndarray, probs: np.ndarray, names: Sequence[str], output_path: PathLike | None = None
) -> Figure:
    """Draws a confusion matrix per exit: of the samples of each true class, the percentage that gets each answer.

    Every exit answers for all samples, whether or not they would leave earlier.

    Args:
        labels: int (N,), the true classes.
        probs: (E, N, K), softmax of every exit.
        names: of the K classes.
        output_path: path of the file.
    """
    from sklearn.metrics import confusion_matrix

    with new_figure(output_path, columns=0.85 * len(probs), rows=1.3) as figure:
        for k, (axes, prob) in enumerate(zip(figure.subplots(1, len(probs), squeeze=False)[0], probs)):
            answers = _answers(np.asarray(prob))
            matrix = 100 * confusion_matrix(labels, answers, labels=range(len(names)), normalize='true')
            axes.imshow(matrix, cmap='Blues', vmin=0, vmax=100)
            for (row, column), value in np.ndenumerate(matrix):
                if value >= 0.05:
                    axes.text(
                        column,
                        row,
                        f'{value:.0f}' if value >= 9.95 else f'{value:.1f}',
                        ha='center',
                        va='center',
                        fontsize=6,
                        color='white' if value > 50 else BLACK,
                    )
            axes.grid(visible=False)
            axes.tick_params(length=0)
            axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 2 else 0)
            axes.set_yticks(range(len(names)), names if k == 0 else [])
            axes.set(
                title=f'Exit {k + 1}: {100 * np.mean(answers == labels):.2f} % right',
                xlabel='Answer (%)',
                ylabel='True class' if k == 0 else '',
            )
    return figure


def plot_reliability(
    labels: np.ndarray, probs: np.ndarray, bins: int = 10, output_path: PathLike | None = None
) -> Figure:
    """Draws a reliability diagram per exit: how often the answer is right against its probability.

    Bins hold equally many samples, as most probabilities lie near 1. On the diagonal an exit is calibrated, below it
    the exit is overconfident. Beside it stand the log loss of the true class (nats) and the Brier score of the answer,
    which is the mean square of (probability of the answer - 1 where it is right, else 0).

    Args:
        labels: int (N,), the true classes.
        probs: (E, N, K), softmax of every exit.
        bins: number of bins, at most.
        output_path: path of the file.

    Raises:
        ValueError: a probability is NaN.
    """
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import brier_score_loss, log_loss

    probs = np.asarray(probs, float)
    for k, prob in enumerate(probs):
        if np.isnan(prob).any():
            raise ValueError(f'exit {k} answers NaN: expected probabilities')
    with new_figure(output_path, columns=0.75 * len(probs)) as figure:
        for k, (axes, prob) in enumerate(zip(figure.subplots(1, len(probs), squeeze=False)[0], probs)):
            prob = prob / prob.sum(axis=1, keepdims=True)  # log_loss asks for sums of 1 in float64
            right, sure = prob.argmax(axis=1) == labels, prob.max(axis=1).clip(0, 1)
            shares, confidences = calibration_curve(right, sure, n_bins=bins, strategy='quantile')
            loss = log_loss(labels, prob, labels=range(prob.shape[1]))
            brier = brier_score_loss(right, sure, pos_label=True)
            low = min(confidences.min(), shares.min())
            axes.plot([low, 1], [low, 1], color=GREY, linewidth=1, linestyle='--')
            axes.plot(confidences, shares, 'o-', color=COLORS[k % len(COLORS)])
            axes.text(
                0.05,
                0.95,
                f'log loss {loss:.3f} nat\nBrier score {brier:.3f}',
                transform=axes.transAxes,
                va='top',
                fontsize=8,
            )
            axes.set(title=f'Exit {k + 1}', xlabel="Answer's probability", ylabel='Right' if k == 0 else '')
            show_percent(axes.xaxis)
            show_percent(axes.yaxis)
    return figure


def _epochs(axes: Axes, values: Sequence, labels: Sequence[str] | None = None) -> None:
    """Draws a line per exit; values hold per epoch a scalar or an array (exits,)."""
    from matplotlib.ticker import MaxNLocator

    if not len(values):
        return
    table = np.array([np.atleast_1d(value) for value in values])
    names = labels if labels is not None else [f'Exit {k + 1}' for k in range(table.shape[1])]
    marker = 'o' if len(table) == 1 else None  # a line needs two epochs
    for k, (line, label) in enumerate(zip(table.T, names)):
        axes.plot(range(1, len(line) + 1), line, marker=marker, label=label, **line_style(k))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _setting_ticks(axes: Axes, ps: Sequence[Setting]) -> None:
    """Names settings under an x axis of their indices, as many as there is room for."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(9, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda i, _: setting_text(ps[int(i)]) if i in range(len(ps)) else ''))
    axes.tick_params(axis='x', rotation=30)


def _best_at_each(share: np.ndarray, accs: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The distinct shares, ascending, and the highest accuracy at each."""
    share, group = np.unique(share, return_inverse=True)
    best = np.full(len(share), -np.inf)
    np.maximum.at(best, group, accs)
    return share, best
