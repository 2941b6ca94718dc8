"""The `branchynet` command."""
import argparse
import os
import sys

from branchynet.experiments import NAMES, NETWORKS, PRESETS, VARIANTS

DATASETS = {'mnist': 'mnist', 'cifar10': 'cifar10', 'cifar100': 'cifar100gcn', 'pcifar10': 'pcifar10'}  # name: module


def main(argv=None):
    """Runs a command line; returns the exit status (2 with one line on standard error for a user's mistake)."""
    args = _parser().parse_args(argv)
    try:
        args.keeps_environment = argv is not None  # a call from Python, which cannot start again
        return args.run(args)
    except (OSError, ValueError) as e:
        if os.environ.get('BRANCHYNET_DEBUG'):
            raise
        print('branchynet: %s' % e, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('branchynet: interrupted', file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments."""

    def error(self, message):
        self.exit(2, '%s: %s (see --help)\n' % (self.prog, message))


def _parser():
    parser = _Parser(
        prog='branchynet', description='BranchyNet: early-exit networks, and the experiments of their paper.',
        epilog='BRANCHYNET_DATA names the data folder; BRANCHYNET_DEBUG=1 shows the traceback of an error.')
    commands = parser.add_subparsers(metavar='COMMAND', required=True)

    command = commands.add_parser('reproduce', help='train, sweep, and compare with the published numbers')
    command.add_argument('--preset', choices=PRESETS, help='default: paper on a GPU, quick on a CPU')
    command.add_argument('--only', type=_experiments, metavar='NAME,...',
                         help='experiments to run, of: %s (default: all with preset paper, else %s)' % (
                             ', '.join(NAMES), ', '.join(NETWORKS)))
    command.add_argument('--variant', choices=VARIANTS, default=VARIANTS[0],
                         help='where the released code and the paper disagree (default: %(default)s)')
    command.add_argument('--seeds', type=_positive, default=1, metavar='N', help='seeds 0 to N - 1 (default: 1)')
    command.add_argument('--device', default='auto', help='auto (default), cpu or gpu:N')
    command.add_argument('--profile', choices=['portable', 'fast'],
                         help='the same bits on every x86-64 machine with AVX2 (default), or on this machine only')
    command.add_argument('--require-clean', action='store_true', help='run only what a commit holds')
    command.add_argument('--out', default=os.path.join('results', 'local'), metavar='DIR',
                         help='results folder (default: %(default)s)')
    command.add_argument('--resume', action='store_true', help='go on with a run that was interrupted')
    command.set_defaults(run=_reproduce)

    command = commands.add_parser('report', help='check the claims against results folders (status 1: one fell short)')
    command.add_argument('dirs', nargs='+', metavar='DIR')
    command.add_argument('--write', action='store_true', help='write their tables, figures and reports anew')
    command.add_argument('--update', metavar='FILE',
                         help='put the tables between the markers of a Markdown file, and check nothing')
    command.set_defaults(run=_report)

    command = commands.add_parser('verify', help='compare two runs bit by bit (status 1: they differ)')
    command.add_argument('a', metavar='A', help='a results folder or its manifest.json')
    command.add_argument('b', metavar='B', help='another, or a reference manifest')
    command.add_argument('--tolerance', type=_tolerance, default=0., metavar='T',
                         help='pass too where losses and shares differ by T at most, above 1 relatively (default: 0)')
    command.set_defaults(run=_verify)

    command = commands.add_parser('results', help='convert results folders that an earlier version wrote')
    command.add_argument('action', choices=['convert'])
    command.add_argument('dirs', nargs='+', metavar='DIR')
    command.set_defaults(run=_convert)

    command = commands.add_parser('data', help='say which data is there, download it, or build pcifar10')
    command.add_argument('action', nargs='?', choices=['info', 'download', 'build'], default='info')
    command.add_argument('name', nargs='?', choices=list(DATASETS),
                         help='default: all for info, mnist for download, pcifar10 for build')
    command.add_argument('--recipe', choices=['gcn', 'zca'], help='what to build pcifar10 by (default: gcn)')
    command.set_defaults(run=_data)

    command = commands.add_parser('info', help='say what the results depend on here')
    command.set_defaults(run=_info)
    return parser


def _experiments(text):
    names = text.split(',')
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise argparse.ArgumentTypeError('%r is no experiment: expected some of %s' % (unknown[0], ', '.join(NAMES)))
    return names


def _positive(text):
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError('%r is no number of seeds: expected 1 or more' % text)
    return int(text)


def _tolerance(text):
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError('%r is no tolerance: expected 0 or more, less than 1' % text)
    return value


def _reproduce(args):
    from branchynet import determinism, devices, provenance
    from branchynet.experiments.runs import Setup
    from branchynet.experiments.reproduce import check_writable, reproduce
    tree = provenance.tree(args.out) or 'no checkout'
    if args.require_clean and tree != 'clean':
        raise ValueError('the tree is %s: expected a clean one, as --require-clean says' % tree)
    device = devices.find_device(args.device)
    check_writable(args.out)
    if not args.keeps_environment:
        determinism.fix(args.profile or determinism.default_profile())
    device.use()  # what is made from nothing, generators among it, is made on the current GPU
    preset = args.preset or ('paper' if args.device != 'cpu' and devices.count_gpus() else 'quick')
    only = args.only or (NAMES if preset == 'paper' else NETWORKS)
    setup = Setup(preset, args.variant, device, args.out, args.resume)
    return reproduce(only, args.seeds, setup, all_of_them=bool(args.only))


def _report(args):
    from branchynet.experiments import report, reproduce, results
    from branchynet.files import write_atomically
    found = [results.read(folder) for folder in args.dirs]
    if args.update is not None:
        with open(args.update, encoding='utf-8') as f:
            page = f.read()
        tables = '\n'.join(report.for_readme(one) for one in found)
        try:
            write_atomically(args.update, report.between_markers(page, tables).encode())
        except ValueError as e:
            raise ValueError(f'{args.update}: {e}') from e
        return 0
    status = 0
    for folder, one in zip(args.dirs, found):
        if args.write:
            reproduce.write(one, folder)
        print(report.tables(one))
        status = max(status, reproduce.verdict(one))
    return status


def _convert(args):
    from branchynet.experiments import conversion, reproduce
    for folder in args.dirs:
        found = conversion.convert(folder)
        if found is not None:
            reproduce.write(found, folder)
        print(f'{folder}: ' + ('converted' if found is not None else 'has the present format already'))
    return 0


def _verify(args):
    from branchynet import verify
    a, b = verify.read(args.a), verify.read(args.b)
    comparisons = verify.compare(a, b)
    print(*verify.lines(comparisons, args.tolerance), *verify.left_out(a, b), sep='\n')
    return int(not all(c.passes(args.tolerance) for c in comparisons))


def _data(args):
    from branchynet.datasets import folder
    if args.recipe and args.action != 'build':
        raise ValueError("--recipe is %s: expected with 'branchynet data build' only" % args.recipe)
    if args.action == 'download':
        _download(args.name or 'mnist')
    if args.action == 'build':
        _build(args.name or 'pcifar10', args.recipe)
    print('Data folder: %s' % folder.root())
    names = {'info': list(DATASETS), 'download': ['mnist'], 'build': ['pcifar10']}[args.action]
    return _inspect([args.name] if args.name else names)


def _download(name):
    if name == 'pcifar10':
        raise ValueError("pcifar10 is nowhere to be had: expected mnist, cifar10 or cifar100, or 'data build pcifar10'")
    _dataset(name).download()


def _build(name, recipe):
    if name != 'pcifar10':
        raise ValueError("%s is not built: expected pcifar10, or 'data download %s'" % (name, name))
    _dataset(name).build(recipe or 'gcn')


def _inspect(names):
    """Says what is there; status 2 where a data set is not whole, or none is there."""
    from branchynet.datasets import folder
    whole, damaged = 0, 0
    for name in names:
        found = list(_dataset(name).inspect())
        for line, error in found:
            print('%s: %s' % (name, error or line))
        errors = [error for _, error in found if error]
        if errors and name != 'pcifar10':
            print("'%s data download %s' gets what is missing or damaged" % (folder.command(), name))
        whole += not errors
        damaged += bool(errors) and not all(isinstance(error, FileNotFoundError) for _, error in found)
    return 0 if whole and not damaged else 2


def _dataset(name):
    from importlib import import_module
    return import_module('branchynet.datasets.' + DATASETS[name])


def _info(args):
    import json
    from branchynet import provenance
    from branchynet.datasets import folder
    print(json.dumps({**provenance.environment(), 'data_folder': folder.root()}, indent=1))
    return 0


if __name__ == '__main__':
    sys.exit(main())
