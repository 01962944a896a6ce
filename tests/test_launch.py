"""Runs launched_kernels.py, whose CUDA driver is the stub.

Nothing here skips for want of a C compiler: where triton is, there must be one.
"""

import pytest

from tests import stub
from tests.inner import run_inner
from tests.stub import arena

pytest.importorskip("triton")


def test_a_step_launches_three_kernels_as_they_were_proven(subtests, tmp_path):
    environment = {**stub.environment(tmp_path), **arena.environment(tmp_path)}
    printed = run_inner(subtests, tmp_path, "launched_kernels.py", environment)
    assert printed.count(" 3 launches a step\n") == 12
