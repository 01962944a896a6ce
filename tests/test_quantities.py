"""The list of quantities: complete, and asked by the gate which side is worse."""

import dataclasses
import typing

import numpy as np
import pytest

from flatbench import gate
from flatbench.errors import UsageError
from flatbench.gate import compare
from flatbench.protocols.protocol import Measure
from flatbench.records import quantities
from flatbench.records.quantities import QUANTITIES, Quantity, quantity, results_of, value_of
from flatbench.records.record import Epoch, Record
from flatbench.records.sections import sections
from tests.synthetic import grid, record

MEASURES = typing.get_args(Measure)


def test_every_measure_of_a_protocol_and_every_number_of_a_record_is_listed():
    assert set(MEASURES) <= set(QUANTITIES)
    # of the case and of the machine, not of the run
    others = {"seed", "schema_version", "calibration_seconds", "place"}
    numbers = {
        f.name
        for f in dataclasses.fields(Record)
        if any(word in str(f.type) for word in ("float", "int", "Percent", "Number"))
        and "dict" not in str(f.type)
    }
    assert numbers - others == quantities.FIELDS - {"relative_time"}
    assert {f.name for f in dataclasses.fields(Epoch)} - {"learning_rate"} <= set(QUANTITIES)


def test_accuracies_and_scores_alone_are_better_when_higher():
    higher = {name for name, q in QUANTITIES.items() if q.better == "higher"}
    assert higher == {name for name in QUANTITIES if name.endswith(("accuracy", "score"))}


def test_runs_are_judged_by_what_they_have():
    bare = {"test_accuracy": None, "metric": "task.py:m"}
    lost = record(status="diverged")
    assert quantities.outcome_of([lost, record()]).name == "test_accuracy"
    assert quantities.outcome_of([]).name == "test_accuracy"
    for name in ("test_score", "test_error"):
        found = quantities.outcome_of([lost, record(**bare, **{name: 0.5})])
        assert (found.name, quantities.in_training(found)) == (name, name.replace("test", "train"))


def test_a_gain_is_positive_where_the_row_is_better():
    for name, row, base in (("test_score", 0.8, 0.5), ("test_error", 0.5, 0.8)):
        bare = {"test_accuracy": None, "metric": "task.py:m"}
        records = [record("sgd", **bare, **{name: base}), record("sgd+sam", **bare, **{name: row})]
        (section,) = sections(records)
        assert section.gains("resnet18", "sgd+sam", "sgd") == {0: pytest.approx(0.3)}


def test_titles_name_the_part_and_the_true_labels():
    assert quantity("test_accuracy").titled("validation") == "validation accuracy"
    assert quantity("sam_sharpness").heading == "SAM sharpness ρ‖∇L‖ of the last epoch"
    assert quantity("m_sharpness_clean").title == "m-sharpness, true labels"
    assert quantity("test_accuracy_clean") == Quantity("test_accuracy_clean", "test_accuracy_clean")


def test_values_are_read_by_name_and_standard_errors_left_out():
    r = record(sharpness={"trace": 2.0, "trace_standard_error": 0.1, "empty": None})
    assert value_of(r, "trace") == 2.0
    assert value_of(r, "test_accuracy") == 90.0
    assert value_of(r, "nothing") is None
    assert results_of(r) == {"trace": 2.0, "test_accuracy": 90.0, "sam_sharpness": 0.1}
    assert results_of(record(status="diverged")) == {}


def test_a_standard_error_is_refused_as_a_bound_in_one_line():
    random = np.random.default_rng(0)
    records = [
        record(seed=s, sharpness={"trace": random.random(), "trace_standard_error": 0.1 + s})
        for s in range(10)
    ]
    with pytest.raises(UsageError, match="'trace_standard_error' is a standard error") as error:
        gate.derive(records, measures=("trace_standard_error",))
    assert "\n" not in str(error.value)


def test_the_gates_take_the_better_side_from_the_list(monkeypatch):
    """A measure that were better when higher is bounded below, and a rise is no regression."""
    monkeypatch.setitem(QUANTITIES, "margin", Quantity("margin", "Margin", "higher", "", "linear"))
    records = [
        dataclasses.replace(r, sharpness={"margin": r.sam_sharpness or 0.0})
        for r in grid(range(10), spread=0.5)
    ]
    bound = gate.derive(records, measures=("margin",)).cells["vgg16", "adam"].bounds["margin"]
    assert (bound.side, bound.scale) == ("at_least", "linear")
    assert bound.limit < bound.mean
    for factor, code in ((10.0, 0), (0.01, 1)):
        now = [
            dataclasses.replace(r, sharpness={"margin": factor * (r.sharpness["margin"] or 0.0)})
            for r in records
        ]
        assert compare.compare(records, now).exit_code == code
