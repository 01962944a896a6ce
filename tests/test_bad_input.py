"""Whatever is fed in: a right table, or one clear line. Never a traceback, never a wrong table."""

import contextlib
import copy
import io
import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from flatbench import cli, gate, report
from flatbench.errors import UsageError
from flatbench.gate.compare import compare
from flatbench.protocols import reading
from flatbench.records.reading import collect, from_json
from tests.inputs import JSON, NAMES, mutated, respelled
from tests.synthetic import grid, record

pytestmark = pytest.mark.filterwarnings("ignore:Glyph")

LIMITS = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

VALID = [r.to_json() for r in grid(range(2), means={"sgd": 88.0, "sgd+sam": 93.0}, epochs=2)]


def one_line_or(action):
    """Return the action's result, or None after a `UsageError` of one printable line."""
    try:
        return action()
    except UsageError as error:
        line = str(error)
        assert line
        assert "\n" not in line
        assert "Traceback" not in line
        return None


def check_text(text):
    """A report can be written, and no number in its tables is not a number."""
    text.encode()
    for line in text.splitlines():
        if line.startswith("| ") and "|--" not in line:
            cells = [c.strip() for c in re.split(r"(?<!\\)\|", line)[2:-1]]
            assert not any(re.fullmatch(r"[*+−-]*(nan|inf)\b.*", cell) for cell in cells), line


def everything_of(records):
    for form in report.FORMATS:
        text = one_line_or(lambda form=form: report.render(records, form))
        if text is not None and form == "markdown":
            check_text(text)
        elif text is not None:
            text.encode()
    one_line_or(lambda: gate.derive(records))
    one_line_or(lambda: compare(records, records))


@LIMITS
@given(table=mutated(VALID[0]))
def test_a_changed_record_is_read_right_or_refused(table):
    found = one_line_or(lambda: from_json(table, "file.json"))
    if found is not None:
        json.dumps(found.to_json(), allow_nan=False)
        assert from_json(found.to_json(), "again") == found


@pytest.mark.parametrize(
    "value",
    [10**400, 1e308, -(10**400), "1", [], True],
    ids=["huge-int", "huge-float", "huge-negative", "text", "list", "true"],
)
@pytest.mark.parametrize(
    "place",
    [
        ("test_accuracy",),
        ("test_loss",),
        ("sam_sharpness",),
        ("seed",),
        ("seconds",),
        ("sharpness", "trace"),
        ("history", "test_loss", 1),
        ("history", "gradient_evaluations", 0),
    ],
)
def test_numbers_that_cannot_be_worked_with_are_refused_by_name(place, value):
    table = copy.deepcopy(VALID[0])
    inner = table
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(UsageError, match=place[1] if "history" in place else place[-1]) as error:
        from_json(table, "file.json")
    assert " must be " in str(error.value)


@settings(LIMITS, max_examples=60)
@given(tables=mutated(VALID))
def test_a_grid_with_changes_makes_a_right_report_or_none(tables, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"benchmarks": [{"extra_info": {"record": t}} for t in tables]}))
    records = one_line_or(lambda: collect([path]))
    if records is not None:
        text = one_line_or(lambda: report.render(records))
        if text is not None:
            check_text(text)
        one_line_or(lambda: compare(collect([path]), grid(range(2))))


@LIMITS
@given(value=JSON)
def test_any_json_is_a_record_file_or_refused(value, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(value))
    one_line_or(lambda: collect([path]))
    path.write_text(json.dumps({"benchmarks": value}))
    one_line_or(lambda: collect([path]))


@LIMITS
@given(data=st.data())
def test_a_truncated_or_garbled_record_file_is_refused(data, tmp_path):
    whole = json.dumps({"benchmarks": [{"extra_info": {"record": t}} for t in VALID]}).encode()
    content = bytearray(whole[: data.draw(st.integers(0, len(whole) - 1))])
    if data.draw(st.booleans()) and content:
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "results.json"
    path.write_bytes(bytes(content))
    with pytest.raises(UsageError) as error:
        collect([path])
    assert str(error.value).startswith(f"{path}: is not JSON: ")
    assert "\n" not in str(error.value)


@settings(LIMITS, max_examples=40)
@given(
    names=st.lists(NAMES, min_size=3, max_size=3),
    reason=NAMES,
    provenance=st.dictionaries(st.sampled_from(["commit", "device", "torch", "dirty"]), JSON),
)
def test_hostile_names_pass_through_every_format(names, reason, provenance):
    name, architecture, optimizer = names
    records = [
        record(optimizer, architecture, seed, protocol=name, test_accuracy=50.0 + seed)
        for seed in range(2)
    ]
    records += [
        record(
            optimizer,
            architecture,
            9,
            protocol=name,
            status="failed",
            reason=reason,
            provenance=provenance,
        )
    ]
    everything_of(records)
    text = report.render(records)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert (
        len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows if "--" not in row}) == 1
    )


@settings(LIMITS, max_examples=40)
@given(
    accuracies=st.lists(st.floats(0, 100) | st.none(), min_size=1, max_size=12),
    sharpness=st.lists(
        st.floats(0, 1e150) | st.sampled_from([0.0, 5e-324, 1e150]), min_size=12, max_size=12
    ),
    statuses=st.lists(
        st.sampled_from(["completed", "diverged", "failed"]), min_size=12, max_size=12
    ),
)
def test_odd_numbers_never_make_nan_or_infinity(accuracies, sharpness, statuses):
    records = [
        record(
            row,
            seed=seed,
            test_accuracy=accuracy,
            sam_sharpness=value,
            status=status,
            train_accuracy=accuracy,
        )
        for row in ("sgd", "sgd+sam")
        for seed, (accuracy, value, status) in enumerate(
            zip(accuracies, sharpness, statuses, strict=False)
        )
    ]
    everything_of(records)
    made = one_line_or(lambda: gate.derive(records))
    if made is not None:
        bounds = [b for cell in made.cells.values() for b in cell.bounds.values()]
        assert all(math.isfinite(b.limit) for b in bounds)
        for r in records:
            gate.check_case(r, made)


@LIMITS
@given(data=st.data())
def test_changed_toml_is_read_or_refused(data, tmp_path):
    """A protocol's and a thresholds file's text: a stretch replaced by others' or by noise."""
    source = reading.PROTOCOLS / "digits.toml"
    path, read = tmp_path / "mine.toml", reading.load
    if data.draw(st.booleans()):
        thresholds = gate.derive(grid(range(10), means={"sgd": 80.0, "sgd+sam": 90.0}))
        gate.write_thresholds(path, thresholds)
        source, read = path, lambda name: gate.read_thresholds(Path(name))
    changed = data.draw(respelled(source.read_text(encoding="utf-8")))
    path.write_text(changed, encoding="utf-8")
    one_line_or(lambda: read(str(path)))


@LIMITS
@given(content=st.binary(max_size=40))
@example(content=b"seeds = " + b"9" * 5000)
@example(content=b"seeds = " + b"[" * 3000)
def test_noise_is_no_toml(content, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError):
        reading.load(str(path))
    with pytest.raises(UsageError):
        gate.read_thresholds(path)


def run(*arguments):
    """The command line's exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(arguments)
    return code, out.getvalue(), err.getvalue()


def saved(path, records):
    path.write_text(
        json.dumps({"benchmarks": [{"extra_info": {"record": r.to_json()}} for r in records]})
    )
    return str(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is not JSON"),
        ("[1]", "must hold a record"),
        ('{"benchmarks": []}', "holds no record"),
        ('{"schema_version": 99}', "schema_version must be 1 (this flatbench's), got 99"),
        ('{"schema_version": 1, "seed": NaN}', "NaN is no JSON number"),
        ("[" * 100_000, "is not JSON"),
        ("\ufeff{}", "is not JSON"),
        ('{"schema_version": 1, "protocol": "\\ud800"}', "is not JSON: 'utf-8' codec can't encode"),
    ],
)
def test_the_command_line_says_one_line_and_exits_2(content, says, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(content, encoding="utf-8")
    code, out, err = run("report", str(path))
    assert (code, out) == (2, "")
    assert says in err
    assert err.startswith("flatbench: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda rs: [*rs, record(seed=0, test_accuracy=1.0)],  # a case twice
        lambda rs: [*rs, record(seed=9, provenance={"common_hash": "x"})],  # two protocols
    ],
)
def test_a_table_that_would_be_wrong_is_not_made(spoil, tmp_path):
    good = saved(tmp_path / "good.json", grid())
    code, out, err = run("report", good)
    assert (code, err) == (0, "")
    assert out.startswith("## Protocol digits")
    code, out, err = run("report", saved(tmp_path / "bad.json", spoil(grid())))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1


def test_all_diverged_is_a_table_that_says_so(tmp_path):
    lost = [record(o, seed=s, status="diverged") for o in ("sgd", "sgd+sam") for s in range(3)]
    code, out, _ = run("report", saved(tmp_path / "lost.json", lost))
    assert code == 0
    assert out.count("3 diverged") == 2  # two rows of the table of accuracy
    everything_of(lost)
