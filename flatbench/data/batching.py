"""What training does with a data set: label noise once, and each epoch's batches.

A batch is an index into the images on the device. One advanced index picks a batch's images, crops
them and flips them, and yields channels_last memory for free.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

PADDING = 4  # pixels of black around an image that is to be cropped at random


def noisy_labels(
    labels: Tensor, classes: int | None, fraction: float, rng: torch.Generator
) -> Tensor:
    """Replace exactly ``round(fraction * N)`` of the labels [N] by a wrong class, uniformly.

    Symmetric noise as in Zhang and Sabuncu 2018 (arXiv:1805.07836), but without the labels that
    chance would leave right. Targets that are no class labels (``classes`` None) stay.
    """
    if classes is None:
        return labels.clone()
    flipped = torch.randperm(len(labels), generator=rng)[: round(fraction * len(labels))]
    shift = torch.randint(1, classes, (len(flipped),), generator=rng)
    noisy = labels.clone()
    flipped, shift = flipped.to(labels.device), shift.to(labels.device)
    noisy[flipped] = (noisy[flipped] + shift) % classes
    return noisy


def batches(
    examples: int, batch_size: int, rng: torch.Generator, device: torch.device | str
) -> Iterator[Tensor]:
    """Yield the indices [batch] of one epoch in random order.

    A last batch that is smaller is used like the others, but for one of a single example, which
    BatchNorm cannot normalise.
    """
    order = torch.randperm(examples, generator=rng, device=rng.device).to(device)
    for batch in torch.split(order, batch_size):
        if len(batch) > 1:
            yield batch


def batch_count(examples: int, batch_size: int) -> int:
    """Return how many batches `batches` yields."""
    return examples // batch_size + (examples % batch_size > 1)


def parts(examples: int, size: int) -> list[slice]:
    """Return where the parts of ``size`` examples lie in a batch.

    The last part has what is left; a single example, which BatchNorm cannot normalise, goes to the
    part before.
    """
    starts = list(range(0, examples, size))
    if size > 1 and len(starts) > 1 and examples - starts[-1] == 1:
        starts.pop()
    return [slice(a, b) for a, b in itertools.pairwise([*starts, examples])]


def augment(images: Tensor, batch: Tensor, kind: str, size: int, rng: torch.Generator) -> Tensor:
    """Pick a batch [B] out of ``images``, cropped and flipped at random, as [B, s, W, C].

    ``images`` [N, s + 2·PADDING, W + 2·PADDING, C] must have been padded by `pad`; with kind
    "none" they must not, and come out as they are. Each image has a crop and a flip of its own.
    """
    if kind == "none":
        return images[batch]
    count = len(batch)

    def draw(high: int, shape: tuple[int, ...]) -> Tensor:
        drawn = torch.randint(high, shape, generator=rng, device=rng.device)
        return drawn.to(batch.device)

    width = images.shape[2] - 2 * PADDING
    rows = torch.arange(size, device=batch.device)
    columns = torch.arange(width, device=batch.device).expand(count, width)
    offsets = draw(2 * PADDING + 1, (2, count, 1))
    if kind == "crop-flip":
        columns = torch.where(draw(2, (count, 1)) == 1, width - 1 - columns, columns)
    rows, columns = offsets[0] + rows, offsets[1] + columns
    return images[batch[:, None, None], rows[:, :, None], columns[:, None, :]]


def pad(images: Tensor) -> Tensor:
    """Put PADDING black pixels around images [N, H, W, C]."""
    return F.pad(images, (0, 0, PADDING, PADDING, PADDING, PADDING))
