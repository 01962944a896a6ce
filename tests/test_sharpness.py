"""Each measure against something independent: closed forms, the dense Hessian, scipy."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss

from flatbench import sharpness
from flatbench.sharpness import krylov, loss_surface

D = torch.float64


class Quadratic(nn.Module):
    """Outputs ½ wᵀAw + bᵀw for every example; with `mean` as loss that is L."""

    def __init__(self, matrix: Tensor, slope: Tensor, at: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.register_buffer("slope", slope)
        self.w = nn.Parameter(at)

    def forward(self, x: Tensor) -> Tensor:
        height = 0.5 * self.w @ self.matrix @ self.w + self.slope @ self.w
        return height.expand(len(x))


def mean(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.mean()


ANY = (torch.zeros(4, 1), torch.zeros(4))  # the quadratic does not look at its examples


def symmetric(spectrum: list[float], seed: int = 0) -> Tensor:
    d = len(spectrum)
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]
    return torch.tensor(q @ np.diag(spectrum) @ q.T)


def quadratic(spectrum: list[float], seed: int = 0) -> Quadratic:
    rng = np.random.default_rng(100 + seed)
    slope, at = torch.tensor(rng.normal(size=(2, len(spectrum))))
    return Quadratic(symmetric(spectrum, seed), slope, at)


def mlp(activation: type[nn.Module] = nn.Tanh, seed: int = 0, dtype: torch.dtype = D) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 6), activation(), nn.Linear(6, 3)).to(dtype)


def conv_net(seed: int = 0, dtype: torch.dtype = D) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    ).to(dtype)
    for _ in range(3):  # statistics that are not the initial zeros and ones
        net(torch.randn(16, 1, 7, 7, dtype=dtype))
    return net.eval()


def examples(n: int = 30, seed: int = 1, dtype: torch.dtype = D) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 5, generator=g, dtype=dtype), torch.randint(3, (n,), generator=g)


def images(n: int = 20, seed: int = 1, dtype: torch.dtype = D) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 7, 7, generator=g, dtype=dtype), torch.randint(3, (n,), generator=g)


def flat_loss(model, loss, x, y):
    """The whole batch's loss as a function of a flat vector, written apart from the module's."""
    named = dict(model.named_parameters())

    def at(flat):
        weights, place = {}, 0
        for name, p in named.items():
            weights[name] = flat[place : place + p.numel()].view(p.shape)
            place += p.numel()
        return loss(functional_call(model, weights, (x,)), y)

    center = torch.cat([p.detach().reshape(-1) for p in named.values()])
    return at, center


def dense_hessian(model, loss, x, y) -> Tensor:
    at, center = flat_loss(model, loss, x, y)
    return torch.func.hessian(at)(center)


# --- ascent_sharpness ---------------------------------------------------------------------------


def largest_rise(matrix: Tensor, gradient: Tensor, rho: float) -> float:
    """max g·e + ½ eᵀAe over ‖e‖ ≤ ρ: on the sphere (A − λI)e = −g with λ ≥ λ₁ (Moré & Sorensen)."""
    values, vectors = np.linalg.eigh(matrix.numpy())
    g = vectors.T @ gradient.numpy()

    def excess(multiplier: float) -> float:
        return float(np.linalg.norm(g / (multiplier - values))) - rho

    low = max(values[-1], 0.0)
    if values[-1] < 0 and excess(0.0) <= 0:  # a peak inside the ball
        e = g / -values
    else:
        e = g / (optimize.brentq(excess, low + 1e-9, low + 1e6, xtol=1e-14) - values)
    return float(g @ e + 0.5 * (values * e) @ e)


@pytest.mark.parametrize("adaptive", [False, True])
def test_one_step_on_a_quadratic(adaptive):
    model, rho, eta = quadratic([4.0, 2.0, 0.1, -0.5]), 0.7, 0.1
    w = model.w.detach()
    scale = w.abs() + eta if adaptive else torch.ones_like(w)
    g = model.matrix @ w + model.slope
    e = rho * scale**2 * g / (scale * g).norm()
    expected = float(g @ e + 0.5 * e @ model.matrix @ e)
    found = sharpness.ascent_sharpness(
        loss_surface(model, mean, *ANY), rho=rho, adaptive=adaptive, eta=eta
    )
    assert found.value == pytest.approx(expected, rel=1e-12)
    assert found.gradient_evaluations == pytest.approx(4 / 3)


SPECTRA = {
    "convex": [5.0, 2.0, 1.0, 0.3, 0.1],
    "indefinite": [2.0, 0.5, -1.0, -3.0, -4.0],
    "concave": [-0.5, -1.0, -2.0, -4.0, -8.0],
}


@pytest.mark.parametrize("rho", [0.05, 0.5, 4.0])
@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
def test_many_steps_reach_the_maximum_of_a_quadratic_and_never_pass_it(spectrum, rho):
    for seed in range(3):
        model = quadratic(spectrum, seed)
        gradient = (model.matrix @ model.w + model.slope).detach()
        most = largest_rise(model.matrix, gradient, rho)
        found = sharpness.ascent_sharpness(loss_surface(model, mean, *ANY), rho=rho, steps=200)
        assert found.value <= most * (1 + 1e-9)
        assert found.value == pytest.approx(most, rel=1e-3)
        assert found.gradient_evaluations == pytest.approx(200 + 1 / 3)


def test_many_steps_of_the_adaptive_ascent_reach_the_maximum_over_its_ellipsoid():
    model = quadratic([5.0, 2.0, 1.0, -0.3], seed=2)
    w = model.w.detach()
    gradient, scale = model.matrix @ w + model.slope, torch.diag(w.abs() + 0.1)
    most = largest_rise(scale @ model.matrix @ scale, scale @ gradient, 0.5)
    found = sharpness.ascent_sharpness(
        loss_surface(model, mean, *ANY), rho=0.5, steps=200, adaptive=True, eta=0.1
    )
    assert found.value == pytest.approx(most, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("rho", [0.05, 1.0, 20.0])
def test_more_steps_never_find_less(rho, dtype):
    x, y = examples(dtype=dtype)
    for seed in range(3):
        surface = loss_surface(mlp(nn.ReLU, seed, dtype), cross_entropy, x, y)
        found = [sharpness.ascent_sharpness(surface, rho=rho, steps=n).value for n in range(1, 9)]
        assert found == sorted(found)
        assert found[-1] > found[0]  # and here more of them do find more


@pytest.mark.parametrize("adaptive", [False, True])
def test_ascent_measures_grow_with_rho(adaptive):
    surface = loss_surface(mlp(), cross_entropy, *examples())
    for steps in (1, 10):
        found = [
            sharpness.ascent_sharpness(surface, rho=r, adaptive=adaptive, steps=steps).value
            for r in (0.0, 0.01, 0.05, 0.1, 0.3, 1.0)
        ]
        assert found[0] == 0
        assert all(a < b for a, b in itertools.pairwise(found))


def test_average_sharpness_grows_with_sigma_where_the_loss_is_convex():
    surface = loss_surface(quadratic([5.0, 2.0, 0.0]), mean, *ANY)
    found = [sharpness.average_sharpness(surface, sigma=s).value for s in [0, 0.1, 0.2, 1.0]]
    assert found[0] == 0
    assert found == sorted(found)
    assert found[3] == pytest.approx(100 * found[1], rel=1e-9)  # quadratic in sigma


def test_ascent_tends_to_the_first_order_measure():
    """ρ‖∇L(w)‖, or ρ‖T∇L(w)‖ when adaptive: what a record calls sam_sharpness."""
    model, (x, y) = mlp(), examples()
    surface = loss_surface(model, cross_entropy, x, y)
    cross_entropy(model(x), y).backward()
    for adaptive in (False, True):
        first = 1e-5 * math.sqrt(
            sum(
                float(((p.detach().abs() if adaptive else 1) * p.grad).square().sum())
                for p in model.parameters()
            )
        )
        found = sharpness.ascent_sharpness(surface, rho=1e-5, adaptive=adaptive)
        assert found.value == pytest.approx(first, rel=1e-4)


def test_m_sharpness_is_the_weighted_mean_of_its_groups():
    model, (x, y) = mlp(), examples(26)
    alone = [
        sharpness.ascent_sharpness(
            loss_surface(model, cross_entropy, x[i : i + 8], y[i : i + 8]), rho=0.3, steps=3
        ).value
        for i in (0, 8, 16, 24)
    ]
    surface = loss_surface(model, cross_entropy, x, y)
    found = sharpness.ascent_sharpness(surface, rho=0.3, steps=3, m=8)
    assert found.value == pytest.approx(np.average(alone, weights=[8, 8, 8, 2]), rel=1e-12)
    assert found.standard_error == pytest.approx(stats.sem(alone), rel=1e-12)
    assert found.gradient_evaluations == pytest.approx(3 + 1 / 3)
    whole = sharpness.ascent_sharpness(surface, rho=0.3, steps=3)
    same = sharpness.ascent_sharpness(surface, rho=0.3, steps=3, m=26)
    assert (same.value, whole.standard_error) == (whole.value, None)
    assert found.value > whole.value  # each group climbs its own hill


def test_where_the_gradient_is_zero_there_is_no_ascent():
    model = Quadratic(symmetric([1.0, -1.0]), torch.zeros(2, dtype=D), torch.zeros(2, dtype=D))
    surface = loss_surface(model, mean, *ANY)
    for steps in (1, 5):
        assert sharpness.ascent_sharpness(surface, rho=0.5, steps=steps).value == 0


# --- rescaling ----------------------------------------------------------------------------------


def rescaled(model: nn.Module, factor: float) -> nn.Module:
    """The same ReLU network: the first layer times ``factor``, the second divided by it."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[0].weight *= factor
        twin[0].bias *= factor
        twin[2].weight /= factor
    return twin


MEASURES = {
    "ascent": (sharpness.ascent_sharpness, {"rho": 0.1}),
    "ascent, 6 steps": (sharpness.ascent_sharpness, {"rho": 0.1, "steps": 6}),
    "m-sharpness": (sharpness.ascent_sharpness, {"rho": 0.1, "steps": 2, "m": 10}),
    "average": (sharpness.average_sharpness, {"sigma": 0.05}),
}


@pytest.mark.parametrize(("measure", "arguments"), MEASURES.values(), ids=MEASURES)
def test_adaptive_measures_ignore_relu_rescaling_and_plain_ones_do_not(measure, arguments):
    model, (x, y) = mlp(nn.ReLU), examples()
    twin = rescaled(model, 5.0)
    torch.testing.assert_close(model(x), twin(x))

    def both(adaptive):
        return [
            measure(loss_surface(net, cross_entropy, x, y), adaptive=adaptive, **arguments).value
            for net in (model, twin)
        ]

    here, there = both(adaptive=True)
    assert there == pytest.approx(here, rel=1e-9)
    here, there = both(adaptive=False)
    assert abs(there - here) > 0.5 * here


# --- average_sharpness --------------------------------------------------------------------------


def test_average_sharpness_of_a_quadratic_is_half_sigma_squared_trace():
    model = quadratic([4.0, 1.0, 0.5, -2.0])
    scale = model.w.detach().abs() + 0.1
    for adaptive, trace in [(False, 3.5), (True, float((scale**2 * model.matrix.diag()).sum()))]:
        found = sharpness.average_sharpness(
            loss_surface(model, mean, *ANY), sigma=0.3, samples=4000, adaptive=adaptive, eta=0.1
        )
        assert abs(found.value - 0.045 * trace) < 4 * found.standard_error
        assert found.standard_error < 0.05 * abs(found.value)
        assert found.gradient_evaluations == pytest.approx((1 + 2 * 4000) / 3)


def test_average_sharpness_pairs_cancel_the_slope():
    matrix, at = symmetric([1.0, 2.0]), torch.ones(2, dtype=D)
    steep, level = (Quadratic(matrix, s * torch.ones(2, dtype=D), at) for s in (1e3, 0.0))
    found = [
        sharpness.average_sharpness(loss_surface(m, mean, *ANY), sigma=0.1, samples=3)
        for m in (steep, level)
    ]
    assert found[0].value == pytest.approx(found[1].value, rel=1e-7)


def covered(estimates, truth: float, degrees: int) -> int:
    """How many of the estimates' 90 % Student intervals hold the truth."""
    t = stats.t.ppf(0.95, degrees)
    return sum(abs(e.value - truth) <= t * e.standard_error for e in estimates)


def assert_nominal(hits: int, trials: int) -> None:
    """``hits`` of ``trials`` 90 % intervals hold the truth: not fewer, nor many more, by chance."""
    low, high = stats.binom.ppf([0.0005, 0.9995], trials, 0.9)
    assert low <= hits <= high, f"{hits} of {trials}"


def test_standard_error_of_average_sharpness_covers():
    surface = loss_surface(quadratic(list(np.linspace(-1, 3, 40))), mean, *ANY)
    estimates = [
        sharpness.average_sharpness(surface, sigma=0.1, samples=10, seed=s) for s in range(300)
    ]
    assert_nominal(covered(estimates, 0.005 * 40, 9), 300)


def test_sigma_of_rho_over_root_d_is_noise_of_root_mean_square_length_rho():
    d, rho = 50, 0.7
    model = Quadratic(2 * torch.eye(d, dtype=D), torch.zeros(d, dtype=D), torch.zeros(d, dtype=D))
    surface = loss_surface(model, mean, *ANY)
    sigma = rho / math.sqrt(surface.dimension)
    found = sharpness.average_sharpness(surface, sigma=sigma, samples=500)  # E‖ε‖²
    assert abs(found.value - rho**2) < 4 * found.standard_error


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
    assert largest.gradient_evaluations % 3 == 0


def test_restarts_find_what_a_full_basis_finds():
    spectrum = [*np.linspace(0, 1, 300), 1.02, 1.05, 1.1]
    surface = loss_surface(quadratic(spectrum), mean, *ANY)
    small = sharpness.hessian_eigenvalues(surface, k=3, basis_size=10, tolerance=1e-8)
    assert small.converged
    assert small.gradient_evaluations > 3 * 10  # it did restart
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
    assert found.gradient_evaluations == 3 * 7
    assert found.values[0] <= 1
    assert sharpness.hessian_max_eigenvalue(surface, max_products=3).converged is False


def test_the_lanczos_basis_stays_orthogonal():
    """A wide spectrum is where plain Lanczos loses it and repeats the largest eigenvalue."""
    matrix = symmetric([10.0**-i for i in range(0, 12)] + [1e-12] * 60)
    pairs = krylov.eigenpairs(
        lambda v: matrix @ v,
        72,
        6,
        which="LA",
        tolerance=1e-6,
        max_products=500,
        basis_size=72,
        precision=1e-15,
        generator=torch.Generator().manual_seed(0),
        device=torch.device("cpu"),
    )
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
    assert estimates[0].gradient_evaluations == 3 + 2 * 12
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
    nodes, weights = krylov.gauss_quadrature(lambda u: matrix @ u, v, 5, 1e-15)
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
    assert found.gradient_evaluations == 3 * 100 * 30
    np.testing.assert_allclose(found.weights.sum(axis=1), 1, rtol=1e-9)
    assert found.nodes.max() == pytest.approx(values[-1], rel=1e-6)
    for power in (1, 2, 3):
        estimate, error = found.moment(power)
        assert abs(estimate - np.mean(values**power)) < 4 * error
    width = 0.05 * np.ptp(values)
    grid = np.linspace(values[0] - 6 * width, values[-1] + 6 * width, 2000)
    density = found.density(grid, width)
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-6)
    exact = stats.norm.pdf(grid[:, None], values, width).mean(axis=1)
    assert np.trapezoid(np.abs(density - exact), grid) < 0.05  # total variation, of at most 2


def test_a_probe_that_exhausts_its_space_stops_there():
    model = Quadratic(torch.diag(torch.tensor([1.0, 1, 4, 4], dtype=D)), *torch.ones(2, 4, dtype=D))
    found = sharpness.spectral_density(loss_surface(model, mean, *ANY), probes=2, steps=9)
    assert found.nodes.shape == (2, 4)
    assert found.gradient_evaluations == 3 * 2 * 2  # two eigenvalues, two steps
    for nodes, weights in zip(found.nodes, found.weights, strict=True):
        np.testing.assert_allclose(nodes[weights > 0], [1, 4], rtol=1e-9)


# --- what every measure shares ------------------------------------------------------------------

EVERY = {
    "ascent": (sharpness.ascent_sharpness, {"rho": 0.1, "steps": 3}),
    "m-sharpness": (sharpness.ascent_sharpness, {"rho": 0.1, "m": 10, "adaptive": True}),
    "average": (sharpness.average_sharpness, {"sigma": 0.05, "samples": 3}),
    "max eigenvalue": (sharpness.hessian_max_eigenvalue, {}),
    "eigenvalues": (sharpness.hessian_eigenvalues, {"k": 2}),
    "trace": (sharpness.hessian_trace, {"products": 6}),
    "density": (sharpness.spectral_density, {"probes": 2, "steps": 5}),
}
every = pytest.mark.parametrize(("measure", "arguments"), EVERY.values(), ids=EVERY)


def numbers(result) -> np.ndarray:
    """All that a result holds, as one vector."""
    parts = [getattr(result, name) for name in type(result).__dataclass_fields__]
    return np.concatenate([np.ravel(np.asarray(p, dtype=float)) for p in parts])


def state(model: nn.Module) -> dict:
    return {
        "tensors": {k: v.clone() for k, v in model.state_dict().items()},
        "addresses": [t.data_ptr() for t in [*model.parameters(), *model.buffers()]],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "requires": [p.requires_grad for p in model.parameters()],
        "training": [m.training for m in model.modules()],
        "settings": [
            (m.momentum, m.track_running_stats)
            for m in model.modules()
            if isinstance(m, nn.BatchNorm2d)
        ],
        "random": torch.get_rng_state(),
    }


def assert_same(before: dict, after: dict) -> None:
    for key in ("addresses", "requires", "training", "settings"):
        assert before[key] == after[key], key
    assert before["tensors"].keys() == after["tensors"].keys()
    for key, tensor in before["tensors"].items():
        assert torch.equal(tensor, after["tensors"][key]), key
    for old, new in zip(before["gradients"], after["gradients"], strict=True):
        assert (old is None and new is None) or torch.equal(old, new)
    assert torch.equal(before["random"], after["random"])


def odd_model() -> tuple[nn.Module, Tensor, Tensor]:
    """Frozen and training parts, a gradient at hand: all that could be disturbed."""
    model, (x, y) = conv_net(), images()
    model.train()
    model[1].eval()
    model[4].weight.requires_grad_(False)
    model[9].weight.grad = torch.full_like(model[9].weight, 3.0)
    return model, x, y


@pytest.mark.parametrize("batchnorm", ["eval", "train"])
@every
def test_the_model_is_left_as_it_was(measure, arguments, batchnorm):
    model, x, y = odd_model()
    before = state(model)
    surface = loss_surface(model, cross_entropy, x, y, batch_size=7, batchnorm=batchnorm)
    assert_same(before, state(model))
    measure(surface, **arguments)
    assert_same(before, state(model))


@every
def test_the_model_is_left_as_it_was_after_an_exception(measure, arguments):
    model, x, y = odd_model()
    before = state(model)
    calls = []

    def failing(outputs, targets):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("third batch")
        return cross_entropy(outputs, targets)

    with pytest.raises(RuntimeError, match="third batch"):
        measure(loss_surface(model, failing, x, y, batch_size=4, batchnorm="train"), **arguments)
    assert_same(before, state(model))


@every
def test_the_same_arguments_give_the_same_bits(measure, arguments):
    model, (x, y) = mlp(dtype=torch.float32), examples(dtype=torch.float32)
    surface = loss_surface(model, cross_entropy, x, y, batch_size=7)
    first = numbers(measure(surface, **arguments))
    torch.manual_seed(99)
    second = numbers(measure(loss_surface(model, cross_entropy, x, y, batch_size=7), **arguments))
    np.testing.assert_array_equal(first, second)
    assert np.isfinite(first[~np.isnan(first)]).all()
    if "seed" in measure.__kwdefaults__:
        other = numbers(measure(surface, seed=1, **arguments))
        assert not np.array_equal(first, other, equal_nan=True)


@pytest.mark.parametrize("batchnorm", ["eval", "train"])
def test_one_surface_serves_every_measure(batchnorm):
    """Whatever was measured before, numbers and costs are those on a surface of its own."""
    model, (x, y) = conv_net(dtype=torch.float32), images(dtype=torch.float32)
    arguments = {"batch_size": 6, "batchnorm": batchnorm}
    shared = loss_surface(model, cross_entropy, x, y, **arguments)
    shared.gradient(shared.center)
    for measure, settings in [*EVERY.values(), *EVERY.values()]:
        own = loss_surface(model, cross_entropy, x, y, **arguments)
        expected, found = (numbers(measure(s, **settings)) for s in (own, shared))
        np.testing.assert_array_equal(found, expected)
    assert shared.gradient_evaluations == 1  # the gradient that was asked of it above


def test_a_surface_stays_where_it_was_made():
    model, (x, y) = conv_net(), images()
    surface = loss_surface(model, cross_entropy, x, y)
    expected = surface.gradient(surface.center)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    cross_entropy(model(x), y).backward()  # which moves BatchNorm's running statistics too
    optimizer.step()
    found = surface.gradient(surface.center)
    assert found[0] == expected[0]
    assert torch.equal(found[1], expected[1])
    moved = loss_surface(model, cross_entropy, x, y)
    assert moved.value(moved.center) != expected[0]


@every
def test_the_batch_size_changes_rounding_only(measure, arguments):
    model, (x, y) = conv_net(), images()
    whole = measure(loss_surface(model, cross_entropy, x, y), **arguments)
    parts = measure(loss_surface(model, cross_entropy, x, y, batch_size=3), **arguments)
    np.testing.assert_allclose(numbers(whole), numbers(parts), rtol=1e-6, atol=1e-9)


@every
def test_the_surroundings_do_not_matter(measure, arguments):
    model, (x, y) = mlp(dtype=torch.float32), examples(dtype=torch.float32)
    surface = loss_surface(model, cross_entropy, x, y)
    expected = numbers(measure(surface, **arguments))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = numbers(measure(surface, **arguments))
    np.testing.assert_array_equal(expected, found)


@every
def test_parameters_without_gradient_are_constants(measure, arguments):
    model, (x, y) = mlp(), examples()
    head = copy.deepcopy(model[2])
    model[0].requires_grad_(False)
    with torch.no_grad():
        features = model[1](model[0](x))
    expected = measure(loss_surface(head, cross_entropy, features, y), **arguments)
    found = measure(loss_surface(model, cross_entropy, x, y), **arguments)
    np.testing.assert_allclose(numbers(found), numbers(expected), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@every
def test_what_is_not_finite_is_said_plainly(measure, arguments, bad):
    model, (x, y) = mlp(), examples()
    with torch.no_grad():
        model[2].bias[0] = bad
    result = measure(loss_surface(model, cross_entropy, x, y), **arguments)
    said = {"Measure": "value", "HessianEigenvalues": "values", "SpectralDensity": "weights"}
    values = getattr(result, said[type(result).__name__])
    assert not np.isfinite(values).any()
    assert 0 < result.gradient_evaluations <= 6  # and the search ends early


def test_a_loss_that_is_infinite_nearby_gives_infinite_sharpness():
    model = Quadratic(torch.eye(2, dtype=D), torch.ones(2, dtype=D), torch.zeros(2, dtype=D))

    def cliff(outputs, targets):
        height = outputs.mean()
        return torch.where(height.abs() > 0.1, torch.inf, height)

    surface = loss_surface(model, cliff, *ANY)
    for steps in (1, 4):
        found = sharpness.ascent_sharpness(surface, rho=1.0, steps=steps)
        assert found.value == math.inf
        assert found.gradient_evaluations <= 2  # and the search ends there


def test_batch_statistics_are_used_and_not_kept():
    model, (x, y) = conv_net(), images()
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    at, center = flat_loss(twin, cross_entropy, x, y)
    # torch.func's vmapped Hessian of BatchNorm with batch statistics is not even symmetric
    # (torch 2.15), so the reference here is autograd's older one, row by row.
    gradient = torch.autograd.functional.jacobian(at, center)
    hessian = torch.autograd.functional.hessian(at, center)
    arguments = (model, cross_entropy, x, y)
    surface = loss_surface(*arguments, batchnorm="train")
    _, found = surface.gradient(surface.center)
    torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-12)
    _, evaluated = loss_surface(*arguments).gradient(surface.center)
    assert float(evaluated.norm()) != pytest.approx(float(found.norm()), rel=0.05)
    exact = np.linalg.eigvalsh(hessian.numpy())
    largest = sharpness.hessian_max_eigenvalue(surface)
    assert largest.value == pytest.approx(exact[-1], rel=1e-4)
    identity = torch.eye(surface.dimension, dtype=D)
    products = surface.hessian_products(identity)
    ahead, behind = (
        torch.stack([surface.gradient(surface.center + h * e)[1] for e in identity])
        for h in (1e-6, -1e-6)
    )
    torch.testing.assert_close(products, (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-7)


def test_recomputed_statistics_are_those_of_torchs_update_bn():
    model, (x, y) = conv_net(), images(21)
    twin = copy.deepcopy(model)
    twin[3].p = 0.0  # update_bn runs the whole model in training mode, dropout too
    torch.optim.swa_utils.update_bn(list(x.split(6)), twin)
    before = state(model)
    surface = loss_surface(model, cross_entropy, x, y, batch_size=6)
    buffers = surface.recomputed_buffers(surface.center)
    assert_same(before, state(model))
    torch.testing.assert_close(buffers, dict(twin.named_buffers()))
    assert not torch.allclose(buffers["1.running_var"], model[1].running_var)


def test_a_tied_weight_counts_once():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5)).double()
    model[2].weight = model[0].weight
    x, y = examples()
    truth = np.linalg.eigvalsh(dense_hessian(model, cross_entropy, x, y).numpy())
    found = sharpness.hessian_max_eigenvalue(loss_surface(model, cross_entropy, x, y))
    assert found.value == pytest.approx(truth[-1], rel=1e-4)


def test_a_loss_linear_in_the_weights_has_no_curvature():
    model, (x, _) = nn.Linear(5, 1).double(), examples()
    y = torch.zeros(len(x), 1, dtype=D)
    surface = loss_surface(model, mean, x, y)
    assert sharpness.hessian_max_eigenvalue(surface).value == 0
    assert sharpness.hessian_trace(surface).value == 0
    # and beside a constant curvature, 2 xxᵀ/n with the bias as one more input
    z = torch.cat([x, torch.ones(len(x), 1, dtype=D)], dim=1)
    exact = torch.linalg.eigvalsh(2 * z.T @ z / len(z))[-1]
    found = sharpness.hessian_max_eigenvalue(loss_surface(model, mse_loss, x, y))
    assert found.value == pytest.approx(float(exact), rel=1e-6)


def test_a_parameter_the_loss_ignores_has_no_curvature():
    model, (x, y) = mlp(), examples()
    arguments = {"k": 2, "tolerance": 1e-8}
    plain = loss_surface(model, cross_entropy, x, y)
    expected = sharpness.hessian_eigenvalues(plain, **arguments).values
    model.register_parameter("unused", nn.Parameter(torch.ones(7, dtype=D)))
    surface = loss_surface(model, cross_entropy, x, y)
    found = sharpness.hessian_eigenvalues(surface, **arguments)
    np.testing.assert_allclose(found.values, expected, rtol=1e-6)
    ignored = slice(0, 7)  # a module's own parameters come before its children's
    plain = loss_surface(mlp(), cross_entropy, x, y)
    _, gradient = surface.gradient(surface.center)
    assert not gradient[ignored].any()
    assert torch.equal(gradient[7:], plain.gradient(plain.center)[1])
    assert float(found.vectors[:, ignored].abs().max()) < 1e-6


def test_arithmetic_settings_are_put_back():
    def settings():
        return (
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.allow_tf32,
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
            torch.backends.mkldnn.matmul.fp32_precision,
        )

    def loss(outputs, targets):
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        assert torch.backends.cudnn.deterministic
        return cross_entropy(outputs, targets)

    torch.set_float32_matmul_precision("medium")
    try:
        before = settings()
        surface = loss_surface(mlp(), loss, *examples())
        assert settings() == before  # a surface by itself switches nothing
        sharpness.hessian_trace(surface, products=6)
        assert settings() == before
    finally:
        torch.set_float32_matmul_precision("highest")


WRONG = [
    (sharpness.ascent_sharpness, {"rho": -0.1}, r"rho: -0\.1; allowed"),
    (sharpness.ascent_sharpness, {"rho": math.nan}, "rho: nan; allowed"),
    (sharpness.ascent_sharpness, {"rho": 0.1, "m": 0}, "m: 0; allowed"),
    (sharpness.ascent_sharpness, {"rho": 0.1, "eta": -1.0}, r"eta: -1\.0; allowed"),
    (sharpness.ascent_sharpness, {"rho": 0.1, "steps": 0}, "steps: 0; allowed"),
    (sharpness.ascent_sharpness, {"rho": 0.1, "steps": 1.5}, r"steps: 1\.5; allowed"),
    (sharpness.ascent_sharpness, {"rho": 0.1, "step_size": math.inf}, "step_size: inf; allowed"),
    (sharpness.average_sharpness, {"sigma": -1.0}, r"sigma: -1\.0; allowed"),
    (sharpness.average_sharpness, {"sigma": 0.1, "samples": 0}, "samples: 0; allowed"),
    (sharpness.hessian_eigenvalues, {"k": 0}, "k: 0; allowed"),
    (sharpness.hessian_eigenvalues, {"k": 1000}, "k: 1000; allowed: at most the 57"),
    (sharpness.hessian_eigenvalues, {"which": "BE"}, "which: 'BE'; allowed: 'LA', 'SA', 'LM'"),
    (sharpness.hessian_eigenvalues, {"k": 3, "basis_size": 4}, "basis_size: 4; allowed"),
    (sharpness.hessian_eigenvalues, {"tolerance": -1.0}, "tolerance"),
    (sharpness.hessian_trace, {"products": 3}, "products: 3; allowed"),
    (sharpness.hessian_trace, {"products": 8}, "products: 8; allowed: a multiple of 3"),
    (sharpness.spectral_density, {"probes": 0}, "probes: 0; allowed"),
    (sharpness.spectral_density, {"steps": 0}, "steps: 0; allowed"),
]


@pytest.mark.parametrize(("measure", "arguments", "message"), WRONG)
def test_arguments_out_of_range(measure, arguments, message):
    with pytest.raises(ValueError, match=message):
        measure(loss_surface(mlp(), cross_entropy, *examples()), **arguments)


def test_models_and_examples_that_cannot_be_measured():
    model, (x, y) = mlp(), examples()
    with pytest.raises(ValueError, match="30 and 29 examples"):
        loss_surface(model, cross_entropy, x, y[:-1])
    with pytest.raises(ValueError, match="no examples"):
        loss_surface(model, cross_entropy, x[:0], y[:0])
    with pytest.raises(ValueError, match="batch_size: 0; allowed"):
        loss_surface(model, cross_entropy, x, y, batch_size=0)
    with pytest.raises(ValueError, match="batchnorm: 'off'; allowed"):
        loss_surface(model, cross_entropy, x, y, batchnorm="off")
    each = loss_surface(model, lambda o, t: cross_entropy(o, t, reduction="none"), x, y)
    with pytest.raises(ValueError, match=r"loss: returned a tensor of shape \(30,\)"):
        each.value(each.center)
    surface = loss_surface(model, cross_entropy, x, y)
    density = sharpness.spectral_density(surface, probes=1, steps=1)
    with pytest.raises(ValueError, match="width: 0"):
        density.density(np.zeros(3), 0)
    with pytest.raises(ValueError, match="no parameter requires a gradient"):
        loss_surface(model.requires_grad_(False), cross_entropy, x, y)
