"""Time of the optimizer's own work in one SAM step, full-width networks, no forward or backward.

Side by side in each group: ``per-tensor``, the loop that most scripts carry around, over the base
optimizer as torch runs it by default; ``eager`` and ``fused``, the two paths of `flatbench.optim`;
on CUDA each also as the replay of a graph, so that the comparison isn't one of launch overhead.

``extra_info`` of a case holds

- ratio_to_per_tensor: how many times faster than per-tensor, medians of rounds that take turns;
- gigabytes_per_second: the bytes that a step cannot do without (each array read and written once
  in each of its three passes) over the median time; copy_gigabytes_per_second: the same of a copy
  of all parameters, measured in the same turns;
- bytes_a_parameter, parameters, threads.

Alone on the machine: ``pytest benchmarks/bench_step.py``. Beside a running grid it is skipped.
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flatbench import device, models
from flatbench.optim import SAM

BASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 1e-6, "momentum": 0.9, "weight_decay": 5e-4}),
    "adam": (torch.optim.Adam, {"lr": 1e-6, "weight_decay": 5e-4}),
}
METHODS: dict[str, dict[str, Any]] = {
    "sam": {"rho": 0.05, "adaptive": False},
    "asam": {"rho": 0.5, "adaptive": True},
}
BYTES = {"sgd": 40, "adam": 48}  # a parameter; the norm of ASAM reads w too, 4 more
WARM_UP = 3
ROUNDS = 15

Step = Callable[[], None]


def clock() -> float:
    """Seconds, when the device has come to rest."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class PerTensorSAM:
    """SAM as the well-known scripts write it: a Python loop over tensors, temporaries as needed.

    They put w back by ``p.data = saved``, which costs nothing but moves p; in a graph nothing may
    move, so there it is a copy.
    """

    def __init__(
        self, params: list[nn.Parameter], base: Any, rho: float, adaptive: bool, in_place: bool
    ) -> None:
        self.params, self.base = params, base
        self.rho, self.adaptive, self.in_place = rho, adaptive, in_place
        self.saved: dict[nn.Parameter, Tensor] = {}

    @torch.no_grad()
    def first_step(self) -> None:
        norms = []
        for p in self.params:
            assert p.grad is not None
            norms.append((p.abs() * p.grad if self.adaptive else p.grad).norm())
        scale = self.rho / (torch.stack(norms).norm() + 1e-12)
        for p in self.params:
            assert p.grad is not None
            self.saved[p] = p.detach().clone()
            p.add_((p.pow(2) if self.adaptive else 1.0) * p.grad * scale)

    @torch.no_grad()
    def second_step(self) -> None:
        for p in self.params:
            if self.in_place:
                p.copy_(self.saved[p])
            else:
                p.data = self.saved[p]
        self.base.step()


def parameters(architecture: str, where: torch.device) -> list[nn.Parameter]:
    torch.manual_seed(0)
    model = models.build(architecture, width=64, in_channels=3, classes=10)
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

    return (captured(step) if graph else step), optimizer


def captured(step: Step) -> Step:
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def copy_of(params: list[nn.Parameter]) -> Step:
    source = torch.ones(sum(p.numel() for p in params), device=params[0].device)
    target = torch.empty_like(source)
    return functools.partial(target.copy_, source)  # type: ignore[return-value]


def in_turns(steps: dict[str, Step], iterations: int) -> dict[str, float]:
    """Median seconds of each step, over rounds in which each has its turn."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(WARM_UP + ROUNDS):
        for name, step in steps.items():
            start = clock()
            for _ in range(iterations):
                step()
            if i >= WARM_UP:
                seconds[name].append((clock() - start) / iterations)
    return {name: statistics.median(found) for name, found in seconds.items()}


@pytest.fixture
def where(request: pytest.FixtureRequest) -> torch.device:
    if any("grid_case" in getattr(item, "fixturenames", ()) for item in request.session.items):
        pytest.skip("a grid is training beside it: run benchmarks/bench_step.py alone")
    found = device.find(request.config.getoption("device"))
    if found.type == "cuda":
        torch.cuda.set_device(found)
    return found


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
