"""Products of the Hessian with vectors, by differentiating the gradient."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .surface import LossSurface, flattened, raise_if_cut

Gradient = tuple[float, list[Tensor], list[Tensor]]
"""A batch's share of the examples, the weights, and the gradient with the graph it came from."""


class HessianProducts:
    """The Hessian of L at the model's w, as the operator v ↦ H v.

    Each product is a backward pass through the first one (Pearlmutter 1994). Where all examples are
    one batch, the gradient and its graph are kept from product to product, as long as this object
    lives; otherwise one batch's graph is held at a time, and made anew in each call.
    Forward-over-reverse was no faster on a CPU ResNet18, and torch.func's vmapped second derivative
    of BatchNorm with batch statistics is wrong (seen in torch 2.15).

    Cost: a gradient, and 2 for each product: a backward pass through forward and backward costs
    twice their sum (Griewank & Walther 2008). With several batches the gradient is paid in each
    call.
    """

    def __init__(self, surface: LossSurface) -> None:
        self.surface = surface
        self._kept: list[Gradient] | None = None

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return H v, (k, d), for each row v of ``vectors`` (k, d).

        Raises:
            RuntimeError: the model has no second derivative.
        """
        surface = self.surface
        tangents = [list(surface.unflattened(vector).values()) for vector in vectors]
        products = torch.zeros_like(vectors)
        keeps = surface.examples <= surface.batch_size
        with surface.prepared(), torch.enable_grad():
            if self._kept is None:
                surface.gradient_evaluations += 1
            gradients = self._kept if self._kept is not None else self._gradients()
            if keeps:
                gradients = self._kept = list(gradients)
            for share, weights, gradient in gradients:
                curved = [i for i, part in enumerate(gradient) if part.requires_grad]
                if not curved:  # L is linear in w: its gradient does not depend on w
                    continue
                for k, tangent in enumerate(tangents):
                    parts = torch.autograd.grad(
                        [gradient[i] for i in curved],
                        weights,
                        [tangent[i] for i in curved],
                        retain_graph=keeps or k + 1 < len(tangents),
                        materialize_grads=True,
                    )
                    products[k] += share * flattened(parts)
        surface.gradient_evaluations += 2 * len(vectors)
        return products

    def _gradients(self) -> Iterator[Gradient]:
        leaves = self.surface.leaves(self.surface.center)
        weights = list(leaves.values())
        for share, x, y in self.surface.batches():
            loss = self.surface.batch_loss(leaves, x, y)
            if not loss.requires_grad:
                continue
            gradient = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
            raise_if_cut([loss, *gradient])
            yield share, weights, list(gradient)
