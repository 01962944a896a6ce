"""SAM under torch.amp.GradScaler: the recipe of docs/optim.md, as it stands there."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatbench.optim import GSAM, SAM, FriendlySAM, PeriodicSAM, frozen_batchnorm

PAGE = (Path(__file__).parents[1] / "docs" / "optim.md").read_text()
LOOP, MIXED, _ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def network():
    torch.manual_seed(0)
    # A bias before BatchNorm has a gradient of rounding noise, which Adam would magnify.
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def batches(count):
    chance = torch.Generator().manual_seed(0)
    for _ in range(count):
        x = torch.randn(16, 6, generator=chance)
        yield x, torch.randint(3, (16,), generator=chance)


def run(code, model, optimizer, **names):
    names = {"model": model, "optimizer": optimizer, "loss": F.cross_entropy, **names}
    names |= {"torch": torch, "frozen_batchnorm": frozen_batchnorm, "device": "cpu"}
    exec(code, names)
    return names


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("cls", [SAM, FriendlySAM, GSAM])
def test_a_scale_that_is_a_power_of_two_changes_nothing(cls):
    """Without autocast the scaled gradients are exact, so the training is that without a scaler."""
    ours, theirs = network(), network()
    run(
        MIXED.replace("torch.float16", "torch.float16, enabled=False"),
        ours,
        cls(ours.parameters(), torch.optim.SGD, rho=0.1, lr=0.1, momentum=0.9),
        batches=batches(10),
    )
    plain = cls(theirs.parameters(), torch.optim.SGD, rho=0.1, lr=0.1, momentum=0.9)
    run(LOOP, theirs, plain, batches=batches(10))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["torch.float16", "torch.bfloat16"])
@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW])
def test_half_precision_learns_what_single_precision_does(dtype, base):
    ours, theirs = network(), network()
    code = MIXED.replace("torch.float16", dtype)
    run(code, ours, SAM(ours.parameters(), base, rho=0.1, lr=0.01), batches=batches(50))
    run(LOOP, theirs, SAM(theirs.parameters(), base, rho=0.1, lr=0.01), batches=batches(50))
    start = weights(network())
    moved, apart = (weights(theirs) - start).norm(), (weights(ours) - weights(theirs)).norm()
    assert apart < 0.05 * moved


@pytest.mark.parametrize("half", ["first", "second"])
def test_an_overflow_in_either_half_skips_the_step_and_backs_off(half):
    model, calls = network(), []
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.1, lr=0.1, momentum=0.9)
    # the gradients of one half of the third step overflow in float16, those of the other do not
    line = f"    scaler.scale({half}).backward()\n"
    assert line in MIXED
    code = MIXED.replace(line, f"    scaler.scale({half} * factor(x)).backward()\n")

    def factor(_):
        calls.append(1)
        return 1e30 if len(calls) == 3 else 1.0

    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append(weights(model)))
    names = run(code, model, optimizer, batches=batches(5), factor=factor)
    assert optimizer.skipped_steps.item() == 1
    assert names["scaler"].get_scale() == 2.0**16 / 2
    assert torch.equal(seen[1], seen[2])  # the third step moved nothing, not even by momentum
    assert not torch.equal(seen[2], seen[3])
    assert weights(model).isfinite().all()


def test_the_loop_of_the_page_takes_steps_of_one_gradient_and_of_two():
    model = network()
    optimizer = PeriodicSAM(model.parameters(), torch.optim.SGD, rho=0.1, interval=2, lr=0.1)
    run(LOOP, model, optimizer, batches=batches(4))
    assert optimizer.steps_begun == 4
