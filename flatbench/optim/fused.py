"""The three launches of a fused SAM step, over the tables of `tables.py`; kernels in `kernels.py`.

Tests without a GPU check the kernels' numbers (in Triton's interpreter), their registers, spills
and load width (compiled for sm_80 and sm_90), and their launching (Triton's own binder, compiler
and launcher run over a stub driver, whose launches are then interpreted). The tests marked ``gpu``
check the rest: streams, graphs, synchronisation, speed.
"""

from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from itertools import chain, compress
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD
from torch.optim.optimizer import Optimizer

from . import kernels, traffic
from .availability import refusal
from .capture import capturing
from .groups import Group, parameters
from .own_state import OwnState
from .rule import KEEP, Rule
from .tables import Tables, gradient_of, settings_row, upload
from .writing import Memory, is_readable_rate, write_tables

BLOCK = 2048  # elements of a chunk
PARTIALS = 1024  # programs at most that sum the norm's parts, or that check the second gradients

_requires_grad, _dtype = attrgetter("requires_grad"), attrgetter("dtype")


class Outcome(NamedTuple):
    """What a step reports, in 0-d tensors on the device; see the attributes of `SAM`."""

    gradient_norm: Tensor
    found_inf: Tensor
    skipped_steps: Tensor


@dataclass(frozen=True)
class Method:
    """What of a step is the method's, beside its rule.

    Attributes:
        rule: what the kernels must know.
        own_state: what the method keeps of a parameter; see `own_state.py`.
        only: the parameters that are perturbed, None for all.
        radius: returns rho of a group.
    """

    rule: Rule
    own_state: OwnState
    only: Container[Tensor] | None
    radius: Callable[[Group], float]

    def settings(self, group: Group, adam: bool) -> list[float]:
        """Return a group's row of the table ``settings``."""
        numbers = [float(group[name]) for name in self.rule.numbers]
        return [*settings_row({**group, "rho": self.radius(group)}, adam), *numbers, 0.0, 0.0][
            : kernels.SETTING_COLUMNS.value
        ]


class Refused(Exception):
    """The parameters or groups changed, and no fused step fits them any more."""


class FusedStep:
    """A step in three launches or fewer, over tables that are rewritten only when they must change.

    Args:
        base: the base optimizer; its groups and its state are used, in torch's own format.
        saved_copy: returns the tensor that a parameter's w is saved in.
        outcome: tensors to write the outcome into.
        method: what of the step is the method's.

    Attributes:
        launches: how often each kernel was launched.
        uploads: how often each table was written from the host.
        tables: those of the last step, None before the first.
    """

    def __init__(
        self,
        base: Optimizer,
        saved_copy: Callable[[Tensor], Tensor],
        outcome: Outcome,
        method: Method,
    ) -> None:
        self.launches: Counter[str] = Counter()
        self.uploads: Counter[str] = Counter()
        self.tables: Tables | None = None
        self._base = base
        self._outcome = outcome
        self._method = method
        self._adam = not isinstance(base, SGD)
        self._memory = Memory(saved_copy, method.own_state, {}, {})
        self._is_planned = False  # whether the schedule of the coming step is written
        self._synced: dict[str, list[Any]] = {}  # what the host last wrote to each table
        self._binaries: dict[tuple[Any, ...], Any] = {}  # compiled kernels by name and constants

    def ascend(self) -> list[Tensor]:
        """Take the norm (launch 1), then save and perturb w (launch 2).

        Returns:
            The parameters that are perturbed now.

        Raises:
            Refused: the parameters or groups have changed so that there is no fused step.
            RuntimeError: a sparse gradient, or a capture that comes before a step without one.
        """
        rule = self._method.rule
        tables, given = self._current_tables()
        self.sync_settings()
        only = self._method.only
        if only is not None:
            known = zip(tables.params, given, strict=True)
            given = [g if p in only else None for p, g in known]
        pointers, gradients = tables.ascent.point_at(given)
        walk = (tables.chunks, tables.tensors, pointers, tables.settings)
        norm, found_inf, _ = self._outcome
        n_chunks, kind = tables.n_chunks, tables.ascent.kind
        # Each weight's perturbation needs the whole norm, which is there at the end of a launch.
        # The next launch folds the partial sums, in each of its programs and in one order.
        self._launch(
            "norm_partials", min(n_chunks, PARTIALS), *walk, tables.partials, n_chunks,
            GRAD=kind, ANY_ADAPTIVE=tables.any_adaptive, FRIENDLY=rule.friendly, BLOCK=BLOCK,
        )  # fmt: skip
        self._launch(
            "perturb", n_chunks,
            *walk, tables.schedule, tables.partials, tables.counters, norm, found_inf,
            GRAD=kind, ADAM=self._adam, FRIENDLY=rule.friendly, PARTIALS=PARTIALS, BLOCK=BLOCK,
        )  # fmt: skip
        self._first_pointers = pointers  # tells launch 3 which tensors are perturbed
        # Some may be copies, and a method that mixes both gradients reads them in launch 3.
        self._first_gradients = gradients if rule.mix else []
        self._is_planned = True
        perturbed = [p for p, g in zip(tables.params, gradients, strict=True) if g is not None]
        if rule.friendly:
            self._keep(perturbed)
        return perturbed

    def descend(self) -> None:
        """Check the second gradients, restore w and take the base's step from it (launch 3).

        Raises:
            RuntimeError: a parameter that required no gradient in ``ascend`` has one now.
        """
        tables = self._known_tables()
        self._step(tables, self._first_pointers, self._method.rule.mix, is_single=False)
        self._first_gradients = []

    def single(self, perturbed: Sequence[Tensor] = ()) -> None:
        """Take a step of one gradient, in at most two launches.

        Args:
            perturbed: what is to be put back before it.

        Raises:
            Refused: as `ascend`.
        """
        tables, _ = self._current_tables()
        self.sync_settings()
        if not self._is_planned:
            self._launch(
                "plan", len(tables.params),
                tables.tensors, tables.settings, tables.schedule, tables.counters, ADAM=self._adam,
            )  # fmt: skip
        first = tables.all if len(perturbed) == len(tables.params) else tables.none
        if first is tables.none and perturbed:
            known = set(perturbed)
            first = torch.zeros_like(tables.none)
            upload([int(p in known) for p in tables.params], first)
        self._step(tables, first, self._method.rule.single_mix, is_single=True)

    def step_from_parts(self) -> None:
        """Take the base's step with the parts' average, which is in ``p.grad`` (one launch)."""
        tables = self._known_tables()
        self._step(tables, tables.none, 0, is_single=False)

    def look_ahead(self) -> list[Tensor]:
        """Move w along the base's momentum, whose norm the step before has left.

        Returns:
            The parameters that are perturbed now: all that have a place in the tables.
        """
        tables = self._known_tables()
        self._launch(
            "look_ahead", tables.n_chunks,
            tables.chunks, tables.tensors, tables.settings, tables.schedule, tables.counters,
            tables.momentum_norm, ADAM=self._adam, BLOCK=BLOCK,
        )  # fmt: skip
        self._is_planned = True
        return list(tables.params)

    def end_part(self, share: float, spoilt: Tensor) -> None:
        """Put w back, and take a part's gradients into the average (one launch).

        Args:
            share: what the part counts of all so far, 1 for the first one.
            spoilt: 0-d float, the parts' largest ``found_inf``.
        """
        tables = self._known_tables()
        pointers, gradients = tables.descent.point_at(list(map(gradient_of, tables.params)))
        self._launch(
            "end_part", tables.n_chunks,
            tables.chunks, tables.tensors, self._first_pointers, pointers, self._outcome.found_inf,
            spoilt, share, GRAD=tables.descent.kind, BLOCK=BLOCK,
        )  # fmt: skip
        self._keep([p for p, g in zip(tables.params, gradients, strict=True) if g is not None])

    def mean(self, p: Tensor) -> Tensor:
        """Return the buffer that holds a parameter's average over a batch's parts."""
        return self._memory.own[p]

    def _step(self, tables: Tables, first: Tensor, mix: int, is_single: bool) -> None:
        """Launch `restore_and_step`; ``first`` has the gradients that tensors are perturbed by."""
        # Some of `_gradients` may be copies: the name keeps them until the launch.
        pointers, gradients = tables.descent.point_at(list(map(gradient_of, tables.params)))
        _, found_inf, skipped_steps = self._outcome
        n_chunks = tables.n_chunks
        # One program steps each chunk; the others check the gradients for all of them.
        self._launch(
            "restore_and_step", n_chunks + min(n_chunks, PARTIALS),
            tables.chunks, tables.tensors, first, pointers, tables.settings, tables.schedule,
            tables.counters, found_inf, skipped_steps, tables.products, tables.squares,
            tables.momentum_norm, n_chunks,
            GRAD=tables.descent.kind, FIRST=tables.ascent.kind, ADAM=self._adam,
            MOMENTS=tables.moments, MIX=mix, SINGLE=is_single,
            LOOK=self._method.rule.looks_ahead, PARTIALS=PARTIALS, BLOCK=BLOCK,
        )  # fmt: skip
        self._is_planned, self._was_single = False, is_single
        if mix == KEEP:
            second = {p for p, g in zip(tables.params, gradients, strict=True) if g is not None}
            known = zip(tables.params, tables.ascent.bytes, strict=True)
            self._keep([p for p, n in known if n or p in second])

    def _keep(self, params: Sequence[Tensor]) -> None:
        """Have the method's state hold the buffers of these parameters."""
        name, own_state = self._method.rule.own, self._memory.own_state
        assert name is not None
        for p in params:
            if p not in own_state:
                own_state[p] = {name: self._memory.own[p]}

    def _known_tables(self) -> Tables:
        """Return the tables of the first half.

        Raises:
            RuntimeError: a parameter that was frozen then has a gradient now.
        """
        tables = self.tables
        assert tables is not None, "ascend comes first"
        params = parameters(self._base.param_groups)
        # The tables leave out what was frozen in `ascend`, so the kernel would not step it.
        if len(params) > len(tables.params):
            known = set(tables.params)
            if any(p.grad is not None and p not in known for p in params):
                raise RuntimeError("a parameter that was frozen in first_step has a gradient now")
        return tables

    def _launch(self, name: str, programs: int, *arguments: Any, **constants: Any) -> None:
        """Launch a kernel; from the second time on, launch its compiled binary directly.

        Triton would look the binary up by the type and alignment of each argument, and compare all
        constants of the kernels' module: half of a launch's time on the host. Here name and
        constants are enough: an argument's type never changes, and every tensor is one that this
        package allocated, which is aligned.
        """
        key = (name, *constants.values())
        binary = self._binaries.get(key)
        if binary is None:
            kernel = getattr(kernels, name)
            # Triton's interpreter returns None, so there every launch comes through here.
            binary = kernel[(programs,)](*arguments, **constants, **kernels.LAUNCH)
            self._binaries[key] = binary
        else:
            binary[(programs, 1, 1)](*arguments, *constants.values())
        self.launches[name] += 1

    def sync(self) -> None:
        """Write what a replayed graph reads on the device: settings and gradient addresses."""
        self.sync_settings()
        if self.tables is not None:
            self.tables.ascent.write_captured()
            self.tables.descent.write_captured()

    def sync_settings(self) -> None:
        """Write the groups' rho, lr, ... to the device, if they changed since the last time.

        Raises:
            RuntimeError: they changed, and a graph is being captured, which would freeze them.
        """
        tables = self.tables
        if tables is None:
            return  # the first step will write everything
        groups = self._base.param_groups
        rows = [self._method.settings(group, self._adam) for group in groups]
        if self._sync("settings", tables.settings, rows):
            self._is_planned = False
        lrs = [group["lr"] for group in groups]
        numbers = [0.0 if isinstance(lr, Tensor) else float(lr) for lr in lrs]
        self._sync("rates", tables.rates, numbers)
        # A tensor lr is copied on the device: to read it, the host would have to wait.
        for i, lr in enumerate(lrs):
            if isinstance(lr, Tensor) and not is_readable_rate(lr, tables.rates):
                tables.rates[i].copy_(lr.detach().squeeze())

    def _sync(self, name: str, table: Tensor, values: list[Any]) -> bool:
        """Write a table if its values have changed, and return whether they have."""
        if values == self._synced.get(name):
            return False
        if capturing(table):
            raise RuntimeError(
                f"the groups' {name} changed since the last step: call sync_hyperparameters() "
                "before the capture"
            )
        upload(values, table)
        self._synced[name] = values
        self.uploads[name] += 1
        return True

    def traffic(self) -> dict[str, int]:
        """Return the bytes that each launch of the last step read and wrote, without the tables."""
        assert self.tables is not None, "a step comes first"
        return traffic.of_step(self.tables, self._method.rule, self._was_single)

    def _current_tables(self) -> tuple[Tables, list[Tensor | None]]:
        """Return the tables, rewritten if they must change, and their parameters' gradients."""
        groups = self._base.param_groups
        params = parameters(groups)
        gradients: list[Tensor | None] = list(map(gradient_of, params))
        wanted = list(map(_requires_grad, params))
        if not all(wanted):
            # A frozen parameter that has a gradient is stepped, as torch's own steps do.
            wanted = [r or g is not None for r, g in zip(wanted, gradients, strict=True)]
            gradients = list(compress(gradients, wanted))
        fingerprint = self._fingerprint(groups, params, wanted)
        if self.tables is None or fingerprint != self.tables.fingerprint:
            if capturing(params[0]):
                raise RuntimeError("take a SAM step before capturing one: its tables must exist")
            reason = refusal(type(self._base), groups)
            if reason is not None:
                raise Refused(reason)
            params = list(compress(params, wanted))
            self.tables = write_tables(
                self._base, self._method.rule, params, self._memory, (BLOCK, PARTIALS), self.uploads
            )
            self._is_planned = False
            # Only now: the fingerprint covers the state too, and writing the tables may make some.
            params = parameters(groups)
            self.tables.fingerprint = self._fingerprint(groups, params, wanted)
            self._synced = {}
            self.uploads["tensors"] += 1
        return self.tables, gradients

    def _fingerprint(
        self, groups: Sequence[Group], params: list[Tensor], wanted: list[bool]
    ) -> tuple[object, ...]:
        """Return what the tables depend on: addresses, layouts, and some of the groups' options."""
        # State is compared by identity. That is safe: the tables keep what they address alive, so
        # that no later tensor can have its id.
        states = chain.from_iterable(map(dict.values, self._base.state.values()))
        return (
            wanted,
            list(map(id, params)),
            list(map(Tensor.data_ptr, params)),
            list(map(Tensor.numel, params)),
            list(map(Tensor.stride, params)),
            list(map(_dtype, params)),
            list(map(id, states)),
            [
                (group["adaptive"], bool(group.get("momentum")), bool(group.get("amsgrad")))
                for group in groups
            ],
            [group["lr"].data_ptr() for group in groups if isinstance(group["lr"], Tensor)],
        )
