"""Runs interpreted_kernels.py in a process of its own.

Triton decides between compiling and interpreting when it is imported, and the two do not mix:
test_aot.py needs the compiler in this process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_kernels_in_triton_s_interpreter():
    file = Path(__file__).with_name("interpreted_kernels.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
