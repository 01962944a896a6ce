"""The grid: each case trains in a worker, and its record must keep to the thresholds.

    pytest benchmarks [--protocol NAME] [--architectures …] [--optimizers …] [--seeds …]
                      [--gate BASELINE]

The tests are the package's, so that any repository can have them: see `flatbench.pytest_grid`.
"""

from flatbench.pytest_grid import *  # noqa: F403
