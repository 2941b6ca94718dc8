"""Runs experiments and writes a results folder; what `branchynet reproduce` and get_results.sh do."""
import importlib
import os
import sys

from branchynet import determinism
from branchynet.experiments import pipeline, report
from branchynet.training import write_atomically


def reproduce(names, seeds, setup):
    """Runs the experiments whose data is there, and prints and writes what they measured.

    Args:
        names: of the experiments. seeds: how many. setup: a pipeline.Setup.

    Returns:
        The exit status: 0 all checked claims hold, 1 one fell short, 2 no data.
    """
    ready = list(_ready(names, setup.preset))
    if not ready:
        return 2
    try:
        os.makedirs(setup.out, exist_ok=True)
    except OSError as e:
        raise OSError('--out %s: expected a folder that can be written (%s)' % (setup.out, e)) from e
    path = os.path.join(setup.out, 'results.json')
    results = {'format': pipeline.FORMAT, 'preset': setup.preset, 'variant': setup.variant, 'experiments': {}}
    if setup.resume and os.path.exists(path):
        results['experiments'] = _earlier(path, results)
    minutes = sum(experiment.minutes(experiment.presets[setup.preset], data, setup) for experiment, data in ready)
    print('Preset %s on %s: about %.0f min%s.' % (
        setup.preset, determinism.device_name(setup.device), max(1, minutes * seeds),
        ', less what is done' if setup.resume else ''), flush=True)
    written = [path]
    for experiment, data in ready:
        written += _run(experiment, seeds, data, setup, results)
    return _report(results, written, setup)


def _ready(names, preset_name):
    """Yields (experiment, its data) where the data is there, and says what is skipped."""
    loaded = {}
    for name in names:
        experiment = importlib.import_module('branchynet.experiments.' + name).EXPERIMENT
        try:
            if experiment.get_data not in loaded:
                loaded[experiment.get_data] = experiment.get_data()
        except OSError as e:
            print('%s is skipped: %s' % (name, e), file=sys.stderr)
        else:
            yield experiment, pipeline.cut(loaded[experiment.get_data], experiment.presets[preset_name])


def _earlier(path, results):
    earlier = pipeline.read_results(path)
    for key in 'preset', 'variant':
        if earlier[key] != results[key]:
            raise ValueError('%s is of %s %s: expected %s; leave out --resume to replace it' % (
                path, key, earlier[key], results[key]))
    return earlier['experiments']


def _run(experiment, seeds, data, setup, results):
    """Runs the seeds that are not done; returns the paths of what was written for all of them."""
    entry = results['experiments'].setdefault(experiment.name, {**experiment.about(), 'seeds': []})
    done = [(result.get('part', ''), result['seed']) for result in entry['seeds']]
    for seed in range(seeds):
        for part in experiment.parts:
            run = experiment.name, part, seed
            checkpoint = pipeline.checkpoint_path(setup.out, *run)
            if (part, seed) not in done:
                print('%s ...' % pipeline.stem(*run), flush=True)
                entry['seeds'].append(experiment.run(part, seed, data, setup))
                pipeline.write_json(os.path.join(setup.out, 'results.json'), results)
            if os.path.exists(checkpoint):
                os.remove(checkpoint)
    weights = [pipeline.weights_path(setup.out, experiment.name, result.get('part', ''), result['seed'])
               for result in entry['seeds']]
    return weights + experiment.write(entry['seeds'], setup.out)


def _report(results, written, setup):
    """Writes and prints the report; returns the exit status."""
    text = report.markdown(results)
    written.append(os.path.join(setup.out, 'report.md'))
    write_atomically(written[-1], text.encode())
    pipeline.write_json(os.path.join(setup.out, 'manifest.json'), _manifest(results, written, setup.out))
    print('\n%s\nWritten to %s' % (text, setup.out))
    if setup.preset == 'smoke':
        print('The smoke preset shows that everything runs; it claims no result.')
    return 0


def _manifest(results, written, out):
    """What every run came from, and the hashes of all that was written."""
    return {
        'preset': results['preset'],
        'runs': [{'experiment': name, **{key: result[key] for key in ('seed', 'data_sha256', 'environment')}}
                 for name, experiment in results['experiments'].items() for result in experiment['seeds']],
        'sha256': {os.path.relpath(path, out): determinism.sha256(path) for path in sorted(written)},
    }
