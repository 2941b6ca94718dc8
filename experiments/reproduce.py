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
    try:
        os.makedirs(out, exist_ok=True)
    except OSError as e:
        raise OSError('--out %s: expected a folder that can be written (%s)' % (out, e)) from e
    path = os.path.join(out, 'results.json')
    earlier = _earlier(path, preset_name) if resume and os.path.exists(path) else {}
    results = {'format': pipeline.FORMAT, 'preset': preset_name, 'experiments': earlier}
    minutes = sum(pipeline.expected_minutes(experiment, experiment.presets[preset_name], data, device)
                  for experiment, data in ready)
    print('Preset %s on %s: about %.0f min%s.' % (
        preset_name, determinism.device_name(device), max(1, minutes * seeds), ', less what is done' if resume else ''),
        flush=True)
    written = [path]
    for experiment, data in ready:
        written += _run_seeds(experiment, preset_name, seeds, data, device, out, resume, results)
    text = report.markdown(results)
    written.append(os.path.join(out, 'report.md'))
    write_atomically(written[-1], text.encode())
    pipeline.write_json(os.path.join(out, 'manifest.json'), _manifest(results, written, out))
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
    """Runs the seeds that are not done; returns the paths of what was written for all of them."""
    entry = results['experiments'].setdefault(
        experiment.name, {'network': experiment.network, 'seeds': [], 'claims': []})
    done = {result['seed'] for result in entry['seeds']}
    for seed in range(seeds):
        checkpoint = pipeline.checkpoint_path(experiment, seed, out)
        if seed not in done:
            print('%s, seed %d ...' % (experiment.name, seed), flush=True)
            entry['seeds'].append(
                pipeline.run(experiment, experiment.presets[preset_name], seed, data, device, out, resume))
            entry['claims'] = pipeline.check_claims(experiment, preset_name, entry['seeds'])
            pipeline.write_json(os.path.join(out, 'results.json'), results)
        if os.path.exists(checkpoint):
            os.remove(checkpoint)
    return pipeline.write(experiment, entry['seeds'], out) + [
        pipeline.weights_path(experiment, result['seed'], out) for result in entry['seeds']]


def _manifest(results, written, out):
    """What every run came from, and the hashes of all that was written."""
    return {
        'preset': results['preset'],
        'runs': [{'experiment': name, **{key: result[key] for key in ('seed', 'data_sha256', 'environment')}}
                 for name, experiment in results['experiments'].items() for result in experiment['seeds']],
        'sha256': {os.path.relpath(path, out): determinism.sha256(path) for path in sorted(written)},
    }
