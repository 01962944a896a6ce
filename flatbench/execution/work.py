"""What a worker does with a case, in whatever process an engine has put it."""

from __future__ import annotations

import functools
import gc
import traceback
from collections.abc import Generator
from typing import TYPE_CHECKING

from flatbench.components import in_one_line
from flatbench.errors import UsageError
from flatbench.protocols.cases import Case
from flatbench.records.record import Epoch, Record, of_case

if TYPE_CHECKING:
    from flatbench.execution.engine import Job


@functools.cache
def set_up(device: str) -> None:
    """Make this process one that trains on a device, once."""
    import torch

    from flatbench.training.devices import set_up_worker

    set_up_worker(torch.device(device))
    # Each case collects what the one before has left (`meter.reset_peak_memory`). What is there
    # already, torch's and flatbench's own modules, stays: looking through it takes longer than a
    # short case does.
    gc.collect()
    gc.freeze()


def attempt(case: Case, job: Job, device: str) -> Generator[tuple[int, Epoch], None, Record]:
    """Train a case: yield each epoch with its number, and return the record.

    Whatever the case raises makes its record a failed one.
    """
    try:
        from flatbench.training import trainer

        set_up(device)
        return (
            yield from trainer.epochs(
                case,
                device_name=device,
                data_dir=job.data_dir,
                checkpoints=job.checkpoint,
                resume=job.resume,
                weights=job.weights,
            )
        )
    except UsageError as error:
        return failed(case, str(error))
    except Exception as error:  # noqa: BLE001 - whatever it was, it fails this case alone
        traceback.print_exc()
        return failed(case, in_one_line(error))


def failed(case: Case, reason: str) -> Record:
    """Return the record of a case that came to no end of its own; its reason is made one line."""
    # A file's name may hold bytes that are no text: Python has them as lone surrogates, which no
    # file can take.
    line = " ".join(reason.encode("utf-8", "backslashreplace").decode().split())
    return of_case(case, {}, status="failed", reason=line)
