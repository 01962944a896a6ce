"""The wheel, in an environment of its own outside the checkout, with a user's project beside it.

``tox -e wheel`` runs it. The project is docs/project: it trains, derives thresholds, passes its
gate, and fails it once its optimizer's code is broken.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(command, folder, **environment):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "FLATBENCH", "TOX"))}
    done = subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    return done.returncode, done.stdout + done.stderr


def succeeds(command, folder):
    code, said = run(command, folder)
    assert code == 0, said
    return said


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The folder of a fresh environment's programs, with the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("installed")
    # A copy, since a wheel takes whatever an older build has left in the folder "build".
    source = folder / "source"
    others = shutil.ignore_patterns(".*", "build", "results", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=others)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder]
    succeeds([*pip, source], folder)
    (wheel,) = folder.glob("flatbench-*.whl")
    succeeds([sys.executable, "-m", "venv", folder / "env"], folder)
    python = folder / "env" / "bin" / "python"
    succeeds([python, "-m", "pip", "install", "--quiet", wheel], folder)
    return folder / "env" / "bin"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine") / "project"
    shutil.copytree(ROOT / "docs" / "project", folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def thresholds(programs, project):
    flatbench = programs / "flatbench"
    seeds = ["--seeds", "100-109", "--results", "baseline"]
    succeeds([flatbench, "run", "--protocol", "mine.toml", *seeds], project)
    output = project / "mine.thresholds.toml"
    succeeds([flatbench, "baseline", "baseline/mine", "--output", output.name], project)
    return output


def grid(programs, project):
    options = ["-rs", "--flatbench-protocol", "mine.toml", "-p", "no:cacheprovider"]
    return run([programs / "python", "-m", "pytest", "bench_mine.py", *options], project)


def test_it_is_the_wheel_that_is_imported(programs, project):
    code = "import flatbench, torch; print(flatbench.__file__)"
    said = succeeds([programs / "python", "-c", code], project)
    assert "site-packages" in said
    assert str(ROOT) not in said


def test_the_thresholds_name_version_and_sources(thresholds):
    assert 'commit = "flatbench 0.1.0, sources ' in thresholds.read_text()


def test_the_project_passes_its_gate(programs, project, thresholds):
    code, said = grid(programs, project)
    assert code == 0, said
    # three rows by three seeds, and their means; a pair of which nothing is asserted is skipped
    assert any(f"{number} passed" in said for number in (12, 13, 14))
    assert "gate: pass" in said or "gate: can't tell" in said
    assert "no thresholds" not in said
    assert (project / "results" / "mine" / "report.md").exists()


def test_an_optimizer_that_is_broken_fails_the_gate_by_an_accuracy(programs, project, thresholds):
    file = project / "lion.py"
    whole = file.read_text()
    step = 'alpha=group["lr"])'
    assert step in whole
    try:
        file.write_text(whole.replace(step, 'alpha=group["lr"] / 1000)'))
        code, said = grid(programs, project)
    finally:
        file.write_text(whole)
    assert code == 1, said
    assert "mine/resnet18/lion/seed0: test_accuracy" in said
    assert "the lower prediction bound of one new seed" in said
    assert "mine/resnet18/adam/seed0" not in said  # Adam's code is whole
    assert "flatbench 0.1.0, sources" in said


def test_records_of_other_code_are_not_taken_for_this_code(programs, project):
    """An edit of the optimizer's file trains its rows again, and only them."""
    flatbench = programs / "flatbench"
    command = [flatbench, "run", "--protocol", "mine.toml", "--seeds", "0", "--results", "again"]
    succeeds(command, project)
    with (project / "lion.py").open("a") as file:
        file.write("# edited\n")
    said = succeeds(command, project).splitlines()
    taken = {line.split(":")[0] for line in said if line.endswith("not trained again)")}
    assert taken == {"mine/resnet18/adam/seed0"}


def test_one_file_and_one_command_give_an_answer(programs, project, tmp_path):
    """The published records that it is compared with come with the wheel."""
    shutil.copy(project / "lion.py", tmp_path)
    options = ["--options", "lr=1e-2", "--seeds", "0,1", "--against", "adam,adam+sam"]
    command = [programs / "flatbench", "try", "./lion.py:Lion", "--no-tuning", *options]
    said = succeeds(command, tmp_path)
    assert "the other rows: 4 published runs of the same protocol" in said
    assert "resnet18, equal epochs and gradients: lion − adam: " in said
    assert "resnet18, equal gradients: lion-2x − adam+sam: " in said
    assert (tmp_path / "results" / "lion" / "answer.json").exists()
