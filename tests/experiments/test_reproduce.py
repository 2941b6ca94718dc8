"""`branchynet reproduce` and `report` on a few real images."""

import csv
import json
import os
import re
from unittest import mock

import branchynet  # noqa: F401
from branchynet import checkpoint, cli, files, provenance, utils
from branchynet.datasets import mnist
from branchynet.experiments import claims, lenet_mnist, network_experiment, results, runs, tables
from branchynet.networks import lenet_mnist as network

import chainer
import numpy as np
import pytest
from helpers import TINY, stop_at

LONGER = TINY._replace(main_epochs=3, joint_epochs=3)


def reproduce(out, *options):
    return cli.main(
        ['reproduce', '--only', 'lenet_mnist', '--preset', 'smoke', '--device', 'cpu', '--out', str(out), *options]
    )


def seeds_of(out):
    return results.read(str(out)).experiments['lenet_mnist']


def read(out, name='results.json'):
    with open(os.path.join(str(out), name)) as f:
        return json.load(f)


@pytest.mark.usefixtures('rendered_figures')
def test_a_results_folder_is_whole_and_true(tiny, tmp_path, capsys):
    out = tmp_path / 'out'
    assert reproduce(out, '--seeds', '2') == 0
    assert sorted(os.listdir(str(out))) == [
        'figures',
        'manifest.json',
        'report.html',
        'report.md',
        'results.json',
        'sweep_lenet_mnist.csv',
        'weights_lenet_mnist_seed0.npz',
        'weights_lenet_mnist_seed0_main.npz',
        'weights_lenet_mnist_seed1.npz',
        'weights_lenet_mnist_seed1_main.npz',
    ]
    figures = os.listdir(str(out / 'figures'))
    drawn = [
        f'lenet_mnist_seed{seed}_{what}.{suffix}'
        for seed in (0, 1)
        for what in ('main', 'joint', 'figure3', 'figure4')
        for suffix in ('png', 'pdf')
    ]
    drawn += [f'lenet_mnist_seed0_{what}.png' for what in ('leaving', 'confusion', 'reliability')]
    assert sorted(figures) == sorted(drawn)
    assert (out / 'report.html').read_text().count('<img ') == 11
    first, second = seeds_of(out)
    assert (first.seed, second.seed) == (0, 1)
    assert first.training.weights_sha256 != second.training.weights_sha256
    assert np.shape(first.training.joint.loss) == (2, 2)

    # What is written is what the weights do.
    net = network.get_network()
    chainer.serializers.load_npz(str(out / 'weights_lenet_mnist_seed1.npz'), net)
    _, _, x, y = mnist.get_data()
    ts, accs, _, exits = utils.screen_branchy(net, x[:40], y[:40], lenet_mnist.EXPERIMENT.base_thresholds)
    assert [row.thresholds for row in second.measurement.sweep] == ts
    np.testing.assert_allclose([row.accuracy_percent for row in second.measurement.sweep], accs * 100)
    np.testing.assert_allclose([row.exit_percent for row in second.measurement.sweep], exits / 40 * 100)
    chainer.serializers.load_npz(str(out / 'weights_lenet_mnist_seed1_main.npz'), net.main)
    accuracy = utils.test(net, x[:40], y[:40], main=True)[0]
    assert accuracy * 100 == pytest.approx(second.measurement.baseline.accuracy_percent)
    with open(str(out / 'sweep_lenet_mnist.csv')) as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 2 * 17
    assert [float(row['accuracy_percent']) for row in rows[17:]] == pytest.approx(list(accs * 100))
    manifest = read(out, 'manifest.json')
    assert {
        'results.json',
        'report.md',
        'sweep_lenet_mnist.csv',
        'weights_lenet_mnist_seed0.npz',
        'figures/lenet_mnist_seed1_figure3.pdf',
    } <= manifest['sha256'].keys()
    for name, sha256 in manifest['sha256'].items():
        assert files.digest(str(out / name)) == sha256
    assert [run['settings']['seed'] for run in manifest['runs']] == [0, 1]
    assert len({run['steps'][0]['sha256'] for run in manifest['runs']}) == 1  # the data

    printed = capsys.readouterr().out
    assert printed.startswith('Preset smoke on cpu: about ')
    text = (out / 'report.md').read_text()
    assert tables.markdown(results.read(str(out))) in printed
    assert f'Claims: 0 PASS, 0 FAIL, {len(claims.claims())} NOT RUN\n' in printed
    assert printed.count('NOT RUN: ') <= 5  # reasons, not claims
    assert '| 99.25 ' in text and '94.3 5.63' in text  # Table I beside
    baseline = np.mean([run.measurement.baseline.accuracy_percent for run in (first, second)])
    assert f'| {baseline:.2f} ± ' in text


def test_a_run_that_was_interrupted_resumes_to_the_same_bits(tiny, trained, tmp_path, monkeypatch, capsys):
    save, saved = checkpoint.save, []

    def interrupt(*args):
        save(*args)
        saved.append(args)
        if len(saved) in (1, 4):  # in main's training, and in the joint one
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, 'save', interrupt)
    out = tmp_path / 'out'
    assert reproduce(out) == 130
    assert os.listdir(str(out)) == ['checkpoint_lenet_mnist_seed0.npz']
    assert reproduce(out, '--resume') == 130
    assert reproduce(out, '--resume') == 0
    whole, resumed = (seeds_of(path)[0].training for path in (trained, out))
    assert resumed.weights_sha256 == whole.weights_sha256
    assert resumed.joint.loss == whole.joint.loss
    assert resumed.main.loss == whole.main.loss

    before = (out / 'results.json').read_bytes()
    saved.clear()
    assert reproduce(out, '--resume') == 0  # nothing is left to do
    assert not saved and (out / 'results.json').read_bytes() == before
    weights = out / 'weights_lenet_mnist_seed0.npz'
    whole = weights.read_bytes()
    weights.write_bytes(whole + b'more')
    assert reproduce(out, '--resume') == 2
    assert 'weights_lenet_mnist_seed0.npz is not what its run wrote' in capsys.readouterr().err
    weights.write_bytes(whole)
    assert reproduce(out, '--preset', 'quick', '--resume') == 2
    assert 'is of preset smoke: expected quick' in capsys.readouterr().err
    assert (out / 'results.json').read_bytes() == before


def test_results_of_other_experiments_are_kept(tiny, folder, capsys):
    content, path = read(folder), folder / 'results.json'
    part = dict(content['experiments']['lenet_mnist'][0])
    part['measurement'] = {
        key: part['measurement'][key]
        for key in ('device', 'environment', 'test_samples', 'exit_accuracy_percent', 'outputs')
    }
    content['experiments'] = {'loss_weights': [{**part, 'part': 'equal'}], **content['experiments']}
    path.write_text(json.dumps(content))
    assert reproduce(folder) == 0  # the same preset again
    assert list(read(folder)['experiments']) == ['loss_weights', 'lenet_mnist']

    path.write_text(json.dumps({**content, 'preset': 'paper'}))
    before = path.read_bytes()
    capsys.readouterr()
    assert reproduce(folder) == 2  # smoke does not replace days of training
    error = capsys.readouterr().err
    assert 'is of preset paper: expected smoke; name another folder with --out' in error and error.count('\n') == 1
    assert path.read_bytes() == before


def test_a_run_replaces_that_of_its_seed_alone_and_when_it_is_done(tiny, folder, monkeypatch):
    (first,) = seeds_of(folder)
    assert reproduce(folder, '--seeds', '3-3') == 0
    assert [run.seed for run in seeds_of(folder)] == [0, 3] and seeds_of(folder)[0] == first

    monkeypatch.setattr(lenet_mnist, 'EXPERIMENT', lenet_mnist.EXPERIMENT._replace(presets={'smoke': LONGER}))
    before = (folder / 'results.json').read_bytes()
    with monkeypatch.context() as patch:
        stop_at(patch, 18)  # of the second epoch after main's weights are written
        assert reproduce(folder) == 130
    assert (folder / 'results.json').read_bytes() == before
    assert cli.main(['report', str(folder), '--write']) == 0  # without the weights that were overwritten
    assert reproduce(folder, '--resume') == 0
    again, third = seeds_of(folder)
    assert len(again.training.joint.loss) == 3 and third.seed == 3 and len(third.training.joint.loss) == 2


def test_an_unfinished_training_is_not_begun_again_in_silence(tiny, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert reproduce(tmp_path) == 130
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for options in [], ['--seeds', '2', '--jobs', '2']:
        capsys.readouterr()
        assert reproduce(tmp_path, *options) == 2
        error = capsys.readouterr().err
        path = tmp_path / 'checkpoint_lenet_mnist_seed0.npz'
        assert error.count('\n') == 1 and f'remove {path}*' in error and '--resume goes on with it' in error
        assert f'{tmp_path} holds an unfinished training of lenet_mnist_seed0: ' in error
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    for path in tmp_path.glob('checkpoint_lenet_mnist_seed0.npz*'):
        path.unlink()
    assert reproduce(tmp_path) == 0


def test_what_a_smoke_run_left_gives_way_to_another_preset(tiny, folder):
    (folder / 'notes.txt').write_text('mine')
    assert reproduce(folder, '--preset', 'quick') == 1  # so short a training fails the claim of quick
    assert results.read(str(folder)).preset == 'quick'
    listed = read(folder, 'manifest.json')['sha256']
    found = {str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()}
    assert found == {*listed, 'manifest.json', 'notes.txt'}


def test_results_that_give_way_do_not_hinder_a_resumed_training(tiny, folder, monkeypatch):
    """A smoke run that was stopped before its manifest was written."""
    (folder / 'manifest.json').unlink()
    with monkeypatch.context() as patched:
        stop_at(patched, 4)
        assert reproduce(folder, '--preset', 'quick') == 130
    assert reproduce(folder, '--preset', 'quick', '--resume') == 1
    assert results.read(str(folder)).preset == 'quick'


def test_counts_on_the_cpu_do_not_hinder_a_gpu():
    environment = runs.environment('.')
    counted = mock.Mock(training=None, measurement=mock.Mock(device='@numpy', environment=environment))
    trained = mock.Mock(training=mock.Mock(device='@numpy', environment=environment))
    setup = runs.Setup('code', '@cupy:0', '.', 'smoke', True)
    runs.check_origin('results.json', [counted], setup)
    with pytest.raises(ValueError, match='^results.json has device @numpy: expected @cupy:0; name another folder'):
        runs.check_origin('results.json', [trained], setup)


# Of 4 steps and the end of an epoch; the 11th is of the baseline.
@pytest.mark.parametrize(
    'count', [14, pytest.param(4, marks=pytest.mark.slow), pytest.param(15, marks=pytest.mark.slow)]
)
def test_a_run_resumes_within_an_epoch_to_the_same_bits(tiny, trained, tmp_path, monkeypatch, capsys, count):
    out = tmp_path / 'out'
    stop_at(monkeypatch, count)
    assert reproduce(out) == 130
    assert reproduce(out, '--resume') == 0
    capsys.readouterr()
    assert cli.main(['verify', str(trained), str(out)]) == 0
    assert capsys.readouterr().out == 'lenet_mnist_seed0: identical (10 steps)\n'
    assert not [name for name in os.listdir(str(out)) if name.startswith('checkpoint')]


@pytest.mark.parametrize('what', ['commit', 'profile', 'numpy'])
def test_a_checkpoint_of_another_origin_is_refused(tiny, tmp_path, monkeypatch, capsys, what):
    environment = provenance.environment()
    stop_at(monkeypatch, 2)
    assert reproduce(tmp_path) == 130
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(provenance, 'environment', lambda out: {**environment, what: 'another'})
    capsys.readouterr()
    assert reproduce(tmp_path, '--resume') == 2
    error = capsys.readouterr().err
    assert f'has {what}' in error and 'expected another' in error and error.count('\n') == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_seeds_of_another_origin_are_not_mixed(tiny, folder, monkeypatch, capsys):
    before = (folder / 'results.json').read_bytes()
    monkeypatch.setattr(runs, '_code_sha256', lambda: 'another')
    capsys.readouterr()
    assert reproduce(folder, '--seeds', '2', '--resume') == 2
    error = capsys.readouterr().err
    assert 'results.json has code_sha256' in error and 'expected another' in error and error.count('\n') == 1
    assert (folder / 'results.json').read_bytes() == before
    assert reproduce(folder) == 0  # from the start


def test_a_run_that_fails_is_named_and_the_others_finish(tiny, tmp_path, monkeypatch, capsys):
    measure = network_experiment._measure

    def diverged(experiment, baseline_net, net, *rest):
        if not measured:
            net.main[0].W.array[:] = np.nan
        measured.append(net)
        return measure(experiment, baseline_net, net, *rest)

    measured: list = []
    monkeypatch.setattr(network_experiment, '_measure', diverged)
    assert reproduce(tmp_path, '--seeds', '2') == 2
    printed = capsys.readouterr().out
    assert re.search(r'\nlenet_mnist_seed0 failed: exit \d answers NaN', printed)
    assert [run.seed for run in results.read(str(tmp_path)).experiments['lenet_mnist']] == [1]
    assert (tmp_path / 'report.md').exists() and (tmp_path / 'checkpoint_lenet_mnist_seed0.npz').exists()
    assert reproduce(tmp_path, '--seeds', '2', '--resume') == 0


def test_without_data_nothing_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('BRANCHYNET_DATA', str(tmp_path / 'data'))
    monkeypatch.setattr(mnist, 'FOLDER', str(tmp_path / 'nothing'))
    assert reproduce(tmp_path / 'out') == 2
    error = capsys.readouterr().err
    assert error.startswith('lenet_mnist is skipped: ') and error.count('\n') == 1
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('out', ['', '/proc', os.path.join(os.devnull, 'out'), __file__])
def test_a_folder_that_cannot_be_written_is_told_before_anything_is_trained(tiny, capsys, out):
    assert reproduce(out) == 2
    printed, error = capsys.readouterr()
    assert not printed and error.startswith(f'branchynet: --out {out}') and error.count('\n') == 1


@pytest.mark.parametrize(
    'words, message',
    [
        (['--preset', 'huge'], "invalid choice: 'huge'"),
        (['--only', 'lenet_mnist,vgg'], "'vgg' is not an experiment: choose from lenet_mnist"),
        (['--seeds', '0'], "'0' is not a number of seeds: give 1 to 1000"),
    ],
)
def test_bad_usage_is_status_2(words, message, capsys):
    with pytest.raises(SystemExit) as info:
        cli.main(['reproduce', *words])
    assert info.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1


def test_experiments_run_after_those_whose_weights_they_need():
    assert cli._experiments('figure6,alex_cifar10,figure6') == ['alex_cifar10', 'figure6']


def test_an_experiment_that_is_named_twice_runs_once(tiny, tmp_path, capsys):
    assert reproduce(tmp_path, '--only', 'lenet_mnist,lenet_mnist') == 0
    assert capsys.readouterr().out.count('lenet_mnist_seed0 ...') == 1


def test_damaged_weights_of_another_seed_are_told_before_training(tiny, folder, capsys):
    with open(folder / 'weights_lenet_mnist_seed0.npz', 'ab') as f:
        f.write(b'more')
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    capsys.readouterr()
    assert reproduce(folder, '--seeds', '1-1') == 2
    printed, error = capsys.readouterr()
    assert 'weights_lenet_mnist_seed0.npz is not what its run wrote' in error and error.count('\n') == 1
    assert 'seed1 ...' not in printed
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


@pytest.mark.parametrize('device', ['gpu:99', 'tpu', 'gpu:x'])
def test_a_device_that_is_not_there_is_status_2(device, capsys):
    assert cli.main(['reproduce', '--preset', 'smoke', '--device', device]) == 2
    error = capsys.readouterr().err
    assert device in error and error.count('\n') == 1


def test_other_code_is_told_by_its_files(tmp_path, monkeypatch):
    before = runs._code_sha256()
    for name in 'module.py', 'claims.toml', 'notes.txt':
        (tmp_path / name).write_text('a')
    find = runs.find_spec
    monkeypatch.setattr(
        runs,
        'find_spec',
        lambda package: (
            mock.Mock(submodule_search_locations=[str(tmp_path)]) if package == 'branchynet' else find(package)
        ),
    )
    hashes = [before, runs._code_sha256()]
    for name in 'module.py', 'claims.toml':
        (tmp_path / name).write_text('b')
        hashes.append(runs._code_sha256())
    assert len(set(hashes)) == 4
    (tmp_path / 'notes.txt').write_text('b')
    assert runs._code_sha256() == hashes[-1]


def mutate(what, value):
    """Puts a value at a path of keys in the first run, or (None) removes what is there."""

    def apply(content):
        *parents, last = what.split('.')
        place = content['experiments']['lenet_mnist'][0]
        for key in parents:
            place = place[int(key) if key.isdigit() else key]
        if value is None:
            del place[last]
        else:
            place[last] = value

    return apply


DAMAGED = [
    (mutate('training.joint.weights_sha256', []), 'has 0 epochs of training.joint.weights_sha256: expected 2'),
    (mutate('training.joint.weights_sha256', ['a']), 'has 1 epochs of training.joint.weights_sha256: expected 2'),
    (mutate('training.joint.loss', [0.5]), 'training.joint.loss[0] is 0.5: expected a list'),
    (mutate('measurement.sweep', 3), 'measurement.sweep is 3: expected a list'),
    (mutate('measurement.sweep', []), 'measurement has no sweep: expected at least one'),
    (mutate('measurement.baseline', {}), 'measurement.baseline.accuracy_percent is missing'),
    (mutate('measurement.baseline.accuracy_percent', float('nan')), 'measurement.baseline has accuracy_percent nan'),
    (mutate('measurement.sweep.0.accuracy_percent', float('nan')), 'measurement.sweep[0] has accuracy_percent nan'),
    (mutate('measurement.baseline.whole.mean_ms', 0), 'measurement.baseline.whole has mean_ms 0.0'),
    (mutate('measurement.measured.knee', None), 'measurement.measured.knee is missing'),
    (mutate('measurement.knee', 17), 'measurement has knee 17: expected the index of one of its 17 settings'),
    (mutate('measurement.knee', -1), 'measurement has knee -1: expected the index of one of its 17 settings'),
    (mutate('measurement.acuracy', 1), 'measurement has the unknown key acuracy'),
    (mutate('measurement.measured.knee.exit_percent', [50, 30, 20]), 'expected 1 thresholds and 2 exits'),
    (
        mutate('measurement.measured.knee.exit_percent', [90, 9]),
        'exit_percent [90.0, 9.0]: expected shares with the sum',
    ),
    (mutate('measurement.exit1_curve.accuracy_percent', [98, 99]), 'exit1_curve has lists of 3, 2, 3 points'),
    (mutate('measurement.exit1_curve.exit1_percent', [0, 50, 40]), 'exit1_curve has a falling exit1_percent'),
    (mutate('measurement.exit1_curve.max_entropy_nat', [0, 1, float('inf')]), 'max_entropy_nat with NaN or infinity'),
    (
        lambda content: content['experiments']['lenet_mnist'].append(content['experiments']['lenet_mnist'][0]),
        "experiments.lenet_mnist has 2 runs of part '' and seed 0: expected one",
    ),
    (mutate('seed', '0'), 'seed is "0": expected a whole number'),
    (lambda content: content['experiments'].update(lenet_mnist=[]), 'experiments.lenet_mnist is empty'),
]


@pytest.mark.parametrize('change, words', DAMAGED)
def test_damage_deep_inside_results_is_named(written, capsys, change, words):
    content = read(written)
    content['experiments']['lenet_mnist'][0]['measurement']['sweep'] *= 6
    del content['experiments']['lenet_mnist'][0]['measurement']['sweep'][17:]
    if 'epochs' in words:
        content['experiments']['lenet_mnist'][0]['training']['joint_epochs'] = 2
        for history in content['experiments']['lenet_mnist'][0]['training']['joint'].values():
            if isinstance(history, list):
                del history[2:]
    change(content)
    with open(os.path.join(written, 'results.json'), 'w') as f:
        json.dump(content, f)
    assert cli.main(['report', written, '--write']) == 2
    error = capsys.readouterr().err
    assert words in error and 'results.json' in error and error.count('\n') == 1
    assert os.listdir(written) == ['results.json']


@pytest.mark.parametrize(
    'content, words',
    [
        (None, 'is missing'),
        ('{"format": 2', 'is damaged'),
        ('{"format": 99}', 'not of format 2'),
        ('{"format": 1}', "has format 1: 'branchynet results convert"),
        ('[]', 'not of format 2'),
        ('{"format": 2}', 'preset is missing'),
        ('{"format": 2, "preset": "tiny", "variant": "code", "experiments": {}}', 'preset is tiny'),
        ('{"format": 2, "preset": "quick", "variant": "code", "experiments": {}}', 'experiments is empty'),
        ('{"format": 2, "preset": "quick", "variant": "code", "experiments": {"vgg": []}}', 'has vgg'),
        ('{"format": 2, "preset": "quick", "variant": "code", "experiments": {"lenet_mnist": {}}}', 'is empty'),
        (
            '{"format": 2, "preset": "quick", "variant": "code", "experiments": {"lenet_mnist": [1]}}',
            'experiments.lenet_mnist[0] is 1: expected an object',
        ),
        (
            '{"format": 2, "preset": "quick", "variant": "code", "experiments": {"lenet_mnist": [{"seed": 0}]}}',
            'experiments.lenet_mnist[0].training is missing',
        ),
    ],
)
def test_results_that_cannot_be_read_are_named(tmp_path, capsys, content, words):
    if content is not None:
        (tmp_path / 'results.json').write_text(content)
    assert cli.main(['report', str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert words in error and 'results.json' in error and error.count('\n') == 1
