"""flatbench: does sharpness-aware minimization find flatter minima, and does it pay?

One direction of flow: TOML -> Protocol -> Case -> Record -> report.
"""

__version__ = "0.1.0"
