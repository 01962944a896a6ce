"""Runs interpreted/changes.py, in Triton's interpreter."""

import pytest

from tests.inner import run_inner

pytest.importorskip("triton")


def test_changes_are_noticed(subtests, tmp_path):
    run_inner(subtests, tmp_path, "interpreted/changes.py", {"TRITON_INTERPRET": "1"})
