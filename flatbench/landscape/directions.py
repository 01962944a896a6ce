"""Directions in parameter space along which a loss is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from flatbench.landscape.archive import digest
from flatbench.sharpness import LossSurface, hessian_eigenvalues
from flatbench.sharpness.surface import at_least

Kind = Literal["random", "hessian", "line"]


@dataclass(frozen=True, eq=False)
class Directions:
    """Vectors to add to a model's parameters.

    Attributes:
        kind: how they were made.
        vectors: (count, d) float64; d runs over the parameters that require a gradient, in the
            order of ``model.named_parameters()``.
        labels: what each axis shows, one label a vector.
        seed: the seed of random directions and of eigenvectors' starting vector; None for a line.
        source: a digest of what made them besides the model and the seed.
        end_buffers: the buffers of the solution at a line's end; None for other kinds.
    """

    kind: Kind
    vectors: Tensor
    labels: tuple[str, ...]
    seed: int | None
    source: str
    end_buffers: Mapping[str, Tensor] | None = None


def random_directions(model: nn.Module, *, count: int = 2, seed: int = 0) -> Directions:
    """Return Gaussian directions with filter normalisation (Li et al. 2018, section 4).

    A filter is a slice along the first axis of a parameter: an output channel of a convolution, or
    a row of a linear layer. Each gets the length of the model's own filter, so that a step of 1 is
    as long as the weights whatever their scale. Parameters of one axis or none are the biases and
    BatchNorm's scales and shifts. They stay where they are, as in the reference implementation
    ("biasbn"). The directions are drawn on the CPU: a seed means the same on every device.

    Raises:
        ValueError: count is below 1 or seed below 0, or no weight of two axes requires a gradient.
    """
    at_least("count", count, 1)
    generator = torch.Generator().manual_seed(at_least("seed", seed, 0))
    weights = [p.detach() for p in model.parameters() if p.requires_grad]
    if not any(p.ndim > 1 for p in weights):
        raise ValueError(
            "model must have a parameter of two axes that requires a gradient, got none"
        )
    vectors = torch.stack(
        [torch.cat([_filter_normalised(p, generator) for p in weights]) for _ in range(count)]
    )
    labels = tuple(f"random direction {i + 1}" for i in range(count))
    return Directions("random", vectors, labels, seed, "")


def _filter_normalised(parameter: Tensor, generator: torch.Generator) -> Tensor:
    if parameter.ndim <= 1:
        return torch.zeros(parameter.numel(), dtype=torch.float64)
    filters = parameter.to("cpu", torch.float64).flatten(1)  # (filters, weights of each)
    draw = torch.randn(filters.shape, generator=generator, dtype=torch.float64)
    lengths = filters.norm(dim=1, keepdim=True) / draw.norm(dim=1, keepdim=True)
    direction: Tensor = (draw * lengths).flatten()
    return direction


def hessian_directions(
    surface: LossSurface,
    *,
    count: int = 2,
    tolerance: float = 1e-3,
    max_products: int = 500,
    seed: int = 0,
) -> Directions:
    """Return the unit eigenvectors of the Hessian's largest eigenvalues λ (Yao et al. 2020).

    They are not filter-normalised: a step α is a distance, along which the loss bends as λα²/2. The
    sign of an eigenvector is arbitrary; here its largest component is positive.

    The label of an eigenvalue that did not converge has the sign ≈. The cost is that of
    `flatbench.sharpness.hessian_eigenvalues`.

    Args:
        surface: the loss, whose Hessian is taken at its ``center``.
        count: how many, 1 to d.
        tolerance: the search ends when each residual is at most ``tolerance``·|λ|.
        max_products: the search ends after so many Hessian products at the latest.
        seed: the seed of the starting vector.

    Raises:
        ValueError: an argument is out of range.
        ArithmeticError: the Hessian is not finite.
    """
    at_least("seed", seed, 0)
    found = hessian_eigenvalues(
        surface,
        k=at_least("count", count, 1),
        tolerance=tolerance,
        max_products=max_products,
        seed=seed,
    )
    vectors = found.vectors.cpu()
    if not bool(vectors.isfinite().all()):
        raise ArithmeticError("the Hessian at the model's weights is not finite")
    peaks = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    vectors = vectors * peaks.sign()
    sign = "=" if found.converged else "≈"
    labels = tuple(
        f"eigenvector {i + 1} (λ {sign} {value:.3g})" for i, value in enumerate(found.values)
    )
    source = digest([("vectors", vectors)])
    return Directions("hessian", vectors, labels, seed, source)


def line_direction(model: nn.Module, end: Mapping[str, Tensor]) -> Directions:
    """Return the difference from the model to another solution: α = 0 is the model, 1 the other.

    All parameters that require a gradient move, also biases and BatchNorm's (Goodfellow et al.
    2015).

    Args:
        model: the solution at α = 0.
        end: the ``state_dict`` of the solution at α = 1.

    Raises:
        ValueError: the two have different tensors, or differ in a parameter that does not require a
            gradient.
    """
    start = model.state_dict()
    if missing := sorted(start.keys() ^ end.keys()):
        raise ValueError(f"end: {missing[0]!r} must be in both solutions, got it in one")
    for name, tensor in start.items():
        if tensor.shape != end[name].shape:
            shapes = f"{tuple(tensor.shape)}, got {tuple(end[name].shape)}"
            raise ValueError(f"end: {name!r} must have the shape {shapes}")
    steps = []
    for name, parameter in model.named_parameters():
        here, there = (p.detach().to("cpu", torch.float64) for p in (parameter, end[name]))
        if parameter.requires_grad:
            steps.append((there - here).flatten())
        elif not torch.equal(here, there):
            raise ValueError(
                f"end: {name!r} must equal the model's, as it does not require a gradient"
            )
    buffers = {name: end[name].detach() for name, _ in model.named_buffers() if name in end}
    return Directions(
        "line",
        torch.cat(steps)[None],
        ("position α on the line",),
        None,
        digest((name, end[name]) for name in start),
        buffers,
    )
