"""What the ranks of a data-parallel training must know of each other."""

import torch.distributed as dist
from torch import Tensor


def agree(found_inf: Tensor, group: dist.ProcessGroup, keeps_first: bool) -> None:
    """Set ``found_inf`` on all ranks of a group if it is set on one, without waiting for it.

    Args:
        found_inf: 0-d float, 1 for a step that is to be skipped.
        group: the ranks.
        keeps_first: whether the method mixes the first gradients into the second ones.

    Raises:
        RuntimeError: it does. Where each rank has a first gradient of its own, the ranks would step
            differently.
    """
    if keeps_first:
        raise RuntimeError(
            "process_group must be None: this method steps with both gradients, so both must be "
            "averaged over the ranks"
        )
    dist.all_reduce(found_inf, dist.ReduceOp.MAX, group)
