"""BranchyNet: early exits for Chainer networks (Teerapittayanon, McDanel, Kung, ICPR 2016).

Importing it makes ``import chainer`` work on current Python and NumPy. Some of this stays for the whole process:
``numpy.sctypes`` (NumPy 2) and ``numpy.float`` (NumPy 1.24), where NumPy has removed them, because Chainer reads them
when its functions run; ``chainer.utils.meta.base_metaclass``, which dill looks up; and where CuPy is installed, the
CUDA libraries of the nvidia-*-cu12 wheels, loaded with RTLD_GLOBAL, because CuPy finds them only so.
"""

# _chainer comes first: it makes Chainer importable.
from branchynet import _chainer, _names  # noqa: F401
from branchynet.links.links import FL, SL, Branch
from branchynet.net import BranchyNet

__all__ = ['FL', 'SL', 'Branch', 'BranchyNet']
__version__ = '1.1.0'
