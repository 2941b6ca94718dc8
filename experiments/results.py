"""The content of results.json as typed classes, and the only code that reads and writes the file.

    results = read('results/lenet_mnist_quick')
    results.experiments['lenet_mnist'][0].measurement.measured.knee.accuracy_percent

The record of a seed has two parts. `training` is the history of its weights and never changes. `measurement` is the
accuracy and the speed of these weights; `branchynet measure` makes it again from them.

The annotations say `Optional[...]`, not `... | None`: cattrs evaluates them, and Python 3.9 cannot evaluate the latter.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Optional

from branchynet import schema
from branchynet.experiments import NAMES, NETWORKS, PRESETS, get_experiment
from branchynet.experiments.run_id import RunId

import attrs
from attrs import define, field
from attrs.validators import deep_iterable, ge, optional

FORMAT = 2
NAME = 'results.json'
DISAGREEMENT_PERCENT = 10  # between composed and direct times; reports name settings that are above it


def _positive(_: object, attribute: attrs.Attribute, value: float) -> None:
    if not 0 < value < math.inf:  # NaN too
        raise ValueError(f'has {attribute.name} {value}: expected a finite number above 0')


def _percentage(_: object, attribute: attrs.Attribute, value: float) -> None:
    if not 0 <= value <= 100:
        raise ValueError(f'has {attribute.name} {value}: expected 0 to 100')


def _not_empty(_: object, attribute: attrs.Attribute, value: Any) -> None:
    if not value:
        raise ValueError(f'has no {attribute.name}: expected at least one')


def _shares(_: object, attribute: attrs.Attribute, value: list[float]) -> None:
    if not abs(sum(value) - 100) < 1e-6:
        raise ValueError(f'has {attribute.name} {value}: expected shares with the sum 100')


def _rising(_: object, attribute: attrs.Attribute, value: list[float]) -> None:
    if any(one > other for one, other in zip(value, value[1:])):
        raise ValueError(f'has a falling {attribute.name}: expected shares that rise or stay')


def _finite(_: object, attribute: attrs.Attribute, value: list[float]) -> None:
    if not all(map(math.isfinite, value)):
        raise ValueError(f'has {attribute.name} with NaN or infinity: expected numbers')


PERCENTAGES = [_not_empty, deep_iterable(_percentage)]


@define(kw_only=True)
class Blas:
    """A library that has its own threads, as threadpoolctl describes it."""

    internal_api: str
    version: Optional[str]
    architecture: Optional[str]
    num_threads: int


@define(kw_only=True)
class Environment:
    """The machine, the libraries and the code that made the figures; None where something is absent or unknown.

    Attributes:
        commit: the commit of the code.
        tree: 'clean', 'dirty' or 'unknown'.
        code_sha256: over the package's files, which the commit describes only if the tree is clean.
        packages: versions by name.
        profile: the bit profile in place.
        threads: the number of threads of branchynet.cpu.
        command: the command line.
    """

    commit: Optional[str]
    tree: Optional[str]
    python: str
    numpy: str
    chainer: str
    cupy: Optional[str]
    packages: dict[str, str]
    platform: str
    cpu: str
    cores: int
    profile: Optional[str]
    threads: int
    numpy_kernels: list[str]
    onednn: Optional[dict[str, str]]
    blas: list[Blas]
    gpus: list[str]
    cuda: Optional[dict[str, Any]]
    command: str
    code_sha256: Optional[str] = None


@define(kw_only=True)
class MainTraining:
    """The baseline's training, one entry per epoch; loss (nat) and accuracy (share) are means over its batches."""

    loss: list[float] = field(factory=list)
    accuracy: list[float] = field(factory=list)
    weights_sha256: list[str] = field(factory=list)
    seconds: float = 0.0


@define(kw_only=True)
class JointTraining:
    """The joint training, one entry per epoch; loss (nat) and accuracy (share) have a number for each exit."""

    loss: list[list[float]] = field(factory=list)
    accuracy: list[list[float]] = field(factory=list)
    weights_sha256: list[str] = field(factory=list)
    seconds: float = 0.0


@define(kw_only=True)
class Training:
    """The history of a seed's weights.

    Attributes:
        variant: one of VARIANTS.
        device: Chainer's name of the device.
        main_epochs: epochs of the baseline.
        joint_epochs: epochs of the joint training.
        batchsize: images per step.
        train_samples: number of training images.
        data_sha256: over all four arrays of the cut data.
        environment: where the training ran.
        main: the history of the baseline's training.
        joint: the history of the joint training.
        main_weights_sha256: of the file with the baseline's weights before joint training; None if that file was not
            kept.
        weights_sha256: of the file with the final weights; empty until the training ends.
        ranks: number of processes that trained together.
        communicator: ChainerMN's, by which they did; None for one process alone.
        batch_normalization: 'local' or 'synchronised' among the ranks; None for one process alone.
    """

    variant: str
    device: str
    main_epochs: int
    joint_epochs: int
    batchsize: int
    train_samples: int
    data_sha256: str
    environment: Environment
    main: MainTraining = field(factory=MainTraining)
    joint: JointTraining = field(factory=JointTraining)
    main_weights_sha256: Optional[str] = None
    weights_sha256: str = ''
    ranks: int = 1
    communicator: Optional[str] = None
    batch_normalization: Optional[str] = None

    def has_all_epochs(self) -> bool:
        """Whether both trainings have ended."""
        return (len(self.main.loss), len(self.joint.loss)) == (self.main_epochs, self.joint_epochs)

    def check_complete(self) -> None:
        """Checks that all epochs were trained and the weights saved.

        Raises:
            ValueError: they were not; the message names the missing part.
        """
        for phase, count in (('main', self.main_epochs), ('joint', self.joint_epochs)):
            history = getattr(self, phase)
            for what in 'loss', 'accuracy', 'weights_sha256':
                if len(getattr(history, what)) != count:
                    raise ValueError(
                        f'has {len(getattr(history, what))} epochs of training.{phase}.{what}: expected {count}'
                    )
        if not self.weights_sha256:
            raise ValueError('has no training.weights_sha256: expected that of the weights file')


@define(kw_only=True)
class Digest:
    """The identity of an output array: its SHA-256, and its mean, which shows how far two arrays differ."""

    sha256: str
    mean: float


@define(kw_only=True)
class Timed:
    """Milliseconds per image on one clock, at batch size 1."""

    mean_ms: float = field(validator=_positive)
    median_ms: float = field(validator=_positive)
    p95_ms: float = field(validator=_positive)


@define(kw_only=True)
class Baseline:
    """The baseline network.

    Attributes:
        accuracy_percent: of main before joint training, the independent network that the paper describes.
        accuracy_as_released_percent: of main after joint training, as the authors' code measures it.
        released: times on the released clock.
        whole: times on the whole clock.
    """

    accuracy_percent: float = field(validator=_percentage)
    accuracy_as_released_percent: float = field(validator=_percentage)
    released: Timed
    whole: Timed


@define(kw_only=True)
class Macs:
    """Multiply-adds for one image.

    Attributes:
        main: of the baseline.
        exits: (E,), of everything that runs for an image that leaves at each exit.
    """

    main: int = field(validator=_positive)
    exits: list[int] = field(validator=_not_empty)


@define(kw_only=True)
class Setting:
    """Thresholds and their effect.

    Attributes:
        thresholds: (E - 1,), nats, of all exits but the last.
        accuracy_percent: over all test images.
        exit_percent: (E,), images that leave at each exit.
        gain_released: the baseline's mean time over this setting's, on the released clock.
        gain_whole: the same on the whole clock.
        gain_allowed: the baseline's multiply-adds over this setting's at these exit shares.
        efficiency: gain_whole over gain_allowed.
    """

    thresholds: list[float]
    accuracy_percent: float = field(validator=_percentage)
    exit_percent: list[float] = field(validator=[*PERCENTAGES, _shares])
    gain_released: float = field(validator=_positive)
    gain_whole: float = field(validator=_positive)
    gain_allowed: float = field(validator=_positive)
    efficiency: float = field(validator=_positive)


@define(kw_only=True)
class SweptSetting(Setting):
    """A setting of the sweep. Its times (ms per image) are composed from the measured times of the stages."""

    released_ms: float = field(validator=_positive)
    whole_ms: float = field(validator=_positive)
    whole_median_ms: float = field(validator=_positive)
    whole_p95_ms: float = field(validator=_positive)


@define(kw_only=True)
class Pairs:
    """Images that the BranchyNet and the baseline before joint training classify correctly: both, one, or neither."""

    both_right: int
    only_branchy_right: int
    only_baseline_right: int
    both_wrong: int


class Disagreement(NamedTuple):
    """A setting's composed and direct time.

    Attributes:
        clock: 'released' or 'whole'.
        composed_ms: mean time per image that the sweep composes.
        direct_ms: mean time per image of the setting run by itself.
    """

    clock: str
    composed_ms: float
    direct_ms: float

    @property
    def percent(self) -> float:
        """The difference in percent of the direct time."""
        return abs(self.composed_ms / self.direct_ms - 1) * 100


@define(kw_only=True)
class DirectSetting(Setting):
    """A setting that was run by itself, image by image.

    Attributes:
        released: direct times on the released clock.
        whole: direct times on the whole clock.
        images: which of BranchyNet and baseline classifies them correctly.
        composed_released_ms: the mean that the sweep composes for the released clock; None in converted results whose
            sweep lacks the setting.
        composed_whole_ms: the same for the whole clock.
    """

    released: Timed
    whole: Timed
    images: Pairs
    composed_released_ms: Optional[float] = field(default=None, validator=optional(_positive))
    composed_whole_ms: Optional[float] = field(default=None, validator=optional(_positive))

    def disagreements(self) -> list[Disagreement]:
        """The composed and direct times on each clock that has a composed time."""
        times = (
            ('released', self.composed_released_ms, self.released.mean_ms),
            ('whole', self.composed_whole_ms, self.whole.mean_ms),
        )
        return [Disagreement(clock, composed, direct) for clock, composed, direct in times if composed is not None]

    def disagreement_percent(self) -> float:
        """The difference between composed and direct time, on the clock where it is larger."""
        return max((one.percent for one in self.disagreements()), default=0.0)


@define(kw_only=True)
class Measured:
    """The settings that were run by themselves.

    Attributes:
        published: the paper's thresholds.
        knee: the fastest setting that is at least as accurate as the baseline; if there is none, the most accurate.
        fastest: of the sweep, to check its composed times; None in converted results.
        slowest: of the sweep, for the same purpose.
    """

    published: DirectSetting
    knee: DirectSetting
    fastest: Optional[DirectSetting] = None
    slowest: Optional[DirectSetting] = None

    def by_name(self) -> dict[str, DirectSetting]:
        """The settings that are not None, by their names."""
        settings = {name: getattr(self, name) for name in ('published', 'knee', 'fastest', 'slowest')}
        return {name: setting for name, setting in settings.items() if setting is not None}


@define(kw_only=True)
class Exit1Curve:
    """Figure 4: accuracy and the highest entropy that leaves at exit 1, against the share that leaves there.

    Attributes:
        exit1_percent: (points,), images that leave at exit 1; they never fall.
        accuracy_percent: (points,).
        max_entropy_nat: (points,).
    """

    exit1_percent: list[float] = field(validator=[*PERCENTAGES, _rising])
    accuracy_percent: list[float] = field(validator=PERCENTAGES)
    max_entropy_nat: list[float] = field(validator=_finite)

    def __attrs_post_init__(self) -> None:
        lengths = [len(self.exit1_percent), len(self.accuracy_percent), len(self.max_entropy_nat)]
        if len(set(lengths)) > 1:
            raise ValueError(f'has lists of {", ".join(map(str, lengths))} points: expected the same number')


@define(kw_only=True)
class NetworkMeasurement:
    """Accuracy and speed of a network of the paper and of its baseline.

    Attributes:
        device: Chainer's name of the device.
        environment: where the measurement ran.
        test_samples: number of test images.
        compiled: whether the net was compiled for inference.
        baseline: the network without exits.
        macs: multiply-adds.
        exit_accuracy_percent: (E,), of each exit over all images.
        outputs: digests of the output arrays, by name.
        exit1_curve: figure 4.
        sweep: all settings.
        knee: the index of a setting in `sweep`.
        measured: settings that were run by themselves.
        composed_off_percent: the largest difference between composed and direct times of a setting.
    """

    device: str
    environment: Environment
    test_samples: int = field(validator=_positive)
    compiled: bool
    baseline: Baseline
    macs: Macs
    exit_accuracy_percent: list[float] = field(validator=PERCENTAGES)
    outputs: dict[str, Digest]
    exit1_curve: Exit1Curve
    sweep: list[SweptSetting] = field(validator=_not_empty)
    knee: int
    measured: Measured
    composed_off_percent: float = field(validator=ge(0))

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.knee < len(self.sweep):
            raise ValueError(f'has knee {self.knee}: expected the index of one of its {len(self.sweep)} settings')
        exits = len(self.exit_accuracy_percent)
        for setting in [*self.sweep, *self.measured.by_name().values()]:
            if (len(setting.thresholds), len(setting.exit_percent)) != (exits - 1, exits):
                raise ValueError(
                    f'has a setting with thresholds {setting.thresholds} and {len(setting.exit_percent)} '
                    f'exits: expected {exits - 1} thresholds and {exits} exits'
                )

    def disagreements(self) -> dict[str, Disagreement]:
        """The settings whose composed and direct times differ by more than DISAGREEMENT_PERCENT.

        Returns:
            The times by the setting's name, on the clock where they differ more.
        """
        found = {}
        for name, setting in self.measured.by_name().items():
            worst = max(setting.disagreements(), key=lambda one: one.percent, default=None)
            if worst is not None and worst.percent > DISAGREEMENT_PERCENT:
                found[name] = worst
        return found


@define(kw_only=True)
class ComparisonMeasurement:
    """Accuracy of the exits of one part of a comparison; the fields are those of NetworkMeasurement."""

    device: str
    environment: Environment
    test_samples: int = field(validator=_positive)
    exit_accuracy_percent: list[float] = field(validator=PERCENTAGES)
    outputs: dict[str, Digest]


@define(kw_only=True)
class CachePoint:
    """Cache misses of one setting.

    Attributes:
        thresholds: (E - 1,), nats; empty for the baseline.
        runtime_ms: mean time of an image on the whole clock.
        references: loads and stores.
        misses: misses of the last-level cache.
        cache_miss_percent: misses of all loads and stores.
    """

    thresholds: list[float]
    runtime_ms: float = field(validator=_positive)
    references: int = field(validator=_positive)
    misses: int = field(validator=ge(0))
    cache_miss_percent: float = field(validator=_percentage)


@define(kw_only=True)
class CacheMeasurement:
    """Figure 6: counts of a tool while images were classified one by one."""

    device: str
    environment: Environment
    test_samples: int = field(validator=_positive)
    data_sha256: str
    variant: str
    tool: str
    cache: list[CachePoint]
    weights_sha256: Optional[str] = None  # of the network; None in results of earlier versions

    def __attrs_post_init__(self) -> None:
        exits = [len(point.thresholds) for point in self.cache]
        if len(exits) < 2 or exits[-1] or not all(exits[:-1]) or len(set(exits[:-1])) > 1:
            raise ValueError('has a cache without settings or baseline: expected some settings, then the baseline')


@define(kw_only=True)
class Run:
    """One seed of one part of an experiment; an experiment without parts has part ''."""

    seed: int
    part: str = ''


@define(kw_only=True)
class TrainedRun(Run):
    """A seed that was trained and measured."""

    training: Training
    measurement: Any

    def __attrs_post_init__(self) -> None:
        self.training.check_complete()
        exits = len(self.measurement.exit_accuracy_percent)
        if any(len(losses) != exits for losses in self.training.joint.loss):
            raise ValueError(f'has {exits} exits in its measurement: expected as many as its training')


@define(kw_only=True)
class NetworkRun(TrainedRun):
    """A seed of a network of the paper."""

    measurement: NetworkMeasurement


@define(kw_only=True)
class ComparisonRun(TrainedRun):
    """A seed of one part of figure5, loss_weights or initialisation."""

    measurement: ComparisonMeasurement


@define(kw_only=True)
class CacheRun(Run):
    """A seed of figure6, which counts with weights that alex_cifar10 trained."""

    training: ClassVar[None] = None
    measurement: CacheMeasurement


@define(kw_only=True)
class Results:
    """A results folder's figures.

    Attributes:
        preset: one of PRESETS.
        variant: one of VARIANTS.
        experiments: runs by the experiment's name, one for each seed (in comparisons for each seed and part).
    """

    preset: str
    variant: str
    experiments: dict[str, list[Any]] = field(factory=dict)

    def by_id(self) -> dict[RunId, Any]:
        """All runs by their identities."""
        return {RunId(name, run.part, run.seed): run for name, runs in self.experiments.items() for run in runs}

    def trainings(self) -> dict[RunId, Optional[Training]]:
        """The training of every run; None for a run that trained nothing."""
        return {run_id: run.training for run_id, run in self.by_id().items()}


def run_class(name: str) -> type:
    """The class of an experiment's runs."""
    if name in NETWORKS:
        return NetworkRun
    return CacheRun if name == 'figure6' else ComparisonRun


def path_of(folder: str) -> str:
    """The path of a folder's results.json."""
    return os.path.join(folder, NAME)


def read(folder: str) -> Results:
    """Reads a folder's results.json.

    Args:
        folder: a results folder.

    Returns:
        The results.

    Raises:
        OSError: results.json is missing, is damaged, has another format, or holds no results.
    """
    path = path_of(folder)
    content = schema.read_json(path, 'the results of a run')
    if isinstance(content, dict) and content.get('format') in range(1, FORMAT):
        raise OSError(
            f"{path} has format {content['format']}: 'branchynet results convert {folder}' brings it to format {FORMAT}"
        )
    try:
        return from_json(content)
    except ValueError as e:
        raise OSError(f'{path} is damaged or not of format {FORMAT}: {e}') from e


def check_several(folders: Sequence[str]) -> None:
    """Checks, before folders are read, that there are two or more, and none twice.

    Args:
        folders: that are joined or compared.

    Raises:
        ValueError: there are not.
    """
    if len(folders) < 2:
        raise ValueError('one folder is given: expected two or more')
    if len({os.path.realpath(folder) for folder in folders}) < len(folders):
        raise ValueError(f'a folder is given twice among {", ".join(folders)}')


def from_json(content: Any) -> Results:
    """Makes results from the content of a results.json.

    Args:
        content: as json.load gives it.

    Returns:
        The results.

    Raises:
        ValueError: the content is not that of results of this format; the message names the place.
    """
    if not isinstance(content, dict) or content.get('format') != FORMAT:
        raise ValueError(f'the content has no format {FORMAT}: expected the results of a run')
    experiments = content.get('experiments')
    results = schema.structure(
        {**{key: value for key, value in content.items() if key != 'format'}, 'experiments': {}}, Results
    )
    if results.preset not in PRESETS:
        raise ValueError(f'preset is {results.preset}: expected one of {", ".join(PRESETS)}')
    if not isinstance(experiments, dict) or not experiments:
        raise ValueError('experiments is empty: expected at least one experiment')
    for name, runs in experiments.items():
        results.experiments[name] = _runs_from_json(name, runs)
        presets = get_experiment(name).presets
        if results.preset not in presets:
            raise ValueError(f'experiments.{name} has preset {results.preset}: expected one of {", ".join(presets)}')
    for run_id, run in results.by_id().items():
        variant = (run.training or run.measurement).variant
        if variant != results.variant:
            raise ValueError(f'{run_id} has variant {variant}: expected {results.variant}, as the results')
    return results


def _runs_from_json(name: str, runs: Any) -> list[Any]:
    if name not in NAMES:
        raise ValueError(f'experiments has {name}, which is not an experiment: expected some of {", ".join(NAMES)}')
    if not isinstance(runs, list) or not runs:
        raise ValueError(f'experiments.{name} is empty: expected at least one seed')
    found: list[Any] = [
        schema.structure(run, run_class(name), f'experiments.{name}[{i}]') for i, run in enumerate(runs)
    ]
    for i, run in enumerate(found):
        _check_run(name, run, f'experiments.{name}[{i}]')
    ((part, seed), count), *_ = Counter((run.part, run.seed) for run in found).most_common(1)
    if count > 1:
        raise ValueError(f'experiments.{name} has {count} runs of part {part!r} and seed {seed}: expected one')
    return found


def _check_run(name: str, run: Any, where: str) -> None:
    """Checks that a run has a part and the number of exits of its experiment."""
    experiment = get_experiment(name)
    if run.part not in experiment.parts:
        raise ValueError(f'{where} has part {run.part!r}: expected one of {", ".join(map(repr, experiment.parts))}')
    if name in NETWORKS:
        exits, expected = len(run.measurement.exit_accuracy_percent), len(experiment.published_thresholds) + 1
        if exits != expected:
            raise ValueError(f'{where} has {exits} exits: expected {expected}')


def to_json(results: Results) -> dict[str, Any]:
    """The content of a results.json."""
    return {'format': FORMAT, **schema.unstructure(results)}


def write(folder: str, results: Results) -> None:
    """Writes a folder's results.json, whole or not at all.

    Args:
        folder: a results folder.
        results: its new content.
    """
    schema.write(path_of(folder), to_json(results))
