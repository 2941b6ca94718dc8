"""`branchynet train`, on this process and on several ranks."""

import json
import os
import signal
import subprocess
import sys
import time

import branchynet  # noqa: F401
from branchynet import checkpoint, cli, files
from branchynet.experiments import PRESETS, lenet_mnist, results, runs
from branchynet.experiments.run_id import RunId

import mpi
import numpy as np
import pytest
from helpers import stop_at

TINY = ['--samples', '256', '--epochs', '1', '2', '--batchsize', '64']
# The command, with a checkpoint after every step, and something that rank 1 does before each.
PROGRAM = """
import os, sys, time
import numpy as np
from branchynet import checkpoint, cli, parallel
from branchynet.experiments import runs
runs.ResumableTraining.INTERVAL, runs.ResumableTraining.SHARE = 0, np.inf
train = parallel.Parallel.train
def slower(self, x, t):
    {before}
    return train(self, x, t)
parallel.Parallel.train = slower
sys.exit(cli.main())
"""


def words(out, *more, before='time.sleep(0.05)'):
    """The command line of a rank."""
    program = [sys.executable, '-c', PROGRAM.format(before=before)]
    return [*program, 'train', '--network', 'lenet_mnist', '--communicator', 'naive', *TINY, '--out', str(out), *more]


def train(out, *more):
    """The command in this process."""
    return cli.main(['train', '--network', 'lenet_mnist', '--device', 'cpu', *TINY, '--out', str(out), *more])


def record(out):
    with open(os.path.join(str(out), 'training_lenet_mnist_seed0.json')) as f:
        return json.load(f)


def complaints(done):
    """The lines of a job's standard error that the command wrote."""
    return [line for line in done.stderr.splitlines() if line.startswith('branchynet: ')]


def test_a_training_has_the_bits_of_reproduce(tmp_path, monkeypatch, capsys):
    assert train(tmp_path / 'a') == 0
    assert sorted(os.listdir(tmp_path / 'a')) == [
        'training_lenet_mnist_seed0.json',
        'weights_lenet_mnist_seed0.npz',
        'weights_lenet_mnist_seed0_main.npz',
    ]
    assert capsys.readouterr().out.count('\n') == 2
    tiny = runs.Preset(main_epochs=1, joint_epochs=2, batchsize=64, train_samples=256, test_samples=20)
    presets = dict.fromkeys(PRESETS, tiny)
    monkeypatch.setattr(lenet_mnist, 'EXPERIMENT', lenet_mnist.EXPERIMENT._replace(presets=presets))
    words = ['reproduce', '--only', 'lenet_mnist', '--preset', 'smoke', '--device', 'cpu', '--out', str(tmp_path / 'b')]
    assert cli.main(words) == 0
    training = results.read(str(tmp_path / 'b')).experiments['lenet_mnist'][0].training
    found = record(tmp_path / 'a')
    assert found['weights_sha256'] == training.weights_sha256
    assert found['main_weights_sha256'] == training.main_weights_sha256
    assert found['joint']['weights_sha256'] == training.joint.weights_sha256
    assert files.digest(str(tmp_path / 'a' / 'weights_lenet_mnist_seed0.npz')) == training.weights_sha256


def test_a_training_goes_on_to_the_same_bits(tmp_path, monkeypatch, capsys):
    assert train(tmp_path / 'whole') == 0
    stop_at(monkeypatch, 8)  # of 4 steps and the end of each epoch; the sixth is of the baseline
    out = tmp_path / 'out'
    assert train(out) == 130
    assert train(out, '--resume', '--seed', '1') == 0  # another seed has a checkpoint of its own
    capsys.readouterr()
    assert train(out, '--resume', '--batchsize', '32') == 2
    error = capsys.readouterr().err
    assert 'has batchsize 64: expected 32' in error and error.count('\n') == 1
    for _ in range(2):  # the second time nothing is left to do
        assert train(out, '--resume', '--json') == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown['weights_sha256'] == record(tmp_path / 'whole')['weights_sha256']
    assert not [name for name in os.listdir(out) if name.startswith('checkpoint')]


def test_trainings_of_both_commands_do_not_replace_each_other(tmp_path, monkeypatch, capsys):
    tiny = runs.Preset(main_epochs=1, joint_epochs=2, batchsize=64, train_samples=256, test_samples=40)
    monkeypatch.setattr(
        lenet_mnist, 'EXPERIMENT', lenet_mnist.EXPERIMENT._replace(presets=dict.fromkeys(PRESETS, tiny))
    )
    reproduce = ['reproduce', '--only', 'lenet_mnist', '--preset', 'smoke', '--device', 'cpu', '--out']
    trained, reproduced = tmp_path / 'trained', tmp_path / 'reproduced'
    assert train(trained) == 0 and train(trained) == 0  # a training replaces one of its own command
    assert cli.main([*reproduce, str(reproduced)]) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
    capsys.readouterr()
    for command, words in (
        (
            lambda: cli.main([*reproduce, str(trained)]),
            f"{trained} holds a training of lenet_mnist_seed0 by 'branchynet train'",
        ),
        (lambda: train(reproduced), f'{reproduced} holds results of lenet_mnist_seed0'),
        (lambda: train(reproduced, '--resume'), f'{reproduced} holds results of lenet_mnist_seed0'),
    ):
        assert command() == 2
        error = capsys.readouterr().err
        assert words in error and error.count('\n') == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()} == before
    # Weights without the record of their training are nobody's to replace.
    (trained / 'training_lenet_mnist_seed0.json').unlink()
    for command in (lambda: cli.main([*reproduce, str(trained)])), (lambda: train(trained)):
        assert command() == 2
        error = capsys.readouterr().err
        assert (
            'npz is of another training, or of one whose checkpoint was removed: name another folder' in error
            and error.count('\n') == 1
        )


def test_a_finished_training_is_resumed_only_with_its_weights(tmp_path, capsys):
    assert train(tmp_path) == 0
    weights = tmp_path / 'weights_lenet_mnist_seed0_main.npz'
    content = weights.read_bytes()
    for damage in weights.unlink, lambda: weights.write_bytes(b'other'):
        damage()
        capsys.readouterr()
        assert train(tmp_path, '--resume') == 2
        error = capsys.readouterr().err
        assert f'{weights} is not what its training wrote: to start anew, name' in error and error.count('\n') == 1
        weights.write_bytes(content)
    assert train(tmp_path, '--resume') == 0


def test_a_training_that_was_killed_at_its_end_is_resumed(tmp_path, monkeypatch):
    remove = checkpoint.remove
    monkeypatch.setattr(checkpoint, 'remove', lambda path: None)
    assert train(tmp_path) == 0
    before = record(tmp_path)
    monkeypatch.setattr(checkpoint, 'remove', remove)
    assert train(tmp_path) == 2  # a checkpoint is there
    assert train(tmp_path, '--resume') == 0
    assert record(tmp_path)['weights_sha256'] == before['weights_sha256']
    assert not [name for name in os.listdir(tmp_path) if name.startswith('checkpoint')]
    assert train(tmp_path) == 0


def test_ranks_without_a_communicator_are_told_to_name_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('OMPI_COMM_WORLD_SIZE', '2')
    assert train(tmp_path / 'out') == 2
    assert capsys.readouterr().err.startswith('branchynet: mpiexec started 2 ranks: give --communicator naive')
    assert not (tmp_path / 'out').exists()


def test_calibrate_knows_the_images_of_a_training(tmp_path, capsys):
    assert train(tmp_path) == 0
    capsys.readouterr()
    words = ['calibrate', str(tmp_path), '--network', 'lenet_mnist', '--leave', '0.5', '--holdout', '700']
    assert cli.main(words) == 0
    assert 'nothing beside the weights' not in capsys.readouterr().out
    (tmp_path / 'weights_lenet_mnist_seed0_main.npz').write_bytes(b'other')
    assert cli.main(words) == 2
    assert 'weights_lenet_mnist_seed0_main.npz is not what its run wrote' in capsys.readouterr().err


def test_an_unfinished_training_is_not_begun_again_in_silence(tmp_path, monkeypatch, capsys):
    stop_at(monkeypatch, 3)
    assert train(tmp_path) == 130
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()
    assert train(tmp_path) == 2
    error = capsys.readouterr().err
    assert 'holds an unfinished training of lenet_mnist_seed0: --resume goes on with it' in error
    assert error.count('\n') == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize('content', [[], {}, {'environment': None}])
def test_a_damaged_record_is_named(tmp_path, capsys, content):
    path = tmp_path / 'training_lenet_mnist_seed0.json'
    path.write_text(json.dumps(content))
    assert train(tmp_path, '--resume') == 2
    error = capsys.readouterr().err
    assert error.startswith(f'branchynet: {path} holds no training of this version') and error.count('\n') == 1


@pytest.mark.parametrize(
    'options, error',
    [
        (['--data', 'pcifar10'], 'lenet_mnist does not take pcifar10: give --data mnist'),
        (['--device', 'gpu:99'], 'device is gpu:99'),
        (['--out', os.path.join(os.devnull, 'out')], os.devnull),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, capsys, options, error):
    assert train(tmp_path / 'out', *options) == 2
    said = capsys.readouterr().err
    assert said.startswith('branchynet: ') and error in said and said.count('\n') == 1
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('broken', [None, RuntimeError('cannot load MPI library\nand more')])
def test_without_mpi_the_line_that_installs_it(tmp_path, monkeypatch, capsys, broken):
    class Module:
        @property
        def MPI(self):
            raise broken

    monkeypatch.setitem(sys.modules, 'mpi4py', None if broken is None else Module())
    with pytest.warns(UserWarning, match='bits'):
        assert train(tmp_path, '--communicator', 'naive') == 2
    error = capsys.readouterr().err
    assert error.endswith('run pip install "branchynet[mpi]"\n') and error.count('\n') == 1
    assert train(tmp_path) == 0  # one process needs none


@pytest.mark.slow
def test_ranks_write_one_set_of_files(tmp_path):
    assert mpi.run(2, words(tmp_path / 'two')).returncode == 0
    assert train(tmp_path / 'one') == 0
    assert sorted(os.listdir(tmp_path / 'two')) == sorted(os.listdir(tmp_path / 'one'))
    one, two = record(tmp_path / 'one'), record(tmp_path / 'two')
    assert (two['ranks'], two['communicator'], two['batch_normalization']) == (2, 'naive', 'local')
    for phase in 'main', 'joint':
        np.testing.assert_allclose(two[phase]['loss'], one[phase]['loss'], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    'more, error',
    [
        (['--batchsize', '63'], 'batchsize is 63: expected a multiple of 2, the number of ranks'),
        (
            ['--batch-normalization', 'synchronised', '--samples', '255'],
            '255 samples leave 63 for the last batch: synchronised batch normalisation needs a multiple of 2',
        ),
        (['--communicator', 'flat'], 'communicator is flat, which needs CuPy and a GPU'),
    ],
)
def test_ranks_refuse_in_one_line(tmp_path, more, error):
    done = mpi.run(2, words(tmp_path / 'out', *more))
    assert done.returncode == 2
    assert len(complaints(done)) == 1 and error in complaints(done)[0]
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_ranks_with_other_data_are_refused(tmp_path):
    command = mpi.command(1, words(tmp_path / 'out'))
    done = subprocess.run(
        [*command, ':', '-n', '1', *words(tmp_path / 'out', '--samples', '192')], capture_output=True, text=True
    )
    assert done.returncode == 2
    (line,) = complaints(done)
    assert 'branchynet: rank 1 on ' in line and 'has train_samples 192: expected 256, which rank 0 on ' in line
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_a_rank_that_raises_ends_all(tmp_path):
    before = "os.environ['OMPI_COMM_WORLD_RANK'] == '1' and {}['a bug']"
    done = mpi.run(2, words(tmp_path / 'out', before=before))
    assert done.returncode not in (0, 130)
    assert "KeyError: 'a bug'" in done.stderr and 'branchynet: rank 1 on ' in done.stderr


def job(out, *more):
    """A job of two ranks that has trained for some joint steps, and the processes of its ranks."""
    process = subprocess.Popen(
        mpi.command(2, words(out, *more)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    path, net = RunId('lenet_mnist', '', 0).checkpoint_path(str(out)), lenet_mnist.EXPERIMENT.get_network()
    while process.poll() is None:
        time.sleep(0.01)
        if checkpoint.has(path) and net.optimizer.t < 6:
            checkpoint.load(path, net)
        elif net.optimizer.t >= 6:
            break
    with open(f'/proc/{process.pid}/task/{process.pid}/children') as f:
        ranks = [int(pid) for pid in f.read().split()]
    assert len(ranks) == 2
    return process, ranks


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists('/proc/self/task'), reason='needs /proc')
@pytest.mark.parametrize('killed', [0, 1])
def test_a_killed_rank_ends_all_and_loses_nothing(tmp_path, killed):
    assert mpi.run(2, words(tmp_path / 'whole')).returncode == 0
    out = tmp_path / 'out'
    process, ranks = job(out)
    start = time.monotonic()
    os.kill(ranks[killed], signal.SIGKILL)
    assert process.wait(60) != 0
    while any(os.path.exists(f'/proc/{pid}') for pid in ranks):
        assert time.monotonic() - start < 60
    print(f'all ranks gone after {time.monotonic() - start:.1f} s')
    done = mpi.run(4, words(out, '--resume'))
    assert done.returncode == 2
    assert len(complaints(done)) == 1 and 'has ranks 2: expected 4' in complaints(done)[0]
    assert mpi.run(2, words(out, '--resume')).returncode == 0
    assert record(out)['joint']['weights_sha256'] == record(tmp_path / 'whole')['joint']['weights_sha256']
    assert record(out)['weights_sha256'] == record(tmp_path / 'whole')['weights_sha256']
