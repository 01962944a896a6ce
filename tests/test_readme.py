"""The README shows what the code printed, and names what is there."""

import json
import re
import statistics
from pathlib import Path

import pytest

from flatbench import report
from flatbench.protocols.reading import available
from flatbench.records import reading

pytestmark = pytest.mark.checkout

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
README = (ROOT / "README.md").read_text()
PUBLISHED = sorted(path.parent.name for path in RESULTS.glob("*/benchmark.json"))
# of each report: the sentences that open it, and the measures that are ranked with test accuracy
SENTENCES = {"digits": 12, "digits-vit": 8, "fashion": 12}
MEASURES = {"digits": 9, "digits-vit": 9, "fashion": 11}
IN_README = [name for name in PUBLISHED if name != "family"]  # that one's page is docs/optim.md


def rendered(*files):
    # the brief form: the full one has intervals whose last digit may be a library's
    return report.render(reading.collect(files), brief=True).splitlines()


def test_its_tables_are_those_of_the_committed_records():
    made = [line for name in PUBLISHED for line in rendered(RESULTS / name / "benchmark.json")]
    shown = [line for line in README.splitlines() if line.startswith("|")]
    assert len(shown) >= 20
    assert [line for line in shown if line not in made] == []


def test_the_committed_reports_are_those_of_the_committed_records():
    checked = []
    for path in sorted(RESULTS.glob("*/report.md")):
        files = sorted(path.parent.glob("*.json"))
        if files:
            written = path.read_text().splitlines()
            assert [line for line in rendered(*files) if line not in written] == []
            checked.append(path.parent.name)
    assert checked == PUBLISHED
    assert {"digits", "fashion"} <= {*PUBLISHED}


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


def section(name):
    """The README from the line that links a protocol's report to that of the next protocol."""
    lines = README.splitlines()
    begins = {
        published: next(
            i for i, line in enumerate(lines) if f"(results/{published}/report.md)" in line
        )
        for published in IN_README
    }
    ends = [*begins.values(), lines.index("## Use")]
    return lines[begins[name] : min(i for i in ends if i > begins[name])]


@pytest.mark.parametrize("name", IN_README)
def test_its_sentences_are_those_that_open_the_report(name):
    made = report.render(reading.collect([RESULTS / name / "benchmark.json"])).splitlines()
    said = re.compile(r"\*\*At equal |- \S+ − \S+ on |- Flatness at ")
    shown = [line for line in section(name) if said.match(line)]
    assert shown == [line for line in made if said.match(line)]
    assert len(shown) == SENTENCES[name]


@pytest.mark.parametrize("name", IN_README)
def test_it_says_how_the_measures_rank_all_runs(name):
    """Kendall's τ of every measure with test accuracy."""
    records = reading.collect([RESULTS / name / "benchmark.json"])
    runs = sum(record.status == "completed" for record in records)
    number = r"([+−][\d.]+)"
    pattern = rf"\| {number} \(95 %: {number} to {number}; n = {runs} runs"
    found = [
        [float(n.replace("−", "-")) for n in match]
        for match in re.findall(pattern, report.render(records))
    ]
    assert len(found) == MEASURES[name]
    assert all(low < 0 < high for _, low, high in found)
    low, high = (f"{end(tau for tau, _, _ in found):+.2f}".replace("-", "−") for end in (min, max))
    between = f"Kendall's τ lies between {low} and {high}, with intervals that hold zero"
    assert between in " ".join(" ".join(section(name)).split())


def test_what_the_page_of_the_family_says_is_what_was_found():
    page = (ROOT / "docs" / "optim.md").read_text()
    whole = page[page.index("## Does it pay?") : page.index("## Fused")]
    records = reading.collect([RESULTS / "family" / "benchmark.json"])
    made = report.render(records).splitlines()
    lines = whole.splitlines()
    said = re.compile(r"\||- \S+ − \S+ on |\*\*At equal|- Flatness")
    shown = [line for line in lines if said.match(line)]
    assert len(shown) == 14 + 11 + 1
    assert [line for line in shown if line not in made] == []
    text = " ".join(whole.split())
    for name, count in (("sgd", 195), ("sgd+momentum-sam", 195)):
        assert {r.gradient_evaluations for r in records if r.optimizer == name} == {count}
    others = {r.gradient_evaluations for r in records if r.gradient_evaluations != 195}
    assert others == {390}
    assert "All rows take 390 gradients" in text
    words = "\n".join(made)
    told = re.findall(r"^- (\S+) − (\S+) on .*: \*\*(more|less) accurate\*\*$", words, re.MULTILINE)
    assert set(told) == {
        ("sgd+momentum-sam", "sgd", "more"),
        ("sgd+sam-on", "sgd", "more"),
        ("sgd+late-sam", "sgd-2x", "less"),
    }
    times = re.findall(r"^\| (\S+) − \S+ .* ([\d.]+)× \|$", words, re.MULTILINE)
    longest = {name: float(ratio) for name, ratio in times}
    assert f"took {longest.pop('sgd+micro-batch-sam')} times as long" in text
    assert max(longest.values()) <= 1.13
    rows = {r.optimizer for r in records} - {"sgd", "sgd+momentum-sam", "sgd+late-sam"}
    means = [statistics.mean(r.test_accuracy for r in records if r.optimizer == x) for x in rows]
    assert max(means) - min(means) < 1.4
    taus = re.findall(r"\| ([+−][\d.]+) \(95 %: ([+−][\d.]+) to ([+−][\d.]+); n = 72", words)
    assert len(taus) == 9
    apart = [tau for tau in taus if tau[1][0] == tau[2][0]]
    assert len(apart) == 2
    for tau, low, high in apart:
        assert f"{tau}, from {low} to {high}" in text


def test_what_it_says_of_training_accuracy_on_the_transformer_is_what_was_recorded():
    records = reading.collect([RESULTS / "digits-vit" / "benchmark.json"])
    means = {
        row: statistics.mean(r.train_accuracy for r in records if r.optimizer == row)
        for row in ("sgd+sam", "sgd", "sgd-2x")
    }
    sam, base, twice = (f"{mean:.1f} %" for mean in means.values())
    reached = f"reaches {sam} in 22 epochs, SGD {base} and in twice as many {twice}"
    assert reached in " ".join(" ".join(section("digits-vit")).split())


def test_what_it_says_of_the_gate_is_what_the_simulation_found():
    page = (ROOT / "docs" / "gate.md").read_text()
    pattern = r"^\| (\w+) (\S+) +\|" + r" +([\d.]+) \|" * 5 + "$"
    drops = {
        f"{architecture}/{row}": (comparison, mean)
        for architecture, row, _, _, comparison, mean, _ in re.findall(pattern, page, re.MULTILINE)
    }
    assert len(drops) == 12
    found = [comparison for comparison, _ in drops.values() if float(comparison) <= 3]
    text = " ".join(README.split())
    assert f"9 times out of 10 in {len(found)} cells of 12" in text
    for cell, (comparison, _) in drops.items():
        if float(comparison) > 3:
            assert re.search(rf"in {re.escape(cell)}[^.]*? {re.escape(comparison)}[.;]?", text)
    worst = max(drops, key=lambda cell: float(drops[cell][1]))
    assert f"({drops[worst][1]} points in {worst})" in text


def test_its_speed_is_that_of_the_committed_benchmarks():
    def of(name, field, part):
        table = json.loads((RESULTS / "speed" / f"{name}.json").read_text())
        return [b["extra_info"][field] for b in table["benchmarks"] if part in b["name"]]

    (full,) = of("trainer", "ratio_to_plain_loop", "full-width")
    (share,) = of("trainer", "share_of_peak", "full-width")
    (over_base,) = of("trainer", "sam_over_base", "full-width")
    narrow = of("trainer", "ratio_to_plain_loop", "narrow")
    rate, copy = (of("step", f"{name}gigabytes_per_second", "-sam-eager") for name in ("", "copy_"))
    shares = [100 * a / b for a, b in zip(rate, copy, strict=True)]
    sam = of("step", "ratio_to_per_tensor", "-sam-eager")
    asam = of("step", "ratio_to_per_tensor", "-asam-eager")
    plain, together = (
        100 * statistics.median(of("sharpness", part, "test_price")) for part in ("plain", "all")
    )
    trace, eigenvalue = (
        " and ".join(f"{ratio:.1f}" for ratio in of("sharpness", "ratio_to_usual", part))
        for part in ("trace", "eigenvalue")
    )
    text = " ".join(README.split())
    assert f"take {plain:.0f} % of the time of the training" in text
    assert f"with those at normalised logits {together:.0f} %" in text
    assert f"comes {trace} times as fast" in text
    assert f"its largest eigenvalue {eigenvalue} times" in text
    assert f"in bf16, passes {full:.1f} times as many images" in text
    assert f"runs at {100 * share:.0f} % of the rate" in text
    assert f"takes {over_base:.2f} steps of its base" in text
    assert {f"{ratio:.1f}" for ratio in narrow} == {"2.1"}
    assert "Networks of 16 channels on images of digits: 2.1 times" in text
    assert f"{min(sam):.1f} to {max(sam):.1f} times with SAM" in text
    assert f"{min(asam):.1f} to {max(asam):.1f} times with ASAM" in text
    assert f"moves {min(shares):.0f} to {max(shares):.0f} % of the bytes" in text


def test_the_speed_of_the_family_is_that_of_the_committed_benchmark():
    table = json.loads((RESULTS / "speed" / "family.json").read_text())
    ratios = {
        b["name"]: b["extra_info"]["ratio_to_per_tensor"]
        for b in table["benchmarks"]
        if b["name"].endswith("-eager]")
    }
    assert len(ratios) == 12
    page = " ".join((ROOT / "docs" / "optim.md").read_text().split())
    assert f"done {min(ratios.values()):.1f} to {max(ratios.values()):.1f} times as fast" in page
    assert "sgd-looksam" in min(ratios, key=ratios.__getitem__)


def test_its_host_time_is_that_of_the_committed_benchmark():
    table = json.loads((RESULTS / "speed" / "host.json").read_text())
    times = [
        b["extra_info"]["host_microseconds"]
        for b in table["benchmarks"]
        if b["name"].endswith("fused-host]")
    ]
    assert len(times) == 4
    assert f"{min(times):.0f} to {max(times):.0f} µs a step" in " ".join(README.split())


def test_what_an_engine_costs_is_that_of_the_committed_benchmarks():
    def of(name, number):
        table = json.loads((RESULTS / "speed" / f"{name}.json").read_text())
        return table["benchmarks"][number]["extra_info"]

    digits, short = of("execution", 0), of("execution", 1)
    local, ray = (of("driver", i)["milliseconds_a_case"] for i in range(2))
    page = (ROOT / "docs" / "cluster.md").read_text()
    for text, info in (("one seed of the default grid, 12", digits), ("1,000 short", short)):
        ratios = " | ".join(f"{info[key]:.2f} ×" for key in ("local_over_bare", "ray_over_bare"))
        assert f"| {text} cases | {info['bare_seconds']:.0f} s | {ratios} |" in page
    assert f"a short case | | {local:.0f} ms | {ray:.0f} ms |" in page
    grown = " | ".join(f"+{short[f'{name}_driver_grew_mib']:.0f} MiB" for name in ("local", "ray"))
    assert f"the last of 1,000 | | {grown} |" in page
    assert f"Ray takes {short['ray_over_local']:.2f} times" in page
    added = (digits["bare_seconds"] * (digits[f"{n}_over_bare"] - 1) for n in ("local", "ray"))
    assert "adds {:.0f} s, Ray {:.0f} s".format(*added) in page
    text = " ".join(README.split())
    assert f"local processes {digits['local_over_bare']:.2f}" in text
    assert f"Ray {digits['ray_over_bare']:.2f} times" in text
    ratios = " and ".join(f"{short[key]:.2f}" for key in ("local_over_bare", "ray_over_bare"))
    assert f"1,000 short ones {ratios}" in text


def test_what_a_report_takes_is_that_of_the_committed_benchmark():
    table = json.loads((RESULTS / "speed" / "report.json").read_text())
    benchmarks = {b["name"]: b for b in table["benchmarks"]}

    def seconds(test):
        return [b["stats"]["median"] for name, b in benchmarks.items() if name.startswith(test)]

    def kilobytes_a_record(form):
        few, many = (
            benchmarks[f"test_memory[report-{n}-{form}]"]["extra_info"]["peak_megabytes"]
            for n in (1000, 10000)
        )
        return (many - few) * 1024 / 9000

    report_, compare = seconds("test_command[report"), seconds("test_command[compare")
    memory = [kilobytes_a_record(form) for form in ("benchmark.json", "folder", "json.gz")]
    text = " ".join(README.split())
    assert {f"{s:.0f}" for s in report_} == {"10"}
    assert "A report over 10,000 records takes 10 s" in text
    assert f"a comparison {min(compare):.0f} to {max(compare):.0f} s" in text
    assert f"`flatbench --help` took {min(seconds('test_start')):.2f} s" in text
    assert f"grows by {min(memory):.0f} to {max(memory):.0f} kB a record" in text


def test_its_files_are_there():
    named = re.findall(r"(?:flatbench|benchmarks|results)/[a-z0-9_./-]+\.(?:toml|md|py)", README)
    assert len(named) >= 4
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_its_tox_environments_are_there():
    tox = (ROOT / "tox.ini").read_text()
    for name in set(re.findall(r"tox -e (\w+)", README)):
        assert f"[testenv:{name}]" in tox
