"""The experiments of the paper: each module in NAMES holds an EXPERIMENT."""

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
    'reduced': 'trains as published but for 12 epochs of the baseline and 25 joint epochs: fewer than published',
    'paper': 'is the published training',
}
VARIANTS = ['code', 'paper']


def get_experiment(name: str) -> Any:
    """Imports the EXPERIMENT of a module.

    Args:
        name: one of NAMES.
    """
    return importlib.import_module(f'branchynet.experiments.{name}').EXPERIMENT
