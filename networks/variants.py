"""What the paper describes and the released code does differently."""


def check(variant):
    """Raises ValueError unless variant is 'code' or 'paper'."""
    if variant not in ('code', 'paper'):
        raise ValueError(f"variant is {variant!r}: expected 'code' or 'paper'")


def as_described(net, variant):
    """The BranchyNet, in the variant 'paper' with the beta1 of Adam that the paper states."""
    if variant == 'paper' and net.opt == 'Adam':
        for optimizer in [net.optimizer, *net.optimizers]:
            optimizer.beta1 = 0.99
    return net
