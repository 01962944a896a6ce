# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
"""The last launch of a fused step: w is put back, and the base steps.

What it steps with is the second gradient g_s, or, by MIX, what a method makes of it and of the
first gradient g or of a buffer v of its own:

====  ==============================  ======================================
MIX   the base steps with             products, summed over all parameters
====  ==============================  ======================================
0     g_s
GSAM  g_s - alpha (g - c g_s)         c = <g_s, g> / <g_s, g_s>
KEEP  g_s; v <- g_s - c g             c = <g_s, g> / <g, g>
ADD   g_s + alpha c v                 c = sqrt(<g_s, g_s> / <v, v>)
====  ==============================  ======================================

KEEP and ADD are LookSAM's; of a step of one gradient, as ADD is, that one is g_s.
"""

import triton
import triton.language as tl

from . import rule
from .base_kernels import adam_chunk, sgd_chunk
from .walk import (
    ALPHA,
    BAD,
    DONE,
    MOMENT1,
    MOMENT2,
    OWN,
    PENDING_STEP,
    SAVED,
    SCHEDULE_COLUMNS,
    STARTED,
    STEP,
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

GSAM = tl.constexpr(rule.GSAM)
KEEP = tl.constexpr(rule.KEEP)
ADD = tl.constexpr(rule.ADD)


# --- what the base steps with


@triton.jit
def _other(
    row, start, left, first,
    FIRST: tl.constexpr, MIX: tl.constexpr, BLOCK: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """The first gradient, 0 where there is none; the method's own buffer for ADD."""
    if MIX == ADD:
        other = load(tl.load(row + OWN), start, left, tl.float32, BLOCK, FULL)
    elif first > 0:
        other = load(first, start, left, FIRST, BLOCK, FULL)
    else:
        other = tl.zeros([BLOCK], tl.float32)
    return other


@triton.jit
def _mixed(
    row, start, left, g, first, share, settings,
    FIRST: tl.constexpr, MIX: tl.constexpr, BLOCK: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """What the base steps with; ``g`` is the second gradient. KEEP writes the buffer, too."""
    mixed = g
    if MIX > 0:
        other = _other(row, start, left, first, FIRST, MIX, BLOCK, FULL)
        alpha = setting(settings, row, ALPHA).to(tl.float32)
        if MIX == GSAM:
            mixed = (1.0 + alpha * share) * g - alpha * other
        elif MIX == KEEP:
            store(tl.load(row + OWN), start, left, g - share * other, BLOCK, FULL)
        else:
            mixed = g + (alpha * share) * other
    return mixed


@triton.jit
def _share(products, MIX: tl.constexpr, PARTIALS: tl.constexpr):
    """c of the table above, from the sums that the checkers left; 0 where it would divide by 0."""
    places = products + tl.arange(0, PARTIALS)
    one = tl.sum(tl.load(places, cache_modifier=".cg"))
    other = tl.sum(tl.load(places + PARTIALS, cache_modifier=".cg"))
    share = 0.0
    if other > 0.0:
        if MIX == ADD:
            share = tl.div_rn(tl.sqrt_rn(one), tl.sqrt_rn(other))
        else:
            share = tl.div_rn(one, other)
    return share


# --- the base's step


@triton.jit
def _base_chunk(
    row, start, left, source, gradient, first, share, settings, plan,
    GRAD: tl.constexpr, FIRST: tl.constexpr, ADAM: tl.constexpr, MOMENTS: tl.constexpr,
    MIX: tl.constexpr, BLOCK: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    g = load(gradient, start, left, GRAD, BLOCK, FULL)
    g = _mixed(row, start, left, g, first, share, settings, FIRST, MIX, BLOCK, FULL)
    if ADAM:
        m = adam_chunk(row, start, left, source, g, settings, plan, BLOCK, FULL)
    else:
        m = sgd_chunk(row, start, left, source, g, settings, plan, MOMENTS, BLOCK, FULL)
    return m


# --- the check


@triton.jit
def _products(
    row, start, left, gradient, first,
    GRAD: tl.constexpr, FIRST: tl.constexpr, MIX: tl.constexpr, BLOCK: tl.constexpr,
    FULL: tl.constexpr,
):  # fmt: skip
    """g_s, and the two products of the table above, element by element."""
    if MIX == 0:
        g = load(gradient, start, left, GRAD, BLOCK, FULL)
        one, two = g, g
    else:
        g = tl.zeros([BLOCK], tl.float32)
        if gradient > 0:
            g = load(gradient, start, left, GRAD, BLOCK, FULL)
        other = _other(row, start, left, first, FIRST, MIX, BLOCK, FULL)
        if MIX == ADD:
            one, two = g * g, other * other
        elif MIX == GSAM:
            one, two = g * other, g * g
        else:
            one, two = g * other, other * other
    return g, one, two


@triton.jit
def _check(
    chunks, tensors, ascent_gradients, gradients, products, index, stride, n_chunks,
    GRAD: tl.constexpr, FIRST: tl.constexpr, MIX: tl.constexpr, PARTIALS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Return whether the gradients are finite in every stride-th chunk, from index on.

    Sums of the products over these chunks are left in ``products``.
    """
    slot = index
    spoilt = tl.zeros([BLOCK], tl.float32)
    ones, twos = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    while index < n_chunks:
        tensor, row, start, left = chunk(chunks, tensors, index, BLOCK)
        gradient = tl.load(gradients + tensor)
        first = gradient
        touched = gradient
        wanted = gradient > 0
        if MIX == ADD:
            touched |= tl.load(row + OWN)
            wanted = True
        elif MIX > 0:
            first = tl.load(ascent_gradients + tensor)
            wanted |= first > 0
            if first > 0:
                touched |= first
        if gradient == UNWRITTEN:
            spoilt += float("nan")
        elif wanted:
            if is_full(left, touched, BLOCK):
                g, one, two = _products(
                    row, start, left, gradient, first, GRAD, FIRST, MIX, BLOCK, True
                )
            else:
                g, one, two = _products(
                    row, start, left, gradient, first, GRAD, FIRST, MIX, BLOCK, False
                )
            spoilt += g - g  # 0 for a finite g, else NaN
            if MIX > 0:
                ones += one
                twos += two
        index += stride
    if MIX > 0:
        tl.store(products + slot, tl.sum(ones))
        tl.store(products + PARTIALS + slot, tl.sum(twos))
    return tl.sum(spoilt) == 0.0


# --- the launch


@triton.jit
def _put_back(
    row, start, left, first, share, skip,
    FIRST: tl.constexpr, MIX: tl.constexpr, BLOCK: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """Put w back. Without a second gradient KEEP takes that for 0."""
    w = load(tl.load(row + SAVED), start, left, tl.float32, BLOCK, FULL)
    store(tl.load(row + WEIGHT), start, left, w, BLOCK, FULL)
    if MIX == KEEP:  # noqa: SIM102 - this is decided when it is compiled, the next line later
        if skip == 0:
            other = load(first, start, left, FIRST, BLOCK, FULL)
            store(tl.load(row + OWN), start, left, -share * other, BLOCK, FULL)


@triton.jit
def _step_chunk(  # noqa: PLR0912 - most branches are decided when it is compiled
    chunks, tensors, ascent_gradients, gradients, settings, schedule, index, share, skip,
    GRAD: tl.constexpr, FIRST: tl.constexpr, ADAM: tl.constexpr, MOMENTS: tl.constexpr,
    MIX: tl.constexpr, LOOK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Take one chunk's base step from the saved w; with ``skip``, only put w back.

    Returns the sum of the squares of the base's momentum after it, for LOOK.
    """
    tensor, row, start, left = chunk(chunks, tensors, index, BLOCK)
    weight, saved = tl.load(row + WEIGHT), tl.load(row + SAVED)
    first = tl.load(ascent_gradients + tensor)
    perturbed = first > 0
    gradient = tl.load(gradients + tensor)
    plan = schedule + tensor * SCHEDULE_COLUMNS
    square = 0.0
    if (gradient > 0) & (skip == 0):
        source = tl.where(perturbed, saved, weight)
        touched = gradient | source | weight
        if MOMENTS > 0:
            touched |= tl.load(row + MOMENT1)
        if MOMENTS > 1:
            touched |= tl.load(row + MOMENT2)
        if MIX > 0:
            touched |= tl.load(row + OWN)
            touched |= tl.where(perturbed, first, 0)
        # behind the step itself an address of it would be kept in local memory (triton 3.9)
        if start == 0:
            tl.store(scalar(row, STEP), tl.load(plan + PENDING_STEP))
        if is_full(left, touched, BLOCK):
            m = _base_chunk(
                row, start, left, source, gradient, first, share, settings, plan,
                GRAD, FIRST, ADAM, MOMENTS, MIX, BLOCK, True,
            )  # fmt: skip
        else:
            m = _base_chunk(
                row, start, left, source, gradient, first, share, settings, plan,
                GRAD, FIRST, ADAM, MOMENTS, MIX, BLOCK, False,
            )  # fmt: skip
        if LOOK:
            square = tl.sum(tl.where(tl.arange(0, BLOCK) < left, m * m, 0.0))
    else:
        if perturbed:
            touched = weight | saved
            if MIX == KEEP:
                touched |= first | tl.load(row + OWN)
            if is_full(left, touched, BLOCK):
                _put_back(row, start, left, first, share, skip, FIRST, MIX, BLOCK, True)
            else:
                _put_back(row, start, left, first, share, skip, FIRST, MIX, BLOCK, False)
        if LOOK:
            m = load(tl.load(row + MOMENT1), start, left, tl.float32, BLOCK, False)
            square = tl.sum(m * m)
    if (start == 0) & perturbed:
        tl.store(plan + STARTED, 1.0)
    return square


@triton.jit
def _verdicts(counters, MIX: tl.constexpr):
    """Read the verdicts; what the checkers stored before them is then there, too, if MIX asks."""
    if MIX > 0:
        verdicts = tl.atomic_add(counters + VERDICTS, 0, sem="acquire")
    else:
        verdicts = tl.atomic_add(counters + VERDICTS, 0, sem="relaxed")
    return verdicts


@triton.jit
def _leave_norm(counters, squares, momentum_norm, index, square, n_chunks, BLOCK: tl.constexpr):
    """Store a chunk's sum; the last program to do so adds them all, in one order, to a norm."""
    tl.store(squares + index, square)
    tl.debug_barrier()
    done = tl.atomic_add(counters + DONE, 1, sem="acq_rel")
    if done == n_chunks - 1:
        total = tl.zeros([BLOCK], tl.float32)
        start = 0
        while start < n_chunks:
            places = start + tl.arange(0, BLOCK)
            total += tl.load(
                squares + places, mask=places < n_chunks, other=0.0, cache_modifier=".cg"
            )
            start += BLOCK
        tl.store(momentum_norm, tl.sqrt_rn(tl.sum(total)))


@triton.jit(do_not_specialize=["n_chunks"])
def restore_and_step(
    chunks, tensors, ascent_gradients, gradients, settings, schedule, counters, found_inf,
    skipped_steps, products, squares, momentum_norm, n_chunks,
    GRAD: tl.constexpr, FIRST: tl.constexpr, ADAM: tl.constexpr, MOMENTS: tl.constexpr,
    MIX: tl.constexpr, SINGLE: tl.constexpr, LOOK: tl.constexpr, PARTIALS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """w <- base step from the saved w with the second gradient; one chunk a program.

    A tensor without a second gradient is put back only; one without a first gradient has nothing
    to be put back. With ``found_inf`` set (but for a SINGLE step, of one gradient), or an element
    of a second gradient that is not finite, every tensor is put back and nothing else changes.
    LOOK leaves ``momentum_norm``, that of the base's momentum.

    Whether all gradients are finite, and the products of MIX, must be known before the first
    weight is written. Another launch would tell; a wait inside this one tells as well. The programs
    draw tickets as they start. The first ``num_programs - n_chunks`` of them check the gradients
    and give a verdict each; the others wait for all verdicts, then step a chunk each. A checker
    never waits, and it has started before any stepper does, so the wait ends, in whatever order
    the programs start and however few of them fit the device at once. Without MIX a counter holds
    all that is passed on, so its atomics need no ordering with other memory; with it a verdict is
    given after the products are stored, and read before they are.
    """
    ticket = tl.atomic_add(counters + TICKETS, 1, sem="relaxed")
    checkers = tl.num_programs(0) - n_chunks
    if ticket < checkers:
        finite = _check(
            chunks, tensors, ascent_gradients, gradients, products, ticket, checkers, n_chunks,
            GRAD, FIRST, MIX, PARTIALS, BLOCK,
        )  # fmt: skip
        verdict = tl.where(finite, 1, 1 + BAD)
        if MIX > 0:
            tl.debug_barrier()
            tl.atomic_add(counters + VERDICTS, verdict, sem="release")
        else:
            tl.atomic_add(counters + VERDICTS, verdict, sem="relaxed")
    else:
        verdicts = _verdicts(counters, MIX)
        while verdicts % BAD < checkers:
            verdicts = _verdicts(counters, MIX)
        skip = verdicts >= BAD
        if not SINGLE:
            # The first stepper writes found_inf while others read it: to them it says nothing new.
            skip |= tl.load(found_inf) != 0.0
        index = ticket - checkers
        if index == 0:
            tl.store(found_inf, tl.where(skip, 1.0, 0.0))
            tl.store(skipped_steps, tl.load(skipped_steps) + tl.where(skip, 1, 0))
        share = 0.0
        if MIX > 0:
            share = _share(products, MIX, PARTIALS)
        square = _step_chunk(
            chunks, tensors, ascent_gradients, gradients, settings, schedule, index, share, skip,
            GRAD, FIRST, ADAM, MOMENTS, MIX, LOOK, BLOCK,
        )  # fmt: skip
        if LOOK:
            _leave_norm(counters, squares, momentum_norm, index, square, n_chunks, BLOCK)
