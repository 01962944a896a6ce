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
| `hessian_max_eigenvalue` | λ₁ of ∇²L(w) | 3 a Lanczos step, some 10 to 40 |
| `hessian_eigenvalues` | the k largest or smallest, with eigenvectors | 3 a Lanczos step |
| `hessian_trace` | Σλ, Hutch++ | 3 + 2·products |
| `spectral_density` | the whole spectrum, blurred | 3·probes·steps |

One gradient evaluation is one forward and one backward pass over all the surface's examples; a
forward pass alone counts 1/3 and a Hessian-vector product 3. Parameters that do not require a
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
from .hessian import (
    HessianEigenvalues,
    SpectralDensity,
    hessian_eigenvalues,
    hessian_max_eigenvalue,
    hessian_trace,
    spectral_density,
)
from .surface import (
    BatchNormMode,
    Loss,
    LossSurface,
    Measure,
    loss_surface,
)

__all__ = [
    "BatchNormMode",
    "HessianEigenvalues",
    "Loss",
    "LossSurface",
    "Measure",
    "SpectralDensity",
    "ascent_sharpness",
    "average_sharpness",
    "hessian_eigenvalues",
    "hessian_max_eigenvalue",
    "hessian_trace",
    "loss_surface",
    "spectral_density",
]
