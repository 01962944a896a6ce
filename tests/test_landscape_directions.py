"""Directions through parameter space: filters' lengths, eigenvectors' bends, lines' ends."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from flatbench.landscape import (
    hessian_directions,
    line_direction,
    loss_landscape,
    random_directions,
)
from flatbench.sharpness import loss_surface
from tests.landscapes import Bowl, conv_net, images, loss_of, moved, run
from tests.losses import D, mean


def test_random_directions_have_the_filters_lengths_and_leave_bias_and_batchnorm():
    model = conv_net()
    found = random_directions(model, count=3, seed=4)
    assert found.vectors.shape == (3, sum(p.numel() for p in model.parameters()))
    assert (found.kind, found.seed) == ("random", 4)
    for vector in found.vectors:
        pieces = vector.split([p.numel() for p in model.parameters()])
        for parameter, piece in zip(model.parameters(), pieces, strict=True):
            direction = piece.view(parameter.shape)
            if parameter.ndim == 1:
                assert not direction.any()
            else:  # one filter an output channel
                lengths = direction.flatten(1).norm(dim=1)
                torch.testing.assert_close(lengths, parameter.detach().flatten(1).norm(dim=1))
    assert not torch.allclose(found.vectors[0], found.vectors[1])


def test_random_directions_are_their_seeds():
    model = conv_net()
    first, again, other = (random_directions(model, seed=s).vectors for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    before = torch.get_rng_state()
    random_directions(model)
    assert torch.equal(before, torch.get_rng_state())


def test_random_directions_are_gaussian_before_they_are_normalised():
    model = nn.Linear(4000, 2, bias=False).to(D)
    direction = random_directions(model, count=1).vectors[0].view(2, 4000)
    z = direction / model.weight.detach().norm(dim=1, keepdim=True) * 4000**0.5
    assert abs(float(z.mean())) < 0.06
    assert float((z**4).mean()) == pytest.approx(3, rel=0.15)  # uniform: 1.8; signs: 1


def test_parameters_without_gradient_do_not_move():
    model, (x, y) = conv_net(), images()
    model[0].requires_grad_(False)
    found = random_directions(model, count=1)
    assert found.vectors.shape[1] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    full = torch.cat([torch.zeros(sum(p.numel() for p in model[0].parameters())), found.vectors[0]])
    result = loss_landscape(loss_surface(model, cross_entropy, x, y), found, [-1.0, 0.5])
    expected = [loss_of(moved(model, (a, full)), x, y) for a in (-1.0, 0.5)]
    np.testing.assert_allclose(result.losses, expected, rtol=1e-12)


def test_hessian_directions_bend_as_their_eigenvalues_say():
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    spectrum = np.array([9.0, 4.0, 1.0, 0.5, 0.0, -2.0])
    model = Bowl(torch.tensor(q @ np.diag(spectrum) @ q.T))
    surface = loss_surface(model, mean, torch.zeros(3, 1), torch.zeros(3))
    found = hessian_directions(surface, tolerance=1e-10)
    np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(2), atol=1e-9)
    assert found.labels == ("eigenvector 1 (λ = 9)", "eigenvector 2 (λ = 4)")
    for vector in found.vectors:
        assert float(vector[vector.abs().argmax()]) > 0
    alphas, betas = np.linspace(-1, 1, 5), np.linspace(-2, 2, 4)
    result = loss_landscape(surface, found, alphas, betas)
    expected = 0.5 * (9 * alphas[:, None] ** 2 + 4 * betas[None, :] ** 2)
    np.testing.assert_allclose(result.losses, expected, atol=1e-6)
    short = hessian_directions(surface, max_products=2)
    assert "≈" in short.labels[0]


def test_hessian_directions_of_a_model_that_is_not_finite():
    model = Bowl(torch.full((3, 3), torch.nan, dtype=D))
    surface = loss_surface(model, mean, torch.zeros(3, 1), torch.zeros(3))
    with pytest.raises(ArithmeticError, match="not finite"):
        hessian_directions(surface)


def test_directions_that_do_not_fit():
    model = conv_net()
    with pytest.raises(ValueError, match="directions must be at least 2 for this grid, got 1"):
        run(model, None, directions=random_directions(model, count=1))
    with pytest.raises(ValueError, match=r"directions must have the model's \d+ parameters, got 8"):
        run(model, None, directions=random_directions(nn.Linear(4, 2, bias=False).to(D)))
    with pytest.raises(ValueError, match=r"count.* of at least 1"):
        random_directions(model, count=0)
    with pytest.raises(ValueError, match=r"seed.* of at least 0"):
        random_directions(model, seed=-1)
    with pytest.raises(ValueError, match="must have a parameter of two axes"):
        random_directions(nn.BatchNorm2d(3))


def test_solutions_that_no_line_joins():
    model, end = conv_net(), conv_net(1).state_dict()
    with pytest.raises(ValueError, match=r"'5\.bias' must be in both solutions"):
        line_direction(model, {k: v for k, v in end.items() if k != "5.bias"})
    with pytest.raises(ValueError, match=r"'5\.bias' must have the shape \(4,\), got \(7,\)"):
        line_direction(model, end | {"5.bias": torch.zeros(7)})
    model[0].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"'0\.weight' must equal the model's"):
        line_direction(model, end)
