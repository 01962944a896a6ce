"""`flatbench try`, run: from an optimizer to an answer, its exit code, and mistakes in one line."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

import flatbench
from flatbench import cli
from flatbench.execution import Machine, local, work
from flatbench.protocols.cases import Case
from flatbench.protocols.reading import load
from flatbench.records.reading import collect
from flatbench.records.sections import sections
from flatbench.records.store import Store
from flatbench.report.comparisons import Question
from flatbench.study.answer import answer
from flatbench.study.attempt import Request, with_mine
from flatbench.study.equal_terms import questions_of
from flatbench.study.runs import train
from flatbench.training import trainer
from tests import tiny
from tests.synthetic import record

ADAM = {"base": "adam", "lr": 0.003, "weight_decay": 5e-4}
MINE = """
import torch

class Lion(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(p.grad.sign(), alpha=group["lr"])
"""


def table(**changes):
    data = {"name": "digits", "validation": 0.25, "train_examples": 300}
    usual = {
        "seeds": [0, 1],
        "data": data,
        "training": {"epochs": 2, "batch_size": 32},
        "model": {"width": 4, "architectures": ["resnet18"]},
        "sharpness": {"examples": 32, "at_end": ["hessian_max_eigenvalue"]},
        "optimizers": {"adam": ADAM, "adam+sam": {**ADAM, "rho": 0.05}},
        "tuning": {"trials": 2, "seeds": [100], "space": {"adam": {"lr": "1e-3..1e-1"}}},
    }
    return {key: value for key, value in (usual | changes).items() if value is not None}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lion.py").write_text(MINE, encoding="utf-8")
    tiny.write(tmp_path, table())
    return tmp_path


class Threads(local.Local):
    """This machine's engine, with a thread in the place of a worker process."""

    def _train(self, case, job, on_epoch):
        return trainer.drive(work.attempt(case, job, "cpu"), on_epoch)


@pytest.fixture(autouse=True)
def workers_are_threads(monkeypatch, one_thread):
    """A worker of its own process imports torch first: tests/test_engine.py has those."""
    monkeypatch.setattr(local, "Local", Threads)
    monkeypatch.setattr("flatbench.study.cost.ROUNDS", 4)


def attempt(*arguments, protocol="tiny.toml"):
    return cli.main(["try", *arguments, "--protocol", protocol, "--workers", "1"])


def test_tuned_trained_and_compared_on_equal_terms(folder, capsys):
    assert attempt("./lion.py:Lion") == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "as row 'lion' of protocol tiny on resnet18, seeds 0, 1, beside adam, adam+sam" in (
        said.out
    )
    assert "lr in 1e-05..1, weight_decay in 1e-06..0.1; 2 trials with seeds 100" in said.out
    assert "rho" not in said.out.split("tuning on", 1)[1].splitlines()[0]  # which it doesn't take
    records = {r.id: r for r in collect([folder / "results/lion/tiny"])}
    assert len(records) == 4 * 2  # of two rows of ours, of mine, and of mine with more epochs
    gradients = dict.fromkeys(("lion", "lion-2x", "adam", "adam+sam"), 0)
    for row in gradients:
        gradients[row] = records[f"tiny/resnet18/{row}/seed0"].gradient_evaluations
    assert gradients["lion"] == gradients["adam"]
    assert gradients["lion-2x"] == gradients["adam+sam"] == 2 * gradients["lion"]
    assert len(collect([folder / "results/lion/tiny-tuning"])) == 2
    answer = json.loads((folder / "results/lion/answer.json").read_text(encoding="utf-8"))
    assert [(c["question"]["mine"], c["question"]["reference"]) for c in answer["outcome"]] == [
        ("lion", "adam"),
        ("lion", "adam+sam"),
        ("lion-2x", "adam+sam"),
    ]
    mine, theirs = (
        [records[f"tiny/resnet18/{row}/seed{s}"].test_accuracy for s in range(2)]
        for row in ("lion-2x", "adam+sam")
    )
    gain = sum(a - b for a, b in zip(mine, theirs, strict=True)) / 2
    assert answer["outcome"][2]["gain"] == pytest.approx(gain)
    signed = f"{gain:+.2f}".replace("-", "−")
    assert f"lion-2x − adam+sam: {signed} points" in said.out
    assert "bytes a parameter, adam's 8.0" in said.out
    report = (folder / "results/lion/report.md").read_text(encoding="utf-8")
    assert report.startswith("# Is lion better?")
    assert "lion-2x" in report

    # once more: everything is there, and nothing is trained
    before = {p: p.stat().st_mtime_ns for p in folder.glob("results/lion/*/records/*")}
    assert attempt("./lion.py:Lion") == 0
    assert {p: p.stat().st_mtime_ns for p in folder.glob("results/lion/*/records/*")} == before


def test_adam_under_another_name_is_the_same_and_not_better(capsys):
    options = ["--no-tuning", "--options", "lr=0.003", "weight_decay=5e-4", "--against", "adam"]
    assert attempt("adam", "--name", "lion", *options) == 0
    said = capsys.readouterr().out
    assert "lion equals adam, bit for bit, in 2 seeds: the same" in said
    assert "lion equals adam in largest eigenvalue of the Hessian, bit for bit, in 2 seeds" in said
    required = [*options, "--require", "better-than=adam"]
    assert attempt("adam", "--name", "lion", *required) == 1
    expected = "flatbench: better-than=adam: resnet18, equal epochs and gradients: the same\n"
    assert capsys.readouterr().err == expected


def test_whose_the_other_runs_are(folder, monkeypatch, capsys):
    options = ["--no-tuning", "--options", "lr=0.003", "--against", "adam"]
    assert attempt("torch.optim:Adagrad", *options) == 0
    none = "2 runs to train here, which are not published: no published run is of a protocol with"
    assert f"the other rows: {none} this name and content\n" in capsys.readouterr().out
    known = [r for r in collect([folder / "results/adagrad/tiny"]) if r.optimizer == "adam"]
    monkeypatch.setattr("flatbench.study.attempt.published", lambda _: known)
    assert attempt("torch.optim:Adagrad", *options, "--results", "other") == 0
    said = capsys.readouterr().out
    made = f"flatbench {flatbench.__version__} (commit "
    assert f"the other rows: 2 published runs of the same protocol, made with {made}" in said
    assert "; as here; --train-references trains them here" in said
    assert "to train here" not in said
    assert {r.optimizer for r in collect([folder / "other/adagrad/tiny"])} == {"adagrad"}
    old = [dataclasses.replace(r, provenance={**r.provenance, "torch": "1.0"}) for r in known]
    monkeypatch.setattr("flatbench.study.attempt.published", lambda _: old)
    more = ["--results", "other", "--seeds", "0-2"]
    assert attempt("torch.optim:Adagrad", *options, *more) == 0
    said = capsys.readouterr().out
    assert f"; here: {made}" in said
    assert "the other rows: 1 runs to train here, which are not published\n" in said
    assert attempt("torch.optim:Adagrad", *options, *more, "--train-references") == 0
    assert "the other rows: 3 runs to train here\n" in capsys.readouterr().out


def test_adam_with_other_seeds_under_another_name_is_not_better(folder):
    protocol = tiny.protocol(folder, table(optimizers={"adam": ADAM}, tuning=None, sharpness={}))
    runs = train(
        [Case(protocol, "resnet18", "adam", s) for s in range(10)],
        Machine("cpu", workers=1),
        Store(folder),
    )
    mine = [dataclasses.replace(r, optimizer="lion", seed=r.seed - 5) for r in runs if r.seed >= 5]
    (section,) = sections([*(r for r in runs if r.seed < 5), *mine], [protocol])
    found = answer(section, "lion", [Question("resnet18", "lion", "adam", "equal epochs", "adam")])
    assert len(found.outcome[0].seeds) == 5
    assert {c.verdict for c in (*found.outcome, *found.flatness)} == {"can't tell"}


def test_what_is_made_worse_on_purpose_is_called_worse(folder, capsys):
    data = {"name": "digits", "train_examples": 600}
    longer = {"epochs": 5, "batch_size": 32}
    tiny.write(folder, table(data=data, training=longer, tuning=None, sharpness={}))
    options = ["--no-tuning", "--options", "lr=1e-9", "--against", "adam", "--seeds", "0-3"]
    assert attempt("./lion.py:Lion", *options) == 0
    said = capsys.readouterr().out
    (line,) = (x for x in said.splitlines() if "lion − adam" in x)
    assert line.endswith(": worse")


def test_a_row_of_fewer_gradients_trains_longer_to_meet_mine(folder, capsys):
    options = ["rho=0.05", 'base_optimizer={ref = "torch.optim:SGD"}', "lr=0.05"]
    shutil.copy(Path(__file__).parent / "foreign" / "sam.py", folder)
    rows = {"sgd": tiny.SGD, "sgd-2x": {**tiny.SGD, "epochs": 4}}
    tiny.write(folder, table(optimizers=rows, tuning=None))
    code = attempt("./sam.py:SAM", "--no-tuning", "--options", *options, "--against", "sgd")
    said = capsys.readouterr()
    assert (code, said.err) == (0, "")
    # the protocol's own row of that length is taken
    assert "equal epochs: sam − sgd:" in said.out
    assert "equal gradients: sam − sgd-2x:" in said.out


def test_one_that_comes_to_no_end(capsys):
    options = ["--no-tuning", "--options", "lr=1e8", "--against", "adam"]
    assert attempt("torch.optim:SGD", *options) == 1
    said = capsys.readouterr()
    assert said.err == "flatbench: sgd came to no end with any seed\n"
    assert "lost: tiny/resnet18/sgd/seed0: diverged in epoch 1 of 2" in said.out


def test_no_trial_comes_to_an_end(folder, capsys):
    assert attempt("torch.optim:SGD", "--tune", "lr=1e8,1e9", "--trials", "1") == 1
    said = capsys.readouterr()
    assert "1 trials with seeds 100, where the other rows have 2" in said.out
    assert said.err == (
        "flatbench: sgd on resnet18: no trial completed all its seeds: diverged in epoch 1 of 2: "
        "the training loss is not finite\n"
    )
    assert not (folder / "results/sgd/answer.json").exists()


def test_where_there_is_nothing_to_tune_and_no_adam(folder, capsys):
    tiny.write(folder, table(optimizers={"sgd": tiny.SGD}, tuning=None, seeds=[0]))
    fixed = ["--options", "lr=0.01", "weight_decay=0"]
    assert attempt("./lion.py:Lion", *fixed) == 0
    said = capsys.readouterr().out
    assert "nothing to tune: of lr, weight_decay, rho it takes none but --options has it" in said
    assert "lion takes" in said  # its cost, beside an Adam that no row of the protocol is
    assert "bytes a parameter, adam's 8.0" in said


# --- equal terms


def counted(row, architecture, gradients):
    return record(row, architecture, gradient_evaluations=gradients)


def test_each_architecture_has_its_own_longer_row():
    digits = load("digits")
    mine = dataclasses.replace(digits.optimizers["adam"], name="lion", lr=1.0)
    rows = {**digits.optimizers, "lion": mine}
    changed = {**digits.overrides, ("lion", "vgg16"): dataclasses.replace(mine, lr=7.0)}
    protocol = dataclasses.replace(digits, optimizers=rows, overrides=changed)
    records = [
        counted(row, a, n)
        for a in ("resnet18", "vgg16")
        for row, n in (("lion", 100), ("sgd+sam", 200))
    ]
    protocol, longer, questions = questions_of(
        protocol, digits, "lion", ["sgd+sam"], ["resnet18", "vgg16"], records
    )
    assert longer == (("lion-2x", "resnet18"), ("lion-2x", "vgg16"))
    for architecture, lr in (("resnet18", 1.0), ("vgg16", 7.0)):
        found = protocol.optimizer("lion-2x", architecture)
        assert (found.lr, found.epochs) == (lr, 2 * digits.training.epochs)
    assert [(q.mine, q.terms) for q in questions] == [
        ("lion", "equal epochs"),
        ("lion-2x", "equal gradients"),
    ] * 2


def test_a_longer_row_takes_the_name_of_no_other(tmp_path):
    rows = {"sgd": tiny.SGD, "sgd-2x": {**tiny.SGD, "epochs": 5}}
    given = tiny.protocol(tmp_path, table(optimizers=rows, tuning=None))
    mine = dataclasses.replace(given.optimizers["sgd"], name="mine")
    protocol = dataclasses.replace(given, optimizers={**given.optimizers, "mine": mine})
    records = [counted("mine", "resnet18", 200), counted("sgd", "resnet18", 100)]
    protocol, longer, _ = questions_of(protocol, given, "mine", ["sgd"], ["resnet18"], records)
    assert longer == (("sgd-2x-copy", "resnet18"),)
    assert protocol.optimizer("sgd-2x", "resnet18").epochs == 5
    assert protocol.optimizer("sgd-2x-copy", "resnet18").epochs == 4


def test_epochs_are_rounded_up_to_whole_ones():
    digits = load("digits")
    mine = dataclasses.replace(digits.optimizers["adam"], name="lion")
    protocol = dataclasses.replace(digits, optimizers={**digits.optimizers, "lion": mine})
    records = [counted("lion", "resnet18", 100), counted("adam", "resnet18", 131)]
    protocol, longer, _ = questions_of(protocol, digits, "lion", ["adam"], ["resnet18"], records)
    assert protocol.optimizer(longer[0][0], "resnet18").epochs == 20  # of 15 · 1.31 = 19.65


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["./lino.py:Lion"], "there is no file"),
        (["./lion.py:Loin"], "'./lion.py:Loin': there is no 'Loin' in it (did you mean 'Lion'?)"),
        (["lion.py:Lion"], "got 'lion.py:Lion' (did you mean './lion.py:Lion'?)"),
        (["lion"], "try: the optimizer must be one of sgd, adam, adamw, or package."),
        (["adam"], "'adam' is a row of protocol 'tiny'; give another --name"),
        (["./lion.py:Lion", "--name", "Li on"], "a row's name must be lower-case letters"),
        (
            ["./lion.py:Lion", "--options", "lrr=1"],
            "--options: 'lrr' is unknown: ./lion.py:Lion takes lr, weight_decay",
        ),
        (["./lion.py:Lion", "--options", "lr"], "must be NAME=VALUE, got 'lr'"),
        (["./lion.py:Lion", "--tune", "lr"], "must be NAME=LOW..HIGH or NAME=A,B,C, got 'lr'"),
        (["./lion.py:Lion", "--tune", "lr=1..0.1"], "--tune.lr must be LOW..HIGH with 0 < LOW"),
        (["./lion.py:Lion", "--tune", "beta=0.9,1"], "--options: 'beta' is unknown"),
        (
            ["./lion.py:Lion", "--tune", "lr=0.1,1", "--options", "lr=1"],
            "'lr' must stand in --options or --tune, not both",
        ),
        (["./lion.py:Lion", "--tune", "lr=0.1,1", "--no-tuning"], "--tune must be left out with"),
        (["./lion.py:Lion", "--against", "adma"], "(did you mean 'adam'?)"),
        (["./lion.py:Lion", "--require", "adam"], "must be better-than=ROW, got 'adam'"),
        (
            ["./lion.py:Lion", "--require", "better-than=sgd"],
            "--require better-than must be one of adam, adam+sam, got 'sgd'",
        ),
        (
            ["./lion.py:Lion", "--seeds", "99-101"],
            "--seeds must be none of those that are tuned with, 100, got 100",
        ),
        (["./lion.py:Lion", "--architectures", "vgg16"], "--architectures must be among resnet18"),
    ],
)
def test_a_mistake_is_one_line_and_trains_nothing(arguments, says, folder, capsys):
    assert attempt(*arguments) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert says in error
    assert error.count("\n") == 1
    assert not (folder / "results").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tuning": None}, "table [tuning] is missing, which says how many trials its rows had"),
        (
            {"tuning": None, "data": {"name": "digits", "train_examples": 600}},
            "table [tuning] is missing",
        ),
    ],
)
def test_a_protocol_that_cannot_be_tuned_on(changes, says, folder, capsys):
    tiny.write(folder, table(**changes))
    assert attempt("./lion.py:Lion") == 2
    assert says in capsys.readouterr().err


def test_nothing_to_choose_on(folder, capsys):
    data = {"name": "digits", "train_examples": 600}
    tiny.write(folder, table(tuning=None, data=data))
    assert attempt("./lion.py:Lion", "--trials", "2") == 2
    assert "data.validation must be above 0 to tune on, got 0" in capsys.readouterr().err


def test_a_file_is_relative_to_here_wherever_the_protocol_lies(folder):
    (folder / "elsewhere").mkdir()
    theirs = tiny.protocol(folder / "elsewhere", table())
    for protocol in (theirs, load("digits")):
        row, found = with_mine(Request("./lion.py:Lion", protocol, is_tuned=False))
        path = row.optimizer.rpartition(":")[0]
        assert (found.folder / path).resolve() == folder / "lion.py"
        # references of the protocol's own are still found
        assert found.folder == (protocol.folder if protocol is theirs else folder)
