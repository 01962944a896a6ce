"""Times that can be compared: of steps that take turns in one process."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping

import torch

Step = Callable[[], object]

WARM_UP = 3
ROUNDS = 45


# Asked once: the answer costs more than a clock may.
on_cuda = functools.cache(torch.cuda.is_available)


def clock() -> float:
    """Seconds, when the device has come to rest."""
    if on_cuda():
        torch.cuda.synchronize()
    return time.perf_counter()


def in_turns(
    steps: Mapping[str, Step], iterations: int = 1, rounds: int = ROUNDS, warm_up: int = WARM_UP
) -> dict[str, float]:
    """Median seconds of each step, over rounds in which each has its turn."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(warm_up + rounds):
        for name, step in steps.items():
            start = clock()
            for _ in range(iterations):
                step()
            if i >= warm_up:
                seconds[name].append((clock() - start) / iterations)
    return {name: statistics.median(found) for name, found in seconds.items()}
