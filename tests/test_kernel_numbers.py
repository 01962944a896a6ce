"""Runs interpreted/numbers.py, in Triton's interpreter."""

import pytest

from tests.inner import run_inner

pytest.importorskip("triton")


def test_numbers_match_eager_and_float64(subtests, tmp_path):
    run_inner(subtests, tmp_path, "interpreted/numbers.py", {"TRITON_INTERPRET": "1"})
