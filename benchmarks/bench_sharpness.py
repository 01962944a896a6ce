"""What measures of sharpness cost: beside the training, and beside the usual way of taking them.

``price`` is of every row and network of protocol digits: how long its measures take, as a part of
the steps of the run that they measure. ``extra_info`` holds it for the plain ones together, for all
together, and by measure.

The other cases hold the Hessian's measures against the usual way, at equal error. The usual way is
PyHessian's (Yao et al. 2020), written here with its loops: power iteration for the largest
eigenvalue, until it changes by less than a part of itself, and Hutchinson's estimate of the trace.
Its products come from a gradient whose graph is kept, as ours do; so what is compared is how many
it takes.

The networks are those of protocol digits, trained as it says. The eigenvalue of each way is taken
at the loosest of the `TOLERANCES` at which it is within `ERROR` of the exact one for every seed.
Hutchinson's trace has as many products as bring its standard deviation down to ours: it falls with
the root of their number.

Their ``extra_info`` holds

- ratio_to_usual: how many times as long the usual way takes, both timed in turns;
- products and usual_products: how many each takes, the median over the seeds;
- error and usual_error: of an eigenvalue the largest over the seeds, of a trace the standard
  deviation, as a part of the value.

Alone on the machine: ``pytest benchmarks/bench_sharpness.py``.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.timing import in_turns
from flatbench import data
from flatbench.protocols.cases import Case, from_id, grid
from flatbench.protocols.reading import load
from flatbench.records.record import Record
from flatbench.sharpness import (
    HessianProducts,
    LossSurface,
    hessian_curvature,
    hessian_max_eigenvalue,
    loss_surface,
)
from flatbench.study.weights import load_into
from flatbench.training import measuring, setup
from flatbench.training.trainer import train

CASES = ("digits/resnet18/sgd/seed0", "digits/vgg16/adam+sam/seed0")
ALL_CASES = tuple(case.id for case in grid(load("digits")) if case.seed == 0)
SEEDS = range(5)
TOLERANCES = (0.1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5)
ERROR = 1e-2
LIMIT = 120  # products of a power iteration
ROUNDS = 5


def power_iteration(surface: LossSurface, seed: int, products: int) -> list[float]:
    """Return the eigenvalue of largest size after each product."""
    hessian = HessianProducts(surface.fresh())
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(surface.dimension, generator=generator, dtype=torch.float64)
    vector = (vector / vector.norm()).to(surface.center.device)
    values = []
    for _ in range(products):
        image = hessian(vector[None])[0]
        values.append(float(image @ vector))
        vector = image / image.norm()
    return values


def stopped(values: list[float], tolerance: float) -> int:
    """Return after how many products PyHessian would stop: the value has changed by so little."""
    for i in range(1, len(values)):
        if abs(values[i] - values[i - 1]) <= tolerance * abs(values[i - 1]):
            return i + 1
    return len(values)


def block_lanczos(surface: LossSurface, tolerance: float, seed: int) -> tuple[float, int]:
    found = hessian_max_eigenvalue(surface, tolerance=tolerance, seed=seed)
    return found.value, products_of(found.gradient_evaluations)


def products_of(gradient_evaluations: float) -> int:
    return round((gradient_evaluations - 1) / 2)


def loosest(
    found: Callable[[float], list[tuple[float, int]]], exact: float
) -> tuple[float, float, int]:
    """Return the loosest tolerance within `ERROR` for all seeds, the worst error, the products."""
    for tolerance in TOLERANCES:
        values = found(tolerance)
        worst = max(abs(value / exact - 1) for value, _ in values)
        if worst <= ERROR:
            return tolerance, worst, round(statistics.median(products for _, products in values))
    raise AssertionError(f"not within {ERROR} at any tolerance, nor after {LIMIT} products")


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


def trained(case: Case, dataset: data.DataSet, folder: Path) -> tuple[Record, nn.Module]:
    """Train a case on the CPU as its protocol says, and return its record and its network."""
    weights = folder / "weights.safetensors"
    record = train(case, weights=weights)
    model = setup.build_model(case, dataset)
    load_into(model, weights, torch.device("cpu"))
    return record, model.eval()


@pytest.fixture(scope="module", params=CASES)
def surface(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> LossSurface:
    case = from_id(request.param)
    dataset = data.load_for(case.protocol)
    _, model = trained(case, dataset, tmp_path_factory.mktemp("trained"))
    picked = measuring.examples(dataset, case.protocol.sharpness)
    images = dataset.normalise(dataset.train.images[picked])
    labels = setup.training_labels(case, dataset)[picked]
    return loss_surface(model, F.cross_entropy, images, labels)


@pytest.mark.benchmark(group="sharpness")
@pytest.mark.parametrize("name", ALL_CASES)
def test_price(benchmark: Any, where: torch.device, name: str, tmp_path: Path) -> None:
    case = from_id(name)
    dataset, rule = data.load_for(case.protocol), case.protocol.sharpness
    record, model = trained(case, dataset, tmp_path)
    labels = setup.training_labels(case, dataset)

    def seconds(*names: str) -> float:
        start = time.perf_counter()
        assert not measuring.measure(names, model, dataset, labels, rule).failures
        return time.perf_counter() - start

    names = measuring.at_end(rule)
    seconds(*names)  # shapes that it has not met cost more the first time
    steps = record.seconds
    assert steps is not None
    benchmark.extra_info |= {
        "plain": seconds(*rule.at_end) / steps,
        "all": seconds(*names) / steps,
        "by_measure": {name: seconds(name) / steps for name in names},
    }
    benchmark.pedantic(lambda: seconds(*names), rounds=1)


@pytest.mark.benchmark(group="sharpness")
def test_largest_eigenvalue(benchmark: Any, where: torch.device, surface: LossSurface) -> None:
    exact = hessian_max_eigenvalue(surface, tolerance=1e-6).value
    ours, error, products = loosest(
        lambda tolerance: [block_lanczos(surface, tolerance, seed) for seed in SEEDS], exact
    )
    powers = [power_iteration(surface, seed, LIMIT) for seed in SEEDS]

    def usual(tolerance: float) -> list[tuple[float, int]]:
        ends = [stopped(values, tolerance) for values in powers]
        return [(values[end - 1], end) for values, end in zip(powers, ends, strict=True)]

    _, usual_error, usual_products = loosest(usual, exact)

    def lanczos() -> None:
        block_lanczos(surface, ours, seed=0)

    seconds = in_turns(
        {"ours": lanczos, "usual": lambda: power_iteration(surface, 0, usual_products)},
        rounds=ROUNDS,
        warm_up=1,
    )
    benchmark.pedantic(lanczos, rounds=ROUNDS)
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
