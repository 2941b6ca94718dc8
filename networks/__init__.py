"""The networks of the paper, each module a get_network()."""

from branchynet import _names

_names.unify(__name__)
