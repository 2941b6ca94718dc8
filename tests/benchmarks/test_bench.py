"""`branchynet bench`: the list, what is missing, and small runs."""

import json
import sys
from importlib.util import find_spec

from branchynet import benchmarks, cli, parallel

import mpi
import pytest

NAMES = list(benchmarks.BENCHMARKS)


@pytest.fixture
def without_torch(monkeypatch):
    monkeypatch.setattr(benchmarks, 'find_spec', lambda name: None if name == 'torch' else find_spec(name))


def test_the_list_says_what_is_missing(capsys, without_torch):
    assert cli.main(['bench']) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in NAMES)
    assert '(needs torch)' in said and "pip install 'branchynet[bench]'" in said
    assert cli.main(['bench', '--json']) == 0
    listed = json.loads(capsys.readouterr().out)
    assert list(listed) == NAMES and listed['kernels']['missing'] == ['torch'] and listed['shapes']['missing'] == []


def test_a_benchmark_that_cannot_run_names_the_extra(capsys, without_torch):
    assert cli.main(['bench', 'kernels']) == 2
    assert capsys.readouterr().err == "branchynet: kernels needs torch: run pip install 'branchynet[bench]'\n"


def test_ranks_that_fail_are_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(parallel, 'mpiexec', lambda ranks, words: [sys.executable, '-c', 'raise SystemExit(3)'])
    assert cli.main(['bench', 'scaling', '--networks', 'lenet', '--rounds', '1', '--out', str(tmp_path)]) == 2
    assert capsys.readouterr().err == 'branchynet: 1 ranks ended with status 3; the reason is above\n'


def test_an_unknown_benchmark(capsys):
    assert cli.main(['bench', 'early']) == 2
    error = capsys.readouterr().err
    assert error.startswith("branchynet: 'early' is not a benchmark: choose from early_exit") and error.count('\n') == 1


@pytest.mark.parametrize('name', ['scaling', 'scaling_model', 'determinism'])
def test_wrong_options_of_a_benchmark_are_named_in_one_line(name, capsys):
    with pytest.raises(SystemExit) as info:
        cli.main(['bench', name, '--nonsense'])
    assert info.value.code == 2
    words = f'branchynet bench {name}: unrecognized arguments: --nonsense (see --help)\n'
    assert capsys.readouterr().err == words


@pytest.mark.parametrize('name', NAMES)
def test_help_needs_none_of_the_modules(name, capsys, monkeypatch):
    for module in benchmarks.BENCHMARKS[name].needs:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f'branchynet.benchmarks.{name}', raising=False)
    with pytest.raises(SystemExit) as info:
        cli.main(['bench', name, '--help'])
    assert info.value.code == 0 and capsys.readouterr().out.startswith(f'usage: branchynet bench {name}')


@pytest.mark.parametrize(
    'words, rows',
    [
        pytest.param('early_exit --networks lenet', 2 * 5, marks=pytest.mark.slow),
        pytest.param('chains --networks residual', 2 * 4 * 2, marks=pytest.mark.slow),
        pytest.param('shapes --families channels', 13 * 3 * 2, marks=pytest.mark.slow),
        pytest.param('kernels --networks lenet', 1, marks=pytest.mark.slow),
        pytest.param('compare --networks lenet --only joint,inference,memory', 1, marks=pytest.mark.slow),
    ],
)
def test_a_small_run(words, rows, capsys, tmp_path):
    name, *options = words.split()
    for module in benchmarks.BENCHMARKS[name].needs:
        pytest.importorskip(module)
    status = cli.main(['bench', name, *options, '--rounds', '2', '--threads', '1', '--out', str(tmp_path), '--json'])
    assert status in (0, 1) if name == 'shapes' else status == 0  # 1: a shape is slow on this machine
    measured = json.loads(capsys.readouterr().out)
    assert measured['environment'] and len(measured['rows']) >= rows
    assert {'benchmark.csv', 'environment.json'} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_scaling_over_ranks(tmp_path):
    mpi.command(2, [])  # skips where there is no MPI
    words = ['bench', 'scaling', '--networks', 'lenet', '--rounds', '1', '--steps', '1', '--out', str(tmp_path)]
    assert cli.main(words) == 0
    measured = json.loads((tmp_path / 'lenet.json').read_text())
    found = [(point['scaling'], point['ranks'], point['global_batch']) for point in measured['points']]
    assert found == [('strong', 1, 512), ('strong', 2, 512), ('weak', 1, 512), ('weak', 2, 1024)]
    assert measured['gradient_bytes'] == 302176
