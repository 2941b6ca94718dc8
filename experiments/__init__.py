"""What the paper reports, run again: each module named below holds an EXPERIMENT."""

NETWORKS = ['lenet_mnist', 'alex_cifar10', 'resnet_cifar10']
ANALYSES = ['figure5', 'figure6', 'loss_weights', 'initialisation']
NAMES = NETWORKS + ANALYSES
PRESETS = ['smoke', 'quick', 'paper']  # each has to reach what those before it have to
VARIANTS = ['code', 'paper']
