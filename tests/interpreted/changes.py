"""Changes that a fused step must notice, and what a graph keeps; run by test_kernel_changes.py.

Addresses, layouts, state and options stand in tables on the device, which are written again only
when something has changed. The reference is a fresh optimizer, which writes all of them.
"""

import copy
import gc
import itertools
import weakref

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import Phase, given, settings
from torch import nn

from flatbench.optim import SAM, capture, fused, tables
from tests.optimizers import (
    BASES,
    assert_bitwise,
    optimizer,
    parameters,
    relative_error,
    run,
    set_gradients,
)


def test_tables_are_written_when_an_address_changes_and_only_then():
    params = parameters((70,), (3,))
    sam = optimizer(params)
    for p in params:
        p.grad = torch.ones_like(p)

    def step():
        before = dict(sam._fused_step().uploads)
        sam.first_step()
        sam.second_step()
        after = sam._fused_step().uploads
        return {k: n - before.get(k, 0) for k, n in after.items() if n != before.get(k, 0)}

    assert step() == {"tensors": 1, "settings": 1, "rates": 1, "gradients": 2}
    assert step() == {}
    params[0].grad.mul_(2)
    assert step() == {}
    params[0].grad = torch.ones_like(params[0]) + params[0].grad
    assert step() == {"gradients": 2}
    params[0].grad = None
    assert step() == {"gradients": 2}
    sam.param_groups[0]["lr"] = 0.01
    assert step() == {"rates": 1}
    sam.param_groups[0]["lr"] = torch.tensor(0.02)
    assert step() == {"tensors": 1, "settings": 1, "rates": 1, "gradients": 2}
    sam.param_groups[0]["lr"].fill_(0.03)
    assert step() == {}
    sam.param_groups[0]["rho"] = 0.01
    assert step() == {"settings": 1}
    params[0].data = params[0].data.clone()
    assert set(step()) == {"tensors", "settings", "rates", "gradients"}
    sam.add_param_group({"params": parameters((5,))})
    assert set(step()) == {"tensors", "settings", "rates", "gradients"}


def test_memory_is_free_without_the_garbage_collector():
    params = parameters((70,))
    sam = optimizer(params)
    run(params, sam, 2)
    left = [weakref.ref(sam), weakref.ref(sam._fused_step()), weakref.ref(params[0])]
    gc.disable()
    try:
        del sam, params
        assert [ref() for ref in left] == [None] * 3
    finally:
        gc.enable()


def test_a_parameter_thawed_between_the_half_steps_is_an_error():
    a, b = parameters((3,), (3,))
    b.requires_grad_(False)
    sam = optimizer([a, b])
    a.grad = torch.ones(3)
    sam.first_step()
    b.requires_grad_(True).grad = torch.ones(3)
    with pytest.raises(RuntimeError, match="frozen in first_step"):
        sam.second_step()
    sam.restore()
    run([a, b], sam, 1)


class Capture:
    """Pretends that a CUDA graph is being captured. What is launched runs at once."""

    def __init__(self, monkeypatch):
        self.active = False
        for module in (capture, fused, tables):
            monkeypatch.setattr(module, "capturing", lambda t: self.active)

    def __enter__(self):
        self.active = True

    def __exit__(self, *_):
        self.active = False


def test_a_graph_keeps_its_own_tables(monkeypatch):
    capture = Capture(monkeypatch)
    params = parameters((70,), (3,))
    sam = optimizer(params)
    run(params, sam, 1)
    step = sam._fused_step().tables
    with capture:
        run(params, sam, 1)
    captured = [p.grad for p in params]
    sam.sync_hyperparameters()
    kept = [table for t in (step.ascent, step.descent) for table, _ in t._captured]
    assert len(kept) == 2
    assert kept[1].tolist() == [g.data_ptr() for g in captured]
    before = [table.clone() for table in kept]
    run(params, sam, 2)
    assert_bitwise(kept, before)
    outside, _ = step.descent.point_at([p.grad for p in params])
    assert outside.tolist() != kept[1].tolist()


def test_a_graph_that_is_replayed_before_its_tables_are_written_skips_and_counts(monkeypatch):
    """What is launched in a pretended capture runs at once, as a replay would."""
    capture = Capture(monkeypatch)
    params = parameters((70,), (3,))
    sam = optimizer(params)
    run(params, sam, 1)
    before = [p.detach().clone() for p in params]
    with capture:
        run(params, sam, 1)
    assert_bitwise([p.detach() for p in params], before)
    assert sam.gradient_norm.isnan()
    assert sam.skipped_steps.item() == 1


def test_what_a_capture_cannot_do_is_an_error(monkeypatch):
    capture = Capture(monkeypatch)
    params = parameters((70,))
    sam = optimizer(params)
    set_gradients(params, torch.Generator())
    with capture, pytest.raises(RuntimeError, match="take a SAM step before capturing"):
        sam.first_step()
    run(params, sam, 1)
    sam.param_groups[0]["lr"] = 0.3
    with capture, pytest.raises(RuntimeError, match="rates changed since the last step"):
        sam.first_step()
    sam.sync_hyperparameters()
    with capture:
        run(params, sam, 1)
    with capture, pytest.raises(RuntimeError, match="take a SAM step between two captures"):
        sam.first_step()
    run(params, sam, 1)


def test_sync_hyperparameters_alone_brings_options_to_the_device(monkeypatch):
    params, twins = parameters((70,)), parameters((70,))
    sam, check = optimizer(params), optimizer(twins, implementation="eager")
    run(params, sam, 1)
    run(twins, check, 1)
    for one in (sam, check):
        one.param_groups[0].update({"lr": 0.02, "rho": 0.3, "momentum": 0.5})
    sam.sync_hyperparameters()
    # A replay launches the kernels and runs nothing of first_step's Python.
    monkeypatch.setattr(sam._fused_step(), "sync_settings", lambda: None)
    run(params, sam, 1)
    run(twins, check, 1)
    assert relative_error(params, twins) <= 1e-6


HAS_GRAD_DTYPE = hasattr(torch.Tensor, "grad_dtype")


class Changing:
    """A fused SAM that lives through changes, and at each step a fresh one made of its state."""

    def __init__(self, base):
        self.base, self.seed = base, 0
        self.names = itertools.count()
        self.params = parameters((6, 5), (70,), (4, 3, 2, 2), (9,))
        named = [(f"{next(self.names)}.weight", p) for p in self.params]
        kind, options = BASES[base]
        groups = [{"params": named[:3]}, {"params": named[3:], "rho": 0.3}]
        self.sam = SAM(groups, kind, implementation="fused", rho=0.1, **options)
        self.gradient = "as the parameter"
        self.dtype = torch.float32
        self.missing = (), ()

    def add(self):
        p = nn.Parameter(torch.ones(5))
        self.params.append(p)
        self.sam.add_param_group({"params": [(f"{next(self.names)}.bias", p)]})

    def fresh(self):
        """Twins of the parameters, in their layouts, and an optimizer made for them only now."""
        twins = []
        for p in self.params:
            twin = nn.Parameter(torch.empty_strided(p.shape, p.stride()).copy_(p.detach()))
            twins.append(twin.requires_grad_(p.requires_grad))
        of = dict(zip(self.params, twins, strict=True))
        groups = [
            {"params": [(n, of[p]) for n, p in zip(g["param_names"], g["params"], strict=True)]}
            for g in self.sam.param_groups
        ]
        kind, options = BASES[self.base]
        sam = SAM(groups, kind, implementation="fused", rho=0.1, **options)
        sam.load_state_dict(copy.deepcopy(self.sam.state_dict()))
        return twins, sam

    def made(self, p, generator):
        noise = torch.randn(p.shape, generator=generator).to(self.dtype)
        if self.gradient == "contiguous":
            return noise
        if self.gradient == "expanded":
            return noise.flatten()[:1].expand(p.numel()).view(p.shape)
        return torch.empty_like(p, dtype=self.dtype, requires_grad=False).copy_(noise)

    def step(self):
        """Step both with the same gradients, and hold one against the other bit for bit."""
        twins, fresh = self.fresh()
        if HAS_GRAD_DTYPE:
            for p in (*self.params, *twins):
                p.grad = p.grad if p.grad_dtype == self.dtype else None
                p.grad_dtype = self.dtype
        generator = torch.Generator().manual_seed(self.seed)
        self.seed += 1
        for half, missing in zip(("first_step", "second_step"), self.missing, strict=True):
            for i, (p, twin) in enumerate(zip(self.params, twins, strict=True)):
                absent = i in missing or not p.requires_grad
                gradient = None if absent else self.made(p, generator)
                if self.gradient == "in place" and None not in (p.grad, gradient):
                    gradient = p.grad.copy_(gradient)
                p.grad = gradient
                twin.grad = None if gradient is None else gradient.clone()
            if half == "first_step":
                before = [p.detach().clone() for p in self.params]
                self.sam.first_step()
                self.sam.restore()
                assert_bitwise([p.detach() for p in self.params], before)
            getattr(self.sam, half)()
            getattr(fresh, half)()
        assert_bitwise([p.detach() for p in self.params], [t.detach() for t in twins])
        for p, twin in zip(self.params, twins, strict=True):
            ours, theirs = self.sam.state[p], fresh.state[twin]
            assert ours.keys() == theirs.keys()
            for name in ours:
                assert_bitwise(ours[name], theirs[name])


def _replace_state(run, p):
    state = run.sam.state[p]
    for name in state:
        if isinstance(state[name], torch.Tensor) and state[name].shape == p.shape:
            state[name] = state[name] * 0.5


def _transpose(run, p):
    p.data = p.data.transpose(0, -1).contiguous().transpose(0, -1)


def _relabel(run, p):
    """Other values in a layout of their own at the address that p has had."""
    if p.dim() == 2 and p.shape[0] != p.shape[1]:
        p.data = p.data.flatten().view(p.shape[::-1]).t()


def _shorten(run, p):
    if p.is_contiguous():  # else it would have gaps, which the fused step refuses
        run.sam.state.pop(p, None)
        p.grad, p.data = None, p.data[:3]


def _set(name, value):
    def change(run, p):
        for group in run.sam.param_groups[:1]:
            if name in group:
                group[name] = value

    return change


CHANGES = {
    "nothing": lambda run, p: None,
    "another address": lambda run, p: setattr(p, "data", p.data.clone()),
    "another layout": _transpose,
    "another layout at the same address": _relabel,
    "fewer elements at the same address": _shorten,
    "frozen": lambda run, p: p.requires_grad_(False),
    "thawed": lambda run, p: p.requires_grad_(True),
    "state cleared": lambda run, p: run.sam.state.clear(),
    "state replaced": _replace_state,
    "state loaded": lambda run, p: run.sam.load_state_dict(copy.deepcopy(run.sam.state_dict())),
    "group added": lambda run, p: run.add(),
    "contiguous gradients": lambda run, p: setattr(run, "gradient", "contiguous"),
    "expanded gradients": lambda run, p: setattr(run, "gradient", "expanded"),
    "gradients laid out as parameters": lambda run, p: setattr(run, "gradient", "as the parameter"),
    "gradients in place": lambda run, p: setattr(run, "gradient", "in place"),
    "bfloat16 gradients": lambda run, p: setattr(
        run, "dtype", torch.bfloat16 if HAS_GRAD_DTYPE else torch.float32
    ),
    "float32 gradients": lambda run, p: setattr(run, "dtype", torch.float32),
    "no first gradient": lambda run, p: setattr(run, "missing", ((1,), ())),
    "no second gradient": lambda run, p: setattr(run, "missing", ((), (0, 2))),
    "all gradients": lambda run, p: setattr(run, "missing", ((), ())),
    "lr": _set("lr", 2**-5),
    "lr a tensor": lambda run, p: run.sam.param_groups[0].update(lr=torch.tensor(2**-6)),
    "rho": _set("rho", 0.5),
    "eta": _set("eta", 0.1),
    "adaptive": _set("adaptive", True),
    "adaptive on weights": _set("adaptive", "weights"),
    "decay": _set("weight_decay", 2**-3),
    "no momentum": _set("momentum", 0.0),
    "momentum": _set("momentum", 0.75),
    "betas": _set("betas", (0.5, 0.75)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("base", ["momentum", "adam"])
def test_a_change_is_noticed(base, change):
    run_ = Changing(base)
    run_.step()
    CHANGES[change](run_, run_.params[0])
    run_.step()


# without shrinking: a failing sequence is short as it is, and shrinking it would take minutes
@settings(max_examples=10, phases=[Phase.generate])
@given(
    base=st.sampled_from(["sgd", "momentum", "nesterov", "adam", "adamw"]),
    changes=st.lists(
        st.tuples(st.sampled_from(sorted(CHANGES)), st.integers(0, 3)), min_size=1, max_size=8
    ),
)
def test_changes_one_after_another_are_noticed(base, changes):
    run_ = Changing(base)
    run_.step()
    for name, i in changes:
        CHANGES[name](run_, run_.params[i])
        run_.step()
