"""The leaderboard, and what is refused of records before they stand in it."""

import dataclasses
import json
import re

import numpy as np
import pytest

from docs import leaderboard, submissions
from flatbench.errors import UsageError
from flatbench.protocols.cases import grid
from flatbench.protocols.tuning import Range
from flatbench.records.published import pack
from flatbench.records.reading import read
from flatbench.study.space import points
from flatbench.study.trials import trials_of
from tests import synthetic, tiny

MEANS = {"bad": 60.0, "good": 95.0, "as-good": 95.1}
FLATNESS = {"bad": 0.1, "good": 1.0, "as-good": 10.0}
TRIALS, BEST = 4, 2
(_, _, RATE, _) = points({"lr": Range(0.001, 0.1)}, TRIALS)


def protocol(folder, **changes):
    """Three rows whose rate is that of the best trial."""
    row = {"base": "sgd"} | RATE
    rows = dict.fromkeys(MEANS, row) | changes
    tuning = {
        "trials": TRIALS,
        "seeds": [100, 101],
        "space": {name: {"lr": "0.001..0.1"} for name in MEANS},
    }
    data = {"name": "digits", "validation": 0.2}
    whole = tiny.table(seeds=[*range(10)], data=data, optimizers=rows, tuning=tuning)
    return tiny.protocol(folder, whole, "mine")


def published(mine):
    """Records of every case, by committed code."""
    random = np.random.default_rng(0)
    made = []
    for case in grid(mine):
        flatness = FLATNESS[case.optimizer] * np.exp(random.normal(0, 0.1))
        record = synthetic.record(
            case.optimizer,
            case.architecture,
            case.seed,
            test_accuracy=MEANS[case.optimizer] + random.normal(0, 0.5),
            protocol=mine.name,
            gradient_evaluations=390,
            sharpness={"hessian_max_eigenvalue": flatness},
            provenance={"cell_hash": case.cell_hash(), "common_hash": mine.common_hash()},
        )
        made.append(record)
    return made


def trials(mine):
    """Records of every trial, of which number `BEST` is the best."""
    return [
        synthetic.record(
            case.optimizer,
            case.architecture,
            case.seed,
            test_accuracy=95.0 if case.optimizer.endswith(f".t{BEST:02}") else 90.0,
            protocol=f"{mine.name}-tuning",
            evaluation="validation",
            provenance={"cell_hash": case.cell_hash()},
        )
        for case in grid(trials_of(mine, tuple(mine.optimizers)))
    ]


@pytest.fixture
def mine(tmp_path):
    return protocol(tmp_path)


@pytest.fixture
def results(tmp_path, mine):
    """A folder of results as a pull request brings it."""
    folder = tmp_path / "results"
    for name in ("mine", "mine-tuning"):
        (folder / name).mkdir(parents=True)
    write(folder / "mine" / "benchmark.json", published(mine))
    (folder / "mine-tuning" / "trials.json.gz").write_bytes(pack(trials(mine)))
    return folder


def write(path, records):
    whole = {"benchmarks": [{"extra_info": {"record": record.to_json()}} for record in records]}
    path.write_text(json.dumps(whole))


def rows_of(text):
    rows = [re.split(r" *\| *", line.strip("|\n ")) for line in text.splitlines() if "|" in line]
    return {row: cells for row, *cells in rows if row in MEANS}


def test_the_best_stands_first_and_ties_share_their_places(mine, results):
    text = leaderboard.chapter(mine, results)
    found = rows_of(text)
    assert [*found][-1] == "bad"
    assert [cells[0] for cells in found.values()] == ["1–2", "1–2", "3"]
    assert {row: cells[2] for row, cells in found.items()} == {
        "bad": "1",
        "good": "2",
        "as-good": "3",
    }
    assert {cells[-1] for cells in found.values()} == {"390"}
    assert "### resnet18, at most 390 gradients (mine)" in text
    assert "(24 trainings, checked)" in text
    assert "[protocol](../flatbench/protocols/mine.toml)" in text


def test_a_row_that_is_handed_in_stands_beside_the_others(mine, results):
    records = published(mine)
    own = [r for r in records if r.optimizer != "good"]
    handed_in = [r for r in records if r.optimizer == "good"]
    write(results / "mine" / "benchmark.json", own)
    (results / "mine" / "good.json.gz").write_bytes(pack(handed_in))
    text = leaderboard.chapter(mine, results)
    assert len(rows_of(text)) == 3
    assert "[good.json.gz](../results/mine/good.json.gz)" in text


def test_a_run_that_diverged_is_shown(mine, results):
    records = [
        synthetic.record(
            *("bad", "resnet18", r.seed),
            status="diverged",
            protocol="mine",
            provenance=r.provenance,
        )
        if r.optimizer == "bad"
        else r
        for r in published(mine)
    ]
    write(results / "mine" / "benchmark.json", records)
    assert rows_of(leaderboard.chapter(mine, results))["bad"][:2] == ["—", "10 diverged"]


def changed(records, **fields):
    """The records, in which the one of bad with seed 3 is another."""
    return [
        dataclasses.replace(r, **fields) if (r.optimizer, r.seed) == ("bad", 3) else r
        for r in records
    ]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"seed": 12}, "mine/resnet18/bad/seed3 is missing"),
        ({"evaluation": "validation"}, "seed3: evaluation must be 'test', got 'validation'"),
        ({"gradient_evaluations": 395}, "gradient_evaluations must be at most 390, got 395"),
        ({"provenance": {"cell_hash": "0"}}, r"cell_hash must be [0-9a-f]{12}, that of .* got 0"),
        ({"optimizer": "sgd", "seed": 0}, "sgd is no row of protocol 'mine'"),
    ],
)
def test_records_that_do_not_fit_are_refused(mine, results, fields, said):
    own = results / "mine" / "benchmark.json"
    other = results / "mine" / "more.json"
    write(own, [r for r in published(mine) if r.optimizer != "bad"])
    write(other, changed([r for r in published(mine) if r.optimizer == "bad"], **fields))
    with pytest.raises(UsageError, match=rf"more\.json: .*{said}"):
        submissions.check(mine, {path: read(path) for path in (own, other)})


def test_records_of_code_that_nobody_committed_are_refused(mine, results):
    own = results / "mine" / "benchmark.json"
    records = published(mine)
    provenance = next(r for r in records if r.optimizer == "bad").provenance
    write(own, changed(records, provenance=dict(provenance) | {"dirty": True}))
    with pytest.raises(UsageError, match="seed3: dirty must be false"):
        submissions.check(mine, {own: read(own)})


def test_a_missing_trial_is_refused(mine, results):
    packed = results / "mine-tuning" / "trials.json.gz"
    packed.write_bytes(pack(trials(mine)[:-1]))
    with pytest.raises(UsageError, match=r"resnet18/as-good\.t03/seed101 is missing"):
        leaderboard.chapter(mine, results)


def test_other_values_than_those_of_the_best_trial_are_refused(tmp_path, results):
    other = protocol(tmp_path, bad={"base": "sgd", "lr": 0.05})
    with pytest.raises(
        UsageError, match=r"bad on resnet18 must have the values of bad\.t02, its best"
    ):
        submissions.check_tuning(other, results / "mine-tuning")


@pytest.mark.checkout
def test_every_published_protocol_stands_in_the_committed_page():
    page = (leaderboard.RESULTS.parent / "docs" / "leaderboard.md").read_text()
    names = {path.parent.name for path in leaderboard.RESULTS.glob("*/benchmark.json")}
    assert {line[3:] for line in page.splitlines() if line.startswith("## ")} == {
        *names,
        "Hand in a row",
    }


@pytest.mark.checkout
def test_the_committed_page_is_the_one_that_records_protocols_and_trials_make():
    page = leaderboard.RESULTS.parent / "docs" / "leaderboard.md"
    assert page.read_text() == leaderboard.page(), "tox -e docs"
