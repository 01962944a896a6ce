"""The networks against torchvision's, layer by layer at full width, and at every size and width."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from flatbench import models
from flatbench.errors import UsageError
from flatbench.models import _convolutions

PUBLISHED = ("resnet18", "vgg16")  # the others have tests of their own: test_wrn.py, test_vit.py


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def tensors(model):
    """Every learned weight and running statistic, in the order of the modules."""
    return [t for t in model.state_dict().values() if t.is_floating_point()]


def copy_in_order(source, target):
    pairs = list(zip(tensors(source), tensors(target), strict=True))
    assert [a.shape for a, _ in pairs] == [b.shape for _, b in pairs]
    for a, b in pairs:
        b.copy_(a)


def shake(model):
    """Give every BatchNorm statistics and weights of its own, so that none can be left out."""
    for tensor in tensors(model):
        if tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5)


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_resnet18_has_the_published_number_of_parameters():
    assert parameters(models.build("resnet18", width=64, in_channels=3, classes=10)) == 11_173_962


def torchvision_resnet18(in_channels):
    """torchvision's, with the stem usual for small images in place of ImageNet's."""
    reference = torchvision.models.resnet18(weights=None, num_classes=10)
    reference.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    reference.maxpool = nn.Identity()
    return reference


@torch.no_grad()
@pytest.mark.parametrize("size", [8, 13, 28, 32])
@pytest.mark.parametrize("training", [True, False])
def test_resnet18_is_that_of_torchvision(images, size, training):
    mine, reference = models.build("resnet18"), torchvision_resnet18(3)
    shake(mine)
    copy_in_order(mine, reference)
    mine.train(training)
    reference.train(training)
    x = images[:, :, :size, :size]
    torch.testing.assert_close(mine(x), reference(x), rtol=1e-5, atol=1e-5)
    # in training mode the running statistics moved alike too
    for a, b in zip(tensors(mine), tensors(reference), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inputs", [1, 4, 6, 7, 8, 20])
def test_a_narrow_shortcut_is_a_strided_convolution(inputs):
    """Of fewer than 8 channels torch's own backward pass can damage the heap, in channels_last."""
    ours = _convolutions.conv1x1(inputs, 2 * inputs, 2).to(memory_format=torch.channels_last)
    theirs = nn.Conv2d(inputs, 2 * inputs, 1, stride=2, bias=False).double()
    theirs.load_state_dict(ours.state_dict())
    for _ in range(20):
        x = torch.randn(64, inputs, 9, 8).to(memory_format=torch.channels_last).requires_grad_()
        y = x.detach().double().requires_grad_()
        found, expected = ours(x), theirs(y)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
        found.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-5, atol=1e-5)


def torchvision_vgg16_features():
    """torchvision's configuration D with BatchNorm, less biases, with ceil-mode pooling."""
    layers = torchvision.models.vgg16_bn(weights=None).features
    for i, layer in enumerate(layers):
        if isinstance(layer, nn.Conv2d):
            layer.bias = None
        if isinstance(layer, nn.MaxPool2d):
            layers[i] = nn.MaxPool2d(2, ceil_mode=True)
    return layers


@torch.no_grad()
@pytest.mark.parametrize("size", [8, 13, 28, 32])
@pytest.mark.parametrize("training", [True, False])
def test_vgg16_is_that_of_torchvision_and_a_hidden_layer(images, size, training):
    mine, features = models.build("vgg16"), torchvision_vgg16_features()
    shake(mine)
    *own, w, scale, shift, mean, var, v, bias = tensors(mine)
    for a, b in zip(own, tensors(features), strict=True):
        b.copy_(a)
    assert w.shape == (512, 512)
    mine.train(training)
    features.train(training)
    x = images[:, :, :size, :size]
    z = features(x)
    assert z.shape == (4, 512, 1, 1)
    statistics = (mean.clone(), var.clone())
    h = F.relu(F.batch_norm(z.flatten(1) @ w.T, *statistics, scale, shift, training))
    torch.testing.assert_close(mine(x), h @ v.T + bias, rtol=1e-4, atol=1e-5)


def test_the_number_of_parameters_of_vgg16():
    features = parameters(torchvision_vgg16_features())
    hidden = 512 * 512 + 2 * 512
    classifier = 512 * 10 + 10
    assert parameters(models.build("vgg16")) == features + hidden + classifier


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("size", range(8, 33))
def test_every_size_from_8_to_32_trains(name, size):
    model = models.build(name, width=3, in_channels=2, classes=5)
    logits = model(torch.randn(2, 2, size, size))  # a batch of 2 in training mode
    assert logits.shape == (2, 5)
    F.cross_entropy(logits, torch.tensor([0, 4])).backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    assert model.eval()(torch.randn(1, 2, size, size)).isfinite().all()


@pytest.mark.parametrize("name", PUBLISHED)
def test_width_scales_every_stage(name):
    """All channels in proportion: convolutions grow with the square of the width."""

    def convolutions(width):
        modules = models.build(name, width=width).modules()
        return [m.weight.numel() for m in modules if isinstance(m, nn.Conv2d)]

    narrow, wide = convolutions(4), convolutions(12)
    assert wide == [narrow[0] * 3, *(9 * n for n in narrow[1:])]
    first = next(m for m in models.build(name, width=5).modules() if isinstance(m, nn.Conv2d))
    assert first.out_channels == 5


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_channels_and_classes(name):
    for channels, classes in ((1, 100), (3, 10)):
        sizes = {"in_channels": channels, "classes": classes, "image_size": 8}
        model = models.build(name, width=2, **sizes)
        assert model(torch.randn(2, channels, 8, 8)).shape == (2, classes)


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_weights_come_from_the_global_generator_alone(name):
    def weights(seed):
        torch.manual_seed(seed)
        return tensors(models.build(name, width=2))

    again = [torch.equal(a, b) for a, b in zip(weights(1), weights(1), strict=True)]
    other = [torch.equal(a, b) for a, b in zip(weights(1), weights(2), strict=True)]
    assert all(again)
    assert not all(other)


def test_the_registry_is_the_folder():
    files = {path.stem for path in Path(models.__file__).parent.glob("*.py")}
    assert set(models.ARCHITECTURES) == {name for name in files if not name.startswith("_")}
    assert {"resnet18", "vgg16"} <= set(models.ARCHITECTURES)


def test_a_file_in_the_folder_is_an_architecture(tmp_path):
    """In a copy of the package: a new file is in the registry, and is built, with no other edit."""
    import shutil
    import subprocess
    import sys

    package, room = tmp_path / "flatbench", Path(models.__file__).parent
    shutil.copytree(room, package / "models")
    for module in ("components.py", "errors.py", "text.py"):
        shutil.copy(room.parent / module, package)
    (package / "__init__.py").write_text("")
    (package / "models" / "linear.py").write_text(
        "from torch import nn\ndef build(width, classes):\n    return nn.Linear(width, classes)\n"
    )
    code = (
        "import sys; from flatbench import models; "
        "assert models.ARCHITECTURES == ('linear', 'resnet18', 'vgg16', 'vit', 'wrn16'); "
        "assert 'torch' not in sys.modules; "
        "assert models.build('linear', width=2).weight.shape == (10, 2)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env={})


@pytest.mark.parametrize("name", ["resnet50", "", "__init__", "../data"])
def test_an_unknown_name_lists_those_that_are_known(name):
    with pytest.raises(UsageError, match=r"architecture must be one of resnet18, vgg16, vit, "):
        models.build(name)
