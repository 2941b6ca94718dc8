"""What the port asks of a GPU's libraries, held against stand-ins: no GPU and no CuPy is needed."""

from types import SimpleNamespace

import branchynet  # noqa: F401
from branchynet import cli, determinism, devices, provenance
from branchynet.experiments import reproduce

import pytest
from chainer.backends import cuda
from test_chainer_compat import run


@pytest.fixture
def gpu(monkeypatch):
    """One GPU with cuDNN, as Chainer and CuPy name its parts: the list of seeds that they are given."""
    given = []

    class DropoutStates:
        def __init__(self, handle, seed):
            given.append(('cuDNN', handle, seed))

    states = DropoutStates(None, 'of the process')
    given.clear()
    runtime = SimpleNamespace(getDeviceCount=lambda: 1, driverGetVersion=lambda: 12090, runtimeGetVersion=lambda: 12080)
    cupy = SimpleNamespace(
        cuda=SimpleNamespace(runtime=runtime), random=SimpleNamespace(seed=lambda value: given.append(('CuPy', value)))
    )
    for name, value in {
        'available': True,
        'cudnn_enabled': True,
        'cupy': cupy,
        'cudnn': SimpleNamespace(),  # has no version, unlike libcudnn
        'libcudnn': SimpleNamespace(getVersion=lambda: 8907),
        'get_cudnn_dropout_states': lambda: states,
    }.items():
        monkeypatch.setattr(cuda, name, value, raising=False)
    return given


def test_versions_of_cuda(gpu):
    versions = provenance._cuda()
    assert versions['runtime'] == 12080 and versions['cudnn'] == 8907


def test_a_seed_fixes_the_generators_of_a_gpu(gpu):
    determinism.seed_generators(3)
    assert gpu == [('CuPy', 3), ('cuDNN', None, 3)]


def test_the_device_that_is_asked_for_becomes_the_current_one(monkeypatch, tmp_path, capsys):
    class Device:
        def use(self):
            raise ValueError('it is used')

    monkeypatch.setattr(devices, 'find_device', lambda name: Device())
    monkeypatch.setattr(determinism, 'fix', lambda *arguments, **keywords: None)
    monkeypatch.setattr(reproduce, 'reproduce', lambda *arguments, **keywords: 0)
    assert cli.main(['reproduce', '--device', 'gpu:1', '--out', str(tmp_path)]) == 2
    assert capsys.readouterr().err == 'branchynet: it is used\n'


def test_that_cudnn_is_missing_is_told_where_it_could_be_there():
    pytest.importorskip('cupy')
    run("""
import branchynet, warnings
from chainer.backends import cuda
lacks_wrapper = isinstance(getattr(cuda, "_resolution_error", None), ModuleNotFoundError)
with warnings.catch_warnings(record=True) as told:
    cuda.check_cuda_available()
assert bool(told) == (not cuda.cudnn_enabled and not lacks_wrapper)
""")
