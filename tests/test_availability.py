"""Why the fused step can't run, in one line, and what SAM makes of it."""

import importlib.util
import warnings

import pytest
import torch
from torch import nn

from flatbench.optim import SAM, availability, choice
from flatbench.optim.availability import c_compiler, why_not_fused

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def nothing_remembered():
    for function in (availability._why_no_launch, availability.warn_of_eager):
        function.cache_clear()
    yield
    for function in (availability._why_no_launch, availability.warn_of_eager):
        function.cache_clear()


def program(folder, name):
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_the_compiler_for_triton_is_cc_or_else_the_first_on_the_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert c_compiler() is None
    clang = program(tmp_path, "clang")
    assert c_compiler() == str(clang)
    gcc = program(tmp_path, "gcc")
    assert c_compiler() == str(gcc)
    monkeypatch.setenv("CC", "clang")
    assert c_compiler() == str(clang)
    monkeypatch.setenv("CC", "icc")
    assert c_compiler() is None


def test_without_triton(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert why_not_fused(CUDA) == "it needs the package triton"


def test_on_a_cpu():
    pytest.importorskip("triton")
    reason = "parameters must be on a CUDA device, got cpu (or set TRITON_INTERPRET=1)"
    assert why_not_fused(torch.device("cpu")) == reason
    with pytest.raises(ValueError, match="implementation='fused' is not possible") as caught:
        SAM([nn.Parameter(torch.ones(3))], torch.optim.SGD, implementation="fused")
    assert str(caught.value) == f"implementation='fused' is not possible: {reason}"


def test_without_a_compiler(tmp_path, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert why_not_fused(CUDA) == "no C compiler is found (gcc, clang, or set CC)"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a kernel launches here")
def test_where_the_trial_fails_its_error_is_one_line():
    """The real path of a machine with triton and a compiler whose driver is missing."""
    pytest.importorskip("triton")
    reason = why_not_fused(CUDA)
    assert reason is not None
    assert reason.startswith("a trial kernel does not launch: ")
    assert "\n" not in reason


@pytest.mark.gpu
def test_on_a_gpu_the_trial_launches():
    """Only a driver can take a launch for good; the stub's is in launched_kernels.py."""
    assert why_not_fused(CUDA) is None


class Elsewhere(SAM):
    """SAM as it chooses on a CUDA device, of which a CPU tensor plays the part."""

    def _fused_step(self):
        class Norm:
            device = CUDA

        norm, self.gradient_norm = self.gradient_norm, Norm()
        try:
            return super()._fused_step()
        finally:
            self.gradient_norm = norm


def test_auto_says_once_why_it_is_eager(monkeypatch):
    asked = []

    def why_not(device):
        asked.append(device)
        return "no C compiler is found"

    monkeypatch.setattr(choice, "why_not_fused", why_not)
    w = nn.Parameter(torch.ones(3))
    optimizers = [Elsewhere([w], torch.optim.SGD, lr=1.0) for _ in range(3)]
    with pytest.warns(RuntimeWarning) as caught:
        assert [optimizer.implementation for optimizer in optimizers] == ["eager"] * 3
    assert asked == [CUDA] * 3
    (warning,) = caught
    assert str(warning.message) == "SAM takes its eager step on cuda:0: no C compiler is found"


def test_eager_by_choice_asks_nothing(monkeypatch):
    monkeypatch.setattr(choice, "why_not_fused", lambda device: pytest.fail("asked"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sam_ = Elsewhere([nn.Parameter(torch.ones(3))], torch.optim.SGD, implementation="eager")
        assert sam_.implementation == "eager"
