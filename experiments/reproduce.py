"""Runs experiments and writes a results folder; what `branchynet reproduce` and get_results.sh do."""
import itertools
import os
import sys
import tempfile

from branchynet import checkpoint, devices, files, verify
from branchynet.experiments import claims, pages, report, runs
from branchynet.files import write_atomically


def reproduce(names, seeds, setup, all_of_them=False):
    """Runs the experiments whose data is there, and prints and writes what they measured.

    What the folder holds of other experiments stays, and what it holds of another preset is not replaced
    (but for smoke, which claims nothing).

    Args:
        names: of the experiments. seeds: how many. setup: a runs.Setup.
        all_of_them: whether one that cannot run is a failure.

    Returns:
        The exit status: 0 all checked claims hold, 1 one fell short, 2 nothing can run, or not all of them.
    """
    ready, skipped = _ready(names, setup.preset)
    for line in skipped:
        print(line, file=sys.stderr)
    if not ready:
        return 2
    check_writable(setup.out)
    os.makedirs(setup.out, exist_ok=True)
    path = os.path.join(setup.out, 'results.json')
    results = {'format': runs.FORMAT, 'preset': setup.preset, 'variant': setup.variant, 'experiments': {}}
    if os.path.exists(path):
        results['experiments'] = _kept(path, results, [] if setup.resume else [e.name for e, _ in ready])
        for experiment, _ in ready:
            runs.check_origin(path, results['experiments'].get(experiment.name, {'seeds': []})['seeds'], setup)
    minutes = sum(experiment.minutes(experiment.presets[setup.preset], data, setup) for experiment, data in ready)
    print('Preset %s on %s: about %.0f min%s.' % (
        setup.preset, devices.device_name(setup.device), max(1, minutes * seeds),
        ', less what is done' if setup.resume else ''), flush=True)
    for experiment, data in ready:
        skipped += _run(experiment, seeds, data, setup, results)
    if not any(entry['seeds'] for entry in results['experiments'].values()):
        print(*skipped, sep='\n', file=sys.stderr)
        return 2
    write(results, setup.out)
    print('\n%s\nWritten to %s' % (report.tables(results), setup.out), *skipped, sep='\n')
    if setup.preset == 'smoke':
        print('The smoke preset shows that everything runs; it claims no result.')
    return 2 if skipped and all_of_them else verdict(results)


def check_writable(out):
    """Raises OSError unless the folder ``out`` can be written, or made: before hours of training, not after."""
    if not out:
        raise ValueError('--out is empty: expected a folder')
    folder = os.path.abspath(out)
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as e:
        raise OSError('--out %s: expected a folder that can be written (%s)' % (out, e.strerror)) from e


def _ready(names, preset_name):
    """([(experiment, its data)] where the data is there, a line on each where it is not)."""
    ready, skipped, found = [], [], {}
    for name in names:
        experiment = report.load(name)
        get_data = experiment.get_data
        if get_data not in found:
            found[get_data] = _data_or_error(get_data)
        if isinstance(found[get_data], OSError):
            skipped.append('%s is skipped: %s' % (name, found[get_data]))
        else:
            ready.append((experiment, runs.cut(found[get_data], experiment.presets[preset_name])))
    return ready, skipped


def _data_or_error(get_data):
    try:
        return get_data()
    except OSError as e:
        return e


def _kept(path, results, anew):
    """What a folder's results.json holds of the experiments that are not run anew."""
    earlier = runs.read_results(path)
    for key in 'preset', 'variant':
        if earlier[key] != results[key]:
            if earlier['preset'] == 'smoke' and anew:
                return {}
            raise ValueError('%s is of %s %s: expected %s; name another folder with --out' % (
                path, key, earlier[key], results[key]))
    return {name: entry for name, entry in earlier['experiments'].items() if name not in anew}


def _run(experiment, seeds, data, setup, results):
    """Runs the seeds that are not done and adds them to the results, also on disk; returns lines on what it cannot."""
    entry = results['experiments'].setdefault(experiment.name, {**experiment.about(), 'seeds': []})
    done = [(result.get('part', ''), result['seed']) for result in entry['seeds']]
    for seed, part in itertools.product(range(seeds), experiment.parts):
        path = runs.checkpoint_path(setup.out, experiment.name, part, seed)
        if (part, seed) not in done:
            print('%s ...' % runs.stem(experiment.name, part, seed), flush=True)
            try:
                entry['seeds'].append(experiment.run(part, seed, data, setup))
            except runs.CannotRun as e:
                return ['%s is skipped: %s' % (experiment.name, e)]
            runs.write_json(os.path.join(setup.out, 'results.json'), results)
        checkpoint.remove(path)
    return []


def write(results, out):
    """Writes all that results.json determines: tables, figures, the report as HTML and Markdown, the manifest."""
    weights = [path for name, entry in results['experiments'].items() for result in entry['seeds']
               for path in _weights(name, result, out)]
    written, figures = [os.path.join(out, 'results.json'), *weights], {}
    for name, entry in results['experiments'].items():
        if entry['seeds']:
            paths = report.load(name).write(entry['seeds'], out)
            figures[name] = [path for path in paths if path.endswith('.png')]
            written += paths
    blocks = report.blocks(results, figures)
    for name, text in ('report.md', pages.markdown(blocks)), ('report.html', pages.html('BranchyNet', blocks)):
        written.append(os.path.join(out, name))
        write_atomically(written[-1], text.encode())
    runs.write_json(os.path.join(out, 'manifest.json'), _manifest(results, written, out))


def _weights(name, result, out):
    """The files of a run's weights, where it has them and they were not taken away."""
    run = out, name, result.get('part', ''), result['seed']
    paths = {'weights_sha256': runs.weights_path(*run), 'main_weights_sha256': runs.main_weights_path(*run)}
    paths = {key: path for key, path in paths.items() if key in result and os.path.exists(path)}
    for key, path in paths.items():
        if files.digest(path) != result[key]:
            raise OSError('%s is not what its run wrote: expected SHA-256 %s' % (path, result[key]))
    return list(paths.values())


def verdict(results):
    """Prints what came of the claims; returns the exit status: 1 if one fell short, else 0."""
    verdicts = claims.check(results)
    print('\n'.join(report.lines(verdicts)))
    return int(any(v.status == claims.FAIL for v in verdicts))


def _manifest(results, written, out):
    """What every run came from and what came of it, and the hashes of all that was written."""
    return {
        'format': verify.FORMAT,
        'preset': results['preset'],
        'runs': [_run_of_manifest(name, result)
                 for name, experiment in results['experiments'].items() for result in experiment['seeds']],
        'sha256': {os.path.relpath(path, out): files.digest(path) for path in sorted(written)},
    }


def _run_of_manifest(name, result):
    """One seed as `branchynet verify` compares it: settings that must agree, and steps in the order of the run."""
    steps = [{'what': 'data', 'sha256': result['data_sha256']}]
    for phase in 'main', 'joint':
        history = result.get(phase + '_training', {})
        epochs = zip(history.get('weights_sha256', ()), history.get('loss', ()), history.get('accuracy', ()))
        steps += [{'what': 'weights after epoch %d of %s training' % (epoch, phase), 'sha256': sha256,
                   'loss': loss, 'accuracy': accuracy} for epoch, (sha256, loss, accuracy) in enumerate(epochs, 1)]
    steps += [{'what': 'output ' + what, **digest} for what, digest in result.get('outputs', {}).items()]
    settings = ('seed', 'variant', 'main_epochs', 'joint_epochs', 'batchsize', 'train_samples', 'test_samples')
    return {'name': runs.stem(name, result.get('part', ''), result['seed']),
            'settings': {key: result.get(key) for key in settings}, 'device': result['device'],
            'environment': result['environment'], 'steps': steps}
