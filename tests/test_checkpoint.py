import contextlib
import os
import random
import resource
import signal

import branchynet
from branchynet import checkpoint, training

import chainer
import chainer.links as L
import numpy as np
import pytest
from helpers import same, small_data, small_net, weights

X, T = small_data(40)


@pytest.mark.parametrize('opt', ['Adam', 'MomentumSGD'])
def test_training_goes_on_from_a_checkpoint_to_the_same_bits(tmp_path, opt):
    path = str(tmp_path / 'checkpoint.npz')
    net = small_net(opt=opt, dropout=True)
    np.random.seed(4)
    list(training.epochs(net, X, T, 16, 2, main=True))
    checkpoint.save(path, net, {'done': [1.5, 2]})
    whole = list(training.epochs(net, X, T, 16, 3))

    resumed = small_net(seed=9, opt=opt, dropout=True)
    assert checkpoint.load(path, resumed) == ({'done': [1.5, 2]}, None)
    np.testing.assert_array_equal(list(training.epochs(resumed, X, T, 16, 3)), whole)
    assert same(weights(net), weights(resumed))


@pytest.mark.parametrize('damage', [lambda b: b[: len(b) // 2], lambda b: b'', lambda b: b'nothing of the kind'])
def test_damaged_checkpoints_are_named(tmp_path, damage):
    path = tmp_path / 'checkpoint.npz'
    checkpoint.save(str(path), small_net(), {})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(OSError, match='checkpoint.npz is not a whole checkpoint'):
        checkpoint.load(str(path), small_net())


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='checkpoint.npz is missing: expected a checkpoint$'):
        checkpoint.load(str(tmp_path / 'checkpoint.npz'), small_net())


def test_two_damaged_checkpoints_are_named_and_change_nothing(tmp_path):
    path = tmp_path / 'checkpoint.npz'
    for _ in range(2):
        checkpoint.save(str(path), small_net(seed=3), {})
    paths = list(tmp_path.iterdir())
    for one in paths:
        one.write_bytes(one.read_bytes()[:-1])
    net = small_net()
    with pytest.raises(OSError, match='checkpoint.npz is not a whole checkpoint .*, nor is the one before: to start'):
        checkpoint.load(str(path), net)
    assert len(paths) == 2 and sorted(tmp_path.iterdir()) == sorted(paths)
    assert same(weights(net), weights(small_net()))


def stopped_within_an_epoch(path, after=5, **kwargs):
    """A net stopped after ``after`` steps of joint training (3 per epoch), with a checkpoint after each."""
    net = small_net(dropout=True, **kwargs)
    np.random.seed(4)
    random.seed(4)
    count = 0
    for epoch in range(3):
        for position in training.steps(net, X, T, 16):
            count += 1
            checkpoint.save(path, net, {'epoch': epoch}, position)
            if count == after:
                return net
    raise AssertionError('never stopped')


def finish(net, epoch, position):
    """Trains on to the end of the third epoch; returns the means, the next random numbers, and learned thresholds."""
    means = []
    for _ in range(epoch, 3):
        later = list(training.steps(net, X, T, 16, position=position))  # none, if the epoch's last step is done
        position = later[-1] if later else position
        means.append(np.array(position.means()))
        position = None
    return means, np.random.rand(), random.random(), net.getLearnedExitsThresholds()


@pytest.mark.parametrize('kwargs', [{}, {'percentTrainKeeps': 0.6}, {'opt': 'MomentumSGD'}])
@pytest.mark.parametrize('after', [1, 3, 5, 8])
def test_training_goes_on_within_an_epoch_to_the_same_bits(tmp_path, after, kwargs):
    path = str(tmp_path / 'checkpoint.npz')
    whole = small_net(dropout=True, **kwargs)
    np.random.seed(4)
    random.seed(4)
    expected = finish(whole, 0, None)

    stopped_within_an_epoch(path, after, **kwargs)
    resumed = small_net(seed=9, dropout=True, **kwargs)
    notes, position = checkpoint.load(path, resumed)
    assert len(position.results) == (after - 1) % 3 + 1
    found = finish(resumed, notes['epoch'], position)
    np.testing.assert_array_equal(found[0], expected[0][notes['epoch'] :])
    np.testing.assert_equal(found[1:], expected[1:])
    assert same(weights(whole), weights(resumed))


@pytest.mark.parametrize(
    'damage', [lambda b: b[: len(b) // 2], lambda b: b'', lambda b: b[:900] + bytes([b[900] ^ 1]) + b[901:]]
)
def test_of_a_damaged_checkpoint_the_one_before_is_taken(tmp_path, damage, capsys):
    path = tmp_path / 'checkpoint.npz'
    stopped_within_an_epoch(str(path))
    path.write_bytes(damage(path.read_bytes()))
    for _ in range(2):  # from then on it is the last
        _, position = checkpoint.load(str(path), small_net(dropout=True))
        assert len(position.results) == 1
    error = capsys.readouterr().err
    assert 'checkpoint.npz is not a whole checkpoint' in error and error.count('\n') == 1


def test_what_cannot_be_read_is_not_taken_for_damaged(tmp_path):
    path = tmp_path / 'checkpoint.npz'
    stopped_within_an_epoch(str(path))
    path.unlink()
    path.mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(IsADirectoryError):
        checkpoint.load(str(path), small_net(dropout=True))
    assert sorted(tmp_path.iterdir()) == before


def test_a_write_that_was_cut_off_between_two_renames_loses_nothing(tmp_path):
    path = tmp_path / 'checkpoint.npz'
    stopped_within_an_epoch(str(path))
    path.unlink()
    assert checkpoint.has(str(path))
    _, position = checkpoint.load(str(path), small_net(dropout=True))
    assert len(position.results) == 1
    checkpoint.remove(str(path))
    assert list(tmp_path.iterdir()) == []
    assert not checkpoint.has(str(path))


@pytest.mark.parametrize(
    'other',
    [small_net(opt='MomentumSGD'), branchynet.BranchyNet([L.Linear(4, 8), branchynet.Branch([L.Linear(8, 3)])])],
)
def test_a_checkpoint_of_another_network_is_refused(tmp_path, other):
    path = str(tmp_path / 'checkpoint.npz')
    checkpoint.save(path, small_net(), {})
    before = weights(other)
    with pytest.raises(OSError, match='checkpoint.npz is a checkpoint of another network'):
        checkpoint.load(path, other)
    assert same(weights(other), before)


def test_a_checkpoint_of_another_version_is_refused(tmp_path, monkeypatch):
    path = str(tmp_path / 'checkpoint.npz')
    monkeypatch.setattr(checkpoint, '_FORMAT', 1)
    checkpoint.save(path, small_net(), {})
    monkeypatch.undo()
    with pytest.raises(OSError, match='checkpoint of version 1, and only version 2'):
        checkpoint.load(path, small_net())


def test_a_full_disk_is_named_and_leaves_the_last_good_checkpoint(tmp_path):
    path = str(tmp_path / 'checkpoint.npz')
    stopped_within_an_epoch(path)
    names = sorted(os.listdir(str(tmp_path)))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))  # files end there, as on a full disk
    try:
        with pytest.raises(OSError, match='checkpoint.npz'):
            checkpoint.save(path, small_net(), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(os.listdir(str(tmp_path))) == names
    assert len(checkpoint.load(path, small_net(dropout=True))[1].results) == 2


def test_a_parameter_without_a_shape_is_told_before_the_training():
    net = branchynet.BranchyNet([L.Linear(None, 3), branchynet.Branch([L.Linear(3, 3)])])
    with pytest.raises(ValueError, match=r'^parameter /main/0/W has no shape yet.*pass some samples through the net'):
        checkpoint.check(net)
    checkpoint.check(small_net())


def test_nothing_is_left_of_a_checkpoint_that_is_removed(tmp_path):
    path = str(tmp_path / 'checkpoint.npz')
    checkpoint.remove(path)  # nothing is there
    checkpoint.remove(str(tmp_path / 'nowhere' / 'checkpoint.npz'))
    for _ in range(2):
        checkpoint.save(path, small_net(), {})
    (tmp_path / 'checkpoint.npz.0123abcd.part').write_bytes(b'of a process that was killed')
    (tmp_path / 'other.npz.0123abcd.part').write_bytes(b'of another file')
    checkpoint.remove(path)
    assert os.listdir(str(tmp_path)) == ['other.npz.0123abcd.part']


class Trap:
    """Makes a folder where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def saved(path, net, **changes):
    """An .npz file of the weights of a net, some of them changed."""
    serializer = chainer.serializers.DictionarySerializer()
    serializer.save(net)
    np.savez(path, **{**serializer.target, **changes})
    return path


def test_weights_are_read_as_chainer_writes_them(tmp_path):
    path = str(tmp_path / 'weights.npz')
    chainer.serializers.save_npz(path, small_net(seed=3))
    net = small_net()
    checkpoint.load_npz(path, net)
    assert same(weights(net), weights(small_net(seed=3)))


def test_weights_that_hold_python_objects_run_nothing(tmp_path):
    trap = np.empty(1, object)
    trap[0] = Trap(str(tmp_path / 'ran'))
    name = next(iter(weights(small_net())))[1:]
    path = saved(str(tmp_path / 'weights.npz'), small_net(seed=3), **{name: trap})
    net = small_net()
    with pytest.raises(OSError, match='weights.npz cannot be read as weights .*allow_pickle'):
        checkpoint.load_npz(path, net)
    assert not (tmp_path / 'ran').exists()
    assert same(weights(net), weights(small_net()))
    with contextlib.suppress(Exception):
        chainer.serializers.load_npz(path, net)
    assert (tmp_path / 'ran').exists()  # as it does where it is let


def test_weights_with_a_damaged_byte_are_refused_in_one_line_or_read(tmp_path):
    """Every byte of the archive's directory, where zipfile raises errors of many kinds, and some of its files."""
    path = saved(str(tmp_path / 'weights.npz'), small_net(seed=3))
    with open(path, 'rb') as f:
        content = bytearray(f.read())
    directory = content.index(b'PK\1\2')
    refused = 0
    for place in [*range(0, directory, 97), *range(directory, len(content), 3)]:
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        with open(path, 'wb') as f:
            f.write(damaged)
        try:
            checkpoint.load_npz(path, small_net())
        except OSError as e:
            refused += 1
            assert '\n' not in str(e)
    assert refused > 50


@pytest.mark.parametrize('content', [b'', b'nothing of the kind', b'PK\3\4 cut off', b'\x80\x04N.'])
def test_weights_that_are_no_archive_are_refused(tmp_path, content):
    path = tmp_path / 'weights.npz'
    path.write_bytes(content)
    with pytest.raises(OSError, match='weights.npz cannot be read as weights'):
        checkpoint.load_npz(str(path), small_net())


@pytest.mark.parametrize(
    'spoil',
    [
        lambda arrays: arrays.popitem(),
        lambda arrays: arrays.update({name: array[:1] for name, array in arrays.items() if array.ndim == 2}),
    ],
)
def test_weights_of_another_network_change_nothing(tmp_path, spoil):
    serializer = chainer.serializers.DictionarySerializer()
    serializer.save(small_net(seed=3))
    arrays = serializer.target
    spoil(arrays)
    path = str(tmp_path / 'weights.npz')
    np.savez(path, **arrays)
    net = small_net()
    with pytest.raises(OSError, match='weights.npz holds the weights of another network'):
        checkpoint.load_npz(path, net)
    assert same(weights(net), weights(small_net()))


def test_an_optimiser_that_had_made_no_step_is_as_new(tmp_path):
    path = str(tmp_path / 'checkpoint.npz')
    net, new = small_net(), small_net(seed=9)
    net.train_main(X, T)
    checkpoint.save(path, net, {})
    for _ in range(3):
        net.train(X, T)
    for one in net, new:
        checkpoint.load(path, one)
        one.train(X, T)
    assert [optimizer.t for optimizer in net.optimizers] == [1, 1, 1]
    assert same(weights(net), weights(new))


@pytest.mark.parametrize('part', ['trunk', 0])
def test_frozen_parts_are_restored(tmp_path, part):
    path = str(tmp_path / 'checkpoint.npz')
    net, new = small_net(), small_net(seed=9)
    new.freeze(1)
    net.freeze(part)
    net.train(X, T)
    checkpoint.save(path, net, {})
    net.thaw()
    net.train(X, T)
    for one in net, new:
        checkpoint.load(path, one)
        assert one.frozen == {part}
        one.train(X, T)
    assert same(weights(net), weights(new))
    net.thaw()
    checkpoint.save(path, net, {})  # parameters that were never updated have no moments here either
    checkpoint.load(path, new)
    assert not new.frozen and new.train(X, T) == net.train(X, T)


@pytest.mark.parametrize(
    'name, value, message',
    [
        ('main/0/W', np.zeros((8, 4), complex), 'main/0/W has shape .* and dtype complex128, and this one needs'),
        ('thresholdExits', np.array(['a', 'b']), "settings of another network: thresholdExits is \\['a', 'b'\\]"),
        ('temperatures', np.array([1.0, -1.0, 1.0]), 'settings of another network: temperatures is'),
    ],
)
def test_weights_of_another_kind_change_nothing(tmp_path, name, value, message):
    serializer = chainer.serializers.DictionarySerializer()
    serializer.save(small_net(seed=3))
    path, net = str(tmp_path / 'weights.npz'), small_net()
    np.savez(path, **{**serializer.target, name: value})
    with pytest.raises(OSError, match=message):
        checkpoint.load_npz(path, net)
    assert same(weights(net), weights(small_net())) and net.thresholdExits is None


def test_weights_of_a_net_whose_main_was_never_run_are_loaded(tmp_path):
    def net_without_sizes():
        return branchynet.BranchyNet([L.Linear(None, 8), branchynet.Branch([L.Linear(None, 2)])])

    np.random.seed(0)
    net, path = net_without_sizes(), str(tmp_path / 'weights.npz')
    x = np.random.rand(6, 4).astype(np.float32)
    expected = net.look(x)[0].logits
    chainer.serializers.save_npz(path, net)
    other = net_without_sizes()
    checkpoint.load_npz(path, other)
    np.testing.assert_array_equal(other.look(x)[0].logits, expected)
    net.run_main(x)
    with pytest.raises(OSError, match='allow_pickle'):  # a net that has a place for what the file lacks
        checkpoint.load_npz(path, net)
