"""Files of 2016: tests/legacy holds some that Python 2.7 and Chainer 1.17 wrote, with what the networks said then.

tests/legacy/write_with_python27.py has made them.
"""

import contextlib
import gzip
import io
import json
import lzma
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import branchynet
from branchynet import legacy
from branchynet.legacy import content as contents
from branchynet.legacy import network, pickles, values
from branchynet.legacy.pickles import Name, Record
from branchynet.links.densesparselinear import DenseSparseLinear
from branchynet.links.links import FL, SL, X
from branchynet.links.resnet import Block, BottleNeckA, BottleNeckB, ResBlock
from branchynet.links.sparselinear import SparseLinear
from branchynet.net import BranchyNet
from branchynet.networks import lenet_mnist

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

FOLDER = Path(__file__).parent
RELEASED = Path(branchynet.__file__).parents[2] / 'shared/legacy/lenet_mnist.bn.xz'  # a file of the release itself


def file(name):
    return FOLDER / f'{name}.bn.xz'


def outputs(name):
    with np.load(FOLDER / f'{name}_outputs.npz') as arrays:
        return dict(arrays)


def content(name):
    return lzma.decompress(file(name).read_bytes())


def write(tmp_path, data, name='net.bn'):
    path = tmp_path / name
    path.write_bytes(data)
    return path


# Networks


@pytest.mark.parametrize('name', ['alex', 'momentum', 'resnet', 'sparse', 'bottlenecks'])
def test_a_loaded_network_says_what_it_said_in_2016(name):
    then = outputs(name)
    net = legacy.load(file(name))
    for k, prob in enumerate(net.get_SM(then['x'])):
        np.testing.assert_allclose(prob, then[f'sm{k}'], rtol=0, atol=1e-5)
    net = legacy.load(file(name), statistics='main')
    np.testing.assert_allclose(net.run_main(then['x']), then['main'], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', ['alex', 'momentum', 'sparse'])
def test_training_goes_on_with_the_moments_of_2016(name):
    then = outputs(name)
    net = legacy.load(file(name))
    np.random.seed(5)
    net.train(then['x_after'], then['t_after'])
    for link, expected in [
        (net.main[0], 'after_trunk'),
        (net.main[-1], 'after_main_head'),
        (net.models[0][-1], 'after_exit'),
    ]:
        np.testing.assert_allclose(link.W.array, then[expected], rtol=1e-5, atol=1e-6)


def test_without_moments_training_goes_on_otherwise():
    then = outputs('alex')
    net = legacy.load(file('alex'))
    net._setup_optimizers()
    np.random.seed(5)
    net.train(then['x_after'], then['t_after'])
    assert abs(net.main[0].W.array - then['after_trunk']).max() > 1e-4


def test_settings_are_kept():
    net = legacy.load(file('alex'))
    assert (net.thresholdExits, net.percentTestExits, net.percentTrainKeeps, net.joint) == ([0.5, 0.25], 0.9, 1.0, True)
    assert (net.opt, net.alpha, net.lr, net.momentum, net.weight_decay) == ('Adam', 0.002, 0.05, 0.8, 0.0002)
    assert (net.optimizer.alpha, net.optimizers[0].alpha, net.optimizer.t, net.optimizers[0].t) == (0.002, 0.001, 6, 3)
    assert [(m.starti, m.endi, m.weight) for m in net.models] == [(0, 4, 1.0), (4, 7, 1.0), (7, 13, 1.0)]
    assert net.percentTrainExits is None and net.forwardMain is None
    net = legacy.load(file('momentum'))
    assert [(o.lr, o.momentum) for o in (net.optimizer, net.optimizers[0])] == [(0.05, 0.8), (0.05, 0.9)]


def test_links_and_functions_have_todays_names():
    net = legacy.load(file('alex'))
    assert [type(link) for link in net.main] == [
        L.Convolution2D,
        FL,
        FL,
        FL,
        L.Convolution2D,
        FL,
        FL,
        L.Linear,
        FL,
        SL,
        L.Linear,
        SL,
        SL,
        L.Linear,
    ]
    assert [(link.fn, link.args, link.kwargs) for link in net.main if isinstance(link, FL)] == [
        (F.relu, (), {}),
        (F.max_pooling_2d, (3, 2), {}),
        (F.local_response_normalization, (), {'n': 3, 'alpha': 5e-5, 'beta': 0.75, 'k': 2}),
        (F.relu, (), {}),
        (F.max_pooling_2d, (2, 2), {'cover_all': False}),
        (F.relu, (), {}),
    ]
    dropout = net.main[9].fnTrain
    assert (dropout.fn, dropout.args, dropout.kwargs, net.main[9].fnTest) == (F.dropout, (0.4,), {}, None)
    assert (net.main[11].fnTrain.kwargs, net.main[12].fnTest.fn) == ({'ratio': 0.2}, F.relu)
    assert net.main[4].b is None and (net.main[0].pad, net.main[0].stride) == ((2, 2), (1, 1))
    assert net.models[0][-2].kwargs == {}  # use_cudnn is a setting of Chainer today
    resnet = legacy.load(file('resnet'))
    assert [type(link) for link in resnet.main] == [
        L.Convolution2D,
        L.BatchNormalization,
        FL,
        ResBlock,
        ResBlock,
        ResBlock,
        FL,
        L.Linear,
    ]
    assert (resnet.main[4].in_size, resnet.main[4].out_size, resnet.main[4].stride) == (4, 6, 2)
    assert (resnet.main[6].fn, resnet.main[6].args) == (F.average_pooling_2d, (3, 1))


def test_residual_and_sparse_links_are_todays():
    net = legacy.load(file('sparse'))
    assert [type(link) for link in net.main] == [L.Convolution2D, FL, X, X, DenseSparseLinear, FL, X, L.Linear]
    assert [type(link) for link in net.main[3]] == [L.Convolution2D, X]
    assert [list(link.weights) for link in (net.main[2], net.main[6])] == [[1.0, 1.0], [0.5, 2.0]]
    first, _, second = net.models[0][net.models[0].endi :]
    assert (type(first), first.in_size, first.out_size, first.W.shape) == (SparseLinear, 256, 6, (154,))
    assert (type(second), second.b, second.indptr[-1]) == (SparseLinear, None, 9)
    dense = net.main[4]
    assert dense.mask.sum() == 154 and dense.mask.dtype == np.float32 and not dense.W.array[dense.mask == 0].any()
    net = legacy.load(file('bottlenecks'))
    assert [type(link) for link in net.main] == [L.Convolution2D, BottleNeckB, BottleNeckA, Block, X, L.Linear]
    assert [type(link) for link in net.main[3]] == [BottleNeckA, BottleNeckB, BottleNeckB]
    assert net.main[2].conv4.stride == (2, 2) and net.main[4][0][0].conv1.stride == (1, 1)


@pytest.mark.filterwarnings('error:the file has no moments')
def test_moments_of_links_within_links_are_kept():
    net, then = legacy.load(file('bottlenecks')), outputs('bottlenecks')
    for param, expected in (
        (net.main[3][2].conv1.W, 'm_block'),
        (net.models[1][4][0][1].bn3.gamma, 'm_nested'),
    ):
        assert np.array_equal(param.update_rule.state['m'], then[expected]) and then[expected].any()
    legacy.load(file('sparse'))


def test_main_has_its_own_head_and_the_exits_trunk():
    net = legacy.load(file('alex'))
    assert net.main[0] is net.models[0][0] is net.models[2][0]
    assert (net.main[-1].W.array != net.models[-1][-1].W.array).any()


def test_statistics_are_the_exits_or_mains():
    exits, main = legacy.load(file('resnet')), legacy.load(file('resnet'), statistics='main')
    assert (exits.main[1].avg_mean != main.main[1].avg_mean).any()
    assert (exits.main[3].bn1.avg_var != main.main[3].bn1.avg_var).any()
    assert (exits.main[0].W.array == main.main[0].W.array).all()
    with pytest.raises(ValueError, match="statistics is 'both'"):
        legacy.load(file('resnet'), statistics='both')


def norm_record(mean, var):
    """A record of Chainer 1's BatchNormalization."""

    def array(numbers):
        record = Record(Name(values.ARRAY), (Name('numpy ndarray'), (0,), 'b'))
        dtype = Record(Name('numpy dtype'), ('f4', 0, 1))
        dtype.state = (3, '<', None, None, None, -1, -1, 0)
        record.state = (1, (len(numbers),), dtype, False, np.array(numbers, '<f4').tobytes().decode('latin-1'))
        return record

    record = Record(Name(network._NORM), ())
    record.state = {'avg_mean': array(mean), 'avg_var': array(var), 'N': 0, 'eps': 2e-5, 'decay': 0.9}
    return record


def test_a_copy_that_has_normalised_nothing_leaves_mains_statistics():
    trained, fresh = norm_record([1, 2], [3, 4]), norm_record([0, 0], [0, 0])
    for twin in (None, fresh):
        link = network.Builder(1000, 'exits').norm(trained, twin)
        assert link.avg_mean.tolist() == [1, 2]
        np.testing.assert_allclose(link.avg_var, [3 - 2e-5, 4 - 2e-5], rtol=1e-7)
    assert network.Builder(1000, 'exits').norm(fresh, trained).avg_mean.tolist() == [1, 2]
    assert network.Builder(1000, 'exits').norm(fresh, fresh).avg_var.tolist() == [0, 0]


def test_a_gpus_array_is_an_array():
    array = norm_record([1, 2], [3, 4]).state['avg_mean']
    assert network.Builder(99, 'exits').array(Record(Name(values.GPU_ARRAY), (array,))).tolist() == [1, 2]


def test_every_compression_and_none(tmp_path):
    data = content('momentum')
    paths = [
        write(tmp_path, data, 'a.bn'),
        write(tmp_path, gzip.compress(data, mtime=0), 'b.bn.gz'),
        write(tmp_path, lzma.compress(data), 'c'),
    ]
    for path in paths:
        assert (legacy.load(path).main[0].W.array == legacy.load(file('momentum')).main[0].W.array).all()
        assert legacy.load(str(path)).opt == 'MomentumSGD'


def test_loading_draws_no_random_numbers():
    np.random.seed(3)
    legacy.load(file('resnet'))
    after = np.random.rand()
    np.random.seed(3)
    assert np.random.rand() == after


@pytest.mark.skipif(not RELEASED.exists(), reason="the release's own file lies beside the project, not in it")
def test_the_releases_own_file(tmp_path):
    with np.load(RELEASED.with_name('lenet_mnist_outputs.npz')) as arrays:
        then = dict(arrays)
    legacy.convert(RELEASED, tmp_path / 'lenet.npz')
    description = json.loads((tmp_path / 'lenet.json').read_bytes())
    assert description['network'] == 'lenet_mnist'
    converted = lenet_mnist.get_network(**description['settings'])
    chainer.serializers.load_npz(tmp_path / 'lenet.npz', converted)
    for net in (legacy.load(RELEASED), converted):
        np.testing.assert_allclose(net.run_main(then['x']), then['main'], rtol=0, atol=1e-5)
        for k, prob in enumerate(net.get_SM(then['x'])):
            np.testing.assert_allclose(prob, then[f'sm{k}'], rtol=0, atol=1e-5)
    assert (net.numexits(), legacy.load(RELEASED).optimizer.t) == (2, 6)


def test_the_first_lines_of_the_pages_example_run_in_a_new_process(tmp_path):
    """With any old file; the lines after them need one of the released LeNet, as the next test has."""
    page = (FOLDER.parents[1] / 'docs' / 'from-chainer-1.md').read_text(encoding='utf-8')
    (code,) = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
    first, _ = code.split('# The same in two steps')
    (tmp_path / '_models').mkdir()
    (tmp_path / '_models' / 'lenet_mnist.bn').write_bytes(content('alex'))
    run = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', f'{first}\nprint(net.numexits())'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stdout) == (0, '3\n'), run.stderr


@pytest.mark.skipif(not RELEASED.exists(), reason="the release's own file lies beside the project, not in it")
def test_the_example_of_the_page_runs_in_a_new_process(tmp_path):
    """Both ways of it give the same net, with the moments of all exits."""
    page = (FOLDER.parents[1] / 'docs' / 'from-chainer-1.md').read_text(encoding='utf-8')
    (code,) = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
    (tmp_path / '_models').mkdir()
    (tmp_path / '_models' / 'lenet_mnist.bn').write_bytes(lzma.decompress(RELEASED.read_bytes()))
    legacy.convert(tmp_path / '_models' / 'lenet_mnist.bn', tmp_path / 'lenet.npz')
    first, second = code.split('# The same in two steps')
    report = (
        "print([net.optimizer.t, *(o.t for o in net.optimizers)], net.get_SM(np.ones((1, 1, 28, 28), 'f'))[1].max())"
    )
    run = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', f'{first}\nimport numpy as np\n{report}\n# {second}\n{report}'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    one, other = run.stdout.splitlines()
    assert one == other and one.startswith('[6, 3, 3]')


# Results and snapshots


def test_results():
    results = legacy.load_results(file('results'))
    assert {name: value.tolist() for name, value in results.items()} == {
        'accs': [0.9, 0.95],
        'rt': [0.001, 0.002],
        'exits': [[7, 3], [2, 8]],
        'ts': [[0.1], [0.5]],
        'baseacc': 0.96,
        'basediff': float(np.float32(0.004)),
    }


@pytest.mark.parametrize(
    'results, message',
    [
        ({}, 'it has no accs'),
        (dict.fromkeys(('accs', 'rt', 'exits', 'ts', 'baseacc'), 0), 'it has no basediff'),
        ([1, 2], 'it holds a list'),
    ],
)
def test_results_that_are_not_whole(tmp_path, results, message):
    with pytest.raises(ValueError, match=message):
        legacy.load_results(write(tmp_path, pickle.dumps(results, 2)))


@pytest.mark.parametrize(
    'value, message',
    [
        ('text', 'a str where a number was expected'),
        (None, 'a nonetype where a number was expected'),
        ([[1], [2, 3]], 'lists of different lengths'),
        ([[[[[[1]]]]]], 'too deep'),
    ],
)
def test_results_that_are_no_numbers(tmp_path, value, message):
    results = dict.fromkeys(('accs', 'rt', 'exits', 'ts', 'baseacc', 'basediff'), 0)
    with pytest.raises(ValueError, match=message):
        legacy.load_results(write(tmp_path, pickle.dumps({**results, 'ts': value}, 2)))


def test_results_of_exponential_size(tmp_path, monkeypatch):
    monkeypatch.setattr(legacy, '_MAX_RESULTS', 10_000)
    value = [0.0] * 100
    for _ in range(2):
        value = [value] * 100
    results = dict.fromkeys(('accs', 'rt', 'exits', 'ts', 'baseacc', 'basediff'), value)
    path = write(tmp_path, pickle.dumps(results, 2))
    assert path.stat().st_size < 10_000
    with pytest.raises(ValueError, match='too long'):
        legacy.load_results(path)


def test_each_kind_of_file_names_the_other():
    with pytest.raises(ValueError, match='holds results: load_results reads them'):
        legacy.load(file('results'))
    with pytest.raises(ValueError, match='holds a BranchyNet'):
        legacy.load_results(file('momentum'))


def test_a_snapshot_leaves_the_settings_of_a_net_as_they_are(tmp_path):
    net = legacy.load(file('momentum'))
    net.thresholdExits = None
    chainer.serializers.save_npz(tmp_path / 'net.npz', net)
    net.thresholdExits, net.temperatures = [0.1] * (net.numexits() - 1), [2.0] * net.numexits()
    legacy.load_snapshot(tmp_path / 'net.npz', net)
    assert net.thresholdExits == [0.1] * (net.numexits() - 1) and net.temperatures == [2.0] * net.numexits()


@pytest.mark.parametrize('name', ['main.npz', 'trainer.npz'])
def test_snapshots(name):
    net = legacy.load(file('resnet')).main
    for param in net.params():
        param.array[...] = 0
    legacy.load_snapshot(FOLDER / name, net)
    if name == 'trainer.npz':
        then = outputs('trainer')
        logits = net.test(then['x']).array
        np.testing.assert_allclose(logits, then['main'], rtol=1e-5, atol=1e-5 * abs(then['main']).max())
    else:
        expected = legacy.load(file('resnet'), statistics='main').main
        for (path, a), (_, b) in zip(net.namedparams(), expected.namedparams()):
            assert (a.array == b.array).all(), path
        for a, b in ((net[1], expected[1]), (net[3].bn2, expected[3].bn2)):
            assert (a.avg_mean == b.avg_mean).all() and (a.avg_var == b.avg_var).all()


def hdf5(tmp_path):
    return write(tmp_path, lzma.decompress((FOLDER / 'main.h5.xz').read_bytes()), 'main.h5')


def test_hdf5_snapshots(tmp_path):
    pytest.importorskip('h5py')
    nets = [legacy.load(file('resnet')).main for _ in range(2)]
    legacy.load_snapshot(hdf5(tmp_path), nets[0])
    legacy.load_snapshot(FOLDER / 'main.npz', nets[1])
    arrays = [{}, {}]
    for found, net in zip(arrays, nets):
        chainer.serializers.DictionarySerializer(found).save(net)
    for key in arrays[0]:
        assert np.array_equal(arrays[0][key], arrays[1][key]), key


def test_hdf5_without_h5py_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'h5py', None)
    with pytest.raises(ImportError, match='pip install h5py'):
        legacy.load_snapshot(hdf5(tmp_path), legacy.load(file('resnet')).main)


def npz(tmp_path, change, deflated=True):
    """main.npz with its arrays changed."""
    with np.load(FOLDER / 'main.npz') as arrays:
        arrays = dict(arrays)
    change(arrays)
    (np.savez_compressed if deflated else np.savez)(tmp_path / 'changed.npz', **arrays)
    return tmp_path / 'changed.npz'


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda a: a.pop('7/b'), 'it has no 7/b'),
        (lambda a: a.update({'7/b': np.zeros(4, 'f')}), r'7/b has shape \(4,\): this network has \(3,\)'),
        (lambda a: a.update({'7/b': np.array([None] * 3)}), '7/b has dtype object'),
        (lambda a: a.update({'7/b': np.zeros(3, 'i')}), '7/b has dtype int32'),
        (lambda a: a.update({'other/' + key: value for key, value in list(a.items())}), 'several such networks'),
    ],
)
def test_snapshots_that_do_not_fit(tmp_path, change, message):
    net = legacy.load(file('resnet')).main
    before = {path: param.array.copy() for path, param in net.namedparams()}
    with pytest.raises(ValueError, match=message):
        legacy.load_snapshot(npz(tmp_path, change), net)
    assert all((param.array == before[path]).all() for path, param in net.namedparams())


def test_a_snapshot_that_claims_more_than_it_holds(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {'descr': '<f4', 'fortran_order': False, 'shape': (3,)})
    path = npz(tmp_path, lambda a: a.pop('7/b'))
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr('7/b.npy', header.getvalue() + b'1234')
    with pytest.raises(ValueError, match='7/b is truncated'):
        legacy.load_snapshot(path, legacy.load(file('resnet')).main)


def test_no_snapshot(tmp_path):
    net = legacy.load(file('resnet')).main
    with pytest.raises(ValueError, match='neither .npz nor HDF5'):
        legacy.load_snapshot(file('resnet'), net)
    with pytest.raises(ValueError, match='it is damaged'):
        legacy.load_snapshot(write(tmp_path, (FOLDER / 'main.npz').read_bytes()[:-1000]), net)
    with pytest.raises(FileNotFoundError):
        legacy.load_snapshot(tmp_path / 'none.npz', net)


# Conversion


@pytest.mark.parametrize('name, thresholds', [('alex', [0.5, 0.25]), ('sparse', None), ('bottlenecks', None)])
def test_convert_keeps_everything(tmp_path, name, thresholds):
    description = legacy.convert(file(name), tmp_path / 'new.npz')
    assert json.loads((tmp_path / 'new.json').read_bytes()) == description
    assert (description['network'], description['settings']['thresholdExits']) == (None, thresholds)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['new.json', 'new.npz']
    expected, net = legacy.load(file(name)), legacy.load(file(name))
    for param in net.params():
        param.array[...] = 0
    net._setup_optimizers()
    chainer.serializers.load_npz(tmp_path / 'new.npz', net)
    chainer.serializers.load_npz(tmp_path / 'new.npz', net.optimizer, path='optimizer/')
    for k, optimizer in enumerate(net.optimizers):
        chainer.serializers.load_npz(tmp_path / 'new.npz', optimizer, path=f'optimizers/{k}/')
    for (path, a), (_, b) in zip(net.namedparams(), expected.namedparams()):
        assert (a.array == b.array).all() and a.update_rule.t == b.update_rule.t
        assert all((a.update_rule.state[m] == b.update_rule.state[m]).all() for m in 'mv'), path


def test_convert_overwrites_nothing(tmp_path):
    for suffix in ('.npz', '.json'):
        (tmp_path / f'new{suffix}').write_text('mine')
        with pytest.raises(FileExistsError, match='--force'):
            legacy.convert(file('momentum'), tmp_path / 'new.npz')
        assert [p.read_text() for p in tmp_path.iterdir()] == ['mine']
        (tmp_path / f'new{suffix}').unlink()
    (tmp_path / 'new.npz').write_text('mine')
    legacy.convert(file('momentum'), tmp_path / 'new.npz', force=True)
    assert (tmp_path / 'new.json').exists() and (tmp_path / 'new.npz').stat().st_size > 1000


@pytest.mark.parametrize('earlier', [[], ['new.json', 'new.npz']])
def test_convert_leaves_nothing_half_written(earlier, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match='expected NAME.npz'):
        legacy.convert(file('momentum'), tmp_path / 'new.h5')
    with pytest.raises(ValueError, match='cannot be read'):
        legacy.convert(write(tmp_path, content('momentum')[:-1]), tmp_path / 'new.npz')
    (tmp_path / 'net.bn').unlink()

    @contextlib.contextmanager
    def full(path):
        with written(path) as f:
            yield f
            if str(path).endswith('.json'):
                raise OSError('no space')

    for name in earlier:
        (tmp_path / name).write_text('mine')
    written = legacy.written_whole
    monkeypatch.setattr(legacy, 'written_whole', full)
    with pytest.raises(OSError, match='no space'):
        legacy.convert(file('momentum'), tmp_path / 'new.npz', force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == earlier
    assert all(path.read_text() == 'mine' for path in tmp_path.iterdir())


# Hostile and damaged files


def changed(tmp_path, old, new, count=1, name='momentum'):
    data = content(name)
    assert old in data
    return write(tmp_path, data.replace(old, new, count))


def test_nothing_that_a_file_names_is_imported(tmp_path):
    """A module is recorded, not imported, wherever it stands."""
    path = changed(tmp_path, b'U\x05numpy', b'U\x0eantigravity_zz', 10)
    assert isinstance(legacy.load(path), BranchyNet)
    assert 'antigravity_zz' not in sys.modules


@pytest.mark.parametrize(
    'old, new, message',
    [
        (b'cchainer.flag\nFlag\n', b'cos\nsystem\n', "names 'os system', and nothing but networks"),
        (b'cbranchynet.net\nBranchyNet\n', b'cbranchynet.links.links\nNet\n', 'it holds a Net'),
        (b'f4', b'O8', 'no plain numbers'),
        (b'f4', b'V4', 'no plain numbers'),
        (b'U\x01<', b'U\x01*', 'no plain numbers'),
        (b'cnumpy\nndarray\n', b'cnumpy\ndtype\n', 'an array was expected'),
        (b'U\x03opt', b'U\x03Opt', 'a MomentumSGD where a Adam was expected'),
        (b'U\x04main', b'U\x04Main', 'a nonetype where a Net was expected'),
        (b'U\x06models', b'U\x06Models', 'a nonetype where a list was expected'),
        (b'U\x04endi', b'U\x04Endi', 'number was expected|do not fit'),
        (b'U\x01W', b'U\x01w', 'without weights|link without'),
        (b'U\x02fn', b'U\x02Fn', 'where a function was expected'),
        (b'U\x07_states', b'U\x07_States', 'without moments'),
    ],
)
def test_hostile_and_foreign_files(tmp_path, old, new, message):
    with pytest.raises(ValueError, match=message) as e:
        legacy.load(changed(tmp_path, old, new))
    assert str(tmp_path / 'net.bn') in str(e.value) and '\n' not in str(e.value)


def test_a_setting_that_is_no_number(tmp_path):
    rate = b'G?\xa9\x99\x99\x99\x99\x99\x9aU\x08momentum'
    path = changed(tmp_path, rate, b']' + rate[9:], name='alex')
    with pytest.raises(ValueError, match=r'net.bn cannot be read as a network of the release: lr is \[\]: expected'):
        legacy.load(path)


@pytest.mark.parametrize('shape', [(10**9,), (2**62, 8), (3,), (-1, -2), (0,), (2.0, 1), 'text', (1,) * 40])
def test_arrays_that_claim_another_shape(shape):
    record = norm_record([1, 2], [3, 4])
    mean = record.state['avg_mean']
    mean.state = (1, shape, *mean.state[2:])
    with pytest.raises(ValueError, match='shape|number'):
        network.Builder(1000, 'exits').norm(record)


def test_an_array_cannot_be_copied_without_end():
    converter = network.Builder(8, 'exits')
    record = norm_record([1, 2], [3, 4]).state['avg_mean']
    for _ in range(3):
        converter.array(record)
    with pytest.raises(ValueError, match='larger than the file'):
        converter.array(record)


def test_links_that_hold_themselves():
    link = Record(Name(network._SL), ())
    link.state = {'fnTrain': link}
    with pytest.raises(ValueError, match='a SL where a link was expected'):
        network.Builder(9, 'exits').link(link)


def records(name, kind):
    """The file's objects of a class, each once."""
    found, seen, waiting = [], set(), [pickles.read(content(name), network.NAMES)]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Record):
            found += [value] * (value.name == kind)
            waiting += [value.state, *value.args]
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value
    return found


def link_of(record):
    return network.Builder(10**6, 'exits').link(record)


def whole_numbers(*numbers):
    """A record of an int32 array."""
    record = norm_record([1], [1]).state['avg_mean']
    dtype = Record(Name('numpy dtype'), ('i4', 0, 1))
    dtype.state = (3, '<', None, None, None, -1, -1, 0)
    record.state = (1, (len(numbers),), dtype, False, np.array(numbers, '<i4').tobytes().decode('latin-1'))
    return record


@pytest.mark.parametrize('links, message', [(1, 'more than 20 X'), (100, 'more than 10000 links')])
def test_x_that_holds_itself(links, message):
    x = Record(Name(network._X), ())
    x.state = {'weights': [1.0, 1.0], '_children': [x] * links}
    if links > 1:  # 100 ** 10 links, in a file of a few kilobytes
        inner: list = []
        for _ in range(10):
            x = Record(Name(network._X), ())
            x.state = {'weights': [1.0, 1.0], '_children': inner}
            inner = [x] * links
    with pytest.raises(ValueError, match=message):
        link_of(x)


def test_a_block_that_holds_itself():
    block = Record(Name(network._BLOCK), ())
    block.state = {'layer': 1, network._bottleneck_name(0): block}
    with pytest.raises(ValueError, match='links are not the released ones'):
        link_of(block)


@pytest.mark.parametrize(
    'change',
    [
        {'weights': [1.0]},
        {'weights': [1.0, 'a']},
        {'weights': None},
        {'_children': None},
        {'_children': [None]},
    ],
)
def test_a_damaged_x_is_refused(change):
    (x, *_) = records('sparse', network._X)
    assert isinstance(link_of(x), X)
    x.state.update(change)
    with pytest.raises(ValueError, match='it has'):
        link_of(x)


@pytest.mark.parametrize(
    'change',
    [
        {'indices': whole_numbers(*[0] * 8)},
        {'indices': whole_numbers(*[0] * 8, 6)},
        {'indices': whole_numbers(*[0] * 8, -1)},
        {'indptr': whole_numbers(0, 3, 9)},
        {'indptr': whole_numbers(0, 5, 4, 9)},
        {'indptr': whole_numbers(0, 3, 6, 10)},
        {'indptr': whole_numbers(1, 3, 6, 9)},
        {'indptr': norm_record([0, 3, 6, 9], [1]).state['avg_mean']},
    ],
)
def test_a_sparse_layer_whose_places_do_not_fit(change):
    for sparse in records('sparse', network._SPARSE):
        if sparse.state['b'] is None:
            assert isinstance(link_of(sparse), SparseLinear)
            sparse.state['slf'].state.update(change)
            with pytest.raises(ValueError, match='a SparseLinear whose arrays do not fit'):
                link_of(sparse)
            return
    raise AssertionError


def test_a_damaged_mask_is_refused():
    for kind in network._SPARSE, network._DENSE_SPARSE:
        (sparse, *_) = records('sparse', kind)
        mask = sparse.state['mask']
        for other in (None, sparse.state['W'].args[0], whole_numbers(1, 0)):
            sparse.state['mask'] = other
            with pytest.raises(ValueError, match='it has a'):
                link_of(sparse)
        sparse.state['mask'] = mask
        mask.state = (1, (10**5, 10**5), *mask.state[2:])  # 10 GB of which the file has nothing
        with pytest.raises(ValueError, match='whose contents have another size'):
            link_of(sparse)


def test_blocks_whose_links_do_not_fit():
    for layer in (0, 4, 10**9, -1, 'many'):
        (block, *_) = records('bottlenecks', network._BLOCK)
        block.state['layer'] = layer
        with pytest.raises(ValueError, match='it has'):
            link_of(block)
    (block, *_) = records('bottlenecks', network._BLOCK)
    block.state['a'] = block.state['b1']
    with pytest.raises(ValueError, match='not the released ones'):
        link_of(block)
    for kind in network._BOTTLENECK_A, network._BOTTLENECK_B:
        (neck, *_) = records('bottlenecks', kind)
        neck.state['conv1'], neck.state['conv2'] = neck.state['conv2'], neck.state['conv1']
        with pytest.raises(ValueError, match='do not fit each other'):
            link_of(neck)


def test_a_block_of_huge_size_is_refused_before_it_is_made(tmp_path):
    """A first convolution of many channels, and a second that does not fit it."""
    with pytest.raises(ValueError, match='do not fit each other|not the released one'):
        data = content('resnet')
        legacy.load(
            write(
                tmp_path,
                data.replace(b'U\x05conv2', b'U\x05c_nv2')
                .replace(b'U\x05conv1', b'U\x05conv2')
                .replace(b'U\x05c_nv2', b'U\x05conv1'),
            )
        )


@pytest.mark.parametrize(
    'data, message',
    [
        (b'', 'truncated'),
        (b'PK\x03\x04', 'it is a zip archive, such as an .npz: branchynet.legacy.load_snapshot'),
        (b'hello, world', 'missing|no operation'),
        (b'\x80\x02N.', 'it holds a nonetype'),
        (lzma.compress(b'\x80\x02N.')[:-5], 'truncated'),
        (gzip.compress(b'\x80\x02N.', mtime=0)[:-5], 'does not unpack'),
        (b'\xfd7zXZ\0' + b'\0' * 50, 'does not unpack'),
    ],
)
def test_no_network(tmp_path, data, message):
    for load in (legacy.load, legacy.load_results):
        with pytest.raises(ValueError, match=message):
            load(write(tmp_path, data))


def test_no_file(tmp_path):
    for load in (legacy.load, legacy.load_results):
        with pytest.raises(FileNotFoundError):
            load(tmp_path / 'none.bn')
        with pytest.raises(OSError):
            load(tmp_path)


@pytest.mark.parametrize('pack', [lzma.compress, gzip.compress])
def test_small_files_that_unpack_to_large_ones(tmp_path, monkeypatch, pack):
    monkeypatch.setattr(contents, 'MAX_UNPACKED_BYTES', 2**21)
    path = write(tmp_path, pack(bytes(2**21 + 1)))
    with pytest.raises(ValueError, match='unpacks to more than 2 MiB'):
        legacy.load(path)


SMALL = {name: content(name) for name in ('momentum', 'results', 'sparse')}


@pytest.mark.parametrize(
    'name, load', [('momentum', legacy.load), ('results', legacy.load_results), ('sparse', legacy.load)]
)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_file_gives_a_network_or_one_clean_error(tmp_path_factory, name, load, data):
    damaged = bytearray(SMALL[name])
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = write(
        tmp_path_factory.getbasetemp(),
        bytes(
            damaged[: data.draw(st.integers(len(damaged) // 2, len(damaged)))] if data.draw(st.booleans()) else damaged
        ),
    )
    try:
        load(path)
    except ValueError as e:
        assert str(path) in str(e) and '\n' not in str(e)


SNAPSHOT = (FOLDER / 'main.npz').read_bytes()
NET = legacy.load(file('resnet')).main


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_snapshot_is_loaded_or_gives_one_clean_error(tmp_path_factory, data):
    damaged = bytearray(SNAPSHOT)
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = write(tmp_path_factory.getbasetemp(), bytes(damaged), 'damaged.npz')
    try:
        legacy.load_snapshot(path, NET)
    except ValueError as e:
        assert str(path) in str(e) and '\n' not in str(e)


def test_a_file_that_unpacks_without_end_takes_little_memory(tmp_path):
    """1 GB of zeros, in less than 400 MB beyond what an import takes."""
    packer = lzma.LZMACompressor(preset=0)
    block = bytes(2**20)
    path = write(tmp_path, b''.join(packer.compress(block) for _ in range(1000)) + packer.flush(), 'bomb.xz')
    code = """
import resource, sys
from branchynet import legacy
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    legacy.load(sys.argv[1])
except ValueError as e:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, e)
"""
    run = subprocess.run([sys.executable, '-c', code, str(path)], capture_output=True, text=True)
    kilobytes, message = run.stdout.split(' ', 1)
    assert int(kilobytes) < 400_000 and 'unpacks to more than 256 MiB' in message


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='memory is limited as Linux does it')
def test_damaged_files_take_no_memory(tmp_path):
    """In 500 MB beyond what an import takes, several hundred damaged files."""
    code = """
import random, resource, sys, warnings
from branchynet import legacy
import lzma
warnings.simplefilter('ignore')
pages = int(open('/proc/self/statm').read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 500 * 2 ** 20,) * 2)
random.seed(0)
for name in 'momentum', 'alex', 'resnet', 'sparse', 'bottlenecks':
    whole = lzma.decompress(open(sys.argv[1] + '/' + name + '.bn.xz', 'rb').read())
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(random.randint(1, 9)):
            damaged[random.randrange(len(damaged))] = random.randrange(256)
        open(sys.argv[2], 'wb').write(damaged)
        try:
            legacy.load(sys.argv[2])
        except ValueError:
            pass
print('done')
"""
    run = subprocess.run(
        [sys.executable, '-c', code, str(FOLDER), str(tmp_path / 'damaged.bn')],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.stdout == 'done\n', run.stderr


# The command


def command(*args):
    return subprocess.run(
        [sys.executable, '-m', 'branchynet.cli', 'convert', *map(str, args)], capture_output=True, text=True
    )


def test_the_command(tmp_path):
    run = command(file('momentum'), tmp_path / 'new.npz')
    assert (run.returncode, run.stderr, run.stdout) == (0, '', f'{tmp_path}/new.npz: a network of 2 exits\n')
    run = command(file('momentum'), tmp_path / 'new.npz')
    assert (
        run.returncode == 2
        and run.stderr == f'branchynet: {tmp_path}/new.npz exists: --force (force=True) replaces it\n'
    )
    run = command(file('momentum'), tmp_path / 'new.npz', '--force', '--json')
    assert json.loads(run.stdout) == json.loads((tmp_path / 'new.json').read_bytes())


def test_the_command_refuses_in_one_line(tmp_path):
    hostile = write(tmp_path, b'\x80\x02cos\nsystem\nU\x08touch ran\x85R.')
    for old, message in [
        (hostile, "names 'os system'"),
        (file('results'), 'results'),
        (tmp_path / 'none', 'No such file'),
    ]:
        run = command(old, tmp_path / 'new.npz')
        assert (run.returncode, run.stderr.count('\n')) == (2, 1) and message in run.stderr
    assert [p.name for p in tmp_path.iterdir()] == ['net.bn']
