import math
import re

import pytest

from flatbench import gate
from flatbench.gate import verdict as module
from flatbench.gate.verdict import Outcome, Row, Verdict
from tests.synthetic import grid

HOSTILE = "<b>|\x00\x1b\n\ud800 & ]]>"
ROW = Row("a/b: test_accuracy", "92", "91.5", "at least 88", "a drop of 5.0 points")
FINE = Outcome("a/b: test_accuracy", "passed", "a/b: test_accuracy: fine", (ROW,), 5.0)
WORSE = Outcome(HOSTILE, "failed", f"{HOSTILE}: worse")
BLIND = Outcome("a/c: test_accuracy", "can't check", "a/c: 1 seed", drop=math.inf)


def made(*outcomes, notes=()):
    return Verdict("A gate", outcomes, notes, 0.048)


MIXED = made(FINE, BLIND, WORSE, notes=(f"{HOSTILE}: no baseline", "alone"))


@pytest.mark.parametrize(
    ("verdict", "result", "code", "says"),
    [
        (made(FINE), "pass", 0, "pass: none of 1 checks failed"),
        (made(FINE, WORSE), "fail", 1, "fail: 1 of 2 checks failed"),
        (MIXED, "fail", 1, "fail: 1 of 3 checks failed, and 1 could not have failed"),
        (
            made(FINE, BLIND),
            "can't tell",
            0,
            "can't tell: none of 2 checks failed, but 1 could not have failed",
        ),
        (made(), "can't tell", 0, "can't tell: nothing was checked"),
    ],
)
def test_a_verdict_is_pass_fail_or_cant_tell_and_says_so_last(verdict, result, code, says):
    assert (verdict.result, verdict.exit_code) == (result, code)
    assert module.text(verdict).splitlines()[-1].startswith(f"A gate: {says}")
    assert module.markdown(verdict).startswith(f"## A gate: {says}\n")


def test_what_is_required_and_not_there_fails():
    assert module.demand(made(FINE, BLIND), None) == made(FINE, BLIND)
    assert module.demand(made(FINE), 5.0).exit_code == 0
    (weak,) = module.demand(made(FINE), 4.9).failures
    assert weak.line == (
        "a/b: test_accuracy keeps its limit, but the check is too weak: it finds a drop of 5.0 "
        "points 9 times out of 10, and --require-power 4.9 was asked for; more seeds find smaller "
        "drops"
    )
    (blind,) = module.demand(made(FINE, BLIND), 5.0).failures
    assert blind.line == "can't check a/c: 1 seed; with --require-power 5 that is a failure"
    assert module.demand(made(WORSE), 5.0) == made(WORSE)


def test_markdown_shows_failures_first_and_folds_the_rest():
    text = module.markdown(MIXED)
    assert "fails at most 4.8 % of the time" in text
    folded = ["Could not have failed (1)", "Passed (1)", "Not checked (2)"]
    places = [text.index("worse"), *(text.index(f"<details><summary>{one}") for one in folded)]
    assert places == sorted(places)
    assert "<b>" not in text.replace("\\<b>", "")
    text.encode()


def test_text_is_a_table_of_what_passed_then_a_line_each_and_the_verdict_last():
    lines = module.text(MIXED).splitlines()
    assert [line.split(" ")[0] for line in lines] == [
        *("passed", "a/b:", "not", "not", "can't", "FAILED", "A")
    ]
    assert lines[1].split("  ")[0] == "a/b: test_accuracy"
    assert all(cell in lines[1] for cell in ("92", "91.5", "at least 88", "a drop of 5.0 points"))
    brief = module.text(MIXED, brief=True)  # follows tests that have told the failures
    assert "FAILED" not in brief
    assert brief.splitlines()[-1] == lines[-1]


def many(number, length=20):
    """As many failures, passed checks and blind ones, with lines that long."""
    line = HOSTILE + "é" * length
    failed = [Outcome(f"a/{i}", "failed", f"a/{i}: {line}", (ROW,)) for i in range(number)]
    passed = [Outcome(f"b/{i}", "passed", f"b/{i}: {line}", (ROW,), 5.0) for i in range(number)]
    blind = [Outcome(f"c/{i}", "can't check", f"c/{i}: {line}") for i in range(number)]
    return made(*failed, *passed, *blind, notes=(line,) * number)


def test_markdown_has_a_table_of_the_failures_then_of_the_accuracies():
    worse = Outcome("a/d: sam_sharpness", "failed", "worse", (Row("a/d", "1", "9", "2", "3"),))
    speed = Outcome("a/e: time", "passed", "fine", (Row("a/e", "1", "1", "2", "3"),))
    lines = module.markdown(made(FINE, speed, worse)).splitlines()
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    assert rows[0] == ["check", "baseline", "now", "limit", "finds 9 times out of 10", "result"]
    assert [(row[0], row[-1]) for row in rows[2:]] == [
        ("a/d", "failed"),
        ("a/b: test_accuracy", "passed"),
    ]


@pytest.mark.parametrize(
    ("most", "number", "length"),
    [(module.COMMENT, 500, 20), (module.COMMENT, 500, 5000), (module.STEP_SUMMARY, 2000, 5000)],
)
def test_markdown_that_is_bounded_keeps_the_verdict_and_the_first_failures(most, number, length):
    verdict = many(number, length)
    text = module.markdown(verdict, most, "Where the rest is.")
    assert most / 2 < len(text.encode()) <= most
    assert text.startswith(
        f"## A gate: fail: {number} of {3 * number} checks failed, and {number} "
    )
    assert "- a/0: " in text
    assert re.search(r"\n\nand [\d,]+ more\n", text)
    assert text.endswith("\nWhere the rest is.\n")
    assert text.count("<details>") == text.count("</details>") == 3


def test_what_fits_is_whole():
    assert module.markdown(MIXED, module.COMMENT) == module.markdown(MIXED)
    assert "more" not in module.markdown(many(9, 5000))
    assert len(module.markdown(many(9, 5000))) > 9 * 3 * 5000


def test_a_verdict_for_programs():
    assert MIXED.to_json() == {
        "verdict": "fail",
        "sentence": "fail: 1 of 3 checks failed, and 1 could not have failed",
        "title": "A gate",
        "false_alarm_rate": 0.048,
        "checks": [
            {"name": o.name, "result": o.result, "line": o.line} for o in (FINE, BLIND, WORSE)
        ],
        "not_checked": [f"{HOSTILE}: no baseline", "alone"],
    }


def test_step_summary_is_appended_where_github_asks_for_it(tmp_path):
    path = tmp_path / "summary.md"
    environment = {"GITHUB_STEP_SUMMARY": str(path)}
    assert module.add_to_step_summary(MIXED, environment=environment)
    assert module.add_to_step_summary(made(FINE), "More.", environment)
    one, other = module.markdown(MIXED), module.markdown(made(FINE), details="More.")
    assert path.read_text(encoding="utf-8") == f"{one}\n{other}\n"
    assert not module.add_to_step_summary(MIXED, environment={})


def test_a_step_summary_leaves_room_for_what_is_there(tmp_path):
    path = tmp_path / "summary.md"
    path.write_text("x" * 500_000)
    module.add_to_step_summary(many(2000, 5000), environment={"GITHUB_STEP_SUMMARY": str(path)})
    assert 900_000 < path.stat().st_size <= module.STEP_SUMMARY


def test_a_grid_is_judged_by_cases_cells_and_pairs():
    thresholds = gate.derive(grid(range(10)))
    good = gate.judge(grid(range(20, 23), generator=8), thresholds)
    assert (good.result, len(good.outcomes)) == ("pass", 24 + 16 + 4)  # what passes is counted
    bad = grid(means={"sgd": 80.0, "sgd+sam": 75.0, "new": 1.0})
    found = gate.judge(bad, thresholds)
    assert {o.name for o in found.failures if "sgd/" in o.name} == {
        r.id for r in bad if r.optimizer == "sgd"
    }
    assert [o.name for o in found.failures[-2:]] == [
        "digits/resnet18: sgd+sam − sgd",
        "digits/vgg16: sgd+sam − sgd",
    ]
    assert [o.line for o in found.blind] == [
        "digits/resnet18/new: no baseline",
        "digits/vgg16/new: no baseline",
    ]
    assert set(found.notes) == {
        f"digits/{a}/{row}: has thresholds, but was not run"
        for a in ("resnet18", "vgg16")
        for row in ("adam", "adam+sam")
    }
    assert found.false_alarm_rate == thresholds.false_alarm_rate
