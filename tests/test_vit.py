"""The Vision Transformer against torchvision's, and its sharpness against the dense Hessian."""

import numpy as np
import pytest
import torch
import torchvision
from scipy import stats
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from flatbench import models, sharpness
from flatbench.errors import UsageError
from tests.losses import D, dense_hessian, flat_loss


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def sized(size, **options):
    return models.build("vit", image_size=size, **options)


# --- the network


@torch.no_grad()
@pytest.mark.parametrize(("size", "patch"), [(8, 2), (28, 4), (32, 4)])
def test_it_is_torchvisions_encoder_over_the_mean_of_the_tokens(size, patch):
    mine = sized(size, width=8, depth=3, heads=4)
    reference = torchvision.models.VisionTransformer(
        image_size=size,
        patch_size=patch,
        num_layers=3,
        num_heads=4,
        hidden_dim=24,
        mlp_dim=96,
        num_classes=10,
    ).eval()
    for tensor in mine.parameters():
        tensor.copy_(torch.randn(tensor.shape) / 4)  # no bias at 0, no scale at 1
    pairs = [
        (mine.patches, reference.conv_proj),
        *zip(mine.blocks, reference.encoder.layers, strict=True),
        (mine.norm, reference.encoder.ln),
        (mine.classifier, reference.heads),
    ]
    for ours, theirs in pairs:
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            b.copy_(a)
    x = torch.randn(5, 3, size, size)
    tokens = reference._process_input(x) + mine.positions
    assert tokens.shape == (5, (size // patch) ** 2, 24)
    for ours, theirs in zip(mine.blocks, reference.encoder.layers, strict=True):
        torch.testing.assert_close(ours(tokens), theirs(tokens), rtol=1e-4, atol=1e-4)
        tokens = theirs(tokens)
    expected = reference.heads(reference.encoder.ln(tokens).mean(1))
    torch.testing.assert_close(mine(x), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("width", [8, 16, 64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 22, 28, 32, (8, 12)])
def test_every_parameter_gets_a_gradient(size, channels, width):
    model = sized(size, width=width, in_channels=channels, classes=5, depth=2)
    height, wide = size if isinstance(size, tuple) else (size, size)
    logits = model(torch.randn(2, channels, height, wide))
    assert logits.shape == (2, 5)
    cross_entropy(logits, torch.tensor([0, 4])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.classifier.in_features == 3 * width


def test_options_stand_in_the_place_of_the_defaults():
    model = sized(12, patch=3, depth=1, heads=5, dim=10)
    assert model.positions.shape == (16, 10)
    assert len(model.blocks) == 1
    assert model(torch.randn(2, 3, 12, 12)).shape == (2, 10)
    # the heads are part of the function, not of the shapes
    other = sized(12, patch=3, depth=1, heads=1, dim=10)
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 12, 12)
    assert not torch.allclose(model(x), other(x), atol=1e-6)


def test_the_patch_grows_with_the_image():
    assert [sized(s).patches.kernel_size[0] for s in (8, 22, 24, 32)] == [2, 2, 4, 4]


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        (9, {}, "patch must divide the images' 9×9 pixels, got 2"),
        (30, {}, "patch must divide the images' 30×30 pixels, got 4"),
        ((8, 10), {"patch": 4}, "patch must divide the images' 8×10 pixels, got 4"),
        (8, {"heads": 5}, "heads must divide the dimension 192, got 5"),
        (8, {"dim": 4}, "heads must divide the dimension 4, got 3"),
        (8, {"depth": 0}, "depth must be a whole number of at least 1, got 0"),
        (8, {"patch": 2.0}, "patch must be a whole number of at least 1, got 2.0"),
    ],
)
def test_what_does_not_fit_is_one_line(size, options, expected):
    with pytest.raises(UsageError) as caught:
        sized(size, **options)
    assert str(caught.value) == f"architecture: vit: ValueError: {expected}"


# --- its sharpness


@pytest.fixture
def tiny():
    """A small net after a few steps, with its examples, its gradient and its dense Hessian."""
    options = {"dim": 6, "heads": 2, "depth": 1, "patch": 4}
    model = sized(8, in_channels=1, classes=3, **options).to(D)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(20, 1, 8, 8, generator=g, dtype=D)
    y = torch.randint(3, (20,), generator=g)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(30):  # at the start the eigenvalues cancel in the trace
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    at, center = flat_loss(model, cross_entropy, x, y)
    with sdpa_kernel(SDPBackend.MATH):
        gradient = torch.func.grad(at)(center)
        hessian = dense_hessian(model, cross_entropy, x, y).detach()
    return model, x, y, center, gradient, hessian


def rise(e, gradient, hessian):
    """L(w + e) - L(w) to the second order."""
    return float(gradient @ e + e @ hessian @ e / 2)


def test_the_hessians_measures_are_the_dense_hessians(tiny):
    model, x, y, _, _, hessian = tiny
    values = np.linalg.eigvalsh(hessian.numpy())
    surface = sharpness.loss_surface(model, cross_entropy, x, y, batch_size=7)
    largest = sharpness.hessian_max_eigenvalue(surface)
    assert largest.value == pytest.approx(values[-1], rel=1e-4)
    both = sharpness.hessian_eigenvalues(surface, k=3, which="LM")
    expected = values[np.argsort(-np.abs(values))][:3]
    np.testing.assert_allclose(both.values, expected, rtol=1e-4)
    products = 120
    trace = sharpness.hessian_trace(surface, products=products)
    reach = stats.t.ppf(0.9995, products // 3 - 1) * trace.standard_error
    assert abs(trace.value - float(hessian.trace())) < reach < abs(trace.value)
    density = sharpness.spectral_density(surface, probes=3, steps=20)
    assert density.nodes.max() == pytest.approx(values[-1], rel=1e-4)


def test_the_measures_of_a_neighbourhood_are_those_of_the_second_order(tiny):
    model, x, y, center, gradient, hessian = tiny
    surface = sharpness.loss_surface(model, cross_entropy, x, y)
    rho = 1e-4
    found = sharpness.ascent_sharpness(surface, rho=rho).value
    e = rho * gradient / gradient.norm()
    assert found == pytest.approx(rise(e, gradient, hessian), rel=2e-4)
    many = sharpness.ascent_sharpness(surface, rho=rho, steps=10).value
    assert found <= many < 1.1 * found
    scale = center.abs()
    e = rho * scale**2 * gradient / (scale * gradient).norm()
    adaptive = sharpness.ascent_sharpness(surface, rho=rho, adaptive=True).value
    assert adaptive == pytest.approx(rise(e, gradient, hessian), rel=2e-4)
    average = sharpness.average_sharpness(surface, sigma=1e-3, samples=400)
    expected = 1e-6 * float(hessian.trace()) / 2
    assert abs(average.value - expected) < 4 * average.standard_error < abs(expected)


class Pooled(torch.nn.Module):
    """torch's own encoder layer: with no gradient, its fast path is other arithmetic."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.layer(x).mean(1)


def test_the_loss_is_the_same_number_with_a_gradient_and_without():
    model, before = Pooled().eval(), torch.backends.mha.get_fastpath_enabled()
    x, y = torch.randn(16, 5, 16), torch.randint(16, (16,))

    def loss(outputs, targets):  # in float64, so that no last digit is lost in a sum
        return cross_entropy(outputs.double(), targets)

    surface = sharpness.loss_surface(model, loss, x, y)
    assert surface.value(surface.center) == surface.gradient(surface.center)[0]
    assert torch.backends.mha.get_fastpath_enabled() == before
    assert sharpness.hessian_max_eigenvalue(surface).value != 0


def test_the_attention_of_a_training_step_is_left_alone():
    """Only while a surface is evaluated do the fused kernels stand back."""
    seen = []

    class Watched(torch.nn.Linear):
        def forward(self, x):
            seen.append(torch.backends.cuda.flash_sdp_enabled())
            return super().forward(x)

    before = torch.backends.cuda.flash_sdp_enabled()
    x, y = torch.randn(4, 3), torch.randint(2, (4,))
    surface = sharpness.loss_surface(Watched(3, 2), F.cross_entropy, x, y)
    surface.gradient(surface.center)
    assert (before, seen, torch.backends.cuda.flash_sdp_enabled()) == (True, [False], True)
