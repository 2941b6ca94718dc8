"""The options that the command lines of all benchmarks share."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, Callable

from branchynet.cli import Parser, whole_number


def parser(name: str, description: str, rounds: int | None = None) -> argparse.ArgumentParser:
    """A parser with the options --rounds, --out and --json.

    Args:
        name: of the benchmark.
        description: the docstring of its module.
        rounds: how often every contender takes its turn, unless --rounds says otherwise; None: there are no rounds and
            no such option.
    """
    result = Parser(
        f'branchynet bench {name}', description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if rounds is not None:
        result.add_argument(
            '--rounds',
            type=whole_number('number of turns'),
            default=rounds,
            metavar='N',
            help='of each (default: %(default)s)',
        )
    result.add_argument(
        '--out',
        default=os.path.join('results', 'local', 'benchmarks', name),
        metavar='DIR',
        help='folder to write to (default: %(default)s)',
    )
    result.add_argument('--json', action='store_true', help='print the result as JSON, and the rest on standard error')
    return result


def some_of(names: Sequence[str], default: Sequence[str] | None = None) -> dict[str, Any]:
    """The arguments of add_argument for an option that takes names, separated by commas.

    Args:
        names: those that may be asked for.
        default: those that are taken where the option is missing; None: all.
    """

    def parse(text: str) -> list[str]:
        for name in text.split(','):
            if name not in names:
                raise argparse.ArgumentTypeError(f'{name!r}: expected some of {",".join(names)}')
        return text.split(',')

    default = list(names if default is None else default)
    return {'type': parse, 'default': default, 'metavar': 'NAME,...', 'help': f'some of {",".join(names)}'}


def counts(text: str) -> list[int]:
    """Whole numbers from 1 on, separated by commas."""
    if not all(part.isdecimal() and int(part) for part in text.split(',')):
        raise argparse.ArgumentTypeError(f'{text!r}: expected numbers from 1 on, as 1,2')
    return [int(part) for part in text.split(',')]


def threads() -> dict[str, Any]:
    """The arguments of add_argument for --threads: 1 and 2 by default, where there are two cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    default = sorted({1, min(2, cores)})
    return {
        'type': counts,
        'default': default,
        'metavar': 'N,...',
        'help': f'threads of everything (default: {",".join(map(str, default))})',
    }


def print_result(args: argparse.Namespace, measure: Callable[[argparse.Namespace], dict[str, Any]]) -> dict[str, Any]:
    """Measures, and prints the result as JSON where --json asks for it.

    Args:
        args: of a `parser`.
        measure: prints as it measures, writes files into args.out, and returns a JSON-ready dict.

    Returns:
        The result of ``measure``.
    """
    os.makedirs(args.out, exist_ok=True)
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        measured = measure(args)
        print(f'Written to {args.out}')
    if args.json:
        print(json.dumps(measured, indent=1))
    return measured
