"""The fused steps of the SAM family where gradients are missing or not finite, interpreted.

Run by test_kernel_family_gaps.py; the reference is that of family.py.
"""

import pytest

from tests.family_steps import compare, every_method


@every_method
@pytest.mark.parametrize("base", ["momentum", "adam"])
def test_gradients_that_are_missing_in_a_pass(method, base):
    compare(method, base, steps=5, missing=((0, 3), (1, 3)))


@every_method
@pytest.mark.parametrize("spoilt", range(6))
def test_a_gradient_that_is_not_finite(method, spoilt):
    optimizer = compare(method, ("momentum", "adam")[spoilt % 2], steps=6, spoilt=spoilt)
    assert optimizer.skipped_steps == 1
