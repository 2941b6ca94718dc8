"""branchynet verify: two runs, and the smoke run against its committed reference."""

import copy
import json
import os
import subprocess
import sys

import branchynet  # noqa: F401
from branchynet import cli, determinism, files, provenance, verify

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
REFERENCE = os.path.join(HERE, 'reference', 'lenet_mnist_smoke.json')
CUT_DOWN = os.path.join(HERE, 'reference', 'cut_down.json')


def manifest(**changes):
    """A manifest of one run, made by hand."""
    run = {
        'name': 'net_seed0',
        'settings': {'seed': 0, 'batchsize': 8},
        'device': '@numpy',
        'environment': {'numpy': '2.4.6', 'packages': {'numpy': '2.4.6', 'six': '1'}, 'command': 'a'},
        'steps': [
            {'what': 'data', 'sha256': 'd'},
            {'what': 'weights after epoch 1 of main training', 'sha256': 'e', 'loss': 2.5, 'accuracy': 0.5},
            {'what': 'output entropy', 'sha256': 'f', 'mean': 0.25},
        ],
    }
    return {'format': verify.FORMAT, 'runs': [run], **changes}


def write(path, content):
    path.write_text(json.dumps(content))
    return str(path)


@pytest.fixture
def pair(tmp_path):
    """Two equal manifests, and a function that writes them and compares."""
    a, b = manifest(), copy.deepcopy(manifest())

    def run(*options):
        return cli.main(['verify', write(tmp_path / 'a.json', a), write(tmp_path / 'b.json', b), *options])

    return a['runs'][0], b['runs'][0], run


def test_identical_runs_are_told_so(pair, capsys):
    _, b, run = pair
    b['environment']['command'] = 'another'
    assert run() == 0
    assert capsys.readouterr().out == 'net_seed0: identical (3 steps)\n'


def test_the_first_difference_is_named_with_what_may_be_its_cause(pair, capsys):
    _, b, run = pair
    b['steps'][1].update(sha256='x', loss=2.55)
    b['steps'][2].update(sha256='x')
    b['environment']['packages']['numpy'] = '2.2.6'
    assert run() == 1
    out = capsys.readouterr().out.splitlines()
    assert out == [
        'net_seed0: different; first in weights after epoch 1 of main training, numbers by up to 0.0196',
        "    packages: {'numpy': '2.4.6'} / {'numpy': '2.2.6'}",
    ]
    assert run('--tolerance', '.02') == 0
    assert 'the same within 0.02; first in weights after epoch 1' in capsys.readouterr().out
    assert run('--tolerance', '.01') == 1


def test_other_code_may_be_the_cause(pair, capsys):
    a, b, run = pair
    b['steps'][1].update(sha256='x')
    a['environment']['code_sha256'], b['environment']['code_sha256'] = 'abc', 'def'
    assert run() == 1
    assert '    code_sha256: abc / def\n' in capsys.readouterr().out


def test_other_bits_are_different_where_numbers_are_the_same(pair, capsys):
    _, b, run = pair
    b['steps'][1].update(sha256='x')  # a loss is that before the update
    assert run() == 1
    assert 'net_seed0: different; first in weights after epoch 1' in capsys.readouterr().out
    assert run('--tolerance', '.01') == 0


@pytest.mark.parametrize('spoil', [lambda steps: None, lambda steps: steps[0].update(sha256='x')])
def test_a_truncated_run_never_passes(pair, spoil, capsys):
    a, b, run = pair
    for step in a['steps'], b['steps']:
        step[0].update(loss=1.0)
    spoil(b['steps'])  # numbers stay as near as can be
    for _ in range(7):
        a['steps'].append({**a['steps'][1], 'what': f'weights after epoch {len(a["steps"])} of main training'})
    for tolerance in '0', '.01', '.9':
        assert run('--tolerance', tolerance) == 1
    assert 'where no number says how far' in capsys.readouterr().out


def test_steps_in_another_order_never_pass(pair):
    _, b, run = pair
    b['steps'][1:] = reversed(b['steps'][1:])
    assert run('--tolerance', '.9') == 1


def test_runs_that_diverged_never_pass(pair, capsys):
    a, b, run = pair
    for one in a, b:
        one['steps'][1].update(loss=[0.5, float('nan')])  # the same bits, too
    assert run() == run('--tolerance', '.9') == 1
    assert 'first in weights after epoch 1 of main training, which has NaN or infinity' in capsys.readouterr().out


def test_a_run_that_only_one_has_is_named(tmp_path, capsys):
    a, b = manifest(), manifest()
    a['runs'] += [{**a['runs'][0], 'name': 'other_seed0'}]
    paths = [write(tmp_path / name, content) for name, content in (('a.json', a), ('b.json', b))]
    assert cli.main(['verify', *paths]) == cli.main(['verify', *reversed(paths)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        'net_seed0: identical (3 steps)',
        'other_seed0: not compared, as only A has it',
        'net_seed0: identical (3 steps)',
        'other_seed0: not compared, as only B has it',
    ]


@pytest.mark.parametrize(
    'change',
    [
        lambda steps: steps[0].update(sha256='x'),  # no number says how far
        lambda steps: steps[1].update(sha256='x', loss=float('nan')),
        lambda steps: steps[2].update(what='output correct'),
        lambda steps: steps.pop(),
        lambda steps: (steps[1].update(sha256='x', loss=2.5 + 1e-7), steps.pop()),
    ],
)  # near, and cut short
def test_what_no_number_measures_is_never_within_a_tolerance(pair, change, capsys):
    _, b, run = pair
    change(b['steps'])
    assert run('--tolerance', '.9') == 1
    assert 'where no number says how far' in capsys.readouterr().out


@pytest.mark.parametrize(
    'content, words',
    [
        (None, 'is missing'),
        ('{"format"', 'is damaged'),
        ('{"format": 1, "runs": []}', 'is not of format 2'),
        ('[]', 'is not of format 2'),
        ('{"format": 2, "runs": [{}]}', 'is damaged'),
        ('{"format": 2}', 'is damaged'),
        (json.dumps(manifest(sha256=[])), 'is damaged'),
        (json.dumps(manifest()).replace('"sha256": "e"', '"sha": "e"'), 'is damaged'),
        (json.dumps(manifest()).replace('2.5', '"2.5"'), 'is damaged'),
        (json.dumps(manifest()).replace('2.5', '[[1, 2], [3]]'), 'is damaged'),
        (json.dumps(manifest(runs=[{**manifest()['runs'][0], 'steps': []}])), 'is damaged'),
        (json.dumps(manifest(runs=manifest()['runs'] * 2)), 'is damaged'),
        (json.dumps(manifest(runs=[])), 'share no run (A: net_seed0; B: none)'),
        (
            json.dumps(manifest()).replace('"batchsize"', '"more": 1, "batchsize"'),
            'run net_seed0: more differs (A: None, B: 1)',
        ),
        (
            json.dumps(manifest()).replace('"batchsize": 8', '"batchsize": 9'),
            'run net_seed0: batchsize differs (A: 8, B: 9)',
        ),
        (json.dumps(manifest()).replace('net_seed0', 'other_seed0'), 'share no run (A: net_seed0; B: other_seed0)'),
    ],
)
def test_what_cannot_be_compared_is_status_2(tmp_path, content, words, capsys):
    if content is not None:
        (tmp_path / 'b.json').write_text(content)
    assert cli.main(['verify', write(tmp_path / 'a.json', manifest()), str(tmp_path / 'b.json')]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count('\n') == 1


def test_a_folder_holds_what_its_manifest_lists(tmp_path, capsys):
    (tmp_path / 'weights.npz').write_bytes(b'weights')
    sha256 = files.digest(str(tmp_path / 'weights.npz'))
    write(tmp_path / 'manifest.json', manifest(sha256={'weights.npz': sha256}))
    command = ['verify', str(tmp_path), str(tmp_path / 'manifest.json')]
    assert cli.main(command) == 0
    (tmp_path / 'weights.npz').write_bytes(b'Weights')
    assert cli.main(command) == 2
    assert 'weights.npz is not the file that the manifest lists' in capsys.readouterr().err
    (tmp_path / 'weights.npz').unlink()
    assert cli.main(command) == 2
    assert 'weights.npz is missing' in capsys.readouterr().err


def options(reference):
    """The bits of a reference are those of its versions; of others, numbers near them are expected."""
    with open(reference) as f:
        packages = json.load(f)['runs'][0]['environment']['packages']
    here = provenance.environment()['packages']
    same = all(packages[name] == here.get(name) for name in ('numpy', 'chainer', 'onednn-cpu-gomp'))
    return [] if same else ['--tolerance', '.05']


def run(*words):
    subprocess.run([sys.executable, *words], check=True, cwd=os.path.dirname(HERE), stdout=subprocess.DEVNULL)


@pytest.mark.onednn
@pytest.mark.skipif(determinism.default_profile() != 'portable', reason='needs x86-64 with AVX2')
def test_the_smoke_run_has_the_bits_of_its_reference(tmp_path, capsys):
    run(
        '-m',
        'branchynet.cli',
        'reproduce',
        '--preset',
        'smoke',
        '--only',
        'lenet_mnist',
        '--device',
        'cpu',
        '--out',
        str(tmp_path),
    )
    assert cli.main(['verify', str(tmp_path), REFERENCE, *options(REFERENCE)]) == 0, capsys.readouterr().out


@pytest.mark.onednn
@pytest.mark.skipif(determinism.default_profile() != 'portable', reason='needs x86-64 with AVX2')
def test_steps_of_every_network_have_the_bits_of_their_reference(tmp_path, capsys):
    path = str(tmp_path / 'cut_down.json')
    run(os.path.join(HERE, 'cut_down.py'), path)
    assert cli.main(['verify', path, CUT_DOWN, *options(CUT_DOWN)]) == 0, capsys.readouterr().out
