# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
"""The three Triton kernels of a fused SAM step over fp32 parameters.

``norm_partials``     sums of (T g)^2, one per program
``perturb``           folds them; saves w; w <- w + rho T^2 g / ||T g||
``restore_and_step``  puts w back and applies SGD or Adam with the second gradient

They walk tables in device memory instead of taking tensors as arguments, so one launch serves any
number of tensors (`fused.py` writes the tables):

``chunks``     int32 (chunks, 2): which tensor, and which run of BLOCK elements of it
``tensors``    int64 (tensors, 9): addresses and facts of each tensor, columns below
``gradients``  int64 (tensors,): addresses of the gradients, 0 where there is none, and
               UNWRITTEN in a captured graph's table until the host has written it
``settings``   float64 (groups, 7): hyperparameters of each parameter group, columns below
``partials``   float32 (PARTIALS,): the norm's sums; 0 beyond the programs that it had
``schedule``   float32 (tensors, 4): the coming step count, and Adam's bias corrections for it
``counters``   int32 (2,): tickets and verdicts of `restore_and_step`, see there

Every sum has one order and atomics only count, so results repeat bit for bit. No value visits the
host. Division and square root are the IEEE ones, and the launches switch the contraction of
a * b + c off, so that compiled and interpreted kernels round alike. No parameter may be called
``options``: Triton's launching code has one of that name.
"""

import triton
import triton.language as tl

# How each is launched. Sizes are fixed: autotuning would run in-place kernels many times.
LAUNCH = {"num_warps": 8, "enable_fp_fusion": False}

# Columns of `tensors`.
WEIGHT = tl.constexpr(0)
SAVED = tl.constexpr(1)
MOMENT1 = tl.constexpr(2)  # SGD's momentum buffer, Adam's exp_avg
MOMENT2 = tl.constexpr(3)  # Adam's exp_avg_sq
STEP = tl.constexpr(4)  # address of the tensor's step count, a float32
RATE = tl.constexpr(5)  # address of the group's learning rate, a float32
NUMEL = tl.constexpr(6)
GROUP = tl.constexpr(7)
ADAPTIVE = tl.constexpr(8)  # 1: T = |w| + eta, 0: T = 1
TENSOR_COLUMNS = tl.constexpr(9)

# Columns of `settings`. SGD and Adam share the last three.
RHO = tl.constexpr(0)
ETA = tl.constexpr(1)
COUPLED_DECAY = tl.constexpr(2)  # added to the gradient
DECOUPLED_DECAY = tl.constexpr(3)  # taken off the weight
MOMENTUM = BETA1 = tl.constexpr(4)
DAMPENING = BETA2 = tl.constexpr(5)
NESTEROV = EPS = tl.constexpr(6)
SETTING_COLUMNS = tl.constexpr(7)

# Columns of `schedule`.
PENDING_STEP = tl.constexpr(0)
BIAS1 = tl.constexpr(1)  # 1 - beta1^step
SQRT_BIAS2 = tl.constexpr(2)  # sqrt(1 - beta2^step)
SCHEDULE_COLUMNS = tl.constexpr(4)

# Entries of `counters`.
TICKETS = tl.constexpr(0)
VERDICTS = tl.constexpr(1)
BAD = tl.constexpr(1 << 16)  # a verdict is 1, or 1 + BAD; BAD exceeds the number of checkers

UNWRITTEN = tl.constexpr(-1)


@triton.jit
def _chunk(chunks, tensors, index, BLOCK: tl.constexpr):
    """Return the chunk's tensor, the tensor's row, its first element, and how many are left."""
    tensor = tl.load(chunks + 2 * index).to(tl.int64)
    start = tl.load(chunks + 2 * index + 1).to(tl.int64) * BLOCK
    row = tensors + tensor * TENSOR_COLUMNS
    return tensor, row, start, tl.load(row + NUMEL) - start


@triton.jit
def _setting(settings, row, column: tl.constexpr):
    group = tl.load(row + GROUP)
    return tl.load(settings + group * SETTING_COLUMNS + column)


@triton.jit
def _scalar(row, column: tl.constexpr):
    """Pointer to the float32 whose address is in this column."""
    return tl.load(row + column).to(tl.pointer_type(tl.float32))


@triton.jit
def _pointers(address, start, dtype: tl.constexpr, BLOCK: tl.constexpr, FULL: tl.constexpr):
    base = address.to(tl.pointer_type(dtype))
    if FULL:
        # With this promise, and without a mask, each thread moves 128 bits at a time.
        base = tl.multiple_of(base, 16)
    return base + start + tl.arange(0, BLOCK)


@triton.jit
def _load(address, start, left, dtype: tl.constexpr, BLOCK: tl.constexpr, FULL: tl.constexpr):
    pointers = _pointers(address, start, dtype, BLOCK, FULL)
    if FULL:
        values = tl.load(pointers)
    else:
        values = tl.load(pointers, mask=tl.arange(0, BLOCK) < left, other=0.0)
    return values.to(tl.float32)


@triton.jit
def _store(address, start, left, values, BLOCK: tl.constexpr, FULL: tl.constexpr):
    pointers = _pointers(address, start, tl.float32, BLOCK, FULL)
    if FULL:
        tl.store(pointers, values)
    else:
        tl.store(pointers, values, mask=tl.arange(0, BLOCK) < left)


@triton.jit
def _is_full(left, addresses, BLOCK: tl.constexpr):
    """Return whether a whole chunk can move 128 bits at a time; ``addresses`` are or-ed."""
    return (left >= BLOCK) & (addresses % 16 == 0)


@triton.jit
def _normalised(
    row, start, left, gradient, eta, GRAD: tl.constexpr, BLOCK: tl.constexpr, FULL: tl.constexpr
):
    """T g with T = |w| + eta."""
    w = _load(tl.load(row + WEIGHT), start, left, tl.float32, BLOCK, FULL)
    return (tl.abs(w) + eta) * _load(gradient, start, left, GRAD, BLOCK, FULL)


@triton.jit(do_not_specialize=["n_chunks"])
def norm_partials(
    chunks, tensors, gradients, settings, partials, n_chunks,
    GRAD: tl.constexpr, ANY_ADAPTIVE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """partials[program] = sum of (T g)^2 over every num_programs-th chunk, in order.

    A gradient table that nobody has written makes the norm NaN: the step is skipped, and counted.
    """
    total = tl.zeros([BLOCK], tl.float32)
    index = tl.program_id(0)
    while index < n_chunks:  # range() here breaks triton 3.5's interpreter under numpy 2.4
        tensor, row, start, left = _chunk(chunks, tensors, index, BLOCK)
        gradient = tl.load(gradients + tensor)
        if gradient == UNWRITTEN:
            total += float("nan")
        elif gradient != 0:
            adaptive = False
            if ANY_ADAPTIVE:
                adaptive = tl.load(row + ADAPTIVE) != 0
            if adaptive:
                eta = _setting(settings, row, ETA).to(tl.float32)
                if _is_full(left, gradient | tl.load(row + WEIGHT), BLOCK):
                    v = _normalised(row, start, left, gradient, eta, GRAD, BLOCK, True)
                else:
                    v = _normalised(row, start, left, gradient, eta, GRAD, BLOCK, False)
            elif _is_full(left, gradient, BLOCK):
                v = _load(gradient, start, left, GRAD, BLOCK, True)
            else:
                v = _load(gradient, start, left, GRAD, BLOCK, False)
            total += v * v
        index += tl.num_programs(0)
    tl.store(partials + tl.program_id(0), tl.sum(total))


@triton.jit
def _perturb_chunk(
    row, start, left, gradient, scale, eta, adaptive,
    GRAD: tl.constexpr, BLOCK: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    weight = tl.load(row + WEIGHT)
    w = _load(weight, start, left, tl.float32, BLOCK, FULL)
    g = _load(gradient, start, left, GRAD, BLOCK, FULL)
    t = tl.where(adaptive, tl.abs(w) + eta, 1.0)
    # A gradient that is not finite must not reach w through 0 * g.
    climbed = tl.where(scale > 0.0, w + scale * (t * t) * g, w)
    _store(tl.load(row + SAVED), start, left, w, BLOCK, FULL)
    _store(weight, start, left, climbed, BLOCK, FULL)


@triton.jit
def perturb(
    chunks, tensors, gradients, settings, schedule, partials, counters, norm_out, found_inf,
    GRAD: tl.constexpr, ADAM: tl.constexpr, PARTIALS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Save w, then w <- w + rho T^2 g / ||T g||; one chunk a program.

    Writes the norm and whether it is not finite, and each tensor's coming step count. That count
    has a place of its own: one program of the next launch copies it back while others read it.
    Sets the counters of the next launch to 0.
    """
    norm = tl.sqrt_rn(tl.sum(tl.load(partials + tl.arange(0, PARTIALS))))
    finite = norm < float("inf")  # false for NaN too
    if tl.program_id(0) == 0:
        tl.store(norm_out, norm)
        tl.store(found_inf, tl.where(finite, 0.0, 1.0))
        tl.store(counters + TICKETS, 0)
        tl.store(counters + VERDICTS, 0)

    tensor, row, start, left = _chunk(chunks, tensors, tl.program_id(0), BLOCK)
    if start == 0:
        plan = schedule + tensor * SCHEDULE_COLUMNS
        step = tl.load(_scalar(row, STEP)) + 1.0
        tl.store(plan + PENDING_STEP, step)
        if ADAM:
            # In float64, as torch has it: 1 - 0.999^1 would lose four digits in float32.
            t = step.to(tl.float64)
            bias1 = 1.0 - tl.exp(t * tl.log(_setting(settings, row, BETA1)))
            bias2 = 1.0 - tl.exp(t * tl.log(_setting(settings, row, BETA2)))
            tl.store(plan + BIAS1, bias1.to(tl.float32))
            tl.store(plan + SQRT_BIAS2, tl.sqrt_rn(bias2.to(tl.float32)))

    gradient = tl.load(gradients + tensor)
    if gradient > 0:
        rho = _setting(settings, row, RHO).to(tl.float32)
        eta = _setting(settings, row, ETA).to(tl.float32)
        adaptive = tl.load(row + ADAPTIVE) != 0
        scale = 0.0
        if finite & (norm > 0.0):
            scale = tl.div_rn(rho, norm)
        if _is_full(left, gradient | tl.load(row + WEIGHT) | tl.load(row + SAVED), BLOCK):
            _perturb_chunk(row, start, left, gradient, scale, eta, adaptive, GRAD, BLOCK, True)
        else:
            _perturb_chunk(row, start, left, gradient, scale, eta, adaptive, GRAD, BLOCK, False)


@triton.jit
def _restore_chunk(row, start, left, BLOCK: tl.constexpr, FULL: tl.constexpr):
    w = _load(tl.load(row + SAVED), start, left, tl.float32, BLOCK, FULL)
    _store(tl.load(row + WEIGHT), start, left, w, BLOCK, FULL)


@triton.jit
def _sgd_chunk(
    row, start, left, source, gradient, settings, plan,
    GRAD: tl.constexpr, MOMENTS: tl.constexpr, BLOCK: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """As torch.optim.SGD; the first step takes the gradient itself as momentum."""
    w = _load(source, start, left, tl.float32, BLOCK, FULL)
    d = _load(gradient, start, left, GRAD, BLOCK, FULL)
    d += _setting(settings, row, COUPLED_DECAY).to(tl.float32) * w
    if MOMENTS > 0:
        momentum = _setting(settings, row, MOMENTUM).to(tl.float32)
        share = (1.0 - _setting(settings, row, DAMPENING)).to(tl.float32)
        m = _load(tl.load(row + MOMENT1), start, left, tl.float32, BLOCK, FULL)
        first = tl.load(plan + PENDING_STEP) == 1.0
        m = tl.where(first, d, momentum * m + share * d)
        _store(tl.load(row + MOMENT1), start, left, m, BLOCK, FULL)
        d = tl.where(_setting(settings, row, NESTEROV) != 0.0, d + momentum * m, m)
    w -= tl.load(_scalar(row, RATE)) * d
    _store(tl.load(row + WEIGHT), start, left, w, BLOCK, FULL)


@triton.jit
def _adam_chunk(
    row, start, left, source, gradient, settings, plan,
    GRAD: tl.constexpr, BLOCK: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """As torch.optim.Adam and AdamW."""
    w = _load(source, start, left, tl.float32, BLOCK, FULL)
    g = _load(gradient, start, left, GRAD, BLOCK, FULL)
    m = _load(tl.load(row + MOMENT1), start, left, tl.float32, BLOCK, FULL)
    v = _load(tl.load(row + MOMENT2), start, left, tl.float32, BLOCK, FULL)
    lr = tl.load(_scalar(row, RATE))
    beta2 = _setting(settings, row, BETA2)
    w -= lr * _setting(settings, row, DECOUPLED_DECAY).to(tl.float32) * w
    g += _setting(settings, row, COUPLED_DECAY).to(tl.float32) * w
    m += (1.0 - _setting(settings, row, BETA1)).to(tl.float32) * (g - m)
    v = beta2.to(tl.float32) * v + (1.0 - beta2).to(tl.float32) * g * g
    step_size = tl.div_rn(lr, tl.load(plan + BIAS1))
    root = tl.div_rn(tl.sqrt_rn(v), tl.load(plan + SQRT_BIAS2))
    w -= step_size * tl.div_rn(m, root + _setting(settings, row, EPS).to(tl.float32))
    _store(tl.load(row + MOMENT1), start, left, m, BLOCK, FULL)
    _store(tl.load(row + MOMENT2), start, left, v, BLOCK, FULL)
    _store(tl.load(row + WEIGHT), start, left, w, BLOCK, FULL)


@triton.jit
def _base_chunk(
    row, start, left, source, gradient, settings, plan,
    GRAD: tl.constexpr, ADAM: tl.constexpr, MOMENTS: tl.constexpr, BLOCK: tl.constexpr,
    FULL: tl.constexpr,
):  # fmt: skip
    if ADAM:
        _adam_chunk(row, start, left, source, gradient, settings, plan, GRAD, BLOCK, FULL)
    else:
        _sgd_chunk(row, start, left, source, gradient, settings, plan, GRAD, MOMENTS, BLOCK, FULL)


@triton.jit
def _finite(
    chunks, tensors, gradients, index, stride, n_chunks, GRAD: tl.constexpr, BLOCK: tl.constexpr
):
    """Return whether the gradients are finite in every stride-th chunk, from index on."""
    spoilt = tl.zeros([BLOCK], tl.float32)
    while index < n_chunks:
        tensor, _row, start, left = _chunk(chunks, tensors, index, BLOCK)
        gradient = tl.load(gradients + tensor)
        if gradient > 0:
            if _is_full(left, gradient, BLOCK):
                g = _load(gradient, start, left, GRAD, BLOCK, True)
            else:
                g = _load(gradient, start, left, GRAD, BLOCK, False)
            spoilt += g - g  # 0 for a finite g, else NaN
        index += stride
    return tl.sum(spoilt) == 0.0


@triton.jit
def _step_chunk(
    chunks, tensors, ascent_gradients, gradients, settings, schedule, index, skip,
    GRAD: tl.constexpr, ADAM: tl.constexpr, MOMENTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Take one chunk's base step from the saved w; with ``skip``, only put w back."""
    tensor, row, start, left = _chunk(chunks, tensors, index, BLOCK)
    weight, saved = tl.load(row + WEIGHT), tl.load(row + SAVED)
    perturbed = tl.load(ascent_gradients + tensor) > 0
    gradient = tl.load(gradients + tensor)
    if (gradient > 0) & (skip == 0):
        plan = schedule + tensor * SCHEDULE_COLUMNS
        source = tl.where(perturbed, saved, weight)
        touched = gradient | source | weight
        if MOMENTS > 0:
            touched |= tl.load(row + MOMENT1)
        if MOMENTS > 1:
            touched |= tl.load(row + MOMENT2)
        if _is_full(left, touched, BLOCK):
            _base_chunk(
                row, start, left, source, gradient, settings, plan, GRAD, ADAM, MOMENTS, BLOCK, True
            )
        else:
            _base_chunk(
                row,
                start,
                left,
                source,
                gradient,
                settings,
                plan,
                GRAD,
                ADAM,
                MOMENTS,
                BLOCK,
                False,
            )
        if start == 0:
            tl.store(_scalar(row, STEP), tl.load(plan + PENDING_STEP))
    elif perturbed:
        if _is_full(left, weight | saved, BLOCK):
            _restore_chunk(row, start, left, BLOCK, True)
        else:
            _restore_chunk(row, start, left, BLOCK, False)


@triton.jit(do_not_specialize=["n_chunks"])
def restore_and_step(
    chunks, tensors, ascent_gradients, gradients, settings, schedule, counters, found_inf,
    skipped_steps, n_chunks,
    GRAD: tl.constexpr, ADAM: tl.constexpr, MOMENTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """w <- base step from the saved w with the second gradient; one chunk a program.

    A tensor without a second gradient is put back only; one without a first gradient has nothing
    to be put back. With ``found_inf`` set, or an element of a second gradient that is not finite,
    every tensor is put back and nothing else changes.

    Whether all gradients are finite must be known before the first weight is written. Another
    launch would tell; a wait inside this one tells as well. The programs draw tickets as they
    start. The first ``num_programs - n_chunks`` of them check the gradients and give a verdict
    each; the others wait for all verdicts, then step a chunk each. A checker never waits, and it
    has started before any stepper does, so the wait ends, in whatever order the programs start and
    however few of them fit the device at once. A counter holds all that is passed on, so its
    atomics need no ordering with other memory.
    """
    ticket = tl.atomic_add(counters + TICKETS, 1, sem="relaxed")
    checkers = tl.num_programs(0) - n_chunks
    if ticket < checkers:
        finite = _finite(chunks, tensors, gradients, ticket, checkers, n_chunks, GRAD, BLOCK)
        tl.atomic_add(counters + VERDICTS, tl.where(finite, 1, 1 + BAD), sem="relaxed")
    else:
        verdicts = tl.atomic_add(counters + VERDICTS, 0, sem="relaxed")
        while verdicts % BAD < checkers:
            verdicts = tl.atomic_add(counters + VERDICTS, 0, sem="relaxed")
        # The first stepper writes found_inf while others read it: to them it says nothing new.
        skip = (verdicts >= BAD) | (tl.load(found_inf) != 0.0)
        index = ticket - checkers
        if index == 0:
            tl.store(found_inf, tl.where(skip, 1.0, 0.0))
            tl.store(skipped_steps, tl.load(skipped_steps) + tl.where(skip, 1, 0))
        _step_chunk(
            chunks, tensors, ascent_gradients, gradients, settings, schedule, index, skip,
            GRAD, ADAM, MOMENTS, BLOCK,
        )  # fmt: skip


@triton.jit
def trial(out):
    """Write a 1. It is launched once a process, to see whether kernels can be launched at all."""
    tl.store(out, 1.0)
