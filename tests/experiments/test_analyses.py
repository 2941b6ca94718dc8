"""The experiments on CIFAR-10 and the analyses, on a few images of noise: what they run, write and claim."""

import os
import re

import branchynet  # noqa: F401
from branchynet import checkpoint, cli
from branchynet.datasets import mnist
from branchynet.experiments import (
    ANALYSES,
    NAMES,
    NETWORKS,
    PRESETS,
    alex_cifar10,
    claims,
    figure5,
    figure6,
    get_experiment,
    initialisation,
    lenet_mnist,
    loss_weights,
    resnet_cifar10,
    results,
    runs,
)
from branchynet.experiments.runs import CannotRun

import numpy as np
import pytest


@pytest.fixture
def noise(monkeypatch):
    """AlexNet's experiments on noise, tiny."""
    rng = np.random.RandomState(0)
    x = rng.randn(48, 3, 32, 32).astype(np.float32)
    t = rng.randint(0, 10, 48).astype(np.int32)
    tiny = runs.Preset(main_epochs=1, joint_epochs=1, batchsize=8, train_samples=16, test_samples=8)
    for module in alex_cifar10, figure5, loss_weights, initialisation, figure6:
        monkeypatch.setattr(
            module,
            'EXPERIMENT',
            module.EXPERIMENT._replace(get_data=lambda: (x, t, x, t), presets=dict.fromkeys(PRESETS, tiny)),
        )


def reproduce(out, *options):
    return cli.main(['reproduce', '--preset', 'smoke', '--device', 'cpu', '--out', str(out), *options])


def results_of(out):
    return results.read(str(out)).experiments


def test_every_experiment_has_all_presets():
    assert NAMES == NETWORKS + ANALYSES
    for name in NAMES:
        experiment = get_experiment(name)
        assert experiment.name == name and {'smoke', 'quick', 'paper'} <= set(experiment.presets) <= set(PRESETS)


@pytest.mark.usefixtures('rendered_figures')
def test_comparisons_train_every_part_alike(noise, tmp_path):
    assert reproduce(tmp_path, '--only', 'loss_weights,initialisation') == 0
    found = results_of(tmp_path)
    assert [run.part for run in found['loss_weights']] == ['equal', 'first']
    random, trained = found['initialisation']
    assert (random.training.main_epochs, random.training.joint_epochs) == (0, 1) and trained.training.main_epochs == 1
    assert len(trained.measurement.exit_accuracy_percent) == 3
    figures = os.listdir(str(tmp_path / 'figures'))
    assert sorted(figures) == ['initialisation.pdf', 'initialisation.png', 'loss_weights.pdf', 'loss_weights.png']
    claimed = {v.claim.id: v for v in claims.check(results.Results(preset='paper', variant='code', experiments=found))}
    equal, first = (run.measurement.exit_accuracy_percent[-1] for run in found['loss_weights'])
    assert claimed['text/loss weights'].measured == [first - equal]
    del found['loss_weights'][1]
    verdict = next(
        v
        for v in claims.check(results.Results(preset='paper', variant='code', experiments=found))
        if v.claim.id == 'text/loss weights'
    )
    assert (verdict.status, verdict.reason) == ('NOT RUN', 'needs part first of seed 0')


def test_a_comparison_resumes_in_the_middle_of_a_part(noise, tmp_path, monkeypatch):
    assert reproduce(tmp_path / 'whole', '--only', 'loss_weights') == 0
    save, saved = checkpoint.save, []

    def interrupt(*args):
        save(*args)
        saved.append(args)
        if len(saved) == 3:  # main's epoch of the second part is done
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, 'save', interrupt)
    out = tmp_path / 'out'
    assert reproduce(out, '--only', 'loss_weights') == 130
    assert 'checkpoint_loss_weights_first_seed0.npz' in os.listdir(str(out))
    assert reproduce(out, '--only', 'loss_weights', '--resume') == 0
    assert len(saved) == 4
    whole, resumed = (
        [run.training.weights_sha256 for run in results_of(path)['loss_weights']] for path in (tmp_path / 'whole', out)
    )
    assert whole == resumed


def test_figure5_has_its_published_points(noise):
    experiment = figure5.EXPERIMENT
    assert list(experiment.parts) == list(experiment.published) == list('01234')
    for k in range(5):
        net = experiment.parts[str(k)].get_network(variant='code')
        assert net.numexits() == 2
        assert sum('Convolution' in type(link).__name__ for link in net.models[0][net.models[0].endi :]) == k


def test_a_results_folder_is_of_one_variant(noise, tmp_path, capsys):
    assert reproduce(tmp_path, '--only', 'alex_cifar10', '--variant', 'paper') == 0
    (run,) = results_of(tmp_path)['alex_cifar10']
    assert run.training.variant == 'paper' and len(run.measurement.sweep) == 121
    images = run.measurement.measured.published.images
    assert images.both_right + images.only_branchy_right + images.only_baseline_right + images.both_wrong == 8
    curve = run.measurement.exit1_curve
    assert curve.exit1_percent[0] == 0 and curve.exit1_percent[-1] == 100
    assert curve.accuracy_percent[-1] == pytest.approx(run.measurement.exit_accuracy_percent[0])
    assert reproduce(tmp_path, '--only', 'alex_cifar10', '--resume') == 2
    assert 'is of variant paper: expected code' in capsys.readouterr().err


def counter(commands):
    """In place of the process that counts: 1000 loads and 2 misses an image, 1 miss where all leave at exit 1."""

    def count(tool, variant, weights, images, count, setting):
        commands.append(setting)
        share = 0.5 if setting == [10.0, 10.0] else 1
        return 10**6 + 1000 * count, 500 + 2 * count * share

    return count


@pytest.mark.usefixtures('rendered_figures')
@pytest.mark.slow
def test_figure6_counts_what_images_add(noise, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figure6, '_tool', lambda: ['a tool'])
    assert reproduce(tmp_path, '--only', 'figure6') == 2
    assert 'holds no weights of alex_cifar10_seed0: run --only alex_cifar10,figure6' in capsys.readouterr().err
    commands = []
    monkeypatch.setattr(figure6, '_count', counter(commands))
    assert reproduce(tmp_path, '--only', 'alex_cifar10,figure6') == 0
    (run,) = results_of(tmp_path)['figure6']
    cache = run.measurement.cache
    assert len(commands) == 8 and [point.cache_miss_percent for point in cache] == [0.1, 0.2, 0.2, 0.2]
    assert cache[-1].thresholds == []
    assert os.path.exists(str(tmp_path / 'figures' / 'figure6_seed0.pdf'))
    monkeypatch.setattr(figure6, '_count', lambda *_: (10**6, 500))  # images that cost nothing
    assert reproduce(tmp_path, '--only', 'alex_cifar10,figure6') == 2
    assert 'figure6_seed0 is skipped: 8 additional images added 0 loads' in capsys.readouterr().out
    assert 'alex_cifar10' in results_of(tmp_path) and (tmp_path / 'report.md').exists()
    monkeypatch.setattr(figure6, '_count', counter(commands))
    weights = tmp_path / 'weights_alex_cifar10_seed0.npz'
    weights.write_bytes(weights.read_bytes() + b'more')
    assert reproduce(tmp_path, '--only', 'figure6') == 2
    assert 'weights_alex_cifar10_seed0.npz is not what its run wrote' in capsys.readouterr().err
    weights.unlink()
    assert reproduce(tmp_path, '--only', 'figure6') == 2
    assert 'holds no weights of alex_cifar10_seed0' in capsys.readouterr().out
    found = results.Results(preset='quick', variant='code', experiments=results_of(tmp_path))
    claimed = next(v for v in claims.check(found) if v.claim.id == 'figure6/direction')
    assert claimed.measured == [0.5] and claimed.status == 'PASS'


def test_without_counters_figure6_says_so(noise, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figure6.shutil, 'which', lambda name: None)
    assert reproduce(tmp_path, '--only', 'figure6') == 2
    assert 'this machine has no cache counters that perf can read, and no valgrind' in capsys.readouterr().err


def test_counts_are_read_by_the_events_names():
    perf = '120,,cache-misses:u,1,100.00,,\n30000,,L1-dcache-loads:u,1,100.00,,\n10000,,L1-dcache-stores:u,1,100.00,,\n'
    assert figure6._perf_counts(perf) == (40000, 120)
    backwards = 'a warning, of perf\n' + '\n'.join(reversed(perf.splitlines()))
    assert figure6._perf_counts(backwards) == (40000, 120)
    for lost in perf.replace('120', '<not counted>'), perf.replace('10000,', '<not supported>,'), '':
        with pytest.raises(
            CannotRun, match='^perf counted .* of cache-misses:u, L1-dcache-loads:u, L1-dcache-stores:u: '
        ):
            figure6._perf_counts(lost)
    grind = '==1== D   refs:      751,412,577  (5 rd   + 2 wr)\n==1== LL misses:          743,467  (1 rd + 2 wr)\n'
    assert figure6._callgrind_counts(grind) == (751412577, 743467)
    with pytest.raises(CannotRun, match="^valgrind's output names no data references and misses"):
        figure6._callgrind_counts(grind.replace('LL misses', 'L3 misses'))


@pytest.mark.parametrize('after', [(1000, 40), (1100, 39), (900, 41)])
def test_counts_that_images_do_not_raise_are_refused(after):
    with pytest.raises(CannotRun, match='the counts are too noisy; run figure6 again on an idle machine'):
        figure6._point(None, [], np.zeros((8, 3, 32, 32)), np.zeros(8), (1000, 40), after)


def test_without_cifar_lenet_runs_and_the_rest_is_named(tmp_path, monkeypatch, capsys):
    def missing():
        raise FileNotFoundError('cifar10 is missing: get it so')

    tiny = runs.Preset(main_epochs=1, joint_epochs=1, batchsize=64, train_samples=64, test_samples=8)
    lenet = lenet_mnist.EXPERIMENT._replace(get_data=mnist.get_data, presets={'smoke': tiny})
    monkeypatch.setattr(lenet_mnist, 'EXPERIMENT', lenet)
    for network in alex_cifar10, resnet_cifar10:
        monkeypatch.setattr(network, 'EXPERIMENT', network.EXPERIMENT._replace(get_data=missing))
    assert reproduce(tmp_path) == 0
    captured = capsys.readouterr()
    for text in captured.err, captured.out:
        assert 'alex_cifar10 is skipped: cifar10 is missing: get it so\n' in text
        assert 'resnet_cifar10 is skipped: ' in text
    assert re.search(r'of experiments that were not run \(.*alex_cifar10: \d+', captured.out)
    assert list(results_of(tmp_path)) == ['lenet_mnist']
