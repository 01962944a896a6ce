"""ResNet-18 (He et al. 2016, arXiv:1512.03385) with the 3×3 stem usual for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatbench.models._convolutions import conv1x1, conv3x3


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: [N, inputs, H, W] -> [N, outputs, H/s, W/s]."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and inputs == outputs
            else nn.Sequential(
                conv1x1(inputs, outputs, stride),
                nn.BatchNorm2d(outputs),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(residual(x) + shortcut(x))."""
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(residual + self.shortcut(x))


class ResNet18(nn.Module):
    """Four stages of two blocks: [N, in_channels, H, W] -> [N, classes] logits."""

    def __init__(self, width: int, in_channels: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv3x3(in_channels, width), nn.BatchNorm2d(width), nn.ReLU())
        stages: list[nn.Module] = []
        inputs = width
        for stage in range(4):
            outputs = width * 2**stage
            stages += [
                BasicBlock(inputs, outputs, stride=1 if stage == 0 else 2),
                BasicBlock(outputs, outputs, stride=1),
            ]
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, mean-pooled over whatever positions are left."""
        features = torch.mean(self.stages(self.stem(x)), dim=(2, 3))
        logits: Tensor = self.classifier(features)
        return logits


def build(width: int, in_channels: int, classes: int) -> ResNet18:
    """Return the network: 11,173,962 parameters at width 64, 3 channels and 10 classes."""
    return ResNet18(width, in_channels, classes)
