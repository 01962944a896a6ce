"""What a record says of its origin, and what it keeps to itself."""

import getpass
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sklearn
import torch

import flatbench
from flatbench.records import provenance

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_remembered():
    remembered = (provenance.code_version, provenance.source_hash, provenance.processor)
    for function in remembered:
        function.cache_clear()
    yield
    for function in remembered:
        function.cache_clear()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small package in a folder of its own, that provenance takes for flatbench."""
    folder = tmp_path / "checkout" / "package"
    (folder / "training").mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "training" / "one.py").write_text("x = 1\n")
    monkeypatch.setattr(provenance, "PACKAGE", folder)
    # a repository around the temporary folder, or a user's settings, are not the test's
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    return folder


def git(folder, *arguments):
    who = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    done = subprocess.run(
        ["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def version_now():
    provenance.code_version.cache_clear()
    return provenance.code_version()


def test_outside_of_git_no_commit_is_claimed(package):
    assert version_now() == {"commit": None, "dirty": None}


def test_in_a_foreign_checkout_no_commit_is_claimed(package):
    git(package.parent, "init", "--quiet")
    git(package.parent, "commit", "--quiet", "--allow-empty", "-m", "theirs")
    assert version_now() == {"commit": None, "dirty": None}


def test_without_git_no_commit_is_claimed(package, monkeypatch, tmp_path):
    git(package.parent, "init", "--quiet")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert version_now() == {"commit": None, "dirty": None}


def test_the_commit_and_whether_the_sources_differ_from_it(package):
    checkout = package.parent
    git(checkout, "init", "--quiet")
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "-m", "first")
    commit = git(checkout, "rev-parse", "HEAD")
    assert version_now() == {"commit": commit, "dirty": False}
    (checkout / "results.json").write_text("{}")  # beside the package: not its sources
    assert version_now() == {"commit": commit, "dirty": False}
    (package / "training" / "one.py").write_text("x = 2\n")
    assert version_now() == {"commit": commit, "dirty": True}


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the whole package, that provenance takes for flatbench."""
    folder = tmp_path / "flatbench"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(provenance.PACKAGE, folder, ignore=ignored)
    monkeypatch.setattr(provenance, "PACKAGE", folder)
    return folder


def hash_now():
    provenance.source_hash.cache_clear()
    return provenance.source_hash()


@pytest.mark.parametrize(
    "edited",
    [
        "training/step.py",
        "optim/kernels.py",
        "protocols/cases.py",
        "models/another.py",
        "components.py",
    ],
)
def test_an_edit_of_what_trains_changes_the_source_hash(copy, edited):
    before = hash_now()
    assert len(before) == 12
    assert hash_now() == before
    with (copy / edited).open("a") as file:
        file.write("x = 1\n")
    assert hash_now() != before


@pytest.mark.parametrize(
    "edited", ["report/formats/latex.py", "gate/check.py", "cli.py", "training/notes.txt"]
)
def test_an_edit_of_anything_else_leaves_the_source_hash(copy, edited):
    before = hash_now()
    with (copy / edited).open("a") as file:
        file.write("x = 1\n")
    assert hash_now() == before


def test_all_that_a_training_imports_is_hashed_or_bears_on_no_number():
    """A module that trains and is not hashed would let a record stand for other code."""
    code = (
        "import sys, flatbench.training.trainer\n"
        "print(*(name for name in sys.modules if name.startswith('flatbench.')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.removeprefix("flatbench.") for name in done.stdout.split()}
    hashed = {name for name in loaded if name.partition(".")[0] in provenance.HASHED}
    assert {"training.step", "optim.sam", "data.loading", "models"} <= hashed
    # how numbers are kept, said and written; not what they are
    others = {"errors", "files", "records", "records.provenance", "records.quantities"}
    others |= {"records.record", "text"}
    assert loaded - hashed == others


KEY = ("0123456789ab", 0, ("a machine",), "data")


def key_here(device=CPU):
    cell, seed, _, data = KEY
    return provenance.key(cell, seed, provenance.machine(device), data)


@pytest.mark.parametrize(
    "other",
    [
        ("0123456789ac", 0, KEY[2], "data"),
        ("0123456789ab", 1, KEY[2], "data"),
        ("0123456789ab", 0, KEY[2], "other data"),
        ("0123456789ab", 0, ("another",), "data"),
        (*KEY, ["./lion.py:Lion lion.py 0123456789ab"]),
    ],
)
def test_the_key_is_of_the_case_its_data_and_its_code(other):
    assert provenance.key(*KEY) == provenance.key(*KEY) != provenance.key(*other)


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(torch, "__version__", "0.0"),
        lambda patch: patch.setattr(sklearn, "__version__", "0.0"),
        lambda patch: patch.setattr(provenance, "source_hash", lambda: "other"),
        lambda patch: patch.setattr(provenance, "processor", lambda: "another processor"),
        lambda patch: patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another"),
        lambda patch: patch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2"),
    ],
    ids=["torch", "sklearn", "sources", "processor", "instructions", "onednn"],
)
def test_the_key_is_of_what_computes(monkeypatch, change):
    before = key_here()
    change(monkeypatch)
    assert key_here() != before


def test_the_key_is_of_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda where: "a GPU")
    assert key_here(torch.device("cuda")) != key_here()


def test_what_a_run_on_a_cpu_says():
    said = provenance.describe(CPU, "bf16")
    expected = {
        "flatbench_version": flatbench.__version__,
        "source_hash": provenance.source_hash(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scikit_learn": sklearn.__version__,
        "system": platform.system(),
        "processor": provenance.processor(),
        "device": provenance.processor(),
        "device_kind": "cpu",
        "precision": "bf16",
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "driver": None,
        "cuda": None,
        "cudnn": None,
        "convolution_precision": None,
        "matmul_precision": None,
    }
    assert {key: said[key] for key in expected} == expected
    assert set(said) == {*expected, "commit", "dirty", "cpu_capability"}
    assert json.loads(json.dumps(said, allow_nan=False)) == said


def test_no_host_no_user_no_path(monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "a-host-s-name")
    said = json.dumps(provenance.describe(CPU, "fp32"))
    assert "a-host-s-name" not in said
    assert str(Path(flatbench.__file__).parent) not in said
    assert str(Path.home()) not in said
    assert f'"{getpass.getuser()}"' not in said


def test_the_name_of_the_processor_is_that_of_the_system():
    info = Path("/proc/cpuinfo")
    if not info.exists() or "model name" not in info.read_text():
        assert provenance.processor() == (platform.processor() or platform.machine())
        return
    lines = info.read_text().splitlines()
    assert any(line.endswith(f": {provenance.processor()}") for line in lines)
    assert provenance.processor()


def test_what_a_run_on_a_gpu_says(monkeypatch, tmp_path):
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho 555.42.06\necho 555.42.06\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda where: f"GPU {where}")
    provenance.driver.cache_clear()
    said = provenance.describe(torch.device("cuda:1"), "fp32")
    provenance.driver.cache_clear()
    assert (said["device_kind"], said["device"]) == ("cuda", "GPU cuda:1")
    assert said["driver"] == "555.42.06"
    assert said["cuda"] == torch.version.cuda
    backends = torch.backends
    assert said["convolution_precision"] == backends.cudnn.conv.fp32_precision
    assert said["matmul_precision"] == backends.cuda.matmul.fp32_precision
    backends.cudnn.conv.fp32_precision = "tf32"
    backends.cuda.matmul.fp32_precision = "ieee"
    said = provenance.describe(torch.device("cuda:1"), "fp32")
    assert (said["convolution_precision"], said["matmul_precision"]) == ("tf32", "ieee")
