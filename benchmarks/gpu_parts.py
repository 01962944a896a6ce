"""The parts of `benchmarks.gpu`: what each runs on the card, and how its outcome is read."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIMIT = 480.0  # seconds of a part, all its commands together
KERNELS = "norm_partials|perturb|restore_and_step"
NCU_ROWS = "resnet18-sgd-sam-fused]"
NO_SANITIZER = "compute-sanitizer is not found"

Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What the parts run on, and how much of it; the tests take a CPU and less."""

    scratch: Path  # removed afterwards
    device: str = "cuda"
    data_dir: Path | None = None
    limit: float = LIMIT
    protocol: str = "digits"
    test_files: Sequence[str] = ()  # default: those that hold a test marked gpu, and test_aot
    step_rows: str = "resnet18 and (sgd or not test_family)"
    trainer_rows: str = "full-width"


@dataclass(frozen=True)
class Ran:
    """A command that has ended."""

    code: int
    output: str  # of both streams


class TimedOut(Exception):
    """A part's command was ended at the part's limit. The message is its output."""


@dataclass
class Result:
    """What a part has found: one line, and tables of rows by their title."""

    outcome: str  # passed, failed, timed out or skipped
    summary: str
    tables: dict[str, list[Row]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    output: str = ""  # of the command that failed


Run = Callable[..., Ran]  # run(command, **environment)


def run(command: Sequence[str], setting: Setting, deadline: float, **extra: str) -> Ran:
    """Run a command at the root of the checkout, and end it and its children at the deadline.

    Raises:
        TimedOut: it was ended.
    """
    log = setting.scratch / "output.txt"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(setting.scratch) | extra,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own: its workers are ended with it
        )
        try:
            code = process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise TimedOut(log.read_text(errors="replace")) from None
        finally:
            if process.poll() is None:  # the deadline, or an interrupt
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return Ran(code, log.read_text(errors="replace"))


def environment(scratch: Path) -> dict[str, str]:
    """Return the variables of a part's commands: every cache in the scratch folder."""
    kept = dict(os.environ)
    # either would change what is run
    for name in ("PYTEST_ADDOPTS", "TRITON_INTERPRET"):
        kept.pop(name, None)
    caches = {
        "TRITON_CACHE_DIR": "triton",
        "TORCHINDUCTOR_CACHE_DIR": "inductor",
        "CUDA_CACHE_PATH": "cuda",
        "MPLCONFIGDIR": "matplotlib",
        "HYPOTHESIS_STORAGE_DIRECTORY": "hypothesis",
    }
    # A DataLoader's workers make sockets under TMPDIR, with names of 32 characters more; a
    # socket's path may have 107.
    if len(str(scratch)) <= 70:
        caches["TMPDIR"] = "."
    paths = {name: str(scratch / folder) for name, folder in caches.items()}
    return kept | paths | {"PYTHONUNBUFFERED": "1"}


def test_files() -> list[str]:
    """Return the files that hold a test marked gpu, and the compiler's test."""
    files = sorted((ROOT / "tests").glob("test_*.py"))
    marked = [f"tests/{path.name}" for path in files if "pytest.mark.gpu" in path.read_text()]
    return [*marked, "tests/test_aot.py"]


def tests(setting: Setting, run: Run) -> Result:
    """The tests marked gpu, and those of the compiled code."""
    # -k sees the names of markers and modules; -m could not take test_aot, which has no marker
    selection = ["-v", *(setting.test_files or test_files()), "-k", "gpu or test_aot"]
    ran, rows = _pytest(setting, run, selection)
    return _of_tests(ran, rows)


def engine(setting: Setting, run: Run) -> Result:
    """A protocol through the engine twice, the second time with its cases in reverse order."""
    from flatbench.protocols.cases import grid
    from flatbench.protocols.reading import load

    settings = load(setting.protocol)
    reverse = [
        f"--architectures={','.join(reversed(settings.model.names))}",
        f"--optimizers={','.join(reversed(tuple(settings.optimizers)))}",
        "--workers=1",
    ]
    common = ["-m", "flatbench", "run", "--protocol", setting.protocol, "--seeds", "0"]
    found = []
    for name, options in (("first", []), ("second", reverse)):
        folder = setting.scratch / name
        command = [sys.executable, *common, "--device", setting.device, *options]
        ran = run([*command, f"--results={folder}", *_data_dir(setting)])
        if ran.code not in (0, 1):  # 1: a case failed, and its record says why
            return Result("failed", f"the {name} run ended with {ran.code}", output=ran.output)
        found.append(_records(folder / settings.name / "records"))
    first, second = found
    ids = [case.id for case in grid(settings, seeds=[0])]
    weighed = setting.device != "cpu"  # a process's memory is not as exact as a device's
    differences = [row for case in ids for row in _differences(case, first, second, weighed)]
    cases = [
        {
            "case": case,
            "status": first[case].status,
            "test accuracy %": first[case].test_accuracy,
            "seconds": first[case].seconds,
            "seconds again": second[case].seconds,
            "peak bytes": first[case].peak_memory,
        }
        for case in ids
        if case in first and case in second
    ]
    count = len({row["case"] for row in differences})
    return Result(
        "failed" if differences else "passed",
        f"{count} of {len(ids)} cases failed or differ"
        if differences
        else f"{len(ids)} cases completed, twice the same",
        {"fields that differ": differences, "cases": cases},
        [] if weighed else ["Peak memory was not compared: it is the whole process's on a CPU."],
    )


def _records(folder: Path) -> dict[str, Any]:
    from flatbench.records import reading

    return {found.id: found for found in reading.collect([folder])} if folder.exists() else {}


def _differences(
    case: str, first: Mapping[str, Any], second: Mapping[str, Any], weighed: bool
) -> list[Row]:
    """Return the fields in which a case's two records differ, or why it has no result."""
    rows: list[Row] = []
    for name, records in (("first", first), ("second", second)):
        if case not in records:
            rows.append({"case": case, "field": "record", name: "none"})
        elif records[case].status != "completed":
            rows.append({"case": case, "field": "status", name: records[case].reason})
    if rows:
        return rows
    one, other = first[case], second[case]
    pairs = [
        (name, a, b) for name, a, b in differing(one.without_timings(), other.without_timings())
    ]
    if weighed and one.peak_memory != other.peak_memory:
        pairs.append(("peak_memory", one.peak_memory, other.peak_memory))
    return [
        {"case": case, "field": name, "first": repr(a)[:80], "second": repr(b)[:80]}
        for name, a, b in pairs
    ]


def differing(one: Any, other: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Return the fields, as "history.train_loss", in which two JSON values differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = dict.fromkeys([*one, *other])
        prefix = f"{name}." if name else ""
        found = [differing(one.get(k), other.get(k), f"{prefix}{k}") for k in keys]
        return [row for rows in found for row in rows]
    return [] if one == other else [(name, one, other)]


def sanitizer(setting: Setting, run: Run) -> Result:
    """Accesses out of bounds in the kernels' unaligned paths, and a capture that breaks."""
    files = list(setting.test_files or test_files())
    breaks = "gpu and capture and (break or broke or fail)"
    ran, rows = _pytest(setting, run, ["-v", *files, "-k", breaks])
    result = _of_tests(ran, rows, "no such test")
    capture = f"a capture that breaks: {result.summary}"
    if result.outcome == "failed":
        result.summary = capture
        return result
    folders = f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin"
    program = shutil.which("compute-sanitizer", path=folders)
    if program is None:
        return Result("skipped", f"skipped: {NO_SANITIZER}; {capture}", result.tables)
    checked, rows = _pytest(
        setting,
        run,
        ["-v", *(f for f in files if "test_optim_gpu" in f), "-k", "128_bits"],
        before=[program, "--tool", "memcheck", "--error-exitcode", "99"],
        # in torch's cache of blocks an access beyond a tensor is not out of bounds
        PYTORCH_NO_CUDA_MEMORY_CACHING="1",
    )
    memcheck = _of_tests(checked, rows)
    memcheck.summary = f"memcheck: {memcheck.summary}; {capture}"
    memcheck.tables = {"memcheck": memcheck.tables["tests"], "capture": result.tables["tests"]}
    return memcheck


def step(setting: Setting, run: Run) -> Result:
    """The time of the optimizer's own work in a step."""
    result = _benchmark(setting, run, "bench_step.py", setting.step_rows)
    result.notes += [
        "The estimate for an H100: fused+graph takes at most 190 µs with SGD, 220 µs with Adam.",
        f"The kernels by themselves: `ncu --kernel-name 'regex:{KERNELS}' --launch-skip 9 "
        "--launch-count 3 --section SpeedOfLight --section Occupancy python3 -m pytest "
        f"benchmarks/bench_step.py -k '{NCU_ROWS}' --device cuda`",
    ]
    return result


def trainer(setting: Setting, run: Run) -> Result:
    """The time of a whole training step at full width."""
    return _benchmark(setting, run, "bench_trainer.py", setting.trainer_rows)


PARTS: dict[str, Callable[[Setting, Run], Result]] = {
    "tests": tests,
    "engine": engine,
    "sanitizer": sanitizer,
    "step": step,
    "trainer": trainer,
}


def _data_dir(setting: Setting) -> list[str]:
    return [f"--data-dir={setting.data_dir}"] if setting.data_dir else []


def _pytest(
    setting: Setting,
    run: Run,
    selection: Sequence[str],
    before: Sequence[str] = (),
    **extra: str,
) -> tuple[Ran, list[Row]]:
    """Run pytest; return how it ended, and a row for each test."""
    report = setting.scratch / "junit.xml"
    report.unlink(missing_ok=True)
    command = [*before, sys.executable, "-m", "pytest", *selection, "--device", setting.device]
    folder = setting.scratch / "pytest"
    own = ["-p", "no:cacheprovider", f"--basetemp={folder}", f"--junitxml={report}"]
    ran = run([*command, *own, *_data_dir(setting)], **extra)
    return ran, _outcomes(report)


def _outcomes(report: Path) -> list[Row]:
    """Return each test's outcome, time and, if it did not pass, first line, from JUnit XML."""
    if not report.exists():  # pytest did not come so far
        return []
    rows = []
    for case in ET.parse(report).iter("testcase"):
        why_not = next((part for part in case if part.tag in ("failure", "error", "skipped")), None)
        module = case.get("classname", "").rpartition(".")[2]
        says = "" if why_not is None else (why_not.get("message") or why_not.text or "")
        rows.append(
            {
                "test": f"{module}::{case.get('name')}",
                "outcome": "passed" if why_not is None else _ENDED[why_not.tag],
                "seconds": float(case.get("time", 0)),
                "says": next(iter(says.splitlines()), ""),
            }
        )
    return sorted(rows, key=lambda row: _ORDER.index(row["outcome"]))


_ENDED = {"failure": "failed", "error": "failed", "skipped": "skipped"}
_ORDER = ("failed", "skipped", "passed")


def _of_tests(ran: Ran, rows: list[Row], none: str | None = None) -> Result:
    """Return a result that passed only if pytest did, with a test that passed.

    Without any it has failed, or is skipped if ``none`` says what it is that there is none of.
    """
    counts = {outcome: sum(row["outcome"] == outcome for row in rows) for outcome in _ORDER}
    summary = ", ".join(f"{n} {outcome}" for outcome, n in counts.items() if n)
    tables = {"tests": rows}
    if ran.code not in (0, 5) or counts["failed"]:  # 5: nothing was selected
        summary = f"pytest ended with {ran.code}: {summary or 'no report'}"
        return Result("failed", summary, tables, output=ran.output)
    if counts["passed"]:
        return Result("passed", summary, tables)
    if none is not None:
        return Result("skipped", none, tables)
    return Result("failed", f"no test passed: {summary or 'none was selected'}", tables)


def _benchmark(setting: Setting, run: Run, file: str, rows: str) -> Result:
    """Run benchmarks by name; what a case says of itself becomes its row."""
    written = setting.scratch / "benchmark.json"
    written.unlink(missing_ok=True)
    selection = ["-q", f"benchmarks/{file}", "-k", rows, f"--benchmark-json={written}"]
    ran, cases = _pytest(setting, run, selection)
    result = _of_tests(ran, cases)
    if written.exists() and written.stat().st_size:
        found = json.loads(written.read_text())["benchmarks"]
        result.tables = {
            "rows": [
                {"row": b["param"] or b["name"], "median µs": b["stats"]["median"] * 1e6}
                | b["extra_info"]
                for b in found
            ],
            "not passed": [case for case in cases if case["outcome"] != "passed"],
        }
    return result
