"""Figures of training, of the trade-off between accuracy and time, and of the exits.

Every function returns its matplotlib Figure. With a path (``output_path``, in plot_layers
``save_name``) the figure is saved there in the format that the suffix names (.png, .pdf, .svg) and
pyplot never learns of it. Without one it is a pyplot figure, left open: a notebook shows it after the
cell (and a second time if the call is the cell's last line without a semicolon), a script at
``plt.show()``. matplotlib is imported at the first call only, its settings and backend stay as they are.

Accuracies are fractions in [0, 1] and are shown in percent.
"""
import contextlib
import io
from pathlib import Path

import numpy as np

from branchynet import _chainer  # noqa: F401
from chainer.backends.cuda import to_cpu

from branchynet import functions, utils
from branchynet.files import write_atomically

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9'
COLORS = [BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY]
GREY, BLACK = '#777777', '#000000'
LINES = ['-', '--', '-.', ':', (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1))]  # and these tell them apart in print

STYLE = {
    'figure.figsize': (4.5, 3.2),
    'figure.dpi': 120,
    'figure.constrained_layout.use': True,
    'savefig.dpi': 300,
    'pdf.fonttype': 42,  # fonts that journals accept and editors can change
    'svg.hashsalt': 'branchynet',  # the same bytes for the same figure
    'font.size': 9,
    'axes.titlesize': 10,
    'axes.labelsize': 9,
    'xtick.labelsize': 8,
    'ytick.labelsize': 8,
    'legend.fontsize': 8,
    'legend.frameon': False,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.linewidth': .8,
    'axes.axisbelow': True,
    'axes.grid': True,
    'grid.color': '#E4E4E4',
    'grid.linewidth': .6,
    'lines.linewidth': 1.6,
    'lines.markersize': 4.5,
}


def plot_layers(values, save_name=None, xlabel='', ylabel=''):
    """One line per exit over the epochs.

    Args:
        values: per epoch a scalar or an array (exits,), as utils.train returns losses and accuracies.
        save_name: path of the file.
    """
    with _figure(save_name) as figure:
        axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel)
        _epochs(axes, values)
        _legend(axes)
    return figure


def plot_curves(losses, accs, labels=None, output_path=None):
    """Loss and accuracy over the epochs in two panels, one line per exit.

    Args:
        losses, accs: per epoch a scalar or an array (exits,), as utils.train returns them.
        labels: names of the exits; 'Exit 1', ... by default.
    """
    with _figure(output_path, columns=2) as figure:
        left = figure.add_subplot(1, 2, 1, xlabel='Epoch', ylabel='Training loss')
        right = figure.add_subplot(1, 2, 2, xlabel='Epoch', ylabel='Training accuracy')
        _epochs(left, losses, labels)
        _epochs(right, accs, labels)
        _percent(right.yaxis)
        _legend(right)
    return figure


def plot_tradeoff(ps, accs, diffs, baseacc, basediff, output_path=None):
    """Accuracy and time of every setting, in two panels under each other; the baseline as a line.

    Args:
        ps: the settings, scalars or lists (percentTestExits or thresholds), one per tick.
        accs, diffs: accuracy and time of every setting, as utils.test_suite_A and _B return them.
        baseacc, basediff: accuracy and time of the baseline, in the units of accs and diffs.
    """
    with _figure(output_path, rows=2) as figure:
        upper, lower = figure.subplots(2, sharex=True)
        for axes, values, base in ((upper, accs, baseacc), (lower, diffs, basediff)):
            axes.plot(range(len(ps)), values, 'o-', color=BLUE, markersize=3, label='BranchyNet')
            axes.axhline(base, color=GREY, linestyle='--', label='Baseline')
        upper.set_ylabel('Accuracy')
        _percent(upper.yaxis)
        _legend(upper)
        lower.set_ylabel('Time')
        lower.set_ylim(bottom=0)
        lower.set_xlabel('Exit setting')
        _setting_ticks(lower, ps)
    return figure


def plot_roc(ps, accs, diffs, baseacc, basediff, output_path=None):
    """Change of accuracy against speed-up, both over the baseline, of every setting.

    The line joins the settings that no other beats in both; its two ends, the most accurate and the
    fastest, are named.

    Args:
        ps: the settings, scalars or lists (percentTestExits or thresholds).
        accs, diffs: accuracy and time of every setting.
        baseacc, basediff: accuracy and time of the baseline, in the units of accs and diffs.
    """
    gains = basediff / np.asarray(diffs)
    changes = 100 * (np.asarray(accs) - baseacc)
    best = _front(gains, changes)
    with _figure(output_path) as figure:
        axes = figure.add_subplot(xlabel='Speed-up over the baseline', ylabel='Change of accuracy (points)')
        axes.plot(gains, changes, 'o', color=SKY, alpha=.6, markeredgewidth=0, label='All settings')
        axes.plot(gains[best], changes[best], 'o-', color=BLUE, label='Best settings')
        axes.plot(1, 0, 'D', color=VERMILION, markersize=7, label='Baseline')
        for k, place in ((best[0], {'xytext': (0, 7)}), (best[-1], {'xytext': (6, 0), 'va': 'center'})):
            axes.annotate('T = ' + _setting(ps[k]), (gains[k], changes[k]), textcoords='offset points', fontsize=8,
                          **place)
        axes.xaxis.set_major_formatter('{x:g}x')
        axes.legend(loc='lower left')  # slow and inaccurate: the emptiest corner
    return figure


def plot_line_tradeoff(accs, diffs, ps, exits, baseacc, basediff, orig_label='Baseline', title=None,
                       our_label='Our Method', xlabel='Runtime (ms)', ylabel='Classification Accuracy',
                       all_samples=False, knee_idx=None, xlim=None, ylim=None, inc_amt=-0.0005, output_path=None):
    """The trade-off curve of a BranchyNet beside its baseline (figure 3 of the paper).

    The curve runs through the settings that utils.get_inc_points keeps.

    Args:
        accs, diffs, ps, exits: accuracy, time, thresholds and number per exit of every setting, as
            utils.screen_branchy returns them; times in the unit that xlabel names.
        baseacc, basediff: accuracy and time of the baseline, in the units of accs and diffs.
        all_samples: draws every setting too.
        knee_idx: which of the kept settings (by rising time, from 0) is marked as the knee.
        xlim, ylim: limits of the axes; those of accuracy as fractions.
        inc_amt: by how much the accuracy must exceed the last kept one.

    Raises:
        ValueError: knee_idx is none of the kept settings.
    """
    kept_accs, kept_times, kept_ps, _ = utils.get_inc_points(accs, diffs, ps, exits, inc_amt)
    if knee_idx is not None and not 0 <= knee_idx < len(kept_accs):
        raise ValueError('knee_idx must be one of the %d kept settings, 0 to %d, not %s' % (
            len(kept_accs), len(kept_accs) - 1, knee_idx))
    with _figure(output_path) as figure:
        axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel, title=title)
        if all_samples:
            axes.plot(diffs, accs, 'o', color=SKY, alpha=.5, markersize=3.5, markeredgewidth=0,
                      label=our_label + ', all settings')
        axes.plot(kept_times, kept_accs, 'o-', color=BLUE, label=our_label)
        if knee_idx is not None:
            axes.plot(kept_times[knee_idx], kept_accs[knee_idx], '*', color=ORANGE, markersize=13,
                      markeredgecolor='black', markeredgewidth=.6, label='Knee: T = ' + _setting(kept_ps[knee_idx]))
        axes.plot(basediff, baseacc, 'D', color=VERMILION, markersize=7, label=orig_label)
        _percent(axes.yaxis)
        axes.set(xlim=xlim, ylim=ylim)
        _legend(axes)
    return figure


def plot_layer_entropy(net, x, output_path=None):
    """Share of samples whose entropy at an exit is below a threshold, for every exit and threshold.

    Read upwards from a threshold, a line gives the share that would leave at that exit were it the first.

    Args:
        net: a BranchyNet.
        x: samples (N, ...), on the net's device.
    """
    with _figure(output_path) as figure:
        axes = figure.add_subplot(xlabel='Entropy (nat)', ylabel='Samples below')
        axes.set(xscale='log', xlim=(1e-5, 10), ylim=(0, 1.02))  # a little more than the published thresholds span
        for k, prob in enumerate(net.get_SM(x)):
            entropies = np.sort(to_cpu(functions.entropy(prob)))
            axes.step(entropies, np.arange(1, len(entropies) + 1) / len(entropies), where='post',
                      label='Exit %d' % (k + 1), **_line(k))
        _percent(axes.yaxis)
        _legend(axes)
    return figure


def plot_exits(exits, accs, exits2, accs2, i=0, labels=('Network 1', 'Network 2'), output_path=None):
    """Accuracy against the share of samples that leave at exit i, for two networks.

    Every setting is a point; the line joins the most accurate at each share.

    Args:
        exits, exits2: (settings, exits), number of samples that left at every exit.
        accs, accs2: (settings,), accuracy.
        i: the exit, from 0.
        labels: names of the two.
    """
    with _figure(output_path) as figure:
        axes = figure.add_subplot(xlabel='Samples leaving at exit %d' % (i + 1), ylabel='Accuracy')
        for k, (counts, values, marker) in enumerate(((exits, accs, 'o'), (exits2, accs2, 's'))):
            counts = np.asarray(counts)
            share = counts[:, i] / counts.sum(axis=1)
            axes.plot(share, values, marker, color=COLORS[k], alpha=.4, markeredgewidth=0)
            axes.plot(*_best_at_each(share, values), marker=marker, label=labels[k], **_line(k))
        _percent(axes.yaxis)
        _percent(axes.xaxis)
        _legend(axes)
    return figure


def plot_runtimes(labels, times, xlabel='Runtime (ms)', output_path=None):
    """A bar with its value for the time of every network, the first on top.

    Args:
        labels: their names.
        times: (networks,), in the unit that xlabel names.
    """
    with _figure(output_path) as figure:
        axes = figure.add_subplot(xlabel=xlabel)
        bars = axes.barh(labels, times, height=.6, color=BLUE)
        axes.bar_label(bars, fmt='%.3g', padding=3, fontsize=8)
        axes.invert_yaxis()
        axes.grid(axis='y', visible=False)
        axes.tick_params(axis='y', length=0)
        axes.margins(x=.12)
    return figure


def plot_relative_tradeoff(curves, base_accuracy, knee, published=(), published_base=None, network='Network',
                           output_path=None):
    """Accuracy against the share of the baseline's time, one line per clock (figure 3 of the paper).

    Args:
        curves: {label: (shares of the baseline's time, accuracies)} of every setting; a line joins those that no
            other beats.
        base_accuracy: of the baseline.
        knee: index of the setting that is marked.
        published: (share of its baseline's time, accuracy) points of the paper. published_base: accuracy of its
            baseline.
        network: the baseline's name.
    """
    with _figure(output_path) as figure:
        axes = figure.add_subplot(xlabel="Time, in units of the baseline's", ylabel='Accuracy')
        for k, (label, (times, accuracies)) in enumerate(curves.items()):
            times, accuracies = np.asarray(times), np.asarray(accuracies)
            best = _front(1 / times, accuracies)
            axes.plot(times, accuracies, 'o', color=COLORS[k], alpha=.15, markersize=3, markeredgewidth=0)
            axes.plot(times[best], accuracies[best], marker='o', markersize=3, label='B-%s, %s' % (network, label),
                      **_line(k))
            axes.plot(times[knee], accuracies[knee], '*', color=ORANGE, markersize=12, markeredgecolor='black',
                      markeredgewidth=.6, zorder=3, label='Knee' if k == 0 else None)
        if len(published):
            axes.plot(*np.transpose(sorted(published)), 's--', color=GREY, markersize=4, linewidth=1,
                      label='B-%s, published' % network)
            axes.plot(1, published_base, 'D', color=GREY, markersize=6, label='%s, published' % network)
        axes.plot(1, base_accuracy, 'D', color=BLACK, markersize=6, label=network)
        axes.set_xlim(left=0)
        _percent(axes.yaxis)
        axes.legend(loc='upper center', bbox_to_anchor=(.5, -.16), ncol=2)  # beside the points, wherever they lie
    return figure


def plot_exit1(share, accuracy, entropy, published_accuracy=(), published_entropy=(), output_path=None):
    """Accuracy and the highest entropy that leaves against the share that leaves at exit 1 (figure 4 of the paper).

    Args:
        share, accuracy: shares in [0, 1]; entropy: nats. One each per setting.
        published_accuracy, published_entropy: (share, value) points of the paper.
    """
    with _figure(output_path, columns=2) as figure:
        left = figure.add_subplot(1, 2, 1, xlabel='Samples leaving at exit 1', ylabel='Accuracy')
        right = figure.add_subplot(1, 2, 2, xlabel='Samples leaving at exit 1', ylabel='Highest entropy (nat)')
        for axes, values, points in (left, accuracy, published_accuracy), (right, entropy, published_entropy):
            axes.plot(share, values, color=BLUE, label='Measured')
            if len(points):
                axes.plot(*np.transpose(points), 's--', color=GREY, markersize=4, linewidth=1, label='Published')
            _percent(axes.xaxis)
            _legend(axes)
        _percent(left.yaxis)
    return figure


def plot_comparison(names, accuracies, published, xlabel='', output_path=None):
    """Accuracy of variants of a network: a dot per run, a line through the means where the names are numbers.

    Args:
        names: of the variants.
        accuracies: per variant its runs' accuracies.
        published: {name: accuracy}.
    """
    with _figure(output_path) as figure:
        axes = figure.add_subplot(xlabel=xlabel, ylabel='Accuracy of the final exit')
        places = range(len(names))
        runs = [(place, value) for place, values in zip(places, accuracies) for value in values]
        axes.plot(*np.transpose(runs), 'o', color=BLUE, label='Measured')
        if all(name.isdigit() for name in names):
            axes.plot(places, [np.mean(values) for values in accuracies], '-', color=BLUE)
        known = [(place, published[name]) for place, name in zip(places, names) if name in published]
        if known:
            axes.plot(*np.transpose(known), 's--', color=GREY, markersize=4, linewidth=1, label='Published')
        axes.set_xticks(places, names)
        axes.margins(x=.1)
        _percent(axes.yaxis)
        _legend(axes)
    return figure


def plot_cache_misses(times, rates, base_time, base_rate, published=(), published_base=(), output_path=None):
    """Cache miss rate against runtime (figure 6 of the paper): measured beside published, each on axes of its own.

    Args:
        times, rates: ms and shares of every setting. base_time, base_rate: of the baseline.
        published: (ms, share) points of the paper. published_base: one, of its baseline.
    """
    with _figure(output_path, columns=1 + bool(len(published))) as figure:
        panels = [('Measured', list(zip(times, rates)), (base_time, base_rate))]
        if len(published):
            panels.append(('Published', published, published_base))
        for k, (title, points, base) in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), k + 1, title=title, xlabel='Runtime (ms)',
                                      ylabel='Cache miss rate')
            axes.plot(*np.transpose(sorted(points)), 'o-', color=BLUE, label='With exits')
            axes.plot(*base, 'D', color=BLACK, markersize=6, label='Baseline')
            axes.set(xlim=(0, None), ylim=(0, None))
            _percent(axes.yaxis)
            _legend(axes)
    return figure


@contextlib.contextmanager
def _figure(path, rows=1, columns=1):
    """An empty figure in this file's style; saved at path at the end, or pyplot's if there is none."""
    import matplotlib
    if path is None:
        matplotlib.get_backend()  # settles it now: within rc_context matplotlib 3.5 would forget it again
    with matplotlib.rc_context(STYLE):
        width, height = STYLE['figure.figsize']
        size = columns * width, (1 + .5 * (rows - 1)) * height
        if path is None:
            with _pyplot_figure(size) as figure:
                yield figure
        else:
            from matplotlib.figure import Figure
            figure = Figure(figsize=size)
            yield figure
            _save(figure, Path(path))


@contextlib.contextmanager
def _pyplot_figure(size):
    from matplotlib import pyplot
    figure = pyplot.figure(figsize=size)
    try:
        yield figure
        figure.canvas.draw()  # what is left to the first drawing (ticks) would miss the style
    except BaseException:
        pyplot.close(figure)
        raise


def _save(figure, path):
    if not path.suffix:
        raise ValueError('the path of a figure must end in its format, as in .pdf or .png, not %s' % path)
    dates = {'.pdf': {'CreationDate': None}, '.svg': {'Date': None}}  # the same bytes for the same figure
    image = io.BytesIO()
    figure.savefig(image, format=path.suffix[1:], metadata=dates.get(path.suffix))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(str(path), image.getvalue())


def _line(k):
    return {'color': COLORS[k % len(COLORS)], 'linestyle': LINES[k % len(LINES)]}


def _epochs(axes, values, labels=None):
    from matplotlib.ticker import MaxNLocator
    values = np.array([np.atleast_1d(value) for value in values])
    if labels is None:
        labels = ['Exit %d' % (k + 1) for k in range(values.shape[1])]
    marker = 'o' if len(values) == 1 else None  # a line needs two
    for k, (line, label) in enumerate(zip(values.T, labels)):
        axes.plot(range(1, len(line) + 1), line, marker=marker, label=label, **_line(k))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _legend(axes):
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend()


def _percent(axis):
    """Shows fractions in percent, with the decimals that the ticks need (PercentFormatter adds one)."""
    from matplotlib.ticker import FuncFormatter

    def label(value, _):
        ticks = 100 * axis.get_majorticklocs()
        decimals = next(d for d in range(9) if d == 8 or np.allclose(ticks.round(d), ticks, rtol=0, atol=1e-8))
        return '%.*f %%' % (decimals, 100 * value)

    axis.set_major_formatter(FuncFormatter(label))


def _setting(p):
    return ', '.join('%g' % value for value in np.atleast_1d(p))


def _setting_ticks(axes, ps):
    """Names the settings under an axis of their indices, as many as there is room for."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator
    axes.xaxis.set_major_locator(MaxNLocator(9, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(
        lambda i, _: _setting(ps[int(i)]) if i in range(len(ps)) else ''))
    axes.tick_params(axis='x', rotation=30)


def _best_at_each(share, accs):
    """The distinct shares, ascending, and the highest accuracy at each."""
    share, group = np.unique(share, return_inverse=True)
    best = np.full(len(share), -np.inf)
    np.maximum.at(best, group, accs)
    return share, best


def _front(gains, changes):
    """Indices, by rising gain, of the settings that no other beats in both."""
    order = np.lexsort((-changes, -gains))
    best = np.maximum.accumulate(changes[order])
    first = np.r_[True, best[1:] > best[:-1]]
    return order[first][::-1]
