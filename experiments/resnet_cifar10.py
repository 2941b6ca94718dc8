"""ResNet-110 and B-ResNet on CIFAR-10: Table I's last rows and figure 3's third panel.

    ./get_results.sh --only resnet_cifar10 --preset quick

quick takes about 8 minutes on 2 cores (on a GPU: not measured): the whole network, but a few hundred steps;
expect all three losses to fall. reduced takes 5 to 8 hours on 2 cores: 12 main and 25 joint epochs, all else as
published. paper is the published training, days on 2 cores: take a GPU. It was not run; published are
79.17 % with 41.5 % leaving at exit 1. smoke only shows that everything runs.
"""

from branchynet.datasets import cifar10, pcifar10
from branchynet.experiments.network_experiment import NetworkExperiment
from branchynet.experiments.runs import Preset
from branchynet.networks import resnet_cifar10

EXPERIMENT = NetworkExperiment(
    name='resnet_cifar10',
    network='ResNet',
    get_network=resnet_cifar10.get_network,
    get_data=pcifar10.get_data,
    shape=cifar10.SHAPE,
    classes=cifar10.CLASSES,
    base_thresholds=[0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2, 3, 5, 10],
    published_thresholds=[0.3, 0.2],
    presets={
        'smoke': Preset(main_epochs=1, joint_epochs=2, batchsize=16, train_samples=64, test_samples=40),
        'quick': Preset(main_epochs=2, joint_epochs=4, batchsize=64, train_samples=6400, test_samples=2000),
        'reduced': Preset(main_epochs=12, joint_epochs=25, batchsize=64, train_samples=50000, test_samples=10000),
        'paper': Preset(main_epochs=100, joint_epochs=100, batchsize=64, train_samples=50000, test_samples=10000),
    },
)
