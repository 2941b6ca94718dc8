"""AlexNet and B-AlexNet on CIFAR-10: Table I's middle rows, figure 3's second panel and figure 4.

    ./get_results.sh --only alex_cifar10 --preset quick

quick takes about 40 minutes on 2 idle cores (on a GPU: not measured); expect 76 % or more for B-AlexNet at a
setting that lets 40 % or more leave at exit 1. paper is the published training, two and a half hours a seed on 2
idle cores; README.md has its results beside the published 79.19 % with 65.6 % leaving at exit 1. smoke only
shows that everything runs.
"""

from branchynet.datasets import cifar10, pcifar10
from branchynet.experiments.network_experiment import NetworkExperiment
from branchynet.experiments.runs import Preset
from branchynet.networks import alex_cifar10

EXPERIMENT = NetworkExperiment(
    name='alex_cifar10',
    network='AlexNet',
    get_network=alex_cifar10.get_network,
    get_data=pcifar10.get_data,
    shape=cifar10.SHAPE,
    classes=cifar10.CLASSES,
    base_thresholds=[0.0001, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 0.75, 1, 5, 10],
    published_thresholds=[0.0001, 0.05],
    presets={
        'smoke': Preset(main_epochs=1, joint_epochs=2, batchsize=64, train_samples=1024, test_samples=200),
        'quick': Preset(main_epochs=10, joint_epochs=20, batchsize=512, train_samples=50000, test_samples=10000),
        'paper': Preset(main_epochs=50, joint_epochs=100, batchsize=512, train_samples=50000, test_samples=10000),
    },
)
