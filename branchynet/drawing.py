"""The common parts of all figures: colours, style, the file that they are saved to, legends and axes in percent."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from branchynet.files import write_atomically

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

PathLike = Union[str, Path]

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9'
COLORS = [BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY]
GREY, BLACK = '#777777', '#000000'
LINES = ['-', '--', '-.', ':', (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1))]  # tell lines apart where print has no colours

STYLE: dict[Any, Any] = {
    'figure.figsize': (4.5, 3.2),
    'figure.dpi': 120,
    'figure.constrained_layout.use': True,
    'savefig.dpi': 300,
    'pdf.fonttype': 42,  # TrueType: journals accept it, and the text can be edited
    'svg.hashsalt': 'branchynet',  # the same figure has the same bytes
    'font.size': 9,
    'axes.titlesize': 10,
    'axes.labelsize': 9,
    'xtick.labelsize': 8,
    'ytick.labelsize': 8,
    'legend.fontsize': 8,
    'legend.frameon': False,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.linewidth': 0.8,
    'axes.axisbelow': True,
    'axes.grid': True,
    'grid.color': '#E4E4E4',
    'grid.linewidth': 0.6,
    'lines.linewidth': 1.6,
    'lines.markersize': 4.5,
}


@contextlib.contextmanager
def new_figure(path: PathLike | None, rows: float = 1, columns: float = 1) -> Iterator[Figure]:
    """Yields an empty figure in STYLE, and saves it.

    Args:
        path: path of the file; its suffix names the format. None: the figure stays pyplot's.
        rows: height, in panels one above the other.
        columns: width, in panels side by side.

    Raises:
        ValueError: the path has no suffix.
    """
    import matplotlib

    if path is not None and not Path(path).suffix:
        raise ValueError(f'the path of a figure must end in its format, as in .pdf or .png, not {path}')
    if path is None:
        matplotlib.get_backend()  # chooses it now: a choice made within rc_context is lost in matplotlib 3.5
    with matplotlib.rc_context(STYLE):
        width, height = STYLE['figure.figsize']
        size = columns * width, (1 + 0.5 * (rows - 1)) * height
        if path is None:
            with _pyplot_figure(size) as figure:
                yield figure
        else:
            from matplotlib.figure import Figure

            figure = Figure(figsize=size)
            yield figure
            _save(figure, Path(path))


@contextlib.contextmanager
def _pyplot_figure(size: tuple[float, float]) -> Iterator[Figure]:
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=size)
    try:
        yield figure
        figure.canvas.draw()  # ticks are made by the first drawing, which has to happen within the style
    except BaseException:
        pyplot.close(figure)
        raise


def _save(figure: Figure, path: Path) -> None:
    dates = {'.pdf': {'CreationDate': None}, '.svg': {'Date': None}}  # the same figure has the same bytes
    image = io.BytesIO()
    figure.savefig(image, format=path.suffix[1:], metadata=dates.get(path.suffix))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(str(path), image.getvalue())


def line_style(k: int) -> dict[str, Any]:
    """Returns matplotlib's arguments for the colour and the dashes of line k, from 0."""
    return {'color': COLORS[k % len(COLORS)], 'linestyle': LINES[k % len(LINES)]}


def add_legend(axes: Axes) -> None:
    """Adds a legend where there are several lines."""
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend()


def show_percent(axis: Axis) -> None:
    """Shows fractions in percent with as many decimals as the ticks need (PercentFormatter adds one too many)."""
    from matplotlib.ticker import FuncFormatter

    def label(value: float, _: int | None) -> str:
        ticks = 100 * axis.get_majorticklocs()
        decimals = next(d for d in range(9) if d == 8 or np.allclose(ticks.round(d), ticks, rtol=0, atol=1e-8))
        return f'{100 * value:.{decimals}f} %'

    axis.set_major_formatter(FuncFormatter(label))
