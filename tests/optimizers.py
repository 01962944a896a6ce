"""What the optimizer's tests share: bases, gradients, and how two results are compared."""

import pytest
import torch
from torch import nn

from flatbench.optim import SAM

SGD, Adam, AdamW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
BASES = {
    "sgd": (SGD, {"lr": 0.1}),
    "momentum": (SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "nesterov": (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "dampening": (SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01}),
    "adam": (Adam, {"lr": 0.01, "weight_decay": 0.01}),
    # lr * weight_decay is a power of two: torch's CPU step rounds 1 - lr * weight_decay to float32,
    # the kernels (and torch's CUDA step) do not, and after 50 steps that would show.
    "adamw": (AdamW, {"lr": 2**-7, "weight_decay": 2**-4}),
}
every_base = pytest.mark.parametrize("base", BASES)


def parameters(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def clone(params, dtype=torch.float32):
    return [nn.Parameter(p.detach().to(dtype, copy=True)) for p in params]


def optimizer(params, base="momentum", implementation="fused", **options):
    """SAM over a base of BASES, whose options the given ones override."""
    kind, kwargs = BASES[base]
    return SAM(params, kind, implementation=implementation, **{**kwargs, **options})


def set_gradients(params, generator, missing=()):
    """Noise plus a pull towards 0, so that the second gradient depends on the perturbation.

    Each gradient is a new tensor on the generator's device, laid out as its parameter. Those whose
    place is in ``missing`` are None, and draw their noise all the same.
    """
    for i, p in enumerate(params):
        noise = torch.randn(p.shape, generator=generator, device=generator.device)
        gradient = torch.empty_like(p).copy_(noise.to(p.dtype) + 0.1 * p.detach())
        p.grad = None if i in missing else gradient


def run(
    params,
    sam,
    steps,
    seed=0,
    missing_first=(),
    missing_second=(),
    zero_grad=False,
):
    """Take steps with the gradients of `set_gradients`, the same ones for the same seed."""
    generator = torch.Generator(params[0].device).manual_seed(seed)
    for _ in range(steps):
        set_gradients(params, generator, missing_first)
        sam.first_step(zero_grad=zero_grad)
        set_gradients(params, generator, missing_second)
        sam.second_step(zero_grad=zero_grad)


def vector(tensors):
    return torch.cat([t.detach().double().flatten() for t in tensors])


def relative_error(ours, reference):
    a, b = vector(ours), vector(reference)
    return ((a - b).norm() / b.norm()).item()


def assert_bitwise(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
