"""The content of results.json as typed classes, and the only code that reads and writes the file.

    results = read('results/lenet_mnist_quick')
    results.experiments['lenet_mnist'][0].measurement.measured.knee.accuracy_percent

A seed's record has two parts. `training` says how the weights came about and is never changed. `measurement` says
how well and how fast they classify; `branchynet measure` makes it again from the weights.
"""
from __future__ import annotations

from functools import partial
import os
from typing import Any, Optional

import attrs
from attrs import define, field
from attrs.validators import deep_iterable, ge

from branchynet import schema
from branchynet.experiments import NAMES, NETWORKS, PRESETS

FORMAT = 2
NAME = 'results.json'
DISAGREEMENT_PERCENT = 10  # between composed and direct times, from which a run is said to disagree with itself

record = partial(define, kw_only=True)


def _positive(_: object, attribute: attrs.Attribute, value: float) -> None:
    if not value > 0:  # NaN too
        raise ValueError(f'has {attribute.name} {value}: expected a number above 0')


def _percentage(_: object, attribute: attrs.Attribute, value: float) -> None:
    if not 0 <= value <= 100:
        raise ValueError(f'has {attribute.name} {value}: expected 0 to 100')


def _not_empty(_: object, attribute: attrs.Attribute, value: Any) -> None:
    if not value:
        raise ValueError(f'has no {attribute.name}: expected one at least')


def _percent(**kwargs: Any) -> Any:
    return field(validator=_percentage, **kwargs)


def _percents() -> Any:
    return field(validator=[_not_empty, deep_iterable(_percentage)])


def _above_zero() -> Any:
    return field(validator=_positive)


@record
class Blas:
    """A library with threads of its own, as threadpoolctl describes it."""
    internal_api: str
    version: Optional[str]
    architecture: Optional[str]
    num_threads: int


@record
class Environment:
    """The machine, the libraries and the code that figures came from; None where something is absent or unknown.

    Attributes:
        commit: of the code. tree: 'clean' or 'dirty'.
        code_sha256: over the package's files, which the commit describes only in a clean tree.
        packages: versions by name.
        profile: the bit profile in place. threads: of branchynet.cpu.
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


@record
class MainTraining:
    """The baseline's training, one entry per epoch; loss (nat) and accuracy (share) are means over its batches."""
    loss: list[float] = field(factory=list)
    accuracy: list[float] = field(factory=list)
    weights_sha256: list[str] = field(factory=list)
    seconds: float = 0.


@record
class JointTraining:
    """The joint training, one entry per epoch; loss (nat) and accuracy (share) have a number for each exit."""
    loss: list[list[float]] = field(factory=list)
    accuracy: list[list[float]] = field(factory=list)
    weights_sha256: list[str] = field(factory=list)
    seconds: float = 0.


@record
class Training:
    """How a seed's weights came about.

    Attributes:
        variant: one of VARIANTS. device: Chainer's name of the device.
        train_samples: images trained on. data_sha256: over all four arrays of the cut data.
        main_weights_sha256: of the file with the baseline's weights before joint training; None where it was not
            kept. weights_sha256: of the file with the final weights; empty until the training ends.
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

    def check_complete(self) -> None:
        """Raises ValueError unless all epochs were trained and the weights saved."""
        for phase, count in (('main', self.main_epochs), ('joint', self.joint_epochs)):
            history = getattr(self, phase)
            for what in 'loss', 'accuracy', 'weights_sha256':
                if len(getattr(history, what)) != count:
                    raise ValueError(f'has {len(getattr(history, what))} epochs of training.{phase}.{what}: expected '
                                     f'{count}')
        if not self.weights_sha256:
            raise ValueError('has no training.weights_sha256: expected that of the weights file')


@record
class Digest:
    """An output array's identity: its SHA-256, and its mean, which says how far two arrays differ."""
    sha256: str
    mean: float


@record
class Timed:
    """Milliseconds per image on one clock, at batch size 1."""
    mean_ms: float = _above_zero()
    median_ms: float = _above_zero()
    p95_ms: float = _above_zero()


@record
class Baseline:
    """The baseline network.

    Attributes:
        accuracy_percent: of main before joint training, the independent network that the paper describes.
        accuracy_as_released_percent: of main after joint training, as the authors' code measures it.
        released, whole: times on the two clocks.
    """
    accuracy_percent: float = _percent()
    accuracy_as_released_percent: float = _percent()
    released: Timed
    whole: Timed


@record
class Macs:
    """Multiply-adds for one image: of the baseline, and of all that runs for an image that leaves at each exit."""
    main: int = _above_zero()
    exits: list[int] = field(validator=_not_empty)


@record
class Setting:
    """Thresholds (nat) of all exits but the last, and what they give.

    Attributes:
        exit_percent: images that leave at each exit.
        gain_released, gain_whole: the baseline's mean time over this setting's.
        gain_allowed: the baseline's multiply-adds over this setting's at these exit shares.
        efficiency: gain_whole over gain_allowed.
    """
    thresholds: list[float]
    accuracy_percent: float = _percent()
    exit_percent: list[float] = _percents()
    gain_released: float = _above_zero()
    gain_whole: float = _above_zero()
    gain_allowed: float = _above_zero()
    efficiency: float = _above_zero()


@record
class SweptSetting(Setting):
    """A setting of the sweep: its times are composed from the measured times of the stages."""
    released_ms: float = _above_zero()
    whole_ms: float = _above_zero()
    whole_median_ms: float = _above_zero()
    whole_p95_ms: float = _above_zero()


@record
class Pairs:
    """Images that the BranchyNet and the baseline before joint training classify correctly: both, one, or neither."""
    both_right: int
    only_branchy_right: int
    only_baseline_right: int
    both_wrong: int


@record
class DirectSetting(Setting):
    """A setting that was run by itself, image by image.

    Attributes:
        composed_released_ms, composed_whole_ms: the means that the sweep composes for it; None in converted results
            whose sweep lacks the setting.
    """
    released: Timed
    whole: Timed
    images: Pairs
    composed_released_ms: Optional[float] = None
    composed_whole_ms: Optional[float] = None

    def disagreement_percent(self) -> float:
        """By how much the composed times are off the direct ones, on the clock where it is more."""
        pairs = (self.composed_released_ms, self.released), (self.composed_whole_ms, self.whole)
        return max((abs(composed / direct.mean_ms - 1) * 100 for composed, direct in pairs if composed is not None),
                   default=0.)


@record
class Measured:
    """The settings that were run by themselves.

    Attributes:
        published: the paper's thresholds. knee: the fastest setting as accurate as the baseline.
        fastest, slowest: of the sweep; they check its composed times. None in converted results.
    """
    published: DirectSetting
    knee: DirectSetting
    fastest: Optional[DirectSetting] = None
    slowest: Optional[DirectSetting] = None

    def by_name(self) -> dict[str, DirectSetting]:
        """The settings that there are, by their names."""
        settings = {name: getattr(self, name) for name in ('published', 'knee', 'fastest', 'slowest')}
        return {name: setting for name, setting in settings.items() if setting is not None}


@record
class Exit1Curve:
    """Figure 4: accuracy and the highest entropy that leaves at exit 1, against the share that leaves there."""
    exit1_percent: list[float] = _percents()
    accuracy_percent: list[float] = _percents()
    max_entropy_nat: list[float] = field(validator=_not_empty)


@record
class NetworkMeasurement:
    """How well and how fast a network of the paper and its baseline classify.

    Attributes:
        device: Chainer's name of the device. environment: where this was measured.
        compiled: whether the net was compiled for inference.
        exit_accuracy_percent: of each exit over all images.
        outputs: digests of what the nets said, by the array's name.
        knee: the index of a setting in `sweep`.
        composed_off_percent: by how much composed times are off direct ones, at the setting where it is most.
    """
    device: str
    environment: Environment
    test_samples: int = _above_zero()
    compiled: bool
    baseline: Baseline
    macs: Macs
    exit_accuracy_percent: list[float] = _percents()
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
                raise ValueError(f'has a setting with thresholds {setting.thresholds} and {len(setting.exit_percent)} '
                                 f'exits: expected {exits - 1} thresholds and {exits} exits')

    def disagreements(self) -> dict[str, float]:
        """By how many percent composed times are off direct ones, by the setting's name, where it is too much."""
        off = {name: setting.disagreement_percent() for name, setting in self.measured.by_name().items()}
        return {name: percent for name, percent in off.items() if percent > DISAGREEMENT_PERCENT}


@record
class ComparisonMeasurement:
    """How well the exits of a comparison's part classify; fields as in NetworkMeasurement."""
    device: str
    environment: Environment
    test_samples: int = _above_zero()
    exit_accuracy_percent: list[float] = _percents()
    outputs: dict[str, Digest]


@record
class CachePoint:
    """Loads and stores, and misses of the last-level cache, of one setting; no thresholds: the baseline."""
    thresholds: list[float]
    runtime_ms: float = _above_zero()
    references: int
    misses: int
    cache_miss_percent: float


@record
class CacheMeasurement:
    """Figure 6: what a tool counted while images were classified one by one."""
    device: str
    environment: Environment
    test_samples: int = _above_zero()
    data_sha256: str
    variant: str
    tool: str
    cache: list[CachePoint] = field(validator=_not_empty)


@record
class Run:
    """One seed of one part of an experiment; an experiment without parts has part ''."""
    seed: int
    part: str = ''

    def __attrs_post_init__(self) -> None:
        training = getattr(self, 'training', None)
        if training is not None:
            training.check_complete()


@record
class NetworkRun(Run):
    """A seed of a network of the paper."""
    training: Training
    measurement: NetworkMeasurement


@record
class ComparisonRun(Run):
    """A seed of one part of figure5, loss_weights or initialisation."""
    training: Training
    measurement: ComparisonMeasurement


@record
class CacheRun(Run):
    """A seed of figure6, which counts with weights that alex_cifar10 trained."""
    measurement: CacheMeasurement


@record
class Results:
    """A results folder's figures.

    Attributes:
        preset: one of PRESETS. variant: one of VARIANTS.
        experiments: lists of runs, a seed each (comparisons: a seed and a part), by the experiment's name.
    """
    preset: str
    variant: str
    experiments: dict[str, list[Any]] = field(factory=dict)


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

    Raises:
        OSError: it is missing, damaged, of another format, or holds no results.
    """
    path = path_of(folder)
    content = schema.read_json(path, 'the results of a run')
    if isinstance(content, dict) and content.get('format') in range(1, FORMAT):
        raise OSError(f"{path} has format {content['format']}: 'branchynet results convert {folder}' brings it to "
                      f'format {FORMAT}')
    try:
        return from_json(content)
    except ValueError as e:
        raise OSError(f'{path} is damaged or not of format {FORMAT}: {e}') from e


def from_json(content: Any) -> Results:
    """Results from the content of a results.json.

    Raises:
        ValueError: the content is not that of results of this format; the message names the place.
    """
    if not isinstance(content, dict) or content.get('format') != FORMAT:
        raise ValueError(f'the content has no format {FORMAT}: expected the results of a run')
    experiments = content.get('experiments')
    results = schema.structure({**{key: value for key, value in content.items() if key != 'format'},
                                'experiments': {}}, Results)
    if results.preset not in PRESETS:
        raise ValueError(f'preset is {results.preset}: expected one of {", ".join(PRESETS)}')
    if not isinstance(experiments, dict) or not experiments:
        raise ValueError('experiments is empty: expected one experiment at least')
    for name, runs in experiments.items():
        results.experiments[name] = _runs_from_json(name, runs)
    return results


def _runs_from_json(name: str, runs: Any) -> list[Any]:
    if name not in NAMES:
        raise ValueError(f'experiments has {name}, which is no experiment: expected some of {", ".join(NAMES)}')
    if not isinstance(runs, list) or not runs:
        raise ValueError(f'experiments.{name} is empty: expected one seed at least')
    return [schema.structure(run, run_class(name), f'experiments.{name}[{i}]') for i, run in enumerate(runs)]


def to_json(results: Results) -> dict[str, Any]:
    """The content of a results.json."""
    return {'format': FORMAT, **schema.unstructure(results)}


def write(folder: str, results: Results) -> None:
    """Writes a folder's results.json, whole or not at all."""
    schema.write(path_of(folder), to_json(results))
