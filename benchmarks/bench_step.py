"""Time of the optimizer's own work in one step of the SAM family, without forward or backward.

The networks have their full width. LookSAM's case is of two steps, one of SAM and one between.

Side by side in each group: ``per-tensor``, the loop that most scripts carry around, over the base
optimizer as torch runs it by default; ``eager`` and ``fused``, the two paths of `flatbench.optim`;
on CUDA SAM and ASAM also as the replay of a graph, so that the comparison isn't one of launch
overhead.

``extra_info`` of a case holds

- ratio_to_per_tensor: how many times faster than per-tensor, medians of rounds that take turns;
- gigabytes_per_second: the bytes that a step cannot do without (each array read and written once
  in each of its passes) over the median time; copy_gigabytes_per_second: the same of a copy
  of all parameters, measured in the same turns;
- bytes_a_parameter, parameters, threads.

``eager-host`` and ``fused-host`` are the host's part alone, on as many tensors as ResNet-18 has, so
small that their arithmetic is nothing, with gradients at new addresses as autograd makes them. On
CUDA that is the time until the launches are queued. On a CPU the fused step launches through
Triton's own launcher into a driver that does nothing; eager has no launches there, and computes
tensor by tensor. ``extra_info`` holds host_microseconds, and eager_over_fused of steps in turns.

Alone on the machine: ``pytest benchmarks/bench_step.py``. Beside a running grid it is skipped.
"""

import functools
import statistics
import time
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.per_tensor import (
    PerTensorFriendly,
    PerTensorGSAM,
    PerTensorLook,
    PerTensorMomentum,
    PerTensorNormalization,
    PerTensorParts,
    PerTensorSAM,
)
from benchmarks.timing import ROUNDS, WARM_UP, Step, clock, in_turns
from flatbench import models
from flatbench.optim import (
    GSAM,
    SAM,
    FriendlySAM,
    HalfSteps,
    LookSAM,
    MicroBatchSAM,
    MomentumSAM,
    NormalizationSAM,
    choice,
    normalization_parameters,
)
from tests import stub

BASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 1e-6, "momentum": 0.9, "weight_decay": 5e-4}),
    "adam": (torch.optim.Adam, {"lr": 1e-6, "weight_decay": 5e-4}),
}


@dataclass(frozen=True)
class Method:
    """A method as it is timed.

    Attributes:
        ours: the class.
        loop: the loop that it is held against.
        options: those of both.
        extra: bytes a parameter beside those of SAM, in one round.
        steps: of a round, so that steps of one gradient have their part.
    """

    ours: Any
    loop: Any
    options: dict[str, Any]
    extra: int
    steps: int = 1


# SAM, a parameter: 4 for the norm, 16 to save and perturb, 20 or 28 to put back and step, and 4 to
# check the second gradients, which per-tensor doesn't. A step of one gradient has 24 or 32 of it.
BYTES = {"sgd": 44, "adam": 52}
CHECK = 4
PARTS = 2
METHODS: dict[str, Method] = {
    "sam": Method(SAM, PerTensorSAM, {"rho": 0.05}, 0),
    # the norm reads w, too
    "asam": Method(SAM, PerTensorSAM, {"rho": 0.5, "adaptive": True}, 4),
    # reads the average for the norm; reads and writes it
    "friendly": Method(
        FriendlySAM, PerTensorFriendly, {"rho": 0.05, "sigma": 1.0, "lmbda": 0.9}, 4 + 8
    ),
    # neither norm nor perturbation, but for a thousandth
    "sam-on": Method(NormalizationSAM, PerTensorNormalization, {"rho": 0.5}, -20),
    # reads the first gradient for the product, and to step
    "gsam": Method(GSAM, PerTensorGSAM, {"rho": 0.05, "alpha": 1e-6}, 8),
    # two steps: GSAM's and g_v written; then one of one gradient, and g_v read twice
    "looksam": Method(LookSAM, PerTensorLook, {"rho": 0.05, "alpha": 1e-6}, 8 + 4 + 8, steps=2),
    # no norm of a gradient and no perturbation by one; w and m read, the copy and w written
    "momentum": Method(MomentumSAM, PerTensorMomentum, {"rho": 0.3}, -20 + 16),
    # norm, perturbation, and 20 to put back and to add, of each part; the base steps at w
    "micro-batch": Method(
        MicroBatchSAM, PerTensorParts, {"rho": 0.05}, -20 + PARTS * (4 + 16 + 20)
    ),
}
SAM_ITSELF = ("sam", "asam")
HOST_ROUNDS = 300


def parameters(architecture: str, where: torch.device, width: int) -> list[nn.Parameter]:
    params = list(network(architecture, where, width).parameters())
    for p in params:
        p.grad = 1e-3 * torch.randn_like(p)
    return params


def network(architecture: str, where: torch.device, width: int = 64) -> nn.Module:
    torch.manual_seed(0)
    model = models.build(architecture, width=width, in_channels=3, classes=10)
    model.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def optimizer_step(
    model: nn.Module, base: str, method: str, implementation: str
) -> tuple[Step, PerTensorSAM | HalfSteps]:
    kind, options = BASES[base]
    name, _, graph = implementation.partition("+")
    if graph and base == "adam":
        options = {**options, "capturable": True}
    params, timed = list(model.parameters()), METHODS[method]
    own = dict(timed.options)
    if method == "sam-on":
        own["only"] = normalization_parameters(model)
    optimizer: PerTensorSAM | HalfSteps
    if name == "per-tensor":
        optimizer = timed.loop(params, kind(params, **options), in_place=bool(graph), **own)
    else:
        if method == "looksam":
            own["interval"] = timed.steps
        optimizer = timed.ours(params, kind, implementation=name, **own, **options)
    halves = [[1e-3 * torch.randn_like(p) for p in params] for _ in range(2)]

    def give(half: int) -> None:
        """Set the gradients, as a backward pass does: methods take the first ones away."""
        for p, g in zip(params, halves[half], strict=True):
            p.grad = g

    def step() -> None:
        for _ in range(timed.steps):
            if optimizer.passes == 1:
                give(1)
                optimizer.step()
                continue
            for _ in range(PARTS if method == "micro-batch" else 1):
                give(0)
                optimizer.first_step()
                give(1)
                if isinstance(optimizer, MicroBatchSAM | PerTensorParts):
                    optimizer.end_part()
            optimizer.second_step()

    give(0)
    return (captured(step, optimizer) if graph else step), optimizer


def captured(step: Step, optimizer: PerTensorSAM | HalfSteps) -> Step:
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    if isinstance(optimizer, HalfSteps):
        optimizer.sync_hyperparameters()
    return graph.replay


def copy_of(params: list[nn.Parameter]) -> Step:
    source = torch.ones(sum(p.numel() for p in params), device=params[0].device)
    target = torch.empty_like(source)
    return functools.partial(target.copy_, source)


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize(
    "implementation",
    [
        "per-tensor",
        "eager",
        pytest.param("fused", marks=pytest.mark.gpu),
        pytest.param("per-tensor+graph", marks=pytest.mark.gpu),
        pytest.param("eager+graph", marks=pytest.mark.gpu),
        pytest.param("fused+graph", marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize("method", SAM_ITSELF)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("architecture", ["resnet18", "vgg16"])
def test_step(
    benchmark: Any,
    where: torch.device,
    architecture: str,
    base: str,
    method: str,
    implementation: str,
) -> None:
    measure(benchmark, where, architecture, base, method, implementation)


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize(
    "implementation", ["per-tensor", "eager", pytest.param("fused", marks=pytest.mark.gpu)]
)
@pytest.mark.parametrize("method", [name for name in METHODS if name not in SAM_ITSELF])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("architecture", ["resnet18"])
def test_family(
    benchmark: Any,
    where: torch.device,
    architecture: str,
    base: str,
    method: str,
    implementation: str,
) -> None:
    measure(benchmark, where, architecture, base, method, implementation)


def measure(
    benchmark: Any,
    where: torch.device,
    architecture: str,
    base: str,
    method: str,
    implementation: str,
) -> None:
    """Time one case, in turns with the loop over tensors and a copy."""
    model, timed = network(architecture, where), METHODS[method]
    params = list(model.parameters())
    n = sum(p.numel() for p in params)
    bytes_a_parameter = BYTES[base] + (timed.steps - 1) * (BYTES[base] - 20) + timed.extra
    if implementation.startswith("per-tensor"):
        bytes_a_parameter -= CHECK * timed.steps
    step, optimizer = optimizer_step(model, base, method, implementation)
    loop = step
    if implementation != "per-tensor":
        loop, _ = optimizer_step(network(architecture, where), base, method, "per-tensor")
    iterations = 10 if where.type == "cuda" else 1

    benchmark.group = f"{architecture}-{base}-{method}"
    benchmark.pedantic(step, warmup_rounds=WARM_UP, rounds=ROUNDS, iterations=iterations)

    seconds = in_turns({"step": step, "loop": loop, "copy": copy_of(params)}, iterations)
    benchmark.extra_info.update(
        ratio_to_per_tensor=seconds["loop"] / seconds["step"],
        gigabytes_per_second=bytes_a_parameter * n / seconds["step"] / 1e9,
        copy_gigabytes_per_second=8 * n / seconds["copy"] / 1e9,
        bytes_a_parameter=bytes_a_parameter,
        parameters=n,
        device=torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu",
        threads=torch.get_num_threads(),
    )
    if type(optimizer) is SAM and optimizer.implementation == "fused":
        fused_step = optimizer._fused_step()
        assert fused_step is not None
        assert sum(fused_step.traffic().values()) == bytes_a_parameter * n
    assert all(bool(p.isfinite().all()) for p in params)


@pytest.fixture(scope="module")
def stub_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    made: dict[str, str] = stub.environment(tmp_path_factory.mktemp("stub"))
    return made


@pytest.fixture
def launchable(
    where: torch.device, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """On a CPU: launches go through Triton's own launcher to a driver that does nothing."""
    if where.type == "cuda":
        return
    for name, value in request.getfixturevalue("stub_environment").items():
        monkeypatch.setenv(name, value)
    stub.install()
    monkeypatch.setattr(choice, "why_not_fused", lambda device: None)


@pytest.mark.benchmark(timer=time.perf_counter)
@pytest.mark.parametrize("implementation", ["eager-host", "fused-host"])
@pytest.mark.parametrize("method", SAM_ITSELF)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("architecture", ["resnet18"])
@pytest.mark.usefixtures("launchable")
def test_host(
    benchmark: Any,
    where: torch.device,
    architecture: str,
    base: str,
    method: str,
    implementation: str,
) -> None:
    def made(name: str) -> tuple[Step, Step]:
        params = parameters(architecture, where, width=1)
        kind, options = BASES[base]
        timed = METHODS[method]
        optimizer = timed.ours(params, kind, implementation=name, **timed.options, **options)
        assert optimizer.implementation == name

        def step() -> None:
            optimizer.first_step()
            optimizer.second_step()

        def renew() -> None:
            """As autograd does between the halves: gradients at new addresses."""
            for p in params:
                p.grad = torch.full_like(p, 1e-3)
            clock()

        return step, renew

    steps = {name: made(name) for name in ("eager", "fused")}
    step, renew = steps[implementation.removesuffix("-host")]
    benchmark.group = f"{architecture}-{base}-{method}-host"
    benchmark.pedantic(step, setup=renew, warmup_rounds=WARM_UP, rounds=HOST_ROUNDS)

    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(HOST_ROUNDS):
        for name, (step, renew) in steps.items():
            renew()
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    benchmark.extra_info.update(
        host_microseconds=1e6 * medians[implementation.removesuffix("-host")],
        eager_over_fused=medians["eager"] / medians["fused"],
        tensors=len(parameters(architecture, where, width=1)),
        device=torch.cuda.get_device_name(where) if where.type == "cuda" else "stub",
    )
