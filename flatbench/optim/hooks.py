"""The hooks of ``register_step_pre_hook`` and ``register_step_post_hook``, once a step.

torch calls them around an optimizer's ``step`` alone, and whoever takes the half-steps never calls
that.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.optim import optimizer as torchs
from torch.optim.optimizer import Optimizer


@contextmanager
def around_step(optimizer: Optimizer, of_all: bool) -> Iterator[None]:
    """Call an optimizer's hooks around the block, which is what moves the weights by the base step.

    A hook gets the optimizer and no arguments, and can't change any.

    Args:
        optimizer: whose hooks.
        of_all: also those that were registered for all optimizers. Where the base's own ``step``
            runs inside the block, it calls them.

    Raises:
        RuntimeError: a hook before the step returns something, which torch would take for new
            arguments.
    """
    before = [torchs._global_optimizer_pre_hooks] if of_all else []
    for hooks in (*before, optimizer._optimizer_step_pre_hooks):
        for hook in hooks.values():
            found = hook(optimizer, (), {})
            if found is not None:
                raise RuntimeError(f"a hook before the step must return None, got {found!r}")
    yield
    optimizer._opt_called = True  # type: ignore[attr-defined]  # schedulers ask for a step before theirs
    after = [torchs._global_optimizer_post_hooks] if of_all else []
    for hooks_after in (optimizer._optimizer_step_post_hooks, *after):
        for hook_after in hooks_after.values():
            hook_after(optimizer, (), {})
