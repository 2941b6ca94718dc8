"""BranchyNet: early exits for Chainer networks (Teerapittayanon, McDanel, Kung, ICPR 2016).

Importing it makes ``import chainer`` work on current Python and NumPy. docs/fidelity.md says what of this stays for the
whole process, as ``numpy.float`` does where NumPy has removed it.
"""

# _chainer comes first: it makes Chainer importable.
from branchynet import _chainer, _names  # noqa: F401
from branchynet.links.links import FL, SL, Branch
from branchynet.net import BranchyNet

__all__ = ['FL', 'SL', 'Branch', 'BranchyNet']
__version__ = '1.1.0'
