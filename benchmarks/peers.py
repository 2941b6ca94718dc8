"""The same networks in plain PyTorch, built from a BranchyNet link by link, with its weights copied over.

Eager PyTorch as its users write it: one trunk, modules in sequence, autograd, torch.optim.Adam.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Callable

import branchynet
from branchynet.links.resnet import ResBlock
from branchynet.net import BranchyNet

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import torch
import torch.nn.functional as T
from torch import nn


class Peer(nn.Module):
    """A BranchyNet in PyTorch.

    Methods take NumPy arrays, x (B, ...) and t (B,), as BranchyNet's do, and return what those return.

    Args:
        net: a BranchyNet that trains with Adam and drops no samples in training.

    Attributes:
        thresholdExits: entropy (nats) below which a sample leaves at an exit, one for every exit but the last.
    """

    def __init__(self, net: BranchyNet) -> None:
        super().__init__()
        if net.opt != 'Adam' or not net.joint:
            raise ValueError(
                f'opt is {net.opt!r} and joint is {net.joint!r}: the peer has Adam and joint training only'
            )
        self.stages = nn.ModuleList(sequence(model[model.starti : model.endi]) for model in net.models)
        self.exits = nn.ModuleList(sequence(model[model.endi :]) for model in net.models)
        self.head = sequence(net.main[net.models[-1].endi :])
        self.weights = [model.weight for model in net.models]
        self.thresholdExits: Any = None
        self.main_adam = adam([*self.stages.parameters(), *self.head.parameters()], net.optimizer)
        self.exits_adam = adam(self.exits.parameters(), net.optimizers[0])

    def compile_modules(self) -> None:
        """Lets torch.compile make machine code of the stages, of the exits and of main's own links."""
        for modules in self.stages, self.exits:
            for k, module in enumerate(modules):
                modules[k] = torch.compile(module)
        self.head = torch.compile(self.head)

    def train_joint(self, x: np.ndarray, t: np.ndarray) -> tuple[list[float], list[float]]:
        """One joint step: (losses, accuracies) per exit."""
        self.train()
        h, labels = torch.from_numpy(x), torch.from_numpy(t).long()
        losses, accuracies = [], []
        for stage, exit in zip(self.stages, self.exits):
            h = stage(h)
            logits = exit(h)
            losses.append(T.cross_entropy(logits, labels))
            accuracies.append(_accuracy(logits, labels))
        self._step(sum(w * loss for w, loss in zip(self.weights, losses)), [self.main_adam, self.exits_adam])
        return [float(loss.detach()) for loss in losses], accuracies

    def train_main(self, x: np.ndarray, t: np.ndarray) -> tuple[float, float]:
        """One step of the baseline: (loss, accuracy)."""
        self.train()
        h, labels = torch.from_numpy(x), torch.from_numpy(t).long()
        for stage in self.stages:
            h = stage(h)
        logits = self.head(h)
        loss = T.cross_entropy(logits, labels)
        self._step(loss, [self.main_adam])
        return float(loss.detach()), _accuracy(logits, labels)

    def _step(self, loss: torch.Tensor, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        # Chainer's Adam moves main's head by its moments in joint training too, where it has no gradient.
        for param in self.head.parameters():
            param.grad = torch.zeros_like(param)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    @torch.inference_mode()
    def softmax(self, x: np.ndarray) -> list[np.ndarray]:
        """Softmax of every exit for every sample: a list of (B, C)."""
        self.eval()
        h = torch.from_numpy(x)
        result = []
        for stage, exit in zip(self.stages, self.exits):
            h = stage(h)
            result.append(T.softmax(exit(h), 1).numpy())
        return result

    @torch.inference_mode()
    def classify(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Early exit: (label, exit) of every sample; those that left at an exit are not carried on."""
        self.eval()
        h, left = torch.from_numpy(x), torch.arange(len(x))
        labels, exits = torch.empty(len(x), dtype=torch.long), torch.empty(len(x), dtype=torch.long)
        for k, (stage, exit) in enumerate(zip(self.stages, self.exits)):
            h = stage(h)
            prob = T.softmax(exit(h), 1)
            if k == len(self.exits) - 1:
                leaves = torch.ones(len(h), dtype=torch.bool)
            else:
                leaves = torch.special.entr(prob).sum(1) < self.thresholdExits[k]
            labels[left[leaves]] = prob[leaves].argmax(1)
            exits[left[leaves]] = k
            if leaves.all():
                break
            h, left = h[~leaves], left[~leaves]
        return labels.numpy(), exits.numpy()

    def pairs(self) -> Iterator[tuple[chainer.Parameter, torch.Tensor]]:
        """Every parameter beside the Chainer Parameter that it was copied from."""
        for module in self.modules():
            for name, other in _COPIED.get(type(module), ()):
                ours = getattr(module.link, name)
                if isinstance(ours, chainer.Parameter):
                    yield ours, getattr(module, other)


def _accuracy(logits: torch.Tensor, t: torch.Tensor) -> float:
    return float((logits.argmax(1) == t).float().mean())


def adam(params: Iterable[torch.Tensor], optimizer: Any) -> torch.optim.Adam:
    """torch.optim.Adam with the settings of Chainer's, and its place of epsilon."""
    hyper = optimizer.hyperparam
    result = torch.optim.Adam(params, hyper.alpha, (hyper.beta1, hyper.beta2), fused=True)
    steps = 0

    def set_epsilon(*_: Any) -> None:
        # PyTorch corrects the second moment's bias before epsilon is added, Chainer after.
        nonlocal steps
        steps += 1
        result.param_groups[0]['eps'] = hyper.eps / (1 - hyper.beta2**steps) ** 0.5

    result.register_step_pre_hook(set_epsilon)
    return result


# Links


def convert(link: chainer.Link) -> nn.Module:
    """The module that computes what a link does, with copies of its weights.

    Raises:
        TypeError: a link or a function that the three networks do not have.
    """
    if isinstance(link, branchynet.FL):
        if link.fn not in _FUNCTIONS:
            raise TypeError(
                '{} has no peer: expected one of {}'.format(
                    link.fn.__name__, ', '.join(fn.__name__ for fn in _FUNCTIONS)
                )
            )
        return _FUNCTIONS[link.fn](*link.args, **link.kwargs)
    if type(link) not in LINKS:
        raise TypeError(
            '{} has no peer: expected one of {}'.format(
                type(link).__name__, ', '.join(kind.__name__ for kind in [branchynet.FL, *LINKS])
            )
        )
    return LINKS[type(link)](link)


def sequence(links: Iterable[chainer.Link]) -> nn.Sequential:
    """nn.Sequential of the converted links."""
    return nn.Sequential(*(convert(link) for link in links))


# Names in Chainer and in PyTorch of what a module copies.
_WEIGHTS = [('W', 'weight'), ('b', 'bias')]
_COPIED = {
    nn.Conv2d: _WEIGHTS,
    nn.Linear: _WEIGHTS,
    nn.BatchNorm2d: [('gamma', 'weight'), ('beta', 'bias'), ('avg_mean', 'running_mean'), ('avg_var', 'running_var')],
}


def _copied(module: nn.Module, link: chainer.Link) -> nn.Module:
    module.link = link
    for name, other in _COPIED[type(module)]:
        value = getattr(link, name)
        if value is not None:
            getattr(module, other).data = torch.tensor(chainer.as_array(value))
    return module


def _conv(link: Any) -> nn.Module:
    out_size, in_size, *ksize = link.W.shape
    return _copied(
        nn.Conv2d(
            in_size * link.groups,
            out_size,
            ksize,
            link.stride,
            link.pad,
            link.dilate,
            link.groups,
            bias=link.b is not None,
        ),
        link,
    )


def _linear(link: Any) -> nn.Module:
    out_size, in_size = link.W.shape
    return nn.Sequential(nn.Flatten(), _copied(nn.Linear(in_size, out_size, link.b is not None), link))


def _batch_norm(link: Any) -> nn.Module:
    return _copied(nn.BatchNorm2d(link.gamma.size, link.eps, 1 - link.decay), link)


class _ResBlock(nn.Module):
    def __init__(self, block: ResBlock) -> None:
        super().__init__()
        self.stride = block.stride
        self.extra = block.out_size - block.in_size
        self.conv1, self.bn1 = convert(block.conv1), convert(block.bn1)
        self.conv2, self.bn2 = convert(block.conv2), convert(block.bn2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = T.relu(self.bn1(self.conv1(x)))
        h = self.bn2(self.conv2(h))
        if self.extra:
            x = T.pad(x, (0, 0, 0, 0, self.extra, 0))
        return T.relu(h + x[:, :, :: self.stride, :: self.stride])


LINKS: dict[type, Callable[[Any], nn.Module]] = {
    L.Convolution2D: _conv,
    L.Linear: _linear,
    L.BatchNormalization: _batch_norm,
    ResBlock: _ResBlock,
}


# Functions, with Chainer's arguments and defaults


def _max_pool(ksize: int, stride: int | None = None, pad: int = 0, cover_all: bool = True) -> nn.Module:
    return nn.MaxPool2d(ksize, stride, pad, ceil_mode=cover_all)


def _average_pool(ksize: int, stride: int | None = None, pad: int = 0) -> nn.Module:
    return nn.AvgPool2d(ksize, stride, pad)


def _local_response_norm(n: int = 5, k: float = 2, alpha: float = 1e-4, beta: float = 0.75) -> nn.Module:
    return nn.LocalResponseNorm(n, alpha * n, beta, k)  # PyTorch divides alpha by n


def _dropout(ratio: float = 0.5) -> nn.Module:
    return nn.Dropout(ratio)


_FUNCTIONS: dict[Any, Callable[..., nn.Module]] = {
    F.relu: nn.ReLU,
    F.max_pooling_2d: _max_pool,
    F.average_pooling_2d: _average_pool,
    F.local_response_normalization: _local_response_norm,
    F.dropout: _dropout,
}


# A net to be compared with


def assert_same_outputs(net: BranchyNet, peer: Peer, x: np.ndarray, rtol: float = 1e-4) -> None:
    """Raises AssertionError unless every exit's softmax for x (B, ...) equals Chainer's."""
    for ours, theirs in zip(net.get_SM(x), peer.softmax(x)):
        np.testing.assert_allclose(theirs, ours, rtol, atol=rtol * ours.max())


# ONNX Runtime, for inference


class _Session(nn.Module):
    """A module as ONNX Runtime runs it, for batches of any size like x (B, ...)."""

    def __init__(self, module: nn.Module, x: torch.Tensor) -> None:
        super().__init__()
        import onnxruntime

        model: Any = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # this exporter is deprecated; the new one needs more packages
            torch.onnx.export(
                module,
                (x,),
                model,
                input_names=['x'],
                output_names=['y'],
                dynamic_axes={'x': {0: 'batch'}, 'y': {0: 'batch'}},
                dynamo=False,
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(model.getvalue(), options, providers=['CPUExecutionProvider'])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.session.run(['y'], {'x': x.numpy()})[0])


def to_onnx(peer: Peer, x: np.ndarray) -> Peer:
    """Lets ONNX Runtime run a Peer's stages and exits, for softmax and classify; x (B, ...) is an example."""
    peer.eval()
    h = torch.from_numpy(x)
    for k, (stage, exit) in enumerate(zip(peer.stages, peer.exits)):
        with torch.no_grad():
            features = stage(h)
        peer.stages[k], peer.exits[k] = _Session(stage, h), _Session(exit, features)
        h = features
    return peer
