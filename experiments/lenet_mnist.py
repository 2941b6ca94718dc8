"""LeNet and B-LeNet on MNIST: Table I's first rows and figure 3's first panel.

    ./get_results.sh --only lenet_mnist --preset quick

quick takes about 15 minutes on 2 cores; expect 98.6 % or more for B-LeNet at a threshold that lets 80 %
or more leave at exit 1. paper is the published training, under an hour on 2 cores; expect the published
99.25 % with 94 % leaving at exit 1, within the tolerances below. smoke only shows that everything runs.
"""
from branchynet.datasets import mnist
from branchynet.experiments.pipeline import Claim, Experiment, Preset
from branchynet.networks import lenet_mnist

THRESHOLDS = [.0001, .0005, .001, .005, .01, .025, .05, .075, .1, .25, .5, .75, 1, 2, 3, 5, 10]
PUBLISHED_THRESHOLDS = [.025]


def best_accuracy(result):
    """Of the settings that let 80 % or more leave at exit 1."""
    return max(row['accuracy_percent'] for row in result['sweep'] if row['exit_percent'][0] >= 80)


def baseline_accuracy(result):
    return result['baseline']['accuracy_percent']


def accuracy(result):
    return _published_setting(result)['accuracy_percent']


def exit1_share(result):
    return _published_setting(result)['exit_percent'][0]


def _published_setting(result):
    return next(row for row in result['sweep'] if row['thresholds'] == PUBLISHED_THRESHOLDS)


EXPERIMENT = Experiment(
    name='lenet_mnist',
    network='LeNet',
    get_network=lenet_mnist.get_network,
    get_data=mnist.get_data,
    base_thresholds=THRESHOLDS,
    published_thresholds=PUBLISHED_THRESHOLDS,
    presets={
        'smoke': Preset(main_epochs=1, joint_epochs=2, batchsize=128, train_samples=3000, test_samples=500),
        # A smaller batch: more steps for the same time, where epochs are few.
        'quick': Preset(main_epochs=12, joint_epochs=35, batchsize=128),
        'paper': Preset(main_epochs=50, joint_epochs=100, batchsize=512),
    },
    claims=[
        Claim('B-LeNet accuracy (%) where 80 % or more leave at exit 1', best_accuracy, 98.6, ('quick', 'paper')),
        # 10,000 images: 0.2 points are two standard errors of one run, 0.3 allow for theirs as well.
        Claim('LeNet accuracy (%), published 99.20', baseline_accuracy, 98.9, ('paper',)),
        Claim('B-LeNet accuracy (%) at T = 0.025, published 99.25', accuracy, 98.95, ('paper',)),
        Claim('share (%) leaving at exit 1 at T = 0.025, published 94.3', exit1_share, 90., ('paper',)),
    ],
)
