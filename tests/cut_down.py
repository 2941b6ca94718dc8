"""A few steps of every network under a profile: minutes on an emulated processor, seconds on a real one.

    python tests/cut_down.py [--profile portable] [--device cpu] FILE

writes a manifest for `branchynet verify`. The images are noise: where there is no CIFAR-10 it must run too.
"""

import argparse
import json

import branchynet  # noqa: F401
from branchynet import cpu, determinism, devices, provenance, verify
from branchynet.inference import Compiled, is_compilable
from branchynet.networks import alex_cifar10, lenet_mnist, resnet_cifar10

import numpy as np
from chainer.backends.cuda import to_cpu

NETWORKS = {  # builder, shape of an image, images, steps of each training
    'lenet': (lenet_mnist, (1, 28, 28), 16, 2),
    'alexnet': (alex_cifar10, (3, 32, 32), 4, 1),
    'resnet': (resnet_cifar10, (3, 32, 32), 2, 1),
}


def run(name, device):
    """One network's entry of a manifest, on a Chainer device."""
    builder, shape, count, steps = NETWORKS[name]
    determinism.seed_generators(0)
    net = builder.get_network()
    net.to_device(device)
    x = np.random.rand(count, *shape).astype(np.float32)
    t = np.random.randint(0, 10, count).astype(np.int32)
    entry = {
        'name': name,
        'settings': {'images': count, 'steps': steps},
        'device': devices.device_name(device),
        'environment': provenance.environment(),
        'steps': [{'what': 'first weights', 'sha256': provenance.sha256_of_net(net)}],
    }
    with cpu.fast():
        for phase, step in ('main', net.train_main), ('joint', net.train):
            for i in range(steps):
                loss, accuracy = step(x, t)
                entry['steps'].append(
                    {
                        'what': f'weights after step {i + 1} of {phase} training',
                        'loss': loss,
                        'accuracy': accuracy,
                        'sha256': provenance.sha256_of_net(net),
                    }
                )
        looked = {'softmax': net.look(x)}
        if is_compilable(net):
            looked['compiled softmax'] = Compiled(net).look(x[:2])
        for what, looks in looked.items():
            prob = [to_cpu(look.prob) for look in looks]
            entry['steps'].append(
                {'what': what, 'mean': float(np.max(prob)), 'sha256': provenance.sha256_of_arrays(prob)}
            )
    return entry


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('file', metavar='FILE')
    parser.add_argument('--profile', choices=determinism.PROFILES, default='portable')
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument('--device', default='cpu', help='cpu or gpu:N')
    args = parser.parse_args()
    determinism.fix(args.profile)
    device = devices.find_device(args.device)
    device.use()
    manifest = {'format': verify.FORMAT, 'runs': [run(name, device) for name in args.networks]}
    with open(args.file, 'w') as f:
        json.dump(manifest, f, indent=1)


if __name__ == '__main__':
    main()
