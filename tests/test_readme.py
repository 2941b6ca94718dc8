"""The README's table is the one that its command makes of the committed results."""
import os

import branchynet  # noqa: F401
from branchynet.experiments import pipeline, report

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def test_table_is_generated():
    results = pipeline.read_results(os.path.join(ROOT, 'results', 'lenet_mnist_quick', 'results.json'))
    with open(os.path.join(ROOT, 'README.md'), encoding='utf-8') as f:
        page = f.read()
    assert report.between_markers(page, report.for_readme(results)) == page
