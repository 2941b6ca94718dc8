"""The networks of the paper, each module a get_network()."""
