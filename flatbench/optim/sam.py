"""Sharpness-aware minimization (SAM) and its adaptive form (ASAM) around a torch optimizer."""

from typing import Any

from torch.optim.optimizer import Optimizer, ParamsT

from .choice import Implementation
from .half_steps import Adaptive, HalfSteps


class SAM(HalfSteps):
    r"""Two half-steps around a base optimizer: climb to w + e(w), then step from w.

    ::

        first_step   e(w) = rho T^2 g / ||T g||,  g = dL/dw at w;   w -> w + e(w)
        second_step  w + e(w) -> w, bit for bit;  the base optimizer steps at w with the
                     gradient taken at w + e(w)

    The norm runs over all parameters of all groups as one vector; each group scales it by its own
    rho. The diagonal T says whose SAM it is:

    ======================  ==========================================================
    ``adaptive=False``      T = 1: SAM, Foret et al. 2021 (arXiv:2010.01412), eq. 2
    ``adaptive=True``       T = abs(w) + eta on every parameter: ASAM as Kwon et al. 2021
                            (arXiv:2102.11600), algorithm 1, write it; with eta = 0 it is
                            what most PyTorch code runs
    ``adaptive="weights"``  T = abs(w) + eta on parameters whose name contains "weight" and
                            T = 1 on the others: ASAM as its authors' published code runs
                            it. Needs names: pass ``model.named_parameters()``
    ======================  ==========================================================

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups, as for any torch optimizer. A
            group may have its own ``rho``, ``adaptive``, ``eta``, and options of the base.
        base_optimizer: an optimizer class, such as ``torch.optim.SGD``, whose step needs no
            closure and which has no option called rho, adaptive, eta or implementation.
        rho: radius of the neighbourhood, at least 0. With 0 it is the base optimizer.
        adaptive: which T, see above.
        eta: added to abs(w) in an adaptive T, at least 0; without effect elsewhere.
        implementation: "eager" is ``torch._foreach_*`` around the base's own step, on any device.
            "fused" is three Triton launches a step, on CUDA, for float32 parameters with SGD,
            Adam (not amsgrad) and AdamW. "auto" is fused where that is possible, else eager; if a
            CUDA device can't launch Triton kernels, one warning says why.
        **base_kwargs: handed to the base (``lr``, ``momentum``, ...). Unless they hold ``fused``
            or ``foreach``, torch's own fused step is taken where the base, a class of torch's,
            has one.

    Neither path waits for the device, except eager on a GPU around a base without torch's fused
    step, which reads ``found_inf`` once a step. A fused step can be captured in a CUDA graph after
    one step outside it, if ``sync_hyperparameters`` is called once after the capture, before the
    first replay; a replay sees what that call brought to the device, and a float32 tensor lr on the
    device as it is. The fused step bypasses ``base_optimizer.step`` and so its hooks.

    Attributes:
        base_optimizer: the base; shares ``param_groups`` and ``state`` with this optimizer, so lr
            schedulers and ``state_dict`` see one set of both.
        gradient_norm: 0-d tensor on the device, ||T g|| of the last first_step. The same tensor
            at every step: accumulate it, don't keep it.
        found_inf: 0-d float tensor, 1 if that norm, or an element of the gradients in second_step,
            was not finite. In the first case first_step perturbs nothing; in both second_step
            leaves weights and state as they were before the step. To skip a step whose second
            gradient you know to be bad, fill it with 1 before second_step.
        skipped_steps: 0-d int64 tensor, how many steps were skipped for that.

        process_group: None, or the ranks that must skip a step together. Set it where each worker
            perturbs by its own gradient: a gradient that is not finite on one of them would else
            part their weights. With gradients that are averaged in both passes there is no need.

    Example::

        optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9)
        loss(model(x), y).backward()
        optimizer.first_step(zero_grad=True)
        with frozen_batchnorm(model):
            loss(model(x), y).backward()
        optimizer.second_step(zero_grad=True)

    Raises:
        TypeError, ValueError: an invalid argument, or parameters that cannot be perturbed
            together (several devices, complex, the same tensor twice).
        RuntimeError: half-steps out of order, a sparse gradient, or ``state_dict``,
            ``load_state_dict``, ``add_param_group``, ``train``, ``eval`` or pickling between the
            half-steps, when the weights are not w.
    """

    can_be_captured = True

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        rho: float = 0.05,
        adaptive: Adaptive = False,
        eta: float = 0.0,
        implementation: Implementation = "auto",
        **base_kwargs: Any,
    ) -> None:
        options = {"rho": rho, "adaptive": adaptive, "eta": eta}
        super().__init__(params, base_optimizer, options, implementation, base_kwargs)
