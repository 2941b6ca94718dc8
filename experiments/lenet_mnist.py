"""LeNet and B-LeNet on MNIST: Table I's first rows and figure 3's first panel.

    ./get_results.sh --only lenet_mnist --preset quick

quick takes about 15 minutes on 2 cores (on a GPU: not measured); expect 98.6 % or more for B-LeNet at a
threshold that lets 80 % or more leave at exit 1. paper is the published training, under an hour on 2 cores;
expect the published 99.25 % with 94 % leaving at exit 1, within the tolerances of claims.toml. smoke only
shows that everything runs.
"""

from branchynet.datasets import mnist
from branchynet.experiments.network_experiment import NetworkExperiment
from branchynet.experiments.runs import Preset
from branchynet.networks import lenet_mnist

EXPERIMENT = NetworkExperiment(
    name='lenet_mnist',
    network='LeNet',
    get_network=lenet_mnist.get_network,
    get_data=mnist.get_data,
    shape=mnist.SHAPE,
    classes=mnist.CLASSES,
    base_thresholds=[0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2, 3, 5, 10],
    published_thresholds=[0.025],
    presets={
        'smoke': Preset(main_epochs=1, joint_epochs=2, batchsize=128, train_samples=3000, test_samples=500),
        # A smaller batch: more steps for the same time, where epochs are few.
        'quick': Preset(main_epochs=12, joint_epochs=35, batchsize=128, train_samples=60000, test_samples=10000),
        'paper': Preset(main_epochs=50, joint_epochs=100, batchsize=512, train_samples=60000, test_samples=10000),
    },
)
