"""SAM at some of the steps: every k-th one, or those from a certain one on."""

from typing import Any

from torch.optim.optimizer import Optimizer, ParamsT

from ..choice import Implementation
from ..groups import Group, check_natural
from ..half_steps import Adaptive
from .counting import Counting


class PeriodicSAM(Counting):
    """SAM at every k-th step, the base's own step between.

    A step of one gradient is ``step()`` with the gradient in ``p.grad``; ``passes`` tells which
    one comes.

    The rule is that of Composer's ``SAMOptimizer`` (mosaicml/composer, ``interval``): the k-th step
    is the first with two gradients. Composer's advice is a rho that grows with the interval.

    Args:
        params: see `SAM`, for all that is not named here.
        base_optimizer: see `SAM`.
        rho: radius at the steps with two gradients.
        interval: k, at least 1. With 1 it is SAM.
        adaptive: see `SAM`.
        eta: see `SAM`.
        implementation: see `SAM`.
        **base_kwargs: handed to the base.
    """

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        rho: float = 0.05,
        interval: int = 1,
        adaptive: Adaptive = False,
        eta: float = 0.0,
        implementation: Implementation = "auto",
        **base_kwargs: Any,
    ) -> None:
        options = {"rho": rho, "adaptive": adaptive, "eta": eta}
        options |= {"interval": interval, "steps_begun": 0}
        super().__init__(params, base_optimizer, options, implementation, base_kwargs)

    @property
    def passes(self) -> int:
        """2 at every k-th step, 1 at the others."""
        return 2 if (self.steps_begun + 1) % self.param_groups[0]["interval"] == 0 else 1

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        check_natural(group, "interval", 1)


class LateSAM(Counting):
    """The base's own steps at first, SAM's from ``start_step`` on.

    Zhou et al., ICLR 2025 (arXiv:2410.10373): SAM in the last epochs of a training finds minima as
    flat as SAM throughout. Their code (zzp1012/SAM-in-Late-Phase) has two SGD objects, so that
    momentum begins anew at the switch; here one base goes on with its momentum.

    Args:
        params: see `SAM`, for all that is not named here.
        base_optimizer: see `SAM`.
        rho: radius from ``start_step`` on.
        start_step: the number, from 0, of the first step with two gradients. With 0 it is SAM.
        adaptive: see `SAM`.
        eta: see `SAM`.
        implementation: see `SAM`.
        **base_kwargs: handed to the base.
    """

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        rho: float = 0.05,
        start_step: int = 0,
        adaptive: Adaptive = False,
        eta: float = 0.0,
        implementation: Implementation = "auto",
        **base_kwargs: Any,
    ) -> None:
        options = {"rho": rho, "adaptive": adaptive, "eta": eta}
        options |= {"start_step": start_step, "steps_begun": 0}
        super().__init__(params, base_optimizer, options, implementation, base_kwargs)

    @property
    def passes(self) -> int:
        """1 before ``start_step``, 2 from there on."""
        return 2 if self.steps_begun >= self.param_groups[0]["start_step"] else 1

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        check_natural(group, "start_step", 0)
