"""One training step, its learning rate, and the evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flatbench import data
from flatbench.optim import SAM, MicroBatchSAM
from flatbench.protocols.cases import Case
from flatbench.protocols.methods import MicroBatch
from flatbench.protocols.protocol import Sharpness
from flatbench.training.run import Run
from flatbench.training.stepping import Passes, take
from flatbench.training.task import CLASSIFICATION, Task

SUMS = 5  # numbers that a step gives
EVALUATION_BATCH = 1024


def rate_factor(case: Case, progress: float) -> float:
    """Return what multiplies the learning rates after ``progress`` epochs (fractions included).

    Cosine (Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts) falls to 0 at the end;
    "step" multiplies by ``decay`` at each milestone. A warm-up rises linearly to the schedule's
    own value.
    """
    training, row = case.protocol.training, case.row
    schedule = row.schedule or training.schedule
    done = progress / case.epochs
    factor = 1.0
    if schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * done))
    elif schedule == "step":
        factor = training.decay ** sum(done >= milestone for milestone in training.milestones)
    warmup = training.warmup_epochs if row.warmup_epochs is None else row.warmup_epochs
    if progress < warmup:
        factor *= progress / warmup
    return factor


def set_learning_rates(run: Run, factor: float) -> None:
    """Set each group's learning rate to its first one times a factor.

    Groups with rates of their own so keep their ratio.
    """
    for group, rate in zip(run.optimizer.param_groups, run.rates, strict=True):
        if rate is None:
            continue
        if isinstance(group["lr"], Tensor):  # a captured step reads it where it is
            group["lr"].fill_(rate * factor)
        else:
            group["lr"] = rate * factor


def take_step(run: Run, batch: Tensor) -> Tensor:
    """Take one step and return `SUMS` numbers, float64.

    They are the batch's loss × its size, its metric's sum and gradient norm, all of the first pass;
    how many gradients were evaluated; and the sum of the later passes' losses, which is there to be
    finite.
    """
    row, rule = run.case.row, run.case.protocol.sharpness
    size = run.dataset.train.images.shape[1]
    kind = run.case.protocol.data.augmentation
    images = run.dataset.normalise(data.augment(run.images, batch, kind, size, run.crops))
    labels = run.labels[batch]
    optimizer = run.optimizer
    if isinstance(optimizer, MicroBatchSAM):
        return _take_by_parts(run, optimizer, images, labels)
    # SAM takes the norm itself, and where it is the one to record there is no need of another
    measured = type(optimizer) is SAM and (row.adaptive, row.eta) == (rule.adaptive, rule.eta)
    norms: list[Tensor] = []

    def after_first() -> None:
        if not measured:
            norms.append(gradient_norm(run.model, rule))

    passes = Passes(run.model, lambda: batch_loss(run, images, labels), after_first)
    take(optimizer, run.stepping, passes)
    if passes.count == 0:
        raise RuntimeError("the optimizer took a step without a gradient: it called no closure")
    if measured:
        assert isinstance(optimizer, SAM)
        norms.append(optimizer.gradient_norm)
    run.model.zero_grad()
    return _sums(run, [passes], [len(labels)], labels, norms[0])


def _take_by_parts(run: Run, optimizer: MicroBatchSAM, images: Tensor, labels: Tensor) -> Tensor:
    """Take a step whose perturbations are those of a batch's parts, and return `_sums`.

    The norm is that of the whole batch's gradient, which is put together for it.
    """
    assert isinstance(run.case.row.method, MicroBatch)
    parts = data.parts(len(labels), run.case.row.method.m)
    sizes = [part.stop - part.start for part in parts]
    whole: dict[Tensor, Tensor] = {}

    def add(share: float) -> None:
        for p in run.model.parameters():
            if p.grad is not None:
                whole[p] = whole[p].add(p.grad, alpha=share) if p in whole else share * p.grad

    def passes_over(part: slice, size: int) -> Passes:
        return Passes(
            run.model,
            lambda: batch_loss(run, images[part], labels[part]),
            lambda: add(size / len(labels)),
        )

    passes = [passes_over(part, size) for part, size in zip(parts, sizes, strict=True)]
    optimizer.step_parts(passes, sizes)
    for p in run.model.parameters():
        p.grad = whole.get(p)
    norm = gradient_norm(run.model, run.case.protocol.sharpness)
    run.model.zero_grad()
    return _sums(run, passes, sizes, labels, norm)


def _sums(
    run: Run, passes: Sequence[Passes], sizes: Sequence[int], labels: Tensor, norm: Tensor
) -> Tensor:
    """Return what `take_step` does, of passes over a batch's parts of these sizes."""
    zero = torch.zeros((), dtype=torch.float64, device=labels.device)
    losses = [part.loss.double() * size for part, size in zip(passes, sizes, strict=True)]
    evaluations = [part.count * size for part, size in zip(passes, sizes, strict=True)]
    outputs = passes[0].outputs if len(passes) == 1 else torch.cat([p.outputs for p in passes])
    later = [loss.double() for part in passes for loss in part.later]
    return torch.stack(
        [
            torch.stack(losses).sum(),
            run.task.metric_sum(outputs, labels).double(),
            norm.double(),
            zero + sum(evaluations) / len(labels),
            torch.stack([zero, *later]).sum(),
        ]
    )


def batch_loss(run: Run, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean loss of a batch, with its gradient, and the logits [B, classes] without."""
    with torch.autocast(run.where.type, torch.bfloat16, enabled=run.precision == "bf16"):
        logits = run.model(images)
    logits = logits.float()
    return run.task.training_loss(logits, labels), logits.detach()


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
def evaluate(
    model: nn.Module, dataset: data.DataSet, part: data.Part, task: Task = CLASSIFICATION
) -> tuple[float, float]:
    """Return the mean loss (without smoothing) and the mean of what a task is judged by."""
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=part.labels.device)
    images = torch.split(part.images, EVALUATION_BATCH)
    for batch, labels in zip(images, torch.split(part.labels, EVALUATION_BATCH), strict=True):
        logits = model(dataset.normalise(batch))
        loss, metric = task.loss_sum(logits, labels), task.metric_sum(logits, labels)
        sums += torch.stack([loss.double(), metric.double()])
    loss_sum, metric_sum = sums.tolist()
    return loss_sum / len(part), metric_sum / len(part)
