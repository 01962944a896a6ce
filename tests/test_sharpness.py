"""The ball and the noise around w, each against a closed form or scipy."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import nn
from torch.nn.functional import cross_entropy

from flatbench import sharpness
from flatbench.sharpness import loss_surface
from tests.losses import (
    ANY,
    D,
    Quadratic,
    assert_nominal,
    covered,
    examples,
    mean,
    mlp,
    quadratic,
    symmetric,
)

# --- ascent_sharpness ---------------------------------------------------------------------------


def largest_rise(matrix, gradient, rho):
    """max g·e + ½ eᵀAe over ‖e‖ ≤ ρ: on the sphere (A − λI)e = −g with λ ≥ λ₁ (Moré & Sorensen)."""
    values, vectors = np.linalg.eigh(matrix.numpy())
    g = vectors.T @ gradient.numpy()

    def excess(multiplier):
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


def rescaled(model, factor):
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
