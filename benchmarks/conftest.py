"""What the speed benchmarks share."""

from __future__ import annotations

import pytest
import torch

from flatbench.training import devices


@pytest.fixture
def where(request: pytest.FixtureRequest) -> torch.device:
    """The device, with nothing of ours running beside it."""
    if any("flatbench_case" in getattr(item, "fixturenames", ()) for item in request.session.items):
        pytest.skip(f"a grid is training beside it: run {request.path.name} alone")
    found = devices.find(request.config.getoption("flatbench_device"))
    if found.type == "cuda":
        torch.cuda.set_device(found)
    return found
