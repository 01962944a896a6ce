"""What a method of the SAM family keeps of a parameter, beside the base optimizer's state.

It can't lie in ``Optimizer.state``: a base takes a parameter that has a state there for one that it
has stepped before. In a ``state_dict`` it lies with the base's, under names that begin with "sam_".
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim.optimizer import StateDict

from .groups import Group, parameters
from .layout import strided_like

OwnState = dict[Tensor, dict[str, Tensor]]
PREFIX = "sam_"


def added(state_dict: StateDict, own: OwnState, groups: Sequence[Group]) -> StateDict:
    """Return a ``state_dict`` that holds a method's own state, too."""
    if not own:
        return state_dict
    state = dict(state_dict["state"])
    for number, p in enumerate(parameters(groups)):
        if p in own:
            names = {f"{PREFIX}{name}": t for name, t in own[p].items()}
            state[number] = {**state.get(number, {}), **names}
    return {**state_dict, "state": state}


def parted(state_dict: StateDict) -> tuple[StateDict, dict[Any, dict[str, Tensor]]]:
    """Return a ``state_dict`` without a method's own state, and that: number -> name -> tensor."""
    base: dict[Any, Any] = {}
    own: dict[Any, dict[str, Tensor]] = {}
    for number, state in state_dict["state"].items():
        base[number] = {n: t for n, t in state.items() if not n.startswith(PREFIX)}
        mine = {n.removeprefix(PREFIX): t for n, t in state.items() if n.startswith(PREFIX)}
        if mine:
            own[number] = mine
    base = {number: state for number, state in base.items() if state}
    return {**state_dict, "state": base}, own


def placed(own: dict[Any, dict[str, Tensor]], groups: Sequence[Group]) -> OwnState:
    """Return loaded state by parameter, on its device, in its dtype and layout."""
    found: OwnState = {}
    for number, p in enumerate(parameters(groups)):
        if number in own:
            found[p] = {
                name: strided_like(p, t.detach().to(p.device, p.dtype, copy=True), p.dtype)
                for name, t in own[number].items()
            }
    return found
