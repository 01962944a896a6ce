import dataclasses
import re

import numpy as np
import pytest
from scipy import stats as reference

from flatbench.errors import UsageError
from flatbench.protocols.reading import load
from flatbench.records.quantities import quantity
from flatbench.records.sections import sections
from flatbench.report import chapters, ranking, render
from flatbench.report.numbers import Numbers
from flatbench.text import decimals, latex_text, markdown_text, number, plain, ranges
from flatbench.training.measuring import MEASURES
from tests.synthetic import grid, record


def cell(made, row, column):
    (cells,) = [cells for label, cells in made.rows if label == row]
    return cells[made.columns.index(column)].text


def tables(records, protocols=()):
    return {c.name: list(c.all_tables) for c in chapters(records, protocols)}


def accuracy(records):
    return next(iter(tables(records).values()))[0]


def test_table_has_the_studys_layout_and_numpys_numbers():
    records = grid()
    made = accuracy(records)
    assert [label for label, _ in made.rows] == ["sgd", "sgd+sam", "adam", "adam+sam"]
    assert made.columns == ("resnet18", "vgg16")
    values = [r.test_accuracy for r in records if (r.optimizer, r.architecture) == ("sgd", "vgg16")]
    assert len(values) == 3
    assert cell(made, "sgd", "vgg16") == f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"


def test_rows_and_columns_keep_the_protocols_order_whatever_order_the_files_have():
    made = accuracy(grid()[::-1])
    assert [label for label, _ in made.rows] == ["sgd", "sgd+sam", "adam", "adam+sam"]
    assert made.columns == ("resnet18", "vgg16")
    own = grid(protocol="mine", means={"z": 1.0, "a": 2.0})
    assert [label for label, _ in accuracy(own).rows] == ["z", "a"]


def test_title_names_protocol_part_seeds_and_n():
    assert accuracy(grid()).title == "Test accuracy (%): digits, test part, seeds 0, 1, 2, n = 3"
    assert "seeds 0–9, n = 10" in accuracy(grid(range(10))).title


def test_a_validation_table_says_so_everywhere():
    text = render(grid(evaluation="validation"))
    assert "### Validation accuracy (%): digits, validation part" in text
    assert "**validation** part" in text
    assert "Test accuracy" not in text
    assert "Gain in validation accuracy" in text


def test_lost_missing_and_single_cells():
    records = [
        *(record("sgd", seed=s, test_accuracy=a) for s, a in enumerate([80.0, 81.0, 82.0])),
        *(record("adam", seed=s, test_accuracy=70.0 + s) for s in (0, 1)),
        record("adam", seed=2, status="diverged"),
        *(record("sgd+sam", seed=s, status="diverged") for s in (0, 1)),
        record("sgd+sam", seed=2, status="failed", reason="worker died"),
        record("adam+sam", "vgg16", test_accuracy=60.0),
    ]
    made = accuracy(records)
    assert cell(made, "sgd", "resnet18") == "81.00 ± 1.00"
    assert cell(made, "adam", "resnet18") == "70.50 ± 0.71 (n = 2, 1 diverged)"
    assert cell(made, "sgd+sam", "resnet18") == "2 diverged, 1 failed"
    assert cell(made, "adam+sam", "vgg16") == "60.00 (n = 1)"
    assert cell(made, "sgd", "vgg16") == "—"
    text = render(records)
    assert "nan" not in text.lower()
    assert "- digits/resnet18/sgd+sam/seed2 failed: worker died" in text


def test_one_seed_tables_show_no_spread():
    text = render(grid(seeds=[4]))
    assert "±" not in text
    gains = titled(grid(seeds=[4]), "Gain in")
    assert all(" to " not in cell(gains, f"{b}+sam − {b}", "vgg16") for b in ("sgd", "adam"))
    assert "seed 4, n = 1" in text
    assert "One seed says nothing about the spread." in text


def test_pairs_are_by_seed():
    records = [record("sgd", seed=s, test_accuracy=80.0 + 5 * s) for s in range(4)]
    records += [record("sgd+sam", seed=s, test_accuracy=81.0 + 5.5 * s) for s in range(3)]
    made = titled(records, "Gain in")
    # differences 1, 1.5, 2: mean 1.5, t(0.975, 2) * 0.5 / sqrt(3) = 1.242
    assert cell(made, "sgd+sam − sgd", "resnet18") == "+1.50 (+0.26 to +2.74)"


def test_protocols_are_never_mixed():
    other = grid(protocol="mine", means={"sgd": 10.0}, provenance={"common_hash": "f"})
    made = tables([*grid(), *other])
    assert list(made) == ["digits", "mine"]
    assert [label for label, _ in made["mine"][0].rows] == ["sgd"]
    assert render([*grid(), *other]) == render(grid()) + "\n" + render(other)


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (record(seed=9, provenance={"common_hash": "edited"}), "common_hash differs"),
        (record(seed=9, provenance={"common_hash": None}), "common_hash differs"),
        (record(seed=9, provenance={"common_hash": ["x"]}), "common_hash differs"),
        (record(seed=9, provenance={"cell_hash": "edited"}), "cell_hash differs"),
        (record(seed=9, evaluation="validation"), "evaluation differs"),
        (record("sgd+sam", seed=9, base_row="adam"), "base_row differs"),
        (record(seed=0, test_accuracy=1.0), "twice with different results: test_accuracy"),
        (record(seed=0, status="failed"), "twice with different results: status"),
    ],
)
def test_records_that_cannot_share_a_table_are_refused_in_one_line(extra, says):
    with pytest.raises(UsageError, match=says) as error:
        render([*grid(), extra])
    assert "digits" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_same_result_given_twice_counts_once():
    assert render(grid() + grid()) == render(grid())


def test_a_dead_worker_need_not_know_the_protocol():
    dead = record(seed=9, status="failed", provenance={"common_hash": None, "cell_hash": None})
    assert len(sections([*grid(), dead])) == 1


def test_hostile_names_are_shown_and_do_nothing_else():
    name = "a|b\n| c |<script>\x1b[2J\ud800*x*"
    text = render([record(name, seed=s, status="diverged", reason=name) for s in range(2)])
    text.encode()
    assert "\x1b" not in text
    assert "\\<script>" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {3}


def test_set_ups_that_differ_are_all_named():
    text = render([*grid([0]), *grid([1], provenance={"device": "another", "dirty": True})])
    assert "more than one set-up" in text
    assert "commit abc1234 with uncommitted changes" in text
    assert render(grid()).count("Made with flatbench 0.1.0, commit abc1234,") == 1


def test_plain_is_one_printable_line():
    assert plain("a\nb\u202ec\té") == "a\\nb\\u202ec\\té"
    assert markdown_text("adam_2x _i_") == "adam_2x \\_i\\_"


def test_names_make_no_mention_and_no_link():
    """GitHub tells a person who is named, and links what looks like an address."""
    assert markdown_text("a@example") == "a@<!-- -->example"
    assert markdown_text("@team") == "@<!-- -->team"
    assert markdown_text("https://a.b and WWW.a.b") == "https:<!-- -->//a.b and WWW.<!-- -->a.b"
    assert markdown_text("torch.optim:SGD, 1:2") == "torch.optim:SGD, 1:2"


def test_a_row_of_latex_is_no_option_of_the_row_before():
    for name in ("[1cm]", "*"):
        assert latex_text(name) == f"{{}}{name}"
    assert latex_text("a[1]*") == "a[1]*"


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([2, 0, 1], "0, 1, 2"), (range(10), "0–9"), ([0, 1, 2, 3, 7], "0–3, 7"), ([5], "5")],
)
def test_ranges(numbers, text):
    assert ranges(numbers) == text


def test_small_numbers_never_show_as_zero():
    assert decimals([0.0123, 4.0]) == 4
    assert number(0.01234, 4) == "0.0123"
    assert number(1e-9, 4) == "1.0e-09"
    assert number(0.0, 4) == "0.0000"
    assert number(-1.5, 2, sign=True) == "−1.50"


def full(n, **changes):
    """A grid with a row of equal compute, histories and a second sharpness measure."""
    means = {"sgd": 88.5, "sgd@2x": 91.0, "sgd+sam": 93.1, "adam": 70.3, "adam+sam": 82.9}
    made = []
    for r in grid(range(n), means=means, epochs=10):
        values = {
            "base": "sgd" if r.optimizer.startswith("sgd") else "adam",
            "gradient_evaluations": 170 if r.optimizer in ("sgd", "adam") else 340,
            "train_accuracy": 95.0,
            "sharpness": {"hessian_trace": 3 * r.sam_sharpness, "odd_standard_error": 1.0},
        }
        made.append(dataclasses.replace(r, **(values | changes)))
    return made


def titled(records, start, **options):
    (chapter,) = chapters(records, **options)
    found = [made for made in chapter.all_tables if made.title.startswith(start)]
    return found[0] if found else None


def test_the_leading_tables_are_accuracy_and_sharpness_and_the_rest_is_folded_away():
    (chapter,) = chapters(full(3))
    assert [t.title.partition(":")[0] for t in chapter.tables] == [
        *("Test accuracy (%)", "Sharpness on resnet18", "Sharpness on vgg16")
    ]
    assert [fold.title for fold in chapter.folds] == [
        "Gains by seed, and their tests",
        "Flatness, pair by pair",
        "What a result costs",
        "Curves by epoch",
        "Does sharpness rank the rows as their outcome does?",
    ]


def test_significance_is_scipys_and_corrected_over_the_table():
    records = full(7)
    made = titled(records, "Tests of the gains")
    values = {
        (o, a): [r.test_accuracy for r in records if (r.optimizer, r.architecture) == (o, a)]
        for o in ("sgd", "sgd+sam", "adam", "adam+sam")
        for a in ("resnet18", "vgg16")
    }
    pairs = [(b, a) for b in ("sgd", "adam") for a in ("resnet18", "vgg16")]
    p = [reference.ttest_rel(values[f"{b}+sam", a], values[b, a]).pvalue for b, a in pairs]
    order = np.argsort(p)
    holm = np.empty(4)
    holm[order] = np.minimum(1, np.maximum.accumulate(np.sort(p) * [4, 3, 2, 1]))
    column = made.columns.index
    assert [cells[column("p")].value for _, cells in made.rows] == pytest.approx(p)
    assert [cells[column("Holm")].value for _, cells in made.rows] == pytest.approx(holm)


def test_bold_is_what_the_corrected_test_supports():
    """A pair that alone passes at 5 % is not bold in a table of two such pairs."""
    differences = [2.2, 3.2, 4.8]
    p = reference.ttest_1samp(differences, 0).pvalue
    assert 0.025 < p < 0.05
    one = [record("sgd", seed=s, test_accuracy=80.0) for s in range(3)]
    one += [record("sgd+sam", seed=s, test_accuracy=80 + d) for s, d in enumerate(differences)]
    two = [dataclasses.replace(r, architecture="vgg16") for r in one]
    two = [dataclasses.replace(r, provenance=r.provenance | {"cell_hash": "v"}) for r in two]

    def bold(records):
        shown = (accuracy(records), titled(records, "Gain in"))
        return sum(found.strong for t in shown for _, cells in t.rows for found in cells)

    assert bold(one) == 2
    assert bold(one + two) == 0


def test_a_worse_sam_row_is_not_the_bold_one():
    records = [record("sgd", seed=s, test_accuracy=90.0 + s) for s in range(4)]
    records += [record("sgd+sam", seed=s, test_accuracy=80.0 + 1.1 * s) for s in range(4)]
    (base,), (sam,) = (cells for _, cells in accuracy(records).rows)
    assert base.strong
    assert not sam.strong


def test_three_seeds_are_told_what_they_can_say():
    text = render(full(3))
    assert "the signed-rank test's smallest p-value is 0.25" in text
    assert "signed-rank test's smallest" not in render(full(6))
    assert "One seed: no interval and no test" in render(grid([0]))


def test_equal_compute_pairs_by_base_and_gradient_evaluations():
    made = titled(full(3), "Test accuracy (%) at equal compute")
    assert [label for label, _ in made.rows] == ["sgd+sam − sgd@2x"] * 2
    assert [cells[made.columns.index("gradient evaluations")].text for _, cells in made.rows] == [
        "340",
        "340",
    ]
    assert "No row took as many gradients as adam+sam (resnet18, vgg16)" in render(full(3))
    assert titled(full(3, gradient_evaluations=340), "Test accuracy (%) at equal").rows != made.rows
    assert titled(full(3, base=None), "Test accuracy (%) at equal compute") is None


def test_rows_without_a_count_of_gradients_are_not_of_equal_compute():
    records = full(3, gradient_evaluations=0)
    assert titled(records, "Test accuracy (%) at equal compute") is None
    assert "No row took as many gradients as sgd+sam (resnet18, vgg16), adam+sam" in render(records)
    one = [dataclasses.replace(r, gradient_evaluations=0) if r.seed == 1 else r for r in full(3)]
    assert titled(one, "Test accuracy (%) at equal compute") is None
    silent = [
        dataclasses.replace(
            r, history=tuple(dataclasses.replace(e, gradient_evaluations=0) for e in r.history)
        )
        for r in records
    ]
    rows = dict(titled(silent, "Cost of reaching", target=50.0).rows)
    assert rows["sgd"][0].text.startswith("— (")


def test_time_to_accuracy_counts_whole_epochs_and_who_never_arrived():
    records = full(3)
    made = titled(records, "Cost of reaching", target=85.0)
    assert made.columns == ("resnet18 (≥ 85 %)", "vgg16 (≥ 85 %)")
    rows = dict(made.rows)
    assert rows["adam"][0].text == "reached by 0 of 3"
    run = [r for r in records if (r.optimizer, r.architecture) == ("sgd", "resnet18")]
    first = [
        1 + next(i for i, epoch in enumerate(r.history) if epoch.test_accuracy >= 85) for r in run
    ]
    assert rows["sgd"][0].text.startswith(f"{17 * np.mean(first):.0f} (")
    assert "given by the user" in made.note
    assert "set from these very runs" in titled(records, "Cost of reaching").note
    assert titled(grid(), "Cost of reaching") is None


def test_ranking_is_kendalls_tau_of_the_rows():
    records = full(3)
    made = titled(records, "Does sharpness rank")
    means = {
        o: [
            np.mean(
                [getattr(r, m) for r in records if (r.optimizer, r.architecture) == (o, "vgg16")]
            )
            for m in ("sam_sharpness", "test_accuracy")
        ]
        for o in ("sgd", "sgd@2x", "sgd+sam", "adam", "adam+sam")
    }
    x, y = zip(*means.values(), strict=True)
    (_, cells), *_ = made.rows
    assert cells[1].value == pytest.approx(reference.kendalltau(x, [-v for v in y]).statistic)
    assert "1/120" in made.note
    assert titled(grid(means={"sgd": 1.0, "sgd+sam": 2.0}), "Does sharpness rank") is None


def test_the_ranking_is_of_so_many_runs_that_their_pairs_can_be_counted():
    """100,000 records have 5 thousand million pairs."""
    records = grid(range(ranking.MOST + 3), means={"a": 80.0, "b": 90.0}, architectures=("vgg16",))
    few = [r for r in records if r.seed < ranking.MOST]
    found = [
        ranking.correlation(Numbers(section), "sam_sharpness")
        for some in (records, few)
        for section in sections(some)
    ]
    assert found[0] == found[1]
    assert found[0].n == 2 * ranking.MOST


def test_a_ranking_of_a_part_of_the_runs_says_so(monkeypatch):
    assert "lowest seeds" not in titled(full(3), "Does sharpness rank").note
    monkeypatch.setattr(ranking, "MOST", 2)
    made = titled(full(3), "Does sharpness rank")
    assert made.note.endswith(" Of cells with more runs, the 2 lowest seeds are ranked.")


def test_rows_with_as_many_hits_are_ties_of_the_ranking():
    """The means of 100·h/360 differ in their last digit, and that digit is no order."""
    hits = {"sgd": (333, 314, 328), "sgd+sam": (327, 334, 314), "adam": (340, 341, 342)}
    accuracies = {row: [100 * h / 360 for h in of] for row, of in hits.items()}
    assert 0 < abs(np.mean(accuracies["sgd"]) - np.mean(accuracies["sgd+sam"])) < 1e-12
    records = [
        record(row, seed=seed, test_accuracy=accuracy, sam_sharpness=sharpness)
        for (row, values), sharpness in zip(accuracies.items(), (0.1, 0.2, 0.3), strict=True)
        for seed, accuracy in enumerate(values)
    ]
    (_, cells), *_ = titled(records, "Does sharpness rank").rows
    exact = reference.kendalltau([0.1, 0.2, 0.3], [1, 1, 0]).statistic  # errors, more to fewer
    assert cells[0].value == pytest.approx(exact)


def test_reference_stands_beside_the_own_numbers_of_the_same_protocol_only(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        """
        [data]
        name = "digits"
        [training]
        epochs = 1
        batch_size = 8
        [model]
        width = 4
        [optimizers.adam]
        base = "adam"
        lr = 0.1
        [optimizers.sgd]
        base = "sgd"
        lr = 0.1
        [reference]
        source = "a study"
        seeds = 3
        [reference.test_accuracy.resnet18]
        sgd = [90.899, 0.137]
        """
    )
    mine = load(str(path))
    same = {"common_hash": mine.common_hash()}
    records = grid(protocol="mine", means={"sgd": 89.0, "adam": 70.0}, provenance=same)
    made = tables(records, [mine])["mine"][1]
    assert [label for label, _ in made.rows] == ["adam", "sgd"]  # the protocol's order
    own = np.mean([r.test_accuracy for r in records if r.architecture == "resnet18"][::2])
    assert cell(made, "sgd", "resnet18") == f"90.899 ± 0.137 (−{90.899 - own:.2f})"
    assert cell(made, "adam", "vgg16") == "—"
    assert "Source: a study; mean ± std over 3 seeds." in made.note
    edited = grid(protocol="mine", means={"sgd": 89.0}, provenance={"common_hash": "other"})
    assert not any("Published" in t.title for t in tables(edited, [mine])["mine"])


def test_ten_thousand_records_are_one_table():
    (chapter,) = chapters(grid(range(1250), epochs=2))
    assert "n = 1250" in chapter.tables[0].title


def test_latex_has_every_table_and_escapes_what_is_foreign():
    name = "a_b & 100% #1 $x$ {y} \\end{table} ~^"
    records = [*full(3), record(name, "vgg16", status="failed")]
    text = render(records, "latex")
    (chapter,) = chapters(records)
    lines = text.splitlines()
    assert lines.count(r"\begin{table}") == lines.count(r"\end{table}") == len(chapter.all_tables)
    escaped = (
        r"a\_b \& 100\% \#1 \$x\$ \{y\} \textbackslash{}end\{table\} "
        r"\textasciitilde{}\textasciicircum{}"
    )
    assert f"\n{escaped} & --- & 1 failed \\\\\n" in text
    assert r"\textbf{93.31 $\pm$ 0.72}" in text
    for line in lines:
        if line.startswith(r"a\_b"):
            assert line.replace(r"\&", "").count("&") == 2


def test_formats():
    with pytest.raises(ValueError, match="format must be one of markdown, html, latex, got "):
        render(grid(), "pdf")
    assert render(grid()) == render(grid(), "markdown")


def test_brief_leaves_the_main_tables():
    text = render(full(3), brief=True)
    assert "### Gain in test accuracy" in text
    assert "### What was found" in text
    assert not any(part in text for part in ("Tests of the gains", "<details>", "Contents"))
    assert set(text.splitlines()) <= set(render(full(3)).splitlines())
    assert "Made with" in text


def test_measures_have_names_and_unknown_ones_keep_theirs():
    for measure in MEASURES:
        name = quantity(measure).heading
        assert name[0].isupper() or name == "m-sharpness"
        assert quantity(f"{measure}_clean").heading == f"{name}, true labels"
    assert quantity("my_own_clean").heading == "my_own_clean"


def own(row, base_row, base, seed=0, **changes):
    return record(row, seed=seed, protocol="own", base_row=base_row, base=base, **changes)


def test_rows_that_are_no_sam_are_compared_and_named_as_what_they_are():
    """Lion against Adam, at as many gradients, and its SAM against it, at twice as many."""
    lion = "./lion.py:Lion"
    records = [
        r
        for seed in range(3)
        for r in (
            own("adam", None, "adam", seed, gradient_evaluations=100),
            own("lion", "adam", lion, seed, test_accuracy=91.0, gradient_evaluations=100),
            own("lion-2x", None, lion, seed, test_accuracy=91.5, gradient_evaluations=200),
            own("lion+sam", "lion", lion, seed, test_accuracy=92.0, gradient_evaluations=200),
        )
    ]
    text = render(records)
    assert "Gain in test accuracy, a row − the one it is compared with, by seed" in text
    assert "SAM −" not in text
    assert "A SAM step" not in text
    at_equal_compute = text.partition("at equal compute")[2].partition("###")[0]
    assert re.findall(r"^\| (\S+ − \S+) ", at_equal_compute, flags=re.M) == [
        *("lion − adam", "lion+sam − lion-2x")
    ]


def test_a_task_of_ones_own_is_reported_by_its_metric():
    """An error of which less is better: a gain is what falls."""
    records = [
        dataclasses.replace(
            own(row, base, "sgd", seed, test_accuracy=None, train_accuracy=None),
            metric="task.py:rmse",
            test_error=value + seed / 100,
            train_error=value / 2,
        )
        for row, base, value in (("sgd", None, 0.5), ("sgd+sam", "sgd", 0.25))
        for seed in range(3)
    ]
    text = render(records)
    assert "### Test error (task.py:rmse): own, test part, seeds 0, 1, 2, n = 3" in text
    assert "Gain in test error, SAM − base by seed, lower counted as gain" in text
    assert re.search(r"\| sgd\+sam − sgd +\| +\+?0\.25", text)
    assert "accuracy" not in text.replace("more accurate", "").replace("less accurate", "")
    assert "%)" not in text.partition("### Gain")[0].replace("95 %)", "")


def test_the_code_behind_each_reference_is_named_and_so_is_a_change_of_it():
    lion = "./lion.py:Lion"
    records = [
        own("lion", None, lion, seed, provenance={"components": {lion: f"./lion.py {code}"}})
        for seed, code in enumerate(("0123", "0123", "4567"))
    ]
    said = render(records)
    assert "./lion.py:Lion: ./lion.py 0123, ./lion.py 4567; these differ" in said
    assert "differ" not in render(records[:2])
    assert "./lion.py:Lion: ./lion.py 0123" in render(records[:2])
    for odd in (3, [], {"a": 3}, None):
        render([own("lion", None, lion, provenance={"components": odd})])
