"""BranchyNet in Chainer's Trainer."""

import io
import json

import branchynet
from branchynet import provenance, trainer, training
from branchynet.datasets import mnist
from branchynet.exits import answer
from branchynet.networks import lenet_mnist

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from chainer import iterators
from chainer.datasets import TupleDataset
from chainer.training import Trainer, extensions, triggers
from helpers import same, small_data, small_net, weights

X, T = small_data(40)
PAIRS = TupleDataset(X, T)


def serial(batch=8):
    return iterators.SerialIterator(PAIRS, batch)


def parallel(batch=8):
    return iterators.MultiprocessIterator(PAIRS, batch, order_sampler=trainer.Order(3), n_processes=1, n_prefetch=4)


def validation():
    return iterators.SerialIterator(TupleDataset(*small_data(25, seed=5)), 10, repeat=False, shuffle=False)


@pytest.mark.parametrize('main', [False, True])
@pytest.mark.parametrize('opt', ['Adam', 'MomentumSGD'])
def test_steps_are_those_of_the_epoch_loop(tmp_path, main, opt):
    expected, net = small_net(opt=opt, percentTrainKeeps=0.7), small_net(opt=opt, percentTrainKeeps=0.7)
    np.random.seed(4)
    means = list(training.epochs(expected, X, T, 8, 3, main))
    np.random.seed(4)
    loop = Trainer(trainer.Updater(serial(), net, main), (3, 'epoch'), out=str(tmp_path))
    loop.extend(extensions.LogReport())
    loop.run()
    assert same(weights(net), weights(expected))
    np.testing.assert_equal(net.getLearnedExitsThresholds(), expected.getLearnedExitsThresholds())
    log = json.loads((tmp_path / 'log').read_text())
    names = ['main/loss'] if main else [f'main/exit{k}/loss' for k in range(3)]
    np.testing.assert_allclose(
        [[entry[name] for name in names] for entry in log], [np.atleast_1d(loss) for loss, _ in means]
    )


def loop(net, iterator, out):
    """A Trainer of 12 steps, with all of Chainer's usual extensions."""
    result = Trainer(trainer.Updater(iterator, net), (12, 'iteration'), out=str(out))
    result.extend(trainer.Evaluator(validation(), net), trigger=(4, 'iteration'))
    result.extend(extensions.LogReport(trigger=(2, 'iteration')))
    shown = ['iteration', 'main/exit0/loss', 'validation/main/exit1/share']
    result.extend(extensions.PrintReport(shown, out=io.StringIO()), name='print')
    result.extend(extensions.ProgressBar(update_interval=3, out=io.StringIO()))
    result.extend(extensions.snapshot(), trigger=(7, 'iteration'))  # an epoch has 5 steps
    result.extend(extensions.PlotReport(['main/loss'], 'iteration', trigger=(6, 'iteration'), filename='loss.png'))
    return result


def log_of(out):
    return [{k: v for k, v in entry.items() if k != 'elapsed_time'} for entry in json.loads((out / 'log').read_text())]


@pytest.mark.parametrize('iterator', [serial, parallel])
@pytest.mark.parametrize('kwargs', [{}, {'percentTrainKeeps': 0.6, 'opt': 'MomentumSGD'}])
def test_a_training_resumes_within_an_epoch_to_the_same_bits(tmp_path, iterator, kwargs):
    np.random.seed(4)
    whole = small_net(dropout=True, **kwargs)
    steps = loop(whole, iterator(), tmp_path / 'whole')
    steps.run()
    assert 'validation/main/exit1/share' in steps.get_extension('print')._out.getvalue()
    assert (tmp_path / 'whole' / 'loss.png').exists()

    np.random.seed(9)
    net = small_net(seed=9, dropout=True, **kwargs)
    resumed = loop(net, iterator(), tmp_path / 'resumed')
    snapshot = str(tmp_path / 'whole' / 'snapshot_iter_7')
    chainer.serializers.load_npz(snapshot, resumed)
    resumed.run()
    assert provenance.sha256_of_net(net) == provenance.sha256_of_net(whole)
    assert net.getLearnedExitsThresholds() == pytest.approx(whole.getLearnedExitsThresholds(), abs=0, nan_ok=True)
    assert log_of(tmp_path / 'resumed') == log_of(tmp_path / 'whole')
    loaded = small_net(seed=5, dropout=True)
    chainer.serializers.load_npz(snapshot, loaded, path='updater/model:main/')
    assert np.isfinite(loaded.run(X)).all()


def test_a_training_of_a_net_whose_final_exit_takes_its_size_from_the_input_resumes(tmp_path):
    def made():
        np.random.seed(4)
        exits = [branchynet.Branch([L.Linear(None, 3)]) for _ in range(2)]
        net = branchynet.BranchyNet([L.Linear(4, 8), exits[0], branchynet.FL(F.relu), exits[1]])
        return net, loop(net, serial(), tmp_path)

    whole, steps = made()
    steps.run()
    net, resumed = made()
    chainer.serializers.load_npz(str(tmp_path / 'snapshot_iter_7'), resumed)
    resumed.run()
    assert provenance.sha256_of_net(net.models) == provenance.sha256_of_net(whole.models)


def test_lenet_on_mnist_resumes_to_the_same_bits(tmp_path):
    x, t, _, _ = mnist.get_data()

    def made(name, seed):
        np.random.seed(seed)
        net = lenet_mnist.get_network()
        steps = Trainer(
            trainer.Updater(iterators.SerialIterator(TupleDataset(x[:256], t[:256]), 64), net),
            (10, 'iteration'),
            out=str(tmp_path / name),
        )
        steps.extend(extensions.snapshot(), trigger=(6, 'iteration'))
        return net, steps

    whole, steps = made('whole', 0)
    steps.run()
    net, steps = made('resumed', 1)
    chainer.serializers.load_npz(str(tmp_path / 'whole' / 'snapshot_iter_6'), steps)
    steps.run()
    assert provenance.sha256_of_net(net) == provenance.sha256_of_net(whole)


def test_the_evaluator_measures_over_all_samples():
    net = small_net(thresholdExits=[0.9, 1.05], percentTrainKeeps=0.5)
    x, t = small_data(25, seed=5)
    found = trainer.Evaluator(validation(), net)()
    accuracy, _, counts, _ = net.test(x, t)
    assert 0 < counts[0] < 25
    expected = {'main/accuracy': accuracy, 'main/loss': 0.0}
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        h = x
        for k, model in enumerate(net.models):
            h = net.stage(k, h)
            logits = net.exit(k, h)
            expected[f'main/exit{k}/loss'] = float(F.softmax_cross_entropy(logits, t).array)
            expected[f'main/exit{k}/accuracy'] = float((answer(logits.array).prob.argmax(axis=1) == t).mean())
            expected[f'main/exit{k}/share'] = counts[k] / 25
            expected['main/loss'] += model.weight * expected[f'main/exit{k}/loss']
    assert found == pytest.approx(expected, rel=1e-5)


def test_early_stopping(tmp_path):
    net = small_net()
    stop = triggers.EarlyStoppingTrigger(monitor='validation/main/accuracy', patience=1, max_trigger=(50, 'epoch'))
    steps = Trainer(trainer.Updater(serial(), net), stop, out=str(tmp_path))
    steps.extend(trainer.Evaluator(validation(), net))
    steps.run()
    assert 0 < steps.updater.epoch < 50


class Nothing(chainer.dataset.Iterator):
    """An iterator of a user's own, without samples."""

    def __next__(self):
        raise StopIteration

    def reset(self):
        pass


@pytest.mark.parametrize('make', [iterators.SerialIterator, iterators.MultithreadIterator, lambda *_, **__: Nothing()])
def test_an_evaluation_without_samples_is_refused(make):
    evaluator = trainer.Evaluator(make(TupleDataset(X[:0], T[:0]), 8, repeat=False), small_net())
    with pytest.raises(ValueError, match='^the iterator of the evaluation yields no samples: expected pairs'):
        evaluator()


@pytest.mark.parametrize('of', [trainer.Updater, trainer.Evaluator])
def test_a_net_without_exits_is_refused(of):
    with pytest.raises(TypeError, match=r'^net is a Classifier: expected a BranchyNet, which has exits$'):
        of(serial(), L.Classifier(L.Linear(4, 3)))


@pytest.mark.parametrize(
    'data, error',
    [
        (X, 'batches of ndarray: expected pairs'),
        (TupleDataset(X, T, T), 'batches of tuple of 3: expected pairs'),
        (TupleDataset(X, T.astype(np.float32)), 't has dtype float32'),
        (TupleDataset(X[:, :2], T), 'link 0'),
    ],
)
def test_wrong_items_are_refused(data, error):
    net = small_net()
    before = weights(net)
    with pytest.raises((TypeError, ValueError), match=error) as info:
        trainer.Updater(iterators.SerialIterator(data, 8), net).update()
    assert '\n' not in str(info.value)
    with pytest.raises((TypeError, ValueError), match=error):
        trainer.Evaluator(iterators.SerialIterator(data, 8, repeat=False), net)()
    assert same(weights(net), before)


def test_an_order_depends_on_the_order_before_alone():
    order = np.arange(10)
    first = trainer.Order(1)(order, 0)
    np.random.seed(0)
    np.testing.assert_array_equal(trainer.Order(1)(order, 5), first)
    assert sorted(first) == list(range(10))
    assert not np.array_equal(trainer.Order(1)(first, 0), first)
    assert not np.array_equal(trainer.Order(2)(order, 0), first)


@pytest.mark.parametrize('parts', [[], [0], ['trunk', 1]])
def test_a_training_resumes_with_the_parts_that_were_frozen(parts, tmp_path):
    net = small_net()
    net.freeze(*parts)
    loop = Trainer(trainer.Updater(serial(), net), (3, 'iteration'), out=str(tmp_path))
    loop.run()
    chainer.serializers.save_npz(str(tmp_path / 'snapshot.npz'), loop)
    resumed = small_net(seed=9)
    resumed.freeze(0)
    again = Trainer(trainer.Updater(serial(), resumed), (6, 'iteration'), out=str(tmp_path))
    chainer.serializers.load_npz(str(tmp_path / 'snapshot.npz'), again)
    assert resumed.frozen == net.frozen == set(parts)
    for one in net, resumed:
        one.train(X, T)
    assert same(weights(net), weights(resumed))


def test_a_validation_runs_beside_a_frozen_trunk():
    net = small_net()
    net.freeze('trunk')
    net.forwardMain = True
    assert trainer.Evaluator(validation(), net)()['main/loss'] > 0


@pytest.mark.parametrize('strict', [True, False])
def test_a_snapshot_that_does_not_name_frozen_parts_leaves_them_as_they_are(strict, tmp_path):
    loop = Trainer(trainer.Updater(serial(), small_net()), (1, 'iteration'), out=str(tmp_path))
    loop.run()
    path = tmp_path / 'snapshot.npz'
    chainer.serializers.save_npz(str(path), loop)
    with np.load(path) as arrays:
        np.savez(path, **{name: array for name, array in arrays.items() if not name.endswith('/frozen')})
    net = small_net(seed=9)
    net.freeze(0)
    again = Trainer(trainer.Updater(serial(), net), (6, 'iteration'), out=str(tmp_path))
    chainer.serializers.load_npz(str(path), again, strict=strict)
    assert net.frozen == {0}
