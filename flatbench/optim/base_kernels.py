# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
"""The base optimizer's step of one chunk, by the gradient that it is given.

``source`` is the address of the weights that it steps from: of the saved copy where the weights are
perturbed. ``plan`` is the tensor's row of the schedule.
"""

import triton
import triton.language as tl

from .walk import (
    BETA1,
    BETA2,
    BIAS1,
    COUPLED_DECAY,
    DAMPENING,
    DECOUPLED_DECAY,
    EPS,
    MOMENT1,
    MOMENT2,
    MOMENTUM,
    NESTEROV,
    PENDING_STEP,
    RATE,
    SQRT_BIAS2,
    WEIGHT,
    load,
    scalar,
    setting,
    store,
)


@triton.jit
def sgd_chunk(
    row, start, left, source, g, settings, plan,
    MOMENTS: tl.constexpr, BLOCK: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """As torch.optim.SGD; the first step takes the gradient as momentum. Returns the momentum."""
    w = load(source, start, left, tl.float32, BLOCK, FULL)
    d = g + setting(settings, row, COUPLED_DECAY).to(tl.float32) * w
    m = d
    if MOMENTS > 0:
        momentum = setting(settings, row, MOMENTUM).to(tl.float32)
        share = (1.0 - setting(settings, row, DAMPENING)).to(tl.float32)
        m = load(tl.load(row + MOMENT1), start, left, tl.float32, BLOCK, FULL)
        first = tl.load(plan + PENDING_STEP) == 1.0
        m = tl.where(first, d, momentum * m + share * d)
        store(tl.load(row + MOMENT1), start, left, m, BLOCK, FULL)
        d = tl.where(setting(settings, row, NESTEROV) != 0.0, d + momentum * m, m)
    w -= tl.load(scalar(row, RATE)) * d
    store(tl.load(row + WEIGHT), start, left, w, BLOCK, FULL)
    return m


@triton.jit
def adam_chunk(
    row, start, left, source, g, settings, plan, BLOCK: tl.constexpr, FULL: tl.constexpr
):
    """As torch.optim.Adam and AdamW. Returns exp_avg."""
    w = load(source, start, left, tl.float32, BLOCK, FULL)
    m = load(tl.load(row + MOMENT1), start, left, tl.float32, BLOCK, FULL)
    v = load(tl.load(row + MOMENT2), start, left, tl.float32, BLOCK, FULL)
    lr = tl.load(scalar(row, RATE))
    beta2 = setting(settings, row, BETA2)
    w -= lr * setting(settings, row, DECOUPLED_DECAY).to(tl.float32) * w
    g += setting(settings, row, COUPLED_DECAY).to(tl.float32) * w
    m += (1.0 - setting(settings, row, BETA1)).to(tl.float32) * (g - m)
    v = beta2.to(tl.float32) * v + (1.0 - beta2).to(tl.float32) * g * g
    step_size = tl.div_rn(lr, tl.load(plan + BIAS1))
    root = tl.div_rn(tl.sqrt_rn(v), tl.load(plan + SQRT_BIAS2))
    w -= step_size * tl.div_rn(m, root + setting(settings, row, EPS).to(tl.float32))
    store(tl.load(row + MOMENT1), start, left, m, BLOCK, FULL)
    store(tl.load(row + MOMENT2), start, left, v, BLOCK, FULL)
    store(tl.load(row + WEIGHT), start, left, w, BLOCK, FULL)
    return m
