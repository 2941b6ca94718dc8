import copy
import os
import shutil

import branchynet  # noqa: F401
from branchynet import cli, provenance
from branchynet.datasets import cifar, cifar10, cifar10gcn, folder, pcifar10, recipes

import numpy as np
import pytest
from helpers import needs_cifar10
from published import put, records, sha256

# Of the made-up data.npz, on every machine.
SHA256 = 'ae9f94fa5971f42b9501e4b6add9ec64e3da66d1b7d44734ab55a2ffa68af99e'


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data folder that holds a made-up CIFAR-10 of 100 + 20 images, which passes for the published one."""
    monkeypatch.setenv('BRANCHYNET_DATA', str(tmp_path))
    monkeypatch.setattr(cifar, 'URL', (tmp_path / 'server').as_uri() + '/')
    monkeypatch.setattr(cifar10, 'VERSIONS', copy.deepcopy(cifar10.VERSIONS))
    made = [records(20, 10, seed).tobytes() for seed in range(6)]
    monkeypatch.setattr(cifar10, 'BATCHES', dict(zip(cifar10.BATCHES, map(sha256, made))))
    put(tmp_path, 'cifar10', cifar10.VERSIONS[0], dict(zip(cifar10.VERSIONS[0]['files'], made)), packed=False)
    monkeypatch.setattr(pcifar10, 'COUNTS', (100, 20))
    monkeypatch.setattr(pcifar10, 'SHA256', {**pcifar10.SHA256, 'gcn': SHA256})
    return tmp_path


@pytest.fixture
def path(data):
    path = data / 'pcifar10' / 'data.npz'
    path.parent.mkdir()
    return path


def original():
    """Arrays as an original data.npz may hold them: of another type, made in another way."""
    rows = records(120, 10, 9)
    x, y = rows[:, 1:].reshape(-1, 3, 32, 32) / 100.0, rows[:, 0].astype(np.int64)
    return {'train_x': x[:100], 'train_y': y[:100], 'test_x': x[100:], 'test_y': y[100:]}


def same(data, other):
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(data, other))


def test_without_data_npz_cifar10_stands_in(data, capsys):
    assert same(pcifar10.get_data(), cifar10gcn.get_data())
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and 'recipe gcn' in error and "data build pcifar10'" in error
    assert not (data / 'pcifar10').exists()
    assert cli.main(['data', 'info', 'pcifar10']) == 0
    assert 'is missing: CIFAR-10 by recipe gcn stands in for it' in capsys.readouterr().out
    batch = data / 'cifar10' / cifar10.VERSIONS[0]['folder'] / 'data_batch_1.bin'
    batch.write_bytes(bytes(batch.stat().st_size))
    assert cli.main(['data', 'info', 'pcifar10']) == 2
    assert 'cifar10, of which it is made, is damaged' in capsys.readouterr().out
    shutil.rmtree(str(data / 'cifar10'))
    with pytest.raises(OSError, match="data download cifar10'"):
        pcifar10.get_data()
    assert cli.main(['data', 'info', 'pcifar10']) == 2
    printed = capsys.readouterr().out
    assert 'and so is cifar10, of which it is made' in printed and "data download cifar10' gets that" in printed


def test_build_writes_the_same_bytes_everywhere(data, capsys):
    assert cli.main(['data', 'build', 'pcifar10', '--recipe', 'gcn']) == 0
    assert capsys.readouterr().out.strip().endswith('data.npz, recipe gcn')
    path = data / 'pcifar10' / 'data.npz'
    content = path.read_bytes()
    assert sha256(content) == SHA256
    assert os.listdir(str(path.parent)) == ['data.npz']
    assert same(pcifar10.get_data(), cifar10gcn.get_data())
    assert set(pcifar10.get_data_dev(3)[1]) == {0, 1, 2}
    with np.load(str(path), allow_pickle=False) as npz:
        assert set(npz) == set(pcifar10.KEYS) | {'recipe'}
        about = str(npz['recipe'])
    assert '"recipe": "gcn"' in about and all(digest in about for digest in cifar10.BATCHES.values())
    # A second build leaves it alone.
    assert cli.main(['data', 'build']) == 2
    assert 'data.npz exists already: move it away' in capsys.readouterr().err
    assert path.read_bytes() == content


def test_nothing_is_left_of_a_build_that_fails(data, monkeypatch):
    monkeypatch.setattr(pcifar10, 'SHA256', {'gcn': 'another'})
    with pytest.raises(ValueError, match=f'recipe gcn, has SHA-256 {SHA256}: expected another'):
        pcifar10.build()
    with pytest.raises(ValueError, match='recipe is pca: expected gcn'):
        pcifar10.build('pca')
    assert os.listdir(str(data / 'pcifar10')) == []


def test_an_original_is_taken_as_it_is(path, capsys):
    arrays = original()
    np.savez(str(path), **arrays)
    x_train, y_train, x_test, y_test = pcifar10.get_data()
    np.testing.assert_array_equal(x_train, arrays['train_x'].astype(np.float32))
    np.testing.assert_array_equal(y_test, arrays['test_y'])
    assert x_test.dtype == np.float32 and y_train.dtype == np.int32
    assert cli.main(['data', 'info', 'pcifar10']) == 0
    assert capsys.readouterr().out.endswith('data.npz, recipe unknown\n')


@pytest.mark.parametrize('recipe', ['gcn', 'gcn_centred', 'zca'])
def test_info_says_what_an_original_looks_like(path, recipe, capsys):
    if recipe == 'gcn_centred':
        x_train, _, x_test, _ = recipes.apply(recipe, cifar10.read())
    elif recipe == 'gcn':
        x_train, _, x_test, _ = cifar10gcn.get_data()
        # The made-up images are noise around one brightness; those of photographs have many.
        x_train += np.linspace(-1, 1, 100, dtype=np.float32)[:, None, None, None]
    else:
        # Whitened images are noise, from 0 to 1.
        x_train, x_test = (x.reshape(len(x), -1) for x in (original()['train_x'], original()['test_x']))
        x_train, x_test = (
            ((x - x.min(1)[:, None]) / np.ptp(x, 1)[:, None]).reshape(-1, 3, 32, 32) for x in (x_train, x_test)
        )
    np.savez(str(path), **{**original(), 'train_x': x_train, 'test_x': x_test})
    assert cli.main(['data', 'info', 'pcifar10']) == 0
    assert f'looks like recipe {recipe} (' in capsys.readouterr().out


CHANGES = {
    'it has no array train_y': {'train_y': None},
    'train_x is float64 (99, 3, 32, 32): expected floats (100, 3, 32, 32)': {'train_x': np.zeros((99, 3, 32, 32))},
    'test_x is float64 (20, 32, 32, 3)': {'test_x': np.zeros((20, 32, 32, 3))},
    'test_x is uint8': {'test_x': np.zeros((20, 3, 32, 32), np.uint8)},
    'train_y is int64 (100, 1): expected integers (100,)': {'train_y': np.zeros((100, 1), np.int64)},
    'train_y is float64': {'train_y': np.zeros(100)},
    'test_y has labels from 1 to 10: expected 0 to 9': {'test_y': np.arange(20) % 10 + 1},
    'train_y has labels from 0 to 99: expected 0 to 9': {'train_y': np.arange(100)},
    'train_y has labels from 0 to 1: expected 0 to 9': {'train_y': np.arange(100) % 2},
    'Object arrays cannot be loaded': {'train_y': np.array([{}] * 100)},
    'of recipe gcn, has SHA-256': {'recipe': np.array('{"recipe": "gcn"}')},
    'expected recipe gcn or gcn_centred or zca': {'recipe': np.array('{"recipe": "pca"}')},
    'not this data set': {'recipe': np.array('no JSON')},
}


@pytest.mark.parametrize('words', CHANGES)
def test_another_file_is_refused_in_one_line(path, words, capsys):
    arrays = {**original(), **CHANGES[words]}
    np.savez(str(path), **{key: array for key, array in arrays.items() if array is not None})
    refused(path, words, capsys)


@pytest.mark.parametrize(
    'damage',
    [
        lambda b: b[: len(b) // 2],
        lambda b: b'',
        lambda b: b'no npz',
        lambda b: b[:90000] + bytes([b[90000] ^ 1]) + b[90001:],
    ],
)
def test_a_damaged_file_is_refused_in_one_line(path, damage, capsys):
    np.savez(str(path), **original())
    path.write_bytes(damage(path.read_bytes()))
    refused(path, '', capsys)


def refused(path, words, capsys):
    before = path.read_bytes()
    with pytest.raises(OSError) as info:
        pcifar10.get_data()
    message = str(info.value)
    assert message.startswith(str(path)) and words in message and '\n' not in message
    assert "move it away, and '" in message and "data build pcifar10' makes another" in message
    for command in ['info', 'build']:
        assert cli.main(['data', command, 'pcifar10']) == 2
    assert capsys.readouterr().err.count('\n') == 1
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    'words',
    [
        ['data', 'download', 'pcifar10'],
        ['data', 'build', 'cifar10'],
        ['data', 'info', '--recipe', 'gcn'],
        ['data', 'info', 'cifar'],
        ['data', 'build', 'pcifar10', '--recipe', 'pca'],
    ],
)
def test_what_cannot_be_asked_for(data, words, capsys):
    try:
        assert cli.main(words) == 2
    except SystemExit as e:
        assert e.code == 2
    error = capsys.readouterr().err
    assert error.startswith('branchynet') and error.count('\n') == 1


@needs_cifar10
@pytest.mark.slow
@pytest.mark.parametrize('recipe', ['gcn', 'gcn_centred', 'zca'])
def test_the_real_one_is_built_to_its_bytes(recipe, tmp_path, monkeypatch):
    (tmp_path / 'cifar10').symlink_to(os.path.join(folder.root(), 'cifar10'))
    monkeypatch.setenv('BRANCHYNET_DATA', str(tmp_path))
    pcifar10.build(recipe)
    pcifar10._check_built(pcifar10.path(), recipe)
    ((line, error),) = pcifar10.inspect()
    assert error is None and line.endswith('recipe ' + recipe)
    # It also looks like what it is.
    arrays = pcifar10.get_data()
    assert pcifar10._looks_like(arrays[0]).startswith('looks like recipe ' + recipe)
    # Records of trainings name it by its arrays.
    assert pcifar10.recipe_of(provenance.sha256_of_arrays(arrays)) == recipe
    os.remove(pcifar10.path())
