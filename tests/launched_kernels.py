"""What a fused step launches; run by test_launch.py over the stub driver.

Triton's own binder, compiler and launcher run as they would on a GPU. What the driver is told of
each launch is held against the tensors themselves, and then executed, by Triton's interpreter in
another process, on the very addresses that were launched: so the weights afterwards are the proof
that what is launched is what the interpreted tests prove right.
"""

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from flatbench import models
from flatbench.optim import SAM, choice, fused, kernels
from flatbench.optim.groups import is_adaptive
from tests import family_steps, optimizers, stub
from tests.optimizers import BASES, SGD
from tests.stub.arena import Interpreter

# torch's CUDA runtime finds the stub, asks it for what it has not, and counts no device.
pytestmark = pytest.mark.filterwarnings("ignore:CUDA initialization")

# nesterov and dampening are numbers in the table of settings: no launch of their own
KINDS = ("sgd", "momentum", "adam", "adamw")
METHODS = {
    "sam": {"adaptive": False},
    "asam": {"adaptive": True},
    "asam-weights": {"adaptive": "weights", "eta": 0.01},
}
STATE = {"sgd": (), "momentum": ("momentum_buffer",)}  # the others are Adam's
NAMES = ("norm_partials", "perturb", "restore_and_step")
SHAPES = {"conv.weight": (8, 3, 3, 3), "conv.bias": (17,), "head.weight": (4099,)}

LAUNCHES = []
RESULTS = {}  # launches a step, by combination


@pytest.fixture(scope="module")
def launched():
    """Count launches; each is kept in LAUNCHES and executed before the launching call returns."""
    interpreter = Interpreter()

    def observe(launch):
        LAUNCHES.append(launch)
        interpreter(launch)

    return stub.install(observe)


@pytest.fixture(autouse=True)
def cpu_tensors_are_launched_with(monkeypatch):
    monkeypatch.setattr(choice, "why_not_fused", lambda device: None)
    LAUNCHES.clear()


@pytest.fixture(scope="module", autouse=True)
def table_of_launches():
    yield
    print()
    for name, counts in RESULTS.items():
        print(f"{name:24} {', '.join(map(str, counts))} launches a step")


def parameters():
    generator = torch.Generator().manual_seed(0)
    return {n: nn.Parameter(torch.randn(s, generator=generator)) for n, s in SHAPES.items()}


class Pair:
    """The same steps taken by launches and by the eager path, compared after each."""

    def __init__(self, base, method):
        kind, options = BASES[base]
        self.base = base
        self.ours, self.theirs = parameters(), parameters()
        common = {"rho": 0.1, **METHODS[method], **options}
        self.fused = SAM(self.ours.items(), kind, implementation="fused", **common)
        self.eager = SAM(self.theirs.items(), kind, implementation="eager", **common)
        self.generator = torch.Generator().manual_seed(1)

    def step(self, without=None):
        """Take a step with gradients at addresses that none had before; return its launches."""
        LAUNCHES.clear()
        for half in ("first_step", "second_step"):
            for name, p in self.ours.items():
                gradient = torch.randn(p.shape, generator=self.generator)
                missing = name == without
                p.grad = None if missing else gradient
                self.theirs[name].grad = None if missing else gradient.clone()
            if half == "first_step":
                self.first = [p.grad for p in self.ours.values()]
            getattr(self.fused, half)()
            getattr(self.eager, half)()
        self.check(LAUNCHES)
        for name, p in self.ours.items():
            torch.testing.assert_close(p, self.theirs[name], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(self.fused.gradient_norm, self.eager.gradient_norm)
        return list(LAUNCHES)

    def check(self, launches):
        """Hold each launch against the tensors' own addresses."""
        assert tuple(launch.kernel for launch in launches) == NAMES
        step = self.fused._fused_step()
        assert step is not None
        tables = step.tables
        assert tables is not None
        chunks = sum(-(-p.numel() // fused.BLOCK) for p in self.ours.values())
        assert [launch.grid for launch in launches] == [chunks, chunks, 2 * chunks]
        for launch in launches:
            assert launch.threads == 32 * kernels.LAUNCH["num_warps"]
            assert launch.shared_bytes == shared_bytes(launch)
            assert launch.constants["BLOCK"] == fused.BLOCK
            own = {
                "chunks": tables.chunks,
                "tensors": tables.tensors,
                "settings": tables.settings,
                "schedule": tables.schedule,
                "partials": tables.partials,
                "counters": tables.counters,
                "products": tables.products,
                "squares": tables.squares,
                "momentum_norm": tables.momentum_norm,
                "norm_out": self.fused.gradient_norm,
                "found_inf": self.fused.found_inf,
                "skipped_steps": self.fused.skipped_steps,
            }
            for name, value in launch.arguments.items():
                if name == "n_chunks":
                    assert value == chunks
                elif name not in ("gradients", "ascent_gradients"):
                    assert value == own[name].data_ptr(), name
        norm, perturb, step_ = (launch.arguments for launch in launches)
        assert norm["gradients"] == perturb["gradients"] == step_["ascent_gradients"]
        self.check_tables(tables, norm["gradients"], step_["gradients"])

    def check_tables(self, tables, first_pointers, second_pointers):
        tensors = tables.tensors.tolist()
        second = [p.grad for p in self.ours.values()]
        for pointers, gradients in ((first_pointers, self.first), (second_pointers, second)):
            table = tables.ascent if pointers == first_pointers else tables.descent
            assert table._table.data_ptr() == pointers
            assert table._table.tolist() == [0 if g is None else g.data_ptr() for g in gradients]
        columns = [(g, i) for g in self.fused.param_groups for i in range(len(g["params"]))]
        for row, p, (group, i) in zip(tensors, self.ours.values(), columns, strict=True):
            state = self.fused.state[p]
            names = STATE.get(self.base, ("exp_avg", "exp_avg_sq"))
            moments = [state[name].data_ptr() for name in names] + [0] * (2 - len(names))
            assert row[:4] == [p.data_ptr(), self.fused._saved[p].data_ptr(), *moments]
            if "step" in state:
                assert row[4] == state["step"].data_ptr()
            assert row[6] == p.numel()
            assert self.fused.param_groups[row[7]] is group
            assert row[8] == is_adaptive(group, i)


def shared_bytes(launch):
    """Of the binary that was launched, as its compiler counted them."""
    (found,) = {
        compiled.metadata.shared
        for compiled in getattr(kernels, launch.kernel).device_caches[0][0].values()
        if {compiled.src.fn.arg_names[i]: v for (i,), v in compiled.src.constants.items()}
        == launch.constants
    }
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("base", KINDS)
def test_every_kind_of_step_is_three_launches(launched, base, method):
    pair = Pair(base, method)
    taken = {"first": pair.step(), "later": pair.step(), "no gradient": pair.step("conv.bias")}
    fresh = nn.Parameter(torch.ones(33)), nn.Parameter(torch.ones(33))
    pair.ours["late.weight"], pair.theirs["late.weight"] = fresh
    for optimizer, p in zip((pair.fused, pair.eager), fresh, strict=True):
        optimizer.add_param_group({"params": [("late.weight", p)], "rho": 0.3})
    taken["added group"] = pair.step()
    for optimizer in (pair.fused, pair.eager):
        optimizer.param_groups[0]["lr"] = 0.003
    taken["changed lr"] = pair.step()
    RESULTS[f"{base} × {method}"] = {len(launches) for launches in taken.values()}
    assert {kind: len(launches) for kind, launches in taken.items()} == dict.fromkeys(taken, 3)


@pytest.mark.parametrize("half", ["first_step", "second_step"])
@pytest.mark.parametrize("base", KINDS)
def test_a_gradient_that_is_not_finite_leaves_all_as_it_was(launched, base, half):
    pair = Pair(base, "sam")
    pair.step()
    sam, w = pair.fused, pair.ours["head.weight"]
    before = [p.detach().clone() for p in pair.ours.values()]
    state = [t.clone() for s in sam.state.values() for t in s.values()]
    for name in ("first_step", "second_step"):
        for p in pair.ours.values():
            p.grad = torch.randn_like(p)
        if name == half:
            assert w.grad is not None
            w.grad[-1] = float("nan")
        getattr(sam, name)()
    assert (sam.found_inf.item(), sam.skipped_steps.item()) == (1.0, 1)
    for p, kept in zip(pair.ours.values(), before, strict=True):
        assert torch.equal(p, kept)
    now = [t for s in sam.state.values() for t in s.values()]
    assert all(torch.equal(a, b) for a, b in zip(now, state, strict=True))


def test_resnet18_is_three_launches(launched):
    torch.manual_seed(0)
    model = models.build("resnet18", width=2, in_channels=3, classes=10)
    model = model.to(memory_format=torch.channels_last)
    twin = models.build("resnet18", width=2, in_channels=3, classes=10)
    twin.to(memory_format=torch.channels_last).load_state_dict(model.state_dict())
    options = {"rho": 0.1, "lr": 0.1, "momentum": 0.9}
    sam = SAM(model.parameters(), SGD, implementation="fused", **options)
    check = SAM(twin.parameters(), SGD, implementation="eager", **options)
    x = torch.randn(4, 3, 8, 8)
    for net, optimizer in ((model, sam), (twin, check)):
        net(x).square().mean().backward()

        def closure(net=net):
            loss = net(x).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
    assert len(list(model.parameters())) == 62
    assert tuple(launch.kernel for launch in LAUNCHES) == NAMES
    # BatchNorm over few images magnifies the last digit
    ours, theirs = (torch.cat([p.flatten() for p in n.parameters()]) for n in (model, twin))
    assert (ours - theirs).norm() <= 1e-4 * theirs.norm()


@pytest.mark.skipif(not hasattr(Tensor, "grad_dtype"), reason="torch without grad_dtype")
def test_bfloat16_gradients_are_launched_as_such(launched):
    pair = Pair("adam", "asam")
    for p in pair.ours.values():
        p.grad_dtype = torch.bfloat16
    for half in ("first_step", "second_step"):
        for name, p in pair.ours.items():
            p.grad = torch.randn(p.shape, generator=pair.generator).bfloat16()
            pair.theirs[name].grad = p.grad.float()
        getattr(pair.fused, half)()
        getattr(pair.eager, half)()
    assert {str(launch.constants["GRAD"]) for launch in LAUNCHES} == {"bf16"}
    for name, p in pair.ours.items():
        torch.testing.assert_close(p, pair.theirs[name], rtol=1e-6, atol=1e-7)


def test_the_trial_launches(launched):
    out = torch.zeros(1)
    kernels.trial[(1,)](out, **kernels.LAUNCH)
    assert out.item() == 1.0


def test_a_launch_that_the_driver_refuses_is_an_error(launched):
    """So that a check in an observer, which cannot raise through C, does fail the test."""
    outside = torch.frombuffer(bytearray(64), dtype=torch.float32)  # not in the arena
    with pytest.raises(RuntimeError, match="the observer refused"):
        kernels.trial[(1,)](outside, **kernels.LAUNCH)


@pytest.mark.parametrize("method", family_steps.METHODS)
@pytest.mark.parametrize("base", ["momentum", "adam"])
def test_the_family_is_launched(launched, method, base):
    """As `interpreted/family.py` interprets it: through Triton's binder, compiler and launcher."""
    runs = []
    for implementation in ("fused", "eager"):
        params = optimizers.parameters(*family_steps.SHAPES)
        made = family_steps.made(method, params, base, implementation)
        family_steps.train(params, made, 4)
        made.eval()
        runs.append(params)
    assert optimizers.relative_error(*runs) <= 1e-6
    if method in family_steps.LAUNCHES:
        steps = family_steps.LAUNCHES[method]
        last = len(steps) - 1
        # of Momentum-SAM the first step alone is another; the others repeat
        places = [min(i, last) if method == "momentum" else i % len(steps) for i in range(4)]
        expected = Counter()
        for place in places:
            expected.update(steps[place])
        assert Counter(launch.kernel for launch in LAUNCHES) == expected
    RESULTS[f"{method}/{base}"] = [len(LAUNCHES) / 4]
