"""Slices of the loss landscape: random, along the Hessian's eigenvectors, between two solutions.

`loss_landscape` evaluates one along `random_directions`, `hessian_directions` or a
`line_direction`; `flatbench.landscape.plots` draws it.

Sources: Goodfellow et al. 2015 (arXiv:1412.6544); Li et al. 2018 (1712.09913); Izmailov et al. 2018
(1803.05407); Yao et al. 2020 (1912.07145).
"""

from flatbench.landscape.directions import (
    Directions,
    hessian_directions,
    line_direction,
    random_directions,
)
from flatbench.landscape.grid import Landscape, Statistics, load, loss_landscape, save

__all__ = [
    "Directions",
    "Landscape",
    "Statistics",
    "hessian_directions",
    "line_direction",
    "load",
    "loss_landscape",
    "random_directions",
    "save",
]
