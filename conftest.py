"""flatbench's own pytest plugin, and what this repository's tests and benchmarks add to it."""

from pathlib import Path

import pytest

from flatbench import options

pytest_plugins = ["flatbench.pytest_plugin"]

# Files of tests that read the workflows as they are imported; an sdist has none.
WORKFLOWS = Path(__file__).parent / ".github"
collect_ignore = [] if WORKFLOWS.exists() else ["tests/test_action.py", "tests/test_workflows.py"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the options by their short names, too: nobody else's are in the way here."""
    options.add_short(parser.getgroup("flatbench").addoption, *options.PYTEST)


def pytest_configure(config: pytest.Config) -> None:
    """Name the markers of tests that need what is not everywhere."""
    config.addinivalue_line("markers", "gpu: needs a CUDA device; skipped where there is none")
    config.addinivalue_line("markers", "checkout: reads what an sdist leaves out; skipped in one")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs a GPU or a checkout where there is none."""
    skip_without_gpu(config, items)
    # pyproject.toml says what an sdist holds: neither results/ nor the workflows
    if not (Path(__file__).parent / "results" / options.PUBLISHED).exists():
        for item in items:
            if item.get_closest_marker("checkout"):
                item.add_marker(pytest.mark.skip(reason="no checkout: results/ is not here"))


def skip_without_gpu(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none, or where --device cpu says to."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if config.getoption("flatbench_device") == "cpu":
        reason = "--device cpu"
    elif torch.cuda.is_available():
        return
    else:
        reason = f"torch {torch.__version__} finds no CUDA device"
    for item in marked:
        item.add_marker(pytest.mark.skip(reason=reason))
