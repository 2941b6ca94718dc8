"""The networks of the paper. Each module has a function get_network()."""

from branchynet import _names

_names.unify(__name__)
