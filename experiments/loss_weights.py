"""Section V-A: weights 1.0 and 0.3 of the first and the last exit against equal ones, in B-AlexNet with these two.

    ./get_results.sh --only loss_weights --preset paper

paper trains both as published, about 5 hours on 2 idle cores (on a GPU: not measured); the paper claims 1 point of
accuracy. quick trains them for a few epochs on a fifth of the images, about 6 minutes; it claims nothing.
reduced is paper with 12 main and 25 joint epochs. smoke only shows that everything runs.
"""

from functools import partial

from branchynet.datasets import pcifar10
from branchynet.experiments.comparison import AMOUNTS, Comparison, Part
from branchynet.networks import alex_cifar10

EXPERIMENT = Comparison(
    name='loss_weights',
    title='Weights of the exits in the joint loss',
    xlabel='Weights (first: 1.0 and 0.3)',
    parts={
        'equal': Part(alex_cifar10.get_one_branch_network),
        'first': Part(partial(alex_cifar10.get_one_branch_network, weights=(1.0, 0.3))),
    },
    get_data=pcifar10.get_data,
    presets=AMOUNTS,
    published={},
)
