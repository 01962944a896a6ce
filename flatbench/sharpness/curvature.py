"""The Hessian's largest eigenvalue and its trace, from one Krylov space."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from . import krylov
from .products import HessianProducts
from .surface import LossSurface, Measure, at_least, non_negative, random_signs, standard_error

BASIS = 24  # vectors of the Krylov space, before it is restarted


@dataclass(frozen=True)
class Curvature:
    """What one Krylov space gives.

    Attributes:
        max_eigenvalue: the largest eigenvalue; its cost is that of the space.
        trace: the trace; its cost is that of the space and of the probes.
    """

    max_eigenvalue: Measure
    trace: Measure


def hessian_curvature(
    surface: LossSurface,
    *,
    tolerance: float = 1e-2,
    max_products: int = 500,
    probes: int = 4,
    seed: int = 0,
) -> Curvature:
    """Return the largest eigenvalue of the Hessian of L at w, and the trace, by the same products.

    The space is the one in which block Lanczos finds the eigenvalue (see `hessian_eigenvalues`).
    The trace in that space is exact, and Hutchinson's method with random signs estimates that of
    the rest (Chen & Hallman 2023; Meyer et al. 2021 use a sketch of H's range as the space). Given
    the space the estimate is unbiased, and its standard error is that of the probes: read it with
    Student's t at probes − 1 degrees of freedom.

    Cost: 1 + 2·(products + probes) gradient evaluations (see `HessianProducts`), of which the
    eigenvalue's are all but 2·probes.

    Args:
        surface: the loss, at whose ``center`` w it is measured.
        tolerance: the space grows until the eigenvalue's residual is at most ``tolerance``·|λ|.
        max_products: limit on the products that make the space.
        probes: products for the trace of the rest, at least 2.
        seed: seeds the starting vectors and the probes, which are drawn on the CPU.

    Returns:
        Both; nan where a product is not finite.

    Raises:
        ValueError: an argument is out of range.
    """
    non_negative("tolerance", tolerance)
    at_least("max_products", max_products, 1)
    at_least("probes", probes, 2)
    surface = surface.fresh()
    hessian = HessianProducts(surface)
    generator = torch.Generator().manual_seed(seed)
    found = krylov.eigenpairs(
        hessian,
        surface.dimension,
        1,
        which="LA",
        tolerance=tolerance,
        max_products=max_products,
        basis_size=BASIS,
        precision=32 * surface.precision,
        generator=generator,
        device=surface.center.device,
    )
    largest = Measure(float(found.values[0]), None, surface.gradient_evaluations, found.converged)
    if not torch.isfinite(found.values[0]):
        return Curvature(largest, Measure(torch.nan, torch.nan, surface.gradient_evaluations))
    signs = random_signs(probes, surface.center, generator)
    signs -= (signs @ found.basis.T) @ found.basis
    outside = (signs * hessian(signs)).sum(1)
    trace = Measure(
        found.trace + float(outside.mean()),
        standard_error(outside),
        surface.gradient_evaluations,
        samples=probes,
    )
    return Curvature(largest, trace)
