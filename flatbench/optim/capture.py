"""CUDA graphs: whether one is being captured, and what it may hold."""

import torch
from torch import Tensor


def capturing(t: Tensor) -> bool:
    """Return whether a CUDA graph is being captured on the current stream of t's device."""
    return t.is_cuda and torch.cuda.is_current_stream_capturing()


def refuse_capture(method: str, t: Tensor) -> None:
    """Refuse a method whose steps no graph may hold: a replay repeats nothing that the host does.

    Raises:
        RuntimeError: a CUDA graph is being captured on the current stream of t's device.
    """
    if capturing(t):
        raise RuntimeError(f"a step of {method} can't be captured in a CUDA graph: SAM's alone can")
