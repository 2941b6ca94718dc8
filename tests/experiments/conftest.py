"""A results.json made by hand."""
import pytest

import branchynet  # noqa: F401
from branchynet import provenance


def timed(ms):
    return {'mean_ms': ms, 'median_ms': ms, 'p95_ms': ms}


def setting(thresholds, **changes):
    """A setting as it is run by itself."""
    return {'thresholds': thresholds, 'exit_percent': [90., 10.], 'accuracy_percent': 98.5, 'released': timed(.5),
            'whole': timed(1.), 'images': {'both_right': 960, 'only_branchy_right': 25, 'only_baseline_right': 10,
                                           'both_wrong': 5}, **changes}


@pytest.fixture
def example():
    """One seed of LeNet, preset quick, whose every number differs from the published."""
    run = {
        'seed': 0, 'main_epochs': 2, 'joint_epochs': 3, 'batchsize': 64, 'train_samples': 256, 'test_samples': 1000,
        'device': '@numpy', 'variant': 'code', 'data_sha256': 'abcdef0123456789', 'compiled': True,
        'environment': {**provenance.environment(), 'cpu': 'a processor', 'cores': 2},
        'main_training': {'loss': [.5, .4], 'accuracy': [.8, .9], 'weights_sha256': ['a', 'b'], 'seconds': 60.},
        'joint_training': {'loss': [[.5, .4], [.4, .3], [.3, .25]], 'accuracy': [[.8, .9]] * 3,
                           'weights_sha256': ['c', 'd', 'e'], 'seconds': 120.},
        'baseline': {'accuracy_percent': 97., 'accuracy_as_released_percent': 97.25, 'released': timed(2.),
                     'whole': timed(3.)},
        'exit_accuracy_percent': [98., 99.],
        'exit1_curve': {'exit1_percent': [0., 50., 100.], 'accuracy_percent': [99., 98.75, 98.],
                        'max_entropy_nat': [0., .1, 2.]},
        'sweep': [{'thresholds': [t], 'accuracy_percent': a, 'exit_percent': [share, 100. - share], 'released_ms': ms,
                   'whole_ms': 2 * ms, 'whole_median_ms': 2 * ms, 'whole_p95_ms': 2 * ms, 'gain_released': 2 / ms,
                   'gain_whole': 1.5 / ms}
                  for t, a, share, ms in ((.025, 98.5, 90., .5), (.1, 98.75, 94., .4))],
        'knee': 1,
        'measured': [setting([.025]), setting([.1], accuracy_percent=98.75)],
        'weights_sha256': '0' * 64,
    }
    return {'format': 1, 'preset': 'quick', 'variant': 'code',
            'experiments': {'lenet_mnist': {'network': 'LeNet', 'seeds': [run]}}}
