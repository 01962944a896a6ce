"""SAM on the normalisation layers alone."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.optim.optimizer import Optimizer, ParamsT

from ..choice import Implementation
from ..half_steps import Adaptive, HalfSteps

LAYERS = (_BatchNorm, _InstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def normalization_parameters(model: nn.Module) -> list[Tensor]:
    """Return weights and biases of a network's normalisation layers, each once.

    Layers are known by their type. The authors' code goes by "norm" or "bn" in a parameter's name,
    which misses such as torchvision's ``downsample.1``.
    """
    own = (p for m in model.modules() if isinstance(m, LAYERS) for p in m.parameters(recurse=False))
    return list(dict.fromkeys(own))


class NormalizationSAM(HalfSteps):
    """SAM-ON: the perturbation moves the normalisation layers alone, the base steps all parameters.

    Mueller et al., NeurIPS 2023 (arXiv:2306.04226). The norm runs over the perturbed parameters, so
    that e(w) is of length rho; the authors say so (mueller-mp/SAM-ON, issue 1).

    Args:
        params: all parameters; see `SAM`, for all that is not named here.
        base_optimizer: see `SAM`.
        only: the parameters that are perturbed, such as `normalization_parameters` returns.
        rho: radius; the authors' default.
        adaptive: see `SAM`; with True, T is the paper's "elementwise" one.
        eta: see `SAM`; the authors' class has 0.01, their command 0.
        implementation: see `SAM`.
        **base_kwargs: handed to the base.

    Raises:
        ValueError: ``only`` holds none of the parameters, or one that is none of them.
    """

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        only: Iterable[Tensor],
        rho: float = 0.5,
        adaptive: Adaptive = False,
        eta: float = 0.0,
        implementation: Implementation = "auto",
        **base_kwargs: Any,
    ) -> None:
        self._only: set[Tensor] | None = set(only)
        options = {"rho": rho, "adaptive": adaptive, "eta": eta}
        super().__init__(params, base_optimizer, options, implementation, base_kwargs)
        known = {p for group in self.param_groups for p in group["params"]}
        if not self._only:
            raise ValueError("only must hold the parameters to perturb, got none")
        if not self._only <= known:
            raise ValueError("only holds a tensor that is none of the parameters")
