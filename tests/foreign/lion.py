"""A small optimizer of somebody else's: Lion (Chen et al. 2023, arXiv:2302.06675)."""

import torch


class Lion(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
        if lr <= 0:
            raise ValueError(f"lr must be above 0,\ngot {lr}")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            one, two = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * torch.sign(mean.lerp(p.grad, 1 - one)))
                mean.lerp_(p.grad, 1 - two)


def made(params, lr=0.01):
    """A function in the place of a class."""
    return Lion(params, lr)


def not_one(params):
    return "no optimizer"


class Fused(Lion):
    """It means by these names something of its own."""

    def __init__(self, params, lr=1e-3, fused=False, capturable=False):
        assert not fused
        assert not capturable
        assert isinstance(lr, float)
        super().__init__(params, lr)


class Greedy(Lion):
    """It takes whatever it is given, and then refuses."""

    def __init__(self, params, **options):
        if "size" in options:
            raise TypeError("size is\nnot mine")
        super().__init__(params, **options)


class Rateless(torch.optim.Optimizer):
    """Without a learning rate."""

    def __init__(self, params, scale=0.01):
        super().__init__(params, {"scale": scale})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["scale"] * p.grad)
