"""What is claimed (claims.toml and published/), checked against results.json."""
import csv
from functools import lru_cache
import itertools
import math
import os
from typing import NamedTuple

from branchynet.experiments import PRESETS
import numpy as np

try:
    import tomllib
except ImportError:  # before Python 3.11
    import tomli as tomllib

HERE = os.path.dirname(os.path.abspath(__file__))
PASS, FAIL, NOT_RUN = 'PASS', 'FAIL', 'NOT RUN'


class Claim(NamedTuple):
    """One claim.

    Attributes:
        entry: of claims.toml, which describes its fields. row: of a published file, texts by column.
        id, text: filled in. experiment: its name. expected: a number or (not checked) a text.
        device: 'any', 'cpu' or 'gpu'.
    """
    entry: dict
    row: dict
    id: str
    text: str
    experiment: str
    expected: object
    device: str

    @property
    def source(self):
        """Where it is made."""
        return self.entry['source']

    def bounds(self):
        """(least, most) that is measured where the claim holds."""
        tolerance = self._tolerance()
        least = max(self.expected - tolerance, self.entry.get('floor', -math.inf))
        most = self.expected + tolerance
        return {'higher': (least, math.inf), 'lower': (-math.inf, most), 'same': (least, most)}[self.entry['better']]

    def _tolerance(self):
        tolerance = self.entry.get('tolerance')
        if tolerance is None:
            return self.entry['relative'] * self.expected
        if tolerance == 'sampling':
            share = self.expected / 100
            return 2 * math.sqrt(2 * share * (1 - share) / 10000) * 100
        return tolerance[self.experiment] if isinstance(tolerance, dict) else tolerance

    def command(self):
        """What checks it; None for what is not checked."""
        if 'measure' in self.entry:
            device = '' if self.device == 'any' else ' --device ' + {'cpu': 'cpu', 'gpu': 'gpu:0'}[self.device]
            return './get_results.sh --only %s --preset %s%s' % (self.experiment, self.entry['preset'], device)

    def minutes(self):
        """That its command takes on 2 cores; None where that was not measured."""
        return _file()['minutes'].get(self.experiment, {}).get(self.entry.get('preset'))


class Verdict(NamedTuple):
    """A claim and what came of it.

    Attributes:
        claim: a Claim. status: PASS, FAIL or NOT_RUN. measured: a value per seed. reason: of NOT_RUN.
    """
    claim: Claim
    status: str
    measured: list
    reason: str


def published(name):
    """The rows of a file in published/: texts by column."""
    with open(os.path.join(HERE, 'published', name)) as f:
        return list(csv.DictReader(f))


@lru_cache(None)
def _file():
    with open(os.path.join(HERE, 'claims.toml'), 'rb') as f:
        return tomllib.load(f)


def claims():
    """All Claims, in the order of claims.toml."""
    return [_claim(entry, row) for entry in _file()['claim'] for row in _rows(entry)]


def _rows(entry):
    """The rows that an entry makes claims of; an empty one where it stands for itself."""
    if 'rows' not in entry:
        return [{}]
    each = [dict(zip(entry.get('for_each', {}), values)) for values in itertools.product(
        *entry.get('for_each', {}).values())]
    rows = [{**row, **more} for name in entry['rows'] for row in published(name) for more in each]
    return [row for row in rows if _value(entry, row) and all(
        row[column] == value for column, value in entry.get('where', {}).items())]


def _value(entry, row):
    """What the row says, as text; of a list of exits the row's own, '' if there are fewer."""
    text = row[entry['value']]
    return (text.split() + [''] * row['exit'])[row['exit'] - 1] if 'exit' in row else text


def _claim(entry, row):
    row = {**row, 'network': row.get('network') or row.get('series', '').split(' ')[0]}
    network = row['network'][2:] if row['network'].startswith('B-') else row['network']
    words = {**row, 'thresholds': row.get('thresholds') or 'baseline'}
    expected = entry['expected'] if 'expected' in entry else _value(entry, row)
    return Claim(entry, row, entry['id'].format(**words), entry['text'].format(**words),
                 entry.get('experiment') or _file()['networks'][network],
                 float(expected) if 'measure' in entry else expected,
                 entry.get('device') or row.get('device', 'any').lower())


def check(results):
    """A Verdict on every claim, from a results.json."""
    return [_verdict(claim, results) for claim in claims()]


def _verdict(claim, results):
    reason = _why_not(claim, results)
    if reason is None:
        runs = results['experiments'][claim.experiment]['seeds']
        seeds = dict.fromkeys(run['seed'] for run in runs)
        try:
            measured = [float(MEASURES[claim.entry['measure']](claim, [r for r in runs if r['seed'] == seed]))
                        for seed in seeds]
        except (KeyError, StopIteration):
            reason = 'the results do not hold what it needs'
        else:
            least, most = claim.bounds()
            return Verdict(claim, PASS if least <= np.mean(measured) <= most else FAIL, measured, '')
    return Verdict(claim, NOT_RUN, [], reason)


def _why_not(claim, results):
    """Why a claim cannot be checked by these results; None if it can."""
    if 'not_checked' in claim.entry:
        return claim.entry['not_checked']
    if not results['experiments'].get(claim.experiment, {}).get('seeds'):
        return '%s was not run' % claim.experiment
    if PRESETS.index(results['preset']) < PRESETS.index(claim.entry['preset']):
        return 'needs preset ' + claim.entry['preset']
    devices = {'gpu' if 'cupy' in run['device'] else 'cpu' for run in results['experiments'][claim.experiment]['seeds']}
    if claim.device != 'any' and devices != {claim.device}:
        return 'needs a GPU' if claim.device == 'gpu' else 'needs --device cpu'


# Measures: (claim, the results of one seed) -> number

def best_accuracy(claim, runs):
    """Of the settings that let ``at`` % or more leave at exit 1."""
    return max(row['accuracy_percent'] for row in runs[0]['sweep'] if row['exit_percent'][0] >= claim.entry['at'])


def least_fall(claim, runs):
    """Of the joint loss from the first epoch to the last, at the exit where it is least."""
    loss = runs[0]['joint_training']['loss']
    return np.min(np.subtract(loss[0], loss[-1]))


def accuracy(claim, runs):
    """Of the baseline, or of a setting."""
    if claim.row['network'].startswith('B-'):
        return _setting(claim, runs[0])['accuracy_percent']
    return runs[0]['baseline']['accuracy_percent']


def exit_share(claim, runs):
    """Leaving at the row's exit; without a row at the first."""
    return _setting(claim, runs[0])['exit_percent'][claim.row.get('exit', 1) - 1]


def gain(claim, runs):
    """On the row's clock, over the baseline of the same run."""
    setting, clock = _setting(claim, runs[0]), claim.row['clock']
    if 'gain_' + clock in setting:
        return setting['gain_' + clock]
    return runs[0]['baseline'][clock]['mean_ms'] / setting[clock]['mean_ms']


def _setting(claim, run):
    """The row's thresholds, run by themselves or in the sweep; without a row the published ones."""
    if not claim.row.get('thresholds'):
        return run['measured'][0]
    thresholds = [float(t) for t in claim.row['thresholds'].split()]
    return next(row for row in [run['measured'][0]] + run['sweep'] if row['thresholds'] == thresholds)


def curve(claim, runs):
    """Accuracy in no more than the figure's share of the baseline's time, on the released clock."""
    network = claim.row['network']
    if not network.startswith('B-'):
        return runs[0]['baseline']['accuracy_percent']
    base = next(row for row in published('figures.csv') if row['figure'] == '3' and row['series'] == network[2:])
    limit = float(claim.row['x']) / float(base['x']) * runs[0]['baseline']['released']['mean_ms']
    return max([row['accuracy_percent'] for row in runs[0]['sweep'] if row['released_ms'] <= limit], default=0.)


def accuracy_at_share(claim, runs):
    """On figure 4's curve."""
    return _at_share(claim, runs[0], 'accuracy_percent')


def entropy_at_share(claim, runs):
    """On figure 4's curve."""
    return _at_share(claim, runs[0], 'max_entropy_nat')


def _at_share(claim, run, key):
    return np.interp(float(claim.row['x']), run['exit1_curve']['exit1_percent'], run['exit1_curve'][key])


def final_accuracy(claim, runs):
    """Of the final exit, of the part that the row's x names."""
    return _final(runs, claim.row['x'])


def difference(claim, runs):
    """Of two parts, ``at``, in the accuracy of the final exit: the second's less the first's."""
    before, after = claim.entry['at']
    return _final(runs, after) - _final(runs, before)


def _final(runs, part):
    return next(run for run in runs if run['part'] == part)['exit_accuracy_percent'][-1]


def cache_miss_ratio(claim, runs):
    """Of the setting that misses least to the baseline."""
    *settings, base = (point['cache_miss_percent'] for point in runs[0]['cache'])
    return min(settings) / base


MEASURES = {f.__name__: f for f in (
    best_accuracy, least_fall, accuracy, exit_share, gain, curve, accuracy_at_share, entropy_at_share,
    final_accuracy, difference, cache_miss_ratio)}
