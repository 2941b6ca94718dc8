"""The `branchynet` command: a table of subcommands, each a function under `command`, in the order of --help."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import shutil
import signal
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Optional

from branchynet import __version__, parallel
from branchynet.exits import CRITERIA, ENTROPY
from branchynet.experiments import NAMES, NETWORKS, PRESETS, REDUCED, VARIANTS

import shtab

DATASETS = {'mnist': 'mnist', 'cifar10': 'cifar10', 'cifar100': 'cifar100gcn', 'pcifar10': 'pcifar10'}  # name: module
DATA_OF_10 = [name for name in DATASETS if name != 'cifar100']  # classes, as the networks have
DOWNLOADED = ['cifar10', 'cifar100']
MAX_SEEDS = 1000
# What a shell completes an argument of this metavar with.
PATHS = {
    **dict.fromkeys(['DIR', 'OUT'], shtab.DIRECTORY),
    **dict.fromkeys(['A', 'B', 'DIR|WEIGHTS', 'F', 'FILE', 'NEW.npz', 'OLD'], shtab.FILE),
}
Namespace = argparse.Namespace


class Command(NamedTuple):
    """A subcommand.

    Attributes:
        name: as it is typed.
        summary: its line in --help.
        arguments: of argparse's add_argument: names and options of every argument.
        examples: command lines, for the end of its --help.
        run: takes the parsed arguments, returns the exit status.
    """

    name: str
    summary: str
    arguments: Sequence[tuple[tuple[str, ...], dict[str, Any]]]
    examples: Sequence[str]
    run: Callable[[Namespace], int]


COMMANDS: list[Command] = []


def argument(*names: str, **options: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """An argument of a command; takes the arguments of argparse's add_argument."""
    return names, options


def command(
    name: str, summary: str, *arguments: tuple[tuple[str, ...], dict[str, Any]], examples: Sequence[str] = ()
) -> Callable:
    """Makes a subcommand of a function that takes the parsed arguments and returns the exit status."""

    def register(run: Callable[[Namespace], int]) -> Callable[[Namespace], int]:
        COMMANDS.append(Command(name, summary, arguments, examples, run))
        return run

    return register


WEIGHTS = argument('weights', metavar='DIR|WEIGHTS', help='a weights file, or a folder with one of the network')
NETWORK = argument('--network', choices=NETWORKS, required=True, metavar='NAME', help=', '.join(NETWORKS))
VARIANT = argument('--variant', choices=VARIANTS, default=VARIANTS[0], help='of the network (default: %(default)s)')
CRITERION = argument(
    '--criterion', choices=list(CRITERIA), default=ENTROPY.name, help='by which samples leave (%(default)s)'
)
DEVICE = argument('--device', default='auto', help='auto (default), cpu or gpu:N')
PROFILE = argument('--profile', choices=['portable', 'fast'], help='bit profile: see branchynet reproduce --help')
JSON = argument('--json', action='store_true', help='print the result as JSON, for programs')


def print_json(content: Any) -> None:
    """Prints a result as JSON; numbers that JSON lacks (NaN, infinity) become null."""
    print(json.dumps(_finite(content), indent=1, allow_nan=False))


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs a command line.

    Args:
        argv: its words; None: those of this process. A call with words cannot start Python again, as a bit profile
            may need: it goes on without the profile and says so, or refuses where --profile names it.

    Returns:
        The exit status: 2, with one line on standard error, for a user's mistake; 3, with a traceback, for an error
        that no command foresees. A caller in Python gets the exception itself.
    """
    args = _parser().parse_args(argv)
    args.from_python = argv is not None
    try:
        status = args.run(args)
        sys.stdout.flush()  # here, where a closed pipe can be handled
        return status
    except BrokenPipeError:  # the reader, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        return 128 + signal.SIGPIPE
    except (OSError, ValueError) as e:
        if os.environ.get('BRANCHYNET_DEBUG'):
            raise
        print(f'branchynet: {e}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('branchynet: interrupted', file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception:  # Python would end with 1, the status of a claim that fell short
        if args.from_python:
            raise
        traceback.print_exc()
        return 3


class Parser(argparse.ArgumentParser):
    """Reports an error of the arguments in one line."""

    def error(self, message: str) -> Any:
        """Ends the process with the message and status 2."""
        self.exit(2, f'{self.prog}: {message} (see --help)\n')


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of examples, and is at most 100 columns wide."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=min(98, shutil.get_terminal_size().columns - 2))
        self._action_max_length = 14  # of a subcommand: argparse leaves out that it is indented twice


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog='branchynet',
        description='BranchyNet: early-exit networks, and the experiments of their paper.',
        epilog='BRANCHYNET_DATA names the data folder.\nBRANCHYNET_DEBUG=1 shows the traceback of an error.',
        formatter_class=_Formatter,
    )
    parser.add_argument('--version', action='version', version=f'branchynet {__version__}')
    subparsers = parser.add_subparsers(metavar='COMMAND', required=True)
    for name, summary, arguments, examples, run in COMMANDS:
        subparser = subparsers.add_parser(
            name,
            help=summary,
            description=textwrap.fill(summary[0].upper() + summary[1:] + '.', 79),
            epilog='\n  '.join(['examples:', *examples]) if examples else None,
            formatter_class=_Formatter,
        )
        for names, options in arguments:
            added: Any = subparser.add_argument(*names, **options)
            if added.metavar in PATHS:
                added.complete = PATHS[added.metavar]
        subparser.set_defaults(run=run)
    return parser


def _experiments(text: str) -> list[str]:
    names = text.split(',')
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise argparse.ArgumentTypeError(f'{unknown[0]!r} is not an experiment: choose from {", ".join(NAMES)}')
    return [name for name in NAMES if name in names]  # each after those whose weights it needs


def _seeds(text: str) -> range:
    match = re.fullmatch(r'(?:(\d{1,4})-)?(\d{1,4})', text, re.ASCII)
    if match is not None:
        first, end = int(match[1] or 0), int(match[2]) + (match[1] is not None)
        if first < end <= MAX_SEEDS:
            return range(first, end)
    raise argparse.ArgumentTypeError(
        f'{text!r} is not a number of seeds: give 1 to {MAX_SEEDS}, or the first and the last seed, as in 3-4'
    )


def whole_number(what: str, least: int = 1) -> Callable[[str], int]:
    """A type of argument: a whole number; ``what`` names it in the message."""

    def number(text: str) -> int:
        if not text.isdecimal() or len(text) > 9 or int(text) < least:
            raise argparse.ArgumentTypeError(f'{text!r} is not a {what}: give {least} or more')
        return int(text)

    return number


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a tolerance: give a number from 0 to below 1')
    return value


@command(
    'reproduce',
    'train, sweep, and compare with the published numbers',
    argument(
        '--preset',
        choices=PRESETS,
        help='minutes, an hour or two, fewer epochs than published, or all (default: paper on a GPU, quick on a CPU)',
    ),
    argument(
        '--only',
        type=_experiments,
        metavar='NAME,...',
        help=f'experiments to run, of: {", ".join(NAMES)} (default: all with preset paper, {", ".join(REDUCED)} with '
        f'reduced, else {", ".join(NETWORKS)})',
    ),
    argument(
        '--variant',
        choices=VARIANTS,
        default=VARIANTS[0],
        help='where the released code and the paper disagree (default: %(default)s)',
    ),
    argument(
        '--seeds',
        type=_seeds,
        default=range(1),
        metavar='N|A-B',
        help='N seeds, which count from 0, or seeds A to B (default: seed 0)',
    ),
    argument(
        '--jobs',
        type=whole_number('number of jobs'),
        default=1,
        metavar='N',
        help='trainings at a time, each with its share of the threads (default: 1); measured one by one',
    ),
    DEVICE,
    argument(
        '--profile',
        choices=['portable', 'fast'],
        help='the same bits on every x86-64 with AVX2 and FMA (default), or on this machine only',
    ),
    argument('--require-clean', action='store_true', help='refuse to run code that differs from its commit'),
    argument(
        '--out', default=os.path.join('results', 'local'), metavar='DIR', help='results folder (default: %(default)s)'
    ),
    argument(
        '--resume',
        action='store_true',
        help='continue an interrupted run; without --resume, a folder with an unfinished run is refused',
    ),
    argument(
        '--from-results',
        action='store_true',
        help='train nothing: make the tables and figures of the committed results again, from their weights',
    ),
    examples=[
        'branchynet reproduce --preset smoke',
        'branchynet reproduce --preset paper --only lenet_mnist --seeds 3',
    ],
)
def _reproduce(args: Namespace) -> int:
    from branchynet import devices, provenance
    from branchynet.experiments import measure, reproduce
    from branchynet.experiments.runs import Setup

    of_training = (
        args.preset,
        args.only,
        args.resume,
        args.variant != VARIANTS[0],
        args.seeds != range(1),
        args.jobs > 1,
    )
    if args.from_results and any(of_training):
        raise ValueError(
            '--from-results trains nothing: leave out --preset, --only, --resume, --variant, --seeds and --jobs'
        )
    if args.from_results and not os.path.isdir('results'):
        raise ValueError('there is no folder results here: run --from-results in a checkout')
    if args.require_clean:
        provenance.require_clean(args.out)
    reproduce.check_writable(args.out)
    device = _device(args)
    if args.from_results:
        return measure.committed('results', os.path.join(args.out, 'from_results'), device)
    preset = args.preset or ('paper' if args.device != 'cpu' and devices.count_gpus() else 'quick')
    only = args.only or {'paper': NAMES, 'reduced': REDUCED}.get(preset, NETWORKS)
    setup = Setup(args.variant, device, args.out, preset, args.resume, args.jobs)
    return reproduce.reproduce(only, args.seeds, setup, all_of_them=bool(args.only))


def _device(args: Namespace) -> Any:
    """The device that --device names, current, with the bit profile in place."""
    from branchynet import devices

    device = devices.find_device(args.device)
    _fix_profile(args)
    device.use()  # arrays and generators made without a device are made on the current GPU
    return device


def _fix_profile(args: Namespace) -> None:
    """Puts the bit profile in place; a call from Python that cannot says so."""
    from branchynet import determinism

    try:
        determinism.fix(args.profile or determinism.default_profile(), restart=not args.from_python)
    except ValueError as e:
        if args.profile or not args.from_python:
            raise
        warnings.warn(f'these bits may differ from those of the command: {e}', stacklevel=2)


@command(
    'train',
    'train a network, main alone and then all exits jointly: on this process, or on several by mpiexec',
    NETWORK,
    VARIANT,
    argument('--data', choices=DATA_OF_10, metavar='NAME', help=f"{', '.join(DATA_OF_10)} (default: the network's)"),
    argument('--samples', type=whole_number('number of samples'), metavar='N', help='the first N training images only'),
    argument(
        '--epochs',
        type=whole_number('number of epochs', least=0),
        nargs=2,
        metavar=('MAIN', 'JOINT'),
        help='default: as published',
    ),
    argument(
        '--batchsize', type=whole_number('number of samples'), metavar='N', help='of a step, on all ranks together'
    ),
    argument('--seed', type=whole_number('seed', least=0), default=0, metavar='K', help='default: 0'),
    argument(
        '--out',
        required=True,
        metavar='DIR',
        help='for weights, record and checkpoints; a finished training of this command is replaced',
    ),
    argument(
        '--resume',
        action='store_true',
        help='continue an interrupted training; without --resume, a folder with an unfinished one is refused',
    ),
    argument('--device', default='auto', help='auto (default: every rank its own GPU), cpu or gpu:N'),
    PROFILE,
    argument(
        '--communicator',
        choices=parallel.COMMUNICATORS,
        metavar='NAME',
        help=f"ChainerMN's: {', '.join(parallel.COMMUNICATORS)}; on CPUs naive",
    ),
    argument(
        '--batch-normalization',
        choices=parallel.BATCH_NORMALIZATIONS,
        default=parallel.BATCH_NORMALIZATIONS[0],
        metavar='HOW',
        help=f'among ranks: {" or ".join(parallel.BATCH_NORMALIZATIONS)} (default: %(default)s)',
    ),
    JSON,
    examples=[
        'branchynet train --network lenet_mnist --epochs 5 10 --batchsize 128 --out lenet',
        'mpiexec -n 4 branchynet train --network lenet_mnist --communicator naive --out lenet',
    ],
)
def _train(args: Namespace) -> int:
    if args.communicator is None:
        started = os.environ.get('OMPI_COMM_WORLD_SIZE', os.environ.get('PMI_SIZE', '1'))
        if started != '1':
            raise ValueError(
                f'mpiexec started {started} ranks: give --communicator {" or ".join(parallel.COMMUNICATORS)}'
            )
        return _train_on(parallel.ALONE, args)
    _fix_profile(args)  # may start Python again, which MPI does not survive
    with parallel.job(args.communicator, args.batch_normalization) as ranks:
        if args.device == 'auto':
            args.device = ranks.own_device()
        return _train_on(ranks, args)


def _train_on(ranks: Any, args: Namespace) -> int:
    """Trains on the ranks; the first one prints."""
    from branchynet import schema
    from branchynet.experiments import get_experiment, runs, train
    from branchynet.experiments.run_id import RunId

    experiment = get_experiment(args.network)
    ranks.together(lambda: _check_data(args))
    published = experiment.presets['paper']
    main_epochs, joint_epochs = args.epochs or (published.main_epochs, published.joint_epochs)
    preset = runs.Preset(main_epochs, joint_epochs, args.batchsize or published.batchsize, args.samples)
    get_data = _dataset(args.data).get_data if args.data else experiment.get_data
    device = ranks.together(lambda: _device(args))
    setup = runs.Setup(args.variant, device, args.out, resume=args.resume, ranks=ranks)
    record = train.train(experiment, preset, args.seed, get_data, setup)
    if ranks.rank:
        return 0
    if args.json:
        print_json(schema.unstructure(record))
        return 0
    run_id = RunId(args.network, '', args.seed)
    for phase, path in ('main', run_id.main_weights_path), ('joint', run_id.weights_path):
        history = getattr(record, phase)
        last = f', loss {history.loss[-1]}, accuracy {history.accuracy[-1]} in the last' if history.loss else ''
        print(f'{path(args.out)}: {len(history.loss)} epochs{last}')
    return 0


def _check_data(args: Namespace) -> None:
    fitting = ['mnist'] if args.network == 'lenet_mnist' else ['pcifar10', 'cifar10']
    if args.data not in (None, *fitting):
        raise ValueError(f'{args.network} does not take {args.data}: give --data {" or ".join(fitting)}')


@command(
    'measure',
    'measure a results folder again, from its weights (status 1: accuracies or exits differ)',
    argument('dir', metavar='DIR', help='a results folder, or one in which a training has not ended'),
    argument('--out', metavar='OUT', help='results folder to write (default: DIR itself)'),
    DEVICE,
    PROFILE,
)
def _measure(args: Namespace) -> int:
    from branchynet.experiments import measure

    return measure.measure(args.dir, args.out, _device(args))


@command(
    'retrain',
    "train a run's first epochs again and compare the weights (status 1: they differ)",
    argument('dir', metavar='DIR', help='a results folder'),
    argument('--epochs', type=whole_number('number of epochs'), default=1, metavar='N', help='default: 1'),
    argument('--seed', type=int, default=0, metavar='K', help='seed of the run (default: 0)'),
    DEVICE,
    argument('--profile', choices=['portable', 'fast'], help='bit profile (default: that of the recorded run)'),
)
def _retrain(args: Namespace) -> int:
    from branchynet.experiments import measure

    first, *_ = measure.trained_runs(args.dir, args.seed).values()
    args.profile = args.profile or (None if args.from_python else first.training.environment.profile)
    return measure.retrain(args.dir, args.epochs, args.seed, _device(args))


@command(
    'report',
    'check the claims against results folders (status 1: one fell short)',
    argument('dirs', nargs='+', metavar='DIR', help='results folders'),
    argument('--write', action='store_true', help='write their tables, figures and reports again'),
    argument('--all', action='store_true', help='print a line for every claim, also for those not run'),
    argument('--update', metavar='FILE', help='put the tables between the markers of a Markdown file, check nothing'),
    JSON,
    examples=['branchynet report results/lenet_mnist_paper', 'branchynet report results/local --all --write'],
)
def _report(args: Namespace) -> int:
    from branchynet.experiments import claims, generated, outputs, pages, results, tables, verdicts
    from branchynet.files import lock

    if args.update is not None and (args.write or args.all or args.json):
        raise ValueError('--update goes without --write, --all and --json: it checks nothing')
    if len(args.dirs) > 1:
        results.check_several(args.dirs)
    with contextlib.ExitStack() as stack:
        for folder in args.dirs if args.write else []:
            stack.enter_context(lock(folder))  # before results are read, which a run may be about to replace
        found = [results.read(folder) for folder in args.dirs]
        edited = [line for line in map(outputs.changed, args.dirs) if line]
        for line in edited:
            if args.write or args.update is not None:
                raise ValueError(line)
            print(line, file=sys.stderr)
        if args.update is not None:
            pages.update(args.update, lambda page: generated.updated(page, found))
            return 0
        if args.write:
            for folder, one in zip(args.dirs, found):
                outputs.write(one, folder)
    status = 2 if edited else 0
    if args.json:
        checks = {folder: claims.check(one) for folder, one in zip(args.dirs, found)}
        print_json({folder: list(map(claims.described, of_folder)) for folder, of_folder in checks.items()})
        fails = any(v.status == claims.FAIL for of_folder in checks.values() for v in of_folder)
        return max(status, int(fails))
    for folder, one in zip(args.dirs, found):
        if len(found) > 1:
            print(f'{folder}:\n')
        print(tables.markdown(one))
        status = max(status, verdicts.verdict(one, args.all))
    return status


@command(
    'results',
    'join results folders of different seeds, set folders side by side, or convert those of earlier versions',
    argument(
        'action',
        choices=['merge', 'compare', 'convert'],
        help='merge: join seeds into --out; compare: show side by side; convert: bring to the present format',
    ),
    argument('dirs', nargs='+', metavar='DIR', help='results folders'),
    argument('--out', metavar='OUT', help='merge: the folder to write'),
    argument('--update', metavar='FILE', help='compare: put the tables between the markers of a Markdown file'),
)
def _results(args: Namespace) -> int:
    if args.action == 'merge' and args.out is None:
        raise ValueError("'branchynet results merge' needs --out: name the folder to write")
    if args.action != 'merge' and args.out is not None:
        raise ValueError("--out goes with 'branchynet results merge' only")
    if args.action != 'compare' and args.update is not None:
        raise ValueError("--update goes with 'branchynet results compare' only")
    if args.action == 'merge':
        return _merge(args.dirs, args.out)
    return _convert(args.dirs) if args.action == 'convert' else _compare(args.dirs, args.update)


def _compare(folders: list[str], page: Optional[str]) -> int:
    from branchynet.experiments import pages, results, side_by_side

    results.check_several(folders)
    tables = side_by_side.tables({folder: results.read(folder) for folder in folders})
    if page is None:
        print(tables, end='')
        return 0
    pages.update(page, lambda text: pages.between_markers(text, tables + '\n', side_by_side.MARKERS))
    return 0


def _merge(folders: list[str], out: str) -> int:
    from branchynet.experiments import merging, outputs, tables

    joined = merging.merge(folders, out)
    print(f'{tables.markdown(joined)}\nWritten to {out}')
    wanted = [outputs.weights_of(run_id, training, out) for run_id, training in joined.trainings().items()]
    missing = [os.path.basename(path) for paths in wanted for path in paths if not os.path.exists(path)]
    if missing:
        print(f'Without weights that the folders do not hold: {", ".join(missing)}')
    return 0


def _convert(folders: list[str]) -> int:
    from branchynet.experiments import conversion
    from branchynet.files import lock

    for folder in folders:
        if not os.path.isdir(folder):
            raise FileNotFoundError(f'{folder} is missing: name a results folder')
        with lock(folder):
            found = conversion.convert(folder)
        print(f'{folder}: ' + ('converted' if found is not None else 'has the present format already'))
    return 0


@command(
    'verify',
    'compare two runs bit by bit (status 1: they differ)',
    argument('a', metavar='A', help='a results folder or its manifest.json'),
    argument('b', metavar='B', help='another, or a reference manifest'),
    argument(
        '--tolerance',
        type=_tolerance,
        default=0.0,
        metavar='T',
        help='also pass where losses and shares differ by at most T; T is relative for numbers above 1 (default: 0)',
    ),
    JSON,
    examples=['branchynet verify results/a results/b', 'branchynet verify results/a results/b --tolerance 0.01'],
)
def _verify(args: Namespace) -> int:
    from branchynet import verify

    a, b = verify.read(args.a), verify.read(args.b)
    comparisons = verify.compare(a, b)
    status = int(not all(c.passes(args.tolerance) for c in comparisons))
    if args.json:
        print_json([{**c._asdict(), 'passes': c.passes(args.tolerance)} for c in comparisons])
        for line in verify.left_out(a, b):
            print(line, file=sys.stderr)
        return status
    print(*verify.lines(comparisons, args.tolerance), *verify.left_out(a, b), sep='\n')
    return status


@command(
    'data',
    'say which data is there, download it, or build pcifar10',
    argument(
        'action',
        nargs='?',
        choices=['info', 'download', 'build'],
        default='info',
        help='info: say what is there (default)',
    ),
    argument(
        'name',
        nargs='?',
        choices=list(DATASETS),
        help='default: all for info, cifar10 for download, pcifar10 for build',
    ),
    argument('--recipe', choices=['gcn', 'gcn_centred', 'zca'], help='recipe that pcifar10 is built by (default: gcn)'),
    examples=['branchynet data', 'branchynet data download cifar10'],
)
def _data(args: Namespace) -> int:
    from branchynet.datasets import folder

    if args.recipe and args.action != 'build':
        raise ValueError("--recipe goes with 'branchynet data build' only")
    if args.action == 'download':
        _download(args.name or 'cifar10')
    if args.action == 'build':
        _build(args.name or 'pcifar10', args.recipe)
    print(f'Data folder: {folder.root()}')
    names = {'info': list(DATASETS), 'download': ['cifar10'], 'build': ['pcifar10']}[args.action]
    return _inspect([args.name] if args.name else names)


def _download(name: str) -> None:
    if name == 'pcifar10':
        raise ValueError("pcifar10 cannot be downloaded; run 'branchynet data build pcifar10'")
    _dataset(name).download()


def _build(name: str, recipe: Optional[str]) -> None:
    if name != 'pcifar10':
        raise ValueError(f"{name} cannot be built; run 'branchynet data download {name}'")
    _dataset(name).build(recipe or 'gcn')


def _inspect(names: list[str]) -> int:
    """Prints the state of data sets; status 2 where one is damaged, or none is intact."""
    from branchynet.datasets import folder

    intact, damaged = 0, 0
    for name in names:
        found = list(_dataset(name).inspect())
        for line, error in found:
            print(f'{name}: {error or line}')
        errors = [error for _, error in found if error]
        if errors and name in DOWNLOADED:
            print(f"'{folder.command()} data download {name}' downloads what is missing or damaged")
        intact += not errors
        damaged += bool(errors) and not all(isinstance(error, FileNotFoundError) for _, error in found)
    return 0 if intact and not damaged else 2


def _dataset(name: str) -> Any:
    from importlib import import_module

    return import_module('branchynet.datasets.' + DATASETS[name])


@command(
    'sweep',
    'accuracy, exits and times of many settings of thresholds, on the test set',
    WEIGHTS,
    NETWORK,
    VARIANT,
    CRITERION,
    argument(
        '--thresholds',
        type=float,
        nargs='+',
        metavar='T',
        help="every combination of them over the exits is a setting (default: the experiment's; for another criterion "
        'than entropy, the deciles of its scores)',
    ),
    argument('--out', metavar='FILE', help='write the settings as CSV'),
    JSON,
    examples=['branchynet sweep results/lenet_mnist_quick --network lenet_mnist --thresholds 0.01 0.1 1'],
)
def _sweep(args: Namespace) -> int:
    from branchynet.experiments import weights
    from branchynet.files import write_atomically

    _check_file(args.out, '--out')
    loaded = weights.load(_weights(args.weights, args.network), args.network, args.variant)
    found = weights.sweep_test_set(loaded, args.criterion, args.thresholds)
    if args.json:
        print_json(found)
    else:
        print(weights.sweep_text(found))
    if args.out is not None:
        write_atomically(args.out, weights.sweep_csv(found).encode())
    return 0


@command(
    'calibrate',
    'choose thresholds for a target on held-out images',
    WEIGHTS,
    NETWORK,
    VARIANT,
    CRITERION,
    argument(
        '--accuracy-loss',
        type=float,
        metavar='D',
        help='at most D percentage points under main, or, without weights ..._main.npz there, the final exit',
    ),
    argument('--seconds', type=float, metavar='S', help='at most so many seconds an image'),
    argument('--clock', choices=['whole', 'released'], default='whole', help='of --seconds (default: %(default)s)'),
    argument('--macs', type=float, metavar='SHARE', help="at most this share of the baseline's multiply-adds"),
    argument('--leave', type=float, metavar='SHARE', help='at least this share leaves at exit --at'),
    argument('--at', type=int, default=1, metavar='K', help='counted from 1 (default: 1)'),
    argument('--guarantee', type=float, metavar='P', help='the probability that the loss stays below D, such as 0.95'),
    argument('--temperature', action='store_true', help='fit a temperature for every exit first'),
    argument('--holdout', type=int, default=10000, metavar='N', help='images to hold out (default: %(default)s)'),
    argument('--seed', type=int, default=0, metavar='K', help='seed for choosing the held-out images (default: 0)'),
    argument('--out', metavar='FILE', help='write thresholds and all figures as JSON'),
    argument('--draw', metavar='FILE', help='draw reliability diagrams (test set)'),
    JSON,
    examples=[
        'branchynet calibrate results/calibration/weights_lenet_mnist_seed0.npz \\\n'
        '      --network lenet_mnist --accuracy-loss 0.5'
    ],
)
def _calibrate(args: Namespace) -> int:
    from branchynet import schema
    from branchynet.calibration import Target
    from branchynet.experiments import weights

    _check_file(args.out, '--out')
    if args.draw is not None and not os.path.splitext(args.draw)[1]:
        raise ValueError(f'--draw {args.draw}: expected a name that ends in a format, as in .pdf or .png')
    target = Target(args.accuracy_loss, args.seconds, args.macs, args.leave, args.at - 1, args.clock)
    options = weights.Options(args.criterion, args.temperature, args.guarantee, args.holdout, args.seed)
    loaded = weights.load(_weights(args.weights, args.network), args.network, args.variant)
    early = loaded.net.numexits() - 1
    if not 1 <= args.at <= early:
        raise ValueError(f'--at is {args.at}: expected 1 to {early}, as exits are counted from 1')
    found = weights.calibrate(loaded, target, options)
    if args.json:
        print_json(schema.unstructure(found))
    else:
        print(weights.text(found))
    if args.out is not None:
        schema.write(args.out, found)
    if args.draw is not None:
        weights.draw_reliability(loaded, args.draw)
    return 0


@command(
    'export',
    'write a network for other runtimes',
    argument('form', choices=['onnx'], help='the form to write'),
    WEIGHTS,
    NETWORK,
    VARIANT,
    argument(
        '--thresholds',
        type=float,
        nargs='+',
        metavar='T',
        help='default entropies (nats) below which a sample leaves, one for every exit but the last (default: the '
        "paper's)",
    ),
    argument(
        '--out',
        required=True,
        metavar='F',
        help='F.onnx: one file for one sample, with early exit; another name: a folder with a file for every '
        'stage, for batches',
    ),
    argument(
        '--opset',
        type=int,
        metavar='N',
        help='version of the ONNX operators (default: the newest that the installed packages know)',
    ),
    examples=['branchynet export onnx results/lenet_mnist_quick --network lenet_mnist --out lenet.onnx'],
)
def _export(args: Namespace) -> int:
    from branchynet import export
    from branchynet.checkpoint import load_npz
    from branchynet.experiments import get_experiment
    from branchynet.files import digest

    experiment = get_experiment(args.network)
    net = experiment.get_network(variant=args.variant)
    weights = _weights(args.weights, args.network)
    load_npz(weights, net)
    thresholds = args.thresholds or experiment.published_thresholds
    try:
        export.export(
            net,
            args.out,
            experiment.shape,
            thresholds,
            opset=args.opset,
            properties={'network': args.network, 'variant': args.variant, 'weights_file_sha256': digest(weights)},
        )
    except ImportError as e:
        raise OSError(e) from e
    print(f'{args.out}: {args.network} with thresholds {", ".join(map(str, thresholds))}')
    return 0


def _check_file(path: Optional[str], option: str) -> None:
    """Checks, before minutes of work, that a file's folder is there; None: no file is asked for."""
    if path is not None and not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise ValueError(f'{option} {path}: expected a file in a folder that exists')


def _weights(path: str, network: str) -> str:
    """A weights file, or the one of a network in a results folder."""
    if not os.path.isdir(path):
        return path
    found = sorted(
        name
        for name in os.listdir(path)
        if name.startswith(f'weights_{network}_seed') and name.endswith('.npz') and '_main' not in name
    )
    if not found:
        raise ValueError(f'{path} holds no weights of {network}: train them, or name a weights file')
    if len(found) > 1:
        raise ValueError(f'{path} holds {len(found)} weights files of {network}: name the file')
    return os.path.join(path, found[0])


@command(
    'convert',
    "convert a network that the authors' release saved (Python 2.7, Chainer 1.17)",
    argument('old', metavar='OLD', help='a .bn file, or one compressed by gzip or xz; nothing in it is run'),
    argument('new', metavar='NEW.npz', help='weights and moments to write; the settings go to NEW.json'),
    argument('--force', action='store_true', help='replace files that exist'),
    JSON,
    examples=['branchynet convert _models/lenet_mnist.bn lenet.npz'],
)
def _convert_network(args: Namespace) -> int:
    from branchynet import legacy

    found = legacy.convert(args.old, args.new, args.force)
    if args.json:
        print_json(found)
    else:
        print(f'{args.new}: {found["network"] or "a network"} of {len(found["weights"])} exits')
    return 0


@command(
    'info',
    'show versions, the machine, its bit profile and the data: all that results depend on',
    JSON,
)
def _info(args: Namespace) -> int:
    from branchynet import devices, provenance
    from branchynet.datasets import folder

    intact = [name for name in DATASETS if not any(error for _, error in _dataset(name).inspect())]
    info = {
        'branchynet': __version__,
        **provenance.environment(),
        'data_folder': folder.root(),
        'data': intact,
        'device': devices.device_name(devices.find_device('auto')),
    }
    if args.json:
        print_json(info)
        return 0
    for label, value in (
        ('branchynet', info['branchynet'] + (f', commit {info["commit"]} ({info["tree"]})' if info['commit'] else '')),
        ('versions', ', '.join(f'{name} {info[name]}' for name in ('python', 'numpy', 'chainer', 'cupy'))),
        ('device', f'{info["device"]}; {info["cpu"]}, {info["cores"]} cores; GPUs: {info["gpus"] or "none"}'),
        ('bit profile', info['profile'] or 'none in place; commands put theirs in place when they start'),
        ('oneDNN', ' '.join((info['onednn'] or {'version': 'does not load: NumPy computes'}).values())),
        ('data', f'{info["data_folder"]}: {", ".join(intact) or "no data set is intact"}'),
    ):
        print(f'{label + ":":13}{value}')
    return 0


@command(
    'bench',
    'list the benchmarks, or run one on this machine',
    argument('name', nargs='?', metavar='NAME', help='the benchmark to run (default: list all)'),
    argument(
        'options', nargs=argparse.REMAINDER, metavar='...', help="of the benchmark: 'branchynet bench NAME --help'"
    ),
    JSON,
    examples=['branchynet bench', 'branchynet bench early_exit --networks lenet --rounds 5 --json'],
)
def _bench(args: Namespace) -> int:
    from branchynet import benchmarks

    if args.name is None:
        return _list_benchmarks(benchmarks.BENCHMARKS, args.json)
    if args.name not in benchmarks.BENCHMARKS:
        raise ValueError(f'{args.name!r} is not a benchmark: choose from {", ".join(benchmarks.BENCHMARKS)}')
    return benchmarks.run(args.name, args.options + ['--json'] * args.json)


def _list_benchmarks(benchmarks: dict[str, Any], as_json: bool) -> int:
    if as_json:
        print_json({name: {**one._asdict(), 'missing': one.missing()} for name, one in benchmarks.items()})
        return 0
    for name, one in benchmarks.items():
        missing = one.missing()
        needs = f' (needs {", ".join(missing)})' if missing else ''
        print(f'{name:14} {one.minutes:3} minutes  {one.summary}{needs}')
    if any(one.missing() for one in benchmarks.values()):
        print("What is missing comes with: pip install 'branchynet[bench]'")
    return 0


@command(
    'completion',
    'print a script that lets a shell complete this command',
    argument('shell', choices=['bash', 'zsh', 'tcsh']),
    examples=[
        'branchynet completion bash > ~/.local/share/bash-completion/completions/branchynet',
        'branchynet completion zsh > ~/.zfunc/_branchynet     # in a folder of $fpath',
        'branchynet completion tcsh > ~/.branchynet.tcsh      # which ~/.tcshrc is to source',
    ],
)
def _completion(args: Namespace) -> int:
    print(shtab.complete(_parser(), args.shell))
    return 0


if __name__ == '__main__':
    sys.exit(main())
