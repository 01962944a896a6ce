"""What all measures of a surface share: they change nothing, repeat themselves, refuse alike."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from flatbench import sharpness
from flatbench.sharpness import loss_surface
from tests.losses import (
    ANY,
    D,
    Quadratic,
    conv_net,
    dense_hessian,
    examples,
    flat_loss,
    images,
    mean,
    mlp,
)


def beside(surface, *, seed=0):
    """The trace that the eigenvalue's space gives."""
    return sharpness.hessian_curvature(surface, tolerance=1e-4, seed=seed).trace


EVERY = {
    "ascent": (sharpness.ascent_sharpness, {"rho": 0.1, "steps": 3}),
    "m-sharpness": (sharpness.ascent_sharpness, {"rho": 0.1, "m": 10, "adaptive": True}),
    "average": (sharpness.average_sharpness, {"sigma": 0.05, "samples": 3}),
    "max eigenvalue": (sharpness.hessian_max_eigenvalue, {}),
    "eigenvalues": (sharpness.hessian_eigenvalues, {"k": 2}),
    "trace": (sharpness.hessian_trace, {"products": 6}),
    "trace beside": (beside, {}),
    "density": (sharpness.spectral_density, {"probes": 2, "steps": 5}),
}
every = pytest.mark.parametrize(("measure", "arguments"), EVERY.values(), ids=EVERY)


def numbers(result):
    """All that a result holds, as one vector."""
    parts = [getattr(result, name) for name in type(result).__dataclass_fields__]
    return np.concatenate([np.ravel(np.asarray(p, dtype=float)) for p in parts])


def state(model):
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


def assert_same(before, after):
    for key in ("addresses", "requires", "training", "settings"):
        assert before[key] == after[key], key
    assert before["tensors"].keys() == after["tensors"].keys()
    for key, tensor in before["tensors"].items():
        assert torch.equal(tensor, after["tensors"][key]), key
    for old, new in zip(before["gradients"], after["gradients"], strict=True):
        assert (old is None and new is None) or torch.equal(old, new)
    assert torch.equal(before["random"], after["random"])


def odd_model():
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
    # Apart from the cost: of several batches no gradient is kept from product to product.
    whole, parts = (replace(found, gradient_evaluations=0) for found in (whole, parts))
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
    products = sharpness.HessianProducts(surface)(identity)
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
    (sharpness.ascent_sharpness, {"rho": -0.1}, r"rho must be .* of at least 0, got -0\.1"),
    (sharpness.ascent_sharpness, {"rho": math.nan}, "rho must be .*, got nan"),
    (sharpness.ascent_sharpness, {"rho": 0.1, "m": 0}, "m must be .* of at least 1, got 0"),
    (sharpness.ascent_sharpness, {"rho": 0.1, "eta": -1.0}, r"eta must be .*, got -1\.0"),
    (sharpness.ascent_sharpness, {"rho": 0.1, "steps": 0}, "steps must be .*, got 0"),
    (sharpness.ascent_sharpness, {"rho": 0.1, "steps": 1.5}, r"steps must be .*, got 1\.5"),
    (sharpness.ascent_sharpness, {"rho": 0.1, "step_size": math.inf}, "step_size must .*, got inf"),
    (sharpness.average_sharpness, {"sigma": -1.0}, r"sigma must be .*, got -1\.0"),
    (sharpness.average_sharpness, {"sigma": 0.1, "samples": 0}, "samples must be .*, got 0"),
    (sharpness.hessian_eigenvalues, {"k": 0}, "k must be .*, got 0"),
    (sharpness.hessian_eigenvalues, {"k": 1000}, "k must be at most 57, .*, got 1000"),
    (sharpness.hessian_eigenvalues, {"which": "BE"}, "one of 'LA', 'SA', 'LM', got 'BE'"),
    (sharpness.hessian_eigenvalues, {"k": 3, "basis_size": 4}, "basis_size must be .*, got 4"),
    (sharpness.hessian_eigenvalues, {"tolerance": -1.0}, r"tolerance must be .*, got -1\.0"),
    (sharpness.hessian_trace, {"products": 3}, "products must be .* of at least 6, got 3"),
    (sharpness.hessian_trace, {"products": 8}, "products must be a multiple of 3, got 8"),
    (sharpness.spectral_density, {"probes": 0}, "probes must be .*, got 0"),
    (sharpness.spectral_density, {"steps": 0}, "steps must be .*, got 0"),
]


@pytest.mark.parametrize(("measure", "arguments", "message"), WRONG)
def test_arguments_out_of_range(measure, arguments, message):
    with pytest.raises(ValueError, match=message):
        measure(loss_surface(mlp(), cross_entropy, *examples()), **arguments)


def test_models_and_examples_that_cannot_be_measured():
    model, (x, y) = mlp(), examples()
    with pytest.raises(ValueError, match="equally many, got 30 and 29 examples"):
        loss_surface(model, cross_entropy, x, y[:-1])
    with pytest.raises(ValueError, match="at least 1 example, got none"):
        loss_surface(model, cross_entropy, x[:0], y[:0])
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1, got 0"):
        loss_surface(model, cross_entropy, x, y, batch_size=0)
    with pytest.raises(ValueError, match="batchnorm must be 'eval' or 'train', got 'off'"):
        loss_surface(model, cross_entropy, x, y, batchnorm="off")
    each = loss_surface(model, lambda o, t: cross_entropy(o, t, reduction="none"), x, y)
    with pytest.raises(ValueError, match=r"loss must return .*, got a tensor of shape \(30,\)"):
        each.value(each.center)
    surface = loss_surface(model, cross_entropy, x, y)
    density = sharpness.spectral_density(surface, probes=1, steps=1)
    with pytest.raises(ValueError, match="width must be a finite number above 0, got 0"):
        density.density(np.zeros(3), 0)
    with pytest.raises(ValueError, match="a parameter that requires a gradient, got none"):
        loss_surface(model.requires_grad_(False), cross_entropy, x, y)
