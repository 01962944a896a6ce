"""Runs interpreted/family.py, in Triton's interpreter."""

import pytest

from tests.inner import run_inner

pytest.importorskip("triton")


def test_the_family_matches_eager_in_float64(subtests, tmp_path):
    run_inner(subtests, tmp_path, "interpreted/family.py", {"TRITON_INTERPRET": "1"})
