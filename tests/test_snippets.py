"""What the pages tell a reader to type: python runs, commands and options are there, TOML loads."""

import argparse
import ast
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from itertools import groupby
from pathlib import Path

import pytest
import torch
from markdown_it import MarkdownIt
from torch import nn

from flatbench import cli
from flatbench.protocols.cases import grid
from flatbench.protocols.reading import load
from flatbench.training.trainer import train
from tests import test_amp, tiny

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
PROGRAMS = ("flatbench", "pytest", "python", "python3", "tox")
# What pages' code is given, as a script around it would have it.
FILES = {
    "mysam.py": "from flatbench.optim import SAM as MySAM\n",
    "task.py": "from torch.nn.functional import cross_entropy as loss\n",
    "net.py": """
from torch import nn

def build(in_channels, image_size, classes):
    inputs = in_channels * image_size * image_size
    layers = nn.Linear(inputs, 16), nn.Linear(16, 16, bias=False), nn.Linear(16, classes)
    return nn.Sequential(nn.Flatten(), *layers)
""",
}


def tokens(name):
    """The tokens of a page's markdown, those inside a paragraph too."""
    for token in MarkdownIt("gfm-like", {"linkify": False}).parse((ROOT / name).read_text()):
        yield token
        yield from token.children or ()


def blocks(name, *kinds):
    return [t.content for t in tokens(name) if t.type == "fence" and t.info.strip() in kinds]


def commands(text):
    """The words of each call of one of `PROGRAMS`, those that are handed to Ray too."""
    for line in text.replace("\\\n", " ").splitlines():
        first = line.split(maxsplit=1)[0] if line.strip() else ""
        if first not in (*PROGRAMS, "ray"):
            continue
        words = shlex.split(line, comments=True)
        calls = [list(call) for end, call in groupby(words, "&&".__eq__) if not end]
        if first == "ray":
            calls = [words[words.index("--") + 1 :]] if "--" in words else []
            calls += [shlex.split(word) for word in words if word.startswith("flatbench ")]
        yield from (call for call in calls if call[0] in PROGRAMS)


def shell(name):
    """Every command of a page's blocks; an indented block is a shell's, too."""
    indented = [t.content for t in tokens(name) if t.type == "code_block"]
    return [words for text in [*blocks(name, "sh"), *indented] for words in commands(text)]


def spans(name):
    return [" ".join(t.content.split()) for t in tokens(name) if t.type == "code_inline"]


# --- python


def code_of(name):
    return blocks(name, "python")


WITH_CODE = [name for name in NAMES if code_of(name)]
RUN_BY_OTHER_TESTS = "docs/optim.md"  # tests/test_amp.py and tests/ranks.py run its three loops


def stand_ins():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    inputs, targets = torch.randn(12, 6), torch.randint(3, (12,))
    return {
        "model": model,
        "inputs": inputs,
        "targets": targets,
        "batches": [(inputs[:6], targets[:6]), (inputs[6:], targets[6:])],
        "loss": nn.functional.cross_entropy,
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", [name for name in WITH_CODE if name != RUN_BY_OTHER_TESTS])
def test_the_python_of_a_page_runs(name, folder):
    names = stand_ins()
    for code in code_of(name):
        exec(compile(code, name, "exec"), names)
    for found in [value for key, value in names.items() if key.startswith("test_my_")]:
        found()


def test_the_loops_of_optim_are_run_by_the_tests_that_are_about_them():
    assert RUN_BY_OTHER_TESTS in WITH_CODE
    loop, mixed, workers = code_of(RUN_BY_OTHER_TESTS)
    assert [loop, mixed] == [test_amp.LOOP, test_amp.MIXED]
    last = '"```python\\n(.*?)```", page, re.DOTALL)[-1]'
    assert last in (ROOT / "tests" / "ranks.py").read_text()
    assert "no_sync" in workers


def own_code(name, part):
    (code,) = [code for code in code_of(name) if part in code]
    return code


def test_the_groups_of_the_page_train(folder):
    """Under the row of the page, with a learning rate that the function has asked for."""
    (folder / "groups.py").write_text(own_code("docs/extend.md", "def groups"))
    (row,) = [text for text in blocks("docs/extend.md", "toml") if "groups" in text]
    table = tiny.table(
        optimizers=tomllib.loads(row)["optimizers"],
        model={"width": 4, "architectures": [{"name": "net", "build": "./net.py:build"}]},
        data={"name": "digits"},
        training={"epochs": 4, "batch_size": 64},
    )
    (folder / "own.toml").write_text(tiny.toml(table))
    (case,) = grid(load(str(folder / "own.toml")))
    record = train(case)
    assert (record.status, record.optimizer) == ("completed", "muon")
    assert record.train_accuracy > 80


def test_the_two_lines_of_a_repository_are_those_of_the_project():
    pytest_code = [code for code in code_of("docs/extend.md") if "flatbench.pytest_" in code]
    for code, name in zip(pytest_code, ("conftest.py", "bench_mine.py"), strict=True):
        body = ast.parse((DOCS / "project" / name).read_text()).body
        assert ast.dump(ast.Module(body[1:], [])) == ast.dump(ast.parse(code))


# --- commands


@pytest.fixture(scope="module")
def parser():
    return cli._parser()


@pytest.fixture(scope="module")
def pytest_options():
    """Every option that pytest takes in this repository."""
    command = [sys.executable, "-m", "pytest", "--help", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", done.stdout, re.IGNORECASE))


@pytest.mark.parametrize("name", NAMES)
def test_what_a_page_says_to_type_is_there(name, parser, pytest_options):
    for words in shell(name):
        check(words, parser, pytest_options)


def test_there_are_commands_to_check():
    found = [words[0] for name in NAMES for words in shell(name)]
    assert {program: found.count(program) for program in PROGRAMS if program in found}.keys() == {
        *PROGRAMS
    }
    assert found.count("flatbench") > 30
    assert ["flatbench", "run", "--protocol", "cifar10-quick", "--engine", "ray"] in [
        words[:6] for words in shell("docs/cluster.md")
    ]


def check(words, parser, pytest_options):
    """Raise unless a command is there, with its options."""
    program, *rest = words
    if program == "flatbench":
        if "..." not in rest:
            parser.parse_args(rest)
    elif program == "tox":
        check_tox(rest)
    elif program == "pytest":
        check_pytest(rest, pytest_options)
    elif rest[0] == "-m":
        check_module(rest[1:], parser, pytest_options)


def check_tox(words):
    own = words[: words.index("--")] if "--" in words else words
    wanted = own[own.index("-e") + 1].split(",")
    text = (ROOT / "tox.ini").read_text()
    there = re.findall(r"^\[testenv:([\w-]+)(?:\{([\w,]+)\})?\]", text, re.MULTILINE)
    known = {f"{name}{part}" for name, parts in there for part in parts.split(",")}
    assert set(wanted) <= known, wanted


def check_pytest(words, known):
    for word in words:
        option = word.partition("=")[0]
        if option.startswith("-"):
            assert option in known, f"pytest has no {option}"
    if words and not words[0].startswith("-"):
        path = words[0].partition("::")[0]
        assert (ROOT / path).exists() or (DOCS / "project" / path).exists(), path


def check_module(words, parser, pytest_options):
    module, *rest = words
    if module == "pip":
        return
    if module in PROGRAMS:
        check([module, *rest], parser, pytest_options)
        return
    assert importlib.util.find_spec(module) is not None, module


@pytest.mark.parametrize(
    "text",
    [
        "flatbench run --sead 3",
        "flatbench tri ./lion.py:Lion",
        "tox -e bensh",
        "pytest benchmarks --sedes 0",
        "pytest benchmark",
        "python -m docs.page",
        "ray exec cluster.yaml 'flatbench run --enjine ray'",
        "ray job submit -- flatbench run --enjine ray",
    ],
)
def test_a_slip_is_found(text, parser, pytest_options):
    (words,) = commands(text)
    with pytest.raises((AssertionError, cli.UsageError)):
        check(words, parser, pytest_options)


@pytest.mark.parametrize("name", NAMES)
def test_the_options_that_a_page_speaks_of_are_there(name, parser, pytest_options):
    """In a sentence a command may be in part: its name, and options of it."""
    (choices,) = [a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    own = {command: set(p._option_string_actions) for command, p in choices.items()}
    own[""] = {"--help", "--version"}
    anywhere = set().union(*own.values(), pytest_options)
    # of ray, of torch.compile once, and of this repository's own modules
    others = {"--compile", "--part", "--check", "--address", "-m", "-e", "-x"}
    for span in spans(name):
        words = span.split()
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        if words[:1] == ["flatbench"]:
            command = words[1] if words[1:] and not words[1].startswith("-") else ""
            assert command in own, span
            assert options <= own[command], span
        elif options and (words[0].startswith("--") or words[0] == "pytest"):
            assert options <= anywhere | others, span


# --- TOML


WITH_TOML = [name for name in NAMES if blocks(name, "toml")]


@pytest.mark.parametrize("name", WITH_TOML)
def test_the_toml_of_a_page_is_of_a_protocol(name, folder):
    """A part of one is read in the place of that part of a whole one."""
    for number, text in enumerate(blocks(name, "toml")):
        part = tomllib.loads(text)
        whole = tiny.table()
        whole["optimizers"]["adam"] = tiny.ADAM
        for key, value in part.items():
            inner = isinstance(value, dict)
            whole[key] = whole[key] | value if inner and key in whole else value
        if "source" in part.get("data", {}):
            del whole["data"]["train_examples"], whole["data"]["label_noise"]
        path = folder / f"part{number}.toml"
        path.write_text(tiny.toml(whole))
        assert grid(load(str(path)))


def test_there_is_toml_to_check():
    assert {"docs/extend.md", "docs/protocols.md"} <= set(WITH_TOML)
    assert load(str(DOCS / "project" / "mine.toml")).name == "mine"
