"""How long people wait for a report, a comparison, --help and the list of cases; and the memory.

``pytest benchmarks/bench_report.py``. The aims: 3 s for a report or a comparison of 10,000 records,
0.5 s for the start, and memory that grows no faster than the records.

A whole command is timed as a process of its own, imports included; the same work in this process is
timed without them. The records are those of `benchmarks.records`. A memory case is one command: its
time is of one round, and its ``extra_info`` holds

- megabytes: what the records' files take on the disk;
- peak_megabytes: the largest resident set of the process (getrusage).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.records import FORMS, write
from flatbench import cli

RECORDS = 10_000
NUMBERS = (1_000, RECORDS, 100_000)

Make = Callable[[int, str], Path]

# The largest resident set of a process starts at that of the one that forked it, and this one has
# torch in it: so a small one is between.
PEAK = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def flatbench(*arguments: str, through: tuple[str, ...] = ()) -> str:
    command = [*through, sys.executable, "-m", "flatbench", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Make:
    folder, made = tmp_path_factory.mktemp("records"), {}

    def make(number: int, form: str) -> Path:
        if (number, form) not in made:
            made[number, form] = write(number, form, folder)
        return made[number, form]

    return make


def arguments_of(command: str, path: Path) -> list[str]:
    return [command, *[str(path)] * (2 if command == "compare" else 1)]


@pytest.mark.benchmark(group="command")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("command", ["report", "compare"])
def test_command(benchmark: Any, records: Make, command: str, form: str) -> None:
    arguments = arguments_of(command, records(RECORDS, form))
    text = benchmark.pedantic(flatbench, arguments, rounds=3, warmup_rounds=1)
    assert "resnet18" in text


@pytest.mark.benchmark(group="in process")
@pytest.mark.parametrize("command", ["report", "compare"])
def test_in_process(benchmark: Any, records: Make, command: str, capsys: Any) -> None:
    arguments = arguments_of(command, records(RECORDS, "folder"))
    code = benchmark.pedantic(cli.main, [arguments], rounds=3, warmup_rounds=1)
    assert code == 0
    assert "resnet18" in capsys.readouterr().out


@pytest.mark.benchmark(group="memory")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("command", ["report", "compare"])
def test_memory(benchmark: Any, records: Make, command: str, number: int, form: str) -> None:
    path = records(number, form)
    files = path.iterdir() if path.is_dir() else [path]
    peak = benchmark.pedantic(
        flatbench,
        arguments_of(command, path),
        {"through": (sys.executable, "-S", "-c", PEAK)},
        rounds=1,
    )
    per_megabyte = 1024 if sys.platform == "linux" else 1024**2  # of ru_maxrss
    benchmark.extra_info["megabytes"] = sum(os.path.getsize(file) for file in files) / 1e6
    benchmark.extra_info["peak_megabytes"] = int(peak) / per_megabyte


@pytest.mark.benchmark(group="start")
@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["list", "--protocol", "digits"]])
def test_start(benchmark: Any, arguments: list[str]) -> None:
    text = benchmark.pedantic(flatbench, arguments, rounds=20, warmup_rounds=1)
    assert text
