"""Writes the files in this folder as a project of 2016 would have: run by Python 2.7.

    pip install numpy==1.16.6 scipy==1.2.3 chainer==1.17.0 dill==0.2.5 h5py==2.10.0
    python write_with_python27.py FOLDER
    cd FOLDER && xz -9 *.bn *.h5

The classes below are stand-ins: they have the names, the attributes and the behaviour that the released
``branchynet`` module had (docs/from-chainer-1.md), so that dill writes what it wrote then. Small networks
hold every kind of link that the released module has. Each is trained for a few steps on random images, and
its outputs are recorded.
"""
import copy
import os
import sys
import types

import chainer
from chainer import training
import chainer.functions as F
import chainer.links as L
from chainer.training import extensions
import dill
import numpy as np
from scipy.sparse import csr_matrix


class FL(chainer.Link):
    def __init__(self, fn, *arguments, **keywords):
        super(FL, self).__init__()
        self.fn, self.arguments, self.keywords = fn, arguments, keywords

    def __call__(self, x, test=False):
        return self.fn(x, *self.arguments, **self.keywords)


class SL(chainer.Link):
    def __init__(self, fnTrain, fnTest=None):
        super(SL, self).__init__()
        self.fnTrain, self.fnTest = fnTrain, fnTest

    def __call__(self, x, test=False):
        if not test:
            return self.fnTrain(x)
        return x if self.fnTest is None else self.fnTest(x)


class Net(chainer.ChainList):
    def __init__(self, links, starti=0, endi=0):
        super(Net, self).__init__()
        for link in links:
            self.add_link(copy_of(link))
        self.weight, self.starti, self.endi = 1., starti, endi

    def __call__(self, x, test=False, starti=0, endi=None):
        self.h = run(list(self)[starti:endi], x, test)
        return self.h


def run(links, x, test):
    for link in links:
        x = link(x) if isinstance(link, (L.Convolution2D, L.Linear)) else link(x, test=test)
    return x


def copy_of(link):
    return SL(copy_of(link.fnTrain), link.fnTest) if isinstance(link, SL) else copy.deepcopy(link)


class ResBlock(chainer.Chain):
    def __init__(self, in_size, out_size, stride=1):
        super(ResBlock, self).__init__(
            conv1=L.Convolution2D(in_size, out_size, 3, stride, 1, 2 ** .5), bn1=L.BatchNormalization(out_size),
            conv2=L.Convolution2D(out_size, out_size, 3, 1, 1, 2 ** .5), bn2=L.BatchNormalization(out_size))

    def __call__(self, x, test=False):
        h = F.relu(self.bn1(self.conv1(x), test=test))
        h = self.bn2(self.conv2(h), test=test)
        if x.data.shape[1] != h.data.shape[1]:
            zeros = np.zeros((len(x.data), h.data.shape[1] - x.data.shape[1]) + x.data.shape[2:], 'f')
            x = F.concat((chainer.Variable(zeros, volatile=x.volatile), x))
        if x.data.shape[2:] != h.data.shape[2:]:
            x = F.average_pooling_2d(x, 1, 2)
        return F.relu(h + x)


def convolution(in_size, out_size, ksize, stride=1, pad=0):
    return L.Convolution2D(in_size, out_size, ksize, stride, pad, 2 ** .5, nobias=True)


class BottleNeckA(chainer.Chain):
    def __init__(self, in_size, ch, out_size, stride=2):
        super(BottleNeckA, self).__init__(
            conv1=convolution(in_size, ch, 1, stride), bn1=L.BatchNormalization(ch),
            conv2=convolution(ch, ch, 3, 1, 1), bn2=L.BatchNormalization(ch),
            conv3=convolution(ch, out_size, 1), bn3=L.BatchNormalization(out_size),
            conv4=convolution(in_size, out_size, 1, stride), bn4=L.BatchNormalization(out_size))
        self.in_size, self.ch, self.out_size, self.stride = in_size, ch, out_size, stride

    def __call__(self, x, test=False):
        h = F.relu(self.bn1(self.conv1(x), test=test))
        h = F.relu(self.bn2(self.conv2(h), test=test))
        return F.relu(self.bn3(self.conv3(h), test=test) + self.bn4(self.conv4(x), test=test))


class BottleNeckB(chainer.Chain):
    def __init__(self, in_size, ch):
        super(BottleNeckB, self).__init__(
            conv1=convolution(in_size, ch, 1), bn1=L.BatchNormalization(ch),
            conv2=convolution(ch, ch, 3, 1, 1), bn2=L.BatchNormalization(ch),
            conv3=convolution(ch, in_size, 1), bn3=L.BatchNormalization(in_size))
        self.in_size, self.ch = in_size, ch

    def __call__(self, x, test=False):
        h = F.relu(self.bn1(self.conv1(x), test=test))
        h = F.relu(self.bn2(self.conv2(h), test=test))
        return F.relu(self.bn3(self.conv3(h), test=test) + x)


class Block(chainer.Chain):
    def __init__(self, layer, in_size, ch, out_size, stride=2):
        parts = [('a', BottleNeckA(in_size, ch, out_size, stride))]
        parts += [('b%d' % k, BottleNeckB(out_size, ch)) for k in range(1, layer)]
        super(Block, self).__init__(**dict(parts))
        self.forward = parts
        self.layer, self.in_size, self.ch, self.out_size, self.stride = layer, in_size, ch, out_size, stride

    def __call__(self, x, test=False):
        for name, _ in self.forward:
            x = getattr(self, name)(x, test)
        return x


class X(chainer.ChainList):
    def __init__(self, links):
        super(X, self).__init__(*links)
        self.weights = [1., 1.]

    def __call__(self, x, test=False):
        h = run(self, x, test)
        if x.data.shape[1:] != h.data.shape[1:]:
            zeros = np.zeros((len(x.data), h.data.shape[1] - x.data.shape[1]) + x.data.shape[2:], 'f')
            x = F.concat((chainer.Variable(zeros, volatile=x.volatile), x))
            if x.data.shape[2:] != h.data.shape[2:]:
                x = F.average_pooling_2d(x, 1, 2)
        return self.weights[0] * h + self.weights[1] * x


def few(in_size, out_size, sparseness):
    """Weights of which the small ones are 0, and which ones are not."""
    W = np.random.normal(0, in_size ** -.5, (out_size, in_size))
    kept = abs(W) >= np.percentile(abs(W), sparseness * 100)
    return W * kept, kept


class SparseLinearFunction(chainer.Function):
    def __init__(self, indices, indptr, shape, mask):
        self.indices, self.indptr, self.shape, self.mask = indices, indptr, shape, mask
        rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)).tolist()
        self.rowcols = list(zip(rows, indices))

    def dense(self, W):
        return csr_matrix((W, self.indices, self.indptr), self.shape).toarray()

    def forward(self, inputs):
        y = inputs[0].reshape(len(inputs[0]), -1).dot(self.dense(inputs[1]).T)
        return (y + inputs[2] if len(inputs) == 3 else y),

    def backward(self, inputs, grad_outputs):
        x, gy = inputs[0].reshape(len(inputs[0]), -1), grad_outputs[0]
        gW = gy.T.dot(x)[tuple(np.transpose(self.rowcols))]
        return (gy.dot(self.dense(inputs[1])).reshape(inputs[0].shape), gW, gy.sum(0))[:len(inputs)]


class SparseLinear(chainer.Link):
    def __init__(self, in_size, out_size, sparseness=.99, nobias=False):
        W, self.mask = few(in_size, out_size, sparseness)
        self.spW = csr_matrix(W, dtype='f')
        super(SparseLinear, self).__init__(W=self.spW.data.size)
        self.W.data = self.spW.data
        self.b = None
        if not nobias:
            del self.b
            self.add_param('b', out_size)
            self.b.data[...] = 0
        self.slf = SparseLinearFunction(self.spW.indices, self.spW.indptr, self.spW.shape, self.mask)

    def __call__(self, x, test=False):
        return self.slf(x, self.W) if self.b is None else self.slf(x, self.W, self.b)


class DenseFunction(chainer.Function):
    def __init__(self, mask):
        self.mask = mask

    def forward(self, inputs):
        return inputs[0].reshape(len(inputs[0]), -1).dot(inputs[1].T) + inputs[2],

    def backward(self, inputs, grad_outputs):
        x, gy = inputs[0].reshape(len(inputs[0]), -1), grad_outputs[0]
        return gy.dot(inputs[1]).reshape(inputs[0].shape), gy.T.dot(x) * self.mask, gy.sum(0)


DenseFunction.__name__ = 'SparseLinearFunction'


class DenseSparseLinear(chainer.Link):
    def __init__(self, in_size, out_size, sparseness=.99):
        super(DenseSparseLinear, self).__init__(W=(out_size, in_size), b=out_size)
        self.W.data[...], self.mask = few(in_size, out_size, sparseness)
        self.b.data[...] = 0
        self.slf = DenseFunction(self.mask)

    def __call__(self, x, test=False):
        return self.slf(x, self.W, self.b)


class BranchyNet:  # an old-style class, as released
    def __init__(self, network, opt='Adam', thresholdExits=None, percentTrainKeeps=1.):
        self.opt, self.thresholdExits, self.percentTrainKeeps = opt, thresholdExits, percentTrainKeeps
        self.percentTestExits, self.joint, self.forwardMain = .9, True, None
        self.lr, self.momentum, self.weight_decay, self.alpha = .05, .8, .0002, .002
        self.verbose, self.gpu, self.xp = False, False, np
        trunk, self.models = [], []
        for link in network:
            if isinstance(link, list):
                starti = self.models[-1].endi if self.models else 0
                self.models.append(Net(trunk + link, starti, len(trunk)))
            else:
                trunk.append(link)
        self.main = Net(trunk + network[-1])
        self.copy_parameters()
        self.optimizer = self.make(self.main, self.alpha, self.momentum)
        self.optimizers = [self.make(model, .001, .9) for model in self.models]

    def make(self, target, alpha, momentum):
        if self.opt == 'Adam':
            optimizer = chainer.optimizers.Adam(alpha)
            optimizer.setup(target)
        else:
            optimizer = chainer.optimizers.MomentumSGD(self.lr, momentum)
            optimizer.setup(target)
            optimizer.add_hook(chainer.optimizer.WeightDecay(self.weight_decay))
        return optimizer

    def copy_parameters(self):
        for model in self.models:
            for i in range(model.endi):
                model[i].copyparams(self.main[i])

    def train_main(self, x, t):
        self.main.cleargrads()
        self.main.loss = F.softmax_cross_entropy(self.main(chainer.Variable(x)), chainer.Variable(t))
        self.main.loss.backward()
        self.optimizer.update()

    def train(self, x, t):
        self.copy_parameters()
        self.main.zerograds()
        for model in self.models:
            model.cleargrads()
            model.loss = F.softmax_cross_entropy(model(chainer.Variable(x)), chainer.Variable(t))
            model.loss.backward()
            # As many go on as in the released code; which ones does not matter here.
            x, t = [a[:int(self.percentTrainKeeps * len(t))] for a in (x, t)]
            for i in range(model.endi):
                self.main[i].addgrads(model[i])
        for optimizer in [self.optimizer] + self.optimizers:
            optimizer.update()
        self.copy_parameters()


for module, classes in [('branchynet', []), ('branchynet.net', [BranchyNet]), ('branchynet.links', []),
                        ('branchynet.links.links', [FL, SL, Net, X]),
                        ('branchynet.links.resnet', [ResBlock, BottleNeckA, BottleNeckB, Block]),
                        ('branchynet.links.sparselinear', [SparseLinear, SparseLinearFunction]),
                        ('branchynet.links.densesparselinear', [DenseSparseLinear, DenseFunction])]:
    sys.modules[module] = types.ModuleType(module)
    for one in classes:
        one.__module__ = module
        setattr(sys.modules[module], one.__name__, one)


def norm():
    return FL(F.local_response_normalization, n=3, alpha=5e-5, beta=.75, k=2)


def alex():
    return [
        L.Convolution2D(3, 4, 5, pad=2), FL(F.ReLU()), FL(F.max_pooling_2d, 3, 2), norm(),
        [FL(F.relu), L.Convolution2D(4, 3, 3, pad=1), FL(F.max_pooling_2d, 3, 2, use_cudnn=False), L.Linear(12, 3)],
        L.Convolution2D(4, 5, 3, pad=1, nobias=True), FL(F.ReLU()), FL(F.max_pooling_2d, 2, 2, cover_all=False),
        [L.Linear(20, 3)],
        L.Linear(20, 8), FL(F.ReLU()), SL(FL(F.dropout, .4, train=True)), L.Linear(8, 6),
        SL(FL(F.dropout, ratio=.2)), SL(FL(F.relu), FL(F.relu)),
        [L.Linear(6, 3)]]


def resnet():
    return [
        L.Convolution2D(3, 4, 3, wscale=2 ** .5), L.BatchNormalization(4), FL(F.ReLU()),
        [L.Convolution2D(4, 4, 5, pad=2), FL(F.relu), norm(), L.Linear(144, 3)],
        ResBlock(4, 4),
        [ResBlock(4, 4), L.Linear(144, 3)],
        ResBlock(4, 6, 2), ResBlock(6, 6), FL(F.average_pooling_2d, 3, 1),
        [L.Linear(6, 3)]]


def sparse():
    weighted = X([L.Linear(8, 8), FL(F.relu)])
    weighted.weights = [.5, 2]
    return [
        L.Convolution2D(3, 4, 3, pad=1), FL(F.ReLU()), X([L.Convolution2D(4, 4, 3, pad=1), FL(F.relu)]),
        [SparseLinear(256, 6, .9), FL(F.relu), SparseLinear(6, 3, .5, nobias=True)],
        X([L.Convolution2D(4, 6, 3, 2, 1), X([L.Convolution2D(6, 6, 1), FL(F.relu)])]),
        [DenseSparseLinear(96, 8, .8), FL(F.relu), weighted, L.Linear(8, 3)]]


def bottlenecks():
    return [
        L.Convolution2D(3, 4, 3, pad=1), BottleNeckB(4, 4), [L.Linear(256, 3)],
        BottleNeckA(4, 4, 6, 2), Block(3, 6, 4, 8, 2),
        [X([Block(2, 8, 4, 8, 1)]), L.Linear(32, 3)]]


def write(folder, name, net, random):
    """A network that has been trained, and its outputs in testing mode."""
    x, t = random.rand(24, 3, 8, 8).astype('f'), random.randint(0, 3, 24).astype('i')
    steps = 30 if name == 'bottlenecks' else 3  # many, so that running variances leave the 0 at which they begin
    for _ in range(steps):
        net.train_main(x, t)
    for _ in range(steps):
        net.train(x, t)
    outputs = {'x': x[:5], 't': t[:5], 'main': net.main(chainer.Variable(x[:5], volatile='on'), test=True).data}
    h = chainer.Variable(x[:5], volatile='on')
    for k, model in enumerate(net.models):  # as the released test: every stage by the model of its exit
        h = model(h, True, model.starti, model.endi)
        outputs['sm%d' % k] = F.softmax(model(h, True, model.endi)).data
    if name == 'bottlenecks':
        outputs['m_block'] = net.optimizer._states['/3/b2/conv1/W']['m']
        outputs['m_nested'] = net.optimizers[1]._states['/4/0/b1/bn3/gamma']['m']
    if name != 'momentum':  # one file keeps what a training leaves behind, as the released ones all do
        for model in [net.main] + net.models:
            model.cleargrads()
            model.h = model.loss = None
            for link in model:
                if isinstance(getattr(link, 'fn', None), F.ReLU):
                    link.fn.inputs, link.fn.outputs = (), ()
    with open(os.path.join(folder, name + '.bn'), 'wb') as f:
        dill.dump(net, f)
    if name not in ('resnet', 'bottlenecks'):  # one more joint step needs the optimisers' moments (with batch normalisation, today's differs)
        outputs['x_after'], outputs['t_after'] = x[:8], t[:8]
        np.random.seed(5)  # of the dropout
        net.train(x[:8], t[:8])
        outputs['after_trunk'], outputs['after_exit'] = net.main[0].W.data, net.models[0][-1].W.data
        outputs['after_main_head'] = net.main[-1].W.data
    np.savez_compressed(os.path.join(folder, name + '_outputs.npz'), **outputs)


def write_snapshots(folder, net, random):
    """Snapshots of main by Chainer's serializers, and one of a whole Trainer."""
    chainer.serializers.save_npz(os.path.join(folder, 'main.npz'), net.main)
    chainer.serializers.save_hdf5(os.path.join(folder, 'main.h5'), net.main)
    x, t = random.rand(8, 3, 8, 8).astype('f'), random.randint(0, 3, 8).astype('i')
    model = L.Classifier(net.main)
    optimizer = chainer.optimizers.SGD()
    optimizer.setup(model)
    iterator = chainer.iterators.SerialIterator(chainer.datasets.TupleDataset(x, t), 8)
    trainer = training.Trainer(training.StandardUpdater(iterator, optimizer), (1, 'iteration'), folder)
    trainer.extend(extensions.snapshot(filename='trainer.npz'), trigger=(1, 'iteration'))
    trainer.run()
    np.savez_compressed(os.path.join(folder, 'trainer_outputs.npz'), x=x,
                        main=net.main(chainer.Variable(x, volatile='on'), test=True).data)


def main(folder):
    np.random.seed(0)
    random = np.random.RandomState(1)
    write(folder, 'alex', BranchyNet(alex(), thresholdExits=[.5, np.float64(.25)]), random)
    write(folder, 'momentum', BranchyNet([
        L.Convolution2D(3, 2, 3), [L.Linear(72, 3)], FL(F.ReLU()), [L.Linear(72, 3)]], 'MomentumSGD'), random)
    net = BranchyNet(resnet(), percentTrainKeeps=.5)
    write(folder, 'resnet', net, random)
    write_snapshots(folder, net, random)
    with open(os.path.join(folder, 'results.bn'), 'wb') as f:
        dill.dump({'accs': np.array([.9, .95]), 'rt': [.001, np.float64(.002)], 'exits': [[7, 3], [2, 8]],
                   'ts': [[.1], [.5]], 'baseacc': .96, 'basediff': np.float32(.004)}, f)
    write(folder, 'sparse', BranchyNet(sparse()), random)
    write(folder, 'bottlenecks', BranchyNet(bottlenecks()), random)


if __name__ == '__main__':
    main(sys.argv[1])
