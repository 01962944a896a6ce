"""Small models whose losses are known in closed form, or small enough for a dense Hessian."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats
from torch import nn
from torch.func import functional_call

from flatbench.sharpness import krylov

D = torch.float64


class Quadratic(nn.Module):
    """Outputs ½ wᵀAw + bᵀw for every example; with `mean` as loss that is L."""

    def __init__(self, matrix, slope, at):
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.register_buffer("slope", slope)
        self.w = nn.Parameter(at)

    def forward(self, x):
        height = 0.5 * self.w @ self.matrix @ self.w + self.slope @ self.w
        return height.expand(len(x))


def mean(outputs, targets):
    return outputs.mean()


ANY = (torch.zeros(4, 1), torch.zeros(4))  # the quadratic does not look at its examples


def symmetric(spectrum, seed=0):
    d = len(spectrum)
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]
    return torch.tensor(q @ np.diag(spectrum) @ q.T)


def quadratic(spectrum, seed=0):
    rng = np.random.default_rng(100 + seed)
    slope, at = torch.tensor(rng.normal(size=(2, len(spectrum))))
    return Quadratic(symmetric(spectrum, seed), slope, at)


def mlp(activation=nn.Tanh, seed=0, dtype=D):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 6), activation(), nn.Linear(6, 3)).to(dtype)


def conv_net(seed=0, dtype=D):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    ).to(dtype)
    for _ in range(3):  # statistics that are not the initial zeros and ones
        net(torch.randn(16, 1, 7, 7, dtype=dtype))
    return net.eval()


def examples(n=30, seed=1, dtype=D):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 5, generator=g, dtype=dtype), torch.randint(3, (n,), generator=g)


def images(n=20, seed=1, dtype=D):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 7, 7, generator=g, dtype=dtype), torch.randint(3, (n,), generator=g)


def flat_loss(model, loss, x, y):
    """The whole batch's loss as a function of a flat vector, written apart from the module's."""
    named = dict(model.named_parameters())

    def at(flat):
        weights, place = {}, 0
        for name, p in named.items():
            weights[name] = flat[place : place + p.numel()].view(p.shape)
            place += p.numel()
        return loss(functional_call(model, weights, (x,)), y)

    center = torch.cat([p.detach().reshape(-1) for p in named.values()])
    return at, center


def dense_hessian(model, loss, x, y):
    """Row by row, reverse mode twice: torch.func's vmapped one errs by 1 % where LayerNorm is."""
    at, center = flat_loss(model, loss, x, y)
    hessian = torch.autograd.functional.hessian(at, center)
    torch.testing.assert_close(hessian, hessian.T, rtol=0, atol=1e-5 * float(hessian.abs().max()))
    return hessian


def covered(estimates, truth, degrees):
    """How many of the estimates' 90 % Student intervals hold the truth."""
    t = stats.t.ppf(0.95, degrees)
    return sum(abs(e.value - truth) <= t * e.standard_error for e in estimates)


def assert_nominal(hits, trials):
    """``hits`` of ``trials`` 90 % intervals hold the truth: not fewer, nor many more, by chance."""
    low, high = stats.binom.ppf([0.0005, 0.9995], trials, 0.9)
    assert low <= hits <= high, f"{hits} of {trials}"


def ritz_pairs(product, dimension, k=1, seed=0, **settings):
    """The largest eigenpairs of an operator that is exact."""
    usual = {"which": "LA", "tolerance": 1e-8, "max_products": 500, "basis_size": 24}
    return krylov.eigenpairs(
        product,
        dimension,
        k,
        precision=1e-15,
        generator=torch.Generator().manual_seed(seed),
        device=torch.device("cpu"),
        **(usual | settings),
    )
