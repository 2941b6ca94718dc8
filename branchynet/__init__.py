"""BranchyNet: early exits for Chainer networks (Teerapittayanon, McDanel, Kung, ICPR 2016)."""
from branchynet import _chainer  # noqa: F401  (first: it makes Chainer importable)
from branchynet.links.links import FL, SL, Branch
from branchynet.net import BranchyNet

__all__ = ['BranchyNet', 'Branch', 'FL', 'SL']
