"""A network of the paper and its baseline: trained, swept and timed."""
import csv
from functools import partial
import io
import os
from typing import Callable, NamedTuple

from branchynet import cpu, sweep, timing, utils, visualize
from branchynet.experiments import claims, runs
from branchynet.inference import Compiled
from branchynet.files import write_atomically
import numpy as np

SHARES = np.linspace(0, 1, 51)  # leaving at exit 1, of figure 4


class NetworkExperiment(NamedTuple):
    """A network, its data, and the settings swept."""
    name: str
    network: str
    get_network: Callable
    get_data: Callable
    base_thresholds: list
    published_thresholds: list
    presets: dict
    parts = ['']  # what is trained; comparisons have several

    def about(self):
        """What results.json says of the experiment itself."""
        return {'network': self.network}

    def minutes(self, preset, data, setup):
        """Minutes that a seed will take on cut data."""
        net = self.get_network(variant=setup.variant)
        net.to_device(setup.device)
        training = runs.training_minutes(net, preset, data)
        # The baseline, the sweep's pass and the chosen settings, image by image.
        look = runs.seconds(net, runs.for_inference(net).look, data[2][:1])
        return training + 4 * len(data[2]) * look / 60

    def run(self, part, seed, data, setup):
        """Trains one seed on cut data and measures it.

        Returns:
            JSON-ready dict: the result of the seed, units in its keys. The checkpoint stays, to be removed
            once the result is safe.
        """
        run, preset = (self.name, part, seed), self.presets[setup.preset]
        training = runs.begin(run, partial(self.get_network, variant=setup.variant), preset, data, setup)
        net, result = training.net, training.result
        with cpu.fast():
            training.train('main')
            if 'baseline' not in result:
                # Before joint training moves the trunk under main's head: the independent network of the paper.
                result['baseline'] = _baseline(net, data)
                result['main_weights_sha256'] = runs.save_weights(
                    net.main, runs.main_weights_path(setup.out, *run))
                training.save()
            training.train('joint')
            self._measure(net, data, result)
        result['weights_sha256'] = runs.save_weights(net, runs.weights_path(setup.out, *run))
        return result

    def _measure(self, net, data, result):
        """The sweep, and the published setting and the knee run by themselves."""
        _, _, x, t = data
        baseline = result['baseline']
        correct = _unpacked(baseline.pop('correct'), len(x))
        baseline['accuracy_as_released_percent'] = utils.test(net, x, t, batchsize=1000, main=True)[0] * 100
        net = runs.for_inference(net)
        result['compiled'] = isinstance(net, Compiled)
        profile = sweep.profile(net, x, t)
        settings = utils.generate_thresholds(self.base_thresholds, net.numexits())
        swept = sweep.sweep(profile, settings)
        result['exit_accuracy_percent'] = (profile.correct.mean(axis=1) * 100).tolist()
        result['outputs'] = {
            'main_correct': runs.digest(correct), 'entropy': runs.digest(profile.entropy),
            'correct': runs.digest(profile.correct), 'sweep_accuracy': runs.digest(swept.accuracy),
            'sweep_exits': runs.digest(swept.exits / len(x))}
        result['exit1_curve'] = _exit1_curve(profile, self.published_thresholds[1:])
        result['sweep'] = _rows(swept, sweep.percentiles(profile, settings), baseline)
        result['knee'] = sweep.knee(swept.accuracy * 100, swept.whole, baseline['accuracy_percent'])
        result['measured'] = [_directly(net, setting, x, t, correct) for setting in (
            self.published_thresholds, result['sweep'][result['knee']]['thresholds'])]

    def write(self, results, out):
        """Writes the sweep's CSV and the figures of all seeds' results; returns the paths."""
        path = os.path.join(out, 'sweep_%s.csv' % self.name)
        write_sweep(path, results)
        return [path] + [figure for result in results for figure in draw(self, result, os.path.join(out, 'figures'))]


def _baseline(net, data):
    _, _, x, t = data
    measurement = timing.measure(runs.for_inference(net), x, t, main=True)
    # Which images main classifies correctly, for the comparison with the exits, until that is made.
    return {**_measured(measurement), 'correct': np.packbits(measurement.correct).tobytes().hex()}


def _unpacked(text, count):
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))[:count].astype(bool)


def _exit1_curve(profile, thresholds):
    """Accuracy and the highest entropy that leaves at exit 1, against the share that leaves there (figure 4).

    Args:
        thresholds: of the exits after the first.
    """
    ent = np.sort(profile.entropy[0]).astype(float)
    counts = np.rint(SHARES * len(ent)).astype(int)
    cuts = np.append(ent, np.inf)[counts]  # just above them, but for equals
    swept = sweep.sweep(profile, [[cut, *thresholds] for cut in cuts])
    left = swept.exits[:, 0]
    return {
        'exit1_percent': (left / len(ent) * 100).tolist(),
        'accuracy_percent': (swept.accuracy * 100).tolist(),
        'max_entropy_nat': [float(ent[count - 1]) if count else 0. for count in left],
    }


def _measured(measurement):
    """A Measurement for results.json."""
    return {
        'accuracy_percent': measurement.accuracy * 100,
        'released': timing.summary(measurement.released),
        'whole': timing.summary(measurement.whole),
    }


def _directly(net, setting, x, t, baseline_correct):
    """Runs one setting sample by sample, where the sweep composes its times."""
    net.thresholdExits = setting
    measurement = timing.measure(net, x, t)
    net.thresholdExits = None
    return {'thresholds': setting, 'exit_percent': _percent(measurement.exits), **_measured(measurement),
            'images': _pairs(measurement.correct.astype(bool), baseline_correct)}


def _pairs(correct, baseline_correct):
    """How many images both classify correctly, only one of them, and neither."""
    return {
        'both_right': int((correct & baseline_correct).sum()),
        'only_branchy_right': int((correct & ~baseline_correct).sum()),
        'only_baseline_right': int((~correct & baseline_correct).sum()),
        'both_wrong': int((~correct & ~baseline_correct).sum()),
    }


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
    """Both trainings, the trade-off (figure 3) and exit 1 (figure 4), as PNG and PDF; returns the paths."""
    paths = []

    def path(what):
        name = '%s_%s.%s' % (runs.stem(experiment.name, '', result['seed']), what, suffix)
        paths.append(os.path.join(folder, name))
        return paths[-1]

    for suffix in 'png', 'pdf':
        _draw_figure3(experiment, result, path('figure3'))
        if 'exit1_curve' in result:
            _draw_figure4(experiment, result, path('figure4'))
        for phase in 'main', 'joint':
            history = result[phase + '_training']
            visualize.plot_curves(history['loss'], history['accuracy'], output_path=path(phase))
    return paths


def _draw_figure3(experiment, result, path):
    rows, baseline = result['sweep'], result['baseline']
    accuracies = [row['accuracy_percent'] / 100 for row in rows]
    curves = {clock + ' clock': ([row[clock + '_ms'] / baseline[clock]['mean_ms'] for row in rows], accuracies)
              for clock in ('released', 'whole')}
    points = {series: [(float(row['x']), float(row['y']) / 100) for row in claims.published('figures.csv')
                       if row['figure'] == '3' and row['series'].split()[0] == series]
              for series in (experiment.network, 'B-' + experiment.network)}
    base, base_accuracy = points[experiment.network][0]
    visualize.plot_relative_tradeoff(
        curves, baseline['accuracy_percent'] / 100, result['knee'],
        [(x / base, y) for x, y in points['B-' + experiment.network]], base_accuracy, experiment.network,
        output_path=path)


def _draw_figure4(experiment, result, path):
    curve = result['exit1_curve']
    points = {what: [(float(row['x']) / 100, float(row['y'])) for row in claims.published('figures.csv')
                     if row['figure'] == '4' and row['series'] == 'B-%s %s' % (experiment.network, what)]
              for what in ('accuracy', 'max entropy')}
    visualize.plot_exit1(
        np.divide(curve['exit1_percent'], 100), np.divide(curve['accuracy_percent'], 100), curve['max_entropy_nat'],
        [(x, y / 100) for x, y in points['accuracy']], points['max entropy'], output_path=path)
