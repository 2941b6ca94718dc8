"""A page of headings, texts, tables and figures, as Markdown or as one self-contained HTML file.

The HTML comes from templates/report.html by jinja2, which escapes all text. Both forms are made from the same blocks.
"""

from __future__ import annotations

import base64
import functools
import os
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Union

from branchynet.experiments.claims import FAIL, NOT_RUN, PASS
from branchynet.files import write_atomically

WIDE = 2  # a figure is wide if its width is more than this many times its height


class Heading(NamedTuple):
    """A heading.

    Attributes:
        level: 1 for the page's title, 2, ...
        text: of the heading.
    """

    level: int
    text: str

    def markdown(self) -> str:
        """The heading with its level as number signs."""
        return f'{"#" * self.level} {self.text}'


class Text(NamedTuple):
    """A paragraph. Words between **two stars** are bold."""

    text: str

    def markdown(self) -> str:
        """The text as it is."""
        return self.text


class Lines(NamedTuple):
    """A list of one-line items, in which words between **two stars** are bold."""

    lines: Sequence[str]

    def markdown(self) -> str:
        """One item per line."""
        return '\n'.join(f'- {line}' for line in self.lines)


class Counts(NamedTuple):
    """The number of claims with each verdict, as badges.

    Attributes:
        counts: number of claims by verdict, in the order in which they are shown.
    """

    counts: dict[str, int]

    def markdown(self) -> str:
        """The counts in one line."""
        return ', '.join(f'**{count} {verdict}**' for verdict, count in self.counts.items())


class Facts(NamedTuple):
    """Pairs of a label and a text."""

    pairs: Sequence[tuple[str, str]]

    def markdown(self) -> str:
        """One pair per line."""
        return '\n'.join(f'- **{label}**: {text}' for label, text in self.pairs)


class Table(NamedTuple):
    """A table.

    Attributes:
        head: titles of the columns.
        rows: cells as text. A line break in a cell begins a note to it. A row of a single cell is the title of the rows
            below it. A cell that says PASS, FAIL or NOT RUN is a badge.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Columns of equal width; notes stand in parentheses, empty cells hold a hyphen."""
        rows = [list(self.head)]
        for row in self.rows:
            titled = [f'**{row[0]}**'] + [' '] * (len(self.head) - 1) if len(row) == 1 else row
            rows.append([cell or '-' if i else cell for i, cell in enumerate(titled)])
        rows = [[_one_line(cell) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = [f'| {" | ".join(cell.ljust(width) for cell, width in zip(row, widths))} |' for row in rows]
        return '\n'.join([lines[0], f'|{"|".join("-" * (width + 2) for width in widths)}|', *lines[1:]])


class Figures(NamedTuple):
    """PNG files, side by side where there is room.

    Attributes:
        captions: caption by the file's path.
    """

    captions: dict[str, str]

    def markdown(self) -> str:
        """An image per line, by a path relative to the report."""
        return '\n\n'.join(f'![{caption}](figures/{os.path.basename(path)})' for path, caption in self.captions.items())


class Folded(NamedTuple):
    """Blocks that a click on the title opens. Markdown cannot fold, and shows the title only."""

    title: str
    blocks: Sequence[Block]

    def markdown(self) -> str:
        """The title as an item of a list."""
        return f'- {self.title}'


Block = Union[Heading, Text, Lines, Counts, Facts, Table, Figures, Folded]


def markdown(blocks: Sequence[Block]) -> str:
    """Writes blocks as Markdown.

    Args:
        blocks: of the page.

    Returns:
        The text, which ends with a line break.
    """
    text, before = '', None
    for block in blocks:
        part = block.markdown()
        if part:
            together = isinstance(block, Folded) and isinstance(before, Folded)  # items of one list
            text += ('' if before is None else '\n' if together else '\n\n') + part
            before = block
    return text + '\n'


def html(title: str, blocks: Sequence[Block]) -> str:
    """Writes blocks as a whole HTML page that contains its style and its figures.

    Args:
        title: of the browser's window.
        blocks: of the page.

    Returns:
        The page.

    Raises:
        OSError: a figure's file is missing.
    """
    return _environment().get_template('report.html').render(title=title, blocks=blocks)


@functools.lru_cache(None)
def _environment() -> Any:
    import jinja2  # only a report needs it

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('branchynet.experiments', 'templates'),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(bold=_bold, image=_image, is_wide=_is_wide)
    environment.tests.update(block=lambda block, name: type(block).__name__ == name)
    environment.globals.update(badges={PASS: 'pass', FAIL: 'fail', NOT_RUN: 'not-run'})
    return environment


def _bold(text: str) -> Any:
    """Text with **stars** and `backticks` as safe HTML, all else escaped."""
    from markupsafe import Markup, escape

    html = re.sub(r'\*\*(.+?)\*\*', r'<strong>\1</strong>', str(escape(text)))
    return Markup(re.sub('`(.+?)`', r'<code>\1</code>', html))


def _image(path: str) -> str:
    """A file's content in base 64."""
    with open(path, 'rb') as f:
        return base64.b64encode(f.read()).decode()


def _is_wide(path: str) -> bool:
    """Whether a PNG file holds a wide image. PNG has width and height in bytes 16 to 23."""
    with open(path, 'rb') as f:
        width, height = struct.unpack('>II', f.read(24)[16:])
    return width > WIDE * height


def _one_line(cell: str) -> str:
    text, *notes = cell.replace('|', '\\|').split('\n')
    return ' '.join([text, *(f'({note})' for note in notes)])


def cell(value: str | float | Sequence[float], digits: int) -> str:
    """A cell of a CSV file or a table of text: numbers of a list are separated by blanks, as in the published tables.

    Args:
        value: a text, a number or several.
        digits: significant ones of a number.
    """
    if isinstance(value, str):
        return value
    return ' '.join(f'{number:.{digits}g}' for number in (value if isinstance(value, Sequence) else [value]))


def update(path: str, change: Callable[[str], str]) -> None:
    """Changes the text of a Markdown file.

    Args:
        path: of the file.
        change: takes the text; returns the new one, or raises ValueError.

    Raises:
        OSError: the file cannot be read or written.
        ValueError: the file is no UTF-8, or that of ``change``; the message names the file.
    """
    try:
        with open(path, encoding='utf-8') as f:
            text = change(f.read())
    except ValueError as e:
        raise ValueError(f'{path}: {e}') from e
    write_atomically(path, text.encode())


def between_markers(text: str, part: str, name: str = 'results') -> str:
    """Replaces the text between two markers of a Markdown page.

    Args:
        text: of the page.
        part: the new text between the markers.
        name: of the markers.

    Returns:
        The new text of the page.

    Raises:
        ValueError: the page does not have both markers, in order.
    """
    first, last = markers(name)
    head, begin, rest = text.partition(first)
    _, end, tail = rest.partition(last)
    if not (begin and end):
        raise ValueError(f'expected the lines {first} and {last}')
    return f'{head}{begin}\n{part}{end}{tail}'


def markers(name: str) -> tuple[str, str]:
    """Returns the lines before and after a generated part of a Markdown page."""
    return f'<!-- {name}: begin -->', f'<!-- {name}: end -->'
