"""`flatbench sharpness`: the measures of a network that somebody has trained."""

import io
import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from flatbench import cli, models
from flatbench.data.loading import load_for
from flatbench.errors import UsageError
from flatbench.records.reading import read_one
from flatbench.sharpness import hessian_max_eigenvalue
from flatbench.study import trained
from flatbench.study.weights import load_into
from flatbench.training import measuring
from tests import tiny
from tests.losses import dense_hessian

NET = """
from torch import nn

def build(classes, in_channels=1, hidden=5):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16 * in_channels, hidden), nn.Tanh(), nn.Linear(hidden, classes)
    )

def lazy(classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))

def narrow(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(15, classes))
"""


def net():
    scope = {}
    exec(NET, scope)
    return scope["build"](3)


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
    model = net()
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


def data_of(folder):
    protocol = tiny.table(
        data={"name": "given", "source": {"npz": "mine.npz"}},
        training={"epochs": 1, "batch_size": 2},
    )
    return load_for(tiny.protocol(folder, protocol), torch.device("cpu"), None)


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

    dataset = data_of(folder)
    picked = np.sort(np.random.default_rng(0).permutation(len(dataset.train))[:40])
    model = net()
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
    assert "40 training examples of mine.npz: loss " in said.out
    assert found["about"]["data_digest"] == dataset.digest


def test_a_state_dict_of_torch_save_is_as_good(folder, capsys):
    assert measured("--measures", "ascent_sharpness") == 0
    first = capsys.readouterr().out.splitlines()[:2]
    assert measured("--measures", "ascent_sharpness", weights="w.pt") == 0
    assert capsys.readouterr().out.splitlines()[:2] == first
    assert first[0].startswith("48 training examples of mine.npz: loss 0.")


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
    run = ["run", "--protocol", str(path), "--optimizers", "sgd", "--seeds", "1", "--keep-weights"]
    assert cli.main(run) == 0
    record = read_one(tmp_path / "results/tiny/records/resnet18-sgd-seed1.json")
    weights = tmp_path / "results/tiny/records/resnet18-sgd-seed1.safetensors"
    asked = ["--measures", ",".join(measures), "--seed", "1", "--output", "found.json"]
    assert cli.main(["sharpness", "--protocol", str(path), "--weights", str(weights), *asked]) == 0
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    values = {v["name"]: v["value"] for v in found["values"]}
    errors = {
        f"{v['name']}_standard_error": v["standard_error"]
        for v in found["values"]
        if v["standard_error"] is not None
    }
    assert values | errors == record.sharpness
    assert len(errors) == 2  # of the trace, with both labels
    assert [v["name"] for v in found["values"] if v["tolerance"]] == [
        "hessian_max_eigenvalue",
        "hessian_max_eigenvalue_clean",
    ]
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
        (
            lambda s: [s.update({f"module.{name}": s.pop(name)}) for name in list(s)],
            "other.pt: 1.weight is missing, which the network has; it has module.1.weight",
        ),
        (
            lambda s: s.update(epoch=3, state_dict={name: s.pop(name) for name in list(s)}),
            "other.pt: must hold a table of tensors, as state_dict() gives it, got int as its "
            "'epoch'; save its 'state_dict' alone",
        ),
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
        (["--weights", "whole.pt"], "whole.pt: must be a .safetensors, or a state_dict"),
        (["--weights", "list.pt"], "list.pt: must hold a table of tensors, as state_dict() gives"),
        (["--weights", "nothing.pt"], "nothing.pt: must hold a table of tensors"),
        (["--data", "nowhere.npz"], "--data: there is no file nowhere.npz"),
        (["--data", "digit"], "must be an .npz file, or one of digits, fashion-mnist, cifar10, "),
        (["--data", "digit"], "got 'digit' (did you mean 'digits'?)"),
        (["--data", "empty.npz"], "empty.npz: must hold train_images, train_labels, "),
        (["--model", "resnet19"], "--model must be one of resnet18, vgg16, "),
        (["--model", "resnet19"], "got 'resnet19' (did you mean 'resnet18'?)"),
        (["--model", "./net.py:lazy"], "the network must not have lazy parameters"),
        (["--model", "./net.py:narrow"], "the network raised RuntimeError: mat1 and mat2 shapes"),
        (["--model", "./net.py:bild"], "there is no 'bild' in it (did you mean 'build'?)"),
        (["--model-options", "hiden=3"], "'hiden' is unknown"),
        (["--measures", "hessian_trce"], "got 'hessian_trce' (did you mean 'hessian_trace'?)"),
        (["--rho", "-1"], "sharpness.rho must be a number above 0, at most 1e6, got -1"),
        (["--protocol", "digits"], "--model must be left out with --protocol"),
        (["--measures", "m_sharpness,m_sharpness"], "m_sharpness is given more than once"),
        (["--examples-seed", "-1"], "--examples-seed: must be a whole number of at least 0"),
        (["--seed", "1"], "--seed must be left out without --protocol"),
        (["--architecture", "vgg16"], "--architecture must be left out without --protocol"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(arguments, says, folder, capsys):
    (folder / "cut.safetensors").write_bytes((folder / "w.safetensors").read_bytes()[:-20])
    torch.save([1, 2], folder / "list.pt")
    torch.save({}, folder / "nothing.pt")
    torch.save(torch.nn.Linear(2, 2), folder / "whole.pt")  # whose class would be run
    np.savez(folder / "empty.npz", other=np.zeros(3))
    assert measured(*arguments, "--output", "found.json") == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (folder / "found.json").exists()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_damaged_weights_are_told_in_one_line(name, folder):
    whole = (folder / name).read_bytes()
    random = np.random.default_rng(0)
    path, told = folder / f"damaged.{name}", 0
    for _ in range(150):
        damaged = bytearray(whole)
        # where the tables are; a number that has changed elsewhere cannot be seen
        for place in random.integers(0, min(len(whole), 1000), 4):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged[: random.integers(len(whole) // 2, 2 * len(whole))])
        try:
            load_into(net(), path, torch.device("cpu"))
        except UsageError as error:
            told += str(error).startswith(str(path))
    assert told > 100


def by_hand(weights, inputs, labels):
    """Return loss and accuracy in percent."""
    model = net()
    model.load_state_dict(weights)
    with torch.no_grad():
        logits = model(inputs)
    accuracy = 100 * float((logits.argmax(1) == labels).double().mean())
    return float(cross_entropy(logits, labels)), accuracy


def test_inputs_are_left_as_they_are_where_that_is_asked_for(folder, capsys):
    with np.load(folder / "mine.npz") as file:
        images, labels = file["images"] / 255.0, file["labels"]
    names = ("train_images", "train_labels", "test_images", "test_labels")
    both = (images[..., None], labels, images[..., None], labels)
    np.savez(folder / "mine.npz", **dict(zip(names, both, strict=True)))
    x, y = torch.from_numpy(images).float(), torch.from_numpy(labels)
    weights = torch.load(folder / "w.pt")
    arguments = ["--measures", "ascent_sharpness", "--output", "found.json"]
    for more, inputs, said in (
        (["--no-normalisation"], x, "inputs: as they are in the data, not normalised\n"),
        ([], (x - x.mean()) / x.std(), "inputs: normalised by channel, with the training part's "),
    ):
        assert measured(*arguments, *more) == 0
        found = json.loads((folder / "found.json").read_text(encoding="utf-8"))
        loss, accuracy = by_hand(weights, inputs, y)
        assert found["loss"] == pytest.approx(loss, rel=1e-2)
        assert found["outcome"] == pytest.approx(accuracy)
        assert said in capsys.readouterr().out
    assert f"mean {x.mean():.4g} and std " in found["inputs"]
    assert found["about"]["normalised_with"]["mean"] == pytest.approx([float(x.mean())])


def test_which_examples_can_be_chosen(folder):
    dataset = data_of(folder)
    weights, losses = torch.load(folder / "w.pt"), []
    for seed in (0, 5):
        some = ["--examples", "10", "--examples-seed", str(seed), "--output", "found.json"]
        assert measured("--measures", "ascent_sharpness", *some) == 0
        found = json.loads((folder / "found.json").read_text(encoding="utf-8"))
        picked = np.sort(np.random.default_rng(seed).permutation(len(dataset.train))[:10])
        x = dataset.normalise(dataset.train.images[picked])
        losses.append(by_hand(weights, x, dataset.train.labels[picked])[0])
        assert found["loss"] == pytest.approx(losses[-1], rel=1e-4)
        assert found["about"]["settings"]["examples_seed"] == seed
    assert losses[0] != losses[1]


def test_where_batchnorms_statistics_come_from_can_be_chosen(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = models.build("resnet18", width=4, in_channels=1, image_size=8)
    save_file(model.state_dict(), "w.safetensors")
    asked = ["--model", "resnet18", "--data", "digits", "--measures", "ascent_sharpness"]
    asked += ["--width", "4", "--weights", "w.safetensors", "--examples", "32"]
    values = []
    for kind in ("eval", "train"):
        assert cli.main(["sharpness", *asked, "--batchnorm", kind]) == 0
        values.append(float(capsys.readouterr().out.splitlines()[-1].split()[1]))
    assert values[0] != values[1]


def test_a_network_and_data_of_ours(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = models.build("vit", width=16, in_channels=1, image_size=8, depth=1)
    save_file(model.state_dict(), "w.safetensors")
    options = ["--width", "16", "--model-options", "depth=1", "--weights", "w.safetensors"]
    asked = ["--model", "vit", "--data", "digits", "--measures", "ascent_sharpness"]
    assert cli.main(["sharpness", *asked, *options]) == 0
    said = capsys.readouterr().out
    assert said.startswith("256 training examples of digits: loss 2.")
    assert "warning: accuracy " in said


def test_a_table_of_many_columns_is_not_printed(folder, capsys):
    random = np.random.default_rng(0)
    inputs = random.normal(size=(60, 16)).astype(np.float32)
    np.savez(folder / "mine.npz", images=inputs, labels=np.arange(60) % 3)
    assert measured("--measures", "ascent_sharpness", "--model-options", "in_channels=1") == 0
    expected = "inputs: normalised by column, with mean and std of the training part\n"
    assert expected in capsys.readouterr().out


def test_the_table_says_what_each_value_cost_and_how_far_it_may_be(folder, capsys):
    names = "ascent_sharpness,m_sharpness,hessian_max_eigenvalue,hessian_trace"
    assert measured("--measures", names, "--output", "found.json") == 0
    values = json.loads((folder / "found.json").read_text(encoding="utf-8"))["values"]
    ascent, grouped, largest, trace = values
    assert ascent["gradient_evaluations"] == pytest.approx(4 / 3)
    # by the eigenvalue's products, and five probes
    assert largest["gradient_evaluations"] % 4 == 1
    assert trace["gradient_evaluations"] == largest["gradient_evaluations"] + 2 * 5
    assert largest["tolerance"] == 0.01
    assert [v["tolerance"] for v in (ascent, grouped, trace)] == [None] * 3
    assert ascent["standard_error"] is None
    assert grouped["standard_error"] > 0
    assert trace["interval"] == pytest.approx(2.776 * trace["standard_error"], rel=1e-3)  # t of 4
    table = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert table[0].split() == ["measure", "value", "95", "%", "interval", "gradients", "seconds"]
    assert table[1].split()[:4] == ["ascent_sharpness", f"{ascent['value']:.4g}", "none", "1.3"]
    assert table[2].split()[2:4] == ["±", f"{grouped['interval']:.2g}"]
    assert table[3].split()[2:6] == ["none,", "within", "1", "%"]
    gradients = f"{trace['gradient_evaluations']:.1f}"
    assert table[4].split()[2:5] == ["±", f"{trace['interval']:.2g}", gradients]


def test_what_has_not_converged_is_shown_and_said(folder, capsys, monkeypatch):
    def short(surface, rule):
        return hessian_max_eigenvalue(surface, tolerance=1e-12, max_products=2)

    monkeypatch.setitem(measuring.MEASURES, "hessian_max_eigenvalue", short)
    assert measured("--measures", "hessian_max_eigenvalue") == 1
    said = capsys.readouterr()
    why = "it has not converged: the value is a bound from below\n"
    assert said.err == f"flatbench: hessian_max_eigenvalue could not be measured: {why}"
    assert "within" not in said.out
    assert float(said.out.splitlines()[-1].split()[1]) > 0


def test_weights_that_are_no_numbers(folder, capsys):
    state = torch.load(folder / "w.pt")
    state["1.weight"][0, 0] = torch.nan
    torch.save(state, folder / "nan.pt")
    asked = ["--measures", "ascent_sharpness", "--output", "found.json"]
    assert measured(*asked, weights="nan.pt") == 1
    said = capsys.readouterr()
    assert "warning: the loss is not finite: do the weights hold numbers?" in said.out
    assert said.err == "flatbench: ascent_sharpness could not be measured: it is not finite\n"
    found = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    assert found["loss"] is None
    assert found["values"][0]["value"] is None


@pytest.mark.parametrize(
    ("counts", "right", "warns"),
    [
        ([128, 128], 0.70, False),
        ([128, 128], 0.52, True),
        ([230, 26], 0.90, True),  # one name for all is as good
        ([230, 26], 0.96, False),
        ([26] * 10, 0.13, True),
        ([26] * 10, 0.15, False),
        ([1, 1, 1, 1], 0.25, True),
    ],
)
def test_chance_is_the_most_frequent_class(counts, right, warns):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    said = trained._warning(1.0, 100 * right, labels)
    assert (said is not None) == warns
    if warns:
        assert f"gets {100 * max(counts) / sum(counts):.1f} %." in said


def test_a_terminal_shows_how_far_it_has_come(folder, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    assert measured("--measures", "ascent_sharpness,m_sharpness") == 0
    assert "measures:   0%" in sys.stderr.getvalue()
    assert "0/2" in sys.stderr.getvalue()


@pytest.mark.parametrize(
    "option", [["--width", "8"], ["--model-options", "depth=1"], ["--no-normalisation"]]
)
def test_a_protocol_says_what_network_and_data_are(option, capsys):
    assert cli.main(["sharpness", "--protocol", "digits", "--weights", "w.pt", *option]) == 2
    error = capsys.readouterr().err
    assert error == f"flatbench: {option[0]} must be left out with --protocol\n"


def test_a_network_needs_data(capsys):
    assert cli.main(["sharpness", "--model", "vgg16", "--weights", "w.pt"]) == 2
    expected = "flatbench: --model and --data must be given, or --protocol\n"
    assert capsys.readouterr().err == expected


def test_a_measure_with_normalised_logits_is_asked_for_by_name(folder, capsys):
    names = "ascent_sharpness,ascent_sharpness_normalised"
    assert measured("--measures", names, "--output", "found.json") == 0
    values = json.loads((folder / "found.json").read_text(encoding="utf-8"))["values"]
    assert [v["name"] for v in values] == names.split(",")
    assert values[0]["value"] != values[1]["value"]
    assert measured("--measures", "m_sharpnes_normalised") == 2
    assert "or one of them with _normalised added" in capsys.readouterr().err
