"""Speed and memory of a run, in a form that another machine can be compared with."""

from __future__ import annotations

import gc
import os
import statistics
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from flatbench.training.devices import return_freed_memory, synchronise

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def calibration_seconds(where: torch.device) -> float:
    """Return the median time of a fixed piece of work: one 3×3 convolution there and back.

    64 images of 16×16 and 32 channels, fp32: a training step's own kind of work, about 10 ms on
    one core. A case's training time over it is a ratio that machines of one kind share.
    """
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(64, 32, 16, 16, generator=rng).to(where)
    weights = torch.randn(32, 32, 3, 3, generator=rng).to(where).requires_grad_()
    times = []
    for _ in range(12):
        synchronise(where)
        start = time.perf_counter()
        F.conv2d(images, weights, padding=1).sum().backward()  # type: ignore[no-untyped-call]
        weights.grad = None
        synchronise(where)
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])  # the first ones choose and build the kernels


def reset_peak_memory(where: torch.device) -> None:
    """Begin a new measurement of `peak_memory`, without what an earlier run has left."""
    gc.collect()  # an optimizer and its hooks refer to each other, and hold a model's memory
    if where.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(where)
    elif _can_reset():
        return_freed_memory()
        _CLEAR_REFS.write_text("5")  # resets VmHWM, see proc(5)


def _can_reset() -> bool:
    return os.access(_CLEAR_REFS, os.W_OK)  # a container's /proc may be read-only


def peak_memory(where: torch.device) -> float | None:
    """Return the most bytes in use since the reset: of the device's tensors, or of the process.

    None where the system cannot reset its mark (anything but Linux).
    """
    if where.type == "cuda":
        return float(torch.cuda.max_memory_allocated(where))
    if not _can_reset():
        return None
    (line,) = (x for x in _STATUS.read_text().splitlines() if x.startswith("VmHWM:"))
    return 1024.0 * int(line.split()[1])
