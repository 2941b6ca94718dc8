"""The notebooks run from top to bottom on a few images."""

import os

import branchynet  # noqa: F401
from branchynet.datasets import cifar, cifar10
from branchynet.experiments import NETWORKS, get_experiment

import pytest

FOLDER = os.path.join(
    os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), 'experiments', 'notebooks'
)


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=pytest.mark.slow if name != 'lenet_mnist' else ()) for name in NETWORKS]
)
def test_notebook_runs(name, monkeypatch, tmp_path):
    nbformat, nbclient = pytest.importorskip('nbformat'), pytest.importorskip('nbclient')
    if name != 'lenet_mnist' and cifar.find(cifar10.NAME, cifar10.VERSIONS) is None:
        pytest.skip('needs CIFAR-10')
    monkeypatch.setenv('BRANCHYNET_PRESET', 'smoke')
    notebook = nbformat.read(os.path.join(FOLDER, name + '.ipynb'), as_version=4)
    assert not any(cell.get('outputs') for cell in notebook.cells)  # as committed
    nbclient.NotebookClient(notebook, timeout=300, resources={'metadata': {'path': str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', [])]
    printed = ''.join(output['text'] for output in outputs if output.get('name') == 'stdout')
    assert 'B-' + get_experiment(name).network in printed and 'Thrshld.T' in printed
    assert sum('image/png' in output.get('data', {}) for output in outputs) == 2
