"""Measures of sharpness, each one function of a loss surface.

`loss_surface` makes the surface of a model, a loss and a fixed set of examples; one surface serves
any number of measures::

    surface = loss_surface(model, torch.nn.functional.cross_entropy, inputs, targets)
    hessian_trace(surface).value
    ascent_sharpness(surface, rho=0.05).value

| measure | what | gradient evaluations |
|---|---|---|
| `ascent_sharpness` | max L(w+ε) − L(w) in a ball, by n ascent steps | n + 1/3 |
| `average_sharpness` | E[L(w+ε)] − L(w), Gaussian ε | (1 + 2·samples)/3 |
| `hessian_max_eigenvalue` | λ₁ of ∇²L(w) | 1 + 2·products, some 10 to 40 |
| `hessian_eigenvalues` | the k largest or smallest, with eigenvectors | 1 + 2·products |
| `hessian_trace` | Σλ, Hutch++ | 1 + 2·products |
| `hessian_curvature` | λ₁ and Σλ by the same products | 1 + 2·products, some 10 to 20 |
| `spectral_density` | the whole spectrum, blurred | 1 + 2·probes·steps |

Each can be taken with normalised logits, where the length of the logits plays no part: give
`loss_surface` the loss `on_normalised_logits(loss)`.

One gradient evaluation is one forward and one backward pass over all the surface's examples; a
forward pass alone counts 1/3 and a Hessian-vector product 2, beside a gradient for the first one
(where the examples are several batches, for each call). Parameters that do not require a
gradient are constants. No function changes the model, nor torch's global random state. On the CPU
results depend on the arguments and the seed alone; on a GPU they do if the model's own backward
pass is deterministic.

The package imports torch and numpy alone, and itself by relative imports: the folder can be copied
into another project.

Sources: Keskar et al. 2017 (arXiv:1609.04836); Ghorbani et al. 2019 (1901.10159); Jiang et al. 2020
(1912.02178); Yao et al. 2020 (1912.07145); Foret et al. 2021 (2010.01412); Kwon et al. 2021
(2102.11600); Meyer et al. 2021 (2010.09649); Andriushchenko & Flammarion 2022 (2206.06232);
Andriushchenko et al. 2023 (2302.07011).
"""

from .ascent import ascent_sharpness
from .average import average_sharpness
from .curvature import Curvature, hessian_curvature
from .hessian import (
    HessianEigenvalues,
    SpectralDensity,
    hessian_eigenvalues,
    hessian_max_eigenvalue,
    hessian_trace,
    spectral_density,
)
from .logits import normalised_logits, on_normalised_logits
from .products import HessianProducts
from .surface import (
    BatchNormMode,
    Loss,
    LossSurface,
    Measure,
    loss_surface,
)

__all__ = [
    "BatchNormMode",
    "Curvature",
    "HessianEigenvalues",
    "HessianProducts",
    "Loss",
    "LossSurface",
    "Measure",
    "SpectralDensity",
    "ascent_sharpness",
    "average_sharpness",
    "hessian_curvature",
    "hessian_eigenvalues",
    "hessian_max_eigenvalue",
    "hessian_trace",
    "loss_surface",
    "normalised_logits",
    "on_normalised_logits",
    "spectral_density",
]
