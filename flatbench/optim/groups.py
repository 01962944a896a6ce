"""What SAM asks of parameter groups, and what it refuses."""

import math
import sys
from collections.abc import Sequence
from typing import Any

from torch import Tensor

Group = dict[str, Any]


def is_adaptive(group: Group, index: int) -> bool:
    """Return whether T = |w| + eta, rather than 1, for the group's parameter of this index."""
    if group["adaptive"] == "weights":
        return "weight" in group["param_names"][index]
    return bool(group["adaptive"])


def parameters(groups: Sequence[Group]) -> list[Tensor]:
    """Return all parameters, in the order of the groups."""
    return [p for group in groups for p in group["params"]]


def _is_shard(p: Tensor) -> bool:
    """Return whether p is a part of a parameter: a DTensor's, as of FSDP2, or one of FSDP1's."""
    tensor = sys.modules.get("torch.distributed.tensor")  # not loaded: nobody has made one
    is_dtensor = tensor is not None and isinstance(p, tensor.DTensor)
    return is_dtensor or getattr(p, "_is_flat_param", False) or getattr(p, "_fsdp_flattened", False)


def check_options(group: Group) -> None:
    """Raise ValueError for an invalid rho, eta or adaptive."""
    for option in ("rho", "eta"):
        value = group[option]
        if not isinstance(value, (int, float)) or not 0.0 <= value < math.inf:
            raise ValueError(f"{option} must be a finite number of at least 0, got {value!r}")
    if group["adaptive"] not in (False, True, "weights"):
        raise ValueError(f"adaptive must be False, True or 'weights', got {group['adaptive']!r}")
    if group["adaptive"] == "weights" and "param_names" not in group:
        raise ValueError(
            "adaptive='weights' goes by parameter names: pass model.named_parameters()"
        )


def check_natural(group: Group, option: str, least: int) -> None:
    """Raise ValueError unless an option is a whole number of at least ``least``."""
    value: Any = group[option]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{option} must be a whole number of at least {least}, got {value!r}")


def check_base_options(group: Group) -> None:
    """Raise ValueError for an option of the base optimizer that makes no sense under SAM."""
    for option in ("maximize", "differentiable"):
        if group.get(option):
            raise ValueError(f"SAM does not support {option}=True in its base optimizer")


def check_parameters(groups: Sequence[Group]) -> None:
    """Raise ValueError for parameters that cannot be perturbed together."""
    params = parameters(groups)
    if any(map(_is_shard, params)):
        raise ValueError(
            "parameters must be whole on every rank, got shards (DTensor or FSDP): the norm would "
            "be that of a rank's own part; use DistributedDataParallel"
        )
    if len(set(params)) != len(params):
        raise ValueError("a parameter is given twice; SAM would perturb it twice")
    addresses = [p.data_ptr() for p in params if p.numel() and not p.is_meta]
    if len(set(addresses)) != len(addresses):
        raise ValueError("two parameters share memory; SAM would perturb it twice")
    devices = sorted({str(p.device) for p in params})
    if len(devices) > 1:
        raise ValueError(f"parameters must be on one device, got {', '.join(devices)}")
    kinds = sorted({str(p.dtype) for p in params if not p.is_floating_point()})
    if kinds:
        raise ValueError(f"parameters must be floating-point, got {', '.join(kinds)}")
