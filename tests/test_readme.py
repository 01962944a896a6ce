"""The README shows what the code printed, and names what is there."""

import json
import re
from pathlib import Path

from flatbench import record, report

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def rendered(*files: Path) -> list[str]:
    # the brief form: the full one has intervals whose last digit may be a library's
    return report.render(record.collect(files), brief=True).splitlines()


def test_its_tables_are_those_of_the_committed_records() -> None:
    made = [
        line
        for name in ("digits", "fashion")
        for line in rendered(ROOT / "results" / name / "benchmark.json")
    ]
    shown = [line for line in README.splitlines() if line.startswith("|")]
    assert len(shown) >= 20
    assert [line for line in shown if line not in made] == []


def test_the_committed_reports_are_those_of_the_committed_records() -> None:
    checked = []
    for path in sorted((ROOT / "results").glob("*/report.md")):
        files = sorted(path.parent.glob("*.json"))
        if files:
            written = path.read_text().splitlines()
            assert [line for line in rendered(*files) if line not in written] == []
            checked.append(path.parent.name)
    assert checked == ["digits", "digits-bf16", "fashion", "fashion-bf16"]


def test_its_speed_is_that_of_the_committed_benchmarks() -> None:
    def of(name: str, field: str, part: str) -> list[float]:
        table = json.loads((ROOT / "results" / "speed" / f"{name}.json").read_text())
        return [b["extra_info"][field] for b in table["benchmarks"] if part in b["name"]]

    (full,) = of("trainer", "ratio_to_plain_loop", "full-width")
    (share,) = of("trainer", "share_of_peak", "full-width")
    (over_base,) = of("trainer", "sam_over_base", "full-width")
    narrow = of("trainer", "ratio_to_plain_loop", "narrow")
    compiled = of("trainer", "compiled_speedup", "")
    sam = of("step", "ratio_to_per_tensor", "-sam-eager")
    asam = of("step", "ratio_to_per_tensor", "-asam-eager")
    text = " ".join(README.split())
    assert f"in bf16, passes {full:.1f} times as many images" in text
    assert f"runs at {100 * share:.0f} % of the rate" in text
    assert f"takes {over_base:.2f} steps of its base" in text
    assert {f"{ratio:.1f}" for ratio in narrow} == {"2.1"}
    assert "narrow networks of digits: 2.1 times" in text
    assert f"({min(compiled):.2f} to {max(compiled):.2f} times after" in text
    assert f"{min(sam):.1f} to {max(sam):.1f} times with SAM" in text
    assert f"{min(asam):.1f} to {max(asam):.1f} times with ASAM" in text


def test_its_files_are_there() -> None:
    named = re.findall(r"(?:flatbench|benchmarks|results)/[a-z0-9_./-]+\.(?:toml|md|py)", README)
    assert len(named) >= 4
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_its_tox_environments_are_there() -> None:
    tox = (ROOT / "tox.ini").read_text()
    for name in set(re.findall(r"tox -e (\w+)", README)):
        assert f"[testenv:{name}]" in tox
