"""The SAM family against numpy statements of the papers' rules, and against SAM where they agree."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatbench.optim import (
    GSAM,
    SAM,
    FriendlySAM,
    LateSAM,
    LookSAM,
    MicroBatchSAM,
    MomentumSAM,
    NormalizationSAM,
    PeriodicSAM,
    normalization_parameters,
)
from tests import family
from tests.optimizers import BASES, assert_bitwise, every_base

STEPS, EXAMPLES = 50, 12


class Net(nn.Module):
    """One weight used twice, a normalisation layer, a frozen scale."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tied = nn.Linear(4, 5)
        self.norm = nn.LayerNorm(5)
        self.out = nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.tensor(1.5), requires_grad=False)

    def forward(self, x):
        hidden = self.norm(torch.tanh(self.tied(x)))
        return self.out(torch.tanh(hidden @ self.tied.weight)) * self.scale


def data(step, part=slice(None)):
    """A batch of its own for each step: averages over steps differ from their last gradient."""
    chance = torch.Generator().manual_seed(step)
    x = torch.randn(EXAMPLES, 4, generator=chance, dtype=torch.float64)
    y = torch.randn(EXAMPLES, 2, generator=chance, dtype=torch.float64)
    return x[part], y[part]


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def vector(model):
    return torch.cat([p.detach().flatten() for p in trained(model)]).double().numpy().copy()


def gradient_of(model, part=slice(None)):
    """Return the gradient as a function of the vector and the step, by autograd's functional form."""
    model = copy.deepcopy(model)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    sizes = [p.numel() for p in trained(model)]
    shapes = [p.shape for p in trained(model)]

    def gradient(w, step):
        pieces = torch.from_numpy(w).split(sizes)
        params = [p.reshape(s).requires_grad_() for p, s in zip(pieces, shapes, strict=True)]
        x, y = data(step, part)
        out = torch.func.functional_call(model, dict(zip(names, params, strict=True)), (x,))
        found = torch.autograd.grad(F.mse_loss(out, y), params)
        return torch.cat([g.flatten() for g in found]).numpy()

    return gradient


def backward(model, step, part=slice(None)):
    x, y = data(step, part)
    loss = F.mse_loss(model(x), y)
    loss.backward()
    return loss


def train(model, optimizer, steps=STEPS, rate=None, first=0):
    """As a user trains: by the half-steps, or by step() where it takes one gradient."""
    for i in range(first, first + steps):
        if rate is not None:
            for group in optimizer.param_groups:
                group["lr"] = rate(i)
        backward(model, i)
        if optimizer.passes == 1:
            optimizer.step()
            optimizer.zero_grad()
            continue
        optimizer.first_step(zero_grad=True)
        backward(model, i)
        optimizer.second_step(zero_grad=True)


RHOS = (0.2, 0.05)


def groups(model):
    """Two groups, each with a radius of its own."""
    named = list(model.named_parameters())
    return [{"params": named[:2], "rho": RHOS[0]}, {"params": named[2:], "rho": RHOS[1]}]


def radii(model):
    return np.concatenate(
        [
            np.full(sum(p.numel() for _, p in group["params"] if p.requires_grad), group["rho"])
            for group in groups(model)
        ]
    )


KINDS = {
    "nesterov": (
        lambda: family.SGD(0.05, 0.9, True, 1e-2),
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-2},
    ),
    "adam": (
        lambda: family.Adam(0.02, 1e-2),
        torch.optim.Adam,
        {"lr": 0.02, "weight_decay": 1e-2},
    ),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def absolute(w):
    return np.abs(w) + 0.01


ADAPTIVE = {"adaptive": True, "eta": 0.01}

# method -> (class, its options, the numpy statement with its own)
RULES = {
    "periodic": (PeriodicSAM, {"interval": 3}, family.periodic, {"interval": 3}),
    "late": (LateSAM, {"start_step": 17}, family.late, {"start": 17}),
    "msam": (MomentumSAM, {}, family.msam, {}),
    "friendly": (
        FriendlySAM,
        {"sigma": 0.8, "lmbda": 0.7},
        family.friendly,
        {"sigma": 0.8, "lmbda": 0.7},
    ),
    "adaptive friendly": (
        FriendlySAM,
        {"sigma": 1.0, "lmbda": 0.9, **ADAPTIVE},
        family.friendly,
        {"sigma": 1.0, "lmbda": 0.9, "t": absolute},
    ),
    "looksam": (
        LookSAM,
        {"interval": 4, "alpha": 0.7},
        family.looksam,
        {"interval": 4, "alpha": 0.7},
    ),
}


@every_kind
@pytest.mark.parametrize("method", RULES)
def test_it_follows_the_papers_rule_for_50_steps(method, kind):
    cls, options, statement, own = RULES[method]
    base, torchs, kwargs = KINDS[kind]
    model = Net().double()
    expected = statement(vector(model), gradient_of(model), base(), STEPS, radii(model), **own)
    optimizer = cls(groups(model), torchs, **options, **kwargs)
    train(model, optimizer)
    optimizer.eval()
    np.testing.assert_allclose(vector(model), expected, rtol=1e-9, atol=1e-11)


@every_kind
@pytest.mark.parametrize("adaptive", [False, True])
def test_gsam_follows_the_papers_rule_with_its_schedule_for_50_steps(kind, adaptive):
    base, torchs, kwargs = KINDS[kind]
    model, highest = Net().double(), kwargs["lr"]

    def rate(i):
        """A warm-up above lr_max and a fall below lr_min are in it."""
        return highest * 1.2 * math.sin(math.pi * (i + 1) / (STEPS + 1))

    lowest = 0.3 * highest

    def rho(i):
        height = np.clip((rate(i) - lowest) / (highest - lowest), 0, 1)
        return 0.01 + (radii(model) - 0.01) * height

    reference = base()
    w, gradient = vector(model), gradient_of(model)
    for i in range(STEPS):
        reference.lr = rate(i)
        t = absolute if adaptive else family.ones
        w = family.gsam(
            w, lambda at, _, i=i: gradient(at, i), reference, 1, lambda _, i=i: rho(i), 0.4, t
        )
    optimizer = GSAM(
        groups(model),
        torchs,
        alpha=0.4,
        rho_min=0.01,
        lr_min=lowest,
        **(ADAPTIVE if adaptive else {}),
        **kwargs,
    )
    train(model, optimizer, rate=rate)
    np.testing.assert_allclose(vector(model), w, rtol=1e-9, atol=1e-11)


@every_kind
@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_on_follows_the_papers_rule_for_50_steps(kind, adaptive):
    base, torchs, kwargs = KINDS[kind]
    model = Net().double()
    only = normalization_parameters(model)
    assert {id(p) for p in only} == {id(model.norm.weight), id(model.norm.bias)}
    mask = np.concatenate(
        [np.full(p.numel(), float(any(p is q for q in only))) for p in trained(model)]
    )
    expected = family.sam_on(
        vector(model),
        gradient_of(model),
        base(),
        STEPS,
        radii(model),
        mask,
        absolute if adaptive else family.ones,
    )
    options = ADAPTIVE if adaptive else {}
    optimizer = NormalizationSAM(groups(model), torchs, only, **options, **kwargs)
    train(model, optimizer)
    np.testing.assert_allclose(vector(model), expected, rtol=1e-9, atol=1e-11)


@every_kind
@pytest.mark.parametrize("by", ["half-steps", "closures"])
def test_micro_batches_follow_the_papers_rule_for_50_steps(kind, by):
    base, torchs, kwargs = KINDS[kind]
    model = Net().double()
    parts = [slice(0, 5), slice(5, 10), slice(10, 12)]
    sizes = [5, 5, 2]
    expected = family.micro(
        vector(model),
        [gradient_of(model, part) for part in parts],
        base(),
        STEPS,
        radii(model),
        [size / EXAMPLES for size in sizes],
    )
    optimizer = MicroBatchSAM(groups(model), torchs, **kwargs)
    for i in range(STEPS):
        if by == "closures":
            optimizer.step_parts([lambda p=p, i=i: backward(model, i, p) for p in parts], sizes)
            continue
        for part, size in zip(parts, sizes, strict=True):
            backward(model, i, part)
            optimizer.first_step(zero_grad=True)
            backward(model, i, part)
            optimizer.end_part(size)
        optimizer.second_step(zero_grad=True)
    np.testing.assert_allclose(vector(model), expected, rtol=1e-9, atol=1e-11)


# Where a method must be SAM, or its base, it is so bit for bit.

SAME_AS_SAM = {
    "periodic": lambda params, base, **k: PeriodicSAM(params, base, interval=1, **k),
    "late": lambda params, base, **k: LateSAM(params, base, start_step=0, **k),
    "friendly": lambda params, base, **k: FriendlySAM(params, base, sigma=0.0, **k),
    "normalization": lambda params, base, **k: NormalizationSAM(
        params, base, [p for _, p in params], **k
    ),
    "gsam": lambda params, base, **k: GSAM(params, base, alpha=0.0, **k),
    "looksam": lambda params, base, **k: LookSAM(params, base, interval=1, **k),
    "micro-batch": lambda params, base, **k: MicroBatchSAM(params, base, **k),
}


@every_base
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("method", SAME_AS_SAM)
def test_it_is_sam_bit_for_bit_where_it_must_be(method, base, adaptive):
    kind, kwargs = BASES[base]
    ours, theirs = Net().double(), Net().double()
    options = {"rho": 0.1, "adaptive": adaptive, **kwargs}
    optimizer = SAME_AS_SAM[method](list(ours.named_parameters()), kind, **options)
    reference = SAM(list(theirs.named_parameters()), kind, **options)
    for i in range(10):
        train(ours, optimizer, 1, first=i)
        train(theirs, reference, 1, first=i)
        assert optimizer.gradient_norm == reference.gradient_norm
    assert_bitwise(ours.state_dict(), theirs.state_dict())


@every_base
def test_one_part_is_sam_bit_for_bit(base):
    kind, kwargs = BASES[base]
    ours, theirs = Net().double(), Net().double()
    optimizer = MicroBatchSAM(ours.parameters(), kind, rho=0.1, **kwargs)
    reference = SAM(theirs.parameters(), kind, rho=0.1, **kwargs)
    for i in range(10):
        optimizer.step_parts([lambda i=i: backward(ours, i)], [12])
        train(theirs, reference, 1, first=i)
    assert_bitwise(ours.state_dict(), theirs.state_dict())


@every_base
def test_steps_of_one_gradient_are_the_bases_bit_for_bit(base):
    kind, kwargs = BASES[base]
    fused = {} if base == "dampening" else {"fused": True}
    ours, theirs = Net().double(), Net().double()
    optimizer = LateSAM(ours.parameters(), kind, start_step=10, **kwargs)
    reference = kind(trained(theirs), **kwargs, **fused)
    train(ours, optimizer, 10)
    for i in range(10):
        backward(theirs, i)
        reference.step()
        reference.zero_grad()
    assert optimizer.passes == 2
    assert_bitwise(ours.state_dict(), theirs.state_dict())
