"""Links in README and docs lead somewhere, and the site builds without a warning."""

import re
import subprocess
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
