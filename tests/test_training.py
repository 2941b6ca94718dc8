import branchynet  # noqa: F401
import numpy as np
import pytest

from branchynet import training
from conftest import same, small_data, small_net, weights

X, T = small_data(40)


@pytest.mark.parametrize('opt', ['Adam', 'MomentumSGD'])
def test_training_goes_on_from_a_checkpoint_to_the_same_bits(tmp_path, opt):
    path = str(tmp_path / 'checkpoint.npz')
    net = small_net(opt=opt, dropout=True)
    np.random.seed(4)
    list(training.epochs(net, X, T, 16, 2, main=True))
    training.save_checkpoint(path, net, {'done': [1.5, 2]})
    whole = list(training.epochs(net, X, T, 16, 3))

    resumed = small_net(seed=9, opt=opt, dropout=True)
    assert training.load_checkpoint(path, resumed) == ({'done': [1.5, 2]}, None)
    np.testing.assert_array_equal(list(training.epochs(resumed, X, T, 16, 3)), whole)
    assert same(weights(net), weights(resumed))


@pytest.mark.parametrize('damage', [lambda b: b[:len(b) // 2], lambda b: b'', lambda b: b'nothing of the kind'])
def test_damaged_checkpoints_are_named(tmp_path, damage):
    path = tmp_path / 'checkpoint.npz'
    training.save_checkpoint(str(path), small_net(), {})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(OSError, match='checkpoint.npz is not a whole checkpoint'):
        training.load_checkpoint(str(path), small_net())


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / 'file'
    training.write_atomically(str(path), b'old')

    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr('os.fsync', interrupt)
    with pytest.raises(KeyboardInterrupt):
        training.write_atomically(str(path), b'new')
    assert path.read_bytes() == b'old'
    assert [p.name for p in tmp_path.iterdir()] == ['file']
