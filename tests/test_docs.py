"""The pages of docs/ say what the committed records, reports and benchmarks hold."""

import functools
import json
import re
import statistics
from pathlib import Path

import pytest

from docs.pages import RECORDS
from flatbench import report
from flatbench.cli import main
from flatbench.protocols.reading import load
from flatbench.records import reading

pytestmark = pytest.mark.checkout

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RESULTS = ROOT / "results"
PUBLISHED = sorted(path.parent.name for path in RESULTS.glob("*/benchmark.json"))
# of each page: the sentences that open the report, and the measures that are ranked with accuracy
SENTENCES = {"digits": 12, "digits-vit": 8, "fashion": 12}
MEASURES = {"digits": 9, "digits-vit": 9, "fashion": 11}
OTHERS = {"family", "torch-optim"}  # their pages have another form
OWN_PAGE = [name for name in PUBLISHED if name not in OTHERS]
SPEED = RESULTS / "speed"
TAKES_TURNS = "medians of steps that take turns"


def page(name):
    return (DOCS / name).read_text(encoding="utf-8")


def words(text):
    return " ".join(text.split())


@functools.cache
def records(name):
    return reading.collect([RESULTS / name / "benchmark.json"])


@functools.cache
def rendered(name, brief=False):
    return report.render(records(name), brief=brief)


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def rows(name):
    """Every row of the tables of a page, by its first cell."""
    lines = [cells(line) for line in page(name).splitlines() if line.startswith("| ")]
    return {first: rest for first, *rest in lines}


def benchmarks(name):
    return json.loads((SPEED / f"{name}.json").read_text())["benchmarks"]


def extra(name, field, part):
    return [b["extra_info"][field] for b in benchmarks(name) if part in b["name"]]


# --- results


@pytest.mark.parametrize("name", OWN_PAGE)
def test_the_tables_of_results_are_those_of_the_committed_records(name):
    made = rendered(name, brief=True).splitlines()
    shown = [line for line in page(f"results/{name}.md").splitlines() if line.startswith("|")]
    assert len(shown) == 8
    assert [line for line in shown if line not in made] == []


@pytest.mark.parametrize("name", OWN_PAGE)
def test_its_sentences_are_those_that_open_the_report(name):
    said = re.compile(r"\*\*At equal |- \S+ − \S+ on |- Flatness at ")
    shown = [line for line in page(f"results/{name}.md").splitlines() if said.match(line)]
    assert shown == [line for line in rendered(name).splitlines() if said.match(line)]
    assert len(shown) == SENTENCES[name]


@pytest.mark.parametrize("name", OWN_PAGE)
def test_it_says_how_the_measures_rank_all_runs(name):
    """Kendall's τ of every measure with test accuracy."""
    runs = sum(record.status == "completed" for record in records(name))
    number = r"([+−][\d.]+)"
    pattern = rf"\| {number} \(95 %: {number} to {number}; n = {runs} runs"
    found = [
        [float(n.replace("−", "-")) for n in match] for match in re.findall(pattern, rendered(name))
    ]
    assert len(found) == MEASURES[name]
    assert all(low < 0 < high for _, low, high in found)
    low, high = (f"{end(tau for tau, _, _ in found):+.2f}".replace("-", "−") for end in (min, max))
    between = f"Kendall's τ lies between {low} and {high}, with intervals that hold zero"
    assert between in words(page(f"results/{name}.md"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_grid_has_its_page_and_its_line(name):
    """The line: at equal gradients, how many comparisons are told, as the report opens."""
    (line,) = re.findall(r"^\*\*At equal gradients\*\*: (.*)$", rendered(name), re.MULTILINE)
    told = re.search(r"is (more accurate in \d+ of \d+, less accurate in \d+),", line)[1]
    seeds = {record.seed for record in records(name)}
    ours = rows("results/index.md")[f"[{name}]({name}.md)"]
    assert ours[-2] == str(len(seeds))
    assert ours[-1].endswith(told)
    assert f"(../../results/{name}/report.md)" in page(f"results/{name}.md")


def test_what_six_seeds_could_have_shown_is_what_the_sentences_say():
    text = page("results/digits.md")
    shown = [float(n) for n in re.findall(r"6 seeds could have shown ([\d.]+):", text)]
    assert len(shown) == 8
    assert f"could have shown {min(shown):.2f} to {max(shown):.2f} points" in words(text)


def test_the_front_page_says_over_what_sam_is_told_better():
    """SAM itself, against a base with as many gradients, in all published grids."""
    found = set()
    for name in PUBLISHED:
        text = rendered(name)
        at_equal = text[text.index("**At equal gradients**") : text.index("95 %: t-interval")]
        found |= {
            (base, architecture)
            for base, architecture, verdict in re.findall(
                r"^- (\w+)\+sam − \S+ on (\S+): .*\*\*(.+)\*\*$", at_equal, re.MULTILINE
            )
            if verdict == "more accurate"
        }
    assert found == {("adam", "resnet18"), ("adafactor", "resnet18")}
    assert "over Adam and over Adafactor, on ResNet-18, and never over SGD" in words(
        page("index.md")
    )


def test_what_the_page_of_torch_optim_says_is_what_was_found():
    name, text = "torch-optim", words(page("results/torch-optim.md"))
    made = rendered(name)
    rows_of = {
        row: [r for r in records(name) if r.optimizer == row]
        for row in {r.optimizer for r in records(name)}
    }
    assert {r.gradient_evaluations for r in records(name)} == {390}
    assert f"All {len(rows_of)} rows take 390 gradients" in text

    def accuracy(row):
        values = [r.test_accuracy for r in rows_of[row]]
        return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"

    assert f"SGD ({accuracy('sgd')}) and Adafactor ({accuracy('adafactor')})" in text
    assert f"reaches {accuracy('rprop')}" in text
    adam, sgd = (
        f"{statistics.mean(r.train_accuracy for r in rows_of[row]):.1f} %"
        for row in ("adam", "sgd")
    )
    assert (
        f"Adam fits {adam} of the training labels, of which 10 % are wrong, and SGD {sgd}" in text
    )

    told = re.findall(
        r"^- (\S+) − (\S+) on .*\*\*((?:more|less) accurate)\*\*$", made, re.MULTILINE
    )
    better = {mine for mine, _, verdict in told if verdict == "more accurate"}
    assert better == {f"adafactor+{method}" for method in ("sam", "sam-on", "looksam")}
    assert "by 3 of 8 methods" in text
    assert sum(row.startswith("adafactor+") for row in rows_of) == 8
    assert sum(row.startswith("sgd+") for row in rows_of) == 9
    tuned_rows = load(name).optimizers
    bases = tuned_rows["adafactor"].options["weight_decay"], tuned_rows["sgd"].weight_decay
    assert "tuned, to {} and {}, and under SAM".format(*bases) in text
    assert {r.options["weight_decay"] for n, r in tuned_rows.items() if "adafactor+" in n} == {0.01}
    assert {r.weight_decay for n, r in tuned_rows.items() if "sgd+" in n} == {5e-4}
    worse = {mine for mine, _, verdict in told if verdict == "less accurate"}
    assert worse == {"sgd+late-sam", "adafactor+late-sam"}
    gain = statistics.mean(
        one.test_accuracy - other.test_accuracy
        for one, other in zip(rows_of["adafactor+sam"], rows_of["adafactor"], strict=True)
    )
    assert f"({gain:+.2f} points)" in text

    board = page("leaderboard.md").partition("(torch-optim)")[2].partition("## family")[0]
    places = {
        first: second.split("–")
        for first, second in re.findall(r"^\| (\S+) +\| +(\S+) \|", board, re.M)
    }
    del places["optimizer"]
    assert places.keys() == rows_of.keys()
    first = [row for row, place in places.items() if place[0] == "1"]
    assert f"{len(first)} rows may have the first place" in text
    assert {row for row in first if "+" not in row} == {"sgd", "adafactor", "lbfgs"}
    assert [places["adam"], places["adamw"]] == [["18", "30"]] * 2

    taus = {
        measure: numbers
        for measure, *numbers in re.findall(
            r"^\| (Largest eigenvalue of the Hessian[^|]*?) +\|.*\| +(\S+) \(95 %: (\S+) to (\S+);",
            made,
            re.M,
        )
    }
    plain, normalised = taus.values()
    assert "is {} (95 %: {} to {})".format(*normalised) in text
    assert f"Of the plain eigenvalue it is {plain[0]}, with an interval that holds zero" in text
    assert (plain[1][0], plain[2][0]) == ("−", "+")
    sharpest, usual = (
        statistics.mean(r.sharpness["hessian_max_eigenvalue"] for r in rows_of[row])
        for row in ("adafactor", "sgd")
    )
    assert f"largest eigenvalue is {sharpest:,.0f} and SGD's {usual:.0f}" in text
    tuned = (RESULTS / "torch-optim-tuning" / "report.md").read_text()
    assert re.search(r"^\| adafactor, resnet18 .*weight_decay = 0\.427 ", tuned, re.MULTILINE)
    winners = tuned[: tuned.index("Expected best")]
    edges = re.findall(r"^\| \S+, resnet18 .*\| +([a-z, ]+) \| +\d+ \|$", winners, re.MULTILINE)
    assert len(edges) == len(rows_of)
    assert f"The values of {sum(edge != 'no' for edge in edges)} rows stand at an edge" in text
    lost = sorted(r.test_accuracy for r in rows_of["lbfgs"])
    assert f"{sum(x < 20 for x in lost)} of its 10 seeds end below 20 %" in text
    assert f"the best at {lost[-1]:.1f} %" in text


def test_what_it_says_of_training_accuracy_on_the_transformer_is_what_was_recorded():
    means = {
        row: statistics.mean(r.train_accuracy for r in records("digits-vit") if r.optimizer == row)
        for row in ("sgd+sam", "sgd", "sgd-2x")
    }
    (epochs,) = {len(r.history) for r in records("digits-vit") if r.optimizer == "sgd"}
    sam, base, twice = (f"{mean:.1f} %" for mean in means.values())
    reached = f"reaches {sam} in {epochs} epochs, SGD {base} and in twice as many {twice}"
    assert reached in words(page("results/digits-vit.md"))


def test_the_weight_decay_that_may_be_part_of_a_difference_is_the_tuned_one():
    tuned = (RESULTS / "fashion-tuning" / "report.md").read_text()
    (value,) = re.findall(r"^\| sgd, resnet18 .*weight_decay = ([\d.]+)", tuned, re.MULTILINE)
    assert f"The base with SGD on ResNet-18 was given {value}." in words(page("results/fashion.md"))


def test_the_grid_of_the_first_page_has_so_many_cases():
    text = words(page("start.md"))
    assert f"trains {len(records('digits'))} cases in 9:34 minutes" in text
    assert f"derived from {len(reading.read(RECORDS))} other runs" in text


# --- the family, in optim.md


def test_what_the_page_of_the_family_says_is_what_was_found():
    text = page("optim.md")
    whole = text[text.index("## Does it pay?") : text.index("## Fused")]
    family = records("family")
    made = rendered("family").splitlines()
    said = re.compile(r"\||- \S+ − \S+ on |\*\*At equal|- Flatness")
    shown = [line for line in whole.splitlines() if said.match(line)]
    assert len(shown) == 14 + 11 + 1
    assert [line for line in shown if line not in made] == []
    text = words(whole)
    for name, count in (("sgd", 195), ("sgd+momentum-sam", 195)):
        assert {r.gradient_evaluations for r in family if r.optimizer == name} == {count}
    others = {r.gradient_evaluations for r in family if r.gradient_evaluations != 195}
    assert others == {390}
    assert "All rows take 390 gradients" in text
    told = re.findall(
        r"^- (\S+) − (\S+) on .*: \*\*(more|less) accurate\*\*$", rendered("family"), re.MULTILINE
    )
    assert set(told) == {
        ("sgd+momentum-sam", "sgd", "more"),
        ("sgd+sam-on", "sgd", "more"),
        ("sgd+late-sam", "sgd-2x", "less"),
    }
    times = re.findall(r"^\| (\S+) − \S+ .* ([\d.]+)× \|$", rendered("family"), re.MULTILINE)
    longest = {name: float(ratio) for name, ratio in times}
    assert f"took {longest.pop('sgd+micro-batch-sam')} times as long" in text
    assert max(longest.values()) <= 1.13
    compared = {r.optimizer for r in family} - {"sgd", "sgd+momentum-sam", "sgd+late-sam"}
    means = [statistics.mean(r.test_accuracy for r in family if r.optimizer == x) for x in compared]
    assert max(means) - min(means) < 1.4
    pattern = r"\| ([+−][\d.]+) \(95 %: ([+−][\d.]+) to ([+−][\d.]+); n = 72"
    taus = re.findall(pattern, rendered("family"))
    assert len(taus) == 9
    apart = [tau for tau in taus if tau[1][0] == tau[2][0]]
    assert len(apart) == 2
    for tau, low, high in apart:
        assert f"{tau}, from {low} to {high}" in text


def test_the_speed_of_the_family_is_that_of_the_committed_benchmark():
    ratios = {
        b["name"]: b["extra_info"]["ratio_to_per_tensor"]
        for b in benchmarks("family")
        if b["name"].endswith("-eager]")
    }
    assert len(ratios) == 12
    low, high = min(ratios.values()), max(ratios.values())
    assert f"done {low:.1f} to {high:.1f} times as fast" in words(page("optim.md"))
    assert "sgd-looksam" in min(ratios, key=ratios.__getitem__)


# --- the gate, in failure.md


def test_what_it_says_of_the_gate_is_what_the_simulation_found():
    pattern = r"^\| (\w+) (\S+) +\|" + r" +([\d.]+) \|" * 5 + "$"
    found = re.findall(pattern, page("gate.md"), re.MULTILINE)
    drops = {f"{net}/{row}": (comparison, mean) for net, row, _, _, comparison, mean, _ in found}
    assert len(drops) == 12
    text = words(page("failure.md"))
    small = [comparison for comparison, _ in drops.values() if float(comparison) <= 3]
    assert f"9 times out of 10 in {len(small)} cells of 12" in text
    for cell, (comparison, _) in drops.items():
        if float(comparison) > 3:
            assert re.search(rf"in {re.escape(cell)}[^.]*? {re.escape(comparison)}[.;,]?", text)
    worst = max(drops, key=lambda cell: float(drops[cell][1]))
    assert f"({drops[worst][1]} points in {worst})" in text
    (bound,) = [bound for net, row, _, bound, *_ in found if (net, row) == ("resnet18", "adam+sam")]
    assert round(float(re.search(r"is below ([\d.]+), the lower", text)[1]), 1) == float(bound)


def test_the_false_alarms_of_try_are_those_of_the_simulation():
    rates = re.findall(r"^\|\s+6 \| ([\d.]+) %", page("answers.md"), re.MULTILINE)
    assert f"in about {float(rates[0]):.0f} of 100 such tables" in words(page("start.md"))


# --- speed.md and cluster.md


def test_training_is_as_fast_as_the_committed_benchmarks_say():
    (full,) = extra("trainer", "ratio_to_plain_loop", "full-width")
    (share,) = extra("trainer", "share_of_peak", "full-width")
    (over_base,) = extra("trainer", "sam_over_base", "full-width")
    narrow = extra("trainer", "ratio_to_plain_loop", "narrow")
    text = words(page("speed.md"))
    found = rows("speed.md")
    assert TAKES_TURNS in text
    assert found["full-width ResNet-18, 128 images of 32×32, bf16"][0] == f"{full:.1f} ×"
    (grid,) = {f"{ratio:.1f} ×" for ratio in narrow}
    assert found["networks of 16 channels on digits, a case on each core"][0] == grid
    assert f"runs at {100 * share:.0f} % of the rate" in text
    assert f"takes {over_base:.2f} steps of its base" in text


def test_the_optimizers_own_work_is_as_fast_as_the_committed_benchmarks_say():
    found = rows("speed.md")
    for name in ("SAM", "ASAM"):
        ratios = extra("step", "ratio_to_per_tensor", f"-{name.lower()}-eager")
        assert found[name][0] == f"{min(ratios):.1f} to {max(ratios):.1f} ×"
    rate, copy = (
        extra("step", f"{name}gigabytes_per_second", "-sam-eager") for name in ("", "copy_")
    )
    shares = [100 * a / b for a, b in zip(rate, copy, strict=True)]
    text = words(page("speed.md"))
    assert f"moves {min(shares):.0f} to {max(shares):.0f} % of the bytes" in text
    times = extra("host", "host_microseconds", "fused-host]")
    assert len(times) == 4
    assert f"{min(times):.0f} to {max(times):.0f} µs a step" in text


def test_the_measures_take_what_the_committed_benchmarks_say():
    plain, together = (
        100 * statistics.median(extra("sharpness", part, "test_price")) for part in ("plain", "all")
    )
    text, found = words(page("speed.md")), rows("speed.md")
    assert f"take {plain:.0f} % of the time of the training" in text
    assert f"at normalised logits {together:.0f} %" in text
    one, other = extra("sharpness", "ratio_to_usual", "trace")
    traces = found["trace of the Hessian"][:2]
    assert traces == [f"{one:.1f} × as fast", f"{other:.1f} × as fast"]
    one, other = extra("sharpness", "ratio_to_usual", "eigenvalue")
    assert found["its largest eigenvalue"][:2] == [f"{one:.1f} ×", f"{other:.1f} ×"]


def test_what_an_engine_costs_is_that_of_the_committed_benchmarks():
    digits, short = (b["extra_info"] for b in benchmarks("execution")[:2])
    local, ray = (b["extra_info"]["milliseconds_a_case"] for b in benchmarks("driver")[:2])
    cluster = page("cluster.md")
    for text, info in (("one seed of the default grid, 12", digits), ("1,000 short", short)):
        ratios = " | ".join(f"{info[key]:.2f} ×" for key in ("local_over_bare", "ray_over_bare"))
        assert f"| {text} cases | {info['bare_seconds']:.0f} s | {ratios} |" in cluster
    assert f"a short case | | {local:.0f} ms | {ray:.0f} ms |" in cluster
    grown = " | ".join(f"+{short[f'{name}_driver_grew_mib']:.0f} MiB" for name in ("local", "ray"))
    assert f"the last of 1,000 | | {grown} |" in cluster
    assert f"Ray takes {short['ray_over_local']:.2f} times" in words(cluster)
    added = (digits["bare_seconds"] * (digits[f"{n}_over_bare"] - 1) for n in ("local", "ray"))
    assert "adds {:.0f} s, Ray {:.0f} s".format(*added) in words(cluster)
    found = rows("speed.md")
    for name, info in (("one seed of the default grid", digits), ("1,000 short cases", short)):
        shown = [cell.split(" ×")[0] for cell in found[name][:2]]
        assert shown == [f"{info[key]:.2f}" for key in ("local_over_bare", "ray_over_bare")]


def test_what_a_report_takes_is_that_of_the_committed_benchmark():
    by_name = {b["name"]: b for b in benchmarks("report")}

    def seconds(test):
        return [b["stats"]["median"] for name, b in by_name.items() if name.startswith(test)]

    def kilobytes_a_record(form):
        few, many = (
            by_name[f"test_memory[report-{n}-{form}]"]["extra_info"]["peak_megabytes"]
            for n in (1000, 10000)
        )
        return (many - few) * 1024 / 9000

    found = rows("speed.md")
    (taken,) = {f"{s:.0f} s" for s in seconds("test_command[report")}
    assert found["a report"][0] == taken
    compare = seconds("test_command[compare")
    assert found["a comparison"][0] == f"{min(compare):.0f} to {max(compare):.0f} s"
    assert found["`flatbench --help`"][0] == f"{min(seconds('test_start')):.2f} s"
    memory = [kilobytes_a_record(form) for form in ("benchmark.json", "folder", "json.gz")]
    grows = f"Memory grows by {min(memory):.0f} to {max(memory):.0f} kB a record"
    assert grows in words(page("speed.md"))


# --- what a page shows of a command is what the command shows


def test_the_list_of_measures_is_that_of_the_code():
    from flatbench.records.quantities import SAM_SHARPNESS
    from flatbench.training.measuring import MEASURES as taken

    shown = [name.strip("`") for name in rows("sharpness.md") if name.startswith("`")]
    assert shown == [SAM_SHARPNESS, *taken]


def test_what_the_commands_of_the_page_of_sharpness_print_has_every_measure():
    from flatbench.training.measuring import MEASURES as taken

    text = page("sharpness.md")
    example = text[text.index("128 training examples of digits") :]
    shown = re.findall(r"^(\w+) +[\d.]+ ", example[: example.index("```")], re.MULTILINE)
    assert shown == [*taken]


def test_the_exit_status_of_the_page_is_that_of_a_command(capsys):
    found = rows("start.md")
    unusable = found["the input or the machine cannot be used, which one line says"]
    assert main(["list", "--protocol", "no-such-protocol"]) == int(unusable[0])
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert main(["list"]) == int(found["fine"][0])
