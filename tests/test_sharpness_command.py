"""`flatbench sharpness`: the measures of a network that somebody has trained."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from flatbench import cli
from flatbench.data.loading import load_for
from flatbench.records.reading import read_one
from tests import tiny
from tests.losses import dense_hessian

NET = """
from torch import nn

def build(classes, in_channels=1, hidden=5):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16 * in_channels, hidden), nn.Tanh(), nn.Linear(hidden, classes)
    )
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A network of one's own, briefly trained weights, and 60 images of 4 × 4 in 3 classes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = random.integers(0, 40, (60, 4, 4)).astype(np.uint8)
    images[np.arange(60), labels, 0] = 255  # so that there is something to learn
    np.savez(tmp_path / "mine.npz", images=images, labels=labels)
    torch.manual_seed(0)
    scope = {}
    exec(NET, scope)
    model = scope["build"](3)
    x = torch.from_numpy(images).float()
    x = ((x - x.mean()) / x.std()).reshape(60, -1)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        cross_entropy(model(x), torch.from_numpy(labels)).backward()
        optimizer.step()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    torch.save(model.state_dict(), tmp_path / "w.pt")
    return tmp_path


def measured(*arguments, weights="w.safetensors"):
    network = ["--model", "./net.py:build", "--data", "mine.npz"]
    return cli.main(["sharpness", *network, "--weights", weights, *arguments])


def test_the_values_are_those_of_the_dense_hessian(folder, capsys):
    measures = "hessian_max_eigenvalue,hessian_trace,ascent_sharpness"
    assert measured("--measures", measures, "--output", "found.json", "--examples", "40") == 0
    said = capsys.readouterr()
    assert said.err == ""
    found = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    values = {v["name"]: v for v in found["values"]}

    protocol = tiny.table(
        data={"name": "given", "source": {"npz": "mine.npz"}},
        model={"width": 4, "architectures": [{"name": "net", "build": "./net.py:build"}]},
        training={"epochs": 1, "batch_size": 2},
    )
    dataset = load_for(tiny.protocol(folder, protocol), torch.device("cpu"), None)
    picked = np.sort(np.random.default_rng(0).permutation(len(dataset.train))[:40])
    scope = {}
    exec(NET, scope)
    model = scope["build"](3)
    model.load_state_dict(torch.load(folder / "w.pt"))
    x, y = dataset.normalise(dataset.train.images[picked]), dataset.train.labels[picked]
    dense = dense_hessian(model.double(), cross_entropy, x.double(), y)
    eigenvalues = np.linalg.eigvalsh(dense.numpy())
    largest, trace = values["hessian_max_eigenvalue"], values["hessian_trace"]
    assert largest["value"] == pytest.approx(eigenvalues[-1], rel=1e-2)
    assert largest["standard_error"] is None
    gap = abs(trace["value"] - eigenvalues.sum())
    assert gap < 6 * trace["standard_error"] + 1e-4 * eigenvalues.sum()
    with torch.no_grad():
        logits = model(x.double())
    assert found["loss"] == pytest.approx(float(cross_entropy(logits, y)), rel=1e-4)
    accuracy = 100 * float((logits.argmax(1) == y).double().mean())
    assert found["outcome"] == pytest.approx(accuracy)
    assert accuracy > 60
    assert "40 training examples of given: loss " in said.out
    assert found["about"]["data_digest"] == dataset.digest


def test_a_state_dict_of_torch_save_is_as_good(folder, capsys):
    assert measured("--measures", "ascent_sharpness") == 0
    first = capsys.readouterr().out.splitlines()[:2]
    assert measured("--measures", "ascent_sharpness", weights="w.pt") == 0
    assert capsys.readouterr().out.splitlines()[:2] == first


def test_all_measures_are_taken_and_their_settings_reach_them(folder, capsys):
    assert measured("--output", "a.json") == 0
    assert measured("--rho", "0.2", "--output", "b.json", "--measures", "ascent_sharpness") == 0
    a, b = (
        {v["name"]: v["value"] for v in json.loads((folder / name).read_text())["values"]}
        for name in ("a.json", "b.json")
    )
    assert len(a) == 8
    assert b["ascent_sharpness"] > 2 * a["ascent_sharpness"] > 0


def test_the_weights_that_run_keeps_give_the_values_of_its_record(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    measures = ["ascent_sharpness", "hessian_max_eigenvalue", "hessian_trace"]
    table = tiny.table(sharpness={"rho": 0.1, "examples": 32, "at_end": measures})
    path = tiny.write(tmp_path, table)
    run = ["run", "--protocol", str(path), "--optimizers", "sgd", "--keep-weights"]
    assert cli.main(run) == 0
    record = read_one(tmp_path / "results/tiny/records/resnet18-sgd-seed0.json")
    weights = tmp_path / "results/tiny/records/resnet18-sgd-seed0.safetensors"
    asked = ["--measures", ",".join(measures), "--seed", "0", "--output", "found.json"]
    assert cli.main(["sharpness", "--protocol", str(path), "--weights", str(weights), *asked]) == 0
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    values = {v["name"]: v["value"] for v in found["values"]}
    errors = {k: v for k, v in record.sharpness.items() if k.endswith("standard_error")}
    assert values == {k: v for k, v in record.sharpness.items() if k not in errors}
    assert errors  # of the trace, which are in the table too
    assert "_clean" in "".join(values)
    # the protocol's settings can be changed, and labels without noise asked for
    asked = ["--rho", "0.5", "--measures", "ascent_sharpness", "--output", "other.json"]
    assert cli.main(["sharpness", "--protocol", str(path), "--weights", str(weights), *asked]) == 0
    (other,) = json.loads((tmp_path / "other.json").read_text(encoding="utf-8"))["values"]
    assert other["value"] > 2 * values["ascent_sharpness_clean"] > 0
    assert "warning: accuracy" in capsys.readouterr().out  # two epochs have taught it little


def test_a_measure_that_fails_says_why(folder, capsys):
    (folder / "flat.py").write_text(
        "import torch\n\n"
        "class Once(torch.autograd.Function):\n"
        "    @staticmethod\n"
        "    def forward(ctx, x):\n"
        "        return x * 1.0\n\n"
        "    @staticmethod\n"
        "    @torch.autograd.function.once_differentiable\n"
        "    def backward(ctx, g):\n"
        "        return g\n\n"
        "def loss(outputs, targets):\n"
        "    return torch.nn.functional.cross_entropy(Once.apply(outputs), targets)\n",
        encoding="utf-8",
    )
    names = "hessian_trace,ascent_sharpness"
    assert measured("--loss", "./flat.py:loss", "--measures", names, "--output", "x.json") == 1
    said = capsys.readouterr()
    assert said.err.startswith("flatbench: hessian_trace could not be measured: RuntimeError")
    assert said.err.count("\n") == 1
    values = json.loads((folder / "x.json").read_text(encoding="utf-8"))["values"]
    assert values[0]["value"] is None
    assert values[1]["value"] is not None


def _change(folder, change):
    state = torch.load(folder / "w.pt")
    change(state)
    torch.save(state, folder / "other.pt")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("1.bias"), "other.pt: 1.bias is missing, which the network has"),
        (lambda s: s.update(extra=torch.ones(1)), "other.pt: extra is no part of the network"),
        (
            lambda s: s.update({"1.weight": torch.ones(5, 48)}),
            "other.pt: 1.weight must be of shape [5, 16], got [5, 48]",
        ),
    ],
)
def test_weights_of_another_network_name_the_first_that_does_not_fit(change, says, folder, capsys):
    _change(folder, change)
    assert measured(weights="other.pt") == 2
    assert capsys.readouterr().err == f"flatbench: {says}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--weights", "nowhere.pt"], "--weights: there is no file nowhere.pt"),
        (["--weights", "net.py"], "net.py: must be a .safetensors, or a state_dict"),
        (["--weights", "cut.safetensors"], "cut.safetensors: must be a .safetensors, or"),
        (["--weights", "list.pt"], "list.pt: must hold a table of tensors"),
        (["--data", "nowhere.npz"], "there is no file"),
        (["--data", "digit"], "sharpness: data.name must be one of digits"),
        (["--model", "./net.py:bild"], "there is no 'bild' in it (did you mean 'build'?)"),
        (["--model-options", "hiden=3"], "'hiden' is unknown"),
        (["--measures", "hessian_trce"], "got 'hessian_trce' (did you mean 'hessian_trace'?)"),
        (["--rho", "-1"], "sharpness.rho must be a number above 0, got -1"),
        (["--protocol", "digits"], "--model must be left out with --protocol"),
        (["--seed", "1"], "--seed must be left out without --protocol"),
        (["--architecture", "vgg16"], "--architecture must be left out without --protocol"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(arguments, says, folder, capsys):
    (folder / "cut.safetensors").write_bytes((folder / "w.safetensors").read_bytes()[:-20])
    torch.save([1, 2], folder / "list.pt")
    assert measured(*arguments, "--output", "found.json") == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (folder / "found.json").exists()


def test_a_network_needs_data(capsys):
    assert cli.main(["sharpness", "--model", "vgg16", "--weights", "w.pt"]) == 2
    expected = "flatbench: --model and --data must be given, or --protocol\n"
    assert capsys.readouterr().err == expected
