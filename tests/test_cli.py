import json
import os
import shlex
import subprocess
import sys

import branchynet
from branchynet import cli
from branchynet.datasets import mnist

import pytest
import shtab

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.mark.parametrize('command', [[], *([command.name] for command in cli.COMMANDS)])
def test_help_everywhere(command, capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    with pytest.raises(SystemExit) as info:
        cli.main([*command, '--help'])
    assert info.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith('usage: branchynet') and out.count('\n') <= 40  # a screen
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize(
    'typed, completed',
    [
        (['mea'], ['measure']),
        (['reproduce', '--pre'], ['--preset']),
        (['reproduce', '--preset', 's'], ['smoke']),
        (['report', 'resul'], ['results']),
    ],
)
def test_bash_completes(typed, completed, capsys):
    assert cli.main(['completion', 'bash']) == 0
    words = ['branchynet', *typed]
    script = (
        capsys.readouterr().out
        + f"""
        COMP_WORDS=({' '.join(words)})
        COMP_CWORD={len(words) - 1}
        _shtab_branchynet
        echo "${{COMPREPLY[@]}}"
    """
    )
    done = subprocess.run(['bash', '-c', script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == completed


def test_examples_can_be_typed(monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in cli.COMMANDS:
        for example in command.examples:
            words = shlex.split(example.split(' > ')[0].replace('\\\n', ''))
            args = cli._parser().parse_args(words[words.index('branchynet') + 1 :])
            if 'weights' in args:
                assert os.path.isfile(cli._weights(args.weights, args.network)), example


def test_arguments_completed_as_paths_are_not_numbers():
    for command in cli.COMMANDS:
        for names, options in command.arguments:
            assert options.get('metavar') not in cli.PATHS or options.get('type') in (None, str), (command.name, names)


@pytest.mark.parametrize('shell', ['zsh', 'tcsh'])
def test_other_shells_have_a_script_too(shell, capsys):
    assert cli.main(['completion', shell]) == 0
    assert 'reproduce' in capsys.readouterr().out


def test_report_as_json(capsys):
    folder = os.path.join(ROOT, 'results', 'lenet_mnist_quick')
    assert cli.main(['report', folder, '--json']) == 0
    verdicts = json.loads(capsys.readouterr().out)[folder]
    passed = [verdict for verdict in verdicts if verdict['status'] == 'PASS']
    assert passed and all(verdict['least'] <= min(verdict['measured']) for verdict in passed)


def test_verify_as_json(capsys):
    folder = os.path.join(ROOT, 'results', 'lenet_mnist_quick')
    assert cli.main(['verify', folder, folder, '--json']) == 0
    (comparison,) = json.loads(capsys.readouterr().out)
    assert comparison['passes'] and comparison['difference'] is None and comparison['steps'] > 0


def test_verify_as_json_names_what_was_not_compared(tmp_path, capsys):
    folder = os.path.join(ROOT, 'results', 'lenet_mnist_paper')
    with open(os.path.join(folder, 'manifest.json')) as f:
        manifest = json.load(f)
    (tmp_path / 'one.json').write_text(json.dumps({**manifest, 'runs': manifest['runs'][:1]}))
    assert cli.main(['verify', folder, str(tmp_path / 'one.json'), '--json']) == 0
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)) == 1
    assert printed.err.count('not compared') == len(manifest['runs']) - 1


def test_an_error_that_no_command_foresees_is_no_verdict(monkeypatch, capsys):
    def fails(*_):
        raise KeyError('a defect')

    monkeypatch.setattr(shtab, 'complete', fails)
    with pytest.raises(KeyError, match='a defect'):
        cli.main(['completion', 'bash'])
    monkeypatch.setattr(sys, 'argv', ['branchynet', 'completion', 'bash'])
    assert cli.main() == 3
    error = capsys.readouterr().err
    assert error.startswith('Traceback') and error.endswith("KeyError: 'a defect'\n")


def test_the_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(['--version'])
    assert capsys.readouterr().out == f'branchynet {branchynet.__version__}\n'


@pytest.mark.parametrize(
    'seeds',
    [
        '0',
        '-1',
        '1.5',
        '\u00b2',
        '1001',
        '1' + 18 * '0',
        23 * '9',
        5000 * '9',
        '4-3',
        '998-1000',
        '3-',
        '1-2-3',
        '',
        'a-b',
    ],
)
def test_seeds_have_a_bound(seeds, capsys):
    with pytest.raises(SystemExit) as info:
        cli.main(['reproduce', '--seeds', seeds])
    error = capsys.readouterr().err
    assert info.value.code == 2 and 'is not a number of seeds: give 1 to 1000' in error and error.count('\n') == 1


@pytest.mark.parametrize(
    'text, seeds', [('1', [0]), ('3', [0, 1, 2]), ('3-4', [3, 4]), ('0-0', [0]), ('999-999', [999])]
)
def test_seeds_are_a_number_or_the_first_and_the_last(text, seeds):
    assert list(cli._parser().parse_args(['reproduce', '--seeds', text]).seeds) == seeds


def test_a_reader_that_has_enough_ends_the_command_quietly():
    command = f'"{sys.executable}" -m branchynet.cli report results/lenet_mnist_quick; echo $? >&2'
    # head might still be there when a short report ends; true is gone before it begins
    done = subprocess.run(['bash', '-c', f'{{ {command}; }} | true'], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == '141\n'


def test_a_call_from_python_says_that_it_has_no_bit_profile(tmp_path):
    code = (
        "from branchynet import cli; import sys; sys.exit(cli.main(['reproduce', '--preset', 'smoke', '--only', "
        "'figure6', '--out', sys.argv[1]] + sys.argv[2:]))"
    )
    environment = {**os.environ, 'PYTHONHASHSEED': '1', 'BRANCHYNET_DATA': str(tmp_path / 'no data')}

    def run(*words):
        return subprocess.run(
            [sys.executable, '-c', code, str(tmp_path / 'out'), *words], capture_output=True, text=True, env=environment
        )

    error = run().stderr
    assert 'these bits may differ from those of the command' in error and 'starting again' not in error
    done = run('--profile', 'fast')
    assert done.returncode == 2 and 'profile fast needs another environment' in done.stderr
    assert done.stderr.count('\n') == 1


def test_the_second_run_into_a_folder_is_told_who_holds_it(tmp_path, capsys):
    code = 'import sys; from branchynet import files\nwith files.lock(sys.argv[1]): print(flush=True); sys.stdin.read()'
    first = subprocess.Popen([sys.executable, '-c', code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    first.stdout.readline()
    before = os.listdir(str(tmp_path))
    assert cli.main(['reproduce', '--preset', 'smoke', '--only', 'lenet_mnist', '--out', str(tmp_path)]) == 2
    assert f'{tmp_path} is in use by process {first.pid} on ' in capsys.readouterr().err.splitlines()[-1]
    assert os.listdir(str(tmp_path)) == before
    first.communicate()


def test_a_command_is_needed():
    with pytest.raises(SystemExit) as info:
        cli.main([])
    assert info.value.code == 2


def test_data_says_what_is_there(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv('BRANCHYNET_DATA', str(tmp_path))
    assert cli.main(['data']) == 0  # MNIST comes with the package
    said = capsys.readouterr().out
    intact = [line for line in said.splitlines() if line.startswith('mnist: ') and line.endswith(' is intact')]
    assert len(intact) == len(mnist.FILES)
    assert "branchynet data download cifar10' downloads what is missing" in said
    assert cli.main(['data', 'info', 'cifar10']) == 2
    assert cli.main(['data', 'download', 'mnist']) == 0
    monkeypatch.setattr(mnist, 'FOLDER', str(tmp_path))
    capsys.readouterr()
    assert cli.main(['data', 'download', 'mnist']) == 2
    error = capsys.readouterr().err
    assert error.startswith('branchynet: ') and error.count('\n') == 1
    assert cli.main(['data', 'info', 'mnist']) == 2
    assert 'data download mnist' not in capsys.readouterr().out  # there is nothing to download


@pytest.mark.parametrize(
    'words',
    [
        ['sweep', '--out', '{}/missing/a.csv'],
        ['calibrate', '--leave', '0.5', '--out', '{}/missing/a.json'],
        ['calibrate', '--leave', '0.5', '--draw', '{}/figure'],
    ],
)
def test_names_of_files_are_checked_before_minutes_of_work(words, tmp_path, monkeypatch, capsys):
    from branchynet.experiments import weights

    monkeypatch.setattr(weights, 'load', lambda *_: pytest.fail('work began'))
    name, *options = [word.format(tmp_path) for word in words]
    assert cli.main([name, 'results/lenet_mnist_quick', '--network', 'lenet_mnist', *options]) == 2
    error = capsys.readouterr().err
    assert f'branchynet: {options[-2]} {options[-1]}: expected a' in error and error.count('\n') == 1


def test_info_says_what_results_depend_on(capsys):
    assert cli.main(['info']) == 0
    shown = capsys.readouterr().out
    assert shown.startswith('branchynet:') and 'oneDNN:' in shown and 'mnist' in shown
    assert cli.main(['info', '--json']) == 0
    info = json.loads(capsys.readouterr().out)
    assert info.keys() >= {
        'python',
        'numpy',
        'chainer',
        'cpu',
        'cores',
        'blas',
        'gpus',
        'commit',
        'data_folder',
        'device',
        'data',
    }
    assert info['chainer'].startswith('7.8')


@pytest.mark.parametrize('module', ['branchynet', 'branchynet.cli'])
def test_the_command_runs_as_a_module(module):
    run = subprocess.run([sys.executable, '-m', module, 'report', 'nowhere'], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith('branchynet: nowhere') and run.stderr.count('\n') == 1


def test_importing_branchynet_imports_nothing_heavy():
    code = "import sys, branchynet; print([m for m in ('matplotlib', 'tqdm', 'dill', 'cupy') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, '-c', code], universal_newlines=True).strip() == '[]'


def test_a_data_set_that_cannot_be_built(capsys):
    assert cli.main(['data', 'build', 'cifar10']) == 2
    assert capsys.readouterr().err == ("branchynet: cifar10 cannot be built; run 'branchynet data download cifar10'\n")


def test_from_results_takes_no_options_of_a_training(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for options in ['--seeds', '2'], ['--jobs', '2'], ['--variant', 'paper'], ['--preset', 'smoke']:
        assert cli.main(['reproduce', '--from-results', *options]) == 2
        assert capsys.readouterr().err.startswith('branchynet: --from-results trains nothing: leave out')
    assert cli.main(['reproduce', '--from-results']) == 2
    assert 'there is no folder results here: run --from-results in a checkout' in capsys.readouterr().err
