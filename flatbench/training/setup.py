"""A case before its first step: network, optimizer, data and random streams from its seed."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flatbench import data, models
from flatbench.errors import UsageError
from flatbench.optim import SAM
from flatbench.protocols.cases import Case
from flatbench.training import devices, graph, identity, optimizers, stepping
from flatbench.training.run import Run, Stepping, snapshot
from flatbench.training.step import take_step


@dataclass(frozen=True)
class Built:
    """A row's optimizer, and what is known of it; the names are those of `Run`."""

    optimizer: torch.optim.Optimizer
    stepping: Stepping
    rates: list[float | None]
    why_not_resumable: str | None


def build_optimizer(case: Case, model: nn.Module) -> Built:
    """Return the optimizer of a case's row on a model's parameters.

    Many an optimizer views a weight or its gradient as one flat vector (LBFGS), which it can't do
    with convolutions in channels_last. For one that does not step so the weights become contiguous.

    Raises:
        UsageError: it cannot be built as the row says, or it can't be told how it steps.
    """
    recipe = optimizers.recipe(case, model)
    try:
        kind = stepping.find(recipe)
    except UsageError:
        model.to(memory_format=torch.contiguous_format)
        kind = stepping.find(recipe)
    made = optimizers.make(recipe, recipe.groups)
    rates = optimizers.initial_rates(made)
    if recipe.is_ours:
        return Built(made, kind, rates, None)
    if None in rates:
        optimizers.check_schedule(case, recipe, "has no lr")
    elif not stepping.follows_rates(recipe, kind):
        optimizers.check_schedule(case, recipe, "does not follow the lr of its param_groups")
    return Built(made, kind, rates, stepping.why_not_resumable(recipe, kind))


def check(cases: Iterable[Case], datasets: Mapping[int, data.DataSet]) -> None:
    """Build the optimizer of each row and architecture once, before anything is trained.

    Args:
        cases: what is to be trained.
        datasets: their data by the ``id`` of their protocol.

    Raises:
        UsageError: as `build_optimizer`.
    """
    checked = set()
    with torch.random.fork_rng(devices=[]):
        for case in cases:
            cell = (id(case.protocol), case.architecture, case.optimizer)
            if cell not in checked:
                checked.add(cell)
                build_optimizer(case, build_model(case, datasets[id(case.protocol)]))


def prepare(case: Case, dataset: data.DataSet) -> Run:
    """Return a case before its first step, on the device that the data set is on."""
    settings, where = case.protocol, dataset.train.labels.device
    images = dataset.train.images
    model = build_model(case, dataset)
    built = build_optimizer(case, model)
    precision = settings.training.precision
    if precision == "auto":
        precision = "bf16" if devices.has_fast_bf16(where) else "fp32"
    run = Run(
        case=case,
        where=where,
        dataset=dataset,
        evaluated=dataset.test if settings.data.evaluation == "test" else dataset.validation,
        images=images if settings.data.augmentation == "none" else data.pad(images),
        labels=training_labels(case, dataset),
        model=model,
        optimizer=built.optimizer,
        stepping=built.stepping,
        rates=built.rates,
        why_not_resumable=built.why_not_resumable,
        precision=precision,
        shuffle=stream(case.seed, "batches"),
        crops=stream(case.seed, "augmentation", where),
        key=identity.key(case, dataset, where),
    )
    run.step = functools.partial(take_step, run)
    if where.type == "cuda":
        reason = why_no_graph(run)
        if reason is None:
            optimizers.use_device_rates(run.optimizer, where)
            run.step = graphed_step(run)
        else:
            _warn_of_single_steps(reason)
    return run


def why_no_graph(run: Run) -> str | None:
    """Return in one line why a run's steps are not captured in a CUDA graph, or None."""
    if run.stepping != "plain" and not isinstance(run.optimizer, SAM):
        return f"{run.case.row.optimizer} evaluates gradients by a closure of its own"
    return optimizers.why_no_graph(run.optimizer)


@functools.cache  # once a process and reason
def _warn_of_single_steps(reason: str) -> None:
    warnings.warn(f"no CUDA graph, the steps run one by one: {reason}", RuntimeWarning, 2)


def graphed_step(run: Run, capture: graph.Capture = graph.capture_cuda_graph) -> graph.Step:
    """Return the run's step as one that replays a graph once it is warm."""
    return graph.graphed(
        run.step,
        run.case.protocol.training.batch_size,
        run.where,
        generators=[run.crops],
        snapshot=functools.partial(snapshot, run),
        capture=capture,
        after_capture=functools.partial(_after_capture, run),
        on_time=functools.partial(_count_capture, run),
    )


def build_model(case: Case, dataset: data.DataSet) -> nn.Module:
    """Return a case's network with its seed's first weights, on the data's device."""
    torch.manual_seed(stream(case.seed, "weights").initial_seed())
    model = models.build(
        case.architecture,
        width=case.protocol.model.width,
        in_channels=dataset.channels,
        classes=dataset.classes,
    )
    where = dataset.train.labels.device
    model.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def training_labels(case: Case, dataset: data.DataSet) -> Tensor:
    """Return the labels [N] that a case trains on: the data set's, with its seed's noise."""
    noise = stream(case.seed, "label noise")
    fraction = case.protocol.data.label_noise
    return data.noisy_labels(dataset.train.labels, dataset.classes, fraction, noise)


def _after_capture(run: Run) -> None:
    if isinstance(run.optimizer, SAM):
        run.optimizer.sync_hyperparameters()  # and where the graph's gradients are


def _count_capture(run: Run, seconds: float) -> None:
    run.capture_seconds += seconds


def stream(seed: int, purpose: str, where: torch.device | str = "cpu") -> torch.Generator:
    """Return a random generator of its own for one purpose, so that one use can't shift another.

    Every optimizer of one seed sees the same noise, the same first weights and the same batches:
    SAM − base is a paired difference.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator(where).manual_seed(int.from_bytes(digest[:7], "big"))
