"""The ascent of SAM and its undoing, with ``torch._foreach_*``: the reference, and the CPU path.

Notation: w weights, g gradient, T the diagonal normalisation (1 for SAM, |w| + eta for ASAM), and
the perturbation e(w) = rho T^2 g / ||T g||, where the norm runs over all parameters as one vector.
Foret et al. 2021 (arXiv:2010.01412), equation 2; Kwon et al. 2021 (arXiv:2102.11600), algorithm 1.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .groups import Group, is_adaptive
from .layout import saved_copy


class Segment(NamedTuple):
    """Tensors which are perturbed alike: lists in step, tensors of equal shape.

    ``adaptive`` chooses T = |w| + eta, otherwise T = 1.
    """

    weights: list[Tensor]
    grads: list[Tensor]
    saved: list[Tensor]
    rho: float
    adaptive: bool
    eta: float


# Temporaries of at most this many elements (or one tensor) at a time on a CPU: whole-model
# temporaries cost more in page faults than the arithmetic does.
CPU_PIECE = 1 << 17


def segments(groups: Sequence[Group], saved: dict[Tensor, Tensor]) -> list[Segment]:
    """Return the parameters with a gradient, in runs of those that are perturbed alike.

    ``saved`` holds the memory in which each parameter's w is kept; what is missing is made.

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
            alike.setdefault(is_adaptive(group, i), []).append(p)
        for adaptive, weights in alike.items():
            grads = [p.grad for p in weights if p.grad is not None]
            copies = [saved_copy(saved, p) for p in weights]
            found.append(Segment(weights, grads, copies, group["rho"], adaptive, group["eta"]))
    return found


def norm_dtype(p: Tensor) -> torch.dtype:
    """Return the type in which norms are taken: p's own, but float32 for half precision."""
    return torch.promote_types(torch.float32, p.dtype)


def gradient_norm(segments: Sequence[Segment], out: Tensor) -> None:
    """Write ||T g||, over all segments as one vector, into the 0-d tensor ``out``."""
    norms: list[Tensor] = []
    for segment in segments:
        for piece in _pieces(segment):
            vectors = _normalised_gradients(piece) if piece.adaptive else tuple(piece.grads)
            norms += torch._foreach_norm(vectors, dtype=out.dtype)
    if norms:
        torch.linalg.vector_norm(torch.stack(norms), out=out)
    else:
        out.zero_()


def perturb(segments: Sequence[Segment], norm: Tensor) -> None:
    """Save w, then w <- w + rho T^2 g / norm. A norm that is 0 or not finite perturbs nothing.

    On a GPU that is decided without asking the host, by a factor of 0; there an element whose
    gradient is not finite becomes NaN, until `restore`.
    """
    for segment in segments:
        scale: Tensor | float = torch.where(
            (norm > 0) & norm.isfinite(), segment.rho / norm, torch.zeros_like(norm)
        )
        if norm.device.type == "cpu":
            scale = float(scale)
        for piece in _pieces(segment):
            torch._foreach_copy_(piece.saved, piece.weights)
            if not isinstance(scale, float) or scale != 0.0:
                _climb(piece, scale)


def restore(weights: list[Tensor], saved: list[Tensor]) -> None:
    """w <- saved copy, bit for bit, in the storage that w has always had."""
    torch._foreach_copy_(weights, saved)


def are_finite(grads: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return whether every element is finite: 0-d bool, on the gradients' device.

    ``dtype`` is that of the norms which tell, at least float32.
    """
    filled = [g for g in grads if g.numel()]
    if not filled:
        return torch.tensor(True, device=grads[0].device)
    if filled[0].device.type == "cpu":
        # The 2-norm is read at the memory's speed, the maximum is not; but the norm may overflow.
        finite = torch.stack(torch._foreach_norm(filled, dtype=dtype)).isfinite().all()
        if finite:
            return finite
    return torch.stack(torch._foreach_norm(filled, math.inf, dtype=dtype)).isfinite().all()


def _climb(piece: Segment, scale: Tensor | float) -> None:
    """w <- w + scale T^2 g."""
    weights, grads = piece.weights, piece.grads
    if isinstance(scale, float) and not piece.adaptive:
        torch._foreach_add_(weights, grads, alpha=scale)
    elif isinstance(scale, float):
        torch._foreach_addcmul_(weights, _squared_normalisation(piece), grads, value=scale)
    else:
        ascent = torch._foreach_mul(grads, scale)
        if piece.adaptive:
            torch._foreach_mul_(ascent, _squared_normalisation(piece))
        torch._foreach_add_(weights, ascent)


def _normalisation(piece: Segment) -> tuple[Tensor, ...]:
    """T = |w| + eta, in new memory."""
    t = torch._foreach_abs(piece.weights)
    torch._foreach_add_(t, piece.eta)
    return t


def _normalised_gradients(piece: Segment) -> tuple[Tensor, ...]:
    """T g; without eta up to the sign of each element, which a norm does not see."""
    if piece.eta == 0.0:
        return torch._foreach_mul(piece.weights, piece.grads)
    t = _normalisation(piece)
    torch._foreach_mul_(t, piece.grads)
    return t


def _squared_normalisation(piece: Segment) -> tuple[Tensor, ...]:
    if piece.eta == 0.0:
        return torch._foreach_mul(piece.weights, piece.weights)
    t = _normalisation(piece)
    torch._foreach_mul_(t, t)
    return t


def _pieces(segment: Segment) -> Iterator[Segment]:
    """The segment in runs of tensors; see `CPU_PIECE`."""
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
