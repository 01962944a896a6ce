"""What the tests of both engines share: a grid that takes seconds, and what it must come to."""

import time
from pathlib import Path

import pytest

from flatbench import execution
from flatbench.execution import Machine
from flatbench.protocols.cases import grid
from flatbench.records.reading import read_one
from tests import tiny

PATIENCE = 300  # seconds; nothing here takes long, and a hang should not go on for ever
EPOCHS = 16  # of about a tenth of a second: time enough for something to happen


def cases_in(folder, **changes):
    """Return two cases of EPOCHS each, and a third that raises in its first step."""
    (folder / "fails.py").write_text(FAILS, encoding="utf-8")
    rows = {"sgd": tiny.SGD, "sgd+sam": {**tiny.SGD, "rho": 0.05}, "fails": OWN}
    training = {"epochs": EPOCHS, "batch_size": 64}
    return grid(tiny.protocol(folder, tiny.table(training=training, optimizers=rows) | changes))


# What is found out of an optimizer before the training, by one step on small parameters, it passes.
FAILS = """
import torch

class Fails(torch.optim.SGD):
    def step(self, closure=None):
        if sum(p.numel() for g in self.param_groups for p in g["params"]) > 5000:
            raise ArithmeticError("on purpose")
        return super().step(closure)
"""
OWN = {"optimizer": "./fails.py:Fails", "lr": 0.1}


def wait_until(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {PATIENCE} s until {what}")
        time.sleep(0.02)


def finished(cases, store):
    """Train cases on this machine, undisturbed, and return what is `kept`."""
    with execution.start(cases, Machine("cpu", workers=2), store) as run:
        for case in cases:
            run.futures[case.id].result(timeout=PATIENCE)
        assert not run.progress.notes
    return kept(store, cases)


def kept(store, cases):
    """Return the records on the disk as they are without timings, by case; each is there once."""
    folder = store.record(cases[0]).parent
    assert len(list(folder.glob("*.json"))) == len(list(folder.iterdir())) == len(cases)
    return {case.id: bare(read_one(store.record(case))) for case in cases}


def bare(record):
    """Return what must be equal, bit for bit, whatever happened on the way."""
    found = record.without_timings()
    said = found.pop("provenance")
    # not what may differ: where it was resumed, and the commit, since a developer goes on meanwhile
    names = ("cell_hash", "common_hash", "key", "torch", "device", "threads", "deterministic")
    return found | {name: said.get(name) for name in names}


def children(parent):
    """Return the processes that a process has started."""
    return [pid for pid in processes() if _stat(pid)[1:2] == [str(parent)]]


def _stat(pid):
    """Return a process's state, its parent and so on; nothing where it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def processes(*words):
    """Return the processes of this machine whose command line holds all of these words."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if all(word in line for word in words) and _stat(path.name)[:1] not in ([], ["Z"]):
            found.append(int(path.name))
    return found
