"""What this machine can do, in one screen that can be pasted into a bug report.

It holds no host name, no user name, no absolute path of a user's and nothing of the environment
but the names of variables that matter here.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from tabulate import tabulate

import flatbench
from flatbench import data, execution
from flatbench.optim.availability import c_compiler, why_not_fused
from flatbench.records import provenance
from flatbench.training import devices


@dataclass(frozen=True)
class Info:
    """The screen, and what the exit code depends on."""

    where: torch.device
    rows: list[tuple[str, str]]  # name, value
    why_not_fused: str | None  # on that device; None where the fused step runs

    @property
    def text(self) -> str:
        """The rows as aligned lines."""
        return tabulate(self.rows, tablefmt="plain", disable_numparse=True)


def look(name: str = "auto") -> Info:
    """Return what this machine can do.

    Args:
        name: the device that the rows about SAM and bf16 are about, as `devices.find` takes it.

    Raises:
        UsageError: no such device on this machine.
    """
    # torch says why it finds no device, for one that the driver is too old, in a warning
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.is_available()
    where = devices.find(name)
    why_not = why_not_fused(where)
    reason = next((str(w.message).partition(". ")[0] for w in said), None)
    rows = [
        *_versions(),
        ("processor", provenance.processor()),
        ("cores", f"{execution.cores()} usable, torch takes {torch.get_num_threads()} threads"),
        *_devices(reason),
        ("driver", provenance.driver() or "not found: no answer from nvidia-smi"),
        ("C compiler", _compiler()),
        ("libcuda", _libcuda()),
        ("SAM's auto", _implementation(where, why_not)),
        ("fp32 on CUDA", _precision()),
        ("bf16", f"{'fast' if devices.has_fast_bf16(where) else 'slow'} on {where}"),
        *_data_sets(),
        ("results", "results/PROTOCOL, or FOLDER/PROTOCOL with --results FOLDER"),
    ]
    return Info(where, rows, why_not)


def _versions() -> list[tuple[str, str]]:
    code = provenance.code_version()
    commit = f"commit {code['commit']}" if code["commit"] else "no commit known"
    changed = " and changes" if code["dirty"] else ""
    ours = f"{flatbench.__version__}, {commit}{changed}, sources {provenance.source_hash()}"
    cudnn: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    built = f"CUDA {torch.version.cuda}, cuDNN {cudnn}" if torch.version.cuda else "no CUDA"
    return [
        ("flatbench", ours),
        ("python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"),
        ("torch", f"{torch.__version__}, built for {built}"),
        *((name, _version(name)) for name in ("torchvision", "triton", "numpy")),
    ]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices(reason: str | None) -> list[tuple[str, str]]:
    if not torch.cuda.is_available():
        none = "none: torch finds no CUDA device"
        return [("CUDA devices", f"{none} ({reason})" if reason else none)]
    found = []
    for i in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(i)
        memory = f"{card.total_memory / 2**30:.1f} GiB"
        capability = f"compute capability {card.major}.{card.minor}"
        found.append((f"cuda:{i}", f"{card.name}, {memory}, {capability}"))
    return found


def _compiler() -> str:
    """Return the version of the compiler that Triton would take, and how Triton finds it."""
    found, named = c_compiler(), "CC" in os.environ
    if found is None:
        return f"not found: {'CC names no program' if named else 'gcc or clang, or set CC'}"
    done = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    how = "named by CC" if named else f"{Path(found).name} on the PATH"
    return f"{lines[0] if lines else 'does not tell its version'} ({how})"


def _libcuda() -> str:
    """Return how Triton would find the driver's library; the order is Triton's own."""
    library = "libcuda.so.1"

    def is_in(variable: str) -> bool:
        folders = os.environ.get(variable, "").split(":")
        return any(folder and (Path(folder) / library).exists() for folder in folders)

    if os.environ.get("TRITON_LIBCUDA_PATH"):
        if is_in("TRITON_LIBCUDA_PATH"):
            return f"{library}, by TRITON_LIBCUDA_PATH"
        return f"not found: {library} is not in TRITON_LIBCUDA_PATH"
    ldconfig = shutil.which("ldconfig", path=f"{os.environ.get('PATH', '')}:/sbin:/usr/sbin")
    if ldconfig is not None:
        done = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=False)
        if library in done.stdout:
            return f"{library}, by ldconfig"
    if is_in("LD_LIBRARY_PATH"):
        return f"{library}, by LD_LIBRARY_PATH"
    return f"not found: {library} comes with the driver"


def _implementation(where: torch.device, why_not: str | None) -> str:
    if where.type == "cuda" and why_not is None:
        return f"fused on {where}"
    return f"eager on {where}: {why_not or 'auto is fused on CUDA devices only'}"


def _precision() -> str:
    """Return the precisions in which torch computes fp32; its word for no choice made is "none".

    `devices.use_ieee_fp32` makes them IEEE in every run.
    """
    settings = {
        "convolutions": torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        "matrix products": torch.backends.cuda.matmul.fp32_precision,
    }
    chosen = (f"{kind} {'ieee' if x == 'none' else x}" for kind, x in settings.items())
    return f"{', '.join(chosen)} in torch; ieee in every run of flatbench's"


def _data_sets() -> list[tuple[str, str]]:
    """Return where each data set is, or how to get it."""
    named = os.environ.get("FLATBENCH_DATA")
    root = Path(named or "data")
    label = "$FLATBENCH_DATA" if named else "data"
    rows = [("digits", "here: comes with scikit-learn")]
    for name in data.DOWNLOADS:
        folder = data.folder_of(name, root)
        if folder is None:
            get = f'flatbench download {name} --data-dir "{label}"'
            rows.append((name, f"not in {label}: {get}"))
        elif folder.is_relative_to(root):
            rows.append((name, f"here: {Path(label) / folder.relative_to(root)}"))
        else:
            rows.append((name, f"here: {folder}"))  # outside the user's data: the system's folder
    return rows
