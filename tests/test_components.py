"""What a reference names: packages, files and their neighbours, entry points; and options."""

import json
import sys
from importlib import metadata

import pytest
import torch

from flatbench import components
from flatbench.errors import UsageError

OURS = {"sgd": torch.optim.SGD}


def find(text, folder=None):
    return components.find(text, folder, OURS, "mine.toml: optimizers.mine.optimizer")


def message(call, *arguments, **options):
    with pytest.raises(UsageError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(autouse=True)
def nothing_stays_imported():
    """Files of one test are none of the next one's business."""
    before, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]
    sys.path[:] = path
    components._load_file.cache_clear()


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("torch.optim:RMSprop", True),
        ("a:b.c", True),
        ("./lion.py:Lion", True),
        ("../lion.py:Lion", True),
        ("/a b/lion.py:Lion", True),
        ("lion.py:Lion", False),  # looks like a module "lion.py"
        ("torch.optim.RMSprop", False),
        ("sgd", False),
        ("a:b:c", False),
        ("./lion:Lion", False),
        ("a:", False),
        ("", False),
        ("1a:b", False),
    ],
)
def test_the_form_of_a_reference(text, is_one):
    assert components.is_reference(text) == is_one


def test_a_name_of_ours_has_no_source_of_its_own():
    found = find("sgd")
    assert (found.target, found.source) == (torch.optim.SGD, None)


def test_an_object_of_a_package_has_the_version_of_its_distribution():
    found = find("torch.optim:RMSprop")
    assert found.target is torch.optim.RMSprop
    assert found.source == f"torch {metadata.version('torch')}"


def test_an_object_in_a_file_is_relative_to_the_protocols_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub", lion="class Lion: ...\nclass Outer:\n    class Inner: ...\n")
    found = find("./sub/lion.py:Lion", tmp_path)
    assert found.target.__name__ == "Lion"
    assert find("./sub/lion.py:Outer.Inner", tmp_path).target.__name__ == "Inner"
    assert find("./sub/lion.py:Lion", tmp_path).target is found.target  # imported once
    assert found.source.startswith("./sub/lion.py ")


def test_a_file_imports_its_neighbours_and_hides_nothing_by_them(tmp_path):
    write(
        tmp_path, mine="import helper\nvalue = helper.value\n", helper="value = 3\n", json="x = 1"
    )
    assert find("./mine.py:value", tmp_path).target == 3
    assert sys.modules["json"] is json


def test_dataclasses_and_pickles_of_a_file_find_their_module(tmp_path):
    text = "from __future__ import annotations\nimport dataclasses\n"
    write(tmp_path, mine=f"{text}@dataclasses.dataclass\nclass A:\n    x: dataclasses.KW_ONLY\n")
    assert find("./mine.py:A", tmp_path).target is not None


@pytest.mark.parametrize("edited", ["mine", "helper", "far"])
def test_an_edit_of_the_file_or_of_a_neighbour_that_it_imports_changes_the_digest(tmp_path, edited):
    write(
        tmp_path, mine="import helper\n", helper="def f():\n    from far import x\n", far="x = 1\n"
    )
    write(tmp_path, other="y = 2\n")
    before = components.digest(tmp_path / "mine.py")
    write(tmp_path, other="y = 3\n")
    assert components.digest(tmp_path / "mine.py") == before
    with (tmp_path / f"{edited}.py").open("a") as file:
        file.write("# edited\n")
    assert components.digest(tmp_path / "mine.py") != before


def test_a_module_that_no_distribution_has_is_identified_by_its_code(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "lonely"
    package.mkdir()
    write(package, __init__="from lonely.inner import Thing\n", inner="class Thing: ...\n")
    first = find("lonely:Thing").source
    assert first.startswith("lonely ")
    write(package, inner="class Thing:\n    x = 1\n")
    assert find("lonely:Thing").source != first


def test_an_editable_installation_is_identified_by_its_code_too(tmp_path, monkeypatch):
    """Under one version, whatever is edited."""
    monkeypatch.syspath_prepend(tmp_path)
    write(tmp_path, edited="class Thing: ...\n")
    info = tmp_path / "edited_dist-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: edited-dist\nVersion: 1.0\n")
    (info / "RECORD").write_text("edited.py,,\n")
    (info / "top_level.txt").write_text("edited\n")
    components._distributions.cache_clear()
    monkeypatch.setattr(components, "_distributions", metadata.packages_distributions)
    assert find("edited:Thing").source == "edited-dist 1.0"
    (info / "direct_url.json").write_text(
        json.dumps({"url": "file:///x", "dir_info": {"editable": True}})
    )
    first = find("edited:Thing").source
    assert first.startswith("edited-dist 1.0 ")
    write(tmp_path, edited="class Thing:\n    x = 1\n")
    assert find("edited:Thing").source != first


def test_an_entry_point_comes_before_ours_and_after_an_explicit_reference(monkeypatch):
    entry = metadata.EntryPoint("sgd", "torch.optim:Adam", components.GROUP)
    monkeypatch.setattr(components, "_entry_points", lambda: {"sgd": entry})
    assert find("sgd").target is torch.optim.Adam
    assert find("sgd").source == f"torch.optim:Adam of torch {metadata.version('torch')}"
    assert find("torch.optim:SGD").target is torch.optim.SGD
    assert components.is_known("sgd", ())
    assert not components.is_known("adam", ())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rmsprop", "must be one of sgd, or package.module:Object or ./file.py:Object, got"),
        ("nowhere_at_all:X", "cannot be imported: ModuleNotFoundError: No module named"),
        ("torch.optim:RMSProp", "there is no 'RMSProp' in it (did you mean 'RMSprop'?)"),
        ("./none.py:X", "there is no file "),
        ("./broken.py:X", "cannot be imported: SyntaxError: "),
        ("./raises.py:X", "cannot be imported: ValueError: no luck today"),
        ("./ends.py:X", "cannot be imported: SystemExit: 3"),
    ],
)
def test_what_is_not_there_is_one_line(tmp_path, text, says):
    raises = "raise ValueError('no luck\\ntoday')\n"
    write(tmp_path, broken="def f(:\n", raises=raises, ends="raise SystemExit(3)\n")
    said = message(find, text, tmp_path)
    assert said.startswith("mine.toml: optimizers.mine.optimizer")
    assert says in said


def test_a_file_that_failed_can_be_mended(tmp_path):
    write(tmp_path, mine="import nowhere_at_all\n")
    message(find, "./mine.py:X", tmp_path)
    write(tmp_path, mine="X = 1\n")
    assert find("./mine.py:X", tmp_path).target == 1


# --- options


def component(target):
    return components.Component("./mine.py:build", target, None)


def build(params, lr, betas=(0.9, 0.99), *, width=8):
    return params, lr, betas, width


def test_options_are_what_a_component_takes():
    def takes_rest(params, **options):
        return options

    arguments = components.arguments
    given = {"width": 16, "depth": 3}
    found = arguments(component(build), {"lr": 0.1}, "options", given=given, positional=1)
    assert found == {"lr": 0.1, "width": 16}
    own = arguments(component(build), {"lr": 0.1, "width": 4}, "options", given=given, positional=1)
    assert own == {"lr": 0.1, "width": 4}  # the user's word
    assert arguments(component(takes_rest), {"x": 1}, "options", positional=1) == {"x": 1}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lr": 0.1, "beta": 1}, "'beta' is unknown"),
        ({}, "'lr' is missing"),
        ({"params": 1, "lr": 1}, "'params' is unknown"),
    ],
)
def test_wrong_options_list_what_is_taken(options, says):
    said = message(components.arguments, component(build), options, "o", positional=1)
    assert said == f"o: {says}: ./mine.py:build takes lr, betas, width"


def test_references_in_options_are_found_and_resolved(tmp_path):
    write(tmp_path, mine="X = 1\n")
    options = {"a": {"ref": "./mine.py:X"}, "b": [[{"ref": "torch.optim:SGD"}], 2], "c": {"d": 0.5}}
    assert list(components.references(options)) == ["./mine.py:X", "torch.optim:SGD"]
    assert components.resolved(options, tmp_path, "o") == {
        "a": 1,
        "b": ((torch.optim.SGD,), 2),
        "c": {"d": 0.5},
    }
    assert "o.a: './none.py:X': there is no file" in message(
        components.resolved, {"a": {"ref": "./none.py:X"}}, tmp_path, "o"
    )


def test_what_a_component_raises_is_one_line():
    def refuses(lr):
        raise ValueError(f"lr is\n{lr}")

    assert message(components.called, component(refuses), "o", 3) == (
        "o: ./mine.py:build: ValueError: lr is 3"
    )
    assert components.called(component(build), "o", 1, lr=2) == (1, 2, (0.9, 0.99), 8)


def test_an_edited_file_is_imported_again_and_its_neighbours_with_it(tmp_path):
    """A worker lives as long as a grid: its key would else speak of code that it does not run."""
    write(tmp_path, mine="import helper\nX = helper.value\n", helper="value = 1\n")
    first = find("./mine.py:X", tmp_path)
    write(tmp_path, helper="value = 22\n")
    again = find("./mine.py:X", tmp_path)
    assert (first.target, again.target) == (1, 22)
    assert first.source != again.source
