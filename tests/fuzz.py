"""Thousands of bad inputs: each is refused in one line, or makes something right.

    tox -e fuzz                      # a few minutes
    FLATBENCH_FUZZ=20000 tox -e fuzz # as many inputs, or a few more
    FLATBENCH_FUZZ_SEED=7 tox -e fuzz

What is found is shrunk by hypothesis, kept in .hypothesis and tried first from then on; it becomes
an ``@example`` of tests/test_bad_input.py, or a test of its own, with its mending.
"""

import contextlib
import functools
import gzip
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import tomllib
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from flatbench import cli, components, execution, files, gate, options, report
from flatbench.data import npz
from flatbench.errors import UsageError
from flatbench.gate.compare import compare
from flatbench.protocols import reading, tuning
from flatbench.protocols.cases import grid as cases_of
from flatbench.protocols.schema import Reader
from flatbench.records import reading as records_reading
from flatbench.training import checkpoint
from tests.inputs import JSON, NAMES, damaged, mutated, respelled
from tests.synthetic import grid

INPUTS = int(os.environ.get("FLATBENCH_FUZZ", "4000"))
SEED = int(os.environ.get("FLATBENCH_FUZZ_SEED", random.SystemRandom().randrange(10**9)))
SHARES = Counter(
    toml=14, protocol=24, tuning=10, record=8, thresholds=8, command=18, reference=4, npz=8, state=6
)
TRIED = Counter()
TARGETS = {}
FOLDER = Path(tempfile.mkdtemp(prefix="flatbench-fuzz-"))  # hypothesis' functions share one

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def in_a_folder():
    before = os.getcwd()
    os.chdir(FOLDER)
    yield
    os.chdir(before)
    shutil.rmtree(FOLDER)


@pytest.fixture(scope="module", autouse=True)
def counted(request):
    """Say in the end how many inputs were tried, and with which seed."""
    yield
    each = ", ".join(f"{name} {count:,}" for name, count in TRIED.items())
    total = sum(TRIED.values())
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\nfuzz: {total:,} inputs, FLATBENCH_FUZZ_SEED={SEED}: {each}")


QUIET = settings(deadline=None, suppress_health_check=list(HealthCheck))


def tries(name, /, **strategies):
    """Make a test of a function of drawn inputs, as often as is its share."""

    def made(function):
        @functools.wraps(function)
        def counting(*arguments, **keywords):
            TRIED[name] += 1
            function(*arguments, **keywords)

        TARGETS[name] = given(**strategies)(function)
        most = max(1, -(-INPUTS * SHARES[name] // SHARES.total()))
        limits = settings(QUIET, max_examples=most, print_blob=True)
        return seed(SEED)(limits(given(**strategies)(counting)))

    return made


def refused(action):
    """Return what the action returns, or None where it is refused in one printable line."""
    try:
        return action()
    except UsageError as error:
        check_line(str(error))
        return None


def check_line(line):
    assert line.strip()
    assert "\n" not in line
    assert "Traceback" not in line


def command(*arguments):
    """Run a command in this process: its exit code is one of the promised, its error one line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main([str(a) for a in arguments])
        except SystemExit as stop:  # argparse's --help and --version
            code = stop.code
    assert code in (0, 1, 2), code
    if code == 2:
        said = err.getvalue()
        assert said.startswith("flatbench: "), said
        assert said.count("\n") == 1, said
        assert said[:-1].isprintable(), said
    return code


# --- protocols

DIGITS = (reading.PROTOCOLS / "digits.toml").read_text(encoding="utf-8")
FAMILY = (reading.PROTOCOLS / "family.toml").read_text(encoding="utf-8")


def read_protocol(content):
    path = FOLDER / "mine.toml"
    path.write_bytes(content)
    found = refused(lambda: reading.load(str(path)))
    if found is not None:
        for case in cases_of(found)[:8]:
            case.row.name.encode()
        found.common_hash()


@tries("toml", content=st.sampled_from([DIGITS, FAMILY]).flatmap(respelled))
def test_the_text_of_a_protocol(content):
    read_protocol(content.encode())


VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([0, 1, -1, 2**31, 1e149, 1e-300, 5e-324, 0.5, "1e-3..1", "sgd", "./a.py:b"]),
    st.floats(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.lists(st.integers(0, 9) | st.sampled_from(["vgg16", "resnet18", "a"]), max_size=3),
    st.dictionaries(st.sampled_from(["name", "build", "method", "rho", "npz", "a"]), st.just(1)),
)
TOML_NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


def toml(table):
    return tomli_w.dumps(table).encode()


def tables(source):
    return mutated(tomllib.loads(source), VALUES, TOML_NAMES)


@tries("protocol", table=st.sampled_from([DIGITS, FAMILY]).flatmap(tables))
def test_the_tables_of_a_protocol(table):
    read_protocol(toml(table))


@tries("tuning", tuning=tables(DIGITS[DIGITS.index("[tuning]") :]))
def test_the_table_of_a_tuning(tuning):
    read_protocol(toml(tomllib.loads(DIGITS) | tuning))


# --- records and thresholds

RECORDS = [r.to_json() for r in grid(range(2), means={"sgd": 88.0, "sgd+sam": 93.0}, epochs=2)]
BASELINE = grid(range(10), means={"sgd": 80.0, "sgd+sam": 90.0})


def written(tables):
    return json.dumps({"benchmarks": [{"extra_info": {"record": t}} for t in tables]})


@tries(
    "record",
    content=mutated(RECORDS).map(written)
    | JSON.map(json.dumps)
    | mutated(RECORDS).map(written).flatmap(lambda c: damaged(c.encode("utf-8", "replace"))),
    packed=st.booleans(),
)
def test_records(content, packed):
    content = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    path = FOLDER / ("records.json.gz" if packed else "records.json")
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    records = refused(lambda: records_reading.collect([path]))
    if records is not None:
        files.write_json(FOLDER / "again.json", {"records": [r.to_json() for r in records]})
        for form in report.FORMATS:
            made = refused(lambda form=form: report.render(records, form))
            if made is not None:
                made.encode()
        refused(lambda: compare(records, records))
        refused(lambda: gate.derive(records))


gate.write_thresholds(FOLDER / "whole.toml", gate.derive(BASELINE))
THRESHOLDS = (FOLDER / "whole.toml").read_text(encoding="utf-8")
for each in BASELINE[:4]:
    name = f"{each.architecture}-{each.optimizer}-{each.seed}.json"
    files.write_json(FOLDER / "now" / name, each.to_json())


@tries(
    "thresholds",
    content=respelled(THRESHOLDS).map(str.encode) | tables(THRESHOLDS).map(toml),
)
def test_thresholds(content):
    (FOLDER / "mine.thresholds.toml").write_bytes(content)
    command("compare", "mine.thresholds.toml", "now")


# --- command lines

ODD = st.sampled_from(
    [
        *("", "-1", "0", "1", "2", "9" * 19, "9" * 5000, "1e308", "nan", "inf", "-inf", "1e-400"),
        *("0-9", "0-99999999", "digits", "sgd", "/dev/null", "/dev/zero", "/", ".", "now", "a,b"),
        *("now/none.json", "a\nb", "torch.optim:SGD", "./a.py:b", "--help", "--", "é" * 300),
        *("\x1b[2J", "\ud800"),
    ]
)
COMMANDS = [*cli.EXAMPLES, "", "reprot"]


def options_of():
    """Return the options of each command."""
    (commands,) = (a for a in cli._parser()._actions if hasattr(a, "choices") and a.choices)
    return {name: sorted(p._option_string_actions) for name, p in commands.choices.items()}


OPTIONS = options_of()
ALL = sorted({option for own in OPTIONS.values() for option in own})


def words_of(name):
    own = st.sampled_from([*OPTIONS.get(name, ALL), *OPTIONS.get(name, ALL), "", *ALL[:3]])
    return st.lists(st.tuples(own, ODD | NAMES), max_size=4).map(
        lambda pairs: [name, *(word for pair in pairs for word in pair if word)]
    )


@tries(
    "command",
    words=st.sampled_from([c for c in COMMANDS if c not in ("info", "check")]).flatmap(words_of),
)
def test_command_lines(words):
    command(*words)


@pytest.fixture(autouse=True)
def nothing_trains(monkeypatch):
    """What would train or fetch has been understood, and ends there."""

    def start(*_, **__):
        raise UsageError("understood: it would train")

    monkeypatch.setattr(execution, "start", start)
    monkeypatch.setattr("flatbench.data.download", start)
    monkeypatch.setattr("flatbench.study.tune.tune", start)
    monkeypatch.setattr("flatbench.study.attempt.attempt", start)
    monkeypatch.setattr("flatbench.study.trained.measure", start)


@pytest.mark.parametrize("number", range(8))
def test_options_of_pytest(number):
    """In a process of its own each, so few."""
    chance = random.Random(f"{SEED} {number}")
    TRIED["pytest"] += 1
    names = [name for group in options.PYTEST for name in group]
    words = []
    for name in chance.sample(names, 2):
        value = chance.choice(["-1", "0", "9" * 19, "nan", "a,b", "0-99999999", "/dev/zero"])
        words.append(f"--flatbench-{name}={value}")
    (FOLDER / "bench_mine.py").write_text("from flatbench.pytest_grid import *\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "bench_mine.py", "--collect-only", "-q", *words],
        cwd=FOLDER, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode in (0, 4), (words, done.stdout, done.stderr)
    assert "Traceback" not in done.stdout + done.stderr, words
    assert "INTERNALERROR" not in done.stdout + done.stderr, words


# --- files of the user's own

CODE = st.sampled_from(
    [
        *("", "def loss(o, t): return o", "loss = 3", "raise RuntimeError('a\\nb')", "def", "\0"),
        *("import nothing_here", "raise SystemExit(3)", "loss = loss", "class loss: pass", "1 / 0"),
        *("é = '\ud800'", "from tests import *", "import sys; sys.modules[__name__] = None"),
    ]
)
FORMS = ["./own.py:loss", "own:loss", "./own.py:", "./:x", "torch:nn", "a:b:c"]


@tries("reference", code=CODE, reference=st.sampled_from(FORMS) | NAMES)
def test_references(code, reference):
    (FOLDER / "own.py").write_bytes(code.encode("utf-8", "surrogatepass"))
    refused(lambda: components.find(reference, FOLDER, {"ours": 1}, "mine.toml: a.b"))


def archive(**arrays):
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


NPZ = archive(
    images=np.zeros((6, 1, 4, 4), np.uint8),
    labels=np.arange(6),
    format=np.array("a"),
    done=np.ones(3),
)


@tries("npz", content=damaged(NPZ) | st.binary(max_size=60))
def test_archives(content):
    path = FOLDER / "mine.npz"
    path.write_bytes(content)
    refused(lambda: npz.arrays(path))
    refused(lambda: npz.read(path))


def state_bytes():
    content = io.BytesIO()
    torch.save({"key": "k", "model": {"w": torch.ones(3)}, "history": []}, content)
    return content.getvalue()


@tries("state", body=damaged(state_bytes()), has_checksum=st.booleans())
def test_checkpoints(body, has_checksum):
    path = FOLDER / "case.pt"
    path.write_bytes((hashlib.sha256(body).digest() if has_checksum else b"") + body)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _, state in checkpoint.states(path, "k"):
            assert state["key"] == "k"


# --- does it find anything? Faults planted for the purpose


def narrow_npz(path, choose=tuple):
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in choose(file.files)}


def opened_state(content):
    return torch.load(io.BytesIO(content[32:]), "cpu", weights_only=True)


def hasty_tuning(reader, given, rows, seeds):
    return given["trials"]


FAULTS = {
    "a key is taken for granted": ("tuning", [(tuning, "read", hasty_tuning)]),
    "unknown keys pass": ("protocol", [(Reader, "known", lambda *_: None)]),
    "what is said moves the cursor": ("command", [(cli, "plain", str)]),
    "a damaged archive raises what it will": ("npz", [(npz, "arrays", narrow_npz)]),
    "a checkpoint is taken at its word": ("state", [(checkpoint, "_state", opened_state)]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, monkeypatch):
    target, places = FAULTS[fault]
    for module, name, broken in places:
        monkeypatch.setattr(module, name, broken)
    limits = settings(QUIET, max_examples=2000, phases=[Phase.generate], database=None)
    with pytest.raises(Exception) as found:  # noqa: PT011  # whatever the fault makes of an input
        seed(SEED)(limits(TARGETS[target]))()
    assert not isinstance(found.value, UsageError)
