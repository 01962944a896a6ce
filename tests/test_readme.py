"""The README shows what the code printed, and names what is there."""

import re
from pathlib import Path

from flatbench import record, report

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_its_tables_are_those_of_the_committed_records() -> None:
    records = record.collect([ROOT / "results" / "digits" / "benchmark.json"])
    rendered = report.render(records, brief=True).splitlines()
    shown = [line for line in README.splitlines() if line.startswith("|")]
    assert len(shown) >= 10
    assert [line for line in shown if line not in rendered] == []


def test_the_committed_reports_are_those_of_the_committed_records() -> None:
    for folder in (ROOT / "results").iterdir():
        files = sorted(folder.glob("*.json"))
        if files:
            written = (folder / "report.md").read_text().splitlines()
            # the brief form: the full one has intervals whose last digit may be a library's
            rendered = report.render(record.collect(files), brief=True).splitlines()
            assert [line for line in rendered if line not in written] == []


def test_its_files_are_there() -> None:
    named = re.findall(r"(?:flatbench|benchmarks|results)/[a-z0-9_./-]+\.(?:toml|md|py)", README)
    assert len(named) >= 4
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_its_tox_environments_are_there() -> None:
    tox = (ROOT / "tox.ini").read_text()
    for name in set(re.findall(r"tox -e (\w+)", README)):
        assert f"[testenv:{name}]" in tox
