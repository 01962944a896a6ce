"""Batch statistics belong to the weights, not to the perturbed weights."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def frozen_batchnorm(model: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's running statistics still while the block runs.

    A training-mode BatchNorm inside the block still normalises with the batch's own statistics;
    only ``running_mean``, ``running_var`` and ``num_batches_tracked`` do not move. Put the second
    forward pass of a SAM step in it, so that the statistics describe the weights and not the
    perturbed weights. Works for every BatchNorm of ``torch.nn`` (1-d, 2-d, 3-d, Sync), may be
    nested, and leaves the model as it was when the block raises.

    Example::

        with frozen_batchnorm(model):
            loss(model(x), y).backward()
        optimizer.second_step()
    """
    # Without tracking, a training-mode module hands no running statistics to the kernel at all.
    # A momentum of zero, the usual trick, would still count num_batches_tracked. Modules that
    # an outer block has switched off already are not ours to switch on again.
    tracking = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True
