"""A data set in memory: its parts, and how its inputs become what a model sees.

Images stay as they are in [N, H, W, C], most of them uint8, and become normalised float32 a batch
at a time, with the mean and standard deviation of the training part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# inputs [N, ...] and targets [N, ...], before they are on a device
Examples: TypeAlias = tuple[NDArray[Any], NDArray[Any]]


@dataclass(frozen=True)
class Part:
    """Inputs and targets of as many examples.

    Attributes:
        images: uint8 or float32 images [N, H, W, C]; or other inputs: float32 [N, ...], or int64
            [N, T] for a model of tokens.
        labels: class labels [N], int64; or other targets: float32 [N, ...] or int64 [N, ...].
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DataSet:
    """The parts of a data set and the statistics its inputs are normalised with.

    Images are normalised by channel and tables [N, d] by column; other inputs are not, and have
    0 and 1 as their statistics.
    """

    train: Part
    validation: Part
    test: Part
    classes: int | None  # None: the targets are no class labels
    mean: Tensor  # [C], over the training part, in the inputs' own units
    std: Tensor  # [C]; 1 where all of the training part is equal
    digest: str  # 12 hex digits over inputs and targets, as they were read

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example as the model sees it: (C, H, W) of images."""
        shape = tuple(self.train.images.shape[1:])
        return (shape[2], *shape[:2]) if self.holds_images else shape

    @property
    def channels(self) -> int:
        """The first axis of an example as the model sees it: an image's colours, say."""
        return self.shape[0]

    @property
    def holds_images(self) -> bool:
        """Whether the inputs are images [N, H, W, C]."""
        return self.train.images.ndim == 4

    def normalise(self, images: Tensor) -> Tensor:
        """Return inputs [B, ...] as the model sees them.

        Images become float32 [B, C, H, W] in channels_last memory. Tokens stay as they are.
        """
        if images.dtype == torch.int64:
            return images
        normalised = (images.float() - self.mean) / self.std
        return normalised.permute(0, 3, 1, 2) if images.ndim == 4 else normalised


def are_class_labels(targets: NDArray[Any]) -> bool:
    """Return whether targets are class labels: whole numbers [N]."""
    return targets.ndim == 1 and bool(np.issubdtype(targets.dtype, np.integer))
