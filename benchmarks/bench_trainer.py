"""Speed of the training: flatbench's step beside the loop that most SAM scripts are.

Both take SAM steps with SGD on the same images, in turns. `plain.PlainLoop` loads through PIL with
workers, computes in fp32, loops over tensors and reads the loss at every step; it runs here.
flatbench's steps run in processes of their own, set up as the engine's workers are.

- ``full-width``: ResNet-18 of width 64, batches of 128 images of 32×32×3, cropped and flipped, on
  all threads, as protocol cifar10-tuned trains it (its images are random here: speed does not look
  at them);
- ``narrow``: the networks and images of protocol digits. The plain loop has all threads, as a
  script that is started has; flatbench trains as many cases at once as there are processors, on a
  thread each, as the grid does.

``extra_info`` of a case holds

- ratio_to_plain_loop: how many times as many images a second as the plain loop;
- images_per_second, and plain_images_per_second of the plain loop;
- ratio_of_one_worker: the same of a single case of flatbench's;
- sam_over_base: the time of a SAM step over that of a step of its base, both flatbench's;
- share_of_peak (full width): the arithmetic of a step's convolutions and matrix products, over its
  time and over the rate that a large convolution or matrix product of the same precision reaches in
  the same turns.

Alone on the machine: ``pytest benchmarks/bench_trainer.py``. Beside a running grid it is skipped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.per_tensor import PerTensorSAM
from benchmarks.plain import PlainLoop
from benchmarks.timing import Step, clock, in_turns
from flatbench import data, execution
from flatbench.protocols.cases import Case, from_id
from flatbench.training import devices, run, setup
from flatbench.training.step import SUMS

IMAGES = 2048  # of the full-width case
CASES = {
    "full-width-resnet18": "cifar10-tuned/resnet18/sgd+sam/seed0",
    "narrow-resnet18": "digits/resnet18/sgd+sam/seed0",
    "narrow-vgg16": "digits/vgg16/sgd+sam/seed0",
}


def images_for(case: Case, where: torch.device, data_dir: Path | None) -> data.DataSet:
    """The case's data set; of CIFAR-10 its shape."""
    if case.protocol.data.name != "cifar10":
        return data.load_for(case.protocol, where, data_dir)
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (IMAGES, 32, 32, 3), generator=rng, dtype=torch.uint8).to(where)
    labels = torch.randint(10, (IMAGES,), generator=rng).to(where)
    part, pixels = data.Part(images, labels), images.float().reshape(-1, 3)
    return data.DataSet(part, part, part, 10, pixels.mean(0), pixels.std(0), "random")


def endless(run: run.Run, batch_size: int) -> Iterator[Tensor]:
    """Whole batches without end."""
    while True:
        for batch in data.batches(len(run.labels), batch_size, run.shuffle, run.where):
            if len(batch) == batch_size:
                yield batch


def flatbench_step(case: Case, dataset: data.DataSet) -> tuple[Step, run.Run]:
    """A step of the trainer's own, its sums kept on the device, and what it moves."""
    run = setup.prepare(case, dataset)
    run.model.train()
    sums = torch.zeros(SUMS, dtype=torch.float64, device=run.where)
    batches = endless(run, case.protocol.training.batch_size)

    def step() -> None:
        sums.add_(run.step(next(batches)))

    return step, run


def plain_step(case: Case, dataset: data.DataSet) -> Step:
    row, model = case.row, setup.build_model(case, dataset)
    assert row.rho is not None
    assert row.lr is not None
    model = model.to(memory_format=torch.contiguous_format)
    base = torch.optim.SGD(model.parameters(), row.lr, row.momentum, weight_decay=row.weight_decay)
    optimizer = PerTensorSAM(model.parameters(), base, row.rho, adaptive=False)
    training, settings = case.protocol.training, case.protocol.data
    loop = PlainLoop(model, optimizer, dataset, training.batch_size, settings.augmentation)
    return loop.step


def arithmetic(model: nn.Module, images: Tensor) -> int:
    """Floating-point operations of a forward and a backward pass in products and convolutions."""
    model.zero_grad()
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    return int(counter.get_total_flops())


def peaks(where: torch.device, precision: str) -> dict[str, tuple[Step, float]]:
    """A large convolution there and back, and a large matrix product, with their operations."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    x = torch.randn(128, 256, 16, 16, device=where, dtype=dtype)
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    w = torch.randn(256, 256, 3, 3, device=where, dtype=dtype)
    w = w.to(memory_format=torch.channels_last).requires_grad_()
    a, b = (torch.randn(2048, 2048, device=where, dtype=dtype) for _ in range(2))
    gradient = torch.ones_like(x)

    def convolve() -> None:
        torch.autograd.grad(F.conv2d(x, w, padding=1), [x, w], gradient)

    return {
        "convolution": (convolve, 3 * 2 * 128 * 16 * 16 * 256 * 256 * 9),
        "product": (functools.partial(torch.matmul, a, b), 2 * 2048**3),
    }


@dataclass(frozen=True)
class Job:
    """What a process of our own trains, set up as the engine's workers are."""

    case: str
    where: str
    threads: int
    data_dir: Path | None


def _work(connection: Connection, job: Job) -> None:
    where = devices.set_up_worker(torch.device(job.where))
    torch.set_num_threads(job.threads)
    case = from_id(job.case)
    step, run = flatbench_step(case, images_for(case, where, job.data_dir))
    while connection.recv():
        step()
        devices.synchronise(where)
        connection.send(None)
    connection.send(all(bool(p.isfinite().all()) for p in run.model.parameters()))


@contextlib.contextmanager
def at_work(job: Job, count: int = 1) -> Iterator[Step]:
    """A step of so many processes at once, as the engine trains a grid."""
    spawn = multiprocessing.get_context("spawn")
    ours: list[Connection] = []
    for _ in range(count):
        here, there = spawn.Pipe()
        spawn.Process(target=_work, args=(there, job), daemon=True).start()
        there.close()
        ours.append(here)

    def step() -> None:
        for connection in ours:
            connection.send(True)
        for connection in ours:
            connection.recv()

    yield step
    for connection in ours:
        connection.send(False)
        assert connection.recv(), f"{job.case}: weights that are not finite"


@pytest.mark.benchmark(group="trainer", timer=clock)
@pytest.mark.parametrize("name", CASES)
def test_trainer(
    benchmark: Any, where: torch.device, request: pytest.FixtureRequest, name: str
) -> None:
    case = from_id(CASES[name])
    base = from_id(CASES[name].replace("+sam", ""))
    batch_size = case.protocol.training.batch_size
    is_narrow = name.startswith("narrow")
    # a narrow network trains on one thread, and the grid's other cases beside it
    workers = execution.cores() if is_narrow and where.type == "cpu" else 1
    own = 1 if is_narrow else torch.get_num_threads()
    rounds, iterations = (9, 20) if is_narrow or where.type == "cuda" else (7, 1)
    data_dir = request.config.getoption("flatbench_data_dir")
    dataset = images_for(case, where, data_dir)
    run = setup.prepare(case, dataset)
    large = {} if is_narrow else peaks(where, run.precision)
    job = Job(case.id, str(where), own, data_dir)
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(at_work(job))
        steps: dict[str, Step] = {
            "one": one,
            "base": stack.enter_context(at_work(dataclasses.replace(job, case=base.id))),
            "plain": plain_step(case, dataset),
            **{kind: work for kind, (work, _) in large.items()},
        }
        if workers > 1:
            steps["grid"] = stack.enter_context(at_work(job, workers))
        benchmark.pedantic(one, warmup_rounds=1, rounds=rounds, iterations=iterations)
        seconds = in_turns(steps, iterations, rounds, warm_up=1)
    plain_rate = batch_size / seconds["plain"]
    rate = workers * batch_size / seconds["grid" if workers > 1 else "one"]
    benchmark.extra_info |= {
        "ratio_to_plain_loop": rate / plain_rate,
        "images_per_second": rate,
        "plain_images_per_second": plain_rate,
        "ratio_of_one_worker": seconds["plain"] / seconds["one"],
        "sam_over_base": seconds["one"] / seconds["base"],
        "precision": run.precision,
        "workers": workers,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu",
    }
    if large:
        images = dataset.normalise(dataset.train.images[:batch_size])
        peak = max(count / seconds[kind] for kind, (_, count) in large.items())
        both_passes = 2 * arithmetic(run.model, images)
        benchmark.extra_info |= {
            "share_of_peak": both_passes / seconds["one"] / peak,
            "peak_gigaflops": peak / 1e9,
        }
