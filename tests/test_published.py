"""What the package ships of the published results, and to whom it is given."""

import dataclasses

import pytest

from docs.publish import NAMES, RESULTS
from flatbench.protocols.reading import load
from flatbench.records.published import FOLDER, pack, published
from flatbench.records.reading import read
from tests import tiny


@pytest.mark.checkout
@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_records_are_the_published_ones(name):
    assert published(load(name)) == read(RESULTS / name / "benchmark.json")


@pytest.mark.checkout
@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_file_is_what_the_command_makes_and_small(name):
    path = FOLDER / f"{name}.json.gz"
    packed = pack(read(RESULTS / name / "benchmark.json"))
    assert path.read_bytes() == packed  # else: python -m docs.publish
    assert path.stat().st_size < 2**20


def test_an_edited_protocol_has_no_published_records(tmp_path):
    digits = load("digits")
    longer = dataclasses.replace(digits.training, epochs=16)
    assert published(dataclasses.replace(digits, training=longer)) == []
    assert published(tiny.protocol(tmp_path)) == []


def test_a_row_that_was_changed_has_none():
    digits = load("digits")
    rows = {**digits.optimizers}
    rows["adam"] = dataclasses.replace(rows["adam"], lr=0.5)
    found = published(dataclasses.replace(digits, optimizers=rows))
    # its own values on VGG-16 are an override, which was not changed
    cells = {(r.optimizer, r.architecture) for r in found}
    assert ("adam", "resnet18") not in cells
    assert ("sgd", "resnet18") in cells
