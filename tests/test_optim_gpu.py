"""What only a CUDA device can show of the fused step: launches, streams, graphs, memory."""

import copy

import pytest
import torch
from torch import nn

from flatbench import models
from flatbench.optim import SAM, frozen_batchnorm
from tests import family_steps, optimizers
from tests.optimizers import BASES, SGD, Adam, assert_bitwise, relative_error, set_gradients, vector

pytestmark = pytest.mark.gpu

every_base = pytest.mark.parametrize("base", [name for name in BASES if name != "momentum"])
every_adaptive = pytest.mark.parametrize(
    ("adaptive", "eta"), [(False, 0.0), (True, 0.0), ("weights", 0.01)]
)


def resnet(seed=0, width=16):
    torch.manual_seed(seed)
    model = models.build("resnet18", width=width, in_channels=3, classes=10)
    return model.to("cuda", memory_format=torch.channels_last)


def optimizer(model, base="nesterov", implementation="auto", **options):
    return optimizers.optimizer(model.named_parameters(), base, implementation, **options)


def run(model, sam, steps, seed=0):
    optimizers.run(list(model.parameters()), sam, steps, seed, zero_grad=True)


@every_base
@every_adaptive
def test_50_steps_match_eager_and_float64(base, adaptive, eta):
    runs = {}
    for name in ("fused", "eager", "float64"):
        model = resnet()
        if name == "float64":
            model.double()
        implementation = "fused" if name == "fused" else "eager"
        sam = optimizer(model, base, implementation, rho=0.1, adaptive=adaptive, eta=eta)
        run(model, sam, 50)
        runs[name] = list(model.parameters()), sam
    for name in ("fused", "eager"):
        assert relative_error(runs[name][0], runs["float64"][0]) <= 1e-6, name
    assert relative_error(runs["fused"][0], runs["eager"][0]) <= 1e-6
    norms = [sam.gradient_norm.item() for _, sam in runs.values()]
    assert norms == pytest.approx([norms[-1]] * 3, rel=1e-6)


@every_base
@pytest.mark.parametrize("unaligned", ["parameters", "gradients"])
def test_addresses_that_128_bits_cannot_reach(base, unaligned):
    sizes = (1, 2047, 2048, 2049, 10_000)
    kind, kwargs = BASES[base]
    generator = torch.Generator("cuda").manual_seed(0)

    def shifted(values):
        buffer = torch.full((values.numel() + 5,), float("nan"), device="cuda")
        return buffer[1:-4].copy_(values)

    starts = [torch.randn(n, generator=generator, device="cuda") for n in sizes]
    place = shifted if unaligned == "parameters" else torch.clone
    ours = [nn.Parameter(place(s)) for s in starts]
    theirs = [nn.Parameter(s.double()) for s in starts]
    sam = SAM(ours, kind, implementation="fused", rho=0.1, **kwargs)
    check = SAM(theirs, kind, implementation="eager", rho=0.1, **kwargs)
    for _ in range(5):
        for half_step in ("first_step", "second_step"):
            for p, q in zip(ours, theirs, strict=True):
                g = torch.randn(p.shape, generator=generator, device="cuda")
                p.grad = shifted(g) if unaligned == "gradients" else g
                q.grad = g.double()
            getattr(sam, half_step)()
            getattr(check, half_step)()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.detach(), q.detach().float(), rtol=1e-5, atol=1e-6)


def test_auto_is_fused_where_that_is_possible():
    model = resnet()
    assert optimizer(model).implementation == "fused"
    assert SAM(model.parameters(), Adam, amsgrad=True).implementation == "eager"
    assert SAM(model.parameters(), torch.optim.RMSprop).implementation == "eager"
    assert optimizer(model.double()).implementation == "eager"


def kernels_of(step):
    step()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step()
        torch.cuda.synchronize()
    on_device = [
        e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA
    ]
    assert on_device, "the profiler saw no work on the device"
    return on_device


@pytest.mark.parametrize("lr", ["number", "tensor"])
@pytest.mark.parametrize("base", ["nesterov", "adam"])
def test_the_profiler_sees_three_launches_and_nothing_else(base, lr):
    model = resnet()
    sam = optimizer(model, base, lr=torch.tensor(0.1, device="cuda") if lr == "tensor" else 0.1)
    set_gradients(model.parameters(), torch.Generator("cuda"))

    def step():
        sam.first_step()
        sam.second_step()

    assert len(list(model.parameters())) == 62
    seen = kernels_of(step)
    assert len(seen) == 3, seen
    for name, kernel in zip(("norm_partials", "perturb", "restore_and_step"), seen, strict=True):
        assert name in kernel


@pytest.mark.parametrize("base", ["nesterov", "adam"])
def test_the_host_never_waits(base):
    model = resnet()
    sam = optimizer(model, base)
    run(model, sam, 2)
    gradients = [[torch.randn_like(p) for p in model.parameters()] for _ in range(4)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for i, own in enumerate(gradients):
            for half_step in (sam.first_step, sam.second_step):
                for p, g in zip(model.parameters(), own, strict=True):
                    p.grad = g.clone(memory_format=torch.preserve_format)
                half_step(zero_grad=True)
            sam.param_groups[0]["lr"] = 0.1 / (i + 2)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_base
def test_results_repeat_bit_for_bit(base):
    runs = []
    for _ in range(3):
        model = resnet()
        run(model, optimizer(model, base, adaptive=True), 10)
        runs.append(vector(model.parameters()))
    assert_bitwise(runs[0], runs[1])
    assert_bitwise(runs[0], runs[2])


@every_base
def test_a_gradient_that_is_not_finite_makes_the_step_a_no_op(base):
    model = resnet()
    sam = optimizer(model, base)
    run(model, sam, 2)
    twin, state = copy.deepcopy(model), copy.deepcopy(sam.state_dict())
    before = vector(model.parameters())
    set_gradients(model.parameters(), torch.Generator("cuda"))
    next(model.parameters()).grad[0, 0, 0, 0] = float("nan")
    sam.first_step()
    assert_bitwise(vector(model.parameters()), before)
    sam.second_step()
    assert_bitwise(vector(model.parameters()), before)
    assert (sam.found_inf.item(), sam.skipped_steps.item()) == (1.0, 1)
    again = optimizer(twin, base)
    again.load_state_dict(state)
    run(model, sam, 2, seed=1)
    run(twin, again, 2, seed=1)
    assert_bitwise(vector(model.parameters()), vector(twin.parameters()))


def test_memory_is_the_saved_copy_and_the_state_of_the_base():
    model = resnet(width=64)
    n = sum(p.numel() for p in model.parameters())
    generator = torch.Generator("cuda")
    set_gradients(model.parameters(), generator)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    sam = optimizer(model, "adam")
    torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        sam.first_step()
        sam.second_step()
    grown = torch.cuda.memory_allocated() - before
    assert grown == pytest.approx(3 * 4 * n, rel=0.02)  # saved w and Adam's two moments
    assert torch.cuda.max_memory_allocated() - before <= grown + 2**20


class Captured:
    """A whole SAM step, both passes and the optimizer, on static inputs in one CUDA graph."""

    def __init__(self, model, sam, x, y):
        self.model, self.sam, self.x, self.y = model, sam, x, y
        self.graph = torch.cuda.CUDAGraph()

    def step(self):
        def loss():
            return nn.functional.cross_entropy(self.model(self.x), self.y)

        loss().backward()
        self.sam.first_step(zero_grad=True)
        with frozen_batchnorm(self.model):
            loss().backward()
        self.sam.second_step(zero_grad=True)

    def warm_up(self, steps=3):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(steps):
                self.step()
        torch.cuda.current_stream().wait_stream(side)

    def capture(self):
        with torch.cuda.graph(self.graph):
            self.step()
        self.sam.sync_hyperparameters()


def batches(n):
    generator = torch.Generator("cuda").manual_seed(7)
    for _ in range(n):
        x = torch.randn(16, 3, 16, 16, generator=generator, device="cuda")
        y = torch.randint(10, (16,), generator=generator, device="cuda")
        yield x.to(memory_format=torch.channels_last), y


@pytest.fixture
def deterministic():
    """What conftest's fixture puts back afterwards.

    IEEE, because two runs whose convolutions round to TF32 part within a few steps, however
    little their optimizers differ.
    """
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    torch.backends.cuda.matmul.fp32_precision = "ieee"


@pytest.mark.parametrize("base", ["nesterov", "adam"])
@pytest.mark.parametrize("lr", ["number", "tensor"])
@pytest.mark.usefixtures("deterministic")
def test_a_graph_of_the_whole_step_equals_the_same_steps_without_one(base, lr):
    rates = [0.01, 0.005, 0.002, 0.001, 0.0005]
    results = []
    for with_graph in (False, True):
        model = resnet(width=8)
        rate = torch.tensor(rates[0], device="cuda") if lr == "tensor" else rates[0]
        sam = optimizer(model, base, lr=rate, adaptive=True)
        data = list(batches(len(rates)))
        run_ = Captured(model, sam, *(t.clone() for t in data[0]))
        run_.warm_up()
        norms = []
        if with_graph:
            run_.capture()
        for (x, y), value in zip(data, rates, strict=True):
            run_.x.copy_(x)
            run_.y.copy_(y)
            if lr == "tensor":
                sam.param_groups[0]["lr"].fill_(value)
            else:
                sam.param_groups[0]["lr"] = value
            if with_graph:
                sam.sync_hyperparameters()
                run_.graph.replay()
            else:
                run_.step()
            norms.append(sam.gradient_norm.clone())
        results.append(({k: v.clone() for k, v in model.state_dict().items()}, norms))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("deterministic")
def test_a_graph_of_the_fused_step_equals_eager():
    results = []
    for implementation in ("eager", "fused"):
        model = resnet(width=8)
        sam = optimizer(model, implementation=implementation, lr=0.01)
        data = list(batches(4))
        run_ = Captured(model, sam, *(t.clone() for t in data[0]))
        run_.warm_up(1)
        if implementation == "fused":
            run_.capture()
        for x, y in data:
            run_.x.copy_(x)
            run_.y.copy_(y)
            (run_.graph.replay if implementation == "fused" else run_.step)()
        results.append(list(model.parameters()))
    # Rounding alone parts such runs by 1e-7 to 4e-7, at this learning rate (at 0.1 by 2e-2). A
    # step that is wrong by a thousandth of its length parts them by 3e-5.
    assert relative_error(results[1], results[0]) < 1e-5


@pytest.mark.usefixtures("deterministic")
def test_steps_outside_a_graph_and_replays_take_turns():
    results = []
    for with_graph in (False, True):
        model = resnet(width=8)
        sam = optimizer(model, lr=0.01)
        data = list(batches(6))
        run_ = Captured(model, sam, *(t.clone() for t in data[0]))
        run_.warm_up()
        if with_graph:
            run_.capture()
        for i, (x, y) in enumerate(data):
            run_.x.copy_(x)
            run_.y.copy_(y)
            (run_.graph.replay if with_graph and i % 2 == 0 else run_.step)()
        results.append(vector(model.parameters()))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


def test_a_replay_counts_a_skipped_step():
    model = resnet(width=8)
    sam = optimizer(model)
    x, y = next(batches(1))
    run_ = Captured(model, sam, x, y)
    run_.warm_up()
    run_.capture()
    before = vector(model.parameters())
    run_.x.fill_(float("nan"))
    run_.graph.replay()
    assert sam.skipped_steps.item() == 1
    assert_bitwise(vector(model.parameters()), before)


def test_capture_needs_a_step_before_it_and_says_so():
    model = resnet(width=8)
    sam = optimizer(model)
    run_ = Captured(model, sam, *next(batches(1)))
    nn.functional.cross_entropy(model(run_.x), run_.y).backward()
    torch.cuda.synchronize()
    with pytest.raises(RuntimeError, match="take a SAM step before capturing"):
        run_.capture()


def test_capture_does_not_freeze_an_option_that_just_changed():
    model = resnet(width=8)
    sam = optimizer(model)
    run_ = Captured(model, sam, *next(batches(1)))
    run_.warm_up()
    sam.param_groups[0]["rho"] = 0.5
    with pytest.raises(RuntimeError, match="sync_hyperparameters"):
        run_.capture()


def test_several_devices_are_refused():
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device only")
    params = [nn.Parameter(torch.ones(3, device=f"cuda:{i}")) for i in range(2)]
    with pytest.raises(ValueError, match="one device, got cuda:0, cuda:1"):
        SAM(params, SGD)


def test_parameters_on_another_than_the_current_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device only")
    w = nn.Parameter(torch.ones(3, device="cuda:1"))
    sam = SAM([w], SGD, lr=1.0)
    w.grad = torch.ones_like(w)
    sam.first_step()
    sam.second_step()
    assert w.tolist() == [0.0, 0.0, 0.0]


# The family: what the tests without a GPU prove of its kernels, on the device.


@family_steps.every_method
@pytest.mark.parametrize("base", ["nesterov", "adam"])
def test_the_family_matches_eager_in_float64(method, base):
    runs = []
    for implementation in ("fused", "eager"):
        model = resnet() if implementation == "fused" else resnet().double()
        params = list(model.parameters())
        made = family_steps.made(method, params, base, implementation)
        family_steps.train(params, made, 20)
        made.eval()
        runs.append(params)
    assert relative_error(*runs) <= 1e-6


@pytest.mark.parametrize("method", family_steps.LAUNCHES)
def test_the_profiler_sees_the_launches_of_the_family(method):
    model = resnet()
    params = list(model.parameters())
    made = family_steps.made(method, params)
    family_steps.train(params, made, len(family_steps.LAUNCHES[method]))  # the first are over
    steps = family_steps.LAUNCHES[method]
    for counts in steps[-1:] if method == "momentum" else steps:
        seen = kernels_of_a_step(made, params)
        assert {name: sum(name in kernel for kernel in seen) for name in counts} == counts


def kernels_of_a_step(made, params):
    """Return what a step launches of ours; gradients are made by other kernels meanwhile."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        family_steps.train(params, made, 1)
        torch.cuda.synchronize()
    cuda = torch.autograd.DeviceType.CUDA
    return [e.name for e in profile.events() if e.device_type == cuda]


@family_steps.every_method
def test_the_host_never_waits_in_the_family(method):
    model = resnet()
    params = list(model.parameters())
    made = family_steps.made(method, params)
    family_steps.train(params, made, 6)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        family_steps.train(params, made, 6, seed=1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@family_steps.every_method
def test_a_step_of_the_family_repeats_bit_for_bit(method):
    """Its sums have one order, whatever order the programs run in."""
    runs = []
    for _ in range(3):
        model = resnet(width=32)
        params = list(model.parameters())
        family_steps.train(params, family_steps.made(method, params, "adam"), 5)
        runs.append([p.detach() for p in params])
    assert_bitwise(runs[0], runs[1])
    assert_bitwise(runs[0], runs[2])
