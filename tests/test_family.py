"""The SAM family against numpy statements of the papers' rules, and against SAM where it is SAM."""

import copy
import io
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatbench import optim
from flatbench.optim import (
    GSAM,
    SAM,
    FriendlySAM,
    LateSAM,
    LookSAM,
    MicroBatchSAM,
    MomentumSAM,
    NormalizationSAM,
    PeriodicSAM,
    capture,
    normalization_parameters,
)
from tests import family
from tests.optimizers import BASES, assert_bitwise, every_base

STEPS, EXAMPLES = 50, 12


class Net(nn.Module):
    """One weight used twice, a normalisation layer, a frozen scale."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tied = nn.Linear(4, 5)
        self.norm = nn.LayerNorm(5)
        self.out = nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.tensor(1.5), requires_grad=False)

    def forward(self, x):
        hidden = self.norm(torch.tanh(self.tied(x)))
        return self.out(torch.tanh(hidden @ self.tied.weight)) * self.scale


def data(step, part=slice(None)):
    """A batch of its own for each step: averages over steps differ from their last gradient."""
    chance = torch.Generator().manual_seed(step)
    x = torch.randn(EXAMPLES, 4, generator=chance, dtype=torch.float64)
    y = torch.randn(EXAMPLES, 2, generator=chance, dtype=torch.float64)
    return x[part], y[part]


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def vector(model):
    return torch.cat([p.detach().flatten() for p in trained(model)]).double().numpy().copy()


def gradient_of(model, part=slice(None)):
    """Return the gradient as a function of the vector and the step."""
    model = copy.deepcopy(model)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    sizes = [p.numel() for p in trained(model)]
    shapes = [p.shape for p in trained(model)]

    def gradient(w, step):
        pieces = torch.from_numpy(w).split(sizes)
        params = [p.reshape(s).requires_grad_() for p, s in zip(pieces, shapes, strict=True)]
        x, y = data(step, part)
        out = torch.func.functional_call(model, dict(zip(names, params, strict=True)), (x,))
        found = torch.autograd.grad(F.mse_loss(out, y), params)
        return torch.cat([g.flatten() for g in found]).numpy()

    return gradient


def backward(model, step, part=slice(None)):
    x, y = data(step, part)
    loss = F.mse_loss(model(x), y)
    loss.backward()
    return loss


def train(model, optimizer, steps=STEPS, rate=None, first=0):
    """As a user trains: by the half-steps, or by step() where it takes one gradient."""
    for i in range(first, first + steps):
        if rate is not None:
            for group in optimizer.param_groups:
                group["lr"] = rate(i)
        backward(model, i)
        if optimizer.passes == 1:
            optimizer.step()
            optimizer.zero_grad()
            continue
        optimizer.first_step(zero_grad=True)
        backward(model, i)
        optimizer.second_step(zero_grad=True)


RHOS = (0.2, 0.05)


def groups(model):
    """Two groups, each with a radius of its own."""
    named = list(model.named_parameters())
    return [{"params": named[:2], "rho": RHOS[0]}, {"params": named[2:], "rho": RHOS[1]}]


def radii(model):
    return np.concatenate(
        [
            np.full(sum(p.numel() for _, p in group["params"] if p.requires_grad), group["rho"])
            for group in groups(model)
        ]
    )


KINDS = {
    "nesterov": (
        lambda: family.SGD(0.05, 0.9, True, 1e-2),
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-2},
    ),
    "adam": (
        lambda: family.Adam(0.02, 1e-2),
        torch.optim.Adam,
        {"lr": 0.02, "weight_decay": 1e-2},
    ),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def absolute(w):
    return np.abs(w) + 0.01


ADAPTIVE = {"adaptive": True, "eta": 0.01}

# method -> (class, its options, the numpy statement with its own)
RULES = {
    "periodic": (PeriodicSAM, {"interval": 3}, family.periodic, {"interval": 3}),
    "late": (LateSAM, {"start_step": 17}, family.late, {"start": 17}),
    "msam": (MomentumSAM, {}, family.msam, {}),
    "friendly": (
        FriendlySAM,
        {"sigma": 0.8, "lmbda": 0.7},
        family.friendly,
        {"sigma": 0.8, "lmbda": 0.7},
    ),
    "adaptive friendly": (
        FriendlySAM,
        {"sigma": 1.0, "lmbda": 0.9, **ADAPTIVE},
        family.friendly,
        {"sigma": 1.0, "lmbda": 0.9, "t": absolute},
    ),
    "looksam": (
        LookSAM,
        {"interval": 4, "alpha": 0.7},
        family.looksam,
        {"interval": 4, "alpha": 0.7},
    ),
}


@every_kind
@pytest.mark.parametrize("method", RULES)
def test_it_follows_the_papers_rule_for_50_steps(method, kind):
    cls, options, statement, own = RULES[method]
    base, torchs, kwargs = KINDS[kind]
    model = Net().double()
    expected = statement(vector(model), gradient_of(model), base(), STEPS, radii(model), **own)
    optimizer = cls(groups(model), torchs, **options, **kwargs)
    train(model, optimizer)
    optimizer.eval()
    np.testing.assert_allclose(vector(model), expected, rtol=1e-9, atol=1e-11)


@every_kind
@pytest.mark.parametrize("adaptive", [False, True])
def test_gsam_follows_the_papers_rule_with_its_schedule_for_50_steps(kind, adaptive):
    base, torchs, kwargs = KINDS[kind]
    model, highest = Net().double(), kwargs["lr"]

    def rate(i):
        """A warm-up above lr_max and a fall below lr_min are in it."""
        return highest * 1.2 * math.sin(math.pi * (i + 1) / (STEPS + 1))

    lowest = 0.3 * highest

    def rho(i):
        height = np.clip((rate(i) - lowest) / (highest - lowest), 0, 1)
        return 0.01 + (radii(model) - 0.01) * height

    reference = base()
    w, gradient = vector(model), gradient_of(model)
    for i in range(STEPS):
        reference.lr = rate(i)
        t = absolute if adaptive else family.ones
        w = family.gsam(
            w, lambda at, _, i=i: gradient(at, i), reference, 1, lambda _, i=i: rho(i), 0.4, t
        )
    optimizer = GSAM(
        groups(model),
        torchs,
        alpha=0.4,
        rho_min=0.01,
        lr_min=lowest,
        **(ADAPTIVE if adaptive else {}),
        **kwargs,
    )
    train(model, optimizer, rate=rate)
    np.testing.assert_allclose(vector(model), w, rtol=1e-9, atol=1e-11)


@every_kind
@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_on_follows_the_papers_rule_for_50_steps(kind, adaptive):
    base, torchs, kwargs = KINDS[kind]
    model = Net().double()
    only = normalization_parameters(model)
    assert {id(p) for p in only} == {id(model.norm.weight), id(model.norm.bias)}
    mask = np.concatenate(
        [np.full(p.numel(), float(any(p is q for q in only))) for p in trained(model)]
    )
    expected = family.sam_on(
        vector(model),
        gradient_of(model),
        base(),
        STEPS,
        radii(model),
        mask,
        absolute if adaptive else family.ones,
    )
    options = ADAPTIVE if adaptive else {}
    optimizer = NormalizationSAM(groups(model), torchs, only, **options, **kwargs)
    train(model, optimizer)
    np.testing.assert_allclose(vector(model), expected, rtol=1e-9, atol=1e-11)


@every_kind
@pytest.mark.parametrize("by", ["half-steps", "closures"])
def test_micro_batches_follow_the_papers_rule_for_50_steps(kind, by):
    base, torchs, kwargs = KINDS[kind]
    model = Net().double()
    parts = [slice(0, 5), slice(5, 10), slice(10, 12)]
    sizes = [5, 5, 2]
    expected = family.micro(
        vector(model),
        [gradient_of(model, part) for part in parts],
        base(),
        STEPS,
        radii(model),
        [size / EXAMPLES for size in sizes],
    )
    optimizer = MicroBatchSAM(groups(model), torchs, **kwargs)
    for i in range(STEPS):
        if by == "closures":
            optimizer.step_parts([lambda p=p, i=i: backward(model, i, p) for p in parts], sizes)
            continue
        for part, size in zip(parts, sizes, strict=True):
            backward(model, i, part)
            optimizer.first_step(zero_grad=True)
            backward(model, i, part)
            optimizer.end_part(size)
        optimizer.second_step(zero_grad=True)
    np.testing.assert_allclose(vector(model), expected, rtol=1e-9, atol=1e-11)


# Where a method must be SAM, or its base, it is so bit for bit.

SAME_AS_SAM = {
    "periodic": lambda params, base, **k: PeriodicSAM(params, base, interval=1, **k),
    "late": lambda params, base, **k: LateSAM(params, base, start_step=0, **k),
    "friendly": lambda params, base, **k: FriendlySAM(params, base, sigma=0.0, **k),
    "normalization": lambda params, base, **k: NormalizationSAM(
        params, base, [p for _, p in params], **k
    ),
    "gsam": lambda params, base, **k: GSAM(params, base, alpha=0.0, **k),
    "looksam": lambda params, base, **k: LookSAM(params, base, interval=1, **k),
    "micro-batch": MicroBatchSAM,
}


@every_base
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("method", SAME_AS_SAM)
def test_it_is_sam_bit_for_bit_where_it_must_be(method, base, adaptive):
    kind, kwargs = BASES[base]
    ours, theirs = Net().double(), Net().double()
    options = {"rho": 0.1, "adaptive": adaptive, **kwargs}
    optimizer = SAME_AS_SAM[method](list(ours.named_parameters()), kind, **options)
    reference = SAM(list(theirs.named_parameters()), kind, **options)
    for i in range(10):
        train(ours, optimizer, 1, first=i)
        train(theirs, reference, 1, first=i)
        assert optimizer.gradient_norm == reference.gradient_norm
    assert_bitwise(ours.state_dict(), theirs.state_dict())


@every_base
def test_one_part_is_sam_bit_for_bit(base):
    kind, kwargs = BASES[base]
    ours, theirs = Net().double(), Net().double()
    optimizer = MicroBatchSAM(ours.parameters(), kind, rho=0.1, **kwargs)
    reference = SAM(theirs.parameters(), kind, rho=0.1, **kwargs)
    for i in range(10):
        optimizer.step_parts([lambda i=i: backward(ours, i)], [12])
        train(theirs, reference, 1, first=i)
    assert_bitwise(ours.state_dict(), theirs.state_dict())


@every_base
def test_steps_of_one_gradient_are_the_bases_bit_for_bit(base):
    kind, kwargs = BASES[base]
    fused = {} if base == "dampening" else {"fused": True}
    ours, theirs = Net().double(), Net().double()
    optimizer = LateSAM(ours.parameters(), kind, start_step=10, **kwargs)
    reference = kind(trained(theirs), **kwargs, **fused)
    train(ours, optimizer, 10)
    for i in range(10):
        backward(theirs, i)
        reference.step()
        reference.zero_grad()
    assert optimizer.passes == 2
    assert_bitwise(ours.state_dict(), theirs.state_dict())


# State, copies, and what is refused.

METHODS = {
    **{
        name: (cls, options) for name, (cls, options, *_) in RULES.items() if "adaptive" not in name
    },
    "gsam": (GSAM, {"alpha": 0.4, "rho_min": 0.01}),
    "sam": (SAM, {}),
}
every_method = pytest.mark.parametrize("method", METHODS)


def made(method, model, base="nesterov", **more):
    cls, options = METHODS[method]
    _, torchs, kwargs = KINDS[base]
    return cls(model.parameters(), torchs, **{"rho": 0.1, **options, **kwargs, **more})


@every_method
@every_kind
def test_a_state_dict_through_a_file_goes_on_bit_for_bit(method, kind):
    whole, again = Net(), Net()
    whole, again = whole.double(), again.double()
    optimizer, resumed = made(method, whole, kind), made(method, again, kind)
    train(whole, optimizer, 7)
    optimizer.eval()
    file = io.BytesIO()
    torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    for one in (optimizer, resumed):
        one.train()
    train(whole, optimizer, 7, first=7)
    train(again, resumed, 7, first=7)
    optimizer.eval()
    resumed.eval()
    assert_bitwise(whole.state_dict(), again.state_dict())
    assert optimizer.passes == resumed.passes


@every_method
@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_copies_go_on_as_the_original_does(method, how):
    model = Net().double()
    optimizer = made(method, model)
    train(model, optimizer, 7)
    optimizer.eval()
    pair = (model, optimizer)
    twin, copied = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    for one in (optimizer, copied):
        one.train()
    train(model, optimizer, 7, first=7)
    train(twin, copied, 7, first=7)
    optimizer.eval()
    copied.eval()
    assert_bitwise(model.state_dict(), twin.state_dict())


@every_method
@every_kind
def test_a_state_dict_of_the_base_can_be_loaded(method, kind):
    model = Net().double()
    plain = KINDS[kind][1](model.parameters(), **KINDS[kind][2])
    backward(model, 0)
    plain.step()
    optimizer = made(method, model, kind)
    optimizer.load_state_dict(plain.state_dict())
    optimizer.train()
    model.zero_grad()
    train(model, optimizer, 3)
    assert optimizer.param_groups[0]["rho"] == 0.1


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"sam"}))
def test_a_capture_of_its_step_is_refused(method, monkeypatch):
    model = Net().double()
    optimizer = made(method, model)
    weights = vector(model)
    backward(model, 0)
    monkeypatch.setattr(capture, "capturing", lambda t: True)
    with pytest.raises(RuntimeError, match=f"{type(optimizer).__name__} can't be captured"):
        optimizer.step() if optimizer.passes == 1 else optimizer.first_step()
    np.testing.assert_array_equal(vector(model), weights)


@every_method
@every_kind
@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("when", ["first", "last"])
@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_gradient_that_is_not_finite_changes_nothing(method, kind, bad, when, at):
    """A skipped step leaves weights, the base's state and the method's own as they were."""
    model = Net().double()
    optimizer = made(method, model, kind)
    train(model, optimizer, at)
    optimizer.eval()
    weights, state = vector(model), copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.train()
    backward(model, at)
    two = optimizer.passes == 2
    if when == "first" or not two:
        model.out.bias.grad[0] = bad
    if two:
        optimizer.first_step(zero_grad=True)
        backward(model, at)
        if when == "last":
            model.out.bias.grad[0] = bad
        optimizer.second_step(zero_grad=True)
    else:
        optimizer.step()
        optimizer.zero_grad()
    assert optimizer.skipped_steps.item() == 1
    optimizer.eval()
    np.testing.assert_array_equal(vector(model), weights)
    own = optimizer.state_dict()["state"]
    assert all(np.isfinite(t.double().numpy()).all() for s in own.values() for t in s.values())
    if at:
        # An average has learnt from the first gradient before the second one spoilt the step.
        changing = method == "friendly" and when == "last"
        for number, tensors in state.items():
            for name, t in tensors.items():
                if not (changing and name == "sam_average"):
                    assert_bitwise(own[number][name], t)
    optimizer.train()
    train(model, optimizer, 2, first=at + 1)
    assert optimizer.skipped_steps.item() == 1
    assert np.isfinite(vector(model)).all()


def test_one_bad_part_skips_the_whole_step():
    model = Net().double()
    optimizer = MicroBatchSAM(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    before = vector(model)
    for number, part in enumerate((slice(0, 6), slice(6, 12))):
        backward(model, 0, part)
        if number == 0:
            model.out.bias.grad[0] = math.nan
        optimizer.first_step(zero_grad=True)
        backward(model, 0, part)
        optimizer.end_part()
    optimizer.second_step(zero_grad=True)
    assert optimizer.found_inf.item() == 1
    assert optimizer.skipped_steps.item() == 1
    np.testing.assert_array_equal(vector(model), before)


def test_parts_may_lack_a_parameters_gradient():
    a, b = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = MicroBatchSAM([a, b], torch.optim.SGD, rho=0.0, lr=1.0)
    for of_a, of_b in ((4.0, None), (None, 8.0)):
        for _ in range(2):
            a.grad = None if of_a is None else torch.tensor([of_a])
            b.grad = None if of_b is None else torch.tensor([of_b])
            if optimizer._perturbed is None:
                optimizer.first_step()
        optimizer.end_part(3.0 if of_a else 1.0)
    optimizer.second_step()
    # three quarters of the weight have a gradient of 4 and 0, one quarter of 0 and 8
    assert (a.item(), b.item()) == (-3.0, -2.0)


def test_parts_out_of_order_are_errors():
    w = nn.Parameter(torch.ones(2))
    optimizer = MicroBatchSAM([w], torch.optim.SGD, lr=1.0)
    with pytest.raises(RuntimeError, match="end_part without first_step"):
        optimizer.end_part()
    w.grad = torch.ones(2)
    optimizer.first_step()
    with pytest.raises(ValueError, match="weight must be above 0, got 0"):
        optimizer.end_part(0)
    optimizer.end_part()
    with pytest.raises(RuntimeError, match="state_dict between a batch's parts"):
        optimizer.state_dict()
    w.grad = torch.ones(2)
    optimizer.first_step()
    with pytest.raises(RuntimeError, match="second_step before the last part's end_part"):
        optimizer.second_step()
    optimizer.restore()
    assert w.tolist() == [1.0, 1.0]
    with pytest.raises(RuntimeError, match="second_step without first_step"):
        optimizer.second_step()


def test_a_closure_of_a_part_that_raises_abandons_the_step():
    model = Net().double()
    optimizer = MicroBatchSAM(model.parameters(), torch.optim.SGD, rho=0.5, lr=0.1)
    before, calls = vector(model), []

    def closure():
        calls.append(1)
        if len(calls) == 4:
            raise OSError("no more")
        return backward(model, 0)

    with pytest.raises(OSError, match="no more"):
        optimizer.step_parts([closure, closure])
    np.testing.assert_array_equal(vector(model), before)
    optimizer.state_dict()


@pytest.mark.parametrize("method", ["periodic", "late", "looksam", "msam"])
def test_the_half_steps_of_a_step_of_one_gradient_are_refused(method):
    model = Net().double()
    optimizer = made(method, model, **({"interval": 2} if method == "looksam" else {}))
    if method == "looksam":
        train(model, optimizer, 1)
    assert optimizer.passes == 1
    backward(model, 0)
    with pytest.raises(RuntimeError, match=r"takes one gradient \(see passes\): call step"):
        optimizer.first_step()


@every_method
def test_a_closure_is_called_as_often_as_passes_says(method):
    model = Net().double()
    optimizer = made(method, model)
    counted = []
    for i in range(9):
        backward(model, i)
        calls = []

        def closure(i=i, calls=calls):
            calls.append(i)
            return backward(model, i)

        expected = optimizer.passes
        loss = optimizer.step(closure)
        optimizer.zero_grad()
        assert len(calls) + 1 == expected
        assert (loss is None) == (expected == 1)
        counted.append(expected)
    assert counted == {
        "periodic": [1, 1, 2] * 3,
        "late": [1] * 9,
        "msam": [1] * 9,
        "looksam": [2, 1, 1, 1, 2, 1, 1, 1, 2],
    }.get(method, [2] * 9)


@every_method
def test_hooks_fire_once_a_step(method):
    model = Net().double()
    optimizer = made(method, model)
    seen = []
    optimizer.register_step_pre_hook(lambda o, a, k: seen.append(("before", o is optimizer, a, k)))
    optimizer.register_step_post_hook(lambda o, a, k: seen.append(("after", o is optimizer, a, k)))
    for i in range(3):
        train(model, optimizer, 1, first=i)
        backward(model, i)
        optimizer.step(lambda i=i: backward(model, i))
        optimizer.zero_grad()
    assert seen == [("before", True, (), {}), ("after", True, (), {})] * 6


def test_hooks_of_all_optimizers_fire_once_a_step():
    from torch.optim.optimizer import (
        register_optimizer_step_post_hook,
        register_optimizer_step_pre_hook,
    )

    model = Net().double()
    optimizer = made("sam", model)
    seen = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: seen.append("before")),
        register_optimizer_step_post_hook(lambda *_: seen.append("after")),
    ]
    try:
        train(model, optimizer, 2)
    finally:
        for handle in handles:
            handle.remove()
    assert seen == ["before", "after"] * 2


def test_a_hook_that_would_change_arguments_is_refused():
    model = Net().double()
    optimizer = made("sam", model)
    optimizer.register_step_pre_hook(lambda _, args, kwargs: (args, kwargs))
    with pytest.raises(RuntimeError, match="a hook before the step must return None"):
        train(model, optimizer, 1)


@every_method
def test_a_scheduler_finds_a_step_before_its_own(method):
    model = Net().double()
    optimizer = made(method, model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, 1)
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025)


# Momentum-SAM between the steps.


def test_momentum_sam_puts_w_back_bit_for_bit_for_evaluation():
    model = Net().double()
    optimizer = made("msam", model)
    train(model, optimizer, 3)
    ahead = vector(model)
    with pytest.raises(RuntimeError, match=r"the weights are perturbed now; call eval\(\) first"):
        optimizer.state_dict()
    optimizer.eval()
    at = vector(model)
    assert np.linalg.norm(ahead - at) == pytest.approx(0.1, rel=1e-12)
    optimizer.eval()
    np.testing.assert_array_equal(vector(model), at)
    with pytest.raises(RuntimeError, match=r"in eval mode: call train\(\) first"):
        optimizer.step()
    optimizer.train()
    np.testing.assert_array_equal(vector(model), ahead)
    optimizer.train()
    np.testing.assert_array_equal(vector(model), ahead)
    optimizer.param_groups[0]["rho"] = 0.5  # a schedule of rho: w is put back all the same
    optimizer.eval()
    np.testing.assert_array_equal(vector(model), at)


def test_momentum_sam_needs_momentum():
    model = Net().double()
    for base in (torch.optim.SGD, torch.optim.RMSprop):
        with pytest.raises(ValueError, match="momentum must be above 0, got 0"):
            MomentumSAM(model.parameters(), base, lr=0.1)
    optimizer = MomentumSAM(model.parameters(), torch.optim.Adagrad, lr=0.1)
    backward(model, 0)
    with pytest.raises(RuntimeError, match="needs a base that keeps its momentum, got Adagrad"):
        optimizer.step()


# What is refused.


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (PeriodicSAM, {"interval": 0}, "interval must be a whole number of at least 1, got 0"),
        (PeriodicSAM, {"interval": 2.0}, "interval must be a whole number of at least 1, got 2.0"),
        (PeriodicSAM, {"interval": True}, "interval must be a whole number of at least 1, got T"),
        (LateSAM, {"start_step": -1}, "start_step must be a whole number of at least 0, got -1"),
        (LookSAM, {"interval": 0}, "interval must be a whole number of at least 1, got 0"),
        (LookSAM, {"alpha": -0.1}, "alpha must be at least 0, got -0.1"),
        (LookSAM, {"alpha": math.nan}, "alpha must be at least 0, got nan"),
        (GSAM, {"alpha": -0.1}, "alpha must be at least 0, got -0.1"),
        (GSAM, {"rho_min": 0.2}, "rho_min must lie between 0 and rho, got 0.2"),
        (GSAM, {"rho_min": 0.0, "lr_min": 0.1}, "lr_min must be below lr_max, got 0.1"),
        (FriendlySAM, {"sigma": -1.0}, "sigma must be at least 0, got -1.0"),
        (FriendlySAM, {"lmbda": 1.1}, "lmbda must lie between 0 and 1, got 1.1"),
        (MomentumSAM, {"rho": -0.1}, "rho must be a finite number of at least 0, got -0.1"),
        (SAM, {"rho": math.inf}, "rho must be a finite number of at least 0, got inf"),
    ],
)
def test_options_that_are_not_allowed(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(Net().parameters(), torch.optim.SGD, **{"rho": 0.1, "lr": 0.05, **options})


def test_parameters_that_sam_on_cannot_perturb_are_refused():
    model = Net()
    with pytest.raises(ValueError, match="only must hold the parameters to perturb, got none"):
        NormalizationSAM(model.parameters(), torch.optim.SGD, [], lr=0.1)
    with pytest.raises(ValueError, match="only holds a tensor that is none of the parameters"):
        NormalizationSAM(model.parameters(), torch.optim.SGD, [torch.ones(1)], lr=0.1)


def test_normalisation_layers_are_known_by_their_type():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.downsample = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
            self.ln_1, self.group = nn.LayerNorm(4), nn.GroupNorm(1, 2)
            self.instance = nn.InstanceNorm2d(2, affine=True)
            self.norm_like = nn.Linear(2, 2)  # a name that the authors' code would take

    block = Block()
    found = normalization_parameters(block)
    names = {name for name, p in block.named_parameters() if any(p is q for q in found)}
    layers = ("downsample.1", "ln_1", "group", "instance")
    assert names == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


def test_every_method_is_public():
    assert {cls.__name__ for cls, *_ in METHODS.values()} <= {*optim.__all__}
