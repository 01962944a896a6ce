# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
"""The Triton kernels of a fused step of the SAM family, over fp32 parameters.

``norm_partials``     sums of (T d)^2, one per program; d is what is climbed along
``perturb``           folds them; saves w; w <- w + rho T^2 d / ||T d||
``restore_and_step``  puts w back and applies SGD or Adam with the second gradient (`descent.py`)

are SAM's three launches. d is the gradient, and F-SAM's difference to its average. Other methods
have in their place, or beside them:

``plan``              what `perturb` leaves for `restore_and_step`, where nothing was perturbed
``look_ahead``        Momentum-SAM's way from w to where the next gradient is taken
``end_part``          puts w back and takes a part's gradient into m-SAM's average

`walk.py` says what the tables hold. Every sum has one order and atomics only count, so results
repeat bit for bit. No value visits the host. Division and square root are the IEEE ones, and the
launches switch the contraction of a * b + c off, so that compiled and interpreted kernels round
alike. No parameter may be called ``options``: Triton's launching code has one of that name.
"""

import triton
import triton.language as tl

from .descent import restore_and_step
from .walk import (
    ADAPTIVE,
    BETA1,
    BETA2,
    BIAS1,
    DONE,
    ETA,
    LMBDA,
    MOMENT1,
    NUMEL,
    OWN,
    PENDING_STEP,
    RHO,
    SAVED,
    SCHEDULE_COLUMNS,
    SETTING_COLUMNS,
    SIGMA,
    SQRT_BIAS2,
    STARTED,
    STEP,
    TENSOR_COLUMNS,
    TICKETS,
    UNWRITTEN,
    VERDICTS,
    WEIGHT,
    chunk,
    is_full,
    load,
    scalar,
    setting,
    store,
)

__all__ = [
    "LAUNCH",
    "NUMEL",
    "SCHEDULE_COLUMNS",
    "SETTING_COLUMNS",
    "STARTED",
    "TENSOR_COLUMNS",
    "UNWRITTEN",
    "end_part",
    "look_ahead",
    "norm_partials",
    "perturb",
    "plan",
    "restore_and_step",
    "trial",
]

# How each is launched. Sizes are fixed: autotuning would run in-place kernels many times.
LAUNCH = {"num_warps": 8, "enable_fp_fusion": False}


@triton.jit
def _direction(
    row, start, left, gradient, settings,
    GRAD: tl.constexpr, FRIENDLY: tl.constexpr, BLOCK: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """What is climbed along: the gradient, less sigma times its average for F-SAM."""
    d = load(gradient, start, left, GRAD, BLOCK, FULL)
    if FRIENDLY:
        sigma = setting(settings, row, SIGMA).to(tl.float32)
        d -= sigma * load(tl.load(row + OWN), start, left, tl.float32, BLOCK, FULL)
    return d


@triton.jit
def _times_t(row, start, left, d, settings, BLOCK: tl.constexpr, FULL: tl.constexpr):
    """T d with T = |w| + eta."""
    w = load(tl.load(row + WEIGHT), start, left, tl.float32, BLOCK, FULL)
    return (tl.abs(w) + setting(settings, row, ETA).to(tl.float32)) * d


@triton.jit(do_not_specialize=["n_chunks"])
def norm_partials(
    chunks, tensors, gradients, settings, partials, n_chunks,
    GRAD: tl.constexpr, ANY_ADAPTIVE: tl.constexpr, FRIENDLY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """partials[program] = sum of (T d)^2 over every num_programs-th chunk, in order.

    A gradient table that nobody has written makes the norm NaN: the step is skipped, and counted.
    """
    total = tl.zeros([BLOCK], tl.float32)
    index = tl.program_id(0)
    while index < n_chunks:  # range() here breaks triton 3.5's interpreter under numpy 2.4
        tensor, row, start, left = chunk(chunks, tensors, index, BLOCK)
        gradient = tl.load(gradients + tensor)
        if gradient == UNWRITTEN:
            total += float("nan")
        elif gradient != 0:
            touched = gradient
            if FRIENDLY:
                touched |= tl.load(row + OWN)
            adaptive = False
            if ANY_ADAPTIVE:
                adaptive = tl.load(row + ADAPTIVE) != 0
            if adaptive:
                if is_full(left, touched | tl.load(row + WEIGHT), BLOCK):
                    d = _direction(
                        row, start, left, gradient, settings, GRAD, FRIENDLY, BLOCK, True
                    )
                    v = _times_t(row, start, left, d, settings, BLOCK, True)
                else:
                    d = _direction(
                        row, start, left, gradient, settings, GRAD, FRIENDLY, BLOCK, False
                    )
                    v = _times_t(row, start, left, d, settings, BLOCK, False)
            elif is_full(left, touched, BLOCK):
                v = _direction(row, start, left, gradient, settings, GRAD, FRIENDLY, BLOCK, True)
            else:
                v = _direction(row, start, left, gradient, settings, GRAD, FRIENDLY, BLOCK, False)
            total += v * v
        index += tl.num_programs(0)
    tl.store(partials + tl.program_id(0), tl.sum(total))


@triton.jit
def _schedule(row, plan, settings, ADAM: tl.constexpr):
    """Write a tensor's coming step count, and Adam's bias corrections for it.

    The count has a place of its own: one program of the next launch copies it back while others
    read it.
    """
    step = tl.load(scalar(row, STEP)) + 1.0
    tl.store(plan + PENDING_STEP, step)
    if ADAM:
        # In float64, as torch has it: 1 - 0.999^1 would lose four digits in float32.
        t = step.to(tl.float64)
        bias1 = 1.0 - tl.exp(t * tl.log(setting(settings, row, BETA1)))
        bias2 = 1.0 - tl.exp(t * tl.log(setting(settings, row, BETA2)))
        tl.store(plan + BIAS1, bias1.to(tl.float32))
        tl.store(plan + SQRT_BIAS2, tl.sqrt_rn(bias2.to(tl.float32)))


@triton.jit
def _reset(counters):
    """Set the counters of the next launch to 0."""
    tl.store(counters + TICKETS, 0)
    tl.store(counters + VERDICTS, 0)
    tl.store(counters + DONE, 0)


@triton.jit
def _perturb_chunk(
    row, start, left, gradient, scale, finite, plan, settings,
    GRAD: tl.constexpr, FRIENDLY: tl.constexpr, BLOCK: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    weight = tl.load(row + WEIGHT)
    w = load(weight, start, left, tl.float32, BLOCK, FULL)
    g = load(gradient, start, left, GRAD, BLOCK, FULL)
    d = g
    if FRIENDLY:
        average = load(tl.load(row + OWN), start, left, tl.float32, BLOCK, FULL)
        d = g - setting(settings, row, SIGMA).to(tl.float32) * average
        lmbda = setting(settings, row, LMBDA)
        moved = lmbda.to(tl.float32) * average + (1.0 - lmbda).to(tl.float32) * g
        first = tl.load(plan + STARTED) == 0.0
        learnt = tl.where(finite, tl.where(first, g, moved), average)
        store(tl.load(row + OWN), start, left, learnt, BLOCK, FULL)
    eta = setting(settings, row, ETA).to(tl.float32)
    t = tl.where(tl.load(row + ADAPTIVE) != 0, tl.abs(w) + eta, 1.0)
    # A gradient that is not finite must not reach w through 0 * g.
    climbed = tl.where(scale > 0.0, w + scale * (t * t) * d, w)
    store(tl.load(row + SAVED), start, left, w, BLOCK, FULL)
    store(weight, start, left, climbed, BLOCK, FULL)


@triton.jit
def perturb(
    chunks, tensors, gradients, settings, schedule, partials, counters, norm_out, found_inf,
    GRAD: tl.constexpr, ADAM: tl.constexpr, FRIENDLY: tl.constexpr, PARTIALS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Save w, then w <- w + rho T^2 d / ||T d||; one chunk a program. F-SAM's average learns g.

    Writes the norm and whether it is not finite, and what `plan` writes.
    """
    norm = tl.sqrt_rn(tl.sum(tl.load(partials + tl.arange(0, PARTIALS))))
    finite = norm < float("inf")  # false for NaN too
    if tl.program_id(0) == 0:
        tl.store(norm_out, norm)
        tl.store(found_inf, tl.where(finite, 0.0, 1.0))
        _reset(counters)

    tensor, row, start, left = chunk(chunks, tensors, tl.program_id(0), BLOCK)
    plan = schedule + tensor * SCHEDULE_COLUMNS
    if start == 0:
        _schedule(row, plan, settings, ADAM)

    gradient = tl.load(gradients + tensor)
    if gradient > 0:
        rho = setting(settings, row, RHO).to(tl.float32)
        scale = 0.0
        if finite & (norm > 0.0):
            scale = tl.div_rn(rho, norm)
        touched = gradient | tl.load(row + WEIGHT) | tl.load(row + SAVED)
        if FRIENDLY:
            touched |= tl.load(row + OWN)
        if is_full(left, touched, BLOCK):
            _perturb_chunk(
                row, start, left, gradient, scale, finite, plan, settings,
                GRAD, FRIENDLY, BLOCK, True,
            )  # fmt: skip
        else:
            _perturb_chunk(
                row, start, left, gradient, scale, finite, plan, settings,
                GRAD, FRIENDLY, BLOCK, False,
            )  # fmt: skip


@triton.jit
def plan(tensors, settings, schedule, counters, ADAM: tl.constexpr):
    """Write the schedule, one tensor a program, and set the counters to 0."""
    tensor = tl.program_id(0)
    _schedule(
        tensors + tensor.to(tl.int64) * TENSOR_COLUMNS,
        schedule + tensor * SCHEDULE_COLUMNS,
        settings,
        ADAM,
    )
    if tensor == 0:
        _reset(counters)


@triton.jit
def _look_ahead_chunk(row, start, left, scale, BLOCK: tl.constexpr, FULL: tl.constexpr):
    weight = tl.load(row + WEIGHT)
    w = load(weight, start, left, tl.float32, BLOCK, FULL)
    m = load(tl.load(row + MOMENT1), start, left, tl.float32, BLOCK, FULL)
    store(tl.load(row + SAVED), start, left, w, BLOCK, FULL)
    store(weight, start, left, tl.where(scale > 0.0, w - scale * m, w), BLOCK, FULL)


@triton.jit
def look_ahead(
    chunks, tensors, settings, schedule, counters, momentum_norm,
    ADAM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Save w, then w <- w - rho m / ||m||, m the base's momentum; and do what `plan` does.

    ``momentum_norm`` is ||m||, which `restore_and_step` leaves.
    """
    if tl.program_id(0) == 0:
        _reset(counters)
    tensor, row, start, left = chunk(chunks, tensors, tl.program_id(0), BLOCK)
    if start == 0:
        _schedule(row, schedule + tensor * SCHEDULE_COLUMNS, settings, ADAM)
    length = tl.load(momentum_norm)
    scale = 0.0
    if (length > 0.0) & (length < float("inf")):
        scale = tl.div_rn(setting(settings, row, RHO).to(tl.float32), length)
    touched = tl.load(row + WEIGHT) | tl.load(row + SAVED) | tl.load(row + MOMENT1)
    if is_full(left, touched, BLOCK):
        _look_ahead_chunk(row, start, left, scale, BLOCK, True)
    else:
        _look_ahead_chunk(row, start, left, scale, BLOCK, False)


@triton.jit
def _end_part_chunk(
    row, start, left, gradient, share, perturbed,
    GRAD: tl.constexpr, BLOCK: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    if perturbed:
        w = load(tl.load(row + SAVED), start, left, tl.float32, BLOCK, FULL)
        store(tl.load(row + WEIGHT), start, left, w, BLOCK, FULL)
    mean = load(tl.load(row + OWN), start, left, tl.float32, BLOCK, FULL)
    if gradient > 0:
        g = load(gradient, start, left, GRAD, BLOCK, FULL)
        mean = tl.where(share == 1.0, g, mean + share * (g - mean))
    else:
        mean = tl.where(share == 1.0, 0.0, (1.0 - share) * mean)
    store(tl.load(row + OWN), start, left, mean, BLOCK, FULL)


@triton.jit(do_not_specialize=["share"])
def end_part(
    chunks, tensors, ascent_gradients, gradients, found_inf, spoilt, share,
    GRAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Put w back, and move the mean of the parts' gradients by ``share`` towards this part's.

    A share of 1, the first part's, starts the mean, and ``spoilt``: the parts' largest
    ``found_inf``.
    """
    if tl.program_id(0) == 0:
        before = tl.where(share == 1.0, 0.0, tl.load(spoilt))
        tl.store(spoilt, tl.maximum(before, tl.load(found_inf)))
    tensor, row, start, left = chunk(chunks, tensors, tl.program_id(0), BLOCK)
    perturbed = tl.load(ascent_gradients + tensor) > 0
    gradient = tl.load(gradients + tensor)
    touched = tl.load(row + OWN) | tl.load(row + WEIGHT) | tl.load(row + SAVED)
    if gradient > 0:
        touched |= gradient
    if is_full(left, touched, BLOCK):
        _end_part_chunk(row, start, left, gradient, share, perturbed, GRAD, BLOCK, True)
    else:
        _end_part_chunk(row, start, left, gradient, share, perturbed, GRAD, BLOCK, False)


@triton.jit
def trial(out):
    """Write a 1. It is launched once a process, to see whether kernels can be launched at all."""
    tl.store(out, 1.0)
