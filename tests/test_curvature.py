"""The eigenvalue and the trace of one Krylov space, and the products that it is made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn.functional import cross_entropy

from flatbench import sharpness
from flatbench.sharpness import HessianProducts, loss_surface
from tests.losses import (
    ANY,
    D,
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
)


@pytest.mark.parametrize("seed", range(3))
def test_the_eigenvalue_is_the_dense_hessians(seed):
    model, (x, y) = mlp(seed=seed), examples(seed=seed)
    dense = dense_hessian(model, cross_entropy, x, y)
    found = sharpness.hessian_curvature(loss_surface(model, cross_entropy, x, y), tolerance=1e-4)
    exact = np.linalg.eigvalsh(dense.numpy())[-1]
    assert found.max_eigenvalue.value == pytest.approx(exact, rel=1e-6)
    assert found.max_eigenvalue.converged


def test_the_trace_is_unbiased_and_its_error_bars_hold():
    model, (x, y) = mlp(), examples()
    truth = float(dense_hessian(model, cross_entropy, x, y).trace())
    surface = loss_surface(model, cross_entropy, x, y)
    found = [
        sharpness.hessian_curvature(surface, tolerance=0.3, probes=4, seed=s).trace
        for s in range(200)
    ]
    assert_nominal(covered(found, truth, 3), 200)
    every = np.array([e.value for e in found])
    assert abs(every.mean() - truth) < 4 * stats.sem(every)


def test_a_trace_within_the_space_is_exact():
    model = quadratic([7.0, 3.0, -2.0] + [0.0] * 40)
    trace = sharpness.hessian_curvature(loss_surface(model, mean, *ANY), tolerance=1e-9).trace
    assert trace.value == pytest.approx(8.0, rel=1e-9)
    assert trace.standard_error < 1e-9


def test_the_trace_is_no_worse_than_hutchpps_at_its_price():
    spectrum = [100.0 / (i + 1) ** 2 for i in range(80)]
    surface = loss_surface(quadratic(spectrum), mean, *ANY)
    ours = [sharpness.hessian_curvature(surface, probes=5, seed=s).trace for s in range(60)]
    products = [(e.gradient_evaluations - 1) / 2 for e in ours]
    theirs = [sharpness.hessian_trace(surface, products=12, seed=s).value for s in range(60)]
    assert np.mean(products) <= 12
    assert np.std([e.value for e in ours]) < np.std(theirs)


def test_costs_are_a_gradient_and_two_a_product():
    surface = loss_surface(conv_net(), cross_entropy, *images())
    few, many = (sharpness.hessian_curvature(surface, probes=p) for p in (2, 7))
    assert few.max_eigenvalue == many.max_eigenvalue
    assert few.max_eigenvalue.gradient_evaluations % 4 == 1  # blocks of two products
    for found, probes in ((few, 2), (many, 7)):
        space = found.max_eigenvalue.gradient_evaluations
        assert found.trace.gradient_evaluations == space + 2 * probes


def test_a_single_start_takes_the_second_eigenvalue_for_the_first():
    """A residual bounds the distance to *an* eigenvalue; two starts are rarely both misled."""
    spectrum = torch.tensor([1.0, 0.9, *np.linspace(0, 0.1, 3000)], dtype=D)
    wrong = {}
    for block in (1, 2):
        found = [
            ritz_pairs(
                lambda rows: rows * spectrum, len(spectrum), seed=seed, tolerance=3e-2, block=block
            )
            for seed in range(100)
        ]
        assert all(pairs.converged for pairs in found)
        wrong[block] = sum(float(pairs.values[0]) < 0.95 for pairs in found)
    assert wrong[1] >= 4
    assert wrong[2] == 0


def test_a_pair_of_equal_eigenvalues_is_found():
    spectrum = torch.tensor([2.0, 2.0, 1.0] + [0.5] * 30, dtype=D)
    found = ritz_pairs(lambda rows: rows * spectrum, 33, 2, max_products=6)
    np.testing.assert_allclose(found.values, [2, 2], rtol=1e-12)


def test_the_space_is_that_of_its_trace_after_restarts_too():
    matrix = torch.diag(torch.tensor([*np.linspace(0, 1, 300), 1.02, 1.05], dtype=D))
    found = ritz_pairs(lambda rows: rows @ matrix, 302, basis_size=11)
    assert found.converged
    torch.testing.assert_close(found.basis @ found.basis.T, torch.eye(len(found.basis), dtype=D))
    within = (found.basis @ matrix * found.basis).sum()
    assert found.trace == pytest.approx(float(within), rel=1e-9)
    assert float(found.values[0]) == pytest.approx(1.05, rel=1e-9)


# --- products


@pytest.mark.parametrize(("batch_size", "passes"), [(None, [1, 1]), (20, [1, 1]), (7, [3, 6])])
def test_one_batch_is_passed_once_for_all_products(batch_size, passes):
    calls = []

    def watched(outputs, targets):
        calls.append(len(outputs))
        return cross_entropy(outputs, targets)

    surface = loss_surface(conv_net(), watched, *images(), batch_size=batch_size)
    hessian, seen = HessianProducts(surface), []
    rows = torch.eye(surface.dimension, dtype=D)[:2]
    both = torch.stack([hessian(rows), (seen.append(len(calls)), hessian(rows))[1]])
    seen.append(len(calls))
    assert seen == passes
    assert torch.equal(both[0], both[1])
    assert surface.gradient_evaluations == (5 + 4 if passes == [1, 1] else 5 + 5)


def test_an_error_of_the_first_call_is_not_kept():
    surface = loss_surface(conv_net(), cross_entropy, *images())
    hessian = HessianProducts(surface)
    with pytest.raises(RuntimeError):
        hessian(torch.ones(1, 3, dtype=D))
    rows = torch.ones(1, surface.dimension, dtype=D)
    assert torch.equal(hessian(rows), HessianProducts(surface)(rows))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probes": 1}, "probes must be a whole number of at least 2, got 1"),
        ({"max_products": 0}, "max_products must be .*, got 0"),
        ({"tolerance": -1.0}, r"tolerance must be .*, got -1\.0"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        sharpness.hessian_curvature(loss_surface(mlp(), cross_entropy, *examples()), **arguments)
