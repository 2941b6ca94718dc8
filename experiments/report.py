"""Tables of measured beside published numbers, computed from results.json."""
import csv
import os

import numpy as np

PUBLISHED = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'published')
BEGIN, END = '<!-- results: begin -->', '<!-- results: end -->'
COLUMNS = ['', 'Accuracy (%)', 'T', 'Exits (%)', 'Released clock (ms)', 'Gain',
           'Whole clock (ms): mean / median / p95', 'Gain']


def markdown(results):
    """The report of a run (a dict, as in results.json) as Markdown."""
    parts = []
    for name, experiment in results['experiments'].items():
        seeds = experiment['seeds']
        first = seeds[0]
        parts.append('**%s**, preset %s: %d + %d epochs, batch %d, %d training images, %s; times at batch size 1 '
                     'over %d test images.' % (
                         name, results['preset'], first['main_epochs'], first['joint_epochs'], first['batchsize'],
                         first['train_samples'], _seeds(seeds), first['test_samples']))
        parts.append(_table([COLUMNS] + published_rows(experiment['network']) + measured_rows(experiment)))
        parts += ['%s: %s: %.2f, expected %.2f or more' % (
            'PASS' if claim['holds'] else 'FAIL', claim['claim'], claim['measured'], claim['at_least'])
            for claim in experiment.get('claims', [])]
        machines = dict.fromkeys(_machine(seed['environment']) for seed in seeds)
        parts.append('Measured on: %s.' % '; '.join(machines))
    return '\n\n'.join(parts) + '\n'


def published_rows(network):
    """Table I's rows (CPU) of a network and its B-net; its clock is the released one."""
    with open(os.path.join(PUBLISHED, 'table1.csv')) as f:
        rows = [row for row in csv.DictReader(f)
                if row['device'] == 'CPU' and row['network'] in (network, 'B-' + network)]
    return [['%s, published' % row['network'], row['accuracy_percent'], row['thresholds'] or '-',
             row['exit_percent'] or '-', row['time_ms'], row['gain'] or '-', '-', '-'] for row in rows]


def measured_rows(experiment):
    """The baseline before and after joint training, and the settings that were run by themselves."""
    network, seeds = experiment['network'], experiment['seeds']
    baselines = [seed['baseline'] for seed in seeds]
    rows = [
        [network, _mean([b['accuracy_percent'] for b in baselines], 2), '-', '-', *_times(baselines, baselines)],
        [network + ' after joint training, as released',
         _mean([b['accuracy_as_released_percent'] for b in baselines], 2), *['-'] * 6],
    ]
    for label, i in ('published threshold', 0), ('knee', 1):
        settings = [seed['measured'][i] for seed in seeds]
        rows.append([
            'B-%s, %s' % (network, label), _mean([s['accuracy_percent'] for s in settings], 2),
            ' or '.join(dict.fromkeys(_numbers(s['thresholds'], '%g') for s in settings)),
            _numbers(np.mean([s['exit_percent'] for s in settings], axis=0), '%.2f'), *_times(settings, baselines)])
    return rows


def _times(settings, baselines):
    cells = []
    for clock in 'released', 'whole':
        mean = [s[clock]['mean_ms'] for s in settings]
        gains = [b[clock]['mean_ms'] / m for b, m in zip(baselines, mean)]
        cells += [_mean(mean, 3), '-' if settings is baselines else _mean(gains, 2)]
    cells[2] += ''.join(' / ' + _mean([s['whole'][key] for s in settings], 3) for key in ('median_ms', 'p95_ms'))
    return cells


def _mean(values, digits):
    text = '%.*f' % (digits, np.mean(values))
    return text if len(values) == 1 else '%s ± %.*f' % (text, digits, np.std(values, ddof=1))


def _numbers(values, form):
    return ' '.join(form % v for v in values)


def _seeds(seeds):
    return 'seed %d' % seeds[0]['seed'] if len(seeds) == 1 else 'mean ± std of %d seeds' % len(seeds)


def _machine(environment):
    blas = ', '.join('%s %s (%s, %s threads)' % (b['internal_api'], b['version'], b['architecture'], b['num_threads'])
                     for b in environment['blas'] if b['internal_api'] != 'openmp')
    return ', '.join([environment['cpu'], '%d cores' % environment['cores'], *environment['gpus'],
                      'Python ' + environment['python'], 'NumPy ' + environment['numpy'], blas])


def _table(rows):
    """Rows of cells, the first of them the header, as a Markdown table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ['| ' + ' | '.join(cell.ljust(width) for cell, width in zip(row, widths)) + ' |' for row in rows]
    return '\n'.join([lines[0], '|' + '|'.join('-' * (width + 2) for width in widths) + '|'] + lines[1:])


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
