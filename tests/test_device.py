"""Finding the device, and making it repeat itself."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flatbench.errors import UsageError
from flatbench.training import devices, meter
from tests.settings import put_back, settings


@pytest.fixture
def gpus(monkeypatch, request):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)


def no_gpu(name):
    return f"--device = {name!r}: torch {torch.__version__} finds no CUDA device"


def wrong_name(name):
    return f"--device must be cpu, cuda, cuda:N or auto, got {name!r}"


@pytest.mark.parametrize(
    ("gpus", "name", "found"),
    [
        (0, "cpu", "cpu"),
        (0, "auto", "cpu"),
        (2, "cpu", "cpu"),
        (2, "auto", "cuda"),
        (2, "cuda", "cuda"),
        (2, "cuda:0", "cuda:0"),
        (2, "cuda:1", "cuda:1"),
    ],
    indirect=["gpus"],
)
@pytest.mark.usefixtures("gpus")
def test_names_of_devices(name, found):
    assert devices.find(name) == torch.device(found)


@pytest.mark.parametrize(
    ("gpus", "name", "expected"),
    [
        (0, "cuda", no_gpu("cuda")),
        (0, "cuda:1", no_gpu("cuda:1")),
        (2, "cuda:2", "--device = 'cuda:2': there are 2 CUDA devices"),
        *((2, name, wrong_name(name)) for name in ("", "tpu", "cuda:", "cuda:x", "cuda:-1")),
        *((2, name, wrong_name(name)) for name in ("CPU", "cpu:0", "cuda:¹", "cuda:1\n", "mps")),
    ],
    indirect=["gpus"],
)
@pytest.mark.usefixtures("gpus")
def test_a_device_that_is_not_there_is_one_line(name, expected):
    with pytest.raises(UsageError) as caught:
        devices.find(name)
    assert str(caught.value) == expected


def test_settings_of_arithmetic_are_put_back():
    """So that a test that makes its process deterministic does not do so to the next one."""
    before = settings()
    threads = torch.get_num_threads() + 1
    with put_back():
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = True
        devices.make_deterministic(torch.device("cuda"))
        devices.use_ieee_fp32(torch.device("cuda"))
        assert settings() != before
    assert settings() == before


def test_cublas_is_told_before_any_test_calls_it():
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")


@pytest.mark.parametrize(
    ("name", "bound", "calls"),
    [
        ("cpu", "cpu", []),
        ("cuda", "cuda:0", ["cuda:0"]),
        ("cuda:0", "cuda:0", ["cuda:0"]),
        ("cuda:1", "cuda:1", ["cuda:1"]),
    ],
)
def test_a_gpu_becomes_the_current_one(monkeypatch, name, bound, calls):
    seen = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda where: seen.append(str(where)))
    assert devices.bind(torch.device(name)) == torch.device(bound)
    assert seen == calls


def precisions():
    backends = torch.backends
    return backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision


def test_fp32_is_ieee_on_a_gpu():
    before = precisions()
    devices.use_ieee_fp32(torch.device("cpu"))
    assert precisions() == before
    devices.use_ieee_fp32(torch.device("cuda:1"))
    assert precisions() == ("ieee", "ieee")


@pytest.mark.gpu
def test_a_convolution_in_ieee_fp32_is_exact_to_24_bits():
    """Only a GPU has TF32, whose products of 10-bit mantissas are a thousand times as far off."""
    where = devices.bind(torch.device("cuda"))
    devices.use_ieee_fp32(where)
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(s, generator=generator) for s in ((8, 64, 16, 16), (64, 64, 3, 3)))
    exact = torch.nn.functional.conv2d(x.double(), w.double())
    found = torch.nn.functional.conv2d(x.to(where), w.to(where)).cpu().double()
    assert (found - exact).norm() / exact.norm() < 1e-5  # TF32: about 3e-4


def test_deterministic_on_a_cpu():
    torch.set_num_threads(2)
    devices.make_deterministic(torch.device("cpu"))
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()
    # no exception: nothing here was nondeterministic without a warning
    assert not torch.is_deterministic_algorithms_warn_only_enabled()


def test_deterministic_on_a_gpu(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.backends.cudnn.benchmark = True
    devices.make_deterministic(torch.device("cuda"))
    # torch.use_deterministic_algorithms's documentation asks for one of these two
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")
    assert not torch.backends.cudnn.benchmark
    assert torch.are_deterministic_algorithms_enabled()


def test_a_worker_is_deterministic_in_ieee_fp32_and_keeps_its_memory(
    monkeypatch,
):
    done = []
    for name in ("keep_freed_memory", "make_deterministic", "bind", "use_ieee_fp32"):
        monkeypatch.setattr(
            devices, name, lambda *where, name=name: done.append(name) or torch.device("cuda", 1)
        )
    assert devices.set_up_worker(torch.device("cuda:1")) == torch.device("cuda", 1)
    assert sorted(done) == ["bind", "keep_freed_memory", "make_deterministic", "use_ieee_fp32"]
    # cuBLAS may read its workspace's setting as soon as CUDA is initialised
    assert done.index("make_deterministic") < done.index("bind")


@pytest.mark.parametrize(
    ("capability", "fast"), [((7, 5), False), ((8, 0), True), ((8, 9), True), ((9, 0), True)]
)
def test_bf16_is_fast_from_ampere_on(monkeypatch, capability, fast):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda where: capability)
    assert devices.has_fast_bf16(torch.device("cuda")) is fast


def test_bf16_is_fast_where_the_processor_says_so():
    info = Path("/proc/cpuinfo")
    if not info.exists():
        pytest.skip("no /proc/cpuinfo to compare with")
    flags = set(re.findall(r"\w+", info.read_text()))
    expected = bool({"avx512_bf16", "amx_tile"} & flags)
    assert devices.has_fast_bf16(torch.device("cpu")) is expected


def test_synchronise_waits_for_a_gpu_alone(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    devices.synchronise(torch.device("cpu"))
    devices.synchronise(torch.device("cuda:1"))
    assert waited == [torch.device("cuda:1")]


@pytest.mark.skipif(devices._glibc() is None, reason="no glibc")
def test_freed_memory_is_kept_and_given_back():
    """By the resident pages around a tensor of 31 MiB that comes and goes."""
    code = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from flatbench.training import devices\n"
        "def resident():\n"
        "    return int(Path('/proc/self/statm').read_text().split()[1])\n"
        "if sys.argv[1] == 'keep':\n"
        "    devices.keep_freed_memory()\n"
        "tensor = torch.ones(31 * 2**18)\n"
        "with_it = resident()\n"
        "del tensor\n"
        "without_it = resident()\n"
        "devices.return_freed_memory()\n"
        "print(with_it - without_it, without_it - resident())\n"
    )

    def pages(how):
        done = subprocess.run(
            [sys.executable, "-c", code, how], capture_output=True, text=True, check=True
        )
        freed, returned = map(int, done.stdout.split())
        return freed, returned

    half = 31 * 2**20 // os.sysconf("SC_PAGE_SIZE") // 2
    freed, returned = pages("keep")
    assert freed < half < returned
    freed, returned = pages("as it is")
    assert returned < half < freed


def test_where_proc_is_read_only_a_run_has_no_peak_memory(monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(meter, "_CLEAR_REFS", Path("/nowhere/clear_refs"))
    meter.reset_peak_memory(torch.device("cpu"))
    assert meter.peak_memory(torch.device("cpu")) is None
