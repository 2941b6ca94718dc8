"""The claims (claims.toml and published/), checked against results."""

from __future__ import annotations

import csv
import itertools
import math
import os
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Callable, NamedTuple

from branchynet.experiments import NAMES, PRESETS, get_experiment
from branchynet.experiments.results import Exit1Curve, NetworkRun, Results, Setting, Training
from branchynet.experiments.runs import Preset

import numpy as np

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = os.path.dirname(os.path.abspath(__file__))
PASS, FAIL, NOT_RUN = 'PASS', 'FAIL', 'NOT RUN'
KEYS = {  # of an entry
    'id',
    'text',
    'source',
    'rows',
    'for_each',
    'where',
    'value',
    'expected',
    'measure',
    'at',
    'better',
    'tolerance',
    'relative',
    'floor',
    'ceiling',
    'why',
    'preset',
    'device',
    'experiment',
    'not_checked',
    'cause',
}
CAUSE_KEYS = {'experiment', 'where', 'explains', 'text'}
_ALL_LEAVE = 2.5  # nats: a threshold above every entropy of 10 classes, at most ln 10 = 2.303


class NotFound(Exception):
    """The results lack the figure that a claim needs; the message names it."""


class Claim(NamedTuple):
    """One claim.

    Attributes:
        entry: an entry of claims.toml, which describes its fields.
        row: a row of a published file, texts by column.
        id: the entry's id, completed from the row.
        text: the entry's text, completed from the row.
        experiment: name of the experiment that checks the claim.
        expected: a number; a text if the claim is not checked.
        device: 'any', 'cpu' or 'gpu'.
    """

    entry: dict[str, Any]
    row: dict[str, Any]
    id: str
    text: str
    experiment: str
    expected: float | str
    device: str

    @property
    def source(self) -> str:
        """The place where the claim is made."""
        return self.entry['source']

    @property
    def why(self) -> str:
        """The reason for the tolerance."""
        text = self.entry['why']
        return text[self.experiment] if isinstance(text, dict) else text

    def cause(self, measured: float) -> str:
        """The known cause of a failure, with the command of the experiment that showed it; '' if it is not known.

        Args:
            measured: the value that fails; a cause explains those that it was found for, and no others.
        """
        for cause in self.entry.get('cause', []):
            if cause['experiment'] == self.experiment and _has(self.row, cause.get('where', {})):
                explains = cause['explains']
                least, most = explains[self.row['exit'] - 1] if isinstance(explains[0], list) else explains
                if least <= measured <= most:
                    return cause['text']
        return ''

    def bounds(self) -> tuple[float, float]:
        """The range (least, most) of measured values for which the claim holds."""
        expected, tolerance = float(self.expected), self._tolerance()
        least = max(expected - tolerance, self.entry.get('floor', -math.inf))
        most = min(expected + tolerance, self.entry.get('ceiling', math.inf))
        return {'higher': (least, math.inf), 'lower': (-math.inf, most), 'same': (least, most)}[self.entry['better']]

    def _tolerance(self) -> float:
        tolerance = self.entry.get('tolerance')
        if tolerance is None:
            return self.entry['relative'] * float(self.expected)
        if tolerance == 'sampling':
            share = float(self.expected) / 100
            return 2 * math.sqrt(2 * share * (1 - share) / 10000) * 100
        if isinstance(tolerance, dict):
            tolerance = tolerance[self.experiment]
        return tolerance[self.row['exit'] - 1] if isinstance(tolerance, list) else tolerance

    @property
    def not_checked(self) -> str | None:
        """The reason why no run can check the claim; None if one can."""
        if self.row.get('exit') == 1 and float(self.row['thresholds'].split()[0]) >= _ALL_LEAVE:
            return f'with thresholds of {_ALL_LEAVE:g} nats or more all images leave at exit 1, whatever the network'
        return self.entry.get('not_checked')

    def command(self) -> str | None:
        """The command that checks the claim; None if it is not checked."""
        if self.not_checked is not None:
            return None
        device = '' if self.device == 'any' else ' --device ' + {'cpu': 'cpu', 'gpu': 'gpu:0'}[self.device]
        return f'./get_results.sh --only {",".join(self._experiments())} --preset {self.entry["preset"]}{device}'

    def minutes(self) -> float:
        """Expected minutes of the command on 2 cores of a CPU."""
        return sum(_file()['minutes'][name][self.entry['preset']] for name in self._experiments())

    def _experiments(self) -> list[str]:
        """The experiment, after those whose weights it needs."""
        return [*_file()['needs'].get(self.experiment, []), self.experiment]


class Verdict(NamedTuple):
    """A claim and its outcome.

    Attributes:
        claim: the claim.
        status: PASS, FAIL or NOT_RUN.
        measured: a value for each seed.
        reason: of a NOT RUN, or of a FAIL that has no measured value; else ''.
    """

    claim: Claim
    status: str
    measured: list[float]
    reason: str

    @property
    def cause(self) -> str:
        """The known cause of a FAIL; '' if it is not known."""
        return self.claim.cause(float(np.mean(self.measured))) if self.status == FAIL and self.measured else ''

    @property
    def is_absent(self) -> bool:
        """Whether the claim was not run because its whole experiment was not."""
        return self.status == NOT_RUN and self.reason == _absent(self.claim.experiment)


def _absent(experiment: str) -> str:
    return f'{experiment} was not run'


def described(verdict: Verdict) -> dict[str, Any]:
    """A verdict, ready for JSON; ``least`` and ``most`` bound the values for which a claim holds."""
    claim = verdict.claim
    least, most = claim.bounds() if claim.not_checked is None else (None, None)
    return {
        'id': claim.id,
        'text': claim.text,
        'status': verdict.status,
        'measured': verdict.measured,
        'expected': claim.expected,
        'least': least,
        'most': most,
        'reason': verdict.reason,
        'command': claim.command(),
    }


def published(name: str) -> list[dict[str, str]]:
    """Reads the rows of a file in published/: texts by column."""
    with open(os.path.join(HERE, 'published', name)) as f:
        return list(csv.DictReader(f))


@lru_cache(None)
def _file() -> dict[str, Any]:
    with open(os.path.join(HERE, 'claims.toml'), 'rb') as f:
        return tomllib.load(f)


def claims() -> list[Claim]:
    """All claims, in the order of claims.toml.

    Raises:
        ValueError: an entry of claims.toml lacks a key, or has an unknown key, measure, preset, experiment, device or
            direction.
    """
    for entry in _file()['claim']:
        _check_entry(entry)
    return [_claim(entry, row) for entry in _file()['claim'] for row in _rows(entry)]


def _check_entry(entry: dict[str, Any]) -> None:
    where = f'claims.toml: claim {entry.get("id", "without id")}'
    needed = {'id', 'text', 'source'} | (
        {'measure', 'better', 'why', 'preset'} if 'not_checked' not in entry else set()
    )
    for key in sorted(needed - entry.keys()):
        raise ValueError(f'{where} lacks {key}')
    for key in sorted(entry.keys() - KEYS):
        raise ValueError(f'{where} has the unknown key {key}: expected some of {", ".join(sorted(KEYS))}')
    choices = {
        'measure': MEASURES,
        'better': ('higher', 'lower', 'same'),
        'preset': PRESETS,
        'device': ('any', 'cpu', 'gpu'),
        'experiment': NAMES,
    }
    for key, known in choices.items():
        if key in entry and entry[key] not in known:
            raise ValueError(f'{where} has {key} {entry[key]}: expected one of {", ".join(known)}')
    if 'measure' in entry and ('tolerance' in entry) == ('relative' in entry):
        raise ValueError(f'{where} has neither tolerance nor relative, or both: expected one of them')
    for cause in entry.get('cause', []):
        if not CAUSE_KEYS - {'where'} <= cause.keys() <= CAUSE_KEYS:
            raise ValueError(
                f'{where} has a cause with {", ".join(sorted(cause))}: expected experiment, text, explains '
                'and perhaps where'
            )
    if ('rows' in entry) != ('value' in entry) or not {'expected', 'value'} & entry.keys():
        raise ValueError(f"{where} needs 'expected', or 'rows' with 'value' (all three are allowed)")


def _rows(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The published rows that an entry turns into claims; one empty row if the entry is a claim by itself."""
    if 'rows' not in entry:
        return [{}]
    each = [
        dict(zip(entry.get('for_each', {}), values))
        for values in itertools.product(*entry.get('for_each', {}).values())
    ]
    rows = [{**_with_role(row), **more} for name in entry['rows'] for row in published(name) for more in each]
    return [row for row in rows if _value(entry, row) and _has(row, entry.get('where', {}))]


def _has(row: dict[str, Any], where: dict[str, Any]) -> bool:
    """Whether a row's columns have certain values."""
    return all(row[column] == value for column, value in where.items())


def _with_role(row: dict[str, str]) -> dict[str, str]:
    """The row, with the column `role`: 'baseline' or 'branchy'."""
    name = row.get('network') or row.get('series', '')
    return {**row, 'role': 'branchy' if name.startswith('B-') else 'baseline'}


def _value(entry: dict[str, Any], row: dict[str, Any]) -> str:
    """The row's value as text; if it lists all exits, the value of the row's exit, or '' if there are fewer exits."""
    text = row[entry['value']]
    return (text.split() + [''] * row['exit'])[row['exit'] - 1] if 'exit' in row else text


def _claim(entry: dict[str, Any], row: dict[str, Any]) -> Claim:
    row = {**row, 'network': row.get('network') or row.get('series', '').split(' ')[0]}
    network = row['network'][2:] if row['network'].startswith('B-') else row['network']
    words = {**row, 'thresholds': row.get('thresholds') or 'baseline'}
    expected = entry['expected'] if 'expected' in entry else _value(entry, row)
    return Claim(
        entry,
        row,
        entry['id'].format(**words),
        entry['text'].format(**words),
        entry.get('experiment') or _file()['networks'][network],
        float(expected) if 'measure' in entry else expected,
        entry.get('device') or row.get('device', 'any').lower(),
    )


def check(results: Results) -> list[Verdict]:
    """Checks every claim.

    A claim is NOT RUN for one of the reasons of `_why_not`. Anything else that is missing or NaN is a FAIL.

    Args:
        results: of a folder.

    Returns:
        A verdict on each claim, in the order of claims.toml.
    """
    return [_verdict(claim, results) for claim in claims()]


def _verdict(claim: Claim, results: Results) -> Verdict:
    reason = _why_not(claim, results)
    if reason is not None:
        return Verdict(claim, NOT_RUN, [], reason)
    runs = results.experiments[claim.experiment]
    measure = MEASURES[claim.entry['measure']]
    try:
        measured = [
            float(measure(claim, [run for run in runs if run.seed == seed]))
            for seed in dict.fromkeys(run.seed for run in runs)
        ]
    except NotFound as e:
        return Verdict(claim, FAIL, [], str(e))
    least, most = claim.bounds()
    holds = bool(measured) and least <= np.mean(measured) <= most and bool(np.isfinite(measured).all())
    return Verdict(claim, PASS if holds else FAIL, measured, '')


def _why_not(claim: Claim, results: Results) -> str | None:
    """The reason why these results cannot check a claim; None if they can."""
    if claim.not_checked is not None:
        return claim.not_checked
    runs = results.experiments.get(claim.experiment)
    if not runs:
        return _absent(claim.experiment)
    order, preset = list(PRESETS), claim.entry['preset']
    needed = _not_as_preset(claim.experiment, runs, results.preset)
    short = fewer_epochs(claim.experiment, runs, preset)
    if order.index(results.preset) < order.index(preset):
        needed.append(f'preset {preset}')
    elif short is not None:
        needed.append(f'all {_epochs(short[1])} epochs of preset {preset} (this run has {_epochs(short[0])})')
    needed += _missing_parts(claim, runs)
    if any(_is_of_other_weights(claim.experiment, run, results) for run in runs):
        needed.append(f'{claim.experiment} counted again (it was, with weights that this folder does not have)')
    devices = {'gpu' if 'cupy' in run.measurement.device else 'cpu' for run in runs}
    if claim.device != 'any' and devices != {claim.device}:
        needed.append('a GPU' if claim.device == 'gpu' else '--device cpu')
    return f'needs {" and ".join(needed)}' if needed else None


def _not_as_preset(name: str, runs: Sequence[Any], preset: str) -> list[str]:
    """The amounts of a preset that runs which are called by its name do not have, but for epochs that they lack."""
    experiment, found = get_experiment(name), []
    for run in runs:
        training, wanted = run.training, experiment.presets[preset]
        found.append((wanted.test_samples, run.measurement.test_samples, 'test images'))
        if training:
            wanted = experiment.amount(run.part, wanted)
            found += [
                (wanted.train_samples, training.train_samples, 'training images'),
                (wanted.batchsize, training.batchsize, 'images per step'),
                (wanted.main_epochs, max(training.main_epochs, wanted.main_epochs), 'main epochs'),
                (wanted.joint_epochs, max(training.joint_epochs, wanted.joint_epochs), 'joint epochs'),
            ]
    return list(
        dict.fromkeys(
            f'the {of_preset} {what} of preset {preset} (this run has {of_run})'
            for of_preset, of_run, what in found
            if of_run != of_preset
        )
    )


def _missing_parts(claim: Claim, runs: Sequence[Any]) -> list[str]:
    """The parts that a claim needs and that were not trained."""
    experiment, at = get_experiment(claim.experiment), claim.entry.get('at')
    named = at if isinstance(at, list) else [claim.row.get('x')]
    needed = [part for part in experiment.parts if part and part in named]
    seeds, there = dict.fromkeys(run.seed for run in runs), {(run.seed, run.part) for run in runs}
    return [f'part {part} of seed {seed}' for seed in seeds for part in needed if (seed, part) not in there]


def _is_of_other_weights(experiment: str, run: Any, results: Results) -> bool:
    """Whether a run counted with weights that the experiment which trained them has replaced since."""
    counted = getattr(run.measurement, 'weights_sha256', None)
    others = [one for name in _file()['needs'].get(experiment, []) for one in results.experiments.get(name, [])]
    return counted is not None and counted not in [
        one.training.weights_sha256 for one in others if one.seed == run.seed
    ]


def fewer_epochs(name: str, runs: Sequence[Any], preset: str) -> tuple[Training, Preset] | None:
    """Finds a training with fewer epochs than a preset.

    Args:
        name: of the experiment.
        runs: of it.
        preset: its name.

    Returns:
        The first such training, and the preset; None if all trainings have as many epochs.
    """
    experiment = get_experiment(name)
    if preset in experiment.presets:
        for run in [run for run in runs if run.training]:
            training, whole = run.training, experiment.amount(run.part, experiment.presets[preset])
            if training.main_epochs < whole.main_epochs or training.joint_epochs < whole.joint_epochs:
                return training, whole
    return None


def _epochs(amount: Training | Preset) -> str:
    return f'{amount.main_epochs} + {amount.joint_epochs}'


# Measures: each takes a claim and the runs of one seed and returns a number. It raises NotFound if there is none.


def best_accuracy(claim: Claim, runs: list[Any]) -> float:
    """Best accuracy (%) of the settings at which ``at`` % or more of the images leave at exit 1."""
    enough = [row.accuracy_percent for row in runs[0].measurement.sweep if row.exit_percent[0] >= claim.entry['at']]
    if not enough:
        most = max(row.exit_percent[0] for row in runs[0].measurement.sweep)
        raise NotFound(f'no setting lets {claim.entry["at"]} % leave at exit 1 (at most {most:.4g} %)')
    return max(enough)


def least_fall(claim: Claim, runs: list[Any]) -> float:
    """Fall of the joint loss (nat) from the first epoch to the last, at the exit where it falls least."""
    loss = runs[0].training.joint.loss
    if len(loss) < 2:
        raise NotFound(f'the joint training has {len(loss)} epochs: a fall needs two or more')
    return float(np.min(np.subtract(loss[0], loss[-1])))


def accuracy(claim: Claim, runs: list[Any]) -> float:
    """Accuracy (%) of a setting or of the baseline; the latter as released unless the row says otherwise."""
    if claim.row['role'] == 'branchy':
        return _setting(claim, runs[0]).accuracy_percent
    baseline = runs[0].measurement.baseline
    before = claim.row.get('measured') == 'before joint training'
    return baseline.accuracy_percent if before else baseline.accuracy_as_released_percent


def exit_share(claim: Claim, runs: list[Any]) -> float:
    """Images (%) that leave at the row's exit; without a row, at the first exit."""
    return _setting(claim, runs[0]).exit_percent[claim.row.get('exit', 1) - 1]


def gain(claim: Claim, runs: list[Any]) -> float:
    """Gain over the baseline of the same run, on the row's clock."""
    return getattr(_setting(claim, runs[0]), f'gain_{claim.row["clock"]}')


def _setting(claim: Claim, run: NetworkRun) -> Setting:
    """The setting with the row's thresholds: the published one, or one of the sweep; without a row, the published.

    The other settings that were run by themselves differ by seed, and their times are not composed as the sweep's are.
    """
    measurement = run.measurement
    if not claim.row.get('thresholds'):
        return measurement.measured.published
    thresholds = [float(t) for t in claim.row['thresholds'].split()]
    for setting in [measurement.measured.published, *measurement.sweep]:
        same_length = len(setting.thresholds) == len(thresholds)
        if same_length and np.allclose(setting.thresholds, thresholds, rtol=1e-9, atol=0):
            return setting
    raise NotFound(f'the sweep has no setting T = {claim.row["thresholds"]}')


def curve(claim: Claim, runs: list[Any]) -> float:
    """Best accuracy (%) within the time at the figure's point, relative to the baseline's (released)."""
    network, measurement = claim.row['network'], runs[0].measurement
    if not network.startswith('B-'):
        return measurement.baseline.accuracy_as_released_percent
    base = next(row for row in published('figures.csv') if row['figure'] == '3' and row['series'] == network[2:])
    limit = float(claim.row['x']) / float(base['x']) * measurement.baseline.released.mean_ms
    enough = [row.accuracy_percent for row in measurement.sweep if row.released_ms <= limit]
    if not enough:
        raise NotFound(f'no setting takes {limit:.4g} ms or less on the released clock')
    return max(enough)


def accuracy_at_share(claim: Claim, runs: list[Any]) -> float:
    """Accuracy (%) at the row's share of images that leave at exit 1 (figure 4)."""
    exit1 = runs[0].measurement.exit1_curve
    return _at_share(claim, exit1, exit1.accuracy_percent)


def entropy_at_share(claim: Claim, runs: list[Any]) -> float:
    """Highest entropy (nat) at the row's share of images that leave at exit 1 (figure 4)."""
    exit1 = runs[0].measurement.exit1_curve
    return _at_share(claim, exit1, exit1.max_entropy_nat)


def _at_share(claim: Claim, exit1: Exit1Curve, values: list[float]) -> float:
    share, least, most = float(claim.row['x']), exit1.exit1_percent[0], exit1.exit1_percent[-1]
    if not least <= share <= most:
        raise NotFound(f'the curve has no share of {share:g} %, only {least:.4g} to {most:.4g} %')
    return float(np.interp(share, exit1.exit1_percent, values))


def final_accuracy(claim: Claim, runs: list[Any]) -> float:
    """Accuracy (%) of the final exit of the part that the row's x names."""
    return _final(runs, claim.row['x'])


def difference(claim: Claim, runs: list[Any]) -> float:
    """Accuracy (%) of the final exit: that of the second part in ``at`` minus that of the first."""
    before, after = claim.entry['at']
    return _final(runs, after) - _final(runs, before)


def _final(runs: list[Any], part: str) -> float:
    for run in runs:
        if run.part == part:
            return run.measurement.exit_accuracy_percent[-1]
    raise NotFound(f'part {part} was not trained')


def cache_miss_ratio(claim: Claim, runs: list[Any]) -> float:
    """Rate of cache misses at the highest thresholds, with which all images leave at exit 1, over the baseline's."""
    *settings, base = runs[0].measurement.cache
    if base.cache_miss_percent == 0:
        raise NotFound('the baseline has no cache misses')
    highest = max(settings, key=lambda point: point.thresholds)
    if min(highest.thresholds) < _ALL_LEAVE:
        raise NotFound(f'no setting was counted whose thresholds are {_ALL_LEAVE:g} nats or more')
    return highest.cache_miss_percent / base.cache_miss_percent


MEASURES: dict[str, Callable[[Claim, list[Any]], float]] = {
    f.__name__: f
    for f in (
        best_accuracy,
        least_fall,
        accuracy,
        exit_share,
        gain,
        curve,
        accuracy_at_share,
        entropy_at_share,
        final_accuracy,
        difference,
        cache_miss_ratio,
    )
}
