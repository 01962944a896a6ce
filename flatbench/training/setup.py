"""A case before its first step: network, optimizer, data and random streams from its seed."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from flatbench import data, models
from flatbench.optim import SAM
from flatbench.protocols.cases import Case
from flatbench.protocols.protocol import Row
from flatbench.training import devices, graph, identity
from flatbench.training.run import Run, snapshot
from flatbench.training.step import take_step

BASES: dict[str, Any] = {  # classes; torch's stub of their common parent knows no options
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def prepare(case: Case, dataset: data.DataSet) -> Run:
    """Return a case before its first step, on the device that the data set is on."""
    settings, where = case.protocol, dataset.train.labels.device
    images = dataset.train.images
    model = build_model(case, dataset)
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
        optimizer=build_optimizer(case.row, model),
        precision=precision,
        shuffle=stream(case.seed, "batches"),
        crops=stream(case.seed, "augmentation", where),
        key=identity.key(case, dataset, where),
    )
    run.step = functools.partial(take_step, run)
    if where.type == "cuda":
        run.step = graphed_step(run)
    return run


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
        classes=dataset.classes or dataset.train.labels[0].numel(),  # of a regression: targets
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


def build_optimizer(row: Row, model: nn.Module) -> torch.optim.Optimizer:
    """Return the base optimizer of a row, or SAM over it, on a model's parameters.

    On CUDA the learning rate is a tensor there, so that a captured step reads what it is now.
    """
    where = next(model.parameters()).device
    on_cuda = where.type == "cuda"
    options: dict[str, Any] = {
        "lr": torch.tensor(row.lr, device=where) if on_cuda else row.lr,
        "weight_decay": row.weight_decay,
    }
    if row.optimizer == "sgd":
        options |= {"momentum": row.momentum, "nesterov": row.nesterov}
    else:
        options |= {"betas": row.betas, "capturable": on_cuda}
    base = BASES[row.optimizer]
    if row.rho is None:
        plain: torch.optim.Optimizer = base(model.parameters(), fused=True, **options)
        return plain
    return SAM(model.parameters(), base, rho=row.rho, adaptive=row.adaptive, eta=row.eta, **options)
