"""Runs experiments and writes a results folder; what `branchynet reproduce` and get_results.sh do."""
import importlib
import os
import sys

from branchynet import determinism
from branchynet.experiments import pipeline, report
from branchynet.training import write_atomically


def reproduce(names, preset_name, seeds, device, out, resume):
    """Runs the experiments whose data is there, and prints and writes what they measured.

    Args:
        names: of the experiments. preset_name: 'smoke', 'quick' or 'paper'. seeds: how many.
        device: a Chainer device. out: the results folder. resume: go on with what is in it.

    Returns:
        The exit status: 0 all checked claims hold, 1 one fell short, 2 no data.
    """
    ready = list(_ready(names, preset_name))
    if not ready:
        return 2
    os.makedirs(out, exist_ok=True)
    path = os.path.join(out, 'results.json')
    results = {'format': pipeline.FORMAT, 'preset': preset_name, 'environment': determinism.environment(),
               'experiments': {}}
    if resume and os.path.exists(path):
        results['experiments'] = _earlier(path, preset_name)
    minutes = sum(pipeline.expected_minutes(experiment, experiment.presets[preset_name], data, device)
                  for experiment, data in ready)
    print('Preset %s on %s: about %.0f minutes%s.' % (
        preset_name, device, minutes * seeds, ', unless resumed midway' if resume else ''), flush=True)
    for experiment, data in ready:
        _run_seeds(experiment, preset_name, seeds, data, device, out, resume, results)
    pipeline.write_json(os.path.join(out, 'manifest.json'), _manifest(results, out))
    text = report.markdown(results)
    write_atomically(os.path.join(out, 'report.md'), text.encode())
    print('\n%s\nWritten to %s' % (text, out))
    if preset_name == 'smoke':
        print('The smoke preset shows that everything runs; it claims no result.')
    holds = all(claim['holds'] for e in results['experiments'].values() for claim in e['claims'])
    return 0 if holds else 1


def _ready(names, preset_name):
    """Yields (experiment, data) where the data is there, and says what is skipped."""
    for name in names:
        experiment = importlib.import_module('branchynet.experiments.' + name).EXPERIMENT
        try:
            yield experiment, pipeline.load_data(experiment, experiment.presets[preset_name])
        except OSError as e:
            print('%s is skipped: %s' % (name, e), file=sys.stderr)


def _earlier(path, preset_name):
    results = pipeline.read_results(path)
    if results['preset'] != preset_name:
        raise ValueError('%s is of preset %s: expected %s; leave out --resume to replace it' % (
            path, results['preset'], preset_name))
    return results['experiments']


def _run_seeds(experiment, preset_name, seeds, data, device, out, resume, results):
    entry = results['experiments'].setdefault(
        experiment.name, {'network': experiment.network, 'seeds': [], 'claims': []})
    done = {result['seed'] for result in entry['seeds']}
    for seed in range(seeds):
        if seed in done:
            continue
        print('%s, seed %d ...' % (experiment.name, seed), flush=True)
        entry['seeds'].append(
            pipeline.run(experiment, experiment.presets[preset_name], seed, data, device, out, resume))
        entry['claims'] = pipeline.check_claims(experiment, preset_name, entry['seeds'])
        pipeline.write_json(os.path.join(out, 'results.json'), results)
    pipeline.write(experiment, entry['seeds'], out)


def _manifest(results, out):
    """Where and from what the results came, and the hashes of what else was written."""
    files = sorted(name for name in os.listdir(out) if name.startswith(('weights_', 'sweep_', 'results.json')))
    return {'environment': results['environment'],
            'sha256': {name: determinism.sha256(os.path.join(out, name)) for name in files}}
