"""Tuning: its table in a protocol, its points, its choice, the file of the winners, the command."""

import itertools
import json

import numpy as np
import pytest
from scipy import stats
from scipy.stats import qmc

from flatbench import cli
from flatbench.errors import UsageError
from flatbench.protocols.reading import load
from flatbench.protocols.tuning import Range, parse_range
from flatbench.study import tuning_report, winners
from flatbench.study.space import is_at_edge, points
from flatbench.study.trials import trials_of
from flatbench.study.tune import Trial, Tuned, expected_best
from tests import tiny
from tests.synthetic import record

SPACE = {"lr": "1e-3..1", "weight_decay": [0.0, 1e-4, 1e-3]}


def with_tuning(space=None, *, validation=0.25, rows=None, **changes):
    """The tiny protocol's table with a [tuning]."""
    tuning = {"trials": 2, "seeds": [100, 101], "space": {"sgd": SPACE} if space is None else space}
    data = {"name": "digits", "label_noise": 0.4, "train_examples": 200, "validation": validation}
    more = {} if rows is None else {"optimizers": rows}
    return tiny.table(data=data, tuning=tuning | changes, **more)


def protocol(folder, *arguments, **changes):
    return tiny.protocol(folder, with_tuning(*arguments, **changes))


def tuned(found, outcomes, architectures=("resnet18",)):
    """What a tuning found, from outcomes by (row, number): a list with one a seed, None if lost."""
    records = []
    for architecture, ((row, number), values) in itertools.product(architectures, outcomes.items()):
        for seed, value in enumerate(values):
            more = {"status": "diverged"} if value is None else {"test_accuracy": value}
            records.append(
                record(f"{row}.t{number:02}", architecture, seed, evaluation="validation", **more)
            )
    rows = tuple(dict.fromkeys(row for row, _ in outcomes))
    return Tuned(found, tuple(records), rows, tuple(architectures))


# --- the table


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"trials": 0}, "tuning.trials must be a whole number of at least 1, got 0"),
        ({"seeds": [0, 1]}, "tuning.seeds must be none of the protocol's own seeds, got [0, 1]"),
        ({"seeds": []}, "tuning.seeds must be a list of different whole numbers"),
        ({"spaces": {}}, "tuning.spaces is an unknown key (did you mean 'space'?)"),
        ({"space": {"sdg": SPACE}}, "tuning.space.sdg is an unknown key (did you mean 'sgd'?)"),
        ({"space": {"sgd": {"rho": "0.1..1"}}}, "sgd.rho must be absent unless the row has rho"),
        ({"space": {"sgd": {"betas": [1]}}}, 'sgd.betas must be absent where optimizer = "sgd"'),
        ({"space": {"sgd": {"lr": "1..0.1"}}}, "sgd.lr must be LOW..HIGH with 0 < LOW < HIGH"),
        ({"space": {"sgd": {"lr": "0..1"}}}, "sgd.lr must be LOW..HIGH with 0 < LOW < HIGH"),
        ({"space": {"sgd": {"lr": []}}}, "or a list of values, got []"),
        ({"space": {"sgd": {"lr": 0.1}}}, "or a list of values, got 0.1"),
        ({"space": {"sgd": {"lr": [-0.1]}}}, "sgd.lr must be a number above 0, got -0.1"),
        ({"space": {"sgd": {"momentum": "0.1..2"}}}, "momentum must be a number in [0, 1), got 2"),
        ({"space": {"sgd": {}}}, "space.sgd must be a table with at least one hyperparameter"),
        ({"validation": 0.0}, "data.validation must be above 0 where there is a [tuning], got 0.0"),
    ],
)
def test_a_mistake_in_the_table_is_one_line(changes, says, tmp_path):
    with pytest.raises(UsageError) as caught:
        protocol(tmp_path, **changes)
    assert says in str(caught.value)
    assert "tiny.toml: " in str(caught.value)


@pytest.mark.parametrize("missing", ["trials", "seeds", "space"])
def test_every_part_of_the_table_is_needed(missing, tmp_path):
    table = with_tuning()
    del table["tuning"][missing]
    with pytest.raises(UsageError, match=rf"tuning\.{missing} is missing"):
        tiny.protocol(tmp_path, table)


def test_it_has_no_part_in_a_hash(tmp_path):
    table = with_tuning()
    with_it = tiny.protocol(tmp_path, table)
    without = tiny.protocol(tmp_path, {k: v for k, v in table.items() if k != "tuning"})
    assert with_it.cell_hash("sgd", "resnet18") == without.cell_hash("sgd", "resnet18")


@pytest.mark.parametrize("text", ["1e-4", "1..", "..1", "a..b", "-1..1", "nan..1"])
def test_what_is_no_range(text):
    assert parse_range(text) is None


def test_a_range():
    assert parse_range("1e-4 .. 1e-1") == Range(1e-4, 1e-1)


@pytest.mark.parametrize("name", ["digits", "digits-vit", "fashion"])
def test_shipped_rows_have_equally_many_things_to_tune(name):
    found = load(name)
    assert found.tuning is not None
    assert set(found.tuning.space) == set(found.optimizers)
    assert {len(space) for space in found.tuning.space.values()} == {2}
    for row, space in found.tuning.space.items():
        base = found.base_of(row)
        if base is not None:
            assert space["lr"] == found.tuning.space[base]["lr"]
        if row.endswith("-2x"):
            assert space == found.tuning.space[row.removesuffix("-2x")]


# --- points


def test_points_are_the_same_every_time_and_more_begin_with_the_fewer():
    space = {"lr": Range(1e-4, 1.0), "rho": Range(0.01, 1.0), "nesterov": (True, False)}
    assert points(space, 20) == points(space, 20)
    assert points(space, 20)[:7] == points(space, 7)


def test_points_fill_the_space_evenly_in_its_logarithm():
    found = points({"lr": Range(1e-4, 1.0), "rho": Range(0.01, 1.0)}, 64)
    unit = np.array([[np.log10(p["lr"]) / 4 + 1, np.log10(p["rho"]) / 2 + 1] for p in found])
    for column in unit.T:
        assert stats.kstest(column, "uniform").statistic < 0.05
    random = [np.random.default_rng(i).random(unit.shape) for i in range(50)]
    assert qmc.discrepancy(unit) < min(map(qmc.discrepancy, random))


def test_a_choice_takes_every_value_alike():
    found = [p["momentum"] for p in points({"momentum": (0.0, 0.9, 0.95)}, 60)]
    assert {value: found.count(value) for value in found} == pytest.approx(
        {0.0: 20, 0.9: 20, 0.95: 20}, abs=1
    )


@pytest.mark.parametrize(
    ("found", "value", "at_edge"),
    [
        (Range(1e-4, 1.0), 1e-4, True),
        (Range(1e-4, 1.0), 2.4e-4, True),
        (Range(1e-4, 1.0), 2.6e-4, False),
        (Range(1e-4, 1.0), 0.41, True),
        (Range(1e-4, 1.0), 0.39, False),
        ((0.1, 0.2, 0.3), 0.1, True),
        ((0.1, 0.2, 0.3), 0.2, False),
        ((0.1, 0.2), 0.1, False),
        ((True, False), True, False),
        (("a", "b", "c"), "a", False),
    ],
)
def test_what_stands_at_an_edge(found, value, at_edge):
    assert is_at_edge(found, value) == at_edge


# --- trials


def test_trials_are_rows_on_the_validation_part(tmp_path):
    rows = {
        "sgd": {**tiny.SGD, "architectures": {"vgg16": {"lr": 0.5, "momentum": 0.5}}},
        "sgd+sam": {**tiny.SGD, "rho": 0.05},
        "rms": {"optimizer": "torch.optim:RMSprop", "lr": 0.01, "options": {"eps": 1e-6}},
    }
    spaces = {
        "sgd": SPACE,
        "sgd+sam": {"lr": "1e-3..1", "rho": "0.01..1"},
        "rms": {"lr": "1e-3..1", "alpha": [0.9, 0.99]},
    }
    found = protocol(tmp_path, spaces, rows=rows, trials=3)
    trials = trials_of(found, ("sgd", "sgd+sam", "rms"))
    assert list(trials.optimizers) == [f"{r}.t0{i}" for r in spaces for i in range(3)]
    assert trials.name == "tiny-tuning"
    assert trials.data.evaluation == "validation"
    assert trials.seeds == (100, 101)
    assert trials.sharpness.at_end == trials.sharpness.every_epoch == ()
    assert trials.folder == found.folder
    third = points(found.tuning.space["sgd"], 3)[2]
    row = trials.optimizers["sgd.t02"]
    assert (row.lr, row.weight_decay) == (third["lr"], third["weight_decay"])
    elsewhere = trials.optimizer("sgd.t02", "vgg16")
    assert (elsewhere.lr, elsewhere.momentum) == (third["lr"], 0.5)  # tuned; kept
    third = points(found.tuning.space["rms"], 3)[2]
    assert trials.optimizers["rms.t02"].options == {"eps": 1e-6, **third}
    assert trials.optimizers["sgd+sam.t01"].is_sam


def test_rows_without_a_space_are_refused(tmp_path):
    found = protocol(tmp_path)
    with pytest.raises(UsageError, match=r"must be one of sgd, .* got 'sgd\+sam'"):
        trials_of(found, ["sgd+sam"])
    with pytest.raises(UsageError, match=r"protocol 'tiny': table \[tuning\] is missing"):
        trials_of(tiny.protocol(tmp_path), ["sgd"])


# --- the choice


def test_the_winner_is_not_the_unstable_one(tmp_path):
    found = tuned(
        protocol(tmp_path), {("sgd", 0): [99.0, 81.0], ("sgd", 1): [89.0, 89.5]}
    )  # means 90 and 89.25, standard errors 9 and 0.25
    assert found.best("sgd", "resnet18").number == 1
    assert found.best("sgd", "resnet18").score == pytest.approx(89.0)


def test_a_trial_that_lost_a_seed_cannot_win(tmp_path):
    found = tuned(protocol(tmp_path), {("sgd", 0): [99.0, None], ("sgd", 1): [50.0, 51.0]})
    assert found.best("sgd", "resnet18").number == 1
    assert found.without_winner == ()
    none = tuned(protocol(tmp_path), {("sgd", 0): [None, 99.0], ("sgd", 1): [None, None]})
    assert none.best("sgd", "resnet18") is None
    assert none.without_winner == (("sgd", "resnet18"),)


def test_of_an_error_the_lower_one_wins():
    steady, unstable = (
        Trial(i, {}, outcomes, 0, 1, higher_is_better=False)
        for i, outcomes in enumerate([(0.5, 0.52), (0.1, 0.9)])
    )
    assert steady.score > unstable.score
    assert Trial(0, {}, (0.5,), 0, 1, higher_is_better=False).score == -0.5  # of one seed


def test_the_expected_best_is_the_mean_over_all_subsets():
    values = np.random.default_rng(0).normal(size=7)
    values[3] = values[0]  # ties
    found = expected_best(values.tolist())
    for k in range(1, 8):
        subsets = itertools.combinations(values, k)
        assert found[k - 1] == pytest.approx(np.mean([max(subset) for subset in subsets]))


def test_the_report_says_what_is_needed(tmp_path):
    found = tuned(
        protocol(
            tmp_path, {"sgd": {"lr": [0.001, 0.01, 0.1], "weight_decay": "1e-5..1"}}, trials=3
        ),
        {("sgd", 0): [60.0, 61.0], ("sgd", 1): [70.0, 71.0], ("sgd", 2): [90.0, None]},
    )
    best = found.best("sgd", "resnet18")
    text = tuning_report.markdown(found)
    assert (
        f"| sgd, resnet18 | {tuning_report.values_text(best.values)} | 70.50 ± 0.71 |"
        in " ".join(text.split())
    )
    assert "90.00 (1 lost)" in text
    assert "k = 2" in text
    assert "70.50" in text.split("Expected best", 1)[1].split("<details>")[0]
    assert len(tuning_report.edges_text(found)) == len(found.edges("sgd", "resnet18"))
    for path in tuning_report.write_figures(found, tmp_path):
        assert path.stat().st_size > 1000


# --- the winners' file


def test_the_winners_file_trains_what_won(tmp_path):
    rows = {
        "sgd": {**tiny.SGD, "architectures": {"vgg16": {"lr": 0.5, "momentum": 0.5}}},
        "sgd+sam": {**tiny.SGD, "perturbation": {"method": "sam", "rho": 0.05}},
        "rms": {"optimizer": "torch.optim:RMSprop", "lr": 0.01, "options": {"eps": 1e-6}},
    }
    spaces = {
        "sgd": SPACE,
        "sgd+sam": {"lr": "1e-3..1", "rho": "0.01..1"},
        "rms": {"lr": "1e-3..1", "alpha": [0.9, 0.99]},
    }
    table = with_tuning(spaces, rows=rows)
    table["model"]["architectures"] = ["resnet18", "vgg16"]
    found = tiny.protocol(tmp_path, table)
    outcomes = {
        (row, number): [80.0 + number, 80.0 + number] for row in spaces for number in range(2)
    }
    result = tuned(found, outcomes, ("resnet18", "vgg16"))
    # on vgg16 the first trial of every row wins
    changed = tuple(
        record(r.optimizer, "vgg16", r.seed, evaluation="validation", test_accuracy=95.0)
        if r.architecture == "vgg16" and r.optimizer.endswith("t00")
        else r
        for r in result.records
    )
    result = Tuned(found, changed, result.rows, result.architectures)
    output = tmp_path / "won.toml"
    winners.write(result, output)
    won, trials = load(str(output)), trials_of(found, tuple(spaces))
    for row in spaces:
        for architecture, number in (("resnet18", 1), ("vgg16", 0)):
            best = result.best(row, architecture)
            assert best.number == number
            as_tried = trials.optimizer(f"{row}.t0{number}", architecture)
            assert won.cell_hash(row, architecture) != found.cell_hash(row, architecture)
            name = {"name": row}
            assert vars(won.optimizer(row, architecture)) == vars(as_tried) | name
    assert won.tuning == found.tuning
    assert "Made by `flatbench tune tiny`" in output.read_text(encoding="utf-8")


def test_values_of_an_earlier_choice_do_not_stay(tmp_path):
    """Both architectures have the same winner now: the row's old values on one of them go."""
    rows = {"sgd": {**tiny.SGD, "architectures": {"vgg16": {"lr": 0.5, "momentum": 0.5}}}}
    table = with_tuning(rows=rows)
    table["model"]["architectures"] = ["resnet18", "vgg16"]
    found = tiny.protocol(tmp_path, table)
    outcomes = {("sgd", 0): [80.0] * 2, ("sgd", 1): [81.0] * 2}
    winners.write(tuned(found, outcomes, ("resnet18", "vgg16")), tmp_path / "won.toml")
    won = load(str(tmp_path / "won.toml"))
    best = points(found.tuning.space["sgd"], 2)[1]
    assert won.optimizer("sgd", "vgg16").lr == won.optimizers["sgd"].lr == best["lr"]
    assert won.optimizer("sgd", "vgg16").momentum == 0.5  # which is not tuned


def test_what_was_tuned_on_one_architecture_is_no_value_of_another(tmp_path):
    table = with_tuning()
    table["model"]["architectures"] = ["resnet18", "vgg16"]
    found = tiny.protocol(tmp_path, table)
    outcomes = {("sgd", 0): [80.0] * 2, ("sgd", 1): [81.0] * 2}
    winners.write(tuned(found, outcomes, ("vgg16",)), tmp_path / "won.toml")
    won = load(str(tmp_path / "won.toml"))
    assert won.optimizer("sgd", "resnet18") == found.optimizer("sgd", "resnet18")
    best = points(found.tuning.space["sgd"], 2)[1]
    assert won.optimizer("sgd", "vgg16").lr == best["lr"] != tiny.SGD["lr"]


def test_files_that_are_referred_to_stay_where_they_are_found(tmp_path):
    rows = {"lion": {"optimizer": "./lion.py:Lion", "lr": 0.01}}
    found = protocol(tmp_path, {"lion": {"lr": "1e-4..1"}}, rows=rows)
    result = tuned(found, {("lion", 0): [80.0], ("lion", 1): [81.0]})
    with pytest.raises(UsageError, match=r"--output must be in the protocol's folder.*'\./lion.py"):
        winners.write(result, tmp_path / "elsewhere" / "won.toml")
    assert not (tmp_path / "elsewhere").exists()
    winners.write(result, tmp_path / "won.toml")
    assert load(str(tmp_path / "won.toml")).optimizers["lion"].optimizer == "./lion.py:Lion"


@pytest.mark.parametrize(
    "source", [{"npz": "mine.npz"}, {"folder": "images"}, {"function": "./mine.py:load"}]
)
def test_data_beside_the_protocol_is_found_by_the_winners(source, tmp_path):
    table = with_tuning()
    table["data"] = {"name": "mine", "validation": 0.25, "source": source}
    found = tiny.protocol(tmp_path, table)
    results = tmp_path / "results"
    assert winners.place(found, None, results) == tmp_path / "tiny-tuned.toml"
    with pytest.raises(UsageError, match=r"--output must be in the protocol's folder"):
        winners.place(found, results / "won.toml", results)


def test_winners_that_refer_to_no_file_lie_beside_the_report(tmp_path):
    found, results = protocol(tmp_path), tmp_path / "results"
    assert winners.place(found, None, results) == results / "tiny-tuned.toml"
    assert winners.place(found, tmp_path / "a.toml", results) == tmp_path / "a.toml"


# --- the command


def test_an_output_where_nothing_would_be_found_is_said_before_anything_trains(tmp_path, capsys):
    rows = {"lion": {"optimizer": "./lion.py:Lion", "lr": 0.01}}
    path = tiny.write(tmp_path, with_tuning({"lion": {"lr": "1e-4..1"}}, rows=rows))
    options = ["--results", str(tmp_path / "results"), "--output", str(tmp_path / "a" / "b.toml")]
    assert cli.main(["tune", str(path), *options]) == 2
    assert "--output must be in the protocol's folder" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_the_command_tunes_resumes_and_reports(tmp_path, capsys):
    path = tiny.write(tmp_path, with_tuning())
    results = tmp_path / "results"
    command = ["tune", str(path), "--results", str(results), "--workers", "2"]
    assert cli.main([*command, "--trials", "1"]) == 0
    assert "sgd on resnet18: lr = " in capsys.readouterr().out
    folder = results / "tiny-tuning"
    first = {p: p.stat().st_mtime_ns for p in (folder / "records").iterdir()}
    assert len(first) == 2
    assert cli.main(command) == 0
    second = {p: p.stat().st_mtime_ns for p in (folder / "records").iterdir()}
    assert len(second) == 4  # the trials of before were taken as they are
    assert all(second[p] == time for p, time in first.items())
    said = capsys.readouterr()
    assert f"next: flatbench run --protocol {folder / 'tiny-tuned.toml'}" in said.out
    assert said.err == ""
    made = json.loads(next(iter(second)).read_text(encoding="utf-8"))
    assert (made["evaluation"], made["sharpness"]) == ("validation", {})
    assert load(str(folder / "tiny-tuned.toml")).optimizers["sgd"].momentum == 0.9
    assert "Winners of tiny" in (folder / "report.md").read_text(encoding="utf-8")
    assert (folder / "figures" / "trials.svg").exists()


def test_a_row_of_which_nothing_completes_has_no_winner(tmp_path, capsys):
    table = with_tuning({"sgd": {"lr": "1e20..1e30"}}, trials=1, seeds=[100])
    path = tiny.write(tmp_path, table)
    results = tmp_path / "results"
    assert cli.main(["tune", str(path), "--results", str(results)]) == 1
    said = capsys.readouterr()
    assert said.err == "flatbench: tiny/resnet18/sgd: no trial completed all its seeds\n"
    assert not (results / "tiny-tuning" / "tiny-tuned.toml").exists()
    assert (results / "tiny-tuning" / "report.md").exists()
