"""The README shows what the code printed, and names what is there."""

import json
import re
import statistics
from pathlib import Path

import pytest

from docs.submissions import files_of
from flatbench import report
from flatbench.protocols.reading import available
from flatbench.records import reading

pytestmark = pytest.mark.checkout

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
README = (ROOT / "README.md").read_text()
WORDS = " ".join(README.split())
PUBLISHED = sorted(path.parent.name for path in RESULTS.glob("*/benchmark.json"))


def rendered(*files):
    # the brief form: the full one has intervals whose last digit may be a library's
    return report.render(reading.collect(files), brief=True).splitlines()


def test_one_reads_it_in_a_minute_or_two():
    prose = re.sub(r"```.*?```|^\|.*?$|\]\([^)]*\)", "", README, flags=re.DOTALL | re.MULTILINE)
    assert len(prose.split()) <= 620


def test_its_table_is_that_of_the_committed_records():
    made = rendered(RESULTS / "digits" / "benchmark.json")
    (table,) = re.findall(
        r"(?:^\| *(?:optimizer|sgd|adam).*\n|^\|:--.*\|\n)+", README, re.MULTILINE
    )[:1]
    shown = table.splitlines()
    assert len(shown) == 8
    assert [line for line in shown if line not in made] == []


def test_its_answer_is_that_of_the_committed_records():
    records = reading.collect([RESULTS / "digits" / "benchmark.json"])
    lines = report.render(records).splitlines()
    outcome = {
        pair: (float(gain.replace("−", "-")), verdict)
        for line in lines
        for pair, gain, verdict in re.findall(
            r"^- (\S+ − \S+ on \S+): (\S+) points.*\*\*(.+)\*\*$", line
        )
    }
    epochs, gradients = (f"adam+sam − {base} on resnet18" for base in ("adam", "adam-2x"))
    assert {pair for pair, (_, said) in outcome.items() if said == "more accurate"} == {
        *(epochs, gradients)
    }
    assert len(outcome) == 8
    points = outcome[epochs][0], outcome[gradients][0]
    said = (
        "{:.2f} points more accurate than Adam on ResNet-18 at equal epochs, and {:.2f} points at"
    )
    assert said.format(*points) in WORDS

    ratios = re.findall(
        r"^- adam\+sam / adam-2x on resnet18: (\S+) ×.*\*\*(.+)\*\*$", "\n".join(lines), re.M
    )
    (plain, first), (normalised, second) = ratios
    assert (first, second) == ("can't tell", "flatter")
    assert f"with normalised logits SAM has {float(normalised):.2f} times Adam's" in WORDS
    assert float(plain) > 1

    runs = [r for r in records if r.architecture == "resnet18"]
    fits = {}
    for row in ("adam-2x", "adam+sam"):
        own = [r for r in runs if r.optimizer == row]
        assert {r.gradient_evaluations for r in own} == {390}
        fits[row] = statistics.mean(r.train_accuracy for r in own)
    assert "390 gradients each" in WORDS
    assert f"fits {fits['adam-2x']:.1f} % of all of them, SAM {fits['adam+sam']:.1f} %" in WORDS


def test_the_committed_reports_are_those_of_the_committed_records():
    checked = []
    for path in sorted(RESULTS.glob("*/report.md")):
        if (path.parent / "benchmark.json").exists():
            written = path.read_text().splitlines()
            made = rendered(*files_of(path.parent))
            assert [line for line in made if line not in written] == []
            checked.append(path.parent.name)
    assert checked == PUBLISHED
    assert {"digits", "fashion", "torch-optim"} <= {*PUBLISHED}


@pytest.mark.parametrize("name", PUBLISHED)
def test_no_path_of_a_machine_is_published(name):
    for path in (RESULTS / name).rglob("*.json"):
        assert not re.search(r"PosixPath|[\"'](?:/\w+){2}", path.read_text())


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_names_every_published_report(name):
    assert name in available()
    assert f"(results/{name}/report.md)" in README


def test_the_committed_candidates_are_those_of_the_committed_records():
    written = (RESULTS / "digits-tuning" / "candidates.md").read_text().splitlines()
    made = rendered(RESULTS / "digits-tuning" / "candidates.json.gz")
    assert [line for line in made if line not in written] == []


def test_its_speed_is_that_of_the_committed_benchmarks():
    def of(name, field, part):
        table = json.loads((RESULTS / "speed" / f"{name}.json").read_text())
        return [b["extra_info"][field] for b in table["benchmarks"] if part in b["name"]]

    (full,) = of("trainer", "ratio_to_plain_loop", "full-width")
    narrow = of("trainer", "ratio_to_plain_loop", "narrow")
    sam = of("step", "ratio_to_per_tensor", "-sam-eager")
    trace, eigenvalue = (
        " and ".join(f"{ratio:.1f}" for ratio in of("sharpness", "ratio_to_usual", part))
        for part in ("trace", "eigenvalue")
    )
    section = README[README.index("## Speed") : README.index("## More")]
    shown = [line.split("|")[3].strip() for line in section.splitlines() if line.startswith("|")]
    (one,) = {f"{ratio:.1f}" for ratio in narrow}
    assert shown[2:] == [
        *(f"{full:.1f}", one, f"{min(sam):.1f} to {max(sam):.1f}", trace, eigenvalue)
    ]


def test_its_links_and_files_are_there():
    linked = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert len(linked) > 20
    assert [path for path in linked if not (ROOT / path.replace("%2B", "+")).exists()] == []


def test_its_tox_environments_are_there():
    tox = (ROOT / "tox.ini").read_text()
    found = set(re.findall(r"tox -e (\w+)", README))
    assert {"bench", "test"} <= found
    for name in found:
        assert f"[testenv:{name}]" in tox
