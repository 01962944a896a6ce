"""What a fused step must leave as it was, in Triton's interpreter; run by test_kernel_writes.py.

Memory beside a tensor, weights under a norm of 0, and everything when a gradient is not finite.
"""

import math

import pytest
import torch
from torch import nn

from tests.optimizers import (
    assert_bitwise,
    clone,
    every_base,
    optimizer,
    parameters,
    relative_error,
    run,
    set_gradients,
)


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
