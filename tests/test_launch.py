"""Runs launched_kernels.py in a process of its own, whose CUDA driver is the stub.

Nothing here skips for want of a C compiler: where triton is, there must be one.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import stub
from tests.stub import arena

pytest.importorskip("triton")


def test_a_step_launches_three_kernels_as_they_were_proven(tmp_path: Path) -> None:
    file = Path(__file__).with_name("launched_kernels.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-qs", "-p", "no:cacheprovider", str(file)],
        env={**os.environ, **stub.environment(tmp_path), **arena.environment(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    print(run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count(" 3 launches a step\n") == 12
