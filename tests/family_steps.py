"""Steps of the SAM family's methods, for the tests that interpret and those that launch kernels."""

import math

import pytest
import torch

from flatbench.optim import (
    GSAM,
    FriendlySAM,
    LateSAM,
    LookSAM,
    MicroBatchSAM,
    MomentumSAM,
    NormalizationSAM,
    PeriodicSAM,
)
from tests.optimizers import BASES, clone, parameters, relative_error, set_gradients

METHODS = {
    "periodic": (PeriodicSAM, {"interval": 3}),
    "late": (LateSAM, {"start_step": 4}),
    "momentum": (MomentumSAM, {}),
    "friendly": (FriendlySAM, {"sigma": 0.8, "lmbda": 0.7}),
    "adaptive friendly": (FriendlySAM, {"adaptive": True, "eta": 0.01}),
    "normalization": (NormalizationSAM, {}),
    "gsam": (GSAM, {"alpha": 0.4, "rho_min": 0.01}),
    "adaptive gsam": (GSAM, {"alpha": 0.7, "adaptive": True}),
    "looksam": (LookSAM, {"interval": 3, "alpha": 0.7}),
    "micro-batch": (MicroBatchSAM, {}),
}
every_method = pytest.mark.parametrize("method", METHODS)
SHAPES = ((3, 5), (70,), (), (2, 3, 7), (200,))


def made(method, params, base="momentum", implementation="fused", **options):
    cls, own = METHODS[method]
    kind, kwargs = BASES[base]
    own = {"rho": 0.1, **own, **kwargs, **options}
    if cls is NormalizationSAM:
        own["only"] = params[1:3]
    optimizer = cls(params, kind, implementation=implementation, **own)
    assert optimizer.implementation == implementation
    return optimizer


def train(params, optimizer, steps, seed=0, missing=((), ()), spoilt=None):
    """Take steps with gradients that depend on where they are taken.

    Args:
        missing: which parameters have no gradient in the first pass, and in the second.
        spoilt: the number of the pass, of all, in which a gradient is not finite.
    """
    generator, passes = torch.Generator(params[0].device).manual_seed(seed), 0

    def backward(half):
        nonlocal passes
        set_gradients(params, generator, missing[half])
        if passes == spoilt:
            params[1].grad[0] = math.nan
        passes += 1

    for _ in range(steps):
        if isinstance(optimizer, MicroBatchSAM):
            for weight in (3.0, 2.0, 1.0):
                backward(0)
                optimizer.first_step(zero_grad=True)
                backward(1)
                optimizer.end_part(weight)
            optimizer.second_step(zero_grad=True)
        elif optimizer.passes == 1:
            backward(1)
            optimizer.step()
            optimizer.zero_grad()
        else:
            backward(0)
            optimizer.first_step(zero_grad=True)
            backward(1)
            optimizer.second_step(zero_grad=True)


# the launches of the first steps of each
LAUNCHES = {
    "periodic": [{"plan": 1, "restore_and_step": 1}] * 2
    + [{"norm_partials": 1, "perturb": 1, "restore_and_step": 1}],
    "momentum": [
        {"plan": 1, "restore_and_step": 1, "look_ahead": 1},
        {"restore_and_step": 1, "look_ahead": 1},
    ],
    "friendly": [{"norm_partials": 1, "perturb": 1, "restore_and_step": 1}],
    "normalization": [{"norm_partials": 1, "perturb": 1, "restore_and_step": 1}],
    "gsam": [{"norm_partials": 1, "perturb": 1, "restore_and_step": 1}],
    "looksam": [{"norm_partials": 1, "perturb": 1, "restore_and_step": 1}]
    + [{"plan": 1, "restore_and_step": 1}] * 2,
    "micro-batch": [{"norm_partials": 3, "perturb": 3, "end_part": 3, "restore_and_step": 1}],
}


def assert_same(fused, reference, tolerance=1e-6):
    (ours, mine), (theirs, others) = fused, reference
    assert relative_error(ours, theirs) <= tolerance
    pairs = {}  # by name: over all parameters, for a scalar's buffer may happen to be near zero
    for p, q in zip(ours, theirs, strict=True):
        for kept, expected in ((mine.own_state, others.own_state), (mine.state, others.state)):
            for name, t in expected.get(q, {}).items():
                if isinstance(t, torch.Tensor) and t.numel():
                    pairs.setdefault(name, []).append((kept[p][name], t))
    for name, found in pairs.items():
        assert relative_error(*zip(*found, strict=True)) <= 5 * tolerance, name


def compare(method, base, steps, **options):
    """Take fused steps and eager ones in float64; return the fused optimizer."""
    start = parameters(*SHAPES)
    runs = []
    for implementation, dtype in (("fused", torch.float32), ("eager", torch.float64)):
        params = clone(start, dtype)
        optimizer = made(method, params, base, implementation)
        train(params, optimizer, steps, **options)
        optimizer.eval()
        runs.append((params, optimizer))
    assert_same(*runs)
    assert runs[0][1].skipped_steps == runs[1][1].skipped_steps
    return runs[0][1]
