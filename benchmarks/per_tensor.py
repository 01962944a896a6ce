"""The SAM family as the well-known scripts write it: Python loops over tensors, and temporaries.

Written for the comparison, after the habits of public code rather than any one file of it. The
rules are those of `flatbench.optim`: where public code departs from a paper, the paper is followed,
so that both sides do the same work.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class PerTensorSAM:
    """SAM and ASAM.

    The scripts put w back by ``p.data = saved``, which costs nothing but moves p; in a graph
    nothing may move, so there it is a copy.
    """

    passes = 2

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        base: Any,
        rho: float,
        adaptive: bool = False,
        in_place: bool = False,
    ) -> None:
        self.params, self.base = list(params), base
        self.rho, self.adaptive, self.in_place = rho, adaptive, in_place
        self.saved: dict[nn.Parameter, Tensor] = {}
        self.first: dict[nn.Parameter, Tensor] = {}

    def direction(self, p: nn.Parameter) -> Tensor:
        """Return what p is climbed along."""
        assert p.grad is not None
        return p.grad

    def perturbed(self) -> list[nn.Parameter]:
        """Return the parameters that are perturbed."""
        return self.params

    @torch.no_grad()
    def first_step(self) -> None:
        """Climb: w + e(w)."""
        moved = self.perturbed()
        directions = [self.direction(p) for p in moved]
        norms = [
            (p.abs() * d if self.adaptive else d).norm()
            for p, d in zip(moved, directions, strict=True)
        ]
        scale = self.rho / (torch.stack(norms).norm() + 1e-12)
        for p, d in zip(moved, directions, strict=True):
            self.saved[p] = p.detach().clone()
            p.add_((p.pow(2) if self.adaptive else 1.0) * d * scale)

    def mix(self) -> None:
        """Change the second gradients into what the base steps with."""

    @torch.no_grad()
    def second_step(self) -> None:
        """Put w back, and let the base optimizer step."""
        self.put_back()
        self.mix()
        self.base.step()

    def put_back(self) -> None:
        """Put w back."""
        for p, saved in self.saved.items():
            if self.in_place:
                p.copy_(saved)
            else:
                p.data = saved
        self.saved = {}

    @torch.no_grad()
    def step(self) -> None:
        """Take a step of one gradient."""
        self.base.step()


class PerTensorFriendly(PerTensorSAM):
    """F-SAM."""

    def __init__(self, *args: Any, sigma: float, lmbda: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sigma, self.lmbda = sigma, lmbda
        self.averages: dict[nn.Parameter, Tensor] = {}

    def direction(self, p: nn.Parameter) -> Tensor:
        """Return the gradient less its average, which learns it."""
        assert p.grad is not None
        if p not in self.averages:
            self.averages[p] = p.grad.clone()
            return p.grad
        d = p.grad - self.sigma * self.averages[p]
        self.averages[p] = self.lmbda * self.averages[p] + (1 - self.lmbda) * p.grad
        return d


class PerTensorNormalization(PerTensorSAM):
    """SAM-ON."""

    def __init__(self, *args: Any, only: list[Tensor], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.only = [p for p in self.params if any(p is q for q in only)]

    def perturbed(self) -> list[nn.Parameter]:
        """Return the normalisation layers' parameters."""
        return self.only


class PerTensorGSAM(PerTensorSAM):
    """GSAM."""

    def __init__(self, *args: Any, alpha: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.alpha = alpha

    def direction(self, p: nn.Parameter) -> Tensor:
        """Return the gradient, and keep a copy."""
        assert p.grad is not None
        self.first[p] = p.grad.clone()
        return p.grad

    def products(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return <g, g_s>, <g, g> and <g_s, g_s>."""
        pairs = [(self.first[p], p.grad) for p in self.params if p.grad is not None]
        dot = torch.stack([(g * s).sum() for g, s in pairs]).sum()
        firsts = torch.stack([(g * g).sum() for g, _ in pairs]).sum()
        seconds = torch.stack([(s * s).sum() for _, s in pairs]).sum()
        return dot, firsts, seconds

    def mix(self) -> None:
        """Take alpha times the part of g across g_s away."""
        dot, _, seconds = self.products()
        for p in self.params:
            assert p.grad is not None
            across = self.first[p] - dot / (seconds + 1e-12) * p.grad
            p.grad = p.grad - self.alpha * across


class PerTensorLook(PerTensorGSAM):
    """LookSAM with k = 2."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.passes = 2
        self.across: dict[nn.Parameter, Tensor] = {}

    def mix(self) -> None:
        """Keep the part of g_s across g."""
        dot, firsts, _ = self.products()
        for p in self.params:
            assert p.grad is not None
            self.across[p] = p.grad - dot / (firsts + 1e-12) * self.first[p]
        self.passes = 1

    @torch.no_grad()
    def step(self) -> None:
        """Step with the gradient and what was kept."""
        gradients = [p.grad for p in self.params if p.grad is not None]
        length = torch.stack([g.norm() for g in gradients]).norm()
        kept = torch.stack([v.norm() for v in self.across.values()]).norm()
        for p in self.params:
            assert p.grad is not None
            p.grad = p.grad + self.alpha * length / (kept + 1e-12) * self.across[p]
        self.base.step()
        self.passes = 2


class PerTensorMomentum(PerTensorSAM):
    """Momentum-SAM."""

    passes = 1

    @torch.no_grad()
    def step(self) -> None:
        """Put w back, step, and look ahead."""
        self.put_back()
        self.base.step()
        states = [(p, self.base.state[p]) for p in self.params]
        momenta = [
            (p, s["momentum_buffer"] if "momentum_buffer" in s else s["exp_avg"]) for p, s in states
        ]
        norm = torch.stack([v.norm() for _, v in momenta]).norm()
        for p, v in momenta:
            self.saved[p] = p.detach().clone()
            p.sub_(self.rho / (norm + 1e-12) * v)


class PerTensorParts(PerTensorSAM):
    """m-SAM."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sums: dict[nn.Parameter, Tensor] = {}
        self.parts = 0

    @torch.no_grad()
    def end_part(self) -> None:
        """Put w back, and add the gradients up."""
        self.put_back()
        self.parts += 1
        for p in self.params:
            assert p.grad is not None
            self.sums[p] = self.sums[p] + p.grad if p in self.sums else p.grad.clone()

    @torch.no_grad()
    def second_step(self) -> None:
        """Step with the mean."""
        for p, total in self.sums.items():
            p.grad = total / self.parts
        self.sums, self.parts = {}, 0
        self.base.step()
