"""train(case) -> Record: the epoch loop.

The host reads the device once an epoch: losses, hits and gradient norms accumulate there.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
import warnings
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from flatbench import data
from flatbench.components import in_one_line
from flatbench.files import write_atomically
from flatbench.optim import HalfSteps
from flatbench.protocols.cases import Case
from flatbench.records import provenance
from flatbench.records.record import Epoch, Record, of_case
from flatbench.training import checkpoint, devices, measuring, meter
from flatbench.training.run import Run, close, load_optimizer, snapshot
from flatbench.training.setup import prepare
from flatbench.training.step import SUMS, evaluate, rate_factor, set_learning_rates
from flatbench.training.stepping import enter_training, leave_training

CHECKPOINT_SHARE = 0.01  # of the time, at most, goes into writing checkpoints; sending takes 0.01


class Diverged(Exception):
    """A loss or a gradient is not finite."""


def train(
    case: Case,
    *,
    device_name: str = "cpu",
    data_dir: Path | None = None,
    on_epoch: Callable[[int, Epoch], None] | None = None,
    checkpoints: Path | None = None,
    resume: bool = False,
    weights: Path | None = None,
) -> Record:
    """Train one case as `epochs` does, and return its record.

    ``on_epoch(number, epoch)`` is called after each epoch, from 1.
    """
    under_way = epochs(
        case,
        device_name=device_name,
        data_dir=data_dir,
        checkpoints=checkpoints,
        resume=resume,
        weights=weights,
    )
    return drive(under_way, on_epoch)


def drive(
    under_way: Generator[tuple[int, Epoch], None, Record],
    on_epoch: Callable[[int, Epoch], None] | None = None,
) -> Record:
    """Go through epochs to their end, call ``on_epoch`` with each, and return the record."""
    while True:
        try:
            number, epoch = next(under_way)
        except StopIteration as end:
            record: Record = end.value
            return record
        if on_epoch is not None:
            on_epoch(number, epoch)


def epochs(
    case: Case,
    *,
    device_name: str = "cpu",
    data_dir: Path | None = None,
    checkpoints: Path | None = None,
    resume: bool = False,
    weights: Path | None = None,
) -> Generator[tuple[int, Epoch], None, Record]:
    """Train one case from its seed, yield each epoch with its number, and return what was measured.

    Within one machine, torch build and thread count the record depends on the case alone, bit for
    bit, timings aside. Epochs are numbered from 1.

    A loss or a gradient that is not finite ends the run as ``diverged``.

    An epoch's ``seconds`` are those of its steps. Compiling and choosing kernels comes before them
    (see `_warm_up`), and the capture of a CUDA graph is left out of them; provenance has both, as
    ``warm_up_seconds`` and ``capture_seconds``.

    With ``checkpoints``, a file, the run can be killed at any moment and, with ``resume``, goes on
    from the last checkpoint of the same case, code and device to the same record. ``weights`` is
    where the final weights go, as safetensors, with the run's key in their metadata.

    Raises:
        UsageError: the device or the data set is not there.
    """
    where = devices.bind(devices.find(device_name))
    devices.use_ieee_fp32(where)
    dataset = data.load_for(case.protocol, where, data_dir)
    warm_up_seconds = 0.0
    if _builds_kernels(where):
        warm_up_seconds = _warm_up(case, dataset)
    meter.reset_peak_memory(where)
    run = prepare(case, dataset)
    run.warm_up_seconds = warm_up_seconds
    try:
        return (yield from _train(run, checkpoints, resume, weights))
    finally:
        close(run)


def _train(
    run: Run, checkpoints: Path | None, resume: bool, weights: Path | None
) -> Generator[tuple[int, Epoch], None, Record]:
    case, where = run.case, run.where
    # Before and after the training, so that a machine that slows down meanwhile shows in the mean.
    calibration = [meter.calibration_seconds(where)]
    if checkpoints is not None and run.why_not_resumable is not None:
        _warn_of_no_checkpoints(case.row.optimizer, run.why_not_resumable)
        checkpoints = None
    if resume and checkpoints is not None:
        _resume(run, checkpoints)
    reason = None
    written, cost = time.perf_counter(), 0.0
    for number in range(len(run.history) + 1, case.epochs + 1):
        try:
            epoch = _epoch(run, number)
        except Diverged as error:
            reason = f"diverged in epoch {number} of {case.epochs}: {error}"
            break
        run.history.append(epoch)
        for name, value in _measure(run, case.protocol.sharpness.every_epoch, number).items():
            run.sharpness_history.setdefault(name, []).append(value)
        yield number, epoch
        # The last one took `cost` seconds: with this pause the share of writing stays constant,
        # whether an epoch takes a second or an hour.
        now = time.perf_counter()
        if checkpoints is not None and now - written >= cost / CHECKPOINT_SHARE:
            checkpoint.save(checkpoints, _state(run))
            written = time.perf_counter()
            cost = written - now
    # Before the record: whoever finds a record of --keep-weights finds its weights, too.
    if weights is not None and reason is None:
        tensors = {
            name: t.clone(memory_format=torch.contiguous_format)
            for name, t in run.model.state_dict().items()
        }
        write_atomically(weights, safetensors.torch.save(tensors, {"key": run.key}))
    calibration.append(meter.calibration_seconds(where))
    return _record(run, reason, statistics.mean(calibration))


@functools.cache  # once a process and reason
def _warn_of_no_checkpoints(optimizer: str, reason: str) -> None:
    warnings.warn(
        f"no checkpoints of {optimizer}, an interrupted run starts anew: {reason}",
        RuntimeWarning,
        2,
    )


def _builds_kernels(where: torch.device) -> bool:
    return where.type == "cuda"


def _warm_up(case: Case, dataset: data.DataSet) -> float:
    """Compile and choose the kernels of a case's steps, and return the seconds that it took.

    It takes steps with a twin of the run, which is then dropped. The run itself is prepared from
    its seed afterwards, and knows nothing of it.
    """
    start = time.perf_counter()
    twin = prepare(case, dataset)
    try:
        twin.model.train()
        enter_training(twin.optimizer)
        whole = case.protocol.training.batch_size
        order = torch.arange(len(twin.labels), device=twin.where)
        sizes = {len(batch) for batch in torch.split(order, whole) if len(batch) > 1}
        for size in sorted(sizes, reverse=True):
            # A second step, because the first one finds no momentum yet.
            for _ in range(2):
                twin.step(order[:size])
        devices.synchronise(twin.where)
    finally:
        close(twin)
    return time.perf_counter() - start


def _state(run: Run) -> dict[str, Any]:
    """Return everything that the epochs to come depend on."""
    return {
        "key": run.key,
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "shuffle": run.shuffle.get_state(),
        "crops": run.crops.get_state(),
        # torch's own generators, from which a network's dropout and an optimizer's noise draw
        "chance": _chance(run.where),
        "history": [dataclasses.asdict(epoch) for epoch in run.history],
        "sharpness_history": run.sharpness_history,
        "measure_failures": run.measure_failures,
        "resumed_after": run.resumed_after,
    }


def _chance(where: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(where)] if where.type == "cuda" else states


def _resume(run: Run, path: Path) -> None:
    """Go on from the newest state that fits, or begin."""
    for file, state in checkpoint.states(path, run.key):
        put_back, shuffle, crops = snapshot(run), run.shuffle.get_state(), run.crops.get_state()
        chance = _chance(run.where)
        try:
            _take(run, state)
        except checkpoint.NONSENSE as error:
            checkpoint.refuse(file, f"the checkpoint does not fit: {in_one_line(error)}")
            put_back()
            run.shuffle.set_state(shuffle)
            run.crops.set_state(crops)
            _set_chance(chance, run.where)
        else:
            return


def _set_chance(states: list[Tensor], where: torch.device) -> None:
    torch.set_rng_state(states[0])
    if where.type == "cuda":
        torch.cuda.set_rng_state(states[1], where)


def _take(run: Run, state: dict[str, Any]) -> None:
    history = [Epoch(**epoch) for epoch in state["history"]]
    sharpness_history, failures = dict(state["sharpness_history"]), dict(state["measure_failures"])
    resumed_after = [*state["resumed_after"], len(history)]
    run.model.load_state_dict(state["model"])
    load_optimizer(run, state["optimizer"])
    run.shuffle.set_state(state["shuffle"])
    run.crops.set_state(state["crops"])
    _set_chance(state["chance"], run.where)
    run.history, run.resumed_after = history, resumed_after
    run.sharpness_history, run.measure_failures = sharpness_history, failures


def _epoch(run: Run, number: int) -> Epoch:
    """Train one epoch, counted from 1, and evaluate.

    Raises:
        Diverged: a sum over the epoch, a gradient, or the test loss is not finite.
    """
    case, settings = run.case, run.case.protocol
    # Drawn before the clock starts, and whole: the learning rate needs their number.
    batches = list(
        data.batches(len(run.labels), settings.training.batch_size, run.shuffle, run.where)
    )
    run.model.train()
    enter_training(run.optimizer)
    # of what `take_step` returns: on the device, read once below
    sums = torch.zeros(SUMS, dtype=torch.float64, device=run.where)
    skipped = _skipped_steps(run).clone()
    devices.synchronise(run.where)
    captured, start = run.capture_seconds, time.perf_counter()
    for i, batch in enumerate(batches):
        set_learning_rates(run, rate_factor(case, number - 1 + i / len(batches)))
        sums += run.step(batch)
    skipped = _skipped_steps(run) - skipped
    # The epoch's one wait for the device. What follows reads Python's floats.
    read = torch.cat([sums, skipped.double().reshape(1)]).tolist()
    loss, metric, norms, evaluations, later, skips = read
    seconds = time.perf_counter() - start - (run.capture_seconds - captured)
    if not math.isfinite(loss):
        raise Diverged("the training loss is not finite")
    if not math.isfinite(norms):
        raise Diverged("the gradient norm is not finite")
    if skips:  # SAM has seen more gradients than the norm's: those of the second passes
        raise Diverged("a gradient is not finite")
    if not math.isfinite(later):
        raise Diverged("the loss of a later pass of a step is not finite")
    leave_training(run.optimizer)
    test_loss, test_metric = evaluate(run.model, run.dataset, run.evaluated, run.task)
    if not math.isfinite(test_loss):
        raise Diverged("the test loss is not finite")
    if not math.isfinite(metric + test_metric):
        raise Diverged(f"the {run.task.name or run.task.kind} is not finite")
    seen = sum(map(len, batches))
    return Epoch(
        train_loss=loss / seen,
        test_loss=test_loss,
        **{"train_accuracy": None, "test_accuracy": None}
        | run.task.outcomes(train=metric / seen, test=test_metric),
        sam_sharpness=settings.sharpness.rho * norms / len(batches),
        # of the first group; 0 where an optimizer has no learning rate
        learning_rate=(run.rates[0] or 0.0) * rate_factor(case, number - 1),
        seconds=seconds,
        gradient_evaluations=round(evaluations),
    )


def _skipped_steps(run: Run) -> Tensor:
    """Return how many steps SAM has skipped since it was made, 0-d, where the run is."""
    if isinstance(run.optimizer, HalfSteps):
        return run.optimizer.skipped_steps
    return torch.zeros((), dtype=torch.int64, device=run.where)


def _measure(run: Run, names: tuple[str, ...], epoch: int | None) -> dict[str, float | None]:
    """Return measures after an epoch, or at the end with their standard errors."""
    if not names:
        return {}
    rule = run.case.protocol.sharpness
    at_end = epoch is None
    found = measuring.measure(
        *(names, run.model, run.dataset, run.labels, rule),
        loss=run.task.loss,
        standard_errors=at_end,
    )
    when = "at the end" if at_end else f"after epoch {epoch}"
    for name, reason in found.failures.items():
        run.measure_failures.setdefault(name, f"{when}: {reason}")
    return found.values


def _outcomes(run: Run) -> dict[str, float]:
    """Return the metric of the last epoch, and the best one, which is selected on the test set."""
    train, test = f"train_{run.task.kind}", f"test_{run.task.kind}"
    best = min if run.task.kind == "error" else max
    return {
        train: getattr(run.history[-1], train),
        test: getattr(run.history[-1], test),
        f"best_{test}": best(getattr(epoch, test) for epoch in run.history),
    }


def _record(run: Run, reason: str | None, calibration: float) -> Record:
    case, history = run.case, run.history
    final: dict[str, Any] = {}
    if reason is None:
        last = history[-1]
        final = {
            "test_loss": last.test_loss,
            "train_loss": last.train_loss,
            **_outcomes(run),
            "sam_sharpness": last.sam_sharpness,
            "sharpness": _measure(run, measuring.at_end(case.protocol.sharpness), None),
        }
    came_from = provenance.describe(run.where, run.precision) | {
        "key": run.key,
        "data": run.dataset.digest,
        "components": run.components,
        "resumed_after": run.resumed_after,
        "warm_up_seconds": run.warm_up_seconds,
        "capture_seconds": run.capture_seconds,
    }
    return of_case(
        case,
        came_from,
        status="completed" if reason is None else "diverged",
        reason=reason,
        metric=run.task.name,
        gradient_evaluations=sum(epoch.gradient_evaluations for epoch in history),
        seconds=sum(epoch.seconds for epoch in history),
        calibration_seconds=calibration,
        peak_memory=meter.peak_memory(run.where),
        history=tuple(history),
        sharpness_history={name: tuple(column) for name, column in run.sharpness_history.items()},
        measure_failures=run.measure_failures,
        **final,
    )
