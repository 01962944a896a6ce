"""Records go to JSON and come back; anything else is refused; files are never half there."""

import dataclasses
import gzip
import json
import math
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import records
from flatbench.errors import UsageError
from flatbench.files import write_atomically, write_json
from flatbench.records.published import pack
from flatbench.records.reading import collect, from_json, read
from flatbench.records.record import SCHEMA_VERSION, Epoch, Record
from flatbench.records.sections import sections
from tests import synthetic

NUMBERS = st.floats(-1e150, 1e150)
POSITIVE = st.floats(0, 1e150)
PERCENTS = st.floats(0, 100)
WHOLE = st.integers(0, 2**63 - 1)
# a file in UTF-8 has no surrogates
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NAMES = TEXT.filter(bool)
JSON = st.recursive(
    st.none() | st.booleans() | WHOLE | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
EPOCHS = st.builds(
    Epoch,
    train_loss=NUMBERS,
    train_accuracy=PERCENTS,
    test_loss=NUMBERS,
    test_accuracy=PERCENTS,
    sam_sharpness=POSITIVE,
    learning_rate=POSITIVE,
    seconds=POSITIVE,
    gradient_evaluations=WHOLE,
)
RECORDS = st.builds(
    Record,
    protocol=NAMES,
    architecture=NAMES,
    optimizer=NAMES,
    seed=WHOLE,
    base_row=st.none() | TEXT,
    base=st.none() | TEXT,
    status=st.sampled_from(["completed", "diverged", "failed"]),
    reason=st.none() | TEXT,
    evaluation=st.sampled_from(["test", "validation"]),
    test_accuracy=st.none() | PERCENTS,
    best_test_accuracy=st.none() | PERCENTS,
    test_loss=st.none() | NUMBERS,
    train_accuracy=st.none() | PERCENTS,
    train_loss=st.none() | NUMBERS,
    sam_sharpness=st.none() | POSITIVE,
    sharpness=st.dictionaries(TEXT, st.none() | NUMBERS, max_size=3),
    sharpness_history=st.dictionaries(
        TEXT, st.lists(st.none() | NUMBERS, max_size=3).map(tuple), max_size=2
    ),
    gradient_evaluations=WHOLE,
    seconds=st.none() | POSITIVE,
    calibration_seconds=st.none() | POSITIVE,
    peak_memory=st.none() | POSITIVE,
    history=st.lists(EPOCHS, max_size=3).map(tuple),
    provenance=st.dictionaries(TEXT, JSON, max_size=3),
)

ONE = synthetic.grid([3], architectures=["vgg16"], means={"sgd+sam": 93.1}, epochs=2)[0]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("records")


# --- there and back


@given(record=RECORDS)
def test_a_record_comes_back_from_its_file_the_same(scratch, record):
    path = scratch / "record.json"
    write_json(path, record.to_json())
    assert read(path) == [record]


def test_the_file_is_plain_json_of_named_columns(tmp_path):
    path = tmp_path / "record.json"
    write_json(path, ONE.to_json())
    table = json.loads(path.read_text(encoding="utf-8"))
    assert table["schema_version"] == SCHEMA_VERSION
    assert table["test_accuracy"] == ONE.test_accuracy
    assert table["sam_sharpness"] == ONE.sam_sharpness
    assert table["history"]["seconds"] == [epoch.seconds for epoch in ONE.history]
    own = {
        f"{part}_{kind}" for kind in ("score", "error") for part in ("train", "test", "best_test")
    }
    assert set(table["history"]) == {f.name for f in dataclasses.fields(Epoch)} - own
    assert set(table) == {f.name for f in dataclasses.fields(Record)} - own - {"metric"}


def test_a_task_with_a_metric_of_its_own_is_kept_and_read_again(tmp_path):
    epoch = dataclasses.replace(
        ONE.history[0], test_accuracy=None, train_accuracy=None, test_error=0.5, train_error=0.25
    )
    task = dataclasses.replace(
        ONE,
        test_accuracy=None,
        metric="task.py:rmse",
        test_error=0.5,
        history=(epoch, dataclasses.replace(epoch, test_error=0.4)),
    )
    write_json(tmp_path / "record.json", task.to_json())
    (found,) = read(tmp_path / "record.json")
    assert found == task
    assert "test_score" not in task.to_json()["history"]


def test_the_id_of_a_record():
    assert ONE.id == "digits/vgg16/sgd+sam/seed3"


def test_keys_with_defaults_may_be_missing():
    names = ("protocol", "architecture", "optimizer", "seed", "base_row", "status")
    least = {name: getattr(ONE, name) for name in names}
    found = from_json(least | {"schema_version": 1}, "file")
    assert (found.id, found.history, found.test_accuracy) == (ONE.id, (), None)


def test_without_timings_is_the_same_whatever_was_timed():
    slower = dataclasses.replace(
        ONE,
        seconds=99.0,
        calibration_seconds=9.0,
        peak_memory=9e9,
        history=tuple(dataclasses.replace(epoch, seconds=50.0) for epoch in ONE.history),
        provenance=ONE.provenance | {"resumed_after": [1]},
    )
    assert slower != ONE
    assert slower.without_timings() == ONE.without_timings()
    assert slower.provenance["resumed_after"] == [1]  # the record itself is untouched


@pytest.mark.parametrize(
    "change",
    [
        {"test_accuracy": 93.0},
        {"test_loss": 0.1},
        {"sam_sharpness": 0.2},
        {"gradient_evaluations": 1},
        {"status": "diverged"},
        {"sharpness": {"hessian_trace": 1.0}},
        {"sharpness_history": {"ascent_sharpness": (1.0, 2.0)}},
        {"provenance": {"torch": "0"}},
        {"history": ONE.history[:1]},
        {"history": (ONE.history[0], dataclasses.replace(ONE.history[1], learning_rate=1.0))},
    ],
)
def test_without_timings_keeps_all_the_rest(change):
    assert dataclasses.replace(ONE, **change).without_timings() != ONE.without_timings()


# --- what is refused


def message(path):
    with pytest.raises(UsageError) as caught:
        read(path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


def of_table(folder, table):
    path = folder / "record.json"
    path.write_text(json.dumps(table), encoding="utf-8")
    return message(path)


COLUMNS = ONE.to_json()["history"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"schema_version": 2}, "schema_version must be 1 (this flatbench's), got 2"),
        ({"schema_version": 0}, "schema_version must be 1 (this flatbench's), got 0"),
        ({"schema_version": None}, "schema_version must be 1 (this flatbench's), got null"),
        ({"schema_version": "1"}, 'schema_version must be 1 (this flatbench\'s), got "1"'),
        ({"schema_version": True}, "schema_version must be one of 1, got true"),
        ({"schema_version": 1.0}, "schema_version must be one of 1, got 1.0"),
        ({"tset_accuracy": 1}, "tset_accuracy is an unknown key (did you mean 'test_accuracy'?)"),
        ({"seed": 0.0}, "seed must be a whole number of at least 0, got 0.0"),
        ({"seed": True}, "seed must be a whole number of at least 0, got true"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"seed": None}, "seed must be a whole number of at least 0, got null"),
        ({"protocol": ""}, 'protocol must be a string of 1 to 300 characters, got ""'),
        ({"protocol": 3}, "protocol must be a string of 1 to 300 characters, got 3"),
        ({"optimizer": "a" * 10**7}, "optimizer must be a string of 1 to 300 characters, got "),
        ({"base_row": "a" * 10**7}, "base_row must be a string of at most 300 characters, got "),
        ({"a" * 10**7: 1}, f'"{"a" * 100}..." is an unknown key; it must be one of '),
        (
            {"sharpness": {f"measure{i}": 1.0 for i in range(3000)}},
            "sharpness must be a table of at most 200 measures, got ",
        ),
        ({"status": "done"}, 'status must be one of "completed", "diverged", "failed", got "done"'),
        ({"test_accuracy": 100.5}, "test_accuracy must be a number from 0 to 100, got 100.5"),
        ({"test_accuracy": -1}, "test_accuracy must be a number from 0 to 100, got -1"),
        ({"test_accuracy": "93"}, 'test_accuracy must be a number from 0 to 100, got "93"'),
        ({"test_accuracy": True}, "test_accuracy must be a number from 0 to 100, got true"),
        (
            {"test_loss": 1e151},
            "test_loss must be a finite number, in size at most 1e150, got 1e+151",
        ),
        ({"sam_sharpness": -0.1}, "sam_sharpness must be a number of at least 0, got -0.1"),
        ({"sharpness": [1]}, "sharpness must be a table, got [1]"),
        (
            {"sharpness": {"x": "1"}},
            'sharpness.x must be a finite number, in size at most 1e150, got "1"',
        ),
        ({"sharpness_history": {"x": 1}}, "sharpness_history.x must be a list, got 1"),
        (
            {"sharpness_history": {"x": [{}]}},
            "sharpness_history.x must be a finite number, in size at most 1e150, got {}",
        ),
        ({"provenance": 1}, "provenance must be a table, got 1"),
        ({"history": []}, "history must be a table, got []"),
        ({"history": COLUMNS | {"loss": [1, 2]}}, "history.loss is an unknown key (did you mean"),
        ({"history": COLUMNS | {"seconds": 3}}, "history.seconds must be a list, got 3"),
        ({"history": COLUMNS | {"seconds": [1]}}, "history must be lists of one length, got {"),
        (
            {"history": COLUMNS | {"seconds": [1, "2"]}},
            'history.seconds[1] must be a number of at least 0, got "2"',
        ),
        (
            {"history": COLUMNS | {"seconds": [1, -2]}},
            "history.seconds[1] must be a number of at least 0, got -2",
        ),
        (
            {"history": COLUMNS | {"test_loss": [1, None]}},
            "history.test_loss[1] must be a finite number",
        ),
        (
            {"history": COLUMNS | {"gradient_evaluations": [1, 2.0]}},
            "history.gradient_evaluations[1] must be a whole number of at least 0, got 2.0",
        ),
        (
            {"history": COLUMNS | {"train_accuracy": [True, 1.0]}},
            "history.train_accuracy[0] must be a number from 0 to 100, got true",
        ),
    ],
)
def test_a_wrong_value_is_named(tmp_path, change, expected):
    assert of_table(tmp_path, ONE.to_json() | change).startswith(expected)


@pytest.mark.parametrize(
    "key", ["protocol", "architecture", "optimizer", "seed", "base_row", "status"]
)
def test_a_missing_key_is_named(tmp_path, key):
    table = ONE.to_json()
    del table[key]
    assert of_table(tmp_path, table) == f"{key} is missing"


def test_a_missing_schema_version_or_column_is_named(tmp_path):
    table = ONE.to_json()
    del table["schema_version"]
    assert of_table(tmp_path, table).startswith(
        "schema_version must be 1 (this flatbench's), got null"
    )
    table = ONE.to_json()
    del table["history"]["learning_rate"]
    assert of_table(tmp_path, table) == "history.learning_rate is missing"


WHOLE_FILE = json.dumps(ONE.to_json(), indent=1)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (WHOLE_FILE[:-2], "is not JSON: "),
        (WHOLE_FILE[:300], "is not JSON: "),
        ("", "is not JSON: "),
        (WHOLE_FILE + "}", "is not JSON: "),
        (WHOLE_FILE.replace(f": {ONE.seed}", ": NaN"), "is not JSON: NaN is no JSON number"),
        (WHOLE_FILE.replace(f": {ONE.seed}", ": -Infinity"), "is not JSON: -Infinity is no JSON"),
        (WHOLE_FILE.replace(f": {ONE.seed}", ": " + "1" * 5000), "is not JSON: "),
        (WHOLE_FILE.replace(f": {ONE.seed}", ": 1e999"), "seed must be a whole number"),
        ("[" * 100_000, "is not JSON: "),
        ("[]", "must hold a record or pytest-benchmark's JSON, both objects"),
        ("3", "must hold a record or pytest-benchmark's JSON, both objects"),
        ('{"benchmarks": 3}', "benchmarks must be a list, got 3"),
        ('{"benchmarks": [{}]}', "benchmarks[0].extra_info must be a table, got null"),
        ('{"benchmarks": [1]}', "benchmarks[0].extra_info must be a table, got null"),
        (
            '{"benchmarks": [{"extra_info": {}}, {"extra_info": {"record": {}}}]}',
            "benchmarks[1]: schema_version must be 1 (this flatbench's), got null",
        ),
        ("é".encode("latin-1"), "is not JSON: 'utf-8' codec can't decode"),
        ("\ufeff" + WHOLE_FILE, "is not JSON: "),
    ],
)
def test_a_file_that_is_no_record(tmp_path, content, expected):
    path = tmp_path / "record.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message(path).startswith(expected)


PACKED = gzip.compress(WHOLE_FILE.encode(), mtime=0)


def test_a_packed_file_is_read_as_its_content(tmp_path):
    path = tmp_path / "record.json.gz"
    path.write_bytes(PACKED)
    assert read(path) == [ONE]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (PACKED[:-3], "is not a whole gzip file: "),
        (PACKED[:20] + b"x" * 20 + PACKED[40:], "is not a whole gzip file: "),
        (WHOLE_FILE.encode(), "is not a whole gzip file: "),
        (gzip.compress(b"{", mtime=0), "is not JSON: "),
    ],
)
def test_a_packed_file_that_is_damaged(tmp_path, content, expected):
    path = tmp_path / "record.json.gz"
    path.write_bytes(content)
    assert message(path).startswith(expected)


@given(data=st.data())
def test_any_damage_is_read_or_refused_in_one_line(scratch, data):
    content = WHOLE_FILE.encode()
    at = data.draw(st.integers(0, len(content)))
    until = data.draw(st.integers(at, min(at + 20, len(content))))
    path = scratch / "damaged.json"
    path.write_bytes(content[:at] + data.draw(st.binary(max_size=6)) + content[until:])
    try:
        assert isinstance(read(path)[0], Record)
    except UsageError as error:
        (line,) = str(error).splitlines()
        assert line.startswith(f"{path}: ")


@given(table=st.dictionaries(st.sampled_from([*ONE.to_json(), "history"]), JSON, min_size=1))
def test_any_value_anywhere_is_read_or_refused_in_one_line(table):
    try:
        assert isinstance(from_json(ONE.to_json() | table, "file"), Record)
    except UsageError as error:
        (line,) = str(error).splitlines()
        assert line.startswith("file: ")


def test_a_file_that_cannot_be_read(tmp_path):
    assert message(tmp_path / "none.json") == "cannot be read: No such file or directory"
    assert message(tmp_path) == "cannot be read: Is a directory"


# --- several files


def test_the_records_of_the_json_of_pytest_benchmark(tmp_path):
    path = tmp_path / "benchmark.json"
    two = synthetic.grid([0, 1], architectures=["vgg16"], means={"sgd": 90})
    benchmarks = [{"extra_info": {"record": record.to_json()}} for record in two]
    path.write_text(json.dumps({"benchmarks": [*benchmarks, {"extra_info": {"bytes": 3}}]}))
    assert read(path) == two


def test_collect_takes_files_and_folders(tmp_path):
    records = synthetic.grid([0, 1], architectures=["vgg16"], means={"sgd": 90, "adam": 70})
    for i, record in enumerate(records):
        write_json(tmp_path / "records" / f"{i}.json", record.to_json())
    (tmp_path / "records" / "notes.txt").write_text("no record")
    write_json(tmp_path / "records" / "below" / "9.json", {"not": "read"})
    write_json(tmp_path / "one.json", ONE.to_json())
    assert collect([tmp_path / "one.json", tmp_path / "records"]) == [ONE, *records]
    # other runs, as a baseline's, which lie packed beside a folder's own: read where they are named
    packed = tmp_path / "records" / "baseline.json.gz"
    packed.write_bytes(pack([ONE, *records]))
    assert collect([tmp_path / "records"]) == records
    assert collect([packed]) == [ONE, *records]


def test_collecting_nothing_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    write_json(tmp_path / "steps.json", {"benchmarks": []})
    for paths, expected in (
        ([tmp_path / "none"], f"{tmp_path / 'none'}: no such file or folder"),
        ([tmp_path / "empty"], f"{tmp_path / 'empty'}: holds no record"),
        ([tmp_path / "steps.json"], f"{tmp_path / 'steps.json'}: holds no record"),
    ):
        with pytest.raises(UsageError) as caught:
            collect(paths)
        assert str(caught.value) == expected


# --- writing


def test_what_is_not_json_is_not_written(tmp_path):
    path = tmp_path / "record.json"
    write_json(path, {"a": 1})
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(path, {"a": value})
    assert json.loads(path.read_text()) == {"a": 1}


def test_folders_are_made_and_others_may_read_the_file(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(path.parent.iterdir()) == [path]


class Interrupted(BaseException):
    """What Ctrl-C raises is no Exception either."""


@pytest.fixture(params=["fsync", "replace", "fdopen"])
def interrupted(request, monkeypatch):
    def interrupt(*arguments):
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(os, request.param, interrupt)
        yield request.param


@pytest.mark.parametrize("before", [b"as it was", None])
def test_an_interrupted_write_leaves_the_folder_as_it_was(tmp_path, interrupted, before):
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(Interrupted):
        write_atomically(path, b"new" * 10_000)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([before] if before else [])


def test_the_new_file_is_on_the_disk_before_it_has_the_name(tmp_path, monkeypatch):
    """After a power cut one of the two files is whole."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    done = []

    def watched(name):
        real = getattr(os, name)

        def call(*arguments):
            if name == "fsync":
                kind = "folder" if stat.S_ISDIR(os.fstat(arguments[0]).st_mode) else "file"
                done.append((f"fsync {kind}", path.read_bytes()))
                if kind == "file":
                    assert os.fstat(arguments[0]).st_size == len(b"newer")
            else:
                done.append((name, path.read_bytes()))
            return real(*arguments)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, watched(name))
    write_atomically(path, b"newer")
    assert done == [("fsync file", b"old"), ("replace", b"old"), ("fsync folder", b"newer")]


def test_the_benchmarks_records_are_the_same_in_every_form(tmp_path):
    """Each another seed of its cell: a report takes no case twice."""
    made = {form: collect([records.write(150, form, tmp_path)]) for form in records.FORMS}
    ids = [record.id for record in made["benchmark.json"]]
    assert len(set(ids)) == 150
    for found in made.values():
        assert sorted(found, key=lambda r: r.id) == sorted(
            made["benchmark.json"], key=lambda r: r.id
        )
    assert {section.protocol for section in sections(made["folder"])} == {"digits"}


@pytest.mark.parametrize("place", [0, 7, 14])
@pytest.mark.parametrize("wrong", [-1.0, 1e200, math.nan, math.inf, None, "1", True])
def test_a_wrong_number_is_found_wherever_it_stands_in_a_column(place, wrong):
    """A column is checked by its ends, which a NaN in the middle is not among."""
    (made,) = synthetic.grid([0], architectures=["vgg16"], means={"sgd": 90.0}, epochs=15)
    table = made.to_json()
    table["history"]["seconds"][place] = wrong
    with pytest.raises(UsageError, match=rf"history\.seconds\[{place}\] must be a number"):
        from_json(table, "file")
