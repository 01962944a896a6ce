"""The fused step's numbers on CPU tensors; run by test_kernels.py with TRITON_INTERPRET=1.

The reference is the eager path in float64, which test_sam.py holds against closed forms, numpy
and torch.optim. Chunks are made small, so that small tensors span several of them.
"""

import copy
import gc
import itertools
import math
import weakref

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import Phase, given, settings
from torch import nn

from flatbench import models
from flatbench.optim import SAM, fused, tables
from tests.optimizers import (
    BASES,
    SGD,
    Adam,
    assert_bitwise,
    clone,
    every_base,
    optimizer,
    parameters,
    relative_error,
    run,
    set_gradients,
)

# Overflow and NaN are among the cases; numpy, under the interpreter, warns of them.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(fused, "BLOCK", 64)
    monkeypatch.setattr(fused, "PARTIALS", 4)


def compare(params, options, steps, **missing):
    """Run fused in float32, eager in float32 and eager in float64 from the same start."""
    runs = {}
    for name, implementation, dtype in (
        ("fused", "fused", torch.float32),
        ("eager", "eager", torch.float32),
        ("reference", "eager", torch.float64),
    ):
        mine = clone(params, dtype)
        sam = optimizer(mine, implementation=implementation, **options)
        assert sam.implementation == implementation
        run(mine, sam, steps, **missing)
        runs[name] = (mine, sam)
    reference, sam64 = runs["reference"]
    for name in ("fused", "eager"):
        mine, sam = runs[name]
        assert relative_error(mine, reference) <= 1e-6, name
        assert sam.gradient_norm.item() == pytest.approx(sam64.gradient_norm.item(), rel=1e-6)
    assert relative_error(runs["fused"][0], runs["eager"][0]) <= 1e-6
    for p, q in zip(runs["fused"][0], reference, strict=True):
        if not p.numel():
            continue
        ours, theirs = runs["fused"][1].state[p], sam64.state[q]
        for key in theirs:
            if theirs[key] is not None:
                assert relative_error([ours[key]], [theirs[key]]) <= 5e-6, key


@pytest.mark.parametrize(
    ("base", "adaptive", "eta"),
    [
        ("momentum", False, 0.0),
        ("nesterov", True, 0.01),
        ("adam", True, 0.0),
        ("adamw", False, 0.0),
    ],
)
def test_50_steps_match_eager_and_float64(base, adaptive, eta):
    params = parameters((3, 5), (70,), (), (2, 3, 7))
    options = {"base": base, "rho": 0.1, "adaptive": adaptive, "eta": eta}
    compare(params, options, steps=50)


shapes = st.lists(
    st.lists(st.integers(0, 12), max_size=3).map(tuple), min_size=1, max_size=5
).filter(lambda found: any(math.prod(shape) for shape in found))


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(data=st.data(), shapes=shapes, base=st.sampled_from(sorted(BASES)))
def test_any_shapes_and_settings_match_eager_and_float64(data, shapes, base):
    options = {
        "base": base,
        "rho": data.draw(st.sampled_from([0.0, 0.05, 2.0])),
        "adaptive": data.draw(st.booleans()),
        "eta": data.draw(st.sampled_from([0.0, 0.01])),
        "lr": data.draw(st.sampled_from([2**-10, 2**-5])),
        "weight_decay": data.draw(st.sampled_from([0.0, 2**-11, 2**-3])),
    }
    indices = st.sets(st.integers(0, len(shapes) - 1))
    missing = {"missing_first": data.draw(indices), "missing_second": data.draw(indices)}
    compare(parameters(*shapes, seed=data.draw(st.integers(0, 99))), options, steps=5, **missing)


@pytest.mark.parametrize("base", ["momentum", "adam"])
def test_groups_with_their_own_options(base):
    ours = parameters((70,), (5, 5), (3,), (9,))
    results = []
    for implementation, dtype in (("fused", torch.float32), ("eager", torch.float64)):
        a, b, c, d = mine = clone(ours, dtype)
        own = {"momentum": 0.0} if base == "momentum" else {"betas": (0.5, 0.9), "eps": 1e-3}
        groups = [
            {"params": [("a.weight", a), ("a.bias", c)], "adaptive": "weights", "eta": 0.1},
            {"params": [("b", b)], "rho": 0.3, "lr": 0.02, **own},
            {"params": [("d", d)], "adaptive": True, "weight_decay": 0.2},
        ]
        run(mine, optimizer(groups, base, implementation, rho=0.1), steps=10)
        results.append(mine)
    assert relative_error(*results) <= 1e-6


def test_a_base_without_momentum_in_one_group_keeps_torch_s_state():
    a, b = parameters((3,), (3,))
    sam = optimizer([{"params": [a]}, {"params": [b], "momentum": 0.0}])
    run([a, b], sam, steps=2)
    assert "momentum_buffer" in sam.state[a]
    assert "momentum_buffer" not in sam.state[b]


class Poisoned:
    """A tensor inside a longer buffer of NaN; ``offset`` elements from an aligned address."""

    def __init__(self, values, offset):
        self.offset, self.n = 64 + offset, values.numel()
        self.buffer = torch.full((self.n + 192,), math.nan)
        self.inside = self.buffer[self.offset : self.offset + self.n].view(values.shape)
        self.inside.copy_(values)

    def assert_guards(self):
        outside = torch.cat([self.buffer[: self.offset], self.buffer[self.offset + self.n :]])
        assert outside.isnan().all(), "written outside"
        assert not self.inside.isnan().any(), "not written"


@pytest.mark.parametrize("base", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("offset", [0, 1])
def test_every_element_is_written_and_none_outside(base, offset):
    sizes = (1, 63, 64, 65, 128, 200)
    weights = [Poisoned(p.detach(), offset) for p in parameters(*sizes)]
    params = [nn.Parameter(w.inside) for w in weights]
    reference = clone(params, torch.float64)
    sam = optimizer(params, base, adaptive=True, eta=0.01, rho=0.1)
    copies = [Poisoned(torch.full((n,), math.nan), offset) for n in sizes]
    sam._saved.update({p: c.inside for p, c in zip(params, copies, strict=True)})
    moments = []
    for p in params:
        for name in {"sgd": (), "momentum": ("momentum_buffer",)}.get(
            base, ("exp_avg", "exp_avg_sq")
        ):
            moments.append(Poisoned(torch.zeros_like(p), offset))
            sam.state[p][name] = moments[-1].inside
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        gradients = [Poisoned(torch.randn(n, generator=generator), offset) for n in sizes]
        for params_, half_step in ((params, sam.first_step), (params, sam.second_step)):
            for p, g in zip(params_, gradients, strict=True):
                p.grad = g.inside
            half_step()
        for guarded in (*weights, *copies, *moments, *gradients):
            guarded.assert_guards()
    check = optimizer(reference, base, "eager", adaptive=True, eta=0.01, rho=0.1)
    generator.manual_seed(0)
    for _ in range(3):
        for p in reference:
            p.grad = torch.randn(p.shape, generator=generator).double()
        check.first_step()
        check.second_step()
    assert relative_error(params, reference) <= 1e-6


@every_base
@pytest.mark.parametrize("adaptive", [False, True])
def test_restore_is_bitwise_and_storage_never_moves(base, adaptive):
    params = parameters((130,), (3, 3))
    sam = optimizer(params, base, lr=0.0, weight_decay=0.0, rho=0.7, adaptive=adaptive)
    before, addresses = [p.detach().clone() for p in params], [p.data_ptr() for p in params]
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        set_gradients(params, generator)
        sam.first_step()
        assert not any(torch.equal(p, w) for p, w in zip(params, before, strict=True))
        set_gradients(params, generator)
        sam.second_step()
        assert_bitwise([p.detach() for p in params], before)
    assert [p.data_ptr() for p in params] == addresses


def test_restore_abandons_a_step():
    params = parameters((70,))
    before = params[0].detach().clone()
    sam = optimizer(params)
    set_gradients(params, torch.Generator())
    sam.first_step()
    sam.restore()
    assert_bitwise(params[0].detach(), before)
    sam.first_step()
    with pytest.raises(ZeroDivisionError):
        sam.restore() or sam.step(lambda: 1 / 0)
    assert_bitwise(params[0].detach(), before)


@every_base
@pytest.mark.parametrize("adaptive", [False, True])
def test_zero_norm_perturbs_nothing_and_still_steps(base, adaptive):
    params = parameters((70,), (3,))
    twins = clone(params)
    sam = optimizer(params, base, adaptive=adaptive)
    check = optimizer(twins, base, "eager", adaptive=adaptive)
    before = [p.detach().clone() for p in params]
    for mine, step in ((params, sam), (twins, check)):
        for p in mine:
            p.grad = torch.zeros_like(p)
        step.first_step()
        assert_bitwise([p.detach() for p in mine], before)
        for p in mine:
            p.grad = torch.ones_like(p)
        step.second_step()
    assert sam.gradient_norm.item() == 0.0
    assert sam.skipped_steps.item() == 0
    torch.testing.assert_close(params, twins)


@every_base
@pytest.mark.parametrize(
    ("bad", "warm"), [(math.inf, False), (-math.inf, True), (math.nan, True), (3e38, False)]
)
def test_norm_that_is_not_finite_makes_the_step_a_no_op(base, bad, warm):
    params = parameters((70,), (3,))
    twins = clone(params)
    sam, check = optimizer(params, base), optimizer(twins, base)
    if warm:
        run(params, sam, 1)
        run(twins, check, 1)
    before = [p.detach().clone() for p in params]
    set_gradients(params, torch.Generator())
    params[0].grad[5] = bad
    sam.first_step()
    assert sam.found_inf.item() == 1.0
    assert_bitwise([p.detach() for p in params], before)
    sam.second_step()
    assert_bitwise([p.detach() for p in params], before)
    assert sam.skipped_steps.item() == 1
    # Momentum and step counts did not move either: the runs are the same from here.
    run(params, sam, 2, seed=1)
    run(twins, check, 2, seed=1)
    assert_bitwise([p.detach() for p in params], [p.detach() for p in twins])


@every_base
@pytest.mark.parametrize("where", ["first tensor", "last element"])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_second_gradient_that_is_not_finite_makes_the_step_a_no_op(base, bad, where):
    """Of 5 chunks and 4 programs that check them, any may be the one that finds it."""
    params = parameters((150,), (3,), (65,))
    twins = clone(params)
    sam, check = optimizer(params, base), optimizer(twins, base)
    run(params, sam, 1)
    run(twins, check, 1)
    before = [p.detach().clone() for p in params]
    set_gradients(params, torch.Generator())
    sam.first_step()
    assert sam.found_inf.item() == 0.0
    set_gradients(params, torch.Generator())
    if where == "first tensor":
        params[0].grad[5] = bad
    else:
        params[-1].grad[-1] = bad
    sam.second_step()
    assert_bitwise([p.detach() for p in params], before)
    assert (sam.found_inf.item(), sam.skipped_steps.item()) == (1.0, 1)
    # Momentum and step counts did not move either: the runs are the same from here.
    run(params, sam, 2, seed=1)
    run(twins, check, 2, seed=1)
    assert_bitwise([p.detach() for p in params], [p.detach() for p in twins])
    assert (sam.found_inf.item(), sam.skipped_steps.item()) == (0.0, 1)


def test_a_second_gradient_that_is_large_is_stepped_with():
    params, twins = parameters((70,)), parameters((70,))
    for mine, implementation in ((params, "fused"), (twins, "eager")):
        sam = optimizer(mine, "sgd", implementation, lr=2**-100)
        set_gradients(mine, torch.Generator())
        sam.first_step()
        mine[0].grad = torch.full_like(mine[0], 3e38)  # its square, and its norm, overflow
        sam.second_step()
        assert sam.skipped_steps.item() == 0
    assert_bitwise(params[0].detach(), twins[0].detach())


def test_found_inf_may_be_set_between_the_half_steps():
    params = parameters((70,))
    before = params[0].detach().clone()
    sam = optimizer(params)
    set_gradients(params, torch.Generator())
    sam.first_step()
    sam.found_inf.fill_(1)
    sam.second_step()
    assert_bitwise(params[0].detach(), before)
    assert sam.skipped_steps.item() == 1


@pytest.mark.parametrize(
    ("base", "adaptive", "bytes_a_parameter"),
    [
        ("momentum", False, 44),
        ("momentum", True, 48),
        ("adam", False, 52),
        ("adam", True, 56),
        ("sgd", False, 36),
    ],
)
def test_resnet18_is_three_launches_and_so_many_bytes(
    monkeypatch, base, adaptive, bytes_a_parameter
):
    monkeypatch.setattr(fused, "BLOCK", 2048)
    model = models.build("resnet18", width=4, in_channels=3, classes=10)
    params = list(model.parameters())
    assert len(params) == 62
    sam = optimizer(params, base, adaptive=adaptive)
    run(params, sam, 1)
    step = sam._fused_step()
    assert step.launches == {"norm_partials": 1, "perturb": 1, "restore_and_step": 1}
    assert sum(step.traffic().values()) == bytes_a_parameter * sum(p.numel() for p in params)


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


def test_results_repeat_bit_for_bit():
    start = parameters((300,), (33, 9), (1,))
    runs = []
    for _ in range(2):
        params = clone(start)
        run(params, optimizer(params, "adam", adaptive=True), 3)
        runs.append([p.detach() for p in params])
    assert_bitwise(*runs)


def test_the_size_of_chunks_and_grids_does_not_matter(monkeypatch):
    start = parameters((300,), (11, 9), (1,))
    runs = []
    for block, partials in ((16, 2), (64, 4), (1024, 64)):
        monkeypatch.setattr(fused, "BLOCK", block)
        monkeypatch.setattr(fused, "PARTIALS", partials)
        params = clone(start)
        run(params, optimizer(params, adaptive=True, rho=0.5), 3)
        runs.append(params)
    assert relative_error(runs[0], runs[1]) < 1e-6
    assert relative_error(runs[1], runs[2]) < 1e-6


LAYOUTS = {
    "channels_last": torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last),
    "transposed": torch.randn(6, 15).t(),
    "size one": torch.randn(1, 70, 1).transpose(0, 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gradient", ["as the parameter", "contiguous", "expanded"])
@pytest.mark.parametrize("base", ["momentum", "adam"])
def test_memory_formats(layout, gradient, base):
    start = LAYOUTS[layout]
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.double())
    assert ours.stride() == start.stride() or layout == "size one"
    sam, check = optimizer([ours], base), optimizer([theirs], base, "eager")
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        g = torch.randn(start.shape, generator=generator)
        if gradient == "as the parameter":
            g = torch.empty_like(ours).copy_(g)
        elif gradient == "expanded":
            g = g[:1].expand(start.shape)
        for _half in range(2):
            ours.grad, theirs.grad = g, g.double()
            for step in (sam, check):
                (step.first_step if _half == 0 else step.second_step)()
    assert relative_error([ours], [theirs]) <= 1e-6


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


def test_tied_weights_are_one_parameter():
    model = nn.Sequential(nn.Linear(7, 7, bias=False), nn.Linear(7, 7, bias=False))
    model[1].weight = model[0].weight
    twin = copy.deepcopy(model).double()
    x = torch.randn(5, 7)
    for net, implementation in ((model, "fused"), (twin, "eager")):
        sam = optimizer(net.parameters(), implementation=implementation)

        def closure(net=net, sam=sam):
            sam.zero_grad()
            loss = net(x.to(net[0].weight)).square().mean()
            loss.backward()
            return loss

        for _ in range(5):
            closure()
            sam.step(closure)
    assert relative_error([model[0].weight], [twin[0].weight]) <= 1e-6


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="torch without grad_dtype")
@pytest.mark.parametrize("base", ["momentum", "adam"])
@pytest.mark.parametrize("which", ["all", "some"])
def test_bfloat16_gradients(base, which):
    ours = parameters((130,), (3, 3))
    theirs = clone(ours, torch.float64)
    for p in ours[: 2 if which == "all" else 1]:
        p.grad_dtype = torch.bfloat16
    sam = optimizer(ours, base, adaptive=True)
    check = optimizer(theirs, base, "eager", adaptive=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        for half in ("first_step", "second_step"):
            for p, q in zip(ours, theirs, strict=True):
                g = torch.randn(p.shape, generator=generator).bfloat16()
                p.grad, q.grad = g.to(p.grad_dtype), g.double()
            getattr(sam, half)()
            getattr(check, half)()
    assert relative_error(ours, theirs) <= 1e-6
    if which == "all":
        norm = sum(p.numel() for p in ours) * (2 + 4)
        assert sam._fused_step().traffic()["norm_partials"] == norm


@every_base
def test_state_goes_over_to_eager_and_to_torch_s_own(base):
    params = parameters((70,), (3, 3))
    sam = optimizer(params, base, rho=0.0)
    run(params, sam, 3)
    kind, kwargs = BASES[base]
    eager_params, torch_params = clone(params), clone(params)
    eager = optimizer(eager_params, base, "eager", rho=0.0)
    eager.load_state_dict(copy.deepcopy(sam.state_dict()))
    plain = kind(torch_params, **kwargs)
    plain.load_state_dict(copy.deepcopy(sam.state_dict()))
    again_params = clone(params)
    again = optimizer(again_params, base, rho=0.0)
    again.load_state_dict(copy.deepcopy(sam.state_dict()))

    run(params, sam, 3, seed=1)
    run(eager_params, eager, 3, seed=1)
    run(again_params, again, 3, seed=1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        set_gradients(torch_params, generator)
        set_gradients(torch_params, generator)
        plain.step()
    assert_bitwise(again_params, params)
    assert relative_error(eager_params, params) <= 1e-6
    assert relative_error(torch_params, params) <= 1e-6


@every_base
def test_state_of_torch_s_own_is_taken_over(base):
    kind, kwargs = BASES[base]
    params = parameters((70,), (3, 3))
    plain = kind(params, **kwargs)
    set_gradients(params, torch.Generator())
    plain.step()
    twins = clone(params)
    sam = optimizer(twins, base, rho=0.0)
    sam.load_state_dict(copy.deepcopy(plain.state_dict()))
    run(twins, sam, 2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        set_gradients(params, generator)
        set_gradients(params, generator)
        plain.step()
    assert relative_error(twins, params) <= 1e-6


@pytest.mark.parametrize("kind", ["number", "float32", "float64"])
def test_schedulers(kind):
    results = []
    for implementation, dtype in (("fused", torch.float32), ("eager", torch.float64)):
        params = clone(parameters((70,)), dtype)
        lr = 0.1 if kind == "number" else torch.tensor(0.1, dtype=getattr(torch, kind))
        sam = optimizer(params, implementation=implementation, lr=lr)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(sam, 0.5)
        for seed in range(4):
            run(params, sam, 1, seed)
            scheduler.step()
        results.append(params)
    assert relative_error(*results) <= 1e-6


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
        for module in (fused, tables):
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
    step = sam._fused_step()._tables
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


@pytest.mark.parametrize(
    ("params", "base", "options", "message"),
    [
        ([torch.ones(3, dtype=torch.float64)], SGD, {}, "must be float32, got torch.float64"),
        ([torch.ones(3, 4)[:, :2]], SGD, {}, "has gaps"),
        ([torch.ones(0)], SGD, {}, "empty"),
        ([torch.ones(3)], Adam, {"amsgrad": True}, "amsgrad"),
        ([torch.ones(3)], torch.optim.RMSprop, {}, "must be SGD, Adam or AdamW, got RMSprop"),
        ([torch.ones(3, device="meta")], SGD, {}, "must be on the CPU, got meta"),
    ],
)
def test_what_has_no_fused_step(params, base, options, message):
    params = [nn.Parameter(p) for p in params]
    with pytest.raises(ValueError, match=message):
        SAM(params, base, implementation="fused", **options)


def test_auto_on_a_cpu_is_eager_even_under_the_interpreter():
    assert optimizer(parameters((3,)), implementation="auto").implementation == "eager"
