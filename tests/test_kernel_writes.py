"""Runs interpreted/writes.py, in Triton's interpreter."""

import pytest

from tests.inner import run_inner

pytest.importorskip("triton")


def test_nothing_else_is_written(subtests, tmp_path):
    run_inner(subtests, tmp_path, "interpreted/writes.py", {"TRITON_INTERPRET": "1"})
