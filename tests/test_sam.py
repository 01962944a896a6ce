"""SAM against torch.optim, closed forms in float64, and a numpy implementation of the papers."""

import contextlib
import copy
import functools
import gc
import io
import itertools
import math
import pickle
import types
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from flatbench.optim import SAM, eager, frozen_batchnorm
from tests import optimizers
from tests.optimizers import BASES, assert_bitwise, every_base


def network(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(
        # A bias before BatchNorm has a gradient of rounding noise, which Adam would magnify.
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 3),
    ).to(dtype)


def batch(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, 1, 6, 6, generator=generator, dtype=dtype)
    return x, torch.randint(3, (12,), generator=generator)


def sam(model, base="momentum", **options):
    options = {"implementation": "auto", **options}
    return optimizers.optimizer(model.named_parameters(), base, **options)


def backward(model):
    x, y = batch(next(model.parameters()).dtype)
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    return loss


def train(model, optimizer, steps):
    for _ in range(steps):
        backward(model)
        optimizer.first_step(zero_grad=True)
        with frozen_batchnorm(model):
            backward(model)
        optimizer.second_step(zero_grad=True)


def snapshot(model):
    return [p.detach().clone() for p in model.parameters()]


# The mathematics: closed forms on L(w) = 1/2 w'Aw, and the papers' pseudo-code in numpy.

A = np.diag([1.0, 3.0, 10.0])
A[0, 1] = A[1, 0] = 0.5


def normalisation(w, adaptive, eta):
    return np.abs(w) + eta if adaptive else np.ones_like(w)


@pytest.mark.parametrize(("adaptive", "eta"), [(False, 0.0), (True, 0.0), (True, 0.01)])
def test_quadratic_has_the_closed_form_of_sam_with_plain_sgd(adaptive, eta):
    w = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    matrix, expected = torch.from_numpy(A), w.detach().numpy().copy()
    optimizer = SAM([w], torch.optim.SGD, rho=0.1, adaptive=adaptive, eta=eta, lr=0.02)
    for _ in range(100):
        t, g = normalisation(expected, adaptive, eta), A @ expected
        norm = np.linalg.norm(t * g)
        # w - lr A (w + e): the gradient of a quadratic is linear, so nothing is approximated.
        expected = expected - 0.02 * A @ (expected + 0.1 * t**2 * g / norm)

        def closure():
            loss = 0.5 * w @ matrix @ w
            loss.backward()
            return loss

        w.grad = (matrix @ w).detach()
        optimizer.step(closure)
        optimizer.zero_grad()
        np.testing.assert_allclose(optimizer.gradient_norm.item(), norm, rtol=1e-13)
    np.testing.assert_allclose(w.detach().numpy(), expected, rtol=1e-11)


def numpy_base_step(base, p, g, state, *, lr, momentum, weight_decay):
    """SGD with momentum and Adam as their papers have them, coupled weight decay."""
    g = g + weight_decay * p
    if base == "sgd":
        state["m"] = momentum * state["m"] + g if "m" in state else g
        return p - lr * state["m"]
    state["t"] = state.get("t", 0) + 1
    state["m"] = 0.9 * state.get("m", 0.0) + 0.1 * g
    state["v"] = 0.999 * state.get("v", 0.0) + 0.001 * g * g
    m = state["m"] / (1 - 0.9 ** state["t"])
    v = state["v"] / (1 - 0.999 ** state["t"])
    return p - lr * m / (np.sqrt(v) + 1e-8)


def numpy_gradient(params, x, y):
    """Of mean((tanh(x W1' + b1) W2' + b2 - y)^2), by hand."""
    w1, b1, w2, b2 = params
    h = np.tanh(x @ w1.T + b1)
    d = 2 * (h @ w2.T + b2 - y) / y.size
    dh = (d @ w2) * (1 - h * h)
    return [dh.T @ x, dh.sum(0), d.T @ h, d.sum(0)]


@pytest.mark.parametrize("base", ["sgd", "adam"])
@pytest.mark.parametrize(
    ("adaptive", "eta"), [(False, 0.0), (True, 0.0), (True, 0.01), ("weights", 0.01)]
)
def test_small_net_follows_a_numpy_implementation_for_100_steps(base, adaptive, eta):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 2, dtype=torch.float64)
    expected = [p.detach().numpy().copy() for p in model.parameters()]
    states = [{} for _ in expected]
    rho, lr, momentum, decay = 0.05, 0.02, 0.9, 1e-3
    kind, kwargs = (
        (torch.optim.SGD, {"momentum": momentum}) if base == "sgd" else (torch.optim.Adam, {})
    )
    optimizer = SAM(
        model.named_parameters(), kind, rho, adaptive, eta, lr=lr, weight_decay=decay, **kwargs
    )

    def loss_backward():
        optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        return loss

    for _ in range(100):
        loss_backward()
        optimizer.step(loss_backward)

        gradient = numpy_gradient(expected, x.numpy(), y.numpy())
        # The parameters alternate weight, bias.
        by_weight = itertools.cycle([True, adaptive is True])
        ts = [
            normalisation(p, bool(adaptive) and a, eta)
            for p, a in zip(expected, by_weight, strict=False)
        ]
        norm = math.sqrt(sum(((t * g) ** 2).sum() for t, g in zip(ts, gradient, strict=True)))
        climbed = [
            p + rho * t**2 * g / norm for p, t, g in zip(expected, ts, gradient, strict=True)
        ]
        descent = numpy_gradient(climbed, x.numpy(), y.numpy())
        expected = [
            numpy_base_step(base, p, g, s, lr=lr, momentum=momentum, weight_decay=decay)
            for p, g, s in zip(expected, descent, states, strict=True)
        ]
    for p, e in zip(model.parameters(), expected, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), e, rtol=1e-9, atol=1e-11)


def test_perturbation_has_length_rho_and_points_uphill():
    model = network(dtype=torch.float64)
    optimizer = sam(model, rho=0.3)
    before = snapshot(model)
    loss = backward(model)
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    optimizer.first_step(zero_grad=True)
    moved = torch.cat(
        [(p - w).flatten() for p, w in zip(model.parameters(), before, strict=True)]
    ).detach()
    assert moved.norm().item() == pytest.approx(0.3, rel=1e-12)
    torch.testing.assert_close(moved, 0.3 * gradient / gradient.norm())
    assert backward(model) > loss


# What must not change: w between steps, storage, and the base optimizer when rho is 0.


@every_base
@pytest.mark.parametrize("adaptive", [False, True, "weights"])
def test_restore_is_bitwise_and_storage_never_moves(base, adaptive):
    model = network()
    optimizer = sam(model, base, rho=0.5, adaptive=adaptive, lr=0.0, weight_decay=0.0)
    before, addresses = snapshot(model), [p.data_ptr() for p in model.parameters()]
    for _ in range(3):
        backward(model)
        optimizer.first_step(zero_grad=True)
        assert any(not torch.equal(p, w) for p, w in zip(model.parameters(), before, strict=True))
        backward(model)
        optimizer.second_step(zero_grad=True)
        assert_bitwise(snapshot(model), before)  # a base step of lr 0 moves nothing
    assert [p.data_ptr() for p in model.parameters()] == addresses


@every_base
def test_rho_zero_is_the_base_optimizer(base):
    kind, kwargs = BASES[base]
    ours, theirs = network(dtype=torch.float64), network(dtype=torch.float64)
    optimizer, reference = sam(ours, base, rho=0.0), kind(theirs.parameters(), **kwargs)
    for _ in range(20):
        backward(ours)
        optimizer.first_step(zero_grad=True)
        with frozen_batchnorm(ours):
            backward(ours)
        optimizer.second_step(zero_grad=True)
        reference.zero_grad()
        backward(theirs)
        reference.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-10, atol=1e-12)


@every_base
def test_rho_zero_is_the_base_optimizer_bit_for_bit_where_it_is_the_same_kernel(base):
    kind, kwargs = BASES[base]
    fused = {} if base == "dampening" else {"fused": True}
    ours, theirs = network(), network()
    optimizer = sam(ours, base, rho=0.0)
    reference = kind(theirs.parameters(), **kwargs, **fused)
    for _ in range(20):
        backward(ours)
        optimizer.first_step(zero_grad=True)
        with frozen_batchnorm(ours):
            backward(ours)
        optimizer.second_step(zero_grad=True)
        reference.zero_grad()
        backward(theirs)
        reference.step()
    assert_bitwise(ours.state_dict(), theirs.state_dict())


def test_any_torch_optimizer_can_be_the_base():
    model = network()
    optimizer = SAM(model.parameters(), torch.optim.RMSprop, rho=0.05, lr=0.01)
    first = backward(model).item()
    optimizer.zero_grad()
    train(model, optimizer, 30)
    assert backward(model).item() < 0.5 * first


# Groups, schedulers, gradients that are missing, zero or not finite.


def test_groups_have_their_own_options_and_share_one_norm():
    torch.manual_seed(0)
    a, b, c = (nn.Parameter(torch.randn(n, dtype=torch.float64)) for n in (3, 4, 5))
    optimizer = SAM(
        [
            {"params": [a], "rho": 0.1, "lr": 0.5},
            {"params": [b], "adaptive": True, "eta": 0.01, "weight_decay": 0.1},
            {"params": [c]},
        ],
        torch.optim.SGD,
        rho=0.2,
        lr=1.0,
    )
    before = [p.detach().clone() for p in (a, b, c)]
    grads = [torch.randn_like(p) for p in (a, b, c)]
    for p, g in zip((a, b, c), grads, strict=True):
        p.grad = g.clone()
    optimizer.first_step()
    t = [torch.ones_like(a), before[1].abs() + 0.01, torch.ones_like(c)]
    norm = torch.cat([x * g for x, g in zip(t, grads, strict=True)]).norm()
    torch.testing.assert_close(optimizer.gradient_norm, norm)
    for p, w, x, g, rho in zip((a, b, c), before, t, grads, (0.1, 0.2, 0.2), strict=True):
        torch.testing.assert_close(p.detach(), w + rho * x**2 * g / norm)
    optimizer.second_step()
    torch.testing.assert_close(a.detach(), before[0] - 0.5 * grads[0])
    torch.testing.assert_close(b.detach(), before[1] - (grads[1] + 0.1 * before[1]))
    torch.testing.assert_close(c.detach(), before[2] - grads[2])


def test_a_group_added_later_takes_part():
    a, b = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = SAM([a], torch.optim.SGD, rho=0.1, lr=1.0, momentum=0.9)
    optimizer.add_param_group({"params": [b], "rho": 0.0, "lr": 0.5})
    for _ in range(2):
        a.grad, b.grad = torch.full((2,), 3.0), torch.full((2,), 4.0)
        optimizer.first_step()
        assert optimizer.gradient_norm.item() == pytest.approx(50**0.5)
        assert torch.equal(optimizer.base_optimizer.param_groups[1]["params"][0], b)
        optimizer.second_step()
    assert b.tolist() == pytest.approx([1 - 0.5 * (4 + 7.6)] * 2)


def test_scheduler_sets_the_rate_of_the_base_step_without_a_warning():
    w = nn.Parameter(torch.zeros(1))
    optimizer = SAM([w], torch.optim.SGD, lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            before = w.item()
            w.grad = torch.ones(1)
            optimizer.first_step()
            optimizer.second_step()
            seen.append(before - w.item())
            scheduler.step()
    assert seen == pytest.approx([1.0, 0.1, 0.01])


def test_learning_rate_may_be_a_tensor():
    w = nn.Parameter(torch.zeros(1))
    optimizer = SAM([w], torch.optim.SGD, lr=torch.tensor(1.0))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    for _ in range(2):
        w.grad = torch.ones(1)
        optimizer.first_step()
        optimizer.second_step()
        scheduler.step()
    assert w.item() == pytest.approx(-1.5)


@every_base
def test_parameters_without_gradient_in_one_or_both_passes(base):
    kind, kwargs = BASES[base]
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(3)) for _ in range(4)]
    both, first_only, second_only, neither = params
    reference = [nn.Parameter(p.detach().clone()) for p in params]
    optimizer = SAM(params, kind, rho=0.1, **kwargs)
    plain = kind(reference, **kwargs)
    for _ in range(3):
        before = [p.detach().clone() for p in params]
        both.grad, first_only.grad = torch.full((3,), 3.0), torch.full((3,), 4.0)
        optimizer.first_step(zero_grad=True)
        assert optimizer.gradient_norm.item() == pytest.approx(75**0.5)
        assert not torch.equal(first_only, before[1])
        assert_bitwise([second_only.data, neither.data], before[2:])
        both.grad, second_only.grad = torch.ones(3), torch.ones(3)
        reference[0].grad, reference[2].grad = torch.ones(3), torch.ones(3)
        optimizer.second_step(zero_grad=True)
        plain.step()
        assert_bitwise([first_only.data, neither.data], [before[1], before[3]])
    torch.testing.assert_close(params, reference)


def test_a_first_gradient_that_comes_late():
    # torch's fused SGD alone fails here: some momentum buffers exist, others do not.
    a, b = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = SAM([a, b], torch.optim.SGD, lr=1.0, momentum=0.5)
    for grads in ([a], [a, b]):
        for p in grads:
            p.grad = torch.ones(2)
        optimizer.first_step()
        optimizer.second_step(zero_grad=True)
    assert a.tolist() == [-2.5, -2.5]
    assert b.tolist() == [-1.0, -1.0]


@pytest.mark.parametrize("adaptive", [False, True])
def test_zero_gradient_perturbs_nothing_and_is_not_nan(adaptive):
    w = nn.Parameter(torch.tensor([1.0, 0.0]))
    optimizer = SAM([w], torch.optim.SGD, adaptive=adaptive, lr=1.0)
    w.grad = torch.zeros(2)
    optimizer.first_step()
    assert w.tolist() == [1.0, 0.0]
    assert optimizer.gradient_norm.item() == 0.0
    w.grad = torch.ones(2)
    optimizer.second_step()
    assert w.tolist() == [0.0, -1.0]
    assert optimizer.skipped_steps.item() == 0


def test_no_gradient_at_all_is_a_norm_of_zero():
    w = nn.Parameter(torch.ones(2))
    optimizer = SAM([w], torch.optim.SGD, lr=1.0)
    optimizer.first_step()
    assert optimizer.gradient_norm.item() == 0.0
    optimizer.second_step()
    assert w.tolist() == [1.0, 1.0]


@every_base
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("warm", [False, True])
def test_gradient_that_is_not_finite_skips_the_step(base, bad, warm):
    kind, kwargs = BASES[base]
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(4))
    optimizer = SAM([w], kind, rho=0.1, **kwargs)
    reference = copy.deepcopy(w)
    plain = SAM([reference], kind, rho=0.1, **kwargs)

    def step(p, optimizer, gradient):
        p.grad = gradient.clone()
        optimizer.first_step()
        at = p.detach().clone()
        p.grad = gradient * 2
        optimizer.second_step()
        return at

    if warm:
        step(w, optimizer, torch.ones(4))
        step(reference, plain, torch.ones(4))
    before = w.detach().clone()
    at = step(w, optimizer, torch.tensor([1.0, bad, 0.0, 2.0]))
    assert_bitwise(at, before)
    assert_bitwise(w.detach(), before)
    assert optimizer.found_inf.item() == 1.0
    assert optimizer.skipped_steps.item() == 1
    # Afterwards all goes on as if the bad step had not been: momentum and step count too.
    step(w, optimizer, torch.ones(4))
    step(reference, plain, torch.ones(4))
    assert_bitwise(w.detach(), reference.detach())
    assert optimizer.skipped_steps.item() == 1


@every_base
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("warm", [False, True])
def test_a_second_gradient_that_is_not_finite_skips_the_step(base, bad, warm):
    kind, kwargs = BASES[base]
    torch.manual_seed(0)
    start = torch.randn(4)
    w, v = (nn.Parameter(start.clone()) for _ in range(2))
    optimizer, check = (SAM([p], kind, rho=0.1, **kwargs) for p in (w, v))

    def step(p, optimizer, second):
        p.grad = torch.ones(4)
        optimizer.first_step()
        p.grad = second.clone()
        optimizer.second_step()

    if warm:
        step(w, optimizer, torch.ones(4))
        step(v, check, torch.ones(4))
    before = w.detach().clone()
    step(w, optimizer, torch.tensor([1.0, bad, 0.0, 2.0]))
    assert_bitwise(w.detach(), before)
    assert (optimizer.found_inf.item(), optimizer.skipped_steps.item()) == (1.0, 1)
    # Afterwards all goes on as if the bad step had not been: momentum and step count too.
    step(w, optimizer, torch.ones(4))
    step(v, check, torch.ones(4))
    assert_bitwise(w.detach(), v.detach())
    assert (optimizer.found_inf.item(), optimizer.skipped_steps.item()) == (0.0, 1)


def test_a_second_gradient_whose_norm_overflows_is_stepped_with():
    w, empty = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(0))
    optimizer = SAM([w, empty], torch.optim.SGD, lr=2**-100)
    w.grad, empty.grad = torch.ones(2), torch.ones(0)
    optimizer.first_step()
    w.grad = torch.full((2,), 3e38)
    optimizer.second_step()
    assert optimizer.skipped_steps.item() == 0
    assert w.tolist() == (-torch.full((2,), 3e38) * 2**-100).tolist()


def test_a_sparse_second_gradient_is_an_error():
    w = nn.Parameter(torch.ones(2))
    optimizer = SAM([w], torch.optim.SGD, lr=1.0)
    w.grad = torch.ones(2)
    optimizer.first_step()
    w.grad = torch.ones(2).to_sparse()
    with pytest.raises(RuntimeError, match="SAM does not take sparse gradients"):
        optimizer.second_step()
    assert w.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("base", ["momentum", "adam"])
def test_strides_that_mean_nothing_are_those_of_the_parameter(base):
    """torch's fused steps on CUDA fail on others, as a 1 × 1 convolution's gradient may have."""
    kind, kwargs = BASES[base]
    w = nn.Parameter(torch.randn(4, 3, 1, 1).to(memory_format=torch.channels_last))
    optimizer = SAM([w], kind, **kwargs)
    other = (3, 1, 1, 1)
    assert w.stride() != other
    for half in (optimizer.first_step, optimizer.second_step):
        w.grad = torch.randn(12).as_strided(w.shape, other)
        values = w.grad.clone()
        half()
    assert w.grad.stride() == w.stride()
    assert_bitwise(w.grad, values)
    state = copy.deepcopy(optimizer.state_dict())
    for name, t in state["state"][0].items():
        if t.shape == w.shape:
            state["state"][0][name] = t.as_strided(w.shape, other)
    optimizer.load_state_dict(state)
    assert all(t.stride() == w.stride() for t in optimizer.state[w].values() if t.dim())


def test_found_inf_may_be_set_for_a_second_gradient_known_to_be_bad():
    w = nn.Parameter(torch.ones(2))
    optimizer = SAM([w], torch.optim.SGD, lr=1.0, momentum=0.9)
    w.grad = torch.ones(2)
    optimizer.first_step()
    optimizer.found_inf.fill_(1)
    optimizer.second_step()
    assert w.tolist() == [1.0, 1.0]
    assert optimizer.skipped_steps.item() == 1


# Devices and memory.


def test_every_half_step_runs_on_the_parameters_device(monkeypatch):
    """Streams, captures and launches go by the current device, wherever the tensors are."""
    depth, seen = 0, []

    @contextlib.contextmanager
    def on_device(self):
        nonlocal depth
        depth += 1
        yield
        depth -= 1

    def recorded(owner, name):
        function = getattr(owner, name)

        def record(*arguments):
            seen.append((name, depth > 0))
            return function(*arguments)

        monkeypatch.setattr(owner, name, record)

    monkeypatch.setattr(SAM, "_on_device", on_device)
    recorded(SAM, "_ascend")
    recorded(SAM, "_base_step")
    recorded(eager, "restore")
    w = nn.Parameter(torch.ones(2))
    optimizer = SAM([w], torch.optim.SGD, lr=1.0)
    w.grad = torch.ones(2)
    optimizer.first_step()
    optimizer.restore()
    optimizer.first_step()
    optimizer.second_step()
    names = ["_ascend", "restore", "_ascend", "restore", "_base_step"]
    assert seen == [(name, True) for name in names]


def test_the_device_of_a_half_step_is_that_of_the_parameters():
    class Elsewhere:
        gradient_norm = types.SimpleNamespace(device=torch.device("cuda", 1))

    guard = SAM._on_device(Elsewhere())
    assert isinstance(guard, torch.cuda.device)
    assert guard.idx == 1


@every_base
def test_memory_is_free_without_the_garbage_collector(base):
    model = network()
    optimizer = sam(model, base)
    backward(model)
    optimizer.step(functools.partial(backward, model))
    left = [weakref.ref(optimizer), *(weakref.ref(p) for p in model.parameters())]
    gc.disable()
    try:
        del optimizer, model
        assert [ref() for ref in left] == [None] * len(left)
    finally:
        gc.enable()


# The order of the half-steps, and step(closure).


def test_half_steps_out_of_order_are_errors():
    model = network()
    optimizer = sam(model)
    with pytest.raises(RuntimeError, match="second_step without first_step"):
        optimizer.second_step()
    backward(model)
    optimizer.first_step()
    with pytest.raises(RuntimeError, match="first_step called twice"):
        optimizer.first_step()
    optimizer.second_step()
    with pytest.raises(RuntimeError, match="second_step without first_step"):
        optimizer.second_step()


@pytest.mark.parametrize("call", ["state_dict", "load_state_dict", "pickle"])
def test_saving_and_loading_between_the_half_steps_is_an_error(call):
    model = network()
    optimizer = sam(model)
    state = optimizer.state_dict()
    backward(model)
    optimizer.first_step()
    with pytest.raises(RuntimeError, match="between first_step and second_step"):
        {
            "state_dict": optimizer.state_dict,
            "load_state_dict": lambda: optimizer.load_state_dict(state),
            "pickle": lambda: pickle.dumps(optimizer),
        }[call]()
    optimizer.second_step()


def test_restore_abandons_a_step():
    model = network()
    optimizer = sam(model)
    before = snapshot(model)
    backward(model)
    optimizer.first_step()
    optimizer.restore()
    assert_bitwise(snapshot(model), before)
    optimizer.restore()  # nothing to do
    optimizer.first_step()
    optimizer.second_step()


def test_step_with_closure_is_both_half_steps():
    by_halves, by_closure = network(), network()
    train(by_halves, sam(by_halves), 5)
    optimizer = sam(by_closure)

    def closure():
        assert all(p.grad is None for p in by_closure.parameters())
        with frozen_batchnorm(by_closure):
            return backward(by_closure)

    for _ in range(5):
        backward(by_closure)
        with torch.no_grad():  # the closure gets gradients all the same
            loss = optimizer.step(closure)
        optimizer.zero_grad()
        assert isinstance(loss, torch.Tensor)
    assert_bitwise(by_closure.state_dict(), by_halves.state_dict())


def test_step_needs_a_closure():
    with pytest.raises(TypeError, match="needs a closure"):
        sam(network()).step()


def test_a_closure_that_raises_leaves_w_as_it_was():
    model = network()
    optimizer = sam(model)
    before = snapshot(model)
    backward(model)
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    assert_bitwise(snapshot(model), before)
    backward(model)
    optimizer.first_step()
    optimizer.second_step()


# State: dicts, files, pickles, copies.


@every_base
def test_state_dict_carries_the_base_state(base):
    model = network()
    optimizer = sam(model, base, adaptive="weights", eta=0.01)
    train(model, optimizer, 3)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    resumed = network(seed=5)
    resumed.load_state_dict(saved["model"])
    again = sam(resumed, base, rho=9.0, lr=9.0)
    again.load_state_dict(saved["optimizer"])
    assert again.param_groups is again.base_optimizer.param_groups
    assert again.state is again.base_optimizer.state
    assert again.param_groups[0]["adaptive"] == "weights"

    train(model, optimizer, 3)
    train(resumed, again, 3)
    assert_bitwise(resumed.state_dict(), model.state_dict())


def test_state_dict_of_the_plain_base_can_be_loaded():
    model = network()
    kind, kwargs = BASES["momentum"]
    plain = kind(model.parameters(), **kwargs)
    backward(model)
    plain.step()
    optimizer = sam(model, rho=0.07)
    optimizer.load_state_dict(plain.state_dict())
    assert optimizer.param_groups[0]["rho"] == 0.07
    for p in model.parameters():
        assert_bitwise(optimizer.state[p]["momentum_buffer"], plain.state[p]["momentum_buffer"])
    train(model, optimizer, 1)


@every_base
@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_copies_go_on_as_the_original_does(base, how):
    model = network()
    optimizer = sam(model, base)
    train(model, optimizer, 2)
    pair = (model, optimizer)
    clone, again = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    assert again.param_groups is again.base_optimizer.param_groups
    assert next(clone.parameters()) is again.param_groups[0]["params"][0]
    train(model, optimizer, 2)
    train(clone, again, 2)
    assert_bitwise(clone.state_dict(), model.state_dict())


# Refusals.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": -0.1}, "rho must be"),
        ({"rho": math.nan}, "rho must be"),
        ({"rho": "big"}, "rho must be"),
        ({"eta": -1.0}, "eta must be"),
        ({"adaptive": "norms"}, "adaptive must be"),
        ({"adaptive": "weights"}, "named_parameters"),
        ({"implementation": "magic"}, "implementation must be"),
        ({"maximize": True}, "maximize"),
    ],
)
def test_options_that_are_not_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        SAM([nn.Parameter(torch.ones(1))], torch.optim.SGD, **options)


def test_base_optimizer_must_be_a_class():
    w = nn.Parameter(torch.ones(1))
    with pytest.raises(TypeError, match="must be a class"):
        SAM([w], torch.optim.SGD([w]))


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (torch.optim.LBFGS, "LBFGS cannot be the base of SAM: its step needs a closure"),
        (torch.optim.Adadelta, "Adadelta cannot be the base of SAM: it has an option 'rho'"),
        (SAM, "SAM cannot be the base of SAM: it has an option 'rho'"),
    ],
)
def test_bases_that_are_not_allowed(base, message):
    with pytest.raises(ValueError, match=message):
        SAM([nn.Parameter(torch.ones(1))], base)


def test_train_and_eval_are_the_bases():
    class Base(torch.optim.SGD):
        def train(self):
            told.append("train")

        def eval(self):
            told.append("eval")

    told = []
    w = nn.Parameter(torch.ones(1))
    optimizer = SAM([w], Base, lr=0.1)
    optimizer.train()
    optimizer.eval()
    assert told == ["train", "eval"]
    SAM([w], torch.optim.SGD, lr=0.1).eval()  # nothing to tell
    w.grad = torch.ones(1)
    optimizer.first_step()
    for change in (optimizer.train, optimizer.eval):
        with pytest.raises(RuntimeError, match="between first_step and second_step"):
            change()


def test_the_fused_option_of_a_class_that_is_not_torchs_is_its_own():
    class Base(torch.optim.SGD):
        def __init__(self, params, lr=0.1, fused=False):
            assert not fused
            super().__init__(params, lr)

    SAM([nn.Parameter(torch.ones(1))], Base)


def test_parameters_that_are_not_allowed():
    w = nn.Parameter(torch.ones(1))
    for params, message in [
        ([nn.Parameter(torch.ones(1, dtype=torch.complex64))], "floating-point"),
        ([w, nn.Parameter(torch.ones(1, device="meta"))], "one device"),
    ]:
        with pytest.raises(ValueError, match=message):
            SAM(params, torch.optim.SGD)
    with pytest.warns(UserWarning, match="duplicate"), pytest.raises(ValueError, match="twice"):
        SAM([w, w], torch.optim.SGD)


def test_a_refused_group_is_not_added():
    optimizer = SAM([nn.Parameter(torch.ones(1))], torch.optim.SGD)
    with pytest.raises(ValueError, match="rho must be"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "rho": -1})
    assert len(optimizer.param_groups) == 1


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = SAM(embedding.parameters(), torch.optim.SGD)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.first_step()


def test_channels_last_and_transposed_parameters():
    torch.manual_seed(0)
    layouts = [
        torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last),
        torch.randn(6, 5).t(),
        torch.randn(()),
        torch.randn(1),
    ]
    ours = [nn.Parameter(t.clone()) for t in layouts]
    theirs = [nn.Parameter(t.contiguous().clone()) for t in layouts]
    optimizers = [
        SAM(p, torch.optim.SGD, adaptive=True, lr=0.1, momentum=0.9) for p in (ours, theirs)
    ]
    for _ in range(3):
        for params, optimizer in zip((ours, theirs), optimizers, strict=True):
            sum((p**2).sum() for p in params).backward()
            optimizer.first_step(zero_grad=True)
            sum((p**2).sum() for p in params).backward()
            optimizer.second_step(zero_grad=True)
    for a, b, layout in zip(ours, theirs, layouts, strict=True):
        torch.testing.assert_close(a.detach(), b.detach())
        assert a.stride() == layout.stride()


@every_base
@pytest.mark.parametrize("adaptive", [False, True])
def test_gradients_laid_out_otherwise_than_their_parameter(base, adaptive):
    # torch's fused steps alone walk both as flat memory, and are silently wrong.
    start = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    ours = nn.Parameter(start.to(memory_format=torch.channels_last))
    theirs = nn.Parameter(start.clone())
    kind, kwargs = BASES[base]
    for p in (ours, theirs):
        optimizer = SAM([p], kind, rho=0.1, adaptive=adaptive, **kwargs)
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            p.grad = torch.randn(start.shape, generator=generator)
            optimizer.first_step()
            p.grad = torch.randn(start.shape, generator=generator)
            optimizer.second_step()
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-6, atol=1e-6)


@every_base
def test_channels_last_is_the_same_training_and_stays_channels_last(base):
    start = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    ours = nn.Parameter(start.to(memory_format=torch.channels_last))
    theirs = nn.Parameter(start.clone())
    kind, kwargs = BASES[base]
    optimizers = [SAM([p], kind, rho=0.1, **kwargs) for p in (ours, theirs)]
    address = ours.data_ptr()
    for step in range(4):
        for p, optimizer in zip((ours, theirs), optimizers, strict=True):
            for half_step in (optimizer.first_step, optimizer.second_step):
                torch.manual_seed(step)
                p.grad = torch.empty_like(p).copy_(torch.randn(p.shape))
                half_step()
        gradient = ours.grad
        for t in (ours, gradient, *optimizers[0].state[ours].values()):
            if isinstance(t, torch.Tensor) and t.dim():
                assert t.shape == start.shape
                assert t.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(ours.detach(), theirs.detach())
    assert ours.data_ptr() == address


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("base", ["sgd", "momentum", "adam"])
def test_half_precision_parameters_move(base, dtype):
    # torch's fused SGD alone leaves them as they are on a CPU.
    kind, kwargs = BASES[base]
    ours, theirs = (nn.Parameter(torch.ones(64, dtype=dtype)) for _ in range(2))
    optimizer, plain = SAM([ours], kind, rho=0.0, **kwargs), kind([theirs], **kwargs)
    for _ in range(3):
        ours.grad, theirs.grad = torch.ones_like(ours), torch.ones_like(theirs)
        optimizer.first_step()
        optimizer.second_step()
        plain.step()
    assert_bitwise(ours.detach(), theirs.detach())
    assert ours[0] < 1


def test_loading_into_the_base_alone_is_followed():
    model = network()
    optimizer = sam(model)
    train(model, optimizer, 2)
    saved = copy.deepcopy(optimizer.base_optimizer.state_dict())
    again = sam(model)
    again.base_optimizer.load_state_dict(saved)
    assert again.state is again.base_optimizer.state
    assert again.param_groups is again.base_optimizer.param_groups
    assert len(again.state_dict()["state"]) == len(list(model.parameters()))
    train(model, again, 1)


def test_a_model_may_be_cast_after_the_optimizer_was_made():
    model = network()
    optimizer = sam(model)
    model.double()
    train(model, optimizer, 2)
    assert optimizer.gradient_norm.dtype == torch.float64


def test_parameters_that_share_memory_are_refused():
    w = torch.ones(3)
    with pytest.raises(ValueError, match="share memory"):
        SAM([nn.Parameter(w), nn.Parameter(w)], torch.optim.SGD)


def test_fused_is_refused_on_a_cpu_with_the_reason():
    pytest.importorskip("triton")
    with pytest.raises(ValueError, match="must be on a CUDA device, got cpu"):
        sam(network(), implementation="fused")
    assert sam(network()).implementation == "eager"


@pytest.mark.parametrize("through", ["sam", "base"])
def test_state_from_a_model_in_another_memory_format(through):
    # As with gradients: torch's fused steps would walk it as flat memory.
    start = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    grads = [torch.randn(start.shape, generator=torch.Generator().manual_seed(s)) for s in (1, 2)]
    p = nn.Parameter(start.clone())
    q = nn.Parameter(start.to(memory_format=torch.channels_last))
    a, b = (SAM([x], torch.optim.SGD, lr=0.1, momentum=0.9) for x in (p, q))

    def step(x, optimizer, g):
        x.grad = g.clone()
        optimizer.first_step()
        optimizer.second_step()

    step(p, a, grads[0])
    with torch.no_grad():
        q.copy_(p)
    saved = copy.deepcopy(a.state_dict())
    (b if through == "sam" else b.base_optimizer).load_state_dict(saved)
    step(p, a, grads[1])
    step(q, b, grads[1])
    torch.testing.assert_close(q.detach(), p.detach())


def test_loading_again_and_again_leaves_one_hook():
    optimizer = sam(network())
    for _ in range(3):
        optimizer.load_state_dict(optimizer.state_dict())
    assert len(optimizer.base_optimizer._optimizer_load_state_dict_post_hooks) == 1


def test_a_loaded_group_is_checked():
    optimizer = SAM(network().parameters(), torch.optim.SGD)
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][0]["adaptive"] = "weights"
    with pytest.raises(ValueError, match="named_parameters"):
        optimizer.load_state_dict(state)


def test_no_group_is_added_between_the_half_steps():
    model = network()
    optimizer = sam(model)
    backward(model)
    optimizer.first_step()
    with pytest.raises(RuntimeError, match="add_param_group between"):
        optimizer.add_param_group({"params": [("w", nn.Parameter(torch.ones(1)))]})


@pytest.mark.parametrize(("size", "norm"), [(1e-24, 0.0), (1e-20, 2e-20), (2e19, torch.inf)])
def test_the_ends_of_a_float32_norm(size, norm):
    """As first_step says: below them nothing is perturbed, above them the step is skipped."""
    w = torch.nn.Parameter(torch.ones(4))
    optimizer = SAM([w], torch.optim.SGD, rho=0.5, lr=0.1, implementation="eager")
    w.grad = torch.full((4,), size)
    optimizer.first_step()
    assert optimizer.gradient_norm.item() == pytest.approx(norm, rel=1e-5)
    moved = (w.detach() - 1).norm().item()
    assert moved == pytest.approx(0.5 if 0 < norm < torch.inf else 0.0, rel=1e-5)
    w.grad = torch.full((4,), 1.0)
    optimizer.second_step()
    assert optimizer.skipped_steps.item() == (norm == torch.inf)
