"""Replays the Dockerfile without Docker, in a folder by chroot (docker/check.sh runs this in mount and pid namespaces).

It knows the instructions that the Dockerfile uses, written as it writes them, and refuses others.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping

CHECKOUT = pathlib.Path(__file__).resolve().parent.parent


def parse(text: str) -> list[tuple[str, str]]:
    """(instruction, rest of the line) pairs of a Dockerfile, without comments; continued lines are joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith('#')]
    joined = re.sub(r'\\\n\s*', '', '\n'.join(lines))
    words = (line.split(None, 1) for line in joined.splitlines())
    return [(name, rest) for name, rest in words]


def global_arguments(instructions: Iterable[tuple[str, str]], given: Mapping[str, str]) -> dict[str, str]:
    """Values of the ARGs before the first FROM; ``given`` values override defaults."""
    values: dict[str, str] = {}
    for name, rest in instructions:
        if name == 'FROM':
            break
        key, _, value = rest.partition('=')
        values[key] = given.get(key, expand(value, values))
    return values


def steps_of(instructions: Iterable[tuple[str, str]], target: str) -> list[tuple[str, str]]:
    """The instructions of a target and of the stages that it is built on, the base's FROM first.

    Raises:
        ValueError: The Dockerfile has no such target.
    """
    stages: dict[str, list[tuple[str, str]]] = {}
    stage = None
    for name, rest in instructions:
        if name == 'FROM':
            image, _, stage = rest.split()
            stages[stage] = list(stages[image]) if image in stages else [(name, image)]
        elif stage:
            stages[stage].append((name, rest))
    if target not in stages:
        raise ValueError(f'target is {target}: expected one of {", ".join(stages)}')
    return stages[target]


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replaces $NAME and ${NAME} by the values."""
    return re.sub(r'\$\{?(\w+)\}?', lambda match: values.get(match.group(1), ''), text)


def split_options(rest: str) -> tuple[list[str], str]:
    """Splits an instruction's line into its options, such as '--mount=...', and the rest."""
    options = []
    while rest.startswith('--'):
        option, rest = rest.split(None, 1)
        options.append(option)
    return options, rest


def is_ignored(path: str, patterns: Iterable[str]) -> bool:
    """Whether .dockerignore's patterns exclude a path of the checkout; the last pattern that matches decides."""
    ignored = False
    for pattern in patterns:
        keep, pattern = pattern.startswith('!'), pattern.lstrip('!')
        expression = re.escape(pattern).replace(r'\*\*/', '(.*/)?').replace(r'\*', '[^/]*')
        if re.fullmatch(expression + '(/.*)?', path):
            ignored = not keep
    return ignored


class Image:
    """The result of the steps so far: a root folder, its environment, user and working folder."""

    def __init__(self, root: str, cache: str, arguments: dict[str, str]) -> None:
        self.root, self.cache = pathlib.Path(root), pathlib.Path(cache)
        self.global_arguments = arguments
        self.arguments: dict[str, str] = {}
        self.env = {'PATH': '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'}
        self.user = '0'
        self.folder = '/'
        self.host: dict[str, str] = {}

    def step(self, name: str, rest: str) -> None:
        """Runs one instruction.

        Raises:
            ValueError: The instruction or an option is not known here.
            subprocess.CalledProcessError: A command failed.
        """
        steps = {
            'FROM': self._from,
            'ARG': self._arg,
            'ENV': self._env,
            'WORKDIR': self._workdir,
            'USER': self._user,
            'COPY': self._copy,
            'RUN': self._run,
            'CMD': lambda rest: None,
        }
        if name not in steps:
            raise ValueError(f'{name} {rest}: expected one of {", ".join(steps)}')
        steps[name](rest)

    def command(self, command: str, env: Iterable[tuple[str, str]] | Mapping[str, str] = ()) -> list[str]:
        """The words that run a shell command in the root as the image's user, with the image's environment."""
        _, _, uid, gid, _, home, _ = self._account()
        environment = {'HOME': home, **dict(env), **self.env}
        return [
            'chroot',
            '--groups=',
            f'--userspec={uid}:{gid}',
            str(self.root),
            '/usr/bin/env',
            '-i',
            f'--chdir={self.folder}',
            *(f'{name}={value}' for name, value in environment.items()),
            '/bin/sh',
            '-c',
            command,
        ]

    def _from(self, image: str) -> None:
        suite = re.fullmatch(r'debian:(\w+)-slim@.*', image)
        if suite is None:
            raise ValueError(f'FROM {image}: expected debian:SUITE-slim@DIGEST')
        print(f'   debootstrap makes {suite.group(1)} in its place', flush=True)
        self.host = host_settings()
        debs = self.cache / 'debootstrap'
        debs.mkdir(exist_ok=True)
        logged(
            [
                'debootstrap',
                '--variant=minbase',
                f'--cache-dir={debs}',
                suite.group(1),
                str(self.root),
                self.global_arguments['DEBIAN'],
            ],
            env={**os.environ, **self.host},
        )
        for kind, folder in [('proc', 'proc'), ('tmpfs', 'dev/shm')]:
            subprocess.run(['mount', '-t', kind, kind, str(self.root / folder)], check=True)
        for path in ['etc/resolv.conf', 'etc/hosts']:  # Docker's own are the host's too
            shutil.copyfile('/' + path, str(self.root / path))
        if 'PIP_CERT' in self.host:
            shutil.copyfile(self.host['PIP_CERT'], str(self.root / 'etc' / 'host-certificates.crt'))
            self.host['PIP_CERT'] = '/etc/host-certificates.crt'

    def _arg(self, rest: str) -> None:
        if rest not in self.global_arguments:
            raise ValueError(f'ARG {rest}: expected a name that an ARG before the first FROM gives a value')
        self.arguments[rest] = self.global_arguments[rest]

    def _env(self, rest: str) -> None:
        for word in shlex.split(rest):
            key, _, value = word.partition('=')
            self.env[key] = expand(value, {**self.arguments, **self.env})

    def _workdir(self, rest: str) -> None:
        self.folder = rest
        (self.root / rest.lstrip('/')).mkdir(parents=True, exist_ok=True)

    def _user(self, rest: str) -> None:
        self.user = rest

    def _copy(self, rest: str) -> None:
        options, rest = split_options(rest)
        if rest != '. .' or not all(option.startswith('--chown=') for option in options):
            raise ValueError(f"COPY {rest}: expected '[--chown=USER:GROUP] . .'")
        for path in files_of_checkout():
            copy = self.root / self.folder.lstrip('/') / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(str(CHECKOUT / path), str(copy), follow_symlinks=False)
        for option in options:
            subprocess.run(['chroot', str(self.root), 'chown', '-R', option.split('=')[1], self.folder], check=True)

    def _run(self, rest: str) -> None:
        options, command = split_options(rest)
        with contextlib.ExitStack() as mounts:
            for option in options:
                mounts.enter_context(self._cache_mount(option))
            logged(self.command(command, {**self.arguments, **self.host}))

    @contextlib.contextmanager
    def _cache_mount(self, option: str) -> Iterator[None]:
        mount = re.fullmatch(r'--mount=type=cache,target=([^,]+)(,sharing=locked)?', option)
        if mount is None:
            raise ValueError(f'{option}: expected --mount=type=cache,target=FOLDER[,sharing=locked]')
        inside = self.root / mount.group(1).lstrip('/')
        kept = self.cache / 'mounts' / mount.group(1).lstrip('/')
        for folder in (inside, kept):
            folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(['mount', '--bind', str(kept), str(inside)], check=True)
        try:
            yield
        finally:
            subprocess.run(['umount', str(inside)], check=True)

    def _account(self) -> list[str]:
        accounts = [line.split(':') for line in (self.root / 'etc' / 'passwd').read_text().splitlines()]
        return next(account for account in accounts if self.user in (account[0], account[2]))


def logged(command: list[str], env: Mapping[str, str] | None = None) -> None:
    """Runs a command, and shows its output only if it fails."""
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.stdout.buffer.write(done.stdout)
    done.check_returncode()


def files_of_checkout() -> Iterator[str]:
    """Yields the paths, relative to the checkout, of the files that .dockerignore does not exclude."""
    patterns = [
        line for line in (CHECKOUT / '.dockerignore').read_text().splitlines() if line and not line.startswith('#')
    ]
    for parent, folders, files in os.walk(str(CHECKOUT)):
        inside = os.path.relpath(parent, str(CHECKOUT))
        paths = {name: os.path.normpath(os.path.join(inside, name)) for name in folders + files}
        folders[:] = [name for name in folders if not is_ignored(paths[name], patterns)]
        yield from (paths[name] for name in files if not is_ignored(paths[name], patterns))


def host_settings() -> dict[str, str]:
    """Environment variables with which the steps reach package registries as this machine does.

    They are proxies, the certificates that pip trusts, and pip's other settings, except those that name local files.
    """
    settings = {name: value for name, value in os.environ.items() if name.lower() in PROXIES}
    proxy = output_of(['sh', '-c', 'eval "$(apt-config shell proxy Acquire::http::Proxy)" && echo "$proxy"']).strip()
    if proxy:
        settings.setdefault('http_proxy', proxy)
    listed = output_of([sys.executable, '-m', 'pip', 'config', 'list'])  # the environment's, before files'
    for key, value in re.findall(r"^[\w:]+\.([\w-]+)='(.*)'$", listed, re.MULTILINE):
        if key == 'cert' or not value.startswith(('/', 'file:')):
            settings.setdefault('PIP_' + key.upper().replace('-', '_'), value)
    if os.environ.get('REQUESTS_CA_BUNDLE'):
        settings.setdefault('PIP_CERT', os.environ['REQUESTS_CA_BUNDLE'])
    return settings


def output_of(command: list[str]) -> str:
    """The output of a command; that of a command that fails may be empty."""
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


PROXIES = {'http_proxy', 'https_proxy', 'ftp_proxy', 'no_proxy', 'all_proxy'}


def replay(args: argparse.Namespace) -> None:
    """Makes the target's root folder, then runs the commands in it without network."""
    given = dict(argument.split('=', 1) for argument in args.argument)
    instructions = parse((CHECKOUT / 'Dockerfile').read_text())
    steps = steps_of(instructions, args.target)
    image = Image(args.root, args.cache, global_arguments(instructions, given))
    for name, rest in steps:
        with announced(f'{name} {split_options(rest)[1]}'):
            image.step(name, rest)
    for command in args.commands:
        with announced(f'as user {image.user}, without network: {command}'):
            subprocess.run(['unshare', '--net', *image.command(command)], check=True)


@contextlib.contextmanager
def announced(what: str) -> Iterator[None]:
    """Prints a step's name and, if it took more than a second, its time."""
    print('--', what[:110], flush=True)
    start = time.monotonic()
    yield
    if time.monotonic() - start > 1:
        print('   %.0f s' % (time.monotonic() - start), flush=True)


def main() -> int:
    """Does what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    commands = parser.add_subparsers(required=True, metavar='COMMAND')
    command = commands.add_parser('argument', help="print the default of one of the Dockerfile's arguments")
    command.add_argument('name')
    command.set_defaults(
        do=lambda args: print(global_arguments(parse((CHECKOUT / 'Dockerfile').read_text()), {})[args.name])
    )
    command = commands.add_parser('replay', help='make a root folder as the Dockerfile says and run commands in it')
    command.add_argument('target')
    command.add_argument('root')
    command.add_argument('--cache', required=True)
    command.add_argument('--run', dest='commands', action='append', default=[], metavar='COMMAND')
    command.add_argument('--argument', action='append', default=[], metavar='NAME=VALUE')
    command.set_defaults(do=replay)
    args = parser.parse_args()
    try:
        args.do(args)
    except (OSError, ValueError) as e:
        print(f'docker/replay.py: {e}', file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as e:
        print(f'docker/replay.py: {e.cmd[-1]}: status {e.returncode}, expected 0', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
