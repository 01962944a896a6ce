"""A small problem to watch an optimizer's steps on: weights, and what each pass saw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from flatbench.components import Component
from flatbench.protocols.protocol import Row
from flatbench.training import optimizers, stepping
from flatbench.training.bygroup import Rule
from flatbench.training.run import Stepping


class Wrong(Exception):
    """A property does not hold; the message says what was seen."""


@dataclass(frozen=True)
class Subject:
    """An optimizer's class with its options, as it is made on any parameters."""

    component: Component
    options: Mapping[str, Any]
    kind: Stepping

    def on(self, groups: Sequence[Mapping[str, Any]]) -> Optimizer:
        """Return the optimizer on parameter groups."""
        made = recipe_of(self.component, self.options, groups)
        return optimizers.make(made, made.groups)


def recipe_of(
    component: Component, options: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]
) -> optimizers.Recipe:
    """Return how a class is made on parameter groups, with these options."""
    rule = Rule(component, "check", dict(options))
    row = Row("checked", component.reference)
    listed = [dict(group) for group in groups]
    return optimizers.Recipe(row, "check", rule, listed, [rule] * len(listed))


@dataclass
class Problem:
    """A loss of a few tensors whose gradient is known, and what a step did with it.

    Attributes:
        params: the weights.
        scales: what multiplies each one's part of the loss.
        first: which of them have a gradient in the first pass.
        later: which have one in the later passes.
        spoil: what is put into the first pass's gradients, if anything.
        seen: the weights at each pass.
        gradients: each pass's gradients; None where there is none.
    """

    params: list[nn.Parameter]
    scales: Sequence[float]
    first: Sequence[bool]
    later: Sequence[bool]
    spoil: float | None = None
    seen: list[list[Tensor]] = field(default_factory=list)
    gradients: list[list[Tensor | None]] = field(default_factory=list)

    def __call__(self) -> Tensor:
        """Make a pass: the gradients are then this pass's alone."""
        has = self.first if not self.seen else self.later
        self.seen.append(copies(self.params))
        for p in self.params:
            p.grad = None
        with torch.enable_grad():
            loss = torch.zeros(())
            for p, scale, is_used in zip(self.params, self.scales, has, strict=True):
                if is_used:
                    loss = loss + scale * (0.5 * p.square().sum() + torch.sin(3 * p).sum() / 3)
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
        if self.spoil is not None and len(self.seen) == 1:
            for p in self.params:
                if p.grad is not None:
                    p.grad.fill_(self.spoil)
        self.gradients.append([None if p.grad is None else p.grad.clone() for p in self.params])
        return loss.detach()

    def step(self, optimizer: Optimizer, kind: Stepping) -> None:
        """Take one step, and forget what earlier ones did."""
        self.seen.clear()
        self.gradients.clear()
        stepping.take(optimizer, kind, self)

    def perturbation(self) -> list[Tensor]:
        """Return by how much the second pass's weights differ from the first's, float64."""
        if len(self.seen) < 2:
            raise Wrong(f"a step made {len(self.seen)} pass(es)")
        return [b.double() - a.double() for a, b in zip(self.seen[0], self.seen[1], strict=True)]


def problem(size: float = 1.0, scales: Sequence[float] = (1.0, 30.0, 0.1)) -> Problem:
    """Return a problem of three tensors, of 1, 2 and 4 dimensions, of about this size."""
    chance = torch.Generator().manual_seed(0)
    shapes = ((7,), (5, 6), (3, 2, 2, 2))
    params = [nn.Parameter(size * torch.randn(s, generator=chance)) for s in shapes]
    return Problem(params, scales, (True,) * 3, (True,) * 3)


def copies(params: Sequence[Tensor]) -> list[Tensor]:
    """Return detached copies."""
    return [p.detach().clone() for p in params]


def equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Return whether all tensors are the same, bit for bit but for the sign of zero."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def flat(parts: Sequence[Tensor]) -> Tensor:
    """Return tensors of any shape as one float64 vector."""
    return torch.cat([part.detach().double().reshape(-1) for part in parts])


def wrapped(optimizer: Optimizer) -> Iterator[Optimizer]:
    """Yield an optimizer and those that it wraps."""
    yield optimizer
    for value in vars(optimizer).values():
        if isinstance(value, Optimizer):
            yield from wrapped(value)


def set_rates(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of an optimizer and of those that it wraps."""
    for one in wrapped(optimizer):
        for group in one.param_groups:
            group["lr"] = rate


def rho_of(subject: Subject, optimizer: Optimizer) -> float:
    """Return the radius of an optimizer's perturbation."""
    for group in optimizer.param_groups:
        if "rho" in group:
            return float(group["rho"])
    found = subject.options.get("rho")
    if found is None:
        raise Wrong("no rho in its param_groups nor in its options")
    return float(found)
