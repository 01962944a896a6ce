"""The bytes that a fused step moves."""

from collections import Counter

from .rule import ADD, GSAM, KEEP, Rule
from .tables import Tables

WORD = 4  # bytes of a float32


def of_step(tables: Tables, rule: Rule, is_single: bool) -> dict[str, int]:
    """Return the bytes that each launch of the last step read and wrote, without the tables.

    Args:
        tables: those of the step.
        rule: the method.
        is_single: whether the step took one gradient.
    """
    return _one_pass(tables, rule) if is_single else _two_passes(tables, rule)


def _two_passes(tables: Tables, rule: Rule) -> dict[str, int]:
    moved = Counter[str]()
    for p, adaptive, first, second in zip(
        tables.params, tables.adaptive, tables.ascent.bytes, tables.descent.bytes, strict=True
    ):
        n, own = p.numel(), WORD * rule.friendly
        if first:
            moved["norm_partials"] += n * (first + own + WORD * adaptive)  # T needs w
            # reads w; writes the copy and w; reads and writes the average
            moved["perturb"] += n * (first + 3 * WORD + 2 * own)
        if second:
            # Reads the gradients twice, to check all of them and to step; reads the copy,
            # writes w; reads and writes each moment.
            moved["restore_and_step"] += n * (2 * second + (2 + 2 * tables.moments) * WORD)
        elif first:
            moved["restore_and_step"] += n * 2 * WORD  # puts w back
        if rule.mix in (GSAM, KEEP):
            # the first gradients twice, too; KEEP writes its buffer
            moved["restore_and_step"] += n * (2 * first + WORD * (rule.mix == KEEP))
    return dict(moved)


def _one_pass(tables: Tables, rule: Rule) -> dict[str, int]:
    moved = Counter[str]()
    for p, second in zip(tables.params, tables.descent.bytes, strict=True):
        n = p.numel()
        if second:
            moved["restore_and_step"] += n * (2 * second + (2 + 2 * tables.moments) * WORD)
        if rule.single_mix == ADD:
            moved["restore_and_step"] += n * 2 * WORD  # its buffer, to measure and to step
        if rule.looks_ahead:
            moved["look_ahead"] += n * 4 * WORD  # reads w and m; writes the copy and w
    return dict(moved)
