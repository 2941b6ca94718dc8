"""The steps that all experiments share: train, measure, sweep, write."""
import csv
import io
import json
import os
from typing import Callable, NamedTuple, Optional
import time

from branchynet import cpu, determinism, sweep, timing, utils, visualize
from branchynet.inference import Compiled, is_compilable
from branchynet.training import epochs, load_checkpoint, save_checkpoint, write_atomically
import chainer
import numpy as np

FORMAT = 1  # of results.json


class Preset(NamedTuple):
    """How much is trained, and on how much (None: on all samples)."""
    main_epochs: int
    joint_epochs: int
    batchsize: int
    train_samples: Optional[int] = None
    test_samples: Optional[int] = None


class Claim(NamedTuple):
    """What a result must reach: ``measure(result)``, averaged over the seeds, is at least ``at_least``."""
    text: str
    measure: Callable
    at_least: float
    presets: tuple


class Experiment(NamedTuple):
    """A network, its data, the settings swept, and what is expected of them."""
    name: str
    network: str
    get_network: Callable
    get_data: Callable
    base_thresholds: list
    published_thresholds: list
    presets: dict
    claims: list


def load_data(experiment, preset):
    """(x_train, y_train, x_test, y_test), cut to the preset's numbers of samples."""
    x_train, y_train, x_test, y_test = experiment.get_data()
    train, test = slice(preset.train_samples), slice(preset.test_samples)
    return x_train[train], y_train[train], x_test[test], y_test[test]


def expected_minutes(experiment, preset, data, device):
    """Minutes that a run will take, from a few timed steps of a network that is thrown away."""
    x, y, x_test, _ = data
    net = experiment.get_network()
    net.to_device(device)
    first = slice(preset.batchsize)

    def seconds(step, *arrays):
        step(*arrays)
        start = timing.now(net)
        step(*arrays)
        return timing.now(net) - start

    steps = len(x) / preset.batchsize
    with cpu.fast():
        training = steps * (preset.main_epochs * seconds(net.train_main, x[first], y[first])
                            + preset.joint_epochs * seconds(net.train, x[first], y[first]))
    # The baseline, the sweep's pass and the chosen settings, image by image.
    testing = 4 * len(x_test) * seconds(_for_inference(net).look, x_test[:1])
    return (training + testing) / 60


def run(experiment, preset, seed, data, device, out, resume):
    """Trains one seed and measures it.

    Args:
        data: what load_data returns.
        out: folder of the checkpoint and the weights.
        resume: go on from the folder's checkpoint, where there is one.

    Returns:
        JSON-ready dict: the result of the seed, units in its keys. The checkpoint stays, for
        ``finish`` to remove once the result is safe.
    """
    determinism.seed(seed)
    net = experiment.get_network()
    net.to_device(device)
    checkpoint = checkpoint_path(experiment, seed, out)
    result = {'seed': seed, **preset._asdict(), 'train_samples': len(data[0]), 'test_samples': len(data[2]),
              'device': str(device), 'data_sha256': determinism.sha256_of_arrays(data)}
    if resume and os.path.exists(checkpoint):
        result = _resumed(result, load_checkpoint(checkpoint, net), checkpoint)
    result['environment'] = determinism.environment()
    with cpu.fast():
        _train(net, preset, data, result, checkpoint)
        _measure(experiment, net, data, result)
    result['weights_sha256'] = _save_weights(net, weights_path(experiment, seed, out))
    return result


def checkpoint_path(experiment, seed, out):
    """Where a seed's checkpoint is while it runs."""
    return os.path.join(out, 'checkpoint_%s_seed%d.npz' % (experiment.name, seed))


def weights_path(experiment, seed, out):
    """Where a seed's weights are."""
    return os.path.join(out, 'weights_%s_seed%d.npz' % (experiment.name, seed))


def _resumed(result, saved, checkpoint):
    different = [key for key in result if saved.get(key) != result[key]]
    if different:
        raise ValueError('%s has %s %s: expected %s; leave out --resume to start anew' % (
            checkpoint, different[0], saved.get(different[0]), result[different[0]]))
    return saved


def _train(net, preset, data, result, checkpoint):
    """Both trainings, with the baseline measured between them."""
    x, y, x_test, y_test = data

    def train(phase, num_epoch):
        history = result.setdefault(phase, {'loss': [], 'accuracy': [], 'seconds': 0.})
        start = time.perf_counter()
        for losses, accuracies in epochs(net, x, y, preset.batchsize, num_epoch, main=phase == 'main_training',
                                         start=len(history['loss'])):
            history['loss'].append(losses.tolist())
            history['accuracy'].append(accuracies.tolist())
            history['seconds'] += time.perf_counter() - start
            start = time.perf_counter()
            save_checkpoint(checkpoint, net, result)

    train('main_training', preset.main_epochs)
    if 'baseline' not in result:
        # Before joint training moves the trunk under main's head: the independent network of the paper.
        result['baseline'] = _measured(timing.measure(_for_inference(net), x_test, y_test, main=True))
        save_checkpoint(checkpoint, net, result)
    train('joint_training', preset.joint_epochs)


def _for_inference(net):
    """The net as it is measured: compiled, where it can be."""
    return Compiled(net) if is_compilable(net) else net


def _measure(experiment, net, data, result):
    """The sweep, and the published setting and the knee run by themselves."""
    _, _, x, t = data
    baseline = result['baseline']
    baseline['accuracy_as_released_percent'] = utils.test(net, x, t, batchsize=1000, main=True)[0] * 100
    net = _for_inference(net)
    result['compiled'] = isinstance(net, Compiled)
    profile = sweep.profile(net, x, t)
    settings = utils.generate_thresholds(experiment.base_thresholds, net.numexits())
    swept = sweep.sweep(profile, settings)
    result['sweep'] = _rows(swept, sweep.percentiles(profile, settings), baseline)
    result['knee'] = sweep.knee(swept.accuracy * 100, swept.whole, baseline['accuracy_percent'])
    result['measured'] = [_directly(net, setting, x, t) for setting in (
        experiment.published_thresholds, result['sweep'][result['knee']]['thresholds'])]


def _save_weights(net, path):
    """Writes the weights and returns the file's SHA-256."""
    buffer = io.BytesIO()
    chainer.serializers.save_npz(buffer, net)
    write_atomically(path, buffer.getvalue())
    return determinism.sha256(path)


def _measured(measurement):
    """A Measurement for results.json."""
    return {
        'accuracy_percent': measurement.accuracy * 100,
        'released': timing.summary(measurement.released),
        'whole': timing.summary(measurement.whole),
    }


def _directly(net, setting, x, t):
    """Runs one setting sample by sample, where the sweep composes its times."""
    net.thresholdExits = setting
    measurement = timing.measure(net, x, t)
    net.thresholdExits = None
    return {'thresholds': setting, 'exit_percent': _percent(measurement.exits), **_measured(measurement)}


def _rows(swept, percentiles, baseline):
    """A Sweep and its percentiles for results.json and the CSV: a dict per setting."""
    return [{
        'thresholds': thresholds.tolist(),
        'accuracy_percent': float(accuracy * 100),
        'exit_percent': _percent(exits),
        'released_ms': float(released * 1e3),
        'whole_ms': float(whole * 1e3),
        'whole_median_ms': float(p50 * 1e3),
        'whole_p95_ms': float(p95 * 1e3),
        'gain_released': float(baseline['released']['mean_ms'] / released / 1e3),
        'gain_whole': float(baseline['whole']['mean_ms'] / whole / 1e3),
    } for thresholds, accuracy, exits, released, whole, p50, p95 in zip(*swept, *percentiles)]


def _percent(exits):
    return (np.asarray(exits) / np.sum(exits) * 100).tolist()


def check_claims(experiment, preset_name, results):
    """What the experiment claims of this preset, against the mean over the seeds' results."""
    claims = []
    for claim in experiment.claims:
        if preset_name in claim.presets:
            measured = float(np.mean([claim.measure(result) for result in results]))
            claims.append({'claim': claim.text, 'at_least': claim.at_least, 'measured': measured,
                           'holds': measured >= claim.at_least})
    return claims


def write(experiment, results, out):
    """Writes the sweep's CSV and the figures of all seeds' results; returns the paths."""
    path = os.path.join(out, 'sweep_%s.csv' % experiment.name)
    write_sweep(path, results)
    return [path] + [figure for result in results for figure in draw(experiment, result, os.path.join(out, 'figures'))]


def write_sweep(path, results):
    """The sweeps of all seeds as CSV; lists are separated by blanks, as in the published tables."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['seed', *results[0]['sweep'][0]])
    for result in results:
        for row in result['sweep']:
            writer.writerow([result['seed'], *(
                ' '.join('%.6g' % v for v in value) if isinstance(value, list) else '%.6g' % value
                for value in row.values())])
    write_atomically(path, text.getvalue().encode())


def draw(experiment, result, folder):
    """Loss and accuracy of both trainings, and the trade-off, as PNG and PDF; returns the paths."""
    rows = result['sweep']
    points = [[row['accuracy_percent'] / 100 for row in rows], [row['whole_ms'] for row in rows],
              [row['thresholds'] for row in rows], [row['exit_percent'] for row in rows]]
    baseline = result['baseline']
    _, _, kept, _ = utils.get_inc_points(*points)
    paths = []

    def path(what, suffix):
        paths.append(os.path.join(folder, '%s_seed%d_%s.%s' % (experiment.name, result['seed'], what, suffix)))
        return paths[-1]

    for suffix in 'png', 'pdf':
        for phase in 'main', 'joint':
            history = result[phase + '_training']
            visualize.plot_curves(history['loss'], history['accuracy'], output_path=path(phase, suffix))
        visualize.plot_line_tradeoff(
            *points, baseline['accuracy_percent'] / 100, baseline['whole']['mean_ms'],
            orig_label=experiment.network, our_label='B-' + experiment.network, all_samples=True,
            knee_idx=kept.index(rows[result['knee']]['thresholds']), output_path=path('tradeoff', suffix))
    return paths


def read_results(path):
    """A results.json.

    Raises:
        OSError: missing, damaged, or of another format.
    """
    try:
        with open(path) as f:
            results = json.load(f)
    except FileNotFoundError:
        raise FileNotFoundError('%s is missing: expected the results of a run' % path) from None
    except ValueError as e:
        raise OSError('%s is damaged (%s): expected the results of a run' % (path, e)) from e
    whole = isinstance(results, dict) and {'preset', 'experiments'} <= set(results)
    if not whole or results.get('format') != FORMAT:
        raise OSError('%s is not of format %d: expected the results of a run of this version' % (path, FORMAT))
    return results


def write_json(path, content):
    """Writes a JSON file, whole or not at all."""
    write_atomically(path, (json.dumps(content, indent=1) + '\n').encode())
