"""Section IV: joint training that starts from the trained baseline, against one from random weights.

    ./get_results.sh --only initialisation --preset paper

paper trains B-AlexNet both ways for as many joint epochs, about 5 hours on 2 idle cores (on a GPU: not measured);
the paper claims "several percent" for the trained start. quick trains for a few epochs on a fifth of the
images, about 6 minutes; it claims nothing. reduced is paper with 12 main and 25
joint epochs. smoke only shows that everything runs.
"""

from branchynet.datasets import pcifar10
from branchynet.experiments.comparison import AMOUNTS, Comparison, Part
from branchynet.networks import alex_cifar10

EXPERIMENT = Comparison(
    name='initialisation',
    title='Start of the joint training',
    xlabel='Start',
    parts={'random': Part(alex_cifar10.get_network, trained=False), 'trained': Part(alex_cifar10.get_network)},
    get_data=pcifar10.get_data,
    presets=AMOUNTS,
    published={},
)
