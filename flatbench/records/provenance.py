"""Where a record came from: code, packages, device and numeric settings. No host names."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch

import flatbench

PACKAGE = Path(flatbench.__file__).parent
# What turns a case into its numbers. An edit elsewhere, of the report say, leaves every record and
# every checkpoint valid.
HASHED = ("components", "data", "models", "optim", "protocols", "sharpness", "training")


@functools.cache
def code_version() -> dict[str, Any]:
    """Return the commit and whether the tree differs from it; None outside a git checkout."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=PACKAGE, capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # an installed copy may lie in somebody else's checkout: only a tracked file counts
    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return {"commit": None, "dirty": None}
    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no", "--", str(PACKAGE))),
    }


@functools.cache
def source_hash() -> str:
    """Return 12 hex digits of the SHA-256 of the Python sources in the rooms of `HASHED`."""
    digest = hashlib.sha256()
    for room in HASHED:
        for path in sorted([*PACKAGE.glob(f"{room}.py"), *(PACKAGE / room).rglob("*.py")]):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def machine(device: torch.device) -> tuple[str, ...]:
    """Return what a run's bits depend on where it is: packages, the device, its instructions."""
    return (
        *(torch.__version__, sklearn.__version__),
        *(_device_name(device), torch.backends.cpu.get_cpu_capability(), _onednn()),
    )


def key(
    cell_hash: str, seed: int, where: Iterable[str], data: str, sources: Iterable[str] = ()
) -> str:
    """Return 12 hex digits that two runs share if one can stand for the other, bit for bit.

    Args:
        cell_hash: stands for the protocol's content for the case.
        seed: the case's.
        where: what `machine` returned there.
        data: the digest of the data.
        sources: what identifies the code that the case names beside flatbench's own.
    """
    parts = [cell_hash, str(seed), source_hash(), data, *sources, *where]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _onednn() -> str:
    """Return which instructions oneDNN may use: ONEDNN_MAX_CPU_ISA narrows it under torch."""
    return os.environ.get("ONEDNN_MAX_CPU_ISA", "default")


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


@functools.cache
def processor() -> str:
    """Return the processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe(device: torch.device, precision: str) -> dict[str, Any]:
    """Return the provenance of a run on this device in this process."""
    on_cuda = device.type == "cuda"
    backends: Any = torch.backends
    return {
        "flatbench_version": flatbench.__version__,
        **code_version(),
        "source_hash": source_hash(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scikit_learn": sklearn.__version__,
        "system": platform.system(),
        "processor": processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device_kind": device.type,
        "device": _device_name(device),
        "driver": driver() if on_cuda else None,
        "cuda": torch.version.cuda if on_cuda else None,
        "cudnn": _cudnn() if on_cuda else None,
        "precision": precision,
        # of fp32 arithmetic, which runs in bf16 have too: their evaluation
        "convolution_precision": backends.cudnn.conv.fp32_precision if on_cuda else None,
        "matmul_precision": backends.cuda.matmul.fp32_precision if on_cuda else None,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
    }


def _cudnn() -> int | None:
    version: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return version


@functools.cache
def driver() -> str | None:
    """Return the version of NVIDIA's driver, or None where nvidia-smi does not tell."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return None
    return done.stdout.split("\n")[0].strip() or None
