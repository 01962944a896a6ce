"""Where cases run."""

from flatbench.execution.local import cores, failed, places, start
from flatbench.execution.progress import Progress, Run, follow

__all__ = ["Progress", "Run", "cores", "failed", "follow", "places", "start"]
