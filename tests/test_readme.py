"""Tables in the README and docs are those that their commands make of the committed results."""
import json
import os
import re

import branchynet  # noqa: F401
from benchmarks import determinism
from branchynet.experiments import report, results

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def test_tables_are_generated():
    with open(os.path.join(ROOT, 'README.md'), encoding='utf-8') as f:
        page = f.read()
    folders = re.search('`branchynet report (.*) --update README.md`', page).group(1).split()
    found = [results.read(os.path.join(ROOT, folder)) for folder in folders]
    assert report.between_markers(page, '\n'.join(map(report.for_readme, found))) == page


def test_the_cost_of_determinism_is_generated():
    path = os.path.join(ROOT, 'docs', 'reproducing.md')
    with open(path, encoding='utf-8') as f, open(os.path.join(ROOT, 'results', 'benchmarks', 'determinism.json')) as g:
        page, measured = f.read(), json.load(g)
    assert report.between_markers(page, determinism.table(measured)) == page
