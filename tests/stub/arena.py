"""Executing what was launched: an interpreting process that shares the tensors' memory."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import subprocess
import sys

from tests.stub import build

ARENA = "STUB_ARENA"
BASE, SIZE = 0x200000000000, 1 << 32  # as in arena.c
_PROT_READ_WRITE, _MAP_SHARED, _MAP_FIXED_NOREPLACE = 3, 1, 0x100000


def environment(folder):
    """Build the arena in a folder; return what puts a process's tensors into it."""
    build("arena.c", folder / "libarena.so")
    (folder / "arena").touch()
    return {"LD_PRELOAD": str(folder / "libarena.so"), ARENA: str(folder / "arena")}


def map_arena(file):
    """Map another process's arena, at the addresses that it has there."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    descriptor = os.open(file, os.O_RDWR)
    flags = _MAP_SHARED | _MAP_FIXED_NOREPLACE
    found = libc.mmap(BASE, SIZE, _PROT_READ_WRITE, flags, descriptor, 0)
    os.close(descriptor)
    if found != BASE:
        raise OSError(ctypes.get_errno(), f"the arena does not map at {BASE:#x}")


class Interpreter:
    """A process in which Triton interprets; call it with a launch to execute that."""

    def __init__(self):
        others = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.stub.interpreter", os.environ[ARENA]],
            env={**others, "TRITON_INTERPRET": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, launch):
        """Execute a launch; return when it has run."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for name, address in launch.arguments.items():
            if launch.types[name].startswith("*"):
                assert BASE <= address < BASE + SIZE, f"{name} lies outside of the arena"
        print(
            json.dumps(dataclasses.asdict(launch), default=_named),
            file=self._process.stdin,
            flush=True,
        )
        answer = self._process.stdout.readline()
        assert answer == "done\n", f"{launch.kernel} could not be interpreted: see above"


def _named(value):
    """A Triton type as JSON."""
    return {"type": {"fp32": "float32", "bf16": "bfloat16"}[str(value)]}
