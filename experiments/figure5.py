"""Figure 5: accuracy of the final exit against the convolutions in B-AlexNet's first branch, its only one here.

    ./get_results.sh --only figure5 --preset paper

paper trains five networks as published, about 13 hours on 2 idle cores (on a GPU: not measured). It was not
run; published are 76.6 to 78.0 %. quick trains them for a few epochs on a fifth of the images, about 15 minutes;
it claims nothing. reduced is paper with 12 main and 25 joint epochs, about five hours, and claims nothing either;
results/figure5_reduced holds it. smoke only shows that everything runs.
"""

from functools import partial

from branchynet.datasets import pcifar10
from branchynet.experiments.claims import published
from branchynet.experiments.comparison import AMOUNTS, Comparison, Part
from branchynet.networks import alex_cifar10

EXPERIMENT = Comparison(
    name='figure5',
    title='Figure 5: convolutions in the only branch of B-AlexNet',
    xlabel='Convolutions in the branch',
    parts={str(k): Part(partial(alex_cifar10.get_one_branch_network, conv_layers=k)) for k in range(5)},
    get_data=pcifar10.get_data,
    presets=AMOUNTS,
    published={row['x']: float(row['y']) / 100 for row in published('figures.csv') if row['figure'] == '5'},
)
