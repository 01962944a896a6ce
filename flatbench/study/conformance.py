"""Does an optimizer do what SAM says? Each line of the answer is a property, tried in a few steps.

From a user's own tests::

    from flatbench.study.conformance import assert_conforms

    def test_my_sam():
        assert_conforms("./mysam.py:MySAM", {"base_optimizer": torch.optim.SGD, "lr": 0.1})

docs/conformance.md says what each line means.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from flatbench import components
from flatbench.components import Component, in_one_line
from flatbench.errors import UsageError
from flatbench.study.problem import (
    Problem,
    Subject,
    Wrong,
    copies,
    equal,
    flat,
    problem,
    recipe_of,
    rho_of,
    set_rates,
    wrapped,
)
from flatbench.training import stepping

Verdict = Literal["holds", "fails", "left to you", "not applicable"]
BASES: Final = ("base_optimizer", "base", "optimizer")  # what SAMs call the class that they wrap
DEFAULT_BASE: Final = {"lr": 0.1, "momentum": 0.9}
CLOSE: Final = 1e-5  # relative, float32


@dataclass(frozen=True)
class Line:
    """One property, whether it holds, and what was seen."""

    name: str
    verdict: Verdict
    detail: str = ""


class LeftToCaller(Exception):
    """A property that a class can't see to by itself; the message says who must."""


# --- the lines


def _two_gradients(subject: Subject) -> str:
    tried = problem()
    tried.step(subject.on([{"params": tried.params}]), subject.kind)
    if len(tried.seen) != 2:
        raise Wrong(f"a step evaluates {len(tried.seen)} gradients")
    return "2 a step"


def expected(weights: Tensor, gradient: Tensor, rho: float) -> dict[str, Tensor]:
    """Return e(w), flat and float64, as each published form of SAM has it, by the form's name."""
    forms = {"SAM (Foret et al. 2021)": torch.ones_like(weights), "ASAM, T = |w|": weights.abs()}
    return {name: rho * t.square() * gradient / (t * gradient).norm() for name, t in forms.items()}


def _perturbation(subject: Subject) -> str:
    tried = problem()
    return _form(subject, tried, subject.on([{"params": tried.params}]))


def _one_norm(subject: Subject) -> str:
    tried = problem()
    _form(subject, tried, subject.on([{"params": [p]} for p in tried.params]))
    return "over three groups"


def _form(subject: Subject, tried: Problem, optimizer: Optimizer) -> str:
    """Return whose perturbation a step makes."""
    tried.step(optimizer, subject.kind)
    e = flat(tried.perturbation())
    weights = flat(tried.seen[0])
    gradient = flat([g for g in tried.gradients[0] if g is not None])
    rho = rho_of(subject, optimizer)
    forms = expected(weights, gradient, rho)
    for name, form in forms.items():
        if float((e - form).norm()) <= 100 * CLOSE * float(form.norm()):
            return f"{name}: norm {float(e.norm()):.4g} at rho = {rho:g}"
    sam = forms["SAM (Foret et al. 2021)"]
    cosine = float(e @ sam / (e.norm() * sam.norm())) if float(e.norm()) else 0.0
    raise Wrong(
        f"norm {float(e.norm()):.4g} at rho = {rho:g}, cosine to the gradient {cosine:.4g}: "
        "neither SAM's nor ASAM's"
    )


def _restore(subject: Subject) -> str:
    # so small beside e that w + e − e is not w in float32
    tried = problem(size=1e-4)
    before = copies(tried.params)
    optimizer = subject.on([{"params": tried.params}])
    set_rates(optimizer, 0.0)
    for _ in range(3):
        tried.step(optimizer, subject.kind)
    if not equal(tried.params, before):
        gap = float((flat(tried.params) - flat(before)).abs().max())
        raise Wrong(f"with lr = 0 three steps move the weights by up to {gap:.2g}")
    return "bit for bit"


def _base_at_w(subject: Subject) -> str:
    tried = problem()
    optimizer = subject.on([{"params": tried.params}])
    base = next((o for o in wrapped(optimizer) if o is not optimizer), None)
    if base is None:
        return ""
    twins = [nn.Parameter(p.detach().clone()) for p in tried.params]
    known = {k: v for k, v in base.param_groups[0].items() if k in _own_options(base)}
    reference: Any = type(base)(twins, **known)
    for number in range(3):
        tried.step(optimizer, subject.kind)
        for twin, gradient in zip(twins, tried.gradients[-1], strict=True):
            twin.grad = gradient
        reference.step()
        ours, theirs = flat(tried.params), flat(twins)
        if float((ours - theirs).norm()) > CLOSE * float(theirs.norm()):
            raise Wrong(f"step {number + 1} is not {type(base).__name__}'s with the 2nd gradient")
    return f"three steps of {type(base).__name__}, momentum included"


def _own_options(base: Optimizer) -> set[str]:
    return {name for name in components.parameters(type(base)) if name not in ("params", "self")}


def _state_dict(subject: Subject) -> str:
    recipe = recipe_of(subject.component, subject.options, [{"params": problem().params}])
    why = stepping.why_not_resumable(recipe, subject.kind)
    if why is not None:
        raise Wrong(f"{why}: the base's state?")
    return "steps go on bit for bit"


def _without_gradients(subject: Subject) -> str:
    said = []
    for first, later, what in (
        (False, False, "in neither pass"),
        (True, False, "in the first alone"),
        (False, True, "in the second alone"),
    ):
        tried = problem()
        tried.first, tried.later = (True, True, first), (True, True, later)
        before = copies(tried.params)
        optimizer = subject.on([{"params": tried.params}])
        set_rates(optimizer, 0.0)
        try:
            tried.step(optimizer, subject.kind)
        except Exception as error:
            raise Wrong(f"a gradient {what}: {in_one_line(error)}") from error
        if not equal(tried.params, before):
            raise Wrong(f"a gradient {what}: the weights do not come back")
        said.append(what)
    return ", ".join(said)


def _zero_gradients(subject: Subject) -> str:
    tried = problem()
    tried.spoil = 0.0
    optimizer = subject.on([{"params": tried.params}])
    tried.step(optimizer, subject.kind)
    if not equal(tried.seen[0], tried.seen[-1]) or not bool(flat(tried.params).isfinite().all()):
        raise Wrong("a gradient of zero perturbs the weights")
    return "no perturbation, no NaN"


def _not_finite(subject: Subject) -> str:
    for bad in (float("inf"), float("nan")):
        tried = problem()
        tried.spoil = bad
        before = copies(tried.params)
        optimizer = subject.on([{"params": tried.params}])
        tried.step(optimizer, subject.kind)
        if not bool(flat(tried.params).isfinite().all()):
            raise Wrong(f"a gradient of {bad} in the first pass writes NaN into the weights")
        if not equal(tried.params, before):
            raise Wrong(f"a gradient of {bad} in the first pass still moves the weights")
    return "the step is skipped"


def _storage(subject: Subject) -> str:
    tried = problem()
    places = [p.data_ptr() for p in tried.params]
    optimizer = subject.on([{"params": tried.params}])
    for _ in range(2):
        tried.step(optimizer, subject.kind)
    if [p.data_ptr() for p in tried.params] != places:
        raise Wrong("a step moves the weights' storage (p.data = ...)")
    return "in place"


def _half_steps(subject: Subject) -> str | None:
    whole, halves = problem(), problem()
    one = subject.on([{"params": whole.params}])
    other: Any = subject.on([{"params": halves.params}])
    if not all(callable(getattr(other, name, None)) for name in ("first_step", "second_step")):
        return None
    for _ in range(2):
        whole.step(one, subject.kind)
        halves.seen.clear()
        halves()
        other.first_step(zero_grad=True)
        if any(p.grad is not None and bool(p.grad.any()) for p in halves.params):
            raise Wrong("first_step(zero_grad=True) leaves gradients")
        halves()
        other.second_step(zero_grad=True)
    if not equal(whole.params, halves.params):
        raise Wrong("first_step and second_step give other weights than step")
    return "as step, bit for bit"


def _batchnorm(subject: Subject) -> str:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        norm = nn.BatchNorm1d(6)
        model = nn.Sequential(nn.Linear(4, 6), norm, nn.Linear(6, 3))
        x = torch.randn(8, 4)
    before = (norm.momentum, norm.track_running_stats, norm.training)

    def closure() -> Tensor:
        model.zero_grad()
        with torch.enable_grad():
            loss = model(x).square().mean()
            loss.backward()
        return loss.detach()  # type: ignore[no-any-return]

    stepping.take(subject.on([{"params": list(model.parameters())}]), subject.kind, closure)
    if (norm.momentum, norm.track_running_stats, norm.training) != before:
        raise Wrong("after a step the BatchNorm modules are not as they were")
    moved = int(norm.num_batches_tracked or 0)
    if moved != 1:
        raise LeftToCaller(
            f"they move {moved} times a step: freeze them in the second pass "
            "(flatbench.optim.frozen_batchnorm; flatbench's trainer does)"
        )
    return "they move in the first pass alone"


LINES: Final[Mapping[str, Callable[[Subject], str | None]]] = {
    "two gradients a step": _two_gradients,
    "perturbation": _perturbation,
    "one norm over all groups": _one_norm,
    "exact restore": _restore,
    "the base steps at w": _base_at_w,
    "state_dict": _state_dict,
    "parameters without gradients": _without_gradients,
    "gradients of zero": _zero_gradients,
    "gradients that are not finite": _not_finite,
    "weights stay in place": _storage,
    "first_step and second_step": _half_steps,
    "BatchNorm's statistics": _batchnorm,
}


def check(
    reference: str | type[Optimizer],
    options: Mapping[str, Any] | None = None,
    folder: Path | None = None,
) -> list[Line]:
    """Return what holds of a SAM optimizer, a line for each property.

    Args:
        reference: its class, or a reference to it as a protocol has it.
        options: what it is constructed with, beside the parameters. A base optimizer that it needs
            and that is not given is torch's SGD with momentum.
        folder: what a file's path is relative to; None means the current folder.

    Raises:
        UsageError: the class is not there, can't be constructed, or its step takes one gradient.
    """
    subject = subject_of(reference, options or {}, folder or Path.cwd())
    return [_tried(name, line, subject) for name, line in LINES.items()]


def _tried(name: str, line: Callable[[Subject], str | None], subject: Subject) -> Line:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            detail = line(subject)
    except Wrong as seen:
        return Line(name, "fails", str(seen))
    except LeftToCaller as seen:
        return Line(name, "left to you", str(seen))
    except Exception as error:  # noqa: BLE001 - its code is anybody's
        return Line(name, "fails", in_one_line(error))
    return Line(name, "holds", detail) if detail else Line(name, "not applicable", "it has none")


def assert_conforms(
    reference: str | type[Optimizer],
    options: Mapping[str, Any] | None = None,
    folder: Path | None = None,
) -> None:
    """Raise an AssertionError that names every property that fails; see `check`."""
    wrong = [f"{x.name}: {x.detail}" for x in check(reference, options, folder) if is_wrong(x)]
    if wrong:
        raise AssertionError("; ".join(wrong))


def is_wrong(line: Line) -> bool:
    """Return whether a property fails."""
    return line.verdict == "fails"


def subject_of(
    reference: str | type[Optimizer], options: Mapping[str, Any], folder: Path
) -> Subject:
    """Return a class with its options, and how it steps.

    Raises:
        UsageError: as `check`.
    """
    if isinstance(reference, str):
        if not components.is_known(reference, ()):
            raise UsageError(f"check: the optimizer must be {components.FORMS}, got {reference!r}")
        component = components.find(reference, folder, {}, "check")
    else:
        component = Component(reference.__name__, reference, None)
    found = dict(components.resolved(dict(options), folder, "check: --options"))
    for base in BASES:
        if components.needs(component, base) and base not in found:
            found = {base: torch.optim.SGD, **DEFAULT_BASE, **found}
    found = components.arguments(component, found, "check: --options", positional=1)
    groups = [{"params": problem().params}]
    recipe = recipe_of(component, found, groups)
    kind = stepping.find(recipe)
    if kind == "plain":
        raise UsageError(f"check: {component.reference} steps with one gradient: it is no SAM")
    return Subject(component, found, kind)
