"""A protocol's sharpness measures reach the record, on the right examples and labels."""

import dataclasses
import json
import typing

import pytest
import torch
from torch.nn import functional as F

from flatbench import data, models, sharpness
from flatbench.protocols import protocol
from flatbench.protocols.cases import grid
from flatbench.protocols.reading import load
from flatbench.records.reading import from_json
from flatbench.training import measuring, trainer

RULE = protocol.Sharpness(examples=40, rho=0.1, adaptive_rho=0.3, sigma=0.02, adaptive_sigma=0.05)


def measured(*arguments, **options):
    return measuring.measure(*arguments, **options).values


@pytest.fixture(scope="module")
def digits():
    return data.load(protocol.Data("digits", validation=0.25))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return models.build("resnet18", width=4, in_channels=1).eval()


def test_the_schema_names_exactly_the_measures():
    assert set(typing.get_args(protocol.Measure)) == set(measuring.MEASURES)


def test_the_examples_are_fixed_and_of_the_training_part(digits):
    def picked(**rule):
        return measuring.examples(digits, protocol.Sharpness(**rule))

    first = picked(examples=100)
    assert torch.equal(first, picked(examples=100))
    assert not torch.equal(first, picked(examples=100, examples_seed=1))
    assert len(set(first.tolist())) == 100
    assert int(first.max()) < len(digits.train)
    assert len(picked(examples=10**6)) == len(digits.train)


def normalised_by_hand(logits):
    """FAMILY's formula, example by example."""
    rows = [z - z.mean() for z in logits]
    return torch.stack([z / torch.sqrt((z**2).sum()) for z in rows])


@pytest.mark.parametrize(
    ("kind", "logits"), [("", lambda z: z), ("_normalised", normalised_by_hand)]
)
def test_values_are_those_of_the_measures_on_both_labels(digits, model, kind, logits):
    noisy = (digits.train.labels + 1) % 10
    before = {name: t.clone() for name, t in model.state_dict().items()}
    found = measured([f"ascent_sharpness{kind}"], model, digits, noisy, RULE)
    picked = measuring.examples(digits, RULE)
    images = digits.normalise(digits.train.images[picked])
    for name, labels in ((kind, noisy), (f"{kind}_clean", digits.train.labels)):
        # by hand: the loss at w + rho g / |g|, less the loss at w
        named = dict(model.named_parameters())
        loss = F.cross_entropy(logits(model(images)), labels[picked])
        gradients = torch.autograd.grad(loss, list(named.values()))
        norm = torch.sqrt(sum((g**2).sum() for g in gradients))
        moved = {
            key: p.detach() + RULE.rho * g / norm
            for (key, p), g in zip(named.items(), gradients, strict=True)
        }
        there = torch.func.functional_call(model, moved, (images,))
        rise = F.cross_entropy(logits(there), labels[picked]) - loss
        assert found[f"ascent_sharpness{name}"] == pytest.approx(rise.item(), rel=1e-3)
    assert set(found) == {f"ascent_sharpness{kind}", f"ascent_sharpness{kind}_clean"}
    rule = dataclasses.replace(RULE, true_labels=False)
    alone = measured([f"ascent_sharpness{kind}"], model, digits, noisy, rule)
    assert alone == {f"ascent_sharpness{kind}": found[f"ascent_sharpness{kind}"]}
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_without_noise_there_is_one_side(digits, model):
    labels = digits.train.labels.clone()
    found = measured(list(measuring.MEASURES), model, digits, labels, RULE)
    assert list(found) == list(measuring.MEASURES)
    assert all(value is not None for value in found.values())
    picked = measuring.examples(digits, RULE)
    images = digits.normalise(digits.train.images[picked])
    surface = sharpness.loss_surface(model, F.cross_entropy, images, labels[picked])
    average = sharpness.average_sharpness(surface, sigma=0.05, samples=10, adaptive=True)
    assert found["adaptive_average_sharpness"] == average.value
    grouped = sharpness.ascent_sharpness(surface, rho=0.1, m=16)
    assert found["m_sharpness"] == grouped.value


def test_eigenvalue_and_trace_share_their_products(digits, model, monkeypatch):
    made, real = [], measuring.hessian_curvature

    def watch(surface, **settings):
        made.append(settings)
        return real(surface, **settings)

    monkeypatch.setattr(measuring, "hessian_curvature", watch)
    names = ["hessian_max_eigenvalue", "hessian_trace"]
    noisy = (digits.train.labels + 1) % 10
    both = measured(names, model, digits, noisy, RULE)
    assert len(made) == 2  # one a side
    apart = measured(names[:1], model, digits, noisy, RULE) | measured(
        names[1:], model, digits, noisy, RULE
    )
    assert both == {name: apart[name] for name in both}


def test_the_length_of_the_logits_plays_no_part():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 10, generator=generator, dtype=torch.float64)
    labels = torch.arange(6)
    loss = sharpness.on_normalised_logits(F.cross_entropy)
    assert loss(7 * logits + 3, labels) == pytest.approx(loss(logits, labels).item(), rel=1e-12)
    assert torch.equal(logits.argmax(1), sharpness.normalised_logits(logits).argmax(1))
    # its least value of ten classes, where a cross-entropy would be 0
    right = 1e6 * F.one_hot(labels, 10).double()
    assert loss(right, labels).item() == pytest.approx(1.420, abs=5e-4)
    assert sharpness.normalised_logits(torch.ones(2, 10)).abs().max() == 0  # and no nan


def test_batchnorm_rule_of_the_protocol_is_kept(digits, model):
    names = ["ascent_sharpness", "average_sharpness"]
    rule = dataclasses.replace(RULE, batchnorm="train")
    found = measured(names, model, digits, digits.train.labels, rule)
    picked = measuring.examples(digits, rule)
    surface = sharpness.loss_surface(
        model,
        F.cross_entropy,
        digits.normalise(digits.train.images[picked]),
        digits.train.labels[picked],
        batchnorm="train",
    )
    assert found["ascent_sharpness"] == sharpness.ascent_sharpness(surface, rho=0.1).value
    noise = sharpness.average_sharpness(surface, sigma=0.02, samples=10)
    assert found["average_sharpness"] == noise.value
    running = measured(names, model, digits, digits.train.labels, RULE)
    assert all(found[name] != running[name] for name in names)


def test_standard_errors_stand_beside_their_measures(digits, model):
    names = ["ascent_sharpness", "average_sharpness", "hessian_trace", "m_sharpness"]
    noisy = (digits.train.labels + 1) % 10
    found = measured(names, model, digits, noisy, RULE, standard_errors=True)
    plain = measured(names, model, digits, noisy, RULE)
    assert {k: v for k, v in found.items() if not k.endswith("_standard_error")} == plain
    assert {k for k in found if k.endswith("_standard_error")} == {
        f"{name}{side}_standard_error" for name in names[1:] for side in ("", "_clean")
    }
    assert all(v is not None and v > 0 for k, v in found.items() if k.endswith("error"))


def test_what_is_not_finite_is_none(digits, model):
    with torch.no_grad():
        model.classifier.weight.fill_(float("nan"))
    found = measured(
        ["ascent_sharpness", "hessian_max_eigenvalue"], model, digits, digits.train.labels, RULE
    )
    assert found == {"ascent_sharpness": None, "hessian_max_eigenvalue": None}


def test_a_record_holds_what_the_protocol_asks_for(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(
        """
[data]
name = "digits"
label_noise = 0.4
train_examples = 200
[training]
epochs = 2
batch_size = 64
[model]
width = 4
architectures = ["resnet18"]
[sharpness]
every_epoch = ["ascent_sharpness"]
at_end = ["ascent_sharpness", "hessian_trace"]
normalised = ["hessian_trace"]
examples = 32
[optimizers.sgd]
base = "sgd"
lr = 0.1
"""
    )
    (case,) = grid(load(str(path)), seeds=[0])
    record = trainer.train(case)
    both = ["ascent_sharpness", "ascent_sharpness_clean"]
    assert list(record.sharpness) == [
        *both,
        "hessian_trace",
        "hessian_trace_standard_error",
        "hessian_trace_clean",
        "hessian_trace_clean_standard_error",
        "hessian_trace_normalised",
        "hessian_trace_normalised_standard_error",
        "hessian_trace_normalised_clean",
        "hessian_trace_normalised_clean_standard_error",
    ]
    assert list(record.sharpness_history) == both
    for name, column in record.sharpness_history.items():
        assert len(column) == 2
        assert column[-1] == record.sharpness[name]
    assert from_json(json.loads(json.dumps(record.to_json())), "memory") == record
