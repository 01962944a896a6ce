"""One training step, its learning rate, and the evaluation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatbench import data
from flatbench.optim import SAM, frozen_batchnorm
from flatbench.protocols.cases import Case
from flatbench.protocols.protocol import Sharpness
from flatbench.training.run import Run

EVALUATION_BATCH = 1024


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
    return (row.lr or 0.0) * factor


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set every group's learning rate, where a captured step reads it."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # a captured step reads it where it is
            group["lr"].fill_(value)
        else:
            group["lr"] = value


def take_step(run: Run, batch: Tensor) -> Tensor:
    """Take one step; return [batch loss × batch size, hits, gradient norm] of the first pass."""
    row, rule = run.case.row, run.case.protocol.sharpness
    size = run.dataset.train.images.shape[1]
    kind = run.case.protocol.data.augmentation
    images = run.dataset.normalise(data.augment(run.images, batch, kind, size, run.crops))
    labels = run.labels[batch]
    loss, logits = batch_loss(run, images, labels)
    loss.backward()  # type: ignore[no-untyped-call]
    if isinstance(run.optimizer, SAM):
        measured = (row.adaptive, row.eta) == (rule.adaptive, rule.eta)
        norm = None if measured else gradient_norm(run.model, rule)
        run.optimizer.first_step(zero_grad=True)
        norm = run.optimizer.gradient_norm.clone() if norm is None else norm
        with frozen_batchnorm(run.model):
            batch_loss(run, images, labels)[0].backward()  # type: ignore[no-untyped-call]
        run.optimizer.second_step(zero_grad=True)
    else:
        norm = gradient_norm(run.model, rule)
        run.optimizer.step()
        run.optimizer.zero_grad()
    hits = (logits.argmax(1) == labels).sum()
    return torch.stack([loss.detach().double() * len(labels), hits.double(), norm.double()])


def batch_loss(run: Run, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean loss of a batch, with its gradient, and the logits [B, classes] without."""
    smoothing = run.case.row.label_smoothing
    if smoothing is None:
        smoothing = run.case.protocol.training.label_smoothing
    with torch.autocast(run.where.type, torch.bfloat16, enabled=run.precision == "bf16"):
        logits = run.model(images)
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
