"""One line makes the options, the workers and the table of flatbench pytest's."""

pytest_plugins = ["flatbench.pytest_plugin"]
