"""Benchmarks. `branchynet bench` lists them, `branchynet bench NAME --help` says what one takes and writes."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

from branchynet import _names

_names.unify(__name__)


class Benchmark(NamedTuple):
    """A benchmark: the module of its name has a function ``main(argv)``, which returns the exit status.

    Attributes:
        summary: its subject, for a list.
        minutes: duration of all of it on 2 idle cores.
        needs: modules that the package itself does not need.
    """

    summary: str
    minutes: int
    needs: tuple[str, ...]

    def missing(self) -> list[str]:
        """The modules that it needs and that are not installed."""
        return [name for name in self.needs if find_spec(name) is None]


BENCHMARKS = {
    'early_exit': Benchmark('the gain by early exit, and ONNX Runtime beside it', 3, ('onnx', 'onnxruntime')),
    'compare': Benchmark(
        'training and inference beside Chainer, PyTorch and ONNX Runtime', 40, ('torch', 'onnxruntime')
    ),
    'kernels': Benchmark("every kind of layer of the paper's networks beside Chainer and PyTorch", 20, ('torch',)),
    'chains': Benchmark('a chain with exits: in Chainer, compiled and traced', 2, ()),
    'shapes': Benchmark('convolutions, poolings and linear layers of many shapes beside Chainer', 3, ()),
    'scaling': Benchmark('joint training on one rank and on several, strong and weak', 10, ('mpi4py',)),
    'scaling_model': Benchmark('a model of training on 1 to 256 workers, checked against measured points', 1, ()),
    'soak': Benchmark('one compiled net under load of threads and forked processes', 10, ()),
    'determinism': Benchmark('the cost of the bits of profile portable in training', 2, ()),
}


def run(name: str, argv: Sequence[str]) -> int:
    """Runs a benchmark.

    Args:
        name: of BENCHMARKS.
        argv: its options.

    Returns:
        Its exit status.

    Raises:
        OSError: a module that it needs is not installed.
    """
    missing = BENCHMARKS[name].missing()
    if missing and '--help' not in argv and '-h' not in argv:
        raise OSError(f"{name} needs {' and '.join(missing)}: run pip install 'branchynet[bench]'")
    return importlib.import_module(f'branchynet.benchmarks.{name}').main(argv)
