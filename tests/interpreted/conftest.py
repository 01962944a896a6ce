"""What the interpreted tests share; tests/test_kernel_*.py run them with TRITON_INTERPRET=1."""

import pytest

from flatbench.optim import fused


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Small tensors span several chunks."""
    monkeypatch.setattr(fused, "BLOCK", 64)
    monkeypatch.setattr(fused, "PARTIALS", 4)


def pytest_configure(config):
    # Overflow and NaN are among the cases; numpy, under the interpreter, warns of them.
    config.addinivalue_line("filterwarnings", "ignore:.* encountered in:RuntimeWarning")
