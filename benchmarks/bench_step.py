"""Time of the optimizer's own work in one SAM step, full-width networks, no forward or backward.

Side by side in each group: ``per-tensor``, the loop that most scripts carry around, over the base
optimizer as torch runs it by default; ``eager`` and ``fused``, the two paths of `flatbench.optim`;
on CUDA each also as the replay of a graph, so that the comparison isn't one of launch overhead.

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
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.plain import PerTensorSAM
from benchmarks.timing import ROUNDS, WARM_UP, Step, clock, in_turns
from flatbench import models
from flatbench.optim import SAM, choice
from tests import stub

BASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 1e-6, "momentum": 0.9, "weight_decay": 5e-4}),
    "adam": (torch.optim.Adam, {"lr": 1e-6, "weight_decay": 5e-4}),
}
METHODS: dict[str, dict[str, Any]] = {
    "sam": {"rho": 0.05, "adaptive": False},
    "asam": {"rho": 0.5, "adaptive": True},
}
# A parameter: 4 for the norm, 16 to save and perturb, 20 or 28 to put back and step, and 4 to check
# the second gradients, which per-tensor doesn't. ASAM's norm reads w too, 4 more.
BYTES = {"sgd": 44, "adam": 52}
CHECK = 4
HOST_ROUNDS = 300


def parameters(architecture: str, where: torch.device, width: int = 64) -> list[nn.Parameter]:
    torch.manual_seed(0)
    model = models.build(architecture, width=width, in_channels=3, classes=10)
    model.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    params = list(model.parameters())
    for p in params:
        p.grad = 1e-3 * torch.randn_like(p)
    return params


def optimizer_step(
    params: list[nn.Parameter], base: str, method: str, implementation: str
) -> tuple[Step, PerTensorSAM | SAM]:
    kind, options = BASES[base]
    name, _, graph = implementation.partition("+")
    if graph and base == "adam":
        options = {**options, "capturable": True}
    optimizer: PerTensorSAM | SAM
    if name == "per-tensor":
        plain = kind(params, **options)
        optimizer = PerTensorSAM(params, plain, in_place=bool(graph), **METHODS[method])
    else:
        chosen: Any = name
        optimizer = SAM(params, kind, implementation=chosen, **METHODS[method], **options)

    def step() -> None:
        optimizer.first_step()
        optimizer.second_step()

    return (captured(step, optimizer) if graph else step), optimizer


def captured(step: Step, optimizer: PerTensorSAM | SAM) -> Step:
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    if isinstance(optimizer, SAM):
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
@pytest.mark.parametrize("method", METHODS)
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
    params = parameters(architecture, where)
    n = sum(p.numel() for p in params)
    bytes_a_parameter = BYTES[base] + 4 * METHODS[method]["adaptive"]
    if implementation.startswith("per-tensor"):
        bytes_a_parameter -= CHECK
    step, optimizer = optimizer_step(params, base, method, implementation)
    loop = step
    if implementation != "per-tensor":
        loop, _ = optimizer_step(parameters(architecture, where), base, method, "per-tensor")
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
    if isinstance(optimizer, SAM) and optimizer.implementation == "fused":
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
@pytest.mark.parametrize("method", METHODS)
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
        step, optimizer = optimizer_step(params, base, method, name)
        assert isinstance(optimizer, SAM)
        assert optimizer.implementation == name

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
