"""Networks of the user's own: built, checked before any training, trained, measured, read again."""

import json
import random

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from flatbench import data, execution
from flatbench.cli import main
from flatbench.errors import UsageError
from flatbench.files import write_json
from flatbench.landscape.solutions import solution
from flatbench.protocols.cases import Case
from flatbench.protocols.protocol import Data
from flatbench.records.store import Store
from flatbench.training import measuring, setup, trainer
from tests import tiny

NETS = """
import torch
from torch import nn

DRAWN = torch.randn(3)  # a module may draw when it is imported


class Net(nn.Module):
    def __init__(self, in_channels, classes, image_size, *, hidden=8, activation=nn.ReLU):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, hidden, 3, padding=1)
        self.activation = activation()
        self.out = nn.Linear(hidden * image_size**2, classes)

    def forward(self, x):
        x = self.activation(self.conv(x))
        return self.out(x.view(len(x), -1))  # channels_last memory would forbid this view


def by_width(width, num_classes, depth):
    return nn.Sequential(
        nn.Flatten(), nn.LazyLinear(width) if depth == 0 else nn.Linear(64, num_classes)
    )


def of_channels_last(in_channels, classes):
    net = nn.Sequential(nn.Conv2d(in_channels, 4, 8), nn.Flatten(), nn.Linear(4, classes))
    return net.to(memory_format=torch.channels_last)


class Broken(nn.Module):
    def __init__(self, how, classes):
        super().__init__()
        self.how, self.out = how, nn.Linear(64, classes)

    def forward(self, x):
        y = self.out(x.flatten(1))
        if self.how == "raises":
            raise LookupError("of\\nits own")
        if self.how == "backward":
            y.register_hook(self.refuse)
        return {
            "pair": (y, y),
            "wide": torch.cat([y, y], 1),
            "whole": y.long(),
            "detached": y.detach(),
            "backward": y,
        }[self.how]

    def refuse(self, gradient):
        raise ArithmeticError("no way back")


def size(outputs, targets):
    return outputs.square().mean()


def seven():
    return 7


def refuses(classes):
    raise ValueError("not today")


number = 7
"""

VIT = """
import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return x + F.scaled_dot_product_attention(q, k, v)


class MyViT(nn.Module):
    def __init__(self, channels, classes, size, dim, depth):
        super().__init__()
        self.patches = nn.Conv2d(channels, dim, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, dim))
        self.blocks = nn.Sequential(*(Attention(dim) for _ in range(depth)))
        self.out = nn.Linear(dim, classes)

    def forward(self, x):
        x = self.patches(x).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        return self.out(self.blocks(x)[:, 0])


def build(in_channels, classes, image_size, dim=8, depth=2):
    return MyViT(in_channels, classes, image_size, dim, depth)
"""


def case_of(folder, *architectures, **sections):
    """The first case of a protocol beside a file of networks."""
    (folder / "nets.py").write_text(NETS)
    (folder / "myvit.py").write_text(VIT)
    model = {"width": 4, "architectures": list(architectures)}
    settings = tiny.protocol(folder, tiny.table(model=model, **sections))
    return Case(settings, settings.model.names[0], "sgd", 0)


def own(build, name="own", **options):
    return {"name": name, "build": build, **({"options": options} if options else {})}


@pytest.fixture(scope="module")
def digits():
    return data.load(Data("digits", train_examples=200))


def weights(model):
    return [t.clone() for t in model.state_dict().values()]


def equal(one, two):
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


# --- building


def test_a_class_of_a_file_is_called_with_what_it_takes(tmp_path, digits):
    model = setup.build_model(case_of(tmp_path, own("./nets.py:Net", hidden=5)), digits)
    assert model.conv.weight.shape == (5, 1, 3, 3)
    assert model.out.weight.shape == (10, 5 * 64)


def test_references_within_options_are_resolved(tmp_path, digits):
    tanh = {"ref": "torch.nn:Tanh"}
    model = setup.build_model(case_of(tmp_path, own("./nets.py:Net", activation=tanh)), digits)
    assert isinstance(model.activation, torch.nn.Tanh)


def test_num_classes_is_another_name_of_classes(tmp_path, digits):
    model = setup.build_model(case_of(tmp_path, own("./nets.py:by_width", depth=1)), digits)
    assert model[1].out_features == 10


def test_a_builder_of_any_keywords_gets_num_classes_unless_an_option_says_it(tmp_path, digits):
    found = own("torchvision.models:resnet18")
    assert setup.build_model(case_of(tmp_path, found), digits).fc.out_features == 10
    found = own("torchvision.models:resnet18", num_classes=3)
    assert setup.build_model(case_of(tmp_path, found), digits).fc.out_features == 3


def test_ours_take_options_too(tmp_path, digits):
    found = case_of(tmp_path, own("wrn16", name="wrn-wide", widening=2))
    assert setup.build_model(found, digits).stages[0].conv1.out_channels == 32
    found = case_of(tmp_path, own("resnet18", name="wide", width=6))
    assert setup.build_model(found, digits).stages[0].conv1.out_channels == 6


def test_the_weights_are_the_seeds_whatever_came_before(tmp_path, digits):
    """The first call imports the file, which draws; the others do not."""
    case = case_of(tmp_path, own("./nets.py:Net"))
    first = weights(setup.build_model(case, digits))
    torch.randn(5)
    assert equal(weights(setup.build_model(case, digits)), first)
    other = Case(case.protocol, case.architecture, case.optimizer, 1)
    assert not equal(weights(setup.build_model(other, digits)), first)


def test_ours_are_channels_last_and_others_as_they_are(tmp_path, digits):
    def first(*architectures):
        model = setup.build_model(case_of(tmp_path, *architectures), digits)
        return next(p for p in model.parameters() if p.ndim == 4 and p.shape[1] > 1)

    assert first("resnet18").is_contiguous(memory_format=torch.channels_last)
    assert first(own("torchvision.models:resnet18")).is_contiguous()
    case = case_of(tmp_path, own("./nets.py:of_channels_last"))
    kept = setup.build_model(case, digits)[0].weight
    assert kept.stride() == kept.clone(memory_format=torch.channels_last).stride()


MADE_WRONG = [
    (own("./nets.py:Net", hiden=3), "'hiden' is unknown: ./nets.py:Net takes hidden, activation"),
    (own("./nets.py:by_width"), "'depth' is missing: ./nets.py:by_width takes depth"),
    (own("vgg16", depth=2), "'depth' is unknown: vgg16 takes no options"),
    (own("./nets.py:seven"), "./nets.py:seven must return a torch.nn.Module, got int"),
    (own("./nets.py:number"), "./nets.py:number: TypeError: 'int' object is not callable"),
    (own("./nets.py:refuses"), "./nets.py:refuses: ValueError: not today"),
    (own("./nets.py:Nett"), "'./nets.py:Nett': there is no 'Nett' in it (did you mean 'Net'?)"),
    (own("vit", patch=3), "vit: ValueError: patch must divide the images' 8×8 pixels, got 3"),
    (own("./nets.py:by_width", depth=0), "the network must not have lazy parameters"),
]
WRONG = [
    (
        own("torchvision.models:resnet18"),
        "the network raised RuntimeError: Given groups=1, weight of size [64, 3, 7, 7], "
        "expected input[2, 1, 8, 8] to have 3 channels, but got 1 channels instead",
    ),
    (own("./nets.py:Broken", how="raises"), "the network raised LookupError: of its own"),
    (own("./nets.py:Broken", how="pair"), "the outputs must be floats of shape [2, 10], got tuple"),
    (
        own("./nets.py:Broken", how="wide"),
        "the outputs must be floats of shape [2, 10], got float32 of shape [2, 20]",
    ),
    (
        own("./nets.py:Broken", how="whole"),
        "the outputs must be floats of shape [2, 10], got int64 of shape [2, 10]",
    ),
    (
        own("./nets.py:Broken", how="detached"),
        "at least one parameter must get a gradient, none does",
    ),
    (
        own("./nets.py:Broken", how="backward"),
        "the backward pass raised ArithmeticError: no way back",
    ),
]


@pytest.mark.parametrize(("architecture", "expected"), MADE_WRONG)
def test_what_cannot_be_built_is_one_line(tmp_path, digits, architecture, expected):
    with pytest.raises(UsageError) as caught:
        setup.check_model(case_of(tmp_path, architecture), digits)
    assert str(caught.value) == f"protocol tiny: architecture 'own': {expected}"


@pytest.mark.parametrize(("architecture", "expected"), WRONG)
def test_what_does_not_fit_the_images_is_one_line(tmp_path, digits, architecture, expected):
    with pytest.raises(UsageError) as caught:
        setup.check_model(case_of(tmp_path, architecture), digits)
    where = "protocol tiny: architecture 'own': images [2, 1, 8, 8]"
    assert str(caught.value) == f"{where}: {expected}"


def test_another_loss_may_take_outputs_of_any_shape(tmp_path, digits):
    """But they are one tensor of floats, and the loss takes them."""
    training = {"epochs": 1, "batch_size": 64, "loss": "./nets.py:size"}
    refused = {
        "pair": "the outputs must be floats, got tuple",
        "whole": r"the outputs must be floats, got int64 of shape \[2, 10\]",
        "detached": "at least one parameter must get a gradient",
    }
    for how in ("wide", *refused):
        case = case_of(tmp_path, own("./nets.py:Broken", how=how), training=training)
        if how in refused:
            with pytest.raises(UsageError, match=refused[how]):
                setup.check_model(case, digits)
        else:
            setup.check_model(case, digits)


def test_the_check_leaves_chance_as_it_was(tmp_path, digits):
    case = case_of(tmp_path, own("./nets.py:Net"))
    setup.check_model(case, digits)  # its file is imported, which draws
    torch.manual_seed(5)
    before, python = torch.get_rng_state(), random.getstate()
    setup.check_model(case, digits)
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python


def test_the_check_comes_before_anything_trains_once_an_architecture(tmp_path, monkeypatch):
    case = case_of(tmp_path, "resnet18", own("./nets.py:Broken", how="wide"))
    cases = [Case(case.protocol, name, "sgd", s) for name in ("resnet18", "own") for s in (0, 1)]
    seen, check = [], setup.check_model
    monkeypatch.setattr(setup, "check_model", lambda c, d: (seen.append(c.id), check(c, d)))
    store = Store(tmp_path / "results")
    with pytest.raises(UsageError, match=r"got float32 of shape \[2, 20\]"):
        execution.start(cases, execution.Machine("cpu"), store).__enter__()
    assert [name.split("/")[1] for name in seen] == ["resnet18", "own"]
    assert not store.results.exists()


# --- from a protocol file to a landscape


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The results of a protocol file with two networks of its own, one of ours, and an .npz."""
    folder = tmp_path_factory.mktemp("own")
    listed = (
        own("./myvit.py:build", "mine", depth=1),
        own("./nets.py:Net", "viewing", hidden=2),
        own("vit", "small", dim=6, depth=1),
    )
    digits = load_digits()
    images = digits.images.astype(np.uint8)
    np.savez(folder / "mine.npz", images=images, labels=digits.target)
    case = case_of(
        folder,
        *listed,
        data={"name": "mine", "source": {"npz": "mine.npz"}, "train_examples": 100},
        training={"epochs": 1, "batch_size": 64},
        optimizers={"sgd+sam": {**tiny.SGD, "rho": 0.05}, "sgd": tiny.SGD},
        sharpness={"at_end": ["hessian_max_eigenvalue"], "examples": 16},
    )
    command = ["run", "--protocol", str(folder / "tiny.toml"), "--results", str(folder / "results")]
    assert main([*command, "--keep-weights", "--workers", "1", "--device", "cpu"]) == 0
    return folder, case


@pytest.mark.parametrize("name", ["mine", "viewing", "small"])
@pytest.mark.parametrize("row", ["sgd", "sgd+sam"])
def test_it_trains_is_measured_and_its_landscape_is_read(trained, name, row):
    folder, case = trained
    case, store = Case(case.protocol, name, row, 0), Store(folder / "results")
    record = json.loads(store.record(case).read_text())
    assert record["status"] == "completed"
    assert record["measure_failures"] == {}
    assert record["sharpness"]["hessian_max_eigenvalue"] > 0
    surface = solution(case, store, torch.device("cpu"), None).surface
    again = measuring.MEASURES["hessian_max_eigenvalue"](surface, case.protocol.sharpness)
    assert again.value == pytest.approx(record["sharpness"]["hessian_max_eigenvalue"], rel=1e-6)


def test_a_landscape_of_other_code_is_refused(trained):
    folder, case = trained
    store, path = Store(folder / "results"), folder / "results" / "tiny" / "records"
    record = path / "mine-sgd-seed0.json"
    whole = record.read_text()
    table = json.loads(whole)
    now = table["provenance"]["components"]["./myvit.py:build"]
    table["provenance"]["components"]["./myvit.py:build"] = "./myvit.py 0123456789ab"
    try:
        record.write_text(json.dumps(table))
        with pytest.raises(UsageError) as caught:
            solution(Case(case.protocol, "mine", "sgd", 0), store, torch.device("cpu"), None)
    finally:
        record.write_text(whole)
    assert str(caught.value) == (
        f'{record}: provenance.components../myvit.py:build must be "{now}", '
        'got "./myvit.py 0123456789ab": the network\'s code has changed since; '
        "train the case again"
    )


@pytest.mark.parametrize(
    "architecture",
    [
        own("torchvision.models:shufflenet_v2_x0_5", "shuffle"),
        own(
            "torchvision.models:VisionTransformer",
            "tv-vit",
            patch_size=4,
            num_layers=1,
            num_heads=2,
            hidden_dim=6,
            mlp_dim=8,
        ),
    ],
)
def test_torchvisions_networks_on_colour_images(tmp_path, architecture):
    digits = load_digits()
    images = digits.images[..., None].astype(np.uint8).repeat(3, axis=3)
    np.savez(tmp_path / "colour.npz", images=images, labels=digits.target)
    case = case_of(
        tmp_path,
        architecture,
        data={"name": "colour", "source": {"npz": "colour.npz"}, "train_examples": 300},
        training={"epochs": 1, "batch_size": 64},
        sharpness={"at_end": ["hessian_max_eigenvalue"], "examples": 8},
    )
    setup.check_model(case, data.load_for(case.protocol))
    store = Store(tmp_path / "results")
    record = trainer.train(case, weights=store.weights(case))
    assert record.status == "completed"
    assert record.measure_failures == {}
    assert record.sharpness["hessian_max_eigenvalue"] > 0
    (source,) = record.provenance["components"].values()
    assert source.startswith("torchvision ")
    write_json(store.record(case), record.to_json())
    surface = solution(case, store, torch.device("cpu"), None).surface
    again = measuring.MEASURES["hessian_max_eigenvalue"](surface, case.protocol.sharpness)
    assert again.value == pytest.approx(record.sharpness["hessian_max_eigenvalue"], rel=1e-6)
