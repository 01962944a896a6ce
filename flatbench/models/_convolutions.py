"""The convolutions of residual networks."""

from __future__ import annotations

from torch import Tensor, nn

REGISTER = 8  # float32 numbers in a vector register of AVX2


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3×3 convolution: [N, inputs, H, W] -> [N, outputs, ⌈H/s⌉, ⌈W/s⌉]."""
    return nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)


def conv1x1(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    """Return a 1×1 convolution: [N, inputs, H, W] -> [N, outputs, ⌈H/s⌉, ⌈W/s⌉]."""
    kind = _Sliced if inputs < REGISTER else nn.Conv2d
    return kind(inputs, outputs, kernel_size=1, stride=stride, bias=False)


class _Sliced(nn.Conv2d):
    """A 1×1 convolution of every s-th row and column, the same numbers by another way.

    With fewer than 8 channels in channels_last memory, oneDNN's AVX2 kernel for the backward pass
    of the strided convolution writes past the end of the gradient, and the process dies of a
    damaged heap (torch 2.14, 4 and 6 channels; with 8, 12 and 20 it does not).
    """

    def forward(self, input: Tensor) -> Tensor:
        rows, columns = self.stride
        return nn.functional.conv2d(input[:, :, ::rows, ::columns], self.weight)
