"""The optimizer of a row: from what the protocol says to an object with torch's own protocol.

`recipe` resolves and checks everything that the row names. `make` builds the optimizer on the
recipe's groups, or on others of the same form, such as the small ones of
`flatbench.training.stepping`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from flatbench import components
from flatbench.components import Component
from flatbench.errors import UsageError
from flatbench.optim import (
    GSAM,
    SAM,
    FriendlySAM,
    HalfSteps,
    LateSAM,
    LookSAM,
    MicroBatchSAM,
    MomentumSAM,
    NormalizationSAM,
    PeriodicSAM,
    normalization_parameters,
)
from flatbench.optim.base import SAMS_OWN, is_torchs, prefer_fused
from flatbench.protocols import methods
from flatbench.protocols.cases import Case
from flatbench.protocols.protocol import Row
from flatbench.protocols.schema import quoted
from flatbench.training.bygroup import ByGroup, Group, Rule

OURS: Mapping[str, type[Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


@dataclass(frozen=True)
class Recipe:
    """How the optimizer of a row is made on one model's parameters.

    Attributes:
        where: protocol and row, to open an error with.
        rule: the row's own optimizer and options.
        groups: the parameter groups, without an optimizer of their own.
        rules: one a group: the row's, or that of the group's own optimizer.
        normalization: places of normalisation layers' parameters: group, and number in it.
        steps: how many steps the training has.
    """

    row: Row
    where: str
    rule: Rule
    groups: list[Group]
    rules: list[Rule]
    normalization: frozenset[tuple[int, int]] = frozenset()
    steps: int = 0

    @property
    def is_ours(self) -> bool:
        """Whether all of it is named by flatbench's short names, so that its step is known."""
        return self.row.optimizer in OURS and self.row.groups is None


def recipe(case: Case, model: nn.Module, steps: int) -> Recipe:
    """Resolve and check a row's optimizer, its options and its groups.

    Args:
        case: whose row.
        model: the network, on whose parameters it is going to be made.
        steps: how many steps the training has, all epochs together.

    Raises:
        UsageError: something that the row names is not there, an option is unknown or missing, or
            the groups do not hold each parameter once.
    """
    row, folder = case.row, case.protocol.folder
    where = f"protocol {case.protocol.name}: optimizers.{quoted(row.name)}"
    rule = _rule(
        components.find(row.optimizer, folder, OURS, f"{where}.optimizer"),
        components.resolved(_options(row), folder, f"{where}.options"),
        f"{where}.options",
    )
    if row.rho is not None:
        _check_names(rule)
    if row.groups is None:
        groups: list[Group] = [{"params": list(model.parameters())}]
        layers = _normalization(model, groups, row, where)
        return Recipe(row, where, rule, groups, [rule], layers, steps)
    where_groups = f"{where}.groups"
    function = components.find(row.groups, folder, {}, where_groups)
    found = components.called(function, where_groups, model, **_asked(function, rule, where_groups))
    groups = _checked(found, model, f"{where_groups}: {row.groups}")
    rules = []
    for i, group in enumerate(groups):
        if "optimizer" not in group:
            rules.append(rule)
            continue
        what, where_group = group.pop("optimizer"), f"{where_groups}: group {i}"
        if isinstance(what, str):
            own = components.find(what, folder, OURS, where_group)
        else:
            own = Component(getattr(what, "__name__", repr(what)), what, None)
        # under SAM a group may have a rho of its own, which is none of its optimizer's
        no_options = ("params", *SAMS_OWN) if row.rho is not None else ("params",)
        options = {key: value for key, value in group.items() if key not in no_options}
        rules.append(_rule(own, options, where_group))
        if row.rho is not None:
            _check_names(rules[-1])
    layers = _normalization(model, groups, row, where)
    return Recipe(row, where, rule, groups, rules, layers, steps)


def _asked(function: Component, rule: Rule, where: str) -> dict[str, Any]:
    """Return those of a row's options that its function of groups asks for.

    It asks by a parameter of that name without a default: so one rate, which is tuned, can serve
    groups with optimizers of their own.

    Raises:
        UsageError: it asks for something that the row does not have.
    """
    options = {k: v for k, v in rule.options.items() if components.needs(function, k)}
    return components.arguments(function, {}, where, given=options, positional=1)


def _normalization(
    model: nn.Module, groups: Sequence[Group], row: Row, where: str
) -> frozenset[tuple[int, int]]:
    """Return where in the groups the parameters of normalisation layers are.

    Raises:
        UsageError: the row's method perturbs them alone, and there is none.
    """
    own = set(normalization_parameters(model))
    found = frozenset(
        (i, k) for i, group in enumerate(groups) for k, p in enumerate(group["params"]) if p in own
    )
    if isinstance(row.method, methods.Normalization) and not found:
        raise UsageError(
            f'{where}.perturbation: method = "sam-on" needs a network with normalisation layers, '
            f"{type(model).__name__} has none"
        )
    return found


def _options(row: Row) -> dict[str, Any]:
    """Return a row's options, those that have short forms included."""
    options: dict[str, Any] = {}
    if row.optimizer in OURS:
        options = {"lr": row.lr, "weight_decay": row.weight_decay}
        if row.optimizer == "sgd":
            options |= {"momentum": row.momentum, "nesterov": row.nesterov}
        else:
            options["betas"] = row.betas
    return options | row.options


def _rule(component: Component, options: dict[str, Any], where: str) -> Rule:
    return Rule(component, where, components.arguments(component, options, where, positional=1))


def _check_names(rule: Rule) -> None:
    """Refuse an optimizer with options that SAM would take for its own, or give it."""
    for name in SAMS_OWN:
        if name in rule.options or components.takes(rule.component, name):
            raise UsageError(
                f"{rule.where}: rho cannot perturb for {rule.component.reference}: "
                f"it has an option {name!r} of its own"
            )


def _checked(found: Any, model: nn.Module, where: str) -> list[Group]:
    """Return groups as dicts of lists, with each parameter that requires a gradient in one."""
    if not isinstance(found, Iterable):
        raise UsageError(f"{where} must return a list of parameter groups, got {found!r}")
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    groups: list[Group] = []
    seen: set[Tensor] = set()
    for i, group in enumerate(found):
        if not isinstance(group, Mapping) or "params" not in group:
            raise UsageError(f'{where}: group {i} must be a dict with "params", got {group!r}')
        given = group["params"]
        params = [given] if isinstance(given, Tensor) else list(given)
        for p in params:
            if not isinstance(p, Tensor) or p not in names:
                kind = tuple(p.shape) if isinstance(p, Tensor) else repr(p)
                raise UsageError(f"{where}: group {i} holds {kind}, no parameter of the model")
            if p in seen:
                raise UsageError(f"{where}: parameter {names[p]} is in more than one group")
            seen.add(p)
        groups.append({**group, "params": params})
    for p, name in names.items():
        if p.requires_grad and p not in seen:
            raise UsageError(f"{where}: parameter {name} is in no group")
    return groups


# --- making it


def make(recipe: Recipe, groups: Sequence[Group], *, perturbs: bool = True) -> Optimizer:
    """Return the recipe's optimizer on these groups, which stay as they are.

    torch's own classes are asked for their fused step, and on CUDA for one that a graph can
    capture. A class of anybody else gets what the protocol gives it and nothing else.

    Args:
        recipe: what to make.
        groups: as many as the recipe's, on one device.
        perturbs: False leaves SAM away.

    Raises:
        UsageError: the optimizer refuses its options or the parameters.
    """
    groups = [dict(group) for group in groups]
    on_cuda = any(p.is_cuda for group in groups for p in group["params"])
    swift = {rule: _swift(rule, groups, on_cuda) for rule in recipe.rules}
    if any(rule is not recipe.rule for rule in recipe.rules):
        members = [swift[rule] for rule in recipe.rules]
        name = f"{recipe.row.optimizer} with {recipe.row.groups}"
        base = Rule(Component(name, ByGroup, None), f"{recipe.where}.groups", {"rules": members})
    else:
        base = swift[recipe.rule]
    row = recipe.row
    if row.rho is not None and perturbs:
        base = _perturbed(base, recipe, groups)
    made = base.made(groups)
    if not isinstance(made, Optimizer):
        raise UsageError(
            f"{recipe.where}.optimizer: {row.optimizer} must give a torch.optim.Optimizer, "
            f"got {made!r}"
        )
    return made


def _perturbed(base: Rule, recipe: Recipe, groups: Sequence[Group]) -> Rule:
    """Return the rule of a row's method of the SAM family over a base."""
    row = recipe.row
    cls, own = _method(recipe, groups)
    own["rho"] = row.rho
    if cls is not MomentumSAM:
        own |= {"adaptive": row.adaptive, "eta": row.eta}
    made = functools.partial(cls, base_optimizer=base.component.target, **own)
    return replace(base, component=replace(base.component, target=made))


def _method(  # noqa: PLR0911 - one return for each method
    recipe: Recipe, groups: Sequence[Group]
) -> tuple[Callable[..., HalfSteps], dict[str, Any]]:
    """Return the class of a row's method, and what it is made with beside rho."""
    match recipe.row.method:
        case None:
            return SAM, {}
        case methods.Periodic(interval=interval):
            return PeriodicSAM, {"interval": interval}
        case methods.Late(part=part):
            return LateSAM, {"start_step": round((1 - part) * recipe.steps)}
        case methods.Momentum():
            return MomentumSAM, {}
        case methods.Friendly(sigma=sigma, lmbda=lmbda):
            return FriendlySAM, {"sigma": sigma, "lmbda": lmbda}
        case methods.Normalization():
            only = [groups[i]["params"][k] for i, k in recipe.normalization]
            return NormalizationSAM, {"only": only}
        case methods.GSAM(alpha=alpha, rho_min=rho_min):
            return GSAM, {"alpha": alpha, "rho_min": rho_min}
        case methods.LookSAM(interval=interval, alpha=alpha):
            return LookSAM, {"interval": interval, "alpha": alpha}
        case methods.MicroBatch():
            return MicroBatchSAM, {}
    raise AssertionError(recipe.row.method)


def _swift(rule: Rule, groups: list[Group], on_cuda: bool) -> Rule:
    """Return a rule with what makes torch's own classes fast, unless its options say otherwise."""
    cls = rule.component.target
    if not is_torchs(cls):
        return rule
    options = prefer_fused(cls, groups, rule.options)
    if not on_cuda:  # torch refuses it there, and the trial on small parameters is there
        options = {key: value for key, value in options.items() if key != "capturable"}
    elif components.takes(rule.component, "capturable"):
        options = {"capturable": True, **options}
    return replace(rule, options=options)


# --- what it is, once it is made


def why_no_graph(optimizer: Optimizer) -> str | None:
    """Return in one line why a step of this optimizer is not captured in a CUDA graph, or None.

    Those that are captured are torch's own, where torch says that they can be, and our SAM over
    those of them whose step reads on the device whether it is to be skipped.
    """
    if isinstance(optimizer, HalfSteps):
        if type(optimizer) is not SAM:
            return f"a step of {type(optimizer).__name__} can't be captured: SAM's alone can"
        base = optimizer.base_optimizer
        if type(base) in OURS.values() and _is_capturable(base):
            return None
        return f"SAM's step over {type(base).__name__} waits for the device"
    for member in _members(optimizer):
        if not _is_capturable(member):
            return f"it is not known whether a step of {type(member).__name__} can be captured"
    return None


def use_device_rates(optimizer: Optimizer, where: torch.device) -> None:
    """Put the learning rates where a captured step reads what they are then."""
    for group in optimizer.param_groups:
        if "lr" in group:
            group["lr"] = torch.tensor(float(group["lr"]), device=where)


def _members(optimizer: Optimizer) -> list[Optimizer]:
    if isinstance(optimizer, ByGroup):
        return [member for member, _ in optimizer.members]
    return [optimizer]


def _is_capturable(optimizer: Optimizer) -> bool:
    if not is_torchs(type(optimizer)):
        return False
    # SGD keeps no count of its steps. But only its fused step reads the rate on the device.
    key = "fused" if isinstance(optimizer, torch.optim.SGD) else "capturable"
    return all(group.get(key) for group in optimizer.param_groups)


def initial_rates(optimizer: Optimizer) -> list[float | None]:
    """Return each group's learning rate as it was made; None where a group has none."""
    return [float(group["lr"]) if "lr" in group else None for group in optimizer.param_groups]


def check_schedule(case: Case, recipe: Recipe, why_not: str) -> None:
    """Refuse a schedule or a warm-up for an optimizer that would not feel it.

    Raises:
        UsageError: there is one; ``why_not`` says why it would not be felt.
    """
    training, row = case.protocol.training, case.row
    schedule = row.schedule or training.schedule
    warmup = training.warmup_epochs if row.warmup_epochs is None else row.warmup_epochs
    if schedule != "constant" or warmup:
        raise UsageError(
            f"{recipe.where}: {row.optimizer} {why_not}: "
            f'schedule must be "constant" and warmup_epochs 0, got "{schedule}" and {warmup}'
        )
