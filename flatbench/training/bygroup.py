"""An optimizer made of several, each of which steps its own parameter groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.optim.optimizer import Optimizer

from flatbench import components
from flatbench.components import Component
from flatbench.errors import UsageError
from flatbench.optim.base import needs_closure

Group = dict[str, Any]


@dataclass(frozen=True, eq=False)  # rules are told apart by who they are, not by what they say
class Rule:
    """What makes the optimizer of some groups, and with which options."""

    component: Component
    where: str  # opens an error
    options: dict[str, Any] = field(default_factory=dict)

    def made(self, groups: list[Group]) -> Optimizer:
        """Return the optimizer on these groups.

        Raises:
            UsageError: it cannot be made of these options.
        """
        made: Optimizer = components.called(self.component, self.where, groups, **self.options)
        return made


class ByGroup(Optimizer):
    """Steps each group by the optimizer of its rule; groups with the same rule share one.

    Its ``param_groups`` and ``state`` are those of its members, so that a learning rate that is
    set here reaches them, and ``state_dict`` holds all of their state.

    Args:
        params: the groups.
        rules: one for each group.
    """

    def __init__(self, params: Iterable[Group], rules: Sequence[Rule]) -> None:
        super().__init__(params, {})
        self.members: list[tuple[Optimizer, list[int]]] = []  # and the indices of their groups
        for rule in dict.fromkeys(rules):
            indices = [i for i, other in enumerate(rules) if other is rule]
            member = rule.made([self.param_groups[i] for i in indices])
            if needs_closure(type(member)):
                raise UsageError(
                    f"{rule.where}: {rule.component.reference} cannot step a group of its own: "
                    "its step needs a closure"
                )
            self.members.append((member, indices))
            self.state.update(member.state)  # some make their state at once
        self._share()

    def _share(self) -> None:
        """Give the members this optimizer's groups and state, which a load replaces."""
        for member, indices in self.members:
            groups = [self.param_groups[i] for i in indices]
            member.__setstate__({"state": self.state, "param_groups": groups})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "members": self.members}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Called by load_state_dict with new groups and state, and by pickle with everything.
        super().__setstate__(state)
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step every member; a closure is called once, before all of them."""
        loss = None if closure is None else closure()
        for member, _ in self.members:
            member.step()
        return loss

    def train(self) -> None:
        """Pass it on to the members that have it."""
        for member, _ in self.members:
            getattr(member, "train", _nothing)()

    def eval(self) -> None:
        """Pass it on to the members that have it."""
        for member, _ in self.members:
            getattr(member, "eval", _nothing)()


def _nothing() -> None:
    pass
