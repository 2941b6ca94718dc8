"""Makes ``import chainer`` work on current Python, NumPy and setuptools.

Chainer 7.8.1 of 2022 is the last version. It imports modules, and reads names of NumPy, that have been removed since;
this module provides them. Tested with Python 3.9-3.13 and NumPy 1.23-2.5. Where Chainer can be imported without this
module, it may also be imported before it.

Other code of the process sees some of this: docs/fidelity.md says what.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from typing import Any

import numpy

# (namespace, name, module): the module stands in for one that cannot be imported.
StandIn = tuple[dict[str, Any], str, types.ModuleType]


def _importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception:  # not ImportError alone: setuptools 65 on Python 3.12 fails with an AttributeError
        return False
    return True


def _make_stand_ins() -> list[StandIn]:
    """Makes stand-ins for modules that Chainer imports and that are missing or never used, with the names it reads."""
    stand_ins: list[StandIn] = []
    # On macOS alone, Chainer asks whether NumPy was built with Accelerate. The stand-in answers that it does not know.
    # The module is gone with Python 3.12 and with setuptools 74. Where it is there, it takes a quarter of a second.
    if sys.platform != 'darwin' or not _importable('numpy.distutils.system_info'):
        system_info: Any = types.ModuleType('numpy.distutils.system_info')
        system_info.get_info = lambda name: {}
        distutils: Any = types.ModuleType('numpy.distutils')
        distutils.system_info = system_info
        stand_ins += [
            (sys.modules, 'numpy.distutils', distutils),
            (sys.modules, 'numpy.distutils.system_info', system_info),
            (vars(numpy), 'distutils', distutils),
        ]
    if not _importable('pkg_resources'):  # gone with setuptools 82
        # Chainer asks whether CuPy and iDeep have the versions of its own time. The stand-in finds neither, so that
        # Chainer does not advise its user to install CuPy 7.
        class DistributionNotFound(Exception):
            pass

        class WorkingSet:
            def require(self, *requirements: str) -> None:
                raise DistributionNotFound(*requirements)

        pkg_resources: Any = types.ModuleType('pkg_resources')
        pkg_resources.WorkingSet = WorkingSet
        pkg_resources.require = WorkingSet().require
        pkg_resources.DistributionNotFound = pkg_resources.ResolutionError = DistributionNotFound
        pkg_resources.VersionConflict = type('VersionConflict', (Exception,), {})
        stand_ins.append((sys.modules, 'pkg_resources', pkg_resources))
    return stand_ins


@contextlib.contextmanager
def _in_place(stand_ins: Sequence[StandIn]) -> Iterator[None]:
    """Puts the stand-ins in place while Chainer is imported.

    Chainer keeps its references to them. Other libraries must not see them: these can work without the real modules,
    but not with modules that have a few of the names.
    """
    before = [(namespace, name, namespace[name]) for namespace, name, _ in stand_ins if name in namespace]
    for namespace, name, module in stand_ins:
        namespace[name] = module
    try:
        yield
    finally:
        for namespace, name, _ in stand_ins:
            del namespace[name]
        for namespace, name, module in before:
            namespace[name] = module


class _TestingFinder:
    """Lets chainer.testing find the stand-ins.

    It needs pkg_resources too. It is not imported here with the rest of Chainer, because that is slow.
    """

    def __init__(self, stand_ins: Sequence[StandIn]) -> None:
        self._stand_ins = stand_ins

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != 'chainer.testing':
            return None
        spec: Any = importlib.machinery.PathFinder.find_spec(name, path)
        exec_module = spec.loader.exec_module

        def exec_with_stand_ins(module: types.ModuleType) -> None:
            with _in_place(self._stand_ins):
                exec_module(module)

        spec.loader.exec_module = exec_with_stand_ins
        return spec


def _restore_numpy_names() -> None:
    """Restores two names of NumPy for good: Chainer's as_strided and resize_images read them when they are called."""
    namespace: Any = numpy
    if not hasattr(numpy, 'sctypes'):  # gone with NumPy 2.0
        namespace.sctypes = {
            'int': [numpy.int8, numpy.int16, numpy.int32, numpy.int64],
            'uint': [numpy.uint8, numpy.uint16, numpy.uint32, numpy.uint64],
            'float': [numpy.float16, numpy.float32, numpy.float64, numpy.longdouble],
            'complex': [numpy.complex64, numpy.complex128, numpy.clongdouble],
            'others': [bool, object, bytes, str, numpy.void],
        }
    if not hasattr(numpy, 'float'):  # gone with NumPy 1.24
        namespace.float = float


def _load_cuda_wheels() -> None:
    """Loads CUDA's libraries from the nvidia-*-cu12 wheels.

    CuPy looks for them by name. It does not search the wheels, but it finds a library that is already loaded.
    """
    wheels = importlib.util.find_spec('nvidia')
    if wheels is None or importlib.util.find_spec('cupy') is None:
        return
    for folder in wheels.submodule_search_locations or ():
        for library in _CUDA_LIBRARIES:
            # If a library does not load, Chainer works without a GPU, and says why when a GPU is asked for.
            with contextlib.suppress(OSError):
                ctypes.CDLL(os.path.join(folder, library), mode=ctypes.RTLD_GLOBAL)


_CUDA_LIBRARIES = [
    'cublas/lib/libcublas.so.12',
    'cuda_nvrtc/lib/libnvrtc.so.12',
    'cudnn/lib/libcudnn.so.8',
    'cufft/lib/libcufft.so.11',
    'curand/lib/libcurand.so.10',
    'cusolver/lib/libcusolver.so.11',
    'cusparse/lib/libcusparse.so.12',
]


with warnings.catch_warnings():
    # Users can do nothing about the deprecation of distutils, pkg_resources and NumPy's aliases: this module deals
    # with it. NCCL is for several GPUs; ChainerMN says so itself if it is missing.
    warnings.simplefilter('ignore', DeprecationWarning)
    warnings.filterwarnings('ignore', 'pkg_resources is deprecated', UserWarning)
    warnings.filterwarnings('ignore', r'\s*nccl library could not be loaded', UserWarning)
    warnings.filterwarnings('ignore', 'cuDNN is not enabled', UserWarning)

    _restore_numpy_names()
    _load_cuda_wheels()
    _stand_ins = _make_stand_ins()
    with _in_place(_stand_ins):
        import chainer

# Chainer advises its user at every import to install cuDNN. Users who can install it are still warned, on the first
# use of a GPU. With CuPy 14, which cannot use cuDNN, nobody is.
_cuda: Any = chainer.backends.cuda
_cuda.check_cuda_available._already_warned = isinstance(getattr(_cuda, '_resolution_error', None), ModuleNotFoundError)

if _stand_ins:
    sys.meta_path.insert(0, _TestingFinder(_stand_ins))

_meta: Any = chainer.utils.meta
if not hasattr(_meta, 'base_metaclass'):
    # dill stores the whole class of a Chain that is defined in __main__, and looks up the metaclass of links by this
    # name when it loads it.
    _meta.base_metaclass = type(chainer.Link)


def set_method(owner: Any, name: str, method: Callable) -> None:
    """Replaces a function of one of Chainer's classes or modules.

    Args:
        owner: the class or module.
        name: the function's name.
        method: the new function.
    """
    setattr(owner, name, method)
