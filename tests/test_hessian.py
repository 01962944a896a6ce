"""The Hessian's measures against closed forms, the dense Hessian and scipy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import trapezoid  # numpy has it by this name since 2.0
from scipy.sparse.linalg import LinearOperator, eigsh
from torch.nn.functional import cross_entropy

from flatbench import sharpness
from flatbench.sharpness import krylov, loss_surface
from tests.losses import (
    ANY,
    D,
    Quadratic,
    assert_nominal,
    conv_net,
    covered,
    dense_hessian,
    examples,
    images,
    mean,
    mlp,
    quadratic,
    ritz_pairs,
    symmetric,
)

# --- eigenvalues --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
def test_eigenvalues_match_the_dense_hessian(which, seed):
    model, (x, y) = mlp(seed=seed), examples(seed=seed)
    dense = dense_hessian(model, cross_entropy, x, y)
    values = np.linalg.eigvalsh(dense.numpy())
    expected = {
        "LA": values[::-1],
        "SA": values,
        "LM": values[np.argsort(-np.abs(values))],
    }[which][:4]
    found = sharpness.hessian_eigenvalues(
        loss_surface(model, cross_entropy, x, y, batch_size=7), k=4, which=which, basis_size=12
    )
    assert found.converged
    np.testing.assert_allclose(found.values, expected, rtol=1e-4)
    # the claims about each pair, against the dense matrix
    true_residuals = (
        found.vectors @ dense - torch.tensor(found.values, dtype=D)[:, None] * found.vectors
    )
    np.testing.assert_allclose(true_residuals.norm(dim=1), found.residuals, rtol=1e-3, atol=1e-9)
    assert all(r <= 1e-4 * abs(v) for r, v in zip(found.residuals, found.values, strict=True))
    torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(4, dtype=D))


def test_eigenvalues_match_scipys_lanczos_on_a_float32_convolutional_net():
    model, (x, y) = conv_net(dtype=torch.float32), images(dtype=torch.float32)
    dense = dense_hessian(copy.deepcopy(model).double(), cross_entropy, x.double(), y)
    operator = LinearOperator(dense.shape, matvec=lambda v: dense.numpy() @ v, dtype=np.float64)
    expected = eigsh(operator, k=3, which="LA", return_eigenvectors=False)[::-1]
    found = sharpness.hessian_eigenvalues(
        loss_surface(model, cross_entropy, x, y, batch_size=6), k=3
    )
    np.testing.assert_allclose(found.values, expected, rtol=1e-4)
    largest = sharpness.hessian_max_eigenvalue(loss_surface(model, cross_entropy, x, y))
    assert largest.value == pytest.approx(expected[0], rel=1e-4)
    assert largest.converged
    assert largest.gradient_evaluations % 4 == 1  # a gradient, and blocks of two products


def test_restarts_find_what_a_full_basis_finds():
    spectrum = [*np.linspace(0, 1, 300), 1.02, 1.05, 1.1]
    surface = loss_surface(quadratic(spectrum), mean, *ANY)
    small = sharpness.hessian_eigenvalues(surface, k=3, basis_size=10, tolerance=1e-8)
    assert small.converged
    assert small.gradient_evaluations > 1 + 2 * 10  # it did restart
    np.testing.assert_allclose(small.values, [1.1, 1.05, 1.02], rtol=1e-8)


@pytest.mark.parametrize("spectrum", [[2.0] * 12, [5.0, 5.0, 5.0] + [1.0] * 9, [0.0] * 12])
def test_copies_of_an_eigenvalue_that_a_krylov_space_cannot_see(spectrum):
    model = Quadratic(torch.diag(torch.tensor(spectrum, dtype=D)), *torch.ones(2, 12, dtype=D))
    found = sharpness.hessian_eigenvalues(loss_surface(model, mean, *ANY), k=3)
    np.testing.assert_allclose(found.values, sorted(spectrum)[::-1][:3], atol=1e-12)
    assert found.converged


def test_all_eigenvalues_of_a_small_model():
    spectrum = [3.0, 1.0, -2.0]
    found = sharpness.hessian_eigenvalues(loss_surface(quadratic(spectrum), mean, *ANY), k=3)
    np.testing.assert_allclose(found.values, spectrum, rtol=1e-10)


def test_the_limit_of_products_is_kept_and_told():
    surface = loss_surface(quadratic(list(np.linspace(0, 1, 300))), mean, *ANY)
    found = sharpness.hessian_eigenvalues(surface, k=2, tolerance=1e-12, max_products=7)
    assert not found.converged
    assert found.gradient_evaluations == 1 + 2 * 6  # blocks of two
    assert found.values[0] <= 1
    assert sharpness.hessian_max_eigenvalue(surface, max_products=3).converged is False


def test_the_lanczos_basis_stays_orthogonal():
    """A wide spectrum is where plain Lanczos loses it and repeats the largest eigenvalue."""
    matrix = symmetric([10.0**-i for i in range(0, 12)] + [1e-12] * 60)
    pairs = ritz_pairs(lambda rows: rows @ matrix, 72, 6, tolerance=1e-6, basis_size=72)
    np.testing.assert_allclose(pairs.values, [10.0**-i for i in range(6)], rtol=1e-6)
    overlaps = pairs.vectors @ pairs.vectors.T
    torch.testing.assert_close(overlaps, torch.eye(6, dtype=D), rtol=0, atol=1e-14)


# --- trace --------------------------------------------------------------------------------------


def test_trace_of_a_net_is_within_its_error_bars():
    model, (x, y) = mlp(), examples()
    truth = float(dense_hessian(model, cross_entropy, x, y).trace())
    surface = loss_surface(model, cross_entropy, x, y)
    estimates = [sharpness.hessian_trace(surface, products=12, seed=s) for s in range(200)]
    assert_nominal(covered(estimates, truth, 3), 200)
    assert estimates[0].gradient_evaluations == 1 + 2 * 12
    every = np.array([e.value for e in estimates])
    assert abs(every.mean() - truth) < 4 * stats.sem(every)  # unbiased


def test_trace_of_a_matrix_within_the_sketch_is_exact():
    model = quadratic([7.0, 3.0, -2.0] + [0.0] * 40)
    found = sharpness.hessian_trace(loss_surface(model, mean, *ANY), products=9)
    assert found.value == pytest.approx(8.0, rel=1e-9)
    assert found.standard_error < 1e-9


def test_hutchpp_beats_hutchinson_on_a_decaying_spectrum():
    """Meyer et al.'s point: the error falls as 1/m, not 1/√m."""
    spectrum = [100.0 / (i + 1) ** 2 for i in range(80)]
    surface, matrix = loss_surface(quadratic(spectrum), mean, *ANY), symmetric(spectrum)
    g = torch.Generator().manual_seed(0)
    signs = 2.0 * torch.randint(2, (100, 30, 80), generator=g).to(D) - 1
    hutchinson = ((signs @ matrix) * signs).sum(2).mean(1) - sum(spectrum)
    errors = [
        sharpness.hessian_trace(surface, products=30, seed=s).value - sum(spectrum)
        for s in range(50)
    ]
    assert np.std(errors) < 0.1 * float(hutchinson.std())


# --- spectral density ---------------------------------------------------------------------------


def test_quadrature_is_exact_for_the_moments_it_promises():
    matrix = symmetric(list(np.linspace(-1, 2, 40)))
    v = torch.randn(40, generator=torch.Generator().manual_seed(3), dtype=D)
    nodes, weights = krylov.gauss_quadrature(lambda rows: rows @ matrix, v, 5, 1e-15)
    unit = v / v.norm()
    for power in range(10):  # degree 2·5 − 1
        exact = unit @ torch.linalg.matrix_power(matrix, power) @ unit
        assert float(weights @ nodes**power) == pytest.approx(float(exact), rel=1e-9)
    exact = unit @ torch.linalg.matrix_power(matrix, 10) @ unit
    assert float(weights @ nodes**10) != pytest.approx(float(exact), rel=1e-6)


def test_spectral_density_follows_the_dense_spectrum():
    model, (x, y) = mlp(), examples()
    values = np.linalg.eigvalsh(dense_hessian(model, cross_entropy, x, y).numpy())
    surface = loss_surface(model, cross_entropy, x, y)
    found = sharpness.spectral_density(surface, probes=100, steps=30)
    assert found.dimension == len(values)
    assert found.gradient_evaluations == 1 + 2 * 100 * 30
    np.testing.assert_allclose(found.weights.sum(axis=1), 1, rtol=1e-9)
    assert found.nodes.max() == pytest.approx(values[-1], rel=1e-6)
    for power in (1, 2, 3):
        estimate, error = found.moment(power)
        assert abs(estimate - np.mean(values**power)) < 4 * error
    width = 0.05 * np.ptp(values)
    grid = np.linspace(values[0] - 6 * width, values[-1] + 6 * width, 2000)
    density = found.density(grid, width)
    assert trapezoid(density, grid) == pytest.approx(1, abs=1e-6)
    exact = stats.norm.pdf(grid[:, None], values, width).mean(axis=1)
    assert trapezoid(np.abs(density - exact), grid) < 0.05  # total variation, of at most 2


def test_a_probe_that_exhausts_its_space_stops_there():
    model = Quadratic(torch.diag(torch.tensor([1.0, 1, 4, 4], dtype=D)), *torch.ones(2, 4, dtype=D))
    found = sharpness.spectral_density(loss_surface(model, mean, *ANY), probes=2, steps=9)
    assert found.nodes.shape == (2, 4)
    assert found.gradient_evaluations == 1 + 2 * 2 * 2  # two eigenvalues, two steps
    for nodes, weights in zip(found.nodes, found.weights, strict=True):
        np.testing.assert_allclose(nodes[weights > 0], [1, 4], rtol=1e-9)
