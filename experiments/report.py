"""The report of a run: what was measured beside what was published, computed from results.json and claims.toml."""
from collections import Counter
import importlib
import os

from branchynet.experiments import NETWORKS, PRESETS, claims, intervals, pages
import numpy as np

BEGIN, END = '<!-- results: begin -->', '<!-- results: end -->'
COLUMNS = ['', 'Accuracy (%)', '95 % interval', "McNemar's p", 'T', 'Exits (%)', 'Released clock (ms)', 'Gain',
           'Whole clock (ms): mean / median / p95', 'Gain', 'Gain allowed', 'Efficiency']
CLOCKS = ("Times are at batch size 1. The released clock is the original's: it runs in the trunk's stages only. The "
          "whole clock takes in the exits' own links, softmax, entropy and the decision. In the tables a setting was "
          "run by itself; in figure 3 its time is composed from the stages'. A gain is the baseline's mean "
          "time over the setting's, on the same machine. The knee is the fastest setting that is at least as accurate "
          "as the baseline, chosen on the test images, as in the paper. The gain allowed is that of the multiply-adds at "
          "the same exit shares; the efficiency is the whole clock's gain over it. McNemar's p is that of B-net and baseline "
          "being right equally often.")

CAPTIONS = {
    '_figure3': "Figure 3: accuracy against time, in units of the baseline's",
    '_figure4': 'Figure 4: accuracy and highest entropy against the share leaving at exit 1',
    '_main': 'Training of the baseline',
    '_joint': 'Joint training',
}


def load(name):
    """The EXPERIMENT of that name."""
    return importlib.import_module('branchynet.experiments.' + name).EXPERIMENT


def tables(results):
    """The tables of all experiments, as Markdown."""
    return pages.markdown([block for name, seeds in results.experiments.items()
                           for block in _tables(name, seeds, results)])


def for_readme(results):
    """The tables and the claims that were checked, as Markdown."""
    checked = [line(v) for v in claims.check(results) if v.status != claims.NOT_RUN]
    return tables(results) + '\n' + pages.markdown([pages.Lines(checked)]) if checked else tables(results)


def lines(verdicts):
    """A line per claim, those that were not run first and failures last, and the counts."""
    return [line(v) for status in (claims.NOT_RUN, claims.PASS, claims.FAIL) for v in verdicts
            if v.status == status] + [counts(verdicts)]


def line(verdict):
    """A verdict in words."""
    claim, measured = verdict.claim, verdict.measured
    if verdict.status == claims.NOT_RUN:
        return '%s: %s: %s' % (verdict.status, claim.id, verdict.reason)
    found = _mean(measured, 2) if measured else verdict.reason
    cause = f' (cause: {claim.cause})' if verdict.status == claims.FAIL and claim.cause else ''
    return f'{verdict.status}: {claim.id}: {claim.text}: {found}, expected {bounds(claim)}{cause}'


def bounds(claim):
    """What a claim admits, in words."""
    least, most = claim.bounds()
    if most == np.inf:
        return '%.4g or more' % least
    return '%.4g or less' % most if least == -np.inf else '%.4g to %.4g' % (least, most)


def counts(verdicts):
    """How many claims passed, fell short and were not checked."""
    found = Counter(v.status for v in verdicts)
    return 'Claims: ' + ', '.join('%d %s' % (found[s], s) for s in (claims.PASS, claims.FAIL, claims.NOT_RUN))


def blocks(results, figures):
    """The whole report as a list of pages' blocks.

    Args:
        results: a results.json. figures: paths of PNG files by the experiment's name.
    """
    verdicts, experiments = claims.check(results), results.experiments
    networks = {name: seeds for name, seeds in experiments.items() if name in NETWORKS}
    page = [pages.Heading(1, 'BranchyNet: measured beside published'), pages.Text(_about(results))]
    if networks:
        page += [pages.Table(_summary(networks)), pages.Text('In parentheses: published (Table I, CPU). ' + CLOCKS)]
    page.append(pages.Text(counts(verdicts) + '.'))
    for name, seeds in experiments.items():
        page.append(pages.Heading(2, load(name).title))
        page += _tables(name, seeds, results)
        page.append(pages.Figures({caption(path): path for path in figures.get(name, [])}))
    return page + _claims(verdicts) + _environment(experiments)


def caption(path):
    """What a figure's file shows."""
    stem = os.path.splitext(os.path.basename(path))[0]
    found = next((text for what, text in CAPTIONS.items() if stem.endswith(what)), None)
    return '%s (%s)' % (found, stem) if found else stem


def _about(results):
    runs = [run for seeds in results.experiments.values() for run in seeds]
    device = ', '.join(dict.fromkeys('GPU' if 'cupy' in run.measurement.device else 'CPU' for run in runs))
    return (f'Preset {results.preset}, variant {results.variant}, {device}. Preset {results.preset} '
            f'{PRESETS[results.preset]}.')


def _summary(networks):
    """A row per network: what was measured, the published number in parentheses."""
    rows = [['Network', 'Baseline accuracy (%)', 'B-net accuracy (%)', 'T', 'Leaving at exit 1 (%)',
             'Gain, released clock', 'Gain, whole clock']]
    for name, seeds in networks.items():
        network = load(name).network
        base, branchy = (_published(row)[0] for row in (network, f'B-{network}'))
        settings = [run.measurement.measured.published for run in seeds]
        baselines = [run.measurement.baseline for run in seeds]
        rows.append([
            network,
            '%s (%s)' % (_mean([b.accuracy_as_released_percent for b in baselines], 2), base['accuracy_percent']),
            '%s (%s)' % (_mean([s.accuracy_percent for s in settings], 2), branchy['accuracy_percent']),
            branchy['thresholds'],
            '%s (%s)' % (_mean([s.exit_percent[0] for s in settings], 1), branchy['exit_percent'].split()[0]),
            '%s (%s)' % (_mean([s.gain_released for s in settings], 2), branchy['gain']),
            _mean([s.gain_whole for s in settings], 2)])
    return rows


def _tables(name, seeds, results):
    return (_network if name in NETWORKS else _analysis)(name, seeds, results)


def _network(name, seeds, results):
    training = seeds[0].training
    text = '**%s**, preset %s: %d + %d epochs, batch %d, %d training images, %s; %d test images.' % (
        name, results.preset, training.main_epochs, training.joint_epochs, training.batchsize,
        training.train_samples, _seeds(seeds), seeds[0].measurement.test_samples)
    machines = dict.fromkeys(_machine(run.measurement.environment) for run in seeds)
    network = load(name).network
    page = [pages.Text(text), pages.Table([COLUMNS] + published_rows(network) + measured_rows(network, seeds)),
            pages.Text('Measured on: %s.' % '; '.join(machines))]
    return page + [pages.Text(line) for run in seeds for line in _disagreements(run)]


def _disagreements(run):
    """A line on the settings whose composed times are off their direct ones, where there are any."""
    off = run.measurement.disagreements()
    if off:
        settings = ', '.join(f'{name} setting by {percent:.0f} %' for name, percent in off.items())
        yield (f"Seed {run.seed}: the times that the sweep composes are off those of settings run by themselves "
               f'({settings}): another process disturbed the measurement, and `branchynet measure` repeats it.')


def _published(network, device='CPU'):
    return [row for row in claims.published('table1.csv') if row['device'] == device and row['network'] == network]


def published_rows(network):
    """Table I's rows (CPU) of a network and its B-net; its clock is the released one."""
    return [['%s, published' % row['network'], row['accuracy_percent'], '', '', row['thresholds'], row['exit_percent'],
             row['time_ms'], row['gain'], '', '', '', ''] for row in _published(network) + _published('B-' + network)]


def measured_rows(network, seeds):
    """The baseline before and after joint training, and the settings that were run by themselves."""
    baselines, images = [run.measurement.baseline for run in seeds], seeds[0].measurement.test_samples
    rows = [
        [network, *_accuracy([b.accuracy_percent for b in baselines], images), '', '', '', *_times(baselines)],
        [f'{network} after joint training, as released',
         *_accuracy([b.accuracy_as_released_percent for b in baselines], images), *[''] * (len(COLUMNS) - 3)],
    ]
    for label, name in ('published threshold', 'published'), ('knee', 'knee'):
        settings = [getattr(run.measurement.measured, name) for run in seeds]
        rows.append([
            f'B-{network}, {label}', *_accuracy([s.accuracy_percent for s in settings], images),
            ', '.join(_p_value(s.images) for s in settings),
            ' or '.join(dict.fromkeys(_numbers(s.thresholds, '%g') for s in settings)),
            _numbers(np.mean([s.exit_percent for s in settings], axis=0), '%.2f'), *_times(settings)])
    return rows


def _accuracy(percents, images):
    """The mean, and its interval."""
    return [_mean(percents, 2), '%.2f to %.2f' % intervals.accuracy(percents, images)]


def _p_value(images):
    return '%.2g' % intervals.mcnemar(images.only_branchy_right, images.only_baseline_right)


def _times(settings):
    """The cells of both clocks; the baseline has no gains."""
    def cell(values, digits=2):
        return _mean(values, digits)

    gains = [''] * 4 if not hasattr(settings[0], 'gain_whole') else [
        cell([getattr(s, key) for s in settings]) for key in ('gain_released', 'gain_whole', 'gain_allowed', 'efficiency')]
    whole = ' / '.join(cell([getattr(s.whole, key) for s in settings], 3) for key in ('mean_ms', 'median_ms', 'p95_ms'))
    return [cell([s.released.mean_ms for s in settings], 3), gains[0], whole, *gains[1:]]


def _analysis(name, seeds, results):
    """An experiment that is no network of the paper."""
    text = pages.Text('**%s**, preset %s, %s; %d test images.' % (
        name, results.preset, _seeds(seeds), seeds[0].measurement.test_samples))
    return [text, pages.Table(_cache_rows(seeds) if name == 'figure6' else _comparison_rows(name, seeds))]


def _comparison_rows(name, seeds):
    experiment = load(name)
    rows = [[experiment.xlabel, 'Final exit (%)', '95 % interval', 'Published (%)', 'Epochs', 'Training images']]
    for part in experiment.parts:
        mine = [run for run in seeds if run.part == part]
        if mine:
            published, training = experiment.published.get(part), mine[0].training
            accuracies = [run.measurement.exit_accuracy_percent[-1] for run in mine]
            rows.append([part, *_accuracy(accuracies, mine[0].measurement.test_samples),
                         '' if published is None else '%.2f' % (100 * published),
                         '%d + %d' % (training.main_epochs, training.joint_epochs), str(training.train_samples)])
    return rows


def _cache_rows(seeds):
    rows = [['Seed', 'T', 'Whole clock (ms)', 'Loads and stores', 'Last-level misses', 'Cache misses (%)', 'Tool']]
    return rows + [[str(run.seed), _numbers(point.thresholds, '%g') or 'baseline', '%.3f' % point.runtime_ms,
                    str(point.references), str(point.misses), '%.4f' % point.cache_miss_percent, run.measurement.tool]
                   for run in seeds for point in run.measurement.cache]


def _claims(verdicts):
    """The checked claims, then the others under each reason."""
    checked = [v for v in verdicts if v.status != claims.NOT_RUN]
    page = [pages.Heading(2, 'Claims'), pages.Text(counts(verdicts) + '.')]
    if checked:
        header = ['', 'Claim', 'Source', 'Measured', 'Published or stated', 'Holds for', 'Why this tolerance', 'Id']
        page.append(pages.Table([header] + [
            [v.status, v.claim.text, v.claim.source, _mean(v.measured, 2) if v.measured else v.reason, '%g' % v.claim.expected, bounds(v.claim),
             v.claim.entry['why'], v.claim.id] for v in checked]))
    for reason in dict.fromkeys(v.reason for v in verdicts if v.status == claims.NOT_RUN):
        rows = [[v.claim.text, v.claim.source, str(v.claim.expected), v.claim.command() or '',
                 _minutes(v.claim), v.claim.id] for v in verdicts if v.reason == reason]
        page.append(pages.Folded('%s: %s (%d)' % (claims.NOT_RUN, reason, len(rows)), [pages.Table(
            [['Claim', 'Source', 'Published or stated', 'Command', 'Minutes on 2 cores', 'Id']] + rows)]))
    return page


def _minutes(claim):
    if 'measure' not in claim.entry:
        return ''
    return 'not measured' if claim.minutes() is None else '%g' % claim.minutes()


def _environment(experiments):
    rows = [['Run', 'Trained at commit', 'Measured at commit', 'Machine', 'Training (min)', 'Inference',
             'SHA-256 of the data']]
    for name, run in [(name, run) for name, seeds in experiments.items() for run in seeds]:
        training, measurement = getattr(run, 'training', None), run.measurement
        trained = training and (training.main.seconds + training.joint.seconds) / 60
        rows.append([' '.join([name, run.part, 'seed %d' % run.seed]), _commit(training) if training else '',
                     _commit(measurement), _machine(measurement.environment),
                     '%.1f' % trained if training else '',
                     {True: 'compiled', False: 'Chainer', None: ''}[getattr(measurement, 'compiled', None)],
                     training.data_sha256[:12] if training else ''])
    return [pages.Heading(2, 'Environment'), pages.Table(rows)]


def _commit(record):
    environment = record.environment
    return (environment.commit or 'unknown')[:12] + {'dirty': ', changed'}.get(environment.tree, '')


def _mean(values, digits):
    text = '%.*f' % (digits, np.mean(values))
    return text if len(values) == 1 else '%s ± %.*f (%d)' % (text, digits, np.std(values, ddof=1), len(values))


def _numbers(values, form):
    return ' '.join(form % v for v in values)


def _seeds(runs):
    seeds = list(dict.fromkeys(run.seed for run in runs))
    return 'seed %d' % seeds[0] if len(seeds) == 1 else 'mean ± std (count) of %d seeds' % len(seeds)


def _machine(environment):
    blas = ', '.join('%s %s (%s, %s threads)' % (b.internal_api, b.version, b.architecture, b.num_threads)
                     for b in environment.blas if b.internal_api != 'openmp')
    return ', '.join([environment.cpu, '%d cores' % environment.cores, *environment.gpus,
                      'Python ' + environment.python, 'NumPy ' + environment.numpy, blas])


def between_markers(text, report):
    """A Markdown page with the report put between its markers.

    Raises:
        ValueError: the page does not have both markers, in order.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError('expected the lines %s and %s' % (BEGIN, END))
    return head + BEGIN + '\n' + report + END + tail
