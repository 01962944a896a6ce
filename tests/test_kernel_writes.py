"""Runs interpreted/writes.py, in Triton's interpreter."""

from pathlib import Path

import pytest

from tests.inner import run_inner

pytest.importorskip("triton")


def test_nothing_else_is_written(subtests: pytest.Subtests, tmp_path: Path) -> None:
    run_inner(subtests, tmp_path, "interpreted/writes.py", {"TRITON_INTERPRET": "1"})
