"""The fused step's numbers on CPU tensors, in Triton's interpreter; run by test_kernel_numbers.py.

The reference is the eager path in float64, which test_sam.py holds against closed forms, numpy
and torch.optim.
"""

import copy
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from flatbench import models
from flatbench.optim import SAM, fused
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


def test_a_base_without_momentum_in_one_group_keeps_the_state_of_torch():
    a, b = parameters((3,), (3,))
    sam = optimizer([{"params": [a]}, {"params": [b], "momentum": 0.0}])
    run([a, b], sam, steps=2)
    assert "momentum_buffer" in sam.state[a]
    assert "momentum_buffer" not in sam.state[b]


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
def test_state_goes_over_to_eager_and_to_the_torch_base(base):
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
def test_state_of_the_torch_base_is_taken_over(base):
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
