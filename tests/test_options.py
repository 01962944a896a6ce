"""Where results go when nobody says."""

import subprocess
from pathlib import Path

import pytest

from flatbench import cli
from flatbench.options import PUBLISHED, results_folder
from tests import tiny

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("published", [False, True])
def test_results_go_where_they_overwrite_nothing_published(tmp_path, monkeypatch, published):
    monkeypatch.chdir(tmp_path)
    if published:
        (tmp_path / "results").mkdir()
        (tmp_path / "results" / PUBLISHED).touch()
    whole = tiny.table(training={"epochs": 1, "batch_size": 64})
    tiny.protocol(tmp_path, whole, "mine")
    options = ["--protocol", "mine.toml", "--optimizers", "sgd", "--workers", "1"]
    assert cli.main(["run", *options]) == 0
    place = tmp_path / "results" / ("local" if published else "")
    assert (place / "mine" / "records").is_dir()
    assert published != (tmp_path / "results" / "mine").exists()
    assert results_folder("") == place.relative_to(tmp_path)  # the folder is there by now
    assert results_folder("results") == Path("results")  # what is asked for is done


@pytest.mark.checkout
def test_nothing_that_a_run_leaves_here_is_git_s_business():
    """The folder of published results says so, and git ignores the one beside them."""
    assert (ROOT / "results" / PUBLISHED).is_file()
    ignored = subprocess.run(
        ["git", "check-ignore", "-q", "results/local/digits/report.md"], cwd=ROOT, check=False
    )
    assert ignored.returncode == 0


def test_pytest_has_the_same_default(pytestconfig):
    """The grid in a checkout of flatbench, too, goes where the commands' results go."""
    assert pytestconfig.getoption("flatbench_results") == results_folder("")
