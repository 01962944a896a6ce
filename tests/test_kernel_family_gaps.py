"""Runs interpreted/family_gaps.py, in Triton's interpreter."""

import pytest

from tests.inner import run_inner

pytest.importorskip("triton")


def test_the_family_matches_eager_where_gradients_are_missing_or_spoilt(subtests, tmp_path):
    run_inner(subtests, tmp_path, "interpreted/family_gaps.py", {"TRITON_INTERPRET": "1"})
