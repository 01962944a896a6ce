"""What the fused step must know of a method of the SAM family."""

from typing import NamedTuple

# What the base steps with; `descent.py` has the formulas.
GSAM, KEEP, ADD = 1, 2, 3


class Rule(NamedTuple):
    """A method, in the terms of the kernels.

    Attributes:
        friendly: whether it climbs along the gradient less sigma times its average.
        mix: what the base steps with after two passes: an entry of `descent.py`'s table.
        single_mix: the same, in a step of one gradient.
        own: what the method's own buffer is called in ``own_state``, or None if it has none.
        numbers: options of a group that fill the last columns of the table ``settings``.
        looks_ahead: whether a step ends by moving the weights along the base's momentum.
    """

    friendly: bool = False
    mix: int = 0
    single_mix: int = 0
    own: str | None = None
    numbers: tuple[str, ...] = ()
    looks_ahead: bool = False
