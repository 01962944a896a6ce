"""VGG-16 (Simonyan and Zisserman 2015, arXiv:1409.1556) with BatchNorm, for small images.

This is the variant of the seed study. It pools in ceil mode, so that images down to 8×8 pass all
five pools, and has one hidden layer with BatchNorm in place of the two dropout layers.
"""

from __future__ import annotations

from torch import Tensor, nn

# Channels of each convolution as a multiple of the width; a stage ends in a 2×2 max-pool.
STAGES = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))


class VGG16(nn.Module):
    """Thirteen convolutions and two linear layers: [N, in_channels, H, W] -> [N, classes]."""

    def __init__(self, width: int, in_channels: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = in_channels
        for stage in STAGES:
            for multiple in stage:
                outputs = multiple * width
                layers += [
                    # no bias: the BatchNorm after it would subtract it again
                    nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(),
                ]
                inputs = outputs
            layers.append(nn.MaxPool2d(kernel_size=2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        hidden = 8 * width  # 512 at full width
        self.hidden = nn.Sequential(
            nn.Linear(inputs, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()
        )
        self.classifier = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits; images of 8×8 to 32×32 leave exactly one position after the pools."""
        logits: Tensor = self.classifier(self.hidden(self.features(x).flatten(1)))
        return logits


def build(width: int, in_channels: int, classes: int) -> VGG16:
    """Return the network with ``width`` channels in its first stage."""
    return VGG16(width, in_channels, classes)
