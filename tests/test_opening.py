"""What a report says first: the answer, at equal epochs and at equal gradients, and its limits."""

import dataclasses
import functools
import re

import numpy as np
import pytest
from scipy import stats

from flatbench.records.sections import sections
from flatbench.report import chapters, render
from flatbench.report.flatness import NORMALISED, headlines
from flatbench.report.forest import WIDTH, forest_text, listed_gains
from flatbench.report.numbers import Numbers
from flatbench.stats import detectable_gain, holm
from tests.synthetic import on_both_terms as records
from tests.synthetic import record

EIGENVALUE = "hessian_max_eigenvalue"


@functools.cache
def usual():
    """The chapter of the usual grid, made once."""
    (chapter,) = chapters(records())
    return chapter


def opened(made):
    (chapter,) = chapters(made)
    return chapter.opening


def differences(made, row, base, architecture):
    def of(name):
        runs = [r for r in made if (r.optimizer, r.architecture) == (name, architecture)]
        return np.array([r.test_accuracy for r in sorted(runs, key=lambda r: r.seed)])

    return of(row) - of(base)


def test_the_sentences_are_of_every_pair_on_both_terms_with_scipys_numbers():
    made = records()
    epochs, gradients = usual().opening.outcome
    assert [str(f).partition(":")[0] for f in epochs.findings] == [
        *("sgd+sam − sgd on resnet18", "sgd+sam − sgd on vgg16"),
        *("adam+sam − adam on resnet18", "adam+sam − adam on vgg16"),
    ]
    assert [f.about for f in gradients.findings] == [
        *("sgd+sam − sgd-2x on resnet18", "sgd+sam − sgd-2x on vgg16")
    ]
    pairs = [("sgd+sam", "sgd"), ("adam+sam", "adam")]
    found = [differences(made, *pair, a) for pair in pairs for a in ("resnet18", "vgg16")]
    tests = [stats.ttest_1samp(d, 0) for d in found]
    adjusted = holm([t.pvalue for t in tests])
    for said, d, test, p in zip(epochs.findings, found, tests, adjusted, strict=True):
        low, high = test.confidence_interval()
        shown = detectable_gain(d.std(ddof=1), 6, 0.05 / 4)
        assert said.numbers == (
            f"{d.mean():+.2f} points, 95 % from {low:+.2f} to {high:+.2f}; "
            f"6 seeds could have shown {shown:.2f}"
        ).replace("-", "−")
        word = "more accurate" if d.mean() > 0 else "less accurate"
        assert said.verdict == (word if p < 0.05 else "can't tell")
    assert {f.verdict for f in epochs.findings} == {"more accurate", "can't tell"}
    assert (epochs.title, gradients.title) == ("At equal epochs", "At equal gradients")
    told = sum(p < 0.05 for p in adjusted)
    assert epochs.count == (
        f"SAM is more accurate in {told} of 4, less accurate in 0, can't tell in {4 - told}"
    )


def test_the_verdicts_are_those_of_the_tables():
    numbers = usual().numbers
    for answers, gains in zip(
        usual().opening.outcome, (numbers.pair_gains, numbers.equal_compute), strict=True
    ):
        supported = {(g.architecture, g.row, g.base): g.supported for g in gains}
        for c in answers.comparisons:
            key = (c.question.architecture, c.question.mine, c.question.reference)
            assert (c.verdict != "can't tell") == supported[key]


def test_flatness_is_told_by_kind_of_measure_and_on_both_terms():
    """Flatter than the base, sharper than the base of as many gradients; normalised, turned."""
    epochs, gradients = usual().opening.flatness
    assert epochs == (
        "Flatness at equal epochs: SAM has the lower mean in 8 of 8 comparisons by 2 plain "
        "measures (told flatter in 8, sharper in 0), in 0 of 4 by 1 measure with normalised logits "
        "(told flatter in 0, sharper in 4), in 4 of 4 by 1 measure with true labels (told flatter "
        "in 4, sharper in 0)."
    )
    assert gradients == (
        "Flatness at equal gradients: SAM has the lower mean in 0 of 4 comparisons by 2 plain "
        "measures (told flatter in 0, sharper in 4), in 2 of 2 by 1 measure with normalised logits "
        "(told flatter in 2, sharper in 0), in 0 of 2 by 1 measure with true labels (told flatter "
        "in 0, sharper in 2)."
    )


def test_pairs_are_told_by_the_plain_headline_and_by_its_normalised_twin():
    by_pair = usual().opening.flatness_by_pair
    titles = [answers.title for answers in by_pair]
    assert len(titles) == 4
    assert titles[0] == "Largest eigenvalue of the Hessian, at equal epochs"
    assert titles[1] == "Largest eigenvalue of the Hessian, at equal gradients"
    assert headlines(usual().numbers) == [EIGENVALUE, f"{EIGENVALUE}{NORMALISED}"]
    assert "sgd+sam / sgd on vgg16: 0.495 ×, 95 % from 0.472 × to" in str(by_pair[0].findings[1])


def test_one_table_of_sharpness_an_architecture_marks_the_lowest_and_what_is_not_told_from_it():
    made = records()
    table = next(t for t in usual().tables if t.title.startswith("Sharpness on vgg16"))
    assert table.columns == ("sgd", "sgd-2x", "sgd+sam", "adam", "adam+sam")  # digits' order
    lines = dict(table.rows)
    assert list(lines)[1] == "Largest eigenvalue of the Hessian"
    assert list(lines)[-1] == "Largest eigenvalue of the Hessian, true labels"  # kinds in order
    line = lines["Largest eigenvalue of the Hessian"]
    assert [c.strong for c in line] == [False, True, False, False, False]
    assert not any("≈" in c.text for c in line)
    values = [r.sharpness[EIGENVALUE] for r in made if r.id.startswith("digits/vgg16/sgd-2x/")]
    assert line[1].text == f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
    close = [dataclasses.replace(r, sharpness={EIGENVALUE: 5.0 + (r.seed * 7 % 5)}) for r in made]
    assert sum("≈" in c.text for c in near(close)) == 4
    assert not any("≈" in c.text for c in near([r for r in close if r.seed == 0]))


def near(made):
    (chapter,) = chapters(made)
    table = next(t for t in chapter.tables if t.title.startswith("Sharpness on vgg16"))
    return dict(table.rows)["Largest eigenvalue of the Hessian"]


def test_a_row_with_other_seeds_has_its_n_in_the_head():
    made = [r for r in records() if r.optimizer != "sgd-2x" or r.seed < 3]
    (chapter,) = chapters(made)
    table = next(t for t in chapter.tables if t.title.startswith("Sharpness on vgg16"))
    assert table.columns[1] == "sgd-2x (n = 3)"
    assert "Fewer than 6 seeds: sgd+sam − sgd-2x (3)." in opened(made).warnings


def test_what_cannot_be_said_is_said():
    lost = record("adam+sam", "vgg16", 7, status="diverged", base="adam")
    said = opened([*records(3), lost]).warnings
    assert said[0] == "1 of 31 runs have no result: digits/vgg16/adam+sam/seed7."
    assert "no test of 3 pairs can reach 5 %" in said[1]
    assert said[2] == (
        "SAM takes two gradients a step, its base one. No row took as many gradients as adam+sam "
        "(resnet18, vgg16): no gain of it is at equal cost."
    )
    assert opened(records(1)).warnings[0].startswith("One seed: no interval and no test.")


def test_terms_that_are_not_known_are_not_called_equal():
    assert [a.title for a in opened(records(history=(), gradient_evaluations=0)).outcome] == [
        "Against the row of its pair"
    ]


def test_rows_without_a_pair_have_no_answer():
    text = render([record("sgd", seed=s) for s in range(3)])
    assert "No row is compared with another." in text
    assert "could have shown" not in text


def test_the_answer_comes_first_and_a_link_leads_to_every_other_part():
    text = render(records())
    places = [
        text.index(part)
        for part in (
            *("### What was found", "**At equal epochs**", "**At equal gradients**"),
            *("```text", "Contents:", "### Test accuracy (%)", "### Sharpness on resnet18"),
            *("### Sharpness on vgg16", "<details>", "Made with"),
        )
    ]
    assert places == sorted(places)
    links = re.findall(r"^- \[.*\]\(#(\S+)\)$", text, flags=re.M)
    assert links == re.findall(r'<a id="(\S+)"></a>', text)
    assert len(links) == len(set(links)) == 7
    assert text.count("<details>") == text.count("</details>") == 4
    linked = render(records(), figures="figures")  # curves are a fold of figures alone
    assert linked.count("<details>") == 5


def test_figures_are_linked_where_they_are_written():
    text = render(records(), figures="some figures")
    assert "![" not in render(records())
    paths = re.findall(r"^!\[.*\]\((.*)\)$", text, flags=re.M)
    assert paths[0] == f"some%20figures/digits-outcome-{EIGENVALUE}.svg"
    assert "some%20figures/digits-cost.svg" in paths


def test_the_forest_of_text_has_a_line_a_gain_and_its_zero_in_one_column():
    numbers = usual().numbers
    *lines, axis = forest_text(numbers)
    gains = [gain for listed in listed_gains(numbers).values() for gain, _ in listed]
    assert len(lines) == len(gains) == 6
    starts = {line.index(",") for line in lines}
    assert len(starts) > 1  # names of several lengths
    bar = len(axis) - WIDTH
    bounds = [end for g in gains for end in (g.paired.interval.low, g.paired.interval.high)]
    low, high = min(0, *bounds), max(0, *bounds)
    for line, gain in zip(lines, gains, strict=True):
        at = round((WIDTH - 1) * (gain.paired.mean - low) / (high - low))
        assert line[bar + at] == ("○" if gain.base.endswith("-2x") else "●")
    assert axis.split() == [f"{v:+.1f}".replace("-", "−") for v in (low, high)]
    assert forest_text(Numbers(sections(records(1))[0])) == []


def test_an_outcome_that_is_no_accuracy_is_better_or_worse():
    made = [
        dataclasses.replace(r, test_accuracy=None, test_error=1 - r.test_accuracy / 100, history=())
        for r in records()
    ]
    verdicts = {f.verdict for answers in opened(made).outcome for f in answers.findings}
    assert verdicts == {"better", "can't tell"}
    assert "points" not in opened(made).outcome[0].findings[0].numbers


@pytest.mark.parametrize("form", ["markdown", "latex"])
def test_every_format_says_it(form):  # and HTML: tests/test_html.py
    text = render(records(), form)
    assert "6 seeds could have shown" in text
    assert "Flatness at equal gradients" in text
