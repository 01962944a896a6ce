"""Where cases run."""

from flatbench.execution.progress import Progress, Run, follow
from flatbench.execution.run import Machine, cores, machine_of, places, start

__all__ = ["Machine", "Progress", "Run", "cores", "follow", "machine_of", "places", "start"]
