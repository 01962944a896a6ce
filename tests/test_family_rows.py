"""The SAM family as rows of a protocol: trained, counted, resumed."""

import dataclasses

import pytest
from torch import nn

from flatbench.data import parts
from flatbench.errors import UsageError
from flatbench.protocols.cases import grid
from flatbench.protocols.tuning import with_values
from flatbench.training import setup, trainer
from tests import tiny

# 200 examples in batches of 64: four steps an epoch, two epochs
METHODS = {
    "periodic-sam": ({"interval": 3}, [5, 5]),
    "late-sam": ({"part": 0.5}, [4, 8]),
    "momentum-sam": ({}, [4, 4]),
    "friendly-sam": ({}, [8, 8]),
    "sam-on": ({}, [8, 8]),
    "gsam": ({"rho_min": 0.01}, [8, 8]),
    "looksam": ({"interval": 3}, [6, 5]),
    "micro-batch-sam": ({"m": 16}, [8, 8]),
}
every_method = pytest.mark.parametrize("method", METHODS)
OWN = """
from torch import nn

def Linear(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))

def Norm(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.LayerNorm(8), nn.Linear(8, classes))
"""


def cases(folder, rows, network="Norm", **sections):
    if network != "resnet18":
        (folder / "own.py").write_text(OWN)
        networks = [{"name": "own", "build": f"./own.py:{network}"}]
        sections["model"] = {"width": 1, "architectures": networks}
    return grid(tiny.protocol(folder, tiny.table(optimizers=rows, **sections)))


def row(method, **options):
    return {**tiny.SGD, "perturbation": {"method": method, "rho": 0.05, **options}}


@every_method
def test_a_row_trains_and_its_gradients_are_counted(tmp_path, method):
    options, expected = METHODS[method]
    (case,) = cases(tmp_path, {"row": row(method, **options)}, "resnet18")
    record = trainer.train(case)
    assert record.status == "completed", record.reason
    assert [epoch.gradient_evaluations for epoch in record.history] == expected
    assert case.row.gradients_per_step == pytest.approx(sum(expected) / 8, abs=0.1)


@every_method
def test_a_run_goes_on_from_its_checkpoint_bit_for_bit(tmp_path, method, monkeypatch):
    monkeypatch.setattr(trainer, "CHECKPOINT_SHARE", float("inf"))  # one every epoch
    three = {"epochs": 3, "batch_size": 64}
    (case,) = cases(tmp_path, {"row": row(method, **METHODS[method][0])}, training=three)
    whole = trainer.train(case)
    path = tmp_path / "checkpoint.pt"
    epochs = trainer.epochs(case, checkpoints=path)
    next(epochs)
    next(epochs)  # the first epoch's is written now
    epochs.close()
    resumed = trainer.train(case, checkpoints=path, resume=True)
    assert resumed.provenance["resumed_after"] == [1]
    assert resumed.without_timings() == whole.without_timings()


def test_the_first_pass_of_a_first_step_is_the_same_whatever_the_method(tmp_path):
    """Its loss, accuracy and gradient norm, also where it is taken in parts."""
    rows = {"sgd": tiny.SGD} | {m: row(m, **options) for m, (options, _) in METHODS.items()}
    once = {"epochs": 1, "batch_size": 200}
    sgd, *others = (trainer.train(case).history[0] for case in cases(tmp_path, rows, training=once))
    for epoch in others:
        assert epoch.train_loss == pytest.approx(sgd.train_loss, rel=1e-6)
        assert epoch.train_accuracy == sgd.train_accuracy
        assert epoch.sam_sharpness == pytest.approx(sgd.sam_sharpness, rel=1e-5)


def test_a_part_as_large_as_the_batch_is_sam(tmp_path):
    rows = {"sam": {**tiny.SGD, "rho": 0.05}, "parts": row("micro-batch-sam", m=64)}
    one, other = (trainer.train(case) for case in cases(tmp_path, rows, "resnet18"))
    assert [e.train_loss for e in one.history] == [e.train_loss for e in other.history]
    assert (one.test_loss, one.test_accuracy) == (other.test_loss, other.test_accuracy)


def test_a_batch_in_parts():
    assert parts(64, 64) == parts(64, 100) == [slice(0, 64)]
    assert parts(10, 4) == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert parts(9, 4) == [slice(0, 4), slice(4, 9)]  # BatchNorm cannot normalise a single one
    assert parts(3, 1) == [slice(0, 1), slice(1, 2), slice(2, 3)]


def test_late_sam_begins_where_its_part_does(tmp_path):
    (case,) = cases(tmp_path, {"row": row("late-sam", part=0.25)})
    optimizer = setup.build_optimizer(case, nn.Linear(2, 2), 200).optimizer
    assert optimizer.param_groups[0]["start_step"] == 150


def test_sam_on_needs_normalisation_layers(tmp_path):
    (case,) = cases(tmp_path, {"row": row("sam-on")}, "Linear")
    with pytest.raises(UsageError, match=r'row\.perturbation: method = "sam-on" needs a'):
        trainer.train(case)


def test_what_a_method_refuses_is_one_line(tmp_path):
    refused = {**row("momentum-sam"), "momentum": 0.0}
    (case,) = cases(tmp_path, {"row": refused})
    with pytest.raises(UsageError, match=r"optimizers\.row.*momentum must be above 0, got 0"):
        trainer.train(case)


@every_method
def test_a_method_stands_over_optimizers_of_ones_own(tmp_path, method):
    over = {"optimizer": "torch.optim:NAdam", "options": {"lr": 0.01}}
    perturbation = {"method": method, "rho": 0.05, **METHODS[method][0]}
    (case,) = cases(tmp_path, {"row": {**over, "perturbation": perturbation}})
    record = trainer.train(case)
    assert record.status == "completed", record.reason
    assert sum(e.gradient_evaluations for e in record.history) == sum(METHODS[method][1])


def test_a_methods_own_numbers_are_tuned(tmp_path):
    (case,) = cases(tmp_path, {"row": row("gsam", alpha=0.4)})
    found = with_values(case.row, {"alpha": 0.7, "rho": 0.2, "lr": 0.3})
    assert (found.method.alpha, found.rho, found.lr) == (0.7, 0.2, 0.3)
    assert dataclasses.replace(found, method=case.row.method, rho=0.05, lr=0.05) == case.row
