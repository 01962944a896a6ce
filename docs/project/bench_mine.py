"""One line collects the grid: `pytest bench_mine.py --flatbench-protocol mine.toml`."""

from flatbench.pytest_grid import *  # noqa: F403
