"""Links in README and docs lead somewhere, and the site builds without a warning."""

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', ROOT / 'CHANGELOG.md', *sorted((ROOT / 'docs').glob('*.md'))]


def anchors(page):
    """The names that GitHub gives to the headings of a page."""
    text = re.sub(r'^```.*?^```', '', page.read_text(encoding='utf-8'), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r'^#+ (.*)', text, re.MULTILINE):
        yield re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_of_the_repository(page):
    for link in re.findall(r'\]\(([^)\s]*)\)', page.read_text(encoding='utf-8')):
        url = urlsplit(link)
        if url.scheme:
            continue
        target = page.parent / url.path if url.path else page
        assert target.exists(), link
        assert not url.fragment or url.fragment in anchors(target), link


@pytest.mark.slow  # about 15 s; .ci/run builds the site too
def test_the_site(tmp_path):
    """It builds without a warning, its examples run, and every link within it leads somewhere."""
    done = subprocess.run([ROOT / 'docs' / 'build.sh', tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / 'html' / 'api' / 'branchynet.net.html').exists()


RUN = [sys.executable, ROOT / 'docs' / 'run.py']
PAGE = """# A page

```python
x = 1
print('x is', x)
```

Text.

```python
y = x + 1
```

```python
print(y)
```

```text
an old output
```

The end.
"""


def test_the_blocks_of_a_page_are_one_program(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text(PAGE)
    done = subprocess.run([*RUN, page], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, 'x is 1\n2\n') and page.read_text() == PAGE
    subprocess.run([*RUN, page, '--update'], check=True)
    updated = page.read_text()
    assert (
        "print('x is', x)\n```\n\n```text\nx is 1\n```\n\nText.\n\n```python\ny = x + 1\n```\n\n```python\n" in updated
    )
    assert updated.endswith('print(y)\n```\n\n```text\n2\n```\n\nThe end.\n')
    subprocess.run([*RUN, page, '--update'], check=True)
    assert page.read_text() == updated


def test_a_block_that_fails_is_named(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text('One line.\n\n```python\n1 / 0\n```\n')
    done = subprocess.run([*RUN, page, '--update'], capture_output=True, text=True)
    assert done.returncode == 1 and f'"{page}", line 4' in done.stderr and 'ZeroDivisionError' in done.stderr


@pytest.mark.slow  # about a minute; .ci/run runs the tutorial too
@pytest.mark.parametrize('page', ['tutorial.md', 'chains.md'])
def test_a_page_runs(page):
    done = subprocess.run([*RUN, ROOT / 'docs' / page], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
