"""The benchmarks: the grid, and the speed of a step and of the training."""
