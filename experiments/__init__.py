"""The experiments of the paper, and what runs, measures and reports them.

Each module in NAMES holds an EXPERIMENT: a NetworkExperiment, a Comparison, or that of figure6, which trains nothing.
All have name, title, parts, presets, get_data, minutes, run and write; those that train, also train and measure.
calibration and baseline are experiments of this project, run by ``python -m``. `branchynet reproduce` is reproduce.py.
run_id.py names the runs and their files; runs.py trains, and measure.py measures again; results.py is the format of
results.json, and outputs.py writes all else. claims.py checks results against claims.toml; report.py and generated.py
put them into pages.
"""

from __future__ import annotations

import importlib
from typing import Any

from branchynet import _names

_names.unify(__name__)

NETWORKS = ['lenet_mnist', 'alex_cifar10', 'resnet_cifar10']
ANALYSES = ['figure5', 'figure6', 'loss_weights', 'initialisation']
NAMES = NETWORKS + ANALYSES
REDUCED = ['resnet_cifar10', 'figure5', 'loss_weights', 'initialisation']  # these have the preset reduced
PRESETS = {  # in order: results of a later preset are checked against the claims of earlier ones too
    'smoke': 'shows that everything runs; it claims no result',
    'quick': 'trains each network for minutes to an hour on a CPU; it checks a bound of our own, no published one',
    'reduced': 'trains as published, with 12 epochs of the baseline and 25 joint epochs, which are fewer',
    'paper': 'is the published training',
}
VARIANTS = ['code', 'paper']


def get_experiment(name: str) -> Any:
    """Imports the EXPERIMENT of a module.

    Args:
        name: one of NAMES.
    """
    return importlib.import_module(f'branchynet.experiments.{name}').EXPERIMENT
