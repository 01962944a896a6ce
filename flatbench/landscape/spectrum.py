"""The spectral density of the Hessian at a model's weights, and the file that keeps it.

It is estimated by stochastic Lanczos quadrature (Ghorbani et al. 2019, arXiv:1901.10159), probe by
probe: an interrupted run goes on with the probes it lacks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flatbench.errors import UsageError
from flatbench.landscape import archive
from flatbench.sharpness import LossSurface, SpectralDensity, spectral_density
from flatbench.sharpness.surface import at_least

FORMAT: Final = "flatbench spectrum 1"

# With these, probes of a ResNet18 of width 16 agree on the largest eigenvalue to 6 digits, and the
# spread of the probes shows what the mean of them is worth.
PROBES: Final = 8
STEPS: Final = 80


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The Hessian's eigenvalues as point masses on a line, one set for each random probe.

    Attributes:
        nodes: (probes, steps) float64, the places of the masses; nan where the probe has not run.
        masses: (probes, steps) float64; each row sums to 1, and d times a mass is a number of
            eigenvalues. A probe that needed fewer steps ends in masses of 0.
        costs: (probes,) float64, the gradient evaluations that each probe took.
        dimension: the number d of parameters, and so of eigenvalues.
        seed: the seed of the probes.
        batchnorm: where BatchNorm's statistics came from.
        weights: a digest of the model's parameters and buffers.
        examples: a digest of inputs and targets.
    """

    nodes: NDArray[np.float64]
    masses: NDArray[np.float64]
    costs: NDArray[np.float64]
    dimension: int
    seed: int
    batchnorm: str
    weights: str
    examples: str

    @property
    def done(self) -> NDArray[np.bool_]:
        """Whether each probe has run: (probes,)."""
        return np.asarray(np.isfinite(self.nodes).all(axis=1))

    @property
    def complete(self) -> bool:
        """Whether every probe has run."""
        return bool(self.done.all())

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest eigenvalue, as far as Lanczos has found them.

        The largest node lies below the largest eigenvalue λ_max and converges to it fast where a
        gap follows, as it does in trained networks.
        """
        found = self.nodes[self.masses > 0]
        return float(found.min()), float(found.max())

    def density(self) -> SpectralDensity:
        """Return the density over all probes."""
        return SpectralDensity(self.nodes, self.masses, self.dimension, float(self.costs.sum()))

    def probe_densities(self) -> list[SpectralDensity]:
        """Return the density that each probe alone gives."""
        return [
            SpectralDensity(self.nodes[i : i + 1], self.masses[i : i + 1], self.dimension, cost)
            for i, cost in enumerate(self.costs.tolist())
        ]


def hessian_spectrum(
    surface: LossSurface,
    *,
    probes: int = PROBES,
    steps: int = STEPS,
    seed: int = 0,
    path: Path | None = None,
    on_probe: Callable[[int, int], None] | None = None,
) -> Spectrum:
    """Estimate the spectrum of the Hessian at the surface's ``center``.

    Cost: probes·(1 + 2·steps) gradient evaluations. See `flatbench.sharpness.spectral_density`.

    Args:
        surface: the loss.
        probes: random vectors, at least 1.
        steps: Lanczos steps for each, at least 1; at most d are taken.
        seed: the seed of the probes, at least 0. They are drawn on the CPU.
        path: a .npz file to keep the probes in. Where it exists, only the probes it lacks are run.
            It is written after each.
        on_probe: called before the first probe and after each, with the number of probes done and
            of all.

    Raises:
        ValueError: an argument is out of range.
        ArithmeticError: the Hessian is not finite.
        UsageError: the file is not a spectrum, or is one of another model, examples, seed, size or
            BatchNorm rule; or it cannot be written.
    """
    shape = (
        at_least("probes", probes, 1),
        min(at_least("steps", steps, 1), surface.dimension),
    )
    rule: str = surface.batchnorm
    spectrum = Spectrum(
        nodes=np.full(shape, np.nan),
        masses=np.full(shape, np.nan),
        costs=np.zeros(probes),
        dimension=surface.dimension,
        seed=at_least("seed", seed, 0),
        batchnorm=rule if rule == "eval" else f"{rule}, batches of {surface.batch_size}",
        **archive.origin(surface),
    )
    if path is not None and path.exists():
        spectrum = _resumed(path, spectrum)
    for i in range(probes):
        if on_probe is not None:
            on_probe(int(spectrum.done.sum()), probes)
        if spectrum.done[i]:
            continue
        found = spectral_density(surface, probes=1, steps=steps, seed=_probe_seed(seed, i))
        if not np.isfinite(found.nodes).all():
            raise ArithmeticError("the Hessian at the model's weights is not finite")
        spectrum.nodes[i], spectrum.masses[i] = found.nodes[0], found.weights[0]
        spectrum.costs[i] = found.gradient_evaluations
        if path is not None:
            save(spectrum, path)
    if on_probe is not None:
        on_probe(probes, probes)
    return spectrum


def _probe_seed(seed: int, probe: int) -> int:
    """Return the seed of one probe: a hash, so that no two seeds share a probe."""
    return int(np.random.SeedSequence((seed, probe)).generate_state(1, np.uint64)[0])


def _resumed(path: Path, wanted: Spectrum) -> Spectrum:
    """Return the file's spectrum, which must be of the model, data and size that is wanted."""
    found = load(path)
    if found.nodes.shape != wanted.nodes.shape:
        here, there = (" × ".join(map(str, s.nodes.shape)) for s in (wanted, found))
        raise UsageError(
            f"{path}: probes × steps must be {here} to go on with this file, got {there}"
        )
    names = ("dimension", "seed", "batchnorm", "weights", "examples")
    archive.require_same(path, found, wanted, names)
    return found


def save(spectrum: Spectrum, path: Path) -> None:
    """Write a spectrum to a .npz file in which each attribute is an array of its name.

    Raises:
        UsageError: the file cannot be written.
    """
    archive.write(path, FORMAT, {f.name: getattr(spectrum, f.name) for f in fields(spectrum)})


def load(path: Path) -> Spectrum:
    """Read the file that `save` wrote.

    Raises:
        UsageError: the file cannot be read or is not a spectrum.
    """
    arrays = archive.read(path, FORMAT, [field.name for field in fields(Spectrum)])
    nodes, masses, costs = (arrays[name] for name in ("nodes", "masses", "costs"))
    if nodes.ndim != 2 or nodes.size == 0 or nodes.dtype != np.float64:
        raise UsageError(f"{path}: nodes must be float64 of two axes, got {_kind(nodes)}")
    for name, array, shape in (("masses", masses, nodes.shape), ("costs", costs, nodes.shape[:1])):
        if array.shape != shape or array.dtype != np.float64:
            raise UsageError(
                f"{path}: {name} must be float64 of the shape {shape}, got {_kind(array)}"
            )
    done = np.isfinite(nodes).all(axis=1)
    if not (np.isfinite(masses[done]).all() and np.allclose(masses[done].sum(axis=1), 1)):
        raise UsageError(f"{path}: the masses of a probe must sum to 1")
    for name in ("dimension", "seed"):
        if arrays[name].shape != () or arrays[name].dtype.kind != "i":
            raise UsageError(f"{path}: {name} must be a whole number, got {_kind(arrays[name])}")
    return Spectrum(
        nodes=nodes,
        masses=masses,
        costs=costs,
        dimension=int(arrays["dimension"]),
        seed=int(arrays["seed"]),
        batchnorm=str(arrays["batchnorm"]),
        weights=str(arrays["weights"]),
        examples=str(arrays["examples"]),
    )


def _kind(array: NDArray[np.generic]) -> str:
    return f"{array.dtype} of the shape {array.shape}"
