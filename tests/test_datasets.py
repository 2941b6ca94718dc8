import gzip
import os
import shutil
import subprocess
import sys

import branchynet  # noqa: F401
from branchynet import cli
from branchynet.datasets import folder, mnist, splits

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def test_mnist_is_the_real_one():
    x_train, y_train, x_test, y_test = mnist.get_data()
    for x, y, count in (x_train, y_train, 60000), (x_test, y_test, 10000):
        assert x.shape == (count, 1, 28, 28) and x.dtype == np.float32
        assert y.shape == (count,) and y.dtype == np.int32
        assert (x.min(), x.max()) == (0, 1)
        assert set(y) == set(range(10))
    # The first training image is the well-known five; the pixel means are those of the whole set.
    assert y_train[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
    assert x_train.mean() == pytest.approx(0.1307, abs=1e-4)
    assert x_train.std() == pytest.approx(0.3081, abs=1e-4)


def test_mnist_comes_with_the_package(monkeypatch, tmp_path):
    """Without network and whatever the data folder is."""
    monkeypatch.setenv('BRANCHYNET_DATA', str(tmp_path))
    assert mnist.get_data()[3].shape == (10000,)
    assert list(tmp_path.iterdir()) == []


def test_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv('BRANCHYNET_DATA', str(tmp_path))
    assert folder.root() == str(tmp_path)
    monkeypatch.delenv('BRANCHYNET_DATA')
    assert folder.root().endswith(os.path.join('datasets', 'data'))


@pytest.mark.skipif(sys.platform != 'linux', reason='the folders are those of Linux')
def test_data_folder_of_an_installed_package(monkeypatch, tmp_path):
    monkeypatch.delenv('BRANCHYNET_DATA', raising=False)
    monkeypatch.setattr(folder, '__file__', str(tmp_path / 'branchynet' / 'datasets' / 'folder.py'))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    assert folder.root() == str(tmp_path / 'cache' / 'branchynet')


def test_data_in_the_folder_of_earlier_versions_is_found(monkeypatch, tmp_path):
    """As on macOS, whose cache folder was ~/.cache before."""
    monkeypatch.delenv('BRANCHYNET_DATA', raising=False)
    monkeypatch.setattr(folder, '__file__', str(tmp_path / 'branchynet' / 'datasets' / 'folder.py'))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'old'))
    new = tmp_path / 'Library' / 'Caches' / 'branchynet'
    monkeypatch.setattr('platformdirs.user_cache_dir', lambda *args, **kwargs: str(new))
    assert folder.root() == str(new)
    (tmp_path / 'old' / 'branchynet').mkdir(parents=True)
    assert folder.root() == str(tmp_path / 'old' / 'branchynet')
    new.mkdir(parents=True)
    assert folder.root() == str(new)


@pytest.mark.parametrize('command', [['data'], ['data', 'download', 'cifar10'], ['data', 'build', 'pcifar10']])
def test_a_data_folder_that_is_a_file(monkeypatch, tmp_path, capsys, command):
    file = tmp_path / 'file'
    file.touch()
    monkeypatch.setenv('BRANCHYNET_DATA', str(file))
    assert cli.main(command) == 2
    assert capsys.readouterr().err == (
        f'branchynet: BRANCHYNET_DATA names {file}, which is a file: let it name a folder\n'
    )


@pytest.mark.parametrize(
    'damage',
    [
        lambda b: b[:1000],
        lambda b: b'no gzip',
        lambda b: b'',
        lambda b: gzip.compress(b'other content'),
        lambda b: b[:5000] + b'\xff\xff\xff\xff' + b[5004:],
        None,
    ],
)
def test_a_damaged_or_missing_file_of_the_package_is_named_and_kept(monkeypatch, tmp_path, damage):
    monkeypatch.setenv('BRANCHYNET_DATA', str(tmp_path / 'data'))
    for name in mnist.FILES:
        with open(mnist.path(name), 'rb') as f:
            (tmp_path / name).write_bytes(f.read())
    path = tmp_path / 't10k-images-idx3-ubyte.gz'
    damaged = damage(path.read_bytes()) if damage else None
    path.unlink()
    if damage:
        path.write_bytes(damaged)
    monkeypatch.setattr(mnist, 'FOLDER', str(tmp_path))
    for call in mnist.get_data, mnist.download:
        with pytest.raises(OSError) as info:
            call()
        message = str(info.value)
        assert str(path) in message and mnist.FILES[path.name][0] in message and '\n' not in message
        assert message.endswith('install the package again')
    assert [error is None for _, error in mnist.inspect()] == [True, True, False, True]
    assert path.read_bytes() == damaged if damage else not path.exists()


def test_the_data_folder_comes_before_the_package(monkeypatch, tmp_path):
    expected, name = mnist.get_data(), 't10k-labels-idx1-ubyte.gz'
    monkeypatch.setenv('BRANCHYNET_DATA', str(tmp_path))
    assert os.path.dirname(mnist.path(name)) == mnist.FOLDER
    own = tmp_path / 'mnist' / name
    own.parent.mkdir()
    shutil.copy(mnist.path(name), own)
    assert mnist.path(name) == str(own)
    assert f'{own} is intact' in [line for line, _ in mnist.inspect()]
    for found, array in zip(mnist.get_data(), expected):
        assert np.array_equal(found, array)
    own.write_bytes(gzip.compress(b'another content'))  # not passed over: whoever put it there wants it read
    with pytest.raises(OSError, match='remove the file') as info:
        mnist.get_data()
    assert str(own) in str(info.value)


@settings(deadline=None)  # scikit-learn is imported by the first
@given(
    counts=st.lists(st.integers(10, 60), min_size=2, max_size=10),
    share=st.floats(0.2, 0.8),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_stratified_split(counts, share, seed):
    y = np.repeat(np.arange(len(counts)), counts)
    kept, held = splits.stratified(y, share, seed)
    assert sorted([*kept, *held]) == list(range(len(y)))
    assert (np.diff(kept) > 0).all() and (np.diff(held) > 0).all()
    of_class = np.bincount(y[held], minlength=len(counts))
    assert (abs(of_class - np.array(counts) * len(held) / len(y)) <= 1).all()  # as near as whole samples allow
    again = splits.stratified(y, share, seed)
    assert np.array_equal(kept, again[0]) and np.array_equal(held, again[1])


def test_a_stratified_split_of_mnist_is_the_same_everywhere():
    y = mnist.get_data()[1]
    kept, held = splits.stratified(y, 5000, seed=0)
    assert (len(kept), len(held)) == (55000, 5000)
    assert not np.array_equal(held, splits.stratified(y, 5000, seed=1)[1])
    share = np.bincount(y[held]) / 5000
    np.testing.assert_allclose(share, np.bincount(y) / 60000, atol=1 / 5000)


def test_what_only_some_need_is_imported_late():
    code = "import branchynet.datasets.splits, branchynet.datasets.folder, sys; print('sklearn' in sys.modules)"
    assert subprocess.check_output([sys.executable, '-c', code], text=True).strip() == 'False'
