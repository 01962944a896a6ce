"""The fused steps of the SAM family, in Triton's interpreter; run by test_kernel_family.py.

The reference is the eager path in float64, which test_family.py holds against the papers' rules.
"""

import copy

import pytest
import torch

from flatbench.optim import GSAM, SAM, FriendlySAM
from tests.family_steps import LAUNCHES, SHAPES, compare, every_method, made, train
from tests.optimizers import (
    BASES,
    assert_bitwise,
    clone,
    parameters,
    relative_error,
    set_gradients,
)


@every_method
@pytest.mark.parametrize("base", ["nesterov", "adam", "adamw"])
def test_steps_match_eager_in_float64(method, base):
    compare(method, base, steps=7)


@pytest.mark.parametrize("method", LAUNCHES)
def test_launches_of_each_step(method):
    params = parameters(*SHAPES)
    optimizer = made(method, params)
    seen = []
    for i, _ in enumerate(LAUNCHES[method]):
        before = optimizer._fused_step().launches.copy()
        train(params, optimizer, 1, seed=i)
        seen.append(dict(optimizer._fused_step().launches - before))
    assert seen == LAUNCHES[method]


# SGD with momentum, float32: 12 in the two launches of an ascent and 28 in the base's step, or 4
# and 12 + 4 more for what the step is checked by: 44 for SAM, as test_numbers has it.
BYTES = {
    "friendly": [44 + 4 + 8],
    "gsam": [44 + 8],
    "looksam": [44 + 8 + 4, 24 + 8],
    "momentum": [24, 24 + 16],
    "periodic": [24, 24, 44],
}


@pytest.mark.parametrize("method", BYTES)
def test_bytes_a_parameter(method):
    params = parameters((300,), (20, 20))
    optimizer = made(method, params)
    for i, expected in enumerate(BYTES[method]):
        train(params, optimizer, 1, seed=i)
        moved = sum(optimizer._fused_step().traffic().values())
        if (method, i) != ("momentum", 0):
            assert moved == expected * sum(p.numel() for p in params)


@every_method
def test_state_goes_over_to_eager_and_back(method):
    start = parameters(*SHAPES)
    ours, theirs = clone(start), clone(start)
    one, other = made(method, ours), made(method, theirs, implementation="eager")
    train(ours, one, 4)
    train(theirs, other, 4)
    one.eval()
    other.eval()
    states = copy.deepcopy(one.state_dict()), copy.deepcopy(other.state_dict())
    one, other = made(method, ours, implementation="eager"), made(method, theirs)
    for optimizer, state in zip((one, other), states, strict=True):
        optimizer.load_state_dict(state)
        optimizer.train()
    train(ours, one, 4, seed=1)
    train(theirs, other, 4, seed=1)
    one.eval()
    other.eval()
    assert relative_error(ours, theirs) <= 1e-5


@every_method
def test_results_repeat_bit_for_bit(method):
    start = parameters((300,), (33, 9), (1,))
    runs = []
    for _ in range(2):
        params = clone(start)
        train(params, made(method, params, "adam"), 4)
        runs.append([p.detach() for p in params])
    assert_bitwise(*runs)


def test_momentum_sam_may_leave_and_enter_training_between_steps():
    start = parameters(*SHAPES)
    runs = []
    for leaves in (False, True):
        params = clone(start)
        optimizer = made("momentum", params)
        generator = torch.Generator().manual_seed(0)
        for _ in range(6):
            set_gradients(params, generator, missing=(3,))
            optimizer.step()
            optimizer.zero_grad()
            if leaves:
                optimizer.eval()
                optimizer.train()
        optimizer.eval()
        runs.append(params)
    assert relative_error(*runs) <= 1e-6


def test_sam_is_the_family_without_its_numbers():
    """alpha = 0 and sigma = 0 give SAM's launches other constants, and the same numbers."""
    start = parameters(*SHAPES)
    runs = []
    for cls, options in ((SAM, {}), (FriendlySAM, {"sigma": 0.0}), (GSAM, {"alpha": 0.0})):
        params = clone(start)
        kind, kwargs = BASES["nesterov"]
        optimizer = cls(params, kind, rho=0.1, implementation="fused", **kwargs, **options)
        train(params, optimizer, 5)
        runs.append([p.detach() for p in params])
    assert_bitwise(runs[0], runs[1])
    assert_bitwise(runs[0], runs[2])


@pytest.mark.parametrize("method", ["gsam", "looksam", "friendly", "micro-batch"])
def test_gradients_laid_out_otherwise_are_copied_and_kept_until_the_last_launch(method):
    start = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    runs = []
    for implementation, dtype in (("fused", torch.float32), ("eager", torch.float64)):
        weight = start.to(dtype).to(memory_format=torch.channels_last)
        params = [torch.nn.Parameter(weight), torch.nn.Parameter(torch.ones(3, dtype=dtype))]
        optimizer = made(method, params, implementation=implementation)
        generator = torch.Generator().manual_seed(1)

        def backward(params=params, generator=generator, dtype=dtype):
            for p in params:  # contiguous, so not as the first parameter lies
                p.grad = torch.randn(p.shape, generator=generator).to(dtype)

        for _ in range(3):
            backward()
            if optimizer.passes == 1:
                optimizer.step()
                continue
            optimizer.first_step(zero_grad=True)
            torch.full((400,), torch.nan)  # what was freed may be handed out again
            backward()
            if method == "micro-batch":
                optimizer.end_part()
            optimizer.second_step()
        runs.append(params)
    assert relative_error(*runs) <= 1e-6
