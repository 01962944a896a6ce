"""A case before its first step: network, optimizer, data and random streams from its seed."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flatbench import data, models
from flatbench.components import in_one_line
from flatbench.errors import UsageError
from flatbench.optim import HalfSteps
from flatbench.protocols.cases import Case
from flatbench.protocols.protocol import LOSS
from flatbench.records import provenance
from flatbench.training import devices, graph, identity, optimizers, stepping, task
from flatbench.training.run import Run, Stepping, snapshot
from flatbench.training.step import take_step


@dataclass(frozen=True)
class Built:
    """A row's optimizer, and what is known of it; the names are those of `Run`."""

    optimizer: torch.optim.Optimizer
    stepping: Stepping
    rates: list[float | None]
    why_not_resumable: str | None


def build_optimizer(case: Case, model: nn.Module, steps: int) -> Built:
    """Return the optimizer of a case's row on a model's parameters.

    ``steps`` is how many it is going to take, all epochs together.

    Many an optimizer views a weight or its gradient as one flat vector (LBFGS), which it can't do
    with convolutions in channels_last. For one that does not step so the weights become contiguous.

    Raises:
        UsageError: it cannot be built as the row says, or it can't be told how it steps.
    """
    recipe = optimizers.recipe(case, model, steps)
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


def steps_of(case: Case, dataset: data.DataSet) -> int:
    """Return how many steps a case takes, all epochs together."""
    size = case.protocol.training.batch_size
    return case.epochs * data.batch_count(len(dataset.train.labels), size)


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
                dataset = datasets[id(case.protocol)]
                build_optimizer(case, build_model(case, dataset), steps_of(case, dataset))


def prepare(case: Case, dataset: data.DataSet) -> Run:
    """Return a case before its first step, on the device that the data set is on."""
    settings, where = case.protocol, dataset.train.labels.device
    images = dataset.train.images
    components = identity.sources(case)
    model = build_model(case, dataset)
    built = build_optimizer(case, model, steps_of(case, dataset))
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
        task=task.of(case),
        shuffle=stream(case.seed, "batches"),
        crops=stream(case.seed, "augmentation", where),
        components=components,
        key=identity.key(case, dataset, provenance.machine(where), components),
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
    if run.stepping != "plain" and not isinstance(run.optimizer, HalfSteps):
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
        UsageError: the network cannot be built, raises an error, gives outputs that the loss or
            the metric cannot take, or gives no parameter a gradient.
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
        outputs = _checked(outputs, case, dataset, where)
        targets, judged = dataset.train.labels[:2], task.of(case)
        try:
            loss = judged.training_loss(outputs, targets)
            judged.metric_sum(outputs, targets)
        except UsageError:
            raise
        except Exception as error:
            shapes = f"outputs {list(outputs.shape)} and targets {list(targets.shape)}"
            raise UsageError(
                f"{where}: of {shapes} the loss or the metric raised {in_one_line(error)}"
            ) from error
        try:
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
        except Exception as error:
            raise UsageError(f"{where}: the backward pass raised {in_one_line(error)}") from error
        if all(p.grad is None for p in model.parameters()):
            raise UsageError(f"{where}: at least one parameter must get a gradient, none does")


def _checked(outputs: object, case: Case, dataset: data.DataSet, where: str) -> Tensor:
    """Return outputs as the loss gets them; of cross-entropy they must be logits [2, classes]."""
    is_usual = case.protocol.training.loss == LOSS
    shape = f" of shape {[2, dataset.classes]}" if is_usual else ""
    must_be = f"{where}: the outputs must be floats{shape}, got"
    if not isinstance(outputs, Tensor):
        raise UsageError(f"{must_be} {type(outputs).__name__}")
    fits = not is_usual or list(outputs.shape) == [2, dataset.classes]
    if not fits or not outputs.is_floating_point():
        dtype = str(outputs.dtype).removeprefix("torch.")
        raise UsageError(f"{must_be} {dtype} of shape {list(outputs.shape)}")
    return outputs.float()


def training_labels(case: Case, dataset: data.DataSet) -> Tensor:
    """Return the labels [N] that a case trains on: the data set's, with its seed's noise."""
    noise = stream(case.seed, "label noise")
    fraction = case.protocol.data.label_noise
    return data.noisy_labels(dataset.train.labels, dataset.classes, fraction, noise)


def _after_capture(run: Run) -> None:
    if isinstance(run.optimizer, HalfSteps):
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
