"""A page of headings, texts, tables and figures, as Markdown or as one HTML file that needs nothing else."""
import base64
from html import escape
import os
import re
import struct
from typing import NamedTuple

STYLE = '''
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; color: #222; background: #fff;
       max-width: 76rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .5rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
p { margin: .6rem 0; max-width: 60rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid #e4e4e4; }
th { border-bottom: 2px solid #999; vertical-align: bottom; }
td { white-space: nowrap; }
td.long { white-space: normal; min-width: 12rem; max-width: 26rem; }
tr.PASS td:first-child { color: #00694d; font-weight: 600; }
tr.FAIL td:first-child { color: #a83b00; font-weight: 600; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1rem 0; }
figure { margin: 0; flex: 1 1 20rem; max-width: 30rem; overflow-x: auto; }
figure.wide { flex: 2 1 34rem; max-width: 44rem; }
figure img { width: 100%; height: auto; }
figure.wide img { min-width: 32rem; }
figcaption { font-size: .8rem; color: #555; }
details { margin: .5rem 0; }
summary { cursor: pointer; }
'''


class Heading(NamedTuple):
    """A heading of level 1, 2, ..."""
    level: int
    text: str

    def markdown(self):
        return '#' * self.level + ' ' + self.text

    def html(self):
        return '<h%d>%s</h%d>' % (self.level, escape(self.text), self.level)


class Text(NamedTuple):
    """A paragraph; **two stars** make bold."""
    text: str

    def markdown(self):
        return self.text

    def html(self):
        return '<p>%s</p>' % re.sub(r'\*\*(.+?)\*\*', r'<strong>\1</strong>', escape(self.text))


class Lines(NamedTuple):
    """A list."""
    lines: list

    def markdown(self):
        return '\n'.join('- ' + line for line in self.lines)

    def html(self):
        return '<ul>%s</ul>' % ''.join('<li>%s</li>' % escape(line) for line in self.lines)


class Table(NamedTuple):
    """Rows of cells, the first of them the header. A row whose first cell is PASS or FAIL shows it."""
    rows: list

    def markdown(self):
        rows = [[cell or '-' if i else cell for cell in map(_no_bar, row)] for i, row in enumerate(self.rows)]
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = ['| ' + ' | '.join(cell.ljust(width) for cell, width in zip(row, widths)) + ' |' for row in rows]
        return '\n'.join([lines[0], '|' + '|'.join('-' * (width + 2) for width in widths) + '|'] + lines[1:])

    def html(self):
        head, *body = self.rows
        text = ['<tr>%s</tr>' % ''.join('<th>%s</th>' % escape(cell) for cell in head)]
        text += ['<tr class="%s">%s</tr>' % (row[0] if row[0] in ('PASS', 'FAIL') else '', ''.join(
            _cell(cell) for cell in row)) for row in body]
        return '<div class="scroll"><table>\n%s\n</table></div>' % '\n'.join(text)


class Figures(NamedTuple):
    """PNG files, by their captions, side by side where there is room."""
    paths: dict

    def markdown(self):
        return '\n'.join('![%s](figures/%s)' % (caption, os.path.basename(path))
                         for caption, path in self.paths.items())

    def html(self):
        return '<div class="figures">\n%s\n</div>' % '\n'.join(
            _figure(caption, path) for caption, path in self.paths.items())


class Folded(NamedTuple):
    """Blocks behind a line that opens them; Markdown, which cannot fold, has the line alone."""
    title: str
    blocks: list

    def markdown(self):
        return '- ' + self.title

    def html(self):
        return '<details><summary>%s</summary>\n%s\n</details>' % (
            escape(self.title), '\n'.join(block.html() for block in self.blocks))


def markdown(blocks):
    """Blocks as Markdown."""
    return '\n\n'.join(filter(None, (block.markdown() for block in blocks))) + '\n'


def html(title, blocks):
    """Blocks as a whole HTML page, figures within."""
    return '''<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>%s</title>
<style>%s</style>
</head>
<body>
%s
</body>
</html>
''' % (escape(title), STYLE, '\n'.join(block.html() for block in blocks))


def _no_bar(text):
    return text.replace('|', '\\|')


def _cell(text):
    return '<td%s>%s</td>' % (' class="long"' if len(text) > 32 else '', escape(text))


def _figure(caption, path):
    with open(path, 'rb') as f:
        image = f.read()
    width, height = struct.unpack('>II', image[16:24])  # as the format of PNG has it
    return '<figure%s><img alt="%s" src="data:image/png;base64,%s"><figcaption>%s</figcaption></figure>' % (
        ' class="wide"' if width > 2 * height else '', escape(caption), base64.b64encode(image).decode(),
        escape(caption))
