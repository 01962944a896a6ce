"""Speed of the Hessian's measures beside the usual way of taking them, at equal error.

The usual way is PyHessian's (Yao et al. 2020), written here with its loops: power iteration for the
largest eigenvalue, until it changes by less than a part of itself, and Hutchinson's estimate of the
trace. Its products come from a gradient whose graph is kept, as ours do; so what is compared is how
many it takes.

The networks are those of protocol digits after `STEPS` steps. The eigenvalue of each way is taken
at the loosest of the `TOLERANCES` at which it is within `ERROR` of the exact one for every seed.
Hutchinson's trace has as many products as bring its standard deviation down to ours: it falls with
the root of their number.

``extra_info`` of a case holds

- ratio_to_usual: how many times as long the usual way takes, both timed in turns;
- products and usual_products: how many each takes, the median over the seeds;
- error and usual_error: of an eigenvalue the largest over the seeds, of a trace the standard
  deviation, as a part of the value.

Alone on the machine: ``pytest benchmarks/bench_sharpness.py``.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.bench_trainer import flatbench_step
from benchmarks.timing import in_turns
from flatbench import data
from flatbench.protocols.cases import from_id
from flatbench.sharpness import (
    HessianProducts,
    LossSurface,
    hessian_curvature,
    hessian_eigenvalues,
    loss_surface,
)
from flatbench.training import measuring

CASES = ("digits/resnet18/sgd/seed0", "digits/resnet18/adam+sam/seed0", "digits/vgg16/adam/seed0")
STEPS = 200
SEEDS = range(12)
TOLERANCES = (0.3, 0.1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5)
ERROR = 1e-2
LIMIT = 2000  # products of a power iteration
ROUNDS = 9

Way = Callable[[LossSurface, float, int], tuple[float, int]]
"""Maps a surface, a tolerance and a seed to an eigenvalue and the products that it took."""


def power_iteration(surface: LossSurface, tolerance: float, seed: int) -> tuple[float, int]:
    hessian = HessianProducts(surface.fresh())
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(surface.dimension, generator=generator, dtype=torch.float64)
    vector = (vector / vector.norm()).to(surface.center.device)
    before = math.inf
    for products in itertools.count(1):
        image = hessian(vector[None])[0]
        value = float(image @ vector)
        vector = image / image.norm()
        if abs(value - before) <= tolerance * abs(value) or products == LIMIT:
            return value, products
        before = value
    raise AssertionError("an endless loop has ended")


def block_lanczos(surface: LossSurface, tolerance: float, seed: int) -> tuple[float, int]:
    found = hessian_curvature(surface, tolerance=tolerance, seed=seed).max_eigenvalue
    return found.value, products_of(found.gradient_evaluations)


def products_of(gradient_evaluations: float) -> int:
    return round((gradient_evaluations - 1) / 2)


def loosest(way: Way, surface: LossSurface, exact: float) -> tuple[float, float, float]:
    """Return the loosest tolerance within `ERROR`, the worst error there, and the products."""
    for tolerance in TOLERANCES:
        found = [way(surface, tolerance, seed) for seed in SEEDS]
        worst = max(abs(value / exact - 1) for value, _ in found)
        if worst <= ERROR:
            return tolerance, worst, statistics.median(products for _, products in found)
    raise AssertionError(f"{way.__name__} is not within {ERROR} at any tolerance")


def hutchinson(surface: LossSurface, products: int, seed: int) -> Tensor:
    """Return vᵀHv of each of as many random signs v: the trace is their mean."""
    hessian = HessianProducts(surface.fresh())
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(products):  # one at a time, as PyHessian has it
        bits = torch.randint(2, (1, surface.dimension), generator=generator)
        signs = (2.0 * bits - 1).to(surface.center)
        found.append((signs * hessian(signs)).sum())
    return torch.stack(found)


@pytest.fixture(scope="module", params=CASES)
def surface(request: pytest.FixtureRequest) -> LossSurface:
    case = from_id(request.param)
    dataset = data.load_for(case.protocol)
    step, run = flatbench_step(case, dataset)
    for _ in range(STEPS):
        step()
    picked = measuring.examples(dataset, case.protocol.sharpness)
    images = dataset.normalise(dataset.train.images[picked])
    return loss_surface(run.model.eval(), F.cross_entropy, images, run.labels[picked])


@pytest.mark.benchmark(group="sharpness")
def test_largest_eigenvalue(benchmark: Any, where: torch.device, surface: LossSurface) -> None:
    exact = hessian_eigenvalues(surface, tolerance=1e-6).values[0]
    ours, error, products = loosest(block_lanczos, surface, exact)
    usual, usual_error, usual_products = loosest(power_iteration, surface, exact)
    seeds, usual_seeds = itertools.cycle(SEEDS), itertools.cycle(SEEDS)

    def lanczos() -> None:
        hessian_eigenvalues(surface, tolerance=ours, seed=next(seeds))

    seconds = in_turns(
        {"ours": lanczos, "usual": lambda: power_iteration(surface, usual, next(usual_seeds))},
        rounds=len(SEEDS),
        warm_up=1,
    )
    benchmark.pedantic(lanczos, rounds=len(SEEDS))
    benchmark.extra_info |= {
        "ratio_to_usual": seconds["usual"] / seconds["ours"],
        "products": products,
        "usual_products": usual_products,
        "error": error,
        "usual_error": usual_error,
    }


@pytest.mark.benchmark(group="sharpness")
def test_trace(benchmark: Any, where: torch.device, surface: LossSurface) -> None:
    tolerance, probes = measuring.EIGENVALUE_TOLERANCE, measuring.TRACE_PROBES

    def ours(seed: int = 0) -> tuple[float, float]:
        found = hessian_curvature(surface, tolerance=tolerance, probes=probes, seed=seed).trace
        return found.value, found.gradient_evaluations

    found = [ours(seed) for seed in SEEDS]
    std = statistics.stdev(value for value, _ in found)
    spread = hutchinson(surface, 100, seed=1)
    usual_products = math.ceil(float(spread.var()) / std**2)
    seconds = in_turns(
        {"ours": ours, "usual": lambda: hutchinson(surface, usual_products, 0)},
        rounds=ROUNDS,
        warm_up=1,
    )
    benchmark.pedantic(ours, rounds=ROUNDS)
    trace = statistics.fmean(value for value, _ in found)
    benchmark.extra_info |= {
        "ratio_to_usual": seconds["usual"] / seconds["ours"],
        "products": statistics.median(products_of(cost) for _, cost in found),
        "usual_products": usual_products,
        "error": std / abs(trace),
        "usual_error": float(spread.std()) / math.sqrt(usual_products) / abs(trace),
    }
