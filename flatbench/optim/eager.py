"""The ascent of SAM and its undoing, with ``torch._foreach_*``: the reference, and the CPU path.

Notation: w weights, g gradient, T the diagonal normalisation (1 for SAM, |w| + eta for ASAM), and
the perturbation e(w) = rho T^2 g / ||T g||, where the norm runs over all parameters as one vector.
Foret et al. 2021 (arXiv:2010.01412), equation 2; Kwon et al. 2021 (arXiv:2102.11600), algorithm 1.
"""

import math
from collections.abc import Container, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .groups import Group, is_adaptive
from .layout import saved_copy


class Segment(NamedTuple):
    """Parameters that are perturbed alike; entry i of each list belongs to the i-th of them.

    ``adaptive`` chooses T = |w| + eta, otherwise T = 1.
    """

    weights: list[Tensor]
    grads: list[Tensor]
    saved: list[Tensor]
    rho: float
    adaptive: bool
    eta: float
    group: Group  # whose options a method may read


# On a CPU, adaptive steps make temporaries of at most this many elements (or one tensor) at a
# time: those of a whole model cost more in page faults than the arithmetic does.
CPU_PIECE = 1 << 17


def segments(
    groups: Sequence[Group], saved: dict[Tensor, Tensor], only: Container[Tensor] | None
) -> list[Segment]:
    """Return the parameters that have a gradient, grouped by how they are perturbed.

    Args:
        groups: all of them.
        saved: parameter -> the tensor that its w is saved in; missing ones are made.
        only: those that are perturbed, None for all.

    Raises:
        RuntimeError: a gradient is sparse.
    """
    found = []
    for group in groups:
        alike: dict[bool, list[Tensor]] = {}
        for i, p in enumerate(group["params"]):
            if p.grad is None:
                continue
            if p.grad.is_sparse:
                raise RuntimeError("SAM does not take sparse gradients")
            if only is None or p in only:
                alike.setdefault(is_adaptive(group, i), []).append(p)
        for adaptive, weights in alike.items():
            grads = [p.grad for p in weights if p.grad is not None]
            copies = [saved_copy(saved, p) for p in weights]
            found.append(
                Segment(weights, grads, copies, group["rho"], adaptive, group["eta"], group)
            )
    return found


def norm_dtype(p: Tensor) -> torch.dtype:
    """Return the dtype in which norms are taken: p's own, but float32 for half precision."""
    return torch.promote_types(torch.float32, p.dtype)


def gradient_norm(segments: Sequence[Segment], out: Tensor) -> None:
    """Write ||T g||, over all segments as one vector, into the 0-d tensor ``out``."""
    norms: list[Tensor] = []
    for segment in segments:
        for piece in _pieces(segment):
            grads = piece.grads
            vectors = _times_normalisation(piece, grads) if piece.adaptive else tuple(grads)
            norms += torch._foreach_norm(vectors, dtype=out.dtype)
    if norms:
        torch.linalg.vector_norm(torch.stack(norms), out=out)
    else:
        out.zero_()


def inner(ones: Sequence[Tensor], others: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return the inner product of two lists of tensors, each as one vector: 0-d, of ``dtype``."""
    if not ones:
        return torch.zeros((), dtype=dtype)
    products = torch._foreach_mul(list(ones), list(others))
    return torch.stack([product.sum(dtype=dtype) for product in products]).sum()


def perturb(segments: Sequence[Segment], norm: Tensor) -> None:
    """Save w, then w <- w + rho T^2 g / norm. A norm that is 0 or not finite perturbs nothing.

    On a GPU the host does not read the norm: a factor of 0 takes the place of the decision. There
    an element whose gradient is not finite becomes NaN, until `restore`.
    """
    for segment in segments:
        scale: Tensor | float = torch.where(
            (norm > 0) & norm.isfinite(), segment.rho / norm, torch.zeros_like(norm)
        )
        if norm.device.type == "cpu":
            scale = float(scale)
        for piece in _pieces(segment):
            # Saved in any case: `restore` does not ask whether w was perturbed.
            torch._foreach_copy_(piece.saved, piece.weights)
            if not isinstance(scale, float) or scale != 0.0:
                _climb(piece, scale)


def restore(weights: list[Tensor], saved: list[Tensor]) -> None:
    """w <- saved copy, bit for bit, in the storage that w has always had."""
    torch._foreach_copy_(weights, saved)


def are_finite(grads: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return whether every element is finite: 0-d bool, on the gradients' device.

    ``dtype`` is that in which norms are taken; see `norm_dtype`.
    """
    filled = [g for g in grads if g.numel()]
    if not filled:
        return torch.tensor(True, device=grads[0].device)
    if filled[0].device.type == "cpu":
        # The 2-norm runs at the speed of memory, the maximum does not. But the 2-norm of finite
        # elements may overflow, so only the maximum can say that one is not finite.
        finite = torch.stack(torch._foreach_norm(filled, dtype=dtype)).isfinite().all()
        if finite:
            return finite
    return torch.stack(torch._foreach_norm(filled, math.inf, dtype=dtype)).isfinite().all()


def _climb(piece: Segment, scale: Tensor | float) -> None:
    """w <- w + scale T^2 g; ``scale`` is a number on a CPU, a 0-d tensor elsewhere."""
    weights, grads = piece.weights, piece.grads
    if isinstance(scale, float) and not piece.adaptive:
        torch._foreach_add_(weights, grads, alpha=scale)
    elif isinstance(scale, float):
        torch._foreach_addcmul_(weights, _times_normalisation(piece), grads, value=scale)
    else:
        ascent = torch._foreach_mul(grads, scale)
        if piece.adaptive:
            torch._foreach_mul_(ascent, _times_normalisation(piece))
        torch._foreach_add_(weights, ascent)


def _times_normalisation(piece: Segment, factors: list[Tensor] | None = None) -> tuple[Tensor, ...]:
    """Return T times the factors, by default T^2, in new memory; T = |w| + eta.

    Without eta T is taken as w: the sign of an element shows neither in a norm nor in T^2.
    """
    if piece.eta == 0.0:
        return torch._foreach_mul(piece.weights, piece.weights if factors is None else factors)
    t = torch._foreach_abs(piece.weights)
    torch._foreach_add_(t, piece.eta)
    torch._foreach_mul_(t, t if factors is None else factors)
    return t


def _pieces(segment: Segment) -> Iterator[Segment]:
    """Yield the segment whole, or cut between tensors into pieces; see `CPU_PIECE`."""
    if not segment.adaptive or segment.weights[0].device.type != "cpu":
        yield segment
        return
    start = elements = 0
    for i, w in enumerate(segment.weights):
        if i > start and elements + w.numel() > CPU_PIECE:
            yield _cut(segment, start, i)
            start, elements = i, 0
        elements += w.numel()
    yield _cut(segment, start, len(segment.weights))


def _cut(segment: Segment, start: int, stop: int) -> Segment:
    return segment._replace(
        weights=segment.weights[start:stop],
        grads=segment.grads[start:stop],
        saved=segment.saved[start:stop],
    )
