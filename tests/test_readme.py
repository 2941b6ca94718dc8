"""Tables in README and docs are made of the committed results by their commands, and the README's snippets run."""

import json
import os
import re
import subprocess
import sys

from branchynet import cli
from branchynet.benchmarks import determinism
from branchynet.experiments import calibration, generated, pages, results, side_by_side

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.mark.parametrize('name', ['README.md', os.path.join('docs', 'reproducing.md')])
def test_tables_are_generated(name):
    with open(os.path.join(ROOT, name), encoding='utf-8') as f:
        page = f.read()
    command = re.search(f'`branchynet report ([^`]*)\\s--update {name}`', page, re.DOTALL)
    found = [results.read(os.path.join(ROOT, folder)) for folder in command.group(1).split()]
    assert generated.updated(page, found) == page


def test_the_comparison_of_recipes_is_generated():
    with open(os.path.join(ROOT, 'docs', 'reproducing.md'), encoding='utf-8') as f:
        page = f.read()
    (folders,) = re.findall('`branchynet results compare ([^`]*) --update docs/reproducing.md`', page)
    table = side_by_side.tables({folder: results.read(os.path.join(ROOT, folder)) for folder in folders.split()})
    assert pages.between_markers(page, table + '\n', side_by_side.MARKERS) == page


def test_the_cost_of_determinism_is_generated():
    path = os.path.join(ROOT, 'docs', 'reproducing.md')
    with open(path, encoding='utf-8') as f, open(os.path.join(ROOT, 'results', 'benchmarks', 'determinism.json')) as g:
        page, measured = f.read(), json.load(g)
    assert pages.between_markers(page, determinism.table(measured)) == page


@pytest.mark.parametrize('name', ['README.md', 'CONTRIBUTING.md'])
def test_the_tests_duration_is_said(name):
    with open(os.path.join(ROOT, name), encoding='utf-8') as f:
        assert re.search(r'tests/run\.sh.*\d+ minutes on \d+ cores', f.read())


@pytest.mark.slow
@pytest.mark.onednn
def test_the_snippets_run(tmp_path):
    """In their order, as one program, from anywhere and without a data folder."""
    with open(os.path.join(ROOT, 'README.md'), encoding='utf-8') as f:
        snippets = re.findall(r'```python\n(.*?)```', f.read(), re.DOTALL)
    assert len(snippets) == 2
    snippets.append(
        'utils.train(net, x[:1280], y[:1280], batchsize=128, num_epoch=1); inference.Compiled(net).test(x, y)'
    )
    environment = {**os.environ, 'BRANCHYNET_DATA': str(tmp_path)}
    done = subprocess.run(
        [sys.executable, '-c', '\n'.join(snippets)], cwd=str(tmp_path), env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[0]) > 0.9


def test_the_table_of_commands_is_the_parsers():
    table = '\n'.join(f'| `{command.name}` | {command.summary} |' for command in cli.COMMANDS)
    with open(os.path.join(ROOT, 'README.md'), encoding='utf-8') as f:
        assert f'\n| Command | What it does |\n|---|---|\n{table}\n\n' in f.read(), table


def test_the_calibrations_are_generated():
    path = os.path.join(ROOT, 'docs', 'calibration.md')
    with open(path, encoding='utf-8') as f:
        page = f.read()
    found = calibration.read(os.path.join(ROOT, 'results', 'calibration'))
    assert pages.between_markers(page, calibration.table(found), 'calibration') == page
