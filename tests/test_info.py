"""`flatbench info`: one screen about this machine, and about machines that it is not."""

import getpass
import platform
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import flatbench
from flatbench import cli, execution
from flatbench.records import provenance
from flatbench.study import info

ROOT = Path(__file__).parents[1]
NAMES = [
    *("flatbench", "python", "torch", "torchvision", "triton", "numpy", "processor", "cores"),
    *("driver", "C compiler", "libcuda", "SAM's auto", "fp32 on CUDA", "bf16"),
    *("digits", "fashion-mnist", "cifar10", "cifar100", "results"),
]


def parsed(screen):
    """The screen's lines as a table; each has a name, at least two spaces and a value."""
    pairs = [re.split(r" {2,}", line, maxsplit=1) for line in screen.splitlines()]
    assert all(len(pair) == 2 for pair in pairs), screen
    return dict(pairs)


def program(folder, name, answer):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{answer}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def gpus(monkeypatch):
    """A machine with two cards, on which the fused step runs."""
    cards = [
        SimpleNamespace(name="NVIDIA H100 80GB HBM3", total_memory=79 * 2**30, major=9, minor=0),
        SimpleNamespace(name="Tesla T4", total_memory=15 * 2**30, major=7, minor=5),
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: cards[i])
    monkeypatch.setattr(
        torch.cuda,
        "get_device_capability",
        lambda where: (cards[where.index or 0].major, cards[where.index or 0].minor),
    )
    monkeypatch.setattr(provenance, "driver", lambda: "580.82.07")
    monkeypatch.setattr(info, "why_not_fused", lambda where: None)


def test_the_whole_screen_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("FLATBENCH_DATA", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "flatbench", "info"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    rows = parsed(done.stdout)
    assert [name for name in rows if not re.match(r"CUDA devices|cuda:\d", name)] == NAMES
    assert all(len(line) <= 160 for line in done.stdout.splitlines())
    assert rows["flatbench"].startswith(f"{flatbench.__version__}, ")
    assert rows["flatbench"].endswith(f", sources {provenance.source_hash()}")
    assert rows["python"].startswith(f"{platform.python_version()}, ")
    assert rows["torch"].startswith(f"{torch.__version__}, built for ")
    assert rows["processor"] == provenance.processor()
    assert rows["cores"].startswith(f"{execution.cores()} usable, ")
    if not torch.cuda.is_available():
        assert rows["CUDA devices"].startswith("none: torch finds no CUDA device")
        assert rows["SAM's auto"].startswith("eager on cpu: ")
    for secret in (platform.node(), getpass.getuser(), str(Path.home()), str(ROOT), str(tmp_path)):
        assert not re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", done.stdout), secret


def test_the_commit_is_said_where_there_is_one(monkeypatch):
    for code, says in (
        ({"commit": "abc", "dirty": False}, "commit abc, sources"),
        ({"commit": "abc", "dirty": True}, "commit abc and changes, sources"),
        ({"commit": None, "dirty": None}, "no commit known, sources"),
    ):
        monkeypatch.setattr(provenance, "code_version", lambda code=code: code)
        assert says in dict(info.look("cpu").rows)["flatbench"]


@pytest.mark.usefixtures("gpus")
def test_a_machine_with_gpus(capsys):
    assert cli.main(["info", "--device", "cuda"]) == 0
    out, error = capsys.readouterr()
    rows = parsed(out)
    assert error == ""
    assert rows["cuda:0"] == "NVIDIA H100 80GB HBM3, 79.0 GiB, compute capability 9.0"
    assert rows["cuda:1"] == "Tesla T4, 15.0 GiB, compute capability 7.5"
    assert "CUDA devices" not in rows
    assert rows["driver"] == "580.82.07"
    assert rows["SAM's auto"] == "fused on cuda"
    assert rows["bf16"] == "fast on cuda"
    assert dict(info.look("cuda:1").rows)["bf16"] == "slow on cuda:1"


@pytest.mark.usefixtures("gpus")
def test_a_gpu_that_the_fused_step_cannot_run_on(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(info, "why_not_fused", lambda where: asked.append(where) or "no compiler")
    assert cli.main(["info", "--device", "cuda:1"]) == 1
    out, error = capsys.readouterr()
    assert parsed(out)["SAM's auto"] == "eager on cuda:1: no compiler"
    assert error == "flatbench: the fused step cannot run on cuda:1: no compiler\n"
    assert asked == [torch.device("cuda:1")]
    assert cli.main(["info"]) == 0  # who asks what there is gets an answer
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there(name, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["info", "--device", name]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert len(error.splitlines()) == 1
    assert f"--device = {name!r}: torch {torch.__version__} finds no CUDA device" in error


def test_why_torch_finds_no_gpu_is_in_the_screen(monkeypatch):
    def is_available():
        warnings.warn("CUDA initialization: The driver is too old. Update it.", stacklevel=2)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the later calls warn too, torch's own does so once
        rows = dict(info.look().rows)
    assert rows["CUDA devices"].endswith("(CUDA initialization: The driver is too old)")


def test_the_c_compiler_is_the_one_that_triton_takes(tmp_path, monkeypatch):
    def row():
        return info._compiler()

    own = tmp_path / "bin"
    own.mkdir()
    monkeypatch.setenv("PATH", str(own))
    monkeypatch.delenv("CC", raising=False)
    assert row() == "not found: gcc or clang, or set CC"
    program(own, "clang", "clang version 19")
    assert row() == "clang version 19 (clang on the PATH)"
    program(own, "gcc", "gcc 14.2")
    assert row() == "gcc 14.2 (gcc on the PATH)"
    monkeypatch.setenv("CC", str(program(tmp_path, "cc-of-mine", "mine 1.0")))
    assert row() == "mine 1.0 (named by CC)"
    monkeypatch.setenv("CC", "nowhere-to-be-found")
    assert row() == "not found: CC names no program"


def test_libcuda_is_sought_where_triton_seeks_it(tmp_path, monkeypatch):
    for variable in ("TRITON_LIBCUDA_PATH", "LD_LIBRARY_PATH"):
        monkeypatch.delenv(variable, raising=False)
    own = tmp_path / "bin"
    monkeypatch.setenv("PATH", f"{own}:/bin:/usr/bin")
    program(own, "ldconfig", "libm.so.6 (libc6) => /lib/libm.so.6")
    assert info._libcuda().startswith("not found: ")
    (tmp_path / "libcuda.so.1").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{tmp_path}")
    assert info._libcuda() == "libcuda.so.1, by LD_LIBRARY_PATH"
    program(own, "ldconfig", "libcuda.so.1 (libc6) => /lib/libcuda.so.1")
    assert info._libcuda() == "libcuda.so.1, by ldconfig"
    monkeypatch.setenv("TRITON_LIBCUDA_PATH", str(own))
    assert info._libcuda() == "not found: libcuda.so.1 is not in TRITON_LIBCUDA_PATH"
    monkeypatch.setenv("TRITON_LIBCUDA_PATH", str(tmp_path))
    assert info._libcuda() == "libcuda.so.1, by TRITON_LIBCUDA_PATH"


@pytest.mark.parametrize(
    ("convolutions", "products", "says"),
    [
        ("ieee", "tf32", "convolutions ieee, matrix products tf32 in torch; ieee in every run"),
        ("tf32", "none", "convolutions tf32, matrix products ieee in torch; ieee in every run"),
    ],
)
def test_the_precision_in_force(convolutions, products, says):
    settings = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting, value in zip(settings, (convolutions, products), strict=True):
            setting.fp32_precision = value
        assert info._precision().startswith(says)
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


def test_a_package_that_is_missing():
    assert info._version("numpy") == __import__("numpy").__version__
    assert info._version("no-such-package-of-ours") == "not installed"


def test_where_the_data_sets_are(tmp_path, monkeypatch):
    def rows():
        return dict(info._data_sets())

    monkeypatch.setattr("flatbench.data.fashion.DEBIAN", tmp_path / "debian")
    monkeypatch.setenv("FLATBENCH_DATA", str(tmp_path))
    assert rows()["cifar100"] == (
        'not in $FLATBENCH_DATA: flatbench download cifar100 --data-dir "$FLATBENCH_DATA"'
    )
    (tmp_path / "cifar-10-batches-py").mkdir()
    images = tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte.gz"
    images.parent.mkdir(parents=True)
    images.touch()
    assert rows()["cifar10"] == "here: $FLATBENCH_DATA/cifar-10-batches-py"
    assert rows()["fashion-mnist"] == "here: $FLATBENCH_DATA/FashionMNIST/raw"
    assert rows()["cifar100"].startswith("not in ")
    images.rename(tmp_path / images.name)
    assert rows()["fashion-mnist"] == "here: $FLATBENCH_DATA"
    monkeypatch.delenv("FLATBENCH_DATA")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "cifar-100-python").mkdir(parents=True)
    assert rows()["cifar100"] == "here: data/cifar-100-python"
    assert rows()["digits"] == "here: comes with scikit-learn"


def test_data_of_the_system_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr("flatbench.data.fashion.DEBIAN", tmp_path / "debian")
    monkeypatch.setenv("FLATBENCH_DATA", str(tmp_path / "nothing"))
    (tmp_path / "debian").mkdir()
    (tmp_path / "debian" / "train-images-idx3-ubyte.gz").touch()
    assert dict(info._data_sets())["fashion-mnist"] == f"here: {tmp_path / 'debian'}"
