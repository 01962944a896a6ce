"""Directions in parameter space along which a loss is drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

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
        labels: what each axis shows, one a vector.
        seed: of the randomness; None for a line.
        source: a digest of what made them besides the model and the seed.
        end_buffers: for a line, the buffers of the solution at its end.
    """

    kind: Kind
    vectors: Tensor
    labels: tuple[str, ...]
    seed: int | None
    source: str
    end_buffers: Mapping[str, Tensor] | None = None


def random_directions(model: nn.Module, *, count: int = 2, seed: int = 0) -> Directions:
    """Return Gaussian directions with filter normalisation (Li et al. 2018, section 4).

    Each filter (each slice along the first axis of a parameter: an output channel of a
    convolution, a row of a linear layer) gets the length of the model's own filter, so that a step
    of 1 is as long as the weights whatever their scale. Parameters of one axis or none, which are
    the biases and BatchNorm's scales and shifts, stay where they are, as in the reference
    implementation ("biasbn"). Drawn on the CPU: a seed means the same on every device.

    Raises:
        ValueError: count is below 1 or seed below 0, or no weight of two axes requires a gradient.
    """
    at_least("count", count, 1)
    generator = torch.Generator().manual_seed(at_least("seed", seed, 0))
    weights = [p.detach() for p in model.parameters() if p.requires_grad]
    if not any(p.ndim > 1 for p in weights):
        raise ValueError("model: no parameter of two axes requires a gradient; allowed: at least 1")
    vectors = torch.stack(
        [torch.cat([_filter_normalised(p, generator) for p in weights]) for _ in range(count)]
    )
    labels = tuple(f"random direction {i + 1}" for i in range(count))
    return Directions("random", vectors, labels, seed, "")


def _filter_normalised(parameter: Tensor, generator: torch.Generator) -> Tensor:
    if parameter.ndim <= 1:
        return torch.zeros(parameter.numel(), dtype=torch.float64)
    filters = parameter.to("cpu", torch.float64).flatten(1)
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

    They are not filter-normalised: a step α is a distance, along which the loss bends as λα²/2.
    Each points to where its largest component is positive.

    An eigenvalue that did not converge is labelled with ≈. The cost is that of
    `flatbench.sharpness.hessian_eigenvalues`.

    Args:
        surface: the loss, whose Hessian is taken at its ``center``.
        count: how many, 1 to d.
        tolerance: ends when each residual is at most ``tolerance``·|λ|.
        max_products: Hessian products at most.
        seed: of the starting vector.

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

    All parameters that require a gradient take part, biases and BatchNorm's too (Goodfellow et al.
    2015).

    Args:
        model: the solution at α = 0.
        end: the ``state_dict`` of the solution at α = 1.

    Raises:
        ValueError: the two do not have the same tensors, or differ in a parameter that does not
            require a gradient.
    """
    start = model.state_dict()
    if missing := sorted(start.keys() ^ end.keys()):
        raise ValueError(f"end: {missing[0]!r} is in one of the two solutions only")
    for name, tensor in start.items():
        if tensor.shape != end[name].shape:
            shapes = f"{tuple(end[name].shape)}; allowed: {tuple(tensor.shape)}"
            raise ValueError(f"end: {name!r} has the shape {shapes}")
    steps = []
    for name, parameter in model.named_parameters():
        here, there = (p.detach().to("cpu", torch.float64) for p in (parameter, end[name]))
        if parameter.requires_grad:
            steps.append((there - here).flatten())
        elif not torch.equal(here, there):
            raise ValueError(f"end: {name!r} differs, but does not require a gradient")
    buffers = {name: end[name].detach() for name, _ in model.named_buffers() if name in end}
    return Directions(
        "line",
        torch.cat(steps)[None],
        ("position α on the line",),
        None,
        digest((name, end[name]) for name in start),
        buffers,
    )


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the SHA-256 of names, types, shapes and contents."""
    state = hashlib.sha256()
    for name, tensor in tensors:
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        state.update(flat.view(torch.uint8).numpy().tobytes())
    return state.hexdigest()
