"""What every test file shares."""

import os

import hypothesis
import pytest

from tests.settings import put_back

# A shared machine may stall for a second anywhere; and a failure must be the same one next time.
hypothesis.settings.register_profile("flatbench", deadline=None, derandomize=True)
hypothesis.settings.load_profile("flatbench")

# The pytest runs that tests start are nobody's workers: pytest-benchmark would measure nothing.
for name in [name for name in os.environ if name.startswith("PYTEST_XDIST_")]:
    del os.environ[name]

# cuBLAS reads this at its first call, whichever test makes it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


# Files of a minute or half of one, the longest first: two workers then end at about the same time.
LONG = (
    *("workflows", "try", "faults", "stopped", "site"),
    *("kernel_family", "kernel_family_gaps", "launch"),
    *("kernel_numbers", "kernel_writes", "kernel_changes", "gpu_command"),
)


def pytest_collection_modifyitems(items):
    """Begin with the long files; with --no-loadscope-reorder xdist keeps that order."""
    place = {f"test_{name}": number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


@pytest.fixture(autouse=True)
def settings_put_back():
    """No test leaves its arithmetic to the next."""
    with put_back():
        yield


@pytest.fixture(scope="module")
def one_thread():
    """A thread as a worker has: what is equal bit for bit is so with one number of threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
