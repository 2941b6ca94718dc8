"""The data sets of the paper. Each module has a function get_data()."""

from branchynet import _names

_names.unify(__name__)
