"""Figures of what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from branchynet.benchmarks.measuring import Row, grouped, spread

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot as plt

Groups = dict[tuple, dict[str, list[float]]]  # values of every contender

LABELS = {
    'branchynet': 'BranchyNet, cpu.fast',
    'chainer': 'stock Chainer',
    'pytorch': 'PyTorch eager',
    'torch.compile': 'PyTorch, torch.compile',
    'onnxruntime': 'ONNX Runtime',
    'settings': 'each setting by itself',
    'limit': 'FLOP / sgemm peak',
}
COLOURS = {
    'branchynet': 'C3',
    'chainer': 'C7',
    'pytorch': 'C0',
    'torch.compile': 'C9',
    'onnxruntime': 'C2',
    'settings': 'C1',
    'limit': 'k',
}


def bars(rows: Sequence[Row], path: str) -> None:
    """A panel per task: all contenders at every network and batch, at the most threads."""
    threads = max(row.threads for row in rows)
    groups = grouped(row for row in rows if row.threads == threads)
    tasks = list(dict.fromkeys(task for _, task, _, _ in groups))
    figure, axes = plt.subplots(1, len(tasks), figsize=(1 + 4 * len(tasks), 4), squeeze=False)
    for task, ax in zip(tasks, axes[0]):
        _bars(ax, {key: values for key, values in groups.items() if key[1] == task})
        ax.set(title=f'{task}, {threads} threads', yscale='log', ylabel=_unit(task))
    _save(figure, path)


def _bars(ax: Any, groups: Groups) -> None:
    names = list(dict.fromkeys(name for values in groups.values() for name in values))
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        places = [g + i * width for g, values in enumerate(groups.values()) if name in values]
        middle, least, greatest = zip(*(spread(values[name]) for values in groups.values() if name in values))
        errors = [[m - v for m, v in zip(middle, least)], [v - m for m, v in zip(middle, greatest)]]
        ax.bar(places, middle, width, yerr=errors, label=LABELS[name], color=COLOURS[name])
    ax.set_xticks([g + 0.4 - width / 2 for g in range(len(groups))])
    ax.set_xticklabels([f'{network}\n{batch}' for network, _, batch, _ in groups], fontsize='small')


def scaling(rows: Iterable[Row], path: str) -> None:
    """A row per task whose batch varies, a panel per network: value against batch; one thread is dashed."""
    groups = grouped(row for row in rows if row.task not in ('inference', 'sweep'))
    tasks, networks = (list(dict.fromkeys(key[i] for key in groups)) for i in (1, 0))
    figure, axes = plt.subplots(
        len(tasks), len(networks), figsize=(1 + 4 * len(networks), 3.5 * len(tasks)), squeeze=False
    )
    for task, line in zip(tasks, axes):
        for network, ax in zip(networks, line):
            _lines(ax, {key[2:]: values for key, values in groups.items() if key[:2] == (network, task)})
            ax.set(title=f'{network}, {task}', xscale='log', yscale='log', xlabel='batch', ylabel=_unit(task))
    _save(figure, path)


def _lines(ax: Any, groups: Groups) -> None:
    """groups: {(batch, threads): {contender: values}}."""
    for name, threads in dict.fromkeys((name, key[1]) for key, values in groups.items() for name in values):
        points = sorted(
            (batch, *spread(values[name])) for (batch, n), values in groups.items() if n == threads and name in values
        )
        batches, middle, least, greatest = zip(*points)
        ax.plot(
            batches,
            middle,
            '--' if threads == 1 else '-',
            marker='.',
            color=COLOURS[name],
            label=f'{LABELS[name]}, {threads} threads',
        )
        ax.fill_between(batches, least, greatest, color=COLOURS[name], alpha=0.2)


def _unit(task: str) -> str:
    return 'MB' if task == 'memory' else 'seconds per batch'


def _save(figure: Any, path: str) -> None:
    handles: dict[str, Any] = {}
    for ax in figure.axes:
        for handle, label in zip(*ax.get_legend_handles_labels()):
            handles.setdefault(label, handle)
    columns = max(1, int(figure.get_figwidth() // 2.2))
    height = 0.25 * (1 + -(-len(handles) // columns)) / figure.get_figheight()
    figure.legend(handles.values(), handles.keys(), loc='lower center', ncol=columns, fontsize='small')
    figure.tight_layout(rect=(0, height, 1, 1))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def shapes(
    runs: Mapping[str, Mapping[tuple[str, str], float]],
    panels: Mapping[str, Sequence[str]],
    tasks: Sequence[str],
    limit: float,
    path: str,
) -> None:
    """A panel per family of layers: the ratio of this project's duration to stock Chainer's for every layer.

    Args:
        runs: {name: {(layer, task): ratio}}, a colour for each.
        panels: {title: names of its layers}.
        tasks: a marker for each.
        limit: the ratio at which a line is drawn.
        path: file to write.
    """
    found = {layer for ratios in runs.values() for layer, _ in ratios}
    panels = {title: [layer for layer in layers if layer in found] for title, layers in panels.items()}
    panels = {title: layers for title, layers in panels.items() if layers}
    figure, axes = plt.subplots(
        -(-len(panels) // 2),
        2,
        squeeze=False,
        sharex=True,
        figsize=(15, 0.6 + sum(0.9 + 0.21 * max(map(len, pair)) for pair in _pairs(list(panels.values())))),
        gridspec_kw={'height_ratios': [3 + max(map(len, pair)) for pair in _pairs(list(panels.values()))]},
    )
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for ax, (title, layers) in zip(axes.flat, panels.items()):
        for i, (name, ratios) in enumerate(runs.items()):
            for task, marker in zip(tasks, 'o<^'):
                points = [(ratios[layer, task], place) for place, layer in enumerate(layers) if (layer, task) in ratios]
                if points:
                    ax.plot(*zip(*points), marker, color=f'C{i}', ms=5, alpha=0.8, label=f'{name}: {task}')
        ax.axvline(1, color='k', lw=0.8)
        ax.axvline(limit, color='C3', ls='--', lw=1, label=f'{limit}')
        ax.set(title=title, xscale='log', yticks=range(len(layers)), ylim=(len(layers) - 0.5, -0.5))
        ax.set_yticklabels(layers, fontsize='small')
        ax.grid(axis='y', lw=0.3)
        ax.tick_params(labelbottom=True)
    for ax in axes[-1]:
        ax.set_xlabel("this project's duration / stock Chainer's")
    _save(figure, path)


def _pairs(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[i : i + 2] for i in range(0, len(items), 2)]
