"""Makes ``import chainer`` work on current Python, NumPy and setuptools; the only place that patches anything.

Chainer 7.8.1, of 2022, is the last. What it misses since is provided here, each thing only where it is missing.
Tried with Python 3.9-3.13 and NumPy 1.23-2.5. Importing Chainer first is fine wherever that works.
"""
import contextlib
import ctypes
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import types
import warnings

import numpy


def _importable(name):
    try:
        importlib.import_module(name)
    except Exception:  # not ImportError alone: setuptools 65 on Python 3.12 fails with an AttributeError
        return False
    return True


def _make_stand_ins():
    """(namespace, name, module) of what Chainer imports and this environment cannot, as far as Chainer uses it."""
    stand_ins = []
    if not _importable('numpy.distutils.system_info'):  # gone with Python 3.12 and with setuptools 74
        # Asked, on macOS only, whether NumPy was built on Accelerate: not known.
        system_info = types.ModuleType('numpy.distutils.system_info')
        system_info.get_info = lambda name: {}
        distutils = types.ModuleType('numpy.distutils')
        distutils.system_info = system_info
        stand_ins += [
            (sys.modules, 'numpy.distutils', distutils),
            (sys.modules, 'numpy.distutils.system_info', system_info),
            (vars(numpy), 'distutils', distutils),
        ]
    if not _importable('pkg_resources'):  # gone with setuptools 82
        # Asked whether CuPy and iDeep are as old as Chainer. Nothing is found, so Chainer does not advise to
        # install CuPy 7.
        class DistributionNotFound(Exception):
            pass

        class WorkingSet:
            def require(self, *requirements):
                raise DistributionNotFound(*requirements)

        pkg_resources = types.ModuleType('pkg_resources')
        pkg_resources.WorkingSet = WorkingSet
        pkg_resources.require = WorkingSet().require
        pkg_resources.DistributionNotFound = pkg_resources.ResolutionError = DistributionNotFound
        pkg_resources.VersionConflict = type('VersionConflict', (Exception,), {})
        stand_ins.append((sys.modules, 'pkg_resources', pkg_resources))
    return stand_ins


@contextlib.contextmanager
def _in_place(stand_ins):
    """Only while Chainer is imported, which keeps what it took: other libraries do without the real modules when
    they are missing, but could not with half of them.
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
    """chainer.testing needs pkg_resources too. Chainer does not import it, and it is slow to."""

    def __init__(self, stand_ins):
        self._stand_ins = stand_ins

    def find_spec(self, name, path=None, target=None):
        if name != 'chainer.testing':
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        exec_module = spec.loader.exec_module

        def exec_with_stand_ins(module):
            with _in_place(self._stand_ins):
                exec_module(module)

        spec.loader.exec_module = exec_with_stand_ins
        return spec


def _restore_numpy_names():
    """What as_strided and resize_images read from NumPy, and not at import alone: these stay."""
    if not hasattr(numpy, 'sctypes'):  # gone with NumPy 2.0
        numpy.sctypes = {
            'int': [numpy.int8, numpy.int16, numpy.int32, numpy.int64],
            'uint': [numpy.uint8, numpy.uint16, numpy.uint32, numpy.uint64],
            'float': [numpy.float16, numpy.float32, numpy.float64, numpy.longdouble],
            'complex': [numpy.complex64, numpy.complex128, numpy.clongdouble],
            'others': [bool, object, bytes, str, numpy.void],
        }
    if not hasattr(numpy, 'float'):  # gone with NumPy 1.24
        numpy.float = float


def _load_cuda_wheels():
    """CuPy finds CUDA's libraries by name, but not inside the nvidia-*-cu12 wheels. What is loaded is found."""
    wheels = importlib.util.find_spec('nvidia')
    if wheels is None or importlib.util.find_spec('cupy') is None:
        return
    for folder in wheels.submodule_search_locations:
        for library in _CUDA_LIBRARIES:
            # Where one does not load, Chainer goes on without a GPU and gives the reason when asked for one.
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
    # That distutils, pkg_resources and NumPy's aliases are on their way out is what this module is about, and
    # nothing that its user could act on. NCCL serves several GPUs; who uses them without it is told by ChainerMN.
    warnings.simplefilter('ignore', DeprecationWarning)
    warnings.filterwarnings('ignore', 'pkg_resources is deprecated', UserWarning)
    warnings.filterwarnings('ignore', r'\s*nccl library could not be loaded', UserWarning)
    warnings.filterwarnings('ignore', 'cuDNN is not enabled', UserWarning)

    _restore_numpy_names()
    _load_cuda_wheels()
    _stand_ins = _make_stand_ins()
    with _in_place(_stand_ins):
        import chainer

# Chainer advises at every import to install cuDNN. Who can does hear it, at the first use of a GPU; CuPy 14 has no use
# for it.
_cuda = chainer.backends.cuda
_cuda.check_cuda_available._already_warned = isinstance(
    getattr(_cuda, '_resolution_error', None), ModuleNotFoundError)

if _stand_ins:
    sys.meta_path.insert(0, _TestingFinder(_stand_ins))

if not hasattr(chainer.utils.meta, 'base_metaclass'):
    # The metaclass of all links goes by this name, and dill looks it up for a Chain defined in __main__, whose
    # class it stores whole.
    chainer.utils.meta.base_metaclass = type(chainer.Link)


def set_method(owner, name, method):
    """Sets a function of one of Chainer's classes or modules."""
    setattr(owner, name, method)
