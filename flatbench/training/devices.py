"""The device: finding it, what it is good at, and making it repeat itself."""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

import torch

from flatbench.errors import UsageError


def find(name: str) -> torch.device:
    """Return the device of a name: "cpu", "cuda", "cuda:1" or "auto" (CUDA where it is there).

    Raises:
        UsageError: no such device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    kind, colon, index = name.partition(":")
    if kind != "cuda" or (colon and not (index.isascii() and index.isdecimal())):
        raise UsageError(f"--device must be cpu, cuda, cuda:N or auto, got {name!r}")
    if not torch.cuda.is_available():
        raise UsageError(f"--device = {name!r}: torch {torch.__version__} finds no CUDA device")
    if int(index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device = {name!r}: there are {torch.cuda.device_count()} CUDA devices")
    return torch.device(name)


def bind(where: torch.device) -> torch.device:
    """Make a CUDA device this process's current one, and return it with its number.

    It comes before anything else that is done there. CUDA initialises itself here, which some
    calls take for granted (`torch.cuda.reset_peak_memory_stats`); and streams, graphs and kernel
    launches act on the current device, whatever device their tensors are on. "cuda" is the first
    one. A CPU needs nothing.
    """
    if where.type == "cuda":
        where = torch.device("cuda", where.index or 0)
        torch.cuda.set_device(where)
    return where


def use_ieee_fp32(where: torch.device) -> None:
    """Make fp32 on CUDA mean IEEE fp32 in convolutions and matrix products. Process-wide.

    torch's default for convolutions is TF32, with 10 bits of mantissa instead of 23. A run in bf16
    is evaluated in fp32, so that this is for every run.
    """
    if where.type == "cuda":
        # Not allow_tf32: torch raises where the old names and the new ones are both used.
        backends: Any = torch.backends
        backends.cudnn.conv.fp32_precision = "ieee"
        backends.cuda.matmul.fp32_precision = "ieee"


def make_deterministic(device: torch.device) -> None:
    """Make the same seed give the same bits on one machine. Process-wide, so for workers only."""
    torch.set_num_threads(1)
    if device.type == "cuda":
        # cuBLAS and torch read this once, at the first call of cuBLAS
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    # without this every torch.empty would be filled, once a tensor and step
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)


def set_up_worker(where: torch.device) -> torch.device:
    """Make this process one that trains: deterministic, in IEEE fp32, keeping its memory.

    Returns:
        The device with its number, as `bind` does.
    """
    keep_freed_memory()
    # before CUDA is asked for anything: cuBLAS reads its workspace's setting once
    make_deterministic(where)
    where = bind(where)
    use_ieee_fp32(where)
    return where


# of malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    """Return the C library, if it is the one whose allocator has these knobs."""
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return library if hasattr(library, "gnu_get_libc_version") else None


def keep_freed_memory() -> None:
    """Make the process keep the memory it frees, up to blocks of 32 MiB. For workers only.

    Otherwise glibc returns large blocks to the system at once, and each step's activations are
    mapped and zeroed anew, page by page: 60,000 to 95,000 page faults and 4 to 5 % of the time of a
    full-width ResNet-18's SAM step on two cores. Without effect where there is no glibc.
    """
    library = _glibc()
    if library is not None:
        library.mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        library.mallopt(_M_TRIM_THRESHOLD, -1)


def return_freed_memory() -> None:
    """Give back what `keep_freed_memory` has kept, so that a case's peak memory is its own."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether bf16 arithmetic is native: tensor cores, AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def synchronise(device: torch.device) -> None:
    """Wait for the device, so that the host's clock tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
