"""`flatbench check`: our SAM passes every line, and a fault fails the line that it belongs to."""

import gc

import pytest
import torch
from torch import nn

from flatbench import cli
from flatbench.errors import UsageError
from flatbench.optim import SAM
from flatbench.study.conformance import LINES, assert_conforms, check

BATCHNORM = "BatchNorm's statistics"


class Plain(torch.optim.Optimizer):
    """A SAM as the field writes it, and right; subclasses have one fault each."""

    def __init__(self, params, base_optimizer, rho=0.05, adaptive=False, **options):
        super().__init__(params, {"rho": rho, "adaptive": adaptive, **options})
        self.base_optimizer = base_optimizer(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups
        self.state = self.base_optimizer.state
        self.saved = {}
        self.skips = False

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)  # which replaces both
        self.base_optimizer.param_groups = self.param_groups
        self.base_optimizer.state = self.state

    def every(self):
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]

    def scale(self, p, group):
        return p.abs() if group["adaptive"] else torch.ones_like(p)

    def norm(self, p):
        """The norm that divides a parameter's gradient."""
        return torch.stack(
            [
                (self.scale(q, group) * q.grad).norm()
                for group in self.param_groups
                for q in group["params"]
                if q.grad is not None
            ]
        ).norm()

    def moved(self, p, group, norm):
        e = self.scale(p, group) ** 2 * p.grad
        return torch.zeros_like(p) if norm == 0 else group["rho"] / norm * e

    @torch.no_grad()
    def first_step(self, zero_grad=False):
        self.saved = {}
        moves = [
            (p, self.moved(p, group, self.norm(p)))
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        self.skips = not all(bool(e.isfinite().all()) for _, e in moves)
        for p, e in moves:
            self.saved[p] = p.clone()
            if not self.skips:
                p.add_(e)
        if zero_grad:
            self.zero_grad()

    def restore(self):
        for p, w in self.saved.items():
            p.copy_(w)

    @torch.no_grad()
    def second_step(self, zero_grad=False):
        self.restore()
        if not self.skips:
            self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    def step(self, closure):
        self.first_step(zero_grad=True)
        with torch.enable_grad():
            loss = closure()
        self.second_step()
        return loss


class ThreeGradients(Plain):
    def step(self, closure):
        self.first_step(zero_grad=True)
        with torch.enable_grad():
            closure()
            closure()
        self.second_step()


class Undivided(Plain):
    def norm(self, p):
        return torch.ones(())


class NormOfEachGroup(Plain):
    def norm(self, p):
        (group,) = (g for g in self.param_groups if any(q is p for q in g["params"]))
        return torch.stack([q.grad.norm() for q in group["params"] if q.grad is not None]).norm()


class Subtracts(Plain):
    def moved(self, p, group, norm):
        self.steps = {**getattr(self, "steps", {}), p: super().moved(p, group, norm)}
        return self.steps[p]

    def restore(self):
        for p in self.saved:
            if not self.skips:
                p.sub_(self.steps[p])


class FirstGradient(Plain):
    """The base steps with the gradient of the first pass."""

    def first_step(self, zero_grad=False):
        self.firsts = [(p, p.grad.clone()) for p in self.every()]
        super().first_step(zero_grad)

    def second_step(self, zero_grad=False):
        for p, g in self.firsts:
            p.grad = g
        super().second_step(zero_grad)


class Forgetful(Plain):
    """Its state_dict has nothing of the base's."""

    def state_dict(self):
        return {"rho": [group["rho"] for group in self.param_groups]}

    def load_state_dict(self, state_dict):
        for group, rho in zip(self.param_groups, state_dict["rho"], strict=True):
            group["rho"] = rho


class NeverRestored(Plain):
    """A parameter without a gradient in the second pass stays where it was put."""

    def restore(self):
        for p, w in self.saved.items():
            if p.grad is not None:
                p.copy_(w)


class NoZero(Plain):
    def moved(self, p, group, norm):
        return torch.zeros_like(p) if norm == 0 and p.ndim > 1 else group["rho"] * p.grad / norm

    def first_step(self, zero_grad=False):
        super().first_step(zero_grad)
        if self.skips and all(bool(w.isfinite().all()) for w in self.saved.values()):
            with torch.no_grad():
                for p in self.saved:
                    if not bool(self.finite(p)):
                        p.add_(1e-3)

    def finite(self, p):
        return p.ndim > 1


class WritesNaN(Plain):
    def second_step(self, zero_grad=False):
        self.skips = False
        super().second_step(zero_grad)

    def restore(self):
        bad = self.skips_now
        super().restore()
        if bad:
            for p in self.saved:
                p.fill_(torch.nan)

    def first_step(self, zero_grad=False):
        super().first_step(zero_grad)
        self.skips_now = self.skips


class OtherStorage(Plain):
    def restore(self):
        for p, w in self.saved.items():
            p.data = w


class OtherHalves(Plain):
    def second_step(self, zero_grad=False):
        super().second_step(zero_grad)
        if zero_grad:
            with torch.no_grad():
                for p in self.saved:
                    p.add_(0.1)


FAULTS = {
    "two gradients a step": ThreeGradients,
    "perturbation": Undivided,
    "one norm over all groups": NormOfEachGroup,
    "exact restore": Subtracts,
    "the base steps at w": FirstGradient,
    "state_dict": Forgetful,
    "parameters without gradients": NeverRestored,
    "gradients of zero": NoZero,
    "gradients that are not finite": WritesNaN,
    "weights stay in place": OtherStorage,
    "first_step and second_step": OtherHalves,
}
# What else a fault must break: what is not divided by a norm is not divided over groups either.
WITH_IT = {Undivided: {"one norm over all groups"}}


def failing(optimizer, **options):
    return {line.name for line in check(optimizer, options) if line.verdict == "fails"}


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("adaptive", [False, True])
def test_ours_passes_every_line(base, adaptive):
    lines = check(SAM, {"base_optimizer": base, "lr": 0.1, "adaptive": adaptive, "rho": 0.2})
    found = {line.name: line.verdict for line in lines}
    assert found == dict.fromkeys(LINES, "holds") | {BATCHNORM: "left to you"}
    form = next(line.detail for line in lines if line.name == "perturbation")
    assert form.startswith("ASAM" if adaptive else "SAM")


def test_a_right_one_passes():
    assert failing(Plain) == set()
    assert_conforms(Plain, {"base_optimizer": torch.optim.Adam, "lr": 0.01})


@pytest.mark.parametrize("line", FAULTS)
def test_a_fault_fails_its_line_and_no_other(line):
    fault = FAULTS[line]
    assert failing(fault) == {line} | WITH_IT.get(fault, set())
    with pytest.raises(AssertionError, match=f"{line}: "):
        assert_conforms(fault)


class Frozen(Plain):
    """Freezes every BatchNorm in the second pass."""

    def norms(self):
        return [o for o in gc.get_objects() if type(o) is nn.BatchNorm1d]

    def step(self, closure):
        self.first_step(zero_grad=True)
        for norm in self.norms():
            norm.track_running_stats = False
        with torch.enable_grad():
            closure()
        for norm in self.norms():
            norm.track_running_stats = self.afterwards
        self.second_step()

    afterwards = True


class FrozenForGood(Frozen):
    afterwards = False


@pytest.mark.parametrize(
    ("optimizer", "verdict"), [(Frozen, "holds"), (FrozenForGood, "fails"), (Plain, "left to you")]
)
def test_batchnorm(optimizer, verdict):
    assert next(x.verdict for x in check(optimizer) if x.name == BATCHNORM) == verdict


def test_every_line_has_its_fault():
    assert {*FAULTS, BATCHNORM} == {*LINES}  # BatchNorm's is above


def test_nothing_is_drawn_from_torchs_own_random_state():
    before = torch.get_rng_state()
    check(SAM)
    assert torch.equal(torch.get_rng_state(), before)


def test_one_that_makes_the_first_pass_itself(tmp_path):
    class Evaluating(Plain):
        def step(self, closure):
            with torch.enable_grad():
                closure()
            super().step(closure)

    found = {line.name: line.verdict for line in check(Evaluating)}
    assert found["perturbation"] == found["exact restore"] == "holds"


def test_one_without_half_steps_has_none_to_compare():
    class Whole(torch.optim.Optimizer):
        def __init__(self, params, **options):
            super().__init__(params, {"lr": 0.1, "rho": 0.05, **options})
            self.inner = Plain(self.param_groups, torch.optim.SGD, lr=0.1)

        def step(self, closure):
            return self.inner.step(closure)

    found = {line.name: line.verdict for line in check(Whole)}
    assert found["first_step and second_step"] == "not applicable"


@pytest.mark.parametrize(
    ("reference", "options", "says"),
    [
        ("torch.optim:SGD", {"lr": 0.1}, "torch.optim:SGD steps with one gradient: it is no SAM"),
        ("nowhere:SAM", {}, "check: 'nowhere:SAM': cannot be imported"),
        ("sam", {}, "check: the optimizer must be package.module:Object or ./file.py:Object"),
        ("flatbench.optim:SAM", {"rho": -1.0}, "ValueError"),
        ("pytorch_optimizer:SAM", {"base_optimizer": 3}, "TypeError"),
    ],
)
def test_what_is_no_sam_is_one_line(reference, options, says):
    with pytest.raises(UsageError) as caught:
        check(reference, options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command(capsys):
    assert cli.main(["check", "flatbench.optim:SAM", "--options", "rho=0.1"]) == 0
    said = capsys.readouterr()
    assert "SAM (Foret et al. 2021): norm 0.1 at rho = 0.1" in said.out
    assert said.err == ""
    assert cli.main(["check", "pytorch_optimizer:SAM"]) == 1
    said = capsys.readouterr()
    assert said.err == "flatbench: pytorch_optimizer:SAM: 1 of 12 properties fail\n"
    assert cli.main(["check", "torch.optim:SGD", "--options", "lr=0.1"]) == 2
    assert cli.main(["check", "flatbench.optim:SAM", "--options", "rhoo=0.1"]) == 2
