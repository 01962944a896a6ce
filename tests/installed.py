"""The sdist and the wheel: what they hold, and the wheel in an environment of its own.

``tox -e wheel`` runs it. Beside that environment, outside the checkout, stands a user's project,
docs/project: it trains, derives thresholds, passes its gate, and fails it once its optimizer's code
is broken. FLATBENCH_DIST names a folder of a sdist and a wheel. They are taken instead of new ones,
so that a release publishes what was tested.
"""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import flatbench
from tests.test_project import tracked

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
def distributions(tmp_path_factory):
    """The paths of the sdist, and of the wheel that was built from it."""
    folder = Path(os.environ.get("FLATBENCH_DIST") or tmp_path_factory.mktemp("dist"))
    if "FLATBENCH_DIST" not in os.environ:
        succeeds([sys.executable, "-m", "build", "--outdir", folder, ROOT], folder)
    (sdist,), (wheel,) = folder.glob("flatbench-*.tar.gz"), folder.glob("flatbench-*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def unpacked(distributions, tmp_path_factory):
    """The sdist's folder, unpacked."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(distributions[0]) as sdist:
        sdist.extractall(folder, filter="data")
    return folder / f"flatbench-{flatbench.__version__}"


@pytest.fixture(scope="module")
def metadata(distributions):
    with zipfile.ZipFile(distributions[1]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(wheel.read(name))


@pytest.fixture(scope="module")
def programs(distributions, tmp_path_factory):
    """The folder of a fresh environment's programs, with the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("installed")
    wheel = distributions[1]
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


def test_the_wheel_holds_the_package_and_no_more(distributions):
    with zipfile.ZipFile(distributions[1]) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == {str(path) for path in tracked("flatbench")}


def test_the_sdist_holds_all_but_the_results_and_the_workflows(unpacked, distributions):
    held = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    left_out = {"results", ".ci", ".github", ".pre-commit-config.yaml"}
    expected = {str(path) for path in tracked(".") if path.parts[0] not in left_out}
    assert held == {*expected, "PKG-INFO"}
    assert distributions[0].stat().st_size < 2**20  # results/ alone would be more


def test_an_index_takes_them(distributions):
    sdist, wheel = distributions
    twine = [sys.executable, "-m", "twine", "check", "--strict"]
    said = succeeds([*twine, sdist, wheel], sdist.parent)
    assert said.count("PASSED") == 2
    succeeds([sys.executable, "-m", "check_wheel_contents", wheel], sdist.parent)


def test_their_version_is_that_of_the_code(distributions, metadata):
    sdist, _ = distributions
    assert metadata["Version"] == flatbench.__version__
    assert sdist.name == f"flatbench-{flatbench.__version__}.tar.gz"


def test_the_page_of_an_index_has_no_link_to_a_file_beside_it(metadata):
    page = metadata.get_payload(decode=True).decode()
    readme = (ROOT / "README.md").read_text()
    link = r"\]\((?!https?://)|(?:src|href)=\"(?!https?://)"
    assert len(re.findall(link, readme)) > 10
    assert re.findall(link, page) == []
    assert "SAM in my script**, or eight of its family:" in page
    assert "![" not in page
    assert page.count("\n") == readme.count("\n")


def test_a_distributor_can_run_the_tests(unpacked):
    """All are found; of those that read a file outside of the package, the ones that can run do."""
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    assert re.search(r"\d{4} tests collected", succeeds([*pytest_, "--collect-only"], unpacked))
    files = ("docs", "imports", "pages", "project", "published", "readme")
    said = succeeds([*pytest_, *(f"tests/test_{name}.py" for name in files)], unpacked)
    assert re.search(r"\d\d passed, \d\d skipped", said)


def test_it_is_the_wheel_that_is_imported(programs, project):
    code = "import flatbench, torch; print(flatbench.__file__)"
    said = succeeds([programs / "python", "-c", code], project)
    assert "site-packages" in said
    assert str(ROOT) not in said


def test_the_thresholds_name_version_and_sources(thresholds):
    assert f'commit = "flatbench {flatbench.__version__}, sources ' in thresholds.read_text()


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
    assert f"flatbench {flatbench.__version__}, sources" in said


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
