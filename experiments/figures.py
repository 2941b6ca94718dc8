"""Figures of the exits' answers for every test image, computed again from a run's weights and data.

results.json keeps no probabilities of single images. One pass over the test images gives them: the images that leave at
each exit, the confusion matrices, and the reliability diagrams.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from branchynet import cpu, visualize
from branchynet.exits import answer, leave_at
from branchynet.experiments import results, runs
from branchynet.experiments.run_id import RunId

import numpy as np

if TYPE_CHECKING:
    from branchynet.experiments.network_experiment import NetworkExperiment


class Drawn(NamedTuple):
    """Figures of one experiment.

    Attributes:
        paths: of the PNG files.
        missing: the reason why other figures are missing, in words; '' if none is.
    """

    paths: list[str]
    missing: str = ''


def draw(experiment: NetworkExperiment, run: results.NetworkRun, out: str) -> Drawn:
    """Draws a run's leaving images (at the published thresholds), confusion matrices and reliability diagrams.

    Args:
        experiment: the experiment of the run.
        run: a seed.
        out: the results folder, which may hold the run's weights.

    Returns:
        The figures; none where weights or data are missing or are not those of the run.
    """
    run_id = RunId(experiment.name, run.part, run.seed)
    path = run_id.weights_path(out)
    net = experiment.get_network(variant=run.training.variant)
    try:
        if not os.path.exists(path):
            raise OSError(f'the weights, {os.path.basename(path)}, are not in the folder')
        runs.load_weights(net, path, run.training.weights_sha256)
        _, _, x, t = runs.data_of(experiment, run.training, run.measurement.test_samples)
    except (OSError, ValueError) as e:
        return Drawn([], f'The figures of leaving images, confusion and reliability are missing: {e}.')
    with cpu.fast():
        answers = [answer(logits) for logits in runs.logits_of(net, x)]
    probs, entropies = (np.stack(parts) for parts in zip(*answers))
    exits = leave_at(entropies, experiment.published_thresholds)
    names = experiment.classes
    stem = os.path.join(out, 'figures', str(run_id))
    paths = [f'{stem}_{what}.png' for what in ('leaving', 'confusion', 'reliability')]
    visualize.plot_leaving(x, t, probs, exits, names, output_path=paths[0])
    visualize.plot_confusion(t, probs, names, output_path=paths[1])
    visualize.plot_reliability(t, probs, output_path=paths[2])
    return Drawn(paths)
