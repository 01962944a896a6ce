"""Finding the device, and making it repeat itself."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from flatbench import device
from flatbench.errors import UsageError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)


def no_gpu(name: str) -> str:
    return f"--device = {name!r}: torch {torch.__version__} finds no CUDA device"


def not_allowed(name: str) -> str:
    return f"--device = {name!r}: allowed is cpu, cuda, cuda:N or auto"


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
def test_names_of_devices(name: str, found: str) -> None:
    assert device.find(name) == torch.device(found)


@pytest.mark.parametrize(
    ("gpus", "name", "expected"),
    [
        (0, "cuda", no_gpu("cuda")),
        (0, "cuda:1", no_gpu("cuda:1")),
        (2, "cuda:2", "--device = 'cuda:2': there are 2 CUDA devices"),
        *((2, name, not_allowed(name)) for name in ("", "tpu", "cuda:", "cuda:x", "cuda:-1")),
        *((2, name, not_allowed(name)) for name in ("CPU", "cpu:0", "cuda:¹", "cuda:1\n", "mps")),
    ],
    indirect=["gpus"],
)
@pytest.mark.usefixtures("gpus")
def test_a_device_that_is_not_there_is_one_line(name: str, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        device.find(name)
    assert str(caught.value) == expected


@pytest.fixture
def settings_put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # setting what is there already makes monkeypatch put it back
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = filled


@pytest.mark.usefixtures("settings_put_back")
def test_deterministic_on_a_cpu() -> None:
    torch.set_num_threads(2)
    device.make_deterministic(torch.device("cpu"))
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()
    # no exception: nothing here was nondeterministic without a warning
    assert not torch.is_deterministic_algorithms_warn_only_enabled()


@pytest.mark.usefixtures("settings_put_back")
def test_deterministic_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.backends.cudnn.benchmark = True
    device.make_deterministic(torch.device("cuda"))
    # torch.use_deterministic_algorithms's documentation asks for one of these two
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")
    assert not torch.backends.cudnn.benchmark
    assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("capability", "fast"), [((7, 5), False), ((8, 0), True), ((8, 9), True), ((9, 0), True)]
)
def test_bf16_is_fast_from_ampere_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], fast: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda where: capability)
    assert device.has_fast_bf16(torch.device("cuda")) is fast


def test_bf16_is_fast_where_the_processor_says_so() -> None:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        pytest.skip("no /proc/cpuinfo to compare with")
    flags = set(re.findall(r"\w+", info.read_text()))
    expected = bool({"avx512_bf16", "amx_tile"} & flags)
    assert device.has_fast_bf16(torch.device("cpu")) is expected


def test_synchronise_waits_for_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    device.synchronise(torch.device("cpu"))
    device.synchronise(torch.device("cuda:1"))
    assert waited == [torch.device("cuda:1")]


@pytest.mark.skipif(device._glibc() is None, reason="no glibc")
def test_freed_memory_is_kept_and_given_back() -> None:
    """By the resident pages around a tensor of 31 MiB that comes and goes."""
    code = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from flatbench import device\n"
        "def resident():\n"
        "    return int(Path('/proc/self/statm').read_text().split()[1])\n"
        "if sys.argv[1] == 'keep':\n"
        "    device.keep_freed_memory()\n"
        "tensor = torch.ones(31 * 2**18)\n"
        "with_it = resident()\n"
        "del tensor\n"
        "without_it = resident()\n"
        "device.return_freed_memory()\n"
        "print(with_it - without_it, without_it - resident())\n"
    )

    def pages(how: str) -> tuple[int, int]:
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
