"""The steps that all experiments share: data, training that can be resumed, files."""
import hashlib
from importlib.util import find_spec
import io
import json
import os
import time
from typing import NamedTuple, Optional

from branchynet import checkpoint, cpu, determinism, files, provenance, timing
from branchynet.experiments import NAMES, PRESETS
from branchynet.inference import Compiled, is_compilable
from branchynet.files import write_atomically
from branchynet.training import batches, progress_of_steps, steps
import chainer
import numpy as np

FORMAT = 1  # of results.json
_OF_EVERY_RUN = {'seed', 'device', 'environment', 'data_sha256', 'main_epochs', 'joint_epochs', 'batchsize',
                 'train_samples', 'test_samples'}
_OF_EVERY_TRAINING = {'loss', 'accuracy', 'weights_sha256', 'seconds'}


class CannotRun(Exception):
    """An experiment lacks something that only it needs; the message says what, and how to get it."""


class Preset(NamedTuple):
    """How much is trained, and on how much (None: on all samples)."""
    main_epochs: int
    joint_epochs: int
    batchsize: int
    train_samples: Optional[int] = None
    test_samples: Optional[int] = None


class Setup(NamedTuple):
    """What experiments are run with.

    Attributes:
        preset: one of PRESETS. variant: one of VARIANTS. device: a Chainer device.
        out: the results folder. resume: go on from the folder's checkpoints, where there are any.
    """
    preset: str
    variant: str
    device: object
    out: str
    resume: bool


def cut(data, preset):
    """(x_train, y_train, x_test, y_test), cut to the preset's numbers of samples."""
    x_train, y_train, x_test, y_test = data
    train, test = slice(preset.train_samples), slice(preset.test_samples)
    return x_train[train], y_train[train], x_test[test], y_test[test]


def training_minutes(net, preset, data):
    """Minutes that a training will take, from a few timed steps of a network that is thrown away."""
    x, y, _, _ = data
    first = slice(preset.batchsize)
    steps = len(x) / preset.batchsize
    with cpu.fast():
        return steps / 60 * sum(count * seconds(net, step, x[first], y[first]) for count, step in (
            (preset.main_epochs, net.train_main), (preset.joint_epochs, net.train)) if count)


def seconds(net, step, *arrays):
    """Seconds of ``step(*arrays)``, once it has run before."""
    step(*arrays)
    start = timing.now(net)
    step(*arrays)
    return timing.now(net) - start


def stem(name, part, seed):
    """What the names of a run's files have in common."""
    return '_'.join([name, *[part] * bool(part), 'seed%d' % seed])


def checkpoint_path(out, *run):
    """Where the checkpoint of a run (name, part, seed) is while it lasts."""
    return os.path.join(out, 'checkpoint_%s.npz' % stem(*run))


def weights_path(out, *run):
    """Where the weights of a run (name, part, seed) are."""
    return os.path.join(out, 'weights_%s.npz' % stem(*run))


def main_weights_path(out, *run):
    """Where the weights of a run's main are, as its own training left them: joint training moves the trunk on."""
    return os.path.join(out, 'weights_%s_main.npz' % stem(*run))


def begin(run, net, preset, data, setup):
    """A Run from its start, or from its checkpoint.

    Args:
        run: (name, part, seed).
        net: makes the net.
        preset: a Preset. data: cut to it. setup: a Setup.
    """
    _, part, seed = run
    determinism.seed_generators(seed)
    net = net()
    net.to_device(setup.device)
    result = {'seed': seed, **preset._asdict(), 'train_samples': len(data[0]), 'test_samples': len(data[2]),
              'device': str(setup.device), 'variant': setup.variant,
              'data_sha256': provenance.sha256_of_arrays(data)}
    if part:
        result['part'] = part
    path = checkpoint_path(setup.out, *run)
    result['environment'], position = _environment(setup.out), None
    if setup.resume and checkpoint.has(path):
        saved, position = checkpoint.load(path, net)
        _check_same(path, {**result, **_origin(result)}, {**saved, **_origin(saved)})
        result = {**saved, 'environment': result['environment']}
    return Run(net, preset, data, result, path, position)


def check_origin(path, results, setup):
    """Raises ValueError unless earlier results of a file, a dict per seed, have the bits that runs have now."""
    origin = _origin({'device': str(setup.device), 'environment': _environment(setup.out)})
    for result in results:
        _check_same(path, origin, _origin(result))


def _environment(out):
    return {**provenance.environment(out), 'code_sha256': _code_sha256()}


def _code_sha256():
    """SHA-256 over the files of this package, which its commit says only of a clean checkout."""
    found = {}
    for package in 'branchynet', 'branchynet.datasets', 'branchynet.experiments', 'branchynet.networks':
        root, = find_spec(package).submodule_search_locations
        for folder, _, names in os.walk(root):
            for name in names:
                if name.endswith(('.py', '.toml', '.csv')):
                    inside = os.path.relpath(os.path.join(folder, name), root)
                    found['/'.join(package.split('.')[1:] + inside.split(os.sep))] = os.path.join(folder, name)
    listing = ['%s %s\n' % (files.digest(path), name) for name, path in sorted(found.items())]
    return hashlib.sha256(''.join(listing).encode()).hexdigest()


def _origin(result):
    """What has to be the same for the same bits."""
    environment = result['environment']
    return {'device': result['device'],
            **{key: environment.get(key) for key in ('commit', 'code_sha256', 'profile', 'numpy', 'onednn')}}


def _check_same(path, wanted, saved):
    for key in wanted:
        if key != 'environment' and saved.get(key) != wanted[key]:
            raise ValueError('%s has %s %s: expected %s; name another folder with --out, or leave out --resume to '
                             'start anew' % (path, key, saved.get(key), wanted[key]))


class Run:
    """The training of one seed, which goes on from its last checkpoint.

    Attributes:
        net: on its device.
        result: JSON-ready, units in its keys.
    """

    INTERVAL = 30  # seconds between checkpoints within an epoch, at least
    SHARE = .01  # of the time, which these take at most

    def __init__(self, net, preset, data, result, checkpoint, position=None):
        self.net = net
        self.result = result
        self._preset = preset
        self._data = data
        self._checkpoint = checkpoint
        self._position = position
        self._saved, self._cost = time.perf_counter(), 0.

    def train(self, phase):
        """The epochs of ``phase``, 'main' or 'joint', that are not done yet, with checkpoints."""
        preset, (x, y, _, _) = self._preset, self._data
        num_epoch = {'main': preset.main_epochs, 'joint': preset.joint_epochs}[phase]
        history = self.result.setdefault(
            phase + '_training', {'loss': [], 'accuracy': [], 'weights_sha256': [], 'seconds': 0.})
        done = len(history['loss']) * len(batches(len(x), preset.batchsize))
        with progress_of_steps(len(x), preset.batchsize, num_epoch, phase == 'main', done) as bar:
            start = time.perf_counter()
            for _ in range(len(history['loss']), num_epoch):
                position = self._position  # perhaps that of the epoch's last step
                for position in steps(self.net, x, y, preset.batchsize, phase == 'main', self._position):
                    bar.update()
                    if self._is_due():
                        history['seconds'] += time.perf_counter() - start
                        start = time.perf_counter()
                        self.save(position)
                losses, accuracies = position.means()
                history['loss'].append(losses.tolist())
                history['accuracy'].append(accuracies.tolist())
                history['weights_sha256'].append(provenance.sha256_of_net(self.net))
                history['seconds'] += time.perf_counter() - start
                start = time.perf_counter()
                self._position = None
                self.save()

    def _is_due(self):
        # A GPU's generators cannot be put back into the middle of an epoch.
        waited = time.perf_counter() - self._saved
        return not self.net.gpu and waited >= max(self.INTERVAL, self._cost / self.SHARE)

    def save(self, position=None):
        """Writes a checkpoint of what was done so far."""
        start = time.perf_counter()
        checkpoint.save(self._checkpoint, self.net, self.result, position)
        self._saved = time.perf_counter()
        self._cost = self._saved - start


def for_inference(net):
    """The net as it is measured: compiled, where it can be."""
    return Compiled(net) if is_compilable(net) else net


def digest(array):
    """What tells an output array from another: its SHA-256, and its mean, which says how far they differ."""
    return {'sha256': provenance.sha256_of_arrays([array]), 'mean': float(np.mean(array, dtype=float))}


def save_weights(net, path):
    """Writes the weights and returns the file's SHA-256."""
    buffer = io.BytesIO()
    chainer.serializers.save_npz(buffer, net)
    write_atomically(path, buffer.getvalue())
    return files.digest(path)


def read_results(path):
    """A results.json.

    Raises:
        OSError: missing, damaged, or of another format.
    """
    try:
        with open(path) as f:
            results = json.load(f)
    except FileNotFoundError:
        raise FileNotFoundError('%s is missing: expected the results of a run' % path) from None
    except ValueError as e:
        raise OSError('%s is damaged (%s): expected the results of a run' % (path, e)) from e
    whole = (isinstance(results, dict) and results.get('format') == FORMAT and results.get('preset') in PRESETS
             and isinstance(results.get('experiments'), dict))
    if not whole:
        raise OSError('%s is not of format %d: expected the results of a run of this version' % (path, FORMAT))
    for name, entry in results['experiments'].items():
        if name not in NAMES or not isinstance(entry, dict) or not isinstance(entry.get('seeds'), list):
            raise OSError('%s holds experiment %s, which this version does not know: expected some of %s' % (
                path, name, ', '.join(NAMES)))
        for run in entry['seeds']:
            _check_whole(path, name, run)
    results.setdefault('variant', 'code')  # not recorded at first
    return results


def _check_whole(path, name, run):
    missing = sorted(_OF_EVERY_RUN - run.keys()) if isinstance(run, dict) else ['all of it']
    for phase in {'main_training', 'joint_training'}.intersection(run if isinstance(run, dict) else ()):
        missing += ['%s of its %s' % (key.replace('_', ' '), phase.replace('_', ' '))
                    for key in _OF_EVERY_TRAINING - set(run[phase])]
    if missing:
        raise OSError('%s holds a run of %s without %s: expected the results of a run of this version' % (
            path, name, ', '.join(missing)))


def write_json(path, content):
    """Writes a JSON file, whole or not at all."""
    write_atomically(path, (json.dumps(content, indent=1) + '\n').encode())
