"""results.json: what is refused, and how that is said."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import branchynet  # noqa: F401
from branchynet import cli

import pytest


def edited(folder: str, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edits the content of a folder's results.json, and its one run."""
    path = os.path.join(folder, 'results.json')
    with open(path) as f:
        content = json.load(f)
    edit(content)
    with open(path, 'w') as f:
        json.dump(content, f)


def run_of(content: dict[str, Any]) -> dict[str, Any]:
    return content['experiments']['lenet_mnist'][0]


def as_alexnet(content: dict[str, Any]) -> None:
    content['experiments'] = {'alex_cifar10': content['experiments']['lenet_mnist']}


@pytest.mark.parametrize(
    'edit, words',
    [
        (
            lambda content: content.update(preset='reduced'),
            'experiments.lenet_mnist has preset reduced: expected one of smoke, quick, paper',
        ),
        (lambda content: content.update(variant='paper'), 'has variant code: expected paper, as the results'),
        (
            lambda content: run_of(content)['measurement']['baseline']['whole'].update(mean_ms=float('inf')),
            'has mean_ms inf: expected a finite number above 0',
        ),
        (as_alexnet, 'experiments.alex_cifar10[0] has 2 exits: expected 3'),
        (lambda content: run_of(content).update(part='none'), "has part 'none': expected one of ''"),
        (lambda content: run_of(content).pop('training'), 'experiments.lenet_mnist[0].training is missing'),
        (
            lambda content: content['experiments']['lenet_mnist'].append(run_of(content)),
            "has 2 runs of part '' and seed 0: expected one",
        ),
    ],
)
def test_results_that_cannot_be_are_refused_in_one_line(written, capsys, edit, words):
    edited(written, edit)
    assert cli.main(['report', written]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count('\n') == 1


def test_nesting_without_end_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / 'results.json').write_text('[' * 100000)
    assert cli.main(['report', str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert 'results.json is damaged' in error and error.count('\n') == 1
