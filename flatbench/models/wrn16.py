"""WRN-16-k (Zagoruyko and Komodakis 2016, arXiv:1605.07146): wide, with pre-activation blocks.

As in the paper, the stem has 16 channels at every width, and where a block changes the number of
channels, its shortcut is a 1×1 convolution of the activated input. There is no dropout. The weights
come from torch's default initialisers, as those of the other architectures do.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatbench.models import at_least_one
from flatbench.models._convolutions import conv1x1, conv3x3

STEM = 16  # channels; the first stage has k times as many
BLOCKS = 2  # to a stage: (16 layers - 4) / (3 stages * 2 convolutions)


class WideBlock(nn.Module):
    """BatchNorm, ReLU, convolution, twice: [N, inputs, H, W] -> [N, outputs, H/s, W/s]."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.shortcut = (
            None if stride == 1 and inputs == outputs else conv1x1(inputs, outputs, stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return shortcut + residual(x); nothing is normalised after the sum."""
        activated = F.relu(self.bn1(x))
        residual: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return residual + (x if self.shortcut is None else self.shortcut(activated))


class WRN16(nn.Module):
    """Three stages of two blocks: [N, in_channels, H, W] -> [N, classes] logits."""

    def __init__(self, width: int, in_channels: int, classes: int) -> None:
        super().__init__()
        self.stem = conv3x3(in_channels, STEM)
        blocks: list[nn.Module] = []
        inputs = STEM
        for stage in range(3):
            outputs = width * 2**stage
            for block in range(BLOCKS):
                blocks.append(WideBlock(inputs, outputs, 2 if stage > 0 and block == 0 else 1))
                inputs = outputs
        self.stages = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(inputs)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, mean-pooled over whatever positions are left."""
        features = F.relu(self.norm(self.stages(self.stem(x))))
        logits: Tensor = self.classifier(torch.mean(features, dim=(2, 3)))
        return logits


def build(width: int, in_channels: int, classes: int, widening: int | None = None) -> WRN16:
    """Return the network with ``width`` channels in its first stage.

    ``widening``, the paper's k, sets the width to 16 k. With 3 channels and 10 classes there are
    2,748,890 parameters at k = 4, which is width 64, and 10,961,370 at k = 8.
    """
    if widening is not None:
        width = STEM * at_least_one("widening", widening)
    return WRN16(width, in_channels, classes)
