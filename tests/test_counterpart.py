"""One protocol's runs against another's: numpy's and scipy's numbers, by cell and over cells."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from flatbench.records import sections
from flatbench.report import chapters, render
from tests import tiny
from tests.synthetic import grid, record

ROWS = ("sgd", "sgd+sam")
MEANS = {"sgd": 88.0, "sgd+sam": 92.0}


@pytest.fixture
def protocols(tmp_path):
    whole = tiny.table(model={"width": 4, "architectures": ["resnet18", "vgg16"]})
    base = tiny.protocol(tmp_path, whole)
    training = {**whole["training"], "precision": "bf16"}
    other = whole | {"training": training, "compare_with": "tiny"}
    return base, tiny.protocol(tmp_path, other, "tiny-bf16")


def runs(protocol, generator, seeds=range(5), **fields):
    of_it = {"common_hash": protocol.common_hash()}
    return grid(
        seeds, generator=generator, means=MEANS, protocol=protocol.name, provenance=of_it, **fields
    )


def table(records, protocols, title):
    found = [
        t for chapter in chapters(records, protocols) for t in chapter.tables if title in t.title
    ]
    return found[0] if found else None


def cell(made, row, column):
    return dict(made.rows)[row][made.columns.index(column)].text


def test_differences_are_by_seed_and_the_margins_of_seed_means(protocols):
    one, other = runs(protocols[0], 1, epochs=2), runs(protocols[1], 2, epochs=2)
    made = table([*one, *other], protocols, "Difference in test accuracy by seed")
    assert made.title.endswith("tiny-bf16 − tiny: seeds 0–4")

    def accuracies(records):  # [row, architecture, seed]
        by_case = {(r.optimizer, r.architecture, r.seed): r.test_accuracy for r in records}
        return np.array(
            [[[by_case[o, a, s] for s in range(5)] for a in ("resnet18", "vgg16")] for o in ROWS]
        )

    differences = accuracies(other) - accuracies(one)
    for row, column, values in (
        ("sgd", "vgg16", differences[0, 1]),
        ("sgd", "all", differences[0].mean(0)),
        ("all", "resnet18", differences[:, 0].mean(0)),
        ("all", "all", differences.mean((0, 1))),
    ):
        low, high = stats.t.interval(0.95, 4, values.mean(), stats.sem(values))
        text = f"{values.mean():+.2f} ({low:+.2f} to {high:+.2f})".replace("-", "−")
        assert cell(made, row, column) == text


def test_only_seeds_that_both_completed_count(protocols):
    one, other = runs(protocols[0], 1), runs(protocols[1], 2, range(1, 7))
    gone = dataclasses.replace(other[0], status="diverged", test_accuracy=None, reason="lost")
    other[0] = gone  # of seed 1
    made = table([*one, *other], protocols, "Difference in test accuracy by seed")
    assert made.title.endswith("seeds 1–4")
    assert cell(made, gone.optimizer, gone.architecture).endswith("(n = 3)")
    assert cell(made, "all", "all").endswith("(n = 3)")
    assert "n = 4 pairs unless" in made.note


def test_a_completed_run_without_an_accuracy_has_no_difference(protocols):
    one, other = runs(protocols[0], 1), runs(protocols[1], 2)
    other[0] = dataclasses.replace(other[0], test_accuracy=None)
    made = table([*one, *other], protocols, "Difference in test accuracy by seed")
    assert cell(made, other[0].optimizer, other[0].architecture).endswith("(n = 4)")


def test_times_are_ratios_of_relative_times(protocols):
    def timed(protocol, seconds, calibration):
        found = runs(protocol, 1)
        return [
            dataclasses.replace(r, seconds=seconds, calibration_seconds=calibration) for r in found
        ]

    both = [*timed(protocols[0], 10.0, 0.01), *timed(protocols[1], 16.0, 0.02)]
    made = table(both, protocols, "Training time, tiny-bf16 / tiny")
    assert {c.text for _, cells in made.rows for c in cells} == {"0.80×"}
    untimed = [*runs(protocols[0], 1), *runs(protocols[1], 2)]
    made = table(untimed, protocols, "Training time")
    assert {c.text for _, cells in made.rows for c in cells} == {"—"}


def test_without_the_other_protocol_there_is_no_such_table(protocols):
    assert table(runs(protocols[1], 2), protocols, "Difference in") is None
    no_common_seed = [*runs(protocols[0], 1, range(3)), *runs(protocols[1], 1, range(3, 6))]
    assert table(no_common_seed, protocols, "Difference in") is None
    changed = [record(r.optimizer, r.architecture, r.seed, protocol="tiny-bf16") for r in grid()]
    assert table([*runs(protocols[0], 1), *changed], protocols, "Difference in") is None


@pytest.mark.parametrize("form", ["markdown", "html", "latex"])
def test_every_format_has_it(protocols, form):
    text = render([*runs(protocols[0], 1), *runs(protocols[1], 2)], form, protocols)
    assert "Difference in test accuracy by seed" in text


def test_a_shipped_protocols_counterpart_is_found_by_its_name(protocols, monkeypatch):
    """As the command has it: no protocol is handed over, and each file says what it goes with."""
    shipped = {protocol.name: protocol for protocol in protocols}
    monkeypatch.setattr(sections, "available", lambda: tuple(shipped))
    monkeypatch.setattr(sections, "load", shipped.__getitem__)
    assert "Difference in test accuracy by seed" in render(
        [*runs(protocols[0], 1), *runs(protocols[1], 2)]
    )
