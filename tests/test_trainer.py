"""Training: the same bits again; against a plain loop and torch's schedules; off the rails.

Checkpoints have a file of their own.
"""

import contextlib
import dataclasses
import gc
import json
import math
import time
import weakref
from dataclasses import dataclass, field

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from flatbench import data, models
from flatbench.errors import UsageError
from flatbench.files import write_json
from flatbench.optim import SAM
from flatbench.protocols.cases import grid
from flatbench.protocols.protocol import Data
from flatbench.records.reading import from_json
from flatbench.training import devices, graph, setup, step, trainer
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_thread")

SGD, ADAM = tiny.SGD, tiny.ADAM


def case(folder, row=None, seed=0, **sections):
    """The tiny protocol's case of one row (by default its only one)."""
    rows = None if row is None else [row]
    return grid(tiny.protocol(folder, tiny.table(**sections)), None, rows, [seed])[0]


def one_row(**row):
    return {"row": row}


# --- the same again


def test_a_seed_repeats_bit_for_bit_whatever_came_before(tmp_path):
    sam = case(tmp_path, "sgd+sam", data={"name": "digits", "augmentation": "crop-flip"})
    first = trainer.train(sam)
    torch.manual_seed(99)
    torch.randn(3)
    assert trainer.train(sam).without_timings() == first.without_timings()
    other = trainer.train(dataclasses.replace(sam, seed=1))
    assert other.history[0].train_loss != first.history[0].train_loss


@dataclass
class Chance:
    """Everything that a run drew by chance."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    labels: Tensor = field(default_factory=lambda: torch.empty(0))
    epochs: list[list[Tensor]] = field(default_factory=list)  # the indices of each batch
    images: list[Tensor] = field(default_factory=list)  # of each batch, as augmented


def watched(run, build=None, **options):
    """Train, and keep what flatbench's own random functions gave."""
    seen = Chance()
    builder = models.builder
    noisy_labels, batches, augment = data.noisy_labels, data.batches, data.augment

    def watch_builder(reference, given, options, **named):
        make = builder(reference, given, options, **named)

        def watch_build():
            model = make() if build is None else build(given)
            seen.weights = {name: t.clone() for name, t in model.state_dict().items()}
            return model

        return watch_build

    def watch_labels(*arguments, **named):
        seen.labels = noisy_labels(*arguments, **named)
        return seen.labels

    def watch_batches(*arguments, **named):
        seen.epochs.append(list(batches(*arguments, **named)))
        return iter(seen.epochs[-1])

    def watch_augment(*arguments, **named):
        seen.images.append(augment(*arguments, **named))
        return seen.images[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "builder", watch_builder)
        patch.setattr(data, "noisy_labels", watch_labels)
        patch.setattr(data, "batches", watch_batches)
        patch.setattr(data, "augment", watch_augment)
        record = trainer.train(run, **options)
    return record, seen


def smooth(given):
    """A small network without kinks, in place of the real ones.

    On those, float32 and float64 part by per cents within a few steps: BatchNorm after channels
    that are dead holds activations at a ReLU's kink, and blows their rounding errors up.
    """
    width, in_channels, classes = given["width"], given["in_channels"], given["classes"]
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.GELU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(2 * width * 16, 16, bias=False),
        nn.BatchNorm1d(16),
        nn.Tanh(),
        nn.Linear(16, classes),
    )


ROWS = {
    "sgd": SGD,
    "sgd+sam": {**SGD, "rho": 0.05},
    "adam": ADAM,
    "adam+asam": {**ADAM, "rho": 0.5, "adaptive": True, "eta": 0.01},
}


def test_rows_of_one_seed_see_the_same_noise_weights_and_batches(tmp_path):
    sections = {
        "data": {"name": "digits", "label_noise": 0.4, "augmentation": "crop", "validation": 0.8},
        "optimizers": ROWS,
    }
    sgd, *others = (watched(case(tmp_path, row, **sections))[1] for row in ROWS)
    for other in others:
        assert torch.equal(other.labels, sgd.labels)
        for name, tensor in sgd.weights.items():
            assert torch.equal(other.weights[name], tensor)
        for one, two in zip(sgd.epochs, other.epochs, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(sgd.images, other.images, strict=True))
    again = watched(case(tmp_path, "sgd", seed=1, **sections))[1]
    assert not torch.equal(again.labels, sgd.labels)
    assert not torch.equal(again.epochs[0][0], sgd.epochs[0][0])
    assert not torch.equal(again.images[0], sgd.images[0])
    assert not torch.equal(again.weights["classifier.weight"], sgd.weights["classifier.weight"])


@pytest.mark.parametrize("base", [SGD, ADAM, {**ADAM, "base": "adamw"}])
def test_sam_with_next_to_no_radius_is_its_base(tmp_path, base):
    rows = {"base": base, "base+sam": {**base, "rho": 1e-12}}
    plain, sam = (watched(case(tmp_path, row, optimizers=rows), smooth)[0] for row in rows)
    for one, two in zip(plain.history, sam.history, strict=True):
        assert two.train_loss == pytest.approx(one.train_loss, rel=1e-5)
        assert two.test_loss == pytest.approx(one.test_loss, rel=1e-5)
        assert two.sam_sharpness == pytest.approx(one.sam_sharpness, rel=1e-5)
        assert two.gradient_evaluations == 2 * one.gradient_evaluations


# --- against a plain loop


def in_a_plain_loop(run, seen):
    """The case once more, in as few lines as it takes: its epochs and final weights.

    Of flatbench it uses the images; the optimizer, the schedule, the ascent and
    its undoing, the losses and the sums are torch's or written out.
    """
    row, training, rule = run.row, run.protocol.training, run.protocol.sharpness
    smoothing = training.label_smoothing if row.label_smoothing is None else row.label_smoothing
    parts = data.load(run.protocol.data)
    pixels = parts.train.images.double()
    mean, std = pixels.mean((0, 1, 2)), pixels.std((0, 1, 2), correction=0)
    evaluated = parts.test if run.protocol.data.evaluation == "test" else parts.validation

    def tensor(images):
        return ((images.double() - mean) / std).float().permute(0, 3, 1, 2).contiguous()

    given = {"width": run.protocol.model.width, "in_channels": 1, "classes": 10}
    model = smooth(given)
    model.load_state_dict(seen.weights)
    ws = list(model.parameters())
    bases = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    names = ("momentum", "nesterov") if row.optimizer == "sgd" else ("betas",)
    options = {name: getattr(row, name) for name in (*names, "lr", "weight_decay")}
    optimizer = bases[row.optimizer](ws, foreach=False, **options)
    steps = run.epochs * len(seen.epochs[0])
    if training.schedule == "cosine":
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    else:
        drops = [round(m * steps) for m in training.milestones]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, drops, training.decay)

    def norm(adaptive, eta):
        ts = [w.detach().abs() + eta if adaptive else torch.ones_like(w) for w in ws]
        return math.sqrt(sum(float((t * w.grad).square().sum()) for t, w in zip(ts, ws))), ts  # noqa: B905

    history, images = [], iter(seen.images)
    for batches in seen.epochs:
        model.train()
        losses, hits, norms = 0.0, 0, []
        for batch in batches:
            x, y = tensor(next(images)), seen.labels[batch]

            def closure():
                nonlocal losses, hits
                optimizer.zero_grad()
                logits = model(x)  # noqa: B023 - called in this very round
                loss = F.cross_entropy(logits, y, label_smoothing=smoothing)  # noqa: B023
                loss.backward()
                losses += loss.item() * len(y)  # noqa: B023
                hits += int((logits.argmax(1) == y).sum())  # noqa: B023
                norms.append(norm(rule.adaptive, rule.eta)[0])  # noqa: B023
                if row.rho is not None:
                    kept = [t.detach().clone() for t in (*ws, *model.buffers())]
                    length, ts = norm(row.adaptive, row.eta)
                    with torch.no_grad():
                        for w, t in zip(ws, ts, strict=True):
                            w.add_(row.rho * t * t * w.grad / length)
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y, label_smoothing=smoothing).backward()  # noqa: B023
                    with torch.no_grad():
                        for t, before in zip((*ws, *model.buffers()), kept, strict=True):
                            t.copy_(before)
                return loss.item()

            optimizer.step(closure)
            schedule.step()
        model.eval()
        with torch.no_grad():
            logits, y = model(tensor(evaluated.images)), evaluated.labels
        count = sum(map(len, batches))
        history.append(
            {
                "train_loss": losses / count,
                "train_accuracy": 100 * hits / count,
                "test_loss": float(F.cross_entropy(logits, y)),
                "test_accuracy": 100 * float((logits.argmax(1) == y).double().mean()),
                "sam_sharpness": rule.rho * sum(norms) / len(norms),
            }
        )
    return history, model.state_dict()


COSINE = {"epochs": 2, "batch_size": 64}
STEP = {"epochs": 2, "batch_size": 64, "schedule": "step", "milestones": [0.5], "decay": 0.1}
PLAIN = {"name": "digits", "label_noise": 0.4, "train_examples": 200}

CASES = {
    "sgd": {"optimizers": one_row(**SGD), "data": PLAIN | {"augmentation": "crop-flip"}},
    "sgd with nesterov": {
        "optimizers": one_row(**SGD, nesterov=True, label_smoothing=0.1),
        "training": STEP,
    },
    "sgd+sam": {
        "optimizers": one_row(**SGD, rho=0.05),
        "training": COSINE | {"label_smoothing": 0.1},
        "sharpness": {"rho": 0.2},
    },
    "sgd+asam": {
        "optimizers": one_row(**SGD, rho=0.5, adaptive=True, eta=0.01),
        "data": PLAIN | {"augmentation": "crop"},
    },
    "sgd+asam, sharpness alike": {
        "optimizers": one_row(**SGD, rho=2, adaptive=True),
        "sharpness": {"rho": 2, "adaptive": True},
    },
    "sgd+sam, sharpness adaptive": {
        "optimizers": one_row(**SGD, rho=0.05),
        "sharpness": {"rho": 0.5, "adaptive": True, "eta": 0.1},
    },
    "adam": {"optimizers": one_row(**ADAM, betas=[0.8, 0.99]), "training": STEP},
    "adam+sam": {"optimizers": one_row(**ADAM, rho=0.05)},
    "adamw+asam": {
        "optimizers": one_row(base="adamw", lr=0.002, weight_decay=0.05, rho=0.5, adaptive=True),
        "sharpness": {"rho": 0.5, "adaptive": True},
    },
    "on the validation part": {
        "optimizers": one_row(**SGD, rho=0.05),
        "data": PLAIN | {"validation": 0.25, "evaluation": "validation"},
    },
    "a leftover of one": {
        "optimizers": one_row(**SGD, rho=0.05),
        "data": PLAIN | {"train_examples": 193},
    },
    "a smaller last batch": {
        "optimizers": one_row(**ADAM, rho=0.05),
        "data": PLAIN | {"train_examples": 150},
    },
}


@pytest.mark.parametrize("name", CASES)
def test_a_run_is_what_a_plain_loop_does(tmp_path, name):
    run = case(tmp_path, **CASES[name])
    record, seen = watched(run, smooth, weights=tmp_path / "weights.safetensors")
    expected, weights = in_a_plain_loop(run, seen)
    examples = sum(map(len, seen.epochs[0]))
    assert len(record.history) == len(expected) == 2
    for epoch, plain in zip(record.history, expected, strict=True):
        for key in ("train_loss", "test_loss", "sam_sharpness"):
            assert getattr(epoch, key) == pytest.approx(plain[key], rel=1e-5), key
        # in float32 one example may stand on the edge
        assert epoch.train_accuracy == pytest.approx(plain["train_accuracy"], abs=100.1 / examples)
        assert epoch.test_accuracy == pytest.approx(plain["test_accuracy"], abs=100.1 / 360)
    found = load_file(tmp_path / "weights.safetensors")
    assert found.keys() == weights.keys()
    for key, tensor in weights.items():  # BatchNorm's statistics and counts among them
        torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-5, msg=key)


# --- what a record says


@pytest.fixture(scope="module")
def tiny_records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return {row: trainer.train(case(folder, row)) for row in ("sgd", "sgd+sam")}


def test_the_last_epoch_is_the_result_and_the_best_is_named_so(tmp_path, monkeypatch):
    evaluated = iter([(2.0, 50.0), (1.0, 70.0), (1.5, 60.0)])
    monkeypatch.setattr(trainer, "evaluate", lambda *arguments: next(evaluated))
    record = trainer.train(case(tmp_path, "sgd", training={"epochs": 3, "batch_size": 64}))
    last = record.history[-1]
    for key in ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "sam_sharpness"):
        assert getattr(record, key) == getattr(last, key)
    assert (record.test_accuracy, record.test_loss) == (60.0, 1.5)
    assert record.best_test_accuracy == 70.0


def test_who_what_and_how_much(tiny_records):
    base, sam = tiny_records["sgd"], tiny_records["sgd+sam"]
    assert (sam.id, sam.base, sam.base_row) == ("tiny/resnet18/sgd+sam/seed0", "sgd", "sgd")
    assert (base.id, base.base, base.base_row) == ("tiny/resnet18/sgd/seed0", "sgd", None)
    # 200 images in batches of 64 are 4 steps: 2 epochs
    assert [epoch.gradient_evaluations for epoch in base.history] == [4, 4]
    assert [epoch.gradient_evaluations for epoch in sam.history] == [8, 8]
    assert (base.gradient_evaluations, sam.gradient_evaluations) == (8, 16)
    for record in (base, sam):
        assert record.status == "completed"
        assert record.reason is None
        assert record.seconds == sum(epoch.seconds for epoch in record.history)
        assert record.seconds > 0
        assert record.calibration_seconds
        assert [epoch.learning_rate for epoch in record.history] == [0.05, 0.025]
        assert record.provenance["device_kind"] == "cpu"
        assert record.provenance["precision"] == "fp32"
        assert record.provenance["resumed_after"] == []


def test_hashes_in_the_record_are_those_of_the_protocol(tmp_path, tiny_records):
    run = case(tmp_path, "sgd+sam")
    said = tiny_records["sgd+sam"].provenance
    assert said["common_hash"] == run.protocol.common_hash()
    assert said["cell_hash"] == run.cell_hash()
    assert said["key"] != tiny_records["sgd"].provenance["key"]


def test_the_json_of_a_record_reads_back(tmp_path, tiny_records):
    for record in tiny_records.values():
        write_json(tmp_path / "record.json", record.to_json())
        assert from_json(json.loads((tmp_path / "record.json").read_text()), "file") == record


def test_each_epoch_is_told_as_it_ends(tmp_path):
    told = []
    record = trainer.train(case(tmp_path, "sgd"), on_epoch=lambda *news: told.append(news))
    assert told == list(enumerate(record.history, start=1))


def test_accuracy_in_training_is_of_the_noisy_labels(tmp_path):
    """A network that has learned everything by heart fits them, and fails where they are wrong."""
    run = case(
        tmp_path,
        data=PLAIN | {"train_examples": 40},
        training={"epochs": 60, "batch_size": 20, "schedule": "constant"},
        model={"width": 16, "architectures": ["resnet18"]},
        optimizers=one_row(base="adam", lr=0.003),
    )
    record, seen = watched(run)
    truth = data.load(run.protocol.data).train.labels
    assert (seen.labels != truth).sum() == 16
    assert record.train_accuracy > 90  # 24 of 40 labels are true: else 60 %


@pytest.mark.parametrize("part", ["test", "validation"])
def test_the_part_that_is_evaluated_is_that_of_the_protocol(tmp_path, part):
    run = case(tmp_path, "sgd", data=PLAIN | {"validation": 0.25, "evaluation": part})
    record = trainer.train(run, weights=tmp_path / "weights")
    model = models.build("resnet18", width=4, in_channels=1)
    model.load_state_dict(load_file(tmp_path / "weights"))
    dataset = data.load(run.protocol.data)
    other = {"test": "validation", "validation": "test"}[part]
    assert record.evaluation == part
    loss, accuracy = step.evaluate(model, dataset, getattr(dataset, part))
    assert record.test_loss == pytest.approx(loss, rel=1e-5)
    assert record.test_accuracy == pytest.approx(accuracy, abs=100.1 / 360)
    assert record.test_loss != pytest.approx(
        step.evaluate(model, dataset, getattr(dataset, other))[0], rel=1e-4
    )


def test_evaluation_is_over_whole_parts_of_any_size(monkeypatch):
    """In pieces with a smaller last one, as in one."""
    torch.manual_seed(0)
    dataset = data.load(Data("digits"))
    model = models.build("vgg16", width=2, in_channels=1)
    model(dataset.normalise(dataset.train.images))  # statistics
    model.eval()
    logits = model(dataset.normalise(dataset.test.images))
    hits = (logits.argmax(1) == dataset.test.labels).double().mean().item()
    for size in (7, 359, 360, 1000):
        monkeypatch.setattr(step, "EVALUATION_BATCH", size)
        model.train()  # evaluate sets the mode itself
        loss, accuracy = step.evaluate(model, dataset, dataset.test)
        assert loss == pytest.approx(F.cross_entropy(logits, dataset.test.labels).item(), rel=1e-5)
        assert accuracy == pytest.approx(100 * hits)


# --- a row's own settings


def same_but_for_the_name(row, other):
    keys = ("history", "sharpness", "status", "gradient_evaluations")
    one, two = row.without_timings(), other.without_timings()
    assert {key: one[key] for key in keys} == {key: two[key] for key in keys}


@pytest.mark.parametrize(
    ("key", "value"),
    [("epochs", 3), ("label_smoothing", 0.2), ("warmup_epochs", 1), ("schedule", "constant")],
)
def test_a_setting_of_a_row_is_as_one_of_the_protocol(tmp_path, key, value):
    training = {"epochs": 2, "batch_size": 64, "label_smoothing": 0.1, "warmup_epochs": 2}
    own = trainer.train(
        case(tmp_path, optimizers=one_row(**SGD, **{key: value}), training=training)
    )
    shared = case(tmp_path, optimizers=one_row(**SGD), training=training | {key: value})
    same_but_for_the_name(own, trainer.train(shared))
    plain = trainer.train(case(tmp_path, optimizers=one_row(**SGD), training=training))
    assert plain.history[0] != own.history[0]


@pytest.mark.parametrize("key", ["label_smoothing", "warmup_epochs"])
def test_a_row_may_set_to_nothing_what_the_protocol_has(tmp_path, key):
    training = {"epochs": 2, "batch_size": 64, "label_smoothing": 0.1, "warmup_epochs": 2}
    own = trainer.train(case(tmp_path, optimizers=one_row(**SGD, **{key: 0}), training=training))
    shared = case(tmp_path, optimizers=one_row(**SGD), training=training | {key: 0})
    same_but_for_the_name(own, trainer.train(shared))


def test_the_learning_rate_of_an_architecture_is_used(tmp_path):
    rows = one_row(**SGD, architectures={"resnet18": {"lr": 0.01}})
    record = trainer.train(case(tmp_path, optimizers=rows))
    same_but_for_the_name(
        record, trainer.train(case(tmp_path, optimizers=one_row(**(SGD | {"lr": 0.01}))))
    )


@pytest.mark.parametrize(
    ("row", "kind", "options"),
    [
        (SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}),
        ({**SGD, "nesterov": True}, torch.optim.SGD, {"nesterov": True}),
        ({**ADAM, "betas": [0.5, 0.6]}, torch.optim.Adam, {"lr": 0.002, "betas": (0.5, 0.6)}),
        ({**ADAM, "base": "adamw"}, torch.optim.AdamW, {"weight_decay": 5e-4}),
        (
            {**SGD, "rho": 0.3, "adaptive": True, "eta": 0.02},
            SAM,
            {"rho": 0.3, "adaptive": True, "eta": 0.02, "momentum": 0.9},
        ),
        ({**ADAM, "rho": 0.05}, SAM, {"rho": 0.05, "adaptive": False, "betas": (0.9, 0.999)}),
    ],
)
def test_the_optimizer_of_a_row(tmp_path, row, kind, options):
    model = nn.Linear(2, 2)
    run = case(tmp_path, optimizers=one_row(**row))
    optimizer = setup.build_optimizer(run, model, 10).optimizer
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert {key: group[key] for key in options} == options
    assert group["params"] == list(model.parameters())


# --- learning rates against torch's schedulers

EPOCHS, STEPS = 10, 7


def rate(run, progress):
    return run.row.lr * step.rate_factor(run, progress)


def by_step(run):
    return [rate(run, i / STEPS) for i in range(EPOCHS * STEPS)]


def of_torch(make):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.05)
    scheduler = make(optimizer)
    rates = []
    for _ in range(EPOCHS * STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def scheduled(folder, **training):
    training = {"epochs": EPOCHS, "batch_size": 64, **training}
    return case(folder, optimizers=one_row(**SGD), training=training)


def test_cosine(tmp_path):
    expected = of_torch(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, EPOCHS * STEPS))
    run = scheduled(tmp_path)
    assert by_step(run) == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert rate(run, EPOCHS) == pytest.approx(0, abs=1e-15)


def test_steps(tmp_path):
    run = scheduled(tmp_path, schedule="step", milestones=[0.3, 0.6, 0.8], decay=0.2)
    drops = [3 * STEPS, 6 * STEPS, 8 * STEPS]
    expected = of_torch(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, drops, 0.2))
    assert by_step(run) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("epochs", [5, 10, 15, 30, 100, 200, 400])
def test_steps_come_at_the_start_of_their_epoch(tmp_path, epochs):
    """Whatever a milestone's share is in floating point."""
    milestones = [0.2, 0.4, 0.6, 0.8]
    run = scheduled(tmp_path, schedule="step", milestones=milestones, decay=0.5, epochs=epochs)
    rates = [rate(run, epoch) for epoch in range(epochs)]
    fifth = epochs // 5
    assert rates == [0.05 * 0.5**k for k in range(5) for _ in range(fifth)]


def test_warm_up(tmp_path):
    run = scheduled(tmp_path, schedule="constant", warmup_epochs=3)
    tiny_start = 1e-12  # torch's factor may not start at 0
    expected = of_torch(
        lambda o: torch.optim.lr_scheduler.LinearLR(o, tiny_start, total_iters=3 * STEPS)
    )
    assert by_step(run) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert rate(run, 0) == 0


def test_warm_up_joins_the_value_of_the_schedule(tmp_path):
    with_warm_up, without = scheduled(tmp_path, warmup_epochs=4), scheduled(tmp_path)
    for i, (one, two) in enumerate(zip(by_step(with_warm_up), by_step(without), strict=True)):
        assert one == pytest.approx(two * min(1, i / (4 * STEPS)), rel=1e-12)


def test_constant(tmp_path):
    assert set(by_step(scheduled(tmp_path, schedule="constant"))) == {0.05}


# --- divergence

# each step multiplies the weights by about lr * weight_decay
BURSTING = {"base": "sgd", "lr": 1e4, "weight_decay": 0.5}


@pytest.mark.parametrize(
    "row",
    [
        {"base": "sgd", "lr": 1e20},
        {"base": "sgd", "lr": 1e20, "rho": 0.05},
        {"base": "sgd", "lr": 1e20, "rho": 0.05, "adaptive": True},
        {"base": "adam", "lr": 1e30},
        {"base": "adam", "lr": 1e30, "rho": 0.05},
        {"base": "adamw", "lr": 1e30, "weight_decay": 0.1, "rho": 0.05},
        {"base": "sgd", "lr": 0.05, "rho": 1e30},
        BURSTING,
        {**BURSTING, "rho": 0.05},
    ],
    ids=lambda row: "-".join(map(str, row.values())),
)
@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_a_run_that_diverges_is_recorded_so(tmp_path, row, architecture):
    run = case(
        tmp_path,
        optimizers={"row": row},
        training={"epochs": 30, "batch_size": 64, "schedule": "constant"},
        model={"width": 4, "architectures": [architecture]},
        sharpness={"at_end": ["ascent_sharpness"]},
    )
    told = []
    weights = tmp_path / "weights"
    record = trainer.train(run, on_epoch=lambda n, _: told.append(n), weights=weights)
    assert record.status == "diverged"
    last = len(record.history) + 1
    assert record.reason is not None
    assert record.reason.startswith(f"diverged in epoch {last} of 30: ")
    assert record.reason.endswith(" is not finite")
    assert told == list(range(1, last))
    assert not weights.exists()
    for key in ("test_accuracy", "best_test_accuracy", "test_loss", "train_accuracy"):
        assert getattr(record, key) is None
    assert (record.train_loss, record.sam_sharpness, record.sharpness) == (None, None, {})
    write_json(tmp_path / "record.json", record.to_json())  # refuses NaN
    assert from_json(json.loads((tmp_path / "record.json").read_text()), "file") == record


def test_divergence_in_a_later_epoch_keeps_those_before(tmp_path):
    training = {"epochs": 30, "batch_size": 64, "schedule": "constant"}
    run = case(tmp_path, optimizers={"row": {**BURSTING, "lr": 1e3}}, training=training)
    record = watched(run, smooth)[0]
    assert record.status == "diverged"
    assert 1 <= len(record.history) < 10
    assert record.gradient_evaluations == 4 * len(record.history)
    assert record.seconds == sum(epoch.seconds for epoch in record.history)


def test_a_test_loss_that_is_not_finite_is_divergence(tmp_path, monkeypatch):
    evaluate = step.evaluate
    calls = iter([False, True])

    def overflow(*arguments):
        loss, accuracy = evaluate(*arguments)
        return (math.inf if next(calls) else loss), accuracy

    monkeypatch.setattr(trainer, "evaluate", overflow)
    record = trainer.train(case(tmp_path, "sgd"))
    assert record.reason == "diverged in epoch 2 of 2: the test loss is not finite"
    assert len(record.history) == 1


def test_a_step_that_sam_skipped_is_divergence(tmp_path, monkeypatch):
    """Skipped for its second gradient, which neither the loss nor the first one's norm shows."""
    real, steps = SAM.second_step, iter(range(100))

    def second_step(self, zero_grad=False):
        if next(steps) == 5:  # the second of epoch 2
            self.found_inf.fill_(1.0)
        real(self, zero_grad)

    monkeypatch.setattr(SAM, "second_step", second_step)
    record = trainer.train(case(tmp_path, "sgd+sam"))
    assert record.reason == "diverged in epoch 2 of 2: a gradient is not finite"
    assert len(record.history) == 1


def test_a_second_gradient_that_is_not_finite_is_divergence(tmp_path, monkeypatch):
    prepare, passes = setup.prepare, iter(range(1000))

    def prepare_with_hook(*arguments, **options):
        run = prepare(*arguments, **options)
        last = list(run.model.parameters())[-1]
        # the ninth and tenth backward passes are the first step's of epoch 2
        last.register_hook(lambda g: g * math.nan if next(passes) == 9 else g)
        return run

    monkeypatch.setattr(trainer, "prepare", prepare_with_hook)
    record = trainer.train(case(tmp_path, "sgd+sam"))
    assert record.reason == "diverged in epoch 2 of 2: a gradient is not finite"
    assert len(record.history) == 1


def test_steps_skipped_before_an_epoch_are_not_its_own(tmp_path, monkeypatch):
    prepare = setup.prepare

    def prepare_after_skips(*arguments, **options):
        run = prepare(*arguments, **options)
        assert isinstance(run.optimizer, SAM)
        run.optimizer.skipped_steps.fill_(3)
        return run

    monkeypatch.setattr(trainer, "prepare", prepare_after_skips)
    assert trainer.train(case(tmp_path, "sgd+sam")).status == "completed"


# --- the process, the clock and the memory


class Reached(Exception):
    pass


def test_the_device_is_bound_before_anything_else_is_asked_of_it(tmp_path, monkeypatch):
    """CUDA is not initialised before; an explicit device number is then an invalid one."""
    bound = []

    def reset_peak_memory_stats(where):
        if bound != ["cuda:1"]:
            raise RuntimeError("Invalid device argument")
        assert str(where) == "cuda:1"

    def load_for(settings, where, root):
        assert bound == [str(where)]
        return "a data set"

    def prepare(*arguments, **options):
        raise Reached

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda where: bound.append(str(where)))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset_peak_memory_stats)
    monkeypatch.setattr(data, "load_for", load_for)
    monkeypatch.setattr(trainer, "_warm_up", lambda *_, **__: 0.0)
    monkeypatch.setattr(trainer, "prepare", prepare)
    with pytest.raises(Reached):
        trainer.train(case(tmp_path, "sgd"), device_name="cuda:1")
    backends = torch.backends
    assert backends.cudnn.conv.fp32_precision == "ieee"
    assert backends.cuda.matmul.fp32_precision == "ieee"


def graphed_on_the_cpu(monkeypatch, seconds=0.0):
    """Make runs capture their steps by a stand-in; return what refers to the runs' parts."""
    prepare, parts = setup.prepare, []

    def capture(step, batch, generators, stream):
        time.sleep(seconds)

        def replay():
            return step(batch)

        parts.append(weakref.ref(replay))
        return replay

    def prepare_graphed(*arguments, **options):
        prepared = prepare(*arguments, **options)
        prepared.step = setup.graphed_step(prepared, capture)
        parts.extend([weakref.ref(prepared), weakref.ref(prepared.model)])
        return prepared

    monkeypatch.setattr(trainer, "prepare", prepare_graphed)
    monkeypatch.setattr(graph, "WARM_UP_STEPS", 2)
    return parts


@pytest.mark.parametrize("row", ["sgd", "sgd+sam"])
@pytest.mark.parametrize("raises", [False, True])
def test_nothing_of_a_run_is_left_without_the_garbage_collector(tmp_path, monkeypatch, row, raises):
    def on_epoch(number, _):
        if raises and number == 2:
            raise Reached

    monkeypatch.setattr(trainer, "_builds_kernels", lambda *_: True)  # a twin to be dropped too
    parts = graphed_on_the_cpu(monkeypatch)
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(Reached):
            trainer.train(case(tmp_path, row), on_epoch=on_epoch)
        alive = [part() for part in parts if part() is not None]
    finally:
        gc.enable()
    assert len(parts) >= 5  # two models, two runs, and a graph
    assert alive == []


def test_sam_is_told_once_that_its_step_was_captured(tmp_path, monkeypatch):
    """Between the capture and its first replay."""
    told = []
    real, sync = SAM.first_step, SAM.sync_hyperparameters

    def first_step(self, zero_grad=False):
        told.append("step")
        real(self, zero_grad)

    def watch_sync(self):
        told.append("sync")
        sync(self)

    monkeypatch.setattr(SAM, "first_step", first_step)
    monkeypatch.setattr(SAM, "sync_hyperparameters", watch_sync)
    graphed_on_the_cpu(monkeypatch)
    trainer.train(case(tmp_path, "sgd+sam"))
    # two steps to be warm, then the replays (which the stand-in makes steps) and smaller batches
    assert told == ["step", "step", "sync", *["step"] * 6]


@pytest.mark.parametrize("row", ["sgd", "sgd+sam"])
def test_a_warm_up_changes_no_bit_of_the_run(tmp_path, monkeypatch, row):
    run = case(tmp_path, row, data={"name": "digits", "augmentation": "crop-flip"})
    cold = trainer.train(run)
    monkeypatch.setattr(trainer, "_builds_kernels", lambda *_: True)
    warm = trainer.train(run)
    assert warm.without_timings() == cold.without_timings()
    assert cold.provenance["warm_up_seconds"] == 0
    assert warm.provenance["warm_up_seconds"] > 0


def test_peak_memory_is_reset_between_the_warm_up_and_the_run(tmp_path, monkeypatch):
    told = []
    prepare, reset = setup.prepare, trainer.meter.reset_peak_memory

    def watch_prepare(*arguments, **options):
        told.append("prepare")
        return prepare(*arguments, **options)

    def watch_reset(where):
        told.append("reset")
        reset(where)

    monkeypatch.setattr(trainer, "prepare", watch_prepare)
    monkeypatch.setattr(trainer.meter, "reset_peak_memory", watch_reset)
    monkeypatch.setattr(trainer, "_builds_kernels", lambda *_: True)
    trainer.train(case(tmp_path, "sgd"))
    assert told == ["prepare", "reset", "prepare"]


def test_a_new_measurement_of_memory_begins_without_earlier_runs():
    class Optimizer:
        def __init__(self):
            self.hook = self.step

        def step(self): ...

    gc.disable()
    try:
        left = weakref.ref(Optimizer())
        assert left() is not None
        trainer.meter.reset_peak_memory(torch.device("cpu"))
        assert left() is None
    finally:
        gc.enable()


COMPILATION = 0.3


def test_epochs_are_timed_without_compilation_and_capture(tmp_path, monkeypatch):
    """A network that is slow at the first batch of a size, as kernels are that must be chosen."""
    build, compiled = setup.build_model, set()

    def compile_slowly(model, inputs):
        if model.training and len(inputs[0]) not in compiled:
            compiled.add(len(inputs[0]))
            time.sleep(COMPILATION)

    def slow_model(*arguments):
        model = build(*arguments)
        model.register_forward_pre_hook(compile_slowly)
        return model

    monkeypatch.setattr(setup, "build_model", slow_model)
    monkeypatch.setattr(trainer, "_builds_kernels", lambda where: True)
    graphed_on_the_cpu(monkeypatch, seconds=COMPILATION)
    record = trainer.train(case(tmp_path, "sgd"))
    assert compiled == {64, 8}  # 200 images in batches of 64
    assert record.provenance["warm_up_seconds"] > 2 * COMPILATION
    assert COMPILATION < record.provenance["capture_seconds"] < 2 * COMPILATION
    assert max(epoch.seconds for epoch in record.history) < COMPILATION


# --- precision, and what is not there


def test_bf16_is_near_fp32_and_said(tmp_path):
    training = {"epochs": 2, "batch_size": 64}
    full, half = (
        watched(case(tmp_path, "sgd+sam", training=training | {"precision": name}), smooth)[0]
        for name in ("fp32", "bf16")
    )
    assert [r.provenance["precision"] for r in (full, half)] == ["fp32", "bf16"]
    for one, two in zip(full.history, half.history, strict=True):
        assert two.train_loss == pytest.approx(one.train_loss, rel=2e-3)
        assert two.sam_sharpness == pytest.approx(one.sam_sharpness, rel=2e-2)
        assert two.train_loss != one.train_loss


@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bf16_where_the_device_is_fast_at_it(tmp_path, monkeypatch, fast, precision):
    monkeypatch.setattr(devices, "has_fast_bf16", lambda where: fast)
    training = {"epochs": 1, "batch_size": 64}
    auto, named = (
        trainer.train(case(tmp_path, "sgd", training=training | {"precision": name}))
        for name in ("auto", precision)
    )
    assert auto.provenance["precision"] == precision
    same_but_for_the_name(auto, named)


def test_a_data_set_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="data set cifar10: not found"):
        trainer.train(case(tmp_path, "sgd", data={"name": "cifar10"}), data_dir=tmp_path)


def test_a_device_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="--device must be cpu, cuda, cuda:N or auto, got 'tpu'"):
        trainer.train(case(tmp_path, "sgd"), device_name="tpu")
