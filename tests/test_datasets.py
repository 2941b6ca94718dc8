import gzip
import hashlib
import os

import branchynet  # noqa: F401
import numpy as np
import pytest

from branchynet.datasets import folder, mnist

CONTENT = b'\x00' * 100
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def data(tmp_path, monkeypatch):
    """An empty data folder, and no mirror that answers."""
    monkeypatch.setenv('BRANCHYNET_DATA', str(tmp_path))
    monkeypatch.setattr(mnist, 'MIRRORS', [(tmp_path / 'mirror').as_uri() + '/'])
    return tmp_path


def test_mnist_is_the_real_one():
    x_train, y_train, x_test, y_test = mnist.get_data()
    for x, y, count in (x_train, y_train, 60000), (x_test, y_test, 10000):
        assert x.shape == (count, 1, 28, 28) and x.dtype == np.float32
        assert y.shape == (count,) and y.dtype == np.int32
        assert (x.min(), x.max()) == (0, 1)
        assert set(y) == set(range(10))
    # The first training image is the well-known five; the pixel means are those of the whole set.
    assert y_train[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
    assert x_train.mean() == pytest.approx(.1307, abs=1e-4)
    assert x_train.std() == pytest.approx(.3081, abs=1e-4)


def test_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv('BRANCHYNET_DATA', str(tmp_path))
    assert folder.root() == str(tmp_path)
    monkeypatch.delenv('BRANCHYNET_DATA')
    assert folder.root().endswith(os.path.join('datasets', 'data'))
    monkeypatch.setattr(os.path, 'isdir', lambda path: False)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert folder.root() == str(tmp_path / 'branchynet')


def test_a_file_not_to_be_had_is_one_line(data):
    with pytest.raises(OSError, match=r'train-images-idx3-ubyte.gz is missing') as info:
        mnist.get_data()
    message = str(info.value)
    assert mnist.FILES['train-images-idx3-ubyte.gz'][0] in message and '\n' not in message
    assert message.endswith("branchynet data download mnist'")
    assert not [name for _, _, names in os.walk(data) for name in names]


@pytest.mark.parametrize('damage', [
    lambda b: b[:1000], lambda b: b'no gzip', lambda b: b'', lambda b: gzip.compress(b'other content'),
    lambda b: b[:5000] + b'\xff\xff\xff\xff' + b[5004:]])
def test_a_damaged_file_is_named_and_kept(data, damage):
    real = os.path.join(os.path.dirname(mnist.__file__), 'data', 'mnist')
    os.makedirs(str(data / 'mnist'))
    for name in mnist.FILES:
        with open(os.path.join(real, name), 'rb') as f:
            (data / 'mnist' / name).write_bytes(f.read())
    path = data / 'mnist' / 't10k-images-idx3-ubyte.gz'
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(OSError) as info:
        mnist.get_data()
    message = str(info.value)
    assert str(path) in message and mnist.FILES[path.name][0] in message and '\n' not in message
    assert "; mend it with '" in message and message.endswith("branchynet data download mnist'")
    assert path.read_bytes() == damaged


def test_download_takes_the_first_mirror_that_has_the_content(tmp_path):
    for name, content in ('wrong', b'other'), ('right', CONTENT):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'f.gz').write_bytes(gzip.compress(content))
    mirrors = [(tmp_path / name).as_uri() + '/' for name in ('none', 'wrong', 'right')]
    path = tmp_path / 'data' / 'f.gz'
    folder.download_gzip(str(path), SHA256, mirrors)
    assert folder.read_gzip(str(path), SHA256) == CONTENT
    assert os.listdir(str(path.parent)) == ['f.gz']
    with pytest.raises(OSError, match='none.*wrong'):
        folder.download_gzip(str(tmp_path / 'data' / 'g' / 'f.gz'), SHA256, mirrors[:2])
    assert os.listdir(str(tmp_path / 'data' / 'g')) == []


def test_a_killed_download_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / 'f.gz').write_bytes(gzip.compress(CONTENT))

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, 'read_gzip', interrupt)
    with pytest.raises(KeyboardInterrupt):
        folder.download_gzip(str(tmp_path / 'data' / 'f.gz'), SHA256, [tmp_path.as_uri() + '/'])
    assert os.listdir(str(tmp_path / 'data')) == []


def test_mnist_is_downloaded_if_absent(data, monkeypatch):
    real = os.path.join(os.path.dirname(mnist.__file__), 'data', 'mnist')
    monkeypatch.setattr(mnist, 'MIRRORS', ['file://' + os.path.abspath(real) + '/'])
    assert mnist.get_data()[3].shape == (10000,)
    assert sorted(os.listdir(str(data / 'mnist'))) == sorted(mnist.FILES)
