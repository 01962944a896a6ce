"""A case before its first step: network, optimizer, data and random streams from its seed."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from flatbench import data, models
from flatbench.components import in_one_line
from flatbench.errors import UsageError
from flatbench.optim import SAM
from flatbench.protocols.cases import Case
from flatbench.protocols.protocol import LOSS, Row
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
    """Return a case's network with its seed's first weights, on the data's device.

    A network of ours is laid out as channels_last. A network of the user's own keeps the layout
    that its code gives it, and gets images that are contiguous: such code often views an activation
    in another shape, which channels_last memory forbids.

    Raises:
        UsageError: the network cannot be built; see `flatbench.models.builder`.
    """
    network = case.architecture_settings
    offered: dict[str, Any] = {
        "width": case.protocol.model.width,
        "in_channels": dataset.channels,
        "classes": dataset.classes or dataset.train.labels[0].numel(),  # of a regression: targets
    }
    if dataset.holds_images:
        height, width = dataset.shape[1:]
        offered["image_size"] = height if height == width else (height, width)
    make = models.builder(
        network.build,
        offered,
        network.options,
        folder=case.protocol.folder,
        where=_where(case),
    )
    torch.manual_seed(stream(case.seed, "weights").initial_seed())
    model = make()
    where = dataset.train.labels.device
    if network.build in models.ARCHITECTURES:
        model.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model
    model.register_forward_pre_hook(_make_contiguous)
    return model.to(where)


def _where(case: Case) -> str:
    return f"protocol {case.protocol.name}: architecture {case.architecture!r}"


def _make_contiguous(_: nn.Module, images: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # `contiguous` would leave the strides of images of a single channel, which convolutions go by
    return tuple(x.to(memory_format=torch.contiguous_format) for x in images)


def check_model(case: Case, dataset: data.DataSet) -> None:
    """Pass two images through a case's network, forward and backward, before anything trains.

    It takes a network of its own, and puts torch's random state back.

    Raises:
        UsageError: the network cannot be built, raises an error, gives outputs that are not float
            [2, classes], or gives no parameter a gradient. Another loss than the cross-entropy may
            take outputs of any shape.
    """
    device = dataset.train.labels.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
        model = build_model(case, dataset).train()
        images = dataset.normalise(dataset.train.images[:2])
        where = f"{_where(case)}: images {list(images.shape)}"
        if any(nn.parameter.is_lazy(p) for p in model.parameters()):
            # the optimizer is made before the first forward pass
            raise UsageError(f"{_where(case)}: the network must not have lazy parameters")
        try:
            outputs = model(images)
        except Exception as error:
            raise UsageError(f"{where}: the network raised {in_one_line(error)}") from error
        if case.protocol.training.loss == LOSS:
            _check_outputs(outputs, dataset.classes, where)
        elif not isinstance(outputs, Tensor):
            return  # only its loss knows what to do with it
        try:
            if outputs.requires_grad:
                outputs.float().square().sum().backward()
        except Exception as error:
            raise UsageError(f"{where}: the backward pass raised {in_one_line(error)}") from error
        if all(p.grad is None for p in model.parameters()):
            raise UsageError(f"{where}: at least one parameter must get a gradient, none does")


def _check_outputs(outputs: object, classes: int | None, where: str) -> None:
    must_be = f"{where}: the outputs must be floats of shape {[2, classes]}, got"
    if not isinstance(outputs, Tensor):
        raise UsageError(f"{must_be} {type(outputs).__name__}")
    if list(outputs.shape) != [2, classes] or not outputs.is_floating_point():
        dtype = str(outputs.dtype).removeprefix("torch.")
        raise UsageError(f"{must_be} {dtype} of shape {list(outputs.shape)}")


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
