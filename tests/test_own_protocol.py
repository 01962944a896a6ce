"""Protocols that name code of the user's own: what keys mean, and each mistake in one line."""

import copy

import pytest

from flatbench import components
from flatbench.errors import UsageError
from flatbench.protocols import methods
from flatbench.protocols.cases import grid
from flatbench.protocols.protocol import Architecture, Source
from flatbench.protocols.reading import load
from tests import tiny

LION = {"optimizer": "./lion.py:Lion", "options": {"lr": 1e-3}}
MIXER = {"name": "mixer", "build": "./mixer.py:build", "options": {"depth": 4}}


def read(folder, **changes):
    return tiny.protocol(folder, tiny.table(**changes))


def row(folder, **keys):
    rows = {"sgd": tiny.SGD, "mine": keys}
    return read(folder, optimizers=rows).optimizers["mine"]


def message(folder, **changes):
    with pytest.raises(UsageError) as caught:
        read(folder, **changes)
    said = str(caught.value)
    assert said.startswith(f"{folder / 'tiny.toml'}: ")
    assert "\n" not in said
    return said.removeprefix(f"{folder / 'tiny.toml'}: ")


def test_an_optimizer_by_its_reference(tmp_path):
    found = row(tmp_path, **LION)
    assert (found.optimizer, found.options, found.lr) == ("./lion.py:Lion", {"lr": 1e-3}, None)
    assert not found.is_sam
    assert row(tmp_path, base="./lion.py:Lion", options={"lr": 1e-3}) == found


def test_short_forms_are_options_of_an_optimizer_that_is_not_ours(tmp_path):
    short = {"lr": 0.1, "weight_decay": 0.0, "betas": [0.8, 0.9], "options": {"eps": 1e-6}}
    found = row(tmp_path, optimizer="torch.optim:RAdam", **short)
    assert found.options == {"lr": 0.1, "weight_decay": 0.0, "betas": [0.8, 0.9], "eps": 1e-6}
    assert (found.lr, found.weight_decay, found.betas) == (None, 0.0, (0.9, 0.999))


def test_ours_take_options_beside_the_short_forms(tmp_path):
    found = row(tmp_path, optimizer="adam", lr=0.1, options={"amsgrad": True})
    assert (found.lr, found.options) == (0.1, {"amsgrad": True})


def test_the_long_form_of_a_perturbation_is_the_short_one(tmp_path):
    perturbation = {"method": "sam", "rho": 0.1, "adaptive": True, "eta": 0.01}
    long = row(tmp_path, **LION, perturbation=perturbation)
    assert long == row(tmp_path, **LION, rho=0.1, adaptive=True, eta=0.01)
    assert long.is_sam


def test_a_method_of_the_family_is_part_of_a_row_and_of_its_hash(tmp_path):
    given = {"method": "gsam", "rho": 0.1, "alpha": 0.7}
    found = row(tmp_path, **LION, perturbation=given)
    assert (found.rho, found.method) == (0.1, methods.GSAM(alpha=0.7))
    assert found.is_sam
    hashes = set()
    for perturbation in (
        {"method": "sam", "rho": 0.1},
        given,
        {**given, "alpha": 0.4},
        {"method": "periodic-sam", "rho": 0.1, "interval": 5},
        {"method": "looksam", "rho": 0.1, "interval": 5},
    ):
        rows = {"mine": {**LION, "perturbation": perturbation}}
        hashes.add(read(tmp_path, optimizers=rows).cell_hash("mine", "resnet18"))
    assert len(hashes) == 5


def test_an_architecture_may_change_one_number_of_a_method(tmp_path):
    keys = {
        **LION,
        "perturbation": {"method": "gsam", "rho": 0.1, "alpha": 0.7},
        "architectures": {"resnet18": {"perturbation": {"rho": 0.2}}},
    }
    found = read(tmp_path, optimizers={"mine": keys}).optimizer("mine", "resnet18")
    assert (found.rho, found.method) == (0.2, methods.GSAM(alpha=0.7))


def test_a_row_is_compared_with_the_one_it_names(tmp_path):
    rows = {"sgd": tiny.SGD, "mine": {**LION, "against": "sgd"}, "mine+sam": {**LION, "rho": 0.1}}
    settings = read(tmp_path, optimizers=rows)
    assert [settings.base_of(name) for name in rows] == [None, "sgd", "mine"]
    rows["mine+sam"] = {**LION, "rho": 0.1, "against": "sgd"}
    assert read(tmp_path, optimizers=rows).base_of("mine+sam") == "sgd"


def test_changes_for_an_architecture_change_options_one_by_one(tmp_path):
    keys = {**LION, "architectures": {"resnet18": {"options": {"beta": 0.5}}}}
    settings = read(tmp_path, optimizers={"mine": keys})
    assert settings.optimizer("mine", "resnet18").options == {"lr": 1e-3, "beta": 0.5}


def test_networks_of_ones_own(tmp_path):
    listed = ["resnet18", MIXER, {"name": "wide", "build": "resnet18"}]
    settings = read(tmp_path, model={"width": 4, "architectures": listed})
    assert settings.model.names == ("resnet18", "mixer", "wide")
    assert settings.model.architecture("mixer") == Architecture(**MIXER)
    assert settings.model.architecture("resnet18") == Architecture("resnet18", "resnet18")


def test_both_networks_of_the_study_are_the_default(tmp_path):
    assert read(tmp_path, model={"width": 4}).model.names == ("resnet18", "vgg16")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"npz": "a.npz"}, Source("npz", "a.npz")),
        ({"folder": "images"}, Source("folder", "images")),
        (
            {"torchvision": "SVHN", "options": {"split": "x"}},
            Source("torchvision", "SVHN", {"split": "x"}),
        ),
        ("./mine.py:load", Source("function", "./mine.py:load")),
        ({"function": "./mine.py:load"}, Source("function", "./mine.py:load")),
    ],
)
def test_sources_of_data(tmp_path, given, expected):
    assert read(tmp_path, data={"name": "mine", "source": given}).data.source == expected


def test_files_are_looked_for_beside_the_protocol_wherever_one_stands(tmp_path, monkeypatch):
    tiny.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert load("tiny.toml").folder == load(str(tmp_path / "tiny.toml")).folder == tmp_path


# --- what has a part in the hashes


def hashes(folder, **changes):
    (case, *_) = grid(read(folder, **changes), optimizers=["mine"])
    return case.cell_hash()


CELL = {
    "optimizers": {"sgd": tiny.SGD, "mine": LION},
    "model": {"width": 4, "architectures": [MIXER]},
    "data": {"name": "own", "source": {"npz": "a.npz"}},
}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("optimizers", "mine", "optimizer"), "./tiger.py:Tiger"),
        (("optimizers", "mine", "options", "lr"), 2e-3),
        (("optimizers", "mine", "rho"), 0.1),
        (("optimizers", "mine", "schedule"), "constant"),
        (("optimizers", "mine", "groups"), "./groups.py:groups"),
        (("optimizers", "mine", "closure"), "evaluates"),
        (("model", "architectures", 0, "build"), "./mixer.py:other"),
        (("model", "architectures", 0, "options", "depth"), 5),
        (("data", "source", "npz"), "b.npz"),
        (("training", "loss"), "./task.py:loss"),
        (("training", "metric"), {"ref": "./task.py:metric", "better": "lower"}),
    ],
)
def test_whatever_bears_on_a_result_has_a_part_in_the_hash(tmp_path, place, value):
    whole = tiny.table(**copy.deepcopy(CELL))
    before = hashes(tmp_path, **whole)
    inner = whole
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    assert hashes(tmp_path, **whole) != before


def test_what_a_row_is_compared_with_bears_on_no_result(tmp_path):
    before = hashes(tmp_path, **CELL)
    rows = {"sgd": tiny.SGD, "mine": {**LION, "against": "sgd"}}
    assert hashes(tmp_path, **CELL | {"optimizers": rows}) == before


def test_references_of_a_case_are_all_code_that_is_not_ours(tmp_path):
    mine = {**LION, "groups": "./groups.py:f"}
    mine["options"] = {"inner": {"ref": "torch.optim:SGD"}}
    training = {"epochs": 1, "batch_size": 8, "loss": "./task.py:loss"}
    training["metric"] = {"ref": "./task.py:metric", "better": "lower"}
    settings = read(
        tmp_path,
        optimizers={"sgd": tiny.SGD, "mine": mine},
        model={"width": 4, "architectures": ["resnet18", MIXER]},
        data={"name": "own", "source": "./data.py:load"},
        training=training,
    )
    ours, mine = grid(settings, architectures=["resnet18"]), grid(settings, ["mixer"], ["mine"])
    assert ours[0].references() == ("./task.py:loss", "./data.py:load", "./task.py:metric")
    assert mine[0].references() == (
        *("./lion.py:Lion", "./groups.py:f", "./mixer.py:build", "./task.py:loss"),
        *("./data.py:load", "./task.py:metric", "torch.optim:SGD"),
    )
    assert grid(read(tmp_path))[0].references() == ()


# --- mistakes

OPTIMIZER = "optimizers.mine.optimizer must be one of sgd, adam, adamw, or package.module:Object"


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"optimizer": "rmsprop"}, OPTIMIZER),
        ({"optimizer": "torch.optim.Muon"}, OPTIMIZER),
        ({"optimizer": "lion.py:Lion"}, OPTIMIZER),
        ({"optimizer": 3}, OPTIMIZER),
        ({"base": "lion"}, "optimizers.mine.base must be one of sgd, adam, adamw, or package"),
        ({}, "optimizers.mine.optimizer is missing"),
        ({"optimizer": "adam"}, "optimizers.mine.lr is missing"),
        ({**LION, "base": "sgd"}, "optimizers.mine.optimizer must be absent where base, its old"),
        ({**LION, "lr": 0.1}, "optimizers.mine.lr must be absent where lr is one of its options"),
        ({**LION, "lr": -1}, "optimizers.mine.lr must be"),
        ({**LION, "options": 3}, "optimizers.mine.options must be a table, got 3"),
        ({**LION, "optoins": {}}, "optimizers.mine.optoins is an unknown key (did you mean 'opti"),
        ({**LION, "groups": "groups"}, "optimizers.mine.groups must be package.module:Object or"),
        (
            {**LION, "closure": "yes"},
            'optimizers.mine.closure must be one of "evaluates", "re-eval',
        ),
        ({**LION, "schedule": "linear"}, 'optimizers.mine.schedule must be one of "constant", "co'),
        ({**LION, "schedule": "step"}, "training.milestones is missing"),
        ({**LION, "against": "adam"}, "optimizers.mine.against must be the name of another row"),
        ({**LION, "against": "mine"}, "optimizers.mine.against must be the name of another row"),
        ({**LION, "eta": 0.1}, "optimizers.mine.eta must be absent unless rho is given, got 0.1"),
        (
            {**LION, "rho": 1, "perturbation": {"method": "sam", "rho": 1}},
            "optimizers.mine.rho must be absent where perturbation is given",
        ),
        (
            {**LION, "perturbation": {"rho": 1}},
            'optimizers.mine.perturbation.method must be one of "sam", "periodic-sam", ',
        ),
        (
            {**LION, "perturbation": {"method": "gsan", "rho": 1}},
            'optimizers.mine.perturbation.method must be one of "sam", "periodic-sam", ',
        ),
        (
            {**LION, "perturbation": {"method": "gsam", "rho": 1, "alhpa": 0.4}},
            "optimizers.mine.perturbation.alhpa is an unknown key (did you mean 'alpha'?)",
        ),
        (
            {**LION, "perturbation": {"method": "gsam", "rho": 1, "alpha": -0.4}},
            "optimizers.mine.perturbation.alpha must be a number of at least 0, got -0.4",
        ),
        (
            {**LION, "perturbation": {"method": "looksam", "rho": 1, "interval": 0}},
            "optimizers.mine.perturbation.interval must be a whole number of at least 1, got 0",
        ),
        (
            {**LION, "perturbation": {"method": "micro-batch-sam", "rho": 1}},
            "optimizers.mine.perturbation.m is missing",
        ),
        (
            {**LION, "perturbation": {"method": "late-sam", "rho": 1, "part": 1}},
            "optimizers.mine.perturbation.part must be a number between 0 and 1, got 1",
        ),
        (
            {**LION, "perturbation": {"method": "momentum-sam", "rho": 1, "eta": 0.1}},
            "optimizers.mine.perturbation.eta is an unknown key",
        ),
        ({**LION, "method": "gsam"}, "optimizers.mine.method is an unknown key"),
        (
            {**LION, "perturbation": {"method": "sam"}},
            "optimizers.mine.perturbation.rho is missing",
        ),
        (
            {**LION, "perturbation": {"method": "sam", "rh": 1}},
            "optimizers.mine.perturbation.rh is an unknown key (did you mean 'rho'?)",
        ),
        (
            {**LION, "perturbation": {"method": "sam", "rho": 0}},
            "optimizers.mine.rho must be a num",
        ),
    ],
)
def test_a_mistake_in_a_row_is_one_line(tmp_path, keys, says):
    assert message(tmp_path, optimizers={"sgd": tiny.SGD, "mine": keys}).startswith(says)


@pytest.mark.parametrize(
    ("listed", "says"),
    [
        ("resnet18", "model.architectures must be a list of names and tables"),
        ([{"build": "./a.py:b"}], "model.architectures[0].name must be lower-case letters"),
        ([{"name": "A b", "build": "./a.py:b"}], "model.architectures[0].name must be lower-case"),
        ([{"name": "own"}], "model.architectures[0].build must be one of resnet18, "),
        ([{**MIXER, "depth": 3}], "model.architectures[0].depth is an unknown key"),
        ([{**MIXER, "options": []}], "model.architectures[0].options must be a table"),
        ([MIXER, MIXER], "model.architectures must be a list of different names"),
        ([3], "model.architectures[0] must be a table, got 3"),
    ],
)
def test_a_mistake_in_the_networks_is_one_line(tmp_path, listed, says):
    assert message(tmp_path, model={"width": 4, "architectures": listed}).startswith(says)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"name": "mine"}, "data.name must be one of digits, fashion-mnist, cifar10, cifar100, or"),
        ({"name": "digits", "source": {"npz": "a"}}, "data.name must be another name for a source"),
        ({"name": "a b", "source": {"npz": "a"}}, "data.name must be lower-case letters"),
        ({"name": "a", "source": {}}, "data.source must be a table with one of npz, folder, torch"),
        ({"name": "a", "source": {"npz": "a", "folder": "b"}}, "data.source must be a table with"),
        ({"name": "a", "source": {"zip": "a"}}, "data.source.zip is an unknown key"),
        ({"name": "a", "source": {"npz": 3}}, "data.source.npz must be a string, got 3"),
        ({"name": "a", "source": "mine.npz"}, "data.source.function must be package.module:Object"),
        ({"name": "a", "source": {"npz": "a", "options": {"x": 1}}}, "data.source.options must be"),
        ({"source": {"npz": "a"}}, "data.name is missing"),
    ],
)
def test_a_mistake_in_the_data_is_one_line(tmp_path, keys, says):
    assert message(tmp_path, data=keys).startswith(says)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"loss": "mse"}, "training.loss must be cross-entropy, or package.module:Object or ./f"),
        ({"metric": {"ref": "./t.py:m"}}, "training.metric.better is missing"),
        ({"metric": {"ref": "m", "better": "higher"}}, "training.metric.ref must be package.modu"),
        ({"metric": {"ref": "./t.py:m", "better": "up"}}, "training.metric.better must be one of"),
        ({"metric": "accuracy"}, 'training.metric must be a table, got "accuracy"'),
    ],
)
def test_a_mistake_in_the_task_is_one_line(tmp_path, keys, says):
    training = {"epochs": 1, "batch_size": 8} | keys
    assert message(tmp_path, training=training).startswith(says)


def test_a_date_is_no_option(tmp_path):
    path = tiny.write(tmp_path, tiny.table(optimizers={"mine": {**LION, "options": {"a": 1}}}))
    path.write_text(path.read_text().replace('"a" = 1', '"a" = 1979-05-27'))
    with pytest.raises(UsageError, match=r"optimizers\.mine\.options\.a must be a finite number"):
        load(str(path))


def test_the_old_name_of_compare_with_is_still_read(tmp_path):
    assert read(tmp_path, against="digits").compare_with == "digits"
    assert message(tmp_path, against="a", compare_with="b").startswith(
        "compare_with must be absent"
    )


def test_a_name_of_ours_that_a_package_registered_is_the_packages(tmp_path, monkeypatch):
    monkeypatch.setattr(components, "is_registered", lambda text: text == "sgd")
    (case,) = grid(read(tmp_path), optimizers=["sgd"])
    assert case.references() == ("sgd",)
