# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, no-any-return"
"""The tables that the fused step's kernels walk, and how a chunk of a tensor is read and written.

Kernels take tables in device memory instead of tensors as arguments, so that one launch serves any
number of tensors (`tables.py` writes them):

``chunks``     int32 (chunks, 2): which tensor, and which run of BLOCK elements of it
``tensors``    int64 (tensors, 10): addresses and facts of each tensor, columns below
``gradients``  int64 (tensors,): addresses of the gradients, 0 where there is none, and
               UNWRITTEN in a captured graph's table until the host has written it
``settings``   float64 (groups, 9): hyperparameters of each parameter group, columns below
``partials``   float32 (PARTIALS,): the norm's sums; 0 beyond the programs that it had
``products``   float32 (2, PARTIALS): sums of products of gradients; see `descent.py`
``schedule``   float32 (tensors, 4): the coming step count, and Adam's bias corrections for it
``counters``   int32 (3,): tickets, verdicts and steps done of `restore_and_step`, see there
"""

import triton
import triton.language as tl

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
OWN = tl.constexpr(9)  # the method's own buffer: F-SAM's average, LookSAM's g_v, m-SAM's mean
TENSOR_COLUMNS = tl.constexpr(10)

# Columns of `settings`. SGD and Adam share three of them, the methods the last two.
RHO = tl.constexpr(0)
ETA = tl.constexpr(1)
COUPLED_DECAY = tl.constexpr(2)  # added to the gradient
DECOUPLED_DECAY = tl.constexpr(3)  # taken off the weight
MOMENTUM = BETA1 = tl.constexpr(4)
DAMPENING = BETA2 = tl.constexpr(5)
NESTEROV = EPS = tl.constexpr(6)
SIGMA = ALPHA = tl.constexpr(7)
LMBDA = tl.constexpr(8)
SETTING_COLUMNS = tl.constexpr(9)

# Columns of `schedule`.
PENDING_STEP = tl.constexpr(0)
BIAS1 = tl.constexpr(1)  # 1 - beta1^step
SQRT_BIAS2 = tl.constexpr(2)  # sqrt(1 - beta2^step)
STARTED = tl.constexpr(3)  # 1 once the tensor has had a first gradient
SCHEDULE_COLUMNS = tl.constexpr(4)

# Entries of `counters`.
TICKETS = tl.constexpr(0)
VERDICTS = tl.constexpr(1)
DONE = tl.constexpr(2)
BAD = tl.constexpr(1 << 16)  # a verdict is 1, or 1 + BAD; BAD exceeds the number of checkers

UNWRITTEN = tl.constexpr(-1)


@triton.jit
def chunk(chunks, tensors, index, BLOCK: tl.constexpr):
    """Return the chunk's tensor, the tensor's row, its first element, and how many are left."""
    tensor = tl.load(chunks + 2 * index).to(tl.int64)
    start = tl.load(chunks + 2 * index + 1).to(tl.int64) * BLOCK
    row = tensors + tensor * TENSOR_COLUMNS
    return tensor, row, start, tl.load(row + NUMEL) - start


@triton.jit
def setting(settings, row, column: tl.constexpr):
    """A number of the tensor's group, float64."""
    group = tl.load(row + GROUP)
    return tl.load(settings + group * SETTING_COLUMNS + column)


@triton.jit
def scalar(row, column: tl.constexpr):
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
def load(address, start, left, dtype: tl.constexpr, BLOCK: tl.constexpr, FULL: tl.constexpr):
    """A chunk's elements in float32; 0 beyond the tensor's end."""
    places = _pointers(address, start, dtype, BLOCK, FULL)
    if FULL:
        values = tl.load(places)
    else:
        values = tl.load(places, mask=tl.arange(0, BLOCK) < left, other=0.0)
    return values.to(tl.float32)


@triton.jit
def store(address, start, left, values, BLOCK: tl.constexpr, FULL: tl.constexpr):
    """Write a chunk's elements, and nothing beyond the tensor's end."""
    places = _pointers(address, start, tl.float32, BLOCK, FULL)
    if FULL:
        tl.store(places, values)
    else:
        tl.store(places, values, mask=tl.arange(0, BLOCK) < left)


@triton.jit
def is_full(left, addresses, BLOCK: tl.constexpr):
    """Return whether a whole chunk can move 128 bits at a time; ``addresses`` are or-ed."""
    return (left >= BLOCK) & (addresses % 16 == 0)
