"""How long people wait: for a report over 10,000 records, for --help, for the list of cases.

``pytest benchmarks/bench_report.py``. The aims: 5 s for the report, 0.5 s for the others.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.synthetic import grid

RECORDS = 10_000
EPOCHS = 15


def flatbench(*arguments: str) -> str:
    command = [sys.executable, "-m", "flatbench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    for record in grid(range(RECORDS // 8), epochs=EPOCHS):
        path = folder / f"{record.id.replace('/', '-')}.json"
        path.write_text(json.dumps(record.to_json(), indent=1))
    return folder


@pytest.mark.benchmark(group="report")
def test_report_of_10_000_records(benchmark: Any, records: Path) -> None:
    text = benchmark.pedantic(flatbench, ["report", str(records)], rounds=5, warmup_rounds=1)
    assert "n = 1250" in text


@pytest.mark.benchmark(group="start")
@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["list", "--protocol", "digits"]])
def test_start(benchmark: Any, arguments: list[str]) -> None:
    text = benchmark.pedantic(flatbench, arguments, rounds=20, warmup_rounds=1)
    assert text
