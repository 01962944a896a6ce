"""Krylov methods for a symmetric operator that is known only by its products with vectors.

The basis is kept in float64 and each new vector is made orthogonal to all of it, twice ("twice is
enough": Giraud, Langou & Rozložník 2005), so that no ghost copies of eigenvalues appear.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""Maps v (d,) to A v (d,)."""

Which = Literal["LA", "SA", "LM"]
"""Largest algebraic, smallest algebraic, largest in magnitude: scipy.sparse.linalg.eigsh's."""


@dataclass(frozen=True, eq=False)
class RitzPairs:
    """Approximate eigenpairs: ``values`` and ``residuals`` (k,), ``vectors`` (k, d)."""

    values: Tensor
    residuals: Tensor
    vectors: Tensor
    converged: bool
    products: int


def eigenpairs(
    product: Product,
    dimension: int,
    k: int,
    *,
    which: Which,
    tolerance: float,
    max_products: int,
    basis_size: int,
    precision: float,
    generator: torch.Generator,
    device: torch.device,
) -> RitzPairs:
    """Return the first k eigenpairs in the order of ``which``, by thick-restart Lanczos.

    The method is that of Wu & Simon 2000. The residual ‖A y − θ y‖ of a Ritz pair bounds the
    distance from θ to an eigenvalue; the iteration ends when the k residuals are at most
    ``tolerance``·|θ|. Where a product is not finite, all values are nan.

    Args:
        product: the operator, d × d.
        dimension: d.
        k: how many pairs, 1 to d.
        which: see `Which`.
        tolerance: largest residual relative to |θ|.
        max_products: limit on products, after which the pairs at hand are returned.
        basis_size: vectors kept, more than k + 1 (or d), of 8·d bytes each.
        precision: relative error of a product. A smaller remainder is taken to mean that the
            subspace is invariant, and the search goes on from a random vector orthogonal to it.
        generator: draws the random vectors, on the CPU.
        device: the basis is kept there.
    """
    size = min(basis_size, dimension)
    basis = torch.zeros(size + 1, dimension, dtype=torch.float64, device=device)
    projected = torch.zeros(size, size, dtype=torch.float64)  # basis A basisᵀ
    basis[0] = _random_direction(basis[:0], dimension, generator, device)
    j = products = 0
    while True:
        image = product(basis[j])
        products += 1
        if not bool(image.isfinite().all()):
            nans = torch.full((k,), torch.nan, dtype=torch.float64)
            return RitzPairs(nans, nans, basis[:k] * torch.nan, False, products)
        rest, overlaps = _orthogonal_to(basis[: j + 1], image)
        projected[: j + 1, j] = projected[j, : j + 1] = overlaps.cpu()
        j += 1
        values, vectors = torch.linalg.eigh(projected[:j, :j])
        order = _order(values, which)
        values, vectors = values[order], vectors[:, order]
        length = float(rest.norm()) if j < dimension else 0.0
        invariant = length <= precision * float(values.abs().max())
        residuals = length * vectors[-1].abs()
        small = j >= k and bool((residuals[:k] <= tolerance * values[:k].abs()).all())
        # An invariant subspace need not hold every copy of its eigenvalues: look outside it too.
        converged = j == dimension or (small and not invariant)
        if converged or (products >= max_products and j >= k):
            ritz = vectors[:, :k].T.to(device) @ basis[:j]
            return RitzPairs(values[:k], residuals[:k], ritz, converged, products)
        if j == size:
            # Thick restart: keep the first Ritz vectors, more than k so that convergence goes on.
            j = k + (size - k) // 2
            basis[:j] = vectors[:, :j].T.to(device) @ basis[:size]
            projected.zero_()
            projected[:j, :j] = torch.diag(values[:j])
        if invariant:
            basis[j] = _random_direction(basis[:j], dimension, generator, device)
        else:
            basis[j] = rest / length


def gauss_quadrature(
    product: Product, start: Tensor, steps: int, precision: float
) -> tuple[Tensor, Tensor]:
    """Return nodes and weights (≤ steps,) with Σ weight·f(node) ≈ vᵀ f(A) v, v = start/‖start‖.

    Golub & Meurant 1994: exact for polynomials f of degree 2·steps − 1. The weights sum to 1. Where
    a product is not finite, both are nan.
    """
    steps = min(steps, start.numel())
    basis = torch.zeros(steps, start.numel(), dtype=torch.float64, device=start.device)
    basis[0] = start / start.norm()
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        j = len(diagonal)
        image = product(basis[j])
        if not bool(image.isfinite().all()):
            nans = torch.full((steps,), torch.nan, dtype=torch.float64)
            return nans, nans
        rest, overlaps = _orthogonal_to(basis[: j + 1], image)
        diagonal.append(float(overlaps[j]))
        length = float(rest.norm())
        tridiagonal = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        for offset in (1, -1) if beside else ():
            tridiagonal += torch.diag(torch.tensor(beside, dtype=torch.float64), offset)
        nodes, vectors = torch.linalg.eigh(tridiagonal)
        if len(diagonal) == steps or length <= precision * float(nodes.abs().max()):
            return nodes, vectors[0].square()
        beside.append(length)
        basis[j + 1] = rest / length


def _orthogonal_to(basis: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``vector`` (d,) less its part in the span of the orthonormal rows of ``basis`` (j, d).

    Also return the coefficients of that part, (j,).
    """
    first = basis @ vector
    vector = vector - first @ basis
    second = basis @ vector
    return vector - second @ basis, first + second


def _random_direction(
    basis: Tensor, dimension: int, generator: torch.Generator, device: torch.device
) -> Tensor:
    draw = torch.randn(dimension, generator=generator, dtype=torch.float64).to(device)
    rest, _ = _orthogonal_to(basis, draw)
    direction: Tensor = rest / rest.norm()
    return direction


def _order(values: Tensor, which: Which) -> Tensor:
    keys: dict[Which, Tensor] = {"LA": -values, "SA": values, "LM": -values.abs()}
    order: Tensor = keys[which].argsort()
    return order
