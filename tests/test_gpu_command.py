"""`python3 -m benchmarks.gpu`: its parts with stand-ins for the card, and for real on the CPU."""

import configparser
import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_pages, gpu_parts
from benchmarks.gpu_parts import Ran, Result, Setting
from flatbench import files
from flatbench.records import provenance
from tests import tiny
from tests.synthetic import grid

pytest.importorskip("triton", reason="the parts need it")

ROOT = Path(__file__).parents[1]
CARD = "NVIDIA H100 80GB HBM3"
PARTS = ["tests", "engine", "sanitizer", "step", "trainer"]


@pytest.fixture
def here():
    return gpu.machine(torch.device("cpu")) | {"card": CARD, "compute_capability": "9.0"}


@pytest.fixture
def card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda where: CARD)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda where: (9, 0))
    monkeypatch.setattr(provenance, "driver", lambda: "580.82.07")
    monkeypatch.setattr(gpu, "missing", list)


@pytest.fixture
def parts(monkeypatch):
    """What each part is to find; what was run is kept under "ran"."""
    found = {part: Result("passed", f"{part} is fine") for part in PARTS}
    found["ran"] = Result("", "", notes=[])

    def of(part):
        def part_of(setting, run):
            found["ran"].notes.append(part)
            return found[part]

        return part_of

    for part in PARTS:
        monkeypatch.setitem(gpu_parts.PARTS, part, of(part))
    return found


def command(*arguments, code="", **environment):
    start = ["-c", f"import sys\n{code}\nfrom benchmarks.gpu import main\nsys.exit(main())"]
    return subprocess.run(
        [sys.executable, *(start if code else ["-m", "benchmarks.gpu"]), *arguments],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path):
    # hidden, should this machine have one
    done = command("--output", str(tmp_path / "out"), CUDA_VISIBLE_DEVICES="")
    said = f"benchmarks.gpu: no GPU: torch {torch.__version__} finds no CUDA device\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)
    assert list(tmp_path.iterdir()) == []


def test_all_that_is_missing_is_named_in_one_line(tmp_path):
    hide = "sys.modules |= {'pandas': None, 'pytest_benchmark': None, 'triton': None}"
    done = command("--output", str(tmp_path / "out"), code=hide, PATH="", CC="nowhere-to-be-found")
    said = "missing: triton, pandas, pytest-benchmark, a C compiler (gcc or clang, or set CC)\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"benchmarks.gpu: {said}")
    assert list(tmp_path.iterdir()) == []


def test_a_torch_that_is_too_old_is_missing(monkeypatch):
    before = gpu.missing()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.8.1+cu128")
    assert set(gpu.missing()) - set(before) == {"torch 2.9 or newer, not 2.8.1+cu128"}


def test_without_torch_the_rest_is_named_as_well():
    done = command(code="sys.modules |= {'torch': None, 'hypothesis': None}")
    assert done.stderr == "benchmarks.gpu: missing: torch, hypothesis\n"


def test_what_is_looked_for_is_what_the_parts_import():
    code = (
        "import sys, importlib.metadata, pytest\n"
        "from benchmarks import gpu_parts\n"
        "files = gpu_parts.test_files()\n"
        "files += ['benchmarks/bench_step.py', 'benchmarks/bench_trainer.py']\n"
        "assert pytest.main(['--collect-only', '-qq', *files]) == 0\n"
        "import flatbench.training.trainer\n"
        "names = importlib.metadata.packages_distributions()\n"
        "tops = {name.partition('.')[0] for name in sys.modules}\n"
        "print('imported', *{one for top in tops for one in names.get(top, [])})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    imported = set(done.stdout.splitlines()[-1].split()[1:])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    ours = {re.split(r"[>=<\[]", name)[0] for names in lists for name in names} - {"flatbench"}
    looked_for = set(gpu.PACKAGES.values())
    # pytest and torch load these where they are
    assert imported & ours <= looked_for | {"pytest-xdist", "tqdm"}
    assert looked_for - {"tabulate"} <= imported  # which the pages need


@pytest.mark.usefixtures("card")
def test_all_parts_in_turn_and_joined(tmp_path, parts, capsys):
    parts["sanitizer"] = Result("skipped", "skipped: compute-sanitizer is not found")
    out = tmp_path / "out"
    assert gpu.main(["--output", str(out)]) == 0
    assert parts["ran"].notes == PARTS
    assert {path.name for path in out.iterdir()} == {
        *(f"{part}.{suffix}" for part in PARTS for suffix in ("json", "md")),
        "gpu.md",
    }
    table = json.loads((out / "step.json").read_text())
    assert {key: table[key] for key in ("card", "compute_capability", "driver", "outcome")} == {
        "card": CARD,
        "compute_capability": "9.0",
        "driver": "580.82.07",
        "outcome": "passed",
    }
    assert table["torch"] == torch.__version__
    assert table["source_hash"] == provenance.source_hash()
    assert table["commit"] == provenance.code_version()["commit"]
    assert {"triton", "python", "command", "seconds", "details"} <= table.keys()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"| {CARD}")]
    assert [[cell.strip() for cell in row.split("|")[2:4]] for row in rows] == [
        [part, "skipped" if part == "sanitizer" else "passed"] for part in PARTS
    ]
    assert "## trainer: passed" in (out / "gpu.md").read_text()


@pytest.mark.usefixtures("card")
def test_the_folder_is_named_after_the_card(tmp_path, parts, monkeypatch):
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setattr(gpu, "suite_hash", lambda: "0123456789ab")
    assert gpu.main(["--part", "step"]) == 0
    (folder,) = (tmp_path / "results" / "gpu").iterdir()
    assert folder.name == "nvidia-h100-80gb-hbm3"
    assert {path.name for path in folder.iterdir()} == {"step.json", "step.md"}


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize(
    ("part", "outcome"),
    [("engine", "failed"), ("sanitizer", "failed"), ("step", "timed out"), ("tests", "skipped")],
)
def test_a_part_that_does_not_pass_is_exit_1(part, outcome, tmp_path, parts):
    parts[part] = Result(outcome, "something is wrong")
    assert gpu.main(["--output", str(tmp_path), "--part", part]) == 1
    assert gpu.main(["--output", str(tmp_path), "--part", "trainer"]) == 0
    assert gpu.main(["--output", str(tmp_path)]) == 1
    assert f"## {part}: {outcome}" in (tmp_path / "gpu.md").read_text()


@pytest.mark.usefixtures("card")
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert gpu.main(["--output", str(tmp_path / "file" / "out")]) == 2
    assert capsys.readouterr().err.endswith("file/out: cannot be made: Not a directory\n")


def test_a_part_that_passed_is_not_run_again(tmp_path, here, parts):
    def runs(**changes):
        before = len(parts["ran"].notes)
        gpu.run_part("step", tmp_path, here | changes.pop("here", {}), **changes)
        return len(parts["ran"].notes) - before

    assert runs() == 1
    assert runs() == 0
    assert runs(again=True) == 1
    for key in gpu_pages.IDENTITY:
        assert (key, runs(here={key: "another"})) == (key, 1)
        assert (key, runs()) == (key, 1)  # what is there now is the other one's
    assert runs(here={"commit": "another", "dirty": True}) == 0  # the sources are the same
    (tmp_path / "step.json").write_text("{")
    assert runs() == 1
    parts["step"] = Result("failed", "no")
    assert runs(again=True) == 1
    assert runs() == 1


def test_the_hash_sees_all_that_the_parts_run(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    seen = set()
    for name in ("flatbench/a.py", "flatbench/protocols/a.toml", "tests/a.py", "benchmarks/a.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    files = list(tmp_path.rglob("*.*"))
    (tmp_path / "conftest.py").touch()
    for path in [*files, tmp_path / "conftest.py"]:
        path.write_text(f"x = {str(path)!r}\n")
        gpu.suite_hash.cache_clear()
        seen.add(gpu.suite_hash())
    gpu.suite_hash.cache_clear()
    assert len(seen) == 5


def is_running(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
def test_a_part_that_exceeds_its_limit_is_ended_with_its_children(tmp_path, here, monkeypatch):
    pids = tmp_path / "pids"
    code = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "print('at work', flush=True)\n"
        "time.sleep(600)\n"
    )

    def slow(setting, run):
        assert run([sys.executable, "-c", "pass"]).code == 0  # the limit is of all commands
        run([sys.executable, "-c", code])
        raise AssertionError("it was not ended")

    monkeypatch.setitem(gpu_parts.PARTS, "step", slow)
    out = tmp_path / "out"
    out.mkdir()
    start = time.monotonic()
    table = gpu.run_part("step", out, here, limit=2.0)
    assert time.monotonic() - start < 30
    assert (table["outcome"], table["summary"]) == ("timed out", "ended after 2 s")
    assert table["details"]["output"] == ["at work"]
    assert not any(is_running(int(pid)) for pid in pids.read_text().split())
    assert {path.name for path in out.iterdir()} == {"step.json", "step.md"}
    assert gpu_parts.LIMIT == 8 * 60


def test_neither_paths_nor_the_name_of_the_host_are_written(tmp_path, here, monkeypatch):
    data_dir = tmp_path / "data"

    def talkative(setting, run):
        run([sys.executable, "-c", "pass", f"--results={setting.scratch}/x", f"--data={data_dir}"])
        row = {"says": f"{ROOT}/tests/test_sam.py:3: in {setting.scratch}/a and tests/b.py 1/2"}
        notes = ["see /opt/conda/lib/torch/nn.py, https://example.org/a/b and ~/x"]
        return Result("failed", f"in {ROOT}", {"rows": [row]}, notes, "/opt/python/lib/x.py")

    monkeypatch.setitem(gpu_parts.PARTS, "step", talkative)
    table = gpu.run_part("step", tmp_path, here, data_dir)
    assert table["command"] == ["python3 -c pass --data=DATA"]
    assert table["summary"] == "in ."
    rows = table["details"]["tables"]["rows"]
    assert rows == [{"says": "tests/test_sam.py:3: in SCRATCH/a and tests/b.py 1/2"}]
    assert table["details"]["notes"] == ["see …/nn.py, https://example.org/a/b and ~/x"]
    assert table["details"]["output"] == ["…/x.py"]
    for path in (tmp_path / "step.json", tmp_path / "step.md"):
        text = path.read_text()
        assert platform.node() not in text
        assert not any(str(folder) in text for folder in (ROOT, tmp_path, sys.prefix, Path.home()))


def test_join_shows_every_folder_and_what_was_not_run(
    tmp_path,
    here,
    parts,
    capsys,
):
    folders = [tmp_path / name for name in ("one", "two")]
    for folder, name in zip(folders, ("card one", "card two"), strict=True):
        folder.mkdir()
        gpu.run_part("tests", folder, here | {"card": name})
    gpu.run_part("engine", folders[1], here | {"card": "card two"})
    capsys.readouterr()
    arguments = ["join", *map(str, folders)]
    assert gpu.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:4]] for line in lines]
    assert cells[0] == ["card one", "tests", "passed"]
    assert cells[1] == ["card one", "engine", "not run"]
    assert cells[5:7] == [["card two", "tests", "passed"], ["card two", "engine", "passed"]]
    assert len(cells) == 10
    written = (folders[0] / "gpu.md").read_text()
    assert all(line in written for line in lines)
    assert written.count("## tests: passed") == 2
    parts["engine"] = Result("failed", "no")
    gpu.run_part("engine", folders[1], here | {"card": "card two"}, again=True)
    assert gpu.main(arguments) == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "holds no part's JSON"),
        ("{", "is not JSON"),
        ("[]", "must be the JSON of a part"),
        ('{"part": "tests"}', "must be the JSON of a part"),
    ],
)
def test_a_folder_that_cannot_be_joined_is_one_line(content, says, tmp_path, capsys):
    if content is not None:
        (tmp_path / "tests.json").write_text(content)
    assert gpu.main(["join", str(tmp_path)]) == 2
    out, error = capsys.readouterr()
    assert (out, len(error.splitlines())) == ("", 1)
    assert str(tmp_path) in error
    assert says in error


def test_the_commands_keep_their_caches_in_the_scratch_folder(
    monkeypatch,
):
    monkeypatch.setenv("PYTEST_ADDOPTS", "-x")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("TMPDIR", "/elsewhere")
    monkeypatch.setenv("FLATBENCH_DATA", "/data")
    short = gpu_parts.environment(Path("/scratch"))
    assert not {"PYTEST_ADDOPTS", "TRITON_INTERPRET"} & short.keys()
    assert short["FLATBENCH_DATA"] == "/data"
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "CUDA_CACHE_PATH", "TMPDIR"):
        assert short[name].startswith("/scratch"), name
    # 107 characters are all that a socket's path may have
    assert gpu_parts.environment(Path("/" + 90 * "s"))["TMPDIR"] == "/elsewhere"


# The parts, given what their commands would have written.

JUNIT = """<testsuites><testsuite>
<testcase classname="tests.test_aot" name="test_a" time="1.5"/>
<testcase classname="tests.test_graph" name="test_b" time="0.5">
  <failure message="AssertionError: 1 != 2&#10;more">traceback</failure></testcase>
<testcase classname="tests.test_graph" name="test_c"><error message="no"/></testcase>
<testcase classname="tests.test_graph" name="test_d">
  <skipped message="one CUDA device only"/></testcase>
</testsuite></testsuites>"""
PASSED = '<testsuite><testcase classname="tests.test_a" name="test_a" time="1"/></testsuite>'
SKIPPED = (
    '<testsuite><testcase classname="a" name="b"><skipped message="no"/></testcase></testsuite>'
)


@dataclasses.dataclass
class Stub:
    """Stands for `run`: writes the next report where the command wants one, and keeps the rest."""

    reports: list[tuple[int, str]]  # exit code, JUnit XML
    commands: list[list[str]] = dataclasses.field(default_factory=list)
    environments: list[dict[str, str]] = dataclasses.field(default_factory=list)

    def __call__(self, command, **extra):
        self.commands.append(command)
        self.environments.append(extra)
        code, content = self.reports.pop(0)
        (option,) = (word for word in command if word.startswith("--junitxml="))
        if content:
            Path(option.partition("=")[2]).write_text(content)
        return Ran(code, "the output")


def test_the_tests_part_takes_every_file_with_a_test_for_a_gpu(tmp_path):
    run = Stub([(0, PASSED)])
    result = gpu_parts.tests(Setting(tmp_path), run)
    assert (result.outcome, result.summary) == ("passed", "1 passed")
    (words,) = run.commands
    named = [word for word in words if word.startswith("tests/")]
    assert {"tests/test_optim_gpu.py", "tests/test_graph.py", "tests/test_aot.py"} <= set(named)
    assert words[words.index("--device") + 1] == "cuda"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", *named, "-k", "gpu or test_aot"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    marked = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests", "-m", "gpu"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    chosen, needed = (
        {line for line in out.stdout.splitlines() if "::" in line} for out in (done, marked)
    )
    assert needed
    assert needed <= chosen
    assert sum(line.startswith("tests/test_aot.py") for line in chosen) > 20


@pytest.mark.parametrize(
    ("code", "report", "summary"),
    [
        (1, JUNIT, "pytest ended with 1: 2 failed, 1 skipped, 1 passed"),
        (0, SKIPPED, "no test passed: 1 skipped"),
        (5, "<testsuite/>", "no test passed: none was selected"),
        (4, "", "pytest ended with 4: no report"),
        (139, PASSED, "pytest ended with 139: 1 passed"),
    ],
)
def test_tests_that_do_not_pass(code, report, summary, tmp_path):
    result = gpu_parts.tests(Setting(tmp_path), Stub([(code, report)]))
    assert (result.outcome, result.summary) == ("failed", summary)
    assert bool(result.output) == summary.startswith("pytest")


def test_a_failure_is_in_the_table_with_its_first_line(tmp_path):
    rows = gpu_parts.tests(Setting(tmp_path), Stub([(1, JUNIT)])).tables["tests"]
    assert [row["outcome"] for row in rows] == ["failed", "failed", "skipped", "passed"]
    assert rows[0] == {
        "test": "test_graph::test_b",
        "outcome": "failed",
        "seconds": 0.5,
        "says": "AssertionError: 1 != 2",
    }
    assert rows[2]["says"] == "one CUDA device only"


@pytest.fixture
def no_sanitizer(monkeypatch):
    monkeypatch.setattr(gpu_parts.shutil, "which", lambda name, path: None)


@pytest.mark.usefixtures("no_sanitizer")
@pytest.mark.parametrize(
    ("code", "report", "outcome", "says"),
    [
        (0, PASSED, "skipped", "a capture that breaks: 1 passed"),
        (5, "", "skipped", "a capture that breaks: no such test"),
        (1, JUNIT, "failed", "a capture that breaks: pytest ended with 1"),
    ],
)
def test_without_compute_sanitizer(code, report, outcome, says, tmp_path):
    result = gpu_parts.sanitizer(Setting(tmp_path), Stub([(code, report)]))
    assert result.outcome == outcome
    assert says in result.summary
    assert result.summary.startswith("skipped: compute-sanitizer is not found") == (
        outcome == "skipped"
    )


@pytest.mark.parametrize(
    ("code", "report", "outcome"),
    [(0, PASSED, "passed"), (99, PASSED, "failed"), (5, "", "failed")],
)
def test_with_compute_sanitizer(code, report, outcome, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_parts.shutil, "which", lambda name, path: f"/cuda/bin/{name}")
    run = Stub([(5, ""), (code, report)])
    assert gpu_parts.sanitizer(Setting(tmp_path), run).outcome == outcome
    words = run.commands[1]
    assert words[:5] == [
        *("/cuda/bin/compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "99"),
    ]
    assert [word for word in words if word.startswith("tests/")] == ["tests/test_optim_gpu.py"]
    assert run.environments[1] == {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    assert gpu.shown(words[:6], tmp_path, run.environments[1]) == (
        "PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 99 "
        "python3"
    )


@pytest.mark.parametrize(
    ("file", "rows", "count"),
    [
        ("tests/test_optim_gpu.py", "128_bits", 10),
        ("benchmarks/bench_step.py", Setting(Path()).step_rows, 50),
        ("benchmarks/bench_trainer.py", Setting(Path()).trainer_rows, 1),
        ("benchmarks/bench_step.py", gpu_parts.NCU_ROWS, 1),
    ],
)
def test_what_is_chosen_by_name_is_there(file, rows, count):
    assert rows in Path(gpu_parts.__file__).read_text()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", file, "-k", rows],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert sum("::" in line for line in done.stdout.splitlines()) == count


@pytest.mark.checkout
@pytest.mark.parametrize(("part", "file"), [("step", "step"), ("trainer", "trainer")])
def test_the_rows_of_a_benchmark_are_its_table(part, file, tmp_path):
    committed = (ROOT / "results" / "speed" / f"{file}.json").read_text()

    def run(command, **extra):
        (option,) = (word for word in command if word.startswith("--benchmark-json="))
        Path(option.partition("=")[2]).write_text(committed)
        return Stub([(0, PASSED)])(command)

    result = gpu_parts.PARTS[part](Setting(tmp_path), run)
    assert result.outcome == "passed"
    rows = result.tables["rows"]
    benchmarks = json.loads(committed)["benchmarks"]
    assert len(rows) == len(benchmarks) > 0
    assert [row["row"] for row in rows] == [b["param"] for b in benchmarks]
    assert rows[0]["median µs"] == pytest.approx(1e6 * benchmarks[0]["stats"]["median"])
    assert benchmarks[0]["extra_info"].items() <= rows[0].items()
    assert any("ncu " in note for note in result.notes) == (part == "step")


def engine_with(
    tmp_path,
    change=list,
    both=list,
    **setting,
):
    """The engine part of the tiny protocol, with a second run whose records were changed."""
    path = tiny.write(tmp_path)
    names = {"protocol": "tiny", "architecture": "resnet18", "seed": 0}
    first = [
        dataclasses.replace(r, **names, optimizer=row, base_row=None, peak_memory=1e6)
        for r, row in zip(grid(range(1), epochs=1), ("sgd", "sgd+sam"), strict=False)
    ]
    first = both(first)
    runs = [first, change(list(first))]

    def run(command, **extra):
        (folder,) = (word.partition("=")[2] for word in command if word.startswith("--results="))
        for i, found in enumerate(runs.pop(0)):
            files.write_json(Path(folder) / "tiny" / "records" / f"{i}.json", found.to_json())
        return Ran(0, "")

    return gpu_parts.engine(Setting(tmp_path, protocol=str(path), **setting), run)


def test_two_runs_that_are_the_same(tmp_path):
    def timed(records):
        return [dataclasses.replace(r, seconds=99.0) for r in records]

    result = engine_with(tmp_path, timed)
    assert (result.outcome, result.summary) == ("passed", "2 cases completed, twice the same")
    assert [row["case"] for row in result.tables["cases"]] == [
        "tiny/resnet18/sgd/seed0",
        "tiny/resnet18/sgd+sam/seed0",
    ]


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        (lambda r: [dataclasses.replace(r[0], test_accuracy=1.0), r[1]], ["test_accuracy"]),
        (lambda r: [dataclasses.replace(r[0], peak_memory=2e6), r[1]], ["peak_memory"]),
        (lambda r: [dataclasses.replace(r[0], provenance={"torch": "0"}), r[1]], ["provenance."]),
        (lambda r: [engine_diverged(r[0]), r[1]], ["status"]),
        (lambda r: r[1:], ["record"]),
        (
            lambda r: [
                dataclasses.replace(
                    r[0], history=(dataclasses.replace(r[0].history[0], train_loss=9.0),)
                ),
                r[1],
            ],
            ["history.train_loss"],
        ),
    ],
)
def test_the_fields_that_differ_are_named(change, fields, tmp_path):
    result = engine_with(tmp_path, change)
    assert (result.outcome, result.summary) == ("failed", "1 of 2 cases failed or differ")
    rows = result.tables["fields that differ"]
    assert {row["case"] for row in rows} == {"tiny/resnet18/sgd/seed0"}
    assert all(any(row["field"].startswith(name) for row in rows) for name in fields)


def test_a_case_that_diverges_twice_alike_is_a_failure(tmp_path):
    result = engine_with(tmp_path, both=lambda r: [engine_diverged(r[0]), r[1]])
    assert (result.outcome, result.summary) == ("failed", "1 of 2 cases failed or differ")
    rows = result.tables["fields that differ"]
    assert [row["field"] for row in rows] == ["status", "status"]
    assert rows[0]["first"] == rows[1]["second"] == "diverged in epoch 1 of 2"


def engine_diverged(found):
    return dataclasses.replace(found, status="diverged", reason="diverged in epoch 1 of 2")


def test_the_memory_of_a_cpu_is_not_compared(tmp_path):
    def heavier(records):
        return [dataclasses.replace(r, peak_memory=2e6) for r in records]

    assert engine_with(tmp_path, heavier, device="cpu").outcome == "passed"


def test_a_run_that_ends_badly_is_a_failure(tmp_path):
    result = gpu_parts.engine(Setting(tmp_path), lambda command, **extra: Ran(2, "no such device"))
    assert (result.outcome, result.output) == ("failed", "no such device")
    assert result.summary == "the first run ended with 2"


# For real, on the CPU.


def test_the_engine_part_for_real(tmp_path, here):
    out = tmp_path / "out"
    out.mkdir()
    table = gpu.run_part("engine", out, here, device="cpu", protocol=str(tiny.write(tmp_path)))
    assert (table["outcome"], table["summary"]) == ("passed", "2 cases completed, twice the same")
    assert len(table["command"]) == 2
    assert "--optimizers=sgd+sam,sgd --workers=1" in table["command"][1]
    cases = table["details"]["tables"]["cases"]
    assert [row["status"] for row in cases] == ["completed"] * 2
    assert {path.name for path in out.iterdir()} == {"engine.json", "engine.md"}


def test_the_tests_part_for_real(tmp_path, here):
    table = gpu.run_part("tests", tmp_path, here, device="cpu", test_files=["tests/test_aot.py"])
    assert table["outcome"] == "passed", table
    rows = table["details"]["tables"]["tests"]
    assert len(rows) > 20
    assert table["summary"] == f"{len(rows)} passed"
    assert {row["outcome"] for row in rows} == {"passed"}
    assert all(row["test"].startswith("test_aot::test_") for row in rows)
    assert any(row["seconds"] > 0 for row in rows)


def test_tox_has_it():
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    assert tox["testenv:gpu"]["commands"] == "{[testenv]python} -m benchmarks.gpu {posargs}"
    assert "FLATBENCH_*" in tox["testenv"]["pass_env"].split()
