"""Records grouped by cell and paired by seed: the one place that the gate and the report share."""

import dataclasses

from flatbench.records.sections import differences, paired, sections
from tests.synthetic import grid, record


def test_cells_come_in_the_tables_order_and_without_empty_ones():
    records = [*reversed(grid([0, 1])), record("extra", "vgg16")]
    (section,) = sections(records)
    known = [(a, row) for a in section.architectures for row in section.optimizers]
    assert list(section.cells) == [key for key in known if key != ("resnet18", "extra")]
    assert section.architectures == ("resnet18", "vgg16")
    assert all((r.architecture, r.optimizer) == k for k, c in section.cells.items() for r in c)
    assert sum(map(len, section.cells.values())) == len(records)
    assert section.cell("resnet18", "extra") == ()


def test_a_case_given_twice_stands_in_its_cell_once():
    (section,) = sections([*grid([0]), *grid([0])])
    assert {len(cell) for cell in section.cells.values()} == {1}


def test_gains_and_pairs_are_of_the_seeds_that_both_rows_completed():
    rows = {
        "sgd": [(0, 80.0), (1, 81.0), (2, 82.0), (3, None)],
        "sgd+sam": [(3, 93.0), (2, 92.5), (1, 91.0), (5, 95.0)],
    }
    records = [
        record(
            row, seed=seed, test_accuracy=accuracy, status="completed" if accuracy else "diverged"
        )
        for row, runs in rows.items()
        for seed, accuracy in runs
    ]
    (section,) = sections(records)
    assert section.gains("resnet18", "sgd+sam", "sgd") == {1: 10.0, 2: 10.5}
    assert section.gains("vgg16", "sgd+sam", "sgd") == {}
    pairs = paired(section.cell("resnet18", "sgd+sam"), section.cell("resnet18", "sgd"))
    assert {s: (a.optimizer, b.optimizer) for s, (a, b) in pairs.items()} == {
        1: ("sgd+sam", "sgd"),
        2: ("sgd+sam", "sgd"),
    }
    assert differences(pairs) == {1: 10.0, 2: 10.5}


def test_differences_are_of_any_quantity_that_both_runs_have():
    one = [record(seed=s, sharpness={"trace": 3.0 + s}, sam_sharpness=None) for s in range(3)]
    other = [dataclasses.replace(r, sharpness={"trace": 1.0 if r.seed else None}) for r in one]
    pairs = paired(one, other)
    assert differences(pairs, "trace") == {1: 3.0, 2: 4.0}
    assert differences(pairs, "sam_sharpness") == {}


def test_rows_of_an_unknown_protocol_keep_the_order_of_its_file():
    places = {"zebra": (0, 1), "ant": (1, 1), "bee": (2, 1)}
    made = [record(row, "net", protocol="mine", place=at) for row, at in sorted(places.items())]
    other = [record("ant", "first", protocol="mine", place=(1, 0))]
    (section,) = sections([record("older", "net", protocol="mine"), *made, *other])
    assert section.optimizers == ("zebra", "ant", "bee", "older")
    assert section.architectures == ("first", "net")


def test_rounding_alone_is_no_difference():
    one, other = 0.1 + 0.2, 0.3
    assert one != other
    found = {0: (record(seed=0, test_accuracy=one), record(seed=0, test_accuracy=other))}
    assert differences(found) == {0: 0.0}
