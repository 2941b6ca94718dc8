"""Compares two runs bit by bit, and finds the first difference.

A manifest lists the steps of every run in their order: the data, the weights after every epoch, every output array.
Each step has a SHA-256, and numbers that show how large a difference is. Times are not compared.
"""

import os
from collections.abc import Iterator
from numbers import Real
from typing import Any, NamedTuple, Optional

from branchynet import files, schema

import attrs
import numpy as np
from attrs import define, field

FORMAT = 2  # the version of a manifest's format
_MEASURES = ('loss', 'accuracy', 'mean')  # the numbers of a step


def _numbers(_: object, attribute: attrs.Attribute, value: Any) -> None:
    values = value if isinstance(value, list) else [value]
    if value is not None and not all(isinstance(number, Real) for number in values):
        raise ValueError(f'has {attribute.name} {value}: expected a number, or a list of them')


def _not_empty(_: object, attribute: attrs.Attribute, value: list) -> None:
    if not value:
        raise ValueError(f'has no {attribute.name}: expected one at least')


@define(kw_only=True)
class Step:
    """A step of a run: an array, or the weights of a net.

    Attributes:
        what: the step's name.
        sha256: SHA-256 of its bytes.
        loss: training loss (nats) of the epoch before the weights; a number, or a list with one for each exit.
        accuracy: training accuracy in [0, 1], likewise.
        mean: mean of the array.
    """

    what: str
    sha256: str
    loss: Any = field(default=None, validator=_numbers)
    accuracy: Any = field(default=None, validator=_numbers)
    mean: Any = field(default=None, validator=_numbers)


@define(kw_only=True)
class Run:
    """One run of a manifest.

    Attributes:
        name: the run's name.
        settings: settings by name. Two runs are compared only if their settings agree.
        device: the device of the training.
        environment: the environment of the training, of `provenance.environment`.
        measured_in: the environment of the measurement; None if it is not recorded.
        weights_sha256: SHA-256 of each file of trained weights, by file name.
        steps: the steps in their order; at least one.
    """

    name: str
    settings: dict[str, Any]
    device: str
    environment: dict[str, Any]
    measured_in: Optional[dict[str, Any]] = None
    weights_sha256: dict[str, str] = field(factory=dict)
    steps: list[Step] = field(validator=_not_empty)


@define(kw_only=True)
class Manifest:
    """A record of runs, and of the files that they wrote.

    Attributes:
        format: the version of the format.
        preset: the preset of the runs; None in a reference.
        runs: the runs, each name once.
        sha256: SHA-256 of every file of the folder, by the path inside the folder.
    """

    format: int = FORMAT
    preset: Optional[str] = None
    runs: list[Run]
    sha256: dict[str, str] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        names = [run.name for run in self.runs]
        if len(set(names)) < len(names):
            raise ValueError('has two runs of one name: expected each run once')


class Comparison(NamedTuple):
    """The comparison of one run in two manifests.

    Attributes:
        name: the run's name.
        steps: the number of steps that were compared.
        difference: the first step that differs; None if all are the same.
        worst: the largest difference of numbers, relative for numbers above 1; inf if it is unknown.
        causes: the entries of the environments that differ, such as 'numpy: 2.4.6 / 2.2.6'.
    """

    name: str
    steps: int
    difference: Optional[str]
    worst: float
    causes: list[str]

    def passes(self, tolerance: float) -> bool:
        """Whether the bits are the same or, with a tolerance above 0, all numbers agree within it.

        Args:
            tolerance: the largest difference allowed, as in ``worst``.
        """
        return self.difference is None or (tolerance > 0 and self.worst <= tolerance)


def read(path: str) -> Manifest:
    """Reads a manifest, and checks the files that it lists.

    Args:
        path: a results folder, or a manifest's file, whose folder is not checked.

    Returns:
        The manifest.

    Raises:
        OSError: the manifest is missing, damaged or has another format; or a file of the folder is missing or is not
            the one that the manifest lists.
    """
    manifest = os.path.join(path, 'manifest.json') if os.path.isdir(path) else path
    content = schema.read_json(manifest, 'a results folder or a manifest')
    if not isinstance(content, dict) or content.get('format') != FORMAT:
        raise OSError(f'{manifest} is not of format {FORMAT}: expected the manifest of a run of this version')
    try:
        found = schema.structure(content, Manifest)
    except ValueError as e:
        raise OSError(f'{manifest} is damaged: {e}') from e
    if os.path.isdir(path):
        _check_files(path, found.sha256)
    return found


def write(path: str, manifest: Manifest) -> None:
    """Writes a manifest, atomically.

    Args:
        path: path of the file.
        manifest: the manifest.

    Raises:
        OSError: the file cannot be written.
    """
    schema.write(path, {'format': FORMAT, **schema.unstructure(manifest)})


def _check_files(folder: str, sha256s: dict[str, str]) -> None:
    for name, sha256 in sha256s.items():
        path = os.path.join(folder, name)
        if not os.path.exists(path):
            raise FileNotFoundError(f'{path} is missing: the manifest lists it')
        if files.digest(path) != sha256:
            raise OSError(f'{path} is not the file that the manifest lists: expected SHA-256 {sha256}')


def compare(a: Manifest, b: Manifest) -> list[Comparison]:
    """Compares every run that two manifests share.

    Args:
        a: one manifest.
        b: the other.

    Returns:
        One Comparison for each run, in the order of ``a``.

    Raises:
        ValueError: the manifests share no run, or the settings of a run differ.
    """
    others = {run.name: run for run in b.runs}
    shared = [(run, others[run.name]) for run in a.runs if run.name in others]
    if not shared:
        names = ', '.join(run.name for run in a.runs) or 'none'
        raise ValueError(f'the manifests share no run (A: {names}; B: {", ".join(others) or "none"})')
    return [_compare(*pair) for pair in shared]


def left_out(a: Manifest, b: Manifest) -> Iterator[str]:
    """Yields a line about every run that only one of two manifests has.

    Args:
        a: one manifest.
        b: the other.
    """
    names = [[run.name for run in manifest.runs] for manifest in (a, b)]
    for which, mine, others in zip('AB', names, reversed(names)):
        yield from (f'{name}: not compared, as only {which} has it' for name in mine if name not in others)


def _compare(a: Run, b: Run) -> Comparison:
    for key in {**a.settings, **b.settings}:
        here, there = a.settings.get(key), b.settings.get(key)
        if here != there:
            raise ValueError(f'run {a.name}: {key} differs (A: {here}, B: {there})')
    pairs = list(zip(a.steps, b.steps))
    different = [(p, q) for p, q in pairs if (p.what, p.sha256) != (q.what, q.sha256)]
    first, worst = None, 0.0
    if different:
        first, worst = different[0][0].what, max(_distance(p, q) for p, q in different)
    if len(a.steps) != len(b.steps):
        worst = np.inf  # no number measures the difference from a run that was cut short
        first = first or f'{max(a.steps, b.steps, key=len)[len(pairs)].what}, which only one run has'
    diverged = [step.what for step in [*a.steps, *b.steps] if not _is_finite(step)]
    if diverged:
        worst = np.inf  # even if the bits are equal: a run that diverged confirms nothing
        first = first or f'{diverged[0]}, which has NaN or infinity'
    return Comparison(a.name, len(pairs), first, worst, _causes(a, b))


def _is_finite(step: Step) -> bool:
    numbers = [getattr(step, key) for key in _MEASURES if getattr(step, key) is not None]
    return all(np.isfinite(number).all() for number in numbers)


def _distance(p: Step, q: Step) -> float:
    """The largest difference of the numbers of two steps; inf if it is unknown."""
    worst = -np.inf
    for key in _MEASURES:
        here, there = getattr(p, key), getattr(q, key)
        if here is not None and there is not None and np.shape(here) == np.shape(there):
            scale = np.maximum(1, np.maximum(np.abs(here), np.abs(there)))
            worst = np.maximum(worst, np.max(np.abs(np.subtract(here, there)) / scale))  # NaN stays NaN
    return worst if p.what == q.what and worst >= 0 else np.inf


def _causes(a: Run, b: Run) -> list[str]:
    here, there = ({'device': run.device, **run.environment} for run in (a, b))
    names = [
        'commit',
        'tree',
        'code_sha256',
        'python',
        'numpy',
        'chainer',
        'cupy',
        'packages',
        'platform',
        'cpu',
        'profile',
        'numpy_kernels',
        'onednn',
        'blas',
        'threads',
        'device',
        'gpus',
        'cuda',
    ]
    pairs = ((name, here.get(name), there.get(name)) for name in names)
    return [f'{name}: {" / ".join(map(str, _short(p, q)))}' for name, p, q in pairs if p != q]


def _short(a: Any, b: Any) -> tuple[Any, Any]:
    """Two values; if they are dicts, only the entries in which they differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [key for key in {**a, **b} if a.get(key) != b.get(key)]
        return {key: a.get(key) for key in keys}, {key: b.get(key) for key in keys}
    return a, b


def lines(comparisons: list[Comparison], tolerance: float) -> Iterator[str]:
    """Yields a line about each comparison, and one about each possible cause of a difference.

    Args:
        comparisons: comparisons of `compare`.
        tolerance: the largest difference of numbers allowed; 0 allows none.
    """
    for c in comparisons:
        if c.difference is None:
            yield f'{c.name}: identical ({c.steps} steps)'
            continue
        verdict = f'the same within {tolerance:g}' if c.passes(tolerance) else 'different'
        distance = 'where no number says how far' if np.isinf(c.worst) else f'numbers by up to {c.worst:.3g}'
        yield f'{c.name}: {verdict}; first in {c.difference}, {distance}'
        yield from (f'    {cause}' for cause in c.causes)
