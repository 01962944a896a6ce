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

Products = Callable[[Tensor], Tensor]
"""Maps each row v of (b, d) to A v: (b, d)."""

Which = Literal["LA", "SA", "LM"]
"""Largest algebraic, smallest algebraic, largest in magnitude: scipy.sparse.linalg.eigsh's."""


@dataclass(frozen=True, eq=False)
class RitzPairs:
    """Approximate eigenpairs, and the space that they were found in.

    Attributes:
        values: (k,), in the order asked for.
        residuals: (k,), ‖A y − θ y‖ of each.
        vectors: (k, d).
        converged: whether each residual is within the tolerance.
        basis: (j, d), orthonormal rows that span the space.
        trace: the trace of A in that space, that of basis A basisᵀ.
    """

    values: Tensor
    residuals: Tensor
    vectors: Tensor
    converged: bool
    basis: Tensor
    trace: float


def eigenpairs(
    product: Products,
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
    block: int = 2,
) -> RitzPairs:
    """Return the first k eigenpairs in the order of ``which``, by thick-restart block Lanczos.

    The restart is that of Wu & Simon 2000, the block that of Golub & Underwood 1977. The residual
    ‖A y − θ y‖ of a Ritz pair bounds the distance from θ to *an* eigenvalue: a single starting
    vector with little of the first eigenvector in it converges to a later one first. Two are rarely
    both so, and find copies of an eigenvalue, of which a single one sees one alone.

    The iteration ends when the k residuals are at most ``tolerance``·|θ|. Where a product is not
    finite, all values are nan.

    Args:
        product: the operator, d × d.
        dimension: d.
        k: how many pairs, 1 to d.
        which: see `Which`.
        tolerance: largest residual relative to |θ|.
        max_products: limit on products, after which the pairs at hand are returned; k at least, and
            one block, are made.
        basis_size: vectors kept, at least k + 2·block, of 8·d bytes each.
        precision: relative error of a product. A smaller remainder is taken to mean that the
            subspace is invariant, and the search goes on from a random vector orthogonal to it.
        generator: draws the random vectors, on the CPU.
        device: the basis is kept there.
        block: how many starting vectors.
    """
    # Whole blocks up to the restart: a part of one would leave the residuals without their rest.
    size = dimension if dimension <= basis_size else basis_size - basis_size % block
    basis = torch.zeros(size, dimension, dtype=torch.float64, device=device)
    projected = torch.zeros(size, size, dtype=torch.float64)  # basis A basisᵀ
    new = min(block, dimension)  # rows of basis that have no product yet
    for i in range(new):
        basis[i] = _random_direction(basis[:i], dimension, generator, device)
    j = products = 0
    drawn = False  # whether the last block is random because nothing was left of the one before
    while True:
        images = product(basis[j : j + new])
        products += new
        if not bool(images.isfinite().all()):
            nans = torch.full((k,), torch.nan, dtype=torch.float64)
            return RitzPairs(nans, nans, basis[:k] * torch.nan, False, basis[:j], torch.nan)
        rests, overlaps = _orthogonal_to(basis[: j + new], images)
        projected[: j + new, j : j + new] = overlaps.T.cpu()
        projected[j : j + new, : j + new] = overlaps.cpu()
        j += new
        values, vectors = torch.linalg.eigh(projected[:j, :j])
        order = _order(values, which)
        values, vectors = values[order], vectors[:, order]
        # ‖A y − θ y‖, since A y − θ y lies in the span of what the last block's images left over
        left = rests if j < dimension else torch.zeros_like(rests)
        residuals = (vectors[j - new :].T[:k].to(device) @ left).norm(dim=1).cpu()
        tiny = precision * float(values.abs().max())
        invariant = bool((left.norm(dim=1) <= tiny).all())
        small = j >= k and bool((residuals <= tolerance * values[:k].abs()).all())
        # An invariant subspace need not hold every copy of its eigenvalues. So the search goes on
        # outside it, until a random block has no part in what is asked for.
        foreign = drawn and bool((vectors[j - new :, :k].abs() <= precision**0.5).all())
        converged = j == dimension or (small and (foreign or not invariant))
        if converged or (products + block > max_products and j >= k):
            ritz = vectors[:, :k].T.to(device) @ basis[:j]
            trace = float(projected[:j, :j].trace())
            return RitzPairs(values[:k], residuals, ritz, converged, basis[:j], trace)
        if j == size:
            # Thick restart: keep the first Ritz vectors, more than k so that convergence goes on.
            j = k + (size - k) // 2
            j += (size - j) % block
            basis[:j] = vectors[:, :j].T.to(device) @ basis
            projected.zero_()
            projected[:j, :j] = torch.diag(values[:j])
        new, drawn = min(block, size - j), invariant
        for i in range(new):
            basis[j + i] = _next_direction(basis[: j + i], rests[i], tiny, generator)


def gauss_quadrature(
    product: Products, start: Tensor, steps: int, precision: float
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
        image = product(basis[j : j + 1])
        if not bool(image.isfinite().all()):
            nans = torch.full((steps,), torch.nan, dtype=torch.float64)
            return nans, nans
        (rest,), overlaps = _orthogonal_to(basis[: j + 1], image)
        diagonal.append(float(overlaps[0, j]))
        length = float(rest.norm())
        tridiagonal = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        for offset in (1, -1) if beside else ():
            tridiagonal += torch.diag(torch.tensor(beside, dtype=torch.float64), offset)
        nodes, vectors = torch.linalg.eigh(tridiagonal)
        if len(diagonal) == steps or length <= precision * float(nodes.abs().max()):
            return nodes, vectors[0].square()
        beside.append(length)
        basis[j + 1] = rest / length


def _orthogonal_to(basis: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``vectors`` (b, d) less their parts in the span of the orthonormal ``basis`` (j, d).

    Also return the coefficients of those parts, (b, j).
    """
    first = vectors @ basis.T
    vectors = vectors - first @ basis
    second = vectors @ basis.T
    return vectors - second @ basis, first + second


def _next_direction(basis: Tensor, rest: Tensor, tiny: float, generator: torch.Generator) -> Tensor:
    """Return the unit vector of ``rest`` (d,) outside the basis; a random one if none is left."""
    (outside,), _ = _orthogonal_to(basis, rest[None])
    length = float(outside.norm())
    if length > tiny:
        direction: Tensor = outside / length
        return direction
    return _random_direction(basis, len(rest), generator, basis.device)


def _random_direction(
    basis: Tensor, dimension: int, generator: torch.Generator, device: torch.device
) -> Tensor:
    draw = torch.randn(dimension, generator=generator, dtype=torch.float64).to(device)
    (rest,), _ = _orthogonal_to(basis, draw[None])
    direction: Tensor = rest / rest.norm()
    return direction


def _order(values: Tensor, which: Which) -> Tensor:
    keys: dict[Which, Tensor] = {"LA": -values, "SA": values, "LM": -values.abs()}
    order: Tensor = keys[which].argsort()
    return order
