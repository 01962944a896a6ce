"""SAM as most PyTorch code has it: two half-steps, and step(closure) for the second pass.

The first backward pass comes before the step. Its state_dict forgets the base's, as many do.
"""

import torch


class SAM(torch.optim.Optimizer):
    def __init__(self, params, base_optimizer, rho=0.05, **options):
        super().__init__(params, {"rho": rho, **options})
        self.base_optimizer = base_optimizer(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self, zero_grad=False):
        every = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in every]).norm()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["old"] = p.clone()
                    p.add_(p.grad * (group["rho"] / (norm + 1e-12)))
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad=False):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.copy_(self.state[p]["old"])
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is not None, "SAM needs a closure"
        closure = torch.enable_grad()(closure)
        self.first_step(zero_grad=True)
        closure()
        self.second_step()


class Evaluating(SAM):
    """Makes the first pass itself."""

    @torch.no_grad()
    def step(self, closure):
        with torch.enable_grad():
            closure()
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()


class Careless(SAM):
    """Leaves it to the closure to turn gradients on."""

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is not None
        self.first_step(zero_grad=True)
        closure()
        self.second_step()


class Strange(SAM):
    """Needs to be told its closure in a way of its own."""

    def step(self, closure=None):
        raise RuntimeError("call set_closure\nfirst")


class Still(torch.optim.Optimizer):
    """Moves nothing."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    def step(self, closure=None):
        pass


class Noisy(torch.optim.SGD):
    """Draws from torch's global generator."""

    @torch.no_grad()
    def step(self, closure=None):
        super().step()
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(1e-3 * torch.randn(p.shape))


class Deaf(torch.optim.SGD):
    """Its steps do not follow the learning rates in its groups."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["lr"] = 0.05
        super().step()
