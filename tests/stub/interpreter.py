"""Executes launches that another process was told of; started by `Interpreter` in `arena.py`.

A line of JSON on the standard input is a launch, its kernel run by Triton's interpreter on the
addresses that it was given; a line on the standard output answers when it has run.
"""

import ctypes
import json
import sys
from pathlib import Path

import torch
import triton.language as tl

from flatbench.optim import kernels
from tests.stub.arena import map_arena

TYPES = {
    "*fp32": (torch.float32, ctypes.c_float),
    "*fp64": (torch.float64, ctypes.c_double),
    "*i32": (torch.int32, ctypes.c_int32),
    "*i64": (torch.int64, ctypes.c_int64),
}


def argument(value, kind):
    """A number as it is; of an address a tensor that begins there."""
    if not kind.startswith("*"):
        return value
    dtype, c_type = TYPES[kind]
    return torch.frombuffer((c_type * 1).from_address(value), dtype=dtype)


def constant(value):
    return getattr(tl, value["type"]) if isinstance(value, dict) else value


def main():
    map_arena(Path(sys.argv[1]))
    for line in sys.stdin:
        launch = json.loads(line)
        kernel = getattr(kernels, launch["kernel"])
        types = launch["types"]
        arguments = {n: argument(v, types[n]) for n, v in launch["arguments"].items()}
        constants = {n: constant(v) for n, v in launch["constants"].items()}
        kernel[(launch["grid"],)](**arguments, **constants)
        print("done", flush=True)


if __name__ == "__main__":
    main()
