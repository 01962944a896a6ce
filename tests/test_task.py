"""Tasks of one's own, from a protocol file to the gate: a regression on an .npz, a token model."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from flatbench import cli, data, gate
from flatbench.errors import UsageError
from flatbench.protocols.cases import grid
from flatbench.protocols.reading import load as load_protocol
from flatbench.records import reading
from flatbench.records.store import Store
from flatbench.report import render
from flatbench.training import setup, trainer
from flatbench.training import task as tasks
from tests import tiny

FILE = """
import torch
from torch import nn
from torch.nn import functional as F

def table(classes, in_channels):
    return nn.Sequential(nn.Linear(in_channels, 16), nn.Tanh(), nn.Linear(16, 1), nn.Flatten(0))

class Tokens(nn.Module):
    def __init__(self, vocabulary=7):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 8)
        self.rnn = nn.GRU(8, 8, batch_first=True)
        self.head = nn.Linear(8, vocabulary)
    def forward(self, tokens):
        return self.head(self.rnn(self.embedding(tokens))[0])

def mse(outputs, targets):
    return F.mse_loss(outputs, targets)

def mae(outputs, targets):
    return (outputs - targets).abs().mean()

def next_token(outputs, targets):
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())

def share_right(outputs, targets):
    return (outputs.argmax(2) == targets).float().mean()

def count():
    series = (torch.arange(9) + torch.arange(120)[:, None]) % 7
    train, test = series[:80], series[80:]
    return (train[:, :-1], train[:, 1:]), (test[:, :-1], test[:, 1:])

def not_a_mean(outputs, targets):
    return outputs - targets

def broken(outputs, targets):
    raise RuntimeError("no such\\ntask")
"""
SGD = {"base": "sgd", "lr": 0.05, "momentum": 0.9}
SHARPNESS = {"at_end": ["hessian_max_eigenvalue", "ascent_sharpness"], "examples": 32}


def regression(folder, metric="mae", better="lower", loss="mse", **changes):
    (folder / "task.py").write_text(FILE)
    random = np.random.default_rng(0)
    inputs = random.standard_normal((200, 3))
    targets = np.sin(inputs[:, 0]) + inputs[:, 1] * inputs[:, 2]
    parts = {"train": slice(0, 140), "test": slice(140, 200)}
    arrays = {f"x_{name}": inputs[part] for name, part in parts.items()}
    arrays |= {f"y_{name}": targets[part] for name, part in parts.items()}
    np.savez(folder / "table.npz", **arrays)
    training = {"epochs": 3, "batch_size": 20, "loss": f"./task.py:{loss}"}
    training["metric"] = {"ref": f"./task.py:{metric}", "better": better}
    whole = tiny.table(
        data={"name": "waves", "source": {"npz": "table.npz"}},
        training=training | changes.pop("training", {}),
        model={"width": 4, "architectures": [{"name": "mlp", "build": "./task.py:table"}]},
        optimizers={"sgd": SGD, "sgd+sam": {**SGD, "rho": 0.05}},
        sharpness=SHARPNESS,
    )
    return tiny.write(folder, whole | changes, "waves")


def tokens(folder):
    (folder / "task.py").write_text(FILE)
    training = {"epochs": 3, "batch_size": 16, "loss": "./task.py:next_token"}
    training["metric"] = {"ref": "./task.py:share_right", "better": "higher"}
    whole = tiny.table(
        data={"name": "count", "source": "./task.py:count"},
        training=training,
        model={"width": 4, "architectures": [{"name": "gru", "build": "./task.py:Tokens"}]},
        optimizers={"adam": {"base": "adam", "lr": 0.02}},
        sharpness=SHARPNESS,
    )
    return tiny.write(folder, whole, "count")


def run(path, folder, *options):
    common = ["--protocol", str(path), "--results", str(folder), "--device", "cpu"]
    return cli.main(["run", *common, *options])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The regression's ten seeds, from the command line."""
    folder = tmp_path_factory.mktemp("waves")
    assert run(regression(folder), folder, "--seeds", "0-9") == 0
    return folder


def test_a_regression_trains_and_is_judged_by_its_metric(trained):
    records = reading.collect([trained / "waves"])
    assert len(records) == 20
    for record in records:
        assert (record.status, record.metric, record.test_accuracy) == ("completed", "mae", None)
        assert record.train_error < record.history[0].train_error
        assert record.test_error == record.history[-1].test_error
        assert record.best_test_error == min(epoch.test_error for epoch in record.history)
        assert record.measure_failures == {}
        assert record.sharpness["hessian_max_eigenvalue"] > 0
    kept = json.loads((trained / "waves/records/mlp-sgd-seed0.json").read_text())
    assert {"test_error", "metric"} <= kept.keys()
    assert {"test_score", "best_test_score"} & kept.keys() == set()


def test_its_numbers_are_those_of_a_plain_loop(tmp_path):
    """Loss, metric and evaluation, against torch alone."""
    (case,) = grid(load_protocol(str(regression(tmp_path))), optimizers=["sgd"])
    weights = Store(tmp_path).weights(case)
    record = trainer.train(case, weights=weights)
    dataset = data.load_for(case.protocol)
    model = setup.build_model(case, dataset)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    shuffle, inputs = setup.stream(0, "batches"), dataset.normalise(dataset.train.images)
    steps = 3 * 7
    losses, errors = [], []
    for step in range(steps):
        if step % 7 == 0:
            order = list(data.batches(140, 20, shuffle, "cpu"))
            losses, errors = [], []
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * 0.5 * (1 + np.cos(np.pi * step / steps))
        batch = order[step % 7]
        outputs, targets = model(inputs[batch]), dataset.train.labels[batch]
        loss = F.mse_loss(outputs, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        errors.append((outputs - targets).abs().mean().item())
    assert record.train_loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert record.train_error == pytest.approx(np.mean(errors), rel=1e-5)
    with torch.no_grad():
        outputs = model(dataset.normalise(dataset.test.images))
    assert record.test_loss == pytest.approx(F.mse_loss(outputs, dataset.test.labels).item(), 1e-5)
    off = (outputs - dataset.test.labels).abs().mean().item()
    assert record.test_error == pytest.approx(off, rel=1e-5)


def test_it_is_reported_by_its_metric(trained):
    text = render(reading.collect([trained / "waves"]))
    assert "### Test error (mae): waves, test part" in text
    assert "Gain in test error, SAM − base by seed, lower counted as gain" in text
    assert "accuracy" not in text.replace("more accurate", "").replace("less accurate", "")


def test_every_format_and_figure_of_it_is_drawn(trained, tmp_path):
    for name in ("a.html", "a.tex", "a.md"):
        arguments = [str(trained / "waves"), "--output", str(tmp_path / name)]
        assert cli.main(["report", *arguments, "--figures", str(tmp_path / "figures")]) == 0
    assert "test error (mae)" in (tmp_path / "a.html").read_text()
    assert (tmp_path / "figures" / "waves-test_error.svg").exists()
    assert (tmp_path / "figures" / "waves-gap-sam_sharpness.svg").exists()


def test_it_is_gated_by_its_metric(trained, tmp_path):
    """A worse task fails, by that message; the same one again passes."""
    thresholds = tmp_path / "waves.thresholds.toml"
    assert cli.main(["baseline", str(trained / "waves"), "--output", str(thresholds)]) == 0
    made = gate.read_thresholds(thresholds)
    bound = made.cells["mlp", "sgd"].bounds["test_error"]
    assert bound.side == "at_most"
    records = reading.collect([trained / "waves"])
    assert all(gate.check_case(record, made).passed for record in records)
    (sgd, *_) = (r for r in records if r.optimizer == "sgd")
    worse = gate.check_case(dataclasses.replace(sgd, test_error=10 * bound.limit), made)
    assert not worse.passed
    assert "test_error" in worse.line
    assert "above" in worse.line


def test_a_token_model_trains_to_a_score(tmp_path):
    path = tokens(tmp_path)
    assert run(path, tmp_path, "--keep-weights") == 0
    (record,) = reading.collect([tmp_path / "count"])
    assert record.metric == "share_right"
    assert record.test_score > 2 / 7  # chance is 1 / 7
    assert record.best_test_score >= record.test_score
    assert record.sharpness["ascent_sharpness"] > 0
    assert "### Test score (share_right)" in render([record])


def test_the_live_line_and_the_last_line_show_the_metric(trained, tmp_path, capsys):
    assert run(trained / "waves.toml", trained, "--seeds", "0", "--optimizers", "sgd") == 0
    assert "waves/mlp/sgd/seed0: test error 0." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"loss": "nothing"}, "training.loss: './task.py:nothing': there is no 'nothing' in it"),
        ({"metric": "nothing"}, "training.metric: './task.py:nothing': there is no 'nothing'"),
        ({"loss": "not_a_mean"}, "./task.py:not_a_mean must return a mean over the examples, a"),
        ({"metric": "not_a_mean"}, "./task.py:not_a_mean must return a mean over the examples"),
        ({"loss": "broken"}, "the loss or the metric raised RuntimeError: no such task"),
        ({"metric": "broken"}, "the loss or the metric raised RuntimeError: no such task"),
        ({"training": {"label_smoothing": 0.1}}, "training.label_smoothing must be 0 with a loss"),
    ],
)
def test_a_mistake_is_one_line_before_anything_trains(tmp_path, capsys, changes, says):
    assert run(regression(tmp_path, **changes), tmp_path) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    assert says in error
    assert not (tmp_path / "waves").exists()


def test_a_metric_that_is_not_finite_is_a_divergence(tmp_path):
    path = regression(tmp_path)
    (tmp_path / "task.py").write_text(
        FILE.replace("(outputs - targets).abs().mean()", "outputs.mean() / 0.0 * 0.0")
    )
    (case,) = grid(load_protocol(str(path)), optimizers=["sgd"])
    record = trainer.train(case)
    assert (record.status, record.test_error) == ("diverged", None)
    assert record.reason == "diverged in epoch 1 of 3: the mae is not finite"


def test_accuracy_and_cross_entropy_stay_what_they_were(tmp_path):
    (case, _) = grid(tiny.protocol(tmp_path))
    found = tasks.of(case)
    logits, labels = torch.randn(64, 10), torch.randint(10, (64,))
    assert found.metric_sum(logits, labels) == 100 * (logits.argmax(1) == labels).sum()
    assert torch.equal(found.training_loss(logits, labels), F.cross_entropy(logits, labels))
    assert torch.equal(
        found.loss_sum(logits, labels), F.cross_entropy(logits, labels, reduction="sum")
    )
    smooth = tiny.table(training={"epochs": 1, "batch_size": 8, "label_smoothing": 0.1})
    (case, _) = grid(tiny.protocol(tmp_path, smooth))
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
    assert torch.equal(tasks.of(case).training_loss(logits, labels), expected)
    assert torch.equal(tasks.of(case).loss(logits, labels), F.cross_entropy(logits, labels))


def test_tied_weights_are_kept(tmp_path):
    """Two names for one memory, which safetensors would refuse."""
    (tmp_path / "tied.py").write_text(
        "from torch import nn\n"
        "class Tied(nn.Module):\n"
        "    def __init__(self, classes):\n"
        "        super().__init__()\n"
        "        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)\n"
        "        self.b.weight = self.a.weight\n"
        "        self.head = nn.Linear(64, classes)\n"
        "    def forward(self, x):\n"
        "        return self.head(self.b(self.a(x.flatten(1)).relu()).relu())\n"
    )
    tied = {"name": "tied", "build": "./tied.py:Tied"}
    settings = tiny.protocol(tmp_path, tiny.table(model={"width": 4, "architectures": [tied]}))
    case = grid(settings)[0]
    weights = Store(tmp_path).weights(case)
    assert trainer.train(case, weights=weights).status == "completed"
    from safetensors.torch import load_file

    kept = load_file(weights)
    assert torch.equal(kept["a.weight"], kept["b.weight"])


def test_a_wrong_task_is_a_usage_error(tmp_path):
    (case, *_) = grid(load_protocol(str(regression(tmp_path, loss="nothing"))))
    with pytest.raises(UsageError, match=r"training\.loss"):
        tasks.of(case)
