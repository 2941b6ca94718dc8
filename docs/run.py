"""Runs the Python code of a Markdown page, block by block, as one program.

    python docs/run.py docs/tutorial.md             # prints what the blocks print; status 1 if one fails
    python docs/run.py docs/tutorial.md --update    # also writes it into the page, after each block

The program runs in a folder of its own. Pictures (*.png) that it leaves there go to docs/images with --update.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

# A block of code and, after it, what it printed.
BLOCK = re.compile(r'^```python\n(?P<code>.*?)^```\n(?:\n```text\n.*?^```\n)?', re.MULTILINE | re.DOTALL)


def run(page: str, name: str) -> Iterator[tuple[re.Match[str], str]]:
    """Runs the blocks of a page in the current folder.

    Args:
        page: Its text.
        name: Its path, for tracebacks.

    Yields:
        Each block, and what it printed.
    """
    names: dict[str, object] = {'__name__': '__main__'}
    for block in BLOCK.finditer(page):
        lines_before = page.count('\n', 0, block.start('code'))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile('\n' * lines_before + block['code'], name, 'exec'), names)
        yield block, printed.getvalue()


def with_output(page: str, printed: list[tuple[re.Match[str], str]]) -> str:
    """The page, with what each block printed after it."""
    parts, place = [], 0
    for block, output in printed:
        shown = f'\n```text\n{output}```\n' if output else ''
        parts += [page[place : block.start()], f'```python\n{block["code"]}```\n{shown}']
        place = block.end()
    return ''.join([*parts, page[place:]])


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('page')
    parser.add_argument('--update', action='store_true')
    args = parser.parse_args()
    path = Path(args.page).resolve()
    page, printed = path.read_text(encoding='utf-8'), []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for block, output in run(page, str(path)):
                print(output, end='', flush=True)
                printed.append((block, output))
        except Exception:
            traceback.print_exc()
            return 1
        finally:
            os.chdir(path.parent)
        if args.update:
            path.write_text(with_output(page, printed), encoding='utf-8')
            for picture in Path(folder).glob('*.png'):
                shutil.copy(picture, path.parent / 'images')
    return 0


if __name__ == '__main__':
    sys.exit(main())
