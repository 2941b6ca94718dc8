import copy
import hashlib
import os
import pickle

import branchynet  # noqa: F401
from branchynet import cli
from branchynet.datasets import cifar, cifar10, cifar10gcn, cifar100gcn

import numpy as np
import pytest
from helpers import needs_cifar10
from published import md5, pickled, put, python_batch, records, sha256, tar, write

BINARY, PYTHON = 0, 1
PLACES = [(version, packed) for version in (BINARY, PYTHON) for packed in (True, False)]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """An empty data folder, no server that answers, and descriptions that tests may change."""
    monkeypatch.setenv('BRANCHYNET_DATA', str(tmp_path))
    monkeypatch.setattr(cifar, 'URL', (tmp_path / 'server').as_uri() + '/')
    for module in cifar10, cifar100gcn:
        monkeypatch.setattr(module, 'VERSIONS', copy.deepcopy(module.VERSIONS))
    return tmp_path


@pytest.fixture
def batches(monkeypatch):
    """Six made-up batches of CIFAR-10, which pass for the published ones."""
    made = [records(20, 10, seed) for seed in range(6)]
    monkeypatch.setattr(cifar10, 'BATCHES', {name: sha256(rows.tobytes()) for name, rows in zip(cifar10.BATCHES, made)})
    return made


def put_cifar10(data, batches, version, packed, extra=()):
    encode = (lambda rows: rows.tobytes(), python_batch)[version]
    files = cifar10.VERSIONS[version]['files']
    put(data, 'cifar10', cifar10.VERSIONS[version], dict(zip(files, map(encode, batches))), packed, extra)


def files_under(path):
    return {str(file): file.read_bytes() for file in path.rglob('*') if file.is_file()}


def one_line(call, *words):
    """Runs what must raise an OSError of one line with these words."""
    with pytest.raises(OSError) as info:
        call()
    message = str(info.value)
    assert '\n' not in message
    for word in words:
        assert word in message
    return message


@pytest.mark.parametrize('version,packed', PLACES)
def test_every_published_form_gives_the_same_arrays(data, batches, version, packed):
    put_cifar10(data, batches, version, packed)
    x_train, y_train, x_test, y_test = cifar10.get_data(whitening=0)
    rows = np.concatenate(batches)
    for x, y, part in (x_train, y_train, rows[:100]), (x_test, y_test, rows[100:]):
        assert x.dtype == np.float32 and y.dtype == np.int32
        np.testing.assert_array_equal(x, part[:, 1:].reshape(-1, 3, 32, 32) / np.float32(255))
        np.testing.assert_array_equal(y, part[:, 0])


@pytest.mark.parametrize('version', [0, 1])
def test_cifar100_gives_fine_labels(data, version):
    # Its real files are not to be had here: made-up ones in the published formats, digests and all.
    train, test = records(200, 100, 0), records(100, 100, 1)
    if cifar100gcn.VERSIONS[version]['folder'] == 'cifar-100-python':
        contents = {'train': train, 'test': test}
        contents = {
            file: pickled(
                {
                    b'fine_labels': rows[:, 0].tolist(),
                    b'coarse_labels': [0] * len(rows),
                    b'data': np.ascontiguousarray(rows[:, 1:]),
                }
            )
            for file, rows in contents.items()
        }
    else:
        coarse = [np.insert(rows, 0, 7, axis=1).tobytes() for rows in (train, test)]
        contents = {'train.bin': coarse[0], 'test.bin': coarse[1]}
    put(data, 'cifar100', cifar100gcn.VERSIONS[version], contents, packed=True)
    x_train, y_train, x_test, y_test = cifar100gcn.get_data()
    assert x_train.shape == (200, 3, 32, 32) and x_train.dtype == np.float32
    np.testing.assert_array_equal(y_train, train[:, 0])
    np.testing.assert_array_equal(y_test, test[:, 0])
    np.testing.assert_allclose(x_test.reshape(100, -1).std(axis=1, ddof=1), 1, rtol=1e-5)
    assert set(cifar100gcn.get_data_dev(5)[3]) == set(range(5))
    assert cli.main(['data', 'info', 'cifar100']) == 0


def test_some_classes(data, batches):
    put_cifar10(data, batches, BINARY, packed=False)
    everything, some = cifar10gcn.get_data(), cifar10gcn.get_data_dev()
    for k in 0, 2:
        chosen = everything[k + 1] < 2
        np.testing.assert_array_equal(some[k], everything[k][chosen])
        np.testing.assert_array_equal(some[k + 1], everything[k + 1][chosen])
    for numclasses in 0, 11:
        with pytest.raises(ValueError, match='numclasses is %d: expected 1 to 10' % numclasses):
            cifar10gcn.get_data_dev(numclasses)


@pytest.mark.parametrize('version', [BINARY, PYTHON])
@pytest.mark.parametrize(
    'damage',
    [
        lambda b: b[: len(b) // 2],
        lambda b: b'',
        lambda b: b'no archive',
        lambda b: b[:900] + bytes([b[900] ^ 1]) + b[901:],
    ],
)
def test_a_damaged_archive_is_named_and_kept(data, batches, version, damage, capsys):
    put_cifar10(data, batches, version, packed=True)
    archive = data / 'cifar10' / cifar10.VERSIONS[version]['archive']
    archive.write_bytes(damage(archive.read_bytes()))
    before = files_under(data)
    one_line(cifar10.read, str(archive), 'expected ' + cifar10.VERSIONS[version]['md5'], "data download cifar10'")
    assert cli.main(['data', 'info', 'cifar10']) == 2
    assert cli.main(['data', 'download', 'cifar10']) == 2
    assert cli.main(['data', 'build', 'pcifar10']) == 2
    for line in capsys.readouterr().err.splitlines():
        assert line.startswith('branchynet: ')
    assert files_under(data) == before


def test_a_swapped_archive_is_refused(data, batches):
    put_cifar10(data, batches, PYTHON, packed=True)
    binary = data / 'cifar10' / cifar10.VERSIONS[BINARY]['archive']
    (data / 'cifar10' / cifar10.VERSIONS[PYTHON]['archive']).rename(binary)
    one_line(cifar10.read, str(binary), cifar10.VERSIONS[PYTHON]['md5'], cifar10.VERSIONS[BINARY]['md5'])


@pytest.mark.parametrize('version', [BINARY, PYTHON])
def test_a_damaged_or_missing_batch_is_named(data, batches, version):
    put_cifar10(data, batches, version, packed=False)
    first, second = list(cifar10.VERSIONS[version]['files'])[:2]
    path = data / 'cifar10' / cifar10.VERSIONS[version]['folder']
    (path / second).write_bytes((path / first).read_bytes())
    one_line(cifar10.read, second, 'expected ' + cifar10.VERSIONS[version]['files'][second])
    (path / second).unlink()
    one_line(cifar10.read, second + ' is missing', "data download cifar10'")


def test_the_python_version_must_hold_the_rows_of_the_binary_one(data, batches):
    put_cifar10(data, [batches[1], batches[0], *batches[2:]], PYTHON, packed=False)
    one_line(cifar10.read, 'data_batch_1', 'expected ' + cifar10.BATCHES['data_batch_1'])


def test_an_archive_leads_nowhere(data, batches):
    put_cifar10(
        data,
        batches,
        BINARY,
        packed=True,
        extra={'../outside': b'x', '/tmp/outside': b'x', 'cifar-10-batches-bin/link': '../../..'},
    )
    before = files_under(data)
    cifar10.read()
    assert files_under(data) == before
    linked = tar({'cifar-10-batches-bin/' + file: '/etc/passwd' for file in cifar10.VERSIONS[BINARY]['files']})
    write(data / 'cifar10' / cifar10.VERSIONS[BINARY]['archive'], linked)
    cifar10.VERSIONS[BINARY]['md5'] = md5(linked)
    one_line(cifar10.read, 'holds no file cifar-10-batches-bin/data_batch_1.bin')


class Evil:
    def __reduce__(self):
        return os.getcwd, ()


@pytest.mark.parametrize('protocol', [2, 3, 4])
@pytest.mark.parametrize('evil', [Evil(), [Evil()], {b'data': Evil()}, os.system, set, eval])
def test_a_pickle_calls_nothing(evil, protocol):
    with pytest.raises(pickle.UnpicklingError, match='the pickle calls .*: expected only numpy'):
        cifar.decode_python(pickle.dumps(evil, protocol=protocol))


def test_download_keeps_the_archive_and_checks_it(data, batches, capsys):
    put_cifar10(data, batches, BINARY, packed=True)
    archive = cifar10.VERSIONS[BINARY]['archive']
    write(data / 'server' / archive, (data / 'cifar10' / archive).read_bytes())
    for damaged in b'half', None:
        (data / 'cifar10' / archive).unlink()
        if damaged:
            (data / 'cifar10' / archive).write_bytes(damaged)
        assert cli.main(['data', 'download', 'cifar10']) == 0
        assert os.listdir(str(data / 'cifar10')) == [archive]
        np.testing.assert_array_equal(cifar10.read()[3], batches[-1][:, 0])
    assert 'is intact' in capsys.readouterr().out
    # What is whole is not downloaded again.
    (data / 'server' / archive).unlink()
    assert cli.main(['data', 'download', 'cifar10']) == 0


def test_get_data_downloads_what_is_absent(data, batches):
    put_cifar10(data, batches, BINARY, packed=True)
    (data / 'cifar10').rename(data / 'server')
    assert len(cifar10.read()[0]) == 100
    one_line(
        lambda: cifar.read('cifar100', cifar100gcn.VERSIONS),
        'cifar-100-python.tar.gz cannot be downloaded',
        'put a file with MD5 eb9058c3a382ffc7106e4002c42a8d85 there',
        "data download cifar100'",
    )


@needs_cifar10
def test_cifar10_is_the_real_one():
    x_train, y_train, x_test, y_test = cifar10.read()
    assert y_train[:5].tolist() == [6, 9, 9, 4, 1] and y_test[:5].tolist() == [3, 8, 8, 0, 6]
    assert np.bincount(y_train).tolist() == [5000] * 10 and np.bincount(y_test).tolist() == [1000] * 10
    means = x_train.mean(axis=(0, 2, 3)) / 255
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=1e-4)
    # The Python version of a real batch is read to the very same records.
    rows = np.insert(x_test.reshape(10000, -1), 0, y_test, axis=1)
    decoded = cifar.decode_python(python_batch(rows))
    assert hashlib.sha256(decoded.tobytes()).hexdigest() == cifar10.BATCHES['test_batch']
