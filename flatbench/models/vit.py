"""Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) with small patches.

The position embeddings are learned, as in the paper. The tokens are averaged before the classifier,
and there is no class token: the paper finds both alike at the right learning rate (appendix D.3),
and the mean is better in short trainings (Beyer et al. 2022, arXiv:2205.01580), which are what a
benchmark of optimizers has. There is no dropout, so that two forward passes of one step see one
network.

At width 64 the dimension and the heads are those of ViT-Ti (Touvron et al. 2021, arXiv:2012.12877),
at half its depth.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatbench.models import ImageSize, at_least_one

MLP_RATIO = 4
EPSILON = 1e-6  # the paper's code has it in every LayerNorm
SMALL = 24  # pixels: below, a patch has 2 pixels a side, else 4, so that 16 to 64 tokens are usual


class Block(nn.Module):
    """Attention and an MLP, each after a LayerNorm and beside a shortcut: [N, T, d] -> [N, T, d].

    Its parameters have the order and the shapes of `torchvision`'s ``EncoderBlock``.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim, eps=EPSILON)
        self.queries_keys_values = nn.Linear(dim, 3 * dim)
        self.projection = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=EPSILON)
        self.mlp = nn.Sequential(
            nn.Linear(dim, MLP_RATIO * dim), nn.GELU(), nn.Linear(MLP_RATIO * dim, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return x + attention, and the MLP's output added to that."""
        x = x + self._attention(self.norm1(x))
        mixed: Tensor = x + self.mlp(self.norm2(x))
        return mixed

    def _attention(self, x: Tensor) -> Tensor:
        count, tokens, dim = x.shape
        packed = self.queries_keys_values(x).view(count, tokens, 3, self.heads, dim // self.heads)
        q, k, v = packed.permute(2, 0, 3, 1, 4)  # each [N, heads, T, d / heads]
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        projected: Tensor = self.projection(seen.reshape(count, tokens, dim))
        return projected


class ViT(nn.Module):
    """Patches, blocks, and the mean of the tokens: [N, in_channels, H, W] -> [N, classes]."""

    def __init__(
        self, dim: int, depth: int, heads: int, patch: int, tokens: int, channels: int, classes: int
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, dim, kernel_size=patch, stride=patch)
        self.positions = nn.Parameter(torch.empty(tokens, dim))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=EPSILON)
        self.classifier = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the mean token."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions  # [N, T, d]
        logits: Tensor = self.classifier(self.norm(self.blocks(tokens)).mean(1))
        return logits


def build(
    width: int,
    in_channels: int,
    classes: int,
    image_size: ImageSize,
    patch: int | None = None,
    depth: int = 6,
    heads: int = 3,
    dim: int | None = None,
) -> ViT:
    """Return the network for images of one size.

    Args:
        width: the dimension is 3 times as large.
        in_channels: colours of the images.
        classes: number of logits.
        image_size: pixels along a side, or (height, width).
        patch: pixels along a patch's side; None means 2 below 24 pixels, else 4.
        depth: number of blocks.
        heads: of attention; the dimension must be a multiple of them.
        dim: the dimension itself, in the place of the width's.

    Raises:
        ValueError: an option is out of range, or does not fit the others.
    """
    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    patch = at_least_one("patch", (2 if min(sides) < SMALL else 4) if patch is None else patch)
    depth, heads = at_least_one("depth", depth), at_least_one("heads", heads)
    dim = at_least_one("dim", 3 * width if dim is None else dim)
    if any(side % patch for side in sides):
        size = "×".join(map(str, sides))
        raise ValueError(f"patch must divide the images' {size} pixels, got {patch}")
    if dim % heads:
        raise ValueError(f"heads must divide the dimension {dim}, got {heads}")
    tokens = (sides[0] // patch) * (sides[1] // patch)
    return ViT(dim, depth, heads, patch, tokens, in_channels, classes)
