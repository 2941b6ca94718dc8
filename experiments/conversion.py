"""Converts a results folder of format 1, which earlier versions wrote, to the format of results.py.

    branchynet results convert DIR

Nothing is measured again. The multiply-adds, which format 1 lacks, are counted from the network's definition.
"""

from __future__ import annotations

from typing import Any

from branchynet import schema
from branchynet.cost import cost
from branchynet.experiments import NETWORKS, get_experiment, outputs, results
from branchynet.experiments.network_experiment import gain_allowed

import numpy as np


def read(folder: str) -> results.Results:
    """Reads a folder's results of any format.

    Args:
        folder: a results folder, which stays as it is.

    Returns:
        The results.

    Raises:
        OSError: results.json is missing, damaged or of an unknown format.
    """
    path = results.path_of(folder)
    content = schema.read_json(path, 'the results of a run')
    if not isinstance(content, dict) or content.get('format') != 1:
        return results.read(folder)
    try:
        return results.from_json(_converted(content))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
        raise OSError(
            f'{path} is damaged, or of a version too old to be converted ({type(e).__name__}: {e}): train again'
        ) from e


def convert(folder: str) -> results.Results | None:
    """Rewrites a folder's results.json in the present format, with every figure of the old one, and its reports.

    Args:
        folder: a results folder.

    Returns:
        The results; None if they already have the present format.

    Raises:
        OSError: results.json is missing, damaged or of an unknown format; or weights are not those of the runs.
    """
    path = results.path_of(folder)
    found = read(folder)
    if schema.read_json(path, 'the results of a run')['format'] == results.FORMAT:
        return None
    for run_id, training in found.trainings().items():
        outputs.kept_weights(run_id, training, folder)
    results.write(folder, found)
    outputs.write(found, folder)
    return found


def _converted(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a results.json of this format, from that of format 1."""
    variant = content.get('variant', 'code')  # not recorded at first
    experiments = {
        name: [_run(name, run, variant) for run in entry['seeds']]
        for name, entry in content['experiments'].items()
        if entry['seeds']
    }
    return {'format': results.FORMAT, 'preset': content['preset'], 'variant': variant, 'experiments': experiments}


def _run(name: str, run: dict[str, Any], variant: str) -> dict[str, Any]:
    variant = run.get('variant', variant)
    common = {key: run[key] for key in ('device', 'environment', 'test_samples')}
    identity = {'seed': run['seed'], **({'part': run['part']} if 'part' in run else {})}
    if name == 'figure6':
        common.update({key: run[key] for key in ('data_sha256', 'tool', 'cache')}, variant=variant)
        return {**identity, 'measurement': common}
    training = {
        key: run[key]
        for key in (
            'device',
            'environment',
            'main_epochs',
            'joint_epochs',
            'batchsize',
            'train_samples',
            'data_sha256',
            'weights_sha256',
        )
    }
    training.update(
        variant=variant,
        main=run['main_training'],
        joint=run['joint_training'],
        main_weights_sha256=run.get('main_weights_sha256'),
    )
    measurement = {**common, 'exit_accuracy_percent': run['exit_accuracy_percent'], 'outputs': run.get('outputs', {})}
    if name in NETWORKS:
        measurement.update(_network(name, run, variant))
    return {**identity, 'training': training, 'measurement': measurement}


def _network(name: str, run: dict[str, Any], variant: str) -> dict[str, Any]:
    """The fields that only the measurement of a network has."""
    experiment = get_experiment(name)
    costs = cost(experiment.get_network(variant=variant), experiment.shape)
    macs = {'main': costs.main.macs, 'exits': [exit.leaving.macs for exit in costs.exits]}
    sweep = [_with_gain_allowed(row, macs) for row in run['sweep']]
    published, knee = run['measured']
    measured = {
        'published': _direct(published, run['baseline'], sweep, macs),
        'knee': _direct(knee, run['baseline'], sweep, macs),
    }
    off = [
        setting.disagreement_percent()
        for setting in (schema.structure(setting, results.DirectSetting) for setting in measured.values())
    ]
    return {
        'compiled': run['compiled'],
        'baseline': run['baseline'],
        'macs': macs,
        'exit1_curve': run['exit1_curve'],
        'sweep': sweep,
        'knee': run['knee'],
        'measured': measured,
        'composed_off_percent': max(off),
    }


def _with_gain_allowed(setting: dict[str, Any], macs: dict[str, Any]) -> dict[str, Any]:
    allowed = gain_allowed(setting['exit_percent'], macs['main'], macs['exits'])
    return {**setting, 'gain_allowed': allowed, 'efficiency': setting['gain_whole'] / allowed}


def _direct(
    setting: dict[str, Any], baseline: dict[str, Any], sweep: list[dict[str, Any]], macs: dict[str, Any]
) -> dict[str, Any]:
    """A setting that was run by itself, with the composed times of the sweep's row that has the same thresholds."""
    setting = {
        **setting,
        **{f'gain_{clock}': baseline[clock]['mean_ms'] / setting[clock]['mean_ms'] for clock in ('released', 'whole')},
    }
    setting = _with_gain_allowed(setting, macs)
    for row in sweep:
        if np.allclose(row['thresholds'], setting['thresholds'], rtol=1e-9, atol=0):
            setting.update(composed_released_ms=row['released_ms'], composed_whole_ms=row['whole_ms'])
    return setting
