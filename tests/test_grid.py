"""`pytest benchmarks`, end to end, as a user runs it: in a process of its own."""

import dataclasses
import json
import os
import pty
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from flatbench import gate
from flatbench.files import write_json
from flatbench.records import reading
from tests import synthetic, tiny

ROOT = Path(__file__).parents[1]


@dataclass
class Outcome:
    code: int
    text: str
    results: Path

    def json(self, name):
        return json.loads((self.results / "tiny" / name).read_text())


def command(protocol, results, *options):
    fixed = ["-p", "no:cacheprovider", "--workers", "1", "--device", "cpu"]
    where = ["--protocol", str(protocol), "--results", str(results)]
    return [sys.executable, "-m", "pytest", "benchmarks", *fixed, *where, *options]


def run(protocol, results, *options):
    done = subprocess.run(
        command(protocol, results, *options),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return Outcome(done.returncode, done.stdout + done.stderr, results)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("grid")


@pytest.fixture(scope="module")
def protocol(folder):
    wild = {"base": "sgd", "lr": 1e30}
    rows = {"sgd": tiny.SGD, "sgd+sam": {**tiny.SGD, "rho": 0.05}, "wild": wild}
    return tiny.write(folder, tiny.table(optimizers=rows))


@pytest.fixture(scope="module")
def whole(folder, protocol):
    return run(protocol, folder / "whole", "-v")


def test_each_case_has_a_readable_test(whole):
    for case in ("sgd-seed0", "sgd+sam-seed0"):
        assert re.search(
            rf"test_generalization\[tiny-resnet18-{re.escape(case)}\] PASSED", whole.text
        )
    assert "test_against[tiny-resnet18-sgd+sam] SKIPPED" in whole.text


def test_a_diverging_case_fails_alone_and_is_shown(whole):
    assert whole.code == 1
    assert "1 failed, 2 passed, 4 skipped" in whole.text
    assert "tiny/resnet18/wild/seed0: diverged in epoch 1 of 2: the training loss" in whole.text
    assert re.search(r"\| wild +\|.*diverged", whole.text)
    assert "nan" not in whole.text.lower().replace("nanmean", "")


def test_the_json_is_pytest_benchmarks_and_holds_the_records(whole):
    table = whole.json("benchmark.json")
    assert {"machine_info", "commit_info", "benchmarks", "version"} <= table.keys()
    assert not {"node", "release"} & table["machine_info"].keys()
    params = [benchmark["params"] for benchmark in table["benchmarks"]]
    ids = ["tiny/resnet18/sgd/seed0", "tiny/resnet18/sgd+sam/seed0", "tiny/resnet18/wild/seed0"]
    assert params == [{"flatbench_case": case} for case in ids]
    records = reading.read(whole.results / "tiny" / "benchmark.json")
    assert [(r.optimizer, r.status) for r in records] == [
        ("sgd", "completed"),
        ("sgd+sam", "completed"),
        ("wild", "diverged"),
    ]
    assert records[0].test_accuracy is not None
    assert records[1].sam_sharpness is not None


def test_the_time_of_a_case_is_its_training_time(whole):
    for benchmark in whole.json("benchmark.json")["benchmarks"]:
        assert benchmark["stats"]["rounds"] == 1
        seconds = benchmark["extra_info"]["record"]["seconds"]
        assert benchmark["stats"]["mean"] == pytest.approx(seconds, rel=1e-9, abs=1e-12)


def test_each_record_is_kept_by_itself(whole):
    together = {r.id: r for r in reading.read(whole.results / "tiny" / "benchmark.json")}
    alone = reading.collect([whole.results / "tiny" / "records"])
    assert {r.id: r for r in alone} == together


def test_the_table_is_printed_and_kept(whole):
    report = (whole.results / "tiny" / "report.md").read_text()
    (row,) = re.findall(r"^\| sgd +\|.*$", report, flags=re.M)[:1]
    assert row in whole.text
    assert "### Test accuracy (%)" in whole.text
    assert whole.text.index("### Test accuracy") > whole.text.index("benchmark 'generalization'")


def test_no_live_line_where_there_is_no_terminal(whole):
    assert "cases ·" not in whole.text
    assert "\x1b[K" not in whole.text


@pytest.fixture
def impossible(whole, protocol):
    """Thresholds to which no run of sgd keeps."""
    (sgd, *_) = reading.read(whole.results / "tiny" / "benchmark.json")
    bound = gate.Bound("at_least", 99.9, "linear", 99.95, 0.01)
    thresholds = gate.Thresholds(
        protocol="tiny",
        evaluation="test",
        common_hash=sgd.provenance["common_hash"],
        level=0.999,
        pair_level=0.99,
        seeds=tuple(range(10)),
        grid_seeds=3,
        commit="abc1234",
        cells={
            ("resnet18", "sgd"): gate.CellThreshold(
                10, sgd.provenance["cell_hash"], {"test_accuracy": bound}
            )
        },
        pairs={},
    )
    path = protocol.parent / "thresholds.toml"
    gate.write_thresholds(path, thresholds)
    return str(path)


def files_of_the_grid(whole):
    return [(whole.results / "tiny" / n).read_bytes() for n in ("benchmark.json", "report.md")]


def test_a_selection_leaves_the_files_of_the_whole_grid_alone(whole, protocol, impossible):
    """And the failure is one line a bound."""
    before = files_of_the_grid(whole)
    (sgd, *_) = reading.read(whole.results / "tiny" / "benchmark.json")
    part = run(protocol, whole.results, "-k", "sgd-seed0", "--thresholds", impossible)
    assert part.code == 1
    (line,) = [x for x in part.text.splitlines() if x.startswith("tiny/resnet18/sgd/seed0: ")]
    assert "is below 99.9" in line
    assert "10 seeds, level 0.999, commit abc1234" in line
    assert files_of_the_grid(whole) == before
    selected = reading.read(whole.results / "tiny" / "selection.json")
    assert [r.id for r in selected] == [sgd.id]
    same = {"provenance": {}}  # the same seed, the same bits
    assert selected[0].without_timings() | same == sgd.without_timings() | same
    assert "stopped" not in part.text


def test_a_grid_that_stops_at_a_failure_leaves_them_alone_too(whole, protocol, impossible):
    before = files_of_the_grid(whole)
    stopped = run(protocol, whole.results, "-x", "--resume", "--thresholds", impossible)
    assert stopped.code == 1
    assert files_of_the_grid(whole) == before
    selected = reading.read(whole.results / "tiny" / "selection.json")
    assert [r.optimizer for r in selected] == ["sgd"]
    assert "stopped when 1 of 3 cases had been tested: selection.json" in stopped.text


def gated(whole, protocol, baseline, *options):
    """Run sgd's case again, or rather read its record again, against a baseline."""
    chosen = ("-k", "sgd-seed0 or gate", "--resume", "--gate", str(baseline))
    return run(protocol, whole.results, *chosen, *options)


def baseline_near(whole, folder, accuracy):
    (sgd,) = reading.read(whole.results / "tiny" / "records" / "resnet18-sgd-seed0.json")
    for i in range(10):
        twin = dataclasses.replace(sgd, seed=100 + i, test_accuracy=accuracy + i / 10)
        write_json(folder / f"{i}.json", twin.to_json())
    return folder


def test_the_gate_passes_what_is_as_good_as_the_baseline(whole, protocol, tmp_path):
    found = gated(whole, protocol, baseline_near(whole, tmp_path, 1.0), "-v")
    assert found.code == 0
    assert "test_gate PASSED" in found.text
    # and says what it could not have failed: the ten are twins in all but their accuracies
    assert "can't check: tiny/resnet18/sgd: sam_sharpness" in found.text
    assert re.search(r"^gate: can't tell: none of \d+ checks failed, but \d+", found.text, re.M)
    assert "not checked: no thresholds: nothing holds tiny to a bound" in found.text


def test_the_gate_fails_a_regression_in_one_line_and_in_junit(
    whole, protocol, tmp_path, monkeypatch
):
    summary, junit = tmp_path / "summary.md", tmp_path / "junit.xml"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    baseline = baseline_near(whole, tmp_path / "baseline", 98.0)
    found = gated(whole, protocol, baseline, f"--junitxml={junit}", "--require-power", "50")
    assert "sam_sharpness" in found.text  # could not have failed, which --require-power forbids
    assert "with --require-power 50 that is a failure" in found.text
    assert found.code == 1
    (line,) = {x for x in found.text.splitlines() if x.startswith("tiny/resnet18/sgd: ")}
    assert re.search(r"test_accuracy was 98.48 in .* and is [0-9.]+ now \(1 seed\)", line)
    assert line in junit.read_text()
    assert "## Comparison with the baseline: fail: 1 of " in summary.read_text()


@pytest.mark.parametrize("name", ["report.md", "benchmark.json", "records"])
def test_a_folder_that_cannot_be_written_to_is_said_before_the_training(protocol, tmp_path, name):
    (tmp_path / "tiny").mkdir()
    if name == "records":
        (tmp_path / "tiny" / name).write_text("in the way")
    else:
        (tmp_path / "tiny" / name).mkdir()
    outcome = run(protocol, tmp_path)
    assert outcome.code == pytest.ExitCode.USAGE_ERROR
    assert re.search(rf"ERROR: {tmp_path}/tiny/{name}: .*(Is a|File exists)", outcome.text)
    assert "Traceback" not in outcome.text
    assert not [*tmp_path.rglob("*-seed0*")]


def test_a_record_that_cannot_be_written_is_no_failure_of_the_case(protocol, tmp_path):
    """CI takes exit status 1 for a regression."""
    (tmp_path / "tiny" / "records" / "resnet18-sgd-seed0.json").mkdir(parents=True)
    outcome = run(protocol, tmp_path, "--optimizers", "sgd")
    assert outcome.code == pytest.ExitCode.USAGE_ERROR
    assert "resnet18-sgd-seed0.json: Is a directory" in outcome.text
    assert "Traceback" not in outcome.text
    ran = subprocess.run(
        [sys.executable, "-m", "flatbench", "run", "--protocol", str(protocol), "--fresh",
         "--optimizers", "sgd", "--results", str(tmp_path), "--device", "cpu"],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1), ran.stderr
    assert "resnet18-sgd-seed0.json: Is a directory" in ran.stderr


def test_a_gate_of_another_protocol_stops_before_the_training(folder, protocol, tmp_path):
    write_json(tmp_path / "a.json", synthetic.record().to_json())
    wrong = run(protocol, folder / "ungated", "--gate", str(tmp_path))
    assert wrong.code == pytest.ExitCode.USAGE_ERROR
    assert "--gate must be a baseline of protocol tiny with the content" in wrong.text
    assert not (folder / "ungated").exists()


def test_a_terminal_sees_a_live_line(folder, protocol):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(protocol, folder / "live", "--optimizers", "sgd+sam", "-v"),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "COLUMNS": "160", "TERM": "xterm"},
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            chunk = os.read(ours, 4096)
        except OSError:  # how Linux says that the other end is closed
            break
        if not chunk:
            break
        seen += chunk
    os.close(ours)
    assert process.wait() == 0
    assert re.search(rb"\r0/1 cases \xc2\xb7 [^\r]*left[^\r]*\x1b\[K", seen)
    assert b"PASSED" in seen


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ("--optimizers", "sgd,sgd+sma"),
            "must be among sgd, sgd+sam, wild for protocol 'tiny', got 'sgd+sma'",
        ),
        (("--seeds", "0,0"), "--seeds: 0 is given more than once"),
        (("--thresholds", "/nowhere.toml"), "/nowhere.toml: cannot be read"),
        (("--gate", "/nowhere"), "/nowhere: no such file or folder"),
        pytest.param(
            ("--device", "cuda"),
            "finds no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_a_mistake_is_one_line_and_a_usage_error(folder, protocol, options, line):
    wrong = run(protocol, folder / "wrong", *options)
    assert wrong.code == pytest.ExitCode.USAGE_ERROR
    assert len([x for x in wrong.text.splitlines() if line in x]) == 1
    assert "Traceback" not in wrong.text
    assert not (folder / "wrong").exists()


def test_a_protocol_that_is_not_there_is_one_line(folder):
    wrong = run(folder / "missing.toml", folder / "wrong")
    assert wrong.code == pytest.ExitCode.USAGE_ERROR
    assert "missing.toml: cannot be read" in wrong.text
    assert "Traceback" not in wrong.text
