"""What a step asks of an optimizer, and how often it evaluates the gradient.

An optimizer is used by torch's own protocol, ``step()`` or ``step(closure)``. There are three
kinds:

- "plain": ``step()`` uses the gradients that are there;
- "evaluates": ``step(closure)`` calls the closure for every gradient, the first included (LBFGS);
- "re-evaluates": the first gradient is there before ``step(closure)``, which calls the closure at
  other weights (SAM, as its PyTorch versions have it, ours among them).

Which one it is shows in one step on small parameters. Whatever it is, `Passes` counts the gradient
evaluations where they happen.
"""

from __future__ import annotations

import contextlib
import inspect
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from flatbench.components import in_one_line
from flatbench.errors import UsageError
from flatbench.optim import frozen_batchnorm
from flatbench.training import optimizers
from flatbench.training.bygroup import Group
from flatbench.training.optimizers import Recipe
from flatbench.training.run import Stepping

SIDE = 4  # the longest side of a small parameter


class Passes:
    """The forward and backward passes over one batch that a step makes: call it as the closure.

    The first one is what is recorded of the step. BatchNorm's running statistics move there only.

    Attributes:
        count: how many passes were made.
        loss: the first one's, 0-d.
        outputs: the network's in the first one.
        later: the losses of the others.
    """

    loss: Tensor
    outputs: Tensor

    def __init__(
        self,
        model: nn.Module,
        evaluate: Callable[[], tuple[Tensor, Tensor]],
        after_first: Callable[[], None],
    ) -> None:
        """Take the parts of a pass.

        Args:
            model: the network.
            evaluate: returns the batch's loss, with its gradient, and the outputs without.
            after_first: is called once, when the first gradient is there.
        """
        self.count = 0
        self.later: list[Tensor] = []
        self._model = model
        self._evaluate = evaluate
        self._after_first = after_first

    def __call__(self) -> Tensor:
        """Make a pass, and return its loss. The gradients are then this pass's alone."""
        self.count += 1
        first = self.count == 1
        self._model.zero_grad()
        # optimizers call closures under no_grad
        with (
            torch.enable_grad(),
            contextlib.nullcontext() if first else frozen_batchnorm(self._model),
        ):
            loss, outputs = self._evaluate()
            loss.backward()  # type: ignore[no-untyped-call]
        if first:
            self.loss, self.outputs = loss.detach(), outputs
            self._after_first()
        else:
            self.later.append(loss.detach())
        return loss.detach()


def take(optimizer: Optimizer, stepping: Stepping, closure: Callable[[], Any]) -> None:
    """Take one step of an optimizer."""
    if stepping == "evaluates":
        optimizer.step(closure)
        return
    closure()
    if stepping == "plain":
        optimizer.step()
    else:
        optimizer.step(closure)


def enter_training(optimizer: Optimizer) -> None:
    """Bring the weights to where an optimizer takes gradients, if it tells the two apart.

    Schedule-Free does: it trains at one point and is evaluated at another.
    """
    if callable(train := getattr(optimizer, "train", None)):
        train()


def leave_training(optimizer: Optimizer) -> None:
    """Bring the weights to where an optimizer is evaluated, measured and saved."""
    if callable(leave := getattr(optimizer, "eval", None)):
        leave()


# --- which kind it is


def find(recipe: Recipe) -> Stepping:
    """Return how a row's optimizer steps; the row's own key ``closure`` comes first.

    Raises:
        UsageError: it can't be told, it does not step as the row says, or rho stands over an
            optimizer whose step needs a closure.
    """
    row = recipe.row
    said = row.closure
    if row.rho is not None and said is not None:
        raise UsageError(f"{recipe.where}.closure must be absent where rho is given, got {said!r}")
    if recipe.is_ours and said is None:
        return "plain" if row.rho is None else "re-evaluates"
    if said is not None:
        trial = _trial(recipe, said)
        if trial.error is not None or not trial.moved or not trial.calls:
            found = trial.said() if trial.error or trial.calls else "it never calls the closure"
            reason = f"closure = {said!r} does not fit {row.optimizer}"
            raise UsageError(f"{recipe.where}: {reason}: {found}")
        return said
    alone = _trial(recipe, "plain")
    if alone.error is None and alone.moved:
        return "plain" if row.rho is None else "re-evaluates"
    given = _trial(recipe, "evaluates", after_a_gradient=True)
    if row.rho is not None:
        why = f"{row.optimizer} needs a closure" if given.calls else alone.said()
        raise UsageError(
            f"{recipe.where}: rho needs an optimizer that steps without a closure: {why}"
        )
    if given.error is not None or not given.moved or not given.calls:
        raise UsageError(
            f"{recipe.where}: it can't be told how {row.optimizer} steps; closure must be "
            f'"evaluates" or "re-evaluates": without a closure {alone.said()}; '
            f"with one {given.said()}"
        )
    return "re-evaluates" if given.first_call_was_moved else "evaluates"


@dataclass(frozen=True)
class _Trial:
    """What one step on small parameters did."""

    calls: int  # of the closure, by the step
    first_call_was_moved: bool  # the weights were not where they had been before the step
    moved: bool  # after the step
    error: str | None

    def said(self) -> str:
        if self.error is not None:
            return f"it raises {self.error}"
        if not self.moved:
            return "it moves nothing"
        return f"it calls the closure {self.calls} times"


def _trial(recipe: Recipe, stepping: Stepping, after_a_gradient: bool = False) -> _Trial:
    with _own_chance():
        small = _Small(recipe, perturbs=False)
        if stepping == "plain" and _wants_closure(small.optimizer):
            return _Trial(0, False, False, "TypeError: its step takes a closure")
        enter_training(small.optimizer)
        before = small.weights()
        where: list[bool] = []  # at each call, whether the weights have moved

        def closure() -> Tensor:
            where.append(not torch.equal(small.weights(), before))
            return small.evaluate()

        if after_a_gradient:
            small.evaluate()
        error = None
        try:
            take(small.optimizer, stepping, closure)
        except Exception as raised:  # noqa: BLE001 - its code is anybody's
            error = in_one_line(raised)
        own = where if stepping == "evaluates" else where[1:]
        moved = not torch.equal(small.weights(), before)
        return _Trial(len(own), bool(own) and own[0], moved, error)


def _wants_closure(optimizer: Optimizer) -> bool:
    parameter = inspect.signature(optimizer.step).parameters.get("closure")
    return parameter is not None and parameter.default is parameter.empty


class _Small:
    """A recipe's optimizer on small parameters of the same dimensions and layout, on the CPU.

    Their loss is the square of a distance, so that no network is needed.
    """

    def __init__(self, recipe: Recipe, perturbs: bool = True) -> None:
        chance = torch.Generator().manual_seed(0)
        groups: list[Group] = []
        self.params: list[Tensor] = []
        for group in recipe.groups:
            small = []
            for p in group["params"]:
                shape = [min(side, SIDE) for side in p.shape]
                values = torch.randn(shape, generator=chance, dtype=torch.float64).to(p.dtype)
                if not p.is_contiguous() and p.is_contiguous(memory_format=torch.channels_last):
                    values = values.to(memory_format=torch.channels_last)
                small.append(nn.Parameter(values, requires_grad=p.requires_grad))
            self.params += small
            groups.append({**group, "params": small})
        # laid out in order, whatever the parameters are; torch 2.9's randn_like takes no generator
        self._targets = [torch.randn(p.shape, generator=chance, dtype=p.dtype) for p in self.params]
        self.optimizer = optimizers.make(recipe, groups, perturbs=perturbs)

    def evaluate(self) -> Tensor:
        """Set the gradients and return the loss."""
        with torch.enable_grad():
            distances = zip(self.params, self._targets, strict=True)
            loss = sum((p - t).square().sum() for p, t in distances if p.requires_grad)
            assert isinstance(loss, Tensor)
            for p in self.params:
                p.grad = None
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def weights(self) -> Tensor:
        return torch.cat([p.detach().double().flatten() for p in self.params])


@contextlib.contextmanager
def _own_chance() -> Iterator[None]:
    """Let what happens inside draw from torch's global generator without a trace."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(0)
    try:
        yield
    finally:
        torch.set_rng_state(state)


# --- whether it follows its groups, and can be resumed


def follows_rates(recipe: Recipe, stepping: Stepping) -> bool:
    """Return whether steps follow the learning rates in the groups, where a schedule sets them.

    An optimizer around another one may have groups that the other one does not see.

    Raises:
        UsageError: a step raised an error of its own.
    """
    with _own_chance():
        whole, halved = _Small(recipe), _Small(recipe)
        _halve_rates(halved)
        for small in (whole, halved):
            torch.default_generator.manual_seed(0)
            try:
                _steps(small, stepping)
            except Exception as error:
                raise UsageError(f"{recipe.where}: a step raises {in_one_line(error)}") from error
        return not torch.equal(whole.weights(), halved.weights())


def why_not_resumable(recipe: Recipe, stepping: Stepping) -> str | None:
    """Return in one line why a checkpoint does not hold an optimizer's state, or None.

    Tried on small parameters: steps after a checkpoint against the same ones without it. Many a
    SAM gives its own state in ``state_dict`` and forgets its base's.
    """
    with _own_chance():
        try:
            gone_on, resumed = _Small(recipe), _Small(recipe)
            _steps(gone_on, stepping)
            leave_training(gone_on.optimizer)
            file = io.BytesIO()
            torch.save(gone_on.optimizer.state_dict(), file)
            file.seek(0)
            with torch.no_grad():
                for ours, theirs in zip(resumed.params, gone_on.params, strict=True):
                    ours.copy_(theirs)
            resumed.optimizer.load_state_dict(torch.load(file, weights_only=True))
            for small in (gone_on, resumed):
                _halve_rates(small)  # as a schedule does: the groups must still be its own
                torch.default_generator.manual_seed(1)
                _steps(small, stepping)
        except Exception as error:  # noqa: BLE001 - its code is anybody's
            return in_one_line(error)
        if torch.equal(gone_on.weights(), resumed.weights()):
            return None
    return "after load_state_dict its steps are not what they were"


def _steps(small: _Small, stepping: Stepping) -> None:
    enter_training(small.optimizer)
    for _ in range(2):
        take(small.optimizer, stepping, small.evaluate)


def _halve_rates(small: _Small) -> None:
    for group in small.optimizer.param_groups:
        if "lr" in group:
            group["lr"] *= 0.5
