"""`branchynet results compare`."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import branchynet  # noqa: F401
from branchynet import cli
from branchynet.datasets import pcifar10
from branchynet.experiments import results
from branchynet.experiments.results import Results

import pytest

COMMITTED = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..', 'results')


def compare(*folders: object, update: Path | None = None) -> int:
    options = [] if update is None else ['--update', str(update)]
    return cli.main(['results', 'compare', *map(str, folders), *options])


def cells(text: str) -> dict[str, list[str]]:
    """The cells after the first of every row of a table, by the first."""
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines() if line.startswith('| ')]
    return {first: rest for first, *rest in rows}


@pytest.fixture
def folders(example: Results, tmp_path: Path) -> list[Path]:
    """Two folders with LeNet, which differ in everything that the table shows."""
    other = copy.deepcopy(example)
    (run,) = other.experiments['lenet_mnist']
    run.seed = 5
    run.training.data_sha256 = pcifar10.ARRAYS_SHA256['zca']
    run.training.joint_epochs = 2
    for name in 'loss', 'accuracy', 'weights_sha256':
        del getattr(run.training.joint, name)[2:]
    run.measurement.baseline.accuracy_as_released_percent = 99.5
    run.measurement.measured.published.exit_percent = [42.0, 58.0]
    run.measurement.exit_accuracy_percent = [91.0, 92.0]
    paths = [tmp_path / 'one', tmp_path / 'other']
    for path, content in zip(paths, (example, other)):
        path.mkdir()
        results.write(str(path), content)
    return paths


def test_every_figure_stands_in_its_folders_column(folders, capsys):
    assert compare(*folders) == 0
    found = cells(capsys.readouterr().out)
    assert found['LeNet'] == ['Published', *map(str, folders)]
    assert found['Training images'] == ['-', '60000 (SHA-256 abcdef012345...)', '60000 (recipe zca)']
    assert found['Seeds'] == ['-', '0', '5']
    assert found['Epochs'][1].startswith('12 + 35 epochs') and found['Epochs'][2].startswith('12 + 2 epochs')
    published, one, other = found['LeNet accuracy (%), as released']
    assert (published, one[:5], other[:5]) == ('99.20', '97.25', '99.50')
    assert [cell.split()[0] for cell in found['B-LeNet: leaving at exit 1 (%)']] == ['94.3', '90.00', '42.00']
    assert [cell.split()[0] for cell in found['Accuracy of exit 2 by itself (%)']] == ['-', '99.00', '92.00']


def test_published_numbers_are_those_of_each_folders_device(folders, capsys):
    on_gpu = results.read(str(folders[1]))
    on_gpu.experiments['lenet_mnist'][0].measurement.device = '@cupy:0'
    results.write(str(folders[1]), on_gpu)
    assert compare(*folders) == 0
    found = cells(capsys.readouterr().out)
    assert found['Measured on'] == ['-', 'CPU', 'GPU']
    assert found['B-LeNet: gain, released clock'][0] == '5.4 or 4.7'


def test_folders_of_the_same_network_are_compared_and_others_left_out(folders, capsys):
    assert compare(folders[0], os.path.join(COMMITTED, 'alex_cifar10_quick'), folders[1]) == 0
    text = capsys.readouterr().out
    assert 'alex_cifar10_quick' not in text and str(folders[1]) in text


def test_the_committed_verdicts_are_those_of_their_reports(capsys):
    """The counts of claims that hold, from the folder's own report."""
    folder = os.path.join(COMMITTED, 'alex_cifar10_paper')
    assert compare(folder, os.path.join(COMMITTED, 'alex_cifar10_quick')) == 0
    text = capsys.readouterr().out
    found = cells(text)
    with open(os.path.join(folder, 'report.md'), encoding='utf-8') as f:
        report = cells(f.read())
    for what in 'AlexNet accuracy (%), alone', 'B-AlexNet: gain, whole clock':
        in_report = next(rest for first, rest in report.items() if first.startswith(what))
        assert found[what][:2] == [in_report[0], f'{in_report[1]} ({in_report[2].split(" ")[0]})']
    # A quick run checks no claim of Table I, and neither folder one of figure 3, which needs a GPU.
    assert found['Claims that hold: Table I'][2] == '-'
    assert 'figure 3' not in text and 'nan' not in text


def test_tables_go_between_the_markers_of_a_page(folders, tmp_path, capsys):
    page = tmp_path / 'page.md'
    page.write_text('before\n<!-- side by side: begin -->\na table of before\n<!-- side by side: end -->\nafter\n')
    assert compare(*folders, update=page) == 0
    text = page.read_text()
    assert text.startswith('before\n') and text.endswith('\nafter\n') and 'a table of before' not in text
    assert compare(*folders) == 0
    assert capsys.readouterr().out in text


@pytest.mark.parametrize('update', [False, True])
def test_a_refusal_is_one_line_and_leaves_the_page_as_it_is(update, folders, tmp_path, capsys):
    page = tmp_path / 'page.md'
    page.write_text('no markers\n')
    if update:
        assert compare(*folders, update=page) == 2
    else:
        assert compare(folders[0], f'{folders[0]}/') == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and ('page.md: expected the lines' if update else 'a folder is given twice') in error
    assert page.read_text() == 'no markers\n'


def test_one_folder_is_nothing_to_compare(folders, capsys):
    assert compare(folders[0]) == 2
    assert 'one folder is given' in capsys.readouterr().err
    assert compare(*folders, f'{folders[0]}/.') == 2
    assert 'a folder is given twice among' in capsys.readouterr().err


@pytest.mark.parametrize('option', ['--out', '--update'])
def test_an_option_of_another_action_is_refused(option, folders, capsys):
    action = {'--out': 'compare', '--update': 'convert'}[option]
    assert cli.main(['results', action, str(folders[0]), option, 'there']) == 2
    assert f'{option} goes with' in capsys.readouterr().err
