"""Variants of the networks: as the released code builds them, or as the paper describes them."""

from __future__ import annotations

from typing import Any

from branchynet.net import BranchyNet


def check(variant: str) -> None:
    """Checks the name of a variant.

    Args:
        variant: 'code' or 'paper'.

    Raises:
        ValueError: the variant has another name.
    """
    if variant not in ('code', 'paper'):
        raise ValueError(f"variant is {variant!r}: expected 'code' or 'paper'")


def as_described(net: BranchyNet, variant: str) -> BranchyNet:
    """Sets the optimiser of a variant.

    Args:
        net: a BranchyNet.
        variant: 'paper' sets beta1 of Adam to the paper's 0.99; 'code' changes nothing.

    Returns:
        The same net.
    """
    if variant == 'paper' and net.opt == 'Adam':
        optimizers: list[Any] = [net.optimizer, *net.optimizers]  # Adam has beta1, an Optimizer in general has not
        for optimizer in optimizers:
            optimizer.beta1 = 0.99
    return net
