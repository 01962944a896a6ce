"""WRN-16-k against the paper's counts and against its blocks written out."""

import pytest
import torch
from torch.nn import functional as F

from flatbench import models
from flatbench.errors import UsageError


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("widening", "millions"), [(4, 2.7), (8, 11.0)])
def test_the_papers_number_of_parameters(widening, millions):
    """CIFAR-10; the paper rounds to 0.1 million."""
    found = parameters(models.build("wrn16", widening=widening))
    assert round(found / 1e6, 1) == millions
    # by hand: conv = 9 a b, BatchNorm = 2 a, shortcut = a b
    a, count = 16, 9 * 3 * 16
    for b in (16 * widening, 32 * widening, 64 * widening):
        count += 2 * a + 9 * a * b + 2 * b + 9 * b * b + a * b + 2 * (2 * b + 9 * b * b)
        a = b
    assert found == count + 2 * a + 10 * a + 10
    assert found == parameters(models.build("wrn16", width=16 * widening))


def norm(x, model, training):
    statistics = model.running_mean.clone(), model.running_var.clone()
    return F.relu(F.batch_norm(x, *statistics, model.weight, model.bias, training))


def written_out(model, x, training):
    """The paper's figure 1 (b), stage by stage, from the model's tensors."""
    x = F.conv2d(x, model.stem.weight, padding=1)
    for i, block in enumerate(model.stages):
        stride = 2 if i in (2, 4) else 1
        a = norm(x, block.bn1, training)
        y = F.conv2d(a, block.conv1.weight, stride=stride, padding=1)
        y = F.conv2d(norm(y, block.bn2, training), block.conv2.weight, padding=1)
        first_of_stage = i % 2 == 0
        x = y + (F.conv2d(a, block.shortcut.weight, stride=stride) if first_of_stage else x)
    pooled = norm(x, model.norm, training).mean((2, 3))
    return pooled @ model.classifier.weight.T + model.classifier.bias


@torch.no_grad()
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [8, 13, 28, 32])
def test_the_blocks_are_the_papers(size, training):
    model = models.build("wrn16", width=8)
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point() and "classifier" not in name:
            tensor.uniform_(0.5, 1.5)  # so that no BatchNorm can be left out
    x = torch.randn(4, 3, size, size)
    expected = written_out(model, x, training)
    torch.testing.assert_close(model.train(training)(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [8, 16, 64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 9, 28, 32])
def test_every_parameter_gets_a_gradient(size, channels, width):
    model = models.build("wrn16", width=width, in_channels=channels, classes=5)
    logits = model(torch.randn(2, channels, size, size))
    assert logits.shape == (2, 5)
    F.cross_entropy(logits, torch.tensor([0, 4])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.stages[0].conv1.out_channels == width


@pytest.mark.parametrize("widening", [0, 2.5, True, "4"])
def test_a_wrong_widening_is_one_line(widening):
    with pytest.raises(UsageError, match="widening must be a whole number of at least 1, got "):
        models.build("wrn16", widening=widening)
