"""Links of the original, under their original module names; `from branchynet.links import *` gives those of links."""

from branchynet.links.links import FL, SL, Branch, Net, X

__all__ = ['FL', 'SL', 'Branch', 'Net', 'X']
