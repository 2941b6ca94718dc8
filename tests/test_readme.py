"""The README's tables are those that its command makes of the committed results."""
import os
import re

import branchynet  # noqa: F401
from branchynet.experiments import pipeline, report

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def test_tables_are_generated():
    with open(os.path.join(ROOT, 'README.md'), encoding='utf-8') as f:
        page = f.read()
    folders = re.search('`branchynet report (.*) --update README.md`', page).group(1).split()
    results = [pipeline.read_results(os.path.join(ROOT, folder, 'results.json')) for folder in folders]
    assert report.between_markers(page, '\n'.join(map(report.for_readme, results))) == page
