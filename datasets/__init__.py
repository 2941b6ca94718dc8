"""The data sets of the paper, each module a get_data()."""
