"""What the paper reports, run again: each module named below holds an EXPERIMENT."""

NAMES = ['lenet_mnist']
