"""The process-wide settings of torch's arithmetic."""

from contextlib import contextmanager

import torch

BACKENDS = torch.backends
OPTIONS = [
    (BACKENDS.cudnn, "benchmark"),
    (BACKENDS.cudnn.conv, "fp32_precision"),
    (BACKENDS.cuda.matmul, "fp32_precision"),
    (torch.utils.deterministic, "fill_uninitialized_memory"),
]


def settings():
    """What they are now."""
    found = [getattr(owner, name) for owner, name in OPTIONS]
    return [*found, torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()]


@contextmanager
def put_back():
    *values, threads, deterministic = settings()
    try:
        yield
    finally:
        for (owner, name), value in zip(OPTIONS, values, strict=True):
            if getattr(owner, name) != value:
                setattr(owner, name, value)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if torch.are_deterministic_algorithms_enabled() != deterministic:
            torch.use_deterministic_algorithms(deterministic)
