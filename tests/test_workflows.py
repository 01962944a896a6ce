"""The workflows: what they may do, and each step's shell lines, run here on a CPU protocol."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import tiny

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
GPU = ROOT / ".github" / "workflows" / "benchmark-gpu.yml"
ONE_STEP = '-k "resnet18 and sgd and sam and eager and not asam"'


def read(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text())


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in read(path)["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_may_read_and_no_more_and_pin_what_they_use(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets." not in path.read_text()
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 180
        assert "permissions" not in job
    for step in steps(path):
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+(/[a-z]+)?@[0-9a-f]{40}", step["uses"])
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
        # an expression in a script is code from outside; an environment variable is a string
        assert "${{" not in step.get("run", "")


def test_the_gpu_workflow_cannot_be_started_by_a_pull_request() -> None:
    triggers = read(GPU)[True]  # YAML 1.1 reads the key "on" as true
    assert set(triggers) == {"schedule", "workflow_dispatch"}
    assert set(triggers["workflow_dispatch"]["inputs"]) == {"labels", "protocol", "renew"}


class Runner:
    """Runs the GPU workflow's steps by name in a copy of the tree, on the CPU."""

    def __init__(self, folder: Path) -> None:
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
            "STEP_LIMIT": "median:10000%",  # no verdict on a test machine's speed
            "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        }
        self.scripts = {step["name"]: step["run"] for step in steps(GPU) if "run" in step}

    def __call__(self, name: str, options: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-e", "-c", self.scripts[name]],
            cwd=self.tree,
            env=self.environment | {"PYTEST_ADDOPTS": f"-p no:cacheprovider {options}"},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )

    def edit_baseline(self, **fields: Any) -> None:
        for i, path in enumerate(sorted(self.tree.glob("baseline/tiny/records/*.json"))):
            changed = {k: v(i) if callable(v) else v for k, v in fields.items()}
            path.write_text(json.dumps(json.loads(path.read_text()) | changed))


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(tmp_path_factory.mktemp("workflow"))


def test_all_steps_in_turn(runner: Runner) -> None:
    """All but the installation, which is what the environment of this test came from."""
    assert list(runner.scripts) == [
        "Install",
        "Fetch the data",
        "GPU tests",
        "Train the baseline, if there is none",
        "Grid and gate",
        "Time of a step",
        "Report",
    ]
    ran = runner("Fetch the data")  # tiny's digits need none
    assert (ran.returncode, ran.stdout) == (0, "")
    ran = runner("GPU tests")
    assert ran.returncode == 0, ran.stdout
    assert re.search(r"\d+ skipped", ran.stdout)
    ran = runner("Train the baseline, if there is none", ONE_STEP)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    records = sorted(runner.tree.glob("baseline/tiny/records/*.json"))
    assert len(records) == 4
    times = [path.stat().st_mtime_ns for path in records]
    assert runner("Train the baseline, if there is none", ONE_STEP).returncode == 0
    assert [path.stat().st_mtime_ns for path in records] == times  # there is one: left alone

    runner.edit_baseline(calibration_seconds=None, peak_memory=None)  # see STEP_LIMIT
    ran = runner("Grid and gate")
    assert ran.returncode == 0, ran.stdout
    assert 'name="test_gate"' in (runner.tree / "out" / "grid.xml").read_text()
    summary = Path(runner.environment["GITHUB_STEP_SUMMARY"])
    assert "## Comparison with the baseline: all " in summary.read_text()

    ran = runner("Time of a step", ONE_STEP)
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
    assert "is below" in summary.read_text()
