"""branchynet verify: two runs, and the smoke run against its committed reference."""

import copy
import json
import os
import re
import subprocess
import sys

import branchynet  # noqa: F401
from branchynet import cli, determinism, files, provenance, verify

import pytest
from packaging.requirements import Requirement

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
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


# The libraries whose versions decide the bits.
LIBRARIES = 'numpy', 'chainer', 'onednn-cpu-gomp'


def environment_of(reference):
    with open(reference) as f:
        return json.load(f)['runs'][0]['environment']


def versions(packages):
    return {name: packages.get(name) for name in LIBRARIES}


def test_the_references_are_of_the_pinned_versions():
    with open(os.path.join(ROOT, 'docker', 'requirements-cpu.txt')) as f:
        lines = [Requirement(line.rstrip(' \\\n')) for line in f if re.match(r'\S+==', line)]
    for reference in REFERENCE, CUT_DOWN:
        environment = environment_of(reference)
        place = {'python_full_version': environment['python'], 'platform_machine': 'x86_64', 'sys_platform': 'linux'}
        pinned = {
            line.name: str(line.specifier)[2:] for line in lines if not line.marker or line.marker.evaluate(place)
        }
        assert versions(environment['packages']) == versions(pinned)


def smoke_run(folder):
    command = 'reproduce --preset smoke --only lenet_mnist --device cpu --out'
    run('-m', 'branchynet.cli', *command.split(), folder)
    return folder


def steps_of_every_network(folder):
    path = os.path.join(folder, 'cut_down.json')
    run(os.path.join(HERE, 'cut_down.py'), path)
    return path


def run(*words):
    subprocess.run([sys.executable, *words], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


@pytest.fixture(
    scope='module', params=[(smoke_run, REFERENCE), (steps_of_every_network, CUT_DOWN)], ids=['smoke run', 'steps']
)
def run_and_reference(request, tmp_path_factory):
    """The paths of what was computed here, and of its reference."""
    compute, reference = request.param
    return compute(str(tmp_path_factory.mktemp('run'))), reference


needs_the_profile = pytest.mark.skipif(determinism.default_profile() != 'portable', reason='needs x86-64 with AVX2')


@pytest.mark.onednn
@needs_the_profile
def test_a_run_has_the_bits_of_its_reference(run_and_reference, capsys):
    ours = versions(provenance.environment()['packages'])
    theirs = versions(environment_of(run_and_reference[1])['packages'])
    if ours != theirs:
        pytest.skip(f'the bits are those of {theirs}, and here are {ours}')
    assert cli.main(['verify', *run_and_reference]) == 0, capsys.readouterr().out


@pytest.mark.onednn
@needs_the_profile
def test_a_run_is_near_its_reference_whatever_the_versions(run_and_reference, capsys):
    assert cli.main(['verify', *run_and_reference, '--tolerance', '.05']) == 0, capsys.readouterr().out
