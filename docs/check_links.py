"""Checks that every link within the built site leads somewhere.

    python docs/check_links.py docs/_build/html

Prints the links that do not, and ends with status 1 if there are any. docs/build.sh calls it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links and the ids of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collects what a tag refers to, and its id."""
        for name, value in attrs:
            if value and name in ('href', 'src'):
                self.links.append(value)
            if value and name == 'id':
                self.ids.add(value)


def dead_links(site: Path) -> Iterator[str]:
    """Yields 'page: link' for every link within a site that leads nowhere."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob('*.html'))}
    for path, page in pages.items():
        for link in page.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            has_place = not url.fragment or target not in pages or unquote(url.fragment) in pages[target].ids
            if not target.exists() or not has_place:
                yield f'{path.relative_to(site.resolve())}: {link}'


if __name__ == '__main__':
    dead = list(dead_links(Path(sys.argv[1])))
    print(*dead, sep='\n', end='\n' * bool(dead))
    sys.exit(bool(dead))
