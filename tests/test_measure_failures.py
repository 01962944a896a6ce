"""A measure that cannot be taken loses neither the run nor the other measures, and is said."""

import json

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from flatbench import data, report
from flatbench.protocols.cases import grid
from flatbench.protocols.protocol import Data, Sharpness
from flatbench.records.reading import from_json
from flatbench.report.chapters import chapters
from flatbench.training import measuring, trainer
from tests import synthetic, tiny

# Its first derivative is right. Left to itself, autograd's second one is 0.
ONCE = """
import torch
from torch import nn
from torch.autograd.function import once_differentiable


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.out = nn.Linear(64, classes)

    def forward(self, x):
        return Square.apply(self.out(x.flatten(1)))
"""
REASON = (
    "RuntimeError: the model cannot be differentiated: "
    "a function in it is once_differentiable: no second derivative"
)


@pytest.fixture
def case(tmp_path):
    (tmp_path / "once.py").write_text(ONCE)
    whole = tiny.table(
        data={"name": "digits", "train_examples": 100, "label_noise": 0.4},
        training={"epochs": 3, "batch_size": 64},
        model={"width": 4, "architectures": [{"name": "once", "build": "./once.py:Net"}]},
        optimizers={"sgd": tiny.SGD},
        sharpness={
            "every_epoch": ["hessian_trace", "ascent_sharpness"],
            "at_end": ["hessian_max_eigenvalue", "hessian_trace", "m_sharpness"],
            "examples": 8,
        },
    )
    return grid(tiny.protocol(tmp_path, whole))[0]


def test_the_run_is_whole_and_says_why(case):
    record = trainer.train(case)
    assert record.status == "completed"
    failed = ("hessian_trace", "hessian_max_eigenvalue")
    both = [f"{name}{side}" for name in failed for side in ("", "_clean")]
    assert sorted(record.measure_failures) == sorted(both)
    for name, reason in record.measure_failures.items():
        when = "after epoch 1" if "trace" in name else "at the end"
        assert reason == f"{when}: {REASON}"
        assert len(reason.splitlines()) == 1
        assert record.sharpness[name] is None
    assert record.sharpness["m_sharpness"] is not None
    assert "hessian_trace_standard_error" not in record.sharpness
    assert record.sharpness_history["hessian_trace"] == (None, None, None)
    assert None not in record.sharpness_history["ascent_sharpness"]
    assert from_json(json.loads(json.dumps(record.to_json())), "memory") == record


def test_a_resumed_run_says_what_failed_before(case, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "CHECKPOINT_SHARE", float("inf"))  # one an epoch
    whole, path = trainer.train(case), tmp_path / "case.pt"

    def stop(number, _):
        if number == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.train(case, checkpoints=path, on_epoch=stop)
    resumed = trainer.train(case, checkpoints=path, resume=True)
    assert resumed.provenance["resumed_after"] == [2]
    assert resumed.without_timings() == whole.without_timings()


class Raising(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.out, self.error = nn.Linear(64, 10), error

    def forward(self, x):
        if self.error is not None:
            raise self.error
        return self.out(x.flatten(1))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nTried to"), "CUDA out of memory. Tried to"),
        (MemoryError("none left"), "none left"),
        (NotImplementedError("derivative for x"), "derivative for x"),
        (ValueError("a"), "a"),
        (AttributeError("of a custom backward"), "of a custom backward"),
    ],
)
def test_whatever_the_network_raises(error, reason):
    digits = data.load(Data("digits"))
    names, rule = ["hessian_trace", "ascent_sharpness"], Sharpness(examples=8)
    found = measuring.measure(names, Raising(error), digits, digits.train.labels, rule)
    assert found.values == {"hessian_trace": None, "ascent_sharpness": None}
    assert found.failures == dict.fromkeys(names, f"{type(error).__name__}: {reason}")
    whole = measuring.measure(names, Raising(None), digits, digits.train.labels, rule)
    assert whole.failures == {}
    assert None not in whole.values.values()


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first, self.out, self.reentrant = nn.Linear(64, 8), nn.Linear(8, 10), reentrant

    def forward(self, x):
        x = x.flatten(1).requires_grad_()
        return self.out(checkpoint(self.first, x, use_reentrant=self.reentrant).tanh())


def test_a_checkpoint_that_hides_the_weights_is_a_failure():
    """Its gradient goes to the weights' ``grad``, and `torch.autograd.grad` would find 0."""
    digits, rule = data.load(Data("digits")), Sharpness(examples=8)
    names = ["ascent_sharpness", "hessian_trace"]
    for reentrant in (True, False):
        model = Checkpointed(reentrant)
        found = measuring.measure(names, model, digits, digits.train.labels, rule)
        assert list(found.failures) == (names if reentrant else [])
        assert all(p.grad is None for p in model.parameters())
    model.forward = lambda x: model.out(model.first(x.flatten(1)).tanh())
    plain = measuring.measure(names, model, digits, digits.train.labels, rule)
    assert found.values == pytest.approx(plain.values)


def test_ctrl_c_is_no_failure():
    digits = data.load(Data("digits"))
    with pytest.raises(KeyboardInterrupt):
        measuring.measure(
            ["hessian_trace"],
            Raising(KeyboardInterrupt()),
            digits,
            digits.train.labels,
            Sharpness(examples=8),
        )


def test_a_model_without_a_parameter_to_differentiate_is_a_failure_too():
    digits = data.load(Data("digits"))
    model = Raising(None).requires_grad_(False)
    found = measuring.measure(
        ["hessian_trace"], model, digits, digits.train.labels, Sharpness(examples=8)
    )
    assert found.failures["hessian_trace"].startswith("ValueError: model must have a parameter")


def test_the_report_says_it_once_for_one_reason():
    failures = {"hessian_trace": "at the end: RuntimeError: <no> second"}
    records = [
        synthetic.record(seed=0, measure_failures=failures),
        synthetic.record(seed=1, measure_failures=failures),
        synthetic.record(seed=2, measure_failures={"hessian_trace": "at the end: MemoryError"}),
        synthetic.record("adam"),
    ]
    (chapter,) = chapters(records)
    said = [remark for remark in chapter.opening.warnings if "hessian_trace" in remark]
    assert said == [
        "hessian_trace could not be taken of digits/resnet18/sgd/seed0 and 1 more: "
        "at the end: RuntimeError: <no> second",
        "hessian_trace could not be taken of digits/resnet18/sgd/seed2: at the end: MemoryError",
    ]
    for form in ("markdown", "html", "latex"):
        assert "could not be taken" in report.render(records, form), form


def test_a_record_of_before_has_none():
    table = synthetic.record().to_json()
    del table["measure_failures"]
    assert from_json(table, "file").measure_failures == {}
