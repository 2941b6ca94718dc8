"""What branchynet._chainer provides, each case in a Python of its own: modules can be imported once only."""

import importlib.util
import os
import shutil
import subprocess
import sys

import pytest

MISSING = """
import sys
for name in ["pkg_resources", "numpy.distutils", "numpy.distutils.system_info"]:
    sys.modules[name] = None  # as if it were not installed
"""


def run(code, *options, env=None):
    done = subprocess.run(
        [sys.executable, *options, '-c', code], env={**os.environ, **(env or {})}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ''
    return done.stdout.strip()


def test_importing_branchynet_makes_chainer_importable():
    run('import branchynet; import chainer, chainer.testing, chainermn')


def test_importing_chainer_first_is_fine():
    # Chainer itself cannot be imported everywhere, so it is imported with help and the helper then forgotten.
    run("""
import branchynet, sys
import chainer
for name in [name for name in sys.modules if name.partition(".")[0] == "branchynet"]:
    del sys.modules[name]
import branchynet
assert sys.modules["chainer"] is chainer
""")


def test_importing_is_silent_and_light():
    heavy = "{'matplotlib', 'dill', 'chainer.testing'}"
    assert run(f'import branchynet, sys; print(sorted({heavy} & set(sys.modules)))', '-W', 'default') == '[]'


def test_missing_modules_are_made_up_for_and_stay_missing():
    run(
        MISSING
        + """
import branchynet, chainer, numpy
import chainer.testing
assert not hasattr(numpy, "distutils")
for name in ["pkg_resources", "numpy.distutils.system_info"]:
    try:
        __import__(name)
    except ImportError:
        pass
    else:
        raise AssertionError(name)
""",
        '-W',
        'error::UserWarning',
    )


def test_the_check_for_accelerate_passes_on_macos():
    run(
        MISSING
        + """
import branchynet, chainer  # and all that looks at the platform for reasons of its own
sys.platform = "darwin"
from branchynet import _chainer
with _chainer._in_place(_chainer._stand_ins):
    chainer._environment_check.check()
""",
        '-W',
        'error::UserWarning',
    )


def test_what_is_there_is_left_alone():
    run("""
import sys, types
import numpy
numpy.sctypes = {"int": [numpy.int32], "float": [numpy.float32]}
class Conflict(Exception):
    pass
there = types.ModuleType("pkg_resources")
there.require = lambda requirement: None
there.DistributionNotFound = there.VersionConflict = there.ResolutionError = Conflict
sys.modules["pkg_resources"] = there
import warnings
warnings.simplefilter("ignore")  # "Multiple installations of CuPy", says this pkg_resources
import branchynet, chainer
assert chainer._environment_check.pkg_resources is there
assert sys.modules["pkg_resources"] is there
assert numpy.sctypes == {"int": [numpy.int32], "float": [numpy.float32]}
""")


def test_functions_that_read_removed_numpy_names():
    run(
        """
import branchynet, chainer, numpy
import chainer.functions as F
x = chainer.Variable(numpy.arange(16, dtype=numpy.float32).reshape(1, 1, 4, 4))
assert F.resize_images(x, (2, 2)).array.ravel().tolist() == [0, 3, 12, 15]
x = chainer.Variable(numpy.arange(8, dtype=numpy.float32))
y = F.as_strided(x, (2, 2), (4, 1), 0)
y.grad = numpy.ones_like(y.array)
y.backward()
assert x.grad.sum() == 4
""",
        '-W',
        'ignore::DeprecationWarning',
    )  # NumPy 1.23 still has them, and says that they will go


def test_a_training_step():
    run("""
import branchynet, chainer, numpy
import chainer.functions as F, chainer.links as L
net = chainer.Sequential(L.Convolution2D(1, 2, 3), L.BatchNormalization(2), F.relu, L.Linear(None, 3))
optimizer = chainer.optimizers.Adam().setup(net)
x, t = numpy.ones((4, 1, 5, 5), numpy.float32), numpy.array([0, 1, 2, 0], numpy.int32)
first = None
for _ in range(20):
    loss = F.softmax_cross_entropy(net(x), t)
    first = first or loss.item()
    net.cleargrads()
    loss.backward()
    optimizer.update()
assert loss.item() < first
assert all(p.dtype == numpy.float32 for p in net.params())
""")


def test_dill_of_a_chain_defined_in_main(tmp_path):
    stored = tmp_path / 'net.dill'
    saved = run(
        f"""
import branchynet, chainer, dill
class Net(chainer.Chain):
    def __init__(self):
        super().__init__()
        with self.init_scope():
            self.fc = chainer.links.Linear(2, 1)
net = Net()
dill.dump(net, open({str(stored)!r}, "wb"), recurse=True)
print(net.fc.W.array.tolist())
""",
        '-W',
        'ignore::ResourceWarning',
    )
    loaded = run(
        f"""
import branchynet, dill
net = dill.load(open({str(stored)!r}, "rb"))
print(net.fc.W.array.tolist())
""",
        '-W',
        'ignore::ResourceWarning',
    )
    assert loaded == saved


@pytest.mark.skipif(not os.path.exists('/proc/self/maps'), reason='no /proc to see which libraries are loaded')
def test_cuda_libraries_are_loaded_from_their_wheels(tmp_path):
    library = tmp_path / 'nvidia' / 'cublas' / 'lib' / 'libcublas.so.12'
    library.parent.mkdir(parents=True)
    shutil.copy(importlib.util.find_spec('_ctypes').origin, str(library))  # any library will do
    (tmp_path / 'nvidia' / '__init__.py').write_text('')
    (tmp_path / 'cupy.py').write_text('')
    run(
        f"import branchynet; assert {str(library)!r} in open('/proc/self/maps').read()",
        '-W',
        'ignore::ResourceWarning',
        env={'PYTHONPATH': str(tmp_path)},
    )


def test_the_docstring_names_all_that_importing_leaves_in_numpy():
    run("""
import numpy
before = set(vars(numpy))
import branchynet
left = {name for name, value in vars(numpy).items()
        if name not in before and not isinstance(value, type(numpy)) and getattr(value, "__module__", "") != "numpy"}
for name in left:
    assert "numpy." + name in branchynet.__doc__, name
""")
