"""Makes the two import names of networks, datasets, experiments and benchmarks one.

In a checkout they are top-level folders, imported as in the original release (``from networks import lenet_mnist``).
Installed, they are subpackages of branchynet, because a top-level ``datasets`` would shadow another well-known package.
Both names work in a checkout, installed or not, and name the same module objects: ``networks.lenet_mnist`` is
``branchynet.networks.lenet_mnist``.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import types
from collections.abc import Sequence

FOLDERS = ('networks', 'datasets', 'experiments', 'benchmarks')
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def unify(name: str) -> None:
    """Lets a folder's short name stand for branchynet's subpackage; its __init__.py calls this with ``__name__``."""
    if name in FOLDERS:
        sys.modules[name] = importlib.import_module(f'branchynet.{name}')


class _Finder(importlib.abc.MetaPathFinder):
    """Finds ``branchynet.networks`` in a checkout, and what is in ``networks`` under its long name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, rest = fullname.partition('.')
        if package == 'branchynet' and rest in FOLDERS:
            file = os.path.join(_ROOT, rest, '__init__.py')
            return importlib.util.spec_from_file_location(fullname, file) if _is_checkout() else None
        # Another package may be named `datasets`: only what unify() has put in place is ours.
        if package in FOLDERS and sys.modules.get(package) is sys.modules.get(f'branchynet.{package}', self):
            return importlib.util.spec_from_loader(fullname, _LongName())
        return None


class _LongName(importlib.abc.Loader):
    """Loads ``networks.lenet_mnist`` by importing ``branchynet.networks.lenet_mnist``."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = importlib.import_module(f'branchynet.{spec.name}')
        self.spec = module.__spec__
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        module.__spec__ = self.spec  # the import system has just replaced it by the short name's


def _is_checkout() -> bool:
    return os.path.exists(os.path.join(_ROOT, 'setup.py'))


# Ahead of all other finders: the one of an editable install may belong to another checkout.
sys.meta_path.insert(0, _Finder())
