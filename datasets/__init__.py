"""The data sets of the paper, each module a get_data()."""

from branchynet import _names

_names.unify(__name__)
