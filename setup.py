"""Builds the package. Its metadata are in pyproject.toml; docker/install.sh installs it with pinned dependencies."""

import importlib.util
import os
import re
import sysconfig
from importlib import metadata

from setuptools import setup

# networks, datasets, experiments and benchmarks are top-level folders of the checkout. Installed they live inside
# the package: a top-level `datasets` in site-packages would shadow another well-known package.
INSIDE = ['networks', 'datasets', 'experiments', 'benchmarks']

CHAINER_FIRST = (
    'Chainer must be installed first: it comes as source only, which builds with setuptools below 81. Run: '
    'pip install "setuptools<81" wheel && pip install --no-build-isolation "chainer>=7.8.1,<8" && pip install .'
)


def chainer_would_fail() -> bool:
    """Whether pip is about to build Chainer with a setuptools that lacks pkg_resources.

    Chainer's setup.py imports it.

    Without a build constraint, pip makes all build environments alike, so this one shows what Chainer would get. Only
    an older pip builds Chainer with the setuptools of the environment that it installs into.
    """
    if 'PIP_BUILD_TRACKER' not in os.environ or importlib.util.find_spec('pkg_resources'):
        return False
    installed = {
        dist.metadata['Name'].lower(): dist.version
        for dist in metadata.distributions(path=[sysconfig.get_path('purelib')])
    }
    if 'chainer' in installed:
        return False
    version = re.match(r'(\d+)\.(\d+)', installed.get('pip', ''))
    pip = tuple(map(int, version.groups())) if version else (99, 0)
    # pip below 23.1 runs setup.py with the environment's setuptools; below 25.3 it does so where wheel is installed.
    builds_in_place = 'setuptools' in installed and (pip < (23, 1) or ('wheel' in installed and pip < (25, 3)))
    return not builds_in_place


if chainer_would_fail():
    raise SystemExit(CHAINER_FIRST)

setup(
    packages=[
        'branchynet',
        'branchynet.chains',
        'branchynet.cpu',
        'branchynet.legacy',
        'branchynet.links',
        *[f'branchynet.{name}' for name in INSIDE],
    ],
    package_dir={f'branchynet.{name}': name for name in INSIDE},
    package_data={
        'branchynet.datasets': ['data/mnist/*.gz'],
        'branchynet.experiments': ['*.toml', 'published/*.csv', 'templates/*'],
    },
)
