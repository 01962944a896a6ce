"""train(case) -> Record: the epoch loop.

The host reads the device once an epoch: losses, hits and gradient norms accumulate there.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatbench import data, models
from flatbench.files import write_atomically
from flatbench.optim import SAM, frozen_batchnorm
from flatbench.protocols.cases import Case
from flatbench.protocols.protocol import Optimizer, Sharpness
from flatbench.records import provenance
from flatbench.records.record import Epoch, Record
from flatbench.training import checkpoint, devices, graph, measuring, meter

BASES: dict[str, Any] = {  # classes; torch's stub of their common parent knows no options
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
EVALUATION_BATCH = 1024
CHECKPOINT_SHARE = 0.02  # of the time, at most, goes into writing checkpoints


class Diverged(Exception):
    """A loss or a gradient is not finite."""


@dataclass
class Run:
    """One case under way: everything an epoch reads or moves."""

    case: Case
    where: torch.device
    dataset: data.DataSet
    evaluated: data.Part
    images: Tensor  # of the training part, padded if they are to be cropped
    labels: Tensor  # of the training part, with the case's noise
    model: nn.Module
    forward: Callable[[Tensor], Tensor]  # the model as the training steps call it
    optimizer: torch.optim.Optimizer
    precision: str
    shuffle: torch.Generator
    crops: torch.Generator
    key: str
    # indices of a batch -> `_step`'s sums. It refers to the run: `_close` breaks this circle.
    step: Callable[[Tensor], Tensor] = field(init=False)
    warm_up_seconds: float = 0.0
    capture_seconds: float = 0.0  # of its CUDA graph
    sharpness_history: dict[str, list[float | None]] = field(default_factory=dict)
    history: list[Epoch] = field(default_factory=list)
    resumed_after: list[int] = field(default_factory=list)  # epochs; a resumed run says so


def train(
    case: Case,
    *,
    device_name: str = "cpu",
    data_dir: Path | None = None,
    on_epoch: Callable[[int, Epoch], None] | None = None,
    checkpoints: Path | None = None,
    resume: bool = False,
    weights: Path | None = None,
    compiled: bool = False,
) -> Record:
    """Train one case from its seed and return what was measured.

    Within one machine, torch build and thread count the record depends on the case alone, bit for
    bit, timings aside. ``on_epoch(number, epoch)`` is called after each epoch, from 1.

    A loss or a gradient that is not finite ends the run as ``diverged``.

    An epoch's ``seconds`` are those of its steps. Compiling and choosing kernels comes before them
    (see `_warm_up`), and the capture of a CUDA graph is left out of them; provenance has both, as
    ``warm_up_seconds`` and ``capture_seconds``.

    With ``checkpoints``, a file, the run can be killed at any moment and, with ``resume``, goes on
    from the last checkpoint of the same case, code and device to the same record. ``weights`` is
    where the final weights go, as safetensors. With ``compiled`` the training steps call the model
    through `torch.compile`: other roundings, and minutes of compilation a process.

    Raises:
        UsageError: the device or the data set is not there.
    """
    where = devices.bind(devices.find(device_name))
    devices.use_ieee_fp32(where)
    dataset = data.load(case.protocol.data, where, data_dir)
    warm_up_seconds = 0.0
    if _builds_kernels(where, compiled):
        warm_up_seconds = _warm_up(case, dataset, compiled=compiled)
    meter.reset_peak_memory(where)
    run = prepare(case, dataset, compiled=compiled)
    run.warm_up_seconds = warm_up_seconds
    try:
        return _train(run, on_epoch, checkpoints, resume, weights)
    finally:
        _close(run)


def _train(
    run: Run,
    on_epoch: Callable[[int, Epoch], None] | None,
    checkpoints: Path | None,
    resume: bool,
    weights: Path | None,
) -> Record:
    case, where = run.case, run.where
    calibration = [meter.calibration_seconds(where)]
    if resume and checkpoints is not None:
        _resume(run, checkpoints)
    reason = None
    written, cost = time.perf_counter(), 0.0
    for number in range(len(run.history) + 1, case.epochs + 1):
        try:
            epoch = _epoch(run, number)
        except Diverged as error:
            reason = f"diverged in epoch {number} of {case.epochs}: {error}"
            break
        run.history.append(epoch)
        for name, value in _measure(run, case.protocol.sharpness.every_epoch, False).items():
            run.sharpness_history.setdefault(name, []).append(value)
        if on_epoch is not None:
            on_epoch(number, epoch)
        now = time.perf_counter()
        if checkpoints is not None and now - written >= cost / CHECKPOINT_SHARE:
            checkpoint.save(checkpoints, _state(run))
            written = time.perf_counter()
            cost = written - now
    if weights is not None and reason is None:
        tensors = {name: t.contiguous() for name, t in run.model.state_dict().items()}
        write_atomically(weights, safetensors.torch.save(tensors))
    calibration.append(meter.calibration_seconds(where))
    return _record(run, reason, statistics.mean(calibration))


def _close(run: Run) -> None:
    """End a run, so that its memory is free as soon as nobody holds it.

    In the circle run -> step -> run it would wait for the garbage collector: the next run's peak
    memory would count it, and a CUDA graph could be destroyed while another is captured.
    """
    del run.step


def _builds_kernels(where: torch.device, compiled: bool) -> bool:
    return compiled or where.type == "cuda"


def _warm_up(case: Case, dataset: data.DataSet, *, compiled: bool) -> float:
    """Compile and choose the kernels of a case's steps, and return the seconds that it took.

    It takes steps with a twin of the run, which is then dropped. The run itself is prepared from
    its seed afterwards, and knows nothing of it.
    """
    start = time.perf_counter()
    twin = prepare(case, dataset, compiled=compiled)
    try:
        twin.model.train()
        whole = case.protocol.training.batch_size
        order = torch.arange(len(twin.labels), device=twin.where)
        sizes = {len(batch) for batch in torch.split(order, whole) if len(batch) > 1}
        for size in sorted(sizes, reverse=True):
            # A second step, because the first one finds no momentum yet.
            for _ in range(2):
                twin.step(order[:size])
        devices.synchronise(twin.where)
    finally:
        _close(twin)
    return time.perf_counter() - start


def _state(run: Run) -> dict[str, Any]:
    """Return everything that the epochs to come depend on."""
    return {
        "key": run.key,
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "shuffle": run.shuffle.get_state(),
        "crops": run.crops.get_state(),
        "history": [dataclasses.asdict(epoch) for epoch in run.history],
        "sharpness_history": run.sharpness_history,
        "resumed_after": run.resumed_after,
    }


def _resume(run: Run, path: Path) -> None:
    state = checkpoint.load(path, run.key)
    if state is None:
        return
    run.model.load_state_dict(state["model"])
    _load_optimizer(run, state["optimizer"])
    run.shuffle.set_state(state["shuffle"])
    run.crops.set_state(state["crops"])
    run.history = [Epoch(**epoch) for epoch in state["history"]]
    run.sharpness_history = state["sharpness_history"]
    run.resumed_after = [*state["resumed_after"], len(run.history)]


def _load_optimizer(run: Run, state: dict[str, Any]) -> None:
    """Load an optimizer's state from the CPU; torch moves all of it but the learning rate."""
    run.optimizer.load_state_dict(state)
    for group in run.optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"] = group["lr"].to(run.where)


def prepare(case: Case, dataset: data.DataSet, *, compiled: bool = False) -> Run:
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
        # Not dynamic: each size of batch has kernels of its own, whatever was compiled before.
        forward=torch.compile(model, dynamic=False) if compiled else model,
        optimizer=build_optimizer(case.row, model),
        precision=precision,
        shuffle=_stream(case.seed, "batches"),
        crops=_stream(case.seed, "augmentation", where),
        key=provenance.key(case.cell_hash(), case.seed, where, compiled),
    )
    run.step = functools.partial(_step, run)
    if where.type == "cuda":
        run.step = _graphed(run)
    return run


def _graphed(run: Run, capture: graph.Capture = graph.capture_cuda_graph) -> graph.Step:
    """Return the run's step as one that replays a graph once it is warm."""
    return graph.graphed(
        run.step,
        run.case.protocol.training.batch_size,
        run.where,
        generators=[run.crops],
        snapshot=functools.partial(_snapshot, run),
        capture=capture,
        after_capture=functools.partial(_after_capture, run),
        on_time=functools.partial(_count_capture, run),
    )


def build_model(case: Case, dataset: data.DataSet) -> nn.Module:
    """Return a case's network with its seed's first weights, on the data's device."""
    torch.manual_seed(_stream(case.seed, "weights").initial_seed())
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
    noise = _stream(case.seed, "label noise")
    fraction = case.protocol.data.label_noise
    return data.noisy_labels(dataset.train.labels, dataset.classes, fraction, noise)


def _snapshot(run: Run) -> Callable[[], None]:
    """Keep the weights and the optimizer's state, on the CPU; return what puts them back."""
    weights = _on_cpu(run.model.state_dict())
    state = _on_cpu(run.optimizer.state_dict())

    def put_back() -> None:
        if isinstance(run.optimizer, SAM):
            run.optimizer.restore()  # of what was saved a step ago: the next lines overwrite it
        run.optimizer.zero_grad()
        run.model.load_state_dict(weights)
        _load_optimizer(run, state)

    return put_back


def _on_cpu(value: Any) -> Any:
    """Return a copy of a state in which every tensor is on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on_cpu(item) for item in value)
    return value


def _after_capture(run: Run) -> None:
    if isinstance(run.optimizer, SAM):
        run.optimizer.sync_hyperparameters()  # and where the graph's gradients are


def _count_capture(run: Run, seconds: float) -> None:
    run.capture_seconds += seconds


def _stream(seed: int, purpose: str, where: torch.device | str = "cpu") -> torch.Generator:
    """Return a random generator of its own for one purpose, so that one use can't shift another.

    Every optimizer of one seed sees the same noise, the same first weights and the same batches:
    SAM − base is a paired difference.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator(where).manual_seed(int.from_bytes(digest[:7], "big"))


def build_optimizer(row: Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """Return the base optimizer of a row, or SAM over it, on a model's parameters.

    On CUDA the learning rate is a tensor there, so that a captured step reads what it is now.
    """
    where = next(model.parameters()).device
    on_cuda = where.type == "cuda"
    options: dict[str, Any] = {
        "lr": torch.tensor(row.lr, device=where) if on_cuda else row.lr,
        "weight_decay": row.weight_decay,
    }
    if row.base == "sgd":
        options |= {"momentum": row.momentum, "nesterov": row.nesterov}
    else:
        options |= {"betas": row.betas, "capturable": on_cuda}
    base = BASES[row.base]
    if row.rho is None:
        plain: torch.optim.Optimizer = base(model.parameters(), fused=True, **options)
        return plain
    return SAM(model.parameters(), base, rho=row.rho, adaptive=row.adaptive, eta=row.eta, **options)


def learning_rate(case: Case, progress: float) -> float:
    """Return the learning rate after ``progress`` epochs (fractions of one included).

    Cosine (Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts) falls to 0 at the end;
    "step" multiplies by ``decay`` at each milestone. A warm-up rises linearly to the schedule's
    own value.
    """
    training, row = case.protocol.training, case.row
    done = progress / case.epochs
    factor = 1.0
    if training.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * done))
    elif training.schedule == "step":
        factor = training.decay ** sum(done >= milestone for milestone in training.milestones)
    warmup = training.warmup_epochs if row.warmup_epochs is None else row.warmup_epochs
    if progress < warmup:
        factor *= progress / warmup
    return row.lr * factor


def _epoch(run: Run, number: int) -> Epoch:
    """Train one epoch, counted from 1, and evaluate.

    Raises:
        Diverged: a sum over the epoch, a gradient, or the test loss is not finite.
    """
    case, settings = run.case, run.case.protocol
    batches = list(
        data.batches(len(run.labels), settings.training.batch_size, run.shuffle, run.where)
    )
    run.model.train()
    # mean loss times batch, hits, and gradient norms: on the device, read once below
    sums = torch.zeros(3, dtype=torch.float64, device=run.where)
    skipped = _skipped_steps(run).clone()
    devices.synchronise(run.where)
    captured, start = run.capture_seconds, time.perf_counter()
    for i, batch in enumerate(batches):
        _set_learning_rate(run.optimizer, learning_rate(case, number - 1 + i / len(batches)))
        sums += run.step(batch)
    skipped = _skipped_steps(run) - skipped
    loss, hits, norms, skips = torch.cat([sums, skipped.double().reshape(1)]).tolist()
    seconds = time.perf_counter() - start - (run.capture_seconds - captured)
    if not math.isfinite(loss):
        raise Diverged("the training loss is not finite")
    if not math.isfinite(norms):
        raise Diverged("the gradient norm is not finite")
    if skips:  # SAM has seen more gradients than the norm's: those of the second passes
        raise Diverged("a gradient is not finite")
    test_loss, test_accuracy = evaluate(run.model, run.dataset, run.evaluated)
    if not math.isfinite(test_loss):
        raise Diverged("the test loss is not finite")
    seen = sum(map(len, batches))
    return Epoch(
        train_loss=loss / seen,
        train_accuracy=100 * hits / seen,
        test_loss=test_loss,
        test_accuracy=test_accuracy,
        sam_sharpness=settings.sharpness.rho * norms / len(batches),
        learning_rate=learning_rate(case, number - 1),
        seconds=seconds,
        gradient_evaluations=len(batches) * (2 if case.row.is_sam else 1),
    )


def _skipped_steps(run: Run) -> Tensor:
    """Return how many steps SAM has skipped since it was made, 0-d, where the run is."""
    if isinstance(run.optimizer, SAM):
        return run.optimizer.skipped_steps
    return torch.zeros((), dtype=torch.int64, device=run.where)


def _set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # a captured step reads it where it is
            group["lr"].fill_(value)
        else:
            group["lr"] = value


def _step(run: Run, batch: Tensor) -> Tensor:
    """Take one step; return [batch loss × batch size, hits, gradient norm] of the first pass."""
    row, rule = run.case.row, run.case.protocol.sharpness
    size = run.dataset.train.images.shape[1]
    kind = run.case.protocol.data.augmentation
    images = run.dataset.normalise(data.augment(run.images, batch, kind, size, run.crops))
    labels = run.labels[batch]
    loss, logits = _loss(run, images, labels)
    loss.backward()  # type: ignore[no-untyped-call]
    if isinstance(run.optimizer, SAM):
        measured = (row.adaptive, row.eta) == (rule.adaptive, rule.eta)
        norm = None if measured else gradient_norm(run.model, rule)
        run.optimizer.first_step(zero_grad=True)
        norm = run.optimizer.gradient_norm.clone() if norm is None else norm
        with frozen_batchnorm(run.model):
            _loss(run, images, labels)[0].backward()  # type: ignore[no-untyped-call]
        run.optimizer.second_step(zero_grad=True)
    else:
        norm = gradient_norm(run.model, rule)
        run.optimizer.step()
        run.optimizer.zero_grad()
    hits = (logits.argmax(1) == labels).sum()
    return torch.stack([loss.detach().double() * len(labels), hits.double(), norm.double()])


def _loss(run: Run, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    smoothing = run.case.row.label_smoothing
    if smoothing is None:
        smoothing = run.case.protocol.training.label_smoothing
    with torch.autocast(run.where.type, torch.bfloat16, enabled=run.precision == "bf16"):
        logits = run.forward(images)
    logits = logits.float()
    return F.cross_entropy(logits, labels, label_smoothing=smoothing), logits.detach()


def gradient_norm(model: nn.Module, rule: Sharpness) -> Tensor:
    """Return ||T g|| of the gradients in ``p.grad``, 0-d; T = 1, or |w| + eta when adaptive."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    gradients = [p.grad for p in parameters if p.grad is not None]
    if rule.adaptive:
        scales = torch._foreach_abs([p.detach() for p in parameters])
        torch._foreach_add_(scales, rule.eta)
        gradients = list(torch._foreach_mul(scales, gradients))
    return torch.nn.utils.get_total_norm(gradients)


@torch.no_grad()
def evaluate(model: nn.Module, dataset: data.DataSet, part: data.Part) -> tuple[float, float]:
    """Return the mean cross-entropy (without smoothing) and the top-1 accuracy in percent."""
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=part.labels.device)
    images = torch.split(part.images, EVALUATION_BATCH)
    for batch, labels in zip(images, torch.split(part.labels, EVALUATION_BATCH), strict=True):
        logits = model(dataset.normalise(batch))
        loss = F.cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack([loss.double(), (logits.argmax(1) == labels).sum().double()])
    loss_sum, hits = sums.tolist()
    return loss_sum / len(part), 100 * hits / len(part)


def _measure(run: Run, names: tuple[str, ...], standard_errors: bool) -> dict[str, float | None]:
    if not names:
        return {}
    rule = run.case.protocol.sharpness
    return measuring.measure(
        names, run.model, run.dataset, run.labels, rule, standard_errors=standard_errors
    )


def _record(run: Run, reason: str | None, calibration: float) -> Record:
    case, history = run.case, run.history
    final: dict[str, Any] = {}
    if reason is None:
        last = history[-1]
        final = {
            "test_accuracy": last.test_accuracy,
            "best_test_accuracy": max(epoch.test_accuracy for epoch in history),
            "test_loss": last.test_loss,
            "train_accuracy": last.train_accuracy,
            "train_loss": last.train_loss,
            "sam_sharpness": last.sam_sharpness,
            "sharpness": _measure(run, case.protocol.sharpness.at_end, True),
        }
    return Record(
        protocol=case.protocol.name,
        architecture=case.architecture,
        optimizer=case.optimizer,
        seed=case.seed,
        base_row=case.protocol.base_of(case.optimizer),
        base=case.row.base,
        status="completed" if reason is None else "diverged",
        reason=reason,
        evaluation=case.protocol.data.evaluation,
        gradient_evaluations=sum(epoch.gradient_evaluations for epoch in history),
        seconds=sum(epoch.seconds for epoch in history),
        calibration_seconds=calibration,
        peak_memory=meter.peak_memory(run.where),
        history=tuple(history),
        sharpness_history={name: tuple(column) for name, column in run.sharpness_history.items()},
        provenance=provenance.describe(run.where, run.precision)
        | {
            "compiled": run.forward is not run.model,
            "common_hash": case.protocol.common_hash(),
            "cell_hash": case.cell_hash(),
            "key": run.key,
            "resumed_after": run.resumed_after,
            "warm_up_seconds": run.warm_up_seconds,
            "capture_seconds": run.capture_seconds,
        },
        **final,
    )
