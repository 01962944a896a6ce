"""Second order: the Hessian's largest eigenvalues, its trace and its spectral density."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import krylov
from .krylov import Which
from .products import HessianProducts
from .surface import (
    LossSurface,
    Measure,
    at_least,
    non_negative,
    random_signs,
    standard_error,
)


@dataclass(frozen=True, eq=False)
class HessianEigenvalues:
    """The k eigenvalues asked for, in the order of ``which``.

    Attributes:
        values: k eigenvalues, in units of the loss per squared unit of the parameters.
        residuals: ‖H v − λ v‖ of each: the distance to an eigenvalue is at most this, plus the
            rounding of the products (in float32 about 1e-6 of the largest eigenvalue).
        vectors: (k, d) float64 unit eigenvectors, on the model's device; d runs over the
            parameters that require a gradient, in order.
        converged: whether all residuals are within the tolerance.
        gradient_evaluations: the cost, see `Measure`.
    """

    values: tuple[float, ...]
    residuals: tuple[float, ...]
    vectors: Tensor
    converged: bool
    gradient_evaluations: float


def hessian_eigenvalues(
    surface: LossSurface,
    *,
    k: int = 1,
    which: Which = "LA",
    tolerance: float = 1e-4,
    max_products: int = 500,
    basis_size: int | None = None,
    seed: int = 0,
) -> HessianEigenvalues:
    """Return k extreme eigenvalues of the Hessian of L at w, and their eigenvectors.

    Block Lanczos from two starting vectors (Golub & Underwood 1977), with full reorthogonalisation
    and thick restarts (Wu & Simon 2000), over Hessian-vector products; PyHessian (Yao et al. 2020)
    finds the same by power iteration. Of a multiple eigenvalue two copies are found, and more by
    rounding.

    Cost: 1 + 2·products gradient evaluations (see `HessianProducts`); about 10 to 40 products for
    k = 1. Memory: 8·d·``basis_size`` bytes, and the graph of a gradient, beside the model's.

    Args:
        surface: the loss, at whose ``center`` w it is measured.
        k: how many, 1 to d.
        which: "LA" the largest, "SA" the smallest (most negative curvature), "LM" the largest in
            magnitude.
        tolerance: the iteration ends when each residual is at most ``tolerance``·|λ|.
        max_products: limit on Hessian products, though at least k, and two, are made.
            ``converged`` is False where the limit ends the iteration.
        basis_size: vectors kept, at least k + 4; None means max(4k, 24).
        seed: seeds the starting vectors.

    Returns:
        The eigenvalues; all nan where a product is not finite.

    Raises:
        ValueError: an argument is out of range.
    """
    at_least("k", k, 1)
    at_least("max_products", max_products, 1)
    non_negative("tolerance", tolerance)
    size = max(4 * k, 24) if basis_size is None else at_least("basis_size", basis_size, k + 4)
    if which not in get_args(Which):
        names = ", ".join(map(repr, get_args(Which)))
        raise ValueError(f"which must be one of {names}, got {which!r}")
    surface = surface.fresh()
    if k > surface.dimension:
        d = surface.dimension
        raise ValueError(f"k must be at most {d}, the number of parameters, got {k}")
    pairs = krylov.eigenpairs(
        HessianProducts(surface),
        surface.dimension,
        k,
        which=which,
        tolerance=tolerance,
        max_products=max_products,
        basis_size=size,
        precision=32 * surface.precision,
        generator=torch.Generator().manual_seed(seed),
        device=surface.center.device,
    )
    cost = surface.gradient_evaluations
    return HessianEigenvalues(
        tuple(pairs.values.tolist()),
        tuple(pairs.residuals.tolist()),
        pairs.vectors,
        pairs.converged,
        cost,
    )


def hessian_max_eigenvalue(
    surface: LossSurface,
    *,
    tolerance: float = 1e-4,
    max_products: int = 500,
    seed: int = 0,
) -> Measure:
    """Return the Hessian's largest eigenvalue: `hessian_eigenvalues` with k = 1, as a measure.

    Args:
        surface: the loss, at whose ``center`` w it is measured.
        tolerance: the iteration ends when the residual is at most ``tolerance``·|λ|.
        max_products: limit on Hessian products.
        seed: seeds the starting vectors.

    Raises:
        ValueError: an argument is out of range.
    """
    found = hessian_eigenvalues(surface, tolerance=tolerance, max_products=max_products, seed=seed)
    return Measure(found.values[0], None, found.gradient_evaluations, found.converged)


def hessian_trace(
    surface: LossSurface,
    *,
    products: int = 30,
    seed: int = 0,
) -> Measure:
    """Return the trace of the Hessian of L at w by Hutch++ (Meyer et al. 2021, algorithm 1).

    A third of the products sketches the range of H, a third takes the trace there exactly, and a
    third estimates the trace of the rest by Hutchinson's method with random signs. Given the sketch
    the estimate is unbiased, and its standard error is that of the last third. With few products,
    read it with Student's t at products/3 − 1 degrees of freedom.

    Cost: 1 + 2·products gradient evaluations. Memory: about 11·d·products bytes, and the graph of a
    gradient.

    Args:
        surface: the loss, at whose ``center`` w it is measured.
        products: Hessian products, at least 6, a multiple of 3.
        seed: seeds the random signs, which are drawn on the CPU.

    Returns:
        The measure; nan where a product is not finite.

    Raises:
        ValueError: an argument is out of range.
    """
    if at_least("products", products, 6) % 3:
        raise ValueError(f"products must be a multiple of 3, got {products}")
    generator = torch.Generator().manual_seed(seed)
    third = products // 3
    surface = surface.fresh()
    hessian = HessianProducts(surface)
    sketch = hessian(random_signs(third, surface.center, generator))
    if not bool(sketch.isfinite().all()):
        return Measure(torch.nan, torch.nan, surface.gradient_evaluations)
    span = torch.linalg.qr(sketch.T).Q.T
    within = (span * hessian(span)).sum()
    probes = random_signs(third, surface.center, generator)
    probes -= (probes @ span.T) @ span
    outside = (probes * hessian(probes)).sum(1)
    cost = surface.gradient_evaluations
    return Measure(float(within + outside.mean()), standard_error(outside), cost, samples=third)


@dataclass(frozen=True, eq=False)
class SpectralDensity:
    """The Hessian's spectrum as point masses, one set for each random probe.

    Attributes:
        nodes: (probes, steps) places on the eigenvalue axis.
        weights: (probes, steps) their masses; each row sums to 1. Where a probe needed fewer
            steps, the rest of its row has mass 0.
        dimension: the number d of eigenvalues, so that d·mass is a count.
        gradient_evaluations: the cost, see `Measure`.
    """

    nodes: NDArray[np.float64]
    weights: NDArray[np.float64]
    dimension: int
    gradient_evaluations: float

    def moment(self, power: int) -> tuple[float, float | None]:
        """Return the mean over probes of vᵀHᵖv, an estimate of trace(Hᵖ)/d, and its standard error.

        One probe's vᵀHᵖv is exact up to p = 2·steps − 1.
        """
        values = torch.from_numpy((self.weights * self.nodes**power).sum(axis=1))
        return float(values.mean()), standard_error(values)

    def density(self, grid: NDArray[np.float64], width: float) -> NDArray[np.float64]:
        """Return the density at each point of ``grid``: the masses, blurred by a Gaussian.

        ``width`` is the standard deviation of the Gaussian, in the unit of the eigenvalues
        (Ghorbani et al. 2019). The density integrates to 1.

        Raises:
            ValueError: the width is not a finite positive number.
        """
        if not (np.isfinite(width) and width > 0):
            raise ValueError(f"width must be a finite number above 0, got {width!r}")
        nodes, weights = self.nodes.ravel(), self.weights.ravel() / len(self.nodes)
        bells = np.exp(-0.5 * ((np.asarray(grid)[:, None] - nodes) / width) ** 2)
        density: NDArray[np.float64] = bells @ weights / (width * np.sqrt(2 * np.pi))
        return density


def spectral_density(
    surface: LossSurface,
    *,
    probes: int = 4,
    steps: int = 60,
    seed: int = 0,
) -> SpectralDensity:
    """Return the density of the Hessian's eigenvalues by stochastic Lanczos quadrature.

    Each Gaussian probe starts a Lanczos run of ``steps`` steps with full reorthogonalisation, and
    the Gauss quadrature of that run stands for the spectrum (Ghorbani et al. 2019; as in PyHessian,
    Yao et al. 2020).

    Cost: 1 + 2·probes·steps gradient evaluations. Memory: 8·d·``steps`` bytes, and the graph of a
    gradient, beside the model's.

    Args:
        surface: the loss, at whose ``center`` w it is measured.
        probes: random vectors, at least 1.
        steps: Lanczos steps for each, at least 1; at most d are taken.
        seed: seeds the probes, which are drawn on the CPU.

    Returns:
        The density; nodes and weights are nan where a product is not finite.

    Raises:
        ValueError: an argument is out of range.
    """
    at_least("probes", probes, 1)
    at_least("steps", steps, 1)
    generator = torch.Generator().manual_seed(seed)
    surface = surface.fresh()
    hessian = HessianProducts(surface)
    dimension = surface.dimension
    nodes = np.zeros((probes, min(steps, dimension)))
    weights = np.zeros_like(nodes)
    for i in range(probes):
        start = torch.randn(dimension, generator=generator, dtype=torch.float64)
        places, masses = krylov.gauss_quadrature(
            hessian,
            start.to(surface.center.device),
            steps,
            32 * surface.precision,
        )
        nodes[i, : len(places)] = places
        weights[i, : len(masses)] = masses
    cost = surface.gradient_evaluations
    return SpectralDensity(nodes, weights, dimension, cost)
