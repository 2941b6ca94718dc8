"""Whether two runs gave the same bits, and where they first differ.

A manifest lists the steps of every run in their order: the data, the weights after every epoch, every output
array, each with its SHA-256 and numbers that say how far two of them differ. Times are not compared.
"""
import json
from numbers import Real
import os
from typing import NamedTuple, Optional

from branchynet import _chainer  # noqa: F401
import numpy as np

from branchynet import files

FORMAT = 2  # of a manifest
_MEASURES = ('loss', 'accuracy', 'mean')  # of a step: a number, or one for each exit


class Comparison(NamedTuple):
    """One run, as two manifests have it.

    Attributes:
        name: of the run.
        count: steps compared.
        difference: the first step that differs, None where all are the same.
        worst: how far numbers differ at most, relative where they are above 1; inf where a step has none.
        causes: what differs in the environments, as 'numpy 2.4.6 / 2.2.6'.
    """
    name: str
    count: int
    difference: Optional[str]
    worst: float
    causes: list

    def passes(self, tolerance):
        """Whether the bits are the same, or, where a tolerance above 0 is given, numbers near each other."""
        return self.difference is None or tolerance > 0 and self.worst <= tolerance


def read(path):
    """The manifest of a results folder, or of a file.

    Raises:
        OSError: missing, damaged, of another version; or a file of the folder is not the one that it lists.
    """
    manifest = os.path.join(path, 'manifest.json') if os.path.isdir(path) else path
    try:
        with open(manifest, encoding='utf-8') as f:
            content = json.load(f)
    except FileNotFoundError:
        raise FileNotFoundError('%s is missing: expected a results folder or a manifest' % manifest) from None
    except ValueError as e:
        raise OSError('%s is damaged (%s): expected a manifest' % (manifest, e)) from e
    if not isinstance(content, dict) or content.get('format') != FORMAT:
        raise OSError('%s is not of format %d: expected the manifest of a run of this version' % (manifest, FORMAT))
    if not _is_whole(content):
        raise OSError('%s lacks parts of a manifest: expected runs, each with its settings and steps' % manifest)
    if os.path.isdir(path):
        _check_files(path, content.get('sha256', {}))
    return content


def _is_whole(content):
    runs = content.get('runs')
    return isinstance(runs, list) and isinstance(content.get('sha256', {}), dict) and all(
        _has(run, name=str, settings=dict, environment=dict, device=str, steps=list) and run['steps']
        and all(_has(step, what=str, sha256=str) and _has_numbers(step) for step in run['steps']) for run in runs
    ) and len({run['name'] for run in runs}) == len(runs)


def _has(content, **kinds):
    return isinstance(content, dict) and all(isinstance(content.get(key), kind) for key, kind in kinds.items())


def _has_numbers(step):
    values = [step[key] for key in _MEASURES if key in step]
    return all(isinstance(number, Real) for value in values
               for number in (value if isinstance(value, list) else [value]))


def _check_files(folder, sha256s):
    for name, sha256 in sha256s.items():
        path = os.path.join(folder, name)
        if not os.path.exists(path):
            raise FileNotFoundError('%s is missing: expected what its manifest lists' % path)
        if files.digest(path) != sha256:
            raise OSError('%s is not what its manifest lists: expected SHA-256 %s' % (path, sha256))


def compare(a, b):
    """A Comparison of every run that two manifests share.

    Raises:
        ValueError: they share none, or one with other settings.
    """
    others = {run['name']: run for run in b['runs']}
    shared = [(run, others[run['name']]) for run in a['runs'] if run['name'] in others]
    if not shared:
        raise ValueError('the runs are %s: expected some of %s' % (
            ', '.join(run['name'] for run in a['runs']) or 'none', ', '.join(others) or 'none'))
    return [_compare(*pair) for pair in shared]


def left_out(a, b):
    """A line on every run that only one of two manifests has."""
    names = [[run['name'] for run in manifest['runs']] for manifest in (a, b)]
    for which, mine, others in zip('AB', names, reversed(names)):
        yield from ('%s: not compared, as only %s has it' % (name, which) for name in mine if name not in others)


def _compare(a, b):
    for key in {**a['settings'], **b['settings']}:
        here, there = (run['settings'].get(key) for run in (a, b))
        if here != there:
            raise ValueError('%s has %s %s: expected %s, as the other has' % (a['name'], key, there, here))
    pairs = list(zip(a['steps'], b['steps']))
    different = [(p, q) for p, q in pairs if (p['what'], p['sha256']) != (q['what'], q['sha256'])]
    first, worst = None, 0.
    if different:
        first, worst = different[0][0]['what'], max(_distance(p, q) for p, q in different)
    elif len(a['steps']) != len(b['steps']):
        first, worst = max(a['steps'], b['steps'], key=len)[len(pairs)]['what'] + ', which one has not', np.inf
    return Comparison(a['name'], len(pairs), first, worst, _causes(a, b))


def _distance(p, q):
    """How far the numbers of two steps differ; inf where that cannot be said."""
    worst = -np.inf
    for key in _MEASURES:
        if key in p and key in q and np.shape(p[key]) == np.shape(q[key]):
            scale = np.maximum(1, np.maximum(np.abs(p[key]), np.abs(q[key])))
            worst = np.maximum(worst, np.max(np.abs(np.subtract(p[key], q[key])) / scale))  # NaN stays NaN
    return worst if p['what'] == q['what'] and worst >= 0 else np.inf


def _causes(a, b):
    here, there = ({'device': run['device'], **run['environment']} for run in (a, b))
    names = ['commit', 'tree', 'python', 'numpy', 'chainer', 'cupy', 'packages', 'platform', 'cpu', 'profile',
             'numpy_kernels', 'onednn', 'blas', 'threads', 'device', 'gpus', 'cuda']
    return ['%s: %s / %s' % (name, *_short(here.get(name), there.get(name)))
            for name in names if here.get(name) != there.get(name)]


def _short(a, b):
    """Two values; of dicts, where they differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [key for key in {**a, **b} if a.get(key) != b.get(key)]
        a, b = ({key: value.get(key) for key in keys} for value in (a, b))
    return a, b


def lines(comparisons, tolerance):
    """What to tell of comparisons, a line on each run and on what may be the cause."""
    for c in comparisons:
        if c.difference is None:
            yield '%s: identical (%d steps)' % (c.name, c.count)
            continue
        verdict = 'the same within %g' % tolerance if c.passes(tolerance) else 'different'
        distance = 'where no number says how far' if np.isinf(c.worst) else 'numbers by up to %.3g' % c.worst
        yield '%s: %s; first in %s, %s' % (c.name, verdict, c.difference, distance)
        yield from ('    ' + cause for cause in c.causes)
