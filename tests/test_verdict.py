import xml.etree.ElementTree as ET

from flatbench import gate
from flatbench.gate import verdict
from flatbench.gate.verdict import Outcome, Verdict
from tests.synthetic import grid

HOSTILE = "<b>|\x00\x1b\n\ud800 & ]]>"
MIXED = Verdict(
    "A gate",
    (
        Outcome("a/b: test_accuracy", True, "a/b: fine"),
        Outcome(HOSTILE, False, f"{HOSTILE}: worse"),
    ),
    (f"{HOSTILE}: no baseline", "alone"),
    0.048,
)
FINE = Verdict("A gate", MIXED.outcomes[:1], (), 0.048)


def test_exit_codes():
    assert (MIXED.exit_code, FINE.exit_code) == (1, 0)


def test_junit_has_a_case_a_check_and_survives_any_string():
    text = verdict.junit(MIXED)
    suite = ET.fromstring(text.encode()).find("testsuite")
    assert suite.attrib == {
        "name": "A gate",
        "tests": "4",
        "failures": "1",
        "errors": "0",
        "skipped": "2",
    }
    fine, failed, skipped, alone = suite.findall("testcase")
    assert fine.attrib["name"] == "a/b: test_accuracy"
    assert len(fine) == 0
    assert failed.find("failure").attrib["message"].endswith(": worse")
    assert "\\x00" in failed.attrib["name"]
    assert skipped.find("skipped").attrib["message"] == "no baseline"
    assert alone.find("skipped").attrib["message"] == "alone"


def test_markdown_shows_failures_first_and_folds_the_rest():
    text = verdict.markdown(MIXED)
    assert text.startswith("## A gate: 1 of 2 checks failed\n")
    assert "fails at most 4.8 % of the time" in text
    assert text.index("worse") < text.index("<details><summary>Passed (1)") < text.index("fine")
    assert "<b>" not in text.replace("\\<b>", "")
    text.encode()
    assert verdict.markdown(FINE).startswith("## A gate: all 1 checks passed\n")


def test_text_is_a_line_a_failure_and_a_sum():
    lines = verdict.text(MIXED).splitlines()
    assert [line.split(" ")[0] for line in lines] == ["FAILED", "not", "not", "A"]
    assert lines[-1].startswith("A gate: 1 of 2 checks failed; ")


def test_step_summary_is_appended_where_github_asks_for_it(tmp_path):
    path = tmp_path / "summary.md"
    environment = {"GITHUB_STEP_SUMMARY": str(path)}
    assert verdict.add_to_step_summary("one ± 1", environment)
    assert verdict.add_to_step_summary("two", environment)
    assert path.read_text(encoding="utf-8") == "one ± 1\ntwo\n"
    assert not verdict.add_to_step_summary("x", {})


def test_a_grid_is_judged_case_by_case():
    thresholds = gate.derive(grid(range(10)))
    bad = grid(means={"sgd": 80.0, "sgd+sam": 75.0, "new": 1.0})
    found = gate.judge(bad, thresholds)
    assert len(found.outcomes) == len(bad) + 2  # and two pairs, which lost their gain
    good = gate.judge(grid(range(20, 23), generator=8), thresholds)
    assert (good.exit_code, len(good.outcomes)) == (0, 24 + 4)  # pairs that pass are counted
    assert {o.name for o in found.failures if "sgd/" in o.name} == {
        r.id for r in bad if r.optimizer == "sgd"
    }
    assert [o.name for o in found.failures[-2:]] == [
        "digits/resnet18: sgd+sam − sgd",
        "digits/vgg16: sgd+sam − sgd",
    ]
    assert found.notes == ("digits/resnet18/new: no baseline", "digits/vgg16/new: no baseline")
    assert found.false_alarm_rate == thresholds.false_alarm_rate
