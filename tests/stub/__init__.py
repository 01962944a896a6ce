"""Launching without a GPU: Triton's own binder, compiler and launcher over a driver of our own.

Tensors stay on the CPU, so their addresses mean the same on both sides; what the driver is told of
a launch is a `Launch`. `environment` gives what a process must be started with, `install` makes
the driver Triton's.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatbench.optim.availability import c_compiler

CAPABILITY = (9, 0)  # of the card that the driver pretends to have
FOLDER = "STUB_DRIVER"  # the environment variable that names the built library's folder


def build(source, library):
    """Compile a C file of this folder into a shared library."""
    compiler = c_compiler()
    assert compiler, "the launch tests need a C compiler: gcc or clang on the PATH, or CC"
    flags = ["-shared", "-fPIC", "-O1", f"-Wl,-soname,{library.name}"]
    file = Path(__file__).with_name(source)
    subprocess.run([compiler, *flags, "-o", library, file, "-ldl"], check=True)


def environment(folder):
    """Build the driver in a folder; return the environment of a process that can `install` it."""
    build("driver.c", folder / "libcuda.so.1")
    (folder / "libcuda.so").symlink_to("libcuda.so.1")  # triton 3.5 links by this name
    ours = {FOLDER: str(folder), "TRITON_LIBCUDA_PATH": str(folder)}
    # Triton links its launcher against the stub; that must not be found where a real driver is
    cache = {"TRITON_CACHE_DIR": str(folder / "triton")}
    others = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return {**others, **ours, **cache}


@dataclass(frozen=True)
class Launch:
    """One launch as the driver was told of it."""

    kernel: str
    grid: int
    threads: int
    shared_bytes: int
    arguments: dict[str, float]  # by parameter: an address or a number
    constants: dict[str, Any]  # what the launched binary was compiled with
    types: dict[str, str]  # Triton's, of each parameter


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
    )


_Observer = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(_Launch), ctypes.POINTER(ctypes.c_void_p)
)
_kept = []  # a callback that C holds must not be collected


@functools.cache
def install(observe=None):
    """Make the driver Triton's; return what counts the launches. Once a process.

    ``observe`` is called in the launch, before the launching call returns.
    """
    # before triton looks for its driver, and so that its launcher finds our symbols
    stub = ctypes.CDLL(os.environ[FOLDER] + "/libcuda.so.1", mode=ctypes.RTLD_GLOBAL)

    from triton.backends.nvidia.driver import CudaDriver
    from triton.runtime.driver import driver

    class StubDriver(CudaDriver):
        def __init__(self):
            super().__init__()
            self.get_current_device = lambda: 0
            self.set_current_device = lambda index: None
            self.get_current_stream = lambda index: 0
            self.get_device_capability = lambda index=0: CAPABILITY

    driver.set_active(StubDriver())
    if observe is not None:
        callback = _Observer(lambda *told: _tell(observe, *told))
        _kept.append(callback)
        stub.stub_observe(callback)
    stub.stub_launches.restype = ctypes.c_ulong
    return stub.stub_launches


def _tell(observe, handle, launch, values):
    try:
        observe(_described(handle, launch.contents, values))
    except Exception:  # noqa: BLE001 - C can't raise it: the launch fails, which Triton raises
        traceback.print_exc()
        return 1
    return 0


def _described(handle, launch, values):
    kernel, compiled = _compiled(handle)
    constants = {kernel.arg_names[path[0]]: v for path, v in compiled.src.constants.items()}
    types = {name: t for name, t in compiled.src.signature.items() if t != "constexpr"}
    numbers = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float}
    arguments = {}
    passed = (name for name in types if name not in constants)
    for place, name in enumerate(passed):
        kind = numbers.get(types[name], ctypes.c_uint64)
        arguments[name] = ctypes.cast(values[place], ctypes.POINTER(kind)).contents.value
    assert launch.grid[1:] == launch.block[1:] == [1, 1]
    return Launch(
        kernel.__name__,
        launch.grid[0],
        launch.block[0],
        launch.shared,
        arguments,
        constants,
        types,
    )


def _compiled(handle):
    """Return the kernel whose loaded binary has this handle, and the binary."""
    from triton.runtime import JITFunction

    from flatbench.optim import kernels

    for kernel in vars(kernels).values():
        if isinstance(kernel, JITFunction):
            for compiled in kernel.device_caches[0][0].values():
                if compiled.function == handle:
                    return kernel, compiled
    raise LookupError(f"a launch of {ctypes.string_at(handle).decode()}, which we did not compile")
