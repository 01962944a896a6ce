"""The workflows: what they may do, and each step's shell lines, run here on a CPU protocol."""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch
import yaml

import flatbench
from flatbench.gate import check_cells, read_thresholds
from flatbench.protocols.reading import load
from tests import tiny
from tests.synthetic import record

pytestmark = pytest.mark.checkout

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
GPU = ROOT / ".github" / "workflows" / "benchmark-gpu.yml"
RELEASE = ROOT / ".github" / "workflows" / "release.yml"
# The one job that has a right, and in it the one action that is not GitHub's own: it publishes.
PUBLISH = ("release", "publish")
PUBLISHER = "pypa/gh-action-pypi-publish"
EXAMPLES = ROOT / "docs" / "project" / ".github" / "workflows"
OWN_ACTION = "./.github/actions/flatbench-gate"
ONE_STEP = "resnet18-sgd-sam-eager]"


def read(path):
    return yaml.safe_load(path.read_text())


def steps(path):
    return [step for job in read(path)["jobs"].values() for step in job["steps"]]


OURS = r"actions/[a-z-]+(/[a-z]+)?"  # of GitHub itself


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_may_read_and_no_more_and_pin_what_they_use(path):
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets." not in path.read_text()
    for name, job in workflow["jobs"].items():
        publishes = (path.stem, name) == PUBLISH
        assert job["timeout-minutes"] <= 180
        assert job.get("permissions") == ({"id-token": "write"} if publishes else None)
        assert ("environment" in job) == publishes
        # the commit's own action is held by tests/test_action.py
        uses = [step["uses"] for step in job["steps"] if step.get("uses", OWN_ACTION) != OWN_ACTION]
        used = [text.partition("@") for text in uses]
        assert all(re.fullmatch(r"[0-9a-f]{40}", commit) for _, _, commit in used)
        foreign = [action for action, _, _ in used if not re.fullmatch(OURS, action)]
        assert foreign == ([PUBLISHER] if publishes else [])
    for line in re.findall(r"^.*\buses:.*$", path.read_text(), flags=re.M):
        assert OWN_ACTION in line or re.search(r"@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line)
    for step in steps(path):
        if step.get("uses") == OWN_ACTION:
            assert (ROOT / OWN_ACTION / "action.yml").is_file()
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
        # an expression in a script is code from outside; an environment variable is a string
        assert "${{" not in step.get("run", "")


def scripts():
    """Every shell script of the workflows, the action and the examples, by file and step."""
    for path in (*WORKFLOWS, *sorted(EXAMPLES.glob("*.yml"))):
        for i, step in enumerate(steps(path)):
            if "run" in step:
                yield f"{path.stem}-{step.get('name', i)}", step["run"]
    for step in read(ROOT / OWN_ACTION / "action.yml")["runs"]["steps"]:
        if "run" in step:
            yield f"action-{step['name']}", step["run"]
    yield "ci", (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize(("name", "script"), [pytest.param(*one, id=one[0]) for one in scripts()])
def test_shellcheck_finds_nothing_in_the_scripts(name, script):
    # SC2153 takes two variables that differ in case for a slip; $pinned is two words or none
    excluded = "SC2153,SC2086" if name == "benchmark-gpu-Install" else "SC2153"
    program = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run(
        [program, "--shell=bash", f"--exclude={excluded}", "-"],
        input=script, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")


def test_the_gates_that_are_shipped_must_be_able_to_find_something():
    (gate,) = (step["run"] for step in steps(GPU) if step.get("name") == "Grid and gate")
    assert '${POWER:+--require-power "$POWER"}' in gate
    assert float(read(GPU)["env"]["POWER"]) > 0
    script = (ROOT / ".ci" / "run").read_text()
    assert '--require-thresholds --require-power "$POWER"' in script
    (points,) = re.findall(r"^POWER=([0-9.]+)$", script, flags=re.M)
    # what is asked for is there: else every run would fail
    protocol = load("digits")
    records = [
        record(
            row,
            architecture,
            seed,
            test_accuracy=99.0,
            provenance={
                "common_hash": protocol.common_hash(),
                "cell_hash": protocol.cell_hash(row, architecture),
            },
        )
        for row in protocol.optimizers
        for architecture in protocol.model.names
        for seed in protocol.seeds
    ]
    thresholds = read_thresholds(ROOT / "benchmarks" / "thresholds" / "digits.toml")
    drops = [o.drop for o in check_cells(records, thresholds) if "accuracy" in o.name]
    assert len(drops) == len(protocol.optimizers) * len(protocol.model.names)
    assert max(drops) <= float(points)


def test_the_gpu_workflow_cannot_be_started_by_a_pull_request():
    triggers = read(GPU)[True]  # YAML 1.1 reads the key "on" as true
    assert set(triggers) == {"schedule", "workflow_dispatch"}
    assert set(triggers["workflow_dispatch"]["inputs"]) == {"labels", "protocol", "renew"}


class Runner:
    """Runs the GPU workflow's steps by name in a copy of the tree, on the CPU."""

    def __init__(self, folder):
        self.tree = folder / "tree"
        skip = ("__pycache__", ".git", ".tox*", ".*cache", "*.egg-info", "results", "build")
        shutil.copytree(ROOT, self.tree, ignore=shutil.ignore_patterns(*skip))
        (self.tree / "baseline").mkdir(exist_ok=True)
        (self.tree / "out").mkdir(exist_ok=True)
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.tree),
            "PROTOCOL": str(tiny.write(folder)),
            "RENEW": "false",
            "DEVICE": "cpu",
            "FLATBENCH_DATA": str(folder / "data"),
            "BASELINE_SEEDS": "100-101",
            "POWER": "",  # two seeds have none
            "STEP_ROWS": ONE_STEP,  # there are no graphs on a CPU
            "STEP_LIMIT": "median:10000%",  # no verdict on a test machine's speed
            "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        }
        self.scripts = {step["name"]: step["run"] for step in steps(GPU) if "run" in step}

    def __call__(self, name):
        return subprocess.run(
            ["bash", "-e", "-c", self.scripts[name]],
            cwd=self.tree,
            env=self.environment | {"PYTEST_ADDOPTS": "-p no:cacheprovider"},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )

    def edit_baseline(self, **fields):
        for i, path in enumerate(sorted(self.tree.glob("baseline/tiny/records/*.json"))):
            changed = {k: v(i) if callable(v) else v for k, v in fields.items()}
            path.write_text(json.dumps(json.loads(path.read_text()) | changed))


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    return Runner(tmp_path_factory.mktemp("workflow"))


def test_all_steps_in_turn(runner):
    """All but the installation, which is what the environment of this test came from."""
    assert list(runner.scripts) == [
        "Machine",
        "Install",
        "What this machine can do",
        "Fetch the data",
        "GPU tests",
        "Train the baseline, if there is none",
        "Grid and gate",
        "Time of a step",
        "Report",
    ]
    ran = runner("Machine")  # a CPU needs nothing
    assert (ran.returncode, ran.stdout) == (0, "")
    ran = runner("What this machine can do")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "SAM's auto" in ran.stdout
    ran = runner("Fetch the data")  # tiny's digits need none
    assert (ran.returncode, ran.stdout) == (0, "")
    ran = runner("GPU tests")
    assert ran.returncode == 0, ran.stdout
    assert re.search(r"\d+ skipped", ran.stdout)
    ran = runner("Train the baseline, if there is none")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    records = sorted(runner.tree.glob("baseline/tiny/records/*.json"))
    assert len(records) == 4
    pinned = (runner.tree / "baseline" / "constraints.txt").read_text().splitlines()
    assert f"torch=={metadata.version('torch')}" in pinned
    times = [path.stat().st_mtime_ns for path in records]
    assert runner("Train the baseline, if there is none").returncode == 0
    assert [path.stat().st_mtime_ns for path in records] == times  # there is one: left alone

    runner.edit_baseline(calibration_seconds=None, peak_memory=None)  # see STEP_LIMIT
    ran = runner("Grid and gate")
    assert ran.returncode == 0, ran.stdout
    assert 'name="test_gate"' in (runner.tree / "out" / "grid.xml").read_text()
    summary = Path(runner.environment["GITHUB_STEP_SUMMARY"])
    assert re.search(r"## Comparison with the baseline: [a-z' ]+: none of ", summary.read_text())
    assert "gate: " in ran.stdout

    ran = runner("Time of a step")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Comparing against benchmarks from: " in ran.stdout + ran.stderr
    ran = runner("Report")
    assert ran.returncode == 0, ran.stderr
    made = {str(path.relative_to(runner.tree / "out")) for path in runner.tree.glob("out/**/*")}
    assert {"report.html", "step.json", "tests.xml", "tiny/benchmark.json"} <= made
    assert "figures/tiny-test_accuracy.png" in made

    runner.edit_baseline(test_accuracy=lambda i: 99.0 + i / 100)
    ran = runner("Grid and gate")
    assert ran.returncode == 1
    assert "test_accuracy" in ran.stdout
    assert re.search(r"test_accuracy was 99\.?\d* in the baseline", summary.read_text())


class Machine:
    """A machine's programs, as scripts on a PATH of its own, for steps to be run with."""

    def __init__(self, folder, workflow=GPU):
        self.folder, self.programs, self.workflow = folder, folder / "programs", workflow
        self.programs.mkdir()
        self.environment = read(workflow).get("env", {}) | {
            "PATH": f"{self.programs}:/bin:/usr/bin",
            "CC": "a-compiler",
            "RUNNER_TEMP": str(folder / "temp"),
            "GITHUB_PATH": str(folder / "path"),
        }
        self.has("a-compiler", "")
        self.has("ldconfig", "echo '  libcuda.so.1 (libc6,x86-64) => /lib/libcuda.so.1'")
        self.has("nvidia-smi", "echo 580.65.06; echo 580.65.06")

    def has(self, name, script):
        (self.programs / name).write_text(f"#!/bin/bash\n{script}\n")
        (self.programs / name).chmod(0o755)

    def __call__(self, name):
        (script,) = (step["run"] for step in steps(self.workflow) if step.get("name") == name)
        return subprocess.run(
            ["/bin/bash", "-e", "-c", script],
            cwd=self.folder,
            env={key: str(value) for key, value in self.environment.items()},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_a_machine_that_has_all_is_taken(machine):
    ran = machine("Machine")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("program", "script", "lacks"),
    [
        ("a-compiler", None, "a C compiler (gcc or clang, or set CC)"),
        ("ldconfig", "echo libm.so.6", "libcuda.so.1 (ldconfig -p)"),
        ("nvidia-smi", "echo 575.57.08", "a driver of at least 580 (nvidia-smi: 575.57.08)"),
        (
            "nvidia-smi",
            "echo failed. >&2; exit 9",
            "a driver of at least 580 (nvidia-smi: failed.)",
        ),
    ],
)
def test_what_a_machine_lacks_is_one_line(program, script, lacks, machine):
    if script is None:
        (machine.programs / program).unlink()
    else:
        machine.has(program, script)
    ran = machine("Machine")
    assert (ran.returncode, ran.stderr) == (1, "")
    assert ran.stdout == f"::error::this machine lacks {lacks}\n"


def test_all_that_a_machine_lacks_is_in_that_line(machine):
    (machine.programs / "a-compiler").unlink()
    machine.has("ldconfig", "")
    (machine.programs / "nvidia-smi").unlink()
    ran = machine("Machine")
    assert len(ran.stdout.splitlines()) == 1
    assert all(name in ran.stdout for name in ("C compiler", "libcuda.so.1", "driver"))


def test_the_machine_is_looked_at_before_the_gigabytes_and_after_them():
    names = [step.get("name") or step["uses"].partition("@")[0] for step in steps(GPU)]
    assert names.index("Machine") < names.index("actions/setup-python") < names.index("Install")
    assert names[names.index("Install") + 1] == "What this machine can do"
    (look,) = (step for step in steps(GPU) if step.get("name") == "What this machine can do")
    assert look["run"] == 'flatbench info --device "$DEVICE"'


def test_the_driver_is_the_oldest_that_the_cuda_of_torch_takes():
    oldest = {"12": 525, "13": 580}  # NVIDIA's table, which the workflow names
    if torch.version.cuda is None:
        pytest.skip("this torch is built without CUDA")
    assert int(read(GPU)["env"]["DRIVER"]) == oldest[torch.version.cuda.partition(".")[0]]


@pytest.mark.parametrize(
    ("has_baseline", "renew", "pinned"),
    [(False, "false", ""), (True, "false", " -c baseline/constraints.txt"), (True, "true", "")],
)
def test_the_packages_go_into_an_environment_of_the_run(has_baseline, renew, pinned, machine):
    """With the torch of the baseline, unless that is made anew."""
    log = machine.folder / "log"
    own = f'echo "$0 $*" >> {log}'
    machine.has(
        "python",
        f'{own}\nif [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi',
    )
    machine.environment["RENEW"] = renew
    if has_baseline:
        (machine.folder / "baseline").mkdir()
        (machine.folder / "baseline" / "constraints.txt").write_text("torch==2.14.1\n")
    ran = machine("Install")
    assert ran.returncode == 0, ran.stderr
    made = machine.folder / "temp" / "venv"
    assert log.read_text().splitlines() == [
        f"{machine.programs / 'python'} -m venv {made}",
        f"{made / 'bin' / 'python'} -m pip install -q -e .[dev]{pinned}",
    ]
    assert (machine.folder / "path").read_text() == f"{made / 'bin'}\n"


def test_the_cache_holds_the_baseline_and_the_data_alone():
    """The repository's cache is bounded: gigabytes of wheels would push the baseline out."""
    kept = [step["with"] for step in steps(GPU) if "actions/cache" in step.get("uses", "")]
    assert {with_["path"] for with_ in kept} == {"data", "baseline"}
    for step in steps(GPU):
        if "actions/setup-python" in step.get("uses", ""):
            assert not {"cache", "cache-dependency-path"} & set(step["with"])


def test_every_dependency_says_from_which_version_on():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    exact = {"ruff", "mypy"}  # the hooks of a commit and CI say the same
    own = "flatbench[ray,docs]"
    for wanted in (project["dependencies"], *project["optional-dependencies"].values()):
        bare = [name for name in wanted if ">=" not in name and name != own]
        assert {name.partition("==")[0] for name in bare} <= exact
        assert all(re.fullmatch(r"[a-z]+==\d+\.\d+\.\d+", name) for name in bare)
    assert own in project["optional-dependencies"]["dev"]


def test_the_hooks_of_a_commit_are_the_linter_s_commands_and_versions():
    """They run what the `dev` extra installed; of these two it names one version."""
    dev = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for tool in ("ruff", "mypy"):
        assert f"{tool}=={metadata.version(tool)}" in dev["dev"]
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    lines = tox["testenv:lint"]["commands"].replace("\\\n", " ").strip().splitlines()
    words = [line.replace("{[testenv]python}", "python").split() for line in lines]
    linter = {
        tuple(w for w in line if w not in {".", "--check"} and "/" not in w) for line in words
    }
    hooks = []
    for repository in read(ROOT / ".pre-commit-config.yaml")["repos"]:
        assert repository["repo"] == "local"
        hooks += repository["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    mend = {"--fix", "--force-exclude"}  # a hook may; and it is given the names of files
    assert {tuple(w for w in hook["entry"].split() if w not in mend) for hook in hooks} == linter
    assert len(hooks) == len(linter)
    # every workflow is checked, by the linter as well
    checked = [Path(word) for line in words for word in line if "/workflows/" in word]
    expected = [*WORKFLOWS, *EXAMPLES.glob("*.yml")]
    assert sorted(path.name for path in checked) == sorted(path.name for path in expected)


def test_actions_and_packages_are_watched():
    watched = read(ROOT / ".github" / "dependabot.yml")["updates"]
    assert {entry["package-ecosystem"] for entry in watched} == {"github-actions", "pip"}


def test_the_gate_on_steps_is_of_replayed_graphs_alone(machine):
    log = machine.folder / "log"
    machine.has("python", f'printf "%s\\n" "$@" > {log}')
    assert machine("Time of a step").returncode == 0
    words = log.read_text().splitlines()
    assert "--benchmark-compare-fail=median:25%" in words
    chosen = [words[i + 1] for i, word in enumerate(words) if word == "-k"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "benchmarks/bench_step.py",
         *(option for rows in chosen for option in ("-k", rows))],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows = re.findall(r"test_step\[(.*)\]", done.stdout)
    assert len(rows) == 24
    assert all(row.endswith("+graph") for row in rows)


@pytest.fixture
def releasing(tmp_path):
    """The release workflow's lines in a folder with the version's file."""
    (tmp_path / "flatbench").mkdir()
    shutil.copy(ROOT / "flatbench" / "__init__.py", tmp_path / "flatbench")
    return Machine(tmp_path, RELEASE)


def test_only_a_tag_of_this_repository_releases_and_only_where_it_was_switched_on():
    workflow = read(RELEASE)
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads the key "on" as true
    build, publish = (workflow["jobs"][name]["if"] for name in ("build", "publish"))
    assert build == "${{ !github.event.repository.fork }}"
    assert publish == (
        "${{ !github.event.repository.fork && vars.PUBLISH_TO_PYPI == 'true' }}"
    )  # an environment that is missing would be made


def test_what_may_publish_runs_no_code_of_ours():
    """It takes what the other job has checked, and hands it over with the publisher's defaults."""
    build, publish = (read(RELEASE)["jobs"][name] for name in ("build", "publish"))
    assert (publish["needs"], publish["environment"]["name"]) == ("build", "pypi")
    download, upload = publish["steps"]
    (kept,) = (s["with"] for s in build["steps"] if "upload-artifact" in s.get("uses", ""))
    assert download["uses"].startswith("actions/download-artifact@")
    assert download["with"] == {name: kept[name] for name in ("name", "path")}
    assert kept["path"] == "dist"  # where the publisher looks
    assert {*upload} == {"uses"}  # neither a password nor `attestations: false`


@pytest.mark.parametrize(
    ("tag", "code"),
    [(f"v{flatbench.__version__}", 0), (flatbench.__version__, 1), ("v9.9.9", 1), ("v", 1)],
)
def test_a_tag_of_another_version_is_refused(tag, code, releasing):
    releasing.environment["GITHUB_REF_NAME"] = tag
    ran = releasing("The tag is the version")
    assert (ran.returncode, ran.stderr) == (code, "")
    version = flatbench.__version__
    said = f"the tag is {tag}, the version is {version}; the tag must be v{version}"
    expected = f"::error file=flatbench/__init__.py::{said}\n" if code else ""
    assert ran.stdout == expected


def test_what_is_built_is_what_is_checked(releasing):
    names = [step["name"] for step in steps(RELEASE) if "run" in step]
    assert names == ["The tag is the version", "Build", "Check what was built"]
    log = releasing.folder / "log"
    for program in ("python", "tox"):
        releasing.has(program, f'echo "{program} $* $FLATBENCH_DIST" >> {log}')
    for name in names[1:]:
        assert releasing(name).returncode == 0
    assert log.read_text().splitlines() == [
        "python -m pip install -q build ",
        "python -m build --outdir dist ",
        "python -m pip install -q tox ",
        f"tox -e wheel {releasing.folder / 'dist'}",
    ]


@pytest.mark.parametrize(
    ("failing", "name"), [("python", "Build"), ("tox", "Check what was built")]
)
def test_a_failure_ends_a_release(failing, name, releasing):
    releasing.has("python", "")
    releasing.has("tox", "")
    releasing.has(failing, "exit 3")
    assert releasing(name).returncode == 3
