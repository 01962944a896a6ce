"""flatbench's own pytest plugin, for the grid in `benchmarks` and the tests in `tests`."""

pytest_plugins = ["flatbench.pytest_plugin"]
