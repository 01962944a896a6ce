"""Protocols: what loads, what each error says, and which changes a hash shows."""

import copy
import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatbench.errors import UsageError
from flatbench.models import ARCHITECTURES
from flatbench.protocols.cases import grid
from flatbench.protocols.protocol import Protocol
from flatbench.protocols.reading import PROTOCOLS, available, load
from flatbench.records.reading import read
from tests import tiny

RESULTS = Path(__file__).parents[1] / "results"

Table = dict[str, Any]
Change = Callable[[Table], object]


def changed(change):
    whole = tiny.table()
    change(whole)
    return whole


def put(path, value):
    """A change that sets the key at "a/b/c", making the tables on the way."""

    def change(whole):
        *sections, key = path.split("/")
        for section in sections:
            whole = whole.setdefault(section, {})
        whole[key] = value

    return change


def without(path):
    def change(whole):
        *sections, key = path.split("/")
        for section in sections:
            whole = whole[section]
        del whole[key]

    return change


# --- what loads


@pytest.mark.parametrize("name", available())
def test_every_shipped_protocol_loads_and_has_a_grid(name):
    settings = load(name)
    assert settings.name == name
    assert settings.description
    cases = grid(settings)
    rows, architectures = settings.optimizers, settings.model.names
    assert len(cases) == len(rows) * len(architectures) * len(settings.seeds)
    assert len({case.id for case in cases}) == len(cases)
    hashes = {case.cell_hash() for case in cases}
    assert len(hashes) == len(rows) * len(architectures)  # no two rows are the same


def test_the_shipped_protocols_are_the_files_of_the_folder():
    assert set(available()) == {path.stem for path in PROTOCOLS.glob("*.toml")}
    assert {"digits", "cifar10-paper"} <= set(available())


@pytest.mark.parametrize("name", ["digits", "cifar10-paper"])
def test_the_main_protocols_have_the_rows_of_the_study(name):
    settings = load(name)
    assert {"sgd", "sgd+sam", "adam", "adam+sam"} <= set(settings.optimizers)
    assert set(settings.model.names) == {"resnet18", "vgg16"}
    assert [settings.base_of(n) for n in ("sgd", "sgd+sam", "adam", "adam+sam")] == [
        None,
        "sgd",
        None,
        "adam",
    ]


def test_digits_vit_is_digits_on_another_network():
    """The same data, rows and measures: what differs is the network, its budget and its rates.

    The seeds, too: digits' own were run with rates that were tuned anew afterwards.
    """
    digits, vit = load("digits"), load("digits-vit")
    assert len(vit.seeds) == len(digits.seeds)
    assert not set(vit.seeds) & set(digits.seeds)
    for part in ("data", "sharpness"):
        assert getattr(vit, part) == getattr(digits, part)
    assert vit.model.names == ("vit",)
    assert [*vit.optimizers] == [*digits.optimizers]
    for name, row in vit.optimizers.items():
        of_digits = digits.optimizers[name]
        for key in ("optimizer", "momentum", "is_sam", "adaptive"):
            assert getattr(row, key) == getattr(of_digits, key)
        assert vit.base_of(name) == digits.base_of(name)
        twice = 2 * vit.training.epochs if name.endswith("-2x") else None
        assert row.epochs == twice


def test_cifar10_paper_is_the_set_up_of_the_seed_study():
    """As its report and scripts give it; the protocol's comment says where the two disagree."""
    settings = load("cifar10-paper")
    training = settings.training
    assert (training.epochs, training.batch_size, training.decay) == (200, 128, 0.2)
    assert training.milestones == (0.3, 0.6, 0.8)
    assert settings.model.width == 64
    for name, row in settings.optimizers.items():
        assert row.weight_decay == 5e-4
        assert (row.rho, row.adaptive) == ((2.0, True) if row.is_sam else (None, False))
        assert row.label_smoothing == (0.1 if row.is_sam else None)
        assert row.momentum == (0.9 if row.optimizer == "sgd" else 0.0)
        assert row.lr == (0.1 if name == "sgd" else 0.001)
    assert settings.reference is not None
    assert settings.reference.test_accuracy["vgg16"]["adam+sam"] == (94.126, 0.112)


def test_values_and_defaults(tmp_path):
    whole = tiny.table(seeds=[3, 1], description="d", sharpness={"rho": 1, "adaptive": True})
    settings = tiny.protocol(tmp_path, whole, "my-own.v1")
    assert settings.name == "my-own.v1"
    assert settings.seeds == (3, 1)
    assert settings.description == "d"
    assert (settings.sharpness.rho, settings.sharpness.adaptive) == (1.0, True)
    assert settings.data.train_examples == 200
    assert settings.data.augmentation == "none"
    assert settings.training.schedule == "cosine"
    assert list(settings.optimizers) == ["sgd", "sgd+sam"]  # in the file's order
    assert settings.optimizers["sgd+sam"].rho == 0.05
    assert settings.optimizers["sgd"].rho is None
    assert settings.optimizers["sgd"].lr == 0.05
    assert tiny.protocol(tmp_path, tiny.table(seeds=None)).seeds == (0, 1, 2)


def test_a_file_by_a_relative_path(tmp_path, monkeypatch):
    tiny.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert load("tiny.toml") == load(str(tmp_path / "tiny.toml"))


def test_a_row_more_in_the_file_is_cases_more(tmp_path):
    whole = tiny.table()
    before = grid(tiny.protocol(tmp_path, whole))
    whole["optimizers"]["adamw+asam"] = {
        "base": "adamw",
        "lr": 0.001,
        "betas": [0.8, 0.99],
        "rho": 0.5,
        "adaptive": True,
        "eta": 0.01,
    }
    after = grid(tiny.protocol(tmp_path, whole))
    assert [c.id for c in before] == [c.id for c in after if c.optimizer != "adamw+asam"]
    (new,) = (case for case in after if case.optimizer == "adamw+asam")
    assert new.id == "tiny/resnet18/adamw+asam/seed0"
    row = new.row
    assert (row.optimizer, row.lr, row.betas, row.rho) == ("adamw", 0.001, (0.8, 0.99), 0.5)
    assert (row.adaptive, row.eta, row.is_sam) == (True, 0.01, True)


def test_an_override_holds_on_its_architecture_alone(tmp_path):
    whole = tiny.table(model={"width": 4, "architectures": ["resnet18", "vgg16"]})
    whole["optimizers"]["sgd"]["architectures"] = {"vgg16": {"lr": 0.01, "epochs": 7}}
    settings = tiny.protocol(tmp_path, whole)
    on = {name: settings.optimizer("sgd", name) for name in ("resnet18", "vgg16")}
    assert (on["resnet18"].lr, on["resnet18"].epochs) == (0.05, None)
    assert (on["vgg16"].lr, on["vgg16"].epochs) == (0.01, 7)
    assert on["vgg16"].momentum == 0.9  # the rest is the row's
    assert settings.optimizer("sgd+sam", "vgg16").lr == 0.05


@pytest.mark.parametrize(
    ("row", "base"),
    [
        ("sgd+sam", "sgd"),
        ("a+b+sam", None),  # no row a+b
        ("sgd+sam+sam", "sgd+sam"),
        ("sgd+", "sgd"),
        ("sgd+2x", None),  # does not perturb
        ("sgdsam", None),
        ("sgd", None),
    ],
)
def test_the_base_is_the_row_named_before_the_last_plus(tmp_path, row, base):
    whole = tiny.table()
    for name in ("a+b+sam", "sgd+sam+sam", "sgd+", "sgdsam"):
        whole["optimizers"][name] = {**tiny.SGD, "rho": 0.1}
    whole["optimizers"]["sgd+2x"] = {**tiny.SGD, "epochs": 4}
    assert tiny.protocol(tmp_path, whole).base_of(row) == base


# --- errors


def message(argument):
    with pytest.raises(UsageError) as caught:
        load(str(argument))
    (line,) = str(caught.value).splitlines()
    return line


SGD, SAM = "optimizers/sgd", "optimizers/sgd+sam"
COUNT = "a whole number of at least 1"
NAMES = f"one of {', '.join(ARCHITECTURES)}, or a table with its build"

WRONG = [
    # unknown keys, at every depth
    (
        put("optimizer", {}),
        "optimizer is an unknown key (did you mean 'optimizers'?); it must be one of ",
    ),
    (put("data/label_nois", 0.1), "data.label_nois is an unknown key (did you mean 'label_noise'?"),
    (put("training/milestone", []), "training.milestone is an unknown key (did you mean"),
    (put("model/x", 1), "model.x is an unknown key; it must be one of architectures, width"),
    (put("sharpness/roh", 1), "sharpness.roh is an unknown key (did you mean 'rho'?)"),
    (put(f"{SGD}/lrr", 1), "optimizers.sgd.lrr is an unknown key (did you mean 'lr'?)"),
    (put(f"{SGD}/name", "x"), "optimizers.sgd.name is an unknown key"),
    (put(f"{SAM}/et", 1), "optimizers.\"sgd+sam\".et is an unknown key (did you mean 'eta'?)"),
    (
        put(f"{SGD}/architectures/resnet81", {}),
        "optimizers.sgd.architectures.resnet81 is an unknown key (did you mean 'resnet18'?); "
        f"it must be one of {', '.join(ARCHITECTURES)}",
    ),
    (
        put(f"{SGD}/architectures/vgg16/momentun", 0.5),
        "optimizers.sgd.architectures.vgg16.momentun is an unknown key (did you mean 'momentum'?)",
    ),
    (
        put(f"{SGD}/architectures/vgg16/architectures", {}),
        "optimizers.sgd.architectures.vgg16.architectures is an unknown key",
    ),
    # missing
    (without("data"), "table [data] is missing"),
    (without("training"), "table [training] is missing"),
    (without("model"), "table [model] is missing"),
    (without("optimizers"), "table [optimizers] is missing"),
    (put("optimizers", {}), "table [optimizers] holds no row"),
    (without("data/name"), "data.name is missing"),
    (without("training/epochs"), "training.epochs is missing"),
    (without("model/width"), "model.width is missing"),
    (without(f"{SGD}/base"), "optimizers.sgd.optimizer is missing"),
    (without(f"{SAM}/lr"), 'optimizers."sgd+sam".lr is missing'),
    (put("training/schedule", "step"), 'training.milestones is missing: schedule = "step"'),
    # something else where a table belongs
    (put("data", 3), "data must be a table, got 3"),
    (put("data", [{"name": "digits"}]), 'data must be a table, got [{"name": "digits"}]'),
    (put("sharpness", "x"), 'sharpness must be a table, got "x"'),
    (put("optimizers", []), "optimizers must be a table, got []"),
    (put("optimizers/sgd", 0.1), "optimizers.sgd must be a table, got 0.1"),
    (put(f"{SGD}/architectures", 1), "optimizers.sgd.architectures must be a table, got 1"),
    (
        put(f"{SGD}/architectures/vgg16", 0.1),
        "optimizers.sgd.architectures.vgg16 must be a table, got 0.1",
    ),
    # wrong types
    (put("description", 1), "description must be a string, got 1"),
    (put("against", 1), "compare_with must be a string, got 1"),
    (put("against", "tiny"), 'compare_with must be the name of another protocol, got "tiny"'),
    (put("training/epochs", 2.0), f"training.epochs must be {COUNT}, got 2.0"),
    (put("training/epochs", "2"), f'training.epochs must be {COUNT}, got "2"'),
    (put("training/epochs", True), f"training.epochs must be {COUNT}, got true"),
    (put("training/epochs", 2**63), f"training.epochs must be {COUNT}, got {2**63}"),
    (put(f"{SGD}/lr", True), "optimizers.sgd.lr must be a number above 0, got true"),
    (put(f"{SGD}/lr", [0.1]), "optimizers.sgd.lr must be a number above 0, got [0.1]"),
    (put(f"{SGD}/nesterov", 1), "optimizers.sgd.nesterov must be true or false, got 1"),
    (put(f"{SAM}/adaptive", "no"), 'optimizers."sgd+sam".adaptive must be true or false, got "no"'),
    (put("seeds", 0), "seeds must be a list of different whole numbers of at least 0, got 0"),
    # out of range
    (put("seeds", []), "seeds must be a list of different whole numbers of at least 0, got []"),
    (
        put("seeds", [1, 1]),
        "seeds must be a list of different whole numbers of at least 0, got [1, 1]",
    ),
    (put("seeds", [-1]), "seeds must be a list of different whole numbers of at least 0, got [-1]"),
    (
        put("seeds", [0, True]),
        "seeds must be a list of different whole numbers of at least 0, got true",
    ),
    (
        put("data/name", "mnist"),
        "data.name must be one of digits, fashion-mnist, cifar10, cifar100, or any with a source, "
        'got "mnist"',
    ),
    (put("data/label_noise", 1), "data.label_noise must be a number in [0, 1), got 1"),
    (put("data/label_noise", -0.1), "data.label_noise must be a number in [0, 1), got -0.1"),
    (put("data/train_examples", 0), f"data.train_examples must be {COUNT}, got 0"),
    (
        put("data/evaluation", "validation"),
        'data.evaluation must be "test" unless data.validation is above 0, got "validation"',
    ),
    (
        put("training/batch_size", 1),
        "training.batch_size must be a whole number of at least 2, got 1",
    ),
    (put("training/decay", 0), "training.decay must be a number in (0, 1], got 0"),
    (
        put("training/warmup_epochs", -1),
        "training.warmup_epochs must be a whole number of at least 0, got -1",
    ),
    (
        put("training/precision", "fp16"),
        'training.precision must be one of "fp32", "bf16", "auto", got "fp16"',
    ),
    (
        lambda t: t["training"].update(schedule="step", milestones=[0.6, 0.3]),
        "training.milestones must be rising numbers between 0 and 1, got [0.6, 0.3]",
    ),
    (
        lambda t: t["training"].update(schedule="step", milestones=[0.5, 1]),
        "training.milestones must be rising numbers between 0 and 1, got [0.5, 1]",
    ),
    (
        put("training/milestones", [0.5]),
        'training.milestones must be absent unless schedule = "step", got [0.5]',
    ),
    (
        put("model/architectures", []),
        "model.architectures must be a list of names and tables, got []",
    ),
    (
        put("model/architectures", ["resnet18", "resnet18"]),
        'model.architectures must be a list of different names, got ["resnet18", "resnet18"]',
    ),
    (
        put("model/architectures", ["resnet50"]),
        f'model.architectures[0] must be {NAMES}, got "resnet50"',
    ),
    (put("model/width", 0), f"model.width must be {COUNT}, got 0"),
    (put("sharpness/rho", 0), "sharpness.rho must be a number above 0, at most 1e6, got 0"),
    (
        put("sharpness", {"examples": 1, "batchnorm": "train"}),
        'sharpness.examples must be at least 2 with batchnorm = "train": one example has no '
        "variance, got 1",
    ),
    (
        put("sharpness/rho", 1e149),
        "sharpness.rho must be a number above 0, at most 1e6, got 1e+149",
    ),
    (put("sharpness/at_end", ["flatness"]), 'sharpness.at_end must be one of "ascent_sharpness", '),
    (
        put(f"{SGD}/base", "lion"),
        "optimizers.sgd.base must be one of sgd, adam, adamw, or package.module:Object or "
        './file.py:Object, as torch.optim:RMSprop, got "lion"',
    ),
    (put(f"{SGD}/lr", 0), "optimizers.sgd.lr must be a number above 0, got 0"),
    (put(f"{SGD}/lr", math.nan), "optimizers.sgd.lr must be a number above 0, got NaN"),
    (put(f"{SGD}/lr", math.inf), "optimizers.sgd.lr must be a number above 0, got Infinity"),
    (put(f"{SGD}/momentum", 1.0), "optimizers.sgd.momentum must be a number in [0, 1), got 1.0"),
    (
        put(f"{SGD}/weight_decay", -1),
        "optimizers.sgd.weight_decay must be a number of at least 0, got -1",
    ),
    (put(f"{SAM}/rho", 0), 'optimizers."sgd+sam".rho must be a number above 0, got 0'),
    (
        put(f"{SAM}/rho", -math.inf),
        'optimizers."sgd+sam".rho must be a number above 0, got -Infinity',
    ),
    (
        put(f"{SAM}/label_smoothing", 1),
        'optimizers."sgd+sam".label_smoothing must be a number in [0, 1), got 1',
    ),
    (
        put(f"{SGD}/architectures/vgg16/lr", -1),
        "optimizers.sgd.architectures.vgg16.lr must be a number above 0, got -1",
    ),
    (
        put("optimizers/adam", {**tiny.ADAM, "betas": [0.9]}),
        "optimizers.adam.betas must be two numbers in [0, 1), got [0.9]",
    ),
    (
        put("optimizers/adam", {**tiny.ADAM, "betas": [0.9, 1]}),
        "optimizers.adam.betas must be two numbers in [0, 1), got [0.9, 1]",
    ),
    # keys that another key forbids
    (
        put(f"{SGD}", {"base": "sgd", "lr": 1, "nesterov": True}),
        "optimizers.sgd.nesterov must be false unless momentum is above 0, got true",
    ),
    (put(f"{SGD}/eta", 0.1), "optimizers.sgd.eta must be absent unless rho is given, got 0.1"),
    (
        put(f"{SGD}/adaptive", False),
        "optimizers.sgd.adaptive must be absent unless rho is given, got false",
    ),
    (
        put("optimizers/adam", {**tiny.ADAM, "momentum": 0.9}),
        'optimizers.adam.momentum must be absent unless optimizer = "sgd", got 0.9',
    ),
    (
        put("optimizers/adam", {**tiny.ADAM, "nesterov": False}),
        'optimizers.adam.nesterov must be absent unless optimizer = "sgd", got false',
    ),
    (
        put(f"{SGD}/betas", [0.9, 0.9]),
        'optimizers.sgd.betas must be absent unless optimizer is "adam(w)", got [0.9, 0.9]',
    ),
    (
        put(f"{SGD}/architectures/vgg16/base", "adam"),
        'optimizers.sgd.architectures.vgg16.momentum must be absent unless optimizer = "sgd", '
        "got 0.9",
    ),
    # names
    (put("optimizers/SGD", tiny.SGD), "optimizers.SGD: a row's name must be lower-case letters"),
    (put("optimizers/", tiny.SGD), 'optimizers."": a row\'s name must be lower-case letters'),
    (put("optimizers/a b", tiny.SGD), 'optimizers."a b": a row\'s name must be lower-case'),
    (put("optimizers/a\nb", tiny.SGD), 'optimizers."a\\nb": a row\'s name must be lower-case'),
    (put("optimizers/+a", tiny.SGD), 'optimizers."+a": a row\'s name must be lower-case'),
    # published results
    (put("reference", {"source": "s", "seeds": 3}), "reference.test_accuracy is missing"),
    (
        put("reference", {"source": "s", "seeds": 3, "test_accuracy": {"vgg16": {}}}),
        "reference.test_accuracy.vgg16 is an unknown key; it must be one of resnet18",
    ),
    (
        put(
            "reference",
            {"source": "s", "seeds": 3, "test_accuracy": {"resnet18": {"sdg": [90, 1]}}},
        ),
        "reference.test_accuracy.resnet18.sdg is an unknown key (did you mean 'sgd'?)",
    ),
    (
        put(
            "reference",
            {"source": "s", "seeds": 3, "test_accuracy": {"resnet18": {"sgd": [0.9, 101, 3]}}},
        ),
        "reference.test_accuracy.resnet18.sgd must be [mean, std] of an accuracy in percent, "
        "got [0.9, 101, 3]",
    ),
]


@pytest.mark.parametrize(("change", "expected"), WRONG, ids=[text for _, text in WRONG])
def test_an_error_names_file_key_value_and_what_it_must_be(tmp_path, change, expected):
    path = tiny.write(tmp_path, changed(change))
    assert message(path).startswith(f"{path}: {expected}")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[data\n", "is not TOML: "),
        (b"\xff\xfe", "is not UTF-8: invalid start byte at byte 0"),
        (b"# \xe9t\xe9", "is not UTF-8: "),
        (b"a = 'x\ny'", "is not TOML: "),
        (b"[data]\n[data]", "is not TOML: "),
        (b"seeds = [" + b"1" * 5_000 + b"]", "is not TOML: "),
        (b"seeds = " + b"[" * 100_000, "is not TOML: "),
        (b"", "table [data] is missing"),
        (b"seeds = 1979-05-27", "table [data] is missing"),
    ],
    ids=["torn", "utf-16", "latin-1", "string", "twice", "digits", "deep", "empty", "date"],
)
def test_a_file_that_is_no_protocol(tmp_path, content, expected):
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    assert message(path).startswith(f"{path}: {expected}")


def test_hexadecimal_numbers_of_any_length_are_refused(tmp_path):
    path = tiny.write(tmp_path)
    path.write_text(path.read_text().replace("[0]", f"[0x{'f' * 9_000}]"))
    assert message(path).startswith(f"{path}: seeds must be a list of different whole numbers")


def test_files_that_cannot_be_read(tmp_path):
    assert message(tmp_path / "none.toml") == (
        f"{tmp_path / 'none.toml'}: cannot be read: No such file or directory"
    )
    (tmp_path / "folder.toml").mkdir()
    assert message(tmp_path / "folder.toml") == (
        f"{tmp_path / 'folder.toml'}: cannot be read: Is a directory"
    )


@pytest.mark.parametrize("name", ["Mine", "my file", ".hidden", "a\nb", "é", "+x"])
def test_the_name_of_a_file_must_fit_into_case_ids(tmp_path, name):
    path = tiny.write(tmp_path, name=name)
    assert f"file name {name!r} must be lower-case letters, digits" in message(path)


def test_a_line_break_in_the_name_of_a_folder_is_shown_as_one_line(tmp_path):
    assert "cannot be read" in message(tmp_path / "a\nb" / "tiny.toml")


def test_an_unknown_name_lists_those_that_are_known(tmp_path):
    for name in ("digitz", "", "../digits", str(tmp_path), "digits.tml", "a\nb"):
        assert message(name).startswith(
            f"protocol must be one of {', '.join(available())}, or the path of a .toml file, "
            f"got {name!r}".replace("\n", "\\n")
        )
    assert message("digitz").endswith("got 'digitz' (did you mean 'digits'?)")


# --- whatever the file holds

SCALARS = (
    st.booleans()
    | st.integers(-3, 3)
    | st.integers()
    | st.floats()
    | st.sampled_from(["sgd", "adam", "step", "vgg16", "validation", "digits", ""])
    # TOML is written in UTF-8, which has no surrogates
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
)
KEYS = st.sampled_from(
    [
        "rho",
        "lr",
        "eta",
        "betas",
        "architectures",
        "vgg16",
        "base",
        "milestones",
        "data",
        "sharpnes",
    ]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(KEYS | st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=5,
)


def tables_in(table):
    return [table] + [t for v in table.values() if isinstance(v, dict) for t in tables_in(v)]


@st.composite
def mutants(draw):
    """A valid protocol in which a few keys were removed, renamed, added or given other values."""
    whole = copy.deepcopy(draw(st.sampled_from([tiny.table(), RICH])))
    for _ in range(draw(st.integers(1, 3))):
        table = draw(st.sampled_from(tables_in(whole)))
        action = draw(st.sampled_from(["value", "value", "remove", "rename", "add"]))
        if action == "add" or not table:
            table[draw(KEYS)] = draw(VALUES)
            continue
        key = draw(st.sampled_from(sorted(table)))
        if action == "value":
            table[key] = draw(VALUES)
        elif action == "remove":
            del table[key]
        else:
            table[draw(KEYS)] = table.pop(key)
    return whole


RICH = tomllib.loads((PROTOCOLS / "cifar10-paper.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("protocols")


def load_or_one_line(path):
    """What loads must be whole: its cases have settings and hashes."""
    try:
        settings = load(str(path))
    except UsageError as error:
        (line,) = str(error).splitlines()
        assert line.startswith(f"{path}: ")
        return
    assert isinstance(settings, Protocol)
    for case in grid(settings):
        assert case.epochs >= 1
        assert len(case.cell_hash()) == 12
        assert (case.row.rho is not None) == case.row.is_sam


@given(whole=mutants())
def test_any_change_of_a_key_loads_or_is_refused_in_one_line(scratch, whole):
    load_or_one_line(tiny.write(scratch, whole))


@given(data=st.data())
def test_any_change_of_a_byte_loads_or_is_refused_in_one_line(scratch, data):
    content = tiny.toml(tiny.table()).encode()
    at = data.draw(st.integers(0, len(content)))
    until = data.draw(st.integers(at, min(at + 10, len(content))))
    path = scratch / "bytes.toml"
    path.write_bytes(content[:at] + data.draw(st.binary(max_size=6)) + content[until:])
    load_or_one_line(path)


# --- hashes

TWO = tiny.table(
    model={"width": 4, "architectures": ["resnet18", "vgg16"]},
    optimizers={"sgd": tiny.SGD, "sgd+sam": {**tiny.SGD, "rho": 0.05}},
)
CELLS = [(row, name) for row in ("sgd", "sgd+sam") for name in ("resnet18", "vgg16")]


def hashes(folder, change):
    whole = copy.deepcopy(TWO)
    change(whole)
    settings = tiny.protocol(folder, whole)
    cells = {cell: settings.cell_hash(*cell) for cell in CELLS}
    return {"common": settings.common_hash(), **cells}


def moved(folder, change):
    before, after = hashes(folder, lambda table: None), hashes(folder, change)
    return {key for key, value in before.items() if after[key] != value}


def test_hashes_differ_between_cells_and_are_short_hex(tmp_path):
    found = hashes(tmp_path, lambda table: None)
    assert len(set(found.values())) == len(found)
    for value in found.values():
        assert len(value) == 12
        int(value, 16)


@pytest.mark.parametrize(
    "change",
    [
        put("description", "another"),
        put("against", "another"),
        put("seeds", [7, 8]),
        put("optimizers/adam", tiny.ADAM),
        put("model/architectures", ["vgg16", "resnet18"]),
        put("reference", {"source": "s", "seeds": 3, "test_accuracy": {}}),
        # the same said otherwise
        put("sharpness", {"rho": 0.05}),
        put("sharpness/m", 16),
        put("training/schedule", "cosine"),
        put("data/validation", 0),
        put(f"{SGD}/architectures/resnet18", {}),
        put(f"{SGD}/architectures/vgg16/lr", 0.05),
    ],
)
def test_what_bears_on_no_result_moves_no_hash(tmp_path, change):
    assert moved(tmp_path, change) == set()


@pytest.mark.checkout
def test_the_published_results_hashes_stand():
    """A new key at its default must not invalidate what was published before it."""
    published = sorted(RESULTS.glob("*/benchmark.json"))
    assert {"digits", "fashion"} <= {path.parent.name for path in published}
    for path in published:
        protocol = load(path.parent.name)
        for record in read(path):
            assert protocol.common_hash() == record.provenance["common_hash"]
            cell = protocol.cell_hash(record.optimizer, record.architecture)
            assert cell == record.provenance["cell_hash"]


def test_neither_comments_nor_the_name_of_the_file_move_a_hash(tmp_path):
    path = tiny.write(tmp_path, TWO)
    other = tmp_path / "other.toml"
    other.write_text("# a comment\n\n" + path.read_text().replace(" = ", "   =   "))
    assert load(str(other)).common_hash() == load(str(path)).common_hash()
    assert load(str(other)).cell_hash(*CELLS[0]) == load(str(path)).cell_hash(*CELLS[0])


@pytest.mark.parametrize(
    "change",
    [
        put("data/name", "fashion-mnist"),
        put("data/label_noise", 0.2),
        put("data/augmentation", "crop"),
        put("data/validation", 0.2),
        put("data/train_examples", 201),
        without("data/train_examples"),
        lambda t: t["data"].update(validation=0.25, evaluation="validation"),
        put("training/epochs", 3),
        put("training/batch_size", 65),
        put("training/label_smoothing", 0.1),
        put("training/schedule", "constant"),
        lambda t: t["training"].update(schedule="step", milestones=[0.5]),
        put("training/decay", 0.1),
        put("training/warmup_epochs", 1),
        put("training/precision", "bf16"),
        put("model/width", 5),
        put("sharpness/rho", 0.1),
        put("sharpness/adaptive", True),
        put("sharpness/eta", 0.1),
        put("sharpness/at_end", ["hessian_trace"]),
        put("sharpness/every_epoch", ["ascent_sharpness"]),
        put("sharpness/examples", 5),
        put("sharpness/examples_seed", 1),
        put("sharpness/m", 8),
    ],
)
def test_what_all_cells_share_moves_every_hash(tmp_path, change):
    assert moved(tmp_path, change) == {"common", *CELLS}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("base", "adam"),
        ("lr", 0.051),
        ("momentum", 0.8),
        ("nesterov", True),
        ("weight_decay", 0.0),
        ("rho", 0.06),
        ("adaptive", True),
        ("eta", 0.1),
        ("epochs", 3),
        ("label_smoothing", 0.1),
        ("warmup_epochs", 1),
    ],
)
def test_what_a_row_says_moves_its_cells_alone(tmp_path, key, value):
    def change(whole):
        row = whole["optimizers"]["sgd+sam"]
        row[key] = value
        if key == "base":
            del row["momentum"]

    assert moved(tmp_path, change) == {("sgd+sam", name) for name in ("resnet18", "vgg16")}


def test_an_override_moves_its_own_cell_alone(tmp_path):
    change = put(f"{SGD}/architectures/vgg16/lr", 0.01)
    assert moved(tmp_path, change) == {("sgd", "vgg16")}
