"""The device: finding it, what it is good at, and making it repeat itself."""

from __future__ import annotations

import os

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
        raise UsageError(f"--device = {name!r}: allowed is cpu, cuda, cuda:N or auto")
    if not torch.cuda.is_available():
        raise UsageError(f"--device = {name!r}: torch {torch.__version__} finds no CUDA device")
    if int(index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device = {name!r}: there are {torch.cuda.device_count()} CUDA devices")
    return torch.device(name)


def make_deterministic(device: torch.device) -> None:
    """Make the same seed give the same bits on one machine. Process-wide, so for workers only."""
    torch.set_num_threads(1)
    if device.type == "cuda":
        # cuBLAS reads this when its first handle is made
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    # without this every torch.empty would be filled, once a tensor and step
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether bf16 arithmetic is native: tensor cores, AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def synchronise(device: torch.device) -> None:
    """Wait for the device, so that the host's clock tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
