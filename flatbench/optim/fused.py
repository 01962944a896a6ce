"""The three launches of a fused SAM step, over the tables of `tables.py`; kernels in `kernels.py`.

Tests without a GPU check the kernels' numbers (in Triton's interpreter), their registers, spills
and load width (compiled for sm_80 and sm_90), and their launching (Triton's own binder, compiler
and launcher run over a stub driver, whose launches are then interpreted). The tests marked ``gpu``
check the rest: streams, graphs, synchronisation, speed.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, compress
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW
from torch.optim.optimizer import Optimizer

from . import kernels
from .groups import Group, is_adaptive, parameters
from .layout import in_layout_of, is_dense
from .tables import GradientTable, Tables, capturing, chunks_of, gradient_of, settings_row, upload

BLOCK = 2048  # elements of a chunk
PARTIALS = 1024  # programs at most that sum the norm's parts, or that check the second gradients

_requires_grad, _dtype = attrgetter("requires_grad"), attrgetter("dtype")


class Outcome(NamedTuple):
    """What a step reports, in 0-d tensors on the device; see the attributes of `SAM`."""

    gradient_norm: Tensor
    found_inf: Tensor
    skipped_steps: Tensor


class Refused(Exception):
    """The parameters or groups changed, and no fused step fits them any more."""


def refusal(base: type[Optimizer], groups: Sequence[Group]) -> str | None:
    """Return why these groups cannot take the fused step, or None if they can.

    `availability.why_not_fused` tells whether their device can launch it.
    """
    return next(_objections(base, groups), None)


def _objections(base: type[Optimizer], groups: Sequence[Group]) -> Iterator[str]:
    if base not in (SGD, Adam, AdamW):
        yield f"the base optimizer must be SGD, Adam or AdamW, got {base.__name__}"
    if any(group.get("amsgrad") for group in groups):
        yield "amsgrad=True is not supported"
    params = parameters(groups)
    for p in params:
        if p.dtype != torch.float32:
            yield f"parameters must be float32, got {p.dtype}"
        if not is_dense(p):
            yield f"a parameter of shape {tuple(p.shape)} and strides {p.stride()} has gaps"
    if not any(p.numel() for p in params):
        yield "the parameters are empty"


class FusedStep:
    """A SAM step in three launches, over tables that are rewritten only when they must change.

    Args:
        base: the base optimizer; its groups and its state are used, in torch's own format.
        saved_copy: returns the tensor that a parameter's w is saved in.
        outcome: tensors to write the outcome into.

    Attributes:
        launches: how often each kernel was launched.
        uploads: how often each table was written from the host.
    """

    def __init__(
        self, base: Optimizer, saved_copy: Callable[[Tensor], Tensor], outcome: Outcome
    ) -> None:
        self.launches: Counter[str] = Counter()
        self.uploads: Counter[str] = Counter()
        self._base = base
        self._saved_copy = saved_copy
        self._outcome = outcome
        self._adam = not isinstance(base, SGD)
        self._state_names = (
            ("exp_avg", "exp_avg_sq", "step") if self._adam else ("momentum_buffer",)
        )
        self._counts: dict[Tensor, Tensor] = {}  # for SGD, which keeps no step count itself
        self._tables: Tables | None = None
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
        tables, given = self._current_tables()
        self.sync_settings()
        pointers, gradients = tables.ascent.point_at(given)
        walk = (tables.chunks, tables.tensors, pointers, tables.settings)
        norm, found_inf, _ = self._outcome
        n_chunks, kind = tables.n_chunks, tables.ascent.kind
        # Each weight's perturbation needs the whole norm, which is there at the end of a launch.
        # The next launch folds the partial sums, in each of its programs and in one order.
        self._launch(
            "norm_partials", min(n_chunks, PARTIALS), *walk, tables.partials, n_chunks,
            GRAD=kind, ANY_ADAPTIVE=tables.any_adaptive, BLOCK=BLOCK,
        )  # fmt: skip
        self._launch(
            "perturb", n_chunks,
            *walk, tables.schedule, tables.partials, tables.counters, norm, found_inf,
            GRAD=kind, ADAM=self._adam, PARTIALS=PARTIALS, BLOCK=BLOCK,
        )  # fmt: skip
        self._first_pointers = pointers  # tells launch 3 which tensors are perturbed
        return [p for p, g in zip(tables.params, gradients, strict=True) if g is not None]

    def descend(self) -> None:
        """Check the second gradients, restore w and take the base's step from it (launch 3).

        Raises:
            RuntimeError: a parameter that required no gradient in ``ascend`` has one now.
        """
        tables = self._tables
        assert tables is not None, "ascend comes first"
        params = parameters(self._base.param_groups)
        # The tables leave out what was frozen in `ascend`, so the kernel would not step it.
        if len(params) > len(tables.params):
            known = set(tables.params)
            if any(p.grad is not None and p not in known for p in params):
                raise RuntimeError("a parameter that was frozen in first_step has a gradient now")
        # Some of `_gradients` may be copies: the name keeps them until the launch.
        pointers, _gradients = tables.descent.point_at(list(map(gradient_of, tables.params)))
        _, found_inf, skipped_steps = self._outcome
        n_chunks = tables.n_chunks
        # One program steps each chunk; the others check the gradients for all of them.
        self._launch(
            "restore_and_step", n_chunks + min(n_chunks, PARTIALS),
            tables.chunks, tables.tensors, self._first_pointers, pointers, tables.settings,
            tables.schedule, tables.counters, found_inf, skipped_steps, n_chunks,
            GRAD=tables.descent.kind, ADAM=self._adam, MOMENTS=tables.moments, BLOCK=BLOCK,
        )  # fmt: skip

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
        if self._tables is not None:
            self._tables.ascent.write_captured()
            self._tables.descent.write_captured()

    def sync_settings(self) -> None:
        """Write the groups' rho, lr, ... to the device, if they changed since the last time.

        Raises:
            RuntimeError: they changed, and a graph is being captured, which would freeze them.
        """
        tables = self._tables
        if tables is None:
            return  # the first step will write everything
        groups = self._base.param_groups
        self._sync("settings", tables.settings, [settings_row(g, self._adam) for g in groups])
        lrs = [group["lr"] for group in groups]
        numbers = [0.0 if isinstance(lr, Tensor) else float(lr) for lr in lrs]
        self._sync("rates", tables.rates, numbers)
        # A tensor lr is copied on the device: to read it, the host would have to wait.
        for i, lr in enumerate(lrs):
            if isinstance(lr, Tensor) and not _is_readable_rate(lr, tables.rates):
                tables.rates[i].copy_(lr.detach().squeeze())

    def _sync(self, name: str, table: Tensor, values: list[Any]) -> None:
        if values == self._synced.get(name):
            return
        if capturing(table):
            raise RuntimeError(
                f"the groups' {name} changed since the last step: call sync_hyperparameters() "
                "before the capture"
            )
        upload(values, table)
        self._synced[name] = values
        self.uploads[name] += 1

    def traffic(self) -> dict[str, int]:
        """Return the bytes that each launch of the last step read and wrote, without the tables."""
        tables = self._tables
        assert tables is not None, "a step comes first"
        moved = Counter[str]()
        for p, adaptive, first, second in zip(
            tables.params, tables.adaptive, tables.ascent.bytes, tables.descent.bytes, strict=True
        ):
            n, word = p.numel(), p.element_size()
            if first:
                moved["norm_partials"] += n * (first + word * adaptive)  # T needs w
                moved["perturb"] += n * (first + 3 * word)  # reads w; writes the copy and w
            if second:
                # Reads the gradients twice, to check all of them and to step; reads the copy,
                # writes w; reads and writes each moment.
                moved["restore_and_step"] += n * (2 * second + (2 + 2 * tables.moments) * word)
            elif first:
                moved["restore_and_step"] += n * 2 * word  # puts w back
        return dict(moved)

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
        if self._tables is None or fingerprint != self._tables.fingerprint:
            if capturing(params[0]):
                raise RuntimeError("take a SAM step before capturing one: its tables must exist")
            reason = refusal(type(self._base), groups)
            if reason is not None:
                raise Refused(reason)
            params = list(compress(params, wanted))
            self._tables = self._write_tables(params)
            # Only now: the fingerprint covers the state too, and writing the tables may make some.
            params = parameters(groups)
            self._tables.fingerprint = self._fingerprint(groups, params, wanted)
            self._synced = {}
            self.uploads["tensors"] += 1
        return self._tables, gradients

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

    def _write_tables(self, params: list[Tensor]) -> Tables:
        groups, device = self._base.param_groups, params[0].device
        # parameter -> the number of its group, whether T = |w| + eta
        place = {
            p: (i, is_adaptive(group, k))
            for i, group in enumerate(groups)
            for k, p in enumerate(group["params"])
        }
        moments = 2 if self._adam else int(any(group["momentum"] for group in groups))
        rates = torch.zeros(len(groups), device=device)
        # A tensor lr is read where it is if the kernels can: a graph then sees it change.
        rate_of = [
            lr if isinstance(lr := group["lr"], Tensor) and _is_readable_rate(lr, rates) else rate
            for group, rate in zip(groups, rates, strict=True)
        ]
        addressed: list[Tensor] = []
        rows = []
        for p in params:
            i, adaptive = place[p]
            count = self._step_count(p)  # looks for the momentum buffer before it is made
            state = self._moment_tensors(p, groups[i])
            if len(state) < moments:
                # The kernel wants a buffer for every tensor if it wants one for any; torch's
                # state has none for a group without momentum.
                state = [torch.zeros_like(p, requires_grad=False)]
            saved = self._saved_copy(p)
            addressed += [saved, count, *state]
            addresses = [t.data_ptr() for t in (p, saved, *state)]
            addresses += [0] * (4 - len(addresses))
            addresses += [count.data_ptr(), rate_of[i].data_ptr()]
            rows.append([*addresses, p.numel(), i, int(adaptive)])
        return Tables(
            params=params,
            adaptive=[place[p][1] for p in params],
            moments=moments,
            addressed=addressed,
            chunks=chunks_of(params, BLOCK).to(device),
            tensors=torch.tensor(rows, dtype=torch.int64, device=device),
            settings=torch.zeros(
                len(groups), kernels.SETTING_COLUMNS.value, dtype=torch.float64, device=device
            ),
            rates=rates,
            schedule=torch.zeros(len(params), kernels.SCHEDULE_COLUMNS.value, device=device),
            partials=torch.zeros(PARTIALS, device=device),
            counters=torch.zeros(2, dtype=torch.int32, device=device),
            ascent=GradientTable(params, device, self.uploads),
            descent=GradientTable(params, device, self.uploads),
        )

    def _moment_tensors(self, p: Tensor, group: Group) -> list[Tensor]:
        """Return the moment buffers that the base keeps for p, made if missing, in p's layout."""
        names: tuple[str, ...] = ("exp_avg", "exp_avg_sq")
        if not self._adam:
            names = ("momentum_buffer",) if group["momentum"] else ()
        state = self._base.state[p]
        for name in names:
            if state.get(name) is None:
                state[name] = torch.zeros_like(p, requires_grad=False)
            state[name] = in_layout_of(p, state[name], torch.float32)
        return [state[name] for name in names]

    def _step_count(self, p: Tensor) -> Tensor:
        """Return p's step count, 0-d float32 on p's device.

        Adam keeps one. SGD does not: its count starts at 1 where p has a momentum buffer and at 0
        elsewhere, since the kernel asks only whether the step is the first.
        """
        state = self._base.state[p]
        if self._adam:
            count = torch.as_tensor(state.get("step", 0.0), dtype=torch.float32, device=p.device)
            state["step"] = count
            return count
        has_buffer = state.get("momentum_buffer") is not None
        if p not in self._counts or not has_buffer:
            self._counts[p] = torch.tensor(float(has_buffer), device=p.device)
        return self._counts[p]


def _is_readable_rate(lr: Tensor, table: Tensor) -> bool:
    """Return whether the kernels can read this learning rate where it is, without a copy."""
    return lr.dtype == table.dtype and lr.device == table.device and lr.numel() == 1
