"""Pictures of the loss around a solution: slices of the landscape, and the Hessian's spectrum.

`loss_landscape` evaluates a slice along `random_directions`, `hessian_directions` or a
`line_direction`. `hessian_spectrum` estimates the density of the Hessian's eigenvalues.
`flatbench.landscape.plots` draws both.

Sources: Goodfellow et al. 2015 (arXiv:1412.6544); Li et al. 2018 (1712.09913); Izmailov et al. 2018
(1803.05407); Ghorbani et al. 2019 (1901.10159); Yao et al. 2020 (1912.07145).
"""

from flatbench.landscape.directions import (
    Directions,
    hessian_directions,
    line_direction,
    random_directions,
)
from flatbench.landscape.grid import Landscape, Statistics, load, loss_landscape, save
from flatbench.landscape.spectrum import Spectrum, hessian_spectrum

__all__ = [
    "Directions",
    "Landscape",
    "Spectrum",
    "Statistics",
    "hessian_directions",
    "hessian_spectrum",
    "line_direction",
    "load",
    "loss_landscape",
    "random_directions",
    "save",
]
